//! One thread that looks after the jobs while there are any: it gives them their turns, sees
//! whether those who wait for them are to stop, notes how far they are, and answers for those whose
//! thread hangs.
//!
//! It starts all threads of copies, so that none inherits another caller's identity or priority.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Job;
use super::registry::{Registry, Waiting};
use super::table::Table;
use super::view::State;
use super::{defect, guarded};
use crate::sys::{Errno, Fail, OrFail, Result, priority};

/// How often it looks, and how many times as long as a look takes it rests at least: with thousands
/// who wait, looking would else be all that is done.
const LOOK: Duration = Duration::from_millis(50);
const REST: u32 = 4;
/// What it looks later than that was not its own doing.
const LATE: Duration = Duration::from_secs(1);
/// A job that was told to stop and whose thread has not come back so long after is answered
/// without it; within the second that is promised, with something to spare.
const GRACE: Duration = Duration::from_millis(600);
/// So long it stays when there is nothing to do: another line may follow.
const LINGER: Duration = Duration::from_secs(2);

impl Registry {
    /// Sees to it that there is a supervisor.
    pub(super) fn supervised(self: &Arc<Self>, table: &mut Table) -> Result<()> {
        if !table.supervised {
            let registry = Arc::clone(self);
            std::thread::Builder::new()
                .name("corfs-jobs".into())
                .spawn(move || registry.supervise())
                .or_fail("thread")?;
            table.supervised = true;
        }
        Ok(())
    }

    fn supervise(self: Arc<Self>) {
        let mut looked = Instant::now();
        let mut rest = LOOK;
        loop {
            self.act();
            if looked.elapsed() >= rest {
                let start = Instant::now();
                // Whoever stopped the process has stopped the jobs, too.
                self.look(looked.elapsed() > rest + LATE);
                looked = Instant::now();
                rest = LOOK.max((looked - start) * REST);
            }
            let mut table = self.table.lock();
            if table.stirred {
                continue;
            }
            if !table.live.is_empty() {
                self.stir.wait_for(&mut table, rest);
            } else if table.closed || self.stir.wait_for(&mut table, LINGER).timed_out() {
                // Somebody may have come between the end of the wait and this.
                if !table.stirred {
                    table.supervised = false;
                    return;
                }
            }
        }
    }

    /// Starts whose turn it is, and ends who is to end.
    fn act(self: &Arc<Self>) {
        let mut starting = Vec::new();
        let ending: Vec<Arc<Job>> = {
            let mut table = self.table.lock();
            table.stirred = false;
            while let Some(job) = table.next() {
                starting.push(job);
            }
            // Whoever gives a turn back wakes us for the next.
            self.metrics.set_copies_running(table.running.taken());
            let late = table.stopping.iter().filter(|job| overdue(job));
            late.cloned().collect()
        };
        for job in starting {
            self.launch(job);
        }
        for job in ending {
            self.end(&job, Err(Fail::new(Errno::INTR, "copy")), false);
        }
    }

    fn launch(self: &Arc<Self>, job: Arc<Job>) {
        let (registry, theirs) = (Arc::clone(self), Arc::clone(&job));
        let spawned = std::thread::Builder::new()
            .name("corfs-copy".into())
            .spawn(move || registry.run(&theirs))
            .or_fail("thread");
        if let Err(fail) = spawned {
            self.end(&job, Err(fail), true);
        }
    }

    fn run(&self, job: &Arc<Job>) {
        let work = job.course.lock().work.take();
        let outcome = guarded(|| match work {
            Some(work) if job.idle => at_idle_priority(|| work(job)),
            Some(work) => work(job),
            None => Ok(()),
        });
        self.end(job, outcome, true);
    }

    /// Sees who is to stop, and how far everybody is.
    fn look(&self, was_stopped: bool) {
        let now = Instant::now();
        let jobs: Vec<Arc<Job>> = self.table.lock().live.values().cloned().collect();
        for job in jobs {
            let (waiting, silence): (Vec<Arc<Waiting>>, _) = {
                let mut course = job.course.lock();
                if course.has_turn {
                    course.meter.mark(now, job.progress.bytes_done());
                }
                if was_stopped {
                    course.beat = None;
                }
                let silence = course.silence(now, &job.progress);
                (course.waiting.clone(), silence)
            };
            if let Some(patience) = self.patience.filter(|most| silence >= *most) {
                self.give_up(&job, patience);
            }
            for waiting in waiting {
                if waiting.watch.signalled().is_some() {
                    self.dismiss(&job, &waiting);
                }
            }
        }
    }

    /// One who waits is to stop.
    fn dismiss(&self, job: &Arc<Job>, waiting: &Arc<Waiting>) {
        if waiting.owns {
            return self.interrupt(job);
        }
        let mut course = job.course.lock();
        course.waiting.retain(|other| !Arc::ptr_eq(other, waiting));
        drop(course);
        waiting.tell(Err(Fail::new(Errno::INTR, "wait").because("interrupted")));
    }
}

/// Whether one that was told to stop is to be answered without its thread: because it has none,
/// or because that does not come back.
fn overdue(job: &Job) -> bool {
    let course = job.course.lock();
    let late = |(_, since): (_, Instant)| since.elapsed() >= GRACE;
    course.state == State::Queued || course.stop.is_some_and(late)
}

/// On a thread of its own: who has lowered himself may not be allowed to rise again, and what this
/// thread starts next is for another.
fn at_idle_priority(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let low = std::thread::Builder::new().name("corfs-idle".into());
        let low = low
            .spawn_scoped(scope, || {
                guarded(|| {
                    priority::idle()?;
                    work()
                })
            })
            .or_fail("thread")?;
        low.join().unwrap_or_else(|_| Err(defect()))
    })
}
