//! A cache directory seen from outside, beside whoever uses it: what the commands need.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use xxhash_rust::xxh3::xxh3_64;

use crate::observe::Metrics;
use crate::sys::ofd;
use crate::sys::{Errno, Fail, OrFail, Result};

use super::budget::{self, Budget, byte};
use super::count;
use super::identity::Identity;
use super::layout::{self, Name, PIN_AT, RECORD, Record};
use super::options::Share;
use super::place;
use super::shelf::{Files, Found, Shelf, Taken};
use super::store::{place_of, read_state};
use super::trust::{State, Trust};

/// A cache directory, without being one source's user.
#[derive(Debug)]
pub struct CacheDir {
    root: OwnedFd,
    top: OwnedFd,
}

/// How full a cache directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// Bytes that it takes, what is reserved included.
    pub used: u64,
    /// Bytes of that which are reserved and not written yet.
    pub reserved: u64,
    /// The smallest limit of those who use it now.
    pub limit: Option<u64>,
    /// Whether the numbers can be believed; else everything is counted when it is next used.
    pub sure: bool,
    /// The processes that use it now.
    pub processes: Vec<u32>,
    /// Bytes of its file system, and how many of them are free.
    pub disk: (u64, u64),
}

/// One source's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its name in the directory.
    pub name: String,
    /// The source's key; empty when its file is lost.
    pub key: String,
    /// What the source was: lines `name value`.
    pub about: String,
}

/// One entry as its index tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// The path within the source.
    pub path: Vec<u8>,
    /// The version that is stored.
    pub identity: Identity,
    /// Bytes of a block.
    pub block: u32,
    /// Blocks of the file.
    pub blocks: u64,
    /// How many of them are stored, the suspect ones included.
    pub stored: u64,
    /// How many are to be held against their checksums.
    pub suspect: u64,
    /// Bytes on disk, with the index.
    pub allocated: u64,
    /// Never evicted to make room.
    pub pinned: bool,
    /// Somebody has it open.
    pub in_use: bool,
    /// Seconds since 1970.
    pub last_used: u64,
    /// How often it was opened, as far as that is remembered.
    pub uses: u32,
}

/// What holding an entry's blocks against their checksums showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that are right.
    pub right: u64,
    /// Blocks that were not, and are a miss now.
    pub wrong: u64,
    /// Blocks that are not stored.
    pub missing: u64,
}

/// What became of an entry that was to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// It is gone, and that many bytes are free.
    Gone(u64),
    /// It is not found any more; its bytes go when those who read it are done.
    GivenUp,
    /// It is pinned.
    Pinned,
    /// It was being changed.
    Busy,
    /// There is none.
    NotThere,
}

impl From<Taken> for Evicted {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Freed(bytes) => Self::Gone(bytes),
            Taken::Orphaned => Self::GivenUp,
            Taken::Pinned => Self::Pinned,
            Taken::InUse => Self::Busy,
            Taken::Nothing => Self::NotThere,
        }
    }
}

/// What was found out of order in a cache directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Entries that were looked at.
    pub entries: u64,
    /// Files beneath the directory that are no entry, whole or in part; with the store's name.
    pub strangers: Vec<String>,
    /// By how many bytes the ledger was wrong.
    pub miscounted: u64,
    /// Whether it was set right.
    pub repaired: bool,
}

