//! The table of options and words: what each is called, what it does, and which values are right.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Draft, caching};
use crate::cache::Verify;
use crate::cli::{ids, size};
use crate::fuse::session::{MAX_BUSY_POLL, MAX_THREADS, Sandbox, SourceWorkers};
use crate::mirror::{Coherence, Control, Io, NEVER, Passthrough};

/// The smallest and the largest window, in bytes.
const WINDOW: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 30);

/// Windows are aligned to, and multiples of, this many bytes.
const PAGE: usize = 4096;

/// The largest readahead, in bytes.
const MOST_READAHEAD: usize = 1 << 30;

/// The smallest budget, in bytes.
const LEAST_BUDGET: usize = 2 << 20;

/// The smallest limit of inodes: the kernel holds on to what its users use.
const LEAST_INODES: usize = 256;

/// The shortest deadline: it is looked for a few times a second.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// The folder at the root of every mount, whose name is taken.
const FOLDER: &str = ".corfs";

/// An option with a value: `--name VALUE`, `-o name=VALUE`.
pub(in crate::cli) struct Valued {
    /// Its name, with `-` between words; in `-o` with `_` too.
    pub(in crate::cli) name: &'static str,
    /// What its value is called in the help.
    pub(in crate::cli) value: &'static str,
    /// What it does, for the help.
    pub(in crate::cli) help: &'static str,
    /// Takes the value, or says what is right.
    pub(super) apply: fn(&mut Draft, &OsStr) -> Result<(), &'static str>,
}

