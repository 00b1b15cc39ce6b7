//! A directory that is filled under a hidden name, and gets its own when everything is in.
//!
//! It is locked by the one who fills it, as a temporary file is (see `leftovers`), and marked: a
//! sticky bit that nobody else has any use for, in a directory of its owner alone. Only its owner
//! can have set that; the name alone would let whoever may rename somebody's directory have it
//! emptied by the next copy.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, mkdirat,
    openat, renameat_with, statat, unlinkat,
};

use super::leftovers::{hidden_name, hold};
use super::resolve::same_file;
use crate::sys::{Errno, OrFail, Result};

const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const MARK: u32 = 0o1700;
/// Each ends by somebody else's doing, of which there can't be so much.
const TRIES: usize = 16;

/// The name of such a directory.
pub(super) struct Unseen(OsString);

impl Unseen {
    /// Makes one, and opens it; it is locked as long as it is open. Nothing where that can't be
    /// done so.
    ///
    /// # Errors
    /// Those of mkdirat(2).
    pub(super) fn make(holder: BorrowedFd<'_>) -> Result<Option<(Self, OwnedFd)>> {
        for _ in 0..TRIES {
            let name = hidden_name();
            match mkdirat(holder, &name, Mode::from_raw_mode(MARK)) {
                Err(Errno::EXIST) => continue,
                other => other.or_fail("mkdirat")?,
            }
            let unseen = Self(name);
            // A mask may have taken from the owner.
            let opened = openat(holder, &unseen.0, LIST, Mode::empty());
            let Some(file) = opened.ok().filter(|file| is_marked(file.as_fd())) else {
                unseen.remove(holder);
                return Ok(None);
            };
            // Not ours to hold: removed as a leftover in the moment before it was locked.
            if hold(file.as_fd())? {
                return Ok(Some((unseen, file)));
            }
        }
        Ok(None)
    }

    /// The hidden name.
    pub(super) fn name(&self) -> &OsStr {
        &self.0
    }

    /// Gives it its name. False when something stands there.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub(super) fn publish(&self, holder: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
        match renameat_with(holder, &self.0, holder, name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            // EINVAL: the file system does not know how.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno).or_fail("renameat2"),
        }
    }

    /// Removes it, and the files in it.
    pub(super) fn remove(&self, holder: BorrowedFd<'_>) {
        if let Ok(folder) = openat(holder, &self.0, LIST, Mode::empty()) {
            empty(&folder);
        }
        if let Err(errno) = unlinkat(holder, &self.0, AtFlags::REMOVEDIR) {
            log::warn!(
                "a hidden directory stays behind, {}: {errno}",
                self.0.display()
            );
        }
    }
}

/// Removes a directory of that name if it is one of these, and nobody fills it any more.
pub(super) fn remove_leftover(holder: BorrowedFd<'_>, name: &OsStr) {
    let Ok(folder) = openat(holder, name, LIST, Mode::empty()) else {
        return;
    };
    if !is_marked(folder.as_fd())
        || flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return;
    }
    // One that was done between the open and the lock has got its name.
    let is_named = || {
        let named = statat(holder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(same_file(&named, &fstat(&folder).ok()?))
    };
    if is_named() == Some(true) {
        empty(&folder);
        let _ = unlinkat(holder, name, AtFlags::REMOVEDIR);
    }
}

/// Removes the files in a directory; what is none, somebody else has put there.
fn empty(folder: &OwnedFd) {
    // Of its own position.
    let Ok(list) = openat(folder, c".", LIST, Mode::empty()).and_then(Dir::new) else {
        return;
    };
    for entry in list.flatten() {
        if entry.file_name() != c"." && entry.file_name() != c".." {
            let _ = unlinkat(folder, entry.file_name(), AtFlags::empty());
        }
    }
}

fn is_marked(folder: BorrowedFd<'_>) -> bool {
    fstat(folder).is_ok_and(|stat| {
        // The set-group-id bit comes from the directory above.
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && stat.st_mode & 0o1777 == MARK
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use rustix::fs::open;

    use super::*;

    fn folder_of(path: &Path) -> OwnedFd {
        open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn it_appears_whole_and_never_over_what_stands_there() {
        let folder = tempfile::tempdir().unwrap();
        let holder = folder_of(folder.path());
        for name in ["one", "two"] {
            let (unseen, file) = Unseen::make(holder.as_fd()).unwrap().unwrap();
            openat(&file, "f", OFlags::CREATE, Mode::RUSR).unwrap();
            fs::create_dir_all(folder.path().join("two")).unwrap();
            let published = unseen.publish(holder.as_fd(), name.as_ref()).unwrap();
            assert_eq!(published, name == "one");
            if !published {
                unseen.remove(holder.as_fd());
            }
        }
        assert!(folder.path().join("one/f").exists());
        assert!(!folder.path().join("two/f").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_filled_or_not_marked_is_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let holder = folder_of(folder.path());
        let (unseen, file) = Unseen::make(holder.as_fd()).unwrap().unwrap();
        let at = folder.path().join(&unseen.0);
        let file_within = at.join("f");
        fs::write(&file_within, "text").unwrap();
        remove_leftover(holder.as_fd(), &unseen.0);
        assert!(file_within.exists(), "somebody fills it");
        drop(file);
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
        remove_leftover(holder.as_fd(), &unseen.0);
        assert!(file_within.exists(), "somebody's own");
        fs::set_permissions(&at, fs::Permissions::from_mode(0o1700)).unwrap();
        remove_leftover(holder.as_fd(), &unseen.0);
        assert!(!at.exists());
    }
}
