//! Files that are read by way of the copy-on-read store.
//!
//! An open for reading gets the entry of the version that it opened. What the entry has is served
//! from windows of its data file; what it lacks is fetched from the source once, answered from
//! memory, and stored after that. An entry that was given up, because the source has another
//! version, is not asked any more: the source serves.

use std::ffi::OsStr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Advice, FileType, OFlags, Stat};

use super::content::{pread_full, with_buffer};
use super::entries::Entries;
use super::file::OpenFile;
use super::inode::{Inode, Key, NodeId, ROOT};
use super::prefetch::{Course, Prefetch};
use super::{MAX_READ, Mirror, Validate};
use crate::cache::{Block, Entry, Identity, Ready, Store, Verify};
use crate::observe::ReadMode;
use crate::sys::{Errno, Fail, OrFail, Result, pages};
use crate::window::{MapSlice, Miss, Pattern};

/// How long a reader waits for a block that somebody else is fetching.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Files of which it is remembered when they were last held against the source.
const REMEMBERED: usize = 16 << 10;

/// How long a file is not handed to the kernel after somebody wanted it in another way: the
/// kernel tries once more, and must not find that somebody else was faster.
const CALM: Duration = Duration::from_secs(5);

/// Files of which that is remembered.
const DISTURBED: usize = 1 << 10;

/// Directories above a file, before its path is given up.
const DEEPEST: usize = 2048;

/// The magic number of FUSE (statfs(2)): other handles may leave old pages in its page cache.
const FUSE: i64 = 0x6573_5546;

/// The store of a mirror, and what is open of it.
pub(super) struct Cached {
    pub(super) store: Arc<Store>,
    /// The source keeps inode numbers over remounts.
    stable: bool,
    /// The source's type (statfs(2)).
    kind: AtomicI64,
    pub(super) open: Entries,
    /// Counts the changes through the mount.
    pub(super) changes: AtomicU64,
    /// When paths were last held against the source. A leaf.
    validated: Mutex<LruCache<Vec<u8>, Instant>>,
    /// When files were last wanted in another way than the kernel could serve. A leaf.
    disturbed: Mutex<LruCache<Key, Instant>>,
    pub(super) prefetch: Prefetch,
}

/// An open file's way to its entry.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) entry: Arc<Entry>,
    pub(super) course: Course,
}

impl Reader {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self {
            entry,
            course: Course::default(),
        }
    }
}

/// What reading by way of the store came to.
enum Outcome<R, F> {
    Done(Result<R>),
    /// The source must serve; whoever was to be lent the bytes is given back.
    Source(F),
}

impl Cached {
    /// `descriptors` are for entries.
    pub(super) fn new(store: Arc<Store>, source: &OwnedFd, descriptors: usize) -> Self {
        let kind = rustix::fs::fstatfs(source).map_or(0, |stat| stat.f_type);
        Self {
            stable: store.options().source.stable_inodes,
            kind: AtomicI64::new(kind),
            open: Entries::new(descriptors),
            changes: AtomicU64::new(0),
            validated: Mutex::new(LruCache::new(room(REMEMBERED))),
            disturbed: Mutex::new(LruCache::new(room(DISTURBED))),
            prefetch: Prefetch::default(),
            store,
        }
    }

    pub(super) fn identity(&self, stat: &Stat) -> Identity {
        Identity::of(stat, self.stable)
    }

    /// Whether the source keeps inode numbers over remounts.
    pub(super) fn is_stable(&self) -> bool {
        self.stable
    }

    /// Whether the source is read past its page cache.
    fn is_direct(&self) -> bool {
        self.kind.load(Ordering::Relaxed) == FUSE
    }

    /// The source is another mount now, or was none before.
    pub(super) fn found_again(&self, root: &OwnedFd) {
        if let Ok(stat) = rustix::fs::fstatfs(root) {
            self.kind.store(stat.f_type, Ordering::Relaxed);
        }
    }

