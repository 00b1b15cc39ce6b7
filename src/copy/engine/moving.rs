//! The bytes of one file, through mapped chunks.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, Stat, fallocate, fstat, ftruncate, seek};
use rustix::param::page_size;

use super::Order;
use crate::copy::extents::{Extents, cut};
use crate::copy::options::Method;
use crate::copy::progress::Progress;
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
/// One attempt.
pub(super) struct Pass<'a> {
    source: BorrowedFd<'a>,
    destination: BorrowedFd<'a>,
    size: u64,
    order: &'a Order<'a>,
    /// What this attempt has added to the progress: bytes done, bytes in all.
    counted: (AtomicU64, AtomicU64),
    /// What is in the destination already, in order.
    already: &'a [Range<u64>],
    on_done: Option<&'a (dyn Fn(Range<u64>) -> Result<()> + Sync)>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
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
            counted: Default::default(),
            already: &[],
            on_done: None,
        }
    }

    /// These ranges (in order, none touching the next) are in the destination already: they are
    /// neither moved nor counted.
    pub(super) fn already(self, already: &'a [Range<u64>]) -> Self {
        Self { already, ..self }
    }

    /// Calls `on_done` after each range that was written.
    pub(super) fn on_done(self, on_done: &'a (dyn Fn(Range<u64>) -> Result<()> + Sync)) -> Self {
        Self {
            on_done: Some(on_done),
            ..self
        }
    }

    /// The parts of a stretch that are not there already.
    fn missing(&self, stretch: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a> {
        let mut at = stretch.start;
        let first = self.already.partition_point(|range| range.end <= at);
        let end = Range {
            start: stretch.end,
            end: stretch.end,
        };
        let known = self.already[first..]
            .iter()
            .take_while(move |range| range.start < stretch.end);
        known.cloned().chain([end]).filter_map(move |range| {
            let gap = at..range.start.max(at);
            at = range.end.max(at);
            (gap.start < gap.end).then_some(gap)
        })
    }

    fn wrote(&self, range: Range<u64>) -> Result<()> {
        self.on_done.map_or(Ok(()), |on_done| on_done(range))
    }

    /// Takes back what this attempt has counted: its work is thrown away.
    pub(super) fn take_back(&self) {
        let (done, total) = &self.counted;
        let taken = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        self.progress().take_back(taken(done), taken(total));
    }

    fn progress(&self) -> &Progress {
        self.order.progress
    }

    pub(super) fn run(&self) -> Result<()> {
        if self.size == 0 || !self.is_mappable()? {
            self.progress().set_method(Method::ReadWrite);
            return self.stream();
        }
        let asked = self.order.options.method.unwrap_or(Method::MapWrite);
        self.progress().set_method(asked);
        self.reserve()?;
        for extent in Extents::new(self.source, self.size) {
            for missing in self.missing(extent?) {
                self.extent(missing)?;
            }
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
        // A file in place keeps its end until the last.
        let own = fstat(self.destination).or_fail("fstat")?;
        if u64::try_from(own.st_size).unwrap_or(0) < self.size {
            ftruncate(self.destination, self.size).or_fail("ftruncate")?;
        }
        let mut total = 0;
        let mut possible = true;
        for extent in Extents::new(self.source, self.size) {
            let extent = extent?;
            total += self
                .missing(extent.clone())
                .map(|gap| gap.end - gap.start)
                .sum::<u64>();
            for part in cut(extent, RESERVE) {
                self.progress().check()?;
                possible = possible && self.reserve_part(part)?;
            }
        }
        self.counted.1.fetch_add(total, Ordering::Relaxed);
        self.progress().add_bytes_total(total);
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
        let mut chunks = cut(extent, self.order.options.chunk.max(page_size() as u64));
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
            Some(Method::MapMap) => self.map_destination(chunk)?,
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
            self.wrote(piece.clone())?;
            self.count(piece.end - piece.start)?;
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

    fn count(&self, bytes: u64) -> Result<()> {
        self.order.metrics.copied(bytes);
        self.counted.0.fetch_add(bytes, Ordering::Relaxed);
        self.progress().spend(bytes)
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
            for missing in self.missing(extent?) {
                let end = self.stream_range(missing.clone(), &mut buffer)?;
                if end < missing.end {
                    return ftruncate(self.destination, end).or_fail("ftruncate");
                }
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
            self.wrote(at..at + count as u64)?;
            at += count as u64;
            self.count(count as u64)?;
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
