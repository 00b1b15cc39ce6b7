//! One reader at a time: right bytes, growth, truncation, pins and the budget.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::budget::{Budget, Window};
use super::super::options::Span;
use super::super::table::{Found, Table};
use super::super::{FileId, MapSlice, Miss, Pattern, WindowCache};
use super::{K, Source, bytes, cache, count, eventually, patterned};
use crate::observe::{Metrics, names};
use crate::sys::Errno;

fn slice(
    cache: &Arc<WindowCache>,
    source: &Source,
    start: u64,
    len: u64,
) -> Result<MapSlice, Miss> {
    let size = source.size();
    let end = (start + len).min(size);
    cache.slice(
        FileId(source.id),
        &source.fd,
        start..end,
        size,
        Pattern::Random,
    )
}

fn right(cache: &Arc<WindowCache>, source: &Source, start: u64, len: u64) {
    let slice = slice(cache, source, start, len).expect("a slice");
    let expected = patterned(source.id, start..start + slice.len() as u64);
    assert_eq!(slice.len() as u64, len.min(source.size() - start));
    assert!(bytes(&slice) == Ok(expected), "{start} {len}");
}

#[test]
fn bytes_are_the_files_across_windows_and_at_the_end() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K - 123);
    let (cache, metrics) = cache(64 * K, 2048 * K, 300 * K);
    for (start, len) in [
        (0, 1),
        (0, 300 * K),
        (64 * K - 1, 2),
        (64 * K - 1, 300 * K),
        (100 * K + 7, 200 * K + 5),
        (1024 * K - 124, 1),
        (960 * K, 64 * K),
    ] {
        right(&cache, &source, start as u64, len as u64);
    }
    assert_eq!(count(&metrics, names::WINDOW_HITS), 4);
    assert_eq!(count(&metrics, names::WINDOW_MISSES), 3);
    assert_eq!(count(&metrics, names::WINDOWS), 3);
}

#[test]
fn no_bytes_need_no_window() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 0);
    let (cache, _) = cache(64 * K, 1024 * K, 128 * K);
    let slice = slice(&cache, &source, 0, 10).expect("an empty slice");
    assert!(slice.is_empty());
    assert_eq!(slice.lend(<[u8]>::len), 0);
    assert_eq!(cache.mapped_bytes(), 0);
}

#[test]
fn what_the_size_does_not_cover_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 10 * K);
    let (cache, _) = cache(64 * K, 1024 * K, 128 * K);
    for (range, size) in [(0..20 * K as u64, 10 * K as u64), (5..6, 5), (0..1, 0)] {
        let answer = cache.slice(FileId(1), &source.fd, range, size, Pattern::Random);
        assert_eq!(answer.expect_err("refused"), Miss::Unmappable);
    }
}

#[test]
fn growth_within_the_last_page_needs_no_new_window() {
    let dir = tempfile::tempdir().expect("folder");
    let mut source = Source::new(&dir, 1, 5000);
    let (cache, metrics) = cache(64 * K, 1024 * K, 128 * K);
    right(&cache, &source, 0, 5000);
    source.resize(8000);
    right(&cache, &source, 4000, 4000);
    assert_eq!(count(&metrics, names::WINDOW_MISSES), 1);
}

#[test]
fn growth_beyond_the_window_maps_a_new_one_in_its_place() {
    let dir = tempfile::tempdir().expect("folder");
    let mut source = Source::new(&dir, 1, 4 * K);
    let (cache, metrics) = cache(64 * K, 1024 * K, 128 * K);
    let old = slice(&cache, &source, 0, 4096).expect("before growth");
    source.resize(40 * K as u64);
    right(&cache, &source, 3 * K as u64, 37 * K as u64);
    assert_eq!(count(&metrics, names::WINDOW_MISSES), 2);
    assert_eq!(cache.mapped_bytes(), 44 * K, "the old one is pinned");
    assert_eq!(bytes(&old), Ok(patterned(1, 0..4096)));
    drop(old);
    assert_eq!(cache.mapped_bytes(), 40 * K);
}

#[test]
fn a_truncated_file_is_a_miss_and_mended_when_it_grows_again() {
    let dir = tempfile::tempdir().expect("folder");
    let mut source = Source::new(&dir, 1, 64 * K);
    let (cache, metrics) = cache(64 * K, 1024 * K, 128 * K);
    right(&cache, &source, 0, 1);
    source.resize(10 * K as u64);
    let stale = cache.slice(
        FileId(1),
        &source.fd,
        0..64 * K as u64,
        64 * K as u64,
        Pattern::Random,
    );
    assert_eq!(stale.expect_err("truncated"), Miss::Fault);
    assert_eq!(count(&metrics, names::FAULTS_SURVIVED), 1);
    right(&cache, &source, 0, 64 * K as u64);
    source.resize(64 * K as u64);
    right(&cache, &source, 0, 64 * K as u64);
}

