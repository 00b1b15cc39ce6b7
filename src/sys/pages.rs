//! What the page cache has of a file: cachestat(2), Linux 6.5, which no crate wraps.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `__NR_cachestat`, the same on every architecture (include/uapi/asm-generic/unistd.h).
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` (linux/mman.h), in bytes.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat` (linux/mman.h), in pages.
#[repr(C)]
#[derive(Default)]
struct Found {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many pages of `length` bytes from `offset` on are in the page cache; `None` where the kernel
/// does not tell, or not for that file.
pub fn cached(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Option<u64> {
    look(fd, offset, length).map(|found| found.cached)
}

/// How many of these pages are dirty, or being written; `None` as for [`cached`].
pub fn unwritten(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Option<u64> {
    look(fd, offset, length).map(|found| found.dirty + found.writeback)
}

fn look(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Option<Found> {
    let range = Range { offset, length };
    let mut found = Found::default();
    // SAFETY: both structures are laid out as the kernel's, and live over the call, which reads the
    // one and writes the other; no flag is known.
    let done = unsafe {
        libc::syscall(
            CACHESTAT,
            fd.as_raw_fd(),
            &raw const range,
            &raw mut found,
            0_u32,
        )
    };
    (done == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn pages_of_a_file_that_was_just_written_are_cached_and_those_behind_its_end_are_not() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 0).unwrap();
        let Some(pages) = cached(file.as_fd(), 0, 8192) else {
            return eprintln!("SKIP: no cachestat in this kernel");
        };
        assert_eq!(pages, 2);
        file.sync_all().unwrap();
        assert_eq!(unwritten(file.as_fd(), 0, 8192), Some(0));
        std::os::unix::fs::FileExt::write_all_at(&file, &[2; 100], 0).unwrap();
        // On disk, or in memory alone (tmpfs keeps all its pages dirty or none).
        assert!(unwritten(file.as_fd(), 0, 8192).is_some_and(|pages| pages <= 2));
        assert_eq!(cached(file.as_fd(), 1 << 20, 8192), Some(0));
    }
}
