//! Answers and changes that pass each other: with timeouts that never end, a stale answer would
//! stay for ever.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::support::{
    Dice, Loop, Need, Scratch, USER, apart, require, set_owner, soak, write_file,
};

/// What a name means: inode, size, mode, links.
fn meaning(path: &Path) -> Option<(u64, u64, u32, u64)> {
    let stat = fs::symlink_metadata(path).ok()?;
    Some((stat.ino(), stat.len(), stat.mode(), stat.nlink()))
}

/// Runs `change` behind the mirror, round by round, while others look up `names` on it without
/// pause; after each round both sides must come to agree.
fn no_stale_answer_stays(
    source: &Path,
    mount: &Path,
    names: impl Fn(u64) -> Vec<String> + Sync,
    rounds: u64,
    mut change: impl FnMut(u64, &[PathBuf], &mut Dice),
) {
    let (over, round_now) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let below = |root: &Path, round| -> Vec<PathBuf> {
        names(round).iter().map(|name| root.join(name)).collect()
    };
    thread::scope(|scope| {
        for looker in 0..2 {
            let (over, round_now, below) = (&over, &round_now, &below);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let paths = below(mount, round_now.load(Ordering::Relaxed));
                    for path in paths.iter().skip(looker % 2) {
                        let _ = meaning(path);
                        let _ = File::open(path).and_then(|file| file.metadata());
                    }
                    if looker == 1 {
                        let _ = fs::read_dir(mount).map(Iterator::count);
                    }
                }
            });
        }
        let _over = Over(&over);
        let mut dice = Dice::new(11);
        for round in 0..rounds {
            round_now.store(round, Ordering::Relaxed);
            let behind = below(source, round);
            change(round, &behind, &mut dice);
            for (behind, on) in behind.iter().zip(below(mount, round)) {
                let right = meaning(behind);
                let what = format!("round {round}, {}: {right:?}", behind.display());
                let start = Instant::now();
                while meaning(&on) != right {
                    let has = meaning(&on);
                    assert!(
                        start.elapsed() < PATIENCE,
                        "{what}, but the mount has {has:?}"
                    );
                }
            }
        }
    });
}

/// Ends the lookers also when a round fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Names that come and go and are exchanged, of files and directories.
fn shuffle(_round: u64, paths: &[PathBuf], dice: &mut Dice) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    for _ in 0..8 {
        let one = &paths[dice.below(paths.len() as u64) as usize];
        let two = &paths[dice.below(paths.len() as u64) as usize];
        // Each may be refused: that the name is not there, or is a full directory.
        match dice.below(6) {
            0 => drop(renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE)),
            1 => drop(fs::rename(one, two)),
            2 => drop(fs::write(one, vec![b'x'; dice.below(100) as usize])),
            3 => drop(fs::remove_file(one).or_else(|_| fs::remove_dir(one))),
            4 => drop(fs::create_dir(one)),
            _ => drop(fs::hard_link(one, two)),
        }
    }
}

fn names(_round: u64) -> Vec<String> {
    ["a", "b", "c", "d"].map(str::to_owned).to_vec()
}

/// New files each round, which the lookers find while they are still written to: the kernel makes
/// their inodes of answers that are older than some of the changes.
fn grow(round: u64, paths: &[PathBuf], dice: &mut Dice) {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    // Those of long ago go, or the listing of all would take most of the time.
    for old in new_names(round.wrapping_sub(10)) {
        let _ = fs::remove_file(paths[0].with_file_name(old));
    }
    for path in paths {
        let mut file = File::create(path).unwrap();
        for _ in 0..1 + dice.below(6) {
            file.write_all(b"some").unwrap();
            let mode = 0o600 + dice.below(0o77) as u32;
            file.set_permissions(fs::Permissions::from_mode(mode))
                .unwrap();
        }
    }
}

fn new_names(round: u64) -> Vec<String> {
    (0..3).map(|n| format!("{round}-{n}")).collect()
}

#[test]
fn lookups_that_race_renames_leave_nothing_stale() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Way::Watch.start(source.path());
    no_stale_answer_stays(source.path(), mount.path(), names, soak(8_000), shuffle);
}

#[test]
fn lookups_of_files_that_are_being_written_leave_nothing_stale() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs")]) {
        return;
    }
    let disk = Loop::new("xfs", 320 << 20);
    let mount = Way::Watch.start(disk.path());
    no_stale_answer_stays(disk.path(), mount.path(), new_names, soak(8_000), grow);
}

#[test]
fn an_ordinary_users_lookups_leave_nothing_stale() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, USER);
    let mount = Way::Inotify
        .mount(source.path())
        .as_user(USER, USER)
        .start();
    let rounds = soak(2_500);
    apart(Some((USER, USER)), || {
        no_stale_answer_stays(source.path(), mount.path(), new_names, rounds, grow);
        write_file(&source.path().join("a"), b"");
        no_stale_answer_stays(source.path(), mount.path(), names, rounds, shuffle);
    });
}
