//! How `.copy` looks, where it is found, and that it stays.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, content, read_file, require, run, set_owner, sh, wait_until,
    write_file,
};

use super::*;

#[test]
fn it_is_found_by_name_and_in_no_listing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = mount.path();
    for dir in [at.to_path_buf(), at.join("d")] {
        assert!(!names(&dir).contains(&".copy".to_owned()));
        let m = fs::symlink_metadata(dir.join(".copy")).unwrap();
        assert_eq!(m.mode(), libc::S_IFREG | 0o600);
        let owner = fs::metadata(&dir).unwrap();
        assert_eq!((m.uid(), m.gid()), (owner.uid(), owner.gid()));
    }
    assert!(fs::metadata(at.join("f/.copy")).is_err());
    assert!(!source.path().join(".copy").exists());
    assert_eq!(run(&mut sh(at, "find . | sort")), ".\n./d\n./f\n");
    // Nothing in the way of removing a directory that seems empty.
    fs::remove_dir(at.join("d")).unwrap();
}

#[test]
fn its_owner_is_its_directorys() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("allow_other");
    set_owner(&source.path().join("d"), USER, OTHER);
    for (dir, owner) in [("d", (USER, OTHER)), (".", (0, 0))] {
        let path = mount.path().join(dir).join(".copy");
        wait_until("the owner shows", Duration::from_secs(15), || {
            let m = fs::metadata(&path).unwrap();
            assert_eq!(m.mode(), libc::S_IFREG | 0o666);
            (m.uid(), m.gid()) == owner
        });
    }
}

#[test]
fn control_words_show_hide_and_rename_it() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, visible) = world("control=visible");
    assert_eq!(names(visible.path()), [".copy", "d", "f"]);
    assert_eq!(names(&visible.path().join("d")), [""; 0]);
    assert!(visible.path().join("d/.copy").exists());
    copy(visible.path(), "f", "g").unwrap();

    let (source, off) = world("control=off");
    assert!(!off.path().join(".copy").exists());
    write_file(&off.path().join(".copy"), b"f g\n");
    assert_eq!(read_file(&source.path().join(".copy")), b"f g\n");
    assert_eq!(names(off.path()), [".copy", "d", "f"]);

    let (source, renamed) = world("control_name=.cp");
    assert!(!renamed.path().join(".copy").exists());
    run(&mut sh(
        renamed.path(),
        "echo f g > .cp && cd d && echo ../f g > .cp",
    ));
    assert_copied(&source.path().join("d/g"));
}

#[test]
fn a_real_entry_of_that_name_wins() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.file(".copy", b"real");
    source.dir("d");
    fs::create_dir(source.dir("e").join(".copy")).unwrap();
    let mount = Mount::of(source.path()).start();
    let at = mount.path();
    assert_eq!(names(at), [".copy", "d", "e", "f"]);
    assert_eq!(read_file(&at.join(".copy")), b"real");
    write_file(&at.join(".copy"), b"f g\n");
    assert_eq!(read_file(&source.path().join(".copy")), b"f g\n");
    assert!(!source.path().join("g").exists());
    assert!(at.join("e/.copy").is_dir());
    for _ in 0..3 {
        assert!(fs::metadata(at.join(".copy")).is_ok());
    }
    let told = mount
        .log()
        .lines()
        .filter(|line| line.contains(".copy"))
        .count();
    assert_eq!(told, 1, "logged once:\n{}", mount.log());
    // Elsewhere it is the control file, and here too once the real one is gone.
    copy(&at.join("d"), "../f", "g").unwrap();
    fs::remove_file(at.join(".copy")).unwrap();
    copy(at, "f", "g").unwrap();
    assert_copied(&source.path().join("g"));
}

#[test]
fn it_is_not_removed_renamed_replaced_or_truncated() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = |name: &str| mount.path().join(name);
    let control = at(".copy");
    for (what, result) in [
        ("unlink", rustix::fs::unlink(&control)),
        ("rename", rustix::fs::rename(&control, at("x"))),
        ("rename over", rustix::fs::rename(at("f"), &control)),
        ("link", rustix::fs::link(&control, at("x"))),
        ("rename within", rustix::fs::rename(&control, at("d/.copy"))),
    ] {
        let errno = result.expect_err(what);
        let refusals = [Errno::PERM, Errno::ACCESS, Errno::BUSY, Errno::EXIST];
        assert!(refusals.contains(&errno), "{what}: {errno}");
    }
    let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let create =
        |dir: &str| rustix::fs::open(at(dir).join(".copy"), exclusive, Mode::RWXU).map(drop);
    for (what, result) in [
        ("create", create(".")),
        ("create in d", create("d")),
        ("mkdir", rustix::fs::mkdir(&control, Mode::RWXU)),
        ("symlink", rustix::fs::symlink("f", &control)),
        (
            "mknod",
            rustix::fs::mknodat(CWD, &control, FileType::Fifo, Mode::RWXU, 0),
        ),
        ("link over", rustix::fs::link(at("f"), &control)),
    ] {
        assert_eq!(result, Err(Errno::EXIST), "{what}");
    }
    // Truncation has no effect, whatever it says.
    copy(mount.path(), "f", "g").unwrap();
    let text = jobs(mount.path());
    let _ = File::options()
        .write(true)
        .open(&control)
        .unwrap()
        .set_len(0);
    drop(
        File::options()
            .write(true)
            .truncate(true)
            .open(&control)
            .unwrap(),
    );
    assert_eq!(jobs(mount.path()), text);
    assert_eq!(names(source.path()), ["d", "f", "g"]);
}
