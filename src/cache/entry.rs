//! One version of one file, as far as it is stored.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::FileId;

use super::buffers::Buffer;
use super::flight::{Block, Flight};
use super::identity::Identity;
use super::layout::{Header, Name, RECORD, Record};
use super::options::Verify;
use super::place;
use super::shelf::{self, Files};
use super::store::Store;
use super::trust::Trust;

/// How long a check waits for memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the numbers of data files begin, far above those of source files.
static NEXT_FILE: AtomicU64 = AtomicU64::new(1 << 62);

/// Whether a range can be served from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ready {
    /// From [`Entry::data`], at once.
    All,
    /// It is there, but has to be held against its checksums first ([`Entry::check`]); under
    /// `verify=always` at every serving ([`Entry::verified`]).
    Suspect,
    /// A block is missing ([`Entry::fill`]).
    Missing,
}

/// An open entry. As long as it lives, or the file of [`Entry::data`] is open or mapped by
/// anybody, it is not evicted.
#[derive(Debug)]
pub struct Entry {
    pub(super) store: Arc<Store>,
    pub(super) name: Name,
    pub(super) header: Header,
    index: OwnedFd,
    data: Arc<OwnedFd>,
    writer: Option<OwnedFd>,
    file_id: FileId,
    /// One bit a block that was found trusted.
    trusted: Box<[AtomicU64]>,
    whole: AtomicBool,
    /// The store's count of doubts at which `trusted` and `whole` were right.
    doubts: AtomicU64,
    /// A leaf.
    pub(super) flights: Mutex<HashMap<u64, Arc<Flight>>>,
    abandoned: AtomicBool,
    /// Since when this version is known for certain.
    pub(super) known_since: Instant,
}

impl Entry {
    pub(super) fn new(store: Arc<Store>, name: Name, files: Files, known_since: Instant) -> Self {
        let Files {
            header,
            index,
            data,
            writer,
        } = files;
        let words = header.blocks().div_ceil(64);
        Self {
            name,
            index,
            data: Arc::new(data),
            writer,
            file_id: FileId(NEXT_FILE.fetch_add(1, Ordering::Relaxed)),
            trusted: (0..words).map(|_| AtomicU64::new(0)).collect(),
            whole: AtomicBool::new(false),
            doubts: AtomicU64::new(store.doubts()),
            flights: Mutex::default(),
            abandoned: AtomicBool::new(false),
            known_since,
            header,
            store,
        }
    }

    /// Which version this is.
    pub fn identity(&self) -> &Identity {
        &self.header.identity
    }

    /// The path within the source.
    pub fn path(&self) -> &[u8] {
        &self.header.path
    }

