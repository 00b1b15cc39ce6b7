//! Into the file that stands at the destination, which keeps its inode, its names and its readers.
//!
//! Not whole or absent: who reads it meanwhile sees what is there, and an error or a cancel leaves
//! a mixture of old and new. What the new file doesn't have is cut off last.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, Stat, fallocate, fstat, ftruncate, openat,
};

use super::Order;
use super::course::{Ground, fill, same};
use crate::copy::extents::{Extents, cut};
use crate::copy::options::{CopyOptions, Sparse};
use crate::copy::progress::Progress;
use crate::copy::resolve::{Source, Target, same_file};
use crate::sys::{Errno, Fail, OrFail, Result};

/// Bytes of one fallocate, and of the zeros that are written where there is none.
const PUNCH: u64 = 1 << 30;
const ZEROS: usize = 1 << 20;

struct InPlace<'a> {
    file: OwnedFd,
    source: BorrowedFd<'a>,
    progress: &'a Progress,
}

pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<()> {
    let file = open(source, target)?;
    let ground = InPlace {
        file,
        source: source.file.as_fd(),
        progress: order.progress,
    };
    // Zeros of the source must replace what is there, not be left out: the language refuses it.
    let sparse = match order.options.sparse {
        Sparse::Never => Sparse::Never,
        Sparse::Auto | Sparse::Always => Sparse::Auto,
    };
    let options = CopyOptions {
        sparse,
        ..order.options.clone()
    };
    let order = Order {
        options: &options,
        ..*order
    };
    fill(source, &ground, &order).map_err(|fail| {
        let detail = fail.detail.as_deref().unwrap_or_default();
        let gap = if detail.is_empty() { "" } else { "; " };
        let words = format!("{detail}{gap}written in place, it may be a mixture of old and new");
        fail.because(words)
    })
}

/// Opens what stands at the destination by now.
fn open(source: &Source, target: &Target) -> Result<OwnedFd> {
    let common = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| {
        openat(
            &target.directory,
            &target.name,
            flags | common,
            Mode::empty(),
        )
    };
    let file = match open(OFlags::RDWR) {
        // Write permission alone is enough to be written to.
        Err(Errno::ACCESS) => open(OFlags::WRONLY),
        other => other,
    };
    let file = file.map_err(|errno| {
        Fail::new(errno, "open").because("the file that stands at the destination")
    })?;
    let stat = fstat(&file).or_fail("fstat")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(
            Fail::new(Errno::INVAL, "open").because("the destination is not a regular file")
        );
    }
    if same_file(&stat, &source.stat) {
        return Err(same());
    }
    Ok(file)
}

impl Ground for InPlace<'_> {
    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn is_new(&self) -> bool {
        false
    }

    /// What is a hole in the source must not show the old bytes.
    fn begin(&self, source: &Stat) -> Result<Vec<Range<u64>>> {
        let size = |stat: &Stat| u64::try_from(stat.st_size).unwrap_or(0);
        let end = size(source).min(size(&fstat(&self.file).or_fail("fstat")?));
        let mut at = 0;
        for extent in Extents::starting(self.source, 0, end) {
            let extent = extent?;
            self.clear(at..extent.start)?;
            at = extent.end;
        }
        self.clear(at..end)?;
        Ok(Vec::new())
    }

    fn complete(&self, source: &Stat) -> Result<()> {
        let own = fstat(&self.file).or_fail("fstat")?;
        // Of a file that has less than it says, its end is where reading it ended, and this one was
        // cut there.
        if source.st_size == 0 || own.st_size <= source.st_size {
            return Ok(());
        }
        let size = u64::try_from(source.st_size).unwrap_or(0);
        ftruncate(&self.file, size).or_fail("ftruncate")
    }

    fn start_over(&self) -> Result<()> {
        Ok(())
    }
}

impl InPlace<'_> {
    fn clear(&self, hole: Range<u64>) -> Result<()> {
        for part in cut(hole, PUNCH) {
            self.progress.check()?;
            let len = part.end - part.start;
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, punch, part.start, len) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {
                    self.write_zeros(part)?;
                }
                Err(errno) => return Err(errno).or_fail("fallocate"),
            }
        }
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let zeros = vec![0; ZEROS];
        let mut at = range.start;
        while at < range.end {
            self.progress.check()?;
            let left = usize::try_from(range.end - at).unwrap_or(ZEROS);
            match rustix::io::pwrite(&self.file, &zeros[..left.min(ZEROS)], at) {
                Ok(count) => at += count as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).or_fail("pwrite"),
            }
        }
        Ok(())
    }
}
