//! `coherence=watch`: what changes behind the mirror, and what the kernel must forget for it.
//!
//! Answers are believed for long, so none may be older than the last change that was seen. What
//! makes it so:
//!
//! - An inode is entered in the table (and its directory watched) *before* its attributes are
//!   read for an answer ([`Mirror::found`]). A change before that is in the answer. A change after
//!   it finds the inode in the table, so the kernel is told.
//! - Attributes of an inode that the kernel has: it drops those of a request older than the
//!   invalidation by itself (`attr_version` of fs/fuse/inode.c), except of SETATTR, LINK and
//!   others that make a name: such answers are not believed at all (see [`Mirror::trust_made`]).
//! - Of an inode that the kernel is about to have it says ENOENT. Then the entry is expired, which
//!   waits for the directory's lock, hence for the lookup under way, and the inode told again.
//! - Names: the kernel looks up under the directory's lock, and to drop a name needs it too.

mod directories;
mod systems;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Stat};

use super::inode::{Inode, NodeId};
use super::options::{Coherence, Options};
use super::{Attr, InodeTable, Mirror};
use crate::observe::{Metrics, WatchedBy};
use crate::sys::fanotify::Fanotify;
use crate::sys::{Errno, Fail, OrFail, Result};
use directories::Directories;
use systems::Systems;

/// Something that the kernel may have cached and that is no longer so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stale {
    /// A name of a directory has come, gone, or means another file.
    Name {
        /// The directory.
        parent: NodeId,
        /// The name in it.
        name: Box<OsStr>,
        /// Whether what the kernel has is wrong, or may only have to be asked for again.
        wrong: bool,
    },
    /// Bytes of a file, and its attributes.
    Data(NodeId),
    /// Attributes of an inode.
    Attributes(NodeId),
    /// Events were lost, and nobody knows which.
    Everything,
}

/// How long the kernel may believe an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The attributes.
    pub attr: Duration,
    /// That the name means this inode.
    pub entry: Duration,
}

/// How long attributes of what is watched by inotify, but for directories, are believed at most: a
/// name that is made in a directory without a watch, and what is done by that, gives no event.
const UNSEEN: Duration = Duration::from_secs(60);

/// What tells of changes, where it has to be made early: a sandbox may refuse to make it later.
#[derive(Debug, Default)]
pub struct EventQueue(Option<Fanotify>);

impl EventQueue {
    /// What a mirror of these options can do with.
    pub fn of(options: &Options) -> Self {
        if options.coherence != Coherence::Watch {
            return Self(None);
        }
        match Fanotify::new() {
            Ok(queue) => Self(Some(queue)),
            Err(fail) => {
                log::debug!("no fanotify ({fail}), so a watch for each directory");
                Self(None)
            }
        }
    }
}

/// A watched source.
#[derive(Debug)]
pub(super) struct Watch {
    backend: Backend,
    /// False once events can't be read any more: nothing is believed for long then.
    alive: AtomicBool,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Backend {
    Systems(Systems),
    Directories(Directories),
}

/// Why a file system can't be watched, by its magic number (statfs(2), `linux/magic.h` and the
/// file systems' own sources): what others change there, this kernel is not told.
fn unwatchable(f_type: u64) -> Option<&'static str> {
    const REMOTE: &str = "a remote file system: the kernel is not told of changes made elsewhere";
    const FUSE: &str = "a FUSE file system: the kernel is not told of changes made behind it";
    const MADE_UP: &str = "a file system whose content the kernel makes up as it is read";
    Some(match f_type & 0xffff_ffff {
        0x6573_5546 => FUSE,
        // NFS, SMB (old, 1, 2), 9p, Ceph, AFS (two), Coda, GFS2, OCFS2, Lustre, GPFS, OrangeFS,
        // BeeGFS, VMware's and VirtualBox's shared folders.
        0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 | 0x00c3_6400 | 0x5346_414f
        | 0x6b41_4653 | 0x7375_7245 | 0x0116_1970 | 0x7461_636f | 0x0bd0_0bd0 | 0x4750_4653
        | 0x2003_0528 | 0x1983_0326 | 0xbacb_acbc | 0x786f_4256 => REMOTE,
        // proc, sysfs, cgroup (two), debugfs, tracefs, bpf, securityfs, efivarfs, pstore.
        0x9fa0 | 0x6265_6572 | 0x0027_e0eb | 0x6367_7270 | 0x6462_6720 | 0x7472_6163
        | 0xcafe_4a11 | 0x7363_6673 | 0xde5e_81e4 | 0x6165_676c => MADE_UP,
        _ => return None,
    })
}

