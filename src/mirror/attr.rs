//! Attributes, times, extended attributes, access.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, Stat, StatVfs, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, XattrFlags,
};

use super::file::OpenFile;
use super::ids::{Ids, NOBODY};
use super::inode::{Inode, NodeId, ROOT};
use super::named::{ACCESS_ACL, Named, Way};
use super::offline::{NO_ACLS, acl_kind};
use super::{Caller, IdMap, Mirror};
use crate::sys::{Errno, Fail, OrFail, Result, procfd};

/// The attributes of an inode as they are shown, and the id by which the kernel knows it.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Node id.
    pub id: NodeId,
    /// The source's own attributes, but for the owners, which `uid=`, `gid=` and `map=` change.
    pub stat: Stat,
}

/// The longest value of an extended attribute, in bytes (XATTR_SIZE_MAX, linux/limits.h).
const MAX_XATTR: usize = 64 << 10;

impl Attr {
    /// The inode number that stat(2) shows: the id, except for the root, whose id is fixed.
    pub fn shown_ino(&self) -> u64 {
        if self.id == ROOT {
            self.stat.st_ino
        } else {
            self.id
        }
    }
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The kernel's present.
    Now,
    /// Seconds since 1970, which may be negative, and nanoseconds after that.
    At(i64, u32),
}

/// The attributes to be changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<Time>,
    /// Time of last modification.
    pub mtime: Option<Time>,
    /// Nobody asked for that time: the kernel kept it while it kept what was written.
    pub kept: bool,
}

impl SetAttr {
    fn is_empty(&self) -> bool {
        let Self {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            kept: _,
        } = self;
        mode.or(*uid).or(*gid).is_none() && size.is_none() && atime.or(*mtime).is_none()
    }
}

impl Mirror {
    /// The attributes of an inode; by the open file, if there is one.
    ///
    /// # Errors
    /// Those of fstat(2); ESTALE when the inode is gone.
    pub fn getattr(&self, id: NodeId, handle: Option<u64>) -> Result<Attr> {
        if self.is_apart() {
            return self.getattr_apart(id);
        }
        let open = handle.and_then(|handle| self.files.read().get(&handle).cloned());
        let open = open.and_then(|file| Some((file.fd().ok()?, file)));
        let stat = match open {
            Some((fd, file)) => {
                let stat = rustix::fs::fstat(&*fd).or_fail("fstat")?;
                self.seen(&file.inode, &stat);
                self.noted(&file.inode, &stat);
                stat
            }
            None => {
                let inode = self.table.get(id)?;
                let stat = rustix::fs::fstat(&*self.table.fd(&inode)?).or_fail("fstat")?;
                self.seen(&inode, &stat);
                self.noted(&inode, &stat);
                stat
            }
        };
        Ok(self.attr(id, stat))
    }

    /// What is shown of an inode with these attributes.
    pub(super) fn attr(&self, id: NodeId, mut stat: Stat) -> Attr {
        if let Some(ids) = &self.options.ids {
            stat.st_uid = ids.users.shown(stat.st_uid).unwrap_or(NOBODY);
            stat.st_gid = ids.groups.shown(stat.st_gid).unwrap_or(NOBODY);
        }
        if stat.st_blocks == 0 && self.may_have_more(id, &stat) {
            // To archivers a file without blocks is nothing but a hole (GNU tar, sparse.c).
            stat.st_blocks = 1;
        }
        Attr { id, stat }
    }

    /// Whether the kernel may keep bytes of the file that the source has not got.
    fn may_have_more(&self, id: NodeId, stat: &Stat) -> bool {
        self.options.writeback
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && self
                .table
                .peek(id)
                .is_some_and(|inode| inode.opens.load(Ordering::Relaxed) > 0)
    }

