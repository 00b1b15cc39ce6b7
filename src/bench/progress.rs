//! What one sees of a run while it lasts: a line with the time left; and its files after each round.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::Failure;
use super::conduct::Observer;
use super::outcome::{Run, Series, can_save, save};
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
        let all: Vec<&PathBuf> = all.into_iter().flatten().collect();
        for (at, path) in all.iter().enumerate() {
            if all[..at].contains(path) {
                return Err(Failure(format!(
                    "{}: two of --json, --csv and --html would overwrite each other; give each a \
                     file of its own",
                    path.display()
                )));
            }
            can_save(path)?;
        }
        Ok(())
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
    /// How often each series is to come, if it does not fail.
    turns: u64,
    /// How often each has come.
    came: Vec<u64>,
    files: Files,
    stop: Stop,
}

/// What Ctrl-C, Ctrl-\, TERM and HUP set, which no longer end the process: what is mounted must go first.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From here on. A signal that this process was started to ignore (nohup) stays ignored.
    pub(super) fn catch() -> Result<Self, Failure> {
        let stop = Self::default();
        let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
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
    /// `looks`: each comes once more at the end, for memory and calls.
    pub(super) fn new(run: &Run, looks: bool, files: Files, stop: Stop) -> Self {
        let turns = (run.warmups + run.rounds) as u64 + u64::from(looks);
        let came = vec![0; run.series.len()];
        let bar = ProgressBar::new(turns * came.len() as u64);
        let form = "{bar:24} {percent:>3} %, {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        Self {
            bar,
            turns,
            came,
            files,
            stop,
        }
    }

    /// Who has failed comes no more: what it would have done is neither done nor left.
    fn all(&self, run: &Run) -> u64 {
        let of = |(series, came): (&Series, &u64)| match series.failed {
            Some(_) => *came,
            None => self.turns.max(*came),
        };
        run.series.iter().zip(&self.came).map(of).sum()
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn begins(&mut self, run: &Run, what: &str, at: usize) {
        let about = &run.series[at].about;
        // It is done when the next begins.
        self.bar.set_position(self.came.iter().sum());
        self.came[at] += 1;
        self.bar.set_length(self.all(run));
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
    fn one_file_is_not_for_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let files = Files {
            json: Some(path.clone()),
            html: Some(path),
            ..Files::default()
        };
        let refused = files.can_save().unwrap_err().0;
        assert!(refused.contains("overwrite each other"), "{refused}");
    }

    /// Where the line stands, and where it is to end.
    #[test]
    fn the_line_counts_what_is_done_and_leaves_out_who_has_failed() {
        let all = ["a", "b"].map(|who| series("work", who, who == "a", &[]));
        let mut run = run(all.to_vec());
        (run.warmups, run.rounds) = (1, 3);
        let mut progress = Progress::new(&run, true, Files::default(), Stop::default());
        let stands =
            |progress: &Progress| (progress.bar.position(), progress.bar.length().unwrap());
        progress.begins(&run, "warm-up", 1);
        assert_eq!(stands(&progress), (0, 10));
        assert_eq!(progress.bar.message(), "warm-up: work, b");
        progress.begins(&run, "warm-up", 0);
        assert_eq!(stands(&progress), (1, 10));
        // b has four turns left that nobody waits for.
        run.series[1].failed = Some("gone".into());
        for done in 2..6 {
            progress.begins(&run, "round", 0);
            assert_eq!(stands(&progress), (done, 6));
        }
    }

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
