//! Three questions of the first floor, measured: do mapped windows read at least as fast as pread,
//! does a `.copy` beat cp, and what does it cost to read into a buffer that begins 16 bytes after a
//! page, as large ones of malloc(3) do?
//!
//! `mount-scripts/bench.sh [FOLDER]` runs it; FOLDER (default: a temporary one) says on which file
//! system. Rounds are interleaved, their order rotates, native comes first and last in each; before
//! every run as much memory as it needs is touched and freed, in every competitor alike, because a
//! virtual machine gives idle memory back to its host. Printed are medians with their range, and
//! ratios of medians; under 15 % is no difference.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{MIB, Mount, make_file, median, order, touch};

mod common;

const ROUNDS: usize = 7;

fn main() {
    // `cargo test` runs benches too, with --test; that is not the time to measure.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let size = megabytes() * MIB as u64;
    let folder = scratch();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).expect("make the source");
    make_file(&source.join("big"), size);
    let mmap = Mount::new(&source, &folder.path().join("mmap"), "io=mmap");
    let pread = Mount::new(&source, &folder.path().join("pread"), "io=pread");

    let file = source.join("big");
    println!("file of {} MiB, warm, {ROUNDS} rounds", size >> 20);
    let copy = source.join("copy");
    let settle = |size| {
        // Every copy makes a new file, on a disk that owes nothing to the one before.
        let _ = std::fs::remove_file(&copy);
        rustix::fs::sync();
        touch(size);
    };
    compare(
        "native reads, by where the buffer begins in a page",
        size,
        &settle,
        &mut [
            ("at 0", &mut || read_into(&file, 0, 0)),
            ("at 16", &mut || read_into(&file, 0, 16)),
            ("at 64", &mut || read_into(&file, 0, 64)),
        ],
        (0, 1),
    );
    compare(
        "sequential reads of 1 MiB",
        size,
        &settle,
        &mut [
            ("native, buffered", &mut || read_through(&file, false)),
            ("io=mmap, O_DIRECT", &mut || {
                read_through(&mmap.at.join("big"), true)
            }),
            ("io=pread, O_DIRECT", &mut || {
                read_through(&pread.at.join("big"), true)
            }),
        ],
        (1, 2),
    );
    compare(
        "copy",
        size,
        &settle,
        &mut [
            ("cp --reflink=never", &mut || cp(&file, &copy)),
            (".copy, map-write", &mut || {
                control(&mmap.at, "--method=map-write big copy")
            }),
            (".copy, map-map", &mut || {
                control(&mmap.at, "--method=map-map big copy")
            }),
        ],
        (1, 0),
    );
}

/// Size of the file, in MiB.
fn megabytes() -> u64 {
    let asked = std::env::var("CORFS_BENCH_MIB").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(1024)
}

fn scratch() -> tempfile::TempDir {
    let folder = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }
    .expect("make a temporary folder")
}

fn read_through(path: &Path, direct: bool) {
    read_into(path, if direct { libc::O_DIRECT } else { 0 }, 0);
}

/// Into a buffer that begins so many bytes after the beginning of a page.
fn read_into(path: &Path, flags: i32, after: usize) {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .expect("open");
    let mut room = vec![0u8; MIB + 2 * 4096];
    let start = room.as_ptr().align_offset(4096) + after;
    let buffer = &mut room[start..start + MIB];
    let mut offset = 0;
    loop {
        let count = file.read_at(buffer, offset).expect("read");
        if count == 0 {
            return;
        }
        offset += count as u64;
    }
}

fn cp(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["--reflink=never", "--sparse=never"])
        .args([from, to])
        .status()
        .expect("run cp");
    assert!(status.success(), "cp failed");
}

fn control(mount: &Path, line: &str) {
    let mut file = OpenOptions::new()
        .write(true)
        .open(mount.join(".copy"))
        .expect("open .copy");
    file.write_all(format!("{line}\n").as_bytes())
        .expect("copy through .copy");
}

type Run<'a> = (&'a str, &'a mut dyn FnMut());

/// Runs all competitors in turn, and prints how many times faster the first of `ratio` is than
/// the second.
fn compare(
    what: &str,
    size: u64,
    prepare: &dyn Fn(u64),
    runs: &mut [Run<'_>],
    ratio: (usize, usize),
) {
    println!("\n{what}");
    let mut times = vec![Vec::new(); runs.len()];
    for (_, run) in runs.iter_mut() {
        run();
    }
    for round in 0..ROUNDS {
        for turn in order(runs.len(), round) {
            prepare(size);
            let started = Instant::now();
            runs[turn].1();
            times[turn].push(started.elapsed());
        }
    }
    for times in &mut times {
        times.sort();
    }
    for ((name, _), times) in runs.iter().zip(&times) {
        let rate = |time: Duration| size as f64 / 1e9 / time.as_secs_f64();
        let (low, high) = (times[times.len() - 1], times[0]);
        println!(
            "  {name:22} {:5.2} GB/s  ({:.2} to {:.2})",
            rate(median(times)),
            rate(low),
            rate(high)
        );
    }
    let (fast, slow) = (median(&times[ratio.0]), median(&times[ratio.1]));
    println!(
        "  {} / {}: {:.2}",
        runs[ratio.0].0,
        runs[ratio.1].0,
        slow.as_secs_f64() / fast.as_secs_f64()
    );
}