    /// Changes attributes and returns what they are then.
    ///
    /// # Errors
    /// EROFS on a read-only mirror; EOVERFLOW for an owner who is nobody in the source; EPERM for
    /// another than the one owner that everything is shown with; those of chown, chmod, truncate,
    /// utimensat.
    pub fn setattr(
        &self,
        caller: &Caller,
        id: NodeId,
        handle: Option<u64>,
        set: &SetAttr,
    ) -> Result<Attr> {
        self.writable("setattr")?;
        let inode = self.table.get(id)?;
        let fd = self.table.fd(&inode)?;
        // The owner first: a change of owner takes setuid bits away, which the mode may set.
        let (uid, gid) = self.owners_in_source(set)?;
        // What sets nothing is a chown to nobody, which changes ctime (and is all that the kernel
        // sends so). A change to the one owner that is shown changes no owner, and takes setuid bits.
        if set.uid.or(set.gid).is_some() || set.is_empty() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(&*fd, c"", uid, gid, AtFlags::EMPTY_PATH).or_fail("chown")?;
        }
        if let Some(mode) = set.mode {
            self.chmod(fd.as_fd(), mode)?;
        }
        if let Some(size) = set.size {
            let truncate = || self.truncate(&inode, handle, size);
            if self.privileged && has_set_ids(&fd) {
                // Whose truncation it is decides whether they stay.
                self.act_as(caller, truncate)?;
            } else {
                truncate()?;
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            self.set_times(fd.as_fd(), set)?;
        }
        if let (true, Some(Time::At(seconds, nanoseconds))) = (self.options.writeback, set.mtime) {
            inode.keep_time((seconds, nanoseconds));
        }
        // A change of size is one of bytes; all others change what the entry is known by.
        match set.size {
            Some(size) => self.resized(&inode, size),
            None => self.outdated(&inode),
        }
        self.changed_by_us(id, fd.as_fd());
        let stat = rustix::fs::fstat(&*fd).or_fail("fstat")?;
        self.noted(&inode, &stat);
        Ok(self.attr(id, stat))
    }

    /// Under `writeback` the kernel says which time its present was.
    fn set_times(&self, fd: BorrowedFd<'_>, set: &SetAttr) -> Result<()> {
        match set_times(fd, set.atime, set.mtime) {
            // Who writes another's file may not say when: it has the times of the writes.
            Err(fail) if fail.errno == Errno::PERM && set.kept => Ok(()),
            // Who touches another's file may say that it is now.
            Err(fail) if fail.errno == Errno::PERM && self.options.writeback && touches(set) => {
                set_times(fd, set.atime, Some(Time::Now))
            }
            set => set,
        }
    }

    /// The kernel may send bytes that it has kept after the time of their writing, or without it
    /// where it has not changed since: the file has that time again. To be called when a file was
    /// closed or is to be synced: then nothing is under way.
    pub(super) fn settle_times(&self, file: &OpenFile) {
        if !self.options.writeback || !file.writable {
            return;
        }
        if let Some((seconds, nanoseconds)) = file.inode.take_overwritten()
            && let Ok(fd) = file.fd()
        {
            // Of another's file it can't be set.
            let _ = set_times(fd.as_fd(), None, Some(Time::At(seconds, nanoseconds)));
        }
    }

    /// Something was written under `writeback`. What the kernel had kept has a time of its own, which
    /// the kernel tells; what came past its pages has that of the write, of which the kernel knows
    /// nothing (fs/fuse/file.c, fuse_direct_write_iter).
    pub(super) fn keep_time_of_write(&self, file: &OpenFile, fd: &OwnedFd, from_pages: bool) {
        if from_pages {
            return file.inode.overwrite_time();
        }
        if let Ok(stat) = rustix::fs::fstat(fd) {
            let time = (stat.st_mtime, stat.st_mtime_nsec as u32);
            file.inode.keep_time(time);
        }
    }

    fn owners_in_source(&self, set: &SetAttr) -> Result<(Option<u32>, Option<u32>)> {
        match &self.options.ids {
            None => Ok((set.uid, set.gid)),
            Some(ids) => Ok((
                owner_in_source(&ids.users, set.uid)?,
                owner_in_source(&ids.groups, set.gid)?,
            )),
        }
    }

