//! `/proc/self/fd`: the way from an `O_PATH` descriptor to the calls that refuse one.
//!
//! An `O_PATH` descriptor names an inode but can't be read, nor given to `fgetxattr`, `fchmod` and
//! their like (open(2)). Its magic link in `/proc/self/fd` leads to the very same inode, whatever
//! has been renamed in the meantime.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::path::DecInt;

use super::{OrFail, Result};

/// The folder `/proc/self/fd`, opened once.
#[derive(Debug)]
pub struct ProcFd(OwnedFd);

impl ProcFd {
    /// Opens the folder.
    ///
    /// # Errors
    /// Those of open(2); ENOENT where no procfs is mounted.
    pub fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/fd", flags, Mode::empty())
            .map(Self)
            .or_fail("open /proc/self/fd")
    }

    /// Opens the inode behind `fd` anew, as a description of its own.
    ///
    /// # Errors
    /// Those of open(2), for the rights of the calling thread.
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        // O_NOFOLLOW would stop at the magic link itself.
        let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, DecInt::from_fd(fd), flags, Mode::empty()).or_fail("open")
    }

    /// The folder itself, for the `*at` calls that take a name in it.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The name of `fd` below [`ProcFd::dir`].
pub fn name(fd: BorrowedFd<'_>) -> DecInt {
    DecInt::from_fd(fd)
}

/// The absolute path of the magic link, for the calls that take nothing but a path (xattr).
pub fn path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// All that a file of procfs says. It has no size, so the standard library begins with 32 bytes and
/// doubles them: a dozen calls for a page.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(8 << 10);
    // Of a `Take` no size is asked.
    let file = File::open(path)?;
    file.take(u64::MAX).read_to_end(&mut text)?;
    Ok(text)
}
