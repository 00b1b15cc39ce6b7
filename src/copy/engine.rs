//! Moves the bytes of one regular file into another, through mapped chunks.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use rustix::fs::{
    FallocateFlags, Mode, SeekFrom, Stat, Timespec, Timestamps, fallocate, fchmod, fstat,
    ftruncate, futimens, seek,
};
use rustix::param::page_size;

use super::extents::{Extents, cut};
use super::language::Method;
use super::publish::Temporary;
use super::resolve::{Source, Target, same_file};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::Map;

/// Bytes populated at a time, and after which a cancel is looked for.
const PIECE: u64 = 4 << 20;
/// Bytes of one write from a mapping. Nothing is gained by more, and from 2 MiB on ext4 and XFS cache
/// a write in huge folios, for which a virtual machine has to fetch memory from its host (measured:
/// 0.46 s for 1 GiB in writes of 256 KiB to 1 MiB, 1 to 6 s in writes of 2 MiB and more).
const WRITE: u64 = 512 << 10;
/// Bytes of the buffer where the source can't be mapped.
const BUFFER: usize = 1 << 20;
/// Bytes of one fallocate: it can't be cancelled.
const RESERVE: u64 = 1 << 30;
/// A source that changes under the copy gets this many attempts.
const ATTEMPTS: usize = 2;

/// How far a copy is, for those who look on, and the way to stop it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    method: AtomicU8,
    cancelled: AtomicBool,
}

impl Progress {
    pub(super) fn new(method: Method) -> Self {
        let progress = Self::default();
        progress.set_method(method);
        progress
    }

    /// Bytes of data copied in this attempt.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of data to copy; holes do not count. 0 as long as that is not known.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The method that is really used.
    pub(super) fn method(&self) -> Method {
        match self.method.load(Ordering::Relaxed) {
            1 => Method::MapMap,
            2 => Method::ReadWrite,
            _ => Method::MapWrite,
        }
    }

    /// Stops the copy after the piece that it is at.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// EINTR once cancelled.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Fail::new(Errno::INTR, "copy").because("cancelled"));
        }
        Ok(())
    }

    fn set_method(&self, method: Method) {
        let number = match method {
            Method::MapWrite => 0,
            Method::MapMap => 1,
            Method::ReadWrite => 2,
        };
        self.method.store(number, Ordering::Relaxed);
    }
}

/// How to copy, and whom to tell.
pub(super) struct Order<'a> {
    pub(super) chunk: u64,
    pub(super) progress: &'a Progress,
    pub(super) metrics: &'a Metrics,
}

/// Copies `source` to where `target` says: data, mode and times; holes stay holes.
///
/// Whole or absent: on any error, or when cancelled, what stood there stands unchanged and nothing
/// is left behind. Not synced to disk.
///
/// The set-user-id and set-group-id bits are kept only with the owner and group that they are for.
///
/// # Errors
/// EINVAL when both are the same file; EINTR when cancelled; EBUSY for a source that changes all
/// the time (told by size, mtime and ctime: a change within the clock's grain escapes); EIO for a
/// page of the source that can't be had; else the kernel's own, ENOSPC before the work begins
/// where the file system can reserve space.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<()> {
    if target
        .existing
        .as_ref()
        .is_some_and(|stat| same_file(stat, &source.stat))
    {
        return Err(
            Fail::new(Errno::INVAL, "copy").because("source and destination are the same file")
        );
    }
    order.progress.check()?;
    let temporary = Temporary::create(target.directory.as_fd())?;
    let filled = fill(source, temporary.file(), order).and_then(|()| order.progress.check());
    match filled {
        Ok(()) => temporary.publish(target),
        Err(fail) => {
            temporary.discard(target.directory.as_fd());
            Err(fail)
        }
    }
}

/// Fills the destination with one unchanging state of the source.
fn fill(source: &Source, destination: BorrowedFd<'_>, order: &Order<'_>) -> Result<()> {
    let asked = order.progress.method();
    for _ in 0..ATTEMPTS {
        let before = fstat(&source.file).or_fail("fstat")?;
        let outcome = Pass::new(source.file.as_fd(), destination, &before, order).run();
        match &outcome {
            // A page that was lost may have been truncated away: that is a change, too.
            Err(fail) if fail.errno != Errno::IO => return outcome,
            Err(_) | Ok(()) => {}
        }
        let after = fstat(&source.file).or_fail("fstat")?;
        if unchanged(&before, &after) {
            outcome?;
            return keep_attributes(&source.stat, &before, destination);
        }
        order.progress.done.store(0, Ordering::Relaxed);
        order.progress.set_method(asked);
        ftruncate(destination, 0).or_fail("ftruncate")?;
    }
    Err(Fail::new(Errno::BUSY, "copy").because("the source changed while copying"))
}

fn unchanged(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| {
        (
            stat.st_size,
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        )
    };
    state(before) == state(after)
}

