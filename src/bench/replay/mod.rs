//! `corfs replay`: a log of operations, played back against a directory.
//!
//! One operation after the other, as the one who calls it: by the files that the log has opened, else
//! by names. Locks, and who asked, are not played back.

mod actor;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Failure;
use super::statistics::median;
use crate::observe::oplog::{Entry, HEADER, LOST};
use crate::sys::procfd;
use actor::{Actor, Played};

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

/// What came of one kind of operation.
#[derive(Debug, Default)]
struct Outcome {
    then: Vec<f64>,
    now: Vec<f64>,
    /// Other errnos than in the log, or another number of bytes.
    otherwise: u64,
    /// Of these the first: what the log says, and what came.
    first: Option<(End, End)>,
    left_out: u64,
}

/// What an operation ended with.
#[derive(Clone, Copy, Debug)]
struct End {
    errno: i32,
    /// How many bytes went, where some do and it is known.
    bytes: Option<u64>,
}

impl End {
    fn is_as(&self, other: &Self) -> bool {
        // An older log does not tell of bytes.
        let bytes = self.bytes.zip(other.bytes);
        self.errno == other.errno && (self.errno != 0 || bytes.is_none_or(|(a, b)| a == b))
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.errno, self.bytes) {
            (0, Some(bytes)) => write!(f, "{bytes} bytes"),
            (0, None) => f.write_str("well"),
            (errno, _) => std::io::Error::from_raw_os_error(errno).fmt(f),
        }
    }
}

/// What came of all.
#[derive(Debug, Default)]
struct Account {
    operations: BTreeMap<&'static str, Outcome>,
    lost: u64,
    unread: u64,
}

/// Plays it back, and returns words for standard output.
///
/// # Errors
/// When the log can't be read or is none, or the directory can't be opened, or what is done there
/// would be told in that very log. What an operation of
/// the log ends with is told in the words, and is no error.
pub fn run(replay: &Replay) -> Result<String, Failure> {
    let directory = &replay.directory;
    let mut actor = Actor::new(directory)
        .map_err(|fail| Failure(format!("replay in {}: {fail}", directory.display())))?;
    let log = open(&replay.log)?;
    if is_told_of(&log, actor.root()) {
        return Err(Failure(format!(
            "replay {} in {}: this log would tell of its own replay, without end; save it to a file \
             first, or name a directory outside of that mount",
            replay.log.display(),
            directory.display()
        )));
    }
    let mut log = BufReader::new(log);
    let failed = |error| Failure(format!("read {}: {error}", replay.log.display()));
    let mut account = Account::default();
    let (began, mut first) = (Instant::now(), None);
    let mut line = Vec::new();
    let mut is_log = false;
    loop {
        line.clear();
        if log.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        if HEADER.lines().next() == Some(text) {
            is_log = true;
            actor.forget_files();
        }
        let Some(entry) = Entry::parse(text) else {
            account.is_no_operation(text);
            continue;
        };
        is_log = true;
        if replay.timed {
            let first = *first.get_or_insert(entry.time);
            let Some(due) = began.checked_add(entry.time.saturating_sub(first)) else {
                // A time that no clock reaches.
                account.unread += 1;
                continue;
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        account.play(&mut actor, &entry);
    }
    if !is_log {
        let shown = replay.log.display();
        return Err(Failure(format!(
            "{shown} is no log of operations (.corfs/oplog)"
        )));
    }
    Ok(account.words())
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = match path == Path::new("-") {
        true => std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map(File::from),
        false => File::open(path),
    };
    file.map_err(|e| Failure(format!("read {}: {e}", path.display())))
}

/// Whether it is the log itself (a saved one tells of nothing new) of the mount that the directory is
/// on.
fn is_told_of(log: &File, directory: &OwnedFd) -> bool {
    let device = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(|stat| stat.st_dev).ok();
    let is_fuse = rustix::fs::fstatfs(log).is_ok_and(|stat| stat.f_type == libc::FUSE_SUPER_MAGIC);
    let name = std::fs::read_link(procfd::path(log.as_fd()));
    is_fuse
        && name.is_ok_and(|name| name.ends_with(".corfs/oplog"))
        && device(rustix::fs::fstat(log)) == device(rustix::fs::fstat(directory))
}

impl Account {
    fn is_no_operation(&mut self, line: &str) {
        if let Some(lost) = line.strip_prefix(LOST) {
            self.lost = self.lost.saturating_add(lost.trim().parse().unwrap_or(0));
        } else if !line.starts_with('#') && !line.is_empty() {
            self.unread += 1;
        }
    }

    fn play(&mut self, actor: &mut Actor, entry: &Entry) {
        let began = Instant::now();
        let played = actor.play(entry);
        let took = began.elapsed();
        let outcome = self.operations.entry(entry.op.label()).or_default();
        match played {
            Played::LeftOut => outcome.left_out += 1,
            Played::Ended(errno) => {
                outcome.then.push(entry.took.as_secs_f64());
                outcome.now.push(took.as_secs_f64());
                let then = End {
                    errno: entry.errno,
                    bytes: entry.bytes,
                };
                let bytes = actor.moved();
                let now = End { errno, bytes };
                if !then.is_as(&now) {
                    outcome.otherwise += 1;
                    outcome.first.get_or_insert((then, now));
                }
            }
        }
    }

    fn words(&self) -> String {
        let mut out = format!(
            "{:<16} {:>9} {:>10} {:>10} {:>9} {:>9}\n",
            "operation", "played", "p50 then", "p50 now", "otherwise", "left out"
        );
        // Writing to a String cannot fail.
        for (name, o) in &self.operations {
            let [then, now] = [&o.then, &o.now].map(|all| micros(median(all)));
            let _ = write!(
                out,
                "{name:<16} {:>9} {then:>10} {now:>10} {:>9} {:>9}",
                o.now.len(),
                o.otherwise,
                o.left_out
            );
            let _ = match o.first {
                Some((then, now)) => writeln!(out, "  first: {then} then, {now} now"),
                None => writeln!(out),
            };
        }
        if self.lost > 0 {
            let _ = writeln!(
                out,
                "{} operations were lost when the log was read",
                self.lost
            );
        }
        if self.unread > 0 {
            let _ = writeln!(
                out,
                "{} lines are no operations and were left out",
                self.unread
            );
        }
        out
    }
}

fn micros(seconds: Option<f64>) -> String {
    // Not by way of a Duration, which does not hold all that a log may say.
    seconds.map_or("-".into(), |seconds| format!("{:.1} us", seconds * 1e6))
}

#[cfg(test)]
mod tests;
