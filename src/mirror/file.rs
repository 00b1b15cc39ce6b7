//! Open files, from the open to the release.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::ReadWriteFlags;

use super::cached::Reader;
use super::inode::{Inode, NodeId, Version};
use super::reach::NAME_ONLY;
use super::{Caller, Coherence, Mirror};
use crate::sys::{Errno, Fail, OrFail, Result, creds};

/// A file whose times are younger than this, in seconds, may change again without its times
/// showing it (a clock tick of the file system, a skew of clocks).
const RACY: i64 = 2;

/// One open of a file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) inode: Arc<Inode>,
    /// What is open in the source; None while that could be spared (see [`OpenFile::spare`]). A
    /// leaf.
    fd: Mutex<Option<Arc<OwnedFd>>>,
    asked: Asked,
    pub(super) writable: bool,
    /// Writes by the user go to the end; writes from mapped pages do not.
    pub(super) append: bool,
    /// The kernel sends what is written past its pages.
    pub(super) past_pages: bool,
    /// Whose writes these are, where not this process' own.
    writer: Option<u32>,
    /// Where the last read ended: the next of a sequential reader begins there.
    pub(super) read_end: AtomicU64,
    /// The way by the store, for readers of a mirror with a cache.
    pub(super) reader: Option<Reader>,
}

/// What the caller of `open` asked for, as far as it concerns the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    access: i32,
    append: bool,
    sync: i32,
    noatime: bool,
}

/// What a write(2) has on disk when it returns, by RWF_DSYNC, RWF_SYNC or the mount's own options.
#[derive(Clone, Copy, Debug)]
pub struct WriteSync(pub(super) ReadWriteFlags);

impl WriteSync {
    /// From the flags that come with a write: O_SYNC has the bit of O_DSYNC, too.
    pub fn of(flags: i32) -> Self {
        let all = flags & libc::O_SYNC == libc::O_SYNC;
        let data = flags & libc::O_DSYNC != 0;
        Self(match (all, data) {
            (true, _) => ReadWriteFlags::SYNC,
            (false, true) => ReadWriteFlags::DSYNC,
            (false, false) => ReadWriteFlags::empty(),
        })
    }
}

/// The answer to an open.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The open file's handle.
    pub handle: u64,
    /// The kernel's cached pages are still of this file's bytes.
    pub keep_cache: bool,
    /// The kernel must ask us for the bytes: because nothing may be cached, or because there are
    /// more than the size tells of (procfs).
    pub direct_io: bool,
    /// It is read by way of the cache.
    pub cached: bool,
    /// It has data beyond the size that it tells (procfs): nobody else may believe that size.
    pub hides_its_size: bool,
    /// The kernel believes attributes that are the file's no more.
    pub mistaken: bool,
}

impl OpenFile {
    /// What is open in the source.
    ///
    /// # Errors
    /// EIO when it was let go while the source was away.
    pub(super) fn fd(&self) -> Result<Arc<OwnedFd>> {
        let fd = self.fd.lock().clone();
        fd.ok_or(Fail::new(Errno::IO, "find the open file in the source"))
    }

    /// What is open in the source, of a reader who is served from the cache and can do without
    /// until the source is back.
    pub(super) fn spare(&self) -> Option<Arc<OwnedFd>> {
        let spared = !self.writable && self.reader.is_some();
        spared.then(|| self.fd.lock().take()).flatten()
    }

    /// Whether nothing is known to be at that offset: past the end of the version that is read.
    pub(super) fn is_past_what_is_known(&self, offset: u64) -> bool {
        !self.writable
            && self.fd.lock().is_none()
            && offset >= self.reader.as_ref().map_or(0, |reader| reader.entry.len())
    }

    /// Whether what is written is written as somebody else than this process.
    pub(super) fn is_anothers(&self) -> bool {
        self.writer.is_some()
    }

    /// Runs `work`, which changes the file, as whom it was opened for.
    pub(super) fn changed<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        match self.writer {
            Some(uid) => creds::with_fsuid(uid, work),
            None => Ok(work()),
        }
    }
}

impl Asked {
    pub(super) fn of(flags: i32) -> Self {
        Self {
            access: flags & libc::O_ACCMODE,
            append: flags & libc::O_APPEND != 0,
            sync: flags & (libc::O_SYNC | libc::O_DSYNC),
            noatime: flags & libc::O_NOATIME != 0,
        }
    }

    fn writes(self) -> bool {
        self.access != libc::O_RDONLY
    }