/// Refuses a directory whose changes the kernel does not tell.
///
/// # Errors
/// EOPNOTSUPP with the reason, and what to use instead.
pub fn refuse_unwatchable(directory: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstatfs(directory).or_fail("statfs")?;
    match unwatchable(stat.f_type as u64) {
        None => Ok(()),
        Some(reason) => Err(Fail::new(Errno::OPNOTSUPP, "watch").because(format!(
            "coherence=watch can't work on {reason}; use coherence=ttl, or coherence=strict"
        ))),
    }
}

impl Watch {
    /// Watches the source as `options` ask: by fanotify where that is allowed and works, else by
    /// inotify. None unless they ask for it.
    ///
    /// # Errors
    /// EOPNOTSUPP for a source that can't be watched; those of inotify(7).
    pub(super) fn open(
        options: &Options,
        events: EventQueue,
        table: &InodeTable,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>> {
        if options.coherence != Coherence::Watch {
            return Ok(None);
        }
        let root = table.fd(table.root())?;
        refuse_unwatchable(root.as_fd())?;
        let unmade = || Fail::new(Errno::OPNOTSUPP, "fanotify");
        let systems = events.0.ok_or_else(unmade);
        let systems = systems.and_then(|events| Systems::open(events, root.as_fd(), metrics));
        let backend = match systems {
            Ok(systems) => {
                metrics.watching(WatchedBy::Fanotify);
                Backend::Systems(systems)
            }
            Err(fail) => {
                log::debug!("no fanotify ({fail}), so a watch for each directory");
                let directories =
                    Directories::open(options.watch_limit, table, metrics).map_err(advise)?;
                metrics.watching(WatchedBy::Inotify);
                Backend::Directories(directories)
            }
        };
        Ok(Some(Self {
            backend,
            alive: AtomicBool::new(true),
            metrics: metrics.clone(),
        }))
    }

    fn kind(&self) -> &'static str {
        match self.backend {
            Backend::Systems(_) => WatchedBy::Fanotify.label(),
            Backend::Directories(_) => WatchedBy::Inotify.label(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.backend {
            Backend::Systems(systems) => systems.as_fd(),
            Backend::Directories(directories) => directories.as_fd(),
        }
    }

    /// An inode was entered in the table as `name` of `parent`; its attributes are yet to be read.
    fn entered(&self, table: &InodeTable, parent: NodeId, name: &OsStr, inode: &Inode) {
        match &self.backend {
            Backend::Systems(systems) => systems.entered(table, inode),
            Backend::Directories(directories) => directories.entered(table, parent, name, inode),
        }
    }

    fn covers_names(&self, table: &InodeTable, parent: NodeId, child_dev: Option<u64>) -> bool {
        self.alive.load(Ordering::Acquire)
            && match &self.backend {
                Backend::Systems(systems) => systems.covers_names(table, parent, child_dev),
                Backend::Directories(directories) => directories.covers_names(parent),
            }
    }

    fn covers(&self, id: NodeId, stat: &Stat) -> bool {
        self.alive.load(Ordering::Acquire)
            && match &self.backend {
                Backend::Systems(systems) => systems.covers(stat.st_dev),
                Backend::Directories(directories) => directories.covers(id, stat),
            }
    }

    /// How long attributes that are covered may be believed, where that has a bound.
    fn bound(&self, stat: &Stat) -> Option<Duration> {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match self.backend {
            Backend::Directories(_) if !directory => Some(UNSEEN),
            _ => None,
        }
    }

    fn is_mistaken(&self, id: NodeId, stat: &Stat) -> bool {
        match &self.backend {
            Backend::Systems(_) => false,
            Backend::Directories(directories) => directories.is_mistaken(id, stat),
        }
    }

    /// Reads the events that are there, at most as many as fit a good handful of notifications.
    fn gather(&self, table: &InodeTable) -> HashSet<Stale> {
        let mut stale = HashSet::new();
        let read = match &self.backend {
            Backend::Systems(systems) => systems.gather(table, &mut stale),
            Backend::Directories(directories) => directories.gather(table, &mut stale),
        };
        if let Err(fail) = read {
            log::error!("watching the source: {fail}; answers are short-lived from now on");
            self.alive.store(false, Ordering::Release);
            stale.insert(Stale::Everything);
        }
        if stale.contains(&Stale::Everything) {
            self.metrics.watch_overflowed();
            stale = HashSet::from([Stale::Everything]);
        }
        stale
    }
}

fn advise(fail: Fail) -> Fail {
    let what = fail.to_string();
    Fail::new(fail.errno, "watch").because(format!(
        "coherence=watch: the source can't be watched ({what}); use coherence=ttl, or \
         coherence=strict"
    ))
}

impl Mirror {
    /// The lookup of a name, its attributes read after the inode was entered.
    pub(super) fn found(&self, parent: &Inode, name: &OsStr) -> Result<Attr> {
        if self.is_apart() {
            return self.lookup_apart(parent, name);
        }
        let (inode, stat) = self.table.lookup(parent, name)?;
        self.seen(&inode, &stat);
        self.noted_name(parent.id, name, &stat);
        let again = || self.table.fd(&inode);
        let stat = self.entered(parent.id, name, &inode, stat, again)?;
        Ok(self.attr(inode.id, stat))
    }

    /// As [`Mirror::found`], of a name in a listing that was read by `dir`.
    pub(super) fn found_in_listing(
        &self,
        parent: &Inode,
        dir: Option<BorrowedFd<'_>>,
        name: &OsStr,
    ) -> Result<Attr> {
        // What is watched is looked at once more by a descriptor; files are kept by theirs.
        if self.watch.is_none()
            && !self.is_apart()
            && let Some(dir) = dir
            && let Some((inode, stat)) = self.table.glance(parent, dir, name)?
        {
            self.seen(&inode, &stat);
            self.noted_name(parent.id, name, &stat);
            return Ok(self.attr(inode.id, stat));
        }
        self.found(parent, name)
    }

    /// Attributes of an inode just entered: `stat`, unless changes are watched, which may have
    /// passed the inode by until now.
    pub(super) fn entered<F: AsFd>(
        &self,
        parent: NodeId,
        name: &OsStr,
        inode: &Inode,
        stat: Stat,
        fd: impl FnOnce() -> Result<F>,
    ) -> Result<Stat> {
        let Some(watch) = &self.watch else {
            return Ok(stat);
        };
        watch.entered(&self.table, parent, name, inode);
        let read = fd().and_then(|fd| rustix::fs::fstat(fd).or_fail("fstat"));
        if read.is_err() {
            self.forget(inode.id, 1);
        }
        read
    }

    /// The source is another mount now, of which nobody told the watch.
    pub(super) fn watch_no_more(&self) {
        if let Some(watch) = &self.watch
            && watch.alive.swap(false, Ordering::AcqRel)
        {
            log::warn!(
                "the source is not watched any more, as it was mounted anew: answers are \
                        short-lived from now on"
            );
        }
    }

    /// The kernel has forgotten the inode.
    pub(super) fn unwatch(&self, id: NodeId) {
        if let Some(Backend::Directories(directories)) = self.watch.as_ref().map(|w| &w.backend) {
            directories.forgotten(&self.table, id);
        }
    }

    /// This mirror changed a file itself: the event of it says nothing new.
    pub(super) fn changed_by_us(&self, id: NodeId, fd: BorrowedFd<'_>) {
        if let Some(Backend::Directories(directories)) = self.watch.as_ref().map(|w| &w.backend) {
            directories.changed_by_us(id, fd);
        }
    }

    /// This mirror gave what is now called `name` that name itself.
    pub(super) fn renamed_by_us(&self, parent: &Inode, name: &OsStr) {
        if let Some(Backend::Directories(directories)) = self.watch.as_ref().map(|w| &w.backend) {
            directories.renamed_by_us(&self.table, parent, name);
        }
    }

    /// The watch, unless nobody can tell it anything.
    fn trusted_watch(&self) -> Option<&Watch> {
        self.watch.as_ref().filter(|_| !self.is_apart())
    }

    /// How long the kernel may believe that a name means this inode, and its attributes.
    pub fn trust_entry(&self, parent: NodeId, attr: &Attr) -> Trust {
        let names = |watch: &Watch| watch.covers_names(&self.table, parent, Some(attr.stat.st_dev));
        let entry = match self.trusted_watch() {
            Some(watch) if names(watch) => self.options.watch_timeout,
            _ => self.options.entry_timeout,
        };
        let attr = self.trust_attr(attr);
        Trust { attr, entry }
    }

    /// As [`Mirror::trust_entry`], of a name that a request just made. The kernel takes the
    /// attributes of such an answer unseen, over newer ones that it may have by another name.
    pub fn trust_made(&self, parent: NodeId, attr: &Attr) -> Trust {
        let mut trust = self.trust_entry(parent, attr);
        if self.watch.is_some() && self.table.lookups(attr.id) > 1 {
            trust.attr = Duration::ZERO;
        }
        trust
    }

    /// How long the kernel may believe that a name does not exist.
    pub fn trust_absence(&self, parent: NodeId) -> Duration {
        let said = self.options.negative_timeout;
        let short = said.unwrap_or_default();
        match self.trusted_watch() {
            Some(watch)
                if said != Some(Duration::ZERO)
                    && watch.covers_names(&self.table, parent, None) =>
            {
                self.options.watch_timeout
            }
            _ => short,
        }
    }

    /// Whether the kernel may keep what it has read of a directory: it looks at the directory's
    /// mtime before it uses that (fs/fuse/readdir.c, fuse_readdir_cached), which it believes only
    /// until it is told of a change. Where nobody tells it, a listing with attributes (READDIRPLUS)
    /// saves more than a kept one, whose names it would ask for one by one.
    pub(super) fn keeps_listings(&self, id: NodeId) -> bool {
        let watch = self.trusted_watch();
        watch.is_some_and(|watch| watch.covers_names(&self.table, id, None))
    }

    /// How long the kernel may believe attributes.
    pub fn trust_attr(&self, attr: &Attr) -> Duration {
        match self.trusted_watch() {
            Some(watch) if watch.covers(attr.id, &attr.stat) => {
                let bound = watch.bound(&attr.stat).unwrap_or(Duration::MAX);
                self.options.watch_timeout.min(bound)
            }
            _ => self.options.attr_timeout,
        }
    }

    /// Whether the kernel believes attributes of a file that are not those that `stat` shows, and
    /// will be told by no event.
    pub(super) fn is_mistaken(&self, id: NodeId, stat: &Stat) -> bool {
        let watch = self.watch.as_ref();
        watch.is_some_and(|watch| watch.is_mistaken(id, stat))
    }

    /// How long the kernel may believe attributes that a SETATTR answers: it takes them unseen.
    pub fn trust_set(&self) -> Duration {
        match &self.watch {
            Some(_) => Duration::ZERO,
            None => self.options.attr_timeout,
        }
    }

    /// By what the source is watched: `fanotify`, `inotify`, or `off`.
    pub fn watched_by(&self) -> &'static str {
        self.watch.as_ref().map_or("off", Watch::kind)
    }

    /// Waits until there are events, or `stop` can be read: false then, and when nothing is
    /// watched, or can't be any more.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn await_changes(&self, stop: &OwnedFd) -> Result<bool> {
        let Some(watch) = self.watch.as_ref() else {
            return Ok(false);
        };
        if !watch.alive.load(Ordering::Acquire) {
            return Ok(false);
        }
        let events = watch.fd();
        let mut polled = [
            PollFd::new(&events, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => Ok(polled[1].revents().is_empty()),
            Err(errno) => Err(Fail::new(errno, "poll")),
        }
    }

    /// What the events that are there have made stale.
    pub fn changes(&self) -> HashSet<Stale> {
        let watch = self.watch.as_ref();
        watch.map_or_else(HashSet::new, |watch| watch.gather(&self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_and_made_up_file_systems_are_refused_and_local_ones_not() {
        for magic in [
            0x6573_5546,
            0x6969,
            0xff53_4d42,
            0xfe53_4d42,
            0x0102_1997,
            0x9fa0,
        ] {
            assert!(unwatchable(magic).is_some(), "{magic:x}");
            // As a signed word of 32 bits, widened.
            assert!(unwatchable(magic as u32 as i32 as i64 as u64).is_some());
        }
        for magic in [0xef53, 0x5846_5342, 0x0102_1994, 0x9123_683e, 0x794c_7630] {
            assert!(unwatchable(magic).is_none(), "{magic:x}");
        }
    }

    #[test]
    fn what_inotify_may_miss_of_a_file_is_believed_for_a_minute_at_most() {
        use rustix::fs::{Mode, OFlags};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let metrics = Arc::new(Metrics::new());
        let table = InodeTable::of(root, metrics.clone());
        let watch = Watch {
            backend: Backend::Directories(Directories::open(None, &table, &metrics).unwrap()),
            alive: AtomicBool::new(true),
            metrics,
        };
        let bound = |path: &std::path::Path| watch.bound(&rustix::fs::stat(path).unwrap());
        assert_eq!(bound(&path), Some(UNSEEN));
        assert_eq!(bound(dir.path()), None);
    }

    #[test]
    fn a_refusal_says_what_to_use_instead() {
        let proc = std::fs::File::open("/proc").unwrap();
        let fail = refuse_unwatchable(proc.as_fd()).unwrap_err();
        assert_eq!(fail.errno, Errno::OPNOTSUPP);
        assert!(fail.to_string().contains("use coherence=ttl"), "{fail}");
    }
}
