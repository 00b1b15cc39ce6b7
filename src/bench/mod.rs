//! The laboratory: `corfs bench` measures any directory, mount or peer, `corfs replay` plays an
//! operation log back.
//!
//! `experiments` plan works, `conduct` has everyone do them in rounds, `live` does them for real, in the
//! `place`s of a `stage`, a process each (`probe`), which `child` waits for; `outcome` is what was found,
//! `statistics` what it means, `answers` what it says in words, `table`, `page`, `plot` and `compare`
//! how it looks.

mod answers;
mod child;
mod compare;
mod conduct;
mod experiments;
mod live;
mod machine;
mod mounted;
mod outcome;
mod page;
mod pages;
mod place;
mod plot;
mod probe;
mod progress;
pub mod replay;
mod stage;
mod statistics;
mod table;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys::process;
use live::Live;
use outcome::{Run, VERSION};
use place::Place;
use progress::{Progress, Stop};
use stage::Stage;

pub use progress::Files;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experiment {
    /// Copies, by every method.
    Copy,
    /// Reading through mounts.
    Read,
    /// Names and attributes.
    Meta,
    /// Pages of mappings.
    Fault,
}

impl Experiment {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Read => "read",
            Self::Meta => "meta",
            Self::Fault => "fault",
        }
    }
}

/// What to measure, and how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// What.
    pub experiment: Experiment,
    /// Where: the first is what all others are compared with. Names are for people.
    pub directories: Vec<(Option<String>, PathBuf)>,
    /// Mounts of corfs, by name and words for `-o`; without any, some that make sense.
    pub corfs: Vec<(String, String)>,
    /// No mount of corfs at all.
    pub no_corfs: bool,
    /// Other mounts, by name and command.
    pub peers: Vec<(String, String)>,
    /// Rounds that count, and rounds before.
    pub rounds: usize,
    /// Those before.
    pub warmups: usize,
    /// Of the order; by the clock unless given.
    pub seed: Option<u64>,
    /// Bytes of the large file.
    pub size: u64,
    /// Bytes of the files of a sweep.
    pub sizes: Vec<u64>,
    /// Small files.
    pub files: u64,
    /// Readers at once.
    pub readers: Vec<usize>,
    /// Bytes of mapped windows.
    pub windows: Vec<u64>,
    /// Bytes of window budgets.
    pub budgets: Vec<u64>,
    /// Bytes of chunks.
    pub chunks: Vec<u64>,
    /// Workers of a copy.
    pub workers: Vec<u64>,
    /// Cold caches, too.
    pub cold: bool,
    /// Only works whose name has one of these words in it.
    pub only: Vec<String>,
    /// No runs of their own to sample memory and count system calls.
    pub no_look: bool,
    /// How long a work may take before it is given up.
    pub limit: Duration,
    /// Where to put what was found.
    pub files_out: Files,
    /// The words of the command line.
    pub command: String,
}

impl Measure {
    fn directory_name(&self) -> &str {
        let first = self.directories.first();
        first
            .and_then(|(name, _)| name.as_deref())
            .unwrap_or("native")
    }
}

/// What `corfs bench` is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Measure.
    Measure(Box<Measure>),
    /// Show a saved run again.
    Draw {
        /// The run.
        run: PathBuf,
        /// The page to write, if any.
        html: Option<PathBuf>,
    },
    /// Compare two saved runs.
    Compare {
        /// The older one.
        before: PathBuf,
        /// The newer one.
        after: PathBuf,
    },
    /// Do one piece of work, for the process that measures: standard input says which.
    Probe,
}

/// Why something could not be measured, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

/// Does what is asked, and returns words for standard output.
///
/// # Errors
/// In words. Whoever is stopped by a signal keeps the rounds that were saved.
pub fn run(request: &Request) -> Result<String, Failure> {
    match request {
        Request::Measure(asked) => measure(asked),
        Request::Draw { run, html } => {
            let run = Run::read(run)?;
            if let Some(path) = html {
                outcome::save(path, &page::page(&run)?)?;
            }
            Ok(table::table(&run))
        }
        Request::Compare { before, after } => {
            Ok(compare::compare(&Run::read(before)?, &Run::read(after)?))
        }
        Request::Probe => {
            let json = std::io::read_to_string(std::io::stdin());
            let json = json.map_err(|error| Failure(format!("read what to do: {error}")))?;
            probe::run(&json).map_err(Failure)
        }
    }
}

fn measure(asked: &Measure) -> Result<String, Failure> {
    process::raise_descriptor_limit();
    if asked.cold && !pages::drop_caches() {
        return Err(Failure(
            "--cold takes root: the kernel is to drop its caches".into(),
        ));
    }
    asked.files_out.can_save()?;
    let stop = Stop::catch()?;
    let (mut live, mut run) = set_up(asked, &stop)?;
    if !asked.no_look {
        look(asked, &mut live, &mut run);
    }
    let mut progress = Progress::new(&run, !asked.no_look, asked.files_out.clone(), stop);
    conduct::conduct(&mut run, &mut live, &mut progress);
    progress.end();
    drop(live);
    if run.series.iter().any(|series| series.calls.is_some()) {
        run.notes.push(COUNTED.into());
    }
    run.machine.load[1] = machine::load();
    report(&asked.files_out, &run)
}

