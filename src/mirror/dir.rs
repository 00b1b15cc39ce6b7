//! Directory streams. The positions that the kernel keeps are the source's own, so that
//! telldir, seekdir and rewinddir mean what they mean there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom};

use super::Mirror;
use super::attr::Attr;
use super::file::keep_cache;
use super::inode::{Inode, Key, NodeId, Version};
use super::remember::{LISTING, version_of};
use crate::cache::Named;
use crate::sys::{Errno, Fail, OrFail, Result};

/// How much one getdents64(2) may return, in bytes.
const BATCH: usize = 32 << 10;

/// How many names that were seen are read at once.
const SEEN: usize = 256;

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The inode number to be shown.
    pub ino: u64,
    /// The position after this entry.
    pub next: u64,
    /// Its type.
    pub kind: FileType,
    /// Its name.
    pub name: OsString,
}

impl Entry {
    fn is_dot(&self) -> bool {
        let name = self.name.as_bytes();
        name == b"." || name == b".."
    }
}

/// An entry that was read and not yet given out.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// Name, type and position.
    pub entry: Entry,
    /// Its attributes, where they were asked for and could be had.
    pub attr: Option<Attr>,
    /// It went after the directory was read, and is not to be given.
    pub vanished: bool,
    /// A lookup was counted for it.
    counted: bool,
}

impl Ahead {
    fn bare(entry: Entry) -> Self {
        Self {
            entry,
            attr: None,
            vanished: false,
            counted: false,
        }
    }

    /// What it takes in an answer with attributes, in bytes (fuse_direntplus, linux/fuse.h).
    pub fn size(&self) -> usize {
        const FIXED: usize = 152;
        if self.vanished {
            return 0;
        }
        (FIXED + self.entry.name.len()).next_multiple_of(8)
    }
}

/// Where a listing is read.
#[derive(Debug)]
enum Origin {
    Source(Arc<OwnedFd>),
    /// In the source, which is opened with these flags once it is needed: the kernel has the listing,
    /// and may never ask. To open a directory takes longer than all else about such a request.
    SourceLater(OFlags, OnceLock<Arc<OwnedFd>>),
    /// In the names that were seen.
    Seen,
}

/// One open of a directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    inode: Arc<Inode>,
    origin: Origin,
    /// The directory's version when it was opened, if its listing is to be remembered.
    version: Option<Vec<u8>>,
    /// Held while the directory is read: readers of one stream share its position anyway.
    stream: Mutex<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    /// Read from the source and not yet given out.
    ahead: VecDeque<Entry>,
    /// The position at which `ahead` begins, or the source will go on.
    at: u64,
    /// All that was read since the start, if it is to be remembered.
    seen: Option<Vec<Named>>,
    /// Of names that were seen before: how many were read, and the last of them.
    read: u64,
    last: Vec<u8>,
}

impl OpenDir {
    /// What is open in the source.
    fn opened(&self) -> Option<&Arc<OwnedFd>> {
        match &self.origin {
            Origin::Source(fd) => Some(fd),
            Origin::SourceLater(_, fd) => fd.get(),
            Origin::Seen => None,
        }
    }

    /// As [`Self::opened`], for who has opened it.
    fn fd(&self) -> Result<&Arc<OwnedFd>> {
        let none = || Fail::new(Errno::IO, "find the open directory in the source");
        self.opened().ok_or_else(none)
    }

    fn is_of_seen(&self) -> bool {
        matches!(self.origin, Origin::Seen)
    }
}

/// What became of one entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Given,
    /// It did not fit any more.
    Full,
    /// It is not there any more.
    Vanished,
}

impl Step {
    fn of(full: bool) -> Self {
        if full { Self::Full } else { Self::Given }
    }
}

/// The answer to an opendir.
#[derive(Clone, Copy, Debug)]
pub struct OpenedDir {
    /// The open directory's handle.
    pub handle: u64,
    /// The kernel may keep the listing: it is told when it changes.
    pub cache: bool,
    /// The listing that the kernel has is still right.
    pub keep_cache: bool,
}

