//! Blocks that are fetched ahead of a sequential reader.
//!
//! The way ahead doubles with every request that goes on where the last one ended, from one block
//! to what is allowed, and is nothing again after a seek: what was asked for ahead and is not yet
//! under way is dropped then.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::Mirror;
use super::cached::PATIENCE;
use super::file::OpenFile;
use crate::cache::Ready;

/// The most threads that fetch ahead: a source answers so many requests at once.
const MOST: usize = 8;
/// The most blocks that wait for one of them.
const LONGEST: usize = 256;

/// How a reader goes through its file. All relaxed: a guess that is late costs a block.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// How far ahead of the reader is fetched now, in bytes.
    ahead: AtomicU64,
    /// The end of what was asked for ahead.
    asked: AtomicU64,
    /// Counts the seeks: what was asked for before the last is not wanted any more.
    seeks: AtomicU64,
}

impl Course {
    /// Takes note of a request; returns the range to be fetched ahead, and under which count of
    /// seeks.
    fn note(
        &self,
        range: &Range<u64>,
        sequential: bool,
        block: u64,
        most: u64,
    ) -> (Range<u64>, u64) {
        if !sequential {
            self.ahead.store(0, Ordering::Relaxed);
            self.asked.store(range.end, Ordering::Relaxed);
            let seeks = self.seeks.fetch_add(1, Ordering::Relaxed) + 1;
            return (range.end..range.end, seeks);
        }
        let before = self.ahead.load(Ordering::Relaxed);
        let ahead = (before * 2).max(block).min(most);
        self.ahead.store(ahead, Ordering::Relaxed);
        let end = range.end + ahead;
        let start = self.asked.fetch_max(end, Ordering::Relaxed).max(range.end);
        (start..end.max(start), self.seeks.load(Ordering::Relaxed))
    }

    /// The reader is gone.
    pub(super) fn end(&self) {
        self.seeks.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Job {
    file: Weak<OpenFile>,
    block: u64,
    seeks: u64,
}

/// The threads, and what they are to do.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    shared: Arc<Shared>,
    /// A leaf.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    asked: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    /// Whose blocks they are; set once.
    mirror: Weak<Mirror>,
    ended: bool,
}

impl Prefetch {
    /// Tells whose files these are.
    pub(super) fn serve(&self, mirror: &Arc<Mirror>) {
        self.shared.queue.lock().mirror = Arc::downgrade(mirror);
    }

    /// A reader asked for `range`; asks for what comes behind it when it reads in sequence, `most`
    /// bytes at most.
    pub(super) fn note(
        &self,
        file: &Arc<OpenFile>,
        range: &Range<u64>,
        sequential: bool,
        most: u64,
    ) {
        let Some(reader) = &file.reader else { return };
        let entry = &reader.entry;
        if most == 0 {
            return;
        }
        let size = entry.block_size();
        let (ahead, seeks) = reader.course.note(range, sequential, size, most);
        let blocks = ahead.start.div_ceil(size)..ahead.end.min(entry.len()).div_ceil(size);
        let mut missing = blocks
            .filter(|block| entry.ready(block * size..(block + 1) * size) == Ready::Missing)
            .peekable();
        if missing.peek().is_none() {
            return;
        }
        let mut queue = self.shared.queue.lock();
        for block in missing {
            if queue.ended || queue.jobs.len() >= LONGEST {
                break;
            }
            queue.jobs.push_back(Job {
                file: Arc::downgrade(file),
                block,
                seeks,
            });
        }
        let more = queue.jobs.len() > queue.idle;
        drop(queue);
        self.shared.asked.notify_one();
        if more {
            self.start_one();
        }
    }

    fn start_one(&self) {
        let mut threads = self.threads.lock();
        if threads.len() >= MOST {
            self.shared.asked.notify_all();
            return;
        }
        let shared = self.shared.clone();
        let work = move || shared.work();
        // Without a thread nothing is fetched ahead.
        if let Ok(thread) = Builder::new().name("prefetch".into()).spawn(work) {
            threads.push(thread);
        }
    }

    /// Ends the threads; those within a call of a source that hangs are left to it.
    pub(super) fn end(&self) {
        let mut queue = self.shared.queue.lock();
        queue.ended = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.asked.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((job, mirror)) = self.next() {
            let Some(file) = job.file.upgrade() else {
                continue;
            };
            let Some(reader) = &file.reader else { continue };
            let entry = &reader.entry;
            if reader.course.seeks.load(Ordering::Relaxed) != job.seeks || entry.is_abandoned() {
                continue;
            }
            let start = job.block * entry.block_size();
            let range = start..(start + entry.block_size()).min(entry.len());
            if entry.ready(range) == Ready::Missing {
                // Whoever needs the block is told of an error.
                let _ = mirror.fetch(&file, entry, job.block, Instant::now() + PATIENCE);
            }
        }
    }

    fn next(&self) -> Option<(Job, Arc<Mirror>)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.ended {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                let mirror = queue.mirror.upgrade()?;
                return Some((job, mirror));
            }
            queue.idle += 1;
            self.asked.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 1 << 20;

    #[test]
    fn the_way_ahead_doubles_up_to_its_limit() {
        let course = Course::default();
        let mut asked = Vec::new();
        let mut at = 0;
        for _ in 0..6 {
            let (ahead, _) = course.note(&(at..at + BLOCK), true, BLOCK, 8 * BLOCK);
            asked.push((ahead.start / BLOCK, ahead.end / BLOCK));
            at += BLOCK;
        }
        assert_eq!(asked, [(1, 2), (2, 4), (4, 7), (7, 12), (12, 13), (13, 14)]);
    }

    #[test]
    fn a_seek_ends_what_was_asked_for_and_begins_anew() {
        let course = Course::default();
        let (_, before) = course.note(&(0..BLOCK), true, BLOCK, 8 * BLOCK);
        let (ahead, after) = course.note(&(90 * BLOCK..91 * BLOCK), false, BLOCK, 8 * BLOCK);
        assert!(ahead.is_empty());
        assert_ne!(before, after);
        let (ahead, _) = course.note(&(91 * BLOCK..92 * BLOCK), true, BLOCK, 8 * BLOCK);
        assert_eq!(ahead, 92 * BLOCK..93 * BLOCK);
    }
}
