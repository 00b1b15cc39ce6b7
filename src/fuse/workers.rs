//! Threads that wait for the source, so that no event loop does, and the thread that answers for
//! them when the source does not.
//!
//! A request that touches a source which may hang is queued here. A worker does the work and sends
//! the reply. Meanwhile the watching thread looks at all that is under way a few times a second:
//! what is past its deadline is answered ETIMEDOUT, what belongs to a caller who was told to stop,
//! EINTR. The worker learns of it when its work is done, and undoes what nobody got.
//!
//! One lock, `state`, a leaf; nothing is done under it that waits.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::{Condvar, Mutex};

use crate::observe::Metrics;
use crate::sys::watch::CallerWatch;

/// The most workers. Each request takes one for as long as the source takes it; the kernel sends
/// as many as there are programs that wait, and up to 64 more of readahead.
const MOST: usize = 256;

/// The most requests that wait for a worker: then every worker hangs, and more have no prospect.
const QUEUE: usize = 1024;

/// A worker without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

/// How often what is under way is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long who waits for a source that was just lost may still be answered from what is kept.
const GRACE: Duration = Duration::from_millis(300);

/// What waits longer than this has its caller looked at.
const PATIENT: Duration = Duration::from_secs(1);

/// An answer that somebody else may have given already.
pub(super) trait Pending: Send + Sync {
    /// Answers with an error, unless it has been answered; whether it did.
    fn refuse(&self, errno: Errno) -> bool;

    /// Whether nobody has answered yet.
    fn is_pending(&self) -> bool;
}

/// What is to be done.
pub(super) struct Job {
    /// Its answer.
    pub(super) pending: Arc<dyn Pending>,
    /// It changes nothing: it can be given up.
    pub(super) reads: bool,
    /// When it is answered ETIMEDOUT.
    pub(super) deadline: Option<Instant>,
    /// The thread that waits for it; 0 when nobody is known to.
    pub(super) caller: u32,
    /// To be done though nobody waits any more: what was opened must be closed, and what its owner
    /// has locked must be free.
    pub(super) must: bool,
    /// Answered early where that is called for: past its deadline, or for a caller who was told to
    /// stop.
    pub(super) watched: bool,
    /// The work, with the reply at its end.
    pub(super) run: Box<dyn FnOnce() + Send>,
}

impl Job {
    /// Work that nobody waits for.
    pub(super) fn of_nobody(run: impl FnOnce() + Send + 'static) -> Self {
        Self {
            pending: Arc::new(Nobody),
            reads: false,
            deadline: None,
            caller: 0,
            must: true,
            watched: false,
            run: Box::new(run),
        }
    }
}

/// The answer that is not waited for.
struct Nobody;

impl Pending for Nobody {
    fn refuse(&self, _errno: Errno) -> bool {
        false
    }

    fn is_pending(&self) -> bool {
        false
    }
}

/// A job under way, as the watching thread sees it.
struct Watched {
    pending: Arc<dyn Pending>,
    reads: bool,
    deadline: Option<Instant>,
    since: Instant,
    caller: u32,
    watch: Mutex<Option<CallerWatch>>,
}

impl Watched {
    /// The same with another deadline.
    fn until(&self, deadline: Instant) -> Self {
        Self {
            pending: self.pending.clone(),
            reads: self.reads,
            deadline: Some(deadline),
            since: self.since,
            caller: self.caller,
            watch: Mutex::default(),
        }
    }
}

struct State {
    queue: VecDeque<(u64, Job)>,
    watched: HashMap<u64, Arc<Watched>>,
    next: u64,
    threads: usize,
    idle: usize,
    /// Threads that wait for a source that was lost meanwhile, on jobs before that ticket: others
    /// take their places.
    lost: usize,
    lost_before: u64,
    running: usize,
    watching: bool,
    /// The watching thread has nothing to watch.
    asleep: bool,
    ending: bool,
}

struct Inner {
    state: Mutex<State>,
    /// There is work, or an end.
    work: Condvar,
    /// There is something to watch, or an end.
    look: Condvar,
    /// A worker has ended.
    ended: Condvar,
    metrics: Arc<Metrics>,
    suspect: Box<dyn Fn() + Send + Sync>,
}

