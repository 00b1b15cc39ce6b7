//! The tree of the source as it was last seen: names, attributes, links, listings.
//!
//! An embedded database (redb) beside the entries, for the time when the source does not answer. It
//! is a memory and nothing else: what does not fit, or comes too fast, is not kept; what is damaged
//! is set aside, and a new one begun. One process at a time has it; another mount of the same source
//! and cache has none until that one ends.
//!
//! - `names`: the path of a directory, a zero byte and a name in it, so that a listing is one range;
//!   the root itself is the empty name in the empty path.
//! - `listed`: the path of a directory of which every name is known.
//! - `acls`: what was answered when somebody asked for an ACL; a zero byte and its kind behind the
//!   path.

mod record;
#[cfg(test)]
mod tests;
mod write;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition, TableError};
use rustix::fs::{FileType, OFlags};

pub use record::Record;
use record::unsealed;

use super::budget::{Budget, Room};
use super::ledger::{OTHER, usable};
use super::place;
use super::store::Store;
use crate::sys::{Errno, Fail, Result};

type Bytes = &'static [u8];
const NAMES: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("names");
const LISTED: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("listed");
const ACLS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("acls");

const FOLDER: &str = "names";
const FILE: &str = "tree.redb";
/// Where it is in a store.
pub(super) const PLACE: &str = "names/tree.redb";
const ASIDE: &str = "tree.damaged";

/// What the database keeps in memory, in bytes.
const MEMORY: usize = 8 << 20;
/// Changes of one commit.
const BATCH: usize = 256;
/// Names of one part of a listing.
const PART: usize = 4 * BATCH - 8;
/// What one commit may take at most, in bytes: each change a leaf of the tree, and the way to it.
const NEED: u64 = 2 << 20;
/// The part of the cache's limit that it may take.
const SHARE: u64 = 16;

/// A name, its type and its inode number, as a listing tells them.
pub type Named = (Vec<u8>, FileType, u64);

/// Something that was seen in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What a path is.
    Put(Vec<u8>, Record),
    /// It is not there any more, nor what was below it.
    Gone(Vec<u8>),
    /// Where a symbolic link leads.
    Target(Vec<u8>, Vec<u8>),
    /// The names in a directory behind the first name given, up to the second (none: all), and no
    /// others.
    Names(Vec<u8>, Vec<u8>, Option<Vec<u8>>, Vec<Named>),
    /// Every name in a directory was told, as it was when it had that version.
    Listed(Vec<u8>, Vec<u8>),
    /// What was answered when an ACL was asked for: its kind, and its value; none where there is
    /// none.
    Acl(Vec<u8>, u8, Option<Vec<u8>>),
}

impl Change {
    /// How many leaves of the tree it may need anew.
    fn weight(&self) -> usize {
        match self {
            Self::Names(_, _, _, names) => 1 + names.len() / 4,
            _ => 1,
        }
    }

    /// A whole listing, in parts that one commit can hold. `names` are sorted here.
    pub fn listing(path: &[u8], version: Vec<u8>, mut names: Vec<Named>) -> Vec<Self> {
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let mut changes = Vec::new();
        let mut after = Vec::new();
        let mut parts = names.chunks(PART).peekable();
        if parts.peek().is_none() {
            changes.push(Self::Names(path.to_vec(), Vec::new(), None, Vec::new()));
        }
        while let Some(part) = parts.next() {
            let last = part.last().map(|(name, _, _)| name.clone());
            let until = if parts.peek().is_some() { last } else { None };
            let next = until.clone().unwrap_or_default();
            let before = std::mem::replace(&mut after, next);
            changes.push(Self::Names(path.to_vec(), before, until, part.to_vec()));
        }
        changes.push(Self::Listed(path.to_vec(), version));
        changes
    }
}

/// The store of names, or what is left of it.
#[derive(Debug)]
pub struct Names {
    store: Arc<Store>,
    dir: OwnedFd,
    /// None when it was damaged, and once it is closed. Taken before the budget's locks.
    db: RwLock<Option<Database>>,
    /// Bytes of the ledger: counted for the file, and reserved for its growth.
    counted: Mutex<(u64, u64)>,
}

