//! Directories of a million entries (at `CORFS_SOAK=1`).

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, SeekFrom};

use super::*;
use crate::support::{Dice, Loop, Need, require, soak};

/// Makes `count` empty files in one directory.
fn fill(folder: &Path, count: u64) {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let dir = rustix::fs::open(folder, flags, Mode::empty()).unwrap();
    for n in 0..count {
        let kind = FileType::RegularFile;
        rustix::fs::mknodat(&dir, format!("stays{n}"), kind, Mode::RUSR, 0).unwrap();
    }
}

fn open(folder: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).unwrap()
}

/// The next names of the stream with the position after each; none at the end.
fn batch(dir: &OwnedFd) -> Vec<(String, u64)> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut raw = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        found.push((name, entry.next_entry_cookie()));
        if raw.is_buffer_empty() {
            break;
        }
    }
    found
}

/// The numbers of those that stay, each with how often it came.
fn counted(names: impl Iterator<Item = String>) -> HashMap<u64, u32> {
    let mut seen = HashMap::new();
    for name in names {
        if let Some(n) = name.strip_prefix("stays") {
            *seen.entry(n.parse().unwrap()).or_default() += 1;
        }
    }
    seen
}

fn assert_each_once(seen: &HashMap<u64, u32>, count: u64) {
    let twice = seen.iter().find(|(_, times)| **times != 1);
    assert_eq!(twice, None, "one came more than once");
    let missing = (0..count).find(|n| !seen.contains_key(n));
    assert_eq!(missing, None, "one is missing");
}

fn all(dir: &OwnedFd) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || Some(batch(dir)).filter(|batch| !batch.is_empty()))
        .flatten()
        .map(|(name, _)| name)
}

/// Others make, rename and remove entries, on both sides, until told to end.
fn come_and_go(folder: &Path, seed: u64, ended: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !ended.load(Ordering::Relaxed) {
        let path = |n| folder.join(format!("comes{seed}-{n}"));
        let (one, two) = (path(dice.below(500)), path(dice.below(500)));
        // Each may be there or not.
        let _ = match dice.below(3) {
            0 => fs::write(one, "").is_ok(),
            1 => fs::remove_file(one).is_ok(),
            _ => fs::rename(one, two).is_ok(),
        };
    }
}

/// Reads the whole directory; ten times, however large it is, goes back to a position it was told,
/// and on from there.
fn walk_with_seeks(dir: &OwnedFd, dice: &mut Dice) -> HashMap<u64, u32> {
    let mut seen: Vec<(String, u64)> = Vec::new();
    let mut backs = 10;
    loop {
        let next = batch(dir);
        if next.is_empty() {
            return counted(seen.into_iter().map(|(name, _)| name));
        }
        seen.extend(next);
        if backs > 0 && dice.below(8) == 0 {
            backs -= 1;
            let back = dice.below(seen.len() as u64) as usize;
            rustix::fs::seek(dir, SeekFrom::Start(seen[back].1)).unwrap();
            seen.truncate(back + 1);
        }
    }
}

fn while_they_come_and_go(kind: &'static str, size: u64) {
    if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
        return;
    }
    let count = soak(100_000).max(10_000);
    let disk = Loop::new(kind, size);
    let folder = disk.path().join("big");
    fs::create_dir(&folder).unwrap();
    fill(&folder, count);
    let mount = Mount::of(disk.path()).start();
    let mirrored = mount.path().join("big");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(&ended);
        scope.spawn(|| come_and_go(&folder, 1, &ended));
        scope.spawn(|| come_and_go(&mirrored, 2, &ended));
        let dir = open(&mirrored);
        let mut dice = Dice::new(3);
        for round in 0..3 {
            let seen = walk_with_seeks(&dir, &mut dice);
            assert_each_once(&seen, count);
            println!("{kind}: round {round}, {} that stay, each once", seen.len());
            // rewinddir: from the start, with those that have come.
            rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
        }
    });
    // A rewound stream shows what is there now.
    let dir = open(&mirrored);
    assert!(!batch(&dir).is_empty());
    fs::write(folder.join("comes late"), "").unwrap();
    rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
    assert!(all(&dir).any(|name| name == "comes late"));
}

#[test]
fn each_once_and_none_lost_on_ext4() {
    // ext4 makes an inode for every 16 KiB.
    while_they_come_and_go("ext4", 2048 * MIB);
}

#[test]
fn each_once_and_none_lost_on_xfs() {
    while_they_come_and_go("xfs", 512 * MIB);
}

#[test]
fn a_million_entries_at_flat_memory() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs")]) {
        return;
    }
    let count = soak(1_000_000);
    let disk = Loop::new("xfs", 600 * MIB + count * 3000);
    let folder = disk.path().join("big");
    fs::create_dir(&folder).unwrap();
    fill(&folder, count);
    let mount = Mount::of(disk.path()).start();
    let mirrored = mount.path().join("big");
    assert_each_once(&counted(all(&open(&folder))), count);
    let start = mount.rss();
    for pass in ["first", "second"] {
        let (seen, took, peak) = watched(&mount, || counted(all(&open(&mirrored))));
        assert_each_once(&seen, count);
        let known = peak.inodes * 256;
        println!(
            "{pass} listing of {count}: {took:.2?}, inodes {}, memory {:.1} MiB after {:.1} MiB",
            peak.inodes,
            peak.memory as f64 / MIB as f64,
            start.all as f64 / MIB as f64
        );
        assert!(
            peak.memory < start.all + known + 16 * MIB,
            "{pass}: {peak:?}, {start:?}"
        );
    }
    let name = rustix::fs::statat(CWD, mirrored.join("stays0"), rustix::fs::AtFlags::empty());
    assert!(name.is_ok());
}