/// Mode and times; the access time as it was at `opened`, before we read.
fn keep_attributes(opened: &Stat, source: &Stat, destination: BorrowedFd<'_>) -> Result<()> {
    let own = fstat(destination).or_fail("fstat")?;
    let mut mode = Mode::from_raw_mode(source.st_mode & 0o7777);
    if own.st_uid != source.st_uid {
        mode -= Mode::SUID | Mode::SGID;
    } else if own.st_gid != source.st_gid {
        mode -= Mode::SGID;
    }
    let times = Timestamps {
        last_access: time(opened.st_atime, opened.st_atime_nsec),
        last_modification: time(source.st_mtime, source.st_mtime_nsec),
    };
    kept(fchmod(destination, mode), "fchmod")?;
    kept(futimens(destination, &times), "futimens")
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_wrap,
    reason = "the width differs between machines; nanoseconds are below 2^30"
)]
fn time(seconds: impl Into<i64>, nanoseconds: impl TryInto<i64>) -> Timespec {
    Timespec {
        tv_sec: seconds.into(),
        tv_nsec: nanoseconds.try_into().unwrap_or(0) as _,
    }
}

/// A file system without modes or times (vfat) says so of our own file: then there is nothing to
/// keep.
fn kept(answer: rustix::io::Result<()>, operation: &'static str) -> Result<()> {
    match answer {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => other.or_fail(operation),
    }
}

/// One attempt.
struct Pass<'a> {
    source: BorrowedFd<'a>,
    destination: BorrowedFd<'a>,
    size: u64,
    order: &'a Order<'a>,
}

impl<'a> Pass<'a> {
    fn new(
        source: BorrowedFd<'a>,
        destination: BorrowedFd<'a>,
        stat: &Stat,
        order: &'a Order<'a>,
    ) -> Self {
        Self {
            source,
            destination,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            order,
        }
    }

    fn progress(&self) -> &Progress {
        self.order.progress
    }

    fn run(&self) -> Result<()> {
        if self.size == 0 || !self.is_mappable()? {
            self.progress().set_method(Method::ReadWrite);
            return self.stream();
        }
        self.reserve()?;
        for extent in Extents::new(self.source, self.size) {
            self.extent(extent?)?;
        }
        Ok(())
    }

    /// Files of procfs and of some FUSE file systems can't be mapped.
    fn is_mappable(&self) -> Result<bool> {
        match Map::read(self.source, 0, page_size()) {
            Ok(_) => Ok(true),
            Err(fail) if fail.errno == Errno::NODEV => Ok(false),
            Err(fail) => Err(fail),
        }
    }

    /// Sets the size and reserves space for the data alone, so that a full disk is found before
    /// the work.
    fn reserve(&self) -> Result<()> {
        ftruncate(self.destination, self.size).or_fail("ftruncate")?;
        let mut total = 0;
        let mut possible = true;
        for extent in Extents::new(self.source, self.size) {
            let extent = extent?;
            total += extent.end - extent.start;
            for part in cut(extent, RESERVE) {
                self.progress().check()?;
                possible = possible && self.reserve_part(part)?;
            }
        }
        self.progress().total.store(total, Ordering::Relaxed);
        Ok(())
    }

    /// False where the file system can't reserve: "not this way", not "failed".
    fn reserve_part(&self, part: Range<u64>) -> Result<bool> {
        loop {
            let len = part.end - part.start;
            match fallocate(self.destination, FallocateFlags::empty(), part.start, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => self.progress().check()?,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
                Err(errno) => return Err(errno).or_fail("fallocate"),
            }
        }
    }

    /// One stretch of data, chunk by chunk; while one is copied the next is read ahead.
    fn extent(&self, extent: Range<u64>) -> Result<()> {
        let mut chunks = cut(extent, self.order.chunk.max(page_size() as u64));
        let mut next = chunks
            .next()
            .map(|range| Chunk::read(self, range))
            .transpose()?;
        while let Some(chunk) = next.take() {
            next = chunks
                .next()
                .map(|range| Chunk::read(self, range))
                .transpose()?;
            if let Some(ahead) = &next {
                ahead.map.will_need(0..ahead.map.len());
            }
            self.chunk(&chunk)?;
        }
        Ok(())
    }

    fn chunk(&self, chunk: &Chunk) -> Result<()> {
        let mapped = match self.progress().method() {
            Method::MapMap => self.map_destination(chunk)?,
            _ => None,
        };
        for piece in cut(chunk.range.clone(), PIECE) {
            self.progress().check()?;
            let local = chunk.local(&piece);
            // Whatever this says: what reads the pages next meets the same, and says it better.
            let _ = chunk.map.populate_read(local.clone());
            let done = mapped
                .as_ref()
                .is_some_and(|destination| copy_mapped(&chunk.map, destination, local));
            if !done {
                self.write(chunk, piece.clone())?;
            }
            self.count(piece.end - piece.start);
        }
        Ok(())
    }

