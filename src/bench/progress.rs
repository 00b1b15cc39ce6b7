//! What one sees of a run while it lasts: a line with the time left; and its files after each round.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Failure;
use super::conduct::Observer;
use super::outcome::{Run, can_save, save};
use super::page::page;
use crate::sys::signals::is_ignored;

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
    /// Whether all of them can be written, while nothing is lost yet if not.
    pub(super) fn can_save(&self) -> Result<(), Failure> {
        let all = [&self.json, &self.csv, &self.html];
        all.into_iter()
            .flatten()
            .try_for_each(|path| can_save(path))
    }

    /// Writes what is for programs, and returns why which of it could not be written.
    pub(super) fn save(&self, run: &Run) -> Vec<Failure> {
        let json = self.json.as_ref().map(|path| save(path, &run.json()));
        let csv = self.csv.as_ref().map(|path| save(path, &run.csv()));
        failures([json, csv])
    }

    /// Writes all of it.
    pub(super) fn save_all(&self, run: &Run) -> Vec<Failure> {
        let drawn = |path: &PathBuf| page(run).and_then(|page| save(path, &page));
        let mut all = self.save(run);
        all.extend(failures([self.html.as_ref().map(drawn)]));
        all
    }
}

fn failures<const N: usize>(tried: [Option<Result<(), Failure>>; N]) -> Vec<Failure> {
    let tried = tried.into_iter().flatten();
    tried.filter_map(Result::err).collect()
}

/// Shows a line on a terminal, saves after each round, and stops on a signal.
pub(super) struct Progress {
    bar: ProgressBar,
    files: Files,
    stop: Stop,
}

/// What Ctrl-C, TERM and HUP set, which no longer end the process: what is mounted must go first.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From here on. A signal that this process was started to ignore (nohup) stays ignored.
    pub(super) fn catch() -> Result<Self, Failure> {
        let stop = Self::default();
        let all = [SIGINT, SIGTERM, SIGHUP];
        for signal in all.into_iter().filter(|signal| !is_ignored(*signal)) {
            signal_hook::flag::register(signal, stop.0.clone())
                .map_err(|error| Failure(format!("catch signals: {error}")))?;
        }
        Ok(stop)
    }

    /// Whether one came.
    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when one came, for what takes long before the first round.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.asked() {
            true => Err(Failure("stopped before anything was measured".into())),
            false => Ok(()),
        }
    }

    /// As if one had come.
    #[cfg(test)]
    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Progress {
    pub(super) fn new(run: &Run, files: Files, stop: Stop) -> Self {
        let turns = (run.warmups + run.rounds + 1) * run.series.len();
        let bar = ProgressBar::new(turns as u64);
        let form = "{bar:24} {percent:>3} %, {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        Self { bar, files, stop }
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
        // What can't be written now is tried again after the next round; the end tells.
        let _ = self.files.save(run);
    }

    fn stopped(&self) -> bool {
        self.stop.asked()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn a_file_that_can_not_be_written_keeps_no_other_from_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            json: Some("/nonexistent/run.json".into()),
            csv: Some(folder.path().join("run.csv")),
            html: Some(folder.path().join("run.html")),
        };
        let refused = files.can_save().unwrap_err();
        assert!(refused.0.contains("/nonexistent/run.json"), "{refused:?}");
        let failed = files.save_all(&run(vec![series("w", "native", true, &[1.0])]));
        assert_eq!(
            failed,
            [save(Path::new("/nonexistent/run.json"), "").unwrap_err()]
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