#[test]
fn truncation_behind_a_slice_is_an_error_of_the_system_call() {
    let dir = tempfile::tempdir().expect("folder");
    let mut source = Source::new(&dir, 1, 64 * K);
    let (cache, _) = cache(64 * K, 1024 * K, 128 * K);
    let whole = slice(&cache, &source, 0, 64 * K as u64).expect("before");
    source.resize(0);
    assert_eq!(bytes(&whole), Err(Errno::FAULT));
}

#[test]
fn a_forgotten_file_goes_with_its_last_pin() {
    let dir = tempfile::tempdir().expect("folder");
    let (one, two) = (Source::new(&dir, 1, 300 * K), Source::new(&dir, 2, 4 * K));
    let (cache, metrics) = cache(64 * K, 2048 * K, 64 * K);
    right(&cache, &two, 0, 1);
    right(&cache, &one, 200 * K as u64, 1);
    let pinned = slice(&cache, &one, 10, 20).expect("pinned");
    cache.forget(FileId(1));
    assert_eq!(cache.mapped_bytes(), 128 * K + 4 * K);
    assert_eq!(bytes(&pinned), Ok(patterned(1, 10..30)));
    right(&cache, &one, 10, 20);
    assert_eq!(count(&metrics, names::WINDOW_MISSES), 4, "not found again");
    drop(pinned);
    cache.forget(FileId(1));
    cache.forget(FileId(1));
    assert_eq!(cache.mapped_bytes(), 4 * K);
    right(&cache, &two, 0, 1);
    assert_eq!(count(&metrics, names::WINDOW_HITS), 1, "the other stayed");
}

#[test]
fn clear_and_trim_leave_what_is_in_use() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 300 * K);
    let (cache, metrics) = cache(64 * K, 2048 * K, 64 * K);
    for drop_unused in [WindowCache::clear, |cache: &WindowCache| {
        cache.trim_idle(Duration::ZERO);
    }] {
        let pinned = slice(&cache, &source, 0, 1).expect("pinned");
        right(&cache, &source, 64 * K as u64, 1);
        right(&cache, &source, 128 * K as u64, 1);
        cache.trim_idle(Duration::from_secs(3600));
        assert_eq!(cache.mapped_bytes(), 3 * 128 * K);
        drop_unused(&cache);
        assert_eq!(cache.mapped_bytes(), 128 * K);
        drop(pinned);
        drop_unused(&cache);
        assert_eq!(cache.mapped_bytes(), 0);
    }
    assert_eq!(count(&metrics, names::WINDOW_EVICTIONS), 0);
}

#[test]
fn when_all_is_pinned_there_is_no_window_above_the_budget() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, metrics) = cache(64 * K, 300 * K, 64 * K);
    let w = 64 * K as u64;
    let one = slice(&cache, &source, 0, 1).expect("fits");
    let two = slice(&cache, &source, 2 * w, 1).expect("fits");
    assert_eq!(
        slice(&cache, &source, 4 * w, 1).expect_err("full"),
        Miss::Budget
    );
    assert_eq!(cache.mapped_bytes(), 2 * 128 * K);
    right(&cache, &source, 2 * w, w);
    drop(one);
    right(&cache, &source, 4 * w, w);
    assert_eq!(count(&metrics, names::WINDOW_EVICTIONS), 1);
    assert_eq!(count(&metrics, names::WINDOW_MAPPED_PEAK), 256 * K as u64);
    drop(two);
}

#[test]
fn the_least_recently_used_goes_first() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, metrics) = cache(64 * K, 512 * K, 64 * K);
    for index in [0, 1, 2, 3, 0, 4] {
        right(&cache, &source, index * 64 * K as u64, 1);
    }
    let hits = count(&metrics, names::WINDOW_HITS);
    for index in [0, 2, 3, 4] {
        right(&cache, &source, index * 64 * K as u64, 1);
    }
    assert_eq!(count(&metrics, names::WINDOW_HITS), hits + 4);
    assert_eq!(count(&metrics, names::WINDOW_EVICTIONS), 1);
}