    fn map_destination(&self, chunk: &Chunk) -> Result<Option<Map>> {
        match Map::write(self.destination, chunk.base, chunk.map.len()) {
            Ok(map) => Ok(Some(map)),
            Err(fail) if fail.errno == Errno::NODEV => {
                self.progress().set_method(Method::MapWrite);
                Ok(None)
            }
            Err(fail) => Err(fail),
        }
    }

    /// Has the kernel copy from the mapping into the destination.
    fn write(&self, chunk: &Chunk, piece: Range<u64>) -> Result<()> {
        let mut at = piece.start;
        while at < piece.end {
            let local = chunk.local(&(at..piece.end.min(at + WRITE)));
            match chunk.map.pwrite_to(local, self.destination, at) {
                Ok(0) => return Err(lost(at)),
                Ok(count) => at += count as u64,
                Err(fail) if fail.errno == Errno::FAULT => {
                    self.order.metrics.fault_survived();
                    return Err(lost(at));
                }
                Err(fail) if fail.errno == Errno::INTR => self.progress().check()?,
                Err(fail) => return Err(fail),
            }
        }
        Ok(())
    }

    fn count(&self, bytes: u64) {
        self.progress().done.fetch_add(bytes, Ordering::Relaxed);
        self.order.metrics.copied(bytes);
    }

    /// Through a buffer. A file of no size is read to its end all the same: those of procfs have
    /// data. One with a size may end sooner (sysfs), and that is then its size.
    fn stream(&self) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        if self.size == 0 {
            let end = self.stream_range(0..u64::MAX, &mut buffer)?;
            return ftruncate(self.destination, end).or_fail("ftruncate");
        }
        self.reserve()?;
        for extent in Extents::new(self.source, self.size) {
            let extent = extent?;
            let end = self.stream_range(extent.clone(), &mut buffer)?;
            if end < extent.end {
                return ftruncate(self.destination, end).or_fail("ftruncate");
            }
        }
        Ok(())
    }

    /// Answers where it ended: the end of the range, or of the file.
    fn stream_range(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<u64> {
        // Not pread, which some files of procfs refuse.
        seek(self.source, SeekFrom::Start(range.start)).or_fail("lseek")?;
        let mut at = range.start;
        while at < range.end {
            self.progress().check()?;
            if self.size == 0 && at > 0 {
                self.check_still_without_size()?;
            }
            let most = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let most = most.min(buffer.len());
            let count = match rustix::io::read(self.source, &mut buffer[..most]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).or_fail("read"),
            };
            self.write_buffer(&buffer[..count], at)?;
            at += count as u64;
            self.count(count as u64);
        }
        Ok(at)
    }

    /// An empty file that somebody began to write would be followed for ever: to be begun anew.
    fn check_still_without_size(&self) -> Result<()> {
        if fstat(self.source).or_fail("fstat")?.st_size != 0 {
            return Err(Fail::new(Errno::IO, "read").because("the source is growing"));
        }
        Ok(())
    }

    fn write_buffer(&self, mut bytes: &[u8], mut at: u64) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(self.destination, bytes, at) {
                Ok(0) => return Err(Fail::new(Errno::IO, "pwrite")),
                Ok(count) => {
                    bytes = &bytes[count..];
                    at += count as u64;
                }
                Err(Errno::INTR) => self.progress().check()?,
                Err(errno) => return Err(errno).or_fail("pwrite"),
            }
        }
        Ok(())
    }
}

/// Copies memory to memory. False when a page of either side could not be had: writing it the
/// other way tells which, and why (a full disk, a truncated source).
fn copy_mapped(source: &Map, destination: &Map, local: Range<usize>) -> bool {
    destination.populate_write(local.clone()).is_ok()
        && source
            .copy_to(local.clone(), destination, local.start)
            .is_ok()
}

fn lost(at: u64) -> Fail {
    Fail::new(Errno::IO, "copy").because(format!("the source's page at byte {at} can't be had"))
}

/// A mapped part of the source.
struct Chunk {
    map: Map,
    /// The bytes of the file that are meant.
    range: Range<u64>,
    /// Where in the file the mapping begins: on a page, at or before the range.
    base: u64,
}

impl Chunk {
    fn read(pass: &Pass<'_>, range: Range<u64>) -> Result<Self> {
        let base = range.start - range.start % page_size() as u64;
        let len =
            usize::try_from(range.end - base).map_err(|_| Fail::new(Errno::OVERFLOW, "mmap"))?;
        let map = Map::read(pass.source, base, len)?;
        Ok(Self { map, range, base })
    }

    /// Bytes of the file as bytes of the mapping. They lie within it, whose length is a `usize`.
    #[allow(clippy::cast_possible_truncation, reason = "within the mapping")]
    fn local(&self, part: &Range<u64>) -> Range<usize> {
        (part.start - self.base) as usize..(part.end - self.base) as usize
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
