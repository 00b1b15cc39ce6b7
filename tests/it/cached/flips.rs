//! Bytes that are not what was stored.

use corfs::cache::Verify;
use rustix::process::Signal;

use super::direct::Direct;
use super::*;

/// Changes some bits of a file, or cuts its tail.
fn spoil(path: &Path, dice: &mut Dice) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let len = file.metadata().expect("stat").len();
    if len == 0 {
        // Cut to nothing before, and given up since.
        return;
    }
    if dice.below(4) == 0 {
        return file.set_len(dice.below(len + 1)).expect("truncate");
    }
    for _ in 0..=dice.below(3) {
        let at = dice.below(len);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        byte[0] ^= 1 << dice.below(8);
        file.write_all_at(&byte, at).expect("write");
    }
}

/// A whole cache of a tree, on a file system of its own.
fn filled(scratch: &Scratch) -> (Tree, PathBuf) {
    let tree = Tree::new(&scratch.dir("source"), 8, 4 * BLOCK);
    let cache = cache_folder(scratch, "cache");
    let mut mount = cached(&tree.path, &cache).start();
    tree.compare(mount.path());
    wait_until("all is stored", PATIENCE, || {
        counted(&mount, "stored_bytes_total") >= tree.bytes()
    });
    mount.signal_server(Signal::KILL);
    assert!(mount.wait(PATIENCE).is_some());
    (tree, cache)
}

#[test]
fn bits_that_flipped_while_the_power_was_away_are_fetched_again() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let (tree, cache) = filled(&scratch);
    for kind in ["data", "index"] {
        for round in 0..soak(50) {
            let disk = Tmpfs::new(64 << 20);
            copy_cache(&cache, disk.path());
            set_mode(disk.path(), 0o700);
            let mut dice = Dice::new(round);
            let files = files_of(disk.path(), kind);
            assert!(!files.is_empty(), "there is {kind}");
            files.iter().for_each(|path| spoil(path, &mut dice));
            let mount = cached(&tree.path, disk.path()).start();
            tree.compare(mount.path());
            if kind == "data" {
                assert!(counted(&mount, "corrupt_total") > 0, "they are counted");
            }
            tree.compare(mount.path());
        }
    }
}

#[test]
fn with_verify_always_a_flipped_bit_is_never_served() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 4, 4 * BLOCK);
    let cache = cache_folder(&scratch, "cache");
    let mount = cached(&tree.path, &cache).opt("verify=always").start();
    let mut dice = Dice::new(3);
    for _ in 0..soak(50) {
        tree.compare_anew(mount.path());
        for kind in ["data", "index"] {
            let files = files_of(&cache, kind);
            files.iter().for_each(|path| spoil(path, &mut dice));
        }
    }
    tree.compare_anew(mount.path());
    assert!(counted(&mount, "corrupt_total") > 0, "they are counted");
}

#[test]
fn the_store_itself_serves_no_flipped_bit_under_verify_always() {
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 4, 4 * BLOCK);
    let cache = cache_folder(&scratch, "cache");
    let direct = Direct::open(&cache, 0, 64 << 20, Verify::Always);
    let mut dice = Dice::new(4);
    for _ in 0..soak(500) {
        direct.compare(&tree);
        assert!(direct.store.settle(PATIENCE), "all is stored");
        for kind in ["data", "index"] {
            let files = files_of(&cache, kind);
            files.iter().for_each(|path| spoil(path, &mut dice));
        }
    }
    direct.compare(&tree);
    direct.store.close();
}
