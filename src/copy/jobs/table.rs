//! What the registry counts: who may have how many, whose turn it is, what is remembered.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::job::{Cause, Course, Job, Work};
use super::registry::Waiting;
use super::shares::{Shares, Turns};
use super::view::State;
use crate::copy::progress::Progress;
use crate::sys::{Errno, Fail, Result};

/// Copies that run at the same time; more only make the disk's head wander. One who has none
/// running need not wait for the others'.
pub(super) const MOST_RUNNING: usize = 4;
/// Threads of copies that run or hang, whoever they are for; one who has none running need not wait
/// for the others' here, either. Those of held copies are bounded by themselves: they may stay for
/// ever, and would be turns that nobody gets.
pub(super) const MOST_THREADS: usize = 64;
/// Jobs that wait or run: of one, of all, and of anybody whatever the others have.
pub(super) const MOST_LIVE: (usize, usize, usize) = (1024, 4096, 16);
/// The same for the bytes of their lines.
pub(super) const MOST_WEIGHT: (usize, usize, usize) = (8 << 20, 32 << 20, 128 << 10);
/// Jobs that are held within their course, each with its thread and its descriptors.
pub(super) const MOST_PARKED: (usize, usize, usize) = (16, 64, 1);
/// Threads that did not come back from a system call when their job was cancelled. Who has as many
/// gets no turn until one does.
pub(super) const MOST_STUCK: (usize, usize, usize) = (4, MOST_THREADS, 1);
/// Ended jobs that are remembered, of one and of all, and the bytes of their texts.
pub(super) const MOST_ENDED: (usize, usize, usize) = (64, 1024, 1);
pub(super) const MOST_TEXT: usize = 1 << 20;
pub(super) struct Table {
    pub(super) last_number: u64,
    pub(super) live: BTreeMap<u64, Arc<Job>>,
    pub(super) turns: Turns<u64>,
    pub(super) running: Shares,
    pub(super) parked: Shares,
    pub(super) stuck: Shares,
    pub(super) lives: Shares,
    pub(super) weight: Shares,
    /// Live jobs that were told to stop.
    pub(super) stopping: Vec<Arc<Job>>,
    pub(super) ended: VecDeque<(usize, Arc<Job>)>,
    pub(super) ended_by: Shares,
    pub(super) ended_text: usize,
    /// Those for whom there was no room: how often, and why the last time.
    pub(super) turned_away: HashMap<u32, (u64, Fail)>,
    pub(super) closed: bool,
    /// When jobs up to this number are to be cancelled.
    pub(super) winding_up: Option<(Instant, u64)>,
    pub(super) supervised: bool,
    /// Since the supervisor last looked.
    pub(super) stirred: bool,
}

/// What is left to do when a job has ended, without the table.
pub(super) struct End {
    pub(super) state: State,
    pub(super) waiting: Vec<Arc<Waiting>>,
    pub(super) outcome: Result<()>,
    pub(super) work: Option<Work>,
}

impl Table {
    pub(super) fn new() -> Self {
        let shares = |(each, all, always)| Shares::new(each, all, always);
        Self {
            last_number: 0,
            live: BTreeMap::new(),
            turns: Turns::default(),
            running: Shares::new(MOST_RUNNING, MOST_RUNNING, 1),
            parked: shares(MOST_PARKED),
            stuck: shares(MOST_STUCK),
            lives: shares(MOST_LIVE),
            weight: shares(MOST_WEIGHT),
            stopping: Vec::new(),
            ended: VecDeque::new(),
            ended_by: shares(MOST_ENDED),
            ended_text: 0,
            turned_away: HashMap::new(),
            closed: false,
            winding_up: None,
            supervised: false,
            stirred: false,
        }
    }

    pub(super) fn admit(&self, owner: u32, weight: usize) -> Result<()> {
        let full = |why: String| Err(Fail::new(Errno::AGAIN, "copy").because(why));
        if self.lives.of(owner) >= MOST_LIVE.0 {
            return full(format!("{} of your copies wait already", MOST_LIVE.0));
        }
        if !self.lives.allows(owner, 1) {
            return full(format!("{} copies wait already", self.lives.taken()));
        }
        if !self.weight.allows(owner, weight) {
            return full("the names of the copies that wait take too much memory".into());
        }
        Ok(())
    }

    pub(super) fn new_job(
        &mut self,
        owner: u32,
        title: Box<str>,
        limit: Option<NonZeroU64>,
    ) -> Job {
        self.last_number += 1;
        Job {
            number: self.last_number,
            owner,
            weight: title.len(),
            title,
            idle: false,
            progress: Progress::new(limit),
            course: Mutex::new(Course::new()),
        }
    }