    fn chmod(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(self.proc.dir(), procfd::name(fd), mode, AtFlags::empty())
            .or_fail("chmod")
    }

    fn truncate(&self, inode: &Inode, handle: Option<u64>, size: u64) -> Result<()> {
        let open = handle.and_then(|handle| self.files.read().get(&handle).cloned());
        if let Some(file) = open.filter(|file| file.writable) {
            return rustix::fs::ftruncate(&*file.fd()?, size).or_fail("ftruncate");
        }
        if inode.kind != FileType::RegularFile {
            return Err(Fail::new(Errno::INVAL, "truncate"));
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let file = self.reopen(inode, flags, flags)?;
        rustix::fs::ftruncate(file, size).or_fail("ftruncate")
    }

    /// A file that root has open is written by somebody who may not keep its setuid and setgid
    /// bits. For all others the write itself takes them away, as it is not root's.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of fchmod(2).
    pub fn drop_set_ids(&self, handle: u64) -> Result<()> {
        let file = self.file(handle)?;
        if !self.privileged || file.is_anothers() {
            return Ok(());
        }
        let fd = file.fd()?;
        let mode = rustix::fs::fstat(&*fd).or_fail("fstat")?.st_mode & 0o7777;
        let executes = mode & libc::S_IXGRP != 0;
        let taken = libc::S_ISUID | if executes { libc::S_ISGID } else { 0 };
        if mode & taken == 0 {
            return Ok(());
        }
        rustix::fs::fchmod(&*fd, Mode::from_raw_mode(mode & !taken)).or_fail("fchmod")
    }

    /// File system statistics.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn statfs(&self, id: NodeId) -> Result<StatVfs> {
        if self.is_apart() {
            return self.statfs_apart();
        }
        let inode = self.table.get(id)?;
        let stat = rustix::fs::fstatvfs(&*self.table.fd(&inode)?).or_fail("fstatvfs")?;
        if self.lets_go() {
            *self.last_statfs.lock() = Some(again(&stat));
        }
        Ok(stat)
    }

    /// Whether this process has the access asked for: without `default_permissions`, the only
    /// caller is the one who mounted.
    ///
    /// # Errors
    /// EACCES, EROFS.
    pub fn access(&self, id: NodeId, mask: u32) -> Result<()> {
        let access = Access::from_bits_truncate(mask);
        let inode = self.table.get(id)?;
        let kept = [
            FileType::RegularFile,
            FileType::Directory,
            FileType::Symlink,
        ];
        if access.contains(Access::WRITE_OK) && kept.contains(&inode.kind) {
            self.writable("access")?;
        }
        if self.is_apart() {
            return self.access_apart(&inode, access);
        }
        let fd = self.table.fd(&inode)?;
        let name = procfd::name(fd.as_fd());
        rustix::fs::accessat(self.proc.dir(), name, access, AtFlags::EACCESS).or_fail("faccessat")
    }

    /// A descriptor of the inode, which may be one that only names it.
    fn xattr_fd(&self, id: NodeId) -> Result<Arc<OwnedFd>> {
        if self.is_apart() {
            return Err(match self.lets_go() {
                true => Fail::new(Errno::OPNOTSUPP, "xattr"),
                false => self
                    .outage
                    .check("xattr")
                    .err()
                    .unwrap_or(Fail::new(Errno::IO, "xattr")),
            });
        }
        let inode = self.table.get(id)?;
        self.table.fd(&inode)
    }

    fn xattr_path(&self, id: NodeId) -> Result<(Arc<OwnedFd>, String)> {
        let fd = self.xattr_fd(id)?;
        let path = procfd::path(fd.as_fd());
        Ok((fd, path))
    }

