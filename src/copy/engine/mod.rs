//! The course of one regular file's copy: whole or absent.

mod moving;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Stat, fstat, ftruncate};

use self::moving::Pass;
use super::attributes;
use super::options::CopyOptions;
use super::progress::Progress;
use super::publish::Temporary;
use super::resolve::{Source, Target, same_file};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, OrFail, Result};

/// A source that changes under the copy gets this many attempts.
const ATTEMPTS: usize = 2;

/// How to copy, and whom to tell.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// How.
    pub options: &'a CopyOptions,
    /// Who looks on, holds, slows or stops it.
    pub progress: &'a Progress,
    /// What is counted for all copies.
    pub metrics: &'a Metrics,
}

/// Copies `source` to where `target` says: data, mode and times; holes stay holes.
///
/// Whole or absent: on any error, or when cancelled, what stood there stands unchanged and nothing
/// is left behind. Not synced to disk.
///
/// The set-user-id and set-group-id bits are kept only with the owner and group that they are for.
///
/// # Errors
/// EINVAL when both are the same file; EINTR when cancelled; EBUSY for a source that changes all
/// the time (told by size, mtime and ctime: a change within the clock's grain escapes); EIO for a
/// page of the source that can't be had; else the kernel's own, ENOSPC before the work begins
/// where the file system can reserve space.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<()> {
    if target
        .existing
        .as_ref()
        .is_some_and(|stat| same_file(stat, &source.stat))
    {
        return Err(
            Fail::new(Errno::INVAL, "copy").because("source and destination are the same file")
        );
    }
    order.progress.check()?;
    let temporary = Temporary::create(target.directory.as_fd())?;
    let filled = fill(source, temporary.file(), order).and_then(|()| order.progress.check());
    match filled {
        Ok(()) => temporary.publish(target),
        Err(fail) => {
            temporary.discard(target.directory.as_fd());
            Err(fail)
        }
    }
}

/// Fills the destination with one unchanging state of the source.
fn fill(source: &Source, destination: BorrowedFd<'_>, order: &Order<'_>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let before = fstat(&source.file).or_fail("fstat")?;
        let pass = Pass::new(source.file.as_fd(), destination, &before, order);
        let outcome = pass.run();
        match &outcome {
            // A page that was lost may have been truncated away: that is a change, too.
            Err(fail) if fail.errno != Errno::IO => return outcome,
            Err(_) | Ok(()) => {}
        }
        let after = fstat(&source.file).or_fail("fstat")?;
        if unchanged(&before, &after) {
            outcome?;
            let preserve = order.options.preserve;
            return attributes::keep(&source.stat, &before, destination, preserve);
        }
        pass.take_back();
        ftruncate(destination, 0).or_fail("ftruncate")?;
    }
    Err(Fail::new(Errno::BUSY, "copy").because("the source changed while copying"))
}

fn unchanged(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| {
        (
            stat.st_size,
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        )
    };
    state(before) == state(after)
}

#[cfg(test)]
mod tests;
