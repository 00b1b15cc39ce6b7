//! Blocks on their way, and entries under their names.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::sys::{Errno, Fail};

#[test]
fn what_was_filled_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK + 5] {
        let path = format!("folder/{len}");
        let bytes = content(&path, 1, len);
        let store = open(&options);
        let first = entry(&store, &path, 1, len);
        assert_eq!(first.is_whole(), len == 0);
        fill_all(&first, &bytes);
        assert_eq!(first.ready(0..u64::MAX), Ready::All);
        assert!(first.is_whole());
        drop(first);
        store.close();
        let store = open(&options);
        assert_eq!(store.stored(path.as_bytes()), Some(identity(1, len)));
        let again = entry(&store, &path, 1, len);
        assert!(again.is_whole());
        assert_eq!(served(&again), bytes);
        store.close();
    }
}

#[test]
fn only_what_was_filled_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let bytes = content("f", 1, 5 * BLOCK);
    let entry = entry(&store, "f", 1, 5 * BLOCK);
    fill(&entry, 2, &bytes);
    for (range, ready) in [
        (2 * BLOCK..3 * BLOCK, Ready::All),
        (2 * BLOCK + 5..2 * BLOCK + 6, Ready::All),
        (2 * BLOCK..3 * BLOCK + 1, Ready::Missing),
        (2 * BLOCK - 1..3 * BLOCK, Ready::Missing),
        (5 * BLOCK..6 * BLOCK, Ready::All),
        (7..7, Ready::All),
    ] {
        assert_eq!(entry.ready(range.clone()), ready, "{range:?}");
    }
    assert!(!entry.is_whole());
    assert!(entry.fill(5, soon(), |_| Ok(0), || Ok(true)).is_err());
}

#[test]
fn a_block_is_read_once_however_many_want_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let bytes = content("f", 1, BLOCK);
    let entry = entry(&store, "f", 1, BLOCK);
    let reads = AtomicU32::new(0);
    let (begun, go) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let read = |buffer: &mut [u8]| {
                reads.fetch_add(1, Ordering::Relaxed);
                begun.wait();
                go.wait();
                reader(&bytes, 0)(buffer)
            };
            entry.fill(0, soon(), read, || Ok(true)).unwrap()
        });
        begun.wait();
        let wait = || {
            let read = |_: &mut [u8]| -> Result<usize> { panic!("it is read already") };
            entry.fill(0, soon(), read, || Ok(true)).unwrap()
        };
        let others: Vec<_> = (0..7).map(|_| scope.spawn(wait)).collect();
        let late = entry.fill(0, Instant::now(), |_| panic!("read twice"), || Ok(true));
        assert_eq!(late.unwrap_err().errno, Errno::TIMEDOUT);
        while counted(&store, "corfs_cache_waits_total") < 8.0 {
            std::thread::yield_now();
        }
        go.wait();
        for thread in others.into_iter().chain([first]) {
            assert_eq!(thread.join().unwrap().bytes(), bytes);
        }
    });
    assert_eq!(reads.into_inner(), 1);
    assert_eq!(served(&entry), bytes);
}

#[test]
fn an_error_of_the_source_is_everyones_and_the_next_try_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let bytes = content("f", 1, BLOCK);
    let entry = entry(&store, "f", 1, BLOCK);
    let fail = |_: &mut [u8]| Err(Fail::new(Errno::NODEV, "read"));
    let failed = entry.fill(0, soon(), fail, || Ok(true));
    assert_eq!(failed.unwrap_err().errno, Errno::NODEV);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = entry.fill(0, soon(), |_| panic!("on purpose"), || Ok(true));
    }));
    assert!(panicked.is_err());
    fill(&entry, 0, &bytes);
    assert!(entry.is_whole());
}

#[test]
fn a_short_read_is_served_and_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let entry = entry(&store, "f", 1, BLOCK);
    let short = entry.fill(0, soon(), |buffer| Ok(buffer.len() - 1), || Ok(true));
    assert_eq!(short.unwrap().bytes().len() as u64, BLOCK - 1);
    assert_eq!(entry.ready(0..BLOCK), Ready::Missing);
}

#[test]
fn a_file_that_changed_during_a_fill_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let old = entry(&store, "f", 1, 2 * BLOCK);
    let bytes = content("f", 1, 2 * BLOCK);
    fill(&old, 0, &bytes);
    old.fill(1, soon(), reader(&bytes, 1), || Ok(false))
        .unwrap();
    assert!(old.is_abandoned());
    assert_eq!(old.ready(BLOCK..2 * BLOCK), Ready::Missing);
    assert_eq!(store.stored(b"f"), None);
    // Nothing more is stored in it, and the same version begins anew.
    fill(&old, 1, &bytes);
    assert_eq!(old.ready(BLOCK..2 * BLOCK), Ready::Missing);
    let new = entry(&store, "f", 1, 2 * BLOCK);
    assert!(!Arc::ptr_eq(&old, &new));
    assert_eq!(new.ready(0..BLOCK), Ready::Missing);
    let unknown = new.fill(0, soon(), reader(&bytes, 0), || {
        Err(Fail::new(Errno::IO, "stat"))
    });
    assert_eq!(unknown.unwrap().bytes(), &bytes[..BLOCK as usize]);
    assert!(!new.is_abandoned());
    assert_eq!(new.ready(0..BLOCK), Ready::Missing);
}

