//! The table while the source is away: inodes without descriptors, known by their names, and the
//! root that comes back.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use xxhash_rust::xxh3::xxh3_64;

use super::inode::{Entry, Home, Inode, Key, NodeId};
use super::reach::handle_mount;
use super::table::{InodeTable, site_of, statx};
use crate::sys::{Errno, Fail, Result};

/// The site of inodes that were never seen, and whose number another inode has.
const NOWHERE: u32 = u32::MAX;

/// Device and mount of a root.
///
/// # Errors
/// Those of statx(2).
pub(super) fn place_of(root: &OwnedFd) -> Result<(u64, u64)> {
    Ok(site_of(&statx(root.as_fd(), c"")?))
}

impl InodeTable {
    /// Whether inodes of that key are on the root's own mount.
    pub(super) fn is_home(&self, key: Key) -> bool {
        let seat = self.seat.read();
        key.site == seat.site || seat.former.contains(&key.site)
    }

    /// Lets go of every descriptor, asking the source nothing: these are to be closed by somebody
    /// who may wait. Inodes are found again by their names.
    #[must_use]
    pub(super) fn lose_all(&self) -> Vec<Arc<OwnedFd>> {
        let handles = self.handles.write().take();
        let state = self.state.lock();
        let inodes: Vec<Arc<Inode>> = state.known.iter().cloned().collect();
        drop(state);
        let mut lost: Vec<_> = inodes.iter().filter_map(|inode| inode.lose()).collect();
        let open = self.open.fetch_sub(lost.len(), Ordering::Relaxed) - lost.len();
        self.metrics.set_descriptors(open as u64);
        lost.extend(handles);
        lost
    }

    /// The root's device and mount.
    pub(super) fn place(&self) -> (u64, u64) {
        self.seat.read().place
    }

    /// Whether there is a descriptor of the source at all.
    pub(super) fn holds_any(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// The source is back, and this is its root (`O_PATH`). `stable` says that inode numbers are
    /// what they were; else, on another mount, all count as new. Whether it is another mount.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(super) fn found_again(&self, root: OwnedFd, stable: bool) -> Result<bool> {
        let place = place_of(&root)?;
        let mut state = self.state.lock();
        let other = self.seat.read().place != place;
        if other && !stable {
            let next = state.sites.len() as u32 + 1;
            let site = *state.sites.entry(place).or_insert(next);
            let mut seat = self.seat.write();
            let before = std::mem::replace(&mut seat.site, site);
            seat.former.push(before);
        }
        drop(state);
        self.seat.write().place = place;
        *self.handles.write() = handle_mount(&root).map(Arc::new);
        if self.root.adopt(&Arc::new(root)) {
            let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
            self.metrics.set_descriptors(open as u64);
        }
        Ok(other)
    }

    /// Counts one lookup of what `name` was in `parent` when it was last seen, with that number.
    ///
    /// # Errors
    /// ESTALE when inodes come and go faster than they can be entered.
    pub(super) fn intern_unseen(
        &self,
        parent: NodeId,
        name: &OsStr,
        kind: FileType,
        ino: u64,
    ) -> Result<Arc<Inode>> {
        let home = Home::new(parent, name);
        let site = self.seat.read().site;
        let mut bytes = parent.to_le_bytes().to_vec();
        bytes.extend_from_slice(name.as_encoded_bytes());
        let own = Key {
            ino: xxh3_64(&bytes),
            site: NOWHERE,
        };
        let keys = [Key { ino, site }, own];
        // Somebody may forget what was just found: then once more.
        for key in keys.iter().cycle().take(8) {
            match self.find(*key) {
                Some(inode) if inode.kind == kind && inode.home().as_ref() == Some(&home) => {
                    if self.raise(&inode) {
                        return Ok(inode);
                    }
                }
                Some(_) => {}
                None => {
                    if let Ok(inode) = self.insert(Entry::Unseen, *key, kind, home.clone()) {
                        return Ok(inode);
                    }
                }
            }
        }
        Err(Fail::new(Errno::STALE, "enter an inode"))
    }
}
