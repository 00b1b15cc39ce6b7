//! Directories in which names have been made that are to be on disk, each to be synced once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::fstat;

use super::folder::id;
use crate::copy::publish;
use crate::sys::{OrFail, Result};

/// Directories that are kept open for it: links may lead every source to another one.
const MOST: usize = 32;

type Directory = ((u64, u64), Arc<OwnedFd>);

/// Those above what was named; within a tree each is synced when it is done.
#[derive(Default)]
pub(super) struct Unsynced {
    /// A leaf in the order of locks; not held while anything is synced.
    directories: Mutex<Vec<Directory>>,
}

impl Unsynced {
    /// A name has been made in this directory.
    ///
    /// # Errors
    /// As [`Unsynced::sync`], where there are many.
    pub(super) fn add(&self, directory: &Arc<OwnedFd>) -> Result<()> {
        let id = id(&fstat(directory.as_fd()).or_fail("fstat")?);
        let mut directories = self.directories.lock();
        if directories.iter().any(|(known, _)| *known == id) {
            return Ok(());
        }
        directories.push((id, Arc::clone(directory)));
        let are_many = directories.len() >= MOST;
        drop(directories);
        if are_many { self.sync() } else { Ok(()) }
    }

    /// Whether all names are on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.directories.lock().is_empty()
    }

    /// Has all names on disk.
    ///
    /// # Errors
    /// The first of fsync(2): the names stand, but may not survive a crash.
    pub(super) fn sync(&self) -> Result<()> {
        let directories = std::mem::take(&mut *self.directories.lock());
        let mut outcome = Ok(());
        // All of them, whatever one says.
        for (_, directory) in &directories {
            let synced = publish::Names::of(directory.as_fd()).and_then(|names| names.sync());
            outcome = outcome.and(synced);
        }
        outcome
    }
}
