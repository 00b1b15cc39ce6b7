//! What is seen of the source's tree is handed to the store of names: a bounded queue, and a thread
//! that resolves paths and commits in batches. Nobody who reads waits for it; what comes too fast is
//! not kept.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::fs::Stat;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Mirror;
use super::inode::{Inode, NodeId, ROOT};
use super::named::ACCESS_ACL;
use crate::cache::{Change, Named, Names, Record, Store};
use crate::observe::Metrics;
use crate::sys::{OrFail, Result};

/// The most notes that wait, and how many are worth a commit before its time.
const LONGEST: usize = 8192;
const MANY: usize = 2048;
/// How long a note waits at most.
const PERIOD: Duration = Duration::from_secs(1);
/// How long until it is tried again to have the names, when another process has them.
const AGAIN: Duration = Duration::from_secs(10);
/// Notes of which it is remembered that they were taken: a power of two.
const RECENT: usize = 1 << 16;
/// The most that an extended attribute may hold (linux/limits.h, XATTR_SIZE_MAX), in bytes.
const LARGEST_ACL: usize = 64 << 10;
/// The longest listing that is kept as a whole.
pub(super) const LISTING: usize = 128 << 10;

/// Something that was seen, before its path is known.
#[derive(Debug)]
pub(super) enum Note {
    /// The root.
    Root(Record),
    /// A name of a directory.
    Seen(NodeId, OsString, Record),
    Target(NodeId, OsString, Vec<u8>),
    Gone(NodeId, OsString),
    Listed(NodeId, Vec<u8>, Vec<Named>),
    Acl(NodeId, u8, Option<Vec<u8>>),
}

#[derive(Debug, Default)]
struct Queue {
    notes: VecDeque<Note>,
    ended: bool,
}

/// The memory of the tree.
#[derive(Debug)]
pub(super) struct Memory {
    /// A leaf.
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Whether notes are taken: not when nobody will ever keep them.
    takes: AtomicBool,
    /// Hashes of what was noted lately, so that a name asked for each second is kept once.
    recent: Box<[AtomicU64; RECENT]>,
    names: RwLock<Option<Arc<Names>>>,
    opened: Condvar,
    /// False until the store was opened, or can't be.
    settled: Mutex<bool>,
    /// The source was asked whether it has ACLs at all.
    asked_for_acls: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Memory {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            takes: AtomicBool::new(true),
            recent: Box::new([const { AtomicU64::new(0) }; RECENT]),
            names: RwLock::default(),
            opened: Condvar::new(),
            settled: Mutex::new(false),
            asked_for_acls: AtomicBool::new(false),
            thread: Mutex::default(),
            metrics,
        }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// Those of starting it.
    pub(super) fn start(&self, mirror: &Arc<Mirror>, store: &Arc<Store>) -> Result<()> {
        let (mirror, store) = (Arc::clone(mirror), Arc::clone(store));
        let work = move || {
            if let Some(memory) = &mirror.memory {
                memory.work(&mirror, &store);
            }
        };
        let thread = Builder::new().name("corfs-names".into()).spawn(work);
        *self.thread.lock() = Some(thread.or_fail("spawn")?);
        Ok(())
    }

    /// Keeps what was noted so far, and ends. A thread that waits for a source that hangs is left
    /// behind.
    pub(super) fn end(&self, patience: Duration) {
        self.queue.lock().ended = true;
        self.changed.notify_all();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        let until = Instant::now() + patience;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }

    /// The store of names; waits for `patience` while it is being opened.
    pub(super) fn names(&self, patience: Duration) -> Option<Arc<Names>> {
        if let Some(names) = &*self.names.read() {
            return Some(Arc::clone(names));
        }
        let mut settled = self.settled.lock();
        let until = Instant::now() + patience;
        while !*settled {
            if self.opened.wait_until(&mut settled, until).timed_out() {
                break;
            }
        }
        drop(settled);
        self.names.read().clone()
    }

