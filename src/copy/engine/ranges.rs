//! `copy_file_range` on open files: what `cp` inside a mount enters the engine by.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, fstat};
use rustix::param::page_size;

use super::moving::shared::{kind, never_shares, not_here};
use super::pipeline::{self, Moved};
use super::write_all;
use crate::copy::extents::{Extents, cut};
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};
use crate::window::Map;

/// The most that one call moves, in bytes: it ends in sensible time, and fits a reply of 32 bits.
const AT_ONCE: u64 = 128 << 20;
/// Bytes mapped and populated at a time.
const PIECE: u64 = 4 << 20;
/// Bytes from which on a thread that reads ahead is worth its start. 256 MiB cached on ext4, two
/// processors, medians of 12, as ratios to `cp --reflink=never`: copy_file_range, which reads and
/// writes in turn there, 1.16; `cp` in the mount, with such a thread, 1.26.
const LARGE: u64 = 4 << 20;
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
        if data.end - data.start >= LARGE
            && self.only_moves_bytes()
            && let Some(moved) = self.by_two(data.clone())
        {
            return moved;
        }
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

    /// Whether copy_file_range would do no better than read and write.
    fn only_moves_bytes(&self) -> bool {
        let to = kind(self.to.0);
        never_shares(to) && kind(self.from.0) == to
    }

    /// One thread reads, one writes; None when there can be no thread.
    fn by_two(&self, data: Range<u64>) -> Option<Moved> {
        pipeline::run(self.from.0, data, |bytes, at| {
            write_all(self.to.0, bytes, self.there(at)?)
        })
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
        let mut at = piece.start;
        let mut memory = Aligned::default();
        let buffer = match memory.room(WRITE.min(piece.end - piece.start) as usize) {
            Ok(buffer) => buffer,
            Err(fail) => return (at, Some(fail)),
        };
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn whole(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// What copy_file_range is to do, in memory.
    fn model(from: &[u8], at: usize, to: &mut Vec<u8>, there: usize, len: usize) -> usize {
        let len = len.min(from.len().saturating_sub(at));
        if len > 0 {
            to.resize(to.len().max(there + len), 0);
            to[there..there + len].copy_from_slice(&from[at..at + len]);
        }
        len
    }

    fn data_and_holes(file: &File) {
        for at in [0, 300_000, 700_000] {
            let bytes: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8 + 1).collect();
            file.write_all_at(&bytes, at).unwrap();
        }
        file.set_len(1_000_000).unwrap();
    }

    fn copied(from: &File, at: usize, to: &File, there: usize, len: usize) -> Result<u64> {
        let places = ((from.as_fd(), at as u64), (to.as_fd(), there as u64));
        copy_range(places.0, places.1, len as u64)
    }

    fn follows_the_model(from: &File, to: &File, steps: &[(usize, usize, usize)]) {
        data_and_holes(from);
        to.write_all_at(&[9; 200_000], 50_000).unwrap();
        let source = whole(from);
        let mut expected = whole(to);
        for &(at, there, len) in steps {
            let count = model(&source, at, &mut expected, there, len);
            assert_eq!(copied(from, at, to, there, len).unwrap(), count as u64);
            assert!(whole(to) == expected, "{at} to {there}, {len} bytes");
        }
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        let place = prop_oneof![
            0usize..1_100_000,
            (0usize..260).prop_map(|page| page * 4096)
        ];
        prop::collection::vec((place.clone(), place.clone(), place), 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn ranges_within_a_file_system_are_copied_as_the_model_has_it(steps in steps()) {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            follows_the_model(&from, &to, &steps);
        }

        #[test]
        fn ranges_between_file_systems_are_copied_by_the_engine(steps in steps()) {
            let Ok(to) = tempfile::tempfile_in("/dev/shm") else { return Ok(()) };
            let from = tempfile::tempfile().unwrap();
            follows_the_model(&from, &to, &steps);
        }

        #[test]
        fn ranges_of_one_file_are_copied_unless_they_overlap(
            (at, there, len) in (0usize..1_000_000, 0usize..1_500_000, 1usize..600_000),
        ) {
            let file = tempfile::tempfile().unwrap();
            data_and_holes(&file);
            let source = whole(&file);
            let mut expected = source.clone();
            let left = len.min(source.len() - at);
            let outcome = copied(&file, at, &file, there, len);
            if at.abs_diff(there) < left {
                prop_assert_eq!(outcome.unwrap_err().errno, Errno::INVAL);
            } else {
                let count = model(&source, at, &mut expected, there, len);
                prop_assert_eq!(outcome.unwrap(), count as u64);
            }
            prop_assert!(whole(&file) == expected);
        }
    }

    #[test]
    fn what_cannot_be_mapped_goes_through_a_buffer() {
        let enabled = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
        let Ok(from) = File::open(enabled) else {
            crate::sys::testing::skip("no transparent huge pages");
            return;
        };
        let text = std::fs::read(enabled).unwrap();
        let to = tempfile::tempfile().unwrap();
        // It has a line and says that it has a page: what is not there is not made up.
        let count = copied(&from, 0, &to, 10, 4096).unwrap();
        assert_eq!(count as usize, text.len());
        assert_eq!(whole(&to)[10..], text);
    }

    #[test]
    fn a_call_is_capped_and_holes_take_no_space() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(6 << 30).unwrap();
        from.write_all_at(b"data", 100 << 20).unwrap();
        to.write_all_at(&[5; 1 << 20], 1 << 20).unwrap();
        assert_eq!(copied(&from, 0, &to, 0, usize::MAX >> 1).unwrap(), AT_ONCE);
        assert_eq!(to.metadata().unwrap().len(), AT_ONCE);
        to.sync_all().unwrap();
        assert!(to.metadata().unwrap().blocks() * 512 <= 128 << 10);
        let mut read = [1; 8];
        to.read_exact_at(&mut read, (100 << 20) - 2).unwrap();
        assert_eq!(&read, b"\0\0data\0\0");
    }

    #[test]
    fn a_place_that_no_file_has_is_refused() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"data", 0).unwrap();
        let refused = copied(&from, 0, &to, i64::MAX as usize, 4).unwrap_err();
        assert_eq!(refused.errno, Errno::FBIG);
        assert_eq!(copied(&from, 10, &to, 0, 4).unwrap(), 0);
    }
}
