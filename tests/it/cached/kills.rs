//! kill -9 at any point.

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};

use corfs::cache::{CacheDir, Verify};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::direct::{Direct, Reading};
use super::*;

const FILES: u64 = 12;
const SIZE: u64 = 5 * BLOCK;

/// What the cache takes at one moment: nobody fills or evicts while it is summed up.
fn usage_at_rest(cache: &Path, readers: &[&Child]) -> u64 {
    let pids: Vec<_> = readers
        .iter()
        .map(|reader| Pid::from_child(reader))
        .collect();
    for pid in &pids {
        kill_process(*pid, Signal::STOP).expect("stop");
        let stopped = waitpid(Some(*pid), WaitOptions::UNTRACED).expect("wait");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    }
    let usage = disk_usage(&cache.join("v1"));
    for pid in pids {
        kill_process(pid, Signal::CONT).expect("continue");
    }
    usage
}

/// The processes of a storm: two that share a store, one of another; one of them is killed after
/// another, and then there is a new one.
#[test]
fn killed_at_random_points_no_byte_is_wrong_and_no_budget_lost() {
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), FILES, SIZE);
    let cache = cache_folder(&scratch, "cache");
    let limit = tree.bytes() / 2;
    let spawn = |seed: u64| {
        let mut reading = Reading::of(&tree, &cache, limit);
        (reading.seed, reading.id) = (seed, (seed % 3) / 2);
        reading.spawn()
    };
    let mut dice = Dice::new(9);
    let mut readers: Vec<_> = (0..3).map(spawn).collect();
    let kills = soak(500);
    let mut most = 0;
    for kill in 0..kills {
        // A random point is what is wanted here.
        std::thread::sleep(Duration::from_micros(dice.below(50_000)));
        let all: Vec<_> = readers.iter().collect();
        most = most.max(usage_at_rest(&cache, &all));
        let at = (kill % 3) as usize;
        let early = readers[at].try_wait().expect("wait");
        assert!(early.is_none(), "a reader ended by itself: {early:?}");
        readers[at].kill().expect("kill");
        readers[at].wait().expect("wait");
        let others: Vec<_> = (0..3)
            .filter(|other| *other != at)
            .map(|other| &readers[other])
            .collect();
        most = most.max(usage_at_rest(&cache, &others));
        readers[at] = spawn(kill + 3);
    }
    for reader in &mut readers {
        reader.kill().expect("kill");
        reader.wait().expect("wait");
    }
    println!("{kills} kills: at most {most} of {limit} bytes");
    assert!(most <= limit, "{most} bytes of {limit}");
    // What the killed ones had reserved can be used again: there is room for most of the budget.
    let direct = Direct::open(&cache, 0, limit, Verify::Unclean);
    wait_until("the budget is used again", PATIENCE, || {
        direct.compare(&tree);
        let data = files_of(&cache, "data");
        data.iter().map(|path| disk_usage(path)).sum::<u64>() >= limit * 2 / 3
    });
    direct.store.close();
    assert!(disk_usage(&cache.join("v1")) <= limit);
}

/// Fills a cache whose first processes were killed while they began with it.
#[test]
fn killed_while_it_makes_its_folders_a_process_leaves_nothing_uncounted() {
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), FILES, SIZE);
    let limit = tree.bytes() / 2;
    let mut dice = Dice::new(4);
    for round in 0..soak(300) {
        let cache = cache_folder(&scratch, &format!("cache-{round}"));
        let mut reading = Reading::of(&tree, &cache, limit);
        for id in 0..3 {
            reading.id = id;
            let mut reader = reading.spawn();
            // A random point is what is wanted here: it begins about now.
            std::thread::sleep(Duration::from_micros(dice.below(30_000)));
            reader.kill().expect("kill");
            reader.wait().expect("wait");
        }
        let direct = Direct::open(&cache, 0, limit, Verify::Unclean);
        let told = CacheDir::open(&cache).expect("a cache").status();
        let (told, used) = (told.expect("a ledger").used, disk_usage(&cache));
        assert!(
            told >= used,
            "{used} bytes, {told} counted in round {round}"
        );
        direct.compare(&tree);
        // At rest: what is evicted while it is summed up would be there twice.
        assert!(direct.store.settle(PATIENCE));
        let used = disk_usage(&cache);
        assert!(used <= limit, "{used} bytes of {limit} in round {round}");
        direct.store.close();
        std::fs::remove_dir_all(&cache).expect("remove");
    }
}

/// Reads anywhere until the mount is gone or told to stop; panics at a wrong byte.
fn read_until_it_ends(tree: &Tree, mount: &Path, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !stop.load(Ordering::Relaxed) {
        if tree.read_somewhere(mount, &mut dice).is_err() {
            // Of a dead mount; that a living one fails nobody is seen by the comparison after.
            return;
        }
    }
}

/// Kills the server while several read and what they read evicts what others have.
fn kill_while_filling(tree: &Tree, builder: MountBuilder, seed: u64) {
    let mut mount = builder.start();
    let stop = AtomicBool::new(false);
    let point = mount.path().to_owned();
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (point, stop) = (&point, &stop);
            scope.spawn(move || read_until_it_ends(tree, point, seed * 10 + reader, stop));
        }
        // A random point is what is wanted here.
        std::thread::sleep(Duration::from_micros(Dice::new(seed).below(60_000)));
        mount.signal_server(Signal::KILL);
        let end = mount.wait(PATIENCE);
        stop.store(true, Ordering::Relaxed);
        assert!(end.is_some(), "the guardian outlives its server");
    });
}

#[test]
fn a_mount_killed_at_random_points_serves_no_wrong_byte_afterwards() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), FILES, SIZE);
    let cache = cache_folder(&scratch, "cache");
    let limit = tree.bytes() / 2;
    let builder = || cached(&tree.path, &cache).opt(format!("cache_size={limit}"));
    for round in 0..soak(100) {
        kill_while_filling(&tree, builder(), round);
        let used = disk_usage(&cache.join("v1"));
        assert!(used <= limit, "{used} bytes of {limit} after {round} kills");
    }
    let mount = builder().start();
    tree.compare(mount.path());
    tree.compare(mount.path());
    assert!(mount.finish().success());
}

#[test]
fn a_warmer_killed_at_random_points_leaves_a_cache_that_is_right() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), FILES, SIZE);
    let cache = cache_folder(&scratch, "cache");
    let mount = cached(&tree.path, &cache).start();
    for round in 0..soak(100) {
        let words = if round % 3 == 0 { "evict" } else { "warm" };
        let mut command = corfs()
            .args(["cache", words])
            .arg(mount.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("corfs cache");
        std::thread::sleep(Duration::from_micros(Dice::new(round).below(30_000)));
        let _ = command.kill();
        command.wait().expect("wait");
    }
    run(corfs().args(["cache", "warm"]).arg(mount.path()));
    tree.compare(mount.path());
    run(corfs().args(["cache", "verify"]).arg(&cache));
}
