//! One fetch of a block, however many want it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::sys::{Errno, Fail, Result};

use super::buffers::Buffer;

/// The bytes of one block, in memory.
#[derive(Debug)]
pub struct Block {
    offset: u64,
    buffer: Buffer,
    len: usize,
}

impl Block {
    pub(super) fn new(offset: u64, buffer: Buffer, len: usize) -> Self {
        Self {
            offset,
            buffer,
            len,
        }
    }

    /// Where in the file it starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes; fewer than the block's length when the source had no more.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes().get(..self.len).unwrap_or_default()
    }
}

/// A block on its way, from the first who wants it until it is stored.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// A leaf.
    outcome: Mutex<Option<Result<Arc<Block>>>>,
    landed: Condvar,
}

impl Flight {
    /// Tells everyone, now and later. Only the first word counts.
    pub(super) fn land(&self, outcome: Result<Arc<Block>>) {
        self.outcome.lock().get_or_insert(outcome);
        self.landed.notify_all();
    }

    /// What came of it.
    ///
    /// # Errors
    /// That of the fetch; ETIMEDOUT when the deadline passed.
    pub(super) fn wait(&self, deadline: Instant) -> Result<Arc<Block>> {
        let mut outcome = self.outcome.lock();
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            if self.landed.wait_until(&mut outcome, deadline).timed_out() && outcome.is_none() {
                return Err(Fail::new(Errno::TIMEDOUT, "wait for a block"));
            }
        }
    }

    pub(super) fn has_landed(&self) -> bool {
        self.outcome.lock().is_some()
    }
}
