//! A source that is not there when it is to be mounted, and that the cache knows.

use super::place::Place;
use super::refusal::{Refusal, said, shown};
use super::settings::Settings;
use super::store;
use crate::cache::{SourceKey, Store};
use crate::mirror::Coherence;
use crate::observe::Metrics;
use crate::sys::process::{self, Side};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A source that takes longer to be opened is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a source that is not there could be served all the same.
pub(super) fn is_possible(settings: &Settings) -> bool {
    // Only what is there can be watched.
    let watched = settings.options.coherence == Coherence::Watch;
    settings.cache.is_some() && settings.options.offline && !watched
}

/// As what the cache knows the source that `settings` name, if it has its names. One that does not
/// answer is known by the path that was given only: to follow that might wait for it.
pub(super) fn remembered(settings: &Settings, answers: bool) -> Option<SourceKey> {
    let caching = settings.cache.as_ref()?;
    let given = std::path::absolute(&settings.source).ok()?;
    let paths = match answers {
        true => vec![resolved(&given), given],
        false => vec![given],
    };
    SourceKey::remembered(&caching.dir, &paths, caching.id.as_deref())
}

/// Without symbolic links and dots, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (std::fs::canonicalize(above), path.strip_prefix(above)) {
            // Joined with nothing it would get a slash.
            return real.components().chain(rest.components()).collect();
        }
    }
    path.to_owned()
}

/// Whether what stands at the source's path is the source, as far as it can be told: not something
/// else that is empty, as a mountpoint is on which nothing is mounted.
pub(super) fn is_there(known: &SourceKey, source: &Place) -> bool {
    known.is_of(source.as_fd()) || !is_empty(source.as_fd())
}

fn is_empty(dir: impl AsFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, ".", flags, Mode::empty());
    let Ok(mut entries) = opened.and_then(rustix::fs::Dir::new) else {
        return false;
    };
    entries.all(|entry| {
        entry.is_ok_and(|entry| [&b"."[..], b".."].contains(&entry.file_name().to_bytes()))
    })
}

/// Whether the source's path can be opened at all before long: asked by a process of its own, which
/// may wait for ever.
pub(super) fn answers(settings: &Settings) -> bool {
    let patience = settings.source_timeout.unwrap_or(PATIENCE).min(PATIENCE);
    let child = match process::fork() {
        Ok(Side::Child) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // Whether it can be opened is seen anew by the one who asks.
            let _ = rustix::fs::open(&settings.source, flags, Mode::empty());
            std::process::exit(0);
        }
        Ok(Side::Parent(child)) => child,
        Err(_) => return true,
    };
    let ended = ends_within(child, patience);
    if !ended {
        // It ends when the source answers, or is cut off.
        let _ = rustix::process::kill_process(child, Signal::KILL);
    } else {
        let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    }
    ended
}

fn ends_within(child: Pid, patience: Duration) -> bool {
    let Ok(fd) = rustix::process::pidfd_open(child, PidfdFlags::empty()) else {
        return true;
    };
    let time = Timespec {
        tv_sec: patience.as_secs() as _,
        tv_nsec: patience.subsec_nanos() as _,
    };
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    !matches!(rustix::event::poll(&mut polled, Some(&time)), Ok(0))
}

/// What stands for the source until it is there: a folder of its store, under its own path.
pub(super) fn stand_in(
    settings: &Settings,
    known: SourceKey,
    why: &str,
    target: &Place,
    metrics: &Arc<Metrics>,
) -> Result<(Place, Arc<Store>), Refusal> {
    let path = known.path.clone();
    let store = store::open_known(settings, known, target, metrics)?;
    let fd = store.dir().try_clone_to_owned();
    let fd = fd.map_err(|error| Refusal::system(format!("duplicate a folder: {}", said(error))))?;
    log_absent(&path, why);
    Ok((Place::standing_for(path, fd), store))
}

/// To where people look: in the background the log is opened only later.
fn log_absent(path: &Path, why: &str) {
    eprintln!(
        "corfs: source {}: {why}; the tree as last seen is served from the cache until it is there",
        shown(path)
    );
}
