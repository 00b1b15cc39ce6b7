//! What the dead leave in the ledger, and who counts it.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crate::cache::budget::{Budget, Room};
use crate::cache::options::Share;
use crate::observe::Metrics;

const PLACE: u64 = 7;

/// A part in the ledger of a directory that holds nothing else. It dies when it is dropped: its
/// locks go, and what it had reserved stays.
fn join(dir: &Path) -> Budget {
    let top = File::open(dir).unwrap();
    let shares = (Share::Bytes(1 << 30), Share::Bytes(0));
    let metrics = Arc::new(Metrics::new());
    Budget::open(top.as_fd(), top.as_fd(), PLACE, shares, false, metrics).unwrap()
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
