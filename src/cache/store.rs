//! One source's part of a cache directory.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::{Condvar, Mutex, RwLock};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::observe::Metrics;
use crate::sys::ofd;
use crate::sys::{Errno, Fail, OrFail, Result};

use super::budget::{Budget, Room, byte};
use super::buffers::Buffers;
use super::count;
use super::entry::Entry;
use super::evict::Evictor;
use super::fill::Queue;
use super::identity::Identity;
use super::layout::{Header, MAX_PATH, Name, Use};
use super::ledger::{OTHER, entry_cost};
use super::options::{BLOCKS, SourceKey, StoreOptions};
use super::place;
use super::shelf::{Found, STATE, Shelf, USER, read_only};
use super::trust::{State, Trust};

/// How long to wait for another process that begins or ends with the store: it may sync.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a stop waits for blocks whose source does not answer.
const FAREWELL: Duration = Duration::from_secs(5);
/// What the folders and small files of a store take, 4 KiB each, and its state while it is replaced.
pub(super) const FOUNDING: u64 = 8 * 4096;
/// Versions of which it is remembered since when they are known.
const KNOWN: usize = 4096;

/// The entries of one source, shared by all its files, readers and processes.
#[derive(Debug)]
pub struct Store {
    pub(super) options: StoreOptions,
    pub(super) metrics: Arc<Metrics>,
    root: OwnedFd,
    pub(super) top: OwnedFd,
    pub(super) name: String,
    pub(super) shelf: Arc<Shelf>,
    /// None where the cache is read-only.
    pub(super) budget: Option<Budget>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) queue: Queue,
    evictor: Evictor,
    /// A leaf.
    state: RwLock<State>,
    /// The epoch in which this process opened the store: what was made before is not new.
    first_epoch: u32,
    /// How often something became doubtful that had been trusted.
    doubts: AtomicU64,
    /// The entries that are open here. A leaf.
    open: Mutex<HashMap<Name, Weak<Entry>>>,
    /// Since when a version is known. A leaf.
    known: Mutex<LruCache<u64, Instant>>,
    began: Instant,
    /// Whether anything was written since the last sync.
    dirty: AtomicBool,
    /// Whether an entry was given up that somebody may still use.
    pub(super) orphans: AtomicBool,
    /// What was logged. A leaf.
    troubles: Mutex<HashSet<(&'static str, i32)>>,
    /// Leaves.
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Mutex<bool>,
    stopped: Condvar,
    closed: AtomicBool,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Boot and mount that a file is of: what the page cache of one holds that of another does not.
/// `STATX_MNT_ID_UNIQUE` is Linux 6.8; before it, the device.
pub(super) fn place_of(dir: BorrowedFd<'_>) -> Result<u64> {
    const MNT_ID_UNIQUE: u32 = 0x4000;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").or_fail("boot_id")?;
    let wanted = rustix::fs::StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    let told = rustix::fs::statx(dir, c"", flags, wanted).or_fail("statx")?;
    let mount = match told.stx_mask & MNT_ID_UNIQUE != 0 {
        true => told.stx_mnt_id,
        false => 0,
    };
    let mut hash = Xxh3::new();
    hash.update(boot.as_bytes());
    hash.update(&mount.to_le_bytes());
    hash.update(&told.stx_dev_major.to_le_bytes());
    hash.update(&told.stx_dev_minor.to_le_bytes());
    Ok(hash.digest())
}

impl Store {
    /// Opens or makes the store. Starts no thread, so that a process may still fork and enter its
    /// sandbox; scans nothing. All that is used later is beneath [`Store::root`]. A cache that
    /// can't be written is read.
    ///
    /// # Errors
    /// EACCES with words for a directory that is not ours alone, EINVAL for options that make no
    /// sense, EBUSY when another process holds the store's state for long; those of the file
    /// system.
    pub fn open(options: &StoreOptions, metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        if !BLOCKS.contains(&options.block) || !options.block.is_power_of_two() {
            return Err(Fail::new(Errno::INVAL, "cache").because("block is no power of two"));
        }
        let root = place::open_root(&options.dir)?;
        let (top, writable) = open_top(root.as_fd())?;
        let at = place_of(top.as_fd())?;
        // Before the store's folders are made, so that they are counted whoever is killed when.
        let budget = match writable {
            true => open_budget(root.as_fd(), top.as_fd(), at, options, &metrics)?,
            false => None,
        };
        let (shelf, new) = open_shelf(top.as_fd(), options, budget.is_some())?;
        let budget = budget.filter(|_| shelf.writable);
        let first = take_users_lock(&shelf)?;
        let state = begin(&shelf, &options.source, first, at)?;
        let spare = NonZeroUsize::new(KNOWN).unwrap_or(NonZeroUsize::MIN);
        let store = Arc::new(Self {
            name: store_name(options),
            buffers: Buffers::new(options.buffers.max(4 * u64::from(options.block))),
            options: options.clone(),
            metrics,
            root,
            top,
            shelf: Arc::new(shelf),
            budget,
            queue: Queue::default(),
            evictor: Evictor::default(),
            first_epoch: state.epoch,
            state: RwLock::new(state),
            doubts: AtomicU64::new(0),
            open: Mutex::default(),
            known: Mutex::new(LruCache::new(spare)),
            began: Instant::now(),
            dirty: AtomicBool::new(false),
            orphans: AtomicBool::new(true),
            troubles: Mutex::default(),
            threads: Mutex::default(),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        if let Some(budget) = &store.budget {
            budget.commit(OTHER, FOUNDING, if new { FOUNDING } else { 0 })?;
            budget.tell()?;
        }
        Ok(store)
    }

    /// The cache directory: what a sandbox must leave open (reading, writing, making, removing
    /// and renaming files and directories beneath).
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The store's own directory in the cache directory, for what else is kept of the source
    /// (`names/`).
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.shelf.dir.as_fd()
    }

    /// The name of its directory in the cache directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the store behaves.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// Refuses a cache directory inside the source or the mountpoint, and the reverse.
    ///
    /// # Errors
    /// EINVAL with words that name `what`; those of opening `..`.
    pub fn refuse_overlap(&self, other: BorrowedFd<'_>, what: &str) -> Result<()> {
        place::refuse_overlap(self.root(), other, what)
    }

    /// Whether nothing can be stored, as the cache directory can't be written.
    pub fn is_read_only(&self) -> bool {
        self.budget.is_none()
    }

    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    pub(super) fn trust(&self, epoch: u32) -> Trust {
        self.state.read().trust(epoch)
    }

    pub(super) fn epoch(&self) -> u32 {
        self.state.read().epoch
    }

    pub(super) fn state(&self) -> State {
        self.state.read().clone()
    }

    pub(super) fn wrote(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    pub(super) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// An error of the cache disk: counted, and logged once of its kind.
    pub(super) fn trouble(&self, fail: &Fail) {
        self.metrics.cache_error();
        let kind = (fail.operation, fail.errno.raw_os_error());
        if self.troubles.lock().insert(kind) {
            log::warn!(
                "cache {}: {fail} (the source serves)",
                self.options.dir.display()
            );
        }
    }

    /// The value, or None with the error noted.
    fn noted<T>(&self, done: Result<T>) -> Option<T> {
        done.map_err(|fail| self.trouble(&fail)).ok()
    }

    /// The entry of that version of the file at `path` (within the source, no leading slash):
    /// found, or made with no block in it. An entry of another version is replaced. None when it
    /// cannot be cached now; the source serves then.
    pub fn entry(self: &Arc<Self>, path: &[u8], identity: &Identity) -> Option<Arc<Entry>> {
        if self.is_closed() || path.len() > MAX_PATH {
            return None;
        }
        let name = Name::of(path);
        let known = self.known_since(name, identity);
        if let Some(entry) = self.opened(name, path, identity) {
            return Some(entry);
        }
        let found = self.noted(self.shelf.open_entry(name, path))?;
        let files = match found {
            Found::Entry(files) if files.header.identity == *identity => *files,
            found => {
                drop(found);
                self.noted(self.make(name, path, identity))??
            }
        };
        Some(self.keep(name, files, known))
    }

    /// One that is open here already.
    fn opened(&self, name: Name, path: &[u8], identity: &Identity) -> Option<Arc<Entry>> {
        let entry = self.open.lock().get(&name).and_then(Weak::upgrade)?;
        let same = entry.identity() == identity && entry.path() == path;
        (same && !entry.is_abandoned()).then_some(entry)
    }

    fn make(
        &self,
        name: Name,
        path: &[u8],
        identity: &Identity,
    ) -> Result<Option<super::shelf::Files>> {
        let Some(budget) = &self.budget else {
            return Ok(None);
        };
        let header = Header {
            block: self.options.block,
            made: self.epoch(),
            generation: fastrand::u64(..),
            identity: *identity,
            path: path.to_vec(),
            used: Use::default(),
            pinned: false,
        };
        // With a folder that may have to be made.
        let cost = entry_cost(header.index_len(), header.blocks()) + 4096;
        if self.reserve(cost, true)? != Room::Reserved {
            self.metrics.cache_unstored();
            return Ok(None);
        }
        self.orphans.store(true, Ordering::Relaxed);
        self.wrote();
        self.shelf.make(name, &header, budget, cost)
    }

    /// Remembers an entry that was opened; or drops it for one that another thread opened.
    fn keep(
        self: &Arc<Self>,
        name: Name,
        files: super::shelf::Files,
        known: Instant,
    ) -> Arc<Entry> {
        let made_before = files.header.made < self.first_epoch;
        let known = if made_before { self.began } else { known };
        let entry = Arc::new(Entry::new(Arc::clone(self), name, files, known));
        let mut open = self.open.lock();
        let other = open.get(&name).and_then(Weak::upgrade).filter(|other| {
            other.header.generation == entry.header.generation && !other.is_abandoned()
        });
        if let Some(other) = other {
            drop(open);
            return other;
        }
        if open.len() == open.capacity() {
            open.retain(|_, entry| entry.strong_count() > 0);
        }
        open.insert(name, Arc::downgrade(&entry));
        drop(open);
        entry.touch(&entry.header.used.again(now()).encode());
        entry
    }

    /// Since when that version is known to this process.
    fn known_since(&self, name: Name, identity: &Identity) -> Instant {
        let mut hash = Xxh3::new();
        hash.update(&name.0.to_le_bytes());
        for number in [identity.size, identity.ino] {
            hash.update(&number.to_le_bytes());
        }
        for stamp in [identity.mtime, identity.ctime] {
            hash.update(&stamp.seconds.to_le_bytes());
            hash.update(&stamp.nanos.to_le_bytes());
        }
        let mut known = self.known.lock();
        *known.get_or_insert(hash.digest(), Instant::now)
    }

    /// The version of the file at `path` that is on record, whole or in part.
    pub fn stored(&self, path: &[u8]) -> Option<Identity> {
        let header = self.noted(self.shelf.header(Name::of(path)))??;
        (header.path == path).then_some(header.identity)
    }

    /// The entry of the file at `path` in whatever version is on record; never made.
    pub fn entry_as_stored(self: &Arc<Self>, path: &[u8]) -> Option<Arc<Entry>> {
        let name = Name::of(path);
        let open = self.open.lock().get(&name).and_then(Weak::upgrade);
        if let Some(entry) = open
            && entry.path() == path
            && !entry.is_abandoned()
        {
            return Some(entry);
        }
        match self.noted(self.shelf.open_entry(name, path))? {
            Found::Entry(files) => {
                let known = self.known_since(name, &files.header.identity);
                Some(self.keep(name, *files, known))
            }
            _ => None,
        }
    }

    /// Forgets the file at `path`: who has its entry open keeps it, nobody finds it again. For
    /// what is changed, renamed or removed through the mount. (A rename changes ctime, and so the
    /// identity: an entry under its new name would be of no use.)
    pub fn remove(&self, path: &[u8]) {
        let name = Name::of(path);
        let open = self
            .open
            .lock()
            .remove(&name)
            .and_then(|entry| entry.upgrade());
        if let Some(entry) = open {
            entry.set_abandoned();
        }
        if let Some(budget) = &self.budget {
            self.orphans.store(true, Ordering::Relaxed);
            self.noted(self.shelf.take_away(name, budget, (true, true, true)));
        }
    }

    /// Takes an entry's names away, if they are still this one's.
    pub(super) fn take_away(&self, name: Name, header: &Header) {
        let Some(budget) = &self.budget else { return };
        let there = self.noted(self.shelf.header(name)).flatten();
        if there.is_some_and(|there| there.generation == header.generation) {
            self.orphans.store(true, Ordering::Relaxed);
            self.noted(self.shelf.take_away(name, budget, (true, true, true)));
        }
    }

    /// Reserves bytes, after evicting what has to go for them.
    pub(super) fn reserve(&self, bytes: u64, new_files: bool) -> Result<Room> {
        let Some(budget) = &self.budget else {
            return Ok(Room::Short(bytes));
        };
        // Others may take the room that was made.
        for _ in 0..8 {
            let short = match budget.reserve(bytes, new_files)? {
                Room::Short(short) => short,
                done => return Ok(done),
            };
            if self.evict(short)? == 0 {
                return Ok(Room::Short(short));
            }
        }
        budget.reserve(bytes, new_files)
    }

    /// Evicts entries of at least so many bytes; how many bytes that freed.
    pub(super) fn evict(&self, bytes: u64) -> Result<u64> {
        let Some(budget) = &self.budget else {
            return Ok(0);
        };
        let top = self.top.as_fd();
        let done = self
            .evictor
            .free(&self.shelf, &self.name, budget, top, bytes);
        let (freed, entries) = done?;
        for _ in 0..entries {
            self.metrics.cache_evicted();
        }
        Ok(freed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Lets the threads of the store begin; to be called inside the sandbox.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let threads = super::keeping::start(self)?;
        self.threads.lock().extend(threads);
        Ok(())
    }

    /// Waits until all blocks that were read are stored or given up; false after `patience`.
    pub fn settle(&self, patience: Duration) -> bool {
        self.queue.settle(patience)
    }

    /// Waits `time`, or less when the store ends: true then.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let mut stop = self.stop.lock();
        if !*stop {
            self.stopped.wait_for(&mut stop, time);
        }
        *stop
    }

    /// Writes all of the cache disk's file system that is not on disk yet. When that fails,
    /// nothing that was written since the last clean stop is believed any more.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub(super) fn sync(&self) -> Result<()> {
        let synced = rustix::fs::syncfs(&self.shelf.dir).or_fail("syncfs");
        if synced.is_err() {
            self.change_state(|state, own| {
                // Another process may have seen the same failure first.
                if state.epoch == own.epoch {
                    state.lose();
                }
            })?;
        }
        synced
    }

    /// Changes the state on disk, alone, and takes it over. `change` also gets the state that this
    /// process had.
    pub(super) fn change_state(&self, change: impl FnOnce(&mut State, &State)) -> Result<()> {
        let users = self.shelf.users.as_fd();
        let deadline = Instant::now() + PATIENCE;
        ofd::set_by(users, byte(libc::F_WRLCK, STATE), deadline)?;
        let own = self.state();
        let mut state = read_state(&self.shelf).unwrap_or_else(|| own.clone());
        let before = state.clone();
        change(&mut state, &own);
        let written = match state == before {
            true => Ok(()),
            false => place::replace(self.dir(), "state", state.encode().as_bytes()),
        };
        ofd::set(users, byte(libc::F_UNLCK, STATE))?;
        // Even if it could not be written: this process doubts from now on.
        if state.lost_to != own.lost_to || state.suspect_to > own.suspect_to {
            *self.state.write() = state;
            self.doubts.fetch_add(1, Ordering::AcqRel);
        } else {
            *self.state.write() = state;
        }
        written
    }

    /// Ends the threads when all is stored, and makes a clean stop if nobody else uses the store.
    /// Entries that are open stay readable; nothing is stored after this.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let stored = self.queue.close(FAREWELL);
        *self.stop.lock() = true;
        self.stopped.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // One that waits for a source that hangs is left behind.
            if stored || thread.is_finished() {
                let _ = thread.join();
            }
        }
        if let Some(budget) = &self.budget {
            self.noted(self.shelf.sweep(budget));
            // A block whose source did not answer may be written yet: then it is no clean stop.
            let synced = stored && self.noted(self.end()).unwrap_or(false);
            self.noted(budget.close(synced));
        }
    }

    /// Leaves the store; whether all that anybody wrote there is on disk.
    fn end(&self) -> Result<bool> {
        self.sync()?;
        let users = self.shelf.users.as_fd();
        ofd::set(users, byte(libc::F_UNLCK, USER))?;
        match ofd::set(users, byte(libc::F_WRLCK, USER)) {
            Err(fail) if fail.errno == Errno::AGAIN => return Ok(true),
            done => done?,
        }
        // Somebody may have written after our sync, and been killed.
        self.sync()?;
        let done = self.change_state(|state, _| state.clean = true);
        ofd::set(users, byte(libc::F_UNLCK, USER))?;
        done.map(|()| true)
    }
}