    /// Sets an extended attribute; `flags` are XATTR_CREATE and XATTR_REPLACE.
    ///
    /// # Errors
    /// EROFS; EOVERFLOW for an ACL that names somebody who is nobody in the source; those of
    /// setxattr(2).
    pub fn setxattr(
        &self,
        caller: &Caller,
        id: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.writable("setxattr")?;
        let (fd, path) = self.xattr_path(id)?;
        let flags = XattrFlags::from_bits_retain(flags);
        let translated = match self.named(name) {
            Some((ids, named)) => named.translate(ids, Way::In, value.to_vec())?.into(),
            None => Cow::Borrowed(value),
        };
        let value = &*translated;
        let set = || rustix::fs::setxattr(&*path, name, value, flags).or_fail("setxattr");
        // An ACL takes the setgid bit away, as chmod(2) does, when the caller is not in the group. Who
        // the caller is takes longer to find out than all else here, and cp -a sets one on each file.
        if name == ACCESS_ACL && may_have(&fd, libc::S_ISGID) {
            return self.act_as(caller, set);
        }
        set()
    }

    /// The value of an extended attribute, of at most `size` bytes.
    ///
    /// # Errors
    /// ERANGE when it is longer, ENODATA when there is none.
    pub fn getxattr(&self, id: NodeId, name: &OsStr, size: usize) -> Result<Vec<u8>> {
        if self.is_apart() {
            let value = self.xattr_apart(id, name)?;
            let named = self.named(name);
            let value = match named {
                Some((ids, named)) => named.translate(ids, Way::Out, value)?,
                None => value,
            };
            return match value.len() > size {
                true => Err(Fail::new(Errno::RANGE, "getxattr")),
                false => Ok(value),
            };
        }
        if let Some((ids, named)) = self.named(name) {
            let value = self.translated(id, name, ids, named)?;
            if value.len() > size {
                return Err(Fail::new(Errno::RANGE, "getxattr"));
            }
            return Ok(value);
        }
        self.read_xattr(id, name, size)
    }

    /// The value in the source, of at most `size` bytes. An open file is asked by its descriptor: the
    /// way to one that only names an inode takes longer than all else here, and the kernel asks for
    /// the capabilities of a file at each write.
    fn read_xattr(&self, id: NodeId, name: &OsStr, size: usize) -> Result<Vec<u8>> {
        let fd = self.xattr_fd(id)?;
        let mut value = vec![0; size];
        let length = match rustix::fs::fgetxattr(&*fd, name, &mut value[..]) {
            Err(Errno::BADF) => {
                rustix::fs::getxattr(procfd::path(fd.as_fd()), name, &mut value[..])
            }
            length => length,
        };
        let length = length.or_fail("getxattr");
        if let Err(fail) = &length {
            self.noted_no_acl(id, name, fail);
        }
        value.truncate(length?);
        self.noted_acl_of(id, name, &value);
        Ok(value)
    }

    /// The source has no ACL there, or has none at all.
    fn noted_no_acl(&self, id: NodeId, name: &OsStr, fail: &Fail) {
        match (fail.errno, acl_kind(name)) {
            (Errno::NODATA, Some(kind)) => self.noted_acl(id, kind, None),
            (Errno::OPNOTSUPP, Some(_)) => self.noted_acl(ROOT, NO_ACLS, None),
            _ => {}
        }
    }

    fn noted_acl_of(&self, id: NodeId, name: &OsStr, value: &[u8]) {
        if let Some(kind) = acl_kind(name) {
            self.noted_acl(id, kind, Some(value));
        }
    }

    /// The length of an extended attribute's value, in bytes.
    ///
    /// # Errors
    /// ENODATA when there is none.
    pub fn getxattr_size(&self, id: NodeId, name: &OsStr) -> Result<usize> {
        if self.is_apart() {
            return Ok(self.getxattr(id, name, MAX_XATTR)?.len());
        }
        if let Some((ids, named)) = self.named(name) {
            return Ok(self.translated(id, name, ids, named)?.len());
        }
        let fd = self.xattr_fd(id)?;
        let length = match rustix::fs::fgetxattr_query(&*fd, name) {
            Err(Errno::BADF) => rustix::fs::getxattr_query(procfd::path(fd.as_fd()), name),
            length => length,
        };
        let length = length.or_fail("getxattr");
        if let Err(fail) = &length {
            self.noted_no_acl(id, name, fail);
        }
        length
    }