    /// The entry for a reader of the file at `path`, which was found as `stat` says.
    fn entry(&self, path: Vec<u8>, stat: &Stat, how: Validate) -> Option<Arc<Entry>> {
        if self.believes(&path, how)
            && let Some(entry) = self.store.entry_as_stored(&path)
            // Of another size it would be neither the one version nor the other.
            && u64::try_from(stat.st_size) == Ok(entry.len())
        {
            return Some(entry);
        }
        let entry = self.store.entry(&path, &self.identity(stat))?;
        if let Validate::After(_) = how {
            self.validated.lock().put(path, Instant::now());
        }
        Some(entry)
    }

    pub(super) fn disturb(&self, key: Key) {
        self.disturbed.lock().put(key, Instant::now());
    }

    fn is_calm(&self, key: Key) -> bool {
        let at = self.disturbed.lock().peek(&key).copied();
        at.is_none_or(|at| at.elapsed() > CALM)
    }

    /// Whether the source is not to be asked again yet.
    pub(super) fn believes(&self, path: &[u8], how: Validate) -> bool {
        match how {
            Validate::Open => false,
            Validate::Never => true,
            Validate::After(time) => {
                let validated = self.validated.lock().get(path).copied();
                validated.is_some_and(|at| at.elapsed() < time)
            }
        }
    }
}

