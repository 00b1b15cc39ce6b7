//! One operation of a log, done again beneath a directory: every name is resolved by the kernel
//! with no way out and no symbolic link followed, and only regular files and directories are opened.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags,
};

use crate::observe::Op;
use crate::observe::oplog::Entry;
use crate::sys::procfd::ProcFd;
use crate::sys::{Errno, Fail, OrFail, Result};

/// The longest read or write at once, in bytes: what the kernel asks a mount for.
const MOST: u64 = 1 << 20;
/// How many files stay open between operations.
const MOST_OPEN: usize = 64;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What an open is played back with; the rest means nothing without the program.
const OPENING: OFlags = OFlags::ACCMODE
    .union(OFlags::TRUNC)
    .union(OFlags::APPEND)
    .union(OFlags::DIRECT)
    .union(OFlags::EXCL);

/// What came of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Played {
    /// With this errno, or 0.
    Ended(i32),
    /// It can't be played back, or is not to be.
    LeftOut,
}

/// Plays operations.
#[derive(Debug)]
pub(super) struct Actor {
    root: OwnedFd,
    proc: ProcFd,
    /// By path and whether they can be written.
    open: HashMap<(Vec<u8>, bool), OwnedFd>,
    room: Vec<u8>,
}

/// `None` for what can't be played back.
type Done = Option<Result<()>>;

