//! The requests of a [`super::FaultySource`], done on the folder that it shows.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::{Faults, On};

/// The kernel must ask each time: faults come and go.
const TTL: Duration = Duration::ZERO;

pub(super) struct Server(Arc<Inner>);

struct Inner {
    faults: Arc<Faults>,
    tree: Mutex<Tree>,
}

struct Tree {
    ids: HashMap<PathBuf, u64>,
    paths: HashMap<u64, PathBuf>,
    files: HashMap<u64, Arc<Open>>,
    next: u64,
}

struct Open {
    file: File,
    path: PathBuf,
}

impl Server {
    pub(super) fn new(store: PathBuf, faults: Arc<Faults>) -> Self {
        let tree = Tree {
            ids: HashMap::from([(store.clone(), 1)]),
            paths: HashMap::from([(1, store)]),
            files: HashMap::new(),
            next: 2,
        };
        Self(Arc::new(Inner {
            faults,
            tree: Mutex::new(tree),
        }))
    }

    /// Does `work` and answers, on a thread of its own when a fault comes first.
    fn answer<R: Send + 'static, T>(
        &self,
        on: On,
        path: io::Result<PathBuf>,
        reply: R,
        work: impl FnOnce(&Inner, &Path) -> io::Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) {
        let path = match path {
            Ok(path) => path,
            Err(error) => return send(reply, Err(error.into())),
        };
        let inner = self.0.clone();
        let fault = inner.faults.fault(on, &path);
        if fault.is_none() && !(on == On::Read && inner.faults.is_slow()) {
            return send(reply, work(&inner, &path).map_err(Errno::from));
        }
        std::thread::spawn(move || {
            let undergone = match fault {
                Some(fault) => inner.faults.undergo(on, fault).map_err(io::Error::from),
                None => Ok(()),
            };
            let done = undergone.and_then(|()| work(&inner, &path));
            send(reply, done.map_err(Errno::from));
        });
    }

    fn path(&self, id: INodeNo) -> io::Result<PathBuf> {
        let tree = self.0.tree();
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        tree.paths.get(&id.0).cloned().ok_or_else(stale)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }
}