    pub(super) fn of(&self, who: u32) -> impl Iterator<Item = Arc<Job>> + '_ {
        let live = self.live.values();
        live.filter(move |job| job.is_for(who)).cloned()
    }

    pub(super) fn find(&self, who: u32, number: u64) -> Result<Arc<Job>> {
        let job = self.live.get(&number).filter(|job| job.is_for(who));
        job.cloned().ok_or_else(|| none(number))
    }

    pub(super) fn stop(&mut self, job: &Arc<Job>, cause: Cause) {
        let mut course = job.course.lock();
        if course.has_ended() || course.stop.is_some() {
            return;
        }
        course.stop = Some((cause, Instant::now()));
        drop(course);
        job.progress.cancel();
        self.turns.remove(job.owner, |number| *number == job.number);
        self.stopping.push(Arc::clone(job));
    }

    pub(super) fn hold(&mut self, job: &Arc<Job>) -> Result<()> {
        let mut course = job.course.lock();
        if course.held {
            return Ok(());
        }
        if course.has_turn {
            if !self.parked.allows(job.owner, 1) {
                let (own, all) = (self.parked.of(job.owner), self.parked.taken());
                let why = format!(
                    "{own} copies of that user, {all} of all, are paused within their course; let \
                     one go on, or cancel it"
                );
                return Err(Fail::new(Errno::AGAIN, "pause").because(why));
            }
            self.parked.take(job.owner, 1);
            self.running.give_back(job.owner, 1);
            course.has_turn = false;
            course.clock.stop();
            job.progress.pause(true);
        } else {
            self.turns.remove(job.owner, |number| *number == job.number);
        }
        course.held = true;
        Ok(())
    }

    pub(super) fn release(&mut self, job: &Arc<Job>) {
        let mut course = job.course.lock();
        // One that is told to stop has no more turns.
        if std::mem::take(&mut course.held) && course.stop.is_none() {
            self.turns.push_front(job.owner, job.number);
        }
    }

    /// The next whose turn it is: with a thread that is let go on (then None is not the end), or
    /// without one.
    pub(super) fn next(&mut self) -> Option<Arc<Job>> {
        loop {
            let (running, stuck, live) = (&self.running, &self.stuck, &self.live);
            let is_room = running.taken() + stuck.taken() < MOST_THREADS;
            let has_thread = |number: &u64| live.get(number).is_none_or(|job| job.has_begun());
            let (owner, number) = self.turns.pop(|who, number| {
                let may = running.allows(who, 1) && stuck.of(who) < MOST_STUCK.0;
                may && (is_room || running.of(who) == 0 || has_thread(number))
            })?;
            let Some(job) = self.live.get(&number).cloned() else {
                continue;
            };
            let mut course = job.course.lock();
            let has_thread = course.state == State::Running;
            self.running.take(owner, 1);
            course.has_turn = true;
            course.state = State::Running;
            course.clock.run();
            course.meter.reset();
            course.meter.mark(Instant::now(), job.progress.bytes_done());
            drop(course);
            if !has_thread {
                return Some(job);
            }
            self.parked.give_back(owner, 1);
            job.progress.pause(false);
        }
    }

    pub(super) fn end(
        &mut self,
        job: &Arc<Job>,
        outcome: Result<()>,
        by_thread: bool,
    ) -> Option<End> {
        let mut course = job.course.lock();
        if course.has_ended() {
            if by_thread {
                self.stuck.give_back(job.owner, 1);
            }
            return None;
        }
        if course.has_turn {
            self.running.give_back(job.owner, 1);
        } else if course.state == State::Running {
            self.parked.give_back(job.owner, 1);
        } else {
            self.turns.remove(job.owner, |number| *number == job.number);
        }
        if course.state == State::Running && !by_thread {
            self.stuck.take(job.owner, 1);
        }
        course.end(outcome);
        let end = End {
            state: course.state,
            waiting: std::mem::take(&mut course.waiting),
            outcome: course.error.clone().map_or(Ok(()), Err),
            work: course.work.take(),
        };
        drop(course);
        self.live.remove(&job.number);
        self.stopping.retain(|other| !Arc::ptr_eq(other, job));
        self.lives.give_back(job.owner, 1);
        self.weight.give_back(job.owner, job.weight);
        self.remember(Arc::clone(job));
        Some(end)
    }

    /// Remembers an ended job, and forgets what is too much: its owner's oldest, so that nobody
    /// pushes out what is another's; only one who has no other takes the place of the oldest.
    pub(super) fn remember(&mut self, job: Arc<Job>) {
        let (len, owner) = (job.text_len(), job.owner);
        self.ended_text += len;
        self.ended_by.take(owner, 1);
        self.ended.push_back((len, job));
        while self.ended.len() > 1
            && (self.ended_by.of(owner) > MOST_ENDED.0
                || self.ended.len() > MOST_ENDED.1
                || self.ended_text > MOST_TEXT)
        {
            let own = self
                .ended
                .iter()
                .position(|(_, other)| other.owner == owner);
            self.forget(own.filter(|at| at + 1 < self.ended.len()).unwrap_or(0));
        }
    }

    pub(super) fn forget(&mut self, at: usize) {
        if let Some((len, job)) = self.ended.remove(at) {
            self.ended_text -= len;
            self.ended_by.give_back(job.owner, 1);
        }
    }
}

pub(super) fn none(number: u64) -> Fail {
    Fail::new(Errno::SRCH, "job").because(format!("no job {number} of yours"))
}
