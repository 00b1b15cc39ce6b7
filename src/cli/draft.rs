//! The options, one after the other, until they are settled.

use super::ids::Which;
use super::list::Word;
use crate::fuse::session::{Access, Flags, Sandbox, Settings, SourceWorkers};
use crate::mirror::{
    Coherence, Control, IdMap, IdRange, Ids, Io, Options, Passthrough, Reach, Validate,
};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

mod caching;
mod words;

pub(super) use words::VALUED;
use words::{FLAGS, IGNORED};

/// How many inodes may be known unless it is said otherwise: they take less than 256 MiB.
const INODES: usize = 1 << 20;

/// What has been said so far.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    foreground: bool,
    debug: bool,
    threads: Option<usize>,
    busy_poll: Option<Duration>,
    clone_fd: bool,
    readahead: Option<usize>,
    log_file: Option<PathBuf>,
    fsname: Option<OsString>,
    allow_other: bool,
    allow_root: bool,
    flags: Flags,
    auto_unmount: bool,
    sandbox: Sandbox,
    nonempty: bool,
    source_workers: SourceWorkers,
    source_timeout: Option<Duration>,
    source_timeout_write: Option<Duration>,
    pub(super) remount: bool,
    read_only: bool,
    noatime: bool,
    io: Io,
    passthrough: Option<Passthrough>,
    writeback: bool,
    cache: caching::Words,
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
            busy_poll: None,
            clone_fd: true,
            readahead: None,
            log_file: None,
            fsname: None,
            allow_other: false,
            allow_root: false,
            flags: Flags::default(),
            auto_unmount: false,
            sandbox: Sandbox::Auto,
            nonempty: false,
            source_workers: SourceWorkers::Auto,
            source_timeout: Some(Duration::from_secs(30)),
            source_timeout_write: None,
            remount: false,
            read_only: false,
            noatime: false,
            io: Io::Mmap,
            passthrough: None,
            writeback: false,
            cache: caching::Words::default(),
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
            busy_poll: self.busy_poll,
            clone_fd: self.clone_fd,
            readahead: self.readahead,
            log_file: self.log_file.clone(),
            fsname: self.fsname.clone(),
            access,
            flags: self.flags,
            auto_unmount: self.auto_unmount,
            sandbox: self.sandbox,
            nonempty: self.nonempty,
            cache: self.caching()?,
            source_workers: self.source_workers,
            absent: false,
            source_timeout: self.source_timeout,
            source_timeout_write: self.source_timeout_write,
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

    /// What `writeback=on` can't be right beside.
    fn refuse_to_write_back(&self) -> Result<(), String> {
        let passes = self.passthrough == Some(Passthrough::Always);
        let why = match self.coherence {
            _ if !self.writeback => return Ok(()),
            _ if passes => {
                "passthrough=always: of the two the kernel does one; use passthrough=never"
            }
            Coherence::Strict => {
                "coherence=strict: the kernel keeps sizes and times of files itself; use \
                 coherence=ttl"
            }
            Coherence::Watch => {
                "coherence=watch: the kernel takes no size or time of a file from us; use \
                 coherence=ttl"
            }
            Coherence::Ttl if self.cache.dir.is_some() => {
                "cache: what is kept is held against the source, which has not got all yet; leave \
                 out one of them"
            }
            Coherence::Ttl => return Ok(()),
        };
        Err(format!("options writeback=on and {why}"))
    }

    fn options(self, access: Access) -> Result<Options, String> {
        if self.noatime && self.passthrough == Some(Passthrough::Always) {
            // The kernel opens the source's files anew for it, without O_NOATIME.
            return Err("options noatime and passthrough=always: only one of them can hold".into());
        }
        let ids = self.ids()?;
        self.refuse_incoherent()?;
        self.refuse_to_write_back()?;
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
            passthrough: self.passthrough()?,
            writeback: self.writeback,
            validate: self.cache.validate.unwrap_or(Validate::Open),
            offline: self.cache.dir.is_some() && self.cache.offline.unwrap_or(true),
            source_idle: self.cache.source_idle.unwrap_or(Some(caching::SOURCE_IDLE)),
            // Who mounts finds it out.
            may_hang: false,
            prefetch: self.cache.prefetch.unwrap_or(caching::PREFETCH),
            window: self.fitting_window()?,
            window_budget: self.window_budget,
            inode_limit: self.inode_limit,
            // The sandbox may ask for the other way.
            reach: Reach::HandleFirst,
            attr_timeout: self.attr_timeout.unwrap_or(usual),
            entry_timeout: self.entry_timeout.unwrap_or(usual),
            negative_timeout: self.negative_timeout,
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