    /// Whether `flags` are for reading too, which was not asked for.
    pub(super) fn is_widened(self, flags: OFlags) -> bool {
        self.access == libc::O_WRONLY && flags.contains(OFlags::RDWR)
    }

    /// The flags with no more access than was asked for.
    pub(super) fn narrow(self, flags: OFlags) -> OFlags {
        (flags - OFlags::RWMODE) | OFlags::from_bits_retain(self.access as u32)
    }
}

impl Mirror {
    /// The flags under which the source's file is opened. O_APPEND stays out: a store through a
    /// mapping is written back through any handle, at its own offset. O_DIRECT stays out: it asks
    /// for alignment that a request's buffer has not; the page cache it means to pass by is the
    /// mount's.
    pub(super) fn open_flags(&self, asked: &Asked) -> OFlags {
        let access = match asked.access {
            // The kernel fills the rest of a page by the handle that writes a part of it.
            libc::O_WRONLY if self.options.writeback => libc::O_RDWR,
            access => access,
        };
        let mut flags = OFlags::from_bits_retain((access | asked.sync) as u32);
        if self.options.noatime || asked.noatime {
            flags |= OFlags::NOATIME;
        }
        flags | OFlags::CLOEXEC
    }

    /// Opens a file. To truncate it is a `setattr` of its own, which the kernel asks for once it
    /// knows that the file may be written: a running program may not.
    ///
    /// # Errors
    /// EROFS for writing on a read-only mirror; those of open(2).
    pub fn open(&self, caller: &Caller, id: NodeId, flags: i32) -> Result<Opened> {
        let asked = Asked::of(flags);
        if asked.writes() {
            self.writable("open")?;
        }
        let inode = self.table.get(id)?;
        if inode.kind != FileType::RegularFile {
            // To open a device or a FIFO has effects of its own, and the kernel never asks.
            return Err(Fail::new(Errno::NXIO, "open"));
        }
        if self.is_apart() {
            return match asked.writes() {
                // Without names there is nobody but the source to say.
                true => Err(self
                    .outage
                    .check("open")
                    .err()
                    .unwrap_or(Fail::new(Errno::IO, "open"))),
                false => self.open_apart(inode, asked),
            };
        }
        let (file, kept) = self.open_in_source(&inode, &asked)?;
        let changes = self.changes_so_far();
        let stat = rustix::fs::fstat(&file).or_fail("fstat")?;
        self.noted(&inode, &stat);
        if asked.writes() {
            self.uncache(&inode);
        } else {
            self.seen(&inode, &stat);
        }
        let reader = kept
            .then(|| self.reader(&inode, &file, &stat, changes))
            .flatten();
        Ok(self.enter_file(caller, inode, file, asked, &stat, reader))
    }

    /// Opens a file in the source; whether what is read of it may be kept.
    fn open_in_source(&self, inode: &Inode, asked: &Asked) -> Result<(OwnedFd, bool)> {
        let flags = self.open_flags(asked);
        let mut lesser = flags - OFlags::NOATIME;
        lesser.set(OFlags::APPEND, asked.append);
        let direct = self.flags_of_cached(inode);
        if !asked.writes() && !direct.is_empty() {
            match self.reopen(inode, flags | direct, lesser | direct) {
                // What is read through the page cache of a FUSE source may be older than its
                // attributes: it is served, as natively, and not kept.
                Err(fail) if fail.errno == Errno::INVAL => {
                    return Ok((self.reopen(inode, flags, lesser)?, false));
                }
                opened => return Ok((opened?, true)),
            }
        }
        match self.reopen(inode, flags, lesser) {
            // Who may write and not read.
            Err(fail) if fail.errno == Errno::ACCESS && asked.is_widened(flags) => {
                let (flags, lesser) = (asked.narrow(flags), asked.narrow(lesser));
                Ok((self.reopen(inode, flags, lesser)?, false))
            }
            opened => Ok((opened?, !asked.writes())),
        }
    }

    /// Whether what is written by this open file must come to us past the kernel's pages.
    ///
    /// What is appended through pages that the kernel has not whole comes in two requests where it
    /// crosses a page (fs/fuse/file.c, fuse_fill_write_pages), and what others append in the source
    /// between the two. Where the kernel keeps what is written there are no others; but then pages
    /// can be neither filled by what can't be read, nor put in their place by what only appends.
    fn writes_through(&self, asked: &Asked, file: &OwnedFd) -> bool {
        if !self.options.writeback {
            return asked.writes() && asked.append;
        }
        let fits = || {
            let flags = rustix::fs::fcntl_getfl(file);
            flags.is_ok_and(|flags| {
                flags & OFlags::RWMODE == OFlags::RDWR && !flags.contains(OFlags::APPEND)
            })
        };
        asked.writes() && !fits()
    }

