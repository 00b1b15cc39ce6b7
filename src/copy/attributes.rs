//! What a copy has of its source besides the bytes: owner, mode, ACL, extended attributes, times.
//!
//! As `cp -p` and `cp -a` have it, what the caller may not give away stays his own, and what a
//! file system doesn't know is left out; extended attributes that were asked for by their word
//! alone (`--preserve=xattr`) must be kept.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens,
    getxattr, listxattr, removexattr, setxattr, statat, utimensat,
};

use super::options::Preserve;
use crate::sys::{Errno, OrFail, Result, procfd, umask};

const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
/// Bytes of names that most files stay below.
const FEW: usize = 1024;
/// The most bytes of a list or a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;

/// Gives a regular file what `preserve` says of its source, both open; times of access as they
/// were at `opened`, before we read, all else as at `before`. A file that is not new keeps its own
/// mode where the source's is not to be kept.
///
/// The set-user-id and set-group-id bits are kept only with the owner and group that they are for.
///
/// # Errors
/// ENOSPC, EDQUOT, EIO and their like; for what the caller may not, see above.
pub(super) fn keep(
    source: BorrowedFd<'_>,
    (opened, before): (&Stat, &Stat),
    destination: BorrowedFd<'_>,
    preserve: Preserve,
    is_new: bool,
) -> Result<()> {
    let own = fstat(destination).or_fail("fstat")?;
    let keeper = Keeper {
        source: File::Open(source),
        destination: File::Open(destination),
        own,
        before,
        preserve,
        inherits: true,
        is_new,
    };
    keeper.keep(opened)
}

/// As [`keep`]; `inherits` says whether the directory may have given the new file an ACL.
///
/// # Errors
/// As [`keep`].
pub(super) fn keep_new(
    source: BorrowedFd<'_>,
    (opened, before): (&Stat, &Stat),
    destination: BorrowedFd<'_>,
    preserve: Preserve,
    inherits: bool,
) -> Result<()> {
    let own = fstat(destination).or_fail("fstat")?;
    let keeper = Keeper {
        source: File::Open(source),
        destination: File::Open(destination),
        own,
        before,
        preserve,
        inherits,
        is_new: true,
    };
    keeper.keep(opened)
}

/// Whether what is made in a directory gets an ACL of it.
pub(super) fn gives_acl(directory: BorrowedFd<'_>) -> bool {
    let none: &mut [u8] = &mut [];
    !matches!(
        getxattr(procfd::path(directory), DEFAULT_ACL, none),
        Err(Errno::NODATA | Errno::OPNOTSUPP)
    )
}

/// As [`keep`], for what is not open but found: directories, symbolic links, special files.
///
/// # Errors
/// As [`keep`].
pub(super) fn keep_found(
    source: BorrowedFd<'_>,
    before: &Stat,
    destination: BorrowedFd<'_>,
    preserve: Preserve,
) -> Result<()> {
    let own = statat(destination, c"", AtFlags::EMPTY_PATH).or_fail("fstatat")?;
    let keeper = Keeper {
        source: File::Found(source),
        destination: File::Found(destination),
        own,
        before,
        preserve,
        inherits: true,
        is_new: true,
    };
    keeper.keep(before)
}

/// Whether the owner and the group of `one` are those of `other`.
fn same_owner(one: &Stat, other: &Stat) -> (bool, bool) {
    (one.st_uid == other.st_uid, one.st_gid == other.st_gid)
}

struct Keeper<'a> {
    source: File<'a>,
    destination: File<'a>,
    /// The destination as it was made.
    own: Stat,
    before: &'a Stat,
    preserve: Preserve,
    /// It may have got an ACL from its directory.
    inherits: bool,
    /// Nobody had it before.
    is_new: bool,
}