    /// What an attribute names, if it names users or groups and those are mapped.
    fn named(&self, name: &OsStr) -> Option<(&IdMap, Named)> {
        let ids = self.options.ids.as_ref()?;
        Some((ids, Named::of(name)?))
    }

    fn translated(&self, id: NodeId, name: &OsStr, ids: &IdMap, named: Named) -> Result<Vec<u8>> {
        let value = self.read_xattr(id, name, MAX_XATTR)?;
        named.translate(ids, Way::Out, value)
    }

    /// The names of the extended attributes, each with its NUL.
    ///
    /// # Errors
    /// ERANGE when they need more than `size` bytes.
    pub fn listxattr(&self, id: NodeId, size: usize) -> Result<Vec<u8>> {
        let (_fd, path) = self.xattr_path(id)?;
        let mut names = vec![0; size];
        let length = rustix::fs::listxattr(path, &mut names[..]).or_fail("listxattr")?;
        names.truncate(length);
        Ok(names)
    }

    /// The length of the list of names, in bytes.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn listxattr_size(&self, id: NodeId) -> Result<usize> {
        let (_fd, path) = self.xattr_path(id)?;
        rustix::fs::listxattr_query(path).or_fail("listxattr")
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// EROFS; ENODATA when there is none.
    pub fn removexattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        self.writable("removexattr")?;
        let (_fd, path) = self.xattr_path(id)?;
        rustix::fs::removexattr(path, name).or_fail("removexattr")
    }
}

/// The same numbers once more: the type can't be cloned.
pub(super) fn again(stat: &StatVfs) -> StatVfs {
    StatVfs { ..*stat }
}

/// Whether any of these bits of the mode is set; also when that can't be told.
fn may_have(fd: &OwnedFd, bits: u32) -> bool {
    rustix::fs::fstat(fd).map_or(true, |stat| stat.st_mode & bits != 0)
}

fn has_set_ids(fd: &OwnedFd) -> bool {
    let bits = libc::S_ISUID | libc::S_ISGID;
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & bits != 0)
}

/// Whom a change of owner means in the source; `None` for the one that is shown anyway.
fn owner_in_source(ids: &Ids, asked: Option<u32>) -> Result<Option<u32>> {
    let Some(asked) = asked else { return Ok(None) };
    match ids.all() {
        Some(all) if all == asked => Ok(None),
        Some(_) => Err(Fail::new(Errno::PERM, "chown").because("all is shown with one owner")),
        None => match ids.source(asked) {
            Some(id) => Ok(Some(id)),
            None => Err(Fail::new(Errno::OVERFLOW, "chown")
                .because(format!("{asked} is nobody in the source"))),
        },
    }
}

fn set_times(fd: BorrowedFd<'_>, atime: Option<Time>, mtime: Option<Time>) -> Result<()> {
    let times = Timestamps {
        last_access: timespec(atime),
        last_modification: timespec(mtime),
    };
    rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH).or_fail("utimensat")
}

/// Whether both times are the present, one of them by the kernel's clock of a moment ago.
fn touches(set: &SetAttr) -> bool {
    const MOMENT: u64 = 2;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs().cast_signed());
    let is_now = |time| matches!(time, Some(Time::At(at, _)) if now.abs_diff(at) <= MOMENT);
    set.atime == Some(Time::Now) && is_now(set.mtime)
}

fn timespec(time: Option<Time>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(Time::Now) => (0, UTIME_NOW),
        Some(Time::At(seconds, nanoseconds)) => (seconds, i64::from(nanoseconds)),
    };
    Timespec { tv_sec, tv_nsec }
}
