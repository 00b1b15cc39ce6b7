//! What stays in a cache and what goes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use super::place::{Target, failed};
use super::{complain, print, say, size};
use crate::cache::Evicted;
use crate::fuse::session::refusal::{Refusal, shown};

/// What came of it, for programs.
#[derive(Default, Serialize)]
struct Outcome {
    r#type: &'static str,
    files: u64,
    allocated_bytes: u64,
    /// In use by somebody, or it could not be done.
    left: u64,
}

impl Outcome {
    fn new() -> Self {
        Self {
            r#type: "result",
            ..Self::default()
        }
    }
}

/// Pins, or no longer, what is cached at and below each path.
pub(super) fn pin(paths: &[PathBuf], pinned: bool, json: bool) -> Result<(), Refusal> {
    let word = if pinned { "pin" } else { "unpin" };
    let mut outcome = Outcome::new();
    for path in paths {
        let before = outcome.files + outcome.left;
        Target::within(path)?.each(|_, view, one| {
            match view.pin(&one.path, pinned) {
                Ok(true) => {
                    outcome.files += 1;
                    outcome.allocated_bytes += one.allocated;
                }
                // Evicted meanwhile.
                Ok(false) => {}
                Err(fail) => {
                    outcome.left += 1;
                    let path = shown(OsStr::from_bytes(&one.path));
                    complain(&format!("cache {word} {path}: {fail}"));
                }
            }
            Ok(())
        })?;
        if outcome.files + outcome.left == before {
            outcome.left += 1;
            complain(&format!(
                "cache {word} {}: nothing of it is cached; corfs cache warm reads it",
                shown(path)
            ));
        }
    }
    if json {
        print(&outcome)?;
    } else {
        let bytes = size(outcome.allocated_bytes);
        say(&format!("{word}ned {} files, {bytes}", outcome.files))?;
    }
    match outcome.left {
        0 => Ok(()),
        _ => Err(Refusal::usage(format!(
            "cache {word}: not all was {word}ned"
        ))),
    }
}

/// Removes entries that nobody has open, those used least recently first, until no more than
/// `keep` bytes are left.
pub(super) fn evict(target: &Target, keep: u64, pinned: bool, json: bool) -> Result<(), Refusal> {
    let mut candidates = Vec::new();
    let mut left = 0u64;
    let mut outcome = Outcome::new();
    target.each(|store, _, one| {
        left += one.allocated;
        if one.in_use {
            outcome.left += 1;
        } else if pinned || !one.pinned {
            candidates.push((one.last_used, store.name.clone(), one.path, one.allocated));
        }
        Ok(())
    })?;
    candidates.sort();
    let evicted = target.dir.evict(pinned, |evict| {
        for (_, store, path, allocated) in &candidates {
            if left <= keep {
                break;
            }
            match evict(store, path)? {
                Evicted::Gone(_) => {
                    left = left.saturating_sub(*allocated);
                    outcome.files += 1;
                    outcome.allocated_bytes += allocated;
                }
                Evicted::Busy => outcome.left += 1,
                // Somebody was faster, or has just pinned it.
                Evicted::NotThere | Evicted::Pinned | Evicted::GivenUp => {}
            }
        }
        Ok(())
    });
    evicted.map_err(failed)?;
    if json {
        return print(&outcome);
    }
    let in_use = match outcome.left {
        0 => String::new(),
        count => format!("; {count} are in use"),
    };
    let bytes = size(outcome.allocated_bytes);
    say(&format!("evicted {} files, {bytes}{in_use}", outcome.files))
}
