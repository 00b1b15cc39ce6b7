//! The ledger of a cache directory, as values: what is there, what is reserved, by whom.
//!
//! All numbers little endian; 4096 bytes, so that one write is one page:
//!
//! ```text
//!   0 magic "corfslgr"   8 version u32   12 flags u32 (1 sure, 2 clean, 4 always)   16 place u64
//!  24 joins u64   32 zeros
//!  64 bytes committed u64, of each of 256 folders and of everything else
//! 2120 slots of 32 bytes, one a process: reserved u64, limit u64 (0: free slot), pid u32, zeros,
//!      at 24 of them join u64
//! ```
//!
//! `place` tells boot and mount of the cache disk (`trust`): what was written under another one
//! may be lost, unless the stop was clean. The ledger is sure when every folder was counted since.

/// Folders of all stores together, by the first byte of the entry's name.
pub(super) const FANS: usize = 256;
/// Everything that is in none of them: orphans, names, states, folders.
pub(super) const OTHER: usize = FANS;
/// Processes that may use one directory at once.
pub(super) const SLOTS: usize = 60;
/// Bytes of the file.
pub(super) const LEN: usize = 4096;

const MAGIC: [u8; 8] = *b"corfslgr";
const COMMITTED_AT: usize = 64;
const SLOTS_AT: usize = COMMITTED_AT + (FANS + 1) * 8;
const SLOT_LEN: usize = 32;
const _: () = assert!(SLOTS_AT + SLOTS * SLOT_LEN <= LEN);

/// What one process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    /// Bytes reserved and not yet committed.
    pub(super) reserved: u64,
    /// The most that it lets the directory take; 0 when nobody has the slot. [`UNCOUNTED`] for what
    /// those left who were killed.
    pub(super) limit: u64,
    /// For people only: who lives is told by locks.
    pub(super) pid: u32,
    /// Which of all who ever came has it.
    pub(super) join: u64,
}

/// The limit in a slot that is nobody's any more, and holds what the killed had reserved: none.
pub(super) const UNCOUNTED: u64 = u64::MAX;

/// Set by all who tell what several threads have reserved apart. What others wrote is not sure.
const TOLD_APART: u32 = 4;

impl Slot {
    /// Whether who had this slot, if he is dead, was killed, and not everything was counted since.
    pub(super) fn is_uncounted(&self) -> bool {
        self.limit != 0 || self.reserved != 0
    }
}

/// What the directory takes before there is a store in it: itself, its tag, `v1` and the ledger.
const ROOT: u64 = 4 * 4096;

/// The whole ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) sure: bool,
    pub(super) clean: bool,
    pub(super) place: u64,
    /// How many processes ever came.
    pub(super) joins: u64,
    pub(super) committed: [u64; FANS + 1],
    pub(super) slots: [Slot; SLOTS],
}

impl Ledger {
    /// Of a directory with nothing in it.
    pub(super) fn new(place: u64) -> Self {
        let mut committed = [0; FANS + 1];
        committed[OTHER] = ROOT;
        Self {
            sure: true,
            clean: false,
            place,
            joins: 0,
            committed,
            slots: [Slot::default(); SLOTS],
        }
    }

    /// Puts what those left who were killed into one slot. That of one alone stays as it is, so that
    /// who counts meanwhile can clear it.
    pub(super) fn inherit(&mut self, dead: &[usize]) {
        let is_left = |slot: &&usize| self.slots[**slot].is_uncounted();
        let left: Vec<usize> = dead.iter().filter(is_left).copied().collect();
        let Some((&heir, others)) = left.split_first() else {
            return;
        };
        if !others.is_empty() {
            let all = left.iter().map(|&slot| self.slots[slot].reserved);
            let reserved = all.fold(0u64, u64::saturating_add);
            for &slot in others {
                self.slots[slot] = Slot::default();
            }
            self.joins = self.joins.wrapping_add(1);
            (self.slots[heir].reserved, self.slots[heir].join) = (reserved, self.joins);
        }
        (self.slots[heir].limit, self.slots[heir].pid) = (UNCOUNTED, 0);
    }