impl Inner {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, path: &Path) -> io::Result<FileAttr> {
        let meta = fs::symlink_metadata(path)?;
        let mut tree = self.tree();
        let id = match tree.ids.get(path) {
            Some(&id) => id,
            None => tree.enter(path),
        };
        Ok(self.shown(id, &meta))
    }

    fn shown(&self, id: u64, meta: &Metadata) -> FileAttr {
        let mut attr = attr(id, meta);
        let older = self.faults.older.load(Ordering::Relaxed);
        attr.ctime = attr
            .ctime
            .checked_sub(Duration::from_secs(older))
            .unwrap_or(UNIX_EPOCH);
        attr
    }

    fn open(
        &self,
        path: &Path,
        options: &mut fs::OpenOptions,
    ) -> io::Result<(FileHandle, FopenFlags)> {
        let (file, path) = (options.open(path)?, path.to_owned());
        let mut tree = self.tree();
        tree.next += 1;
        let handle = tree.next;
        tree.files.insert(handle, Arc::new(Open { file, path }));
        let mut flags = FopenFlags::empty();
        flags.set(
            FopenFlags::FOPEN_DIRECT_IO,
            self.faults.state().short.is_some(),
        );
        Ok((FileHandle(handle), flags))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<Open>> {
        let unknown = || io::Error::from_raw_os_error(libc::EBADF);
        self.tree()
            .files
            .get(&handle.0)
            .cloned()
            .ok_or_else(unknown)
    }

    fn read(&self, handle: FileHandle, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        let (short, cut, broken) = {
            let state = self.faults.state();
            (state.short, state.cut, state.broken)
        };
        if let Some((_, errno)) = broken.filter(|(from, _)| offset + size as u64 > *from) {
            return Err(errno.into());
        }
        let left = cut.map_or(u64::MAX, |cut| cut.saturating_sub(offset));
        let size = size
            .min(short.unwrap_or(usize::MAX))
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut bytes = vec![0; size];
        let open = self.file(handle)?;
        let mut filled = 0;
        while filled < size {
            match open
                .file
                .read_at(&mut bytes[filled..], offset + filled as u64)?
            {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn renamed(&self, from: &Path, to: &Path) {
        let mut tree = self.tree();
        tree.ids.remove(to);
        let moved: Vec<(PathBuf, u64)> = tree
            .ids
            .extract_if(|path, _| path.starts_with(from))
            .collect();
        for (old, id) in moved {
            // A file's own path, joined with nothing, would get a slash.
            let new = match old.strip_prefix(from) {
                Ok(rest) if !rest.as_os_str().is_empty() => to.join(rest),
                _ => to.to_owned(),
            };
            tree.paths.insert(id, new.clone());
            tree.ids.insert(new, id);
        }
    }
}

impl Tree {
    fn enter(&mut self, path: &Path) -> u64 {
        self.next += 1;
        self.ids.insert(path.to_owned(), self.next);
        self.paths.insert(self.next, path.to_owned());
        self.next
    }
}

fn attr(id: u64, meta: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        UNIX_EPOCH + Duration::new(seconds.max(0).unsigned_abs(), nanos as u32)
    };
    let kind = meta.file_type();
    FileAttr {
        ino: INodeNo(id),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: if kind.is_dir() {
            FileType::Directory
        } else if kind.is_symlink() {
            FileType::Symlink
        } else if kind.is_fifo() {
            FileType::NamedPipe
        } else {
            FileType::RegularFile
        },
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn entry(reply: ReplyEntry, done: Result<FileAttr, Errno>) {
    match done {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.child(parent, name);
        self.answer(On::Lookup, path, reply, Inner::attr, entry);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        // An open file without a name still has attributes.
        let open = fh.and_then(|fh| self.0.file(fh).ok());
        let work = move |inner: &Inner, path: &Path| match open {
            Some(open) => Ok(inner.shown(ino.0, &open.file.metadata()?)),
            None => inner.attr(path),
        };
        self.answer(
            On::Getattr,
            self.path(ino),
            reply,
            work,
            |reply, done| match done {
                Ok(attr) => reply.attr(&TTL, &attr),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let work = |_: &Inner, path: &Path| Ok(fs::read_link(path)?.into_os_string());
        let send = |reply: ReplyData, done: Result<std::ffi::OsString, Errno>| match done {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(errno) => reply.error(errno),
        };
        self.answer(On::Lookup, self.path(ino), reply, work, send);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let work = move |inner: &Inner, path: &Path| {
            if let Some(mode) = mode {
                fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::lchown(path, uid, gid)?;
            }
            if let Some(size) = size {
                File::options().write(true).open(path)?.set_len(size)?;
            }
            inner.attr(path)
        };
        self.answer(
            On::Setattr,
            self.path(ino),
            reply,
            work,
            |reply, done| match done {
                Ok(attr) => reply.attr(&TTL, &attr),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let work = move |inner: &Inner, path: &Path| {
            fs::create_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode & !umask & 0o7777))?;
            inner.attr(path)
        };
        self.answer(On::Mkdir, self.child(parent, name), reply, work, entry);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = |inner: &Inner, path: &Path| {
            fs::remove_file(path)?;
            inner.tree().ids.remove(path);
            Ok(())
        };
        self.answer(On::Unlink, self.child(parent, name), reply, work, empty);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = |inner: &Inner, path: &Path| {
            fs::remove_dir(path)?;
            inner.tree().ids.remove(path);
            Ok(())
        };
        self.answer(On::Unlink, self.child(parent, name), reply, work, empty);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let to = self.child(newparent, newname);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let work = move |inner: &Inner, path: &Path| {
            use rustix::fs::{CWD, renameat_with};
            let to = to?;
            renameat_with(CWD, path, CWD, &to, flags)?;
            inner.renamed(path, &to);
            Ok(())
        };
        self.answer(On::Rename, self.child(parent, name), reply, work, empty);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = move |inner: &Inner, path: &Path| {
            let access = flags.0 & libc::O_ACCMODE;
            let mut options = File::options();
            options
                .read(access != libc::O_WRONLY)
                .write(access != libc::O_RDONLY)
                .custom_flags(libc::O_NOFOLLOW);
            inner.open(path, &mut options)
        };
        self.answer(
            On::Open,
            self.path(ino),
            reply,
            work,
            |reply, done| match done {
                Ok((handle, flags)) => reply.opened(handle, flags),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let work = move |inner: &Inner, path: &Path| {
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .mode(mode & !umask);
            let opened = inner.open(path, &mut options)?;
            Ok((inner.attr(path)?, opened))
        };
        self.answer(
            On::Create,
            self.child(parent, name),
            reply,
            work,
            |reply, done| match done {
                Ok((attr, (handle, flags))) => {
                    reply.created(&TTL, &attr, Generation(0), handle, flags);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = self.0.file(fh).map(|open| open.path.clone());
        let work = move |inner: &Inner, _: &Path| {
            let bytes = inner.read(fh, offset, size as usize)?;
            inner.faults.transfer(bytes.len() as u64);
            Ok(bytes)
        };
        self.answer(On::Read, path, reply, work, |reply, done| match done {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let path = self.0.file(fh).map(|open| open.path.clone());
        let mut data = data.to_vec();
        let work = move |inner: &Inner, _: &Path| {
            let (full, spoilt) = {
                let state = inner.faults.state();
                (state.full, state.spoilt)
            };
            if let Some((_, errno)) = full.filter(|(from, _)| offset >= *from) {
                return Err(errno.into());
            }
            if let Some(byte) = spoilt
                .and_then(|at| usize::try_from(at.checked_sub(offset)?).ok())
                .and_then(|at| data.get_mut(at))
            {
                *byte ^= 1;
            }
            inner.file(fh)?.file.write_all_at(&data, offset)?;
            Ok(data.len() as u32)
        };
        self.answer(On::Write, path, reply, work, |reply, done| match done {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let path = self.0.file(fh).map(|open| open.path.clone());
        self.answer(On::Flush, path, reply, |_, _| Ok(()), empty);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        let path = self.0.file(fh).map(|open| open.path.clone());
        self.answer(On::Fsync, path, reply, |_, _| Ok(()), empty);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        let path = self.0.file(fh).map(|open| open.path.clone());
        let refused = |_: &Inner, _: &Path| -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        };
        self.answer(On::Fallocate, path, reply, refused, empty);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let path = self.0.file(fh_out).map(|open| open.path.clone());
        let refused = |_: &Inner, _: &Path| -> io::Result<u32> {
            Err(io::Error::from_raw_os_error(libc::ENOSYS))
        };
        self.answer(
            On::CopyRange,
            path,
            reply,
            refused,
            |reply, done| match done {
                Ok(count) => reply.written(count),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        let path = self.path(ino);
        if let Ok(path) = &path {
            self.0.faults.state().synced.push(path.clone());
        }
        self.answer(On::Fsyncdir, path, reply, |_, _| Ok(()), empty);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.tree().files.remove(&fh.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let work = |inner: &Inner, path: &Path| {
            let mut names = Vec::new();
            if inner.faults.hides(path) {
                return Ok(names);
            }
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                // One that is gone again is no entry any more.
                if let Ok(attr) = inner.attr(&path) {
                    names.push((path, attr));
                }
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(names)
        };
        self.answer(
            On::Readdir,
            self.path(ino),
            reply,
            work,
            move |mut reply, done| {
                let names = match done {
                    Ok(names) => names,
                    Err(errno) => return reply.error(errno),
                };
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                for (at, (path, attr)) in names.iter().enumerate().skip(skip) {
                    let name = path.file_name().unwrap_or_default();
                    if reply.add(attr.ino, at as u64 + 1, attr.kind, name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }
}
