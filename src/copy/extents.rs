//! Where a sparse file has data.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};

use crate::sys::{Errno, OrFail, Result};

/// Walks the stretches of data in the first `size` bytes of a file, in order. Moves the file's
/// offset.
///
/// A file system that knows no holes has one stretch. What is asked of the kernel step by step is
/// not collected, for a file may have millions of stretches.
pub(super) struct Extents<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    size: u64,
}

impl<'a> Extents<'a> {
    #[cfg(test)]
    pub(super) fn new(file: BorrowedFd<'a>, size: u64) -> Self {
        Self::starting(file, 0, size)
    }

    /// The same from byte `at` on.
    pub(super) fn starting(file: BorrowedFd<'a>, at: u64, size: u64) -> Self {
        Self { file, at, size }
    }

    fn step(&mut self) -> Result<Option<Range<u64>>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let start = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start,
            // No data from here on, or the file has shrunk.
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE) => self.at,
            Err(errno) => return Err(errno).or_fail("lseek"),
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
        self.at = end;
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