    pub(super) fn enter_file(
        &self,
        caller: &Caller,
        inode: Arc<Inode>,
        fd: OwnedFd,
        asked: Asked,
        stat: &Stat,
        reader: Option<Reader>,
    ) -> Opened {
        let handle = self.new_handle();
        let fd = Arc::new(fd);
        self.table.lend(&inode, &fd);
        if self.options.writeback && asked.writes() {
            inode.keep_time_of(stat);
        }
        let strict = self.options.coherence == Coherence::Strict;
        let hides_its_size = asked.access != libc::O_WRONLY && hides_its_size(&fd, stat);
        let another = self.reads_another(reader.as_ref(), stat);
        // Where the kernel keeps what is written, its pages are the newest there are.
        let fresh = self.options.writeback || keep_cache(&inode, stat);
        let opened = Opened {
            handle,
            keep_cache: !strict && fresh && !another,
            direct_io: strict || hides_its_size || self.writes_through(&asked, &fd),
            cached: reader.is_some() && !hides_its_size,
            hides_its_size,
            mistaken: self.is_mistaken(inode.id, stat),
        };
        if another {
            // The pages to come are not of what `stat` shows.
            inode.now_caches(None);
        }
        let file = OpenFile {
            inode,
            fd: Mutex::new(Some(fd)),
            asked,
            writable: asked.writes(),
            // The kernel knows where the end is; the source may not yet.
            append: asked.append && !self.options.writeback,
            past_pages: opened.direct_io,
            writer: self.writer(caller),
            read_end: AtomicU64::new(0),
            reader: reader.filter(|_| !hides_its_size),
        };
        self.files.write().insert(handle, Arc::new(file));
        opened
    }

    /// As [`Mirror::enter_file`], of a file that is read from the cache alone, or is empty.
    pub(super) fn enter_apart(
        &self,
        inode: Arc<Inode>,
        asked: Asked,
        stat: &Stat,
        reader: Option<Reader>,
    ) -> Opened {
        let handle = self.new_handle();
        inode.opens.fetch_add(1, Ordering::Relaxed);
        let opened = Opened {
            handle,
            keep_cache: keep_cache(&inode, stat),
            direct_io: false,
            cached: reader.is_some(),
            hides_its_size: false,
            mistaken: false,
        };
        let file = OpenFile {
            inode,
            fd: Mutex::default(),
            asked,
            writable: false,
            append: false,
            past_pages: false,
            writer: None,
            read_end: AtomicU64::new(0),
            reader,
        };
        self.files.write().insert(handle, Arc::new(file));
        opened
    }

    /// What an open file has open in the source, for reading; opened again if it was let go while
    /// the source was away, and is still the version that is being read.
    ///
    /// # Errors
    /// ETIMEDOUT or EIO at once while the source is not asked; ESTALE for another version; those of
    /// open(2).
    pub(super) fn source_of(&self, file: &OpenFile) -> Result<Arc<OwnedFd>> {
        self.outage.check("read")?;
        if let Ok(fd) = file.fd() {
            return Ok(fd);
        }
        let (fd, _) = self.open_in_source(&file.inode, &file.asked)?;
        if let Some(reader) = &file.reader {
            let stat = rustix::fs::fstat(&fd).or_fail("fstat")?;
            if self.reads_another(Some(reader), &stat) {
                return Err(Fail::new(Errno::STALE, "open the file again"));
            }
        }
        let fd = Arc::new(fd);
        file.inode.lend(&fd);
        Ok(file.fd.lock().get_or_insert(fd).clone())
    }

    /// Whether what the kernel knows of an open file's blocks is older than what it has just
    /// written: it takes its own word for sizes and times, and asks for no more.
    pub fn blocks_unknown(&self, handle: u64) -> bool {
        self.options.writeback && self.file(handle).is_ok_and(|file| file.writable)
    }

    /// The inodes that are open for writing: others have no pages that the kernel has yet to write,
    /// as it writes them when a file is closed (fs/fuse/file.c, fuse_flush).
    pub fn open_for_writing(&self) -> HashSet<NodeId> {
        let files = self.files.read();
        let writable = files.values().filter(|file| file.writable);
        writable.map(|file| file.inode.id).collect()
    }

