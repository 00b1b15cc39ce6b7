//! The jobs of a mount: what runs, what waits, what was done, as people read it in `cat .copy`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::language::{CopyRequest, quote};
use super::options::Method;
use super::progress::Progress;
use crate::sys::{Errno, Fail, Result};

/// Copies that run at the same time; more only make the disk's head wander.
const MOST_RUNNING: usize = 4;
/// Ended jobs that are remembered, and the bytes of their texts.
const MOST_ENDED: usize = 64;
const MOST_TEXT: usize = 1 << 20;
/// How often one who waits for his turn looks whether he still shall.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One copy, or a line that could not be one.
pub(super) struct Job {
    number: u64,
    owner: u32,
    /// `SRC -> DST` as given, or the line that was not understood; quoted, on one line.
    title: Box<str>,
    pub(super) progress: Progress,
    /// A leaf in the order of locks.
    course: Mutex<Course>,
}

struct Course {
    state: State,
    started: Option<Instant>,
    /// How long it ran.
    took: Option<Duration>,
    error: Option<Box<str>>,
}

impl Job {
    /// One line for people, and a second one when there was an error.
    fn describe(&self, text: &mut String) {
        let course = self.course.lock();
        let took = course
            .took
            .or_else(|| course.started.map(|start| start.elapsed()));
        let (done, total) = (self.progress.bytes_done(), self.progress.bytes_total());
        let state = course.state.name();
        let method = self.progress.method().map_or("-", Method::name);
        // Writing to a String does not fail.
        let _ = write!(text, "{:>5}  {state:<9}  {done}/{total} B", self.number);
        if total > 0 {
            let percent = u128::from(done) * 100 / u128::from(total);
            let _ = write!(text, " ({percent} %)");
        }
        if let Some(took) = took {
            let _ = write!(text, "  {} MB/s", megabytes_per_second(done, took));
        }
        let _ = writeln!(text, "  {}  {}", method, self.title);
        if let Some(error) = &course.error {
            let _ = writeln!(text, "       {error}");
        }
    }

    fn text_len(&self) -> usize {
        self.title.len()
            + self
                .course
                .lock()
                .error
                .as_ref()
                .map_or(0, |error| error.len())
    }
}

/// One decimal, by whole numbers: bytes per microsecond are megabytes (10^6) per second.
fn megabytes_per_second(bytes: u64, took: Duration) -> String {
    let tenths = u128::from(bytes) * 10 / took.as_micros().max(1);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// All jobs of a mount.
pub(super) struct Registry {
    /// Never held while something blocks; a job's `course` may be taken under it, not the reverse.
    table: Mutex<Table>,
    /// Somebody's turn has ended.
    turn_over: Condvar,
}

#[derive(Default)]
struct Table {
    last_number: u64,
    live: BTreeMap<u64, Arc<Job>>,
    ended: VecDeque<(usize, Arc<Job>)>,
    ended_text: usize,
    running: usize,
    closed: bool,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::default(),
            turn_over: Condvar::new(),
        }
    }

    /// A job that waits for its turn.
    ///
    /// # Errors
    /// ECANCELED after [`Registry::close`].
    pub(super) fn enter(&self, owner: u32, command: &CopyRequest) -> Result<Arc<Job>> {
        let title = title(command);
        let mut table = self.table.lock();
        if table.closed {
            return Err(closed());
        }
        let job = table.new_job(owner, title.into(), command.options.limit);
        table.live.insert(job.number, Arc::clone(&job));
        Ok(job)
    }

    /// Remembers a line that was not understood.
    pub(super) fn refuse(&self, owner: u32, line: &[u8], why: &Fail) {
        let mut table = self.table.lock();
        let job = table.new_job(owner, quote(line).into(), None);
        table.end(&job, State::Failed, Some(why.to_string()));
    }

    /// Waits for a turn, and takes it.
    ///
    /// # Errors
    /// EINTR when the job was cancelled meanwhile.
    pub(super) fn start(&self, job: &Job) -> Result<()> {
        let mut table = self.table.lock();
        while table.running >= MOST_RUNNING {
            job.progress.check()?;
            self.turn_over.wait_for(&mut table, LOOK);
        }
        job.progress.check()?;
        table.running += 1;
        let mut course = job.course.lock();
        course.state = State::Running;
        course.started = Some(Instant::now());
        Ok(())
    }

    /// Notes how a job ended, whether or not it had its turn.
    pub(super) fn end(&self, job: &Arc<Job>, outcome: &Result<()>) {
        let state = match outcome {
            Ok(()) => State::Done,
            Err(fail) if fail.errno == Errno::INTR => State::Cancelled,
            Err(_) => State::Failed,
        };
        let error = outcome.as_ref().err().map(ToString::to_string);
        let mut table = self.table.lock();
        table.live.remove(&job.number);
        table.end(job, state, error);
        self.turn_over.notify_all();
    }

    /// Cancels what is there, and takes no more.
    pub(super) fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        table.live.values().for_each(|job| job.progress.cancel());
        self.turn_over.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.table.lock().closed
    }

    /// The list, oldest first: all jobs for root, for others their own.
    pub(super) fn describe(&self, viewer: u32) -> String {
        let jobs: Vec<Arc<Job>> = {
            let table = self.table.lock();
            let ended = table.ended.iter().map(|(_, job)| job);
            let all = ended.chain(table.live.values());
            all.filter(|job| viewer == 0 || job.owner == viewer)
                .cloned()
                .collect()
        };
        let mut text = String::new();
        jobs.iter().for_each(|job| job.describe(&mut text));
        text
    }
}

