//! Several processes with one directory, and their sudden ends. The test binary starts itself: the
//! ignored tests here are what the children do.

use std::process::{Child, Command, Stdio};

use super::super::ledger::usable;
use super::*;

const DIR: &str = "CORFS_TEST_CACHE_DIR";
const SEED: &str = "CORFS_TEST_CACHE_SEED";

fn spawn(what: &str, dir: &Path, seed: u64) -> Child {
    let name = format!("cache::tests::processes::{what}");
    Command::new(std::env::current_exe().expect("we are a program"))
        .args(["--exact", &name, "--ignored", "--test-threads=1"])
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .spawn()
        .expect("a child starts")
}

/// What a child was told; None in a run of all ignored tests.
fn told() -> Option<(std::path::PathBuf, u64)> {
    let seed = std::env::var(SEED).ok()?.parse().ok()?;
    Some((std::env::var_os(DIR)?.into(), seed))
}

const LIMIT: u64 = 6 << 20;
/// What may be counted for extents of files that have them in their inodes.
const TO_COME: u64 = 64 * super::super::ledger::EXTENTS;

fn child_options(dir: &Path) -> StoreOptions {
    StoreOptions {
        size: Share::Bytes(LIMIT),
        ..options(dir)
    }
}

/// The files that the children read: 64 of up to 10 blocks, three times the limit together.
fn file(n: u64) -> (String, u64) {
    (format!("files/{n}"), 1 + n * 9973 % (10 * BLOCK))
}

/// [`du`] is not of one moment: what is evicted behind it and what is stored before it are both in
/// its sum. What is above the limit in truth is so at every look.
fn du_of_a_moment(dir: &Path) -> u64 {
    let looks = (0..5).map(|_| du(dir));
    let mut least = u64::MAX;
    for bytes in looks {
        least = least.min(bytes);
        if least <= LIMIT {
            break;
        }
    }
    least
}

/// Reads files at random, some of them in part, and compares what it gets.
fn read_some(store: &Arc<Store>, random: &mut fastrand::Rng) {
    let (path, len) = file(random.u64(..64));
    let bytes = content(&path, 1, len);
    let Some(entry) = store.entry(path.as_bytes(), &identity(1, len)) else {
        return;
    };
    let blocks = random.u64(0..=entry.blocks());
    for block in 0..blocks {
        let range = entry.range_of(block);
        if entry.ready(range.clone()) == Ready::All || entry.check(range.clone()) {
            let mut got = vec![0; (range.end - range.start) as usize];
            let read = rustix::io::pread(&*entry.data(), &mut got, range.start).expect("pread");
            let right = &bytes[range.start as usize..range.end as usize];
            assert!(read == got.len() && got == right, "{path} block {block}");
        } else {
            fill(&entry, block, &bytes);
        }
    }
    if random.u32(..20) == 0 {
        store.remove(path.as_bytes());
    }
}

#[test]
#[ignore = "a child of the tests below"]
fn child_reads_for_a_while() {
    let Some((dir, seed)) = told() else { return };
    let store = open(&child_options(&dir));
    store.start().expect("threads start");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..(1000.0 * soak()) as u32 {
        read_some(&store, &mut random);
    }
    store.close();
}

#[test]
#[ignore = "a child of the tests below"]
fn child_reads_until_it_is_killed() {
    let Some((dir, seed)) = told() else { return };
    let store = open(&child_options(&dir));
    store.start().expect("threads start");
    let mut random = fastrand::Rng::with_seed(seed);
    // A parent that is gone kills nobody.
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        read_some(&store, &mut random);
    }
}

#[test]
fn four_processes_that_fill_and_evict_never_pass_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..4)
        .map(|seed| spawn("child_reads_for_a_while", folder.path(), seed))
        .collect();
    let mut most = 0;
    let mut looks = 0;
    while children
        .iter_mut()
        .any(|child| child.try_wait().unwrap().is_none())
    {
        let bytes = du_of_a_moment(folder.path());
        assert!(bytes <= LIMIT, "{bytes} of {LIMIT}");
        most = bytes.max(most);
        looks += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    println!("at most {most} of {LIMIT} in {looks} looks");
    assert!(most > LIMIT / 2, "they filled it: {most}");
    let store = open(&child_options(folder.path()));
    let ledger = store.budget.as_ref().unwrap().ledger().unwrap();
    assert!(ledger.sure && ledger.reserved() == 0, "{ledger:?}");
    assert!(du(folder.path()) <= ledger.used());
}

#[test]
fn processes_killed_at_any_moment_leave_no_wrong_byte_and_lose_no_budget() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let rounds = (100.0 * soak()) as u64;
    for round in 0..rounds {
        let mut pair: Vec<Child> = (0..2)
            .map(|n| {
                spawn(
                    "child_reads_until_it_is_killed",
                    folder.path(),
                    round * 2 + n,
                )
            })
            .collect();
        let wait = Duration::from_millis(random.u64(20..400));
        let end = Instant::now() + wait;
        while Instant::now() < end {
            let bytes = du_of_a_moment(folder.path());
            assert!(bytes <= LIMIT, "round {round}: {bytes} of {LIMIT}");
            std::thread::sleep(Duration::from_millis(5));
        }
        for child in &mut pair {
            // One that found a wrong byte has ended by itself.
            assert!(child.try_wait().unwrap().is_none(), "round {round}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let store = open(&child_options(folder.path()));
        let budget = store.budget.as_ref().unwrap();
        assert!(du(folder.path()) <= budget.ledger().unwrap().used());
        for n in 0..64 {
            check_whole(&store, n);
        }
        super::super::keeping::keep_once(&store).unwrap();
        let ledger = budget.ledger().unwrap();
        assert_eq!(ledger.reserved(), 0);
        // What was counted twice, as it may be there or come yet, goes with the next wish for room.
        assert!(ledger.used() <= usable(LIMIT) + TO_COME);
        assert_eq!(files(folder.path(), ".tmp").len(), 0);
        if round % 3 == 0 {
            store.close();
        }
        drop(store);
        if round % 4 == 0 {
            crash(folder.path());
        }
    }
    let store = open(&child_options(folder.path()));
    let budget = store.budget.as_ref().unwrap();
    assert!(budget.count_all(|| true).unwrap());
    let used = budget.ledger().unwrap().used();
    let on_disk = du(folder.path());
    assert!(
        (on_disk..=on_disk + TO_COME).contains(&used),
        "{used} {on_disk}"
    );
}

/// Every block of a file that is called ready is right.
fn check_whole(store: &Arc<Store>, n: u64) {
    let (path, len) = file(n);
    let Some(entry) = store.entry_as_stored(path.as_bytes()) else {
        return;
    };
    let (bytes, served) = (content(&path, 1, len), served(&entry));
    for block in 0..entry.blocks() {
        let range = entry.range_of(block);
        if entry.ready(range.clone()) == Ready::All {
            let range = range.start as usize..range.end as usize;
            assert!(
                served[range.clone()] == bytes[range],
                "{path} block {block}"
            );
        }
    }
}
