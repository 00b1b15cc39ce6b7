//! Threads that copy the files of a tree while it is walked.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::fs::FileType;

use super::folder::{Folder, Open};
use super::job::Job;
use super::nursery::Nursery;
use crate::copy::engine::small::Small;
use crate::copy::progress::Progress;

/// What waits; each may hold a directory open on both sides.
const MOST_WAITING: usize = 16;

/// A name in a directory of the source.
pub(super) struct Entry {
    pub(super) name: CString,
    /// As the listing has it: may be unknown.
    pub(super) kind: FileType,
}

/// Files of one directory.
pub(super) struct Batch {
    pub(super) open: Arc<Open>,
    pub(super) entries: Vec<Entry>,
}

/// What one thread does in one go.
pub(super) enum Work {
    Files(Batch),
    Nursery(Nursery),
}

impl Work {
    /// The directory that is not done before this is.
    fn folder(&self) -> &Folder {
        match self {
            Self::Files(batch) => &batch.open.folder,
            Self::Nursery(nursery) => &nursery.above.folder,
        }
    }

    fn run(self, job: &Job<'_>, small: &mut Small) {
        match self {
            Self::Files(batch) => job.batch(&batch, small),
            Self::Nursery(nursery) => job.nursery(nursery, small),
        }
    }
}

/// What waits to be copied: bounded, so that a tree of any size takes the same memory.
#[derive(Default)]
pub(super) struct Pool {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    workers: usize,
    closed: bool,
}

/// Closes the pool however the walk ends: workers would wait for ever.
struct Closing<'a>(&'a Pool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    /// Runs `walk`, which calls [`Pool::submit`], on this thread with `workers` threads in all,
    /// and returns when everything submitted is done.
    pub(super) fn run<R>(
        &self,
        job: &Job<'_>,
        workers: usize,
        walk: impl FnOnce(&mut Small) -> R,
    ) -> R {
        let mut small = Small::new();
        std::thread::scope(|scope| {
            let closing = Closing(self);
            for _ in 1..workers {
                let name = std::thread::Builder::new().name("corfs-tree".into());
                match name.spawn_scoped(scope, || self.help(job)) {
                    Ok(_) => self.queue.lock().workers += 1,
                    // The walk does what there is no thread for.
                    Err(error) => log::warn!("a thread for a copy: {error}"),
                }
            }
            let answer = walk(&mut small);
            drop(closing);
            self.work(job, &mut small);
            answer
        })
    }

    /// Has somebody do it: the caller himself where nobody else is, or enough is waiting.
    pub(super) fn submit(&self, job: &Job<'_>, work: Work, small: &mut Small) {
        work.folder().enter();
        let mut queue = self.queue.lock();
        if queue.workers > 0 && queue.waiting.len() < MOST_WAITING {
            queue.waiting.push_back(work);
            drop(queue);
            self.changed.notify_one();
        } else {
            drop(queue);
            work.run(job, small);
        }
    }

    /// Until everything is done, and nothing more can come.
    fn work(&self, job: &Job<'_>, small: &mut Small) {
        while let Some(work) = self.next(job.order.progress) {
            work.run(job, small);
        }
    }

    fn help(&self, job: &Job<'_>) {
        job.order.progress.begin_work();
        self.work(job, &mut Small::new());
        job.order.progress.end_work();
    }

    fn next(&self, progress: &Progress) -> Option<Work> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(work) = queue.waiting.pop_front() {
                return Some(work);
            }
            if queue.closed {
                return None;
            }
            progress.end_work();
            self.changed.wait(&mut queue);
            progress.begin_work();
        }
    }
}
