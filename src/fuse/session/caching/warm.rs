//! Reading files through a mount, several at once, so that they are cached.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use rustix::fs::Advice;
use serde::Serialize;

use super::place::Target;
use super::{Failed, complain, print};
use crate::cache::StoreView;
use crate::fuse::session::refusal::{Refusal, shown};
use crate::sys::Aligned;

/// Bytes of one read: the most that FUSE asks for at a time.
const REQUEST: usize = 1 << 20;
/// Files that are found and wait to be read.
const WAITING: usize = 1024;
/// How often programs are told.
const SECOND: Duration = Duration::from_secs(1);
/// How many that could not be read are listed.
const LISTED: usize = 100;
const BAR: &str = "{wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}{msg}";

/// What to read, and how.
pub(super) struct Warming<'a> {
    pub(super) paths: &'a [PathBuf],
    pub(super) workers: usize,
    pub(super) limit: Option<u64>,
    pub(super) quiet: bool,
    pub(super) json: bool,
}

/// How far it is.
#[derive(Debug, Default)]
struct Course {
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    /// Files that were cached whole.
    whole: AtomicU64,
    failures: AtomicU64,
    failed: Mutex<Vec<Failed>>,
    /// The limit is reached.
    enough: AtomicBool,
    over: AtomicBool,
}

#[derive(Serialize)]
struct Standing {
    r#type: &'static str,
    files_done: u64,
    files_total: u64,
    files_whole_before: u64,
    bytes_done: u64,
    bytes_total: u64,
    failed: u64,
    limit_reached: bool,
    seconds: f64,
}

/// Reads all of it; an error of a file is told and counted.
pub(super) fn warm(warming: &Warming<'_>) -> Result<(), Refusal> {
    let targets: Vec<Target> = warming
        .paths
        .iter()
        .map(|path| Target::within(path))
        .collect::<Result<_, _>>()?;
    let course = Course::default();
    let started = Instant::now();
    let (sender, receiver) = sync_channel(WAITING);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..warming.workers)
            .map(|_| scope.spawn(|| read_all(&receiver, warming, &course)))
            .collect();
        scope.spawn(|| tell(warming, &course, started));
        for (path, target) in warming.paths.iter().zip(&targets) {
            find(path, target, &sender, &course);
        }
        drop(sender);
        for reader in readers {
            // One that panicked has left a file unread, which the numbers show.
            let _ = reader.join();
        }
        course.over.store(true, Ordering::Release);
    });
    end(warming, &course, started)
}

/// Hands on every regular file at or below `path`; symbolic links are not followed.
fn find(path: &Path, target: &Target, sender: &SyncSender<Found>, course: &Course) {
    let mut left = vec![path.to_owned()];
    // Where it can't be looked at, everything is read.
    let stores = target.stores().unwrap_or_default();
    let is_whole = |path: &Path, meta: &fs::Metadata| {
        let of = |(_, store): &(_, StoreView<'_>)| target.is_whole(store, path, meta);
        stores.iter().any(of)
    };
    while let Some(path) = left.pop() {
        if course.enough.load(Ordering::Relaxed) {
            return;
        }
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) => {
                course.fails(&path, &error);
                continue;
            }
        };
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => left.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) => course.fails(&path, &error),
            }
        } else if meta.is_file() {
            course.found_files.fetch_add(1, Ordering::Relaxed);
            course.found_bytes.fetch_add(meta.size(), Ordering::Relaxed);
            if is_whole(&path, &meta) {
                course.whole.fetch_add(1, Ordering::Relaxed);
                course.files.fetch_add(1, Ordering::Relaxed);
                course.bytes.fetch_add(meta.size(), Ordering::Relaxed);
                continue;
            }
            if sender.send(Found { path }).is_err() {
                return;
            }
        }
    }
}

/// A file that is to be read.
struct Found {
    path: PathBuf,
}

