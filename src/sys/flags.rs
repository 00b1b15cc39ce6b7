//! Inode flags (`lsattr`, `chattr`) and project numbers: ioctl_iflags(2), `FS_IOC_FSGETXATTR`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::Result;
use super::handle::last_error;

/// Bytes of a `struct fsxattr` (linux/fs.h).
pub const FSXATTR: usize = 28;

/// The bits of a new `chattr +j`, which ext4 lets only CAP_SYS_RESOURCE change
/// (fs/ext4/ioctl.c, ext4_ioctl_check_project and ext4_ioctl_setflags).
pub const JOURNAL_DATA: u32 = 0x4000;

// linux/fs.h; the numbers say `long`, what is passed is an `int` (ioctl_iflags(2), BUGS).
/// Asks for the flags.
pub const GET_FLAGS: u32 = 0x8008_6601;
/// Sets the flags.
pub const SET_FLAGS: u32 = 0x4008_6602;
/// Asks for a `struct fsxattr`.
pub const GET_FSXATTR: u32 = 0x801c_581f;
/// Sets what a `struct fsxattr` holds.
pub const SET_FSXATTR: u32 = 0x401c_5820;

/// The flags of an open file or directory, FS_*_FL.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP where the file system has none.
pub fn get(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut flags: libc::c_int = 0;
    // SAFETY: the call writes an int, though its number says long (see above).
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), u64::from(GET_FLAGS), &raw mut flags) };
    if done < 0 {
        return Err(last_error("ioctl FS_IOC_GETFLAGS"));
    }
    Ok(flags.cast_unsigned())
}

/// Sets the flags of an open file or directory; it need not be open for writing.
///
/// # Errors
/// EPERM, EOPNOTSUPP for a flag that the file system lacks, ENOTTY where it has none.
pub fn set(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    let flags: libc::c_int = flags.cast_signed();
    // SAFETY: the call reads an int that lives through it.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), u64::from(SET_FLAGS), &raw const flags) };
    if done < 0 {
        return Err(last_error("ioctl FS_IOC_SETFLAGS"));
    }
    Ok(())
}

/// The `struct fsxattr` of an open file or directory, as the kernel lays it out.
///
/// # Errors
/// As [`get`].
pub fn get_fsxattr(fd: BorrowedFd<'_>) -> Result<[u8; FSXATTR]> {
    let mut raw = [0; FSXATTR];
    // SAFETY: the call writes a struct fsxattr, which is that long and has no stricter alignment
    // for a copy to user space.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), u64::from(GET_FSXATTR), raw.as_mut_ptr()) };
    if done < 0 {
        return Err(last_error("ioctl FS_IOC_FSGETXATTR"));
    }
    Ok(raw)
}

/// Sets what a `struct fsxattr` holds.
///
/// # Errors
/// As [`set`]; EINVAL for what contradicts itself.
pub fn set_fsxattr(fd: BorrowedFd<'_>, raw: &[u8; FSXATTR]) -> Result<()> {
    // SAFETY: the call reads a struct fsxattr, which is that long, as above.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), u64::from(SET_FSXATTR), raw.as_ptr()) };
    if done < 0 {
        return Err(last_error("ioctl FS_IOC_FSSETXATTR"));
    }
    Ok(())
}
