//! No name escapes the source: while processes exchange directories and symbolic links that lead
//! outside, on both sides of the mount, others look up, make, move, change and copy through it;
//! and nothing outside is read, changed, made or removed.
//!
//! What lies outside has the names that lie inside, so that whoever gets there meets something;
//! everybody may do everything with it; and it is marked: by a time of modification that nothing
//! inside has, by its bytes, by the value of an attribute. Times of access are old enough that any
//! reading changes them.

mod outside;
mod roam;
mod swap;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::children::Actor;
use crate::support::{
    Mount, MountBuilder, Need, Scratch, USER, require, set_mode, set_owner, soak,
};

pub(crate) use roam::roam;
pub(crate) use swap::swap;

/// Places at the top, each now a directory, now a link, now a file.
const PLACES: u64 = 3;
/// What is exchanged with a place, in the folder of the spares.
const SPARES: u64 = 6;
/// Names in each directory, for whatever is made there.
const NAMES: u64 = 4;

/// Files of everybody, in which everything lies.
fn open_to_all(path: &Path) {
    set_owner(path, USER, USER);
    set_mode(path, 0o777);
}

/// Runs the whole for the given time, in seconds.
fn run(builder: impl FnOnce(&Path) -> MountBuilder, user: Option<u32>, seconds: u64) {
    let scratch = Scratch::new();
    open_to_all(scratch.path());
    outside::build(&scratch);
    let source = swap::build(&scratch);
    let before = outside::snapshot(scratch.path());
    let mount = builder(&source).start();
    let mut actors: Vec<Actor> = Vec::new();
    for (seed, root) in [(1, &*source), (2, mount.path())] {
        actors.push(Actor::swapper(root, seed, user));
    }
    for seed in 3..7 {
        actors.push(Actor::roamer(mount.path(), seed, user));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        // Early, so that the log ends near the deed.
        outside::assert_untouched(&before, scratch.path());
    }
    for actor in &mut actors {
        actor.order("end");
    }
    let told: Vec<String> = actors.iter_mut().map(Actor::answer).collect();
    drop(actors);
    drop(mount);
    outside::assert_untouched(&before, scratch.path());
    outside::assert_not_within(&source);
    for (who, words) in told.iter().enumerate() {
        println!("{who}: {words}");
        assert!(!words.contains("OUTSIDE"), "{words}");
    }
    swap::assert_worked(&told);
    roam::assert_worked(&told[2..]);
}

/// Calls `deed` with the source again and again, for so many seconds, while processes exchange names
/// in it; fails when anything outside was touched or brought in.
pub(crate) fn beside_swappers(seconds: u64, mut deed: impl FnMut(&Path)) {
    let scratch = Scratch::new();
    open_to_all(scratch.path());
    outside::build(&scratch);
    let source = swap::build(&scratch);
    let before = outside::snapshot(scratch.path());
    let mut actors: Vec<Actor> = (1..3)
        .map(|seed| Actor::swapper(&source, seed, None))
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        deed(&source);
    }
    for actor in &mut actors {
        actor.order("end");
    }
    let told: Vec<String> = actors.iter_mut().map(Actor::answer).collect();
    drop(actors);
    outside::assert_untouched(&before, scratch.path());
    outside::assert_not_within(&source);
    swap::assert_worked(&told);
}

/// Each of the three takes a third of the ten minutes.
fn third() -> u64 {
    soak(200).max(5)
}

#[test]
fn no_name_leads_out() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    run(|source| Mount::of(source).opt("allow_other"), None, third());
}

/// Descriptors are closed and opened again all the time: by file handle.
#[test]
fn no_name_leads_out_when_descriptors_are_few() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    run(
        |source| {
            Mount::of(source)
                .opt("allow_other,negative_timeout=1")
                .descriptors(64)
        },
        None,
        third(),
    );
}

/// Without privileges they are found again by name, which may mean something else by then.
#[test]
fn no_name_leads_out_of_an_ordinary_users_mount() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    run(
        |source| {
            Mount::of(source)
                .opt("entry_timeout=60,attr_timeout=60")
                .as_user(USER, USER)
                .descriptors(64)
        },
        Some(USER),
        third(),
    );
}