fn read_all(receiver: &Mutex<Receiver<Found>>, warming: &Warming<'_>, course: &Course) {
    let mut memory = Aligned::default();
    loop {
        // The lock is held while waiting: those who are idle wait for it instead.
        let Ok(found) = receiver.lock().recv() else {
            return;
        };
        if course.enough.load(Ordering::Relaxed) {
            continue;
        }
        let buffer = memory.room(REQUEST).map_err(|fail| fail.errno.into());
        match buffer.and_then(|buffer| read(&found.path, buffer, warming, course)) {
            Ok(()) => {
                course.files.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => course.fails(&found.path, &error),
        }
    }
}

/// Reads one file to its end, and leaves no pages of it behind.
fn read(path: &Path, buffer: &mut [u8], warming: &Warming<'_>, course: &Course) -> io::Result<()> {
    let mut file = File::open(path)?;
    // The kernel asks for more at a time; that it does not is no error.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    loop {
        let count = match file.read(buffer) {
            Ok(0) => break,
            Ok(count) => count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let all = course.bytes.fetch_add(count, Ordering::Relaxed) + count;
        if warming.limit.is_some_and(|limit| all >= limit) {
            course.enough.store(true, Ordering::Relaxed);
            break;
        }
    }
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    Ok(())
}

impl Course {
    fn fails(&self, path: &Path, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut failed = self.failed.lock();
        if failed.len() < LISTED {
            failed.push(Failed::new(path, error));
        }
    }

    fn standing(&self, r#type: &'static str, started: Instant) -> Standing {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Standing {
            r#type,
            files_done: of(&self.files),
            files_total: of(&self.found_files),
            files_whole_before: of(&self.whole),
            bytes_done: of(&self.bytes),
            bytes_total: of(&self.found_bytes),
            failed: of(&self.failures),
            limit_reached: self.enough.load(Ordering::Relaxed),
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// Shows how far it is, until it is over.
fn tell(warming: &Warming<'_>, course: &Course, started: Instant) {
    const LOOK: Duration = Duration::from_millis(50);
    let bar = !warming.json && !warming.quiet && io::stderr().is_terminal();
    let bar = bar.then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(BAR);
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    let mut last = started;
    while !course.over.load(Ordering::Acquire) {
        std::thread::sleep(LOOK);
        let standing = course.standing("progress", started);
        if let Some(bar) = &bar {
            bar.set_length(standing.bytes_total);
            bar.set_position(standing.bytes_done);
            bar.set_message(format!(
                "  {} of {} files",
                standing.files_done, standing.files_total
            ));
        }
        if warming.json && last.elapsed() >= SECOND {
            last = Instant::now();
            // A reader that has gone away is told of when the result can't be written.
            let _ = print(&standing);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn end(warming: &Warming<'_>, course: &Course, started: Instant) -> Result<(), Refusal> {
    let standing = course.standing("result", started);
    let failed = course.failed.lock();
    for one in failed.iter() {
        if warming.json {
            print(one)?;
        } else {
            complain(&format!("cache warm {}: {}", shown(&one.path), one.error));
        }
    }
    if warming.json {
        print(&standing)?;
    } else if !warming.quiet {
        super::say(&format!(
            "{} of {} files, {} of them whole before; {} in {:.1} s{}",
            standing.files_done,
            standing.files_total,
            standing.files_whole_before,
            super::size(standing.bytes_done),
            standing.seconds,
            if standing.limit_reached {
                "; the limit is reached"
            } else {
                ""
            }
        ))?;
    }
    if standing.failed > 0 {
        return Err(Refusal::usage(format!(
            "cache warm: {} of {} files could not be read",
            standing.failed, standing.files_total
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::session::refusal::said;

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(BAR).unwrap();
    }

    #[test]
    fn a_file_that_can_not_be_read_is_counted_and_named() {
        let course = Course::default();
        course.fails(Path::new("/a"), &io::Error::from_raw_os_error(5));
        assert_eq!(course.standing("result", Instant::now()).failed, 1);
        assert_eq!(course.failed.lock()[0].errno, 5);
        assert_eq!(
            said(io::Error::from_raw_os_error(5)),
            course.failed.lock()[0].error
        );
    }
}
