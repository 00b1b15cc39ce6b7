//! The way of a block: read from the source once, handed to all who want it, then stored.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::sys::{Errno, Fail, Result};

use super::budget::Room;
use super::entry::{Entry, Ready};
use super::flight::{Block, Flight};
use super::identity::Stamp;
use super::ledger::{OTHER, block_cost};
use super::options::SourceClock;
use super::store::Store;
use super::trust::Age;

/// Tells whether the source still has the version that was read.
pub(super) type Same = Box<dyn FnOnce() -> Result<bool> + Send>;

/// A block that is to be stored.
pub(super) struct Job {
    entry: Arc<Entry>,
    number: u64,
    block: Arc<Block>,
    /// Whether the version was old enough to be believed when the fill began.
    settled: bool,
    same: Same,
    /// Ends the flight when the job is over, whatever comes.
    _landing: Landing,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({})", self.number)
    }
}

/// Takes a flight off the list when it is over; who still waits is told that it failed.
struct Landing {
    entry: Arc<Entry>,
    number: u64,
    flight: Arc<Flight>,
}

impl Drop for Landing {
    /// Takes a leaf's lock, and fails never.
    fn drop(&mut self) {
        self.entry.flights.lock().remove(&self.number);
        if !self.flight.has_landed() {
            let fail = Fail::new(Errno::IO, "fill").because("the thread that read it is gone");
            self.flight.land(Err(fail));
        }
    }
}

/// [`Entry::fill`].
pub(super) fn fill(
    entry: &Arc<Entry>,
    number: u64,
    deadline: Instant,
    read: impl FnOnce(&mut [u8]) -> Result<usize>,
    same: Same,
) -> Result<Arc<Block>> {
    if number >= entry.blocks() {
        return Err(Fail::new(Errno::INVAL, "fill"));
    }
    let (flight, mine) = {
        let mut flights = entry.flights.lock();
        match flights.get(&number) {
            Some(flight) => (Arc::clone(flight), false),
            None => {
                let flight = Arc::new(Flight::default());
                flights.insert(number, Arc::clone(&flight));
                (flight, true)
            }
        }
    };
    if !mine {
        entry.store.metrics.cache_waited();
        return flight.wait(deadline);
    }
    let landing = Landing {
        entry: Arc::clone(entry),
        number,
        flight: Arc::clone(&flight),
    };
    // Another may have stored it since the caller looked.
    if entry.state(number) != Ready::Missing
        && let Some(block) = entry.verified(number, deadline)
    {
        flight.land(Ok(Arc::clone(&block)));
        return Ok(block);
    }
    let settled = is_settled(entry);
    let outcome = fetch(entry, number, deadline, read);
    flight.land(outcome.clone());
    let block = outcome?;
    let range = entry.range_of(number);
    if block.bytes().len() as u64 == range.end - range.start {
        entry.store.store_later(Job {
            entry: Arc::clone(entry),
            number,
            block: Arc::clone(&block),
            settled,
            same,
            _landing: landing,
        });
    }
    Ok(block)
}

fn fetch(
    entry: &Entry,
    number: u64,
    deadline: Instant,
    read: impl FnOnce(&mut [u8]) -> Result<usize>,
) -> Result<Arc<Block>> {
    let range = entry.range_of(number);
    let len = (range.end - range.start) as usize;
    let Some(mut buffer) = entry.store.buffers.get(len, deadline) else {
        return Err(Fail::new(Errno::BUSY, "fill").because("too many blocks are on their way"));
    };
    let got = read(buffer.bytes_mut())?.min(len);
    entry.store.metrics.cache_filled(got as u64);
    Ok(Arc::new(Block::new(range.start, buffer, got)))
}

/// Nanoseconds since 1970.
fn nanos(stamp: Stamp) -> i128 {
    i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos)
}

/// Whether a fill that begins now can be believed.
fn is_settled(entry: &Entry) -> bool {
    let identity = entry.identity();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let options = &entry.store.options;
    let age = Age {
        changed: nanos(identity.mtime.max(identity.ctime)),
        now: now.unwrap_or(Duration::ZERO).as_nanos() as i128,
        known: entry.known_since.elapsed(),
        ours: options.source.clock == SourceClock::Ours,
    };
    age.is_settled(options.racy)
}