    /// What the directory takes, and may come to take without another reservation.
    pub(super) fn used(&self) -> u64 {
        let committed = self
            .committed
            .iter()
            .fold(0u64, |a, b| a.saturating_add(*b));
        committed.saturating_add(self.reserved())
    }

    pub(super) fn reserved(&self) -> u64 {
        let slots = self.slots.iter();
        slots.fold(0u64, |a, slot| a.saturating_add(slot.reserved))
    }

    /// The smallest of the limits of those who are there.
    pub(super) fn limit(&self) -> u64 {
        let limits = self.slots.iter().map(|slot| slot.limit);
        limits.filter(|&limit| limit != 0).min().unwrap_or(0)
    }

    /// How many bytes must go before `bytes` more are within the limit.
    pub(super) fn excess(&self, bytes: u64) -> u64 {
        let wanted = self.used().saturating_add(bytes);
        wanted.saturating_sub(usable(self.limit()))
    }

    /// Reserves `bytes` if they are within the limit and the ledger can be believed.
    pub(super) fn reserve(&mut self, slot: usize, bytes: u64) -> bool {
        let fits = self.sure && self.excess(bytes) == 0;
        if fits && let Some(slot) = self.slots.get_mut(slot) {
            slot.reserved += bytes;
        }
        fits
    }

    /// Gives a reservation back.
    pub(super) fn release(&mut self, slot: usize, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.reserved = slot.reserved.saturating_sub(bytes);
        }
    }

    /// Of `reserved` bytes `taken` are there now, in that folder, and the rest is given back. What
    /// other threads have reserved in the slot stays.
    pub(super) fn commit(&mut self, slot: usize, folder: usize, reserved: u64, taken: u64) {
        self.release(slot, reserved);
        if let Some(folder) = self.committed.get_mut(folder) {
            *folder = folder.saturating_add(taken);
        }
    }

    /// That much is gone from a folder. What a folder does not have stays counted: too much
    /// rather than too little, until it is counted again.
    pub(super) fn removed(&mut self, folder: usize, bytes: u64) {
        if let Some(folder) = self.committed.get_mut(folder) {
            *folder = folder.saturating_sub(bytes);
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&super::layout::VERSION.to_le_bytes());
        let flags = u32::from(self.sure) | u32::from(self.clean) << 1 | TOLD_APART;
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.place.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.joins.to_le_bytes());
        let places = bytes[COMMITTED_AT..SLOTS_AT].chunks_exact_mut(8);
        for (place, value) in places.zip(&self.committed) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let places = bytes[SLOTS_AT..].chunks_exact_mut(SLOT_LEN);
        for (place, slot) in places.zip(&self.slots) {
            place[..8].copy_from_slice(&slot.reserved.to_le_bytes());
            place[8..16].copy_from_slice(&slot.limit.to_le_bytes());
            place[16..20].copy_from_slice(&slot.pid.to_le_bytes());
            place[24..32].copy_from_slice(&slot.join.to_le_bytes());
        }
        bytes
    }

    /// None for what is no ledger of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let u32_at = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let ours =
            bytes.len() == LEN && bytes[..8] == MAGIC && u32_at(8)? == super::layout::VERSION;
        if !ours {
            return None;
        }
        let mut ledger = Self::new(u64_at(16)?);
        let flags = u32_at(12)?;
        ledger.joins = u64_at(24)?;
        let told = flags & TOLD_APART != 0;
        (ledger.sure, ledger.clean) = (flags & 1 != 0 && told, flags & 2 != 0);
        for (at, value) in ledger.committed.iter_mut().enumerate() {
            *value = u64_at(COMMITTED_AT + at * 8)?;
        }
        for (n, slot) in ledger.slots.iter_mut().enumerate() {
            let at = SLOTS_AT + n * SLOT_LEN;
            *slot = Slot {
                reserved: u64_at(at)?,
                limit: u64_at(at + 8)?,
                pid: u32_at(at + 16)?,
                join: u64_at(at + 24)?,
            };
        }
        Some(ledger)
    }
}