impl Keeper<'_> {
    /// The owner first, whose change takes capabilities (`security.capability`) and bits away; the
    /// mode after what needs the right to write.
    fn keep(mut self, opened: &Stat) -> Result<()> {
        let owned = self.owner()?;
        if self.preserve.mode || self.preserve.xattr {
            self.xattrs()?;
        }
        if FileType::from_raw_mode(self.before.st_mode) != FileType::Symlink {
            self.mode(owned)?;
        }
        if self.preserve.timestamps {
            let times = Timestamps {
                last_access: time(opened.st_atime, opened.st_atime_nsec),
                last_modification: time(self.before.st_mtime, self.before.st_mtime_nsec),
            };
            kept(self.destination.set_times(&times), "utimensat")?;
        }
        Ok(())
    }

    /// Answers whether owner and group are the source's now.
    fn owner(&self) -> Result<(bool, bool)> {
        let same = same_owner(&self.own, self.before);
        if !self.preserve.ownership || same == (true, true) {
            return Ok(same);
        }
        let uid = Uid::from_raw(self.before.st_uid);
        let gid = Gid::from_raw(self.before.st_gid);
        match self.destination.set_owner(Some(uid), Some(gid)) {
            Ok(()) => Ok((true, true)),
            // Not ours to give away; the group may be, as cp has it.
            Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let group = same.1 || self.destination.set_owner(None, Some(gid)).is_ok();
                Ok((same.0, group))
            }
            Err(errno) => Err(errno).or_fail("fchownat"),
        }
    }

    fn mode(&self, owned: (bool, bool)) -> Result<()> {
        let own = self.own.st_mode & 0o7777;
        let wanted = if self.preserve.mode {
            let bits = Mode::from_raw_mode(self.before.st_mode & 0o7777);
            match owned {
                (true, true) => bits,
                (true, false) => bits - Mode::SGID,
                (false, _) => bits - (Mode::SUID | Mode::SGID),
            }
            .as_raw_mode()
        } else if self.is_new
            && FileType::from_raw_mode(self.before.st_mode) == FileType::RegularFile
        {
            self.before.st_mode & 0o777 & !umask::of_thread()?
        } else {
            own
        };
        // A change of owner may have taken bits away (chown(2)).
        let untouched = same_owner(&self.own, self.before) == owned;
        if wanted == own && (untouched || wanted & 0o6000 == 0) {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(wanted);
        kept(self.destination.set_mode(mode), "fchmodat")
    }

    fn xattrs(&mut self) -> Result<()> {
        let mut few = [0; FEW];
        let mut many = Vec::new();
        let names = match self.source.list(&mut few) {
            Ok(length) => &few[..length],
            Err(Errno::RANGE) => {
                many.resize(MOST, 0);
                let length = self.source.list(&mut many).or_fail("listxattr")?;
                &many[..length]
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => &[],
            Err(errno) => return Err(errno).or_fail("listxattr"),
        };
        // The kernel ends each with a NUL.
        let preserve = self.preserve;
        let named = names.split_inclusive(|&byte| byte == 0);
        let named = || named.clone().flat_map(CStr::from_bytes_with_nul);
        // What else begins with `system.` is the file system's own business.
        let is_wanted = |name: &&CStr| preserve.xattr && !name.to_bytes().starts_with(b"system.");
        for name in named().filter(is_wanted) {
            if name.to_bytes().starts_with(b"user.") {
                self.let_owner_write();
            }
            self.xattr(name)?;
        }
        if preserve.mode {
            // After those: with an ACL the file gets its mode.
            named()
                .filter(|name| is_acl(name))
                .try_for_each(|name| self.xattr(name))?;
            if self.inherits {
                let has = |acl| named().any(|name| name == acl);
                self.drop_inherited((has(ACCESS_ACL), has(DEFAULT_ACL)))?;
            }
        }
        Ok(())
    }

    /// Extended attributes of users are set by who may write by the mode, whatever a descriptor
    /// allows (xattr(7)): to a new file its owner may, until its mode follows.
    fn let_owner_write(&mut self) {
        let is_file = FileType::from_raw_mode(self.own.st_mode) == FileType::RegularFile;
        if !is_file || !self.is_new || self.own.st_mode & 0o200 != 0 {
            return;
        }
        let mode = self.own.st_mode | 0o200;
        // Who may not is told so by what follows.
        if self
            .destination
            .set_mode(Mode::from_raw_mode(mode & 0o7777))
            .is_ok()
        {
            self.own.st_mode = mode;
        }
    }

    fn xattr(&self, name: &CStr) -> Result<()> {
        let mut value = vec![0; FEW];
        let length = match self.source.get(name, &mut value) {
            Err(Errno::RANGE) => {
                value.resize(MOST, 0);
                self.source.get(name, &mut value)
            }
            other => other,
        };
        let set = match length {
            Ok(length) => self.destination.set(name, &value[..length]),
            // Removed meanwhile.
            Err(Errno::NODATA) => return Ok(()),
            Err(errno) => Err(errno),
        };
        match set {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS)
                if is_acl(name) || !self.must_keep_xattrs() =>
            {
                Ok(())
            }
            other => other.or_fail("setxattr").map_err(|fail| {
                let name = name.to_string_lossy().into_owned();
                fail.because(name)
            }),
        }
    }

    fn must_keep_xattrs(&self) -> bool {
        self.preserve.xattr && self.preserve != Preserve::ALL
    }

    /// An ACL that the directory gave a new file is not the source's.
    fn drop_inherited(&self, has: (bool, bool)) -> Result<()> {
        let is_directory = FileType::from_raw_mode(self.own.st_mode) == FileType::Directory;
        if FileType::from_raw_mode(self.own.st_mode) == FileType::Symlink {
            return Ok(());
        }
        if !has.0 {
            gone(self.destination.remove(ACCESS_ACL))?;
        }
        if is_directory && !has.1 {
            gone(self.destination.remove(DEFAULT_ACL))?;
        }
        Ok(())
    }
}

