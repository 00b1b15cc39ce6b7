//! One job and its course.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::registry::Waiting;
use super::view::{Meter, State};
use crate::copy::progress::{CANCELLED, Progress};
use crate::sys::{Errno, Fail, Result};

/// What a job does, on a thread of its own.
pub(super) type Work = Box<dyn FnOnce(&Job) -> Result<()> + Send>;
/// What is told of a job's end, on a thread that holds no lock and must not be kept.
pub(super) type OnEnd = Box<dyn FnOnce(Result<()>) + Send>;

/// Why a job was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The one who waits for it has a signal pending, or has died.
    Signal,
    /// By a line.
    Asked,
    /// The mount goes away.
    Closed,
    /// A system call has not come back for so long.
    Silence(Duration),
}

impl Cause {
    fn state(self) -> State {
        match self {
            Self::Signal | Self::Asked | Self::Closed => State::Cancelled,
            Self::Silence(_) => State::Failed,
        }
    }

    /// EINTR is for a signal alone: many programs write again when they meet it, and the copy
    /// that somebody else has cancelled would begin anew.
    pub(super) fn fail(self) -> Fail {
        match self {
            Self::Signal => Fail::new(Errno::INTR, "copy").because("cancelled by a signal"),
            Self::Asked => Fail::new(Errno::CANCELED, "copy").because("cancelled"),
            Self::Closed => super::closed(),
            Self::Silence(patience) => Fail::new(Errno::TIMEDOUT, "copy").because(format!(
                "the file system has not answered for {} s (source_timeout_write)",
                patience.as_secs_f64()
            )),
        }
    }

    /// The same, with what the copy says beyond having been cancelled: that `--inplace` leaves a
    /// mixture.
    fn fail_with(self, own: &Fail) -> Fail {
        let fail = self.fail();
        let own = own.detail.as_deref().unwrap_or_default();
        let own = own.strip_prefix(CANCELLED).unwrap_or(own);
        match (own.trim_start_matches("; "), fail.detail.as_deref()) {
            ("", _) => fail,
            (own, None) => fail.because(own),
            (own, Some(why)) => {
                let words = format!("{why}; {own}");
                fail.because(words)
            }
        }
    }
}

/// How far a running job was when it was looked at, and since when it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) pulse: u64,
    pub(super) since: Instant,
}

/// One copy, or a line that could not be one.
pub(in crate::copy) struct Job {
    pub(super) number: u64,
    pub(super) owner: u32,
    /// `SRC -> DST` as given, or the line that was not understood; quoted, on one line.
    pub(super) title: Box<str>,
    /// Bytes that its line took.
    pub(super) weight: usize,
    /// Its thread runs when nobody else wants to.
    pub(super) idle: bool,
    pub(in crate::copy) progress: Progress,
    /// A leaf in the order of locks; changed under the registry's table only.
    pub(super) course: Mutex<Course>,
}

pub(super) struct Course {
    /// Never [`State::Paused`]: that is one that is queued or running, and `held`.
    pub(super) state: State,
    /// By `--pause`.
    pub(super) held: bool,
    /// It counts among those that run.
    pub(super) has_turn: bool,
    pub(super) stop: Option<(Cause, Instant)>,
    pub(super) clock: Clock,
    pub(super) meter: Meter,
    /// While it has its turn.
    pub(super) beat: Option<Beat>,
    pub(super) error: Option<Fail>,
    pub(super) work: Option<Work>,
    /// Those who wait for it.
    pub(super) waiting: Vec<Arc<Waiting>>,
}

impl Course {
    pub(super) fn new() -> Self {
        Self {
            state: State::Queued,
            held: false,
            has_turn: false,
            stop: None,
            clock: Clock::default(),
            meter: Meter::default(),
            beat: None,
            error: None,
            work: None,
            waiting: Vec::new(),
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        !matches!(self.state, State::Queued | State::Running)
    }

    /// How long a running job's system call has not come back, at least; one that is held, waits
    /// for its turn, was told to stop or writes out what there is to be is none.
    pub(super) fn silence(&mut self, now: Instant, progress: &Progress) -> Duration {
        let pulse = progress.pulse();
        let is_watched = self.has_turn && self.stop.is_none() && !progress.is_at_length();
        let beat = self.beat.filter(|beat| is_watched && beat.pulse == pulse);
        let beat = beat.unwrap_or(Beat { pulse, since: now });
        self.beat = is_watched.then_some(beat);
        now.duration_since(beat.since)
    }

    /// Notes how it ended. What ended because it was told to is cancelled, for the reason for which
    /// it was told so.
    pub(super) fn end(&mut self, outcome: Result<()>) {
        self.clock.stop();
        self.has_turn = false;
        let told = |fail: &Fail| fail.errno == Errno::INTR;
        (self.state, self.error) = match (outcome, self.stop) {
            (Ok(()), _) => (State::Done, None),
            (Err(fail), Some((cause, _))) if told(&fail) => {
                (cause.state(), Some(cause.fail_with(&fail)))
            }
            (Err(fail), None) if told(&fail) => (State::Cancelled, Some(fail)),
            (Err(fail), _) => (State::Failed, Some(fail)),
        };
    }

    /// As those see it who wait for it: a cancelled job is no reason to write again.
    pub(super) fn outcome(&self) -> Result<()> {
        match &self.error {
            Some(fail) if fail.errno == Errno::INTR => Err(Cause::Asked.fail()),
            Some(fail) => Err(fail.clone()),
            None => Ok(()),
        }
    }
}

impl Job {
    /// Whether this user may see it, and tell it what to do.
    pub(super) fn is_for(&self, user: u32) -> bool {
        user == 0 || user == self.owner
    }

    /// Whether it has a thread, though that may be held.
    pub(super) fn has_begun(&self) -> bool {
        self.course.lock().state == State::Running
    }

    /// Bytes of the words that are kept of it.
    pub(super) fn text_len(&self) -> usize {
        let error = self.course.lock().error.as_ref().map_or(0, |fail| {
            fail.detail.as_ref().map_or(0, |detail| detail.len())
        });
        let failures = self.progress.failures().1;
        let of_files: usize = failures
            .iter()
            .map(|failure| failure.path.len() + 100)
            .sum();
        self.title.len() + error + of_files
    }
}

/// How long a job has run, without its pauses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    before: Duration,
    since: Option<Instant>,
}

impl Clock {
    pub(super) fn run(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn stop(&mut self) {
        self.before = self.elapsed();
        self.since = None;
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
