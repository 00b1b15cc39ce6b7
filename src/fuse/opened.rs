//! Answers to opens: which way the file is served, and what the kernel may keep of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyCreate, ReplyOpen};

use super::beside::before_answer;
use super::convert::entry_attr;
use super::oplog::Line;
use super::passthrough::Choice;
use super::serve::Slot;
use super::shared::{GENERATION, Shared};
use crate::mirror::{Attr, Coherence, Io, NodeId, Opened, OpenedDir, Passthrough};
use crate::observe::OpenMode;
use crate::sys;

/// Upon which the kernel looks the name up again at once (fs/namei.c, LOOKUP_REVAL).
const REFUSED: Errno = Errno::ESTALE;

impl Choice {
    fn tell(&self, line: Line) {
        match self {
            Self::Kernel(_) | Self::Ourselves => line.tell(),
            Self::Refused => line.tell_as(REFUSED),
        }
    }
}

impl Shared {
    /// Answers an open of a file; `flags` as the caller gave them.
    pub(super) fn reply_opened(
        &self,
        id: NodeId,
        flags: i32,
        opened: Result<Opened, Errno>,
        slot: Slot<ReplyOpen>,
    ) {
        let opened = match opened {
            Ok(opened) => opened,
            Err(errno) => return slot.refuse(errno),
        };
        let Some((reply, line)) = slot.take_untold() else {
            // The kernel will never release what it has not heard of.
            return self.mirror.release(opened.handle);
        };
        if opened.mistaken {
            self.attributes_changed(id);
        }
        let opened = &opened;
        let way = self.choose_way(id, flags, opened, |fd| reply.open_backing(fd));
        way.tell(line.opened(opened.handle));
        let handle = FileHandle(opened.handle);
        match way {
            Choice::Kernel(backing) => {
                reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
            }
            Choice::Ourselves => {
                let own = self.own_flags(opened, flags);
                before_answer();
                reply.opened(handle, own);
            }
            Choice::Refused => {
                self.refuse(id, opened);
                reply.error(REFUSED);
            }
        }
    }

    /// Who reads the stored version by the kernel keeps it; who looks the name up again finds an inode
    /// of its own.
    fn refuse(&self, id: NodeId, opened: &Opened) {
        self.mirror.release(opened.handle);
        self.mirror.supersede(id);
    }

    /// Answers an open that made the file.
    pub(super) fn reply_created(
        &self,
        parent: NodeId,
        flags: i32,
        created: Result<(Attr, Opened), Errno>,
        slot: Slot<ReplyCreate>,
    ) {
        let (attr, opened) = match created {
            Ok(created) => created,
            Err(errno) => return slot.refuse(errno),
        };
        let Some((reply, line)) = slot.take_untold() else {
            self.mirror.release(opened.handle);
            return self.mirror.forget(attr.id, 1);
        };
        let (attr, opened) = (&attr, &opened);
        let way = self.choose_way(attr.id, flags, opened, |fd| reply.open_backing(fd));
        way.tell(line.opened(opened.handle));
        let trust = self.seen_stores(attr, self.mirror.trust_made(parent, attr));
        let ttl = trust.entry.min(trust.attr);
        let (shown, handle) = (entry_attr(attr), FileHandle(opened.handle));
        let none = FopenFlags::empty();
        match way {
            Choice::Kernel(backing) => {
                reply.created_passthrough(&ttl, &shown, GENERATION, handle, none, &backing);
            }
            Choice::Ourselves => {
                let own = self.own_flags(opened, flags);
                before_answer();
                reply.created(&ttl, &shown, GENERATION, handle, own);
            }
            // It was there already, by another name, or since this moment.
            Choice::Refused => {
                self.refuse(attr.id, opened);
                self.mirror.forget(attr.id, 1);
                reply.error(REFUSED);
            }
        }
    }

    /// The cache's file that the kernel may serve an open by.
    fn whole(&self, opened: &Opened) -> Option<Arc<OwnedFd>> {
        if self.mirror.options().passthrough != Passthrough::Cached {
            return None;
        }
        self.mirror.whole(opened.handle)
    }

    /// Counts an open, and says who is to serve it.
    fn choose_way(
        &self,
        id: NodeId,
        flags: i32,
        opened: &Opened,
        open_backing: impl FnOnce(Arc<OwnedFd>) -> io::Result<BackingId>,
    ) -> Choice {
        let whole = self.whole(opened);
        let register = || {
            if opened.hides_its_size {
                // The kernel believes the size of what it serves.
                return Err(io::ErrorKind::Unsupported.into());
            }
            let fd = match self.mirror.options().passthrough {
                Passthrough::Cached => whole.clone().ok_or(sys::Errno::OPNOTSUPP),
                _ => self.mirror.opened(opened.handle).map_err(|fail| fail.errno),
            }
            .map_err(io::Error::from)?;
            open_backing(fd.clone()).map(|id| (id, fd))
        };
        let writes = may_write(flags);
        let way = self.passthrough.open(id, writes, whole.as_ref(), register);
        if let Choice::Ourselves = way {
            self.metrics.opened(match self.mirror.options().io {
                _ if opened.cached => OpenMode::Cached,
                Io::Mmap => OpenMode::Mmap,
                Io::Pread => OpenMode::Pread,
            });
        }
        let Choice::Kernel(_) = way else { return way };
        self.mirror.pages_unknown(opened.handle);
        if writes {
            // Stores come unseen from now on: what the kernel holds of the attributes must not
            // live on.
            self.attributes_changed(id);
        }
        way
    }

    /// How the kernel is to go about an open file that we serve.
    ///
    /// Where nothing is cached, who writes with O_DIRECT has the kernel send writes side by side, as
    /// file systems on disks let him: four writers of 4 KiB get three times as much done. Others may
    /// count on that a write(2) of several requests is not mixed with another's.
    fn own_flags(&self, opened: &Opened, asked: i32) -> FopenFlags {
        let strict = self.mirror.options().coherence == Coherence::Strict;
        let parallel = strict && writes_direct(asked) && !opened.hides_its_size;
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
        flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
        flags.set(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES, parallel);
        flags
    }

    /// Takes back what an open counted.
    pub(super) fn released(&self, id: NodeId, flags: i32) {
        self.passthrough.release(id, may_write(flags));
    }
}

fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// What the kernel may keep of a directory's listing.
pub(super) fn dir_flags(opened: &OpenedDir) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags
}

/// Whether it is to be written past the page cache.
fn writes_direct(flags: i32) -> bool {
    may_write(flags) && flags & libc::O_DIRECT != 0
}
