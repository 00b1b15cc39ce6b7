//! How far a copy is, for those who look on, and the ways to hold, slow or stop it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::leftovers::Swept;
use super::options::Method;
use crate::sys::{Errno, Fail, Result};

/// Files of a tree whose errors are kept in words; all are counted.
const MOST_FAILURES: usize = 100;
/// All that a copy says that was told to stop, unless it has left something behind.
pub(super) const CANCELLED: &str = "cancelled";
/// How long one who waits sleeps before he looks whether he is cancelled.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// What became of one file of a tree.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its path, as reached from the source that was named.
    pub path: Box<[u8]>,
    /// Why.
    pub fail: Fail,
}

/// Shared by all who work at one job, and by those who look at it. Counters are of this attempt.
#[derive(Debug, Default)]
pub struct Progress {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
    files_total: AtomicU64,
    failed: AtomicU64,
    /// What there is in all, counted ahead of the copy; 0 as long as nobody has.
    bytes_foreseen: AtomicU64,
    files_foreseen: AtomicU64,
    /// Bytes that stay where they are, though they were or will be foreseen.
    forgone: AtomicU64,
    /// The job is one regular file: what is found of it is all.
    one_file: AtomicBool,
    /// Everything is counted: the totals are final, or as good as that.
    totals_known: AtomicBool,
    /// Index in [`Method::ALL`] and one; 0 as long as no byte has moved.
    method: AtomicU8,
    workers: AtomicU16,
    /// Threads of the job that move bytes at this moment, or walk.
    at_work: AtomicU16,
    cancelled: AtomicBool,
    /// Moves as long as system calls come back, or the job waits of its own will.
    pulse: AtomicU64,
    /// Threads in a call that may take as long as it likes.
    at_length: AtomicU16,
    /// A leaf in the order of locks, as is `pace`.
    failures: Mutex<VecDeque<Failure>>,
    pace: Mutex<Pace>,
    changed: Condvar,
    /// Directories in which this job has looked for leftovers.
    pub(super) swept: Swept,
}

#[derive(Debug, Default)]
struct Pace {
    paused: bool,
    limit: Option<NonZeroU64>,
    /// When the bytes spent so far are paid for.
    free_at: Option<Instant>,
}

impl Progress {
    /// Nothing done; at most `limit` bytes a second.
    pub fn new(limit: Option<NonZeroU64>) -> Self {
        let progress = Self::default();
        progress.pace.lock().limit = limit;
        progress
    }

    /// Bytes of data copied; holes and shared extents count as done when they are.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Bytes of data that are to be copied: found so far, or counted ahead.
    pub fn bytes_total(&self) -> u64 {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let foreseen = read(&self.bytes_foreseen).saturating_sub(read(&self.forgone));
        read(&self.bytes_total).max(foreseen)
    }

    /// Files (directories, links and special files too) that are done, those that stay as they are
    /// by `no_clobber` or `update` among them; and all that were found so far, or counted ahead.
    pub fn files(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let total = read(&self.files_total).max(read(&self.files_foreseen));
        (read(&self.files_done), total)
    }

    /// Whether the totals are final, or counted ahead: of a tree that changes meanwhile, or has
    /// hard links, they may be off by a little until it is done.
    pub fn totals_known(&self) -> bool {
        self.totals_known.load(Ordering::Relaxed)
    }

    /// The method that moves, or moved, bytes last.
    pub fn method(&self) -> Option<Method> {
        let number = self.method.load(Ordering::Relaxed);
        Method::ALL
            .get(usize::from(number).wrapping_sub(1))
            .copied()
    }

    /// Threads at work.
    pub fn workers(&self) -> u16 {
        self.workers.load(Ordering::Relaxed)
    }

    /// How many files failed, and the first hundred of them.
    pub fn failures(&self) -> (u64, Vec<Failure>) {
        let kept = self.failures.lock().iter().cloned().collect();
        (self.failed.load(Ordering::Relaxed), kept)
    }

