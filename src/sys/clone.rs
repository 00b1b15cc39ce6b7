//! Shared extents: ioctl_ficlonerange(2). Of a whole file rustix has it.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Errno;

/// Lets `len` bytes of `to` from `to_at` on share the extents of `from` from `from_at` on. Offsets
/// and length are multiples of the file system's block, but for a length that ends with the
/// source; 0 means to its end.
///
/// # Errors
/// EXDEV, EOPNOTSUPP, ENOTTY, EINVAL, EPERM, ETXTBSY where it is not possible here; ENOSPC, EDQUOT,
/// EIO.
pub fn range(
    from: (BorrowedFd<'_>, u64),
    len: u64,
    to: (BorrowedFd<'_>, u64),
) -> Result<(), Errno> {
    let what = libc::file_clone_range {
        src_fd: i64::from(from.0.as_raw_fd()),
        src_offset: from.1,
        src_length: len,
        dest_offset: to.1,
    };
    // SAFETY: the call reads a struct file_clone_range, which lives through it.
    let done = unsafe { libc::ioctl(to.0.as_raw_fd(), libc::FICLONERANGE, &raw const what) };
    if done < 0 {
        return Err(super::handle::last_error("ioctl FICLONERANGE").errno);
    }
    Ok(())
}
