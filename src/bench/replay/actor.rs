//! One operation of a log, done again beneath a directory: every name is resolved by the kernel
//! with no way out and no symbolic link followed, and only regular files and directories are opened.
//!
//! What the log opens stays open until the log releases it: a file that may be written by who made it
//! alone, and one that has lost its name, are reached by nothing else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lru::LruCache;
use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags,
};

use crate::observe::Op;
use crate::observe::oplog::Entry;
use crate::sys::procfd::{self, ProcFd};
use crate::sys::{Errno, Fail, OrFail, Result, umask};

/// The longest read or write at once, in bytes: what the kernel asks a mount for.
const MOST: u64 = 1 << 20;
/// How many files stay open between operations: by name, and those of the log.
const MOST_OPEN: usize = 64;
const MOST_KEPT: NonZeroUsize = NonZeroUsize::new(512).unwrap();
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What an open is played back with. Where bytes go stands in the log, so that appending would only
/// put them elsewhere; buffers are not aligned; the rest means nothing without the program.
const OPENING: OFlags = OFlags::ACCMODE.union(OFlags::TRUNC).union(OFlags::EXCL);

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
    /// What the log has opened and not released, by the numbers in it; who was used last is kept.
    kept: LruCache<u64, Kept>,
    room: Vec<u8>,
    /// How many bytes the last operation moved, of those that move some.
    moved: Option<u64>,
}

/// An open file of the log.
#[derive(Debug)]
struct Kept {
    file: OwnedFd,
    reads: bool,
    writes: bool,
}

impl Kept {
    fn new(file: OwnedFd, flags: OFlags) -> Self {
        let way = flags & OFlags::ACCMODE;
        Self {
            file,
            reads: way != OFlags::WRONLY,
            writes: way != OFlags::RDONLY,
        }
    }
}

/// The file that an operation is about.
#[derive(Clone, Copy)]
struct Target<'a> {
    handle: Option<u64>,
    /// None for one without a name.
    path: Option<&'a [u8]>,
}

/// What a file is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Whatever it is open for.
    Any,
    Reading,
    Writing,
}

/// `None` for what can't be played back.
type Done = Option<Result<()>>;

