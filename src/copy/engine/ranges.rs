//! `copy_file_range` on open files: what `cp` inside a mount enters the engine by.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, fstat};
use rustix::param::page_size;

use super::moving::shared::not_here;
use crate::copy::extents::{Extents, cut};
use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::Map;

/// The most that one call moves, in bytes: it ends in sensible time, and fits a reply of 32 bits.
const AT_ONCE: u64 = 128 << 20;
/// Bytes mapped and populated at a time.
const PIECE: u64 = 4 << 20;
/// Bytes of one write (see `moving::mapped`), and of the buffer.
const WRITE: u64 = 512 << 10;

/// An open file and a place in it.
type Place<'a> = (BorrowedFd<'a>, u64);

/// Copies up to `length` bytes from one place to another, at most 128 MiB; says how many.
///
/// Extents are shared where the file system does that, holes stay holes, and where it can't copy by
/// itself (two file systems beneath one mount) the source is mapped and written from the mapping.
/// Fewer bytes than asked for mean the end of the source, the cap, or an error that the next call
/// meets again.
///
/// # Errors
/// EINVAL for ranges of one file that overlap; ENOSPC, EDQUOT, EFBIG, EBADF, EIO.
pub fn copy_range(from: Place<'_>, to: Place<'_>, length: u64) -> Result<u64> {
    let (source, destination) = (fstat(from.0), fstat(to.0));
    let (source, destination) = (source.or_fail("fstat")?, destination.or_fail("fstat")?);
    let size = u64::try_from(source.st_size).unwrap_or(0);
    let left = size.saturating_sub(from.1).min(length);
    let one = (source.st_dev, source.st_ino) == (destination.st_dev, destination.st_ino);
    // Asked of the whole length, as the kernel does, though less may be moved.
    if one && from.1.abs_diff(to.1) < left {
        return Err(Fail::new(Errno::INVAL, "copy_file_range").because("the ranges overlap"));
    }
    let end = from.1.saturating_add(left.min(AT_ONCE));
    if left == 0 {
        return Ok(0);
    }
    Ranges { from, to }.run(from.1..end)
}

struct Ranges<'a> {
    from: Place<'a>,
    to: Place<'a>,
}

/// How far a range got, and why not to its end.
type Moved = (u64, Option<Fail>);