    /// The file's length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.header.identity.size
    }

    /// Bytes of a block; the last one may be shorter.
    pub fn block_size(&self) -> u64 {
        u64::from(self.header.block)
    }

    /// How many blocks the file has.
    pub fn blocks(&self) -> u64 {
        self.header.blocks()
    }

    /// The data file, open for reading: for windows and passthrough. Only what [`Entry::ready`]
    /// called [`Ready::All`] may be taken from it. Windows should be forgotten when the entry is
    /// let go: as long as the file is open it can't be evicted.
    pub fn data(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.data)
    }

    /// The data file's id among the windows; no other file of this process has it.
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Where a block lies in the file; empty past the end.
    pub(super) fn range_of(&self, block: u64) -> Range<u64> {
        let start = block.saturating_mul(self.block_size()).min(self.len());
        start..start.saturating_add(self.block_size()).min(self.len())
    }

    fn blocks_of(&self, range: Range<u64>) -> Range<u64> {
        let end = range.end.min(self.len());
        if range.start >= end {
            return 0..0;
        }
        range.start / self.block_size()..end.div_ceil(self.block_size())
    }

    /// Whether the bytes of `range` (cut at the end of the file) can be served. Waits for nothing
    /// but the index in the page cache.
    pub fn ready(&self, range: Range<u64>) -> Ready {
        let blocks = self.blocks_of(range);
        let states = blocks.map(|block| self.state(block));
        let worst = states.max().unwrap_or(Ready::All);
        match self.store.options.verify {
            Verify::Always if worst == Ready::All => Ready::Suspect,
            _ => worst,
        }
    }

    /// What is known of one block, whatever `verify` says.
    pub(super) fn state(&self, block: u64) -> Ready {
        if self.is_trusted(block) {
            return Ready::All;
        }
        let doubts = self.store.doubts();
        let Some(record) = self.record(block) else {
            return Ready::Missing;
        };
        match self.store.trust(record.epoch) {
            Trust::Trusted => {
                self.set_trusted(block, doubts);
                Ready::All
            }
            Trust::Suspect => Ready::Suspect,
            Trust::Lost => Ready::Missing,
        }
    }

    fn is_trusted(&self, block: u64) -> bool {
        let doubts = self.store.doubts();
        if self.doubts.load(Ordering::Acquire) != doubts {
            self.whole.store(false, Ordering::Relaxed);
            for word in &self.trusted {
                word.store(0, Ordering::Relaxed);
            }
            self.doubts.store(doubts, Ordering::Release);
        }
        let word = self.trusted.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (block % 64) & 1 != 0)
    }

    /// Remembers that a block is trusted, as was found when the store's count of doubts was
    /// `doubts`. If that has grown since, whoever noticed may have cleared the bits already.
    pub(super) fn set_trusted(&self, block: u64, doubts: u64) {
        if let Some(word) = self.trusted.get((block / 64) as usize) {
            word.fetch_or(1 << (block % 64), Ordering::AcqRel);
        }
        if self.store.doubts() != doubts {
            self.distrust(block);
        }
    }

    fn distrust(&self, block: u64) {
        self.whole.store(false, Ordering::Relaxed);
        if let Some(word) = self.trusted.get((block / 64) as usize) {
            word.fetch_and(!(1 << (block % 64)), Ordering::Release);
        }
    }

    fn record_at(&self, block: u64) -> u64 {
        self.header.records_at() + block * RECORD
    }

    /// What the index says of a block.
    pub(super) fn record(&self, block: u64) -> Option<Record> {
        let mut bytes = [0; RECORD as usize];
        let index = self.index.as_fd();
        match place::read_all(index, &mut bytes, self.record_at(block)) {
            Ok(read) if read == bytes.len() => {
                Record::decode(&bytes, self.header.generation, block)
            }
            Ok(_) => None,
            Err(fail) => {
                self.store.trouble(&fail);
                None
            }
        }
    }

    fn write_record(&self, block: u64, bytes: &[u8; RECORD as usize]) -> Result<()> {
        place::write_all(self.index.as_fd(), bytes, self.record_at(block))
    }

    /// Does something while no other process changes the same block. Threads of this process are
    /// kept apart by flights.
    pub(super) fn alone<T>(&self, block: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let at = self.record_at(block);
        shelf::alone_with(self.index.as_fd(), at..at + RECORD, work)
    }

    /// Writes a block and then its record. To be called by who is alone with it.
    pub(super) fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let Some(writer) = &self.writer else {
            return Err(Fail::new(Errno::ROFS, "store a block"));
        };
        let record = Record {
            sum: xxh3_64(bytes),
            epoch: self.store.epoch(),
        };
        place::write_all(writer.as_fd(), bytes, self.range_of(block).start)?;
        self.write_record(block, &record.encode(self.header.generation, block))
    }

    /// Holds the suspect blocks of `range` against their checksums: true when all of it can be
    /// served. What was wrong is a miss from now on.
    pub fn check(&self, range: Range<u64>) -> bool {
        if self.store.options.verify == Verify::Always {
            return false;
        }
        let mut buffer = None;
        self.blocks_of(range).all(|block| match self.state(block) {
            Ready::All => true,
            Ready::Missing => false,
            Ready::Suspect => self.check_block(block, &mut buffer),
        })
    }

    fn check_block(&self, block: u64, buffer: &mut Option<Buffer>) -> bool {
        if buffer.is_none() {
            let deadline = Instant::now() + PATIENCE;
            *buffer = self.store.buffers.get(self.header.block as usize, deadline);
        }
        let Some(buffer) = buffer.as_mut() else {
            return false;
        };
        let Some(record) = self.read_checked(block, buffer.bytes_mut()) else {
            return false;
        };
        let doubts = self.store.doubts();
        let renewed = Record {
            epoch: self.store.epoch(),
            ..record
        };
        if self.writer.is_some() {
            let bytes = renewed.encode(self.header.generation, block);
            // Whoever replaced the record meanwhile did so with the same bytes of the same version.
            if let Err(fail) = self.alone(block, || self.write_record(block, &bytes)) {
                self.store.trouble(&fail);
            }
        }
        self.set_trusted(block, doubts);
        true
    }

    /// Reads a block into the start of `buffer`, and holds it against its checksum. What is wrong
    /// is a miss from now on.
    fn read_checked(&self, block: u64, buffer: &mut [u8]) -> Option<Record> {
        let record = self.record(block)?;
        if self.store.trust(record.epoch) == Trust::Lost {
            return None;
        }
        let range = self.range_of(block);
        let buffer = buffer.get_mut(..(range.end - range.start) as usize)?;
        match place::read_all(self.data.as_fd(), buffer, range.start) {
            Ok(read) if read == buffer.len() && xxh3_64(buffer) == record.sum => Some(record),
            read => {
                if let Err(fail) = read {
                    self.store.trouble(&fail);
                }
                self.drop_record(block, record);
                None
            }
        }
    }

    /// A block turned out to be wrong: unless another has stored it again meanwhile, it is a miss.
    fn drop_record(&self, block: u64, seen: Record) {
        self.store.metrics.cache_corrupt();
        self.distrust(block);
        let done = self.alone(block, || match self.record(block) {
            Some(now) if now == seen => self.write_record(block, &[0; RECORD as usize]),
            _ => Ok(()),
        });
        if let Err(fail) = done
            && self.writer.is_some()
        {
            self.store.trouble(&fail);
        }
    }

    /// Says that bytes of `range` could not be had from [`Entry::data`] (an I/O error of the cache
    /// disk): they are a miss from now on.
    pub fn lose(&self, range: Range<u64>) {
        for block in self.blocks_of(range) {
            if let Some(record) = self.record(block) {
                self.drop_record(block, record);
            }
        }
    }

    /// Whether every block is there and trusted: the data file may be handed to the kernel. Never
    /// under `verify=always`.
    pub fn is_whole(&self) -> bool {
        if self.store.options.verify == Verify::Always || self.is_abandoned() {
            return false;
        }
        // Forgets what is in doubt now.
        self.is_trusted(0);
        if !self.whole.load(Ordering::Acquire) {
            let doubts = self.store.doubts();
            let whole = (0..self.blocks()).all(|block| self.state(block) == Ready::All);
            if whole {
                self.whole.store(true, Ordering::Release);
            }
            if self.store.doubts() != doubts {
                self.whole.store(false, Ordering::Release);
                return false;
            }
            return whole;
        }
        true
    }

    /// The bytes of a block as stored, held against its checksum just now: for `verify=always`.
    /// None is a miss.
    pub fn verified(&self, block: u64, deadline: Instant) -> Option<Arc<Block>> {
        let range = self.range_of(block);
        let len = (range.end - range.start) as usize;
        self.record(block)?;
        let mut buffer = self.store.buffers.get(len, deadline)?;
        self.read_checked(block, buffer.bytes_mut())?;
        Some(Arc::new(Block::new(range.start, buffer, len)))
    }

    /// The bytes of a block that is missing. However many ask, one of them reads it from the
    /// source; the others wait for that one, until `deadline`. It is stored when they have their
    /// answer.
    ///
    /// `read` fills the buffer (page-aligned, as long as the block) from [`Entry::block_size`]
    /// `* block` on and returns how much there was; `same` tells, once the bytes are there,
    /// whether the source still has this version. `same` is called by a thread of the store, or
    /// by this one before it returns when those have too much to do.
    ///
    /// # Errors
    /// What `read` said, also to those who waited for it; ETIMEDOUT when the deadline passed;
    /// EBUSY when there was no buffer to be had until then, upon which the caller should read what
    /// it needs from the source itself; EINVAL for a block past the end.
    pub fn fill(
        self: &Arc<Self>,
        block: u64,
        deadline: Instant,
        read: impl FnOnce(&mut [u8]) -> Result<usize>,
        same: impl FnOnce() -> Result<bool> + Send + 'static,
    ) -> Result<Arc<Block>> {
        super::fill::fill(self, block, deadline, read, Box::new(same))
    }

    /// Whether a block is on its way from the source.
    pub fn is_under_way(&self, block: u64) -> bool {
        self.flights.lock().contains_key(&block)
    }

    /// Says that the source has another version now: this one is not found any more, by nobody,
    /// and nothing is stored in it. Who has it open keeps it.
    pub fn abandon(&self) {
        if !self.abandoned.swap(true, Ordering::AcqRel) {
            self.store.take_away(self.name, &self.header);
        }
    }

    /// Only in memory: its names are gone already.
    pub(super) fn set_abandoned(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether this version was given up ([`Entry::abandon`], a source that changed during a
    /// fill, [`super::Store::remove`]).
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Writes what was written to the source into the data file, for those who have it open by
    /// passthrough, up to its end. The entry is abandoned first.
    ///
    /// # Errors
    /// Those of pwrite(2), EROFS on a read-only cache: those readers see old bytes then.
    pub fn correct(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.abandon();
        let written = offset..offset.saturating_add(bytes.len() as u64);
        for block in self.blocks_of(written.clone()) {
            self.distrust(block);
            // Nobody reads a block that was never stored, and no room was reserved for it.
            if self.record(block).is_none() {
                continue;
            }
            let Some(writer) = &self.writer else {
                return Err(Fail::new(Errno::ROFS, "correct an entry"));
            };
            let block = self.range_of(block);
            let here = written.start.max(block.start)..written.end.min(block.end);
            let part = (here.start - offset) as usize..(here.end - offset) as usize;
            place::write_all(writer.as_fd(), &bytes[part], here.start)?;
        }
        Ok(())
    }

    /// Cuts the data file as the source's file was cut through the mount, or stretches it again, up to
    /// its end: for those who have it open by passthrough. The entry is abandoned first.
    ///
    /// # Errors
    /// As for [`Entry::correct`]: those of ftruncate(2), EROFS.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.abandon();
        let all = 0..self.len();
        self.blocks_of(all).for_each(|block| self.distrust(block));
        let Some(writer) = &self.writer else {
            return Err(Fail::new(Errno::ROFS, "resize an entry"));
        };
        rustix::fs::ftruncate(writer, size.min(self.len())).or_fail("ftruncate")
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self, bytes: &[u8]) {
        if self.writer.is_some()
            && let Err(fail) = place::write_all(self.index.as_fd(), bytes, super::layout::USE_AT)
        {
            self.store.trouble(&fail);
        }
    }
}
