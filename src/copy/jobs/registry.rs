//! The list of jobs: taken, told to stop or to wait, ended, shown. What is counted for that is in
//! `table`.
//!
//! Nothing here blocks. Whoever changes something stirs the supervisor, which acts on it.

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::job::{Cause, Job, OnEnd, Work};
use super::table::{End, Table, none};
use super::view::{State, View};
use crate::copy::language::{Which, quote};
use crate::observe::{CopyEnd, Metrics};
use crate::sys::watch::CallerWatch;
use crate::sys::{Errno, Fail, Result};

/// Users of whom it is known that there was no room.
const MOST_TURNED_AWAY: usize = 64;
/// A mount that goes away waits so long for threads that are stuck: each would clean up.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// A job to be.
pub(in crate::copy) struct New {
    pub(in crate::copy) owner: u32,
    pub(in crate::copy) title: String,
    pub(in crate::copy) limit: Option<NonZeroU64>,
    pub(in crate::copy) idle: bool,
    pub(in crate::copy) work: Work,
    /// Who waits for it: it is cancelled when he is to stop.
    pub(in crate::copy) waiter: Option<(Arc<CallerWatch>, OnEnd)>,
}

/// The answer to one who asks for a job's end.
pub(in crate::copy) enum Waited {
    /// It has ended so.
    Now(Result<()>),
    /// He will be told.
    Later,
}

/// One who waits for a job.
pub(super) struct Waiting {
    pub(super) watch: Arc<CallerWatch>,
    /// The job is his: it ends with him.
    pub(super) owns: bool,
    /// Taken by whoever tells him. A leaf in the order of locks.
    on_end: Mutex<Option<OnEnd>>,
}

impl Waiting {
    pub(super) fn tell(&self, outcome: Result<()>) {
        let on_end = self.on_end.lock().take();
        if let Some(on_end) = on_end {
            // A panic in an answer must not keep others from theirs.
            let _ = super::guarded(|| {
                on_end(outcome);
                Ok(())
            });
        }
    }
}

/// All jobs of a mount.
pub(in crate::copy) struct Registry {
    /// Never held while something blocks or somebody is told; a job's `course` may be taken under
    /// it, not the reverse.
    pub(super) table: Mutex<Table>,
    /// There is something to do for the supervisor.
    pub(super) stir: Condvar,
    /// A job has ended, or its thread.
    pub(super) over: Condvar,
    pub(super) metrics: Arc<Metrics>,
    /// A job whose system call does not come back for so long fails.
    pub(super) patience: Option<Duration>,
}