/// Every option with a value.
pub(in crate::cli) const VALUED: &[Valued] = &[
    Valued {
        name: "threads",
        value: "N",
        help: "Event loops, 1 to 256 [default: 2 a core, at least 4, at most 16]",
        apply: |d, v| number(v).map(|n| d.threads = Some(n)),
    },
    Valued {
        name: "busy-poll",
        value: "MICROSECONDS",
        help: "How long an event loop waits awake for the next request, while they come that fast; \
               0: never [default: 100; with one core 0]",
        apply: |d, v| micros(v).map(|time| d.busy_poll = Some(time)),
    },
    Valued {
        name: "clone-fd",
        value: "on|off",
        help: "A descriptor of /dev/fuse for each event loop [default: on]",
        apply: |d, v| {
            choice(v, &[("on", true), ("off", false)], "must be on or off").map(|c| d.clone_fd = c)
        },
    },
    Valued {
        name: "readahead",
        value: "SIZE",
        help: "How far the kernel reads ahead on the mount; needs root [default: 1M]",
        apply: |d, v| readahead(v).map(|size| d.readahead = Some(size)),
    },
    Valued {
        name: "io",
        value: "mmap|pread",
        help: "How files are read: from mapped windows, or through a buffer [default: mmap]",
        apply: |d, v| {
            let words = [("mmap", Io::Mmap), ("pread", Io::Pread)];
            choice(v, &words, "must be mmap or pread").map(|io| d.io = io)
        },
    },
    Valued {
        name: "passthrough",
        value: "never|cached|always",
        help: "Files that the kernel serves by itself; needs root [default: cached with a cache, \
               else never]",
        apply: |d, v| {
            let words = [
                ("never", Passthrough::Never),
                ("cached", Passthrough::Cached),
                ("always", Passthrough::Always),
            ];
            choice(v, &words, "must be never, cached or always").map(|p| d.passthrough = Some(p))
        },
    },
    Valued {
        name: "writeback",
        value: "on|off",
        help: "The kernel keeps what is written until a file is closed or synced; only for who is \
               the only one to write to the source [default: off]",
        apply: |d, v| {
            let words = [("on", true), ("off", false)];
            choice(v, &words, "must be on or off").map(|w| d.writeback = w)
        },
    },
    Valued {
        name: "cache",
        value: "DIR",
        help: "Keep on local disk, in this directory, what is read from the source",
        apply: |d, v| some(v).map(|dir| d.cache.dir = Some(PathBuf::from(dir))),
    },
    Valued {
        name: "cache-id",
        value: "NAME",
        help: "What the source is called in the cache [default: its file system's own identity]",
        apply: |d, v| caching::id(v).map(|id| d.cache.id = Some(id)),
    },
    Valued {
        name: "cache-size",
        value: "SIZE|N%",
        help: "The most that the cache directory may take [default: 10% of its file system]",
        apply: |d, v| caching::share(v).map(|share| d.cache.size = Some(share)),
    },
    Valued {
        name: "cache-free",
        value: "SIZE|N%",
        help: "What stays free on the cache's file system, in bytes and inodes [default: 5%]",
        apply: |d, v| caching::share(v).map(|share| d.cache.free = Some(share)),
    },
    Valued {
        name: "block",
        value: "SIZE",
        help: "Bytes that are fetched and kept at once: a power of two, 64K to 16M [default: 1M]",
        apply: |d, v| caching::block(v).map(|size| d.cache.block = Some(size)),
    },
    Valued {
        name: "verify",
        value: "unclean|always",
        help: "Hold what is cached against its checksums on first use after an unclean stop, or \
               at every read [default: unclean]",
        apply: |d, v| {
            let words = [("unclean", Verify::Unclean), ("always", Verify::Always)];
            choice(v, &words, "must be unclean or always").map(|c| d.cache.verify = Some(c))
        },
    },
    Valued {
        name: "racy",
        value: "SECONDS",
        help: "Files changed less long ago are not cached yet [default: 2]",
        apply: |d, v| timeout(v).map(|t| d.cache.racy = Some(t)),
    },
    Valued {
        name: "prefetch",
        value: "SIZE",
        help: "How far ahead of a sequential reader is fetched; 0: not at all [default: 8M]",
        apply: |d, v| caching::prefetch(v).map(|size| d.cache.prefetch = Some(size)),
    },
    Valued {
        name: "validate",
        value: "open|ttl:SECONDS|never",
        help: "When what is cached is held against the source: at each open, not again before so \
               long, or never [default: open]",
        apply: |d, v| caching::validate(v).map(|how| d.cache.validate = Some(how)),
    },
    Valued {
        name: "offline",
        value: "auto|never",
        help: "Keep the names and attributes that were seen in the cache, and show the tree as it was \
               last seen while the source is away, also when it is at mount time [default: auto with a \
               cache]",
        apply: |d, v| {
            choice(
                v,
                &[("auto", true), ("never", false)],
                "must be auto or never",
            )
            .map(|c| d.cache.offline = Some(c))
        },
    },
    Valued {
        name: "source-idle",
        value: "SECONDS|never",
        help: "With offline=auto: after so long without a request, and with no file open, the source \
               is let go of, so that it can be unmounted [default: 30]",
        apply: |d, v| source_timeout(v).map(|t| d.cache.source_idle = Some(t)),
    },
    Valued {
        name: "window",
        value: "SIZE",
        help: "Bytes of a mapped window [default: 4M, less under a small budget]",
        apply: |d, v| window(v).map(|size| d.window = Some(size)),
    },
    Valued {
        name: "window-budget",
        value: "SIZE",
        help: "The most bytes mapped at once [default: 256M]",
        apply: |d, v| budget(v).map(|size| d.window_budget = size),
    },
    Valued {
        name: "inode-limit",
        value: "N",
        help: "Inodes known before the kernel is asked to forget some; 0: no limit [default: 1M]",
        apply: |d, v| inode_limit(v).map(|limit| d.inode_limit = limit),
    },
    Valued {
        name: "coherence",
        value: "ttl|strict|watch",
        help: "Changes behind the mirror show after the timeouts, at once with nothing cached, or \
               in milliseconds as the source is watched [default: ttl]",
        apply: |d, v| {
            let words = [
                ("ttl", Coherence::Ttl),
                ("strict", Coherence::Strict),
                ("watch", Coherence::Watch),
            ];
            choice(v, &words, "must be ttl, strict or watch").map(|c| d.coherence = c)
        },
    },
    Valued {
        name: "watch-timeout",
        value: "SECONDS|never",
        help: "How long the kernel may trust what is watched [default: 60]",
        apply: |d, v| watch_timeout(v).map(|t| d.watch_timeout = Some(t)),
    },
    Valued {
        name: "watch-limit",
        value: "N",
        help: "The most directories watched by inotify [default: half of \
               fs.inotify.max_user_watches]",
        apply: |d, v| watch_limit(v).map(|n| d.watch_limit = Some(n)),
    },
    Valued {
        name: "attr-timeout",
        value: "SECONDS",
        help: "How long the kernel may trust attributes [default: 1]",
        apply: |d, v| timeout(v).map(|t| d.attr_timeout = Some(t)),
    },
    Valued {
        name: "entry-timeout",
        value: "SECONDS",
        help: "How long the kernel may trust names [default: 1]",
        apply: |d, v| timeout(v).map(|t| d.entry_timeout = Some(t)),
    },
    Valued {
        name: "negative-timeout",
        value: "SECONDS",
        help: "How long the kernel may trust that a name does not exist [default: 0]",
        apply: |d, v| timeout(v).map(|t| d.negative_timeout = Some(t)),
    },
    Valued {
        name: "control",
        value: "hidden|visible|off",
        help: "Control files: not listed, listed at the root, or none [default: hidden]",
        apply: |d, v| {
            let words = [
                ("hidden", Control::Hidden),
                ("visible", Control::Visible),
                ("off", Control::Off),
            ];
            choice(v, &words, "must be hidden, visible or off").map(|c| d.control = c)
        },
    },
    Valued {
        name: "control-name",
        value: "NAME",
        help: "Name of the control file in every directory [default: .copy]",
        apply: |d, v| control_name(v).map(|name| d.control_name = name),
    },
    Valued {
        name: "uid",
        value: "ID",
        help: "Show every file with this owner [default: its own]",
        apply: |d, v| ids::one(v).map(|id| d.uid = Some(id)),
    },
    Valued {
        name: "gid",
        value: "ID",
        help: "Show every file with this group [default: its own]",
        apply: |d, v| ids::one(v).map(|id| d.gid = Some(id)),
    },
    Valued {
        name: "map",
        value: "SOURCE:MOUNT:COUNT",
        help: "Show COUNT ids from SOURCE on as those from MOUNT on, and know callers so; u before \
               it for users alone, g for groups; several between / or one by one",
        apply: |d, v| ids::maps(v).map(|more| d.maps.extend(more)),
    },
    Valued {
        name: "source-workers",
        value: "auto|never|always",
        help: "Threads that wait for the source in place of the event loops; auto: where it is not \
               on a local file system [default: auto]",
        apply: |d, v| {
            let words = [
                ("auto", SourceWorkers::Auto),
                ("never", SourceWorkers::Never),
                ("always", SourceWorkers::Always),
            ];
            choice(v, &words, "must be auto, never or always").map(|w| d.source_workers = w)
        },
    },
    Valued {
        name: "source-timeout",
        value: "SECONDS|never",
        help: "How long who asks or reads waits for such a source, then ETIMEDOUT [default: 30]",
        apply: |d, v| source_timeout(v).map(|t| d.source_timeout = t),
    },
    Valued {
        name: "source-timeout-write",
        value: "SECONDS|never",
        help: "The same for who changes something: what became of it is unknown then [default: \
               never]",
        apply: |d, v| source_timeout(v).map(|t| d.source_timeout_write = t),
    },
    Valued {
        name: "sandbox",
        value: "auto|off",
        help: "The serving process gives up what it does not need [default: auto]",
        apply: |d, v| {
            let words = [("auto", Sandbox::Auto), ("off", Sandbox::Off)];
            choice(v, &words, "must be auto or off").map(|s| d.sandbox = s)
        },
    },
    Valued {
        name: "log-file",
        value: "PATH",
        help: "Log to the end of this file, not to standard error or syslog",
        apply: |d, v| some(v).map(|path| d.log_file = Some(PathBuf::from(path))),
    },
    Valued {
        name: "fsname",
        value: "NAME",
        help: "The source that /proc/mounts shows [default: SOURCE]",
        apply: |d, v| some(v).map(|name| d.fsname = Some(name)),
    },
];

