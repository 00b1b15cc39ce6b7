//! What one sees of a run while it lasts: a line with the time left; and its files after each round.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Failure;
use super::conduct::Observer;
use super::outcome::{Run, save};

/// Where to put what was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// All of it, for `draw` and `compare`.
    pub json: Option<PathBuf>,
    /// A line a sample.
    pub csv: Option<PathBuf>,
    /// A page for people.
    pub html: Option<PathBuf>,
}

impl Files {
    /// Writes what is for programs.
    pub(super) fn save(&self, run: &Run) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            save(path, &run.json())?;
        }
        if let Some(path) = &self.csv {
            save(path, &run.csv())?;
        }
        Ok(())
    }
}

/// Shows a line on a terminal, saves after each round, and stops on a signal.
pub(super) struct Progress {
    bar: ProgressBar,
    files: Files,
    stop: Arc<AtomicBool>,
    /// The first that could not be saved.
    pub(super) unsaved: Option<Failure>,
}

/// From here on Ctrl-C, TERM and HUP set this and no longer end the process: what is mounted must go
/// first.
pub(super) fn catch_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|error| Failure(format!("catch signals: {error}")))?;
    }
    Ok(stop)
}

impl Progress {
    pub(super) fn new(run: &Run, files: Files, stop: Arc<AtomicBool>) -> Self {
        let turns = (run.warmups + run.rounds + 1) * run.series.len();
        let bar = ProgressBar::new(turns as u64);
        let form = "{bar:24} {percent:>3} %, {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        Self {
            bar,
            files,
            stop,
            unsaved: None,
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn begins(&mut self, run: &Run, what: &str, at: usize) {
        let about = &run.series[at].about;
        self.bar.inc(1);
        self.bar
            .set_message(format!("{what}: {}, {}", about.work, about.subject));
    }

    fn round_done(&mut self, run: &Run) {
        if let Err(failure) = self.files.save(run) {
            self.unsaved.get_or_insert(failure);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
