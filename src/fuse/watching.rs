//! The thread that tells the kernel what has changed behind the mirror.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::event::EventfdFlags;

use super::notifier::{Entry, Extent, Notifier};
use super::shared::Shared;
use crate::copy::{Change, WriteBack};
use crate::mirror::{Mirror, NodeId, Stale};
use crate::observe::{Invalidated, Metrics};
use crate::sys::{Errno, OrFail, Result};

/// Ends [`watch`].
#[derive(Debug)]
pub(super) struct Stop(OwnedFd);

impl Stop {
    pub(super) fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        rustix::event::eventfd(0, flags)
            .map(Self)
            .or_fail("eventfd")
    }

    /// From now on there is nothing more to tell.
    pub(super) fn set(&self) {
        // EAGAIN: it is set as often as it can be.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Tells the kernel of changes until `stop` is set. Returns at once when nothing is watched.
pub(super) fn watch(shared: &Shared, stop: &Stop) {
    loop {
        match shared.mirror.await_changes(&stop.0) {
            Ok(true) => {}
            Ok(false) => return,
            Err(fail) => return log::error!("watching the source: {fail}"),
        }
        let stale = shared.mirror.changes();
        let Some(notifier) = shared.notifier() else {
            continue;
        };
        let teller = Teller {
            mirror: &shared.mirror,
            metrics: &shared.metrics,
            notifier,
        };
        for one in &stale {
            teller.tell(one);
        }
    }
}

/// Has the kernel write back what it keeps of files that are open for writing. It does so to drop
/// pages (mm/truncate.c, invalidate_inode_pages2_range), and there is no other way to ask for it.
/// Not to be called from a request's thread: what is written comes to those.
pub(super) fn write_back(mirror: &Arc<Mirror>, notifier: &Arc<OnceLock<Notifier>>) -> WriteBack {
    let (mirror, notifier) = (Arc::downgrade(mirror), notifier.clone());
    Box::new(move || {
        if let (Some(notifier), Some(mirror)) = (notifier.get(), mirror.upgrade()) {
            for id in mirror.open_for_writing() {
                logged(notifier.inval_inode(id, Extent::All));
            }
        }
    })
}

/// Tells the kernel what is stale. Not from a request's thread, and with no lock held.
pub(super) struct Teller<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) metrics: &'a Metrics,
    pub(super) notifier: &'a Notifier,
}

impl Teller<'_> {
    fn tell(&self, stale: &Stale) {
        match stale {
            Stale::Name {
                parent,
                name,
                wrong,
            } => {
                let how = if *wrong { Entry::Drop } else { Entry::Expire };
                self.metrics.invalidated(Invalidated::Name);
                logged(self.notifier.inval_entry(*parent, name, how));
                // The listing that the kernel may have kept: of a name that it does not know it
                // takes no notice, and two changes may have one mtime.
                logged(self.notifier.inval_inode(*parent, Extent::All));
            }
            Stale::Data(id) => {
                self.metrics.invalidated(Invalidated::Data);
                self.mirror.changed_behind(Some(*id));
                self.inode(*id, Extent::All);
            }
            Stale::Attributes(id) => {
                self.metrics.invalidated(Invalidated::Attributes);
                self.inode(*id, Extent::Attributes);
            }
            Stale::Everything => {
                log::warn!(
                    "changes of the source were lost (more than fs.fanotify.max_queued_events or \
                     fs.inotify.max_queued_events waited, or a watch ended): dropping all that the \
                     kernel cached"
                );
                self.everything();
            }
        }
    }

    /// What a copy has changed. The kernel knows nothing of it, and what watches the source leaves
    /// out what this process does.
    pub(super) fn copied(&self, change: Change<'_>) {
        match change {
            Change::Name(directory, name) => {
                let Ok(stat) = rustix::fs::fstat(directory) else {
                    return;
                };
                for directory in self.known((stat.st_dev, stat.st_ino)) {
                    logged(self.notifier.inval_entry(directory, name, Entry::Drop));
                    logged(self.notifier.inval_inode(directory, Extent::Attributes));
                }
            }
            Change::File(file, bytes) => {
                let extent = if bytes {
                    Extent::All
                } else {
                    Extent::Attributes
                };
                for file in self.known(file) {
                    self.mirror.copied_over(file);
                    self.inode(file, extent);
                }
            }
        }
    }

    /// What the kernel calls a file, by each mount within the source by which it knows it.
    fn known(&self, (device, ino): (u64, u64)) -> impl Iterator<Item = NodeId> {
        let twins = self.mirror.table().twins(device, ino);
        twins.into_iter().map(|inode| inode.id)
    }

    /// An inode that the kernel does not have it may be about to make of an answer that is older
    /// than the change. It makes it under the lock of the directory in which it looked: to expire
    /// that entry waits for it.
    fn inode(&self, id: NodeId, extent: Extent) {
        if logged(self.notifier.inval_inode(id, extent)) {
            return;
        }
        if let Some((parent, name)) = self.last_seen(id) {
            logged(self.notifier.inval_entry(parent, &name, Entry::Expire));
            logged(self.notifier.inval_inode(id, extent));
        }
    }

    fn last_seen(&self, id: NodeId) -> Option<(NodeId, OsString)> {
        self.mirror.table().last_seen(id)
    }

    /// Drops all that the kernel caches: names, attributes, bytes.
    pub(super) fn everything(&self) {
        self.metrics.invalidated(Invalidated::Everything);
        self.mirror.changed_behind(None);
        let all_names = logged(self.notifier.drop_names());
        for id in self.mirror.table().ids() {
            if !all_names && let Some((parent, name)) = self.last_seen(id) {
                logged(self.notifier.inval_entry(parent, &name, Entry::Expire));
            }
            self.inode(id, Extent::All);
        }
    }
}

/// Whether the kernel knew what it was told of.
fn logged(told: Result<bool>) -> bool {
    match told {
        Ok(known) => known,
        // Unmounted: there is nothing left to forget.
        Err(fail) if matches!(fail.errno, Errno::NOTCONN | Errno::NODEV) => true,
        Err(fail) => {
            log::debug!("{fail}");
            true
        }
    }
}
