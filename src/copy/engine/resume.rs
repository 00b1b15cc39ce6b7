//! Into a part that is left behind when the copy is interrupted, and gone on from by the next one.
//!
//! The part and its journal have hidden names beside the destination, made of its name, so that who
//! comes next finds them. The part is locked by the one who works at it. It is believed to be what
//! the journal says only where its bytes have the hash that was recorded; everything else in it is
//! cleared.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    Advice, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, Stat, fadvise,
    fallocate, fchmod, flock, fstat, ftruncate, openat, statat, unlinkat,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::course::{Ground, fill};
use super::journal::{self, Identity, MOST_RECORDS, Record};
use super::{Complete, Order, whole};
use crate::copy::extents::cut;
use crate::copy::leftovers::{PART, journal_of, unlink};
use crate::copy::options::Method;
use crate::copy::progress::Progress;
use crate::copy::publish::Temporary;
use crate::copy::resolve::{Source, Target, same_file};
use crate::sys::creds::acting_uid;
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};

/// A smaller file is copied again rather than gone on with.
const LEAST_SIZE: u64 = 4 << 20;
/// Bytes of a recorded range at least, unless the copy ends; more in files of more than 64 GiB, so
/// that a journal has no more records than that.
const LEAST_RECORD: u64 = 4 << 20;
const RECORDS: u64 = 16_384;
/// Written ranges that wait for their neighbours. A sparse file may have more of them.
const MOST_PENDING: usize = 1024;
/// Bytes read at a time.
const BLOCK: usize = 1 << 20;
/// Bytes of one fallocate.
const PUNCH: u64 = 1 << 30;
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Whether a file is large enough to be gone on with.
pub(super) fn is_worth_it(source: &Stat) -> bool {
    u64::try_from(source.st_size).is_ok_and(|size| size >= LEAST_SIZE)
}

/// Copies, from where an interrupted copy of the same source to the same name has come to.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<Complete> {
    let directory = target.directory.as_fd();
    let Some(part) = Part::open(target, order)? else {
        return Ok(Complete {
            temporary: whole::copy(source, target, order)?,
            journal: None,
            parts: false,
        });
    };
    let (name, journal) = (part.name.clone(), journal_of(&part.name));
    if let Err(fail) = fill(source, &part, order) {
        part.record_pending();
        if !part.is_of_use(&fail) {
            unlink(directory, &journal);
            unlink(directory, &name);
        }
        return Err(fail);
    }
    Ok(Complete {
        temporary: Temporary::adopt(part.file, name),
        journal: Some(journal),
        parts: false,
    })
}

/// One name for each destination, whatever its length.
pub(super) fn part_name(destination: &OsStr) -> OsString {
    format!("{PART}{:032x}", xxh3_128(destination.as_bytes())).into()
}

struct Part<'a> {
    file: OwnedFd,
    name: OsString,
    journal: OwnedFd,
    progress: &'a Progress,
    /// It is to leave nothing in the page cache.
    direct: bool,
    /// Hash of the destination's name.
    of_name: u128,
    /// All bytes have been written: an error of reading is one of reading the copy.
    complete: AtomicBool,
    /// A leaf in the order of locks; not held while anything is read or written.
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    identity: Option<Identity>,
    /// Bytes that make a record.
    unit: u64,
    /// Written and not recorded, in order, none touching the next.
    pending: Vec<Range<u64>>,
    records: usize,
}

