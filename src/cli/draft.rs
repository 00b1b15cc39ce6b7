//! The options, one after the other, until they are settled.

use super::ids::{self, Which};
use super::list::Word;
use super::size;
use crate::fuse::session::{Access, Flags, MAX_THREADS, Sandbox, Settings};
use crate::mirror::{
    Coherence, Control, IdMap, IdRange, Ids, Io, NEVER, Options, Passthrough, Reach,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// The smallest and the largest window, in bytes.
const WINDOW: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 30);

/// Windows are aligned to, and multiples of, this many bytes.
const PAGE: usize = 4096;

/// The smallest budget, in bytes.
const LEAST_BUDGET: usize = 2 << 20;

/// How many inodes may be known unless it is said otherwise: they take less than 256 MiB.
const INODES: usize = 1 << 20;

/// The smallest limit of inodes: the kernel holds on to what its users use.
const LEAST_INODES: usize = 256;

/// The folder at the root of every mount, whose name is taken.
const FOLDER: &str = ".corfs";

/// An option with a value: `--name VALUE`, `-o name=VALUE`.
pub(super) struct Valued {
    /// Its name, with `-` between words; in `-o` with `_` too.
    pub(super) name: &'static str,
    /// What its value is called in the help.
    pub(super) value: &'static str,
    /// What it does, for the help.
    pub(super) help: &'static str,
    /// Takes the value, or says what is right.
    apply: fn(&mut Draft, &OsStr) -> Result<(), &'static str>,
}

