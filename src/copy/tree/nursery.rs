//! New directories with nothing but a few hundred files: filled under a hidden name, and renamed
//! when everything is in.
//!
//! In a directory that nobody looks into, a file may have its own name before it is whole. One that
//! grows without a name and is linked then takes two transactions, each with the lists of unnamed
//! files and of free inodes, over which two workers wait for each other.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use super::folder::{Folder, Open};
use super::job::{Job, look, open_regular};
use super::pool::{Batch, Entry};
use super::walk::Entries;
use crate::copy::engine::small::Small;
use crate::copy::leftovers;
use crate::copy::unseen::Unseen;
use crate::sys::Result;

/// Files of such a directory: fewer are not worth the second name; more would be unseen for long,
/// and one thread's alone.
const LEAST: usize = 8;
pub(super) const MOST: usize = 512;

/// A directory that is to be copied so.
pub(super) struct Nursery {
    pub(super) above: Arc<Open>,
    pub(super) name: OsString,
    pub(super) source: OwnedFd,
    pub(super) stat: Stat,
    /// All that is in it and is to be copied.
    pub(super) entries: Vec<Entry>,
}

/// Whether a directory of this name in the copy of `above` may be made so.
pub(super) fn suits(job: &Job<'_>, above: &Open, name: &OsStr) -> Result<bool> {
    let wanted = job.small
        // Otherwise the directory that holds it has a say in its mode, which its mark would hide.
        && job.order.options.preserve.mode
        && leftovers::is_told_by_locks(above.copy.as_fd())
        && !job.names.is_reserved(above.copy.as_fd(), name);
    Ok(wanted && (above.folder.made || look(above.copy.as_fd(), name)?.is_none()))
}

/// Whether a directory with this in it, and nothing else, is worth it.
pub(super) fn is_one(listed: &Entries) -> bool {
    let mut kinds = listed.iter().map(|(entry, _)| entry.kind);
    (LEAST..=MOST).contains(&listed.len()) && kinds.all(|kind| kind == FileType::RegularFile)
}

/// What has come of the files so far.
#[derive(Default)]
struct Grown {
    done: Vec<Entry>,
    bytes: u64,
    /// These go another way, or fail, when the directory has its name.
    later: Vec<Entry>,
    /// It was cancelled before all was done.
    falls_short: bool,
}

impl Job<'_> {
    /// Copies a directory with all that is in it.
    pub(super) fn nursery(&self, nursery: Nursery, small: &mut Small) {
        let (above, name) = (Arc::clone(&nursery.above), nursery.name.clone());
        if let Err(fail) = self.raise(nursery, small) {
            if self.order.progress.is_cancelled() {
                above.folder.fall_short();
            }
            self.failed(Some(&above.folder), &name, fail);
        }
        self.leave(&above);
    }

    fn raise(&self, nursery: Nursery, small: &mut Small) -> Result<()> {
        self.order.progress.check()?;
        let Nursery {
            above,
            name,
            source,
            stat,
            entries,
        } = nursery;
        let holder = above.copy.as_fd();
        let folder = |stat, copy, made| {
            let above = Some(Arc::clone(&above.folder));
            Folder::new(above, name.clone(), None, stat, copy, made)
        };
        let Some((unseen, copy)) = Unseen::make(holder)? else {
            let open = self.enter((source, stat), (holder, &name, true), folder)?;
            self.openly(open, entries, small);
            return Ok(());
        };
        let mut open = self
            .open((source, stat), copy, true, folder)
            .inspect_err(|_| unseen.remove(holder))?;
        let mut grown = self.grow(&open, entries, small);
        if !self.show(holder, &unseen, &name, &grown)? {
            // Somebody was faster: into what he made.
            open = self.enter((open.source, stat), (holder, &name, true), folder)?;
            grown.later.append(&mut grown.done);
        }
        if grown.falls_short {
            self.stop();
            open.folder.fall_short();
        }
        self.openly(open, grown.later, small);
        Ok(())
    }

    /// Gives it its name, and counts what is in it. False, and it is gone, when the name is taken.
    fn show(
        &self,
        holder: BorrowedFd<'_>,
        unseen: &Unseen,
        name: &OsStr,
        grown: &Grown,
    ) -> Result<bool> {
        let progress = self.order.progress;
        let shown = unseen.publish(holder, name);
        if matches!(shown, Ok(true)) {
            self.names.published(holder, name);
            // Somebody may have looked into it.
            self.names.published(holder, unseen.name());
            progress.files_are_done(grown.done.len() as u64);
        } else {
            unseen.remove(holder);
            progress.take_back(grown.bytes, grown.bytes);
        }
        shown
    }

    /// Copies what can be copied at little cost.
    fn grow(&self, open: &Open, entries: Vec<Entry>, small: &mut Small) -> Grown {
        let mut grown = Grown::default();
        for entry in entries {
            if self.order.progress.check().is_err() {
                grown.falls_short = true;
                break;
            }
            match self.unseen(open, &entry, small) {
                Ok(Some(bytes)) => {
                    grown.bytes += bytes;
                    grown.done.push(entry);
                }
                // What failed fails again, and is told then.
                Ok(None) | Err(_) => grown.later.push(entry),
            }
        }
        grown
    }

    fn unseen(&self, open: &Open, entry: &Entry, small: &mut Small) -> Result<Option<u64>> {
        let name = OsStr::from_bytes(entry.name.to_bytes());
        let Some(source) = open_regular(open.source.as_fd(), &entry.name)? else {
            return Ok(None);
        };
        // Its other names are linked to this one by its path, which is not there yet.
        let is_linked = self.order.options.preserve.links && source.stat.st_nlink > 1;
        let directory = open.copy.as_fd();
        if is_linked || self.names.is_reserved(directory, name) {
            return Ok(None);
        }
        small.copy_unseen(&source, directory, name, self.order, open.folder.gives_acl)
    }

    /// The last to leave a directory gives it its attributes: that is here.
    fn openly(&self, open: Open, entries: Vec<Entry>, small: &mut Small) {
        let open = Arc::new(open);
        self.batch(&Batch { open, entries }, small);
    }
}