impl CacheDir {
    /// Opens a cache directory that is there.
    ///
    /// # Errors
    /// ENOENT with words when the directory holds no cache of this layout; those of
    /// [`super::Store::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let there = path.symlink_metadata().or_fail("cache directory");
        there.map_err(|fail| fail.because(path.display().to_string()))?;
        let root = place::open_root(path)?;
        let version = format!("v{}", layout::VERSION);
        let top = place::open_dir(root.as_fd(), &version).map_err(|fail| {
            fail.because(format!("{} holds no cache ({version})", path.display()))
        })?;
        Ok(Self { root, top })
    }

    /// Takes part in the ledger without a limit of its own.
    fn budget(&self) -> Result<Budget> {
        Budget::open(
            self.root.as_fd(),
            self.top.as_fd(),
            place_of(self.top.as_fd())?,
            (Share::Bytes(u64::MAX), Share::Bytes(0)),
            (true, 0),
            Arc::new(Metrics::new()),
        )
    }

    /// Does something with a part in the ledger, and gives it back.
    fn with_budget<T>(&self, work: impl FnOnce(&Budget) -> Result<T>) -> Result<T> {
        let budget = self.budget()?;
        let done = work(&budget);
        let synced = rustix::fs::syncfs(&self.top).is_ok();
        let closed = budget.close(synced);
        let done = done?;
        closed.map(|()| done)
    }

    /// How full it is.
    ///
    /// # Errors
    /// Those of reading the ledger; ENOENT when there is none.
    pub fn status(&self) -> Result<CacheStatus> {
        let (ledger, alive) = budget::look(self.top.as_fd())?;
        let disk = rustix::fs::fstatvfs(&self.top).or_fail("fstatvfs")?;
        let limits = alive.iter().map(|slot| slot.limit);
        Ok(CacheStatus {
            used: ledger.used(),
            reserved: ledger.reserved(),
            limit: limits.filter(|&limit| limit != u64::MAX).min(),
            sure: ledger.sure,
            processes: alive.iter().map(|slot| slot.pid).collect(),
            disk: (
                disk.f_blocks.saturating_mul(disk.f_frsize),
                disk.f_bavail.saturating_mul(disk.f_frsize),
            ),
        })
    }

    /// The sources that have a part in it.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn stores(&self) -> Result<Vec<StoreInfo>> {
        let names = count::stores(self.top.as_fd())?.into_iter();
        Ok(names.map(|name| self.info(name)).collect())
    }

    fn info(&self, name: String) -> StoreInfo {
        let text = place::read_small(self.top.as_fd(), &format!("{name}/source"));
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        let (first, about) = text.split_once('\n').unwrap_or((&text, ""));
        StoreInfo {
            key: first.strip_prefix("key ").unwrap_or_default().to_owned(),
            about: about.to_owned(),
            name,
        }
    }

    /// One source's part, by its name.
    ///
    /// # Errors
    /// ENOENT when there is none.
    pub fn store(&self, name: &str) -> Result<StoreView<'_>> {
        let (shelf, _) = Shelf::open(self.top.as_fd(), name, false)?;
        let state = read_state(&shelf);
        let at = place_of(self.top.as_fd())?;
        // As the next one who opens it would see it, unless somebody has it open.
        let used =
            ofd::get(shelf.users.as_fd(), byte(libc::F_WRLCK, super::shelf::USER))?.is_some();
        let state = match state {
            Some(state) if used => state,
            state => State::begin(state.as_ref(), at, u32::MAX),
        };
        Ok(StoreView {
            dir: self,
            shelf,
            state,
        })
    }

    /// Takes entries away that nobody has open, one after another, with one part in the ledger:
    /// `work` is given what does it, for a store's name and a path. `pinned`: even pinned ones.
    ///
    /// # Errors
    /// Those of the file system, and what `work` says.
    pub fn evict(
        &self,
        pinned: bool,
        work: impl FnOnce(&mut dyn FnMut(&str, &[u8]) -> Result<Evicted>) -> Result<()>,
    ) -> Result<()> {
        let mut last: Option<(String, Shelf)> = None;
        self.with_budget(|budget| {
            work(&mut |store, path| {
                let shelf = match last.take() {
                    Some((name, shelf)) if name == store => shelf,
                    _ => Shelf::open(self.top.as_fd(), store, false)?.0,
                };
                let how = (true, false, pinned);
                let taken = shelf.take_away(Name::of(path), budget, how);
                last = Some((store.to_owned(), shelf));
                taken.map(Evicted::from)
            })
        })
    }

    /// Looks for what is out of order, and with `repair` sets it right: removes files that belong
    /// to nothing and counts the ledger again.
    ///
    /// # Errors
    /// Those of the file system; EAGAIN when a folder was in use for long.
    pub fn check(&self, repair: bool) -> Result<CacheReport> {
        let mut report = CacheReport::default();
        let stores = self.stores()?;
        for store in &stores {
            let view = self.store(&store.name)?;
            view.shelf.fans()?.into_iter().try_for_each(|fan| {
                report.entries += view.shelf.names(fan)?.len() as u64;
                let strangers = view.shelf.strangers(fan)?.into_iter();
                let full = |name: String| format!("{}/entries/{name}", store.name);
                report.strangers.extend(strangers.map(full));
                Ok(())
            })?;
        }
        if !repair {
            let (ledger, _) = budget::look(self.top.as_fd())?;
            let counted = count::count_now(self.root.as_fd(), self.top.as_fd())?;
            report.miscounted = ledger.used().abs_diff(counted);
            return Ok(report);
        }
        self.with_budget(|budget| {
            for name in &report.strangers {
                self.remove_stranger(budget, name)?;
            }
            for store in &stores {
                self.store(&store.name)?.shelf.sweep(budget)?;
            }
            let before = budget.ledger()?.used();
            report.repaired = budget.count_all(|| true)?;
            report.miscounted = before.abs_diff(budget.ledger()?.used());
            Ok(())
        })?;
        Ok(report)
    }

    /// Removes a file that is no entry, if it still is none when nobody else makes or takes away
    /// entries.
    fn remove_stranger(&self, budget: &Budget, name: &str) -> Result<()> {
        let parts: Vec<&str> = name.split('/').collect();
        let (Some(store), Some(fan)) = (parts.first(), parts.get(2)) else {
            return Ok(());
        };
        let fan = usize::from_str_radix(fan, 16).unwrap_or(0);
        let shelf = self.store(store)?.shelf;
        budget.alone(fan, || {
            let still = shelf
                .strangers(fan)?
                .iter()
                .any(|other| name.ends_with(other));
            if still {
                let removed = rustix::fs::unlinkat(&self.top, name, AtFlags::empty());
                removed.or_fail("unlinkat")?;
            }
            Ok(())
        })
    }
}

