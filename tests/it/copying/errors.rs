//! Every errno that a copy can meet, through a mount, of a file and of a tree.

use std::os::unix::fs::symlink;

use super::*;
use crate::support::{
    Loop, Need, Scratch, Tmpfs, USER, apart, require, run, set_mode, set_owner, tool, write_content,
};

/// What jobs.json has of the last job.
fn last_job(mount: &Mount) -> serde_json::Value {
    let text = read_file(&mount.path().join(".corfs/jobs.json"));
    let list: serde_json::Value = serde_json::from_slice(&text).unwrap();
    list.as_array().unwrap().last().unwrap().clone()
}

/// A file `f` and a tree `t` with two files in a folder of a user, who is to copy them.
fn grow(at: &Path, bytes: u64) {
    fs::create_dir_all(at.join("t/below")).unwrap();
    for (seed, name) in ["f", "t/below/one", "t/below/two"].iter().enumerate() {
        write_content(&at.join(name), seed as u64, bytes);
    }
    for name in ["", "f", "t", "t/below", "t/below/one", "t/below/two"] {
        set_owner(&at.join(name), USER, USER);
    }
}

/// The user's line ends with that errno, and leaves the folder as it was.
#[track_caller]
fn refused(mount: &Mount, line: &str, errno: Errno) {
    let before = names(mount.source());
    let told = apart(Some((USER, USER)), || tell(mount.path(), line));
    assert_eq!(told, Err(errno), "{line}");
    let job = last_job(mount);
    assert_eq!(job["errno"], errno.raw_os_error(), "{line}: {job}");
    if !line.contains("-r") {
        assert_eq!(names(mount.source()), before, "{line}");
    }
}

#[test]
fn what_names_and_rights_refuse_is_told() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    grow(scratch.path(), 10_000);
    let at = |name: &str| scratch.path().join(name);
    fs::create_dir(at("closed")).unwrap();
    set_mode(&at("closed"), 0o700);
    fs::create_dir(at("shown")).unwrap();
    for name in ["secret", "t/secret"] {
        write_content(&at(name), 9, 10);
        set_mode(&at(name), 0o600);
    }
    symlink("round", at("round")).unwrap();
    let mount = Mount::of(scratch.path()).opt("allow_other").start();
    let long = "n".repeat(256);
    for words in ["", "-r "] {
        refused(&mount, &format!("{words}secret new"), Errno::ACCESS);
        refused(&mount, &format!("{words}f closed/new"), Errno::ACCESS);
        refused(&mount, &format!("{words}f shown"), Errno::ACCESS);
        refused(&mount, &format!("{words}f {long}"), Errno::NAMETOOLONG);
        refused(&mount, &format!("{words}{long} new"), Errno::NAMETOOLONG);
        refused(&mount, &format!("{words}f round/new"), Errno::LOOP);
        refused(&mount, &format!("{words}round/f new"), Errno::LOOP);
    }
    refused(&mount, "round new", Errno::LOOP);
    // Of a tree the rest is there, and what is not is told with its path.
    refused(&mount, "-r t tree", Errno::ACCESS);
    assert_file(&at("tree/below/two"), 2, 10_000);
    let job = last_job(&mount);
    assert_eq!(job["errors"][0]["path"], "t/secret");
    assert_eq!(job["errors"][0]["errno"], libc::EACCES);
    assert_eq!(
        (&job["failed"], &job["files_total"]),
        (&1.into(), &5.into())
    );
    assert_eq!(job["files_done"], 4);
    let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
    assert!(
        list.contains("t/secret") && list.contains("1 of 5 failed"),
        "{list}"
    );
}

#[test]
fn what_a_file_system_inside_refuses_is_told() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    grow(scratch.path(), 1 << 20);
    let full = Tmpfs::at(&scratch.dir("full"), 512 << 10);
    let read_only = Tmpfs::at(&scratch.dir("fixed"), 8 << 20);
    for inner in [&full, &read_only] {
        set_owner(inner.path(), USER, USER);
    }
    let again = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(read_only.path(), again, c"").unwrap();
    let mount = Mount::of(scratch.path()).opt("allow_other").start();
    for words in ["", "--method=read-write ", "--inplace "] {
        refused(&mount, &format!("{words}f fixed/new"), Errno::ROFS);
        refused(&mount, &format!("{words}f full/new"), Errno::NOSPC);
    }
    refused(&mount, "-r t fixed/tree", Errno::ROFS);
    refused(&mount, "-r t full/tree", Errno::NOSPC);
    assert!(names(&full.path().join("tree/below")).is_empty());
    assert_eq!(last_job(&mount)["failed"], 2);
}

#[test]
fn a_quota_that_is_reached_is_told() {
    if !require(&[Need::Fuse, Need::Filesystem("btrfs"), Need::Tool("btrfs")]) {
        return;
    }
    let disk = Loop::new("btrfs", 256 << 20);
    let btrfs = |words: &[&str], at: &Path| {
        run(std::process::Command::new(tool("btrfs").unwrap())
            .args(words)
            .arg(at));
    };
    let volume = disk.path().join("volume");
    btrfs(&["subvolume", "create"], &volume);
    btrfs(&["quota", "enable"], disk.path());
    btrfs(&["quota", "rescan", "-w"], disk.path());
    btrfs(&["qgroup", "limit", "4M"], &volume);
    grow(disk.path(), 6 << 20);
    set_owner(&volume, USER, USER);
    let mount = Mount::of(disk.path()).opt("allow_other").start();
    refused(&mount, "--reflink=never f volume/new", Errno::DQUOT);
    assert!(names(&volume).is_empty());
    refused(&mount, "-r --reflink=never t volume/tree", Errno::DQUOT);
    assert!(names(&volume.join("tree/below")).is_empty());
}
