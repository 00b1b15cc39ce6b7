//! Copies by corfs' own engine.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::measured;
use crate::bench::outcome::Sample;
use crate::copy::language::args;
use crate::copy::progress::Progress;
use crate::copy::{Local, Order, tree};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, Result, usage};

/// Copies files into the directory `to`.
pub(super) fn copy(words: &[String], sources: &[PathBuf], to: &Path) -> Result<Sample> {
    let wrong = |why: String| Fail::new(Errno::INVAL, "copy").because(why);
    let line = ["copy".to_owned()].into_iter().chain(words.iter().cloned());
    let matches = args::arguments()
        .try_get_matches_from(line)
        .map_err(|error| wrong(error.to_string()))?;
    let options = args::options(&matches).map_err(|refusal| wrong(refusal.to_string()))?;
    // This process has one thread yet.
    let names = Local::of_this_process();
    let sources: Vec<Vec<u8>> = sources
        .iter()
        .map(|path| path.as_os_str().as_bytes().to_vec())
        .collect();
    let (progress, metrics) = (Progress::new(None), Metrics::new());
    let order = Order {
        options: &options,
        progress: &progress,
        metrics: &metrics,
    };
    let sample = measured(usage::own, || {
        tree::copy_all(&sources, to.as_os_str().as_bytes(), &names, &order)
    })?;
    // A method that is not possible falls to the next: that is another's measurement.
    if let (Some(wanted), Some(used)) = (options.method, progress.method())
        && wanted != used
    {
        return Err(Fail::new(Errno::OPNOTSUPP, "copy").because(format!(
            "{} is not possible here ({} was used)",
            wanted.name(),
            used.name()
        )));
    }
    Ok(sample)
}
