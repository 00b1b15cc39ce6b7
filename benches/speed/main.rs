//! The mount against the directory beneath it, row by row, with the floor of this machine.
//!
//! `mount-scripts/bench-speed.sh` runs it, on file systems that it makes; by hand the words are
//! `KIND=FOLDER`. Each run is on a mount of its own, so that the kernel knows nothing of it; the
//! source's own page cache is warm. Rounds are interleaved, their order rotates, native comes first
//! and last in each. Printed are medians of native time over the mount's, with the range of the
//! rounds' own ratios, and the same for the floor: a minimal program on the same FUSE library that
//! answers from memory. A row holds at its figure, or at 0.9 of the floor where the floor is lower;
//! under 15 % is no difference.
//!
//! Sizes come from the environment: `CORFS_BENCH_MIB` (the large file, 1024), `CORFS_BENCH_READS`
//! (random ones, 20000), `CORFS_BENCH_FILES` (10000), `CORFS_BENCH_ENTRIES` (of the tree, 5000),
//! `CORFS_BENCH_ROUNDS` (5); `CORFS_BENCH_ONLY` names rows by a part of their name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Mount, order, touch};
use rows::{ROWS, Row};

#[path = "../common/mod.rs"]
mod common;
mod floor;
mod rows;
mod works;

/// The word before the two paths and the options of a floor.
const FLOOR: &str = "--floor";
/// Of the floor's speed, what is enough.
const OF_FLOOR: f64 = 0.9;
/// Under 15 % is no difference.
const NO_DIFFERENCE: f64 = 0.85;
/// Anonymous memory that the daemon may take, in KiB.
const MEMORY: u64 = 16 << 10;
const FOLDERS: u64 = 250;

/// The sizes of a run.
pub(crate) struct Sizes {
    pub(crate) file: u64,
    pub(crate) reads: u64,
    pub(crate) files: u64,
    pub(crate) entries: u64,
    rounds: usize,
}

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is at its figure.
    Holds,
    /// The machine's floor is below the figure, and it is not far from the floor.
    AtFloor,
    Missed,
}

impl Verdict {
    fn of(ratio: f64, least: f64, floor: f64) -> Self {
        if ratio >= least * NO_DIFFERENCE {
            Self::Holds
        } else if ratio >= floor * OF_FLOOR * NO_DIFFERENCE {
            Self::AtFloor
        } else {
            Self::Missed
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::AtFloor => "at floor",
            Self::Missed => "MISSED",
        }
    }
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Native,
    Corfs,
    Floor,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs benches too, with --test; that is not the time to measure.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    if let [word, source, at, options] = words.as_slice()
        && word == FLOOR
    {
        return floor::serve(Path::new(source), Path::new(at), options);
    }
    let sizes = Sizes::of_environment();
    let mut verdicts = Vec::new();
    let places = words.iter().filter_map(|word| word.split_once('='));
    for (number, (kind, folder)) in places.enumerate() {
        println!("\n== {kind}");
        let folder = tempfile::tempdir_in(folder).expect("make a folder there");
        let stage = Stage::new(folder.path(), &sizes);
        for row in ROWS {
            let here = row.on.contains(&kind) || (row.on.is_empty() && number == 0);
            if here && wanted(row.what) {
                verdicts.push(stage.measure(row));
            }
        }
    }
    println!("\nWhat was to be reached");
    for (verdict, words) in &verdicts {
        println!("  {:8} {words}", verdict.name());
    }
    let those = |which| {
        verdicts
            .iter()
            .filter(move |(verdict, _)| *verdict == which)
    };
    println!(
        "of {}, {} hold by their figure, {} by the floor, {} miss; under 15 % is no difference",
        verdicts.len(),
        those(Verdict::Holds).count(),
        those(Verdict::AtFloor).count(),
        those(Verdict::Missed).count()
    );
}

fn wanted(what: &str) -> bool {
    let only = std::env::var("CORFS_BENCH_ONLY").unwrap_or_default();
    only.is_empty() || only.split(',').any(|part| what.contains(part))
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
            file: number("CORFS_BENCH_MIB", 1024) << 20,
            reads: number("CORFS_BENCH_READS", 20_000),
            files: number("CORFS_BENCH_FILES", 10_000),
            entries: number("CORFS_BENCH_ENTRIES", 5000),
            rounds: number("CORFS_BENCH_ROUNDS", 5).max(1) as usize,
        }
    }
}

