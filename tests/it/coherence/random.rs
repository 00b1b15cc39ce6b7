//! Many random changes behind a mirror that is being read, and both trees compared at the end; and
//! how long a change takes to show.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

use super::*;
use crate::support::{Dice, Loop, Need, Scratch, USER, apart, require, set_owner, soak};

/// One of some hundred names, in directories up to two deep. Not all of them exist.
fn random_path(root: &Path, dice: &mut Dice) -> PathBuf {
    let mut path = root.to_owned();
    for _ in 0..dice.below(3) {
        path.push(format!("d{}", dice.below(3)));
    }
    match dice.below(4) {
        0 => path.push(format!("d{}", dice.below(3))),
        _ => path.push(format!("f{}", dice.below(8))),
    }
    path
}

/// Makes one change, which may be refused because its names are not there.
fn change(root: &Path, dice: &mut Dice) {
    let (one, two) = (random_path(root, dice), random_path(root, dice));
    let amount = dice.below(20_000);
    let open = || File::options().read(true).write(true).open(&one);
    match dice.below(18) {
        0..=2 => drop(fs::write(&one, vec![amount as u8; amount as usize])),
        3 => drop(open().and_then(|file| file.set_len(amount))),
        4 | 5 => drop(open().and_then(|file| file.write_all_at(b"changed", amount))),
        6 => drop(
            File::options()
                .append(true)
                .open(&one)
                .and_then(|mut f| f.write_all(b"appended")),
        ),
        7 | 8 => drop(fs::rename(&one, &two)),
        9 => drop(renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE)),
        10 => drop(fs::hard_link(&one, &two)),
        11 => drop(fs::remove_file(&one)),
        12 => drop(fs::set_permissions(
            &one,
            fs::Permissions::from_mode(0o700 | amount as u32 & 0o77),
        )),
        13 => drop(std::os::unix::fs::symlink(format!("to{amount}"), &one)),
        14 => drop(rustix::fs::setxattr(
            &one,
            "user.random",
            amount.to_string().as_bytes(),
            XattrFlags::empty(),
        )),
        15 | 16 => drop(fs::create_dir(&one)),
        _ => drop(if amount.is_multiple_of(4) {
            fs::remove_dir_all(&one)
        } else {
            fs::remove_dir(&one)
        }),
    }
}

/// Reads the mount in every way until it is over, some files through descriptors kept open.
fn read_on(root: &Path, seed: u64, over: &AtomicBool) {
    let mut dice = Dice::new(seed);
    let mut kept: VecDeque<File> = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        let path = random_path(root, &mut dice);
        match dice.below(5) {
            0 => drop(fs::symlink_metadata(&path)),
            1 => drop(fs::read(&path)),
            2 => drop(fs::read_dir(path.parent().unwrap_or(root)).map(Iterator::count)),
            3 => drop(fs::read_link(&path)),
            _ => {
                if let Ok(file) = File::open(&path) {
                    kept.push_back(file);
                }
                if kept.len() > 20 {
                    kept.pop_front();
                }
            }
        }
        for file in &mut kept {
            let _ = (file.metadata(), file.read(&mut [0; 64]));
        }
    }
}

/// The first difference between what stands at both places.
fn difference(behind: &Path, on: &Path) -> Option<String> {
    let shown = |what: &str| Some(format!("{}: {what}", behind.display()));
    let (a, b) = match (fs::symlink_metadata(behind), fs::symlink_metadata(on)) {
        (Ok(a), Ok(b)) => (a, b),
        (a, b) => return shown(&format!("{:?} {:?}", a.err(), b.err())),
    };
    let facts = |m: &fs::Metadata| {
        (
            (m.mode(), m.uid(), m.gid(), m.nlink(), m.len()),
            (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()),
        )
    };
    if facts(&a) != facts(&b) {
        return shown(&format!("{:?} {:?}", facts(&a), facts(&b)));
    }
    let xattr = |path: &Path| {
        let mut value = [0u8; 32];
        let length = rustix::fs::lgetxattr(path, "user.random", &mut value[..]).ok();
        length.map(|length| value[..length].to_vec())
    };
    if xattr(behind) != xattr(on) {
        return shown("xattr");
    }
    if a.is_symlink() {
        let same = fs::read_link(behind).ok() == fs::read_link(on).ok();
        return if same { None } else { shown("target") };
    }
    if a.is_file() {
        let same = fs::read(behind).ok() == fs::read(on).ok();
        return if same { None } else { shown("content") };
    }
    let names = |path: &Path| {
        let entries = fs::read_dir(path).ok()?;
        let mut names: Vec<_> = entries.filter_map(|e| Some(e.ok()?.file_name())).collect();
        names.sort();
        Some(names)
    };
    let (theirs, ours) = (names(behind), names(on));
    if theirs != ours {
        return shown(&format!("{theirs:?} {ours:?}"));
    }
    let mut names = theirs.into_iter().flatten();
    names.find_map(|name| difference(&behind.join(&name), &on.join(&name)))
}