/// The workers of one mount.
pub(super) struct Workers(Arc<Inner>);

impl Workers {
    /// `suspect` is called when something waits for long.
    pub(super) fn new(metrics: Arc<Metrics>, suspect: Box<dyn Fn() + Send + Sync>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                watched: HashMap::new(),
                next: 0,
                threads: 0,
                idle: 0,
                lost: 0,
                lost_before: 0,
                running: 0,
                watching: false,
                asleep: false,
                ending: false,
            }),
            work: Condvar::new(),
            look: Condvar::new(),
            ended: Condvar::new(),
            metrics,
            suspect,
        }))
    }

    /// Has a job done. When too many wait already it is refused at once: ETIMEDOUT where there is
    /// a deadline, EAGAIN where there is none. What must be done waits, however many do: there are
    /// no more of it than files are open.
    pub(super) fn submit(&self, job: Job) {
        let inner = &self.0;
        let mut state = inner.state.lock();
        if state.queue.len() >= QUEUE && !job.must {
            drop(state);
            inner.metrics.source_timeout();
            let errno = match job.deadline {
                Some(_) => Errno::ETIMEDOUT,
                None => Errno::EAGAIN,
            };
            job.pending.refuse(errno);
            return;
        }
        let ticket = state.next;
        state.next += 1;
        if job.watched {
            let watched = Watched {
                pending: job.pending.clone(),
                reads: job.reads,
                deadline: job.deadline,
                since: Instant::now(),
                caller: job.caller,
                watch: Mutex::default(),
            };
            state.watched.insert(ticket, Arc::new(watched));
        }
        state.queue.push_back((ticket, job));
        let wanting = state.queue.len() > state.idle && state.threads - state.lost < MOST;
        let watcher = !state.watching;
        state.watching = true;
        state.threads += usize::from(wanting);
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        inner.work.notify_one();
        if asleep {
            inner.look.notify_one();
        }
        if watcher {
            self.start_watching();
        }
        if wanting {
            self.start_worker();
        }
    }

    fn start_worker(&self) {
        let inner = self.0.clone();
        let spawned = std::thread::Builder::new()
            .name("source".to_owned())
            .stack_size(512 << 10)
            .spawn(move || {
                inner.serve(Some(IDLE));
                let mut state = inner.state.lock();
                state.threads -= 1;
                inner.metrics.set_source_workers(state.threads as u64);
                inner.ended.notify_all();
            });
        let mut state = self.0.state.lock();
        if spawned.is_ok() {
            self.0.metrics.set_source_workers(state.threads as u64);
            return;
        }
        state.threads -= 1;
        let alone = state.threads == 0;
        drop(state);
        if alone {
            // Better late than never: nobody else would do it.
            self.0.serve(None);
        }
    }

    fn start_watching(&self) {
        let inner = self.0.clone();
        let spawned = std::thread::Builder::new()
            .name("deadlines".to_owned())
            .stack_size(256 << 10)
            .spawn(move || inner.watch());
        if let Err(error) = spawned {
            log::warn!("no thread for deadlines: {error}");
            self.0.state.lock().watching = false;
        }
    }

    /// The source was lost: who only asks or reads is answered soon, by whoever is not caught in a
    /// call that hangs, else by the deadline; and as many threads as wait for it may be started in
    /// their places, once.
    pub(super) fn give_up(&self) {
        let mut state = self.0.state.lock();
        let soon = Instant::now() + GRACE;
        for watched in state.watched.values_mut().filter(|watched| watched.reads) {
            let deadline = watched.deadline.map_or(soon, |deadline| deadline.min(soon));
            *watched = Arc::new(watched.until(deadline));
        }
        state.lost = state.running.min(MOST);
        state.lost_before = state.next;
    }

    /// Waits until all that was asked is done. Whoever can't wait for ever has to see to it.
    pub(super) fn finish(&self) {
        let inner = &self.0;
        let mut state = inner.state.lock();
        state.ending = true;
        inner.work.notify_all();
        inner.look.notify_all();
        while state.threads > 0 {
            inner.ended.wait(&mut state);
        }
    }
}