fn store_name(options: &StoreOptions) -> String {
    format!("{:032x}", xxh3_128(options.source.key.as_bytes()))
}

/// The folder of all stores, made where it can be; whether it could be.
fn open_top(root: BorrowedFd<'_>) -> Result<(OwnedFd, bool)> {
    let version = format!("v{}", super::layout::VERSION);
    let made = place::tag(root).and_then(|()| place::make_dir(root, &version));
    match made {
        Err(fail) if read_only(&fail) => Ok((place::open_dir(root, &version)?, false)),
        made => made.map(|(top, _)| (top, true)),
    }
}

/// The ledger, with room reserved for a new store; none where it can't be written.
fn open_budget(
    root: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    at: u64,
    options: &StoreOptions,
    metrics: &Arc<Metrics>,
) -> Result<Option<Budget>> {
    let shares = (options.size, options.free);
    let before = (!count::stores(top)?.is_empty(), FOUNDING);
    match Budget::open(root, top, at, shares, before, Arc::clone(metrics)) {
        Err(fail) if read_only(&fail) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The folders of the store, made where they can be; whether they are new.
fn open_shelf(top: BorrowedFd<'_>, options: &StoreOptions, make: bool) -> Result<(Shelf, bool)> {
    let name = store_name(options);
    match Shelf::open(top, &name, make) {
        Err(fail) if make && read_only(&fail) => {
            Shelf::open(top, &name, false).map(|(shelf, new)| (shelf.read_only(), new))
        }
        Ok((shelf, new)) if !make => Ok((shelf.read_only(), new)),
        opened => opened,
    }
}

/// Joins the users of the store; true for the first one, who is alone until [`begin`] is done.
fn take_users_lock(shelf: &Shelf) -> Result<bool> {
    if !shelf.writable {
        return Ok(false);
    }
    let users = shelf.users.as_fd();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The first is alone until it is done; who is told to wait may become the first.
        for kind in [libc::F_WRLCK, libc::F_RDLCK] {
            match ofd::set(users, byte(kind, USER)) {
                Ok(()) => return Ok(kind == libc::F_WRLCK),
                Err(fail) if fail.errno == Errno::AGAIN => {}
                Err(fail) => return Err(fail),
            }
        }
        if Instant::now() > deadline {
            let words = "another process holds the store";
            return Err(Fail::new(Errno::BUSY, "cache").because(words));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn read_state(shelf: &Shelf) -> Option<State> {
    let bytes = place::read_small(shelf.dir.as_fd(), "state").ok()?;
    State::decode(std::str::from_utf8(&bytes).ok()?)
}

/// The state that this process begins with.
fn begin(shelf: &Shelf, source: &SourceKey, first: bool, place: u64) -> Result<State> {
    let before = read_state(shelf);
    let fresh = match shelf.fans()?.is_empty() {
        true => 1,
        false => u32::try_from(now()).unwrap_or(u32::MAX - 1),
    };
    if !first && let Some(state) = before {
        // Another process's, or, where nothing can be written, that of the last one.
        return Ok(match shelf.writable {
            true => state,
            false => State::begin(Some(&state), place, fresh),
        });
    }
    let state = State::begin(before.as_ref(), place, fresh);
    if first {
        let text = format!("key {}\n{}", source.key, source.about);
        if place::read_small(shelf.dir.as_fd(), "source").ok() != Some(text.clone().into()) {
            place::replace(shelf.dir.as_fd(), "source", text.as_bytes())?;
        }
        place::replace(shelf.dir.as_fd(), "state", state.encode().as_bytes())?;
        ofd::set(shelf.users.as_fd(), byte(libc::F_RDLCK, USER))?;
    }
    Ok(state)
}
