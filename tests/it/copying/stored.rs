//! `--sync`, `--verify` and `--inplace` through a mount, on several file systems.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::support::{FaultySource, Loop, Mount, Need, On, Scratch, Tmpfs, require, write_content};

const SIZE: u64 = (9 << 20) + 77;

fn all_words(at: &Path) {
    write_content(&at.join("f"), 1, SIZE);
    write_content(&at.join("long"), 2, 2 * SIZE);
    let mount = Mount::of(at).start();
    for words in [
        "--sync",
        "--verify",
        "--sync --verify",
        "--verify --direct",
        "--resume --sync",
    ] {
        for _ in 0..2 {
            tell(mount.path(), &format!("{words} f to")).unwrap_or_else(|e| panic!("{words}: {e}"));
            assert_file(&at.join("to"), 1, SIZE);
        }
        fs::remove_file(at.join("to")).unwrap();
    }
    fs::hard_link(at.join("long"), at.join("name")).unwrap();
    let before = fs::metadata(at.join("long")).unwrap();
    for words in [
        "--inplace",
        "--inplace --verify --sync",
        "--inplace --method=map-map",
    ] {
        write_content(&at.join("long"), 2, 2 * SIZE);
        tell(mount.path(), &format!("{words} f long")).unwrap_or_else(|e| panic!("{words}: {e}"));
        let after = fs::metadata(at.join("name")).unwrap();
        assert_eq!((after.ino(), after.nlink()), (before.ino(), 2));
        assert_file(&at.join("name"), 1, SIZE);
    }
    assert_eq!(
        tell(mount.path(), "--inplace --resume f long"),
        Err(Errno::INVAL)
    );
    assert_eq!(names(at), ["f", "long", "name"]);
}

#[test]
fn what_is_asked_for_is_done_on_every_file_system() {
    if !require(&[Need::Fuse]) {
        return;
    }
    all_words(Scratch::new().path());
    if !require(&[Need::Root]) {
        return;
    }
    all_words(Tmpfs::new(96 << 20).path());
    for (kind, size) in [("xfs", 320 << 20), ("btrfs", 256 << 20)] {
        if require(&[Need::Filesystem(kind)]) {
            all_words(Loop::new(kind, size).path());
        }
    }
}

#[test]
fn in_place_extents_are_shared_with_what_was_longer() {
    for kind in super::disks::SHARING {
        if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
            continue;
        }
        let disk = Loop::new(kind, 400 << 20);
        let at = disk.path();
        write_content(&at.join("f"), 1, SIZE);
        write_content(&at.join("long"), 2, 2 * SIZE);
        let mount = Mount::of(at).start();
        let shared = super::disks::copy(&mount, "--inplace --reflink=always f long");
        assert_eq!(shared.as_deref(), Ok("reflink"), "{kind}");
        assert_file(&at.join("long"), 1, SIZE);
    }
}

/// What is reserved first would not be compressed.
#[test]
fn where_files_are_compressed_a_copy_is() {
    if !require(&[Need::Fuse, Need::Root, Need::Filesystem("btrfs")]) {
        return;
    }
    let disk = Loop::new("btrfs", 400 << 20);
    let remount = std::process::Command::new("mount")
        .args(["-o", "remount,compress=zstd"])
        .arg(disk.path())
        .status();
    assert!(remount.unwrap().success());
    let text = "the same again ".repeat(2 << 20);
    let other = Tmpfs::new(64 << 20);
    fs::write(other.path().join("f"), &text).unwrap();
    let before = super::disks::free(disk.path());
    let to = disk.path().join("to");
    let copied = crate::support::corfs()
        .args(["copy", "--method=map-write"])
        .args([&other.path().join("f"), &to])
        .status();
    assert!(copied.unwrap().success());
    let taken = before.saturating_sub(super::disks::free(disk.path()));
    assert!(
        taken < text.len() as u64 / 4,
        "{taken} of {} bytes",
        text.len()
    );
    assert!(read_file(&to) == text.as_bytes());
}

#[test]
fn a_sync_that_fails_is_told_and_changes_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store();
    write_content(&store.join("f"), 1, 1 << 20);
    fs::write(store.join("to"), "old").unwrap();
    let mount = Mount::of(source.path()).start();
    source.faults().fail(On::Fsync, None, Errno::IO);
    for words in ["--sync", "--verify"] {
        assert_eq!(
            tell(mount.path(), &format!("{words} f to")),
            Err(Errno::IO),
            "{words}"
        );
        assert_eq!(read_file(&store.join("to")), b"old");
        assert_eq!(names(store), ["f", "to"]);
    }
    tell(mount.path(), "f to").unwrap();
    assert_file(&store.join("to"), 1, 1 << 20);
}

#[test]
fn a_copy_that_is_stored_wrong_is_found_and_absent() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store();
    write_content(&store.join("f"), 1, 4 << 20);
    fs::write(store.join("to"), "old").unwrap();
    let mount = Mount::of(source.path()).start();
    for at in [0, (3 << 20) + 12_345] {
        source.faults().spoil(at);
        assert_eq!(tell(mount.path(), "--verify f to"), Err(Errno::IO));
        let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
        assert!(
            list.contains(&format!("verify failed at byte {at}")),
            "{list}"
        );
        assert_eq!(read_file(&store.join("to")), b"old");
        assert_eq!(names(store), ["f", "to"]);
        source.faults().heal();
    }
    tell(mount.path(), "--verify f to").unwrap();
    assert_file(&store.join("to"), 1, 4 << 20);
}