impl Inner {
    /// Does what there is to do, until there is nothing for `idle`; at once without it.
    fn serve(&self, idle: Option<Duration>) {
        while let Some((ticket, job)) = self.next(idle) {
            let watched = job.watched;
            if job.must || job.pending.is_pending() {
                // A panic was logged by the hook; the reply that is dropped says EIO.
                let _ = catch_unwind(AssertUnwindSafe(job.run));
            }
            let mut state = self.state.lock();
            state.running -= 1;
            if ticket < state.lost_before {
                state.lost = state.lost.saturating_sub(1);
            }
            if watched {
                state.watched.remove(&ticket);
            }
        }
    }

    fn next(&self, idle: Option<Duration>) -> Option<(u64, Job)> {
        let mut state = self.state.lock();
        let until = idle.map(|idle| Instant::now() + idle);
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running += 1;
                return Some(job);
            }
            if state.ending || until.is_none_or(|until| until <= Instant::now()) {
                return None;
            }
            state.idle += 1;
            self.work.wait_for(&mut state, IDLE);
            state.idle -= 1;
        }
    }

    /// Answers for those who wait too long, until the end.
    fn watch(&self) {
        let mut state = self.state.lock();
        while !state.ending {
            if state.watched.is_empty() {
                state.asleep = true;
                self.look.wait(&mut state);
                continue;
            }
            self.look.wait_for(&mut state, LOOK);
            let now = Instant::now();
            let doubtful = |watched: &&Arc<Watched>| {
                watched.deadline.is_some_and(|at| at <= now) || now - watched.since >= PATIENT
            };
            let old: Vec<_> = state.watched.values().filter(doubtful).cloned().collect();
            drop(state);
            if old.iter().any(|watched| watched.reads) {
                (self.suspect)();
            }
            for watched in old {
                self.judge(&watched, now);
            }
            state = self.state.lock();
            state
                .watched
                .retain(|_, watched| watched.pending.is_pending());
        }
    }

    fn judge(&self, watched: &Watched, now: Instant) {
        if watched.deadline.is_some_and(|at| at <= now) {
            if watched.pending.refuse(Errno::ETIMEDOUT) {
                self.metrics.source_timeout();
            }
            return;
        }
        let mut watch = watched.watch.lock();
        let watch = watch.get_or_insert_with(|| CallerWatch::new(watched.caller));
        if watch.signalled().is_some() && watched.pending.refuse(Errno::EINTR) {
            self.metrics.source_interrupt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    /// A caller who has not been answered yet.
    #[derive(Default)]
    struct Caller {
        answered: Mutex<Option<Errno>>,
    }

    impl Pending for Caller {
        fn refuse(&self, errno: Errno) -> bool {
            self.answered.lock().replace(errno).is_none()
        }

        fn is_pending(&self) -> bool {
            self.answered.lock().is_none()
        }
    }

    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let patience = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < patience, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What was asked while every worker hung, by callers who were answered before it began.
    #[test]
    fn what_must_be_done_is_done_after_its_early_answer_and_what_must_not_is_left() {
        let workers = Workers::new(Arc::new(Metrics::default()), Box::new(|| ()));
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for _ in 0..MOST {
            let gate = gate.clone();
            workers.submit(Job::of_nobody(move || drop(gate.lock())));
        }
        let job = |must: bool, done: &Arc<AtomicBool>, caller: &Arc<Caller>| {
            let done = done.clone();
            Job {
                reads: false,
                pending: caller.clone(),
                deadline: Some(Instant::now()),
                caller: 0,
                must,
                watched: true,
                run: Box::new(move || done.store(true, Ordering::SeqCst)),
            }
        };
        let (flushed, read) = (Arc::default(), Arc::default());
        let (closing, reading) = (Arc::new(Caller::default()), Arc::new(Caller::default()));
        workers.submit(job(true, &flushed, &closing));
        workers.submit(job(false, &read, &reading));
        for caller in [&closing, &reading] {
            wait_until("an early answer", || !caller.is_pending());
        }
        assert!(!flushed.load(Ordering::SeqCst));
        drop(closed);
        wait_until("its end", || flushed.load(Ordering::SeqCst));
        let (told, hears) = channel();
        workers.submit(Job::of_nobody(move || told.send(()).unwrap()));
        hears.recv_timeout(Duration::from_secs(60)).unwrap();
        workers.finish();
        assert!(!read.load(Ordering::SeqCst));
    }
}
