//! One directory of a tree: where it comes from and goes to, and what is still to be done for it.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags, Stat, fstat, openat};

use crate::sys::{OrFail, Result};

/// For the directories of a source, which are listed.
pub(super) const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// For those of a copy, which may be unreadable.
pub(super) const PLACE: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What is known of a directory without its descriptors: about 300 bytes and its name. It lives as
/// long as the walk is in it, one of its files waits for a worker, or a hard link leads to it.
pub(super) struct Folder {
    /// The one above it, within the same tree.
    pub(super) above: Option<Arc<Folder>>,
    /// Its name in the source's tree; for the top as it was named.
    pub(super) name: OsString,
    /// Where names of the copy begin: for the top alone.
    pub(super) base: Option<Base>,
    /// The source as it was opened.
    pub(super) stat: Stat,
    /// Device and inode of the copy.
    pub(super) copy: (u64, u64),
    /// It did not stand there before.
    pub(super) made: bool,
    /// It gives what is made in it an ACL.
    pub(super) gives_acl: bool,
    /// The walk, while it lists it, and batches of its files that wait or are worked at: the last
    /// of them gives it its attributes.
    pending: AtomicUsize,
    /// Not all that is in it was looked at.
    falls_short: AtomicBool,
}

/// Where the copy of a tree stands.
pub(super) struct Base {
    pub(super) directory: Arc<OwnedFd>,
    /// Empty where it is the directory itself.
    pub(super) name: OsString,
}

impl Folder {
    pub(super) fn new(
        above: Option<Arc<Self>>,
        name: OsString,
        base: Option<Base>,
        stat: Stat,
        copy: (u64, u64),
        (made, gives_acl): (bool, bool),
    ) -> Arc<Self> {
        Arc::new(Self {
            above,
            name,
            base,
            stat,
            copy,
            made,
            gives_acl,
            pending: AtomicUsize::new(1),
            falls_short: AtomicBool::new(false),
        })
    }

    pub(super) fn enter(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// True for the last to leave.
    pub(super) fn leave(&self) -> bool {
        self.pending.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Not all that is in it is looked at: it does not count as done.
    pub(super) fn fall_short(&self) {
        self.falls_short.store(true, Ordering::Relaxed);
    }

    pub(super) fn falls_short(&self) -> bool {
        self.falls_short.load(Ordering::Relaxed)
    }

    /// The way from the top, which is not part of it, to `name` in this directory.
    pub(super) fn path_within(&self, name: &[u8]) -> Vec<u8> {
        self.joined(name, false)
    }

    /// The way to `name` in this directory as reached from what was named; itself for no name.
    pub(super) fn path(&self, name: &[u8]) -> Vec<u8> {
        self.joined(name, true)
    }

    fn joined(&self, name: &[u8], with_top: bool) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = vec![name];
        let mut at = Some(self);
        while let Some(folder) = at {
            if with_top || folder.above.is_some() {
                parts.push(folder.name.as_bytes());
            }
            at = folder.above.as_deref();
        }
        parts.retain(|part| !part.is_empty());
        parts.reverse();
        parts.join(&b'/')
    }

    /// Opens the copy of this directory again, from the base, name by name.
    ///
    /// # Errors
    /// Those of openat(2); a link in between is one (ENOTDIR).
    pub(super) fn open_copy(&self) -> Result<OwnedFd> {
        let mut names: Vec<&OsStr> = Vec::new();
        let mut at = self;
        while let Some(above) = at.above.as_deref() {
            names.push(&at.name);
            at = above;
        }
        let (mut open, first): (OwnedFd, _) = match &at.base {
            Some(base) if base.name.is_empty() => (dup(&base.directory)?, None),
            Some(base) => (dup(&base.directory)?, Some(base.name.as_os_str())),
            None => return Err(crate::sys::Fail::new(crate::sys::Errno::STALE, "open")),
        };
        for name in first.into_iter().chain(names.into_iter().rev()) {
            open = openat(&open, name, PLACE, Mode::empty()).or_fail("open")?;
        }
        Ok(open)
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).or_fail("dup")
}

/// Ends a chain link by link: dropped one within the other, those of a deep tree would not fit
/// on the stack.
impl Drop for Folder {
    fn drop(&mut self) {
        let mut next = self.above.take();
        while let Some(mut folder) = next.and_then(Arc::into_inner) {
            next = folder.above.take();
        }
    }
}

/// A directory that is open on both sides.
pub(super) struct Open {
    pub(super) folder: Arc<Folder>,
    pub(super) source: OwnedFd,
    pub(super) copy: OwnedFd,
}

impl Open {
    /// Opens the directory above this one again, where it was, or was moved to.
    ///
    /// # Errors
    /// ESTALE when another one is above this now.
    pub(super) fn above(&self, folder: &Arc<Folder>) -> Result<Self> {
        let source = openat(&self.source, c"..", LIST, Mode::empty()).or_fail("open")?;
        let copy = openat(&self.copy, c"..", PLACE, Mode::empty()).or_fail("open")?;
        let found = (fstat(source.as_fd()), fstat(copy.as_fd()));
        let (found, place) = (found.0.or_fail("fstat")?, found.1.or_fail("fstat")?);
        if id(&found) != id(&folder.stat) || id(&place) != folder.copy {
            return Err(crate::sys::Fail::new(crate::sys::Errno::STALE, "open")
                .because("a directory was moved while it was copied"));
        }
        Ok(Self {
            folder: Arc::clone(folder),
            source,
            copy,
        })
    }
}

/// Device and inode.
#[allow(
    clippy::unnecessary_cast,
    reason = "the width differs between machines"
)]
pub(super) fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// A path as it is shown, borrowed where there is nothing to join.
pub(super) fn shown<'a>(folder: Option<&Arc<Folder>>, name: &'a OsStr) -> Cow<'a, [u8]> {
    match folder {
        None => Cow::Borrowed(name.as_bytes()),
        Some(folder) => Cow::Owned(folder.path(name.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(depth: usize) -> Arc<Folder> {
        let stat = rustix::fs::stat("/").unwrap();
        let new =
            |above, name: &str| Folder::new(above, name.into(), None, stat, (0, 0), (true, false));
        (0..depth).fold(new(None, "top"), |above, _| new(Some(above), "d"))
    }

    #[test]
    fn paths_are_shown_from_what_was_named_and_matched_from_below_it() {
        let folder = chain(2);
        assert_eq!(folder.path(b"f"), b"top/d/d/f");
        assert_eq!(folder.path(b""), b"top/d/d");
        assert_eq!(folder.path_within(b"f"), b"d/d/f");
        assert_eq!(chain(0).path_within(b"f"), b"f");
    }

    #[test]
    fn a_deep_chain_ends_without_a_deep_stack() {
        drop(chain(1_000_000));
    }

    #[test]
    fn the_last_to_leave_is_told() {
        let folder = chain(0);
        folder.enter();
        assert!(!folder.leave());
        assert!(folder.leave());
    }
}
