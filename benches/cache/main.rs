//! The copy-on-read cache against reading its source, and against the figures it is to reach.
//!
//! `mount-scripts/bench-cache.sh` runs it, as root. The source is a FUSE file system of this
//! process that delays, limits and counts what is read. Before each run the page cache is dropped;
//! competitors take turns, and what is printed are medians. Sizes come from the environment:
//! `CORFS_BENCH_MIB` (a file, 256), `CORFS_BENCH_FILES` (small files, 5000), `CORFS_BENCH_READS`
//! (random reads, 300), `CORFS_BENCH_ROUNDS` (3), and `CORFS_BENCH_ONLY` (sections, with commas
//! between: first, asked, second, random, budget, small, hang, disk).

use std::path::{Path, PathBuf};
use std::time::Duration;

use figures::{Verdicts, median, rate};
use support::{FaultySource, Mount, MountBuilder, On, Scratch, drop_caches, write_content};

mod figures;
mod pressure;
mod readers;
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "not every helper is used here")]
mod support;
mod warmth;

/// What a source far away takes for a request.
const LATENCY: Duration = Duration::from_millis(10);
/// What a source that is only narrow brings in a second.
const NARROW: u64 = 100 << 20;

/// The sizes of a run.
pub(crate) struct Sizes {
    pub(crate) file: u64,
    pub(crate) files: u64,
    pub(crate) reads: u64,
    pub(crate) rounds: usize,
}

impl Sizes {
    fn of_environment() -> Self {
        let number = |name: &str, otherwise: u64| {
            let asked = std::env::var(name).ok();
            asked
                .and_then(|text| text.parse().ok())
                .unwrap_or(otherwise)
        };
        Self {
            file: number("CORFS_BENCH_MIB", 256) << 20,
            files: number("CORFS_BENCH_FILES", 5_000),
            reads: number("CORFS_BENCH_READS", 300).max(1),
            rounds: number("CORFS_BENCH_ROUNDS", 3).max(1) as usize,
        }
    }
}

fn main() {
    // `cargo test` runs benches too, with --test; that is not the time to measure.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    if !support::is_root() {
        println!("not root: the source of this benchmark can't be mounted");
        return;
    }
    let sizes = Sizes::of_environment();
    let mut verdicts = Verdicts::default();
    type Section = fn(&Sizes, &mut Verdicts);
    let sections: [(&str, Section); 8] = [
        ("first", first),
        ("asked", asked),
        ("second", warmth::second),
        ("random", warmth::random),
        ("hang", warmth::hang),
        ("budget", pressure::budget),
        ("small", pressure::small),
        ("disk", pressure::disk),
    ];
    let only = std::env::var("CORFS_BENCH_ONLY").unwrap_or_default();
    for (name, section) in sections {
        if only.is_empty() || only.split(',').any(|word| word == name) {
            println!("\n== {name}");
            section(&sizes, &mut verdicts);
        }
    }
    verdicts.print();
}

/// A mount with a cache in `folder`, of a source that is old enough to be kept.
pub(crate) fn cached(source: &Path, cache: &Path) -> MountBuilder {
    Mount::of(source)
        .opt(format!("cache={}", cache.display()))
        .opt("cache_id=bench")
        .opt("cache_size=100G")
        .opt("cache_free=0")
}

/// A file of the source as it was for long: not one that may be changing just now.
pub(crate) fn old_file(source: &FaultySource, name: &str, size: u64) -> PathBuf {
    source.faults().show_older(Duration::from_secs(2 * 86_400));
    let path = source.store().join(name);
    write_content(&path, 1, size);
    support::age(&path);
    source.path().join(name)
}

/// The first time a file is read, against reading the source itself: where it is narrow, and where
/// it is far away.
fn first(sizes: &Sizes, verdicts: &mut Verdicts) {
    for (what, far, least) in [
        ("first read, 100 MiB/s", false, 0.9),
        ("first read, 10 ms a request", true, 2.0),
    ] {
        let source = FaultySource::new();
        // Far away it is slow in itself.
        let size = if far { sizes.file / 4 } else { sizes.file };
        let file = old_file(&source, "file", size);
        if far {
            source.faults().delay(On::Read, None, LATENCY);
        } else {
            source.faults().bandwidth(Some(NARROW));
        }
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..sizes.rounds {
            drop_caches();
            direct.push(readers::through(&file));
            let cache = Scratch::new();
            drop_caches();
            let mount = cached(source.path(), &cache.dir("cache")).start();
            through.push(readers::through(&mount.path().join("file")));
        }
        let (direct, through) = (median(&mut direct), median(&mut through));
        println!(
            "  the source itself {:.0} MB/s, through an empty cache {:.0} MB/s",
            rate(size, direct),
            rate(size, through)
        );
        verdicts.at_least(what, direct / through, least);
    }
}

/// Bytes asked of the source, with one reader and with eight.
fn asked(sizes: &Sizes, verdicts: &mut Verdicts) {
    let source = FaultySource::new();
    // Not a whole number of blocks.
    let size = sizes.file / 2 + 12_345;
    old_file(&source, "file", size);
    source
        .faults()
        .delay(On::Read, None, Duration::from_millis(1));
    for count in [1, 8] {
        let cache = Scratch::new();
        let mount = cached(source.path(), &cache.dir("cache")).start();
        drop_caches();
        source.faults().take_asked();
        readers::together(&mount.path().join("file"), count);
        let asked = source.faults().take_asked();
        println!("  {count} readers: {} requests", asked.reads);
        let what = format!("bytes asked of the source a byte of the file, {count} at once");
        verdicts.at_most(&what, asked.bytes as f64 / size as f64, 1.02);
    }
}
