//! Asks the kernel to forget inodes, when it knows more of them than the limit.
//!
//! On a thread of its own that answers no request and holds no lock: the kernel answers by FORGET
//! requests, which the event loops must be free to take.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use super::notifier::{Entry, Notifier};
use crate::mirror::{Crowd, Inode, InodeTable, NodeId};
use crate::observe::Metrics;
use crate::sys::{Errno, Result};

/// How many ids go into one message; the kernel takes them in hundreds anyway.
const AT_ONCE: usize = 512;

/// How long the kernel's answers may take, before somebody else is asked.
const PATIENCE: Duration = Duration::from_millis(2);

/// The longest rest while all that there is seems to be in use. As long as there come more, it is
/// ten times what a sweep takes, and at least the shortest.
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
pub(super) struct Pruner<'a> {
    notifier: &'a Notifier,
    way: Way,
}

impl<'a> Pruner<'a> {
    pub(super) fn new(notifier: &'a Notifier) -> Self {
        Self {
            notifier,
            way: Way::Ids,
        }
    }

    /// Keeps the table to its limit until the session ends.
    pub(super) fn run(mut self, table: &InodeTable, metrics: &Metrics) {
        let mut pause = PATIENCE;
        let mut most = 0;
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
            let count = table.count();
            pause = match (table.forgotten() == before, count > most) {
                (false, _) => PATIENCE,
                // Nothing went: it is in use.
                (true, true) => (2 * pause).min(rest),
                // And nothing came: to ask again and again would only keep the machine awake.
                (true, false) => (2 * pause).min(*REST.end()),
            };
            most = count;
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
                let ids: Vec<NodeId> = some.iter().map(|inode| inode.id).collect();
                if self.notifier.prune(&ids)? {
                    continue;
                }
                log::debug!("this kernel prunes no inodes; asking it by their names");
                self.way = Way::Names;
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
        self.notifier.inval_entry(parent, &name, Entry::Drop)?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