/// A word without a value, and what it does.
pub(super) type Flag = (&'static str, fn(&mut Draft));

/// Words of `-o` without a value.
pub(super) const FLAGS: &[Flag] = &[
    ("foreground", |d| d.foreground = true),
    ("debug", |d| d.debug = true),
    ("clone_fd", |d| d.clone_fd = true),
    ("ro", |d| d.read_only = true),
    ("rw", |d| d.read_only = false),
    ("allow_other", |d| d.allow_other = true),
    ("allow_root", |d| d.allow_root = true),
    ("default_permissions", |d| d.default_permissions = true),
    ("suid", |d| d.flags.suid = true),
    ("nosuid", |d| d.flags.suid = false),
    ("dev", |d| d.flags.dev = true),
    ("nodev", |d| d.flags.dev = false),
    ("exec", |d| d.flags.noexec = false),
    ("noexec", |d| d.flags.noexec = true),
    ("atime", |d| d.noatime = false),
    ("noatime", |d| d.noatime = true),
    ("sync", |d| d.flags.sync = true),
    ("async", |d| d.flags.sync = false),
    ("dirsync", |d| d.flags.dirsync = true),
    ("auto_unmount", |d| d.auto_unmount = true),
    ("nonempty", |d| d.nonempty = true),
    ("remount", |d| d.remount = true),
];

/// Words that mount(8), fstab(5) and other helpers read, or that a mirror has no part in.
pub(super) const IGNORED: &[&str] = &[
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "defaults",
    "relatime",
    "norelatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "lazytime",
    "comment",
    "subtype",
    // What the kernel shows in /proc/mounts, and mount(8) hands back at a remount.
    "user_id",
    "group_id",
    "rootmode",
    "max_read",
];

fn text(value: &OsStr) -> &str {
    value.to_str().unwrap_or_default()
}

fn some(value: &OsStr) -> Result<OsString, &'static str> {
    if value.is_empty() || value.as_bytes().contains(&0) {
        return Err("must not be empty");
    }
    Ok(value.to_owned())
}

