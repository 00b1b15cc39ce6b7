//! Raw mappings and the advice given on them.
//!
//! No Rust reference to mapped bytes exists except inside [`RawMap::lend`]: another process may
//! change or truncate the file at any moment, which a reference would promise not to happen.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::Advice;

use crate::sys::Errno;

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// Reading and writing; stores reach the file.
    Write,
}

/// A shared mapping of part of a file, unmapped when dropped.
#[derive(Debug)]
pub(super) struct RawMap {
    map: MmapRaw,
    access: Access,
}

impl RawMap {
    /// Maps `len` bytes from `offset` on, which may reach behind the end of the file.
    ///
    /// # Errors
    ///
    /// EINVAL for no bytes or an offset within a page, EOVERFLOW behind what an offset can name,
    /// else what mmap(2) said (ENODEV: this file cannot be mapped).
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Self, Errno> {
        if len == 0 || !offset.is_multiple_of(rustix::param::page_size() as u64) {
            return Err(Errno::INVAL);
        }
        let end = offset.checked_add(len as u64).ok_or(Errno::OVERFLOW)?;
        if i64::try_from(end).is_err() || isize::try_from(len).is_err() {
            return Err(Errno::OVERFLOW);
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(len);
        let map = match access {
            Access::Read => options.map_raw_read_only(fd.as_raw_fd()),
            Access::Write => options.map_raw(fd.as_raw_fd()),
        };
        map.map(|map| Self { map, access })
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// The address of the first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// EINVAL unless `range` lies within the mapping.
    pub(super) fn check(&self, range: &Range<usize>) -> Result<(), Errno> {
        if range.start <= range.end && range.end <= self.len() {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }

    /// Starts the I/O for the range and returns at once. A hint: it cannot fail.
    pub(super) fn will_need(&self, range: &Range<usize>) {
        let _ = self.advise(range, Advice::WillNeed);
    }

    /// Takes the pages of the range out of this mapping, though not out of the page cache: they
    /// no longer count as this process' memory. A hint: it cannot fail.
    pub(super) fn release(&self, range: &Range<usize>) {
        // Of a shared mapping of a file it changes no byte (madvise(2), MADV_DONTNEED).
        let _ = self.advise(range, Advice::LinuxDontNeed);
    }

    /// Makes the pages of the range present, so that who reads (or writes) them next finds them.
    /// Truth of this moment only: truncation or reclaim may follow.
    ///
    /// A kernel before 5.14 answers EINVAL: the pages then come when touched, which is slower and
    /// for those who touch them no different from a truncation behind a populate.
    ///
    /// # Errors
    ///
    /// EFAULT for pages behind the end of the file or lost to an I/O error, EHWPOISON for broken
    /// memory, ENOMEM, EINVAL for a range outside of the mapping.
    pub(super) fn populate(&self, range: &Range<usize>, access: Access) -> Result<(), Errno> {
        self.check(range)?;
        let advice = match access {
            Access::Read => Advice::LinuxPopulateRead,
            Access::Write => Advice::LinuxPopulateWrite,
        };
        loop {
            match self.advise(range, advice) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => std::thread::yield_now(),
                Err(Errno::INVAL) => return Ok(()),
                answer => return answer,
            }
        }
    }

    /// madvise(2) on the pages that the range touches.
    fn advise(&self, range: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        self.check(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let start = range.start - range.start % rustix::param::page_size();
        let address = self.start().wrapping_add(start).cast();
        // SAFETY: `check` holds the range within the mapping, whose start is page aligned; the
        // kernel rounds the length up to the page that the mapping ends with anyway. The advice
        // given in this module changes no byte.
        unsafe { rustix::mm::madvise(address, range.end - start, advice) }
    }

    /// Lends the bytes of the range, which must lie within the mapping (what does not is cut off),
    /// to a system call. `f` must do nothing with them but that: a page that can't be had makes
    /// the kernel answer EFAULT, and would kill us.
    pub(super) fn lend<R>(&self, range: Range<usize>, f: impl FnOnce(&[u8]) -> R) -> R {
        debug_assert!(self.check(&range).is_ok());
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        let address = self.start().cast_const().wrapping_add(start);
        // SAFETY: the range lies within the mapping, which outlives `self`'s borrow and is at most
        // isize::MAX long. The bytes may change or vanish under the slice (another process writes
        // or truncates the file). That is sound here because no code of this process reads through
        // it: `f` hands pointer and length to a system call, the kernel copies, and a lost page is
        // EFAULT or a short count there.
        let bytes = unsafe { std::slice::from_raw_parts(address, end - start) };
        f(bytes)
    }
}