#[test]
fn a_window_larger_than_the_budget_is_a_miss() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, _) = cache(64 * K, 100 * K, 64 * K);
    assert_eq!(
        slice(&cache, &source, 0, 1).expect_err("no room"),
        Miss::Budget
    );
    right(&cache, &source, 15 * 64 * K as u64, 1);
}

#[test]
fn what_cannot_be_mapped_is_a_miss_and_costs_no_budget() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 4 * K);
    let (cache, metrics) = cache(64 * K, 1024 * K, 64 * K);
    let folder = std::fs::File::open(dir.path()).expect("open");
    let unreadable = source.file.try_clone().expect("a descriptor to write");
    for (id, fd) in [(7, OwnedFd::from(folder)), (8, OwnedFd::from(unreadable))] {
        let answer = cache.slice(FileId(id), &Arc::new(fd), 0..10, 10, Pattern::Random);
        assert_eq!(answer.expect_err("no mapping"), Miss::Unmappable);
    }
    assert_eq!(cache.mapped_bytes(), 0);
    assert_eq!(count(&metrics, names::WINDOWS), 0);
}

/// Whether nobody has the file open for writing: only then does the kernel lease it for reading
/// (fcntl(2)).
fn nobody_writes(file: &std::fs::File) -> bool {
    // SAFETY: plain numbers, on a descriptor that is open.
    let set = |kind: i32| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    let leased = set(libc::F_RDLCK) == 0;
    set(libc::F_UNLCK);
    leased
}

#[test]
fn a_window_keeps_no_file_open_for_writing() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("f");
    std::fs::write(&path, [1; 100]).expect("write");
    let reader = std::fs::File::open(&path).expect("open");
    let writer = std::fs::File::options().read(true).write(true).open(&path);
    let writer = Arc::new(OwnedFd::from(writer.expect("open")));
    let (cache, _) = cache(64 * K, 1024 * K, 64 * K);
    let answer = cache.slice(FileId(1), &writer, 0..100, 100, Pattern::Random);
    assert_eq!(answer.expect("a slice").len(), 100);
    assert!(!nobody_writes(&reader));
    drop(writer);
    // A process that another test begins this moment may hold the descriptor until it runs.
    eventually("nobody writes", || nobody_writes(&reader));
    assert!(cache.mapped_bytes() > 0, "it is still mapped");
}

#[test]
fn a_sequential_reader_finds_the_next_window_mapped() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, metrics) = cache(64 * K, 1024 * K, 64 * K);
    let read = |range| {
        cache.slice(
            FileId(1),
            &source.fd,
            range,
            source.size(),
            Pattern::Sequential,
        )
    };
    let (half, window) = (32 * K as u64, 64 * K as u64);
    drop(read(0..half).expect("the first half"));
    drop(read(half..window).expect("the second half"));
    drop(read(half..window).expect("again"));
    eventually("readied ahead", || {
        count(&metrics, names::WINDOWS_READIED) == 1 && cache.mapped_bytes() == 256 * K
    });
    drop(read(window..window + half).expect("the next window"));
    assert_eq!(count(&metrics, names::WINDOW_MISSES), 1);
    assert_eq!(count(&metrics, names::WINDOW_HITS), 3);
}

#[test]
fn the_readying_thread_keeps_nothing_alive() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, metrics) = cache(64 * K, 1024 * K, 64 * K);
    for index in 0..15 {
        let start = index * 64 * K as u64;
        let range = start..start + 64 * K as u64;
        let slice = cache.slice(
            FileId(1),
            &source.fd,
            range,
            source.size(),
            Pattern::Sequential,
        );
        drop(slice.expect("a slice"));
    }
    drop(cache);
    eventually("all given back", || {
        Arc::strong_count(&source.fd) == 1 && count(&metrics, names::WINDOWS) == 0
    });
    eventually("the thread has ended", || Arc::strong_count(&metrics) == 1);
}

#[test]
fn a_window_mapped_while_its_file_is_forgotten_is_not_listed() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 4 * K);
    let budget = Budget::new(64 * K, Arc::new(Metrics::new()));
    let span = Span {
        index: 0,
        offset: 0,
        len: 4 * K,
    };
    let map = || {
        let bytes = budget.reserve(span.len).expect("room");
        Arc::new(Window::map(source.fd.as_fd(), &span, bytes).expect("a window"))
    };
    let (mut table, key, now) = (Table::new(), (FileId(1), 0), Instant::now());

    let stale = table.begin(key);
    assert!(matches!(table.find(key, 1, now), Found::Mapping));
    assert!(table.forget(FileId(1)).is_empty());
    let window = map();
    table.settle(key, stale, Some(&window), now);
    assert!(!table.contains(key), "forgotten");

    let fresh = table.begin(key);
    table.settle(key, stale, Some(&window), now);
    table.settle(key, stale, None, now);
    assert!(
        matches!(table.find(key, 1, now), Found::Mapping),
        "not its own"
    );
    table.settle(key, fresh, Some(&window), now);
    assert!(matches!(table.find(key, 4 * K, now), Found::Window(_)));
    assert!(matches!(
        table.find(key, 5 * K, now),
        Found::Nothing(Some(_))
    ));
    assert!(!table.contains(key), "outgrown");

    let failed = table.begin(key);
    table.settle(key, failed, None, now);
    assert!(!table.contains(key), "not mapped");
    drop(window);
    assert_eq!(budget.bytes(), 0);
}

