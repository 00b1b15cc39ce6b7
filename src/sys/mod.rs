//! The few system calls that no crate wraps, and the error type that all floors share.

pub mod aligned;
pub mod clone;
pub mod creds;
mod fail;
pub mod fanotify;
pub mod flags;
pub mod fsuuid;
pub mod handle;
pub mod memory;
pub mod mountinfo;
pub mod ofd;
pub mod pages;
pub mod priority;
pub mod process;
pub mod procfd;
pub mod sandbox;
pub mod sched;
pub mod short;
pub mod signals;
#[cfg(test)]
pub(crate) mod testing;
pub mod umask;
pub mod usage;
pub mod watch;

pub use aligned::Aligned;
pub use fail::{Errno, Fail, OrFail, Result};

/// Has a file system tell what it would at close(2), of a file that stays open: network file systems
/// and FUSE write out what they hold back, and say there what they could not.
///
/// # Errors
/// EMFILE; EIO, ENOSPC, EDQUOT.
pub fn flush(file: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    close(rustix::io::fcntl_dupfd_cloexec(file, 3).or_fail("dup")?)
}

/// Closes a descriptor and tells what the file system had to say: network file systems report
/// there what they could not write (close(2)).
///
/// # Errors
/// EIO, ENOSPC, EDQUOT. The descriptor is closed all the same.
pub fn close(fd: std::os::fd::OwnedFd) -> Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: we own the descriptor, and into_raw_fd gave up the only other claim to it.
    match unsafe { libc::close(fd.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(handle::last_error("close")),
    }
}
