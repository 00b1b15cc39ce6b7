//! The entries of the store that are open, by the inode of the source.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::inode::Key;
use crate::cache::Entry;

/// Descriptors of an entry: its index, its data, and its data to be written.
const DESCRIPTORS: usize = 3;

/// The open entries, as many as there are descriptors for.
#[derive(Debug)]
pub(super) struct Entries {
    most: usize,
    /// A leaf.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_inode: HashMap<Key, Vec<Weak<Entry>>>,
    /// How many stand in it, of which some may be closed by now.
    count: usize,
}

impl Entries {
    /// So many as may have `descriptors`.
    pub(super) fn new(descriptors: usize) -> Self {
        Self {
            most: (descriptors / DESCRIPTORS).max(1),
            inner: Mutex::default(),
        }
    }

    /// Whether one more may be opened: what a reader needs of the source itself comes first.
    pub(super) fn has_room(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.count >= self.most {
            inner.sweep();
        }
        inner.count < self.most
    }

    /// An entry was opened for an inode, or is open already.
    pub(super) fn add(&self, key: Key, entry: &Arc<Entry>) {
        let mut inner = self.inner.lock();
        if inner.by_inode.len() == inner.by_inode.capacity() {
            inner.sweep();
        }
        let entries = inner.by_inode.entry(key).or_default();
        if entries
            .iter()
            .any(|known| known.as_ptr() == Arc::as_ptr(entry))
        {
            return;
        }
        entries.push(Arc::downgrade(entry));
        inner.count += 1;
    }

    /// Forgets the entries of an inode that nobody has open any more.
    pub(super) fn forget_closed(&self, key: Key) {
        let mut inner = self.inner.lock();
        let Some(entries) = inner.by_inode.get_mut(&key) else {
            return;
        };
        let before = entries.len();
        entries.retain(|entry| entry.strong_count() > 0);
        let gone = before - entries.len();
        if entries.is_empty() {
            inner.by_inode.remove(&key);
        }
        inner.count -= gone;
    }

    /// Those of an inode.
    pub(super) fn of(&self, key: Key) -> Vec<Arc<Entry>> {
        let inner = self.inner.lock();
        let entries = inner.by_inode.get(&key).map_or(&[][..], Vec::as_slice);
        entries.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Inner {
    fn sweep(&mut self) {
        self.by_inode.retain(|_, entries| {
            entries.retain(|entry| entry.strong_count() > 0);
            !entries.is_empty()
        });
        self.count = self.by_inode.values().map(Vec::len).sum();
    }
}