impl<'a> Part<'a> {
    /// Opens or makes the part of a destination, and locks it. `None` when none can be had here:
    /// somebody else's file has its name, or there are no locks.
    ///
    /// # Errors
    /// EBUSY when another copy is at it.
    fn open(target: &Target, order: &Order<'a>) -> Result<Option<Self>> {
        let progress = order.progress;
        let directory = target.directory.as_fd();
        let name = part_name(&target.name);
        loop {
            progress.check()?;
            let Some(file) = own(directory, &name)? else {
                return Ok(None);
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(Fail::new(Errno::BUSY, "copy")
                        .because("another resumed copy to this name is under way"));
                }
                Err(_) => {
                    unlink(directory, &name);
                    return Ok(None);
                }
            }
            if !is_named(directory, &name, file.as_fd())? {
                continue;
            }
            let Some(journal) = own(directory, &journal_of(&name))? else {
                unlink(directory, &name);
                return Ok(None);
            };
            return Ok(Some(Self {
                file,
                name,
                journal,
                progress,
                direct: order.options.direct,
                of_name: xxh3_128(target.name.as_bytes()),
                complete: AtomicBool::new(false),
                ledger: Mutex::default(),
            }));
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "compared bit by bit"
    )]
    fn identity(&self, source: &Stat) -> Result<Identity> {
        let own = fstat(&self.file).or_fail("fstat")?;
        Ok(Identity([
            source.st_ino as u64,
            source.st_size as u64,
            source.st_mtime as u64,
            source.st_mtime_nsec as u64,
            source.st_ctime as u64,
            source.st_ctime_nsec as u64,
            own.st_ino as u64,
            self.of_name as u64,
            (self.of_name >> 64) as u64,
            0,
        ]))
    }

    /// The recorded ranges whose bytes are what was recorded, joined.
    fn verified(&self, records: Vec<Record>, size: u64) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        for Record { range, hash } in records {
            let sound = range.start < range.end && range.end <= size;
            if sound && self.hash(&range, true)? == Some(hash) {
                insert(&mut found, range);
            }
            // All of it, for the kernel reads ahead of us. That it can't be advised is no error.
            if self.direct {
                let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
            }
        }
        Ok(found)
    }

    /// `None` where the file ends before the range does, or can't be read.
    fn hash(&self, range: &Range<u64>, may_stop: bool) -> Result<Option<u64>> {
        let mut memory = Aligned::default();
        let block = memory.room(BLOCK)?;
        let mut hash = Xxh3::new();
        let mut at = range.start;
        while at < range.end {
            if may_stop {
                self.progress.check()?;
            }
            let left = usize::try_from(range.end - at).unwrap_or(BLOCK).min(BLOCK);
            match rustix::io::pread(&self.file, &mut block[..left], at) {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    hash.update(&block[..count]);
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(hash.digest()))
    }

    /// Leaves zeros wherever nothing is verified, and answers what is left of what is.
    fn clear_the_rest(&self, mut kept: Vec<Range<u64>>) -> Result<Vec<Range<u64>>> {
        let own = fstat(&self.file).or_fail("fstat")?;
        let end = u64::try_from(own.st_size).unwrap_or(0);
        let mut at = 0;
        for range in &kept {
            if !self.punch(at..range.start)? {
                // Then only what is there from the beginning is free of what is not known.
                kept.truncate(usize::from(kept[0].start == 0));
                let end = kept.first().map_or(0, |first| first.end);
                ftruncate(&self.file, end).or_fail("ftruncate")?;
                return Ok(kept);
            }
            at = range.end;
        }
        if at < end {
            ftruncate(&self.file, at).or_fail("ftruncate")?;
        }
        Ok(kept)
    }

    /// False where the file system can't.
    fn punch(&self, hole: Range<u64>) -> Result<bool> {
        for part in cut(hole, PUNCH) {
            self.progress.check()?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, part.start, part.end - part.start) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {
                    return Ok(false);
                }
                Err(errno) => return Err(errno).or_fail("fallocate"),
            }
        }
        Ok(true)
    }

    /// Notes a range in the journal. That this can't be done is no error of the copy's.
    fn record(&self, range: Range<u64>) {
        let Ok(Some(hash)) = self.hash(&range, false) else {
            return;
        };
        let (identity, number) = {
            let mut ledger = self.ledger.lock();
            let Some(identity) = ledger.identity.filter(|_| ledger.records < MOST_RECORDS) else {
                return;
            };
            ledger.records += 1;
            (identity, ledger.records - 1)
        };
        let record = Record { range, hash };
        if let Err(fail) = journal::put(self.journal.as_fd(), &identity, number, &record) {
            log::debug!("the journal of a copy: {fail}");
            // What would follow could not be found behind a gap.
            self.ledger.lock().identity = None;
        }
    }

    /// The copy ends here: what waited for its neighbours is recorded without them.
    fn record_pending(&self) {
        let pending = std::mem::take(&mut self.ledger.lock().pending);
        pending.into_iter().for_each(|range| self.record(range));
    }

    /// Whether a failed copy is to be gone on with. A full disk is to be free again; of a source
    /// that changes, and of a copy that is read back wrong, nothing can be used.
    fn is_of_use(&self, fail: &Fail) -> bool {
        let never = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::FBIG,
            Errno::BUSY,
            Errno::ROFS,
        ];
        let misread = fail.errno == Errno::IO && self.complete.load(Ordering::Relaxed);
        let any = self.ledger.lock().records > 0;
        any && !misread && !never.contains(&fail.errno)
    }
}

