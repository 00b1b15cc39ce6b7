//! What stands at a destination, or beside it, and is not to be lost, or not to be left.

use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::support::{
    Need, OTHER, Scratch, Tmpfs, USER, apart, require, set_mode, set_owner, write_content,
};

#[test]
fn a_backup_that_can_not_be_taken_back_is_not_begun() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    source.dir("sticky");
    source.file("sticky/theirs", b"theirs");
    source.file("mine", b"mine");
    let at = source.path();
    set_mode(at, 0o755);
    set_mode(&at.join("sticky"), 0o1777);
    // Whoever may write to a file may give it names (fs.protected_hardlinks).
    set_mode(&at.join("sticky/theirs"), 0o666);
    set_mode(&at.join("mine"), 0o644);
    let mount = Mount::of(at).opt("allow_other").start();
    for options in ["--backup", "--backup=numbered"] {
        let told = apart(Some((USER, USER)), || {
            tell(mount.path(), &format!("{options} mine sticky/theirs"))
        });
        assert_eq!(told, Err(Errno::PERM), "{options}");
        assert_eq!(names(&at.join("sticky")), ["theirs"], "{options}");
        assert_eq!(read_file(&at.join("sticky/theirs")), b"theirs");
    }
    // To root it is no obstacle, nor to the owner.
    tell(mount.path(), "--backup mine sticky/theirs").unwrap();
    set_owner(&at.join("sticky/theirs"), USER, OTHER);
    set_owner(&at.join("sticky/theirs~"), USER, OTHER);
    apart(Some((USER, USER)), || {
        tell(mount.path(), "--backup mine sticky/theirs").unwrap();
    });
    assert_eq!(names(&at.join("sticky")), ["theirs", "theirs~"]);
}

#[test]
fn a_link_does_not_take_the_place_of_what_it_leads_to() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    source.file("f", b"the only one");
    source.dir("links");
    symlink("f", at.join("link")).unwrap();
    symlink("../f", at.join("links/f")).unwrap();
    symlink("../f", at.join("links/other")).unwrap();
    let mount = Mount::of(at).start();
    for line in ["-a link f", "-aT links/f f", "-a links/. ."] {
        assert_eq!(tell(mount.path(), line), Err(Errno::INVAL), "{line}");
        assert_eq!(read_file(&at.join("f")), b"the only one", "{line}");
        assert!(at.join("f").symlink_metadata().unwrap().is_file(), "{line}");
    }
    // The rest of the tree is there; and a backup is kept where it is asked for.
    assert_eq!(names(at), ["f", "link", "links", "other"]);
    tell(mount.path(), "-a --backup link f").unwrap();
    assert_eq!(read_file(&at.join("f~")), b"the only one");
}

#[test]
fn a_link_that_stands_there_stays_when_the_copy_fails() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let disk = Tmpfs::new(8 << 20);
    let at = disk.path();
    fs::create_dir_all(at.join("t")).unwrap();
    fs::create_dir_all(at.join("t2")).unwrap();
    write_content(&at.join("t/f"), 1, 5 << 20);
    symlink("elsewhere", at.join("t2/f")).unwrap();
    let mount = Mount::of(at).start();
    for options in ["-r", "-r --inplace", "-a --resume"] {
        let told = tell(mount.path(), &format!("{options} t/. t2"));
        assert_eq!(told, Err(Errno::NOSPC), "{options}");
        let link = fs::read_link(at.join("t2/f"));
        assert_eq!(link.unwrap(), Path::new("elsewhere"), "{options}");
        assert_eq!(names(&at.join("t2")), ["f"], "{options}");
    }
}

#[test]
fn what_dead_copies_left_goes_with_the_next_copy_there_however_small() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // Where locks are everybody's, who has none is dead.
    let disk = Tmpfs::new(8 << 20);
    let at = disk.path();
    fs::write(at.join("small"), "small").unwrap();
    symlink("small", at.join("link")).unwrap();
    fs::create_dir_all(at.join("t/d")).unwrap();
    fs::write(at.join("t/d/small"), "small").unwrap();
    fs::create_dir_all(at.join("to/t/d")).unwrap();
    let mount = Mount::of(at).start();
    for (line, dir) in [
        ("small to/small", "to"),
        ("-a link to/link", "to"),
        ("-a t to", "to/t/d"),
    ] {
        let left = at.join(dir).join(".corfs-copy-0-1-2-3-4.tmp");
        fs::write(&left, "half").unwrap();
        tell(mount.path(), line).unwrap();
        assert!(!left.exists(), "{line}");
    }
    assert_eq!(fs::metadata(at.join("to/t/d/small")).unwrap().nlink(), 1);
}