impl Ranges<'_> {
    /// Where in the destination a byte of the source goes.
    fn there(&self, at: u64) -> Result<u64> {
        (at - self.from.1)
            .checked_add(self.to.1)
            .filter(|there| i64::try_from(*there).is_ok())
            .ok_or(Fail::new(Errno::FBIG, "copy_file_range"))
    }

    fn run(&self, range: Range<u64>) -> Result<u64> {
        self.there(range.end)?;
        let mut at = range.start;
        let mut stopped = None;
        let mut extents = Extents::starting(self.from.0, range.start, range.end);
        while at < range.end && stopped.is_none() {
            let Some(data) = extents.next().transpose()? else {
                // What was cut off meanwhile is no hole.
                let size = fstat(self.from.0).or_fail("fstat")?.st_size;
                let end = range.end.min(u64::try_from(size).unwrap_or(0)).max(at);
                stopped = self.hole(at..end).err();
                at = if stopped.is_none() { end } else { at };
                break;
            };
            stopped = self.hole(at..data.start).err();
            if stopped.is_none() {
                (at, stopped) = self.data(data.clone());
                // The source has become shorter.
                if at < data.end {
                    break;
                }
            }
        }
        match stopped {
            Some(fail) if at == range.start => Err(fail),
            // The next call meets it again.
            _ => Ok(at - range.start),
        }
    }

    /// The destination reads as zeros there, and has a hole if it can.
    fn hole(&self, hole: Range<u64>) -> Result<()> {
        if hole.is_empty() {
            return Ok(());
        }
        let (file, start, end) = (self.to.0, self.there(hole.start)?, self.there(hole.end)?);
        let size = fstat(file).or_fail("fstat")?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        let within = end.min(size);
        if start < within {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(file, punch, start, within - start) {
                Err(errno) if not_here(errno) => self.zeros(start..within)?,
                other => other.or_fail("fallocate")?,
            }
        }
        // Not by ftruncate: who writes behind the mirror may have made the file longer by now.
        if end > size {
            write_all(file, &[0], end - 1)?;
        }
        Ok(())
    }

    fn zeros(&self, range: Range<u64>) -> Result<()> {
        let zeros = vec![0; WRITE.min(range.end - range.start) as usize];
        for part in cut(range, WRITE) {
            write_all(
                self.to.0,
                &zeros[..(part.end - part.start) as usize],
                part.start,
            )?;
        }
        Ok(())
    }

    fn data(&self, data: Range<u64>) -> Moved {
        let mut at = data.start;
        while at < data.end {
            let (mut from, mut to) = (at, at - self.from.1 + self.to.1);
            let len = usize::try_from(data.end - at).unwrap_or(usize::MAX);
            let (source, destination) = (self.from.0, self.to.0);
            match copy_file_range(source, Some(&mut from), destination, Some(&mut to), len) {
                Ok(0) => return self.bytes(at..data.end),
                Ok(count) => at += count as u64,
                Err(Errno::INTR) => {}
                Err(errno) if not_here(errno) => return self.bytes(at..data.end),
                Err(errno) => return (at, Some(Fail::new(errno, "copy_file_range"))),
            }
        }
        (at, None)
    }

    /// By ourselves: from mapped pieces, or through a buffer.
    fn bytes(&self, data: Range<u64>) -> Moved {
        let mut done = data.start;
        for piece in cut(data, PIECE) {
            let (at, stopped) = match self.mapped(piece.clone()) {
                Ok(moved) => moved,
                Err(_) => self.buffered(piece.clone()),
            };
            done = at;
            if stopped.is_some() || at < piece.end {
                return (done, stopped);
            }
        }
        (done, None)
    }

    /// An error for what can't be mapped.
    #[allow(clippy::cast_possible_truncation, reason = "within a piece")]
    fn mapped(&self, piece: Range<u64>) -> Result<Moved> {
        let base = piece.start - piece.start % page_size() as u64;
        let map = Map::read(self.from.0, base, (piece.end - base) as usize)?;
        let _ = map.populate_read((piece.start - base) as usize..map.len());
        let mut at = piece.start;
        while at < piece.end {
            let end = piece.end.min(at + WRITE);
            let local = (at - base) as usize..(end - base) as usize;
            match map.pwrite_to(local, self.to.0, self.there(at)?) {
                // A page is not there: read(2) says whether the file has become shorter.
                Ok(0) => return Ok(self.buffered(at..piece.end)),
                Ok(count) => at += count as u64,
                Err(fail) if fail.errno == Errno::INTR => {}
                Err(fail) if fail.errno == Errno::FAULT => {
                    return Ok(self.buffered(at..piece.end));
                }
                Err(fail) => return Ok((at, Some(fail))),
            }
        }
        Ok((at, None))
    }

    fn buffered(&self, piece: Range<u64>) -> Moved {
        let mut buffer = vec![0; WRITE.min(piece.end - piece.start) as usize];
        let mut at = piece.start;
        while at < piece.end {
            let len = (piece.end - at).min(WRITE) as usize;
            let count = match rustix::io::pread(self.from.0, &mut buffer[..len], at) {
                Ok(0) => break,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return (at, Some(Fail::new(errno, "pread"))),
            };
            let there = self.there(at);
            let written = there.and_then(|there| write_all(self.to.0, &buffer[..count], there));
            if let Err(fail) = written {
                return (at, Some(fail));
            }
            at += count as u64;
        }
        (at, None)
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Fail::new(Errno::IO, "pwrite")),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fail("pwrite"),
        }
    }
    Ok(())
}
