//! Room, and what goes to make it.

use super::super::ledger::usable;
use super::super::shelf::Taken;
use super::super::{CacheDir, Evicted};
use super::*;

fn limited(dir: &Path, limit: u64) -> StoreOptions {
    StoreOptions {
        size: Share::Bytes(limit),
        ..options(dir)
    }
}

fn used(store: &Store) -> u64 {
    store.budget.as_ref().unwrap().ledger().unwrap().used()
}

#[test]
fn what_the_ledger_says_is_never_less_than_what_is_on_disk_nor_more_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 4 << 20;
    let store = open(&limited(folder.path(), limit));
    for n in 0..120u64 {
        let path = format!("d/{n}");
        let len = n * 3000 % (5 * BLOCK);
        if let Some(entry) = store.entry(path.as_bytes(), &identity(1, len)) {
            fill_all(&entry, &content(&path, 1, len));
        }
        let on_disk = du(folder.path());
        assert!(on_disk <= used(&store), "{n}: {on_disk} {}", used(&store));
        assert!(used(&store) <= usable(limit));
    }
    assert!(counted(&store, "corfs_cache_evictions_total") > 10.0);
    assert!(used(&store) > limit / 2, "{}", used(&store));
    // The last one is whole: what was not used for longest went.
    let last = entry(&store, "d/119", 1, 119 * 3000 % (5 * BLOCK));
    assert!(last.is_whole());
}

#[test]
fn what_is_in_use_or_pinned_stays_and_the_rest_is_served_uncached() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&limited(folder.path(), 2 << 20));
    let len = 8 * BLOCK;
    let bytes = content("held", 1, len);
    let held = entry(&store, "held", 1, len);
    fill_all(&held, &bytes);
    fill_all(&entry(&store, "pinned", 1, len), &content("pinned", 1, len));
    let cache = CacheDir::open(folder.path()).unwrap();
    let view = cache.store(&store.name).unwrap();
    assert!(view.pin(b"pinned", true).unwrap());
    assert!(!view.pin(b"nobody", true).unwrap());
    for n in 0..20 {
        let path = format!("other/{n}");
        if let Some(entry) = store.entry(path.as_bytes(), &identity(1, len)) {
            fill_all(&entry, &content(&path, 1, len));
        }
    }
    assert!(held.is_whole());
    assert_eq!(served(&held), bytes);
    assert!(entry(&store, "pinned", 1, len).is_whole());
    // Now nothing can go.
    assert!(view.pin(b"held", true).unwrap());
    let large = entry(&store, "large", 1, 20 * BLOCK);
    fill_all(&large, &content("large", 1, 20 * BLOCK));
    assert!(!large.is_whole());
    assert!(counted(&store, "corfs_cache_unstored_total") > 0.0);
    assert!(du(folder.path()) <= 2 << 20);
}

#[test]
fn a_command_evicts_what_is_free_and_gives_up_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    for path in ["free", "held", "pinned"] {
        fill_all(&entry(&store, path, 1, BLOCK), &content(path, 1, BLOCK));
    }
    let held = entry(&store, "held", 1, BLOCK);
    let cache = CacheDir::open(folder.path()).unwrap();
    let view = cache.store(&store.name).unwrap();
    view.pin(b"pinned", true).unwrap();
    let infos = |path: &str| view.entry(path.as_bytes()).unwrap().unwrap();
    assert!(infos("held").in_use && !infos("free").in_use && infos("pinned").pinned);
    assert!(infos("free").allocated >= BLOCK);
    let mut seen = Vec::new();
    view.entries(|info| {
        seen.push(String::from_utf8(info.path).unwrap());
        true
    })
    .unwrap();
    seen.sort();
    assert_eq!(seen, ["free", "held", "pinned"]);
    let evict = |path: &str, pinned| view.evict(path.as_bytes(), pinned).unwrap();
    assert!(matches!(evict("free", false), Evicted::Gone(bytes) if bytes >= BLOCK));
    assert_eq!(evict("free", false), Evicted::NotThere);
    assert_eq!(evict("held", false), Evicted::GivenUp);
    assert_eq!(evict("pinned", false), Evicted::Pinned);
    assert!(matches!(evict("pinned", true), Evicted::Gone(_)));
    assert_eq!(served(&held), content("held", 1, BLOCK));
    drop(held);
    super::super::keeping::keep_once(&store).unwrap();
    assert_eq!(files(folder.path(), ".data").len(), 0);
    let status = cache.status().unwrap();
    assert_eq!(status.limit, Some(64 << 20));
    assert_eq!(status.processes, [std::process::id()]);
    assert_eq!((status.used, status.reserved), (used(&store), 0));
}

#[test]
fn a_check_finds_strangers_and_miscounts_and_repairs_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    for path in ["a", "b"] {
        fill_all(&entry(&store, path, 1, BLOCK), &content(path, 1, BLOCK));
    }
    std::fs::remove_file(&files(folder.path(), ".index")[0]).unwrap();
    let beside = files(folder.path(), ".index")[0]
        .parent()
        .unwrap()
        .to_owned();
    std::fs::write(beside.join("what"), vec![1; 100_000]).unwrap();
    std::fs::write(beside.join(".torn"), vec![1; 100_000]).unwrap();
    let cache = CacheDir::open(folder.path()).unwrap();
    let found = cache.check(false).unwrap();
    assert_eq!((found.entries, found.strangers.len()), (1, 3), "{found:?}");
    assert!(found.miscounted > 100_000 && !found.repaired);
    assert_eq!(cache.check(true).unwrap().strangers.len(), 3);
    let found = cache.check(false).unwrap();
    assert_eq!(
        (found.entries, found.strangers.len(), found.miscounted),
        (1, 0, 0)
    );
    assert_eq!(used(&store), du(folder.path()));
}

