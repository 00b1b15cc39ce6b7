//! What the adapter and the session share: the mirror, the control files, the ways to reply.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry};

use super::aside::Aside;
use super::control::ControlFiles;
use super::convert::{self, entry_attr, shown_attr};
use super::lock_waits::LockWaits;
use super::notifier::{Extent, Notifier};
use super::passthrough::Passthrough;
use super::prune::Pruner;
use super::watching::{self, Stop, Teller};
use crate::cache::Store;
use crate::copy::{Change, Jobs, JobsOptions};
use crate::mirror::{Attr, Control, EventQueue, InodeTable, Mirror, NodeId, Options, Trust};
use crate::observe::{Metrics, Op};
use crate::sys::{self, OrFail};

/// An id is given again only after the kernel has forgotten it, so one generation will do.
pub(super) const GENERATION: Generation = Generation(0);

/// What the session keeps of an adapter that the FUSE library has taken over.
pub struct Shared {
    pub(super) mirror: Arc<Mirror>,
    pub(super) control: ControlFiles,
    pub(super) metrics: Arc<Metrics>,
    notifier: Arc<OnceLock<Notifier>>,
    stop_watching: Stop,
    pub(super) aside: Aside,
    pub(super) lock_waits: LockWaits,
    pub(super) passthrough: Passthrough,
}

