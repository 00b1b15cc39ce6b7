//! fsx (the crate): one file changed and read in every way it knows, compared with what it must
//! hold.

use std::path::{Path, PathBuf};

use super::{million, suite};
use crate::programs::bounded;
use crate::support::{
    Loop, Mount, MountBuilder, Need, Scratch, Tmpfs, output, require, write_file,
};

/// Operations of one process. The suite unmaps nothing that it read through a mapping, so each
/// operation is slower than the one before, until at about 400,000 no mapping is left to be had
/// (`vm.max_map_count`), natively too.
const OF_ONE_PROCESS: u64 = 10_000;

/// One kind of life of a file under fsx.
struct Exercise {
    /// Largest size of the file in bytes.
    file: u64,
    /// Largest operation in bytes.
    operation: u64,
    /// All offsets and sizes are multiples of this.
    align: u64,
    /// Whether each store through a mapping is followed by an msync.
    msync: bool,
    /// Of the first process; the next ones count up.
    seed: u64,
}

impl Exercise {
    /// Everything that fsx can do on Linux, often what makes a file's size and holes change.
    fn config(&self) -> String {
        // Rounded down to the alignment, fsx's posix_fallocate may ask for 0 bytes: EINVAL.
        let fallocate = if self.align == 1 { 2 } else { 0 };
        format!(
            "flen = {}\nnomsyncafterwrite = {}\n\
             [opsize]\nmin = {}\nmax = {}\nalign = {}\n\
             [weights]\n\
             close_open = 2\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
             truncate = 5\nfsync = 0.2\nfdatasync = 0.2\nposix_fallocate = {fallocate}\n\
             punch_hole = 5\nsendfile = 5\nposix_fadvise = 2\ncopy_file_range = 5\n",
            self.file, !self.msync, self.align, self.operation, self.align
        )
    }

    /// A short run natively in `source`, which shows that the machine can do it, then
    /// `operations` on the mount.
    fn run(
        &self,
        source: &Path,
        operations: u64,
        mount: impl FnOnce(MountBuilder) -> MountBuilder,
    ) {
        let Some(program) = suite("fsx") else { return };
        let scratch = Scratch::new();
        let config = scratch.path().join("fsx.toml");
        write_file(&config, self.config().as_bytes());
        let run = Run {
            exercise: self,
            program,
            config,
            scratch,
        };
        run.series(source, operations.div_ceil(10).min(OF_ONE_PROCESS));
        let mut mount = mount(Mount::of(source)).start();
        run.series(mount.path(), operations);
        assert!(mount.alive());
        println!("fsx: seed {}, {operations} operations", self.seed);
    }
}

struct Run<'a> {
    exercise: &'a Exercise,
    program: PathBuf,
    config: PathBuf,
    scratch: Scratch,
}

impl Run<'_> {
    /// As many processes as `operations` need, each with a seed of its own.
    #[track_caller]
    fn series(&self, folder: &Path, operations: u64) {
        let mut left = operations;
        for seed in self.exercise.seed.. {
            let now = left.min(OF_ONE_PROCESS);
            self.process(folder, now, seed);
            left -= now;
            if left == 0 {
                break;
            }
        }
    }

    #[track_caller]
    fn process(&self, folder: &Path, operations: u64, seed: u64) {
        let mut command = bounded(&self.program);
        command
            .arg("-f")
            .arg(&self.config)
            .args(["-N", &operations.to_string()])
            .args(["-S", &seed.to_string()])
            .arg("-P")
            .arg(self.scratch.path())
            .arg(folder.join("exercised"));
        let out = output(&mut command);
        if out.status.success() {
            return;
        }
        let words = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<&str> = words.lines().collect();
        // What it saw stands before the log of its last thousand operations, the latest of which
        // stand at the end.
        let (head, tail) = (lines.len().min(30), lines.len().saturating_sub(30));
        panic!(
            "{command:?}: {}, seed {seed}\n{}\n...\n{}\nwith\n{}",
            out.status,
            lines[..head].join("\n"),
            lines[tail.max(head)..].join("\n"),
            self.exercise.config()
        );
    }
}

#[test]
fn fsx_finds_nothing_in_a_small_file_over_ext4() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let source = Loop::new("ext4", 256 << 20);
    let exercise = Exercise {
        file: 256 << 10,
        operation: 64 << 10,
        align: 1,
        msync: false,
        seed: 1_001_000,
    };
    exercise.run(source.path(), million(), |mount| mount);
}

#[test]
fn fsx_finds_nothing_in_a_file_of_many_windows_over_xfs() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs")]) {
        return;
    }
    let source = Loop::new("xfs", 400 << 20);
    let exercise = Exercise {
        file: (9 << 20) + 1234,
        operation: 100_000,
        align: 1,
        msync: false,
        seed: 1_002_000,
    };
    let small = |mount: MountBuilder| mount.opt("window=1M,window_budget=4M");
    exercise.run(source.path(), million(), small);
}

/// Over a tmpfs, where an msync has no disk to wait for.
#[test]
fn fsx_finds_nothing_in_whole_pages_with_msync_over_tmpfs() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(64 << 20);
    let exercise = Exercise {
        file: 1 << 20,
        operation: 128 << 10,
        align: 4096,
        msync: true,
        seed: 1_003_000,
    };
    exercise.run(source.path(), million(), |mount| mount);
}

#[test]
fn fsx_finds_nothing_under_pread() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let scratch = Scratch::new();
    let exercise = Exercise {
        file: 256 << 10,
        operation: 64 << 10,
        align: 1,
        msync: true,
        seed: 1_004_000,
    };
    let source = scratch.dir("source");
    let pread = |mount: MountBuilder| mount.opt("io=pread");
    exercise.run(&source, million() / 4, pread);
}

#[test]
fn fsx_finds_nothing_where_the_kernel_keeps_what_is_written() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let source = Loop::new("ext4", 256 << 20);
    let exercise = Exercise {
        file: (2 << 20) + 77,
        operation: 100_000,
        align: 1,
        msync: false,
        seed: 1_005_000,
    };
    let kept = |mount: MountBuilder| mount.opt("writeback=on");
    exercise.run(source.path(), million(), kept);
}
