//! One source's part of a cache directory.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::observe::Metrics;
use crate::sys::{Errno, Fail, Result};

use super::entry::Entry;
use super::identity::Identity;
use super::options::StoreOptions;

/// The entries of one source, shared by all its files, readers and processes.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Opens or makes the store. Starts no thread, so that a process may still fork and enter its
    /// sandbox; scans nothing. All that is used later is beneath [`Store::root`].
    ///
    /// # Errors
    /// EACCES and EPERM with words for a directory that is not ours alone, EPROTO for a layout
    /// that this version does not know, EBUSY when another process holds the store's state for
    /// long; those of the file system.
    pub fn open(_options: &StoreOptions, _metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        Err(Fail::new(Errno::NOSYS, "cache"))
    }

    /// Starts the threads: storing, syncing, housekeeping. To be called inside the sandbox.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// The cache directory: what a sandbox must leave open (reading, writing, making, removing
    /// and renaming files and directories beneath).
    pub fn root(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// The store's own directory in the cache directory, for what else is kept of the source
    /// (`names/`).
    pub fn dir(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// The entry of that version of the file at `path` (within the source, no leading slash):
    /// found, or made with no block in it. An entry of another version is replaced. None when it
    /// cannot be cached now; the source serves then.
    pub fn entry(self: &Arc<Self>, _path: &[u8], _identity: &Identity) -> Option<Arc<Entry>> {
        None
    }

    /// The version of the file at `path` that is on record, whole or in part.
    pub fn stored(&self, _path: &[u8]) -> Option<Identity> {
        None
    }

    /// The entry of the file at `path` in whatever version is on record; never made.
    pub fn entry_as_stored(self: &Arc<Self>, _path: &[u8]) -> Option<Arc<Entry>> {
        None
    }

    /// Forgets the file at `path`: who has its entry open keeps it, nobody finds it again. For
    /// what is changed, renamed or removed through the mount. (A rename changes ctime, and so the
    /// identity: an entry under its new name would be of no use.)
    pub fn remove(&self, _path: &[u8]) {}

    /// Ends the threads when all is stored, and makes a clean stop if nobody else uses the store.
    /// Entries that are open stay readable; nothing is stored after this.
    pub fn close(&self) {}
}