/// Changes in several spells; after each, both trees must come to be the same.
fn both_trees_agree(source: &Path, mount: &Path, changes: u64) {
    const SPELLS: u64 = 20;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..2 {
            let over = &over;
            scope.spawn(move || read_on(mount, seed, over));
        }
        let _over = Over(&over);
        let mut dice = Dice::new(7);
        for spell in 0..SPELLS {
            for _ in 0..changes / SPELLS {
                change(source, &mut dice);
            }
            let start = Instant::now();
            while let Some(what) = difference(source, mount) {
                assert!(start.elapsed() < PATIENCE, "after spell {spell}: {what}");
            }
        }
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn after_many_random_changes_both_trees_agree() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 256 << 20);
    let source = disk.path().join("source");
    fs::create_dir(&source).unwrap();
    let mount = Way::Watch.start(&source);
    both_trees_agree(&source, mount.path(), soak(100_000));
    let stats = mount.stats();
    println!(
        "events {}, names {}, data {}, attributes {}, overflows {}",
        stats.sum("corfs_watch_events_total", &[]),
        stats.sum("corfs_invalidations_total", &[("what", "name")]),
        stats.sum("corfs_invalidations_total", &[("what", "data")]),
        stats.sum("corfs_invalidations_total", &[("what", "attributes")]),
        stats.sum("corfs_watch_overflows_total", &[]),
    );
}

/// By inotify a file with several names is answered with the ordinary timeouts, so these are
/// short here.
#[test]
fn after_many_random_changes_an_ordinary_users_trees_agree() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, USER);
    let mount = Way::Inotify
        .mount(source.path())
        .opt("attr_timeout=0.2,entry_timeout=0.2")
        .as_user(USER, USER)
        .start();
    apart(Some((USER, USER)), || {
        both_trees_agree(source.path(), mount.path(), soak(20_000));
    });
}

#[test]
fn a_change_shows_soon() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Way::Watch.start(source.path());
    let path = source.file("file", b"x");
    let on = mount.path().join("file");
    let rounds = soak(2000);
    let mut delays = Vec::new();
    let mut measure = |there: &mut dyn FnMut() -> bool| {
        let start = Instant::now();
        while !there() {
            assert!(start.elapsed() < PATIENCE, "a change does not show");
            thread::yield_now();
        }
        delays.push(start.elapsed());
    };
    for round in 1..=rounds {
        let _ = fs::metadata(&on).unwrap();
        fs::write(&path, vec![b'x'; round as usize]).unwrap();
        measure(&mut || fs::metadata(&on).is_ok_and(|m| m.len() == round));
        let mode = 0o600 + (round as u32 & 0o77);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        measure(&mut || fs::metadata(&on).is_ok_and(|m| m.mode() & 0o777 == mode));
        let other = path.with_file_name("other");
        let on_other = on.with_file_name("other");
        assert!(!on_other.exists());
        fs::rename(&path, &other).unwrap();
        measure(&mut || on_other.exists() && !on.exists());
        fs::rename(&other, &path).unwrap();
        measure(&mut || on.exists() && !on_other.exists());
        // Until the kernel knows it by heart again.
        thread::sleep(Duration::from_millis(1));
    }
    delays.sort();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!(
        "from change to sight, {} changes: p50 {:?}, p99 {:?}, longest {:?}",
        delays.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
