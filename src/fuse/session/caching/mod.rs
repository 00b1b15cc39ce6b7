//! `corfs cache`: looking at caches, filling and emptying them, from outside.
//!
//! What is stored is read and changed by this process itself, under the locks that mounts use too:
//! so all of it works while caches are in use, and when no mount stands.

mod keep;
mod look;
mod place;
mod warm;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::refusal::{Code, Refusal, said};
use place::Target;
use warm::Warming;

/// A command of `corfs cache`, and how to tell of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheCommand {
    /// What to do.
    pub action: Action,
    /// An object a line, for programs.
    pub json: bool,
}

/// What to do. A place is a cache directory or a path in a mount; without one it is the user's own
/// cache.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Show what there is in all.
    Status(Option<PathBuf>),
    /// Show every file.
    List(Option<PathBuf>),
    /// Read files and trees of mounts.
    Warm {
        /// Which.
        paths: Vec<PathBuf>,
        /// Files that are read at once.
        workers: usize,
        /// Bytes after which it is enough.
        limit: Option<u64>,
        /// Without a bar and a last word.
        quiet: bool,
    },
    /// Keep from being evicted.
    Pin(Vec<PathBuf>),
    /// No longer.
    Unpin(Vec<PathBuf>),
    /// Compare with checksums.
    Verify(Option<PathBuf>),
    /// Remove.
    Evict {
        /// Of which.
        place: Option<PathBuf>,
        /// Bytes that may stay.
        keep: u64,
        /// Also what is pinned.
        pinned: bool,
    },
    /// Find and remove what is of no use, and count anew.
    Check(Option<PathBuf>),
}

/// A file that something was not done with.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "failed")]
struct Failed {
    /// What is no UTF-8 in it is replaced by U+FFFD.
    path: String,
    errno: i32,
    error: String,
}

impl Failed {
    fn new(path: &Path, error: &std::io::Error) -> Self {
        Self {
            path: path.to_string_lossy().into_owned(),
            errno: error.raw_os_error().unwrap_or(0),
            error: said(std::io::Error::from_raw_os_error(
                error.raw_os_error().unwrap_or(libc::EIO),
            )),
        }
    }
}

/// Does it, and tells of it.
pub fn run(caching: &CacheCommand) -> Result<(), Refusal> {
    let json = caching.json;
    let target = |place: &Option<PathBuf>| Target::of(place.as_deref());
    match &caching.action {
        Action::Status(place) => look::status(&target(place)?, json),
        Action::List(place) => look::list(&target(place)?, json),
        Action::Warm {
            paths,
            workers,
            limit,
            quiet,
        } => warm::warm(&Warming {
            paths,
            workers: *workers,
            limit: *limit,
            quiet: *quiet,
            json,
        }),
        Action::Pin(paths) => keep::pin(paths, true, json),
        Action::Unpin(paths) => keep::pin(paths, false, json),
        Action::Verify(place) => look::verify(&target(place)?, json),
        Action::Evict {
            place,
            keep,
            pinned,
        } => keep::evict(&target(place)?, *keep, *pinned, json),
        Action::Check(place) => look::check(&target(place)?, json),
    }
}

/// A line of JSON on standard output.
fn print(line: &impl Serialize) -> Result<(), Refusal> {
    let written = serde_json::to_vec(line)
        .map_err(std::io::Error::from)
        .and_then(|mut text| {
            text.push(b'\n');
            std::io::stdout().write_all(&text)
        });
    written.map_err(|error| unwritten(&error))
}

/// A line for people on standard output.
fn say(words: &str) -> Result<(), Refusal> {
    let written = std::io::stdout().write_all(format!("{words}\n").as_bytes());
    written.map_err(|error| unwritten(&error))
}

fn unwritten(error: &std::io::Error) -> Refusal {
    Refusal {
        code: Code::System,
        words: format!("write to standard output: {error}"),
    }
}

/// A line on standard error, which may be closed: the exit code still tells.
fn complain(words: &str) {
    let _ = writeln!(std::io::stderr(), "corfs: {words}");
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
