//! Which windows are mapped, and in what order they were last used. No I/O happens here, nothing is
//! mapped or unmapped: what leaves the table is handed to the caller, who drops it without the lock.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::budget::Window;
use super::cache::FileId;

/// A file and the index of a window in it.
pub(super) type Key = (FileId, u64);

/// How often scattered requests must ask for a window until it is mapped in another's place:
/// mapping and unmapping cost many small preads where two processors have to agree on it (rows
/// "random 4 KiB" of `benches/speed`).
const WARM: u8 = 32;
/// How often they must ask until it is mapped where there is room: a small file that is read once
/// costs a fifth less by pread (`benches/speed`, "open, read, close").
const AGAIN: u8 = 2;

/// Windows of which it is remembered how often they were asked for in vain.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Windows that left the table. Those without a pin are unmapped when this is dropped.
pub(super) type Gone = Vec<Arc<Window>>;

#[derive(Debug)]
enum Slot {
    /// Somebody is mapping it. The ticket tells whether the slot is still the same when it is done.
    Mapping(u64),
    Mapped(Arc<Window>, Instant),
}

/// What stands in the table for a request.
#[derive(Debug)]
pub(super) enum Found {
    /// It spans the request, and is now pinned.
    Window(Arc<Window>),
    /// Another thread is mapping it.
    Mapping,
    /// Nothing. What was there ended before the request (the file has grown since), and left.
    Nothing(Option<Arc<Window>>),
}

/// The windows of all files.
///
/// Invariants:
/// 1. A key stands in `files` exactly if it stands in `slots`.
/// 2. From the least recently used end of `slots`, the times of the mapped ones ascend.
/// 3. A window is cloned out of a slot only under the table's lock. So one that is held by its
///    slot alone can be taken out and unmapped: nobody can pin it in between.
#[derive(Debug)]
pub(super) struct Table {
    slots: LruCache<Key, Slot>,
    files: HashMap<FileId, BTreeSet<u64>>,
    tickets: u64,
    /// How often scattered requests asked for what is not mapped, and since when.
    asked: LruCache<Key, (u8, Instant)>,
    /// How many threads hold windows that they took out and have not unmapped yet.
    pub(super) departing: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: LruCache::unbounded(),
            files: HashMap::new(),
            tickets: 0,
            asked: LruCache::new(REMEMBERED),
            departing: 0,
        }
    }

    /// The window of that key, if it maps at least `len` bytes.
    pub(super) fn find(&mut self, key: Key, len: usize, now: Instant) -> Found {
        match self.slots.get_mut(&key) {
            None => Found::Nothing(None),
            Some(Slot::Mapping(_)) => Found::Mapping,
            Some(Slot::Mapped(window, used)) if window.len() >= len => {
                *used = now;
                Found::Window(Arc::clone(window))
            }
            Some(Slot::Mapped(..)) => Found::Nothing(self.remove(key)),
        }
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.slots.contains(&key)
    }

    /// Counts a scattered request for a window that is not mapped; whether it is to be mapped now,
    /// if `full` in the place of the one that was not used for the longest time.
    ///
    /// That one must not have been used since the first of the requests that are counted: where all
    /// of a file is read at random that is larger than the budget, no window is worth more than
    /// another, and to unmap one for another is all loss.
    pub(super) fn warms(&mut self, key: Key, full: bool, now: Instant) -> bool {
        let idle_since = match self.slots.peek_lru() {
            Some((_, Slot::Mapped(_, used))) => *used,
            _ => now,
        };
        let (asked, since) = self.asked.get_or_insert_mut(key, || (0, now));
        *asked += 1;
        if *asked < if full { WARM } else { AGAIN } {
            return false;
        }
        let warm = !full || idle_since <= *since;
        self.asked.pop(&key);
        warm
    }

    /// Marks that the caller goes to map the window of that key.
    pub(super) fn begin(&mut self, key: Key) -> u64 {
        self.tickets += 1;
        self.slots.put(key, Slot::Mapping(self.tickets));
        self.files.entry(key.0).or_default().insert(key.1);
        self.tickets
    }

    /// Ends what [`Table::begin`] began. If the file was forgotten meanwhile, the window is not
    /// listed, though who mapped it may use it.
    pub(super) fn settle(
        &mut self,
        key: Key,
        ticket: u64,
        window: Option<&Arc<Window>>,
        now: Instant,
    ) {
        let same = matches!(self.slots.peek(&key), Some(Slot::Mapping(t)) if *t == ticket);
        match window {
            Some(window) if same => {
                let slot = Slot::Mapped(Arc::clone(window), now);
                self.slots.put(key, slot);
            }
            None if same => drop(self.remove(key)),
            _ => {}
        }
    }

    fn remove(&mut self, key: Key) -> Option<Arc<Window>> {
        let slot = self.slots.pop(&key);
        if let Some(indices) = self.files.get_mut(&key.0) {
            indices.remove(&key.1);
            if indices.is_empty() {
                self.files.remove(&key.0);
            }
        }
        match slot {
            Some(Slot::Mapped(window, _)) => Some(window),
            _ => None,
        }
    }

    /// Takes out the least recently used windows that are not pinned and were not used for `idle`,
    /// until they hold `bytes`, at least one.
    ///
    /// A pinned one met on the way is in use now and moves to the other end; each call meets each
    /// at most once, and pins are as few as requests in flight.
    pub(super) fn evict(&mut self, bytes: usize, idle: Duration, now: Instant) -> Gone {
        let mut gone = Gone::new();
        let mut freed = 0_usize;
        for _ in 0..self.slots.len() {
            if freed >= bytes && !gone.is_empty() {
                break;
            }
            let key = match self.slots.peek_lru() {
                None => break,
                Some((key, Slot::Mapped(window, used))) if unpinned(window) => {
                    if now.saturating_duration_since(*used) < idle {
                        break;
                    }
                    let key = *key;
                    freed = freed.saturating_add(window.len());
                    gone.extend(self.remove(key));
                    continue;
                }
                Some((key, _)) => *key,
            };
            if let Some(Slot::Mapped(_, used)) = self.slots.get_mut(&key) {
                *used = now;
            }
        }
        gone
    }

    /// Takes out all windows of a file. What is being mapped will not be listed.
    pub(super) fn forget(&mut self, file: FileId) -> Gone {
        let indices = self.files.remove(&file).unwrap_or_default();
        let slots = indices
            .into_iter()
            .filter_map(|index| self.slots.pop(&(file, index)));
        slots
            .filter_map(|slot| match slot {
                Slot::Mapped(window, _) => Some(window),
                Slot::Mapping(_) => None,
            })
            .collect()
    }

    /// Takes out all windows that are not pinned.
    pub(super) fn clear(&mut self) -> Gone {
        let mut keys = Vec::new();
        for (key, slot) in &self.slots {
            if matches!(slot, Slot::Mapped(window, _) if unpinned(window)) {
                keys.push(*key);
            }
        }
        keys.into_iter()
            .filter_map(|key| self.remove(key))
            .collect()
    }
}

/// Whether the slot alone holds the window.
fn unpinned(window: &Arc<Window>) -> bool {
    Arc::strong_count(window) == 1
}
