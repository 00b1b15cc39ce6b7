//! The one `impl Filesystem`: decode, call the mirror, reply, count. No logic.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::beside::before_answer;
use super::convert::{self, caller};
use super::lock_waits::Asking;
use super::opened::dir_flags;
pub use super::serve::Serving;
use super::serve::{Slot, Wait, name as os};
pub use super::shared::Shared;
use crate::cache::Store;
use crate::mirror::{EventQueue, InodeTable, MAX_READ, Options, SetAttr, WriteSync};
use crate::observe::{Metrics, Op};
use crate::sys::ofd::Lock;
use crate::sys::{self, Fail};

/// How many background requests (readahead) may be under way; the kernel's default is 12.
const MAX_BACKGROUND: u16 = 64;

/// Serves a mirror to the kernel.
pub struct Adapter {
    pub(super) shared: Arc<Shared>,
}

impl Adapter {
    /// A mirror of `source` (`O_PATH`) that will be mounted at `mountpoints` (one place, by
    /// the names that people may give it), holding at most
    /// `descriptors` for inodes. `config` is what `.corfs/config` shows, `serving` who does what
    /// touches the source.
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
        serving: Serving,
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
            serving,
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
            // Without it the kernel asks for file capabilities before each write: setuid bits, and
            // those, go by what the source's file system does under whoever writes or truncates.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            // Without it (before Linux 6.6) a file can't be mapped shared by who has it open without
            // the kernel's pages: for appending, or under coherence=strict.
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_HAS_IOCTL_DIR;
        if self.shared.mirror.options().default_permissions {
            // The kernel judges: it must know the ACLs, not only the modes.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        if self.shared.mirror.options().writeback {
            // Half of it would be wrong: what we do with O_APPEND goes by it.
            let flag = InitFlags::FUSE_WRITEBACK_CACHE;
            let lacking = |_| std::io::Error::from(std::io::ErrorKind::Unsupported);
            config.add_capabilities(flag).map_err(lacking)?;
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
        self.shared.look_ahead();
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _begun = self
            .shared
            .begin(Op::Lookup, req, parent, |asked| asked.name(name));
        let lent = [name.as_bytes()];
        if self.shared.control.is_apart(parent.0, name) {
            // Statistics are wanted most when the source does not answer.
            return self.shared.lookup(parent.0, name, Slot::Own(reply));
        }
        self.serve(
            Wait::Read,
            req.pid(),
            reply,
            lent,
            move |shared, [name], slot| {
                shared.lookup(parent.0, os(name), slot);
            },
        );
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        let _begun = self.shared.begin_forget(req);
        let started = Instant::now();
        if virtual_file(ino) {
            self.shared.control.forget(ino.0, nlookup);
        } else {
            self.forget_by_whom(ino.0, nlookup);
        }
        self.shared.metrics.operation(Op::Forget, started, false);
    }