/// A source, and the places where it is mounted.
struct Stage<'a> {
    source: PathBuf,
    sizes: &'a Sizes,
    points: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    fn new(folder: &Path, sizes: &'a Sizes) -> Self {
        let source = folder.join("source");
        fs::create_dir_all(source.join("small")).expect("make the source");
        common::make_file(&source.join("big"), sizes.file);
        for number in 0..sizes.files {
            let path = source.join(format!("small/{number:05}"));
            fs::write(path, [0x33; works::SMALL as usize]).expect("make a small file");
        }
        make_tree(&source, sizes.entries);
        rustix::fs::sync();
        Self {
            source,
            sizes,
            points: tempfile::tempdir().expect("make a folder"),
        }
    }

    /// Prints a row; answers what came of it, and its words.
    fn measure(&self, row: &Row) -> (Verdict, String) {
        let all = [Who::Native, Who::Corfs, Who::Floor];
        let mut rounds = vec![Vec::new(); all.len()];
        let mut memory = 0;
        for round in 0..self.sizes.rounds {
            for turn in order(all.len(), round) {
                let (time, anonymous) = self.once(row, all[turn]);
                rounds[turn].push(time);
                memory = memory.max(anonymous);
            }
        }
        let [native, corfs, floor] = [0, 1, 2].map(|who| middle(&rounds[who]));
        let (ratio, floor) = (native / corfs, native / floor);
        let verdict = match memory <= MEMORY {
            true => Verdict::of(ratio, row.least, floor),
            false => Verdict::Missed,
        };
        let range = range(&rounds[0], &rounds[1]);
        let floor = match row.options {
            // The kernel does the work.
            "passthrough=always" => format!("{floor:.3}"),
            // Who answers from the source takes the native time too, and no less than both.
            _ => format!("{floor:.3} ({:.3} with the work)", floor / (1.0 + floor)),
        };
        let words = format!(
            "{:34} {ratio:.3} ({:.3} to {:.3}), wanted {:.2}, floor {floor}, memory {:.1} MiB",
            row.what,
            range.0,
            range.1,
            row.least,
            memory as f64 / 1024.0
        );
        println!("  {words}; native {:.1} ms", native * 1e3);
        (verdict, words)
    }

    /// One run: its time, and the daemon's anonymous memory in KiB after it.
    fn once(&self, row: &Row, who: Who) -> (Duration, u64) {
        let point = self.points.path().join("mnt");
        let native = |_: &Path| 0;
        match who {
            Who::Native => self.timed(row, &self.source, native),
            Who::Corfs => {
                let mount = Mount::new(&self.source, &point, row.options);
                let timed = self.timed(row, &mount.at, anonymous);
                drop(mount);
                fs::remove_dir(&point).expect("remove the mountpoint");
                timed
            }
            Who::Floor => {
                let mount = FloorMount::new(&self.source, &point, row.options);
                let timed = self.timed(row, &point, native);
                drop(mount);
                fs::remove_dir(&point).expect("remove the mountpoint");
                timed
            }
        }
    }

    fn timed(&self, row: &Row, at: &Path, memory: impl Fn(&Path) -> u64) -> (Duration, u64) {
        (row.before)(at, self.sizes);
        rustix::fs::sync();
        std::thread::sleep(Duration::from_secs(row.pause));
        touch(row.caches * self.sizes.file);
        let started = Instant::now();
        (row.work)(at, self.sizes);
        let time = started.elapsed();
        let memory = memory(at);
        (row.after)(at, self.sizes);
        (time, memory)
    }
}

/// Half of the middle two, or the middle one, in seconds.
fn middle(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let at = times.len() / 2;
    let low = if times.len().is_multiple_of(2) {
        at - 1
    } else {
        at
    };
    (times[low] + times[at]).as_secs_f64() / 2.0
}

/// The lowest and the highest ratio that two runs of one round may have.
fn range(native: &[Duration], other: &[Duration]) -> (f64, f64) {
    // Native runs twice a round.
    let each = other.iter().enumerate().map(|(round, time)| {
        let both = native[2 * round] + native[2 * round + 1];
        both.as_secs_f64() / 2.0 / time.as_secs_f64()
    });
    each.fold((f64::MAX, 0.0), |(low, high), ratio| {
        (f64::min(low, ratio), f64::max(high, ratio))
    })
}

/// A tree of source files, and an archive of it.
fn make_tree(source: &Path, entries: u64) {
    let text = "static int some_function(struct thing *it, long what)\n".repeat(300);
    let each = (entries / FOLDERS).max(2) - 1;
    for folder in 0..FOLDERS.min(entries) {
        let inside = source.join(format!("tree/part-{}/folder-{folder:03}", folder % 10));
        fs::create_dir_all(&inside).expect("make a folder");
        for number in 0..each {
            let length = 1024 * (1 + (folder * 7 + number * 5) % 16) as usize;
            let path = inside.join(format!("file-{number:03}.c"));
            fs::write(path, &text.as_bytes()[..length.min(text.len())]).expect("write");
        }
    }
    let made = Command::new("tar")
        .args(["-cf", "tree.tar", "tree"])
        .current_dir(source)
        .status();
    assert!(made.expect("run tar").success(), "tar failed");
}

/// Anonymous memory, in KiB, of the process that serves the mount.
fn anonymous(at: &Path) -> u64 {
    let config = fs::read_to_string(at.join(".corfs/config")).expect("read .corfs/config");
    let server = config
        .lines()
        .find_map(|line| line.strip_prefix("server_pid="))
        .expect("the number of the server");
    let status = fs::read_to_string(format!("/proc/{server}/status")).expect("read its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    let number = line.trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}

/// The floor, mounted as long as this stands.
struct FloorMount {
    at: PathBuf,
    child: Child,
}

impl FloorMount {
    fn new(source: &Path, at: &Path, options: &str) -> Self {
        fs::create_dir(at).expect("make the mountpoint");
        let program = std::env::current_exe().expect("our own path");
        let mut child = Command::new(program)
            .arg(FLOOR)
            .args([source, at])
            .arg(options)
            .spawn()
            .expect("start the floor");
        for _ in 0..1000 {
            let up = fs::read_to_string("/proc/mounts").is_ok_and(|mounts| {
                mounts
                    .lines()
                    .any(|line| line.split(' ').nth(1) == at.to_str())
            });
            if up {
                return Self {
                    at: at.to_owned(),
                    child,
                };
            }
            assert!(child.try_wait().expect("wait").is_none(), "the floor ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the floor did not mount {}", at.display());
    }
}

impl Drop for FloorMount {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.at, flags);
        let _ = self.child.wait();
    }
}