/// Every option with a value.
pub(super) const VALUED: &[Valued] = &[
    Valued {
        name: "threads",
        value: "N",
        help: "Event loops, 1 to 256 [default: 2 a core, at least 4, at most 16]",
        apply: |d, v| number(v).map(|n| d.threads = Some(n)),
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
        value: "never|always",
        help: "Files that the kernel serves by itself; needs root [default: never]",
        apply: |d, v| {
            let words = [
                ("never", Passthrough::Never),
                ("always", Passthrough::Always),
            ];
            choice(v, &words, "must be never or always").map(|p| d.passthrough = p)
        },
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
               at once because the source is watched [default: ttl]",
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
type Flag = (&'static str, fn(&mut Draft));

/// Words of `-o` without a value.
const FLAGS: &[Flag] = &[
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
const IGNORED: &[&str] = &[
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

/// What has been said so far.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    foreground: bool,
    debug: bool,
    threads: Option<usize>,
    clone_fd: bool,
    log_file: Option<PathBuf>,
    fsname: Option<OsString>,
    allow_other: bool,
    allow_root: bool,
    flags: Flags,
    auto_unmount: bool,
    sandbox: Sandbox,
    nonempty: bool,
    pub(super) remount: bool,
    read_only: bool,
    noatime: bool,
    io: Io,
    passthrough: Passthrough,
    window: Option<usize>,
    window_budget: usize,
    inode_limit: Option<usize>,
    coherence: Coherence,
    watch_timeout: Option<Duration>,
    watch_limit: Option<usize>,
    attr_timeout: Option<Duration>,
    entry_timeout: Option<Duration>,
    negative_timeout: Option<Duration>,
    control: Control,
    control_name: OsString,
    default_permissions: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    maps: Vec<(Which, IdRange)>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            foreground: false,
            debug: false,
            threads: None,
            clone_fd: true,
            log_file: None,
            fsname: None,
            allow_other: false,
            allow_root: false,
            flags: Flags::default(),
            auto_unmount: false,
            sandbox: Sandbox::Auto,
            nonempty: false,
            remount: false,
            read_only: false,
            noatime: false,
            io: Io::Mmap,
            passthrough: Passthrough::Never,
            window: None,
            window_budget: 256 << 20,
            inode_limit: Some(INODES),
            coherence: Coherence::Ttl,
            watch_timeout: None,
            watch_limit: None,
            attr_timeout: None,
            entry_timeout: None,
            negative_timeout: None,
            control: Control::Hidden,
            control_name: ".copy".into(),
            default_permissions: false,
            uid: None,
            gid: None,
            maps: Vec::new(),
        }
    }
}

impl Draft {
    /// Takes one word; of two that contradict each other the last counts.
    pub(super) fn apply(&mut self, word: &Word) -> Result<(), String> {
        let name = word.name.to_string_lossy().replace('-', "_");
        if let Some(option) = VALUED.iter().find(|o| o.name.replace('-', "_") == name)
            && let Some(value) = &word.value
        {
            return (option.apply)(self, value)
                .map_err(|right| format!("{}: {right}", word.shown()));
        }
        if let Some((_, apply)) = FLAGS.iter().find(|(flag, _)| *flag == name) {
            return match &word.value {
                None => {
                    apply(self);
                    Ok(())
                }
                Some(_) => Err(format!("option {}: {name} takes no value", word.shown())),
            };
        }
        if let Some(option) = VALUED.iter().find(|o| o.name.replace('-', "_") == name) {
            return Err(format!(
                "option {name}: needs a value: {name}={}",
                option.value
            ));
        }
        if IGNORED.contains(&name.as_str()) || word.name.as_bytes().starts_with(b"x-") {
            return Ok(());
        }
        Err(format!(
            "option {}: not known; corfs --help lists what is",
            word.shown()
        ))
    }

    /// The whole, once every word has been taken.
    pub(super) fn settle(self, source: PathBuf, mountpoint: PathBuf) -> Result<Settings, String> {
        let access = match (self.allow_other, self.allow_root) {
            (true, true) => {
                return Err("options allow_other and allow_root: only one of them can hold".into());
            }
            (true, false) => Access::All,
            (false, true) => Access::OwnerAndRoot,
            (false, false) => Access::Owner,
        };
        Ok(Settings {
            source,
            mountpoint,
            foreground: self.foreground || self.debug,
            debug: self.debug,
            threads: self.threads,
            clone_fd: self.clone_fd,
            log_file: self.log_file.clone(),
            fsname: self.fsname.clone(),
            access,
            flags: self.flags,
            auto_unmount: self.auto_unmount,
            sandbox: self.sandbox,
            nonempty: self.nonempty,
            options: self.options(access)?,
        })
    }

    /// Options that only one way of coherence takes.
    fn refuse_incoherent(&self) -> Result<(), String> {
        let timeouts = [
            ("attr_timeout", self.attr_timeout),
            ("entry_timeout", self.entry_timeout),
            ("negative_timeout", self.negative_timeout),
        ];
        let given = timeouts.iter().find(|(_, timeout)| timeout.is_some());
        if let (Coherence::Strict, Some((name, _))) = (self.coherence, given) {
            return Err(format!(
                "options coherence=strict and {name}: strict keeps nothing; leave out {name}, or \
                 use coherence=ttl"
            ));
        }
        let watching = [
            ("watch_timeout", self.watch_timeout.is_some()),
            ("watch_limit", self.watch_limit.is_some()),
        ];
        match watching.iter().find(|(_, given)| *given) {
            Some((name, _)) if self.coherence != Coherence::Watch => Err(format!(
                "option {name}: only coherence=watch has one; add coherence=watch, or leave it out"
            )),
            _ => Ok(()),
        }
    }

    fn options(self, access: Access) -> Result<Options, String> {
        if self.noatime && self.passthrough == Passthrough::Always {
            // The kernel opens the source's files anew for it, without O_NOATIME.
            return Err("options noatime and passthrough=always: only one of them can hold".into());
        }
        let ids = self.ids()?;
        self.refuse_incoherent()?;
        let usual = match self.coherence {
            Coherence::Strict => Duration::ZERO,
            Coherence::Ttl | Coherence::Watch => Duration::from_secs(1),
        };
        Ok(Options {
            coherence: self.coherence,
            watch_timeout: self.watch_timeout.unwrap_or(Duration::from_secs(60)),
            watch_limit: self.watch_limit,
            read_only: self.read_only,
            noatime: self.noatime,
            io: self.io,
            passthrough: self.passthrough,
            window: self.fitting_window()?,
            window_budget: self.window_budget,
            inode_limit: self.inode_limit,
            // The sandbox may ask for the other way.
            reach: Reach::HandleFirst,
            attr_timeout: self.attr_timeout.unwrap_or(usual),
            entry_timeout: self.entry_timeout.unwrap_or(usual),
            negative_timeout: self.negative_timeout.unwrap_or_default(),
            control: self.control,
            control_name: self.control_name,
            // Others must be held to the modes, as on any file system.
            default_permissions: self.default_permissions || access != Access::Owner,
            allow_other: access == Access::All,
            ids,
        })
    }

    /// How owners are shown, if not as they are.
    fn ids(&self) -> Result<Option<IdMap>, String> {
        let of = |wanted: Which| {
            let maps = self.maps.iter();
            let maps = maps.filter(|(which, _)| *which == Which::Both || *which == wanted);
            maps.map(|(_, range)| *range).collect()
        };
        let ids = IdMap {
            users: Ids::new(self.uid, of(Which::Users))?,
            groups: Ids::new(self.gid, of(Which::Groups))?,
        };
        Ok((!ids.is_plain()).then_some(ids))
    }

    /// The window asked for, which the budget must hold; else 4 MiB, or less so that the budget
    /// holds two.
    fn fitting_window(&self) -> Result<usize, String> {
        let budget = self.window_budget;
        match self.window {
            Some(window) if window > budget => Err(format!(
                "window={window}: must be at most the window budget, {budget}"
            )),
            Some(window) => Ok(window),
            None => Ok((4 << 20).min(1 << (budget / 2).ilog2())),
        }
    }
}

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