impl Ground for Part<'_> {
    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn begin(&self, source: &Stat) -> Result<Vec<Range<u64>>> {
        let identity = self.identity(source)?;
        let size = u64::try_from(source.st_size).unwrap_or(0);
        let mut ledger = Ledger {
            identity: Some(identity),
            unit: LEAST_RECORD.max(size / RECORDS),
            ..Ledger::default()
        };
        let already = match journal::read(self.journal.as_fd(), &identity)? {
            Some(records) => {
                ledger.records = records.len();
                // Also for who is stopped while he checks them: they are there all the same.
                self.ledger.lock().records = records.len();
                let verified = self.verified(records, size)?;
                self.clear_the_rest(verified)?
            }
            None => {
                ftruncate(&self.file, 0).or_fail("ftruncate")?;
                journal::begin(self.journal.as_fd(), &identity)?;
                Vec::new()
            }
        };
        *self.ledger.lock() = ledger;
        Ok(already)
    }

    fn listens(&self) -> bool {
        true
    }

    fn written(&self, range: Range<u64>) -> Result<()> {
        // What is shared is there in no time again, and to read it for its hash would take long.
        if self.progress.method() == Some(Method::Reflink) {
            return Ok(());
        }
        let due: Vec<_> = {
            let mut ledger = self.ledger.lock();
            insert(&mut ledger.pending, range);
            let least = match ledger.pending.len() > MOST_PENDING {
                true => 0,
                false => ledger.unit,
            };
            let long = |run: &mut Range<u64>| run.end - run.start >= least;
            ledger.pending.extract_if(.., long).collect()
        };
        due.into_iter().for_each(|run| self.record(run));
        Ok(())
    }

    fn complete(&self, _source: &Stat) -> Result<()> {
        self.complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn start_over(&self) -> Result<()> {
        self.complete.store(false, Ordering::Relaxed);
        // The journal is of another state of the source, and so begun anew with the next attempt.
        ftruncate(&self.file, 0).or_fail("ftruncate")
    }
}

/// Adds a range to ordered ones, joined with those that it touches.
fn insert(ranges: &mut Vec<Range<u64>>, mut new: Range<u64>) {
    let first = ranges.partition_point(|range| range.end < new.start);
    let last = ranges.partition_point(|range| range.start <= new.end);
    if let Some(touched) = ranges
        .get(first..last)
        .filter(|touched| !touched.is_empty())
    {
        new.start = new.start.min(touched[0].start);
        new.end = new.end.max(touched[touched.len() - 1].end);
    }
    ranges.splice(first..last, [new]);
}

/// Opens, or makes, a file of ours alone. What has its name and is not that is removed; `None` when
/// that is not allowed.
fn own(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = flags | OFlags::NOCTTY | OFlags::CLOEXEC;
    for _ in 0..2 {
        match openat(directory, name, flags, PRIVATE) {
            Ok(file) if is_own(&fstat(&file).or_fail("fstat")?) => {
                // One that was just about to be published has the mode of its source.
                fchmod(&file, PRIVATE).or_fail("fchmod")?;
                return Ok(Some(file));
            }
            Ok(_) | Err(Errno::LOOP | Errno::ACCESS | Errno::ISDIR | Errno::NXIO | Errno::PERM) => {
            }
            Err(errno) => return Err(Fail::new(errno, "open").because("a temporary file")),
        }
        if unlinkat(directory, name, AtFlags::empty()).is_err() {
            break;
        }
    }
    Ok(None)
}

/// A regular file of the caller's that nobody else can write to, by any name.
fn is_own(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == acting_uid()
        && stat.st_nlink == 1
        && stat.st_mode & 0o022 == 0
}

/// Whether the name is still that of the file: a copy that was done has taken it elsewhere.
fn is_named(directory: BorrowedFd<'_>, name: &OsStr, file: BorrowedFd<'_>) -> Result<bool> {
    let own = fstat(file).or_fail("fstat")?;
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok(same_file(&named, &own)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).or_fail("fstatat"),
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
