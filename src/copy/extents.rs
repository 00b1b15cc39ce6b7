//! Where a sparse file has data.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::param::page_size;

use crate::sys::{Errno, OrFail, Result, pages};

/// How much of a hole that may be none is taken for data at a time, in bytes.
const DOUBT: u64 = 1 << 20;

/// Walks the stretches of data in the first `size` bytes of a file, in order. Moves the file's
/// offset.
///
/// A file system that knows no holes has one stretch. What is asked of the kernel step by step is
/// not collected, for a file may have millions of stretches.
///
/// A hole with pages that are still to be written, or being written, is no hole: file systems that
/// allocate late (btrfs, ext4, XFS, ZFS) have all had times when SEEK_DATA did not see such bytes,
/// and once in some hundred thousand copies an fsx over ext4 (Linux 6.18) met zeros for what had
/// been written two calls before. What is read as data and is a hole costs space; the reverse
/// costs bytes. The kernel tells of pages only to who owns the file or may write it (mm/filemap.c,
/// can_do_cachestat); for others SEEK_DATA is all there is.
pub(super) struct Extents<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    size: u64,
    /// `at` is where data ended: the page there is data's, up to the end of the file.
    behind_data: bool,
}

impl<'a> Extents<'a> {
    #[cfg(test)]
    pub(super) fn new(file: BorrowedFd<'a>, size: u64) -> Self {
        Self::starting(file, 0, size)
    }

    /// The same from byte `at` on.
    pub(super) fn starting(file: BorrowedFd<'a>, at: u64, size: u64) -> Self {
        Self {
            file,
            at,
            size,
            behind_data: false,
        }
    }

    /// Where data begins, from `at` on; `None` when there is none, or the file has shrunk.
    fn seek_data(&self) -> Result<Option<u64>> {
        match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => Ok(Some(start)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE) => Ok(Some(self.at)),
            Err(errno) => Err(errno).or_fail("lseek"),
        }
    }

    /// The first part of a hole, at most [`DOUBT`] long, of which pages are still to be written.
    fn doubtful(&self, hole: Range<u64>) -> Option<Range<u64>> {
        let unwritten = |part: &Range<u64>| {
            let length = part.end - part.start;
            pages::unwritten(self.file, part.start, length).is_some_and(|pages| pages > 0)
        };
        // Most have none, and then it is asked once.
        Some(hole.clone()).filter(|hole| !hole.is_empty() && unwritten(hole))?;
        cut(hole, DOUBT).find(unwritten)
    }

    fn step(&mut self) -> Result<Option<Range<u64>>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let mut found = self.seek_data()?;
        if found != Some(self.at) {
            let page = page_size() as u64;
            let from = match self.behind_data {
                true => self.at.next_multiple_of(page),
                false => self.at,
            };
            let hole = from..found.unwrap_or(self.size).min(self.size);
            if let Some(part) = self.doubtful(hole) {
                (self.at, self.behind_data) = (part.end, false);
                return Ok(Some(part));
            }
            // What was written out between the two looks is seen now.
            found = self.seek_data()?;
        }
        let Some(start) = found else {
            return Ok(None);
        };
        let end = match seek(self.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE) => self.size,
            Err(errno) => return Err(errno).or_fail("lseek"),
        };
        let end = end.min(self.size);
        // An answer that leads nowhere would be asked for for ever.
        if start < self.at || end <= start {
            return Ok(None);
        }
        (self.at, self.behind_data) = (end, true);
        Ok(Some(start..end))
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, None | Some(Err(_))) {
            self.at = self.size;
        }
        step
    }
}

/// Cuts a stretch into parts that end at multiples of `unit`.
pub(super) fn cut(stretch: Range<u64>, unit: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = stretch.start;
    std::iter::from_fn(move || {
        let end = ((at / unit + 1) * unit).min(stretch.end);
        let part = (at < stretch.end).then_some(at..end);
        at = end;
        part
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(&[1; 5000], 1 << 20).unwrap();
        file.write_all_at(&[1; 100], (10 << 20) - 100).unwrap();
        let found: Vec<_> = Extents::new(file.as_fd(), 10 << 20)
            .map(Result::unwrap)
            .collect();
        let data: u64 = found.iter().map(|extent| extent.end - extent.start).sum();
        assert!(found.iter().any(|extent| extent.contains(&(1 << 20))));
        assert_eq!(found.last().unwrap().end, 10 << 20);
        assert!(data < 1 << 20, "{found:?}");
    }

    /// Imitated by pages of a hole that were stored to and not written yet, where the file system
    /// tells of them: never less than it tells.
    #[test]
    fn what_is_still_to_be_written_is_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        let extents = Extents::new(file.as_fd(), 64 << 20);
        assert_eq!(extents.doubtful(0..64 << 20), None);
        file.write_all_at(&[7; 3000], 40 << 20).unwrap();
        let Some(1..) = pages::unwritten(file.as_fd(), 0, 64 << 20) else {
            return crate::sys::testing::skip("nothing tells of pages that are to be written");
        };
        assert_eq!(extents.doubtful(0..64 << 20), Some(40 << 20..41 << 20));
        assert_eq!(extents.doubtful(0..40 << 20), None);
        assert_eq!(extents.doubtful(5..5), None);
    }

    #[test]
    fn nothing_and_holes_only_have_no_data() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Extents::new(file.as_fd(), 0).count(), 0);
        file.set_len(1 << 30).unwrap();
        assert_eq!(Extents::new(file.as_fd(), 1 << 30).count(), 0);
    }

    #[test]
    fn a_file_that_has_shrunk_ends_the_walk() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        let found: Vec<_> = Extents::new(file.as_fd(), 1 << 20)
            .map(Result::unwrap)
            .collect();
        assert!(found.last().unwrap().end <= 8192, "{found:?}");
    }

    #[test]
    fn a_file_that_knows_no_holes_is_all_data() {
        let file = File::open("/proc/self/maps").unwrap();
        let found: Vec<_> = Extents::new(file.as_fd(), 100)
            .map(Result::unwrap)
            .collect();
        assert!(matches!(found[..], [Range { start: 0, end: 100 }]));
    }

    proptest! {
        #[test]
        fn parts_make_up_the_stretch(start in 0u64..5000, len in 0u64..5000, unit in 1u64..700) {
            let mut at = start;
            for part in cut(start..start + len, unit) {
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > part.start && part.end - part.start <= unit);
                prop_assert!(part.end % unit == 0 || part.end == start + len);
                at = part.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
