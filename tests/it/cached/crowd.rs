//! Several at once in one cache directory.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Looks at the disk every 10 ms, until told to stop: the most it saw, and how often it looked.
fn watch(cache: &Path, stop: &AtomicBool) -> (u64, u64) {
    let (mut most, mut looks) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        most = most.max(disk_usage(cache));
        looks += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    (most, looks)
}

#[test]
fn four_processes_that_fill_and_evict_never_pass_the_limit() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 24, 6 * BLOCK);
    let cache = cache_folder(&scratch, "cache");
    let limit = tree.bytes() / 3;
    let mounts: Vec<Mount> = (0..4)
        .map(|at| {
            // Two share a store, the others have one each.
            cached(&tree.path, &cache)
                .opt(format!("cache_id=store-{},cache_size={limit}", at.max(1)))
                .start()
        })
        .collect();
    let stop = AtomicBool::new(false);
    let (most, looks) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&cache.join("v1"), &stop));
        let readers: Vec<_> = mounts
            .iter()
            .enumerate()
            .flat_map(|(at, mount)| [(at * 2, mount), (at * 2 + 1, mount)])
            .map(|(seed, mount)| {
                let (tree, point) = (&tree, mount.path());
                scope.spawn(move || {
                    let mut dice = Dice::new(seed as u64);
                    for _ in 0..soak(1000) {
                        tree.read_somewhere(point, &mut dice).expect("read");
                    }
                })
            })
            .collect();
        let ends: Vec<_> = readers.into_iter().map(|one| one.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let seen = watching.join().expect("the one who looks");
        ends.into_iter().for_each(|end| end.expect("a reader"));
        seen
    });
    println!("looked {looks} times: at most {most} of {limit} bytes");
    assert!(most <= limit, "{most} bytes of {limit} on the disk");
    assert!(
        most > limit / 2,
        "{most} bytes of {limit}: the budget is used"
    );
    let evicted: u64 = mounts
        .iter()
        .map(|mount| counted(mount, "evictions_total"))
        .sum();
    assert!(evicted > 0, "something was evicted");
    for mount in &mounts {
        tree.compare(mount.path());
    }
}
