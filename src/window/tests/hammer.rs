//! The budget holds at every moment, whatever is asked, in whatever order, by how many.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::super::{FileId, Miss, Pattern};
use super::{K, Source, bytes, cache, count, eventually, patterned};
use crate::observe::names;

const FILES: u64 = 3;

/// Bytes of files in that folder that this process has mapped, as the kernel says.
fn really_mapped(dir: &Path) -> usize {
    let maps = std::fs::read("/proc/self/maps").expect("maps");
    let lines = maps.split(|byte| *byte == b'\n');
    lines
        .filter(|line| {
            let dir = dir.as_os_str().as_bytes();
            line.windows(dir.len()).any(|part| part == dir)
        })
        .map(|line| {
            let line = String::from_utf8_lossy(line);
            let addresses = line.split(' ').next().expect("addresses");
            let (start, end) = addresses.split_once('-').expect("a range");
            let number = |hex| usize::from_str_radix(hex, 16).expect("hexadecimal");
            number(end) - number(start)
        })
        .sum()
}

#[derive(Clone, Debug)]
enum Step {
    Slice {
        file: u64,
        at: f64,
        len: u64,
        hold: bool,
    },
    Drop(usize),
    Forget(u64),
    Clear,
    Trim,
    Resize {
        file: u64,
        size: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let max = 128 * K as u64;
    prop_oneof![
        8 => (0..FILES, 0.0..1.0, 1..=max, any::<bool>())
            .prop_map(|(file, at, len, hold)| Step::Slice { file, at, len, hold }),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => (0..FILES).prop_map(Step::Forget),
        1 => Just(Step::Clear),
        1 => Just(Step::Trim),
        1 => (0..FILES, 0..600 * K as u64).prop_map(|(file, size)| Step::Resize { file, size }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn mapped_bytes_never_pass_the_budget(
        sizes in prop::array::uniform3(0..600 * K),
        budget in 192 * K..1200 * K,
        window in (1_usize..=4).prop_map(|n| n * 64 * K),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let dir = tempfile::tempdir().expect("folder");
        let (cache, metrics) = cache(window, budget, 128 * K);
        let mut files: Vec<_> = (0..FILES)
            .map(|id| Source::new(&dir, id, sizes[id as usize]))
            .collect();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Slice { file, at, len, hold } => {
                    let source = &files[file as usize];
                    let size = source.size();
                    let start = (size as f64 * at) as u64;
                    let range = start..(start + len).min(size);
                    match cache.slice(FileId(file), &source.fd, range.clone(), size, Pattern::Random) {
                        Ok(slice) => {
                            prop_assert!(bytes(&slice) == Ok(patterned(file, range)));
                            if hold {
                                held.push(slice);
                            }
                        }
                        Err(miss) => {
                            prop_assert_eq!(miss, Miss::Budget);
                            prop_assert!(!held.is_empty(), "nothing is in use");
                        }
                    }
                }
                Step::Drop(which) if !held.is_empty() => {
                    let which = which % held.len();
                    held.swap_remove(which);
                }
                Step::Drop(_) => {}
                Step::Forget(file) => cache.forget(FileId(file)),
                Step::Clear => cache.clear(),
                Step::Trim => cache.trim_idle(Duration::ZERO),
                Step::Resize { file, size } => files[file as usize].resize(size),
            }
            prop_assert!(cache.mapped_bytes() <= budget);
            prop_assert_eq!(really_mapped(dir.path()), cache.mapped_bytes());
        }
        prop_assert!(count(&metrics, names::WINDOW_MAPPED_PEAK) <= budget as u64);
        drop(held);
        cache.clear();
        prop_assert_eq!(cache.mapped_bytes(), 0);
        prop_assert_eq!(really_mapped(dir.path()), 0);
    }
}

/// A sequence of numbers that looks random and is the same in every run.
fn scramble(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A window of the hammer with its tail.
const WINDOW: usize = 192 * K;
const READERS: usize = 6;
const READS: u64 = 400;

#[test]
fn many_readers_of_few_windows_stay_within_the_budget() {
    let (answered, refused) = hammer(3 * WINDOW + 64 * K);
    assert!(answered > 0 && refused > 0, "{answered} {refused}");
}

#[test]
fn where_each_reader_finds_room_hardly_any_is_refused() {
    // Each holds at most two, and the readying thread one.
    let (answered, refused) = hammer((2 * READERS + 2) * WINDOW);
    assert!(refused * 100 < answered, "{answered} {refused}");
}

/// Readers that read, hold, forget, clear and trim; tells how many reads were answered and how many
/// found all windows in use.
fn hammer(budget: usize) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("folder");
    let (cache, metrics) = cache(64 * K, budget, 128 * K);
    let files: Vec<_> = (0..FILES)
        .map(|id| Source::new(&dir, id, (400 + 37 * id as usize) * K + 11))
        .collect();
    let (done, answered, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let reader = |thread: u64| {
        let mut state = thread + 1;
        let mut kept = None;
        for _ in 0..READS {
            let source = &files[(scramble(&mut state) % FILES) as usize];
            let size = source.size();
            let start = scramble(&mut state) % size;
            let range = start..(start + 1 + scramble(&mut state) % (128 * K as u64)).min(size);
            match scramble(&mut state) % 50 {
                0 => cache.forget(FileId(source.id)),
                1 => cache.clear(),
                2 => cache.trim_idle(Duration::from_micros(100)),
                _ => {}
            }
            let sequential = scramble(&mut state).is_multiple_of(2);
            let pattern = match sequential {
                true => Pattern::Sequential,
                false => Pattern::Random,
            };
            let id = FileId(source.id);
            match cache.slice(id, &source.fd, range.clone(), size, pattern) {
                Ok(slice) => {
                    assert!(bytes(&slice) == Ok(patterned(source.id, range)));
                    answered.fetch_add(1, Ordering::Relaxed);
                    kept = Some(slice).filter(|_| start.is_multiple_of(3));
                }
                Err(miss) => {
                    assert_eq!(miss, Miss::Budget);
                    refused.fetch_add(1, Ordering::Relaxed);
                    kept = None;
                }
            }
        }
        drop(kept);
    };
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut highest = 0;
            while !done.load(Ordering::Relaxed) {
                highest = highest.max(cache.mapped_bytes());
                std::thread::yield_now();
            }
            highest
        });
        let reader = &reader;
        let readers: Vec<_> = (0..READERS as u64)
            .map(|n| scope.spawn(move || reader(n)))
            .collect();
        let ends: Vec<_> = readers.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed);
        let highest = watcher.join().expect("the watcher");
        assert!(ends.iter().all(Result::is_ok), "a reader failed");
        assert!(highest <= budget, "{highest}");
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert_eq!(answered + refused, READERS as u64 * READS);
    assert!(count(&metrics, names::WINDOW_MAPPED_PEAK) <= budget as u64);
    // The readying thread may still hold a window.
    eventually("all is given back", || {
        cache.clear();
        cache.mapped_bytes() == 0
    });
    assert_eq!(count(&metrics, names::WINDOWS), 0);
    (answered, refused)
}

#[test]
fn readers_of_one_window_map_it_once() {
    let dir = tempfile::tempdir().expect("folder");
    let source = Source::new(&dir, 1, 64 * K);
    for _ in 0..50 {
        let (cache, metrics) = cache(64 * K, 1024 * K, 64 * K);
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let range = 0..64 * K as u64;
                    let slice =
                        cache.slice(FileId(1), &source.fd, range, source.size(), Pattern::Random);
                    assert!(slice.is_ok());
                });
            }
        });
        assert_eq!(count(&metrics, names::WINDOW_MISSES), 1);
        assert_eq!(count(&metrics, names::WINDOW_HITS), 3);
        assert_eq!(cache.mapped_bytes(), 64 * K);
    }
}
