//! Changes made behind the mirror: when they show on it, by each way of coherence.
//!
//! Where the source is watched, timeouts are an hour or never, so that only an invalidation can
//! have made a change show.

mod changes;
mod listings;
mod losses;
mod mapped;
mod modes;
mod races;
mod random;
mod refusals;
mod users;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Mount, MountBuilder};

/// How long a change may take to show on a loaded machine. What it takes is printed elsewhere.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way of coherence, and what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// After the timeouts, which are short here.
    Ttl,
    /// At once.
    Strict,
    /// Soon, by fanotify.
    Watch,
    /// Soon, by inotify.
    Inotify,
}

impl Way {
    fn mount(self, source: &Path) -> MountBuilder {
        Mount::of(source).opt(match self {
            Self::Ttl => "attr_timeout=0.2,entry_timeout=0.2,negative_timeout=0.2",
            Self::Strict => "coherence=strict",
            Self::Watch | Self::Inotify => "coherence=watch,watch_timeout=never,negative_timeout=1",
        })
    }

    /// Mounts, and makes sure that the source is watched as this way means it.
    #[track_caller]
    fn start(self, source: &Path) -> Mount {
        let mount = self.mount(source).start();
        let by = match self {
            Self::Ttl | Self::Strict => "off",
            Self::Watch => "fanotify",
            Self::Inotify => "inotify",
        };
        assert_eq!(watched_by(&mount), by);
        mount
    }

    /// Panics unless `there` comes true: at once where that is promised, else soon.
    #[track_caller]
    fn shows(self, what: &str, there: impl FnMut() -> bool) {
        let patience = match self {
            Self::Strict => Duration::ZERO,
            _ => PATIENCE,
        };
        comes_true(&format!("{self:?}: {what}"), patience, there);
    }
}

/// Polls until it is so, at least once; returns how long that took.
#[track_caller]
fn comes_true(what: &str, patience: Duration, mut there: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if there() {
            return start.elapsed();
        }
        assert!(start.elapsed() < patience, "does not show: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What `.corfs/config` says watches the source.
#[track_caller]
fn watched_by(mount: &Mount) -> String {
    let config = std::fs::read_to_string(mount.path().join(".corfs/config")).expect("a config");
    let line = config.lines().find_map(|l| l.strip_prefix("watched_by="));
    line.expect("watched_by").to_owned()
}
