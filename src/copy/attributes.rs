//! What a copy has of its source besides the bytes: mode, owner, times.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, Stat, Timespec, Timestamps, fchmod, fstat, futimens};

use super::options::Preserve;
use crate::sys::{Errno, OrFail, Result};

/// Gives a regular file what `preserve` says of its source; the access time as it was at `opened`,
/// before we read.
///
/// The set-user-id and set-group-id bits are kept only with the owner and group that they are for.
pub(super) fn keep(
    _source: BorrowedFd<'_>,
    opened: &Stat,
    source: &Stat,
    destination: BorrowedFd<'_>,
    preserve: Preserve,
) -> Result<()> {
    let own = fstat(destination).or_fail("fstat")?;
    let mut mode = Mode::from_raw_mode(source.st_mode & 0o7777);
    if own.st_uid != source.st_uid {
        mode -= Mode::SUID | Mode::SGID;
    } else if own.st_gid != source.st_gid {
        mode -= Mode::SGID;
    }
    let times = Timestamps {
        last_access: time(opened.st_atime, opened.st_atime_nsec),
        last_modification: time(source.st_mtime, source.st_mtime_nsec),
    };
    if preserve.mode {
        kept(fchmod(destination, mode), "fchmod")?;
    }
    if preserve.timestamps {
        kept(futimens(destination, &times), "futimens")?;
    }
    Ok(())
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_wrap,
    reason = "the width differs between machines; nanoseconds are below 2^30"
)]
fn time(seconds: impl Into<i64>, nanoseconds: impl TryInto<i64>) -> Timespec {
    Timespec {
        tv_sec: seconds.into(),
        tv_nsec: nanoseconds.try_into().unwrap_or(0) as _,
    }
}

/// A file system without modes or times (vfat) says so of our own file: then there is nothing to
/// keep.
fn kept(answer: rustix::io::Result<()>, operation: &'static str) -> Result<()> {
    match answer {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => other.or_fail(operation),
    }
}