impl Mirror {
    /// Opens a directory for reading. Of `asked`, flags of open(2), only
    /// O_NOATIME counts.
    ///
    /// # Errors
    /// ENOTDIR; those of open(2).
    pub fn opendir(&self, id: NodeId, asked: i32) -> Result<OpenedDir> {
        let inode = self.table.get(id)?;
        if self.is_apart() {
            return self.opendir_apart(inode);
        }
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if self.options.noatime || asked & libc::O_NOATIME != 0 {
            flags |= OFlags::NOATIME;
        }
        // Before the stream is read: what is read later is not older than what is remembered.
        let cache = self.keeps_listings(id);
        if cache && self.opens_later(&inode) {
            inode.opens.fetch_add(1, Ordering::Relaxed);
            let origin = Origin::SourceLater(flags, OnceLock::new());
            let handle = self.enter_dir(inode, origin, None);
            return Ok(OpenedDir {
                handle,
                cache,
                keep_cache: true,
            });
        }
        let fd = Arc::new(self.reopen(&inode, flags, flags - OFlags::NOATIME)?);
        self.table.lend(&inode, &fd);
        let keep_cache = cache && keep_cache(&inode, &rustix::fs::fstat(&fd).or_fail("fstat")?);
        let version = self.version_to_remember(&inode, &fd);
        let handle = self.enter_dir(inode, Origin::Source(fd), version);
        Ok(OpenedDir {
            handle,
            cache,
            keep_cache,
        })
    }

    /// Whether the kernel has the listing, and nobody can be refused later what he was allowed now: an
    /// ordinary user's own open is what tells whether he may read it, and keeps that right. Names that
    /// are to be remembered are read again.
    fn opens_later(&self, inode: &Inode) -> bool {
        let stat = || rustix::fs::fstat(&*self.table.fd(inode).ok()?).ok();
        self.privileged
            && self.memory.is_none()
            && inode.cached().is_some_and(|cached| {
                stat().is_some_and(|stat| Version::of(&stat).digest() == cached)
            })
    }

