//! All that there is to copy, counted ahead, so that people can be told when it will be done.
//!
//! Only where a copy takes a while, and on a thread of its own: what is done soon pays nothing. It
//! reads names and attributes and no more. What it can't look at it leaves out, for the copy itself
//! tells of that.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use super::folder::{LIST, id};
use super::job::Job;
use super::pool::Entry;
use super::walk::{LISTING, list};
use crate::copy::options::{CopyOptions, Sparse};
use crate::copy::resolve::{file_type, proc_name};

/// How long a copy has taken before anybody wants to know how long it will take.
const AFTER: Duration = Duration::from_secs(1);
/// Directories that are open at once; of a tree that is deeper nothing is foretold.
const MOST_OPEN: usize = 64;

/// Bytes of data that a copy of this file is going to count.
pub(super) fn bytes(stat: &Stat, options: &CopyOptions) -> u64 {
    if file_type(stat) != FileType::RegularFile {
        return 0;
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match u64::try_from(stat.st_blocks).unwrap_or(0) {
        // Kept within the inode, or not yet written to the disk.
        0 => size,
        _ if options.sparse == Sparse::Never => size,
        blocks => size.min(blocks.saturating_mul(512)),
    }
}

/// Whether the copy is over: then nobody wants to know.
#[derive(Default)]
pub(super) struct Census {
    /// A leaf in the order of locks.
    over: Mutex<bool>,
    changed: Condvar,
}

/// Ends a census when it is dropped.
pub(super) struct Ending<'a>(&'a Census);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        *self.0.over.lock() = true;
        self.0.changed.notify_all();
    }
}

impl Census {
    /// Begins to count, after a while. Without a thread for it, nobody is told.
    pub(super) fn begin<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        job: &'scope Job<'_>,
        sources: &'scope [Vec<u8>],
    ) -> Ending<'scope> {
        let thread = Builder::new().name("corfs-census".into());
        if let Err(error) = thread.spawn_scoped(scope, || self.run(job, sources)) {
            log::debug!("a thread to count what is copied: {error}");
        }
        Ending(self)
    }

    fn run(&self, job: &Job<'_>, sources: &[Vec<u8>]) {
        let start = Instant::now();
        let mut over = self.over.lock();
        while !*over {
            if self
                .changed
                .wait_until(&mut over, start + AFTER)
                .timed_out()
            {
                break;
            }
        }
        drop(over);
        let mut count = Count {
            census: self,
            job,
            bytes: 0,
            files: 0,
            buffer: vec![MaybeUninit::uninit(); LISTING],
        };
        if sources.iter().all(|source| count.source(source).is_some()) {
            job.order.progress.foresee(count.bytes, count.files);
        }
    }
}

/// What was counted so far.
struct Count<'a> {
    census: &'a Census,
    job: &'a Job<'a>,
    bytes: u64,
    files: u64,
    buffer: Vec<MaybeUninit<u8>>,
}

struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    entries: VecDeque<(Entry, u64)>,
}

impl Count<'_> {
    /// `None` when it can't be told, or need not.
    fn source(&mut self, name: &[u8]) -> Option<()> {
        let recursive = self.job.order.options.recursive;
        let Ok(found) = self.job.names.source(name, !recursive) else {
            return Some(());
        };
        self.add(&found.stat);
        let flags = LIST - OFlags::NOFOLLOW;
        match openat(CWD, proc_name(found.file.as_fd()), flags, Mode::empty()) {
            Ok(top) if recursive => self.tree(top),
            _ => Some(()),
        }
    }

    #[allow(
        clippy::unnecessary_cast,
        reason = "the width differs between machines"
    )]
    fn add(&mut self, stat: &Stat) {
        let options = self.job.order.options;
        self.files += 1;
        // Each name of a file brings its share: to remember them would take memory.
        let names = match options.preserve.links {
            true => (stat.st_nlink as u64).max(1),
            false => 1,
        };
        self.bytes += bytes(stat, options) / names;
    }

    fn tree(&mut self, top: OwnedFd) -> Option<()> {
        let Ok(stat) = fstat(&top) else {
            return Some(());
        };
        let device = id(&stat).0;
        let mut stack = vec![Level::new(Vec::new(), top)];
        while let Some(level) = stack.last_mut() {
            if *self.census.over.lock() || self.job.order.progress.is_cancelled() {
                return None;
            }
            let Some(entry) = level.next(&mut self.buffer) else {
                stack.pop();
                continue;
            };
            if let Some(below) = self.entry(&stack, &entry, device) {
                stack.push(below);
            }
            if stack.len() > MOST_OPEN {
                return None;
            }
        }
        Some(())
    }

    /// Counts a name; the directory that it is, if that is to be entered.
    fn entry(&mut self, stack: &[Level], entry: &Entry, device: u64) -> Option<Level> {
        let above = &stack.last()?.directory;
        let stat = statat(above, &entry.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_directory = file_type(&stat) == FileType::Directory;
        let name = entry.name.to_bytes();
        let path = || {
            let names = stack[1..].iter().map(|level| level.name.as_slice());
            names.chain([name]).collect::<Vec<_>>().join(&b'/').into()
        };
        if self.job.exclude.leaves_out(name, is_directory, path) {
            return None;
        }
        self.add(&stat);
        let is_entered =
            is_directory && (!self.job.order.options.one_file_system || id(&stat).0 == device);
        let directory = is_entered
            .then(|| openat(above, &entry.name, LIST, Mode::empty()).ok())
            .flatten()?;
        Some(Level::new(name.to_vec(), directory))
    }
}

impl Level {
    fn new(name: Vec<u8>, directory: OwnedFd) -> Self {
        Self {
            name,
            directory,
            entries: VecDeque::new(),
        }
    }

    fn next(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Option<Entry> {
        if self.entries.is_empty() {
            list(self.directory.as_fd(), buffer, &mut self.entries).ok()?;
        }
        self.entries.pop_front().map(|(entry, _)| entry)
    }
}
