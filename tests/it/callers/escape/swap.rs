//! Those who exchange directories and links, on the source's side and through the mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};

use super::{NAMES, PLACES, SPARES, open_to_all, outside};
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
        if dice.below(4) == 0 {
            done += u64::from(plant(&top, &mut dice).is_some());
            continue;
        }
        let (one, other) = match dice.below(3) {
            0 => (format!("s{place}/t"), format!("s{place}/u{spare}")),
            _ => (format!("s{place}"), format!("alt/x{spare}")),
        };
        done += u64::from(exchange(&top, &one, &other).is_some());
    }
    format!("{done} exchanges")
}

/// A link that leads outside, to something or to nothing yet, where others make files; or none.
fn plant(top: &OwnedFd, dice: &mut Dice) -> Option<()> {
    let at = ["n", "s0/n", "s1/n", "s2/n", "s0/t/n", "s1/t/n"][dice.below(6) as usize];
    let path = format!("{at}{}", dice.below(NAMES));
    let (folder, name) = place(top, &path)?;
    if dice.below(2) == 0 {
        return rustix::fs::unlinkat(&folder, name, AtFlags::empty()).ok();
    }
    let above = "../".repeat(at.matches('/').count() + 1);
    let target = ["f", "s0/n0", "absent"][dice.below(3) as usize];
    let target = format!("{above}{}/{target}", outside::NAME);
    rustix::fs::symlinkat(target, &folder, name).ok()
}

/// The folder and the name in it, without going outside ourselves.
fn place<'a>(top: &OwnedFd, path: &'a str) -> Option<(OwnedFd, &'a str)> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let folder = rustix::fs::openat2(top, folder, flags, Mode::empty(), resolve).ok()?;
    Some((folder, name))
}

fn exchange(top: &OwnedFd, one: &str, other: &str) -> Option<()> {
    let ((from, one), (to, other)) = (place(top, one)?, place(top, other)?);
    rustix::fs::renameat_with(&from, one, &to, other, RenameFlags::EXCHANGE).ok()
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
