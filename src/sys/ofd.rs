//! Open file description locks (fcntl(2), F_OFD_*): POSIX byte-range locks that belong to a
//! description instead of a process, so that one server can hold them for many owners.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::handle::last_error;
use super::{Errno, Fail, Result};

/// A byte-range lock as the FUSE protocol has it: both ends inclusive, `u64::MAX >> 1` or more
/// meaning the end of all files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// The process that holds it; 0 or less when the kernel can't tell (an OFD lock).
    pub pid: i32,
}

const TO_THE_END: u64 = i64::MAX as u64;

impl Lock {
    fn to_flock(self) -> Result<libc::flock> {
        let start = i64::try_from(self.start).map_err(|_| Fail::new(Errno::OVERFLOW, "fcntl"))?;
        let length = if self.end >= TO_THE_END {
            0
        } else {
            (self.end - self.start + 1) as i64
        };
        Ok(libc::flock {
            l_type: self.kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: length,
            l_pid: 0,
        })
    }
}

/// Takes or drops a lock without waiting (F_OFD_SETLK).
///
/// # Errors
/// EAGAIN when another holds a conflicting one, EBADF when the descriptor's mode does not allow
/// this kind.
pub fn set(fd: BorrowedFd<'_>, lock: Lock) -> Result<()> {
    let raw = lock.to_flock()?;
    // SAFETY: `raw` is a valid struct flock with l_pid 0, as F_OFD_SETLK demands.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const raw) };
    if done < 0 {
        return Err(last_error("fcntl F_OFD_SETLK"));
    }
    Ok(())
}

/// How long to wait before asking for a lock again.
const AGAIN: Duration = Duration::from_micros(300);

/// Takes a lock, asking again until `deadline`. Not `F_OFD_SETLKW`: its holder may be a process
/// that was stopped, and nobody could end the waiting.
///
/// # Errors
/// EAGAIN when the deadline passed; those of [`set`].
pub fn set_by(fd: BorrowedFd<'_>, lock: Lock, deadline: Instant) -> Result<()> {
    loop {
        match set(fd, lock) {
            Err(fail) if fail.errno == Errno::AGAIN && Instant::now() < deadline => {
                std::thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}

/// The first lock that stands in the way of `lock`, if any (F_OFD_GETLK).
///
/// # Errors
/// Those of fcntl(2).
pub fn get(fd: BorrowedFd<'_>, lock: Lock) -> Result<Option<Lock>> {
    let mut raw = lock.to_flock()?;
    // SAFETY: `raw` is a valid struct flock that the kernel may overwrite.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut raw) };
    if done < 0 {
        return Err(last_error("fcntl F_OFD_GETLK"));
    }
    if i32::from(raw.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = raw.l_start as u64;
    Ok(Some(Lock {
        kind: i32::from(raw.l_type),
        start,
        end: match raw.l_len {
            0 => TO_THE_END,
            length => start + length as u64 - 1,
        },
        pid: raw.l_pid,
    }))
}