    // batch_forget stays the library's own, which calls `forget` for each: its argument's type is
    // not public in fuser 0.18.

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _begun = self.shared.begin(Op::Getattr, req, ino, |asked| {
            if let Some(fh) = fh {
                asked.by(fh);
            }
        });
        if self.shared.control.is_own(ino.0) {
            return self.shared.getattr(ino.0, None, Slot::Own(reply));
        }
        let fh = fh.map(|fh| fh.0);
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            shared.getattr(ino.0, fh, slot);
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<std::time::SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _begun = self.shared.begin(Op::Setattr, req, ino, |asked| {
            (asked.size, asked.mode) = (size, mode);
            if let Some(fh) = fh {
                asked.by(fh);
            }
        });
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::time),
            mtime: mtime.map(convert::time),
            // With a change of size, or alone and by a file (fs/fuse/dir.c, fuse_flush_times).
            kept: ctime.is_some() && (size.is_some() || (fh.is_some() && atime.is_none())),
        };
        let (caller, fh) = (caller(req, 0), fh.map(|fh| fh.0));
        let work = move |shared: &Arc<Shared>, slot| {
            let found = shared.measured(Op::Setattr, || {
                if !virtual_file(ino) {
                    return shared.mirror.setattr(&caller, ino.0, fh, &set);
                }
                // To truncate or touch a control file has no effect, and is no error: `>` does it.
                if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
                    return Err(refused("setattr on a control file"));
                }
                shared.control.getattr(ino.0)
            });
            shared.reply_attr(slot, found, |mirror, _| mirror.trust_set());
        };
        if self.shared.control.is_own(ino.0) {
            return work(&self.shared, Slot::Own(reply));
        }
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            [],
            move |shared, [], slot| {
                work(shared, slot);
            },
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _begun = self.shared.begin(Op::Readlink, req, ino, |_| ());
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let target = shared.asked(Op::Readlink, || shared.mirror.readlink(ino.0));
            shared.answer(slot, target, |reply, target| reply.data(&target));
        });
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
        let _begun = self.shared.begin(Op::Mknod, req, parent, |asked| {
            asked.name(name);
            asked.made(mode, umask);
        });
        let caller = caller(req, umask);
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name], slot| {
                let made = shared.measured(Op::Mknod, || {
                    shared.control.refuse_new(parent.0, os(name))?;
                    let mirror = &shared.mirror;
                    mirror.mknod(&caller, parent.0, os(name), mode, rdev)
                });
                shared.reply_made(slot, parent.0, made);
            },
        );
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
        let _begun = self.shared.begin(Op::Mkdir, req, parent, |asked| {
            asked.name(name);
            asked.made(mode, umask);
        });
        let caller = caller(req, umask);
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name], slot| {
                let made = shared.measured(Op::Mkdir, || {
                    shared.control.refuse_new(parent.0, os(name))?;
                    shared.mirror.mkdir(&caller, parent.0, os(name), mode)
                });
                shared.reply_made(slot, parent.0, made);
            },
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _begun = self
            .shared
            .begin(Op::Unlink, req, parent, |asked| asked.name(name));
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            req.pid(),
            reply,
            lent,
            move |shared, [name], slot| {
                shared.reply_empty(Op::Unlink, slot, || {
                    shared.control.refuse_change(parent.0, os(name))?;
                    shared.mirror.unlink(parent.0, os(name))
                });
            },
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _begun = self
            .shared
            .begin(Op::Rmdir, req, parent, |asked| asked.name(name));
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            req.pid(),
            reply,
            lent,
            move |shared, [name], slot| {
                shared.reply_empty(Op::Rmdir, slot, || {
                    shared.control.refuse_change(parent.0, os(name))?;
                    shared.mirror.rmdir(parent.0, os(name))
                });
            },
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _begun = self.shared.begin(Op::Symlink, req, parent, |asked| {
            asked.name(link_name);
            asked.word(target.as_os_str());
        });
        let caller = caller(req, 0);
        let lent = [link_name.as_bytes(), target.as_os_str().as_bytes()];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name, target], slot| {
                let made = shared.measured(Op::Symlink, || {
                    shared.control.refuse_new(parent.0, os(name))?;
                    let mirror = &shared.mirror;
                    mirror.symlink(&caller, parent.0, os(name), os(target))
                });
                shared.reply_made(slot, parent.0, made);
            },
        );
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
        let _begun = self.shared.begin(Op::Rename, req, parent, |asked| {
            asked.name(name);
            asked.new_name(newparent, newname);
            asked.flags = Some(flags.bits());
        });
        let (caller, flags) = (caller(req, 0), flags.bits());
        let (from, to) = (parent.0, newparent.0);
        let lent = [name.as_bytes(), newname.as_bytes()];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name, new], slot| {
                shared.reply_empty(Op::Rename, slot, || {
                    let (name, new) = (os(name), os(new));
                    shared.control.refuse_change(from, name)?;
                    shared.control.refuse_change(to, new)?;
                    shared.mirror.rename(&caller, from, name, to, new, flags)
                });
            },
        );
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _begun = self.shared.begin(Op::Link, req, ino, |asked| {
            asked.new_name(newparent, newname)
        });
        let caller = caller(req, 0);
        let (parent, lent) = (newparent.0, [newname.as_bytes()]);
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name], slot| {
                let made = shared.measured(Op::Link, || {
                    if virtual_file(ino) {
                        return Err(refused("link a control file"));
                    }
                    shared.control.refuse_new(parent, os(name))?;
                    shared.mirror.link(&caller, ino.0, parent, os(name))
                });
                shared.reply_made(slot, parent, made);
            },
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _begun = self.shared.begin(Op::Open, req, ino, |asked| {
            asked.flags = Some(flags.0 as u32)
        });
        let (caller, flags) = (caller(req, 0), flags.0);
        if self.shared.control.is_own(ino.0) {
            return self
                .shared
                .open_control(&caller, ino.0, flags, Slot::Own(reply));
        }
        // To open a file for writing changes nothing yet, but who writes can wait.
        let wait = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Wait::Read,
            _ => Wait::Write,
        };
        self.serve(wait, caller.pid, reply, [], move |shared, [], slot| {
            if virtual_file(ino) {
                return shared.open_control(&caller, ino.0, flags, slot);
            }
            let opened = shared.asked(Op::Open, || shared.mirror.open(&caller, ino.0, flags));
            shared.reply_opened(ino.0, flags, opened, slot);
        });
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
        let _begun = self.shared.begin(Op::Create, req, parent, |asked| {
            asked.name(name);
            asked.made(mode, umask);
            asked.flags = Some(flags as u32);
        });
        let caller = caller(req, umask);
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name], slot| {
                let created = shared.measured(Op::Create, || {
                    shared.control.refuse_new(parent.0, os(name))?;
                    let mirror = &shared.mirror;
                    mirror.create(&caller, parent.0, os(name), mode, flags)
                });
                shared.reply_created(parent.0, flags, created, slot);
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _begun = self.shared.begin(Op::Read, req, ino, |asked| {
            asked.range(offset, size.into());
            asked.by(fh);
        });
        if self.shared.control.is_oplog(ino.0) {
            return self.shared.oplog.read(req, fh.0, size as usize, reply);
        }
        let size = size as usize;
        if virtual_file(ino) {
            let control = &self.shared.control;
            let read = |send: &mut dyn FnMut(&[u8])| control.read(ino.0, fh.0, offset, size, send);
            return self.shared.reply_read(Slot::Own(reply), read);
        }
        if self.shared.workers.is_some() && self.shared.mirror.is_kept(fh.0, offset, size) {
            // What the cache has need not wait behind a source that hangs.
            let mirror = &self.shared.mirror;
            let read = |send: &mut dyn FnMut(&[u8])| mirror.read(fh.0, offset, size, send);
            return self.shared.reply_read(Slot::Own(reply), read);
        }
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            shared.reply_read(slot, |send| shared.mirror.read(fh.0, offset, size, send));
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _begun = self.shared.begin(Op::Write, req, ino, |asked| {
            asked.range(offset, data.len() as u64);
            asked.by(fh);
        });
        if virtual_file(ino) {
            return self.shared.control.write(req, fh.0, data, reply);
        }
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let sync = WriteSync::of(flags.0);
        let by_another = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.serve(
            Wait::Write,
            req.pid(),
            reply,
            [data],
            move |shared, [data], slot| {
                let written = shared.measured(Op::Write, || {
                    if by_another {
                        shared.mirror.drop_set_ids(fh.0)?;
                    }
                    shared.mirror.write(fh.0, offset, data, (from_pages, sync))
                });
                if by_another {
                    // The kernel leaves the mode to us, and would run the program as it was.
                    shared.attributes_changed(ino.0);
                }
                if let Ok(count) = &written {
                    shared.moved(*count as u64);
                }
                shared.answer(slot, written, |reply, count| {
                    before_answer();
                    reply.written(count as u32);
                });
            },
        );
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _begun = self.shared.begin(Op::Flush, req, ino, |asked| asked.by(fh));
        if virtual_file(ino) {
            return self.shared.control.flush(req, fh.0, reply);
        }
        self.serve(
            Wait::Flush,
            req.pid(),
            reply,
            [],
            move |shared, [], slot| {
                let flush = || shared.mirror.flush(fh.0, lock_owner.0);
                shared.written_back(ino.0, fh.0);
                shared.reply_empty(Op::Flush, slot, flush);
            },
        );
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _begun = self
            .shared
            .begin(Op::Release, req, ino, |asked| asked.by(fh));
        let flags = flags.0;
        if virtual_file(ino) {
            return self.shared.reply_empty(Op::Release, Slot::Own(reply), || {
                self.shared.control.release(fh.0);
                Ok(())
            });
        }
        // To close a file may ask the source what became of the writing.
        self.serve(
            Wait::Release,
            req.pid(),
            reply,
            [],
            move |shared, [], slot| {
                shared.reply_empty(Op::Release, slot, || {
                    shared.mirror.release(fh.0);
                    shared.released(ino.0, flags);
                    Ok(())
                });
            },
        );
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _begun = self.shared.begin(Op::Fsync, req, ino, |asked| asked.by(fh));
        if virtual_file(ino) {
            return reply.ok();
        }
        self.serve_aside("fsync", req.pid(), reply, move |shared, slot| {
            let sync = || shared.mirror.fsync(fh.0, datasync);
            shared.written_back(ino.0, fh.0);
            shared.reply_empty(Op::Fsync, slot, sync);
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _begun = self.shared.begin(Op::Opendir, req, ino, |asked| {
            asked.flags = Some(flags.0 as u32)
        });
        if virtual_file(ino) {
            return reply.opened(FileHandle(0), FopenFlags::empty());
        }
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let open = || shared.mirror.opendir(ino.0, flags.0);
            match (shared.asked(Op::Opendir, open), slot.take()) {
                (Ok(opened), Some(reply)) => {
                    before_answer();
                    reply.opened(FileHandle(opened.handle), dir_flags(&opened));
                }
                (Err(errno), Some(reply)) => reply.error(errno),
                (Ok(opened), None) => shared.mirror.releasedir(opened.handle),
                (Err(_), None) => {}
            }
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let _begun = self
            .shared
            .begin(Op::Readdir, req, ino, |asked| asked.offset = Some(offset));
        let (ino, fh) = (ino.0, fh.0);
        match &self.shared.workers {
            Some(_) if !InodeTable::is_virtual(ino) => {
                self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
                    shared.readdir_by_worker(ino, fh, offset, slot);
                });
            }
            _ => self.shared.readdir(ino, fh, offset, reply),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _begun = self.shared.begin(Op::Readdirplus, req, ino, |asked| {
            asked.offset = Some(offset)
        });
        let (ino, fh) = (ino.0, fh.0);
        match &self.shared.workers {
            Some(_) if !InodeTable::is_virtual(ino) => {
                self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
                    shared.readdirplus_by_worker(ino, fh, offset, slot);
                });
            }
            _ => self.shared.readdirplus(ino, fh, offset, reply),
        }
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _begun = self.shared.begin(Op::Releasedir, req, ino, |_| ());
        if virtual_file(ino) {
            return reply.ok();
        }
        self.serve(
            Wait::Release,
            req.pid(),
            reply,
            [],
            move |shared, [], slot| {
                shared.reply_empty(Op::Releasedir, slot, || {
                    shared.mirror.releasedir(fh.0);
                    Ok(())
                });
            },
        );
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _begun = self.shared.begin(Op::Fsyncdir, req, ino, |_| ());
        if virtual_file(ino) {
            return reply.ok();
        }
        self.serve_aside("fsyncdir", req.pid(), reply, move |shared, slot| {
            let sync = || shared.mirror.fsyncdir(fh.0, datasync);
            shared.reply_empty(Op::Fsyncdir, slot, sync);
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _begun = self.shared.begin(Op::Statfs, req, ino, |_| ());
        let ino = if virtual_file(ino) { 1 } else { ino.0 };
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let found = shared.asked(Op::Statfs, || shared.mirror.statfs(ino));
            shared.answer(slot, found, |reply, stat| {
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    stat.f_bsize as u32,
                    stat.f_namemax as u32,
                    stat.f_frsize as u32,
                );
            });
        });
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
        let _begun = self.shared.begin(Op::Setxattr, req, ino, |asked| {
            asked.word(name);
            asked.size = Some(value.len() as u64);
        });
        let caller = caller(req, 0);
        let lent = [name.as_bytes(), value];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [name, value], slot| {
                shared.reply_empty(Op::Setxattr, slot, || {
                    if virtual_file(ino) {
                        return Err(refused("setxattr on a control file"));
                    }
                    let mirror = &shared.mirror;
                    mirror.setxattr(&caller, ino.0, os(name), value, flags as u32)
                });
            },
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _begun = self.shared.begin(Op::Getxattr, req, ino, |asked| {
            asked.word(name);
            asked.size = Some(size.into());
        });
        if virtual_file(ino) {
            return reply.error(Errno::ENODATA);
        }
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Read,
            req.pid(),
            reply,
            lent,
            move |shared, [name], slot| {
                let (mirror, name) = (&shared.mirror, os(name));
                if size == 0 {
                    let length = || mirror.getxattr_size(ino.0, name);
                    let length = shared.asked(Op::Getxattr, length);
                    return shared.answer(slot, length, |reply, length| reply.size(length as u32));
                }
                let value = || mirror.getxattr(ino.0, name, size as usize);
                let value = shared.asked(Op::Getxattr, value);
                shared.answer(slot, value, |reply, value| reply.data(&value));
            },
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _begun = self.shared.begin(Op::Listxattr, req, ino, |asked| {
            asked.size = Some(size.into())
        });
        if virtual_file(ino) {
            return if size == 0 {
                reply.size(0)
            } else {
                reply.data(&[])
            };
        }
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let mirror = &shared.mirror;
            if size == 0 {
                let length = || mirror.listxattr_size(ino.0);
                let length = shared.asked(Op::Listxattr, length);
                return shared.answer(slot, length, |reply, length| reply.size(length as u32));
            }
            let names = || mirror.listxattr(ino.0, size as usize);
            let names = shared.asked(Op::Listxattr, names);
            shared.answer(slot, names, |reply, names| reply.data(&names));
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _begun = self
            .shared
            .begin(Op::Removexattr, req, ino, |asked| asked.word(name));
        let lent = [name.as_bytes()];
        self.serve(
            Wait::Write,
            req.pid(),
            reply,
            lent,
            move |shared, [name], slot| {
                shared.reply_empty(Op::Removexattr, slot, || {
                    if virtual_file(ino) {
                        return Err(refused("removexattr on a control file"));
                    }
                    shared.mirror.removexattr(ino.0, os(name))
                });
            },
        );
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _begun = self.shared.begin(Op::Access, req, ino, |asked| {
            asked.flags = Some(mask.bits() as u32)
        });
        if virtual_file(ino) {
            return self
                .shared
                .reply_empty(Op::Access, Slot::Own(reply), || Ok(()));
        }
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let access = || shared.mirror.access(ino.0, mask.bits() as u32);
            shared.reply_empty(Op::Access, slot, access);
        });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let _begun = self
            .shared
            .begin(Op::Getlk, req, ino, |asked| asked.offset = Some(start));
        // Handles of control files are numbered by themselves, and would name another's file.
        if virtual_file(ino) {
            return reply.error(Errno::ENOLCK);
        }
        let lock = file_lock(start, end, typ, pid);
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let get = || shared.mirror.getlk(fh.0, lock_owner.0, lock);
            let found = shared.measured(Op::Getlk, get);
            shared.answer(slot, found, |reply, found| match found {
                Some(lock) => reply.locked(lock.start, lock.end, lock.kind, lock.pid as u32),
                None => reply.locked(start, end, libc::F_UNLCK, 0),
            });
        });
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
        let _begun = self
            .shared
            .begin(Op::Setlk, req, ino, |asked| asked.offset = Some(start));
        if virtual_file(ino) {
            return reply.error(Errno::ENOLCK);
        }
        let asking = Asking {
            caller: caller(req, 0),
            handle: fh.0,
            owner: lock_owner.0,
            lock: file_lock(start, end, typ, pid),
        };
        self.serve(
            Wait::Write,
            req.pid(),
            reply,
            [],
            move |shared, [], slot| {
                shared.setlk(asking, sleep, slot);
            },
        );
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
        let _begun = self
            .shared
            .begin(Op::Ioctl, req, ino, |asked| asked.flags = Some(cmd));
        if virtual_file(ino) {
            return reply.error(Errno::ENOTTY);
        }
        let caller = caller(req, 0);
        let lent = [in_data];
        self.serve(
            Wait::Write,
            caller.pid,
            reply,
            lent,
            move |shared, [in_data], slot| {
                let ioctl = || shared.mirror.ioctl(&caller, ino.0, cmd, in_data);
                let answer = shared.measured(Op::Ioctl, ioctl);
                // The kernel takes as many bytes as it asked for, no fewer.
                shared.answer(slot, answer, |reply, mut data| {
                    if data.is_empty() {
                        shared.attributes_changed(ino.0);
                    }
                    data.resize(out_size as usize, 0);
                    reply.ioctl(0, &data);
                });
            },
        );
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
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _begun = self.shared.begin(Op::Fallocate, req, ino, |asked| {
            asked.range(offset, length);
            asked.by(fh);
            asked.flags = Some(mode as u32);
        });
        if virtual_file(ino) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.serve_aside("fallocate", req.pid(), reply, move |shared, slot| {
            let allocate = || shared.mirror.fallocate(fh.0, offset, length, mode as u32);
            shared.reply_empty(Op::Fallocate, slot, allocate);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _begun = self.shared.begin(Op::Lseek, req, ino, |asked| {
            asked.offset = Some(offset as u64)
        });
        if virtual_file(ino) {
            return reply.error(Errno::EINVAL);
        }
        self.serve(Wait::Read, req.pid(), reply, [], move |shared, [], slot| {
            let seek = || shared.mirror.lseek(fh.0, offset, whence);
            let found = shared.measured(Op::Lseek, seek);
            shared.answer(slot, found, |reply, offset| reply.offset(offset as i64));
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
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
        let _begun = self.shared.begin(Op::CopyFileRange, req, ino_in, |asked| {
            asked.range(offset_in, len);
            asked.by(fh_in);
            asked.to(ino_out, fh_out, offset_out);
        });
        if virtual_file(ino_in) || virtual_file(ino_out) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        let work = move |shared: &Arc<Shared>, slot: Slot<ReplyWrite>| {
            let copy = || shared.mirror.copy_file_range(from, to, len);
            let copied = shared.measured(Op::CopyFileRange, copy);
            if let Ok(count) = &copied {
                shared.moved(*count);
            }
            shared.answer(slot, copied, |reply, count| reply.written(count as u32));
        };
        let shared = &self.shared;
        if shared.workers.is_none() && shared.mirror.copies_at_once(from, len) {
            return work(shared, Slot::Own(reply));
        }
        self.serve_aside("copy-range", req.pid(), reply, work);
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