impl Actor {
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: rustix::fs::open(directory, flags, Mode::empty()).or_fail("open")?,
            proc: ProcFd::open()?,
            open: HashMap::new(),
            room: vec![0; MOST as usize],
        })
    }

    pub(super) fn play(&mut self, entry: &Entry) -> Played {
        let Some(path) = &entry.path else {
            return Played::LeftOut;
        };
        match self.done(entry, path) {
            None => Played::LeftOut,
            Some(Ok(())) => Played::Ended(0),
            Some(Err(fail)) => Played::Ended(fail.errno.raw_os_error()),
        }
    }

    fn done(&mut self, entry: &Entry, path: &[u8]) -> Done {
        match entry.op {
            Op::Read => self.read(path, entry.offset?, entry.size?),
            Op::Write => self.write(path, entry.offset?, entry.size?),
            Op::Open | Op::Create => self.opened(entry, path),
            Op::Release => {
                self.forget(path);
                Some(Ok(()))
            }
            Op::Setattr => self.set(path, entry),
            Op::Fsync | Op::Fsyncdir => Some(self.file(path, false).and_then(sync)),
            Op::Fallocate => self.allocate(path, entry),
            Op::Opendir | Op::Readdir | Op::Readdirplus => self.list(path, entry),
            Op::Getxattr | Op::Listxattr => self.xattr(path, entry),
            Op::Statfs => Some(rustix::fs::fstatfs(&self.root).map(drop).or_fail("statfs")),
            Op::Lookup | Op::Getattr | Op::Readlink | Op::Access => self.look(path, entry),
            Op::Mknod
            | Op::Mkdir
            | Op::Symlink
            | Op::Link
            | Op::Rename
            | Op::Unlink
            | Op::Rmdir => self.change_name(path, entry),
            // The log has no value to set; locks, ioctls and positions need a program.
            _ => None,
        }
    }

    // -----------------------------------------------------------------------------------------
    // Names

    /// The inode of a path, to look at.
    fn place(&self, path: &[u8]) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        open_beneath(&self.root, path, PLACE)
    }

    /// The directory of a path, and the last name in it.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(Fail::new(Errno::INVAL, "resolve"));
        }
        Ok((self.place(parent)?, OsStr::from_bytes(name)))
    }

    fn look(&self, path: &[u8], entry: &Entry) -> Done {
        if path.is_empty() {
            return Some(rustix::fs::fstat(&self.root).map(drop).or_fail("stat"));
        }
        let (parent, name) = match self.parent(path) {
            Ok(found) => found,
            Err(fail) => return Some(Err(fail)),
        };
        Some(match entry.op {
            Op::Readlink => rustix::fs::readlinkat(&parent, name, Vec::new())
                .map(drop)
                .or_fail("readlink"),
            Op::Access => {
                let mask = Access::from_bits_truncate(entry.flags?);
                rustix::fs::accessat(&parent, name, mask, AtFlags::SYMLINK_NOFOLLOW)
                    .or_fail("access")
            }
            _ => rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(drop)
                .or_fail("stat"),
        })
    }

    fn change_name(&mut self, path: &[u8], entry: &Entry) -> Done {
        let (parent, name) = match self.parent(path) {
            Ok(found) => found,
            Err(fail) => return Some(Err(fail)),
        };
        let mode = Mode::from_bits_truncate(entry.mode.unwrap_or(0o600));
        let done = match entry.op {
            Op::Mkdir => rustix::fs::mkdirat(&parent, name, mode),
            Op::Mknod => {
                let kind = FileType::from_raw_mode(entry.mode?);
                // A device would be a way out.
                if !matches!(
                    kind,
                    FileType::RegularFile | FileType::Fifo | FileType::Socket
                ) {
                    return None;
                }
                rustix::fs::mknodat(&parent, name, kind, mode, 0)
            }
            Op::Symlink => {
                let target = OsStr::from_bytes(entry.other.as_deref()?);
                rustix::fs::symlinkat(target, &parent, name)
            }
            Op::Unlink => rustix::fs::unlinkat(&parent, name, AtFlags::empty()),
            Op::Rmdir => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            _ => {
                let (to, new) = match self.parent(entry.other.as_deref()?) {
                    Ok(found) => found,
                    Err(fail) => return Some(Err(fail)),
                };
                let flags = RenameFlags::from_bits_truncate(entry.flags.unwrap_or(0));
                match entry.op {
                    Op::Link => rustix::fs::linkat(&parent, name, &to, new, AtFlags::empty()),
                    _ => rustix::fs::renameat_with(&parent, name, &to, new, flags),
                }
            }
        };
        // What is open is known by names that may mean something else now.
        self.open.clear();
        Some(done.or_fail("change a name"))
    }

    fn list(&self, path: &[u8], entry: &Entry) -> Done {
        // The first part stands for all: positions are those of another directory.
        if entry.offset.is_some_and(|offset| offset > 0) {
            return None;
        }
        let read = || {
            let place = self.place(path)?;
            let folder = self
                .proc
                .reopen(place.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?;
            if entry.op != Op::Opendir {
                let entries = rustix::fs::Dir::read_from(folder).or_fail("readdir")?;
                for entry in entries {
                    entry.or_fail("readdir")?;
                }
            }
            Ok(())
        };
        Some(read())
    }

    // -----------------------------------------------------------------------------------------
    // Files

    /// A file that is open for reading, or also for writing; opened now unless it is.
    fn file(&mut self, path: &[u8], write: bool) -> Result<&OwnedFd> {
        let key = (path.to_vec(), write);
        if !self.open.contains_key(&key) {
            let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
            let file = self.open_plain(path, flags)?;
            if self.open.len() >= MOST_OPEN {
                self.open.clear();
            }
            self.open.insert(key.clone(), file);
        }
        self.open.get(&key).ok_or(Fail::new(Errno::BADF, "open"))
    }

    /// Opens a regular file or a directory; a device or a fifo has effects elsewhere.
    fn open_plain(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let place = self.place(path)?;
        let stat = rustix::fs::fstat(&place).or_fail("stat")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => self.proc.reopen(place.as_fd(), flags),
            FileType::Symlink => Err(Fail::new(Errno::LOOP, "open")),
            _ => Err(Fail::new(Errno::OPNOTSUPP, "open").because("no regular file")),
        }
    }

    fn forget(&mut self, path: &[u8]) {
        for write in [false, true] {
            self.open.remove(&(path.to_vec(), write));
        }
    }

    fn opened(&mut self, entry: &Entry, path: &[u8]) -> Done {
        let asked = OFlags::from_bits_truncate(entry.flags?);
        let flags = asked & OPENING;
        if entry.op == Op::Open {
            return Some(self.open_plain(path, flags - OFlags::EXCL).map(drop));
        }
        let mode = Mode::from_bits_truncate(entry.mode.unwrap_or(0o600));
        let create = || {
            let (parent, name) = self.parent(path)?;
            let made = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent, name, flags | made, mode) {
                Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                    self.open_plain(path, flags).map(drop)
                }
                done => done.map(drop).or_fail("create"),
            }
        };
        Some(create())
    }

    fn read(&mut self, path: &[u8], offset: u64, size: u64) -> Done {
        let mut room = std::mem::take(&mut self.room);
        let part = &mut room[..size.min(MOST) as usize];
        let done = self.file(path, false).and_then(|file| {
            rustix::io::pread(file, part, offset)
                .map(drop)
                .or_fail("read")
        });
        self.room = room;
        Some(done)
    }

    /// Zeros: the log has no bytes.
    fn write(&mut self, path: &[u8], offset: u64, size: u64) -> Done {
        let zeros = vec![0; size.min(MOST) as usize];
        let file = self.file(path, true);
        Some(file.and_then(|file| {
            rustix::io::pwrite(file, &zeros, offset)
                .map(drop)
                .or_fail("write")
        }))
    }

    /// A new size and a new mode; owners and times stand in no log.
    fn set(&mut self, path: &[u8], entry: &Entry) -> Done {
        if entry.size.is_none() && entry.mode.is_none() {
            return None;
        }
        let set = |actor: &mut Self| {
            if let Some(size) = entry.size {
                let file = actor.file(path, true)?;
                rustix::fs::ftruncate(file, size).or_fail("truncate")?;
            }
            if let Some(mode) = entry.mode {
                let file = actor.file(path, false)?;
                rustix::fs::fchmod(file, Mode::from_bits_truncate(mode)).or_fail("chmod")?;
            }
            Ok(())
        };
        Some(set(self))
    }

    fn allocate(&mut self, path: &[u8], entry: &Entry) -> Done {
        let (offset, size) = (entry.offset?, entry.size?);
        let flags = FallocateFlags::from_bits_truncate(entry.flags.unwrap_or(0));
        let file = self.file(path, true);
        Some(
            file.and_then(|file| {
                rustix::fs::fallocate(file, flags, offset, size).or_fail("fallocate")
            }),
        )
    }

    fn xattr(&mut self, path: &[u8], entry: &Entry) -> Done {
        let mut room = vec![0; entry.size.unwrap_or(0).min(MOST) as usize];
        let name = match entry.op {
            Op::Getxattr => Some(OsStr::from_bytes(entry.other.as_deref()?)),
            _ => None,
        };
        let file = match self.file(path, false) {
            Ok(file) => file,
            Err(fail) => return Some(Err(fail)),
        };
        let done = match name {
            Some(name) => rustix::fs::fgetxattr(file, name, &mut room[..]),
            None => rustix::fs::flistxattr(file, &mut room[..]),
        };
        Some(done.map(drop).or_fail("xattr"))
    }
}

fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), BENEATH) {
            // A rename somewhere in the system kept the kernel from being sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            found => return found.or_fail("open"),
        }
    }
}

fn sync(file: &OwnedFd) -> Result<()> {
    rustix::fs::fsync(file).or_fail("fsync")
}
