//! A copy is read again from storage, and held against its source.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Advice, CWD, Mode, OFlags, Stat, fadvise, fdatasync, fstat, openat};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Order;
use crate::copy::extents::Extents;
use crate::copy::progress::Progress;
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};

/// Bytes read at a time: a multiple of what any device wants for O_DIRECT.
const BLOCK: usize = 1 << 20;

/// Reads the destination from storage, past the page cache where the file system can, else after
/// its pages were dropped, and compares the hash (XXH3) of each MiB with that of the source. What
/// is a hole in both is left out.
///
/// Of a source that says to have no size, whose bytes can't be had a second time, the copy as it
/// was written is compared with the copy as it is stored.
///
/// # Errors
/// EIO, with the first byte that differs; those of reading either.
pub(super) fn verify(
    source: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    before: &Stat,
    order: &Order<'_>,
) -> Result<()> {
    let progress = order.progress;
    let stored = || progress.at_length(|| Reader::stored(destination));
    if before.st_size == 0 {
        let written = hash(&Reader::cached(destination)?, progress)?;
        let stored = hash(&stored()?, progress)?;
        return if written == stored {
            Ok(())
        } else {
            Err(failed(0))
        };
    }
    let stored = stored()?;
    let original = match order.options.direct {
        true => Reader::past_the_cache(source)?,
        false => Reader::cached(source)?,
    };
    let size = u64::try_from(before.st_size).unwrap_or(0);
    compare((&original, size), &stored, progress)
}

fn compare((original, size): (&Reader, u64), stored: &Reader, progress: &Progress) -> Result<()> {
    let own = fstat(&stored.file).or_fail("fstat")?;
    let end = u64::try_from(own.st_size).unwrap_or(0);
    let (mut ours, mut theirs) = (Aligned::default(), Aligned::default());
    let mut at = 0;
    while let Some(next) = next_data(original, stored, at, end)? {
        progress.check()?;
        at = next;
        let (one, other) = (original.read(at, &mut ours)?, stored.read(at, &mut theirs)?);
        // A source that says more than it has (sysfs) ends where the copy does.
        let one = &one[..one.len().min(usize::try_from(end - at).unwrap_or(BLOCK))];
        if one.len() != other.len() || xxh3_64(one) != xxh3_64(other) {
            let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
            return Err(failed(at + same as u64));
        }
        at += BLOCK as u64;
    }
    if end > size || end < size && original.goes_on_from(end, &mut ours)? {
        return Err(failed(end.min(size)));
    }
    Ok(())
}

/// The first block from `at` in which either has data.
fn next_data(one: &Reader, other: &Reader, at: u64, end: u64) -> Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    let start = |reader: &Reader| -> Result<u64> {
        let first = Extents::starting(reader.file.as_fd(), at, end).next();
        Ok(first.transpose()?.map_or(end, |extent| extent.start))
    };
    let next = start(one)?.min(start(other)?);
    let block = next - next % BLOCK as u64;
    Ok((next < end).then_some(block.max(at)))
}

fn hash(reader: &Reader, progress: &Progress) -> Result<u64> {
    let mut buffer = Aligned::default();
    let mut hash = Xxh3::new();
    let mut at = 0;
    loop {
        progress.check()?;
        let bytes = reader.read(at, &mut buffer)?;
        hash.update(bytes);
        at += bytes.len() as u64;
        if bytes.len() < BLOCK {
            return Ok(hash.digest());
        }
    }
}

fn failed(at: u64) -> Fail {
    Fail::new(Errno::IO, "copy").because(format!("verify failed at byte {at}"))
}

/// A file, open anew: its offset is nobody else's.
struct Reader {
    file: OwnedFd,
}

impl Reader {
    fn open(file: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<Self> {
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | flags;
        openat(CWD, name, flags, Mode::empty()).map(|file| Self { file })
    }

    /// Through the page cache.
    fn cached(file: BorrowedFd<'_>) -> Result<Self> {
        Self::open(file, OFlags::empty()).or_fail("open")
    }

    /// From storage, as far as the file system has a way to it.
    fn stored(file: BorrowedFd<'_>) -> Result<Self> {
        fdatasync(file).or_fail("fdatasync")?;
        // Pages that are mapped would stay, but ours are not any more. That it can't be advised is
        // no error: on a file system without storage there is nothing else to read.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Self::past_the_cache(file)
    }

    fn past_the_cache(file: BorrowedFd<'_>) -> Result<Self> {
        match Self::open(file, OFlags::DIRECT) {
            Ok(reader) if reader.reads_direct() => Ok(reader),
            _ => Self::cached(file),
        }
    }

    /// Some take the flag and refuse the read.
    fn reads_direct(&self) -> bool {
        !matches!(self.read(0, &mut Aligned::default()), Err(fail) if fail.errno == Errno::INVAL)
    }

    /// Whether there is a byte at `at`: some files say that they have more than they have.
    fn goes_on_from(&self, at: u64, buffer: &mut Aligned) -> Result<bool> {
        let into = at % BLOCK as u64;
        Ok(self.read(at - into, buffer)?.len() as u64 > into)
    }

    /// A block, or less at the end of the file.
    fn read<'b>(&self, at: u64, buffer: &'b mut Aligned) -> Result<&'b [u8]> {
        let bytes = buffer.room(BLOCK)?;
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            match rustix::io::pread(&self.file, rest, at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                // A direct read that ended within a sector can't be gone on with: it was the end.
                Err(Errno::INVAL) if filled % 512 != 0 => break,
                Err(errno) => return Err(errno).or_fail("pread"),
            }
        }
        Ok(&bytes[..filled])
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
