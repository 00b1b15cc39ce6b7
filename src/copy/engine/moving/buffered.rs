//! `read-write`: through a buffer that is aligned as O_DIRECT wants it.

use std::ops::Range;

use rustix::fs::{SeekFrom, fstat, ftruncate, seek};

use super::course::{Course, Outcome, Worker};
use super::direct::Side;
use super::{Pass, lost};
use crate::copy::options::Sparse;
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};

/// Bytes of one read and one write; larger writes are cached in huge folios (see `mapped`).
const CACHED: u64 = 512 << 10;
/// The same past the page cache, where each is a trip to the disk and back.
const DIRECT: u64 = 4 << 20;
/// What a block of zeros is, in bytes: a page, as most file systems have it. A hole smaller than
/// the file system's block does no harm.
const BLOCK: usize = 4096;

impl Course<'_> {
    pub(super) fn read_write(&self, worker: &mut Worker, range: Range<u64>) -> Result<Outcome> {
        let align = self.direct().align();
        let unit = if self.direct().is_on() {
            DIRECT
        } else {
            CACHED
        };
        // What is read beyond the range is the source's all the same.
        let mut at = range.start - range.start % align;
        let mut again = true;
        while at < range.end {
            self.check()?;
            let want = (range.end - at).min(unit).next_multiple_of(align);
            let buffer = worker.buffer.room_at(want as usize, align as usize)?;
            let count = match rustix::io::pread(self.source(), &mut *buffer, at) {
                Ok(0) => return self.ended_early(at),
                Ok(count) => count as u64,
                Err(Errno::INTR) => continue,
                Err(Errno::INVAL) if again && self.direct().give_up(Side::Source) => {
                    again = false;
                    continue;
                }
                Err(errno) => return Err(errno).or_fail("pread"),
            };
            // The last block is filled up with zeros, which the size then cuts off. A short read
            // elsewhere goes on where a block begins.
            let at_end = at + count >= self.size();
            let count = match count - count % align {
                0 if !at_end => return self.ended_early(at),
                whole if !at_end => whole,
                _ => count,
            };
            let whole = count.next_multiple_of(align) as usize;
            buffer[count as usize..whole].fill(0);
            let len = if self.direct().is_on() {
                whole
            } else {
                count.min(range.end - at) as usize
            };
            self.put(&buffer[..len], at)?;
            let done = (at + count)
                .min(range.end)
                .saturating_sub(range.start.max(at));
            at += count;
            self.count(done)?;
        }
        Ok(Outcome::Done)
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        if self.sparse() == Sparse::Always {
            return self.write_nonzero(bytes, at);
        }
        self.write_buffer(bytes, at)
    }

    /// The source has no byte where its size says that there are some. One that can't be mapped
    /// makes them up as it is read, and that is then its size (sysfs); from another they were taken
    /// away.
    fn ended_early(&self, at: u64) -> Result<Outcome> {
        if self.pass().is_mappable()? {
            return Err(lost(at));
        }
        self.ends_at(at);
        Ok(Outcome::Done)
    }

    /// Writes the blocks that are not all zeros.
    pub(super) fn write_nonzero(&self, bytes: &[u8], at: u64) -> Result<()> {
        let block = BLOCK.max(self.direct().align() as usize);
        // Blocks of the file, not of the buffer.
        let lead = (at % block as u64) as usize;
        let mut start = 0;
        let mut from = None;
        while start < bytes.len() {
            let end = (start + block - (lead + start) % block).min(bytes.len());
            match (is_zero(&bytes[start..end]), from) {
                (false, None) => from = Some(start),
                (true, Some(begin)) => {
                    self.write_buffer(&bytes[begin..start], at + begin as u64)?;
                    from = None;
                }
                _ => {}
            }
            start = end;
        }
        match from {
            Some(begin) => self.write_buffer(&bytes[begin..], at + begin as u64),
            None => Ok(()),
        }
    }

    fn write_buffer(&self, bytes: &[u8], at: u64) -> Result<()> {
        let give_up = || self.direct().give_up(Side::Destination);
        self.pass().write_buffer(bytes, at, give_up)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen at a time, which the compiler makes vectors of.
    let (head, body) = bytes.as_chunks::<16>();
    head.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && body.iter().all(|byte| *byte == 0)
}

impl Pass<'_> {
    /// A file of no size is read to its end all the same: those of procfs have data.
    pub(super) fn stream(&self) -> Result<()> {
        // Not pread, which some files of procfs refuse.
        seek(self.source, SeekFrom::Start(0)).or_fail("lseek")?;
        let mut memory = Aligned::default();
        let mut at = 0;
        loop {
            self.progress().check()?;
            if at > 0 {
                self.check_still_without_size()?;
            }
            let buffer = memory.room(if at == 0 { BLOCK } else { CACHED as usize })?;
            let count = match rustix::io::read(self.source, &mut *buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).or_fail("read"),
            };
            self.write_buffer(&buffer[..count], at, || false)?;
            self.done(at..at + count as u64)?;
            at += count as u64;
            self.count(count as u64)?;
        }
        ftruncate(self.destination, at).or_fail("ftruncate")
    }

    /// An empty file that somebody began to write would be followed for ever: to be begun anew.
    fn check_still_without_size(&self) -> Result<()> {
        if fstat(self.source).or_fail("fstat")?.st_size != 0 {
            return Err(Fail::new(Errno::IO, "read").because("the source is growing"));
        }
        Ok(())
    }

    /// `give_up` says that what was refused with EINVAL may be tried once more.
    pub(super) fn write_buffer(
        &self,
        mut bytes: &[u8],
        mut at: u64,
        give_up: impl Fn() -> bool,
    ) -> Result<()> {
        let mut again = true;
        while !bytes.is_empty() {
            match rustix::io::pwrite(self.destination, bytes, at) {
                Ok(0) => return Err(Fail::new(Errno::IO, "pwrite")),
                Ok(count) => {
                    bytes = &bytes[count..];
                    at += count as u64;
                }
                Err(Errno::INTR) => self.progress().check()?,
                Err(Errno::INVAL) if again && give_up() => again = false,
                Err(errno) => return Err(errno).or_fail("pwrite"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_others_at_every_place() {
        for len in 0..70 {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
