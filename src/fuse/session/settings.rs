//! What a mount is to be: plain values, as the command line settled them.

use super::readahead;
use crate::cache::{Share, Verify};
use crate::fuse::adapter::Serving;
use crate::mirror::{Coherence, Control, IdMap, Ids, Io, NEVER, Options, Passthrough, Validate};
use crate::sys::sandbox::InForce;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most event loops.
pub const MAX_THREADS: usize = 256;

/// The longest that an event loop may wait awake.
pub const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

/// How long it does by default.
const BUSY_POLL: Duration = Duration::from_micros(100);

/// Everything that one mount needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The directory to mirror, as given.
    pub source: PathBuf,
    /// Where it is to appear, as given.
    pub mountpoint: PathBuf,
    /// Stay in the foreground, log to standard error.
    pub foreground: bool,
    /// Log every request.
    pub debug: bool,
    /// Event loops; `None` chooses by the number of cores.
    pub threads: Option<usize>,
    /// How long an event loop waits awake for the next request; `None` chooses by the number of
    /// cores.
    pub busy_poll: Option<Duration>,
    /// A descriptor of `/dev/fuse` for each event loop.
    pub clone_fd: bool,
    /// How far the kernel reads ahead on this mount, in bytes; `None` is 1 MiB where it may be set.
    pub readahead: Option<usize>,
    /// The log goes here, instead of to standard error or syslog.
    pub log_file: Option<PathBuf>,
    /// The source that /proc/mounts shows; `None` shows the source's path.
    pub fsname: Option<OsString>,
    /// Who may come in.
    pub access: Access,
    /// What the kernel is to forbid or force at this mount.
    pub flags: Flags,
    /// A second process unmounts when this one dies, however it dies.
    pub auto_unmount: bool,
    /// Whether the serving process gives up what it does not need.
    pub sandbox: Sandbox,
    /// A mountpoint with something in it will do.
    pub nonempty: bool,
    /// Where what is read is kept, if it is.
    pub cache: Option<Caching>,
    /// Whether workers do what touches the source; settled before anything is served.
    pub source_workers: SourceWorkers,
    /// The source is not there, and its store stands for it; settled before anything is served.
    pub absent: bool,
    /// How long who asks or reads may wait for a worker's answer; `None` for ever.
    pub source_timeout: Option<Duration>,
    /// The same for who changes something.
    pub source_timeout_write: Option<Duration>,
    /// How the mirror behaves.
    pub options: Options,
}

/// The cache of a mount.
#[derive(Clone, Debug, PartialEq)]
pub struct Caching {
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// The name of the source in it; `None`: what its file system says.
    pub id: Option<String>,
    /// The most that it may take.
    pub size: Share,
    /// What is to stay free beside it.
    pub free: Share,
    /// Bytes of a block.
    pub block: u32,
    /// When stored bytes are held against their checksums.
    pub verify: Verify,
    /// Files changed less long ago are not believed to be done with.
    pub racy: Duration,
}

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The user who mounted.
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// Everybody.
    All,
}

/// Whether the serving process is one of its own, with no more rights than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the kernel can.
    Auto,
    /// One process, with all the rights of the one who mounts.
    Off,
}

/// Who waits for the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceWorkers {
    /// Workers where the source may hang, the event loops where it is local.
    Auto,
    /// The event loops.
    Never,
    /// Workers.
    Always,
}

/// Flags of the mount that the mirror itself has no part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Set-user-id programs keep their power.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Programs can not be run.
    pub noexec: bool,
    /// All writing is synchronous.
    pub sync: bool,
    /// Changes of directories are synchronous.
    pub dirsync: bool,
}

