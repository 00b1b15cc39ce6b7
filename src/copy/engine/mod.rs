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

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;
use rustix::io::pwrite;

use super::leftovers;
use super::options::CopyOptions;
use super::progress::Progress;
use super::publish::Temporary;
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

/// What a copy has come to when all its bytes are there.
pub(super) enum Prepared {
    /// It was written into what stands there, and is done.
    InPlace,
    /// It is to be given its name.
    Apart(Complete),
}

/// A copy that is complete, and has not got its name yet.
///
/// Ends by [`Complete::publish`], [`Complete::discard`] or [`Complete::interrupt`].
pub(super) struct Complete {
    temporary: Temporary,
    /// It goes with the part that it is about.
    journal: Option<OsString>,
    /// An interrupted copy to the same name may be there.
    parts: bool,
}

impl Complete {
    /// Puts it in its place; false when what has come to stand there is to stay. Then, and on an
    /// error, nothing has changed and nothing is left.
    pub(super) fn publish(self, target: &Target) -> Result<bool> {
        let directory = target.directory.as_fd();
        // First, while nobody else can go on from the part.
        if let Some(journal) = &self.journal {
            leftovers::unlink(directory, journal);
        }
        let published = self.temporary.publish(target);
        if self.parts && matches!(published, Ok(true)) {
            abandon(directory, &target.name);
        }
        published
    }

    /// Gives it up, for what stands there is to stay; nothing of it is left in the directory.
    pub(super) fn discard(self, directory: BorrowedFd<'_>) {
        if let Some(journal) = &self.journal {
            leftovers::unlink(directory, journal);
        }
        self.temporary.discard(directory);
    }

    /// Gives it up after an error, from which `resume` is to go on; nothing else is left.
    pub(super) fn interrupt(self, directory: BorrowedFd<'_>) {
        if self.journal.is_none() {
            self.temporary.discard(directory);
        }
    }
}

/// Removes what an interrupted copy to a name has left, now that another one stands there.
pub(super) fn abandon(directory: BorrowedFd<'_>, name: &OsStr) {
    leftovers::abandon(directory, &resume::part_name(name));
}

/// Copies `source` for where `target` says: data and what is to be preserved; holes stay holes. The
/// copy gets its name by [`Complete::publish`].
///
/// Whole or absent: on any error, or when cancelled, what stood there stands unchanged and nothing
/// is left behind. With `inplace`, a file that stands there and needs no backup is written into
/// instead: then it may be left as a mixture. With `resume`, what a large copy has is left behind
/// under a hidden name when it is interrupted, and the next one goes on from it.
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
pub(super) fn prepare(source: &Source, target: &Target, order: &Order<'_>) -> Result<Prepared> {
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
    // One that is kept as a backup is not written into.
    let inplace = options.inplace && !target.newcomer.needs_backup;
    if inplace && existing.is_some_and(is_file) {
        inplace::copy(source, target, order)?;
        if parts {
            abandon(target.directory.as_fd(), &target.name);
        }
        return Ok(Prepared::InPlace);
    }
    let complete = match options.resume && resume::is_worth_it(&source.stat) {
        true => resume::copy(source, target, order)?,
        false => Complete {
            temporary: whole::copy(source, target, order)?,
            journal: None,
            parts,
        },
    };
    Ok(Prepared::Apart(complete))
}

/// Prepares and publishes.
#[cfg(test)]
fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<bool> {
    match prepare(source, target, order)? {
        Prepared::InPlace => Ok(true),
        Prepared::Apart(copy) => copy.publish(target),
    }
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