    /// What is open in the source, from now on.
    fn open_now<'a>(&self, dir: &'a OpenDir) -> Result<&'a Arc<OwnedFd>> {
        if let Origin::SourceLater(flags, later) = &dir.origin
            && later.get().is_none()
        {
            let fd = Arc::new(self.reopen(&dir.inode, *flags, *flags - OFlags::NOATIME)?);
            // Two may come at once; who is second closes its own.
            if later.set(Arc::clone(&fd)).is_ok() {
                dir.inode.lend(&fd);
            }
        }
        dir.fd()
    }

    /// The version of a directory whose listing is news.
    fn version_to_remember(&self, inode: &Inode, fd: &OwnedFd) -> Option<Vec<u8>> {
        let memory = self.memory.as_ref()?;
        let stat = rustix::fs::fstat(fd).ok()?;
        self.noted(inode, &stat);
        let version = version_of(&stat);
        memory
            .is_news((inode.id, "list", &version))
            .then_some(version)
    }

    fn enter_dir(&self, inode: Arc<Inode>, origin: Origin, version: Option<Vec<u8>>) -> u64 {
        let dir = OpenDir {
            inode,
            origin,
            version,
            stream: Mutex::default(),
        };
        let handle = self.new_handle();
        self.dirs.write().insert(handle, Arc::new(dir));
        handle
    }

    /// Opens a directory of which names were seen.
    fn opendir_apart(&self, inode: Arc<Inode>) -> Result<OpenedDir> {
        self.list_apart(inode.id, b"", 1)?;
        inode.opens.fetch_add(1, Ordering::Relaxed);
        Ok(OpenedDir {
            handle: self.enter_dir(inode, Origin::Seen, None),
            cache: false,
            keep_cache: false,
        })
    }

    fn open_dir(&self, handle: u64) -> Result<Arc<OpenDir>> {
        let dirs = self.dirs.read();
        dirs.get(&handle)
            .cloned()
            .ok_or(Fail::new(Errno::BADF, "find the open directory"))
    }

    /// Gives the entries from position `offset` on to `emit`, until it says that one did not fit.
    ///
    /// # Errors
    /// Those of lseek(2) and getdents64(2), when they come before the first entry.
    pub fn readdir(
        &self,
        handle: u64,
        offset: u64,
        mut emit: impl FnMut(&Entry) -> bool,
    ) -> Result<()> {
        let dir = self.open_dir(handle)?;
        self.each_entry(&dir, offset, |entry| Ok(Step::of(emit(entry))))
    }

    /// As `readdir`, with the attributes of each entry and one lookup counted for it; `.` and
    /// `..` count none, and an entry that can't be looked up comes without.
    ///
    /// # Errors
    /// As for `readdir`.
    pub fn readdirplus(
        &self,
        handle: u64,
        offset: u64,
        mut emit: impl FnMut(&Entry, Option<&Attr>) -> bool,
    ) -> Result<()> {
        let dir = self.open_dir(handle)?;
        self.each_entry(&dir, offset, |entry| {
            if entry.is_dot() {
                let attr = self.dot(&dir, entry)?;
                return Ok(Step::of(emit(entry, Some(&attr))));
            }
            match self.found_in_listing(&dir.inode, dir.opened().map(AsFd::as_fd), &entry.name) {
                Ok(attr) => {
                    let full = emit(entry, Some(&attr));
                    if full {
                        self.forget(attr.id, 1);
                    }
                    Ok(Step::of(full))
                }
                // Removed since the directory was read.
                Err(fail) if fail.errno == Errno::NOENT => Ok(Step::Vanished),
                Err(_) => Ok(Step::of(emit(entry, None))),
            }
        })
    }

    /// Reads from position `offset` on, and gives nothing out yet: what the source has ready, and
    /// with `plus`, as in `readdirplus`, attributes for so many bytes of an answer. Empty at the
    /// end only. What is given out then is told by [`Mirror::gave`], what is not by
    /// [`Mirror::not_given`].
    ///
    /// # Errors
    /// As for `readdir`.
    pub fn read_ahead(&self, handle: u64, offset: u64, plus: Option<usize>) -> Result<Vec<Ahead>> {
        let dir = self.open_dir(handle)?;
        let mut offset = offset;
        loop {
            let entries = self.peek(&dir, offset)?;
            let found = match plus {
                None => entries.into_iter().map(Ahead::bare).collect(),
                Some(room) => self.look_at_all(&dir, entries, room),
            };
            match found.last() {
                // No entry is the end to a reader, and this is not.
                Some(last) if found.iter().all(|ahead| ahead.vanished) => {
                    let next = last.entry.next;
                    self.gave(handle, offset, found.len());
                    offset = next;
                }
                _ => return Ok(found),
            }
        }
    }

    /// The attributes of `.`, and of `..` for want of better.
    fn dot(&self, dir: &OpenDir, entry: &Entry) -> Result<Attr> {
        if self.is_apart() || dir.is_of_seen() {
            let attr = self.getattr(dir.inode.id, None)?;
            return Ok(Attr {
                id: entry.ino,
                ..attr
            });
        }
        let stat = rustix::fs::fstat(dir.fd()?).or_fail("fstat")?;
        Ok(self.attr(entry.ino, stat))
    }

    /// What the source has ready at a position.
    fn peek(&self, dir: &OpenDir, offset: u64) -> Result<Vec<Entry>> {
        let mut stream = dir.stream.lock();
        self.go_to(dir, &mut stream, offset)?;
        if stream.ahead.is_empty() {
            self.fill(dir, &mut stream)?;
        }
        Ok(stream.ahead.iter().cloned().collect())
    }

    fn look_at_all(&self, dir: &OpenDir, entries: Vec<Entry>, room: usize) -> Vec<Ahead> {
        let mut room = room;
        let mut found = Vec::new();
        for entry in entries {
            let ahead = self.look_at(dir, entry);
            room = room.saturating_sub(ahead.size());
            found.push(ahead);
            if room == 0 {
                break;
            }
        }
        found
    }

    fn look_at(&self, dir: &OpenDir, entry: Entry) -> Ahead {
        let mut ahead = Ahead::bare(entry);
        if ahead.entry.is_dot() {
            ahead.attr = self.dot(dir, &ahead.entry).ok();
            return ahead;
        }
        match self.found_in_listing(&dir.inode, dir.opened().map(AsFd::as_fd), &ahead.entry.name) {
            Ok(attr) => (ahead.attr, ahead.counted) = (Some(attr), true),
            Err(fail) => ahead.vanished = fail.errno == Errno::NOENT,
        }
        ahead
    }

    /// The first `count` of what was read at `offset` were given out.
    pub fn gave(&self, handle: u64, offset: u64, count: usize) {
        let Ok(dir) = self.open_dir(handle) else {
            return;
        };
        let mut stream = dir.stream.lock();
        // Somebody else may have gone elsewhere in the same stream.
        if stream.at == offset
            && let Some(last) = count.checked_sub(1)
            && let Some(entry) = stream.ahead.get(last)
        {
            stream.at = entry.next;
            stream.ahead.drain(..count);
        }
    }

    /// These were not given out.
    pub fn not_given(&self, rest: &[Ahead]) {
        for ahead in rest.iter().filter(|ahead| ahead.counted) {
            if let Some(attr) = &ahead.attr {
                self.forget(attr.id, 1);
            }
        }
    }

    /// Brings a stream to a position.
    fn go_to(&self, dir: &OpenDir, stream: &mut Stream, offset: u64) -> Result<()> {
        // A rewound or new stream shows the directory as it is now.
        if stream.at == offset && offset != 0 {
            return Ok(());
        }
        if dir.is_of_seen() {
            return self.go_to_seen(dir, stream, offset);
        }
        self.outage.check("lseek")?;
        rustix::fs::seek(self.open_now(dir)?, SeekFrom::Start(offset)).or_fail("lseek")?;
        stream.ahead.clear();
        stream.at = offset;
        // Whoever begins at the start may see all of it.
        stream.seen = (offset == 0 && dir.version.is_some()).then(Vec::new);
        Ok(())
    }

    fn each_entry(
        &self,
        dir: &OpenDir,
        offset: u64,
        mut emit: impl FnMut(&Entry) -> Result<Step>,
    ) -> Result<()> {
        let mut stream = dir.stream.lock();
        self.go_to(dir, &mut stream, offset)?;
        let mut given = 0u32;
        loop {
            if stream.ahead.is_empty() {
                match self.fill(dir, &mut stream) {
                    // What was given stands; the error comes with the next request.
                    Err(_) if given > 0 => return Ok(()),
                    filled => filled?,
                }
            }
            let Some(entry) = stream.ahead.front() else {
                return Ok(());
            };
            match emit(entry)? {
                Step::Full => return Ok(()),
                Step::Given => given += 1,
                // An error behind nothing but these must be told: no entry is the end to a reader.
                Step::Vanished => {}
            }
            stream.at = entry.next;
            stream.ahead.pop_front();
        }
    }

    fn fill(&self, dir: &OpenDir, stream: &mut Stream) -> Result<()> {
        if dir.is_of_seen() {
            return self.fill_seen(dir, stream);
        }
        self.outage.check("getdents64")?;
        let mut buffer = Vec::with_capacity(BATCH);
        let mut raw = RawDir::new(dir.fd()?, buffer.spare_capacity_mut());
        let mut any = false;
        while let Some(entry) = raw.next() {
            let entry = entry.or_fail("getdents64")?;
            any = true;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            let kind = entry_kind(dir, entry.file_type(), &name);
            if let Some(seen) = &mut stream.seen {
                seen.push((name.as_bytes().to_vec(), kind, entry.ino()));
            }
            stream.ahead.push_back(Entry {
                ino: self.table.likely_id(Key {
                    ino: entry.ino(),
                    ..dir.inode.key
                }),
                next: entry.next_entry_cookie(),
                kind,
                name,
            });
            if raw.is_buffer_empty() {
                break;
            }
        }
        self.remember(dir, stream, !any);
        Ok(())
    }

    /// Hands a listing that came to its end to the store of names.
    fn remember(&self, dir: &OpenDir, stream: &mut Stream, end: bool) {
        let too_long = stream
            .seen
            .as_ref()
            .is_some_and(|seen| seen.len() > LISTING);
        if too_long {
            stream.seen = None;
        }
        if end && let (Some(mut seen), Some(version)) = (stream.seen.take(), &dir.version) {
            seen.retain(|(name, _, _)| name != b"." && name != b"..");
            self.noted_listing(dir.inode.id, version.clone(), seen);
        }
    }

    /// Brings a stream of names that were seen to a position: their number.
    fn go_to_seen(&self, dir: &OpenDir, stream: &mut Stream, offset: u64) -> Result<()> {
        *stream = Stream::default();
        while stream.at < offset {
            self.fill_seen(dir, stream)?;
            let Some(last) = stream.ahead.back().map(|last| last.next) else {
                return Ok(());
            };
            if last > offset {
                stream.ahead.retain(|entry| entry.next > offset);
                stream.at = offset;
                return Ok(());
            }
            stream.ahead.clear();
            stream.at = last;
        }
        Ok(())
    }

    /// As [`Mirror::fill`], from the names that were seen.
    fn fill_seen(&self, dir: &OpenDir, stream: &mut Stream) -> Result<()> {
        let mut push = |read: &mut u64, ino: u64, kind: FileType, name: &[u8]| {
            *read += 1;
            stream.ahead.push_back(Entry {
                ino,
                next: *read,
                kind,
                name: OsStr::from_bytes(name).to_owned(),
            });
        };
        if stream.read == 0 {
            for name in [&b"."[..], b".."] {
                push(&mut stream.read, dir.inode.id, FileType::Directory, name);
            }
        }
        for (name, record) in self.list_apart(dir.inode.id, &stream.last, SEEN)? {
            let key = Key {
                ino: record.ino,
                ..dir.inode.key
            };
            let ino = self.table.likely_id(key);
            push(&mut stream.read, ino, record.kind(), &name);
            stream.last = name;
        }
        Ok(())
    }

    /// Brings a directory to the disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        let dir = self.open_dir(handle)?;
        let fd = self.open_now(&dir)?;
        if data_only {
            return rustix::fs::fdatasync(fd).or_fail("fdatasync");
        }
        rustix::fs::fsync(fd).or_fail("fsync")
    }

    /// The last descriptor of an open directory was closed.
    pub fn releasedir(&self, handle: u64) {
        let Some(dir) = self.dirs.write().remove(&handle) else {
            return;
        };
        match dir.opened() {
            Some(fd) => {
                self.give_back(&dir.inode, fd, self.nameless(fd));
            }
            None => {
                dir.inode.opens.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.metrics.handle_closed();
    }
}

/// The type as the directory tells it; some file systems leave it to stat(2).
fn entry_kind(dir: &OpenDir, told: FileType, name: &OsStr) -> FileType {
    if told != FileType::Unknown {
        return told;
    }
    let Ok(fd) = dir.fd() else { return told };
    rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).map_or(FileType::RegularFile, |stat| {
        FileType::from_raw_mode(stat.st_mode)
    })
}