impl Settings {
    /// Event loops: as asked, else 2 a core, at least 4 and at most 16 (a loop that waits for the
    /// disk serves nobody else meanwhile).
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or((2 * cores()).clamp(4, 16))
    }

    /// How long an event loop waits awake: as asked, else [`BUSY_POLL`], or not at all where it would
    /// only keep the one processor from who is to send the next request.
    pub(super) fn busy_poll(&self) -> Duration {
        let default = if cores() > 1 {
            BUSY_POLL
        } else {
            Duration::ZERO
        };
        self.busy_poll.unwrap_or(default)
    }

    /// What is in force, one `key=value` a line, the keys being the options' own names.
    ///
    /// Backslashes, control characters and bytes that are no text stand as `\ooo`, as in
    /// /proc/mounts. `source` and `target` are the paths as the kernel knows them. To be called by
    /// the serving process, whose number it shows.
    pub(super) fn config_text(&self, source: &Path, target: &Path, in_force: &InForce) -> String {
        let o = &self.options;
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key}={value}");
        };
        line("version", &env!("CARGO_PKG_VERSION"));
        line("source", &octal(source.as_os_str()));
        line("mountpoint", &octal(target.as_os_str()));
        line("fsname", &octal(self.fsname(source)));
        line("ro", &o.read_only);
        line("noatime", &o.noatime);
        line("suid", &self.flags.suid);
        line("dev", &self.flags.dev);
        line("noexec", &self.flags.noexec);
        line("sync", &self.flags.sync);
        line("dirsync", &self.flags.dirsync);
        line("allow_other", &(self.access == Access::All));
        line("allow_root", &(self.access == Access::OwnerAndRoot));
        line("default_permissions", &o.default_permissions);
        line("auto_unmount", &self.auto_unmount);
        line("threads", &self.threads());
        line("busy_poll", &self.busy_poll().as_micros());
        line("clone_fd", &if self.clone_fd { "on" } else { "off" });
        line("readahead", &readahead::asked(self.readahead));
        line("io", &word_of_io(o.io));
        line("passthrough", &word_of_passthrough(o.passthrough));
        line("writeback", &if o.writeback { "on" } else { "off" });
        if let Some(cache) = &self.cache {
            cache_lines(cache, o, &mut line);
        }
        line("window", &o.window);
        line("window_budget", &o.window_budget);
        line("inode_limit", &o.inode_limit.unwrap_or(0));
        line("coherence", &word_of_coherence(o.coherence));
        match o.watch_timeout {
            NEVER => line("watch_timeout", &"never"),
            timeout => line("watch_timeout", &timeout.as_secs_f64()),
        }
        if let Some(limit) = o.watch_limit {
            line("watch_limit", &limit);
        }
        line("attr_timeout", &o.attr_timeout.as_secs_f64());
        line("entry_timeout", &o.entry_timeout.as_secs_f64());
        line(
            "negative_timeout",
            &o.negative_timeout.unwrap_or_default().as_secs_f64(),
        );
        line("control", &word_of_control(o.control));
        line("control_name", &octal(&o.control_name));
        if let Some(ids) = &o.ids {
            id_lines(ids, &mut line);
        }
        line("source_workers", &word_of_workers(self.source_workers));
        for (key, timeout) in [
            ("source_timeout", self.source_timeout),
            ("source_timeout_write", self.source_timeout_write),
        ] {
            match timeout {
                Some(timeout) => line(key, &timeout.as_secs_f64()),
                None => line(key, &"never"),
            }
        }
        line("sandbox", &word_of_sandbox(self.sandbox));
        line("sandbox_in_force", in_force);
        line("server_pid", &std::process::id());
        text
    }

    /// Who does what touches the source.
    pub(super) fn serving(&self) -> Serving {
        Serving {
            workers: self.source_workers == SourceWorkers::Always,
            timeout: self.source_timeout,
            timeout_write: self.source_timeout_write,
            absent: self.absent,
            loops: self.threads(),
            busy_poll: self.busy_poll(),
        }
    }

    /// The source as /proc/mounts is to show it.
    pub(super) fn fsname<'a>(&'a self, source: &'a Path) -> &'a OsStr {
        self.fsname.as_deref().unwrap_or(source.as_os_str())
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn cache_lines(
    cache: &Caching,
    options: &Options,
    line: &mut impl FnMut(&str, &dyn std::fmt::Display),
) {
    let share = |share: Share| match share {
        Share::Bytes(bytes) => bytes.to_string(),
        Share::Percent(percent) => format!("{percent}%"),
    };
    line("cache", &octal(cache.dir.as_os_str()));
    if let Some(id) = &cache.id {
        line("cache_id", &octal(OsStr::new(id)));
    }
    line("cache_size", &share(cache.size));
    line("cache_free", &share(cache.free));
    line("block", &cache.block);
    let verify = match cache.verify {
        Verify::Unclean => "unclean",
        Verify::Always => "always",
    };
    line("verify", &verify);
    line("racy", &cache.racy.as_secs_f64());
    line("prefetch", &options.prefetch);
    match options.validate {
        Validate::Open => line("validate", &"open"),
        Validate::After(time) => line("validate", &format!("ttl:{}", time.as_secs_f64())),
        Validate::Never => line("validate", &"never"),
    }
    line("offline", &if options.offline { "auto" } else { "never" });
    match options.source_idle.filter(|_| options.offline) {
        Some(idle) => line("source_idle", &idle.as_secs_f64()),
        None => line("source_idle", &"never"),
    }
}

/// Only what is in force.
fn id_lines(ids: &IdMap, line: &mut impl FnMut(&str, &dyn std::fmt::Display)) {
    for (key, ids) in [("uid", &ids.users), ("gid", &ids.groups)] {
        if let Some(all) = ids.all() {
            line(key, &all);
        }
    }
    let of = |letter: char, ids: &Ids| -> Vec<String> {
        let ranges = ids.ranges().iter();
        ranges.map(|range| format!("{letter}{range}")).collect()
    };
    let maps = [of('u', &ids.users), of('g', &ids.groups)].concat();
    if !maps.is_empty() {
        line("map", &maps.join("/"));
    }
}

fn word_of_io(io: Io) -> &'static str {
    match io {
        Io::Mmap => "mmap",
        Io::Pread => "pread",
    }
}

fn word_of_passthrough(passthrough: Passthrough) -> &'static str {
    match passthrough {
        Passthrough::Never => "never",
        Passthrough::Cached => "cached",
        Passthrough::Always => "always",
    }
}

fn word_of_coherence(coherence: Coherence) -> &'static str {
    match coherence {
        Coherence::Ttl => "ttl",
        Coherence::Strict => "strict",
        Coherence::Watch => "watch",
    }
}

fn word_of_control(control: Control) -> &'static str {
    match control {
        Control::Hidden => "hidden",
        Control::Visible => "visible",
        Control::Off => "off",
    }
}

fn word_of_workers(workers: SourceWorkers) -> &'static str {
    match workers {
        SourceWorkers::Auto => "auto",
        SourceWorkers::Never => "never",
        SourceWorkers::Always => "always",
    }
}

fn word_of_sandbox(sandbox: Sandbox) -> &'static str {
    match sandbox {
        Sandbox::Auto => "auto",
        Sandbox::Off => "off",
    }
}

fn octal(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\0'..='\x1f' | '\x7f' => text.push_str(&format!("\\{:03o}", c as u32)),
                _ => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\{byte:03o}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_config_stay_on_their_line() {
        let name = OsStr::from_bytes(b"a b\n\\\xff");
        assert_eq!(octal(name), "a b\\012\\134\\377");
    }
}
