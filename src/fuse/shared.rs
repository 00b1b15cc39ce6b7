//! What the adapter and the session share: the mirror, the control files, the ways to reply.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{Errno, Generation, INodeNo, Notifier, ReplyAttr, ReplyEmpty, ReplyEntry};

use super::aside::Aside;
use super::control::{ControlFiles, name_changed};
use super::convert::{self, entry_attr, shown_attr};
use super::lock_waits::LockWaits;
use super::prune::Pruner;
use crate::copy::{Jobs, JobsOptions};
use crate::mirror::{Attr, Control, InodeTable, Mirror, Options};
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
    pub(super) aside: Aside,
    pub(super) lock_waits: LockWaits,
}

impl Shared {
    pub(super) fn new(
        source: OwnedFd,
        mountpoints: Vec<PathBuf>,
        descriptors: usize,
        options: Options,
        config: String,
        metrics: Arc<Metrics>,
    ) -> sys::Result<Self> {
        let root = rustix::io::fcntl_dupfd_cloexec(&source, 0).or_fail("dup")?;
        let jobs_options = JobsOptions {
            root: Arc::new(root),
            mountpoints,
            read_only: options.read_only,
            control_name: (options.control != Control::Off).then(|| options.control_name.clone()),
        };
        let mirror = Arc::new(Mirror::new(source, descriptors, options, metrics.clone())?);
        let notifier: Arc<OnceLock<Notifier>> = Arc::default();
        let (of_jobs, known) = (notifier.clone(), Arc::downgrade(&mirror));
        let published = Box::new(move |directory: BorrowedFd<'_>, name: &OsStr| {
            if let (Some(notifier), Some(mirror)) = (of_jobs.get(), known.upgrade()) {
                name_changed(&mirror, notifier, directory, name);
            }
        });
        let jobs = Jobs::new(jobs_options, metrics.clone(), published);
        let control = ControlFiles::new(mirror.clone(), metrics.clone(), jobs, config);
        Ok(Self {
            mirror,
            control,
            metrics,
            notifier,
            aside: Aside::default(),
            lock_waits: LockWaits::default(),
        })
    }

    /// Gives the way to notify the kernel, once the session has one.
    pub fn attach(&self, notifier: Notifier) {
        // A second one would be of the same session.
        let _ = self.notifier.set(notifier);
    }

    /// Drops all windows, and all that the kernel caches of files. Not from a request's thread.
    pub fn drop_caches(&self) {
        self.mirror.drop_windows();
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        for id in self.mirror.table().ids() {
            // ENOENT: forgotten meanwhile; ENOTCONN: unmounted. Nothing is left to drop then.
            let _ = notifier.inval_inode(INodeNo(id), 0, 0);
        }
    }

    /// Keeps the inodes to their limit, until [`Shared::stop_pruning`]. `device` is the session's
    /// `/dev/fuse`. To be called from a thread that does nothing else.
    pub fn prune(&self, device: OwnedFd) {
        if let Some(notifier) = self.notifier.get() {
            Pruner::new(device, notifier.clone()).run(self.mirror.table(), &self.metrics);
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
    }

    /// Ends what still runs, after the last request.
    pub fn shutdown(&self) {
        self.control.shutdown();
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
    pub(super) fn reply_entry(&self, reply: ReplyEntry, found: Result<Attr, Errno>) {
        let options = self.mirror.options();
        match found {
            Ok(attr) if InodeTable::is_virtual(attr.id) => {
                reply.entry(&Duration::ZERO, &entry_attr(&attr), GENERATION);
            }
            Ok(attr) => reply.entry_with_ttls(
                &options.attr_timeout,
                &options.entry_timeout,
                &entry_attr(&attr),
                GENERATION,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn reply_attr(&self, reply: ReplyAttr, found: Result<Attr, Errno>) {
        match found {
            Ok(attr) => reply.attr(&self.attr_ttl(&attr), &shown_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn attr_ttl(&self, attr: &Attr) -> Duration {
        if InodeTable::is_virtual(attr.id) {
            return Duration::ZERO;
        }
        self.mirror.options().attr_timeout
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