/// So many small requests elsewhere are answered otherwise before one window goes for another.
#[test]
fn a_window_is_not_unmapped_for_one_scattered_request() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    // Two windows of 64 KiB with their tails.
    let (cache, metrics) = cache(64 * K, 4 * 68 * K, 4 * K);
    let read = |at: usize| {
        let range = (at * 64 * K) as u64..(at * 64 * K + 100) as u64;
        let pattern = Pattern::of(false, 100, source.size());
        let slice = cache.slice(FileId(1), &source.fd, range.clone(), source.size(), pattern);
        slice.map(|slice| assert!(bytes(&slice) == Ok(patterned(1, range))))
    };
    // What is asked for once is not mapped, and of a window what was asked for twice is populated.
    for at in 0..4 {
        assert_eq!(read(at), Err(Miss::Cold));
        assert_eq!(read(at), Err(Miss::Cold));
        assert_eq!(cache.mapped_bytes(), (at + 1) * 68 * K);
        assert_eq!(read(at), Ok(()));
        assert_eq!(read(at), Ok(()));
    }
    let mapped = cache.mapped_bytes();
    let refused = (0..200).take_while(|_| read(9) == Err(Miss::Cold)).count();
    assert!((10..100).contains(&refused), "{refused}");
    assert_eq!(count(&metrics, names::WINDOW_EVICTIONS), 1);
    assert_eq!(cache.mapped_bytes(), mapped);
    assert_eq!(read(9), Ok(()));
    // The least recently used one went.
    assert_eq!(read(0), Err(Miss::Cold));
    assert_eq!(read(3), Ok(()));
    // Where no window is asked for more than another, none goes.
    for _ in 0..200 {
        for at in 0..15 {
            let _ = read(at);
        }
    }
    assert_eq!(count(&metrics, names::WINDOW_EVICTIONS), 1);
}

#[test]
fn what_was_populated_for_scattered_requests_may_be_lost_behind_them() {
    let dir = tempfile::tempdir().expect("folder");
    let mut source = Source::new(&dir, 1, 256 * K);
    let (cache, _) = cache(64 * K, 2048 * K, 4 * K);
    let read = |source: &Source| {
        let range = 130 * K as u64..132 * K as u64;
        let pattern = Pattern::of(false, 2048, 256 * K as u64);
        cache.slice(FileId(1), &source.fd, range, 256 * K as u64, pattern)
    };
    for _ in 0..2 {
        assert_eq!(read(&source).err(), Some(Miss::Cold));
    }
    for _ in 0..2 {
        let slice = read(&source).and_then(MapSlice::present).expect("present");
        assert!(bytes(&slice) == Ok(patterned(1, 130 * K as u64..132 * K as u64)));
    }
    source.resize(64 * K as u64);
    let slice = read(&source).expect("a window");
    assert_eq!(bytes(&slice).err(), Some(Errno::FAULT));
    assert_eq!(slice.present().err(), Some(Miss::Fault));
    source.resize(256 * K as u64);
    let slice = read(&source).and_then(MapSlice::present).expect("present");
    assert!(bytes(&slice) == Ok(patterned(1, 130 * K as u64..132 * K as u64)));
}

#[test]
fn large_and_sequential_requests_get_their_window_at_once() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 1024 * K);
    let (cache, _) = cache(64 * K, 4 * 68 * K, 4 * K);
    for at in 0..16 {
        let range = (at * 64 * K) as u64..(at * 64 * K + 100) as u64;
        for pattern in [
            Pattern::of(true, 100, source.size()),
            Pattern::of(false, 65 << 10, source.size()),
        ] {
            let slice = cache.slice(FileId(1), &source.fd, range.clone(), source.size(), pattern);
            assert!(bytes(&slice.expect("mapped")) == Ok(patterned(1, range.clone())));
        }
    }
}
