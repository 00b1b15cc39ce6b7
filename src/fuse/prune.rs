//! Asks the kernel to forget inodes, when it knows more of them than the limit.
//!
//! On a thread of its own that answers no request and holds no lock: the kernel answers by FORGET
//! requests, which the event loops must be free to take.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use rustix::fs::FileType;

use crate::mirror::{Crowd, Inode, InodeTable};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, OrFail, Result};

/// `FUSE_NOTIFY_PRUNE` of include/uapi/linux/fuse.h (Linux 6.18), which fuser 0.18 lacks.
const NOTIFY_PRUNE: i32 = 9;

/// How many ids go into one message; the kernel takes them in hundreds anyway.
const AT_ONCE: usize = 512;

/// How long the kernel's answers may take, before somebody else is asked.
const PATIENCE: Duration = Duration::from_millis(2);

/// The shortest and the longest rest while all that there is seems to be in use; between them it
/// is ten times what a sweep takes.
const REST: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(5);

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By node ids. It drops what nobody uses, and nothing else.
    Ids,
    /// By names, before Linux 6.18. It then takes the name away from whoever uses it, so that a
    /// working directory would lose its path: only files that nobody has open are asked for.
    Names,
}

/// Who asks.
pub(super) struct Pruner {
    /// `/dev/fuse`, the session's.
    device: OwnedFd,
    notifier: Notifier,
    way: Way,
}

impl Pruner {
    pub(super) fn new(device: OwnedFd, notifier: Notifier) -> Self {
        Self {
            device,
            notifier,
            way: Way::Ids,
        }
    }

    /// Keeps the table to its limit until the session ends.
    pub(super) fn run(mut self, table: &InodeTable, metrics: &Metrics) {
        let mut pause = PATIENCE;
        while let Crowd::Surplus(_) = table.wait_crowded() {
            let (before, started) = (table.forgotten(), Instant::now());
            match self.sweep(table) {
                Ok(asked) => metrics.pruned(asked as u64),
                Err(fail) if matches!(fail.errno, Errno::NODEV | Errno::NOTCONN) => return,
                Err(fail) => log::debug!("prune: {fail}"),
            }
            let rest = (10 * started.elapsed()).clamp(*REST.start(), *REST.end());
            if table.wait_end(pause) {
                return;
            }
            // Nothing went: it is in use.
            pause = if table.forgotten() == before {
                (2 * pause).min(rest)
            } else {
                PATIENCE
            };
        }
    }

    /// Asks for as many as there are too many, and returns how many that were. Two rounds pass
    /// everything that has not been used in the meantime.
    fn sweep(&mut self, table: &InodeTable) -> Result<usize> {
        let mut asked = 0;
        for _ in 0..2 * InodeTable::sweep() {
            let surplus = table.surplus();
            if asked >= surplus {
                break;
            }
            let mut idle = table.next_idle();
            idle.truncate(surplus - asked);
            asked += idle.len();
            self.ask(&idle)?;
        }
        Ok(asked)
    }

    fn ask(&mut self, idle: &[Arc<Inode>]) -> Result<()> {
        for some in idle.chunks(AT_ONCE) {
            if self.way == Way::Ids {
                match rustix::io::write(&self.device, &message(some)) {
                    Err(Errno::INVAL) => {
                        log::debug!("this kernel prunes no inodes; asking it by their names");
                        self.way = Way::Names;
                    }
                    written => {
                        written.or_fail("FUSE_NOTIFY_PRUNE")?;
                        continue;
                    }
                }
            }
            some.iter().try_for_each(|inode| self.ask_by_name(inode))?;
        }
        Ok(())
    }

    fn ask_by_name(&self, inode: &Inode) -> Result<()> {
        let open = inode.opens.load(Ordering::Relaxed) > 0;
        if open || inode.kind == FileType::Directory {
            return Ok(());
        }
        let Some((parent, name)) = inode.last_seen() else {
            return Ok(());
        };
        let told = self.notifier.inval_entry(INodeNo(parent), &name);
        told.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Fail::new(errno, "FUSE_NOTIFY_INVAL_ENTRY")
        })
    }
}

/// `struct fuse_out_header` and `struct fuse_notify_prune_out`, then the ids.
fn message(inodes: &[Arc<Inode>]) -> Vec<u8> {
    const HEADERS: usize = 32;
    let length = HEADERS + 8 * inodes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(NOTIFY_PRUNE.to_ne_bytes());
    bytes.extend(0u64.to_ne_bytes());
    bytes.extend((inodes.len() as u32).to_ne_bytes());
    bytes.extend([0; 12]);
    for inode in inodes {
        bytes.extend(inode.id.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
