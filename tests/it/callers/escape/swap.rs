//! Those who exchange directories and links, on the source's side and through the mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags};

use super::{PLACES, SPARES, open_to_all, outside};
use crate::support::{Dice, Scratch, write_file};

/// Builds the source: at the top the places `s0` and so on, and their spares in `alt`; in each
/// directory a file `f`, a place `t`, and spares of that.
pub(super) fn build(scratch: &Scratch) -> PathBuf {
    let source = scratch.dir("source");
    let outside = scratch.path().join(outside::NAME);
    let mut all = vec![source.clone(), source.join("alt"), source.join("keep")];
    for folder in &all[1..] {
        std::fs::create_dir(folder).unwrap();
    }
    for place in 0..PLACES {
        folder(&source.join(format!("s{place}")), &outside, 1, &mut all);
    }
    for spare in 0..SPARES {
        thing(
            &source.join(format!("alt/x{spare}")),
            spare,
            &outside,
            1,
            &mut all,
        );
    }
    all.iter().for_each(|path| open_to_all(path));
    source
}

/// One of what a place may be: a directory, or a link that leads outside.
fn thing(path: &Path, kind: u64, outside: &Path, depth: u64, all: &mut Vec<PathBuf>) {
    let link = |target: PathBuf| std::os::unix::fs::symlink(target, path).unwrap();
    let place = outside.join(format!("s{}", kind % PLACES));
    let up = |by: usize| PathBuf::from(vec![".."; by].join("/"));
    match kind % 6 {
        0 | 3 => folder(path, outside, depth, all),
        1 => link(place),
        // From where it stands when it is at its place: beside the outside, or one below.
        2 => link(
            up(2 - depth as usize + (depth == 0) as usize)
                .join(outside::NAME)
                .join("s1"),
        ),
        // Beyond the root there is only the root.
        4 => link(up(40).join(place.strip_prefix("/").unwrap())),
        _ => link(place.join("f")),
    }
}

fn folder(path: &Path, outside: &Path, depth: u64, all: &mut Vec<PathBuf>) {
    std::fs::create_dir(path).unwrap();
    all.push(path.to_owned());
    write_file(&path.join("f"), &b"inside".repeat(200));
    all.push(path.join("f"));
    if depth == 0 {
        return;
    }
    folder(&path.join("t"), outside, depth - 1, all);
    for spare in 0..SPARES {
        thing(
            &path.join(format!("u{spare}")),
            spare,
            outside,
            depth - 1,
            all,
        );
    }
}

/// Exchanges until it is told to end; returns how often that went well.
pub(crate) fn swap(root: &Path, seed: u64, ended: &AtomicBool) -> String {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).expect("the root");
    let mut dice = Dice::new(seed << 32);
    let mut done = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        let place = dice.below(PLACES);
        let spare = dice.below(SPARES);
        let (one, other) = match dice.below(3) {
            0 => (format!("s{place}/t"), format!("s{place}/u{spare}")),
            _ => (format!("s{place}"), format!("alt/x{spare}")),
        };
        done += u64::from(exchange(&top, &one, &other).is_some());
    }
    format!("{done} exchanges")
}

fn exchange(top: &OwnedFd, one: &str, other: &str) -> Option<()> {
    let place = |path: &str| {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // It does not want to go outside either.
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        let folder = rustix::fs::openat2(top, folder, flags, Mode::empty(), resolve).ok()?;
        Some((folder, name.to_owned()))
    };
    let ((from, one), (to, other)) = (place(one)?, place(other)?);
    rustix::fs::renameat_with(&from, &one, &to, &other, RenameFlags::EXCHANGE).ok()
}

/// Fails unless there were enough of them on both sides to be worth anything.
pub(super) fn assert_worked(told: &[String]) {
    for words in &told[..2] {
        let count = words
            .split(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 100), "{words}");
    }
}