/// One source's part of a cache directory, seen from outside.
#[derive(Debug)]
pub struct StoreView<'a> {
    dir: &'a CacheDir,
    shelf: Shelf,
    state: State,
}

impl StoreView<'_> {
    /// Calls `each` for every entry, in no order, until it says false. What can't be read is left
    /// out.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn entries(&self, mut each: impl FnMut(EntryInfo) -> bool) -> Result<()> {
        for fan in self.shelf.fans()? {
            for name in self.shelf.names(fan)? {
                if let Some(info) = self.info(name)?
                    && !each(info)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The entry of the file at that path within the source.
    ///
    /// # Errors
    /// Those of reading its index.
    pub fn entry(&self, path: &[u8]) -> Result<Option<EntryInfo>> {
        let info = self.info(Name::of(path))?;
        Ok(info.filter(|info| info.path == path))
    }

    fn info(&self, name: Name) -> Result<Option<EntryInfo>> {
        let Some(header) = self.shelf.header(name)? else {
            return Ok(None);
        };
        let mut info = EntryInfo {
            identity: header.identity,
            block: header.block,
            blocks: header.blocks(),
            stored: 0,
            suspect: 0,
            allocated: self.shelf.allocated(name),
            pinned: header.pinned,
            in_use: self.shelf.is_in_use(name),
            last_used: header.used.last,
            uses: header.used.uses,
            path: header.path.clone(),
        };
        let index = match self.shelf.index(name, OFlags::RDONLY) {
            Err(fail) if fail.errno == Errno::NOENT => return Ok(None),
            opened => opened?,
        };
        let mut at = header.records_at();
        let mut records = vec![0; 64 << 10];
        let mut block = 0;
        while block < info.blocks {
            let read = place::read_all(index.as_fd(), &mut records, at)?;
            for bytes in records[..read].chunks_exact(RECORD as usize) {
                match Record::decode(bytes, header.generation, block) {
                    Some(record) if self.state.trust(record.epoch) == Trust::Suspect => {
                        info.stored += 1;
                        info.suspect += 1;
                    }
                    Some(record) if self.state.trust(record.epoch) == Trust::Trusted => {
                        info.stored += 1;
                    }
                    _ => {}
                }
                block += 1;
            }
            if read < records.len() {
                break;
            }
            at += read as u64;
        }
        Ok(Some(info))
    }

    /// Holds every block of an entry against its checksum; wrong ones are a miss from then on.
    /// None when there is no such entry.
    ///
    /// # Errors
    /// Those of reading and writing its files.
    pub fn verify(&self, path: &[u8]) -> Result<Option<Verified>> {
        let Found::Entry(files) = self.shelf.open_entry(Name::of(path), path)? else {
            return Ok(None);
        };
        let mut verified = Verified::default();
        let mut buffer = vec![0; files.header.block as usize];
        for block in 0..files.header.blocks() {
            match verify_block(&files, block, &mut buffer)? {
                Some(true) => verified.right += 1,
                Some(false) => verified.wrong += 1,
                None => verified.missing += 1,
            }
        }
        Ok(Some(verified))
    }

    /// Takes an entry away. One that is in use is not found any more from then on. `pinned`: even
    /// when it is pinned.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn evict(&self, path: &[u8], pinned: bool) -> Result<Evicted> {
        let name = Name::of(path);
        self.dir.with_budget(|budget| {
            let taken = self.shelf.take_away(name, budget, (true, true, pinned))?;
            Ok(taken.into())
        })
    }

    /// Keeps an entry from being evicted, or no more. False when there is none.
    ///
    /// # Errors
    /// Those of writing its index.
    pub fn pin(&self, path: &[u8], pinned: bool) -> Result<bool> {
        let name = Name::of(path);
        if self
            .shelf
            .header(name)?
            .is_none_or(|header| header.path != path)
        {
            return Ok(false);
        }
        let index = self.shelf.index(name, OFlags::RDWR)?;
        place::write_all(index.as_fd(), &[u8::from(pinned)], PIN_AT)?;
        Ok(true)
    }
}

