//! The entries of one store as files: found, made, taken away.
//!
//! Whoever has an entry open holds a shared lock on a byte of its *data*, by the description that
//! windows and the kernel hold, too: so it lasts as long as any of them. Nobody unlinks a data
//! file without that lock alone. Names are changed by one at a time, under a lock of the name.
//!
//! An opener opens data, locks it, opens the index, and makes sure that the data still has its
//! name. Taking away begins with the index, making ends with it: so the two are of one entry.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, fstat, renameat, statat, unlinkat};

use crate::sys::ofd;
use crate::sys::{Errno, Fail, OrFail, Result};

use super::budget::{Budget, byte};
use super::layout::{FIXED, Header, MAX_PATH, Name};
use super::ledger::{self, OTHER};
use super::place;

/// The byte of a data file that its users hold.
const IN_USE: u64 = 1 << 62;
/// Bytes of the file `users`: one that all users of the store hold, one for who changes `state`,
/// and one a name.
pub(super) const USER: u64 = 0;
pub(super) const STATE: u64 = 1;
const NAMES_FROM: u64 = 1 << 40;

/// How long to wait for another process that changes the same name.
const PATIENCE: Duration = Duration::from_secs(1);

const SHARDS: usize = 64;

/// A store's folders.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) dir: OwnedFd,
    pub(super) entries: OwnedFd,
    orphans: OwnedFd,
    pub(super) users: OwnedFd,
    /// Held with the lock of a name, which does not exclude threads of this process. Taken before
    /// the budget's.
    shards: [Mutex<()>; SHARDS],
    /// Whether anything can be written.
    pub(super) writable: bool,
}

/// The open files of an entry.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) header: Header,
    pub(super) index: OwnedFd,
    /// For reading; holds the lock of those who use it.
    pub(super) data: OwnedFd,
    /// For writing; none where the cache is read-only.
    pub(super) writer: Option<OwnedFd>,
}

/// What stands under a name.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// Something that is no entry of that file: torn, foreign, of another path.
    Broken,
    Entry(Box<Files>),
}

/// What became of something that was to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes are free now.
    Freed(u64),
    /// Somebody uses it, or changes it: it was left as it is.
    InUse,
    /// Somebody uses it, and it was given up: nobody finds it any more.
    Orphaned,
    Pinned,
    Nothing,
}

fn index_name(name: Name) -> String {
    format!("{:02x}/{}.index", name.fan(), name.hex())
}

fn data_name(name: Name) -> String {
    format!("{:02x}/{}.data", name.fan(), name.hex())
}