impl Job {
    /// Stores the block if the source still has its version and there is room. Nobody waits for
    /// it, and nobody hears of its failure but the log and the counters.
    fn run(self) {
        let store = &self.entry.store;
        if !self.settled {
            store.metrics.cache_provisional();
            return;
        }
        match (self.same)() {
            Ok(true) => {}
            Ok(false) => return self.entry.abandon(),
            // Whether it changed is not known: then it is not stored.
            Err(_) => return,
        }
        if self.entry.is_abandoned() {
            return;
        }
        match store_block(&self.entry, self.number, self.block.bytes()) {
            Ok(true) => store.metrics.cache_stored(self.block.bytes().len() as u64),
            Ok(false) => store.metrics.cache_unstored(),
            Err(fail) => store.trouble(&fail),
        }
    }
}

/// False when there is no room.
fn store_block(entry: &Entry, number: u64, bytes: &[u8]) -> Result<bool> {
    let store = &entry.store;
    let Some(budget) = &store.budget else {
        return Ok(false);
    };
    let cost = block_cost(bytes.len() as u64);
    if store.reserve(cost, false)? != Room::Reserved {
        return Ok(false);
    }
    let fan = entry.name.fan();
    let inside = match budget.enter(fan) {
        Ok(inside) => inside,
        Err(fail) => {
            budget.release(cost)?;
            return Err(fail);
        }
    };
    if !store.shelf.still_has(entry.name, entry.data().as_fd()) {
        budget.release(cost)?;
        return Ok(false);
    }
    let doubts = store.doubts();
    let mut began = false;
    let written = entry.alone(number, || {
        if entry.state(number) == Ready::All {
            return Ok(());
        }
        began = true;
        entry.write_block(number, bytes)
    });
    // Given up meanwhile, it lies among the orphans, which were counted before this was written.
    if began && !store.shelf.still_has(entry.name, entry.data().as_fd()) {
        budget.owe(OTHER, 0);
    }
    // What was begun may be on disk in part: counted as if it were whole.
    budget.commit(fan, cost, if began { cost } else { 0 })?;
    drop(inside);
    written?;
    entry.set_trusted(number, doubts);
    store.wrote();
    Ok(true)
}

/// Blocks that wait to be stored.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// A leaf.
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// How many jobs may wait; none before there are threads to take them.
    room: usize,
    busy: usize,
    closed: bool,
}

impl Queue {
    /// From now on up to `room` jobs wait.
    pub(super) fn open(&self, room: usize) {
        self.inner.lock().room = room;
    }

    /// Hands a job to a thread of the store, or does it at once when too many wait.
    fn put(&self, job: Job) {
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            drop(job);
        } else if inner.jobs.len() < inner.room {
            inner.jobs.push_back(job);
            drop(inner);
            self.changed.notify_one();
        } else {
            inner.busy += 1;
            drop(inner);
            self.run(job);
        }
    }

    /// Of a job that was counted as busy.
    fn run(&self, job: Job) {
        job.run();
        self.inner.lock().busy -= 1;
        self.changed.notify_all();
    }

    /// Does jobs until the queue is closed and empty: a thread's work.
    pub(super) fn work(&self) {
        let mut inner = self.inner.lock();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                inner.busy += 1;
                drop(inner);
                self.run(job);
                inner = self.inner.lock();
            } else if inner.closed {
                return;
            } else {
                self.changed.wait(&mut inner);
            }
        }
    }

    /// Takes no more jobs, and waits for those that are there, for at most `patience`: a source
    /// that hangs may keep one.
    pub(super) fn close(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner.lock();
        inner.closed = true;
        self.changed.notify_all();
        while inner.busy > 0 || (inner.room > 0 && !inner.jobs.is_empty()) {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Waits until nothing waits and nothing is being stored; false after `patience`.
    pub(super) fn settle(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner.lock();
        while inner.busy > 0 || !inner.jobs.is_empty() {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Store {
    fn store_later(&self, job: Job) {
        self.queue.put(job);
    }
}