impl Store {
    /// Opens the names of this source. None where another process has them, and in a cache that
    /// can't be written or is too small. To be called inside the sandbox, by a thread that may take
    /// its time.
    ///
    /// # Errors
    /// Those of the cache disk.
    pub fn names(self: &Arc<Self>) -> Result<Option<Names>> {
        let Some(budget) = &self.budget else {
            return Ok(None);
        };
        if usable(budget.ledger()?.limit()) / SHARE < 2 * NEED {
            log::info!("cache: it is too small for names; offline there will be none");
            return Ok(None);
        }
        let (dir, _) = place::make_dir(self.dir(), FOLDER)?;
        let before = place::allocated(dir.as_fd(), FILE);
        let Some(db) = open(&dir)? else {
            return Ok(None);
        };
        let names = Names {
            store: Arc::clone(self),
            dir,
            db: RwLock::new(Some(db)),
            counted: Mutex::new((before, 0)),
        };
        names.count(budget)?;
        Ok(Some(names))
    }
}

/// The database, whole; a damaged one is set aside. None where somebody else has it.
fn open(dir: &OwnedFd) -> Result<Option<Database>> {
    for _ in 0..2 {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = File::from(place::open(dir.as_fd(), FILE, flags)?);
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let backend = FileBackend::new(file)?;
            let mut builder = Builder::new();
            let mut db = builder
                .set_cache_size(MEMORY)
                .create_with_backend(backend)?;
            // Each page is held against its checksum.
            match db.check_integrity() {
                Ok(true) => Ok(db),
                Ok(false) => Err(DatabaseError::Storage(redb::StorageError::Corrupted(
                    "it does not check".into(),
                ))),
                Err(error) => Err(error),
            }
        }));
        match opened {
            Ok(Ok(db)) => return Ok(Some(db)),
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => return Ok(None),
            Ok(Err(error)) => set_aside(dir, &error.to_string()),
            Err(_) => set_aside(dir, "it can't be opened"),
        }
    }
    Err(Fail::new(Errno::IO, "open the names"))
}

fn set_aside(dir: &OwnedFd, why: &str) {
    log::warn!("cache: the names of the source are damaged ({why}); they are learnt anew");
    if let Err(errno) = rustix::fs::renameat(dir, FILE, dir, ASIDE) {
        log::warn!("cache: set them aside: {errno}");
    }
}

