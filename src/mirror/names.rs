//! Names: finding, making, renaming and removing them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::attr::Attr;
use super::inode::{Home, Inode, NodeId};
use super::{Caller, Mirror};
use crate::sys::{Errno, Fail, OrFail, Result, procfd};

/// A name must be one component: what the kernel sends always is, and nothing else may reach
/// the source.
fn checked(name: &OsStr) -> Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(Fail::new(Errno::INVAL, "check a name"));
    }
    Ok(name)
}

impl Mirror {
    /// The directory's inode with a descriptor of it.
    pub(super) fn dir(&self, id: NodeId) -> Result<(Arc<Inode>, Arc<OwnedFd>)> {
        let inode = self.table.get(id)?;
        let fd = self.table.fd(&inode)?;
        Ok((inode, fd))
    }

    /// Finds a name, and counts one lookup of what it means.
    ///
    /// # Errors
    /// ENOENT; those of openat(2).
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Attr> {
        let parent = self.table.get(parent)?;
        let found = self.found(&parent, checked(name)?);
        if let Err(fail) = &found
            && fail.errno == Errno::NOENT
            && !self.is_apart()
        {
            self.noted_gone(parent.id, name);
        }
        found
    }

    /// Whether the source has an entry of that name.
    ///
    /// # Errors
    /// Those of fstatat(2), except ENOENT.
    pub fn has_entry(&self, parent: NodeId, name: &OsStr) -> Result<bool> {
        if self.is_apart() {
            return self.has_entry_apart(parent, checked(name)?);
        }
        let (_, dir) = self.dir(parent)?;
        match rustix::fs::statat(&*dir, checked(name)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Fail::new(errno, "fstatat")),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Those of readlinkat(2).
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>> {
        if self.is_apart() {
            return self.readlink_apart(id);
        }
        let (inode, fd) = self.dir(id)?;
        let target = rustix::fs::readlinkat(&*fd, c"", Vec::new()).or_fail("readlinkat")?;
        self.noted_target(&inode, target.as_bytes());
        Ok(target.into_bytes())
    }

    /// Makes a regular file, device, FIFO or socket.
    ///
    /// # Errors
    /// EROFS; those of mknodat(2), for the caller's rights.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        self.writable("mknod")?;
        let (_, dir) = self.dir(parent)?;
        let name = checked(name)?;
        let (kind, perm) = (
            FileType::from_raw_mode(mode),
            Mode::from_raw_mode(mode & 0o7777),
        );
        self.make(caller, &dir, name, || {
            rustix::fs::mknodat(&*dir, name, kind, perm, device(rdev)).or_fail("mknodat")
        })?;
        self.lookup(parent, name)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// EROFS; those of mkdirat(2), for the caller's rights.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Attr> {
        self.writable("mkdir")?;
        let (_, dir) = self.dir(parent)?;
        let name = checked(name)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        self.make(caller, &dir, name, || {
            rustix::fs::mkdirat(&*dir, name, mode).or_fail("mkdirat")
        })?;
        self.lookup(parent, name)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// EROFS; those of symlinkat(2), for the caller's rights.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr> {
        self.writable("symlink")?;
        let (_, dir) = self.dir(parent)?;
        let name = checked(name)?;
        self.make(caller, &dir, name, || {
            rustix::fs::symlinkat(target, &*dir, name).or_fail("symlinkat")
        })?;
        self.lookup(parent, name)
    }

    /// Makes, as the caller, what has a name and no descriptor.
    fn make(
        &self,
        caller: &Caller,
        dir: &OwnedFd,
        name: &OsStr,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let group = self.group_to_give(caller, dir)?;
        self.create_as(caller, make)?;
        let Some(group) = group else { return Ok(()) };
        rustix::fs::chownat(dir, name, None, Some(group), AtFlags::SYMLINK_NOFOLLOW)
            .or_fail("chown")
    }

    /// Gives an inode one more name.
    ///
    /// # Errors
    /// EROFS; EOVERFLOW when the caller is nobody in the source; those of linkat(2).
    pub fn link(&self, caller: &Caller, id: NodeId, parent: NodeId, name: &OsStr) -> Result<Attr> {
        self.writable("link")?;
        let inode = self.table.get(id)?;
        self.check_known(caller)?;
        let (_, dir) = self.dir(parent)?;
        let name = checked(name)?;
        self.table.by_a_name(&inode, |fd| {
            let path = procfd::path(fd);
            // Through the magic link: AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH (linkat(2)).
            rustix::fs::linkat(CWD, path, &*dir, name, AtFlags::SYMLINK_FOLLOW).or_fail("linkat")
        })?;
        let before = inode.home();
        let attr = self.lookup(parent, name)?;
        // The new name may be the first to go.
        if let Some(before) = before.filter(|before| inode.home().as_ref() != Some(before)) {
            inode.linked(before);
        }
        Ok(attr)
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// EROFS; those of unlinkat(2).
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// EROFS; those of unlinkat(2).
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent: NodeId, name: &OsStr, flags: AtFlags) -> Result<()> {
        self.writable("unlink")?;
        let (parent, dir) = self.dir(parent)?;
        let last = self.table.hold(parent.id, &dir, checked(name)?);
        rustix::fs::unlinkat(&*dir, checked(name)?, flags).or_fail("unlinkat")?;
        if let Some(inode) = last {
            inode.lost_its_name(&Home::new(parent.id, name));
        }
        self.uncache_name(&parent, name);
        self.noted_change(&parent, name);
        Ok(())
    }

