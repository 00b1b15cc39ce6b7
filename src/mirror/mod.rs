//! The mirrored tree, testable without FUSE.
//!
//! Operations keep their FUSE names. A name is always resolved one component at a time, on the
//! descriptor of its directory and without following links, so that none leads out of the source.

mod attr;
mod cached;
mod caller;
mod content;
mod dir;
mod entries;
mod file;
mod flags;
mod ids;
mod inode;
mod known;
mod locks;
mod loss;
mod named;
mod names;
mod offline;
mod opening;
mod options;
mod outage;
mod outdated;
mod prefetch;
mod probe;
mod prune;
mod reach;
mod remember;
mod rest;
mod table;
mod watch;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};
use rustix::fs::StatVfs;

pub use attr::{Attr, SetAttr, Time};
pub use caller::Caller;
pub use dir::{Ahead, Entry, OpenedDir};
pub use file::{Opened, WriteSync};
pub use ids::{IdMap, IdRange, Ids, LAST};
pub use inode::{Inode, Key, NodeId, ROOT};
pub use locks::LockOutcome;
pub use options::{Coherence, Control, Io, NEVER, Options, Passthrough, Validate};
pub use outage::Cause;
pub use probe::{OnTurn, Turn};
pub use prune::Crowd;
pub use reach::Reach;
pub use table::{Ceilings, InodeTable, Seen};
pub use watch::{EventQueue, Stale, Trust, refuse_unwatchable};

use crate::cache::Store;
use crate::observe::Metrics;
use crate::sys::procfd::ProcFd;
use crate::sys::{Errno, Fail, Result, memory};
use crate::window::{WindowCache, WindowOptions};

/// The largest read that the kernel asks for in one request, in bytes: `max_pages_limit` of
/// 256 pages (fs/fuse/inode.c).
pub const MAX_READ: usize = 1 << 20;

/// Windows not used for this long are unmapped: a mapping keeps a deleted file's space.
const IDLE: Duration = Duration::from_secs(10);

/// So many inodes forgotten are worth asking the allocator for their memory: some megabytes.
const TRIM_AFTER: u64 = 16 << 10;

/// So many are worth it in the midst of forgetting.
const TRIM_AT_LAST: u64 = 1 << 20;

/// A source directory, served.
///
/// Order of locks: `files` and `dirs` are leaves, as are those of the parts; none is held across
/// a system call, except a directory stream's own, which its readers share in turn.
pub struct Mirror {
    table: InodeTable,
    options: Options,
    metrics: Arc<Metrics>,
    windows: Arc<WindowCache>,
    proc: ProcFd,
    files: RwLock<HashMap<u64, Arc<file::OpenFile>, RandomState>>,
    dirs: RwLock<HashMap<u64, Arc<dir::OpenDir>, RandomState>>,
    next_handle: AtomicU64,
    /// Inodes forgotten by the time of the last tick, and of the last trim.
    forgotten_at_tick: AtomicU64,
    forgotten_at_trim: AtomicU64,
    locks: locks::Locks,
    privileged: bool,
    watch: Option<watch::Watch>,
    cached: Option<cached::Cached>,
    outage: outage::Outage,
    prober: probe::Prober,
    rest: rest::Rest,
    /// What was seen of the tree, where that is kept.
    memory: Option<remember::Memory>,
    /// What the source told of its file system last. A leaf.
    last_statfs: Mutex<Option<StatVfs>>,
}

/// How long a stop waits for what was seen last to be kept.
const FAREWELL: Duration = Duration::from_secs(3);