impl Shared {
    pub(super) fn new(
        source: OwnedFd,
        mountpoints: Vec<PathBuf>,
        descriptors: usize,
        options: Options,
        config: String,
        events: EventQueue,
        store: Option<Arc<Store>>,
        metrics: Arc<Metrics>,
    ) -> sys::Result<Self> {
        let root = rustix::io::fcntl_dupfd_cloexec(&source, 0).or_fail("dup")?;
        let jobs_options = JobsOptions {
            root: Arc::new(root),
            mountpoints,
            read_only: options.read_only,
            control_name: (options.control != Control::Off).then(|| options.control_name.clone()),
        };
        let asked = options.passthrough;
        let mirror = Arc::new(Mirror::new(
            source,
            descriptors,
            options,
            events,
            store,
            metrics.clone(),
        )?);
        let notifier: Arc<OnceLock<Notifier>> = Arc::default();
        let (of_jobs, known) = (notifier.clone(), Arc::downgrade(&mirror));
        let counted = metrics.clone();
        let tell = Box::new(move |change: Change<'_>| {
            if let (Some(notifier), Some(mirror)) = (of_jobs.get(), known.upgrade()) {
                let teller = Teller {
                    mirror: &mirror,
                    metrics: &counted,
                    notifier,
                };
                teller.copied(change);
            }
        });
        let jobs = Jobs::new(jobs_options, metrics.clone(), tell);
        let config = format!("{config}watched_by={}\n", mirror.watched_by());
        let control = ControlFiles::new(mirror.clone(), metrics.clone(), jobs, config);
        Ok(Self {
            mirror,
            control,
            passthrough: Passthrough::new(asked, metrics.clone()),
            metrics,
            notifier,
            stop_watching: Stop::new()?,
            aside: Aside::default(),
            lock_waits: LockWaits::default(),
        })
    }

    /// Gives the way to notify the kernel: a descriptor of the connection, once there is one.
    pub fn attach(&self, device: OwnedFd) {
        // A second one would be of the same session.
        let _ = self.notifier.set(Notifier::new(device));
    }

    pub(super) fn notifier(&self) -> Option<&Notifier> {
        self.notifier.get()
    }

    /// Agrees with the kernel on which of the two serves files.
    pub(super) fn negotiate_passthrough(&self, config: &mut fuser::KernelConfig) {
        let asked = self.mirror.options().passthrough;
        if let Some(cache) = self.mirror.cache_root() {
            return self.passthrough.negotiate(asked, cache, config);
        }
        if let Ok(root) = self.mirror.table().fd(self.mirror.table().root()) {
            self.passthrough.negotiate(asked, root.as_fd(), config);
        }
    }

    /// Drops all windows, and all that the kernel caches. Not from a request's thread.
    pub fn drop_caches(&self) {
        self.mirror.drop_windows();
        if let Some(notifier) = self.notifier() {
            let teller = Teller {
                mirror: &self.mirror,
                metrics: &self.metrics,
                notifier,
            };
            teller.everything();
        }
    }

    /// Tells the kernel of changes of the source, until [`Shared::stop_watching`]; on a thread of
    /// its own. Returns at once unless `coherence=watch`.
    pub fn watch(&self) {
        watching::watch(self, &self.stop_watching);
    }

    /// Ends [`Shared::watch`].
    pub fn stop_watching(&self) {
        self.stop_watching.set();
    }

    /// Keeps the inodes to their limit, until [`Shared::stop_pruning`]. To be called from a thread
    /// that does nothing else.
    pub fn prune(&self) {
        if let Some(notifier) = self.notifier() {
            Pruner::new(notifier).run(self.mirror.table(), &self.metrics);
        }
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &InodeTable {
        self.mirror.table()
    }

    /// Ends [`Shared::prune`].
    pub fn stop_pruning(&self) {
        self.mirror.table().end_pruning();
    }

    /// Housekeeping, once a second.
    pub fn tick(&self) {
        self.mirror.tick();
        self.control.tick();
    }

    /// The mount is about to go: copies that are under way have a few seconds left.
    pub fn wind_up(&self) {
        self.control.wind_up();
    }

    /// Starts what works beside the requests, from within the sandbox.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(&self) -> sys::Result<()> {
        self.mirror.start()
    }

    /// Ends what still runs, after the last request.
    pub fn shutdown(&self) {
        self.control.shutdown();
        self.mirror.close();
    }

    pub(super) fn measured<T>(
        &self,
        op: Op,
        work: impl FnOnce() -> sys::Result<T>,
    ) -> Result<T, Errno> {
        let started = Instant::now();
        let done = work();
        self.metrics.operation(op, started, done.is_err());
        done.map_err(|fail| {
            if fail.errno == sys::Errno::IO {
                log::warn!("{op:?}: {fail}");
            } else {
                log::debug!("{op:?}: {fail}");
            }
            convert::errno(&fail)
        })
    }

    pub(super) fn reply_empty(
        &self,
        op: Op,
        reply: ReplyEmpty,
        work: impl FnOnce() -> sys::Result<()>,
    ) {
        match self.measured(op, work) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// The kernel must ask again for a control file every time: its id is another then.
    pub(super) fn reply_entry(
        &self,
        reply: ReplyEntry,
        found: Result<Attr, Errno>,
        trust: impl FnOnce(&Mirror, &Attr) -> Trust,
    ) {
        match found {
            Ok(attr) if InodeTable::is_virtual(attr.id) => {
                reply.entry(&Duration::ZERO, &entry_attr(&attr), GENERATION);
            }
            Ok(attr) => {
                let trust = self.seen_stores(&attr, trust(&self.mirror, &attr));
                reply.entry_with_ttls(&trust.attr, &trust.entry, &entry_attr(&attr), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// The answer to a request that made a name of `parent`.
    pub(super) fn reply_made(&self, reply: ReplyEntry, parent: NodeId, made: Result<Attr, Errno>) {
        self.reply_entry(reply, made, |mirror, attr| mirror.trust_made(parent, attr));
    }

    pub(super) fn reply_attr(
        &self,
        reply: ReplyAttr,
        found: Result<Attr, Errno>,
        trust: impl FnOnce(&Mirror, &Attr) -> Duration,
    ) {
        match found {
            Ok(attr) => {
                let unseen =
                    InodeTable::is_virtual(attr.id) || self.passthrough.stores_unseen(attr.id);
                let ttl = if unseen {
                    Duration::ZERO
                } else {
                    trust(&self.mirror, &attr)
                };
                reply.attr(&ttl, &shown_attr(&attr));
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// What the kernel holds of a file's attributes is, or will be, wrong without its knowing: flags
    /// set by an ioctl change ctime too (fs/fuse/ioctl.c, fuse_fileattr_set), and stores in
    /// passthrough come unseen. Attributes alone are dropped without waiting for anything, so that a
    /// request's thread may do it.
    pub(super) fn attributes_changed(&self, id: NodeId) {
        if let Some(notifier) = self.notifier() {
            // What it does not know (ENOENT) or can't hear (ENOTCONN) needs no telling.
            let _ = notifier.inval_inode(id, Extent::Attributes);
        }
    }

    /// Attributes that stores may change without our being told are not to be believed at all.
    pub(super) fn seen_stores(&self, attr: &Attr, trust: Trust) -> Trust {
        if self.passthrough.stores_unseen(attr.id) {
            return Trust {
                attr: Duration::ZERO,
                ..trust
            };
        }
        trust
    }
}

/// A name that does not exist, as a reply that the kernel remembers: node id 0.
pub(super) fn negative_attr() -> fuser::FileAttr {
    fuser::FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: std::time::UNIX_EPOCH,
        mtime: std::time::UNIX_EPOCH,
        ctime: std::time::UNIX_EPOCH,
        crtime: std::time::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// An entry whose attributes can't be had: an id that nobody knows and a size that the kernel
/// refuses (fuse_valid_size), so that it shows name and type, and asks when somebody wants more.
pub(super) fn nameless_attr(id: u64, kind: fuser::FileType) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: INodeNo(id),
        kind,
        size: u64::MAX,
        ..negative_attr()
    }
}