/// Whether a block is right; None when it is not stored. A wrong one is a miss afterwards.
fn verify_block(files: &Files, block: u64, buffer: &mut [u8]) -> Result<Option<bool>> {
    let header = &files.header;
    let at = header.records_at() + block * RECORD;
    let read = || -> Result<Option<Record>> {
        let mut bytes = [0; RECORD as usize];
        let read = place::read_all(files.index.as_fd(), &mut bytes, at)?;
        let bytes = &bytes[..read];
        Ok(Record::decode(bytes, header.generation, block))
    };
    let Some(record) = read()? else {
        return Ok(None);
    };
    let start = block * u64::from(header.block);
    let len = (header.identity.size - start).min(u64::from(header.block)) as usize;
    let Some(buffer) = buffer.get_mut(..len) else {
        return Err(Fail::new(Errno::INVAL, "verify"));
    };
    let read_bytes = place::read_all(files.data.as_fd(), buffer, start);
    if read_bytes.is_ok_and(|read| read == len) && xxh3_64(buffer) == record.sum {
        return Ok(Some(true));
    }
    super::shelf::alone_with(files.index.as_fd(), at..at + RECORD, || {
        // Stored again meanwhile, it is right again.
        if read()? == Some(record) {
            place::write_all(files.index.as_fd(), &[0; RECORD as usize], at)?;
        }
        Ok(())
    })?;
    Ok(Some(false))
}
