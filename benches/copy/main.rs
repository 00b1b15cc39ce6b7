//! The copy engine against its peers, and against the figures that it is to reach.
//!
//! `mount-scripts/bench-copy.sh` runs it, on file systems that it makes; by hand the words are
//! `KIND=FOLDER`. Rounds are interleaved, their order rotates, GNU cp comes first and last in each.
//! Before every run the last one's copy is dropped, everything is written out, and as much memory
//! as the run needs is touched and freed, in every competitor alike, until that goes quickly: a
//! virtual machine gives idle memory back to its host. Nothing of that is in the times. Each runs
//! twice in a row, and the faster counts, but for what is to be cold. Printed are medians with their
//! range and ratios to cp of medians, and of the best runs, which a busy host disturbs least; at the end, which of the figures are reached. Under 15 % is no
//! difference. `write alone` copies nothing: it is what the machine leaves to those who write by
//! write(2), a floor that is printed beside a figure that is missed.
//!
//! Sizes come from the environment: `CORFS_BENCH_MIB` (a file, 1024), `CORFS_BENCH_SPARSE_MIB`
//! (4096), `CORFS_BENCH_BIG_MIB` (8192), `CORFS_BENCH_FILES` (10000), `CORFS_BENCH_ROUNDS` (5), and
//! `CORFS_BENCH_ONLY` (sections, with commas between).

use std::path::Path;

use competitors::{Competitor, Program};
use contest::{Contest, Series};
use figures::Verdicts;
use stage::Stage;

#[path = "../common/mod.rs"]
mod common;
mod competitors;
mod contest;
mod figures;
mod memory;
mod stage;
mod stopping;

/// The sizes of a run.
pub(crate) struct Sizes {
    file: u64,
    sparse: u64,
    big: u64,
    files: u64,
    rounds: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs benches too, with --test; that is not the time to measure.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    if let [word, from, to, chunk] = words.as_slice()
        && word == competitors::HISTORIC
    {
        let chunk = chunk.parse().expect("a chunk in bytes");
        return competitors::mcopy2(Path::new(from), Path::new(to), chunk);
    }
    let sizes = Sizes::of_environment();
    let mut verdicts = Verdicts::default();
    let places = words.iter().filter_map(|word| word.split_once('='));
    for (kind, folder) in places {
        measure(kind, Path::new(folder), &sizes, &mut verdicts);
    }
    if !words.iter().any(|word| word.contains('=')) {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        measure("here", folder.path(), &sizes, &mut verdicts);
    }
    verdicts.print();
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
            sparse: number("CORFS_BENCH_SPARSE_MIB", 4096) << 20,
            big: number("CORFS_BENCH_BIG_MIB", 8192) << 20,
            files: number("CORFS_BENCH_FILES", 10_000),
            rounds: number("CORFS_BENCH_ROUNDS", 5).max(1) as usize,
        }
    }
}

fn wanted(section: &str) -> bool {
    let only = std::env::var("CORFS_BENCH_ONLY").unwrap_or_default();
    only.is_empty() || only.split(',').any(|word| word == section)
}

/// Everything that makes sense on a file system of this kind.
fn measure(kind: &str, folder: &Path, sizes: &Sizes, verdicts: &mut Verdicts) {
    println!("\n== {kind} ({})", folder.display());
    let stage = Stage::new(kind, folder);
    let shares = matches!(kind, "xfs" | "btrfs");
    let run = |section: &str, when: bool, body: &mut dyn FnMut()| {
        if when && wanted(section) {
            body();
        }
    };
    run("warm", true, &mut || warm(&stage, sizes, verdicts));
    run("reflink", shares, &mut || reflink(&stage, sizes, verdicts));
    run("sparse", kind != "tmpfs", &mut || {
        sparse(&stage, sizes, verdicts)
    });
    run("tree", kind == "xfs", &mut || tree(&stage, sizes, verdicts));
    run("cold", kind != "tmpfs", &mut || {
        cold(&stage, sizes, verdicts)
    });
    run("memory", true, &mut || {
        memory::peaks(&stage, sizes, verdicts)
    });
    run("big", kind == "ext4", &mut || {
        memory::big(&stage, sizes, verdicts)
    });
    run("cancel", true, &mut || {
        stopping::cancel(&stage, sizes, verdicts)
    });
}

