//! The course of one regular file's copy: whole or absent, unless it goes into a file in place.
//!
//! `course` holds the source to one state; `whole`, `inplace` and `resume` are the places that
//! the bytes go to; `moving` moves them; `pipeline` moves those of a range of open files; `verify`
//! reads them again; `journal` remembers them.

mod course;
mod inplace;
mod journal;
mod moving;
mod pipeline;
mod ranges;
mod resume;
pub(super) mod small;
mod verify;
mod whole;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;
use rustix::io::pwrite;

use super::leftovers;
use super::options::CopyOptions;
use super::progress::Progress;
use super::resolve::{Source, Target, file_type, same_file};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, OrFail, Result};

pub use ranges::copy_range;

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

/// Copies `source` to where `target` says: data and what is to be preserved; holes stay holes.
///
/// Whole or absent: on any error, or when cancelled, what stood there stands unchanged and nothing
/// is left behind. With `inplace`, a file that stands there is written into instead: then it may be
/// left as a mixture. What came to stand there meanwhile may be to stay (`Target::newcomer`): then
/// the answer is false, and nothing is copied. With `resume`, what a large copy has is left behind under a hidden name when
/// it is interrupted, and the next one goes on from it.
///
/// First, once a job and directory, what dead copies have left there is removed.
///
/// With `sync` the file is on disk before it gets its name; to have the name there, too, is left to
/// the caller, who may have more of them in that directory.
///
/// The set-user-id and set-group-id bits are kept only with the owner and group that they are for.
///
/// # Errors
/// EINVAL when both are the same file, and for `inplace` with `resume`; EINTR when cancelled; EBUSY
/// for a source that changes all the time (told by size, mtime and ctime: a change within the
/// clock's grain escapes), and when another resumed copy to that name is under way; EIO for a page
/// of the source that can't be had, and for a copy that is read back wrong (`verify`); else the
/// kernel's own, ENOSPC before the work begins where the file system can reserve space.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<bool> {
    let existing = target.existing.as_ref();
    if existing.is_some_and(|stat| same_file(stat, &source.stat)) {
        return Err(course::same());
    }
    let options = order.options;
    if options.inplace && options.resume {
        return Err(Fail::new(Errno::INVAL, "copy")
            .because("what goes into a file in place can't be resumed"));
    }
    order.progress.check()?;
    let parts = leftovers::visit(target.directory.as_fd(), order.progress)?;
    // A link that stands there is replaced, not followed.
    let is_file = |stat| file_type(stat) == FileType::RegularFile;
    if options.inplace && existing.is_some_and(is_file) {
        return inplace::copy(source, target, order).map(|()| true);
    }
    if options.resume && resume::is_worth_it(&source.stat) {
        return resume::copy(source, target, order);
    }
    let placed = whole::copy(source, target, order)?;
    if parts {
        resume::abandon(target);
    }
    Ok(placed)
}

/// Writes all bytes at `at`, whatever interrupts.
fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, at) {
            Ok(0) => return Err(Fail::new(Errno::IO, "pwrite")),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fail("pwrite"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