    /// Renames; `flags` are those of renameat2(2).
    ///
    /// # Errors
    /// EROFS; EOVERFLOW for a new name when the caller is nobody in the source; those of
    /// renameat2(2).
    pub fn rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.writable("rename")?;
        let (from, from_dir) = self.dir(parent)?;
        let (to, to_dir) = self.dir(new_parent)?;
        let (name, new_name) = (checked(name)?, checked(new_name)?);
        let flags = RenameFlags::from_bits_retain(flags);
        if self.options.ids.is_some() && !self.has_entry(new_parent, new_name)? {
            self.check_known(caller)?;
        }
        let rename = || {
            rustix::fs::renameat_with(&*from_dir, name, &*to_dir, new_name, flags)
                .or_fail("renameat2")
        };
        let replaced = match flags.contains(RenameFlags::EXCHANGE) {
            true => None,
            false => self.table.hold(to.id, &to_dir, new_name),
        };
        if flags.contains(RenameFlags::WHITEOUT) {
            // It makes a file.
            self.make_as(caller, rename)?;
        } else {
            rename()?;
        }
        if let Some(inode) = replaced {
            inode.lost_its_name(&Home::new(to.id, new_name));
        }
        self.uncache_name(&from, name);
        self.uncache_name(&to, new_name);
        self.noted_change(&from, name);
        self.noted_change(&to, new_name);
        self.table.moved(&to, new_name);
        self.renamed_by_us(&to, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.table.moved(&from, name);
            self.renamed_by_us(&from, name);
        }
        Ok(())
    }

    /// Creates and opens a regular file as the caller; returns its attributes (one lookup
    /// counted) and the open file's handle.
    ///
    /// # Errors
    /// EROFS; those of openat(2), for the caller's rights; ESTALE when the name just became
    /// something that is not a regular file (the kernel then looks it up again).
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, super::Opened)> {
        self.writable("create")?;
        let (parent, dir) = self.dir(parent)?;
        let name = checked(name)?;
        let asked = super::file::Asked::of(flags);
        // O_NONBLOCK: a FIFO put there this moment must not stop an event loop.
        let oflags = self.open_flags(&asked)
            | OFlags::from_bits_retain((flags & (libc::O_EXCL | libc::O_TRUNC)) as u32)
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let group = self.group_to_give(caller, &dir)?;
        // Who creates by what the mount shows may have more rights in the source than to open
        // what somebody else put there this moment: that is looked up again, and judged.
        let new_only = (self.forces() || group.is_some()) && !oflags.contains(OFlags::EXCL);
        let oflags = if new_only {
            oflags | OFlags::EXCL
        } else {
            oflags
        };
        let open = || match rustix::fs::openat(&*dir, name, oflags, mode) {
            Err(Errno::EXIST) if new_only => Err(Fail::new(Errno::STALE, "create")),
            // It was there already, for whoever may write it and not read.
            Err(Errno::ACCESS) if asked.is_widened(oflags) => {
                rustix::fs::openat(&*dir, name, asked.narrow(oflags), mode).or_fail("openat")
            }
            opened => opened.or_fail("openat"),
        };
        let file = self.table.with_room(|| self.create_as(caller, open))?;
        if let Some(group) = group {
            rustix::fs::fchown(&file, None, Some(group)).or_fail("fchown")?;
        }
        let only_name = || self.proc.reopen(file.as_fd(), OFlags::PATH);
        let made = self
            .table
            .enter_created(file.as_fd(), parent.id, name, only_name)?;
        let (inode, stat) = made;
        let stat = self.entered(parent.id, name, &inode, stat, || Ok(&file))?;
        self.uncache(&inode);
        let id = inode.id;
        let opened = self.enter_file(caller, inode, file, asked, &stat, None);
        Ok((self.attr(id, stat), opened))
    }
}

/// The kernel's 32-bit `rdev` (new_encode_dev) as the `dev_t` of the C library.
fn device(rdev: u32) -> rustix::fs::Dev {
    let major = (rdev & 0xfff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
    rustix::fs::makedev(major, minor)
}