#[test]
fn a_young_version_is_served_and_stored_only_when_it_has_been_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.racy = Duration::from_millis(300);
    let bytes = content("f", 1, BLOCK);
    let now = super::super::store::now() as i64;
    // A clock that is ahead of ours: nothing but time that passes here settles it.
    let stamp = Stamp {
        seconds: now + 10_000,
        nanos: 0,
    };
    let young = Identity {
        mtime: stamp,
        ctime: stamp,
        ..identity(1, BLOCK)
    };
    let store = open(&options);
    let entry = store.entry(b"f", &young).unwrap();
    fill(&entry, 0, &bytes);
    assert_eq!(entry.ready(0..1), Ready::Missing);
    assert_eq!(counted(&store, "corfs_cache_provisional_total"), 1.0);
    let known = entry.known_since;
    drop(entry);
    while known.elapsed() < options.racy {
        std::thread::yield_now();
    }
    // Closed and opened in between, it is known no less.
    let entry = store.entry(b"f", &young).unwrap();
    fill(&entry, 0, &bytes);
    assert_eq!(entry.ready(0..1), Ready::All);
}

#[test]
fn a_new_version_replaces_the_old_one_which_its_readers_keep() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let (one, two) = (content("f", 1, 2 * BLOCK), content("f", 2, BLOCK));
    let old = entry(&store, "f", 1, 2 * BLOCK);
    fill_all(&old, &one);
    let data = old.data();
    let new = entry(&store, "f", 2, BLOCK);
    fill_all(&new, &two);
    assert_eq!(served(&old), one);
    assert_eq!(served(&new), two);
    assert_eq!(store.stored(b"f"), Some(identity(2, BLOCK)));
    drop(old);
    // The file is open, as if it were mapped.
    let sweep = || store.shelf.sweep(store.budget.as_ref().unwrap()).unwrap();
    assert_eq!(sweep(), 1);
    drop(data);
    assert_eq!(sweep(), 0);
    assert_eq!(files(folder.path(), ".data").len(), 1);
    assert_eq!(served(&new), two);
}

#[test]
fn what_was_removed_is_not_found_and_is_gone_when_nobody_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    let bytes = content("f", 1, BLOCK);
    fill_all(&entry(&store, "f", 1, BLOCK), &bytes);
    store.remove(b"f");
    assert_eq!(files(folder.path(), ".data").len(), 0);
    let held = entry(&store, "f", 1, BLOCK);
    fill_all(&held, &bytes);
    store.remove(b"f");
    assert!(held.is_abandoned() && !held.is_whole());
    assert_eq!(held.ready(0..1), Ready::All);
    assert!(store.entry_as_stored(b"f").is_none());
    held.correct(1, b"xyz").unwrap();
    assert_eq!(&served(&held)[..5], &[bytes[0], b'x', b'y', b'z', bytes[4]]);
    held.correct(BLOCK - 1, b"beyond").unwrap();
    assert_eq!(served(&held).len() as u64, BLOCK);
}

#[test]
fn another_path_with_the_same_name_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    fill_all(&entry(&store, "f", 1, 5), &content("f", 1, 5));
    let (from, to) = (
        super::super::layout::Name::of(b"f"),
        super::super::layout::Name::of(b"g"),
    );
    let dir = folder.path().join("v1").join(&store.name).join("entries");
    std::fs::create_dir_all(dir.join(format!("{:02x}", to.fan()))).unwrap();
    for what in ["data", "index"] {
        let name = |name: super::super::layout::Name| {
            dir.join(format!("{:02x}/{}.{what}", name.fan(), name.hex()))
        };
        std::fs::copy(name(from), name(to)).unwrap();
    }
    assert!(store.entry_as_stored(b"g").is_none());
    let made = entry(&store, "g", 1, 5);
    assert_eq!(made.ready(0..5), Ready::Missing);
    assert!(entry(&store, "f", 1, 5).is_whole());
}

#[test]
fn threads_of_the_store_take_what_is_to_be_stored_and_end_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&options(folder.path()));
    store.start().unwrap();
    let bytes = content("f", 1, 100 * BLOCK);
    let held = entry(&store, "f", 1, 100 * BLOCK);
    fill_all(&held, &bytes);
    assert!(held.is_whole());
    store.close();
    assert_eq!(served(&held), bytes);
    // Read on, store nothing.
    assert!(store.entry(b"g", &identity(1, 1)).is_none());
    drop(held);
    assert_eq!(Arc::strong_count(&store), 1);
}