fn number(value: &OsStr) -> Result<usize, &'static str> {
    let number = text(value).parse().ok();
    number
        .filter(|n| (1..=MAX_THREADS).contains(n))
        .ok_or("must be a number from 1 to 256")
}

fn micros(value: &OsStr) -> Result<Duration, &'static str> {
    let time = text(value).parse().ok().map(Duration::from_micros);
    time.filter(|time| *time <= MAX_BUSY_POLL)
        .ok_or("must be a number of microseconds, at most 1000")
}

fn choice<T: Copy>(
    value: &OsStr,
    words: &[(&str, T)],
    right: &'static str,
) -> Result<T, &'static str> {
    let found = words.iter().find(|(word, _)| value == *word);
    found.map(|(_, choice)| *choice).ok_or(right)
}

fn window(value: &OsStr) -> Result<usize, &'static str> {
    size::bytes(text(value))
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| WINDOW.contains(size) && size.is_multiple_of(PAGE))
        .ok_or("must be a size that is a multiple of 4096, 64K to 1G")
}

fn budget(value: &OsStr) -> Result<usize, &'static str> {
    size::bytes(text(value))
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| *size >= LEAST_BUDGET && isize::try_from(*size).is_ok())
        .ok_or("must be a size of at least 2M (K, M, G and T are powers of 1024)")
}

fn readahead(value: &OsStr) -> Result<usize, &'static str> {
    size::bytes(text(value))
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| *size <= MOST_READAHEAD && size.is_multiple_of(PAGE))
        .ok_or("must be a size that is a multiple of 4096, 0 to 1G")
}

fn inode_limit(value: &OsStr) -> Result<Option<usize>, &'static str> {
    let right = "must be a number of at least 256 (K and M are powers of 1024), or 0 for no limit";
    let number = size::bytes(text(value)).and_then(|n| usize::try_from(n).ok());
    match number.ok_or(right)? {
        0 => Ok(None),
        n if n < LEAST_INODES => Err(right),
        n => Ok(Some(n)),
    }
}

fn timeout(value: &OsStr) -> Result<Duration, &'static str> {
    size::seconds(text(value)).ok_or("must be seconds, 0 to 31536000")
}

fn source_timeout(value: &OsStr) -> Result<Option<Duration>, &'static str> {
    if value == "never" {
        return Ok(None);
    }
    let seconds = size::seconds(text(value)).filter(|timeout| *timeout >= LEAST_PATIENCE);
    seconds
        .map(Some)
        .ok_or("must be seconds, 0.1 to 31536000, or never")
}

fn watch_timeout(value: &OsStr) -> Result<Duration, &'static str> {
    if value == "never" {
        return Ok(NEVER);
    }
    size::seconds(text(value)).ok_or("must be seconds, 0 to 31536000, or never")
}

fn watch_limit(value: &OsStr) -> Result<usize, &'static str> {
    let number = text(value).parse().ok();
    number
        .filter(|n| (1..=1 << 30).contains(n))
        .ok_or("must be a number from 1 to 1073741824")
}

fn control_name(value: &OsStr) -> Result<OsString, &'static str> {
    let name = value.as_bytes();
    let plain =
        !name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0);
    if plain && ![".", "..", FOLDER].map(str::as_bytes).contains(&name) {
        Ok(value.to_owned())
    } else {
        Err("must be one name of at most 255 bytes, without /, and not .corfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_stands_in_the_readme() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
        let rows = || readme.lines().filter(|line| line.starts_with("| `"));
        let first = |row: &str| row.split(" | ").next().map(str::to_owned);
        for option in VALUED {
            let word = format!("`{}=", option.name.replace('-', "_"));
            let found = rows().filter_map(first).any(|cell| cell.contains(&word));
            assert!(found, "{word}");
        }
        for (flag, _) in FLAGS {
            // With a value it is an option as well.
            let (alone, valued) = (format!("`{flag}`"), format!("`{flag}="));
            assert!(
                readme.contains(&alone) || readme.contains(&valued),
                "{flag}"
            );
        }
    }
}
