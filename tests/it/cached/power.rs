//! The power goes: what was written last is not there, or is there in part.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Bytes that a disk writes at once.
const PAGE: usize = 4096;

/// What a disk may hold of a file for which there was time to write some pages only: `before` is
/// what it held when all was written last, nothing if there was no such file.
fn half_written(path: &Path, before: Option<&Path>, dice: &mut Dice) {
    let now = read_file(path);
    let before = before.map(read_file).unwrap_or_default();
    let mut disk = now.clone();
    disk.resize(now.len().max(before.len()), 0);
    let share = dice.below(3);
    for (at, page) in disk.chunks_mut(PAGE).enumerate() {
        if dice.below(3) >= share {
            continue;
        }
        page.fill(0);
        if let Some(old) = before.get(at * PAGE..) {
            let len = old.len().min(page.len());
            page[..len].copy_from_slice(&old[..len]);
        }
    }
    // Its size, too, may be the old one, or one on the way.
    let shortest = before.len().min(now.len()) as u64;
    let len = match dice.below(4) {
        0 => shortest,
        1 => shortest + dice.below(disk.len() as u64 - shortest + 1),
        _ => now.len() as u64,
    };
    disk.resize(len as usize, 0);
    write_file(path, &disk);
}

/// Turns a copy of a cache into what a disk may hold of it; `before` is how it was when all had
/// been written.
fn lose(copy: &Path, before: &Path, dice: &mut Dice) {
    for kind in ["data", "index"] {
        for path in files_of(copy, kind) {
            let old = before.join(path.strip_prefix(copy).expect("below"));
            if !old.exists() {
                half_written(&path, None, dice);
            } else if dice.below(4) == 0 {
                fs::copy(&old, &path).expect("the old one stands");
            } else {
                half_written(&path, Some(&old), dice);
            }
        }
        for old in files_of(before, kind) {
            let path = copy.join(old.strip_prefix(before).expect("below"));
            if !path.exists() && dice.below(4) == 0 {
                fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
                fs::copy(&old, path).expect("it was not removed yet");
            }
        }
    }
}

/// Reads anywhere, and has the source change its files now and then, until told to stop.
fn use_it(tree: &Tree, mount: &Path, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !stop.load(Ordering::Relaxed) {
        tree.read_somewhere(mount, &mut dice).expect("read");
    }
}

#[test]
fn what_the_disk_had_when_the_power_went_gives_no_wrong_byte() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 10, 6 * BLOCK);
    for round in 0..soak(100) {
        let cache = cache_folder(&scratch, &format!("cache-{round}"));
        let builder =
            || cached(&tree.path, &cache).opt(format!("cache_size={}", tree.bytes() * 2 / 3));
        let mut dice = Dice::new(round);
        let (before, after) = (Tmpfs::new(64 << 20), Tmpfs::new(64 << 20));
        if round % 2 == 0 {
            // All of an earlier use is on the disk.
            let mount = builder().start();
            tree.compare(mount.path());
            assert!(mount.finish().success());
            copy_cache(&cache, before.path());
        }
        let mount = builder().start();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let using = scope.spawn(|| use_it(&tree, mount.path(), round, &stop));
            // A random moment is what is wanted here.
            std::thread::sleep(Duration::from_micros(dice.below(50_000)));
            copy_cache(&cache, after.path());
            stop.store(true, Ordering::Relaxed);
            using.join().expect("reader");
        });
        drop(mount);
        lose(after.path(), before.path(), &mut dice);
        set_mode(after.path(), 0o700);
        let mount = cached(&tree.path, after.path()).start();
        tree.compare(mount.path());
        tree.compare(mount.path());
        drop(mount);
        fs::remove_dir_all(&cache).expect("remove");
    }
}