impl Shelf {
    /// Opens the folders of a store beneath `v1`, making them where that can be done: whether the
    /// store is new, too.
    pub(super) fn open(top: BorrowedFd<'_>, store: &str, make: bool) -> Result<(Self, bool)> {
        let open = |dir: BorrowedFd<'_>, name: &str| match make {
            true => place::make_dir(dir, name),
            false => place::open_dir(dir, name).map(|fd| (fd, false)),
        };
        let (dir, new) = open(top, store)?;
        let (entries, _) = open(dir.as_fd(), "entries")?;
        let (orphans, _) = open(dir.as_fd(), "orphans")?;
        let (users, writable) = match place::open(
            dir.as_fd(),
            "users",
            OFlags::RDWR
                | if make {
                    OFlags::CREATE
                } else {
                    OFlags::empty()
                },
        ) {
            Err(fail) if read_only(&fail) => {
                (place::open(dir.as_fd(), "users", OFlags::RDONLY)?, false)
            }
            opened => (opened?, true),
        };
        let shelf = Self {
            dir,
            entries,
            orphans,
            users,
            shards: std::array::from_fn(|_| Mutex::new(())),
            writable,
        };
        Ok((shelf, new))
    }

    /// The same, of which nothing is changed.
    pub(super) fn read_only(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }

    /// Does something while nobody else changes what stands under `name`. None when that took too
    /// long, or, unless one is to `wait`, when somebody does just now.
    fn alone<T>(
        &self,
        name: Name,
        wait: bool,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        let shard = self.shards.get(name.fan() % SHARDS);
        let _shard = match (shard, wait) {
            (Some(shard), true) => shard.try_lock_for(PATIENCE),
            (Some(shard), false) => shard.try_lock(),
            (None, _) => None,
        };
        if _shard.is_none() {
            return Ok(None);
        }
        let at = NAMES_FROM + ((name.0 as u64) >> 24);
        let now = Instant::now();
        let deadline = if wait { now + PATIENCE } else { now };
        match ofd::set_by(self.users.as_fd(), byte(libc::F_WRLCK, at), deadline) {
            Err(fail) if fail.errno == Errno::AGAIN => return Ok(None),
            done => done?,
        }
        let done = work();
        ofd::set(self.users.as_fd(), byte(libc::F_UNLCK, at))?;
        done.map(Some)
    }

    /// Opens what stands under the name of `path`, to be used.
    pub(super) fn open_entry(&self, name: Name, path: &[u8]) -> Result<Found> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_open(name, Some(path)) {
                Err(fail) if fail.errno == Errno::AGAIN && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(300));
                }
                found => return found,
            }
        }
    }

    /// EAGAIN when it is being taken away.
    pub(super) fn try_open(&self, name: Name, path: Option<&[u8]>) -> Result<Found> {
        let (index_name, data_name) = (index_name(name), data_name(name));
        let again = || Err(Fail::new(Errno::AGAIN, "open the entry"));
        let data = match place::open(self.entries.as_fd(), &data_name, OFlags::RDONLY) {
            Err(fail) if fail.errno == Errno::NOENT => {
                // An index without data: a machine crashed.
                let index = statat(&self.entries, &index_name, AtFlags::SYMLINK_NOFOLLOW);
                return Ok(if index.is_ok() {
                    Found::Broken
                } else {
                    Found::Nothing
                });
            }
            opened => opened?,
        };
        ofd::set(data.as_fd(), byte(libc::F_RDLCK, IN_USE))?;
        let stat = fstat(&data).or_fail("fstat")?;
        if stat.st_nlink == 0 {
            return again();
        }
        let index = match self.open_writable(&index_name) {
            Err(fail) if fail.errno == Errno::NOENT => {
                return if self.has_name(&data_name, stat.st_ino) {
                    Ok(Found::Broken)
                } else {
                    again()
                };
            }
            opened => opened?,
        };
        let header = read_header(index.as_fd())?;
        if !self.has_name(&data_name, stat.st_ino) {
            return again();
        }
        let Some(header) = header.filter(|header| {
            Name::of(&header.path) == name
                && path.is_none_or(|path| header.path == path)
                && header.identity.size == u64::try_from(stat.st_size).unwrap_or(0)
        }) else {
            return Ok(Found::Broken);
        };
        let writer = match self.writable {
            true => {
                let writer = place::open(self.entries.as_fd(), &data_name, OFlags::RDWR)?;
                if fstat(&writer).or_fail("fstat")?.st_ino != stat.st_ino {
                    return again();
                }
                Some(writer)
            }
            false => None,
        };
        Ok(Found::Entry(Box::new(Files {
            header,
            index,
            data,
            writer,
        })))
    }

    fn open_writable(&self, name: &str) -> Result<OwnedFd> {
        let flags = if self.writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        place::open(self.entries.as_fd(), name, flags)
    }

    fn has_name(&self, name: &str, ino: u64) -> bool {
        let stat = statat(&self.entries, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| stat.st_ino == ino)
    }

    /// Whether the data of an entry still stand under its name. If not, it was given up, and what is
    /// written there is counted nowhere.
    pub(super) fn still_has(&self, name: Name, data: BorrowedFd<'_>) -> bool {
        fstat(data).is_ok_and(|stat| self.has_name(&data_name(name), stat.st_ino))
    }

    /// The header of an entry that is not opened for it. None for what is none.
    pub(super) fn header(&self, name: Name) -> Result<Option<Header>> {
        match place::open(self.entries.as_fd(), &index_name(name), OFlags::RDONLY) {
            Err(fail) if fail.errno == Errno::NOENT => Ok(None),
            opened => read_header(opened?.as_fd()),
        }
    }

    /// Makes the entry of that header, in place of whatever has its name, unless meanwhile another
    /// made the same. `reserved` bytes are committed or released, whatever comes.
    pub(super) fn make(
        &self,
        name: Name,
        header: &Header,
        budget: &Budget,
        reserved: u64,
    ) -> Result<Option<Files>> {
        let mut settled = false;
        let made = self.alone(name, true, || {
            match self.try_open(name, Some(&header.path)) {
                Ok(Found::Entry(files)) if files.header.identity == header.identity => {
                    return Ok(*files);
                }
                Ok(Found::Nothing) => {}
                Err(fail) if fail.errno != Errno::AGAIN => return Err(fail),
                _ => {
                    self.clear(name, budget, true)?;
                }
            }
            let _inside = budget.enter(name.fan())?;
            let mut taken = 0;
            let done = self.make_files(name, header, &mut taken);
            // Inside the folder still: who counts it finds what the numbers say.
            settled = true;
            budget.commit(name.fan(), reserved, taken)?;
            done
        });
        if !settled {
            budget.release(reserved)?;
        }
        made
    }

    fn make_files(&self, name: Name, header: &Header, taken: &mut u64) -> Result<Files> {
        let fan = format!("{:02x}", name.fan());
        let (dir, made) = place::make_dir(self.entries.as_fd(), &fan)?;
        if made {
            *taken += 4096;
        }
        let salt = header.generation;
        let temporary = |what: &str| format!(".{}.{salt:016x}.{what}", name.hex());
        let (index_tmp, data_tmp) = (temporary("index"), temporary("data"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let done = (|| {
            let writer = place::open(dir.as_fd(), &data_tmp, flags)?;
            rustix::fs::ftruncate(&writer, header.identity.size).or_fail("ftruncate")?;
            let data = place::open(dir.as_fd(), &data_tmp, OFlags::RDONLY)?;
            ofd::set(data.as_fd(), byte(libc::F_RDLCK, IN_USE))?;
            let index = place::open(dir.as_fd(), &index_tmp, flags)?;
            place::write_all(index.as_fd(), &header.encode(), 0)?;
            rustix::fs::ftruncate(&index, header.index_len()).or_fail("ftruncate")?;
            for (from, what) in [(&data_tmp, "data"), (&index_tmp, "index")] {
                let to = format!("{}.{what}", name.hex());
                renameat(&dir, from, &dir, &to).or_fail("renameat")?;
            }
            Ok(Files {
                header: header.clone(),
                index,
                data,
                writer: Some(writer),
            })
        })();
        if done.is_ok() {
            *taken += ledger::entry_cost(header.index_len(), header.blocks());
            return done;
        }
        for name in [&index_tmp, &data_tmp] {
            // It may never have been there; the next count removes what stays.
            let _ = unlinkat(&dir, name, AtFlags::empty());
        }
        done
    }

    /// Takes away what stands under a name, unless it is pinned and `pinned` is false. What is in
    /// use is left as it is, or with `orphan` given up.
    pub(super) fn take_away(
        &self,
        name: Name,
        budget: &Budget,
        (wait, orphan, pinned): (bool, bool, bool),
    ) -> Result<Taken> {
        let done = self.alone(name, wait, || {
            if !pinned && self.header(name)?.is_some_and(|header| header.pinned) {
                return Ok(Taken::Pinned);
            }
            self.clear(name, budget, orphan)
        })?;
        Ok(done.unwrap_or(Taken::InUse))
    }

    /// To be called by who is alone with the name.
    fn clear(&self, name: Name, budget: &Budget, orphan: bool) -> Result<Taken> {
        let (index, data) = (index_name(name), data_name(name));
        let entries = self.entries.as_fd();
        let _inside = budget.enter(name.fan())?;
        let bytes = place::allocated(entries, &index) + place::allocated(entries, &data);
        match place::open(entries, &data, OFlags::RDWR) {
            Ok(fd) => match take_unused(fd.as_fd()) {
                Ok(()) => {}
                Err(fail) if fail.errno == Errno::AGAIN => {
                    return match orphan {
                        true => self.orphan(name, budget, bytes),
                        false => Ok(Taken::InUse),
                    };
                }
                Err(fail) => return Err(fail),
            },
            Err(fail) if fail.errno == Errno::NOENT => {
                return self.unlink(&[&index], name, budget, bytes);
            }
            Err(fail) => return Err(fail),
        }
        self.unlink(&[&index, &data], name, budget, bytes)
    }

    fn unlink(&self, names: &[&str], name: Name, budget: &Budget, bytes: u64) -> Result<Taken> {
        let mut gone = 0;
        for file in names {
            match unlinkat(&self.entries, *file, AtFlags::empty()) {
                Ok(()) => gone += 1,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).or_fail("unlinkat"),
            }
        }
        if gone == 0 {
            return Ok(Taken::Nothing);
        }
        // Its share of the folder stays counted, as the folder itself does not shrink.
        budget.removed(name.fan(), bytes)?;
        Ok(Taken::Freed(bytes))
    }

    fn orphan(&self, name: Name, budget: &Budget, bytes: u64) -> Result<Taken> {
        let _inside = budget.enter(OTHER)?;
        // Counted in both folders for a moment: who is killed here leaves too much counted.
        budget.commit(OTHER, 0, bytes)?;
        let salt = fastrand::u64(..);
        for (from, what) in [(index_name(name), "index"), (data_name(name), "data")] {
            let to = format!("{}.{salt:016x}.{what}", name.hex());
            match renameat(&self.entries, &from, &self.orphans, &to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).or_fail("renameat"),
            }
        }
        budget.removed(name.fan(), bytes)?;
        Ok(Taken::Orphaned)
    }

    /// Removes the orphans that nobody uses any more; how many are left.
    pub(super) fn sweep(&self, budget: &Budget) -> Result<usize> {
        let (mut left, mut any) = (0, false);
        for (name, _) in place::list(self.orphans.as_fd())? {
            let Some(stem) = name.strip_suffix(".data") else {
                continue;
            };
            let _inside = budget.enter(OTHER)?;
            let orphans = self.orphans.as_fd();
            let fd = match place::open(orphans, &name, OFlags::RDWR) {
                Err(fail) if fail.errno == Errno::NOENT => continue,
                opened => opened?,
            };
            match take_unused(fd.as_fd()) {
                Err(fail) if fail.errno == Errno::AGAIN => {
                    left += 1;
                    continue;
                }
                done => done?,
            }
            let index = format!("{stem}.index");
            let bytes = place::allocated(orphans, &index) + place::allocated(orphans, &name);
            let mut gone = false;
            for name in [&index, &name] {
                match unlinkat(orphans, name, AtFlags::empty()) {
                    Ok(()) => gone = true,
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno).or_fail("unlinkat"),
                }
            }
            if gone {
                // Who used it may have written there after it was counted, so that it is not
                // known what of it the numbers have: it stays counted until all there is.
                budget.doubt(OTHER, bytes);
                any = true;
            }
        }
        if any && !budget.count(OTHER)? {
            budget.owe(OTHER, 0);
        }
        Ok(left)
    }

    /// The folders of entries that there are.
    pub(super) fn fans(&self) -> Result<Vec<usize>> {
        let names = place::list(self.entries.as_fd())?.into_iter();
        let two = names.filter(|(name, _)| name.len() == 2);
        Ok(two
            .filter_map(|(name, _)| usize::from_str_radix(&name, 16).ok())
            .collect())
    }

    /// The entries in a folder, by their indexes.
    pub(super) fn names(&self, fan: usize) -> Result<Vec<Name>> {
        let dir = match place::open_dir(self.entries.as_fd(), &format!("{fan:02x}")) {
            Err(fail) if fail.errno == Errno::NOENT => return Ok(Vec::new()),
            opened => opened?,
        };
        let names = place::list(dir.as_fd())?.into_iter();
        let names =
            names.filter_map(|(name, _)| Name::from_hex(name.strip_suffix(".index")?.as_bytes()));
        Ok(names.filter(|name| name.fan() == fan).collect())
    }

    /// The names in a folder that make no entry: data without an index, and what nobody knows.
    pub(super) fn strangers(&self, fan: usize) -> Result<Vec<String>> {
        let fan = format!("{fan:02x}");
        let dir = place::open_dir(self.entries.as_fd(), &fan)?;
        let names = place::list(dir.as_fd())?;
        let has = |name: &str| names.iter().any(|(other, _)| other == name);
        let strange = names.iter().filter(|(name, _)| {
            let (stem, partner) = match name.rsplit_once('.') {
                Some((stem, "index")) => (stem, format!("{stem}.data")),
                Some((stem, "data")) => (stem, format!("{stem}.index")),
                _ => return true,
            };
            Name::from_hex(stem.as_bytes()).is_none() || !has(&partner)
        });
        Ok(strange.map(|(name, _)| format!("{fan}/{name}")).collect())
    }

    /// How much an entry takes on disk.
    pub(super) fn allocated(&self, name: Name) -> u64 {
        let entries = self.entries.as_fd();
        place::allocated(entries, &index_name(name)) + place::allocated(entries, &data_name(name))
    }

    /// Whether somebody has it open.
    pub(super) fn is_in_use(&self, name: Name) -> bool {
        let Ok(fd) = place::open(self.entries.as_fd(), &data_name(name), OFlags::RDONLY) else {
            return false;
        };
        // Only a reader's lock can be asked for by who may only read: so ask who stands in the
        // way of a writer's.
        !matches!(ofd::get(fd.as_fd(), byte(libc::F_WRLCK, IN_USE)), Ok(None))
    }

    /// Opens an index to read its records, or to change what stands outside its checksum.
    pub(super) fn index(&self, name: Name, flags: OFlags) -> Result<OwnedFd> {
        place::open(self.entries.as_fd(), &index_name(name), flags)
    }
}

