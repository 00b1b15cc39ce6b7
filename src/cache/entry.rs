//! One version of one file, as far as it is stored.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::sys::{Errno, Fail, Result};
use crate::window::FileId;

use super::identity::Identity;

/// Whether a range can be served from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// From [`Entry::data`], at once.
    All,
    /// It is there, but has to be held against its checksums first ([`Entry::check`]); under
    /// `verify=always` at every serving ([`Entry::verified`]).
    Suspect,
    /// A block is missing ([`Entry::fill`]).
    Missing,
}

/// The bytes of one block, in memory.
#[derive(Debug)]
pub struct Block {}

impl Block {
    /// Where in the file it starts.
    pub fn offset(&self) -> u64 {
        todo!()
    }

    /// The bytes; fewer than the block's length when the source had no more.
    pub fn bytes(&self) -> &[u8] {
        todo!()
    }
}

/// An open entry. As long as it lives it is not evicted.
#[derive(Debug)]
pub struct Entry {}

impl Entry {
    /// Which version this is.
    pub fn identity(&self) -> &Identity {
        todo!()
    }

    /// The file's length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// Bytes of a block; the last one may be shorter.
    pub fn block_size(&self) -> u64 {
        todo!()
    }

    /// How many blocks the file has.
    pub fn blocks(&self) -> u64 {
        todo!()
    }

    /// The data file, open for reading: for windows and passthrough. Only what [`Entry::ready`]
    /// called [`Ready::All`] may be taken from it.
    pub fn data(&self) -> Arc<OwnedFd> {
        todo!()
    }

    /// The data file's id among the windows; no other file of this process has it.
    pub fn file_id(&self) -> FileId {
        todo!()
    }

    /// Whether the bytes of `range` (cut at the end of the file) can be served. Waits for nothing
    /// but the index in the page cache.
    pub fn ready(&self, _range: Range<u64>) -> Ready {
        Ready::Missing
    }

    /// Holds the suspect blocks of `range` against their checksums: true when all of it can be
    /// served. What was wrong is a miss from now on.
    pub fn check(&self, _range: Range<u64>) -> bool {
        false
    }

    /// Whether every block is there and trusted: the data file may be handed to the kernel. Never
    /// under `verify=always`.
    pub fn is_whole(&self) -> bool {
        false
    }

    /// The bytes of a block as stored, held against its checksum just now: for `verify=always`.
    /// None is a miss.
    pub fn verified(self: &Arc<Self>, _block: u64, _deadline: Instant) -> Option<Arc<Block>> {
        None
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
    /// EBUSY when there was no buffer to be had until then. After EBUSY the caller should read
    /// what it needs from the source itself.
    pub fn fill(
        self: &Arc<Self>,
        _block: u64,
        _deadline: Instant,
        _read: impl FnOnce(&mut [u8]) -> Result<usize>,
        _same: impl FnOnce() -> Result<bool> + Send + 'static,
    ) -> Result<Arc<Block>> {
        Err(Fail::new(Errno::BUSY, "fill"))
    }

    /// Says that the source has another version now: this one is not found any more, by nobody,
    /// and nothing is stored in it. Who has it open keeps it.
    pub fn abandon(&self) {}

    /// Whether this version was given up ([`Entry::abandon`], a source that changed during a
    /// fill, [`super::Store::remove`]).
    pub fn is_abandoned(&self) -> bool {
        false
    }

    /// Writes what was written to the source into the data file, for those who have it open by
    /// passthrough. The entry is abandoned first.
    ///
    /// # Errors
    /// Those of pwrite(2): those readers see old bytes then.
    pub fn correct(&self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}