impl Actor {
    /// Modes of the log are to be made as they stand there: the calling thread, which is to play all
    /// of it, has no umask from now on.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        umask::set(0)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: rustix::fs::open(directory, flags, Mode::empty()).or_fail("open")?,
            proc: ProcFd::open()?,
            open: HashMap::new(),
            kept: LruCache::new(MOST_KEPT),
            room: vec![0; MOST as usize],
            moved: None,
        })
    }

    /// The directory.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// How many bytes the last operation moved, if it is one that does.
    pub(super) fn moved(&self) -> Option<u64> {
        self.moved
    }

    /// Another log begins, of a daemon that numbers its open files anew.
    pub(super) fn forget_files(&mut self) {
        self.kept.clear();
        self.open.clear();
    }

    pub(super) fn play(&mut self, entry: &Entry) -> Played {
        self.moved = None;
        if is_refused_change(entry) {
            return Played::LeftOut;
        }
        let done = match self.on_a_file(entry) {
            Some(done) => done,
            None => entry
                .path
                .as_ref()
                .and_then(|path| self.by_path(entry, path)),
        };
        match done {
            None => Played::LeftOut,
            Some(Ok(())) => Played::Ended(0),
            Some(Err(fail)) => Played::Ended(fail.errno.raw_os_error()),
        }
    }

    /// What is about a file, which may have no name any more. `None` for all else.
    fn on_a_file(&mut self, entry: &Entry) -> Option<Done> {
        let target = Target {
            handle: entry.handle,
            path: entry.path.as_deref(),
        };
        Some(match entry.op {
            Op::Read => self.read(target, entry),
            Op::Write => self.write(target, entry),
            Op::CopyFileRange => self.copy(target, entry),
            Op::Release => self.released(target),
            Op::Setattr => self.set(target, entry),
            Op::Fsync | Op::Fsyncdir => self.with(target, For::Any, sync),
            Op::Fallocate => self.allocate(target, entry),
            Op::Getxattr | Op::Listxattr => self.xattr(target, entry),
            Op::Getattr if self.is_kept(target) => self.with(target, For::Any, |file| {
                rustix::fs::fstat(file).map(drop).or_fail("stat")
            }),
            _ => return None,
        })
    }

    fn by_path(&mut self, entry: &Entry, path: &[u8]) -> Done {
        match entry.op {
            Op::Open | Op::Create => self.opened(entry, path),
            Op::Opendir | Op::Readdir | Op::Readdirplus => self.list(path, entry),
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

    fn is_kept(&self, target: Target<'_>) -> bool {
        target
            .handle
            .is_some_and(|handle| self.kept.contains(&handle))
    }

    /// The file of an operation, for that purpose. `None` for one that has no name, and that this log
    /// has not opened: what has its name now is another.
    fn file(&mut self, target: Target<'_>, purpose: For) -> Option<Result<&OwnedFd>> {
        let fits = |kept: &Kept| match purpose {
            For::Any => true,
            For::Reading => kept.reads,
            For::Writing => kept.writes,
        };
        let handle = target.handle.unwrap_or_default();
        if self.is_kept(target) && self.kept.get(&handle).is_some_and(fits) {
            return self.kept.peek(&handle).map(|kept| Ok(&kept.file));
        }
        Some(self.file_at(target.path?, purpose == For::Writing))
    }

    /// Does something with the file of an operation.
    fn with(
        &mut self,
        target: Target<'_>,
        purpose: For,
        work: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Done {
        Some(self.file(target, purpose)?.and_then(work))
    }

    /// A file that is open for reading, or also for writing; opened now unless it is.
    fn file_at(&mut self, path: &[u8], write: bool) -> Result<&OwnedFd> {
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

    fn released(&mut self, target: Target<'_>) -> Done {
        if let Some(handle) = target.handle {
            self.kept.pop(&handle);
        }
        if let Some(path) = target.path {
            for write in [false, true] {
                self.open.remove(&(path.to_vec(), write));
            }
        }
        Some(Ok(()))
    }

    fn opened(&mut self, entry: &Entry, path: &[u8]) -> Done {
        let flags = OFlags::from_bits_truncate(entry.flags?) & OPENING;
        // What was refused then empties nothing now.
        let flags = match entry.errno {
            0 => flags,
            _ => flags - OFlags::TRUNC,
        };
        let opened = match entry.op {
            Op::Open => self.open_plain(path, flags - OFlags::EXCL),
            _ => self.create(entry, path, flags),
        };
        Some(opened.map(|file| {
            if let Some(handle) = entry.handle {
                self.kept.put(handle, Kept::new(file, flags));
            }
        }))
    }

    fn create(&self, entry: &Entry, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let mode = Mode::from_bits_truncate(entry.mode.unwrap_or(0o600));
        let (parent, name) = self.parent(path)?;
        let made = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags | made, mode) {
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => self.open_plain(path, flags),
            done => done.or_fail("create"),
        }
    }

    fn read(&mut self, target: Target<'_>, entry: &Entry) -> Done {
        let (offset, size) = (entry.offset?, entry.size?);
        let mut room = std::mem::take(&mut self.room);
        let part = &mut room[..size.min(MOST) as usize];
        let mut count = None;
        let done = self.with(target, For::Reading, |file| {
            count = Some(rustix::io::pread(file, part, offset).or_fail("read")? as u64);
            Ok(())
        });
        (self.room, self.moved) = (room, count);
        done
    }

    /// Zeros: the log has no bytes.
    fn write(&mut self, target: Target<'_>, entry: &Entry) -> Done {
        let (offset, size) = (entry.offset?, entry.size?);
        let zeros = vec![0; size.min(MOST) as usize];
        let mut count = None;
        let done = self.with(target, For::Writing, |file| {
            count = Some(rustix::io::pwrite(file, &zeros, offset).or_fail("write")? as u64);
            Ok(())
        });
        self.moved = count;
        done
    }

    /// As many bytes as went then, also if the system copies fewer at once.
    fn copy(&mut self, from: Target<'_>, entry: &Entry) -> Done {
        let to = Target {
            handle: entry.to_handle,
            path: entry.other.as_deref(),
        };
        let (mut read_at, mut write_at) = (entry.offset?, entry.to_offset?);
        let wanted = entry.bytes.or(entry.size)?;
        // Two of them at once: a descriptor of one's own for the time of the copy.
        let source = match self.file(from, For::Reading)? {
            Ok(file) => rustix::io::fcntl_dupfd_cloexec(file, 0).or_fail("open"),
            Err(fail) => Err(fail),
        };
        let mut count = 0;
        let done = self.with(to, For::Writing, |file| {
            let source = source?;
            loop {
                let length = (wanted - count).min(isize::MAX as u64) as usize;
                let (read_at, write_at) = (Some(&mut read_at), Some(&mut write_at));
                let part = rustix::fs::copy_file_range(&source, read_at, file, write_at, length)
                    .or_fail("copy_file_range")? as u64;
                count += part;
                if part == 0 || count >= wanted {
                    return Ok(());
                }
            }
        });
        self.moved = Some(count);
        done
    }

    /// A new size and a new mode; owners and times stand in no log.
    fn set(&mut self, target: Target<'_>, entry: &Entry) -> Done {
        if entry.size.is_none() && entry.mode.is_none() {
            return None;
        }
        if let Some(size) = entry.size {
            let cut = |file: &OwnedFd| rustix::fs::ftruncate(file, size).or_fail("truncate");
            if let Err(fail) = self.with(target, For::Writing, cut)? {
                return Some(Err(fail));
            }
        }
        let Some(mode) = entry.mode else {
            return Some(Ok(()));
        };
        let mode = Mode::from_bits_truncate(mode);
        match target.path {
            Some(path) if !self.is_kept(target) => Some(self.change_mode(path, mode)),
            _ => self.with(target, For::Any, |file| {
                rustix::fs::fchmod(file, mode).or_fail("chmod")
            }),
        }
    }

    /// Of what may not be readable for its owner, either.
    fn change_mode(&self, path: &[u8], mode: Mode) -> Result<()> {
        let place = self.place(path)?;
        let stat = rustix::fs::fstat(&place).or_fail("stat")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Err(Fail::new(Errno::LOOP, "chmod")),
            _ => rustix::fs::chmodat(
                self.proc.dir(),
                procfd::name(place.as_fd()),
                mode,
                AtFlags::empty(),
            )
            .or_fail("chmod"),
        }
    }

    fn allocate(&mut self, target: Target<'_>, entry: &Entry) -> Done {
        let (offset, size) = (entry.offset?, entry.size?);
        let flags = FallocateFlags::from_bits_truncate(entry.flags.unwrap_or(0));
        self.with(target, For::Writing, |file| {
            rustix::fs::fallocate(file, flags, offset, size).or_fail("fallocate")
        })
    }

    fn xattr(&mut self, target: Target<'_>, entry: &Entry) -> Done {
        let mut room = vec![0; entry.size.unwrap_or(0).min(MOST) as usize];
        let name = match entry.op {
            Op::Getxattr => Some(OsStr::from_bytes(entry.other.as_deref()?)),
            _ => None,
        };
        self.with(target, For::Any, |file| {
            let done = match name {
                Some(name) => rustix::fs::fgetxattr(file, name, &mut room[..]),
                None => rustix::fs::flistxattr(file, &mut room[..]),
            };
            done.map(drop).or_fail("xattr")
        })
    }
}

/// Whether it would have changed something, and was refused for what a directory alone does not tell:
/// rights, room, a source that did not answer. Played back it might be done.
fn is_refused_change(entry: &Entry) -> bool {
    /// Of the tree itself: those come again.
    const OF_THE_TREE: [i32; 10] = [
        libc::ENOENT,
        libc::EEXIST,
        libc::ENOTEMPTY,
        libc::ENOTDIR,
        libc::EISDIR,
        libc::ELOOP,
        libc::ENAMETOOLONG,
        libc::EINVAL,
        libc::ENODATA,
        libc::ENXIO,
    ];
    let changes = matches!(
        entry.op,
        Op::Create
            | Op::Mknod
            | Op::Mkdir
            | Op::Symlink
            | Op::Link
            | Op::Rename
            | Op::Unlink
            | Op::Rmdir
            | Op::Setattr
            | Op::Write
            | Op::Fallocate
            | Op::CopyFileRange
    );
    changes && entry.errno != 0 && !OF_THE_TREE.contains(&entry.errno)
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