impl Mirror {
    /// The path of an inode within the source, as it was last seen; `None` where it is not known.
    pub(super) fn path_of(&self, inode: &Inode) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let (mut parent, name) = inode.last_seen()?;
        names.push(name);
        while parent != ROOT {
            let (above, name) = self.table.peek(parent)?.last_seen()?;
            names.push(name);
            if names.len() > DEEPEST {
                return None;
            }
            parent = above;
        }
        names.reverse();
        let bytes: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
        Some(bytes.join(&b'/'))
    }

    /// The path of a name in a directory.
    pub(super) fn path_in(&self, parent: &Inode, name: &OsStr) -> Option<Vec<u8>> {
        if parent.id == ROOT {
            return Some(name.as_bytes().to_vec());
        }
        let mut path = self.path_of(parent)?;
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        Some(path)
    }

    /// What an open for reading asks of the source beside its own flags. A file system that is
    /// mounted within the source may ask for more alignment than requests have.
    pub(super) fn flags_of_cached(&self, inode: &Inode) -> OFlags {
        match &self.cached {
            Some(cached) if cached.is_direct() && self.table.is_home(inode.key) => OFlags::DIRECT,
            _ => OFlags::empty(),
        }
    }

    /// Whether a file may be kept: of a file system that is mounted within the source only if it
    /// is of the source's kind, as clocks, inode numbers and page caches are judged by that.
    fn may_keep(&self, cached: &Cached, inode: &Inode, file: &OwnedFd, stat: &Stat) -> bool {
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let of_source = || {
            let kind = || rustix::fs::fstatfs(file).map(|stat| stat.f_type);
            let home = self.table.is_home(inode.key);
            home || (!cached.is_direct() && kind() == Ok(cached.kind.load(Ordering::Relaxed)))
        };
        regular && stat.st_size > 0 && of_source()
    }

    /// How many changes there were through the mount.
    pub(super) fn changes_so_far(&self) -> u64 {
        let cached = self.cached.as_ref();
        cached.map_or(0, |cached| cached.changes.load(Ordering::SeqCst))
    }

    /// The entry that a new reader of an inode is served from: `file`, which was found as `stat`
    /// says when there had been so many `changes`.
    pub(super) fn reader(
        &self,
        inode: &Inode,
        file: &OwnedFd,
        stat: &Stat,
        changes: u64,
    ) -> Option<Reader> {
        let cached = self.cached.as_ref()?;
        if !self.may_keep(cached, inode, file, stat) {
            return None;
        }
        let entry = match cached.open.has_room() {
            true => cached.entry(self.path_of(inode)?, stat, self.options.validate)?,
            false => {
                let open = cached.open.of(inode.key).into_iter();
                let is_it = |entry: &Arc<Entry>| *entry.identity() == cached.identity(stat);
                open.filter(|entry| !entry.is_abandoned()).find(is_it)?
            }
        };
        cached.open.add(inode.key, &entry);
        // Who wrote since did not find the entry, and so did not give it up.
        if self.changes_so_far() != changes {
            let now = rustix::fs::fstat(file).ok()?;
            if cached.identity(&now) != *entry.identity() {
                return None;
            }
        }
        Some(Reader::new(entry))
    }

    /// Whether a read can be served from the store without a look at the source.
    pub fn is_kept(&self, handle: u64, offset: u64, size: usize) -> bool {
        let Ok(file) = self.file(handle) else {
            return false;
        };
        let Some(reader) = &file.reader else {
            return false;
        };
        let end = offset.saturating_add(size.min(MAX_READ) as u64);
        let end = end.min(reader.entry.len());
        !reader.entry.is_abandoned()
            && (offset >= end || reader.entry.ready(offset..end) == Ready::All)
    }

    /// Whether a reader is served another version than the one that `stat` shows (`validate=`).
    pub(super) fn reads_another(&self, reader: Option<&Reader>, stat: &Stat) -> bool {
        let (Some(cached), Some(reader)) = (&self.cached, reader) else {
            return false;
        };
        *reader.entry.identity() != cached.identity(stat)
    }

    /// Reads from the store, as far as it can serve; else gives `send` back.
    pub(super) fn read_cached<R, F: FnOnce(&[u8]) -> R>(
        &self,
        file: &Arc<OpenFile>,
        range: Range<u64>,
        sequential: bool,
        send: F,
    ) -> std::result::Result<Result<R>, F> {
        let Some(reader) = &file.reader else {
            return Err(send);
        };
        let entry = &reader.entry;
        let range = range.start..range.end.min(entry.len());
        // Past its end the file may have grown: nobody but the source knows.
        if entry.is_abandoned() || range.is_empty() {
            return Err(send);
        }
        let outcome = match self.readiness(entry, &range) {
            Ready::All => self.serve_windows(entry, range.clone(), sequential, send),
            ready => {
                // Suspect: under verify=always, where it was there.
                match ready {
                    Ready::Missing => self.metrics.cache_miss(),
                    _ => self.metrics.cache_hit(),
                }
                self.serve_blocks(file, entry, range.clone(), send)
            }
        };
        if let Some(cached) = &self.cached {
            let policy = self.options.prefetch;
            cached.prefetch.note(file, &range, sequential, policy);
        }
        match outcome {
            Outcome::Done(done) => Ok(done),
            Outcome::Source(send) => Err(send),
        }
    }

    /// Suspect blocks are held against their checksums here, once.
    fn readiness(&self, entry: &Entry, range: &Range<u64>) -> Ready {
        match entry.ready(range.clone()) {
            Ready::Suspect if !self.verifies_always() => {
                if entry.check(range.clone()) {
                    entry.ready(range.clone())
                } else {
                    Ready::Missing
                }
            }
            ready => ready,
        }
    }

    fn verifies_always(&self) -> bool {
        let cached = self.cached.as_ref();
        cached.is_some_and(|cached| cached.store.options().verify == Verify::Always)
    }

    fn serve_windows<R, F: FnOnce(&[u8]) -> R>(
        &self,
        entry: &Arc<Entry>,
        range: Range<u64>,
        sequential: bool,
        send: F,
    ) -> Outcome<R, F> {
        let data = entry.data();
        let id = entry.file_id();
        let length = (range.end - range.start) as usize;
        let slice = if self.options.io == super::Io::Mmap {
            let whole = entry.len();
            let pattern = Pattern::of(sequential, length as u64, whole);
            let slice = self.windows.slice(id, &data, range.clone(), whole, pattern);
            // What the cache's disk lost must not fail the reply: the source has it.
            slice.and_then(MapSlice::present)
        } else {
            Err(Miss::Unmappable)
        };
        match slice {
            Ok(slice) => {
                self.metrics.read(ReadMode::Mmap, length as u64);
                self.metrics.cache_hit();
                Outcome::Done(Ok(slice.lend(send)))
            }
            Err(miss) => {
                if self.options.io == super::Io::Mmap {
                    self.metrics.fallback(miss.reason(), length as u64);
                }
                with_buffer(length, |buffer| {
                    match pread_full(&data, buffer, range.start) {
                        Ok(filled) if filled == length => {
                            self.metrics.read(ReadMode::Pread, length as u64);
                            self.metrics.cache_hit();
                            Outcome::Done(Ok(send(buffer)))
                        }
                        // The cache never fails a reader.
                        _ => {
                            entry.lose(range);
                            Outcome::Source(send)
                        }
                    }
                })
                .unwrap_or_else(|fail| Outcome::Done(Err(fail)))
            }
        }
    }

    /// Puts an answer together of blocks that are there and blocks that are fetched.
    fn serve_blocks<R, F: FnOnce(&[u8]) -> R>(
        &self,
        file: &Arc<OpenFile>,
        entry: &Arc<Entry>,
        range: Range<u64>,
        send: F,
    ) -> Outcome<R, F> {
        let size = entry.block_size();
        let (first, last) = (range.start / size, (range.end - 1) / size);
        if first == last {
            return match self.block(file, entry, first) {
                Ok(Some(block)) => match part(&block, &range) {
                    Some(bytes) => {
                        self.metrics.read(ReadMode::Block, bytes.len() as u64);
                        Outcome::Done(Ok(send(bytes)))
                    }
                    None => Outcome::Source(send),
                },
                Ok(None) => Outcome::Source(send),
                Err(fail) => Outcome::Done(Err(fail)),
            };
        }
        let length = (range.end - range.start) as usize;
        let mut send = Some(send);
        let gathered = with_buffer(length, |buffer| {
            for number in first..=last {
                let block = match self.block(file, entry, number) {
                    Ok(Some(block)) => block,
                    Ok(None) => return None,
                    Err(fail) => return Some(Err(fail)),
                };
                let here = range.start.max(number * size)..range.end.min((number + 1) * size);
                let bytes = part(&block, &here)?;
                let at = (here.start - range.start) as usize;
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
            }
            self.metrics.read(ReadMode::Block, length as u64);
            send.take().map(|send| Ok(send(buffer)))
        });
        match (gathered, send) {
            (Ok(Some(done)), _) => Outcome::Done(done),
            (Ok(None), Some(send)) => Outcome::Source(send),
            (Err(fail), _) => Outcome::Done(Err(fail)),
            // Not reached: what took `send` was done.
            (Ok(None), None) => Outcome::Done(Err(Fail::new(Errno::IO, "read"))),
        }
    }

    /// A block in memory: as stored and checked, or fetched now. `None` when the source must serve
    /// by itself.
    fn block(
        &self,
        file: &Arc<OpenFile>,
        entry: &Arc<Entry>,
        number: u64,
    ) -> Result<Option<Arc<Block>>> {
        let deadline = Instant::now() + PATIENCE;
        let start = number * entry.block_size();
        let range = start..(start + entry.block_size()).min(entry.len());
        if self.readiness(entry, &range) != Ready::Missing
            && let Some(block) = entry.verified(number, deadline)
        {
            return Ok(Some(block));
        }
        match self.fetch(file, entry, number, deadline) {
            Ok(block) => Ok(Some(block)),
            // Somebody waited long enough already.
            Err(fail) if fail.errno == Errno::TIMEDOUT => Err(fail),
            // A block is more than what was asked for: the source may well have that.
            Err(_) => Ok(None),
        }
    }

    /// Reads a block from the source. Of a FUSE source past the page cache: when it answers a direct
    /// read short of the size that it told, the kernel goes on through the page cache
    /// (mm/filemap.c, generic_file_read_iter), where zeros or older bytes may stand.
    ///
    /// # Errors
    /// Those of pread(2); EBUSY when pages can't be passed by: they are served, and not kept.
    fn read_block(&self, fd: &Arc<OwnedFd>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let filled = pread_full(fd, buffer, offset)?;
        let length = filled as u64;
        let passed_by = || pages::cached(fd.as_fd(), offset, length).is_none_or(|pages| pages == 0);
        let direct = self.cached.as_ref().is_some_and(Cached::is_direct);
        if !direct || length == 0 || passed_by() {
            return Ok(filled);
        }
        // Others may have read it through the page cache: once more, without what they left.
        let _ = rustix::fs::fadvise(fd, offset, NonZeroU64::new(length), Advice::DontNeed);
        let filled = pread_full(fd, buffer, offset)?;
        if passed_by() {
            return Ok(filled);
        }
        Err(Fail::new(Errno::BUSY, "read past the page cache"))
    }

    /// Fetches a block from the source, for whoever waits for it.
    pub(super) fn fetch(
        &self,
        file: &Arc<OpenFile>,
        entry: &Arc<Entry>,
        number: u64,
        deadline: Instant,
    ) -> Result<Arc<Block>> {
        let offset = number * entry.block_size();
        let fd = self.source_of(file)?;
        let of_source = fd.clone();
        let read = |buffer: &mut [u8]| self.read_block(&of_source, buffer, offset);
        let identity = *entry.identity();
        let stable = self.cached.as_ref().is_some_and(|cached| cached.stable);
        let same = move || {
            let stat = rustix::fs::fstat(&*fd).or_fail("fstat")?;
            Ok(Identity::of(&stat, stable) == identity)
        };
        entry.fill(number, deadline, read, same)
    }

    /// A reader was released.
    pub(super) fn reader_gone(&self, file: Arc<OpenFile>) {
        let (Some(cached), Some(reader)) = (&self.cached, &file.reader) else {
            return;
        };
        reader.course.end();
        let (key, entry) = (file.inode.key, Arc::downgrade(&reader.entry));
        let id = reader.entry.file_id();
        drop(file);
        if entry.strong_count() == 0 {
            // No other entry has that id; its windows would keep the room of one that is evicted.
            self.windows.forget(id);
            cached.open.forget_closed(key);
        }
    }

    /// The file that the kernel may serve an open by, if what is stored of it is whole and
    /// trusted.
    pub fn whole(&self, handle: u64) -> Option<Arc<OwnedFd>> {
        let file = self.file(handle).ok()?;
        let entry = &file.reader.as_ref()?.entry;
        let cached = self.cached.as_ref()?;
        (cached.is_calm(file.inode.key) && !entry.is_abandoned() && entry.is_whole())
            .then(|| entry.data())
    }

    /// From now on a lookup of this inode finds another node id: those who have it open keep the
    /// way in which it is served to them.
    pub fn supersede(&self, id: NodeId) {
        if let Some(inode) = self.table.peek(id) {
            if let Some(cached) = &self.cached {
                cached.disturb(inode.key);
            }
            self.table.supersede(&inode);
        }
    }
}

/// The part of a block that lies in `range` of the file; `None` when the source had less.
fn part<'a>(block: &'a Block, range: &Range<u64>) -> Option<&'a [u8]> {
    let start = usize::try_from(range.start.checked_sub(block.offset())?).ok()?;
    let end = usize::try_from(range.end.checked_sub(block.offset())?).ok()?;
    block.bytes().get(start..end)
}

fn room(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}

const _: () = assert!(MAX_READ <= 1 << 20, "what the buffers of a thread hold");