    pub(super) fn add_bytes_done(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what an attempt that is given up had counted.
    pub(super) fn take_back(&self, done: u64, total: u64) {
        self.bytes_done.fetch_sub(done, Ordering::Relaxed);
        self.bytes_total.fetch_sub(total, Ordering::Relaxed);
    }

    pub(super) fn add_bytes_total(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_files_total(&self, files: u64) {
        self.files_total.fetch_add(files, Ordering::Relaxed);
    }

    pub(super) fn file_done(&self) {
        self.files_are_done(1);
    }

    pub(super) fn files_are_done(&self, files: u64) {
        self.files_done.fetch_add(files, Ordering::Relaxed);
    }

    /// All is found: the totals are what was found.
    pub(super) fn set_totals_known(&self) {
        self.bytes_foreseen.store(0, Ordering::Relaxed);
        self.files_foreseen.store(0, Ordering::Relaxed);
        self.totals_known.store(true, Ordering::Relaxed);
    }

    /// All was counted ahead of the copy: bytes and files.
    pub(super) fn foresee(&self, bytes: u64, files: u64) {
        self.bytes_foreseen.store(bytes, Ordering::Relaxed);
        self.files_foreseen.store(files, Ordering::Relaxed);
        self.totals_known.store(true, Ordering::Relaxed);
    }

    /// Bytes that were, or will be, foreseen are not copied.
    pub(super) fn forgo(&self, bytes: u64) {
        self.forgone.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the job is one file: what is found of that is all there is.
    pub(super) fn set_one_file(&self, is: bool) {
        self.one_file.store(is, Ordering::Relaxed);
    }

    /// The data of a file is found to its end, and counted.
    pub(super) fn surveyed(&self) {
        if self.one_file.load(Ordering::Relaxed) {
            self.totals_known.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn set_method(&self, method: Method) {
        let index = Method::ALL.iter().position(|known| *known == method);
        let number = index.map_or(0, |index| index as u8 + 1);
        self.method.store(number, Ordering::Relaxed);
    }

    pub(super) fn set_workers(&self, workers: u16) {
        self.workers.store(workers, Ordering::Relaxed);
    }

    /// A thread begins to work at the job, whatever the others do.
    pub(super) fn begin_work(&self) {
        self.at_work.fetch_add(1, Ordering::Relaxed);
    }

    /// The same, unless `most` are at work: the files of a tree share its workers.
    pub(super) fn begin_work_unless(&self, most: u16) -> bool {
        let one_more = |at_work| (at_work < most).then(|| at_work + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.at_work.fetch_update(set, fetch, one_more).is_ok()
    }

    /// A thread does nothing for the job any more.
    pub(super) fn end_work(&self) {
        self.at_work.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that one file of a tree failed; the job goes on.
    pub(super) fn failed(&self, path: &[u8], fail: Fail) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock();
        if failures.len() < MOST_FAILURES {
            failures.push_back(Failure {
                path: path.into(),
                fail,
            });
        }
    }

    /// Stops the job after the system call that it is in.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Under the lock, or one who is about to wait would miss it.
        let _pace = self.pace.lock();
        self.changed.notify_all();
    }

    /// Whether it was told to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Holds the job after the system call that it is in, or lets it go on.
    pub fn pause(&self, paused: bool) {
        self.pace.lock().paused = paused;
        self.changed.notify_all();
    }

    /// Whether it is held.
    pub fn is_paused(&self) -> bool {
        self.pace.lock().paused
    }

    /// A number that is another one whenever the job has come back from a system call.
    pub(super) fn pulse(&self) -> u64 {
        self.pulse.load(Ordering::Relaxed)
    }

    /// Whether a system call is under way that takes as long as there is to be written out.
    pub(super) fn is_at_length(&self) -> bool {
        self.at_length.load(Ordering::Relaxed) > 0
    }

    /// Does what may take long although all is well: to write out gigabytes is one system call.
    pub(super) fn at_length<T>(&self, work: impl FnOnce() -> T) -> T {
        self.at_length.fetch_add(1, Ordering::Relaxed);
        let done = work();
        self.at_length.fetch_sub(1, Ordering::Relaxed);
        self.pulse.fetch_add(1, Ordering::Relaxed);
        done
    }

    /// To be called between any two system calls that may take long: EINTR once cancelled; waits
    /// while paused.
    pub(super) fn check(&self) -> Result<()> {
        self.pulse.fetch_add(1, Ordering::Relaxed);
        if self.is_cancelled() {
            return Err(cancelled());
        }
        let mut pace = self.pace.lock();
        while pace.paused {
            self.changed.wait_for(&mut pace, LOOK);
            if self.is_cancelled() {
                return Err(cancelled());
            }
        }
        Ok(())
    }

    /// Counts bytes as done, and waits until the limit allows more. EINTR once cancelled.
    pub(super) fn spend(&self, bytes: u64) -> Result<()> {
        self.add_bytes_done(bytes);
        let mut pace = self.pace.lock();
        if let Some(limit) = pace.limit {
            let now = Instant::now();
            // 2^63 ns are 292 years: bytes of one call at one byte a second fit.
            let cost = u128::from(bytes) * 1_000_000_000 / u128::from(limit.get());
            let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX >> 1));
            let free_at = pace.free_at.map_or(now, |at| at.max(now)) + cost;
            pace.free_at = Some(free_at);
            while Instant::now() < free_at && !self.is_cancelled() {
                let left = free_at.saturating_duration_since(Instant::now());
                self.changed.wait_for(&mut pace, left.min(LOOK));
                self.pulse.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(pace);
        self.check()
    }
}

fn cancelled() -> Fail {
    Fail::new(Errno::INTR, "copy").because(CANCELLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paused_waits_and_what_is_cancelled_does_not() {
        let progress = Progress::new(None);
        progress.pause(true);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| progress.check());
            std::thread::sleep(LOOK * 2);
            assert!(!waits.is_finished());
            progress.pause(false);
            waits.join().unwrap().unwrap();
            progress.pause(true);
            let waits = scope.spawn(|| progress.check());
            progress.cancel();
            assert_eq!(waits.join().unwrap().unwrap_err().errno, Errno::INTR);
        });
    }

    #[test]
    fn no_more_threads_work_than_were_asked_for() {
        let progress = Progress::default();
        progress.begin_work();
        assert!(progress.begin_work_unless(2));
        assert!(!progress.begin_work_unless(2));
        progress.end_work();
        assert!(progress.begin_work_unless(2));
    }

    #[test]
    fn a_limit_makes_bytes_take_their_time() {
        let progress = Progress::new(NonZeroU64::new(1000));
        let start = Instant::now();
        for _ in 0..4 {
            progress.spend(50).unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(200));
        assert_eq!(progress.bytes_done(), 200);
    }

    #[test]
    fn a_limit_can_be_cancelled() {
        let progress = Progress::new(NonZeroU64::new(1));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| progress.spend(1 << 60));
            std::thread::sleep(LOOK);
            progress.cancel();
            assert_eq!(waits.join().unwrap().unwrap_err().errno, Errno::INTR);
        });
    }

    #[test]
    fn failures_are_counted_and_the_first_are_kept() {
        let progress = Progress::new(None);
        for number in 0..250 {
            let fail = Fail::new(Errno::ACCESS, "open");
            progress.failed(format!("file {number}").as_bytes(), fail);
        }
        let (count, kept) = progress.failures();
        assert_eq!((count, kept.len()), (250, MOST_FAILURES));
        assert_eq!(&*kept[0].path, b"file 0");
    }
}