    pub(super) fn file(&self, handle: u64) -> Result<Arc<OpenFile>> {
        let files = self.files.read();
        files
            .get(&handle)
            .cloned()
            .ok_or(Fail::new(Errno::BADF, "find the open file"))
    }

    /// What an open file of this mirror has open in the source.
    ///
    /// # Errors
    /// EBADF when there is no such handle.
    pub fn opened(&self, handle: u64) -> Result<Arc<OwnedFd>> {
        self.file(handle)?.fd()
    }

    /// The kernel stores to this open file by itself: at the next open nothing is known of the
    /// pages that it may have cached before.
    pub fn pages_unknown(&self, handle: u64) {
        if let Ok(file) = self.file(handle) {
            file.inode.now_caches(None);
        }
    }

    /// One of the file's descriptors was closed: the owner's locks go, and an error that the
    /// source keeps for close(2) is told. Without a descriptor left there is no way to ask for it.
    ///
    /// # Errors
    /// Those of close(2) on the source.
    pub fn flush(&self, handle: u64, owner: u64) -> Result<()> {
        let file = self.file(handle)?;
        self.locks.drop_owner(file.inode.file_id, owner);
        if !file.writable {
            return Ok(());
        }
        self.settle_times(&file);
        let fd = file.fd()?;
        let copy = || rustix::io::fcntl_dupfd_cloexec(&*fd, 0).or_fail("dup");
        match self.table.with_room(copy) {
            Err(fail) if matches!(fail.errno, Errno::MFILE | Errno::NFILE) => Ok(()),
            copy => crate::sys::close(copy?),
        }
    }

    /// The last descriptor of an open file was closed.
    pub fn release(&self, handle: u64) {
        let Some(file) = self.files.write().remove(&handle) else {
            return;
        };
        self.metrics.handle_closed();
        self.settle_times(&file);
        self.locks.drop_handle(file.inode.file_id, handle);
        match file.fd() {
            Ok(fd) => {
                let nameless = self.nameless(&fd);
                // A window would keep the space of a file that has no name left.
                if self.give_back(&file.inode, &fd, nameless) && nameless {
                    self.windows.forget(file.inode.file_id);
                }
            }
            Err(_) => {
                file.inode.opens.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.reader_gone(file);
    }

    /// The descriptor of an open file or directory is about to be closed; true when it was the
    /// last of the inode.
    pub(super) fn give_back(&self, inode: &Inode, fd: &Arc<OwnedFd>, nameless: bool) -> bool {
        let renew = || self.proc.reopen(fd.as_fd(), NAME_ONLY);
        self.table.take_back(inode, fd, nameless, renew)
    }

    /// Whether the file has lost its last name.
    pub(super) fn nameless(&self, fd: &OwnedFd) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// Whether the pages that the kernel cached at an earlier open are still right, and remembers
/// for the next one what they are of.
pub(super) fn keep_cache(inode: &Inode, stat: &Stat) -> bool {
    let version = Version::of(stat);
    let digest = version.digest();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    let settled = now - version.changed() >= RACY;
    inode.now_caches(settled.then_some(digest)) == Some(digest)
}

/// A file of size 0 that has bytes: the kernel would not even ask for them. One that just got its
/// first bytes from somebody else is none: it could not be mapped shared (ENODEV).
fn hides_its_size(fd: &OwnedFd, stat: &Stat) -> bool {
    let empty = |stat: &Stat| stat.st_size == 0 && stat.st_blocks == 0;
    empty(stat)
        && rustix::io::pread(fd, &mut [0u8; 1][..], 0).is_ok_and(|count| count > 0)
        && rustix::fs::fstat(fd)
            .is_ok_and(|now| empty(&now) && Version::of(&now) == Version::of(stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between the look at its size and the look at its bytes somebody may have written the first,
    /// as sqlite does to a new `-shm`, which others open to map it.
    #[test]
    fn a_file_that_just_got_bytes_hides_no_size() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = OwnedFd::from(file.reopen().unwrap());
        let empty = rustix::fs::fstat(&fd).unwrap();
        std::fs::write(file.path(), b"first").unwrap();
        assert!(!hides_its_size(&fd, &empty));
    }

    #[test]
    fn a_file_that_is_made_up_as_it_is_read_hides_its_size() {
        let fd = OwnedFd::from(std::fs::File::open("/proc/self/status").unwrap());
        let stat = rustix::fs::fstat(&fd).unwrap();
        assert!(hides_its_size(&fd, &stat));
    }
}