impl Mirror {
    /// A mirror of the directory `source` (`O_PATH`), holding at most `descriptors` for inodes,
    /// told of changes by `events`, keeping what is read in `store`.
    ///
    /// # Errors
    /// EINVAL for impossible window sizes; those of opening /proc/self/fd and the root; EOPNOTSUPP
    /// for a source that can't be watched though `options` ask for it.
    pub fn new(
        source: OwnedFd,
        descriptors: usize,
        options: Options,
        events: EventQueue,
        store: Option<Arc<Store>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        // A reader by way of the store needs descriptors there as well.
        let of_entries = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .map_or(usize::MAX, |limit| limit as usize / 4);
        let remembers = options.offline && store.as_ref().is_some_and(|one| !one.is_read_only());
        let cached = store.map(|store| cached::Cached::new(store, &source, of_entries));
        let windows = WindowOptions {
            window: options.window,
            budget: options.window_budget,
            max_read: MAX_READ,
        };
        windows.check()?;
        let ceilings = Ceilings {
            descriptors: match &cached {
                Some(_) => descriptors.min(of_entries),
                None => descriptors,
            },
            inodes: options.inode_limit.unwrap_or(usize::MAX),
        };
        let table = InodeTable::new(source, ceilings, options.reach, metrics.clone())?;
        Ok(Self {
            watch: watch::Watch::open(&options, events, &table, &metrics)?,
            table,
            windows: WindowCache::new(windows, metrics.clone()),
            proc: ProcFd::open()?,
            files: RwLock::default(),
            dirs: RwLock::default(),
            next_handle: AtomicU64::new(1),
            forgotten_at_tick: AtomicU64::new(0),
            forgotten_at_trim: AtomicU64::new(0),
            locks: locks::Locks::default(),
            privileged: rustix::process::geteuid().is_root(),
            outage: outage::Outage::new(metrics.clone()),
            prober: probe::Prober::default(),
            rest: rest::Rest::default(),
            memory: remembers.then(|| remember::Memory::new(metrics.clone())),
            last_statfs: Mutex::default(),
            options,
            metrics,
            cached,
        })
    }

    /// The source is not there yet: what it was made with stands for it.
    pub fn begin_without_source(&self) {
        self.lose(Cause::Gone);
    }

    /// Starts what works beside the requests. From within the sandbox, and once. Who asks or reads
    /// waits for the source for `patience`; `told` is told when it is lost and when it is back.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(self: &Arc<Self>, patience: Option<Duration>, told: OnTurn) -> Result<()> {
        if self.options.may_hang || self.memory.is_some() {
            self.prober.start(self, patience, told)?;
        }
        let Some(cached) = &self.cached else {
            return Ok(());
        };
        if let Some(memory) = &self.memory {
            memory.start(self, &cached.store)?;
        }
        cached.prefetch.serve(self);
        cached.store.start()
    }

    /// After the last request: what was read is stored, and the store closed.
    pub fn close(&self) {
        self.outage.end();
        self.prober.end();
        if let Some(memory) = &self.memory {
            memory.end(FAREWELL);
        }
        if let Some(cached) = &self.cached {
            cached.prefetch.end();
            cached.store.close();
        }
    }

    /// The directory of the cache, if there is one.
    pub fn cache_root(&self) -> Option<BorrowedFd<'_>> {
        self.cached.as_ref().map(|cached| cached.store.root())
    }

    /// What the kernel knows.
    pub fn table(&self) -> &InodeTable {
        &self.table
    }

    /// How this mirror behaves.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Drops every window that nobody is using at this moment.
    pub fn drop_windows(&self) {
        self.windows.clear();
    }

    /// Housekeeping, once a second.
    pub fn tick(&self) {
        self.windows.trim_idle(IDLE);
        self.give_back_memory();
    }

    /// Gives freed memory back to the system, once a wave of forgetting is over or has gone on
    /// for long.
    fn give_back_memory(&self) {
        let forgotten = self.table.forgotten();
        let before = self.forgotten_at_tick.swap(forgotten, Ordering::Relaxed);
        let since = forgotten - self.forgotten_at_trim.load(Ordering::Relaxed);
        let calm = forgotten - before < since / 8;
        if (calm && since >= TRIM_AFTER) || since >= TRIM_AT_LAST {
            self.forgotten_at_trim.store(forgotten, Ordering::Relaxed);
            memory::trim();
        }
    }

    /// The kernel takes back `count` lookups of an inode.
    pub fn forget(&self, id: NodeId, count: u64) {
        if let Some(inode) = self.table.forget(id, count) {
            self.windows.forget(inode.file_id);
            self.unwatch(id);
        }
    }

    /// Refuses what changes something, on a read-only mirror.
    fn writable(&self, operation: &'static str) -> Result<()> {
        // What is served from memory can't be changed.
        if self.options.read_only || (self.lets_go() && self.is_apart()) {
            return Err(Fail::new(Errno::ROFS, operation));
        }
        Ok(())
    }

    fn new_handle(&self) -> u64 {
        self.metrics.handle_opened();
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }
}
