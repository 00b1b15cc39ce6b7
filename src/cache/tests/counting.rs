//! What the dead leave in the ledger, and who counts it.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crate::cache::budget::{Budget, Room, TURN, byte};
use crate::cache::ledger::{Ledger, OTHER};
use crate::cache::options::Share;
use crate::cache::shelf::Shelf;
use crate::cache::store::FOUNDING;
use crate::observe::Metrics;
use crate::sys::{Errno, ofd};

const PLACE: u64 = 7;

/// A part in the ledger of a directory that holds nothing else. It dies when it is dropped: its
/// locks go, and what it had reserved stays.
fn join(dir: &Path) -> Budget {
    join_with(dir, 0)
}

fn join_with(dir: &Path, bytes: u64) -> Budget {
    let top = File::open(dir).unwrap();
    let shares = (Share::Bytes(1 << 30), Share::Bytes(0));
    let metrics = Arc::new(Metrics::new());
    Budget::open(
        top.as_fd(),
        top.as_fd(),
        PLACE,
        shares,
        (false, bytes),
        metrics,
    )
    .unwrap()
}

fn die_with(dir: &Path, bytes: u64) {
    let budget = join(dir);
    assert_eq!(budget.reserve(bytes, false).unwrap(), Room::Reserved);
}

fn reserved(budget: &Budget) -> u64 {
    budget.ledger().unwrap().reserved()
}

/// Counts everything, and does something else after the first folder was counted.
fn count_while(budget: &Budget, meanwhile: impl Fn()) -> bool {
    let looks = Cell::new(0);
    let counted = budget.count_all(|| {
        looks.set(looks.get() + 1);
        if looks.get() == 2 {
            meanwhile();
        }
        true
    });
    counted.unwrap()
}

#[test]
fn what_was_left_after_a_folder_was_counted_is_not_given_back_with_what_was_left_before() {
    let dir = tempfile::tempdir().unwrap();
    let budget = join(dir.path());
    die_with(dir.path(), 100);
    // Whoever comes now gets the slot of the dead one.
    assert!(count_while(&budget, || die_with(dir.path(), 80)));
    assert!(reserved(&budget) >= 80, "{}", reserved(&budget));
    assert!(count_while(&budget, || ()));
    assert_eq!(reserved(&budget), 0);
}

#[test]
fn two_who_count_do_not_both_give_back_what_the_same_dead_left() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (join(dir.path()), join(dir.path()));
    die_with(dir.path(), 100);
    // Now it is in the heir's slot.
    die_with(dir.path(), 0);
    let counted = count_while(&one, || {
        assert!(!other.count_all(|| true).unwrap(), "one at a time");
    });
    assert!(counted);
    assert_eq!(reserved(&one), 0);
    assert!(other.count_all(|| true).unwrap());
}

#[test]
fn who_was_killed_with_nothing_reserved_makes_the_next_one_count_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let budget = join(dir.path());
    assert!(!budget.must_count().unwrap());
    // As if it had been killed after it took something away, and before it told of it.
    drop(join(dir.path()));
    assert!(budget.must_count().unwrap());
    // That is not forgotten when others come and go.
    join(dir.path()).close(true).unwrap();
    assert!(budget.must_count().unwrap());
    // Nor does who comes and goes meanwhile keep it from being done with.
    let meanwhile = || join(dir.path()).close(true).unwrap();
    assert!(count_while(&budget, meanwhile));
    assert!(!budget.must_count().unwrap());
    join(dir.path()).close(true).unwrap();
    assert!(
        !budget.must_count().unwrap(),
        "who left need not be counted"
    );
}

#[test]
fn what_one_thread_commits_leaves_what_another_has_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let budget = join(dir.path());
    let before = budget.ledger().unwrap().used();
    for _ in 0..3 {
        assert_eq!(budget.reserve(1000, false).unwrap(), Room::Reserved);
    }
    budget.commit(3, 1000, 900).unwrap();
    assert_eq!(reserved(&budget), 2000);
    budget.commit(OTHER, 0, 500).unwrap();
    assert_eq!(reserved(&budget), 2000);
    budget.release(1000).unwrap();
    assert_eq!(budget.ledger().unwrap().used(), before + 900 + 500 + 1000);
}

#[test]
fn what_the_ledger_cannot_be_told_stays_reserved_until_its_folder_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let budget = join(dir.path());
    assert_eq!(budget.reserve(5000, false).unwrap(), Room::Reserved);
    let before = budget.ledger().unwrap().used();
    let other = File::options().write(true).open(dir.path().join("ledger"));
    let other = other.unwrap();
    // Somebody has his turn and was stopped.
    ofd::set(other.as_fd(), byte(libc::F_WRLCK, TURN)).unwrap();
    assert_eq!(
        budget.commit(3, 4000, 4000).unwrap_err().errno,
        Errno::AGAIN
    );
    assert_eq!(budget.release(1000).unwrap_err().errno, Errno::AGAIN);
    assert_eq!(budget.removed(4, 1000).unwrap_err().errno, Errno::AGAIN);
    drop(other);
    assert_eq!(budget.ledger().unwrap().used(), before);
    assert!(!budget.must_count().unwrap());
    let mut counted = Vec::new();
    while let Some(folder) = budget.most_drifted(1 << 20) {
        assert!(budget.count(folder).unwrap());
        counted.push(folder);
    }
    counted.sort_unstable();
    assert_eq!(counted, [3, 4, OTHER]);
    assert_eq!(reserved(&budget), 0);
}