#[test]
fn a_ledger_of_another_boot_is_counted_before_anything_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    fill_all(&entry(&store, "a", 1, BLOCK), &content("a", 1, BLOCK));
    drop(store);
    let path = folder.path().join("v1/ledger");
    let mut ledger = super::super::ledger::Ledger::decode(&std::fs::read(&path).unwrap()).unwrap();
    ledger.place ^= 1;
    ledger.committed = [0; 257];
    std::fs::write(&path, ledger.encode()).unwrap();
    let store = open(&options(folder.path()));
    assert!(
        entry(&store, "a", 1, BLOCK).is_whole(),
        "what is there is read"
    );
    assert!(store.entry(b"b", &identity(1, BLOCK)).is_none());
    super::super::keeping::keep_once(&store).unwrap();
    assert_eq!(used(&store), du(folder.path()));
    fill_all(&entry(&store, "b", 1, BLOCK), &content("b", 1, BLOCK));
    drop(store);
    // Lost, it is as good as of another boot.
    std::fs::remove_file(&path).unwrap();
    let store = open(&options(folder.path()));
    assert!(store.entry(b"c", &identity(1, BLOCK)).is_none());
    super::super::keeping::keep_once(&store).unwrap();
    assert_eq!(used(&store), du(folder.path()));
}

#[test]
fn after_a_clean_stop_another_boot_believes_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    fill_all(&entry(&store, "a", 1, BLOCK), &content("a", 1, BLOCK));
    store.close();
    let path = folder.path().join("v1/ledger");
    let mut ledger = super::super::ledger::Ledger::decode(&std::fs::read(&path).unwrap()).unwrap();
    assert!(ledger.clean && ledger.sure);
    ledger.place ^= 1;
    std::fs::write(&path, ledger.encode()).unwrap();
    let store = open(&options(folder.path()));
    assert!(store.entry(b"b", &identity(1, BLOCK)).is_some());
}

#[test]
fn the_floor_of_free_space_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&StoreOptions {
        free: Share::Percent(100),
        ..options(folder.path())
    });
    assert!(store.entry(b"a", &identity(1, BLOCK)).is_none());
    assert_eq!(counted(&store, "corfs_cache_unstored_total"), 1.0);
}

#[test]
fn entries_of_other_sources_make_room_too() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 2 << 20;
    let one = open(&limited(folder.path(), limit));
    for n in 0..3 {
        let path = format!("{n}");
        fill_all(
            &entry(&one, &path, 1, 8 * BLOCK),
            &content(&path, 1, 8 * BLOCK),
        );
    }
    let mut other = limited(folder.path(), limit);
    other.source.key = "id:other".into();
    let two = open(&other);
    for n in 0..3 {
        let path = format!("{n}");
        fill_all(
            &entry(&two, &path, 2, 8 * BLOCK),
            &content(&path, 2, 8 * BLOCK),
        );
    }
    assert!(entry(&two, "2", 2, 8 * BLOCK).is_whole());
    assert!(du(folder.path()) <= limit);
    assert_eq!(used(&one), used(&two));
}

#[test]
fn a_smaller_limit_of_another_process_holds_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(&limited(folder.path(), 8 << 20));
    let two = open(&limited(folder.path(), 1 << 20));
    for n in 0..4 {
        let path = format!("{n}");
        let entry = entry(&one, &path, 1, 8 * BLOCK);
        fill_all(&entry, &content(&path, 1, 8 * BLOCK));
    }
    assert!(du(folder.path()) <= 1 << 20);
    two.close();
    for n in 0..4 {
        let path = format!("{n}");
        fill_all(
            &entry(&one, &path, 1, 8 * BLOCK),
            &content(&path, 1, 8 * BLOCK),
        );
    }
    assert!(du(folder.path()) > 2 << 20);
}

#[test]
fn what_another_gave_up_is_filled_no_further_and_stays_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let budget = store.budget.as_ref().unwrap();
    let len = 6 * BLOCK;
    let bytes = content("held", 1, len);
    let held = entry(&store, "held", 1, len);
    fill(&held, 0, &bytes);
    assert!(store.settle(Duration::from_secs(60)));
    let taken = store.shelf.take_away(held.name, budget, (true, true, true));
    assert!(matches!(taken, Ok(Taken::Orphaned)), "{taken:?}");
    // Its reader goes on with it.
    fill_all(&held, &bytes);
    assert_eq!(counted(&store, "corfs_cache_unstored_total"), 5.0);
    assert!(budget.count(held.name.fan()).unwrap());
    let on_disk = du(folder.path());
    assert!(on_disk <= used(&store), "{on_disk} {}", used(&store));
    drop(held);
    assert_eq!(store.shelf.sweep(budget).unwrap(), 0);
    let on_disk = du(folder.path());
    assert!(on_disk <= used(&store), "{on_disk} {}", used(&store));
    assert!(files(folder.path(), ".data").is_empty());
}
