//! The inodes that the kernel knows, by their ids.
//!
//! In shards, so that one can be walked, or grown, in a moment and without the others.

#![allow(
    clippy::mutable_key_type,
    reason = "an inode is hashed and compared by its id, which never changes"
)]

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::inode::{Inode, NodeId};

/// How many shards; with a million inodes one has some four thousand.
const SHARDS: usize = 256;

/// A shard whose room is more than so many times what it holds gives it back.
const SPARSE: usize = 8;

/// An inode that is found by its id: the set needs no key beside the pointer.
#[derive(Debug)]
struct ById(Arc<Inode>);

impl Borrow<NodeId> for ById {
    fn borrow(&self) -> &NodeId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

/// All inodes by id.
#[derive(Debug)]
pub(super) struct Known {
    shards: Box<[HashSet<ById, RandomState>]>,
    count: usize,
    /// The shard to be walked next.
    hand: usize,
}

impl Known {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashSet::default()).collect(),
            count: 0,
            hand: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Arc<Inode>> {
        self.shards[shard_of(id)].get(&id).map(|found| &found.0)
    }

    /// Enters an inode whose id is not taken.
    pub(super) fn insert(&mut self, inode: Arc<Inode>) {
        let shard = &mut self.shards[shard_of(inode.id)];
        if shard.insert(ById(inode)) {
            self.count += 1;
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Arc<Inode>> {
        let shard = &mut self.shards[shard_of(id)];
        let found = shard.take(&id)?.0;
        self.count -= 1;
        if shard.capacity() > SPARSE * (shard.len() + SPARSE) {
            shard.shrink_to(2 * shard.len());
        }
        Some(found)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.shards.iter().flatten().map(|found| &found.0)
    }

    /// The inodes of the next shard: calls in number of [`Known::round`] see each that stays.
    pub(super) fn next_shard(&mut self) -> impl Iterator<Item = &Arc<Inode>> {
        self.hand = (self.hand + 1) % SHARDS;
        self.shards[self.hand].iter().map(|found| &found.0)
    }

    /// How many shards make a round.
    pub(super) const fn round() -> usize {
        SHARDS
    }
}

/// Inode numbers that follow each other lie in different shards (Fibonacci hashing).
fn shard_of(id: NodeId) -> usize {
    (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SHARDS.ilog2())) as usize
}
