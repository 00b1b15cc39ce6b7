//! FUSE passthrough: the files that the kernel reads, writes and maps by itself.
//!
//! The kernel allows an inode one way at a time (fs/fuse/iomode.c): while it is open by
//! passthrough, every further open must name the same backing file; while it is open otherwise, a
//! passthrough open fails. So the way is chosen at the first open and stays until the last release.
//! A count here falls only when the kernel's own has fallen: RELEASE is sent after it let go.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, InitFlags, KernelConfig};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::mirror::{NodeId, Passthrough as Asked};
use crate::observe::{Metrics, OpenMode, PassthroughState};
use crate::sys::process::may_administer;

/// Magic numbers (statfs(2)) of the file systems that may stand on another one themselves.
const STACKED: [i64; 3] = [
    0x794c_7630, // overlayfs
    0x6573_5546, // FUSE, which may hand files to another one in this same way
    0xf15f,      // ecryptfs
];

/// Which open files the kernel serves by itself.
#[derive(Debug)]
pub(super) struct Passthrough {
    /// The kernel agreed to it: from then on opens are counted.
    agreed: AtomicBool,
    /// Taken back at the first refusal that holds for every file.
    on: AtomicBool,
    /// A leaf lock, held across the ioctl that makes a backing id: that one only looks the
    /// descriptor up and takes a number, it waits for nobody.
    inodes: Mutex<HashMap<NodeId, Way>>,
    /// What such an open is counted as: of the source's files, or of the cache's.
    mode: OpenMode,
    metrics: Arc<Metrics>,
}

/// What came of an open.
#[derive(Debug)]
pub(super) enum Choice {
    /// The kernel serves it.
    Kernel(Arc<BackingId>),
    /// We serve it.
    Ourselves,
    /// It can't be served the way that the kernel is held to: it reads one version of the file in
    /// the cache, and this open writes, or is of another version. Nothing was counted.
    Refused,
}

/// How an open inode is served.
#[derive(Debug)]
enum Way {
    /// By the kernel, from this backing file; `writers` of its opens may store.
    Kernel {
        backing: Arc<BackingId>,
        /// The file that it was made of.
        file: Arc<OwnedFd>,
        opens: usize,
        writers: usize,
    },
    /// By us.
    Ourselves { opens: usize },
}

impl Passthrough {
    pub(super) fn new(asked: Asked, metrics: Arc<Metrics>) -> Self {
        metrics.set_passthrough(PassthroughState::NotAsked);
        Self {
            agreed: AtomicBool::new(false),
            on: AtomicBool::new(false),
            inodes: Mutex::default(),
            mode: match asked {
                Asked::Cached => OpenMode::Whole,
                Asked::Never | Asked::Always => OpenMode::Passthrough,
            },
            metrics,
        }
    }

    /// Asks the kernel for it, if the user did, for files of the file system of `source`; without
    /// success everything is served by us.
    pub(super) fn negotiate(
        &self,
        asked: Asked,
        source: BorrowedFd<'_>,
        config: &mut KernelConfig,
    ) {
        if asked == Asked::Never {
            return;
        }
        if !may_administer() {
            return self.off(PassthroughState::NotPrivileged);
        }
        if config
            .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
            .is_err()
        {
            return self.off(PassthroughState::NotSupported);
        }
        // One level leaves room for another file system on top of this one (the kernel allows
        // two in all); a source that is itself stacked takes both.
        let stacked = rustix::fs::fstatfs(source).is_ok_and(|s| STACKED.contains(&s.f_type));
        let _ = config.set_max_stack_depth(if stacked { 2 } else { 1 });
        self.metrics.set_passthrough(PassthroughState::On);
        self.agreed.store(true, Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
    }

    fn off(&self, state: PassthroughState) {
        self.on.store(false, Ordering::Relaxed);
        self.metrics.set_passthrough(state);
        log::info!(
            "passthrough: {}; files are served by mapped windows",
            state.label()
        );
    }

    /// Counts an open of an inode and chooses its way. `whole` is the cache's file of the version
    /// that is opened, where it has all of it; `register` makes a backing id of the open file.
    ///
    /// Under one lock: a writer that fell between the two would write to the cache.
    pub(super) fn open(
        &self,
        id: NodeId,
        writes: bool,
        whole: Option<&Arc<OwnedFd>>,
        register: impl FnOnce() -> io::Result<(BackingId, Arc<OwnedFd>)>,
    ) -> Choice {
        if !self.agreed.load(Ordering::Relaxed) {
            return Choice::Ourselves;
        }
        let mut inodes = self.inodes.lock();
        if self.mode == OpenMode::Whole
            && let Some(Way::Kernel { file, .. }) = inodes.get(&id)
            && (writes || whole.is_none_or(|whole| !Arc::ptr_eq(whole, file)))
        {
            return Choice::Refused;
        }
        let way = match inodes.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.choose(register)),
        };
        match way {
            Way::Kernel {
                backing,
                opens,
                writers,
                ..
            } => {
                *opens += 1;
                *writers += usize::from(writes);
                self.metrics.opened(self.mode);
                Choice::Kernel(backing.clone())
            }
            Way::Ourselves { opens } => {
                *opens += 1;
                Choice::Ourselves
            }
        }
    }

    fn choose(&self, register: impl FnOnce() -> io::Result<(BackingId, Arc<OwnedFd>)>) -> Way {
        if self.on.load(Ordering::Relaxed) {
            match register() {
                Ok((backing, file)) => {
                    return Way::Kernel {
                        backing: Arc::new(backing),
                        file,
                        opens: 0,
                        writers: 0,
                    };
                }
                Err(error) => self.refused(&error),
            }
        }
        Way::Ourselves { opens: 0 }
    }

    fn refused(&self, error: &io::Error) {
        match Errno::from_io_error(error) {
            // Not so early: its capability is of a user namespace of its own.
            Some(Errno::PERM) => self.off(PassthroughState::NotPrivileged),
            Some(Errno::NOTTY | Errno::NOSYS) => self.off(PassthroughState::NotSupported),
            // Of this file only: its file system is stacked too high (ELOOP), say.
            _ => log::debug!("passthrough of a file refused: {error}"),
        }
    }

    /// Takes back one open; `writes` as it was at the open.
    pub(super) fn release(&self, id: NodeId, writes: bool) {
        if !self.agreed.load(Ordering::Relaxed) {
            return;
        }
        let mut inodes = self.inodes.lock();
        let left = match inodes.get_mut(&id) {
            None => return,
            Some(Way::Ourselves { opens }) => {
                *opens -= 1;
                *opens
            }
            Some(Way::Kernel { opens, writers, .. }) => {
                *opens -= 1;
                *writers -= usize::from(writes);
                *opens
            }
        };
        let last = (left == 0).then(|| inodes.remove(&id));
        drop(inodes);
        // A backing file is closed by an ioctl, and may be the last hold on a deleted file.
        drop(last);
    }

    /// Whether stores may happen that we are not told of: what we know of such an inode's
    /// attributes may be old the moment after.
    pub(super) fn stores_unseen(&self, id: NodeId) -> bool {
        self.agreed.load(Ordering::Relaxed)
            && matches!(self.inodes.lock().get(&id), Some(Way::Kernel { writers, .. }) if *writers > 0)
    }
}