/// ACL belong to the mode.
fn is_acl(name: &CStr) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

fn gone(answer: rustix::io::Result<()>) -> Result<()> {
    match answer {
        Err(Errno::NODATA) => Ok(()),
        other => kept(other, "removexattr"),
    }
}

/// A file by a descriptor that it is open with, or by one that only says which file it is.
#[derive(Clone, Copy)]
enum File<'a> {
    Open(BorrowedFd<'a>),
    /// `O_PATH`, say. The magic link of procfs leads to the file itself, also to a symbolic link.
    Found(BorrowedFd<'a>),
}

impl File<'_> {
    fn list(self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Open(file) => flistxattr(file, buffer),
            Self::Found(file) => listxattr(procfd::path(file), buffer),
        }
    }

    fn get(self, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Open(file) => fgetxattr(file, name, buffer),
            Self::Found(file) => getxattr(procfd::path(file), name, buffer),
        }
    }

    fn set(self, name: &CStr, value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => fsetxattr(file, name, value, XattrFlags::empty()),
            Self::Found(file) => setxattr(procfd::path(file), name, value, XattrFlags::empty()),
        }
    }

    fn remove(self, name: &CStr) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => fremovexattr(file, name),
            Self::Found(file) => removexattr(procfd::path(file), name),
        }
    }

    fn set_owner(self, uid: Option<Uid>, gid: Option<Gid>) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => fchown(file, uid, gid),
            Self::Found(file) => chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn set_mode(self, mode: Mode) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => fchmod(file, mode),
            Self::Found(file) => chmodat(CWD, procfd::path(file), mode, AtFlags::empty()),
        }
    }

    fn set_times(self, times: &Timestamps) -> rustix::io::Result<()> {
        match self {
            Self::Open(file) => futimens(file, times),
            Self::Found(file) => match utimensat(file, c"", times, AtFlags::EMPTY_PATH) {
                // Before Linux 5.8; the magic link is followed to the file and no further.
                Err(Errno::INVAL) => utimensat(CWD, procfd::path(file), times, AtFlags::empty()),
                other => other,
            },
        }
    }
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
