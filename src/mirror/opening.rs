//! Opening what an `O_PATH` descriptor names, under Landlock too.
//!
//! Landlock looks from the dentry of a descriptor upwards for what allows the access. One that was
//! opened by file handle may have no parent, or be a hard link outside the source.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::Mirror;
use super::inode::Inode;
use super::reach::{Reach, openat_name_only};
use super::table::InodeTable;
use crate::sys::{Errno, Fail, Result};

impl Mirror {
    /// Opens an inode anew with `flags`; where these are not permitted (EPERM) with `lesser`:
    /// O_NOATIME is for the owner and root, and some files may only be appended to.
    ///
    /// # Errors
    /// Those of open(2); ESTALE when the inode is gone, or its name is not known.
    pub(super) fn reopen(&self, inode: &Inode, flags: OFlags, lesser: OFlags) -> Result<OwnedFd> {
        let open = |flags| {
            self.table.by_a_name(inode, |fd| {
                self.table.with_room(|| self.proc.reopen(fd, flags))
            })
        };
        match open(flags) {
            Err(fail) if fail.errno == Errno::PERM && lesser != flags => open(lesser),
            opened => opened,
        }
    }
}

impl InodeTable {
    /// Runs `work`, which opens or links what a descriptor of the inode names. Where Landlock
    /// refuses that because the descriptor is of no name in the source, it runs once more with one
    /// that is.
    ///
    /// # Errors
    /// ESTALE when the inode's name is not known: the kernel then looks the name up again that it
    /// was asked for. Those of `work`.
    pub(super) fn by_a_name<T>(
        &self,
        inode: &Inode,
        mut work: impl FnMut(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<T> {
        let fd = self.fd(inode)?;
        match work(fd.as_fd()) {
            Err(fail) if self.reach == Reach::NameFirst && is_denial(fail.errno) => {
                let named = self.named(inode);
                let named = named.map_err(|_| Fail::new(Errno::STALE, fail.operation))?;
                work(named.as_fd())
            }
            done => done,
        }
    }

    /// A descriptor by the inode's name, while another one keeps its number from being given again.
    fn named(&self, inode: &Inode) -> Result<OwnedFd> {
        let stale = || Fail::new(Errno::STALE, "find the name again");
        let home = inode.home().ok_or_else(stale)?;
        let parent = self.fd(&*self.get(home.parent)?)?;
        let fd = self.with_room(|| openat_name_only(&parent, home.name()))?;
        if self.see(fd.as_fd())?.key != inode.key {
            return Err(stale());
        }
        Ok(fd)
    }
}

/// What Landlock answers: EACCES, and EXDEV for links and renames (landlock(7)).
fn is_denial(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::XDEV)
}
