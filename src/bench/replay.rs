//! `corfs replay`: a log of operations, played back against a directory.
use super::Failure;
use std::path::PathBuf;

/// What to play back, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The log; `-` is standard input.
    pub log: PathBuf,
    /// The directory; nothing outside of it is touched.
    pub directory: PathBuf,
    /// At the pace of the log.
    pub timed: bool,
}

/// Plays it back, and returns words for standard output.
pub fn run(_: &Replay) -> Result<String, Failure> {
    Err(Failure("not yet".into()))
}