/// Does something while no other process changes those bytes of an index.
pub(super) fn alone_with<T>(
    index: BorrowedFd<'_>,
    bytes: std::ops::Range<u64>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let lock = |kind| ofd::Lock {
        kind,
        start: bytes.start,
        end: bytes.end - 1,
        pid: 0,
    };
    ofd::set_by(index, lock(libc::F_WRLCK), Instant::now() + PATIENCE)?;
    let done = work();
    let unlocked = ofd::set(index, lock(libc::F_UNLCK));
    let done = done?;
    unlocked.map(|()| done)
}

/// Takes data for itself that nobody uses, for as long as the description lives.
///
/// # Errors
/// EAGAIN when somebody uses them.
pub(super) fn take_unused(data: BorrowedFd<'_>) -> Result<()> {
    ofd::set(data, byte(libc::F_WRLCK, IN_USE))
}

/// Whether a cache that fails like this can still be read.
pub(super) fn read_only(fail: &Fail) -> bool {
    matches!(fail.errno, Errno::ROFS | Errno::ACCESS | Errno::PERM)
}

fn read_header(index: BorrowedFd<'_>) -> Result<Option<Header>> {
    let mut bytes = [0; FIXED + MAX_PATH];
    let read = place::read_all(index, &mut bytes, 0)?;
    Ok(bytes.get(..read).and_then(Header::decode))
}
