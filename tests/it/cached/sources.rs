//! The source fails, hangs, goes, or has another idea of the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::io::Errno;

use super::*;

/// A source with a tree in it that has been there for long.
fn source_with(files: u64, size: u64) -> (FaultySource, Tree) {
    let source = FaultySource::new();
    source.faults().show_older(Duration::from_secs(2 * 86_400));
    let tree = Tree::new(source.store(), files, size);
    for at in 0..files {
        age(&source.store().join(name(at)));
    }
    (source, tree)
}

#[test]
fn errors_of_the_source_are_told_and_never_kept() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, tree) = source_with(8, 6 * BLOCK);
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch, "cache");
    let mount = cached(source.path(), &cache).start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let breaking = scope.spawn(|| {
            let mut dice = Dice::new(5);
            while !stop.load(Ordering::Relaxed) {
                let file = name(dice.below(tree.files));
                source.faults().fail(On::Read, Some(&file), Errno::IO);
                source.faults().break_from(dice.below(tree.size), Errno::IO);
                std::thread::sleep(Duration::from_millis(dice.below(5)));
                source.faults().heal();
                std::thread::sleep(Duration::from_millis(dice.below(5)));
            }
        });
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                let (tree, point) = (&tree, mount.path());
                scope.spawn(move || {
                    let mut dice = Dice::new(seed);
                    for _ in 0..soak(3000) {
                        // Wrong bytes panic; an error is what the source said.
                        let _ = tree.read_somewhere(point, &mut dice);
                    }
                })
            })
            .collect();
        let read: Vec<_> = readers.into_iter().map(|one| one.join()).collect();
        stop.store(true, Ordering::Relaxed);
        breaking.join().expect("the one who breaks");
        read.into_iter().for_each(|one| one.expect("a reader"));
    });
    source.faults().heal();
    tree.compare(mount.path());
}

#[test]
fn while_the_source_hangs_what_is_cached_is_read() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, tree) = source_with(4, 4 * BLOCK);
    write_content(&source.store().join("other"), 99, 4 * BLOCK);
    age(&source.store().join("other"));
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch, "cache");
    let mount = cached(source.path(), &cache)
        .opt("passthrough=never")
        .start();
    tree.compare(mount.path());
    all_is_stored(&mount, &tree);
    let other = File::open(mount.path().join("other")).expect("open");
    let open = open_all(&tree, mount.path());
    source.faults().hang(On::Read, None);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut bytes = vec![0; 1000];
            // By now, or when its deadline has passed, with an error.
            if other.read_exact_at(&mut bytes, 0).is_ok() {
                assert_content(99, 0, &bytes);
            }
        });
        source.faults().await_hanging(On::Read, 1);
        let (rounds, hung) = (soak(2000), Duration::from_secs(soak(soak(600))));
        let since = Instant::now();
        for round in 0.. {
            read_again(&tree, &open, round);
            if round >= rounds {
                if since.elapsed() >= hung {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(
            source.faults().hanging(On::Read) >= 1,
            "it hung all the time"
        );
        source.faults().heal();
        waiting.join().expect("the one who waits");
    });
    tree.compare(mount.path());
    assert_content(99, 0, &read_file(&mount.path().join("other")));
}

#[test]
fn a_source_that_is_unmounted_under_us_leaves_open_files_what_is_cached() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, tree) = source_with(6, 4 * BLOCK);
    write_content(&source.store().join("other"), 99, 4 * BLOCK);
    for passthrough in ["never", "cached"] {
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch, "cache");
        let mount = cached(source.path(), &cache)
            .opt(format!("passthrough={passthrough}"))
            .opt("attr_timeout=60")
            .start();
        tree.compare(mount.path());
        all_is_stored(&mount, &tree);
        let open = open_all(&tree, mount.path());
        if passthrough == "never" {
            read_again(&tree, &open, 0);
            continue;
        }
        source.die();
        for round in 0..20 {
            read_again(&tree, &open, round);
        }
        let began = Instant::now();
        fs::read(mount.path().join("other")).expect_err("it is not cached");
        assert!(began.elapsed() < PATIENCE, "the answer comes in time");
        read_again(&tree, &open, 99);
    }
}

/// Storing comes after the answer.
#[track_caller]
fn all_is_stored(mount: &Mount, tree: &Tree) {
    wait_until("all is stored", PATIENCE, || {
        counted(mount, "stored_bytes_total") >= tree.bytes()
    });
}

fn open_all(tree: &Tree, mount: &Path) -> Vec<File> {
    (0..tree.files)
        .map(|at| File::open(mount.join(name(at))).expect("open"))
        .collect()
}

/// Some bytes of each file, past the kernel's own pages of them.
#[track_caller]
fn read_again(tree: &Tree, open: &[File], round: u64) {
    for (at, file) in open.iter().enumerate() {
        let advice = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(file, 0, None, advice).expect("fadvise");
        let mut bytes = vec![0; 1000];
        let offset = round * 997 % (tree.size - 1000);
        file.read_exact_at(&mut bytes, offset)
            .expect("what is cached is read");
        assert_content(at as u64, offset, &bytes);
    }
}

/// The source's clock is ahead of ours, behind it, or jumps: only equality of times counts, and
/// what is young by its clock or by ours is not trusted too early.
#[test]
fn whatever_the_clocks_say_no_byte_is_stale_after_an_open() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch, "cache");
    let mount = cached(source.path(), &cache)
        .opt("racy=2,attr_timeout=0,entry_timeout=0")
        .start();
    let path = source.store().join("file");
    let mut dice = Dice::new(11);
    for version in 0..soak(300) {
        source
            .faults()
            .show_older(Duration::from_secs(dice.below(3) * 50_000));
        write_content(&path, version, 3 * BLOCK);
        // Each time another mtime: years ahead, an hour ahead, an hour or years behind.
        let jump = [400_000_000, 3600, -3600, -400_000_000][dice.below(4) as usize];
        set_mtime(&path, jump, version);
        for _ in 0..2 {
            assert_content(version, 0, &read_file(&mount.path().join("file")));
        }
    }
}

/// The time of the last change, so many seconds from now; `nanos` makes each its own.
fn set_mtime(path: &Path, seconds: i64, nanos: u64) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let time = Timespec {
        tv_sec: now.as_secs() as i64 + seconds,
        tv_nsec: nanos as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::empty()).expect("utimensat");
}
