//! The one `impl Filesystem`: decode, call the mirror, reply, count. No logic.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{self, caller, entry_attr};
use super::lock_waits::Waiter;
use super::opened::dir_flags;
pub use super::shared::Shared;
use super::shared::{GENERATION, nameless_attr, negative_attr};
use crate::cache::Store;
use crate::mirror::{
    Attr, Coherence, EventQueue, InodeTable, LockOutcome, MAX_READ, Mirror, Options, SetAttr,
};
use crate::observe::{Metrics, Op};
use crate::sys::ofd::Lock;
use crate::sys::watch::CallerWatch;
use crate::sys::{self, Fail};

/// How many background requests (readahead) may be under way; the kernel's default is 12.
const MAX_BACKGROUND: u16 = 64;

/// The position in a listing after the control file and before the source's first entry. No file
/// system gives it: ext4's and XFS's positions are hashes and offsets below it, and the end of an
/// ext4 directory is the last number of 63 bits.
const AFTER_CONTROL: u64 = (i64::MAX - 15) as u64;

/// Serves a mirror to the kernel.
pub struct Adapter {
    shared: Arc<Shared>,
}

impl Adapter {
    /// A mirror of `source` (`O_PATH`) that will be mounted at `mountpoints` (one place, by
    /// the names that people may give it), holding at most
    /// `descriptors` for inodes. `config` is what `.corfs/config` shows.
    ///
    /// # Errors
    /// EINVAL for impossible sizes; those of the first system calls on the source.
    pub fn new(
        source: OwnedFd,
        mountpoints: Vec<PathBuf>,
        descriptors: usize,
        options: Options,
        config: String,
        events: EventQueue,
        store: Option<Arc<Store>>,
        metrics: Arc<Metrics>,
    ) -> sys::Result<Self> {
        let shared = Shared::new(
            source,
            mountpoints,
            descriptors,
            options,
            config,
            events,
            store,
            metrics,
        )?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// What the session needs to keep.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

fn virtual_file(ino: INodeNo) -> bool {
    InodeTable::is_virtual(ino.0)
}

fn refused(operation: &'static str) -> Fail {
    Fail::new(sys::Errno::PERM, operation)
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Not ATOMIC_O_TRUNC: the kernel would send the truncating open before it finds that the
        // file is a running program's (ETXTBSY), and the program would lose its pages.
        let mut wanted = InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HAS_IOCTL_DIR;
        if self.shared.mirror.options().coherence == Coherence::Strict {
            // Without it (before Linux 6.6) a file can't be mapped shared.
            wanted |= InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        }
        if self.shared.mirror.options().default_permissions {
            // The kernel judges: it must know the ACLs, not only the modes.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        if let Err(unsupported) = config.add_capabilities(wanted) {
            log::info!("this kernel lacks {unsupported:?}; going on without");
            // What remains is supported, by what add_capabilities just said.
            let _ = config.add_capabilities(wanted & !unsupported);
        }
        // Requests of 1 MiB are as large as the kernel makes them; values it refuses come back
        // as the nearest that it takes.
        let _ = config.set_max_write(MAX_READ as u32);
        if let Err(most) = config.set_max_readahead(MAX_READ as u32) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        self.shared.negotiate_passthrough(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let shared = &self.shared;
        let found = shared.measured(Op::Lookup, || {
            match shared.control.lookup(parent.0, name)? {
                Some(attr) => Ok(attr),
                None => shared.mirror.lookup(parent.0, name),
            }
        });
        if found.as_ref().is_err_and(|e| i32::from(*e) == libc::ENOENT) {
            let negative = shared.mirror.trust_absence(parent.0);
            if !negative.is_zero() && !virtual_file(parent) {
                return reply.entry(&negative, &negative_attr(), GENERATION);
            }
        }
        shared.reply_entry(reply, found, |mirror, attr| {
            mirror.trust_entry(parent.0, attr)
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let started = Instant::now();
        if virtual_file(ino) {
            self.shared.control.forget(ino.0, nlookup);
        } else {
            self.shared.mirror.forget(ino.0, nlookup);
        }
        self.shared.metrics.operation(Op::Forget, started, false);
    }

    // batch_forget stays the library's own, which calls `forget` for each: its argument's type is
    // not public in fuser 0.18.

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let shared = &self.shared;
        let found = shared.measured(Op::Getattr, || {
            if virtual_file(ino) {
                return shared.control.getattr(ino.0);
            }
            shared.mirror.getattr(ino.0, fh.map(|fh| fh.0))
        });
        shared.reply_attr(reply, found, Mirror::trust_attr);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let shared = &self.shared;
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::time),
            mtime: mtime.map(convert::time),
        };
        let found = shared.measured(Op::Setattr, || {
            if !virtual_file(ino) {
                return shared.mirror.setattr(ino.0, fh.map(|fh| fh.0), &set);
            }
            // To truncate or touch a control file has no effect, and is no error: `>` does it.
            if mode.is_some() || uid.is_some() || gid.is_some() {
                return Err(refused("setattr on a control file"));
            }
            shared.control.getattr(ino.0)
        });
        shared.reply_attr(reply, found, |mirror, _| mirror.trust_set());
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let read = || self.shared.mirror.readlink(ino.0);
        match self.shared.measured(Op::Readlink, read) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let shared = &self.shared;
        let made = shared.measured(Op::Mknod, || {
            shared.control.refuse_new(parent.0, name)?;
            let caller = caller(req, umask);
            shared.mirror.mknod(&caller, parent.0, name, mode, rdev)
        });
        shared.reply_made(reply, parent.0, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let shared = &self.shared;
        let made = shared.measured(Op::Mkdir, || {
            shared.control.refuse_new(parent.0, name)?;
            let caller = caller(req, umask);
            shared.mirror.mkdir(&caller, parent.0, name, mode)
        });
        shared.reply_made(reply, parent.0, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let shared = &self.shared;
        shared.reply_empty(Op::Unlink, reply, || {
            shared.control.refuse_change(parent.0, name)?;
            shared.mirror.unlink(parent.0, name)
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let shared = &self.shared;
        shared.reply_empty(Op::Rmdir, reply, || {
            shared.control.refuse_change(parent.0, name)?;
            shared.mirror.rmdir(parent.0, name)
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let shared = &self.shared;
        let made = shared.measured(Op::Symlink, || {
            shared.control.refuse_new(parent.0, link_name)?;
            let (caller, target) = (caller(req, 0), target.as_os_str());
            shared.mirror.symlink(&caller, parent.0, link_name, target)
        });
        shared.reply_made(reply, parent.0, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let shared = &self.shared;
        shared.reply_empty(Op::Rename, reply, || {
            shared.control.refuse_change(parent.0, name)?;
            shared.control.refuse_change(newparent.0, newname)?;
            let flags = flags.bits();
            let mirror = &shared.mirror;
            mirror.rename(&caller(req, 0), parent.0, name, newparent.0, newname, flags)
        });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let shared = &self.shared;
        let made = shared.measured(Op::Link, || {
            if virtual_file(ino) {
                return Err(refused("link a control file"));
            }
            shared.control.refuse_new(newparent.0, newname)?;
            let caller = caller(req, 0);
            shared.mirror.link(&caller, ino.0, newparent.0, newname)
        });
        shared.reply_made(reply, newparent.0, made);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let shared = &self.shared;
        if virtual_file(ino) {
            let open = || shared.control.open(req, ino.0, flags.0);
            return match shared.measured(Op::Open, open) {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
                Err(errno) => reply.error(errno),
            };
        }
        match shared.measured(Op::Open, || {
            shared.mirror.open(&caller(req, 0), ino.0, flags.0)
        }) {
            Ok(opened) => shared.reply_opened(ino.0, flags.0, &opened, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let shared = &self.shared;
        let created = shared.measured(Op::Create, || {
            shared.control.refuse_new(parent.0, name)?;
            let caller = caller(req, umask);
            shared.mirror.create(&caller, parent.0, name, mode, flags)
        });
        match created {
            Ok((attr, opened)) => shared.reply_created(parent.0, &attr, flags, &opened, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let shared = &self.shared;
        let mut reply = Some(reply);
        let mut send = |bytes: &[u8]| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        let read = shared.measured(Op::Read, || {
            if virtual_file(ino) {
                let control = &shared.control;
                return control.read(ino.0, fh.0, offset, size as usize, &mut send);
            }
            shared.mirror.read(fh.0, offset, size as usize, &mut send)
        });
        if let (Err(errno), Some(reply)) = (read, reply) {
            reply.error(errno);
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let shared = &self.shared;
        if virtual_file(ino) {
            return shared.control.write(req, fh.0, data, reply);
        }
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = || shared.mirror.write(fh.0, offset, data, from_pages);
        match shared.measured(Op::Write, write) {
            Ok(count) => reply.written(count as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let shared = &self.shared;
        if virtual_file(ino) {
            return shared.control.flush(req, fh.0, reply);
        }
        let flush = || shared.mirror.flush(fh.0, lock_owner.0);
        shared.reply_empty(Op::Flush, reply, flush);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let shared = &self.shared;
        shared.reply_empty(Op::Release, reply, || {
            if virtual_file(ino) {
                shared.control.release(fh.0);
            } else {
                shared.mirror.release(fh.0);
                shared.released(ino.0, flags.0);
            }
            Ok(())
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        if virtual_file(ino) {
            return reply.ok();
        }
        let shared = self.shared.clone();
        self.shared.aside.run("fsync", move || {
            let sync = || shared.mirror.fsync(fh.0, datasync);
            shared.reply_empty(Op::Fsync, reply, sync);
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if virtual_file(ino) {
            return reply.opened(FileHandle(0), FopenFlags::empty());
        }
        let open = || self.shared.mirror.opendir(ino.0, flags.0);
        match self.shared.measured(Op::Opendir, open) {
            Ok(opened) => reply.opened(FileHandle(opened.handle), dir_flags(&opened)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let shared = &self.shared;
        let mut emit = |entry: &crate::mirror::Entry| {
            let kind = convert::file_type(entry.kind);
            reply.add(INodeNo(entry.ino), entry.next, kind, &entry.name)
        };
        let read = shared.measured(Op::Readdir, || {
            if virtual_file(ino) {
                shared.control.folder_entries(offset).any(|e| emit(&e));
                return Ok(());
            }
            if offset == 0
                && let Some(entry) = shared.control.listed(ino.0, AFTER_CONTROL)
            {
                emit(&entry);
            }
            let offset = if offset == AFTER_CONTROL { 0 } else { offset };
            shared.mirror.readdir(fh.0, offset, &mut emit)
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let shared = &self.shared;
        let mut emit = |entry: &crate::mirror::Entry, attr: Option<&Attr>| {
            let (attr, ttl) = match attr {
                Some(attr) if virtual_file(ino) => (entry_attr(attr), Duration::ZERO),
                Some(attr) => {
                    let trust = shared.mirror.trust_entry(ino.0, attr);
                    let trust = shared.seen_stores(attr, trust);
                    (entry_attr(attr), trust.entry.min(trust.attr))
                }
                None => {
                    let id = shared.mirror.table().virtual_id();
                    let kind = convert::file_type(entry.kind);
                    (nameless_attr(id, kind), Duration::ZERO)
                }
            };
            let (ino, next) = (INodeNo(entry.ino), entry.next);
            reply.add(ino, next, &entry.name, &ttl, &attr, GENERATION)
        };
        let read = shared.measured(Op::Readdirplus, || {
            if virtual_file(ino) {
                let mut entries = shared.control.folder_entries(offset);
                entries.any(|e| emit(&e, shared.control.getattr(e.ino).ok().as_ref()));
                return Ok(());
            }
            if offset == 0
                && let Some(entry) = shared.control.listed(ino.0, AFTER_CONTROL)
            {
                emit(&entry, None);
            }
            let offset = if offset == AFTER_CONTROL { 0 } else { offset };
            shared.mirror.readdirplus(fh.0, offset, &mut emit)
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.reply_empty(Op::Releasedir, reply, || {
            self.shared.mirror.releasedir(fh.0);
            Ok(())
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        if virtual_file(ino) {
            return reply.ok();
        }
        let shared = self.shared.clone();
        self.shared.aside.run("fsyncdir", move || {
            let sync = || shared.mirror.fsyncdir(fh.0, datasync);
            shared.reply_empty(Op::Fsyncdir, reply, sync);
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let shared = &self.shared;
        let ino = if virtual_file(ino) { 1 } else { ino.0 };
        match shared.measured(Op::Statfs, || shared.mirror.statfs(ino)) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                stat.f_namemax as u32,
                stat.f_frsize as u32,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.shared.reply_empty(Op::Setxattr, reply, || {
            if virtual_file(ino) {
                return Err(refused("setxattr on a control file"));
            }
            let mirror = &self.shared.mirror;
            mirror.setxattr(&caller(req, 0), ino.0, name, value, flags as u32)
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mirror = &self.shared.mirror;
        if virtual_file(ino) {
            return reply.error(Errno::ENODATA);
        }
        if size == 0 {
            let length = || mirror.getxattr_size(ino.0, name);
            return match self.shared.measured(Op::Getxattr, length) {
                Ok(length) => reply.size(length as u32),
                Err(errno) => reply.error(errno),
            };
        }
        let value = || mirror.getxattr(ino.0, name, size as usize);
        match self.shared.measured(Op::Getxattr, value) {
            Ok(value) => reply.data(&value),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mirror = &self.shared.mirror;
        if virtual_file(ino) {
            return if size == 0 {
                reply.size(0)
            } else {
                reply.data(&[])
            };
        }
        if size == 0 {
            let length = || mirror.listxattr_size(ino.0);
            return match self.shared.measured(Op::Listxattr, length) {
                Ok(length) => reply.size(length as u32),
                Err(errno) => reply.error(errno),
            };
        }
        let names = || mirror.listxattr(ino.0, size as usize);
        match self.shared.measured(Op::Listxattr, names) {
            Ok(names) => reply.data(&names),
            Err(errno) => reply.error(errno),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.shared.reply_empty(Op::Removexattr, reply, || {
            if virtual_file(ino) {
                return Err(refused("removexattr on a control file"));
            }
            self.shared.mirror.removexattr(ino.0, name)
        });
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.shared.reply_empty(Op::Access, reply, || {
            if virtual_file(ino) {
                return Ok(());
            }
            self.shared.mirror.access(ino.0, mask.bits() as u32)
        });
    }

    fn getlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        // Handles of control files are numbered by themselves, and would name another's file.
        if virtual_file(ino) {
            return reply.error(Errno::ENOLCK);
        }
        let lock = file_lock(start, end, typ, pid);
        let get = || self.shared.mirror.getlk(fh.0, lock_owner.0, lock);
        match self.shared.measured(Op::Getlk, get) {
            Ok(Some(lock)) => reply.locked(lock.start, lock.end, lock.kind, lock.pid as u32),
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        if virtual_file(ino) {
            return reply.error(Errno::ENOLCK);
        }
        let (caller, lock) = (caller(req, 0), file_lock(start, end, typ, pid));
        let mirror = &self.shared.mirror;
        let set = || mirror.setlk(&caller, fh.0, lock_owner.0, lock);
        match self.shared.measured(Op::Setlk, set) {
            Ok(LockOutcome::Done) => reply.ok(),
            Ok(LockOutcome::Held) if sleep => {
                let waiter = Waiter {
                    caller,
                    handle: fh.0,
                    owner: lock_owner.0,
                    lock,
                    watch: CallerWatch::new(req.pid()),
                    reply,
                    fresh: true,
                };
                self.shared.lock_waits.wait(&self.shared.mirror, waiter);
            }
            Ok(LockOutcome::Held) => reply.error(Errno::EAGAIN),
            Err(errno) => reply.error(errno),
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let answer = self.shared.measured(Op::Ioctl, || {
            if virtual_file(ino) {
                return Err(Fail::new(sys::Errno::NOTTY, "ioctl"));
            }
            let mirror = &self.shared.mirror;
            mirror.ioctl(&caller(req, 0), ino.0, cmd, in_data)
        });
        match answer {
            // The kernel takes as many bytes as it asked for, no fewer.
            Ok(mut data) => {
                if data.is_empty() {
                    self.shared.attributes_changed(ino.0);
                }
                data.resize(out_size as usize, 0);
                reply.ioctl(0, &data);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Regular files and control files are always ready. The kernel remembers ENOSYS, and
        // says so itself from then on (fs/fuse/file.c, no_poll).
        self.shared
            .metrics
            .operation(Op::Poll, Instant::now(), false);
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if virtual_file(ino) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let shared = self.shared.clone();
        self.shared.aside.run("fallocate", move || {
            let allocate = || shared.mirror.fallocate(fh.0, offset, length, mode as u32);
            shared.reply_empty(Op::Fallocate, reply, allocate);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        if virtual_file(ino) {
            return reply.error(Errno::EINVAL);
        }
        let seek = || self.shared.mirror.lseek(fh.0, offset, whence);
        match self.shared.measured(Op::Lseek, seek) {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if virtual_file(ino_in) || virtual_file(ino_out) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let shared = self.shared.clone();
        self.shared.aside.run("copy-range", move || {
            let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
            let copy = || shared.mirror.copy_file_range(from, to, len);
            match shared.measured(Op::CopyFileRange, copy) {
                Ok(count) => reply.written(count as u32),
                Err(errno) => reply.error(errno),
            }
        });
    }
}

fn file_lock(start: u64, end: u64, typ: i32, pid: u32) -> Lock {
    Lock {
        kind: typ,
        start,
        end,
        pid: pid as i32,
    }
}