    /// Takes a note, unless the same was taken lately (`what` tells it from others).
    pub(super) fn note(&self, what: impl Hash, note: impl FnOnce() -> Note) {
        if !self.takes.load(Ordering::Relaxed) {
            return;
        }
        let (place, hash) = self.place_of(what);
        if place.swap(hash, Ordering::Relaxed) == hash {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.notes.len() >= LONGEST {
            drop(queue);
            // It is news the next time.
            place.store(0, Ordering::Relaxed);
            self.metrics.names_dropped(1);
            return;
        }
        queue.notes.push_back(note());
        let many = queue.notes.len() == MANY;
        drop(queue);
        if many {
            self.changed.notify_one();
        }
    }

    /// Whether it was not noted lately; it is from now on.
    pub(super) fn is_news(&self, what: impl Hash) -> bool {
        let (place, hash) = self.place_of(what);
        place.swap(hash, Ordering::Relaxed) != hash
    }

    fn place_of(&self, what: impl Hash) -> (&AtomicU64, u64) {
        let mut hash = Digest(Xxh3::new());
        what.hash(&mut hash);
        // No news is 0.
        let hash = hash.finish().max(1);
        (&self.recent[hash as usize % RECENT], hash)
    }

    /// Opens the store, and keeps what comes until the end.
    fn work(&self, mirror: &Mirror, store: &Arc<Store>) {
        let mut tried: Option<Instant> = None;
        loop {
            if self.names.read().is_none() && tried.is_none_or(|at| at.elapsed() >= AGAIN) {
                tried = Some(Instant::now());
                self.open(store);
            }
            let (notes, ended) = self.take();
            let names = self.names.read().clone();
            match &names {
                Some(names) => self.keep(mirror, names, notes),
                None => self.metrics.names_dropped(notes.len() as u64),
            }
            if ended {
                *self.names.write() = None;
                if let Some(names) = names {
                    names.close();
                }
                return;
            }
        }
    }

    fn open(&self, store: &Arc<Store>) {
        match store.names() {
            Ok(Some(names)) => {
                // What was noted until now may have been kept by nobody.
                for place in self.recent.iter() {
                    place.store(0, Ordering::Relaxed);
                }
                *self.names.write() = Some(Arc::new(names));
            }
            Ok(None) => {}
            Err(fail) => log::warn!("cache: the names of the source: {fail}; there are none"),
        }
        let there = self.names.read().is_some();
        // Until it is tried again nobody keeps them.
        self.takes.store(there, Ordering::Relaxed);
        *self.settled.lock() = true;
        self.opened.notify_all();
    }

    /// What has come, when it is worth it, and whether that was all.
    fn take(&self) -> (VecDeque<Note>, bool) {
        let mut queue = self.queue.lock();
        if !queue.ended && queue.notes.len() < MANY {
            self.changed.wait_for(&mut queue, PERIOD);
        }
        (std::mem::take(&mut queue.notes), queue.ended)
    }

    /// Most remote file systems have no ACLs: one answer is enough to know that of every file, though
    /// nobody asks while the source is there. What is told is noted as it is for any who asks.
    fn ask_for_acls(&self, mirror: &Mirror) {
        if !mirror.is_apart() && !self.asked_for_acls.swap(true, Ordering::Relaxed) {
            // Whatever it says, or not.
            let _ = mirror.getxattr(ROOT, OsStr::new(ACCESS_ACL), LARGEST_ACL);
        }
    }

    fn keep(&self, mirror: &Mirror, names: &Names, notes: VecDeque<Note>) {
        if notes.is_empty() {
            return;
        }
        self.ask_for_acls(mirror);
        let count = notes.len();
        let mut changes = Changes::default();
        for note in notes {
            mirror.resolve(names, note, &mut changes);
        }
        let dropped = names.keep(&changes.list);
        self.metrics
            .names_noted(count.saturating_sub(dropped) as u64);
        self.metrics.names_dropped(dropped as u64);
    }
}

/// What is to be changed, and which paths are concerned.
#[derive(Default)]
struct Changes {
    list: Vec<Change>,
    touched: HashSet<u64>,
}

impl Changes {
    /// Adds a change, unless it changes nothing of what is kept.
    fn add(&mut self, names: &Names, change: Change) {
        let (Change::Put(path, _) | Change::Gone(path)) = &change else {
            return self.list.push(change);
        };
        let first = self.touched.insert(xxh3_64(path));
        let idle = || match (&change, names.get(path)) {
            (Change::Put(_, record), Some(known)) => known.tells_all_of(record),
            // Most names that are asked for in vain were never there.
            (Change::Gone(_), None) => true,
            _ => false,
        };
        if !first || !idle() {
            self.list.push(change);
        }
    }
}

/// A hasher that costs little for a few bytes.
struct Digest(Xxh3);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// The version of a directory, for its listing.
pub(super) fn version_of(stat: &Stat) -> Vec<u8> {
    let mut version = Vec::with_capacity(32);
    for number in [stat.st_mtime, stat.st_ctime] {
        version.extend_from_slice(&number.to_le_bytes());
    }
    for number in [stat.st_mtime_nsec, stat.st_ctime_nsec] {
        version.extend_from_slice(&number.to_le_bytes());
    }
    version
}

/// What tells a stat from an older one, without the time of last access.
fn news_of(stat: &Stat) -> impl Hash {
    (
        (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink),
        (stat.st_size, stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec, stat.st_ino),
    )
}

impl Mirror {
    /// Attributes that the source just gave.
    pub(super) fn noted(&self, inode: &Inode, stat: &Stat) {
        let Some(memory) = &self.memory else { return };
        if inode.id == ROOT {
            return memory.note((ROOT, news_of(stat)), || Note::Root(Record::of(stat)));
        }
        if let Some((parent, name)) = inode.last_seen() {
            self.noted_name(parent, &name, stat);
        }
    }