/// Saves the run and shows it; what went wrong stands before the table, for this is all that is left
/// of what could not be saved.
fn report(files: &Files, run: &Run) -> Result<String, Failure> {
    let mut wrong: Vec<String> = files.save_all(run).into_iter().map(|f| f.0).collect();
    if !run.complete {
        wrong.push("stopped".into());
    }
    let table = table::table(run);
    if wrong.is_empty() {
        return Ok(table);
    }
    let wrong = wrong.join("; ");
    Err(Failure(format!("{wrong}; this was measured:\n{table}")))
}

/// Makes the files, plans the works, and mounts everybody.
fn set_up(asked: &Measure, stop: &Stop) -> Result<(Live, Run), Failure> {
    let (_, directory) = (asked.directories.first()).ok_or(Failure("no directory".into()))?;
    let home = Stage::new(directory)?;
    let privileged = rustix::process::geteuid().is_root();
    // On an early return places go before what they lie in.
    let mut places = Vec::new();
    let subjects = experiments::subjects(asked, privileged)?;
    for (number, subject) in subjects.into_iter().enumerate() {
        places.push(Place::new(subject, &home, number, asked.limit, stop)?);
    }
    // A file system may keep what it has listed: the files are there before it is.
    let plan = experiments::plan(asked, &places, stop)?;
    for place in &mut places {
        place.mount();
        stop.check()?;
        place.fill_cache()?;
        if let Err(why) = place.is_there() {
            // The tables tell it too, but they come at the end.
            eprintln!("corfs: {} is left out: {why}", place.subject.name);
        }
    }
    let run = Run {
        version: VERSION,
        experiment: asked.experiment.name().into(),
        began: now(),
        machine: machine::describe(directory),
        command: asked.command.clone(),
        rounds: asked.rounds,
        warmups: asked.warmups,
        seed: asked.seed.unwrap_or_else(now),
        state: state_in_words(asked),
        notes: notes(asked),
        complete: false,
        series: plan.series,
    };
    let live = Live::new(home, places, plan.tasks, asked.limit, stop);
    Ok((live, run))
}

/// What the names of works do not say.
fn notes(asked: &Measure) -> Vec<String> {
    match asked.experiment {
        Experiment::Copy => vec![
            "cp: with --reflink=never, so that it reads and writes; cp by default: without, so that \
             it may share extents or have the file system copy (copy_file_range), in a mount too; \
             .copy: a line with --reflink=never."
                .into(),
        ],
        _ => Vec::new(),
    }
}

/// How system calls were counted, where they were.
const COUNTED: &str = "System calls: counted by strace in a run of its own, those of an empty \
                       process taken off; those of a daemon are not among them.";

/// What is looked at beside the time.
fn look(asked: &Measure, live: &mut Live, run: &mut Run) {
    live.look_at_memory();
    if !matches!(asked.experiment, Experiment::Copy | Experiment::Fault) {
        return;
    }
    if let Err(why) = live.count_calls() {
        run.notes.push(format!("System calls: not counted, {why}."));
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// What was done to caches and memory, for those who judge the numbers.
fn state_in_words(asked: &Measure) -> String {
    let cold = if asked.cold {
        " Works called cold: everything mounted is unmounted first (mapped pages survive a drop of \
         caches, whoever mapped them), what is measured is mounted anew, the others when they come \
         next, and the kernel drops all its caches; corfs, cp and sh, which do the works, have run \
         once since then."
    } else {
        ""
    };
    format!(
        "Before each run dirty pages are written out, the source's files are read once, so that \
         they are in the page cache, the pages that a mount holds of them are dropped \
         (POSIX_FADV_DONTNEED), and as much memory as the run fills is touched and freed. Works \
         called \"fresh mount\" or small files, and those that get a folder of their own (copies, \
         create, rename, unlink): mounted anew just before. A mount whose cache lies \
         in the folder of the bench has read all files before the first round, so that they are in \
         it, and what it keeps there is in the page cache too. O_DIRECT in the directory itself, \
         and in passthrough, goes to the disk (not on tmpfs); through other mounts it goes past \
         the mount's page cache to the source's. \"Again\": the same work was done just before, on \
         the same mount.{cold} Each run is a process of its own, whose start is not in the time; \
         but that of cp is, and that of the sh which writes a line to .copy: they are programs that \
         this process starts. Memory is sampled in a run of its own, \
         each millisecond: what ends sooner shows none."
    )
}

#[cfg(test)]
mod tests {
    use super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn what_can_not_be_saved_is_shown() {
        let run = run(vec![series("work", "native", true, &[1.0])]);
        let files = Files {
            json: Some("/nonexistent/run.json".into()),
            ..Files::default()
        };
        let said = report(&files, &run).unwrap_err().0;
        assert!(said.contains("write /nonexistent/run.json"), "{said}");
        assert!(said.contains("work [op/s]"), "{said}");
        assert!(
            report(&Files::default(), &run)
                .unwrap()
                .contains("work [op/s]")
        );
    }
}