/// What of a limit is given away: a 256th stays for what no number of ours shows at once, as the
/// blocks in which a file system keeps a file's extents, taken when it writes the data back.
pub(super) fn usable(limit: u64) -> u64 {
    limit - limit / 256
}

/// What a block of `bytes` takes on disk at most: whole pages, and a 128th for its extents.
pub(super) fn block_cost(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096) + bytes / 128
}

/// The first block of a file's extents, which a file of up to four has in its inode (ext4).
pub(super) const EXTENTS: u64 = 4096;

/// What an entry takes before there is a block in it: its index, its share of the folder's names,
/// and of a file of several blocks the first block of extents.
pub(super) fn entry_cost(index: u64, blocks: u64) -> u64 {
    index.next_multiple_of(4096) + 256 + if blocks > 4 { EXTENTS } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What processes do with one ledger.
    #[derive(Clone, Debug)]
    enum Deed {
        Reserve(usize, u64),
        Commit(usize, usize, u64),
        Release(usize),
        Remove(usize, u64),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0usize..4, 1u64..3000).prop_map(|(slot, bytes)| Deed::Reserve(slot, bytes)),
            (0usize..4, 0usize..5, 0..=100u64)
                .prop_map(|(slot, folder, percent)| Deed::Commit(slot, folder, percent)),
            (0usize..4).prop_map(Deed::Release),
            (0usize..5, 1u64..3000).prop_map(|(folder, bytes)| Deed::Remove(folder, bytes)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_used_is_what_was_given_and_never_above_the_least_limit(
            limits in prop::array::uniform4(ROOT + 4000..ROOT + 20_000),
            deeds in prop::collection::vec(deed(), 0..300),
        ) {
            let mut ledger = Ledger::new(7);
            for (slot, limit) in limits.iter().enumerate() {
                ledger.slots[slot].limit = *limit;
            }
            let least = *limits.iter().min().unwrap();
            let mut held: [Vec<u64>; 4] = Default::default();
            let mut there = [0u64; 5];
            for deed in deeds {
                match deed {
                    Deed::Reserve(slot, bytes) => {
                        if ledger.reserve(slot, bytes) {
                            held[slot].push(bytes);
                        } else {
                            prop_assert!(ledger.used() + bytes > usable(least));
                            prop_assert!(ledger.excess(bytes) > 0);
                        }
                    }
                    Deed::Commit(slot, folder, percent) => if let Some(bytes) = held[slot].pop() {
                        let taken = bytes * percent / 100;
                        ledger.commit(slot, folder, bytes, taken);
                        there[folder] += taken;
                    },
                    Deed::Release(slot) => if let Some(bytes) = held[slot].pop() {
                        ledger.release(slot, bytes);
                    },
                    Deed::Remove(folder, bytes) => {
                        let bytes = bytes.min(there[folder]);
                        ledger.removed(folder, bytes);
                        there[folder] -= bytes;
                    }
                }
                let held = held.iter().flatten().sum::<u64>();
                let sum = ROOT + there.iter().sum::<u64>() + held;
                prop_assert_eq!(ledger.used(), sum);
                prop_assert!(sum <= least);
                prop_assert_eq!(Ledger::decode(&ledger.encode()), Some(ledger.clone()));
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), LEN)) {
            let mut bytes = bytes;
            prop_assert_eq!(Ledger::decode(&bytes), None);
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&super::super::layout::VERSION.to_le_bytes());
            let ledger = Ledger::decode(&bytes).unwrap();
            let _ = (ledger.used(), ledger.excess(u64::MAX), ledger.limit());
        }
    }

    #[test]
    fn an_unsure_ledger_gives_nothing() {
        let mut ledger = Ledger::new(0);
        ledger.slots[0].limit = 1 << 20;
        ledger.sure = false;
        assert!(!ledger.reserve(0, 1));
        ledger.sure = true;
        assert!(ledger.reserve(0, 1));
    }
}