    /// The same of a name that was looked up.
    pub(super) fn noted_name(&self, parent: NodeId, name: &OsStr, stat: &Stat) {
        let Some(memory) = &self.memory else { return };
        memory.note((parent, name.as_bytes(), news_of(stat)), || {
            Note::Seen(parent, name.to_owned(), Record::of(stat))
        });
    }

    /// A name is not there, says the source.
    pub(super) fn noted_gone(&self, parent: NodeId, name: &OsStr) {
        let Some(memory) = &self.memory else { return };
        memory.note((parent, name.as_bytes()), || {
            Note::Gone(parent, name.to_owned())
        });
    }

    /// Something took a name away, or gave it to another.
    pub(super) fn noted_change(&self, parent: &Inode, name: &OsStr) {
        let Some(memory) = &self.memory else { return };
        // Each is news: the name may have come again since the last.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        memory.note(COUNT.fetch_add(1, Ordering::Relaxed), || {
            Note::Gone(parent.id, name.to_owned())
        });
    }

    /// Where a symbolic link leads.
    pub(super) fn noted_target(&self, inode: &Inode, target: &[u8]) {
        let Some(memory) = &self.memory else { return };
        if let Some((parent, name)) = inode.last_seen() {
            memory.note((parent, name.as_bytes(), target), || {
                Note::Target(parent, name.clone(), target.to_vec())
            });
        }
    }

    /// What was answered when an ACL was asked for.
    pub(super) fn noted_acl(&self, id: NodeId, kind: u8, acl: Option<&[u8]>) {
        let Some(memory) = &self.memory else { return };
        memory.note((id, kind, acl), || {
            Note::Acl(id, kind, acl.map(<[u8]>::to_vec))
        });
    }

    /// Every name in a directory.
    pub(super) fn noted_listing(&self, id: NodeId, version: Vec<u8>, names: Vec<Named>) {
        let Some(memory) = &self.memory else { return };
        memory.note((id, &version, names.len()), || {
            Note::Listed(id, version.clone(), names)
        });
    }

    /// The path of a name in a directory that the kernel may have forgotten.
    fn path_by_id(&self, parent: NodeId, name: &OsStr) -> Option<Vec<u8>> {
        self.path_in(&*self.table.peek(parent)?, name)
    }

    /// The path of an inode, the root's being empty.
    pub(super) fn path_by(&self, id: NodeId) -> Option<Vec<u8>> {
        if id == ROOT {
            return Some(Vec::new());
        }
        self.path_of(&*self.table.peek(id)?)
    }

    /// Turns a note into changes of the store.
    fn resolve(&self, names: &Names, note: Note, changes: &mut Changes) {
        let change = match note {
            Note::Root(record) => Some(Change::Put(Vec::new(), record)),
            Note::Seen(parent, name, record) => self
                .path_by_id(parent, &name)
                .map(|path| Change::Put(path, record)),
            Note::Target(parent, name, target) => self
                .path_by_id(parent, &name)
                .map(|path| Change::Target(path, target)),
            Note::Gone(parent, name) => {
                let path = self.path_by_id(parent, &name);
                // Nothing is dropped because of a source that looks empty.
                path.filter(|_| parent != ROOT || self.root_looks_well(names))
                    .map(Change::Gone)
            }
            Note::Acl(id, kind, acl) => self.path_by(id).map(|path| Change::Acl(path, kind, acl)),
            Note::Listed(id, version, found) => {
                if let Some(path) = self.path_by(id)
                    && !(path.is_empty() && found.is_empty() && !self.root_looks_well(names))
                    && !names.has_listed(&path, &version)
                {
                    changes.list.extend(Change::listing(&path, version, found));
                }
                None
            }
        };
        if let Some(change) = change {
            changes.add(names, change);
        }
    }
}
