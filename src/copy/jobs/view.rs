//! A job as others see it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::Job;
use crate::copy::options::Method;
use crate::copy::progress::Failure;

/// The rate now is that of so many seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// How often it is looked how far a job has come.
const MARK: Duration = Duration::from_millis(500);

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Queued,
    Running,
    Paused,
    Done,
    Failed,
    Cancelled,
}

impl State {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far a job was, over the last seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    marks: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// To be called every now and then, and where the rate begins to count.
    pub(super) fn mark(&mut self, now: Instant, bytes: u64) {
        if self.marks.back().is_some_and(|(at, _)| now - *at < MARK) {
            return;
        }
        self.marks.push_back((now, bytes));
        // The one at the window's beginning stays.
        while self.marks.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.marks.pop_front();
        }
    }

    /// What was counted before a pause says nothing of afterwards.
    pub(super) fn reset(&mut self) {
        self.marks.clear();
    }

    /// Bytes a second since the oldest mark; None when that is too short ago.
    fn rate(&self, now: Instant, bytes: u64) -> Option<u64> {
        let (at, before) = self.marks.front()?;
        let took = now.checked_duration_since(*at)?;
        // An attempt that is given up takes back what it counted.
        (took >= MARK).then(|| rate(bytes.saturating_sub(*before), took))
    }
}

/// Bytes a second.
fn rate(bytes: u64, took: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000 / took.as_micros().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// One file of a tree that failed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FileError {
    /// Its path; what is no UTF-8 in it is replaced by U+FFFD.
    pub(super) path: String,
    /// The path as it is, for people: they see it quoted.
    #[serde(skip)]
    pub(super) bytes: Vec<u8>,
    pub(super) errno: i32,
    pub(super) error: String,
}

impl From<Failure> for FileError {
    fn from(failure: Failure) -> Self {
        Self {
            path: String::from_utf8_lossy(&failure.path).into_owned(),
            errno: failure.fail.errno.raw_os_error(),
            error: failure.fail.to_string(),
            bytes: failure.path.into_vec(),
        }
    }
}

/// What `.corfs/jobs.json` has of a job, under these names.
#[derive(Clone, Debug, Serialize)]
pub(super) struct View {
    pub(super) number: u64,
    pub(super) owner: u32,
    pub(super) state: State,
    pub(super) title: String,
    #[serde(serialize_with = "method_name")]
    pub(super) method: Option<Method>,
    pub(super) workers: u16,
    pub(super) bytes_done: u64,
    pub(super) bytes_total: u64,
    pub(super) files_done: u64,
    pub(super) files_total: u64,
    pub(super) totals_known: bool,
    /// Bytes a second, over the last five; 0 of one that does not run.
    pub(super) rate_now: u64,
    pub(super) rate_mean: u64,
    /// Without its pauses.
    pub(super) seconds: f64,
    pub(super) seconds_left: Option<u64>,
    /// Files that failed.
    pub(super) failed: u64,
    /// The first hundred of them.
    pub(super) errors: Vec<FileError>,
    pub(super) errno: Option<i32>,
    pub(super) error: Option<String>,
}

#[allow(clippy::ref_option, reason = "the form that serde calls")]
fn method_name<S: Serializer>(method: &Option<Method>, to: S) -> Result<S::Ok, S::Error> {
    method.map(Method::name).serialize(to)
}

impl Job {
    /// As it is now.
    pub(super) fn view(&self) -> View {
        let now = Instant::now();
        let progress = &self.progress;
        let (files_done, files_total) = progress.files();
        let (failed, failures) = progress.failures();
        let (bytes_done, bytes_total) = (progress.bytes_done(), progress.bytes_total());
        let course = self.course.lock();
        let state = match course.state {
            State::Queued | State::Running if course.held => State::Paused,
            // It may go on, when its turn comes.
            State::Running if !course.has_turn => State::Queued,
            state => state,
        };
        let took = course.clock.elapsed();
        let rate_mean = rate(bytes_done, took);
        let rate_now = match state {
            State::Running => course.meter.rate(now, bytes_done).unwrap_or(rate_mean),
            _ => 0,
        };
        let known = progress.totals_known() && rate_now > 0;
        View {
            number: self.number,
            owner: self.owner,
            state,
            title: self.title.clone().into(),
            method: progress.method(),
            workers: progress.workers(),
            bytes_done,
            bytes_total,
            files_done,
            files_total,
            totals_known: progress.totals_known(),
            rate_now,
            rate_mean,
            seconds: took.as_secs_f64(),
            seconds_left: known.then(|| bytes_total.saturating_sub(bytes_done).div_ceil(rate_now)),
            failed,
            errors: failures.into_iter().map(Into::into).collect(),
            errno: course.error.as_ref().map(|fail| fail.errno.raw_os_error()),
            error: course.error.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_now_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut meter = Meter::default();
        assert_eq!(meter.rate(start, 5), None);
        for second in 0..20 {
            meter.mark(at(second), second * 100);
            meter.mark(at(second) + Duration::from_millis(10), 0);
        }
        assert!(meter.marks.len() <= 7);
        assert_eq!(meter.rate(at(20), 2000), Some(100));
        // It stands: soon the rate is less, and then nothing.
        for second in 20..30 {
            meter.mark(at(second), 1900);
        }
        assert_eq!(meter.rate(at(30), 1900), Some(0));
        assert_eq!(
            meter.rate(at(30), 0),
            Some(0),
            "what was taken back is no rate"
        );
        meter.reset();
        assert_eq!(meter.rate(at(31), 9), None);
        assert_eq!(rate(u64::MAX, Duration::ZERO), u64::MAX);
    }
}
