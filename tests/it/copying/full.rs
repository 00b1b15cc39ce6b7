//! The disk is full at every tenth of the way.

use std::fs::File;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::*;
use crate::support::{FaultySource, Loop, Mount, Need, Tmpfs, require, write_content};

const SIZE: u64 = 10 << 20;
const METHODS: [&str; 5] = [
    "--method=map-write",
    "--method=map-map",
    "--method=read-write",
    "--method=copy-range",
    "--resume",
];

fn free(path: &Path) -> u64 {
    let system = statvfs(path).unwrap();
    // Root may use what is kept for it.
    system.f_bfree * system.f_frsize
}

/// Fills the file system until `left` bytes are free.
pub(super) fn fill(path: &Path, left: u64) {
    let filler = File::create(path.join("filler")).unwrap();
    // What a file system keeps for its own lists can't be had.
    let mut kept = 0;
    for _ in 0..100 {
        let now = free(path);
        let size = filler.metadata().unwrap().len();
        if now <= left + kept {
            return;
        }
        let more = now - left - kept;
        if fallocate(&filler, FallocateFlags::empty(), size, more).is_err() {
            kept += 32 << 10;
        }
    }
    panic!("{} bytes are still free, not {left}", free(path));
}

/// Gives back what `fill` has taken, at once: XFS frees the blocks of a removed file
/// behind its removal, and a copy would find room that `fill` has not seen.
fn empty(path: &Path) {
    let filler = path.join("filler");
    File::create(&filler).unwrap();
    fs::remove_file(filler).unwrap();
}

/// A copy onto something and one to a new name change nothing, and give all space back.
fn nothing_changes(at: &Path, mount: &Mount, words: &str) {
    let (before, listed) = (free(at), names(at));
    for to in ["to", "new"] {
        // Extents that are shared take no space.
        let answer = tell(mount.path(), &format!("--reflink=never {words} f {to}"));
        assert_eq!(answer, Err(Errno::NOSPC), "{words} {to}");
        assert_eq!(read_file(&at.join("to")), b"old", "{words}");
        assert_eq!(names(at), listed, "{words}");
    }
    wait_until("the space is free again", PATIENCE, || {
        free(at) + 65_536 >= before
    });
}

fn at_every_tenth(at: &Path) {
    write_content(&at.join("f"), 1, SIZE);
    fs::write(at.join("to"), "old").unwrap();
    let mount = Mount::of(at).start();
    for tenth in 0..10 {
        fill(at, SIZE / 10 * tenth);
        for words in METHODS {
            nothing_changes(at, &mount, words);
        }
        empty(at);
    }
    tell(mount.path(), "f to").unwrap();
    assert_file(&at.join("to"), 1, SIZE);
}

#[test]
fn on_tmpfs_nothing_changes_and_nothing_is_left() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let disk = Tmpfs::new(3 * SIZE);
    at_every_tenth(disk.path());
}

#[test]
fn on_ext4_nothing_changes_and_nothing_is_left() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 64 << 20);
    at_every_tenth(disk.path());
}

#[test]
fn on_xfs_nothing_changes_and_nothing_is_left() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs")]) {
        return;
    }
    let disk = Loop::new("xfs", 320 << 20);
    at_every_tenth(disk.path());
}

/// Of a tree what has found room is whole, and nothing else is there.
fn trees_at_every_tenth(at: &Path) {
    const FILES: u64 = 10;
    let each = SIZE / FILES;
    fs::create_dir_all(at.join("tree/sub")).unwrap();
    let name = |number: u64| format!("{}f{number}", if number < 5 { "sub/" } else { "" });
    for number in 0..FILES {
        write_content(&at.join("tree").join(name(number)), number, each);
    }
    let mount = Mount::of(at).start();
    for tenth in 0..10 {
        fill(at, SIZE / 10 * tenth);
        let before = free(at);
        for words in ["-a --reflink=never", "-r --resume --reflink=never"] {
            let answer = tell(mount.path(), &format!("{words} tree to"));
            assert_eq!(answer, Err(Errno::NOSPC), "{words}, {tenth}");
            for number in 0..FILES {
                let path = at.join("to").join(name(number));
                if path.exists() {
                    assert_file(&path, number, each);
                }
            }
            for folder in ["to", "to/sub"] {
                let folder = at.join(folder);
                let found = if folder.exists() {
                    names(&folder)
                } else {
                    Vec::new()
                };
                let hidden = |name: &String| name.starts_with(".corfs");
                assert!(!found.iter().any(hidden), "{words}, {tenth}: {found:?}");
            }
            let _ = fs::remove_dir_all(mount.path().join("to"));
            wait_until("the space is free again", PATIENCE, || {
                free(at) + 65_536 >= before
            });
        }
        empty(at);
    }
    tell(mount.path(), "-a tree to").unwrap();
}

#[test]
fn of_a_tree_what_has_found_room_is_whole_and_nothing_else_is_left() {
    if require(&[Need::Fuse, Need::Root]) {
        trees_at_every_tenth(Tmpfs::new(3 * SIZE).path());
    }
    if require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        trees_at_every_tenth(Loop::new("ext4", 64 << 20).path());
    }
}

#[test]
fn where_no_space_can_be_reserved_a_write_on_the_way_finds_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store();
    write_content(&store.join("f"), 1, SIZE);
    fs::write(store.join("to"), "old").unwrap();
    let mount = Mount::of(source.path()).start();
    for tenth in 0..10 {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            source.faults().fill_from(SIZE / 10 * tenth, errno);
            let words = ["--method=map-write", "--method=read-write", "--resume"];
            for to in ["to", "new"] {
                let words = words[tenth as usize % 3];
                let answer = tell(mount.path(), &format!("{words} f {to}"));
                assert_eq!(answer, Err(errno), "{words} {to} {tenth}");
                assert_eq!(read_file(&store.join("to")), b"old");
                assert_eq!(names(store), ["f", "to"], "{words} {to} {tenth}");
            }
            source.faults().heal();
        }
    }
    tell(mount.path(), "f to").unwrap();
    assert_file(&store.join("to"), 1, SIZE);
}

#[test]
fn in_place_a_full_disk_is_told_and_the_inode_stays() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let disk = Tmpfs::new(3 * SIZE);
    let at = disk.path();
    write_content(&at.join("f"), 1, SIZE);
    fs::write(at.join("to"), "old").unwrap();
    let mount = Mount::of(at).start();
    let before = fs::metadata(at.join("to")).unwrap();
    fill(at, SIZE / 2);
    let answer = tell(mount.path(), "--inplace --reflink=never f to");
    assert_eq!(answer, Err(Errno::NOSPC));
    assert!(
        fs::read_to_string(mount.path().join(".copy"))
            .unwrap()
            .contains("mixture")
    );
    assert_eq!(fs::metadata(at.join("to")).unwrap().ino(), before.ino());
    empty(at);
    tell(mount.path(), "--inplace f to").unwrap();
    assert_eq!(fs::metadata(at.join("to")).unwrap().ino(), before.ino());
    assert_file(&at.join("to"), 1, SIZE);
    assert_eq!(names(at), ["f", "to"]);
}
