//! Files, directories with what is in them, links and special files: what one `SRC... DST` names.
//!
//! Names are resolved by whoever knows what they mean (a [`Names`]); beneath what it found every
//! step is one component on a directory's descriptor, and no symbolic link is followed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::Stat;

use super::engine::Order;
use super::resolve::Target;
use crate::sys::Result;

/// What the names of a copy mean: beneath a mount's root, or as everywhere.
///
/// Called under the credentials of the one who copies, from several threads.
pub trait Names: Sync {
    /// Finds what is to be copied, and opens it as an `O_PATH` descriptor. A symbolic link at the
    /// end of the name is what is found, unless it is to be followed or a slash comes after it.
    ///
    /// # Errors
    /// ENOENT, EACCES, ELOOP, ENAMETOOLONG as the kernel has them; EXDEV for what lies outside.
    fn source(&self, name: &[u8], follow: bool) -> Result<Found>;

    /// Finds where a copy goes. A link to a directory leads there; one to anything else is
    /// followed if `follow` says so, else is what stands there.
    ///
    /// # Errors
    /// As [`Names::source`]; ENOENT when the directory that would hold it is missing, and for a
    /// link to nothing that would be followed.
    fn destination(&self, name: &[u8], follow: bool) -> Result<Destination>;

    /// Whether `name` in this directory is somebody else's and can't be made (`.copy`, `.corfs`).
    fn is_reserved(&self, directory: BorrowedFd<'_>, name: &OsStr) -> bool;

    /// The file creation mask of the one who copies.
    fn umask(&self) -> u32;

    /// A name has come to mean something else. Called for each as it happens (a list would grow
    /// with the tree), by any thread at work, under the credentials of the one who copies, with no
    /// lock held; the copy goes on when it returns.
    fn published(&self, directory: BorrowedFd<'_>, name: &OsStr);
}

/// Something to be copied.
#[derive(Debug)]
pub struct Found {
    /// `O_PATH`, of the file itself (also of a symbolic link).
    pub file: OwnedFd,
    /// What it is.
    pub stat: Stat,
    /// Its last name, under which a directory takes it; empty for `.` and `..`, whose contents
    /// go into the directory itself, as with cp.
    pub name: OsString,
}

/// Where a copy goes.
#[derive(Debug)]
pub enum Destination {
    /// A directory that stands there, `O_PATH`.
    Directory(OwnedFd),
    /// A name at which no directory stands.
    Name {
        /// The directory and the name, and what stands there (a link is not followed in this).
        target: Target,
        /// A slash ends it: only a directory may be made there.
        only_directory: bool,
    },
}

/// Copies what is named, in order, to the destination: into it where a directory stands there
/// (unless `no_target_directory`), which must be so for more than one source.
///
/// Each regular file is whole or absent. What can't be copied is counted and told to
/// [`Progress::failed`](super::progress::Progress); the rest is copied all the same.
///
/// # Errors
/// For a single source that can't be begun its own error; ENOTDIR when there are several and the
/// destination is no directory; EINVAL for a directory into itself; EINTR when cancelled; else the
/// errno of the first that failed, with how many there were.
pub fn copy_all(
    sources: &[Vec<u8>],
    destination: &[u8],
    names: &dyn Names,
    order: &Order<'_>,
) -> Result<()> {
    let _ = (sources, destination, names, order);
    Err(crate::sys::Fail::new(crate::sys::Errno::NOSYS, "copy"))
}