/// Where a path stands in `names`.
fn key_of(path: &[u8]) -> Vec<u8> {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    let (parent, name) = match slash {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    joined(parent, 0, name)
}

fn joined(path: &[u8], mark: u8, rest: &[u8]) -> Vec<u8> {
    [path, &[mark], rest].concat()
}

/// From the first name in a directory to the last, without the ends.
fn inside(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (joined(path, 0, b""), joined(path, 1, b""))
}

/// The same of all that lies deeper.
fn below(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (joined(path, b'/', b""), joined(path, b'/' + 1, b""))
}

impl Names {
    /// Whether there is anything to be asked.
    pub fn is_there(&self) -> bool {
        self.db.read().is_some()
    }

    /// Does something with the database. What goes wrong is the end of it: set aside, logged, and a
    /// miss.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> std::result::Result<T, redb::Error>,
    ) -> Option<T> {
        let guard = self.db.read();
        let db = guard.as_ref()?;
        let done = catch_unwind(AssertUnwindSafe(|| work(db)));
        drop(guard);
        let why = match done {
            Ok(Ok(value)) => return Some(value),
            // Trouble of the disk may pass, and is no damage.
            Ok(Err(redb::Error::Io(error))) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                self.store.trouble(&Fail::new(errno, "names"));
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it can't be read".to_owned(),
        };
        let damaged = self.db.write().take();
        if damaged.is_some() {
            set_aside(&self.dir, &why);
        }
        // Its own end may find the damage once more.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(damaged)));
        None
    }

    /// What a path was when it was last seen.
    pub fn get(&self, path: &[u8]) -> Option<Record> {
        let key = key_of(path);
        self.with(|db| {
            let Some(table) = table(db, NAMES)? else {
                return Ok(None);
            };
            let value = table.get(key.as_slice())?;
            Ok(value.and_then(|value| Record::decode(&key, value.value())))
        })?
    }

    /// Whether every name in a directory is known.
    pub fn is_listed(&self, path: &[u8]) -> bool {
        self.listed(path).is_some()
    }

    /// Whether a directory of that version was listed already.
    pub fn has_listed(&self, path: &[u8], version: &[u8]) -> bool {
        self.listed(path).is_some_and(|known| known == version)
    }

    /// The version that a directory had when all names in it were seen.
    fn listed(&self, path: &[u8]) -> Option<Vec<u8>> {
        self.with(|db| {
            let Some(table) = table(db, LISTED)? else {
                return Ok(None);
            };
            let value = table.get(path)?;
            Ok(value.and_then(|value| unsealed(path, value.value()).map(<[u8]>::to_vec)))
        })?
    }

    /// The names in a directory behind `after`, at most so many, in the order of their bytes.
    pub fn list(&self, path: &[u8], after: &[u8], most: usize) -> Vec<(Vec<u8>, Record)> {
        let (start, end) = inside(path);
        let from = [&start, after].concat();
        let found = self.with(|db| {
            let mut found = Vec::new();
            let Some(table) = table(db, NAMES)? else {
                return Ok(found);
            };
            for entry in table.range::<&[u8]>(from.as_slice()..end.as_slice())? {
                let (key, value) = entry?;
                let name = key.value().get(start.len()..).unwrap_or_default();
                if name.is_empty() || name == after {
                    continue;
                }
                if let Some(record) = Record::decode(key.value(), value.value()) {
                    found.push((name.to_vec(), record));
                }
                if found.len() >= most {
                    break;
                }
            }
            Ok(found)
        });
        found.unwrap_or_default()
    }

    /// What was answered when somebody asked for that ACL; None when nobody did.
    pub fn acl(&self, path: &[u8], kind: u8) -> Option<Option<Vec<u8>>> {
        let key = joined(path, 0, &[kind]);
        self.with(|db| {
            let Some(table) = table(db, ACLS)? else {
                return Ok(None);
            };
            let value = table.get(key.as_slice())?;
            let value = value.and_then(|value| unsealed(&key, value.value()).map(<[u8]>::to_vec));
            Ok(value.and_then(|value| match value.split_first()? {
                (0, _) => Some(None),
                (_, acl) => Some(Some(acl.to_vec())),
            }))
        })?
    }

    /// Keeps what was seen, as far as there is room: how many changes were not kept.
    pub fn keep(&self, changes: &[Change]) -> usize {
        let mut dropped = 0;
        let mut rest = changes;
        while !rest.is_empty() {
            let mut weight = 0;
            let fits = |change: &&Change| {
                weight += change.weight();
                weight <= BATCH
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, after) = rest.split_at(count);
            rest = after;
            match self.commit(batch) {
                Ok(true) => {}
                Ok(false) => dropped += batch.len(),
                Err(fail) => {
                    self.store.trouble(&fail);
                    dropped += batch.len();
                }
            }
        }
        dropped
    }

    /// False when there is no room.
    fn commit(&self, batch: &[Change]) -> Result<bool> {
        let Some(budget) = &self.store.budget else {
            return Ok(false);
        };
        let (counted, reserved) = *self.counted.lock();
        if counted > usable(budget.ledger()?.limit()) / SHARE {
            return Ok(false);
        }
        if reserved < NEED {
            if self.store.reserve(NEED - reserved, false)? != Room::Reserved {
                return Ok(false);
            }
            self.counted.lock().1 = NEED;
        }
        let inside = budget.enter(OTHER)?;
        let done = self.with(|db| write::write(db, batch));
        self.store.wrote();
        self.count(budget)?;
        drop(inside);
        Ok(done.is_some())
    }

    /// Tells the ledger how large the file is now.
    fn count(&self, budget: &Budget) -> Result<()> {
        let now = place::allocated(self.dir.as_fd(), FILE);
        let mut counted = self.counted.lock();
        let (before, reserved) = *counted;
        let grown = now.saturating_sub(before);
        let used = grown.min(reserved);
        *counted = (now, reserved - used);
        drop(counted);
        match grown {
            0 if now == before => Ok(()),
            0 => budget.removed(OTHER, before - now),
            _ => budget.commit(OTHER, used, grown),
        }
    }

    /// Writes what is left, and gives the store to others.
    pub fn close(&self) {
        let db = self.db.write().take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(db)));
        if let Some(budget) = &self.store.budget {
            let counted = self.count(budget);
            let reserved = std::mem::take(&mut self.counted.lock().1);
            for done in [counted, budget.release(reserved)] {
                if let Err(fail) = done {
                    self.store.trouble(&fail);
                }
            }
        }
    }
}

/// A table that may not have been made yet.
fn table(
    db: &Database,
    of: TableDefinition<'static, Bytes, Bytes>,
) -> std::result::Result<Option<redb::ReadOnlyTable<Bytes, Bytes>>, redb::Error> {
    match db.begin_read()?.open_table(of) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path of a name in a directory.
fn child(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_vec(),
        _ => joined(path, b'/', name),
    }
}
