//! The copy-on-read store: what was read from a source once is on local disk from then on.
//!
//! [`Store`] is one source's part of a cache directory, [`Entry`] one version of one file in it.
//! An entry's bytes are valid block by block. A reader asks [`Entry::ready`] and is served from
//! [`Entry::data`] when it says [`Ready::All`]; else it calls [`Entry::fill`], which reads the
//! block from the source once however many ask, and stores it when the readers have their answer.
//!
//! Rules that hold everywhere here:
//!
//! 1. What is not known to be right is a miss. Nothing on disk is believed without its check.
//! 2. Bytes are reserved in the budget of the directory before they are written.
//! 3. Nothing that somebody has open is unlinked, punched or cut.
//! 4. No trouble with the cache disk is an error of a read: the source serves.
//!
//! What stands where on disk is in `layout` (bytes) and `place` (names).

mod budget;
mod buffers;
mod count;
mod entry;
mod evict;
mod fill;
mod flight;
mod identity;
mod inspect;
mod keeping;
mod layout;
mod ledger;
mod names;
mod options;
mod place;
mod shelf;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod trust;

pub use entry::{Entry, Ready};
pub use flight::Block;
pub use identity::{Identity, Stamp};
pub use inspect::{
    CacheDir, CacheReport, CacheStatus, EntryInfo, Evicted, StoreInfo, StoreView, Verified,
};
pub use names::{Change, Named, Names, Record};
pub use options::{BLOCK, BLOCKS, Share, SourceClock, SourceKey, StoreOptions, Verify};
pub use store::Store;