#[test]
fn a_store_whose_maker_was_killed_is_counted_from_the_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("v1");
    std::fs::create_dir(&top).unwrap();
    let budget = join_with(&top, FOUNDING);
    let (shelf, new) = Shelf::open(File::open(&top).unwrap().as_fd(), "killed", true).unwrap();
    assert!(new);
    drop((shelf, budget));
    let store = super::open(&super::options(dir.path()));
    let used = store.budget.as_ref().unwrap().ledger().unwrap().used();
    assert!(super::du(dir.path()) <= used);
    super::super::keeping::keep_once(&store).unwrap();
    let used = store.budget.as_ref().unwrap().ledger().unwrap().used();
    assert_eq!(super::du(dir.path()), used);
}

#[test]
fn data_whose_index_was_taken_away_are_gone_when_their_folder_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = super::open(&super::options(dir.path()));
    let entry = super::entry(&store, "a", 1, super::BLOCK);
    super::fill_all(&entry, &super::content("a", 1, super::BLOCK));
    std::fs::remove_file(&super::files(dir.path(), ".index")[0]).unwrap();
    let budget = store.budget.as_ref().unwrap();
    let fan = entry.name.fan();
    assert!(budget.count(fan).unwrap());
    assert_eq!(super::files(dir.path(), ".data").len(), 1, "in use");
    drop(entry);
    assert!(budget.count(fan).unwrap());
    assert!(super::files(dir.path(), ".data").is_empty());
    assert!(super::du(dir.path()) <= budget.ledger().unwrap().used());
}

#[test]
fn who_leaves_without_having_told_all_is_as_good_as_killed() {
    let dir = tempfile::tempdir().unwrap();
    let budget = join(dir.path());
    let leaving = join(dir.path());
    leaving.owe(4, 0);
    leaving.close(true).unwrap();
    drop(leaving);
    assert!(budget.must_count().unwrap());
    budget.close(true).unwrap();
    assert!(!budget.ledger().unwrap().clean);
}

#[test]
fn what_cannot_be_counted_lets_others_go_first_and_is_tried_less_and_less() {
    let dir = tempfile::tempdir().unwrap();
    let (budget, other) = (join(dir.path()), join(dir.path()));
    budget.owe(3, 0);
    budget.doubt(5, 1000);
    let inside = other.enter(3).unwrap();
    assert_eq!(budget.most_drifted(10), Some(3));
    assert!(!budget.count(3).unwrap());
    assert_eq!(budget.most_drifted(10), Some(5));
    assert_eq!(budget.most_drifted(10), Some(3));
    drop(inside);
    assert!(budget.count(3).unwrap());
    assert_eq!(budget.most_drifted(10), Some(5));

    let mut pauses = Vec::new();
    for _ in 0..8 {
        budget.counted_all(false);
        let mut rounds = 0;
        while !budget.may_count_all() {
            rounds += 1;
        }
        pauses.push(rounds);
    }
    assert_eq!(pauses, [0, 1, 3, 7, 15, 31, 59, 59]);
    budget.counted_all(true);
    assert!(budget.may_count_all());
}

#[test]
fn strange_things_among_the_entries_are_counted_and_halves_of_orphans_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = super::open(&super::options(dir.path()));
    let entry = super::entry(&store, "a", 1, super::BLOCK);
    super::fill_all(&entry, &super::content("a", 1, super::BLOCK));
    let folder = super::files(dir.path(), ".index")[0].clone();
    let folder = folder.parent().unwrap();
    std::fs::create_dir(folder.join(".hidden")).unwrap();
    std::fs::write(folder.join(".hidden/large"), vec![1; 100_000]).unwrap();
    std::os::unix::fs::symlink("/nowhere", folder.join("link.data")).unwrap();
    std::fs::create_dir(folder.join("folder.data")).unwrap();
    let orphans = folder.parent().unwrap().parent().unwrap().join("orphans");
    std::fs::write(orphans.join("half.index"), "x").unwrap();
    let budget = store.budget.as_ref().unwrap();
    assert!(budget.count_all(|| true).unwrap());
    assert!(folder.join(".hidden/large").exists());
    assert!(!orphans.join("half.index").exists());
    std::fs::remove_dir_all(folder.join(".hidden")).unwrap();
    assert!(super::du(dir.path()) <= budget.ledger().unwrap().used());
}

#[test]
fn pages_of_an_index_without_records_stay_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = super::open(&super::options(dir.path()));
    let len = 3000 * super::BLOCK;
    let entry = super::entry(&store, "a", 1, len);
    let budget = store.budget.as_ref().unwrap();
    assert!(budget.count(entry.name.fan()).unwrap());
    let index = super::files(dir.path(), ".index")[0].metadata().unwrap();
    assert!(index.len() > 10 * 4096);
    let counted = budget.ledger().unwrap().committed[entry.name.fan()];
    assert!(counted >= index.len(), "{counted}");
}

#[test]
fn a_ledger_of_those_who_told_too_little_is_not_sure() {
    let mut bytes = Ledger::new(1).encode();
    assert!(Ledger::decode(&bytes).unwrap().sure);
    bytes[12] &= !4;
    assert!(!Ledger::decode(&bytes).unwrap().sure);
}
