//! The UUID of a file system, asked of the kernel.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Result;
use super::handle::last_error;

/// `struct fsuuid2` (linux/fs.h).
#[repr(C)]
struct Uuid {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

/// The bytes of the UUID of the file system behind `fd`.
///
/// # Errors
/// ENOTTY where it has none, or the kernel is older than Linux 6.9. The kernel answers by itself:
/// no file system is asked.
pub fn of(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut told = Uuid {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the call writes at most one `struct fsuuid2`, which `told` is.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID as _, &raw mut told) };
    if done < 0 {
        return Err(last_error("ioctl FS_IOC_GETFSUUID"));
    }
    let len = usize::from(told.len).min(told.uuid.len());
    Ok(told.uuid[..len].to_vec())
}
