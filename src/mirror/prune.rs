//! Which inodes the kernel is to forget when it knows more of them than the limit.
//!
//! A second-chance sweep over the table, shard by shard: an inode that no request named since the
//! sweep last passed is offered. Whether it can go is for the kernel to say: what is open, mapped,
//! somebody's working directory, or has children that stay, stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::inode::{Inode, ROOT};
use super::known::Known;
use super::table::InodeTable;

/// What those who wait for the table to fill up are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowd {
    /// That many inodes more than there should be.
    Surplus(usize),
    /// The session ends.
    Ending,
}

impl InodeTable {
    /// Waits until there are more inodes than the limit, or the end.
    pub fn wait_crowded(&self) -> Crowd {
        let mut state = self.state.lock();
        loop {
            if state.ending {
                return Crowd::Ending;
            }
            if state.known.len() > self.ceilings.inodes {
                return Crowd::Surplus(self.surplus_of(state.known.len()));
            }
            state.wake_above = self.ceilings.inodes;
            self.crowded.wait(&mut state);
            state.wake_above = usize::MAX;
        }
    }

    /// Waits for the time given, for a sixteenth of the limit to come in the meantime, or for the
    /// end; whether it is the end.
    pub fn wait_end(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        let most = state.known.len().saturating_add(self.ceilings.inodes / 16);
        state.wake_above = most;
        let calm = |state: &mut super::table::State| !state.ending && state.known.len() <= most;
        self.crowded.wait_while_for(&mut state, calm, time);
        state.wake_above = usize::MAX;
        state.ending
    }

    /// Ends the waiting of who prunes, now and later.
    pub fn end_pruning(&self) {
        self.state.lock().ending = true;
        self.crowded.notify_all();
    }

    /// How many inodes there are at this moment.
    pub fn count(&self) -> usize {
        self.state.lock().known.len()
    }

    /// How many inodes were forgotten so far.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// By how many inodes the table is above what pruning aims at: a sixteenth below its limit, so
    /// that it is not called for again at once.
    pub fn surplus(&self) -> usize {
        self.surplus_of(self.count())
    }

    fn surplus_of(&self, count: usize) -> usize {
        let limit = self.ceilings.inodes;
        count.saturating_sub(limit - limit / 16)
    }

    /// The inodes of the next shard that were not used since this last came by.
    pub fn next_idle(&self) -> Vec<Arc<Inode>> {
        let mut state = self.state.lock();
        let shard = state.known.next_shard();
        let idle = shard.filter(|inode| {
            let open = inode.opens.load(Ordering::Relaxed) > 0;
            !inode.take_used() && !open && inode.id != ROOT
        });
        idle.cloned().collect()
    }

    /// How many calls of [`InodeTable::next_idle`] pass every inode once.
    pub const fn sweep() -> usize {
        Known::round()
    }
}
