//! What is to be done on a mount beside the measured works: whoever waits for it can be killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bench::mounted::{end, unmount};
use crate::bench::pages::{below, drop_caches, drop_pages, warm};
use crate::bench::progress::Stop;

/// One of them.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::bench) enum Chore {
    /// Whether it answers.
    Look(PathBuf),
    /// The text of a file.
    Text(PathBuf),
    /// The pages that are cached of all files below are dropped.
    Drop(Vec<PathBuf>),
    /// All files below are read.
    Warm(PathBuf),
    /// The mount goes.
    Unmount(PathBuf),
    /// It goes, although its daemon does not answer.
    End { point: PathBuf, connection: u32 },
    /// The kernel drops all that it caches.
    DropCaches,
}

/// Does it, and returns its answer.
pub(super) fn run(chore: &Chore) -> Result<String, String> {
    let failed =
        |what: &str, path: &Path, error: io::Error| format!("{what} {}: {error}", path.display());
    match chore {
        Chore::Look(path) => {
            fs::metadata(path).map_err(|error| failed("stat", path, error))?;
        }
        Chore::Text(path) => {
            return fs::read_to_string(path).map_err(|error| failed("read", path, error));
        }
        Chore::Drop(paths) => paths.iter().for_each(|path| below(path, &mut drop_pages)),
        // What can't be read is not there when it is looked for.
        Chore::Warm(path) => below(path, &mut |path| drop(warm(path, &Stop::default()))),
        Chore::Unmount(point) => unmount(point),
        Chore::End { point, connection } => end(point, *connection),
        Chore::DropCaches => drop(drop_caches()),
    }
    Ok(String::new())
}