impl Registry {
    pub(in crate::copy) fn new(metrics: Arc<Metrics>, patience: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            patience,
            table: Mutex::new(Table::new()),
            stir: Condvar::new(),
            over: Condvar::new(),
            metrics,
        })
    }

    /// Takes a job, which waits for its turn. Who waits for it is told of its end, by another
    /// thread; not when this fails.
    ///
    /// # Errors
    /// ECANCELED after [`Registry::close`]; EAGAIN when the owner or all have as many as they may,
    /// and when no thread can be had.
    pub(in crate::copy) fn enter(self: &Arc<Self>, new: New) -> Result<u64> {
        let mut table = self.table.lock();
        if table.closed {
            return Err(closed());
        }
        table.admit(new.owner, new.title.len())?;
        self.supervised(&mut table)?;
        let mut job = table.new_job(new.owner, new.title.into(), new.limit);
        job.idle = new.idle;
        let course = job.course.get_mut();
        course.work = Some(new.work);
        course.waiting.extend(new.waiter.map(|(watch, on_end)| {
            Arc::new(Waiting {
                watch,
                owns: true,
                on_end: Mutex::new(Some(on_end)),
            })
        }));
        let (number, owner) = (job.number, job.owner);
        table.lives.take(owner, 1);
        table.weight.take(owner, job.weight);
        table.live.insert(number, Arc::new(job));
        table.turns.push(owner, number);
        self.metrics.copy_started();
        self.wake(&mut table);
        Ok(number)
    }

    pub(super) fn wake(&self, table: &mut Table) {
        table.stirred = true;
        self.stir.notify_one();
    }

    /// Remembers a line that was not understood, or could not be.
    pub(in crate::copy) fn refuse(&self, owner: u32, line: &[u8], why: &Fail) {
        let mut table = self.table.lock();
        let job = table.new_job(owner, quote(line).into(), None);
        {
            let mut course = job.course.lock();
            course.state = State::Failed;
            course.error = Some(why.clone());
        }
        table.remember(Arc::new(job));
    }

    /// Counts one for whom there was no room: to remember each would push out what matters.
    pub(in crate::copy) fn turn_away(&self, owner: u32, why: &Fail) {
        let away = &mut self.table.lock().turned_away;
        if away.len() >= MOST_TURNED_AWAY && !away.contains_key(&owner) {
            away.clear();
        }
        let (times, last) = away.entry(owner).or_insert_with(|| (0, why.clone()));
        *times += 1;
        *last = why.clone();
    }

    /// Has `on_end` told of the end of a job; not when it has ended already, or there is none.
    ///
    /// # Errors
    /// ESRCH for a job that is not there, is forgotten, or is another's (who may not know of it).
    pub(in crate::copy) fn wait(
        &self,
        who: u32,
        number: u64,
        watch: Arc<CallerWatch>,
        on_end: OnEnd,
    ) -> Result<Waited> {
        let table = self.table.lock();
        if let Some(job) = table.live.get(&number).filter(|job| job.is_for(who)) {
            job.course.lock().waiting.push(Arc::new(Waiting {
                watch,
                owns: false,
                on_end: Mutex::new(Some(on_end)),
            }));
            return Ok(Waited::Later);
        }
        let ended = table.ended.iter().map(|(_, job)| job);
        let job = ended
            .filter(|job| job.number == number)
            .find(|job| job.is_for(who))
            .ok_or_else(|| none(number))?;
        let outcome = job.course.lock().outcome();
        Ok(Waited::Now(outcome))
    }

    /// Tells jobs to stop; they end soon after.
    ///
    /// # Errors
    /// ESRCH when there is no such live job of this caller's.
    pub(in crate::copy) fn cancel(&self, who: u32, which: Which) -> Result<()> {
        let mut table = self.table.lock();
        let chosen: Vec<Arc<Job>> = match which {
            Which::One(number) => vec![table.find(who, number)?],
            Which::All => table.of(who).collect(),
        };
        for job in &chosen {
            table.stop(job, Cause::Asked);
        }
        self.wake(&mut table);
        Ok(())
    }

    /// Tells one job to stop because of the one who waits for it.
    pub(super) fn interrupt(&self, job: &Arc<Job>) {
        let mut table = self.table.lock();
        table.stop(job, Cause::Signal);
        table.stirred = true;
    }

    /// Holds a job, or lets it go on when its turn comes. A held one leaves its turn to others.
    ///
    /// # Errors
    /// ESRCH when there is no such live job of this caller's; EAGAIN when he holds too many within
    /// their course.
    pub(in crate::copy) fn hold(&self, who: u32, number: u64, held: bool) -> Result<()> {
        let mut table = self.table.lock();
        let job = table.find(who, number)?;
        if held {
            table.hold(&job)?;
        } else {
            table.release(&job);
        }
        self.wake(&mut table);
        Ok(())
    }

    /// Ends one of whose file system nothing is heard any more.
    pub(super) fn give_up(&self, job: &Arc<Job>, patience: Duration) {
        self.metrics.source_timeout();
        let mut table = self.table.lock();
        table.stop(job, Cause::Silence(patience));
        table.stirred = true;
    }

    /// Notes how a job ended, and tells those who wait. `by_thread`: its thread has come back, or
    /// there was none.
    pub(super) fn end(&self, job: &Arc<Job>, outcome: Result<()>, by_thread: bool) {
        let end = {
            let mut table = self.table.lock();
            let end = table.end(job, outcome, by_thread);
            self.wake(&mut table);
            end
        };
        if let Some(End {
            state,
            waiting,
            outcome,
            work,
        }) = end
        {
            drop(work);
            self.metrics.copy_ended(match state {
                State::Done => CopyEnd::Done,
                State::Cancelled => CopyEnd::Cancelled,
                _ => CopyEnd::Failed,
            });
            for waiting in waiting {
                // For the one whose copy it is a signal is EINTR; for others it is no signal.
                let told = match &outcome {
                    Err(fail) if fail.errno == Errno::INTR && !waiting.owns => {
                        Err(Cause::Asked.fail())
                    }
                    other => other.clone(),
                };
                waiting.tell(told);
            }
        }
        self.over.notify_all();
    }

    /// What is there now and not done at `deadline` is to be cancelled then. A deadline that was set
    /// before stays.
    pub(in crate::copy) fn wind_up(&self, deadline: Instant) {
        let mut table = self.table.lock();
        let last = table.last_number;
        table.winding_up.get_or_insert((deadline, last));
    }

    /// Cancels what [`Registry::wind_up`] has found, when its time has come.
    pub(in crate::copy) fn cancel_overdue(&self) {
        let mut table = self.table.lock();
        let due = table
            .winding_up
            .take_if(|(deadline, _)| Instant::now() >= *deadline);
        let Some((_, last)) = due else {
            return;
        };
        let old: Vec<_> = table
            .live
            .range(..=last)
            .map(|(_, job)| job.clone())
            .collect();
        for job in &old {
            table.stop(job, Cause::Closed);
        }
        self.wake(&mut table);
    }

    /// Cancels what is there, and takes no more.
    pub(in crate::copy) fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        let all: Vec<_> = table.live.values().cloned().collect();
        for job in all {
            table.stop(&job, Cause::Closed);
        }
        self.wake(&mut table);
    }

    /// Waits until all jobs have ended, and a little for threads that are stuck.
    pub(in crate::copy) fn drain(&self) {
        let mut table = self.table.lock();
        while !table.live.is_empty() {
            self.over.wait(&mut table);
        }
        let deadline = Instant::now() + LAST_WAIT;
        while table.stuck.taken() > 0 && !self.over.wait_until(&mut table, deadline).timed_out() {}
        if table.stuck.taken() > 0 {
            log::warn!(
                "{} copies hang in the source, and are left",
                table.stuck.taken()
            );
        }
    }

    pub(in crate::copy) fn is_closed(&self) -> bool {
        self.table.lock().closed
    }

    /// Oldest first, ended ones before live ones: all jobs for root, for others their own.
    fn views(&self, viewer: u32) -> Vec<View> {
        let jobs: Vec<Arc<Job>> = {
            let table = self.table.lock();
            let ended = table.ended.iter().map(|(_, job)| job);
            let all = ended.chain(table.live.values());
            all.filter(|job| job.is_for(viewer)).cloned().collect()
        };
        jobs.iter().map(|job| job.view()).collect()
    }

    /// The list for people.
    pub(in crate::copy) fn describe(&self, viewer: u32) -> String {
        let mut text = super::text::HEAD.clone();
        for view in self.views(viewer) {
            view.describe(&mut text);
        }
        for (user, (times, why)) in &self.table.lock().turned_away {
            if viewer == 0 || viewer == *user {
                // Writing to a String does not fail.
                let _ = writeln!(text, "# {times} lines of user {user} were not taken; {why}");
            }
        }
        text
    }

    /// The list for programs: JSON, an array.
    pub(in crate::copy) fn json(&self, viewer: u32) -> String {
        // Plain values: nothing in them can fail to be written.
        serde_json::to_string_pretty(&self.views(viewer)).unwrap_or_default() + "\n"
    }
}

pub(in crate::copy) fn closed() -> Fail {
    Fail::new(Errno::CANCELED, "copy").because("the mount is going away")
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