/// Those who copy bytes of one file.
fn with_bytes() -> Vec<Competitor> {
    let mut all = vec![
        Competitor::program("cp", |from, to| {
            Program::new("cp").words(["--reflink=never", from, to])
        }),
        Competitor::corfs("engine", &["--reflink=never"]),
        Competitor::line(".copy", "--reflink=never"),
        Competitor::within("cp in the mount", |from, to| {
            Program::new("cp").words([from, to])
        }),
        Competitor::here("mcopy2, 1 GiB", competitors::run_mcopy2),
        Competitor::here("copy_file_range", competitors::copy_file_range),
        Competitor::program("dd", |from, to| {
            let (from, to) = (format!("if={from}"), format!("of={to}"));
            Program::new("dd").words(["bs=1M", "status=none", &from, &to])
        }),
        Competitor::here(figures::FLOOR, competitors::write_alone),
    ];
    let peers = [
        Competitor::program("xcp", |from, to| {
            Program::new("xcp").words(["--no-progress", "--reflink=never", from, to])
        }),
        Competitor::program("rsync", |from, to| Program::new("rsync").words([from, to])),
    ];
    all.extend(peers.into_iter().filter(Competitor::is_there));
    all
}

fn warm(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    stage.make_file("big", sizes.file);
    let contest = Contest::new("warm", "one file, warm", stage, sizes).bytes(sizes.file);
    let found = contest.hold(with_bytes(), "big");
    verdicts.judge("warm", "warm", &stage.kind, &found);
}

/// Sharing costs the same whatever the size, so each size is asked.
fn reflink(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    for size in [1 << 20, sizes.file] {
        stage.make_file("big", size);
        let what = format!("extents shared, {} MiB", size >> 20);
        let contest = Contest::new("reflink", &what, stage, sizes);
        let found = contest.hold(
            vec![
                Competitor::program("cp", |from, to| {
                    Program::new("cp").words(["--reflink=always", from, to])
                }),
                Competitor::corfs("engine", &["--reflink=always"]),
                Competitor::line(".copy", "--reflink=always"),
            ],
            "big",
        );
        verdicts.judge("reflink", &what, &stage.kind, &found);
    }
}

fn sparse(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    let data = stage.make_sparse("sparse", sizes.sparse);
    let what = format!("{} MiB with {} MiB of data", sizes.sparse >> 20, data >> 20);
    let contest = Contest::new("sparse", &what, stage, sizes).touching(data);
    let found = contest.hold(
        vec![
            Competitor::program("cp", |from, to| {
                Program::new("cp").words(["--reflink=never", from, to])
            }),
            Competitor::corfs("engine", &["--reflink=never"]),
            Competitor::line(".copy", "--reflink=never"),
        ],
        "sparse",
    );
    verdicts.judge("sparse", "sparse", &stage.kind, &found);
    let allocated =
        stage.allocated_by(&Competitor::corfs("engine", &["--reflink=never"]), "sparse");
    let most = stage.allocated("sparse");
    // A block of the tree of extents here or there is no data.
    let most = most + most / 64;
    verdicts.at_most(
        &stage.kind,
        "sparse copy allocates (KiB)",
        allocated >> 10,
        most >> 10,
    );
}

fn tree(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    let bytes = stage.make_tree("tree", sizes.files);
    let what = format!("{} files, {} MiB, -a", sizes.files, bytes >> 20);
    let contest = Contest::new("tree", &what, stage, sizes).touching(bytes);
    let mut all = vec![
        Competitor::program("cp", |from, to| Program::new("cp").words(["-a", from, to])),
        Competitor::corfs("engine", &["-a"]),
        Competitor::line(".copy", "-a"),
        Competitor::within("cp in the mount", |from, to| {
            Program::new("cp").words(["-a", from, to])
        }),
    ];
    let peers = [
        Competitor::program("xcp", |from, to| {
            Program::new("xcp").words(["--no-progress", "-r", from, to])
        }),
        Competitor::program("rsync", |from, to| {
            let from = format!("{from}/");
            Program::new("rsync").words(["-aHAX", &from, to])
        }),
    ];
    all.extend(peers.into_iter().filter(Competitor::is_there));
    let found = contest.hold(all, "tree");
    verdicts.judge("tree", "tree", &stage.kind, &found);
}

fn cold(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    if !stage::drop_caches() {
        println!("\ncold cache: left out, not root");
        return;
    }
    stage.make_file("big", sizes.file);
    stage.make_file(contest::LITTLE, 256 << 10);
    let contest = Contest::new("cold", "one file, cold", stage, sizes)
        .bytes(sizes.file)
        .cold();
    let found: Vec<Series> = contest.hold(
        vec![
            Competitor::program("cp", |from, to| {
                Program::new("cp").words(["--reflink=never", from, to])
            }),
            Competitor::corfs("engine", &["--reflink=never"]),
            Competitor::corfs("engine, direct", &["--reflink=never", "--direct"]),
        ],
        "big",
    );
    verdicts.judge("cold", "cold", &stage.kind, &found);
}
