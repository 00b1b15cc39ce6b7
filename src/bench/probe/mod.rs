//! One piece of work, done once, in a process of its own: so that what it cost is what the kernel
//! counted for that process. `corfs bench probe` reads what to do, does it and prints the cost, all as
//! JSON.

mod chores;
mod copying;
mod faulting;
mod naming;
mod reading;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::outcome::Sample;
use crate::sys::usage::{self, Usage};
use crate::sys::{Errno, Fail, OrFail, Result};

pub(super) use chores::Chore;
pub(super) use faulting::Touching;
pub(super) use naming::Deed;
pub(super) use reading::Pattern;

/// What to do.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Probe {
    /// Nothing: what a process costs by itself.
    Nothing,
    /// `sources` into the directory `to`, by corfs' engine with these words of a copy.
    Copy {
        words: Vec<String>,
        sources: Vec<PathBuf>,
        to: PathBuf,
    },
    /// A command with its words, as another process.
    Command { words: Vec<String> },
    /// A file, or the files of a folder, are read by so many readers at once.
    Read {
        path: PathBuf,
        pattern: Pattern,
        /// Bytes a request.
        block: u64,
        /// O_DIRECT.
        direct: bool,
        readers: usize,
        /// Requests of each reader, where the pattern has no end of its own.
        requests: u64,
    },
    /// Names of a folder are made, looked at, removed.
    Names {
        folder: PathBuf,
        deed: Deed,
        count: u64,
    },
    /// Pages of a file are touched through mappings.
    Fault {
        path: PathBuf,
        touching: Touching,
        /// Bytes of a mapping.
        window: u64,
        requests: u64,
    },
    /// Not measured.
    Chore(Chore),
}

impl Probe {
    /// Whether it opens files, and so shows by whom they are served.
    pub(super) fn opens_files(&self) -> bool {
        match self {
            Self::Read { .. } => true,
            Self::Names { deed, .. } => matches!(deed, Deed::Open | Deed::Grep),
            Self::Command { words } => words.first().is_some_and(|word| word == "cp"),
            _ => false,
        }
    }

    /// Where it looks.
    fn place(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. } | Self::Fault { path, .. } => Some(path),
            Self::Names { folder, .. } => Some(folder),
            _ => None,
        }
    }

    /// The programs that it starts, with something small to do: `small` is a file.
    pub(super) fn small_scale(&self, small: &Path) -> Option<Self> {
        let Self::Command { words } = self else {
            return None;
        };
        let small = small.to_string_lossy().into_owned();
        let copy = format!("{small}.copy");
        let words = match words.first()?.as_str() {
            "sh" => ["sh", "-c", "printf x >\"$1\"", "sh", &copy]
                .map(str::to_owned)
                .to_vec(),
            _ => {
                let options = words.iter().take_while(|word| !word.starts_with('/'));
                options.cloned().chain([small, copy]).collect()
            }
        };
        Some(Self::Command { words })
    }
}

/// Does it in this process, and says what it cost as a line of JSON.
///
/// # Errors
/// In words, what was tried and what the system said.
pub(super) fn run(json: &str) -> std::result::Result<String, String> {
    let probe: Probe = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if let Probe::Chore(chore) = &probe {
        return chores::run(chore);
    }
    let sample = done(&probe).map_err(|fail| match probe.place() {
        Some(path) => format!("{fail}, in {}", path.display()),
        None => fail.to_string(),
    })?;
    serde_json::to_string(&sample).map_err(|error| error.to_string())
}

fn done(probe: &Probe) -> Result<Sample> {
    match probe {
        Probe::Nothing | Probe::Chore(_) => measured(usage::own, || Ok(())),
        Probe::Copy { words, sources, to } => copying::copy(words, sources, to),
        Probe::Command { words } => measured(usage::children, || command(words)),
        Probe::Read {
            path,
            pattern,
            block,
            direct,
            readers,
            requests,
        } => {
            let reading = reading::Reading::new(path, *pattern, *block, *direct, *requests)?;
            measured(usage::own, || reading.all(*readers))
        }
        Probe::Names {
            folder,
            deed,
            count,
        } => measured(usage::own, || naming::run(folder, *deed, *count)),
        Probe::Fault {
            path,
            touching,
            window,
            requests,
        } => faulting::run(path, *touching, *window, *requests),
    }
}

/// What the work cost, by the count of `usage`.
fn measured(usage: fn() -> Usage, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let before = usage();
    let began = Instant::now();
    work()?;
    let elapsed = began.elapsed();
    Ok(sample(elapsed, before, usage()))
}

fn sample(elapsed: Duration, before: Usage, after: Usage) -> Sample {
    Sample {
        round: 0,
        seconds: elapsed.as_secs_f64(),
        user: (after.user.saturating_sub(before.user)).as_secs_f64(),
        system: (after.system.saturating_sub(before.system)).as_secs_f64(),
        minor: after.minor_faults - before.minor_faults,
        major: after.major_faults - before.major_faults,
        voluntary: after.voluntary_switches - before.voluntary_switches,
        involuntary: after.involuntary_switches - before.involuntary_switches,
    }
}

fn command(words: &[String]) -> Result<()> {
    let [program, words @ ..] = words else {
        return Err(Fail::new(Errno::INVAL, "run").because("no command"));
    };
    let ended = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .or_fail("run the command")?;
    if !ended.success() {
        return Err(Fail::new(Errno::IO, "run").because(format!("{program}: {ended}")));
    }
    Ok(())
}

/// A fixed sequence of places: each run of a work, and each who does it, goes to the same.
fn random() -> fastrand::Rng {
    fastrand::Rng::with_seed(0x00c0_4f50)
}

#[cfg(test)]
mod tests;
