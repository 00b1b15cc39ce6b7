//! What the adapter and the session share: the mirror, the control files, the ways to reply.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileHandle, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
};
use parking_lot::Mutex;

use super::aside::Aside;
use super::beside::before_answer;
use super::busy_poll::BusyPoll;
use super::control::ControlFiles;
use super::convert::{self, entry_attr, shown_attr};
use super::listing::Room;
use super::lock_waits::LockWaits;
use super::notifier::{Extent, Notifier};
use super::oplog::OpLog;
use super::passthrough::Passthrough;
use super::prune::Pruner;
use super::serve::{Answer, Serving, Slot};
use super::watching::{self, Stop, Teller};
use super::workers::{Job, Workers};
use crate::cache::Store;
use crate::copy::{Change, Jobs, JobsOptions};
use crate::mirror::{
    Attr, Caller, Control, EventQueue, InodeTable, Mirror, NodeId, Options, Trust, Turn,
};
use crate::observe::{Metrics, Op};
use crate::sys;

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
    pub(super) oplog: Arc<OpLog>,
    pub(super) serving: Serving,
    /// Who waits for the source, where the event loops must not.
    pub(super) workers: Option<Workers>,
    /// Lookups taken back that a worker will count.
    pub(super) forgotten: Mutex<Vec<(NodeId, u64)>>,
    pub(super) room: Room,
    pub(super) busy_poll: BusyPoll,
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
        serving: Serving,
        metrics: Arc<Metrics>,
    ) -> sys::Result<Self> {
        let (asked, writeback) = (options.passthrough, options.writeback);
        let (read_only, shows) = (options.read_only, options.control != Control::Off);
        let control_name = shows.then(|| options.control_name.clone());
        let mirror = Arc::new(Mirror::new(
            source,
            descriptors,
            options,
            events,
            store,
            metrics.clone(),
        )?);
        if serving.absent {
            mirror.begin_without_source();
        }
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
        let rooted = Arc::clone(&mirror);
        let jobs_options = JobsOptions {
            root: Box::new(move || rooted.root_in_source()),
            mountpoints,
            read_only,
            control_name,
            write_back: writeback.then(|| watching::write_back(&mirror, &notifier)),
            patience: serving.timeout_write,
        };
        let jobs = Jobs::new(jobs_options, metrics.clone(), tell);
        let config = format!("{config}watched_by={}\n", mirror.watched_by());
        let oplog: Arc<OpLog> = Arc::default();
        let (of_control, counted) = (oplog.clone(), metrics.clone());
        let mut control = ControlFiles::new(mirror.clone(), counted, jobs, of_control, config);
        control.set_apart(serving.workers);
        let suspected = Arc::clone(&mirror);
        let suspect = Box::new(move || suspected.suspect_source());
        Ok(Self {
            oplog,
            serving,
            workers: serving
                .workers
                .then(|| Workers::new(metrics.clone(), suspect)),
            forgotten: Mutex::default(),
            room: Room::default(),
            busy_poll: BusyPoll::new(serving.busy_poll, serving.loops),
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

    /// Gives descriptors of the connection, once there is one: to notify the kernel by, and to wait
    /// for its requests.
    pub fn attach(&self, device: OwnedFd, waits: OwnedFd) {
        self.busy_poll.attach(waits);
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

    /// The mount is about to go: copies that are under way have a few seconds left, and the readers
    /// of the log find its end.
    pub fn wind_up(&self) {
        self.oplog.end();
        self.control.wind_up();
    }

    /// Starts what works beside the requests, from within the sandbox.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(self: &Arc<Self>) -> sys::Result<()> {
        let shared = Arc::downgrade(self);
        let told = move |turn| {
            if let Some(shared) = shared.upgrade() {
                shared.turned(turn);
            }
        };
        self.mirror.start(self.serving.timeout, Box::new(told))
    }

    /// The source was lost, or is back.
    fn turned(&self, turn: Turn) {
        match turn {
            Turn::Lost => {
                if let Some(workers) = &self.workers {
                    workers.give_up();
                }
            }
            // What was seen before may be otherwise now.
            Turn::Back => self.drop_caches(),
        }
    }

    /// Ends what still runs, after the last request.
    pub fn shutdown(&self) {
        self.oplog.end();
        self.control.shutdown();
        if let Some(workers) = &self.workers {
            workers.finish();
        }
        self.mirror.close();
    }

    /// Looks for what the virtual files depend on, where a lookup of theirs must not wait for it.
    pub(super) fn look_ahead(self: &Arc<Self>) {
        if let Some(workers) = &self.workers {
            let shared = self.clone();
            workers.submit(Job::of_nobody(move || shared.control.look_for_folder()));
        }
    }

    pub(super) fn lookup(&self, parent: NodeId, name: &OsStr, slot: Slot<ReplyEntry>) {
        let found = self.asked(Op::Lookup, || match self.control.lookup(parent, name)? {
            Some(attr) => Ok(attr),
            None => self.mirror.lookup(parent, name),
        });
        if found.as_ref().is_err_and(|e| i32::from(*e) == libc::ENOENT) {
            let negative = self.mirror.trust_absence(parent);
            if !negative.is_zero() && !InodeTable::is_virtual(parent) {
                if let Some(reply) = slot.take() {
                    before_answer();
                    reply.entry(&negative, &negative_attr(), GENERATION);
                }
                return;
            }
        }
        self.reply_entry(slot, found, |mirror, attr| mirror.trust_entry(parent, attr));
    }

    pub(super) fn getattr(&self, id: NodeId, handle: Option<u64>, slot: Slot<ReplyAttr>) {
        let found = self.asked(Op::Getattr, || {
            if InodeTable::is_virtual(id) {
                return self.control.getattr(id);
            }
            self.mirror.getattr(id, handle)
        });
        self.reply_attr(slot, found, Mirror::trust_attr);
    }

    /// Opens a virtual file.
    pub(super) fn open_control(
        &self,
        caller: &Caller,
        id: NodeId,
        flags: i32,
        slot: Slot<ReplyOpen>,
    ) {
        let opened = self.measured(Op::Open, || self.control.open(caller, id, flags));
        match (opened, slot.take()) {
            (Ok(handle), Some(reply)) => {
                reply.opened(FileHandle(handle), self.control.open_flags(id));
            }
            (Err(errno), Some(reply)) => reply.error(errno),
            (Ok(handle), None) => self.control.release(handle),
            (Err(_), None) => {}
        }
    }

    /// Answers with what `read` lends.
    pub(super) fn reply_read(
        &self,
        slot: Slot<ReplyData>,
        read: impl FnOnce(&mut dyn FnMut(&[u8])) -> sys::Result<()>,
    ) {
        let mut slot = Some(slot);
        let mut send = |bytes: &[u8]| {
            self.moved(bytes.len() as u64);
            if let Some(reply) = slot.take().and_then(Slot::take) {
                reply.data(bytes);
            }
        };
        let read = self.measured(Op::Read, || read(&mut send));
        if let (Err(errno), Some(slot)) = (read, slot) {
            slot.refuse(errno);
        }
    }

    /// Answers with what was found, or why not.
    pub(super) fn answer<R: Answer, T>(
        &self,
        slot: Slot<R>,
        found: Result<T, Errno>,
        send: impl FnOnce(R, T),
    ) {
        match (found, slot.take()) {
            (Ok(found), Some(reply)) => send(reply, found),
            (Err(errno), Some(reply)) => {
                before_answer();
                reply.refuse(errno);
            }
            (_, None) => {}
        }
    }

    /// As [`Shared::measured`], for who changes nothing.
    pub(super) fn asked<T>(&self, op: Op, work: impl Fn() -> sys::Result<T>) -> Result<T, Errno> {
        self.measured(op, || self.mirror.ask(work))
    }

    pub(super) fn measured<T>(
        &self,
        op: Op,
        work: impl FnOnce() -> sys::Result<T>,
    ) -> Result<T, Errno> {
        let started = Instant::now();
        let done = work();
        self.metrics.operation(op, started, done.is_err());
        self.ended(done.as_ref().err().map_or(0, number));
        done.map_err(|fail| {
            self.mirror.heard(&fail);
            if fail.errno == sys::Errno::IO && !self.mirror.is_offline() {
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
        slot: Slot<ReplyEmpty>,
        work: impl FnOnce() -> sys::Result<()>,
    ) {
        let done = self.measured(op, work);
        self.answer(slot, done, |reply, ()| {
            before_answer();
            reply.ok();
        });
    }

    /// The kernel must ask again for a control file every time: its id is another then.
    pub(super) fn reply_entry(
        &self,
        slot: Slot<ReplyEntry>,
        found: Result<Attr, Errno>,
        trust: impl FnOnce(&Mirror, &Attr) -> Trust,
    ) {
        match (found, slot.take()) {
            (Ok(attr), Some(reply)) if InodeTable::is_virtual(attr.id) => {
                reply.entry(&Duration::ZERO, &entry_attr(&attr), GENERATION);
            }
            (Ok(attr), Some(reply)) => {
                let trust = self.seen_stores(&attr, trust(&self.mirror, &attr));
                before_answer();
                reply.entry_with_ttls(&trust.attr, &trust.entry, &entry_attr(&attr), GENERATION);
            }
            (Err(errno), Some(reply)) => reply.error(errno),
            // The kernel never learnt of it.
            (Ok(attr), None) if InodeTable::is_virtual(attr.id) => self.control.forget(attr.id, 1),
            (Ok(attr), None) => self.mirror.forget(attr.id, 1),
            (Err(_), None) => {}
        }
    }

    /// The answer to a request that made a name of `parent`.
    pub(super) fn reply_made(
        &self,
        slot: Slot<ReplyEntry>,
        parent: NodeId,
        made: Result<Attr, Errno>,
    ) {
        self.reply_entry(slot, made, |mirror, attr| mirror.trust_made(parent, attr));
    }

    pub(super) fn reply_attr(
        &self,
        slot: Slot<ReplyAttr>,
        found: Result<Attr, Errno>,
        trust: impl FnOnce(&Mirror, &Attr) -> Duration,
    ) {
        let found = found.map(|attr| {
            let unseen = InodeTable::is_virtual(attr.id) || self.passthrough.stores_unseen(attr.id);
            let ttl = if unseen {
                Duration::ZERO
            } else {
                trust(&self.mirror, &attr)
            };
            (ttl, attr)
        });
        self.answer(slot, found, |reply, (ttl, attr)| {
            before_answer();
            reply.attr(&ttl, &shown_attr(&attr));
        });
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

    /// The kernel has just written what it kept of an open file.
    pub(super) fn written_back(&self, id: NodeId, handle: u64) {
        if self.mirror.blocks_unknown(handle) {
            self.attributes_changed(id);
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

/// The errno that the caller gets.
fn number(fail: &sys::Fail) -> i32 {
    convert::errno(fail).into()
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
