//! Loads that check themselves: fio with verification, stress-ng's file system stressors, dbench.

use std::path::Path;
use std::process::{Command, Output};

use super::{Who, bounded};
use crate::command::PATIENCE;
use crate::support::{Mount, Scratch, drop_caches, is_root, output, run, soak, wait_until};

// ---------------------------------------------------------------------------------------------
// fio

/// Three writers of a file each, at random over its whole length in blocks of many sizes, which
/// then read it back and check it; or only the check of what the same job wrote before.
fn fio(folder: &Path, engine: &[&str], verify_only: bool) -> Command {
    let mut command = bounded("fio");
    command
        .args(["--name=verified", "--numjobs=3", "--group_reporting"])
        .args(["--rw=randwrite", "--bsrange=4k-256k", "--randseed=4711"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
        .arg("--verify_state_save=0")
        .arg(format!("--size={}m", soak(160).max(8)))
        .arg(format!("--directory={}", folder.display()))
        .args(engine)
        .current_dir("/");
    if verify_only {
        command.arg("--verify_only");
    }
    command
}

/// What is written on the mount is right there and beneath, and the reverse.
fn fio_verifies(engine: &[&str]) {
    let who = Who::Root;
    if !who.can(&["fio"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    run(&mut fio(mount.path(), engine, false));
    run(&mut fio(&source, engine, true));

    who.script(&source, "rm verified.*; mkdir beneath", &[]);
    run(&mut fio(&source.join("beneath"), engine, false));
    run(&mut fio(&mount.path().join("beneath"), engine, true));
}

#[test]
fn fio_verifies_buffered_writes() {
    fio_verifies(&["--ioengine=psync", "--fsync=64"]);
}

#[test]
fn fio_verifies_direct_writes() {
    fio_verifies(&["--ioengine=libaio", "--iodepth=8", "--direct=1"]);
}

#[test]
fn fio_verifies_writes_by_io_uring() {
    fio_verifies(&["--ioengine=io_uring", "--iodepth=8"]);
    fio_verifies(&["--ioengine=io_uring", "--iodepth=8", "--direct=1"]);
}

#[test]
fn fio_verifies_mapped_writes() {
    fio_verifies(&["--ioengine=mmap"]);
}

/// Readers and writers at once in one file of each job, in small and large blocks; fio checks all
/// that it had written before, on the mount and then beneath.
#[test]
fn fio_verifies_reads_among_writes() {
    let who = Who::Root;
    if !who.can(&["fio"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    for blocks in ["512-512", "4k-4k", "512-64k", "1m-1m"] {
        let range = format!("--bsrange={blocks}");
        let mixed = [
            "--ioengine=psync",
            "--rw=randrw",
            "--verify_backlog=32",
            &range,
        ];
        let small = format!("--size={}m", soak(40).max(2));
        run(fio(mount.path(), &mixed, false).arg(&small));
        who.script(mount.path(), "rm verified.*", &[]);
    }
}

/// How the writers of one file do their input and output.
const BUFFERED: &[&str] = &["--ioengine=psync", "--direct=0"];
const DIRECT: &[&str] = &["--ioengine=psync", "--direct=1"];
const QUEUED: &[&str] = &["--ioengine=libaio", "--direct=1", "--iodepth=8"];
/// At offset 0 only: fio 3.33 maps a file from its beginning whatever `--offset` says.
const MAPPED: &[&str] = &["--ioengine=mmap", "--direct=0"];

/// Whose each quarter of the file is, in turns.
const TURNS: [[&[&str]; 4]; 4] = [
    [MAPPED, BUFFERED, DIRECT, QUEUED],
    [DIRECT, QUEUED, BUFFERED, DIRECT],
    [BUFFERED, DIRECT, QUEUED, BUFFERED],
    [MAPPED, DIRECT, BUFFERED, QUEUED],
];

/// MiB of a quarter of that file.
fn quarter() -> u64 {
    soak(160).max(8)
}

/// Four writers at once in one file, a quarter of it each, one way each; `turn` says which quarter
/// is whose. With `verify_only` the check of what was written there.
fn fio_in_one_file(file: &Path, turn: usize, verify_only: bool) -> Command {
    let quarter = quarter();
    let mut command = bounded("fio");
    command
        .arg(format!("--filename={}", file.display()))
        .args(["--rw=randwrite", "--bsrange=4k-256k", "--randseed=4711"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
        .args(["--verify_state_save=0", "--allow_file_create=0"])
        .current_dir("/");
    if verify_only {
        command.arg("--verify_only");
    }
    for (place, engine) in TURNS[turn].iter().enumerate() {
        command
            .arg(format!("--name=quarter{place}"))
            .args(*engine)
            .arg(format!("--offset={}m", place as u64 * quarter))
            .arg(format!("--size={quarter}m"));
    }
    command
}

/// Buffered, direct, mapped and asynchronous writers in one file at once: what each wrote the
/// others read, and it is there beneath, and after a new mount.
#[test]
fn fio_verifies_one_file_written_in_four_ways_at_once() {
    let who = Who::Root;
    if !who.can(&["fio"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    let file = mount.path().join("one");
    // fio would lay the file out as long as the first job needs it.
    let whole = std::fs::File::create(&file).expect("create");
    whole.set_len((4 * quarter()) << 20).expect("ftruncate");
    drop(whole);
    run(&mut fio_in_one_file(&file, 0, false));
    for turn in 0..TURNS.len() {
        run(&mut fio_in_one_file(&file, turn, true));
    }
    // Written anew in other ways, over pages that the mount has cached.
    run(&mut fio_in_one_file(&file, 1, false));
    run(&mut fio_in_one_file(&file, 0, true));
    run(&mut fio_in_one_file(&source.join("one"), 2, true));
    let mount = mount.remount();
    run(&mut fio_in_one_file(&mount.path().join("one"), 3, true));
}

// ---------------------------------------------------------------------------------------------
// stress-ng

/// Those of stress-ng's file system stressors (`stress-ng --class 'filesystem?'`) that work in the
/// folder they are given, and those of other classes that read and write files there. Of the class
/// are missing: bind-mount, binderfs, dup, eventfd, fanotify, getdent, ioprio and procfs, which do not,
/// or reach outside.
const STRESSORS: &[&str] = &[
    "access",
    "aio",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "handle",
    "hdd",
    "inode-flags",
    "inotify",
    "io",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "readahead",
    "rename",
    "revio",
    "seek",
    "sendfile",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "verity",
    "xattr",
];

/// Stressors that run at once.
const AT_ONCE: usize = 6;

fn stress(folder: &Path, stressors: &[&str]) -> Output {
    // Ends what hangs long after it should have ended by itself.
    let mut command = Command::new("timeout");
    command
        .args([
            "--kill-after=10",
            &(soak(10) + 120).to_string(),
            "stress-ng",
        ])
        .args(["--timeout".into(), format!("{}s", soak(10))])
        .args(["--verify", "--oomable", "--temp-path"])
        .arg(folder)
        .current_dir("/");
    for stressor in stressors {
        command.args([&format!("--{stressor}"), "2"]);
        // A stressor fills a folder with as much as it finds room for unless told otherwise.
        match *stressor {
            "hdd" => command.args(["--hdd-bytes", "16m"]),
            "fallocate" => command.args(["--fallocate-bytes", "16m"]),
            "iomix" => command.args(["--iomix-bytes", "16m"]),
            "seek" => command.args(["--seek-size", "16m"]),
            "readahead" => command.args(["--readahead-bytes", "16m"]),
            "revio" => command.args(["--revio-bytes", "16m"]),
            _ => &mut command,
        };
    }
    output(&mut command)
}

/// What the daemon holds: inodes, open handles, windows, descriptors of its process.
fn holdings(mount: &Mount) -> [u64; 4] {
    let stats = mount.stats();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", mount.server())).expect("/proc/PID/fd");
    let gauge = |name: &str| stats.value(name, &[]) as u64;
    [
        gauge("corfs_inodes"),
        gauge("corfs_handles"),
        gauge("corfs_windows"),
        fds.count() as u64,
    ]
}

/// Every stressor which finds nothing wrong natively finds nothing wrong on the mount, and the
/// daemon is left as it was.
#[test]
fn stress_ng_finds_nothing() {
    let who = Who::Root;
    if !who.can(&["stress-ng"]) {
        return;
    }
    let scratch = Scratch::new();
    let native = who.folder(&scratch, "native");
    let source = who.folder(&scratch, "source");
    let mut mount = who.mount(&source);
    let before = holdings(&mount);
    let mut faults = Vec::new();
    for group in STRESSORS.chunks(AT_ONCE) {
        let together = stress(mount.path(), group);
        assert!(mount.alive(), "one of {group:?} killed the daemon");
        if !together.status.success() {
            let before = faults.len();
            faults.extend(
                group
                    .iter()
                    .filter_map(|one| differs(&mount, &native, &[one])),
            );
            if faults.len() == before {
                faults.extend(differs(&mount, &native, group));
            }
        }
    }
    assert!(mount.alive(), "the daemon died");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    if is_root() {
        wait_until("what stress-ng used is let go", PATIENCE, || {
            assert!(drop_caches());
            mount.signal(rustix::process::Signal::HUP);
            let now = holdings(&mount);
            // A few inodes of slack: the root, the folder of the control files.
            now.iter()
                .zip(before)
                .all(|(now, before)| *now <= before + 4)
        });
    }
}

/// How stressors fare otherwise on the mount than natively, in words.
fn differs(mount: &Mount, native: &Path, stressors: &[&str]) -> Option<String> {
    let out = stress(mount.path(), stressors);
    if out.status.success() {
        return None;
    }
    // 3: not for this machine (no right, no system call).
    let natively = stress(native, stressors);
    (out.status.code() != natively.status.code()).then(|| {
        format!(
            "{stressors:?}: {}, natively {}\n{}",
            out.status,
            natively.status,
            String::from_utf8_lossy(&out.stderr)
        )
    })
}

// ---------------------------------------------------------------------------------------------
// dbench

#[test]
fn dbench_comes_to_its_end() {
    let who = Who::Root;
    if !who.can(&["dbench"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    let seconds = soak(50).max(3).to_string();
    let said = run(bounded("dbench")
        .args(["-t", &seconds, "--stat-check", "--directory"])
        .arg(mount.path())
        .arg("4")
        .current_dir("/"));
    // It goes on after a failed operation, and says so (of its own semaphores, too).
    let failed = |line: &&str| line.contains("failed") && !line.contains("barrier");
    assert_eq!(said.lines().find(failed), None, "{said}");
    assert!(said.contains("Throughput"), "{said}");
}
