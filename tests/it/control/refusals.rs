//! What `.copy` refuses, each with its errno.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::support::{
    Mount, Need, Scratch, Tmpfs, content, output, read_file, require, sh, write_content, write_file,
};

use super::*;

#[test]
fn every_error_has_its_number() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    rustix::fs::mknodat(
        CWD,
        source.path().join("fifo"),
        FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    symlink("round", source.path().join("round")).unwrap();
    symlink("nowhere", source.path().join("dangling")).unwrap();
    let before = names(source.path());
    let long = "n".repeat(256);
    for (line, errno) in [
        ("missing x", Errno::NOENT),
        ("d/missing x", Errno::NOENT),
        ("missing/f x", Errno::NOENT),
        ("f missing/x", Errno::NOENT),
        ("f new/", Errno::NOENT),
        ("'' x", Errno::NOENT),
        ("f ''", Errno::NOENT),
        ("dangling x", Errno::NOENT),
        ("d x", Errno::ISDIR),
        (". x", Errno::ISDIR),
        ("f/x y", Errno::NOTDIR),
        ("f f/x", Errno::NOTDIR),
        ("round x", Errno::LOOP),
        ("f .copy", Errno::EXIST),
        ("f d/.copy", Errno::EXIST),
        ("f f", Errno::INVAL),
        ("f ./d/../f", Errno::INVAL),
        ("fifo x", Errno::INVAL),
        ("f", Errno::INVAL),
        ("f g h", Errno::NOTDIR),
        ("'f g", Errno::INVAL),
        ("f g\\", Errno::INVAL),
        ("--unknown f g", Errno::INVAL),
        ("--method=none f g", Errno::INVAL),
        ("--method f g", Errno::INVAL),
        ("--chunk=0 f g", Errno::INVAL),
        ("--chunk=1000 f g", Errno::INVAL),
        ("--chunk=99G f g", Errno::INVAL),
        ("f \0", Errno::INVAL),
        ("../f x", Errno::XDEV),
        ("f ../x", Errno::XDEV),
        ("d/../../f x", Errno::XDEV),
        ("/etc/hostname x", Errno::XDEV),
        ("f /tmp/x", Errno::XDEV),
    ] {
        assert_eq!(
            tell(mount.path(), format!("{line}\n")),
            Err(errno),
            "{line:?}"
        );
    }
    assert_eq!(copy(mount.path(), "f", &long), Err(Errno::NAMETOOLONG));
    assert_eq!(copy(mount.path(), &long, "x"), Err(Errno::NAMETOOLONG));
    assert_eq!(names(source.path()), before, "something was left behind");
    assert_copied(&source.path().join("f"));
}

#[test]
fn links_that_leave_the_source_are_not_followed() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let outside = Scratch::new();
    outside.file("secret", b"secret");
    let beside = source
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    for (name, target) in [
        ("absolute", outside.path().join("secret")),
        ("folder", outside.path().to_path_buf()),
        ("up", PathBuf::from("..")),
        ("out-and-in", PathBuf::from(format!("../{beside}/f"))),
        ("proc", PathBuf::from("/proc/self/exe")),
        ("root", PathBuf::from("/")),
    ] {
        symlink(target, source.path().join(name)).unwrap();
    }
    let before = names(source.path());
    for (from, to) in [
        ("absolute", "x"),
        ("folder/secret", "x"),
        ("out-and-in", "x"),
        ("proc", "x"),
        ("up/f", "x"),
        ("f", "folder/x"),
        ("f", "folder"),
        ("f", "up/x"),
        ("f", "root/x"),
        ("f", "absolute"),
    ] {
        assert_eq!(
            copy(mount.path(), from, to),
            Err(Errno::XDEV),
            "{from} {to}"
        );
    }
    assert_eq!(names(source.path()), before);
    assert_eq!(names(outside.path()), ["secret"]);
    assert_eq!(read_file(&outside.path().join("secret")), b"secret");
    // A link that stays inside is followed.
    symlink("d/../f", source.path().join("inside")).unwrap();
    copy(mount.path(), "inside", "x").unwrap();
    assert_copied(&source.path().join("x"));
}

#[test]
fn a_full_file_system_leaves_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let small = Tmpfs::new(6 << 20);
    write_content(&small.path().join("big"), 3, 4 << 20);
    write_file(&small.path().join("stands"), b"what stood there");
    let mount = Mount::of(small.path()).start();
    for method in ["map-write", "map-map"] {
        for to in ["new", "stands"] {
            let line = format!("--method={method} big {to}\n");
            assert_eq!(tell(mount.path(), &line), Err(Errno::NOSPC), "{line}");
        }
    }
    assert_eq!(names(small.path()), ["big", "stands"]);
    assert_eq!(read_file(&small.path().join("stands")), b"what stood there");
    let bytes = rustix::fs::statvfs(small.path()).unwrap();
    assert!(
        bytes.f_bavail * bytes.f_frsize > 1 << 20,
        "room was not given back"
    );
}

#[test]
fn a_read_only_mount_copies_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("ro");
    assert_eq!(copy(mount.path(), "f", "g"), Err(Errno::ROFS));
    let failed = output(&mut sh(mount.path(), "echo f g > .copy"));
    assert!(!failed.status.success());
    assert_eq!(names(source.path()), ["d", "f"]);
}

#[test]
fn another_file_system_inside_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    let inner = Tmpfs::at(&source.dir("inner"), 8 << 20);
    let mount = Mount::of(source.path()).start();
    // It is inside the source, so it may be copied to and from.
    copy(mount.path(), "f", "inner/g").unwrap();
    copy(&mount.path().join("inner"), "g", "../h").unwrap();
    assert_copied(&inner.path().join("g"));
    assert_copied(&source.path().join("h"));
}