impl Table {
    fn new_job(&mut self, owner: u32, title: Box<str>, limit: Option<NonZeroU64>) -> Arc<Job> {
        self.last_number += 1;
        Arc::new(Job {
            number: self.last_number,
            owner,
            title,
            progress: Progress::new(limit),
            course: Mutex::new(Course {
                state: State::Queued,
                started: None,
                took: None,
                error: None,
            }),
        })
    }

    fn end(&mut self, job: &Arc<Job>, state: State, error: Option<String>) {
        {
            let mut course = job.course.lock();
            course.took = course.started.map(|start| start.elapsed());
            course.error = error.map(Into::into);
            if course.state == State::Running {
                self.running -= 1;
            }
            course.state = state;
        }
        let len = job.text_len();
        self.ended_text += len;
        self.ended.push_back((len, Arc::clone(job)));
        while self.ended.len() > MOST_ENDED || self.ended_text > MOST_TEXT {
            let Some((len, _)) = self.ended.pop_front() else {
                break;
            };
            self.ended_text -= len;
        }
    }
}

fn title(command: &CopyRequest) -> String {
    let sources: Vec<_> = command.sources.iter().map(|name| quote(name)).collect();
    format!("{} -> {}", sources.join(" "), quote(&command.destination))
}

pub(super) fn closed() -> Fail {
    Fail::new(Errno::CANCELED, "copy").because("the mount is going away")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(name: &str) -> CopyRequest {
        let line = format!("{name} to");
        match super::super::language::parse(line.as_bytes())
            .unwrap()
            .unwrap()
        {
            super::super::language::Request::Copy(copy) => *copy,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_list_tells_state_names_and_errors() {
        let registry = Registry::new();
        let done = registry.enter(7, &command("'a b'")).unwrap();
        registry.start(&done).unwrap();
        registry.end(&done, &Ok(()));
        let failed = registry.enter(8, &command("c")).unwrap();
        registry.end(
            &failed,
            &Err(Fail::new(Errno::NOENT, "open").because("why")),
        );
        registry.refuse(7, b"x\xff", &Fail::new(Errno::INVAL, "parse"));
        let waiting = registry.enter(7, &command("d")).unwrap();

        let all = registry.describe(0);
        let lines: Vec<_> = all.lines().collect();
        assert!(lines[0].contains("    1  done ") && lines[0].ends_with("-  'a b' -> to"));
        assert!(lines[1].contains("    2  failed") && lines[1].ends_with("c -> to"));
        assert_eq!(
            lines[2].trim(),
            "open: why: No such file or directory (os error 2)"
        );
        assert!(lines[3].ends_with(r"$'x\377'"));
        assert!(lines[5].contains("    4  queued"));

        let own = registry.describe(8);
        assert!(own.contains("c -> to") && !own.contains("'a b'"));
        registry.end(&waiting, &Err(Fail::new(Errno::INTR, "copy")));
        assert!(registry.describe(7).contains("4  cancelled"));
    }

    #[test]
    fn few_run_at_once_and_one_who_waits_can_be_cancelled() {
        let registry = Registry::new();
        let enter = || registry.enter(0, &command("a")).unwrap();
        let running: Vec<_> = (0..MOST_RUNNING).map(|_| enter()).collect();
        running.iter().for_each(|job| registry.start(job).unwrap());
        let (next, unwanted) = (enter(), enter());
        std::thread::scope(|scope| {
            let next_started = scope.spawn(|| registry.start(&next));
            let other_started = scope.spawn(|| registry.start(&unwanted));
            unwanted.progress.cancel();
            let refused = other_started.join().unwrap().unwrap_err();
            assert_eq!(refused.errno, Errno::INTR);
            registry.end(&unwanted, &Err(refused));
            assert!(!next_started.is_finished());
            registry.end(&running[0], &Ok(()));
            next_started.join().unwrap().unwrap();
        });
        assert_eq!(registry.table.lock().running, MOST_RUNNING);
    }

    #[test]
    fn old_jobs_are_forgotten_by_count_and_by_length() {
        let registry = Registry::new();
        let refusal = Fail::new(Errno::INVAL, "parse");
        for _ in 0..MOST_ENDED + 9 {
            registry.refuse(0, b"x", &refusal);
        }
        assert_eq!(registry.table.lock().ended.len(), MOST_ENDED);
        for _ in 0..40 {
            registry.refuse(0, &[b'y'; 60 << 10], &refusal);
        }
        let table = registry.table.lock();
        let kept: usize = table.ended.iter().map(|(_, job)| job.text_len()).sum();
        assert_eq!(kept, table.ended_text);
        assert!(kept <= MOST_TEXT && table.ended.len() > 10);
    }

    #[test]
    fn a_closed_registry_takes_nothing_and_stops_all() {
        let registry = Registry::new();
        let job = registry.enter(0, &command("a")).unwrap();
        registry.close();
        assert!(job.progress.is_cancelled());
        let refused = registry.enter(0, &command("a")).err().unwrap();
        assert_eq!(refused.errno, Errno::CANCELED);
    }

    #[test]
    fn a_rate_is_in_millions_of_bytes() {
        assert_eq!(
            megabytes_per_second(1_550_000, Duration::from_secs(1)),
            "1.5"
        );
        assert_eq!(
            megabytes_per_second(1 << 40, Duration::ZERO),
            "1099511627776.0"
        );
    }
}
