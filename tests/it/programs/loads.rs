//! Loads that check themselves: fio with verification, stress-ng's file system stressors, dbench.

use std::path::Path;
use std::process::{Command, Output};

use super::{Who, bounded};
use crate::support::{Scratch, output, run, soak};

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

/// Readers and writers at once in one file of each job; fio checks all that it had written before.
#[test]
fn fio_verifies_reads_among_writes() {
    let who = Who::Root;
    if !who.can(&["fio"]) {
        return;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    let mixed = ["--ioengine=psync", "--rw=randrw", "--verify_backlog=32"];
    run(&mut fio(mount.path(), &mixed, false));
}

// ---------------------------------------------------------------------------------------------
// stress-ng

/// Those of stress-ng's stressors that work in the folder they are given.
const STRESSORS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "hdd",
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
    "seek",
    "sendfile",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

fn stress(folder: &Path, stressor: &str) -> Output {
    // Ends what hangs long after it should have ended by itself.
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", &(soak(10) + 60).to_string(), "stress-ng"])
        .args([format!("--{stressor}"), "2".into()])
        .args(["--timeout".into(), format!("{}s", soak(10))])
        .args(["--verify", "--oomable", "--temp-path"])
        .arg(folder)
        .current_dir("/");
    // A stressor fills a folder with as much as it finds room for unless told otherwise.
    match stressor {
        "hdd" => command.args(["--hdd-bytes", "16m"]),
        "fallocate" => command.args(["--fallocate-bytes", "16m"]),
        "iomix" => command.args(["--iomix-bytes", "16m"]),
        "seek" => command.args(["--seek-size", "16m"]),
        "readahead" => command.args(["--readahead-bytes", "16m"]),
        _ => &mut command,
    };
    output(&mut command)
}

/// Every stressor which finds nothing wrong natively finds nothing wrong on the mount.
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
    let mut faults = Vec::new();
    for stressor in STRESSORS {
        let out = stress(mount.path(), stressor);
        assert!(mount.alive(), "{stressor} killed the daemon");
        if out.status.success() {
            continue;
        }
        // 3: not for this machine (no right, no system call).
        let natively = stress(&native, stressor);
        if out.status.code() != natively.status.code() {
            let words = String::from_utf8_lossy(&out.stderr);
            let expected = natively.status;
            faults.push(format!(
                "{stressor}: {}, natively {expected}\n{words}",
                out.status
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
