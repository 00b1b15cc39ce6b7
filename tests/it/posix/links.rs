//! Hard and symbolic links.

use super::*;
use rustix::fs::{AtFlags, CWD, link, linkat, lstat, readlink, symlink, unlink};

checks! {
    hard_links_are_one_file,
    a_removed_link_leaves_the_others,
    hard_links_that_cannot_be,
    a_link_to_an_open_unlinked_file,
    a_hard_link_to_a_symbolic_one,
    symbolic_links_say_what_they_were_told,
    the_longest_symbolic_link,
    a_symbolic_link_is_followed,
    a_symbolic_link_to_a_directory,
    reading_a_link_that_is_none,
    a_symbolic_link_over_something,
    an_empty_target_is_refused,
}

fn hard_links_are_one_file(at: &Path) {
    let one = file(at, "one", b"shared");
    let two = dir(at, "d").join("two");
    link(&one, &two).unwrap();
    let (a, b) = (stat(&one), stat(&two));
    assert_eq!((a.st_ino, a.st_nlink), (b.st_ino, 2));
    assert_eq!(b.st_nlink, 2);
    let fd = open(&two, OFlags::RDWR);
    write_at(&fd, 0, b"SHARED!");
    assert_eq!(read(&one), b"SHARED!");
    crate::support::set_mode(&one, 0o600);
    assert_eq!(mode(&two), 0o600);
}

fn a_removed_link_leaves_the_others(at: &Path) {
    let one = file(at, "one", b"x");
    link(&one, at.join("two")).unwrap();
    link(at.join("two"), at.join("three")).unwrap();
    assert_eq!(stat(&one).st_nlink, 3);
    unlink(&one).unwrap();
    assert_eq!(stat(&at.join("two")).st_nlink, 2);
    unlink(at.join("two")).unwrap();
    assert_eq!(stat(&at.join("three")).st_nlink, 1);
    assert_eq!(read(&at.join("three")), b"x");
}

fn hard_links_that_cannot_be(at: &Path) {
    let one = file(at, "one", b"x");
    assert_errno!(link(&one, file(at, "two", b"")), EXIST);
    assert_errno!(link(&one, &one), EXIST);
    assert_errno!(link(at.join("none"), at.join("x")), NOENT);
    assert_errno!(link(&one, at.join("none/x")), NOENT);
    assert_errno!(link(dir(at, "d"), at.join("x")), PERM);
    assert_eq!(stat(&one).st_nlink, 1);
}

fn a_link_to_an_open_unlinked_file(at: &Path) {
    use std::os::fd::AsRawFd;
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::RDONLY);
    unlink(&path).unwrap();
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // A file without a name cannot get one again (only O_TMPFILE's can).
    assert_errno!(
        linkat(CWD, name, CWD, at.join("back"), AtFlags::SYMLINK_FOLLOW),
        NOENT
    );
    assert_errno!(lstat(at.join("back")), NOENT);
}

fn a_hard_link_to_a_symbolic_one(at: &Path) {
    file(at, "target", b"t");
    symlink("target", at.join("l")).unwrap();
    link(at.join("l"), at.join("m")).unwrap();
    assert_eq!(stat(&at.join("l")).st_ino, stat(&at.join("m")).st_ino);
    assert_eq!(
        readlink(at.join("m"), Vec::new()).unwrap().as_bytes(),
        b"target"
    );
    linkat(
        CWD,
        at.join("l"),
        CWD,
        at.join("n"),
        AtFlags::SYMLINK_FOLLOW,
    )
    .unwrap();
    assert_eq!(stat(&at.join("n")).st_ino, stat(&at.join("target")).st_ino);
}

fn symbolic_links_say_what_they_were_told(at: &Path) {
    let targets: [&[u8]; 5] = [
        b"dangling/../nowhere",
        b"/absolute",
        b"with space\nand newline",
        b"\xff\xfe not UTF-8",
        b".",
    ];
    for (n, target) in targets.into_iter().enumerate() {
        let path = at.join(format!("l{n}"));
        symlink(target, &path).unwrap();
        assert_eq!(readlink(&path, Vec::new()).unwrap().as_bytes(), target);
        let stat = stat(&path);
        assert_eq!(stat.st_size as usize, target.len());
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK);
    }
}

fn the_longest_symbolic_link(at: &Path) {
    // XFS ends at 1023 (XFS_SYMLINK_MAXLEN), ext4 and tmpfs at PATH_MAX.
    for len in [1000, 1023, 4095] {
        let target = "x/".repeat(len / 2) + &"y"[..len % 2];
        let path = at.join(len.to_string());
        match symlink(&target, &path) {
            Err(Errno::NAMETOOLONG) if len > 1023 => continue,
            other => other.unwrap(),
        }
        assert_eq!(
            readlink(&path, Vec::new()).unwrap().as_bytes(),
            target.as_bytes()
        );
    }
    assert_errno!(symlink("x".repeat(4096), at.join("l")), NAMETOOLONG);
}

fn a_symbolic_link_is_followed(at: &Path) {
    let target = file(&dir(at, "d"), "f", b"found");
    symlink("d/f", at.join("relative")).unwrap();
    symlink(&target, at.join("absolute")).unwrap();
    symlink("relative", at.join("twice")).unwrap();
    for name in ["relative", "absolute", "twice"] {
        assert_eq!(read(&at.join(name)), b"found", "{name}");
    }
    let fd = open(&at.join("twice"), OFlags::RDWR);
    write_at(&fd, 0, b"F");
    assert_eq!(read(&target), b"Found");
}

fn a_symbolic_link_to_a_directory(at: &Path) {
    file(&dir(at, "d"), "f", b"x");
    symlink("d", at.join("l")).unwrap();
    assert_eq!(read(&at.join("l/f")), b"x");
    file(&at.join("l"), "g", b"y");
    assert_eq!(read(&at.join("d/g")), b"y");
    assert_eq!(std::fs::read_dir(at.join("l")).unwrap().count(), 2);
    assert_errno!(rustix::fs::rmdir(at.join("l")), NOTDIR);
}

fn reading_a_link_that_is_none(at: &Path) {
    assert_errno!(readlink(file(at, "f", b""), Vec::new()), INVAL);
    assert_errno!(readlink(dir(at, "d"), Vec::new()), INVAL);
    assert_errno!(readlink(at.join("none"), Vec::new()), NOENT);
}

fn a_symbolic_link_over_something(at: &Path) {
    assert_errno!(symlink("x", file(at, "f", b"")), EXIST);
    assert_errno!(symlink("x", dir(at, "d")), EXIST);
    assert_errno!(symlink("x", at.join("none/l")), NOENT);
}

fn an_empty_target_is_refused(at: &Path) {
    assert_errno!(symlink("", at.join("l")), NOENT);
    assert_errno!(lstat(at.join("l")), NOENT);
}
