//! `corfs copy`: what lies in a mount goes through its `.copy`, everything else by this process.

mod native;
mod stop;
mod through;
mod view;
mod watched;

use serde::{Deserialize, Serialize};

use super::logging::Sink;
use super::refusal::{Code, Refusal};
use crate::copy::language::{args::Asked, quote, wording::title};
use crate::copy::options::{CopyOptions, Method};
use crate::sys::Errno;
use stop::Stop;
use through::Through;
use view::View;

/// What to copy, and how to tell of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Copying {
    /// The names and the options.
    pub asked: Asked,
    /// To whom.
    pub telling: Telling,
}

/// How the copy is told of. Errors go to standard error in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// A progress bar, if standard error is a terminal.
    Bar,
    /// A line of JSON a second on standard output, and one for the result.
    Json,
    /// Not at all.
    Nothing,
}

/// How far a copy is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Standing {
    /// What moves, or moved, the bytes last; absent as long as nothing has.
    method: Option<String>,
    workers: u16,
    bytes_done: u64,
    bytes_total: u64,
    files_done: u64,
    files_total: u64,
    /// The totals are final.
    totals_known: bool,
    /// Files that could not be copied.
    failed: u64,
}

/// A file of a tree that could not be copied.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Failed {
    /// What is no UTF-8 in it is replaced by U+FFFD.
    path: String,
    errno: i32,
    error: String,
}

/// Why a copy did not end well.
#[derive(Clone, Debug)]
struct Why {
    errno: Errno,
    words: String,
}

impl Why {
    /// It was told to stop: by a signal to this process, or by another's word to the mount's job.
    fn is_cancel(&self) -> bool {
        matches!(self.errno, Errno::INTR | Errno::CANCELED)
    }
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    standing: Standing,
    /// The first hundred, if it was a tree.
    failed: Vec<Failed>,
    end: Result<(), Why>,
}

/// Copies, and tells of it.
///
/// To be called while the process has one thread. One who is told to stop ends by that signal.
pub fn run(copying: &Copying) -> Result<(), Refusal> {
    let asked = &copying.asked;
    // What had to be left behind is told by the log alone.
    Sink::Stderr.install_from("warn");
    let stop = Stop::catch()?;
    let mut view = View::new(copying.telling);
    let outcome = match Through::find(asked) {
        Some(through) => through.copy(&stop, &mut view)?,
        None => native::copy(asked, &stop, &mut view)?,
    };
    view.end(&outcome)?;
    let Err(why) = &outcome.end else {
        return Ok(());
    };
    for failed in &outcome.failed {
        let path = quote(failed.path.as_bytes());
        complain(&format!("copy {path}: {}", failed.error));
    }
    if why.errno == Errno::INTR
        && let Some(signal) = stop.asked()
    {
        complain(&format!("copy: stopped; {}", what_is_left(&asked.options)));
        stop.end(signal)?;
    }
    Err(Refusal {
        code: Code::Usage,
        words: words(asked, &outcome, why),
    })
}

/// What one finds who stopped it.
fn what_is_left(options: &CopyOptions) -> &'static str {
    if options.inplace {
        "the destination is written in part"
    } else if options.resume {
        "the same words again go on from there"
    } else if options.recursive {
        "what was copied whole stays, nothing else is left"
    } else {
        "nothing that is not whole is left"
    }
}

/// What was tried, on what, what the system said, what to do.
fn words(asked: &Asked, outcome: &Outcome, why: &Why) -> String {
    let what = match asked.sources.as_slice() {
        [_] => title(&asked.sources, &asked.destination),
        several => format!("{} names -> {}", several.len(), quote(&asked.destination)),
    };
    let more = outcome
        .standing
        .failed
        .saturating_sub(outcome.failed.len() as u64);
    let more = match more {
        0 => String::new(),
        more => format!(" (and {more} not listed)"),
    };
    format!("copy {what}: {}{more}{}", why.words, remedy(why.errno))
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ISDIR => "; -r copies directories",
        Errno::NOSPC | Errno::DQUOT => "; what stood at the destination stands unchanged",
        Errno::BUSY => "; copy it again when nobody changes it",
        Errno::AGAIN => "; try again when others are done",
        Errno::OPNOTSUPP => "; leave the method to corfs (--method=auto)",
        Errno::CANCELED => "; it was cancelled by another, or the mount has gone",
        _ => "",
    }
}

/// A line on standard error, which may be closed: the exit code still tells.
fn complain(words: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "corfs: {words}");
}

fn method_name(method: Method) -> String {
    method.name().to_owned()
}
