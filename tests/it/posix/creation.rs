//! How files and directories come into being, and what `open` refuses.

use super::*;
use rustix::fs::{FileType, lstat};

checks! {
    new_file_takes_the_mode_less_the_umask,
    new_directory_takes_the_mode_less_the_umask,
    new_entries_belong_to_the_caller,
    exclusive_creation_refuses_what_exists,
    exclusive_creation_refuses_a_dangling_link,
    creation_leaves_the_mode_of_what_exists,
    creation_through_a_dangling_link_makes_its_target,
    read_only_file_is_writable_by_its_creator,
    truncating_open_empties,
    opening_what_is_missing,
    opening_a_directory_for_writing,
    a_file_is_no_directory,
    directory_flag_refuses_a_file,
    nofollow_refuses_a_link,
    a_circle_of_links,
    the_open_mode_binds_the_descriptor,
    path_descriptor_reads_nothing,
    reopening_through_proc,
    open_relative_to_a_directory,
    no_atime_for_the_owner,
}

fn new_file_takes_the_mode_less_the_umask(at: &Path) {
    for (mask, asked, got) in [
        (0o027, 0o666, 0o640),
        (0, 0o666, 0o666),
        (0, 0o4755, 0o4755),
        (0o077, 0o777, 0o700),
        (0o777, 0o777, 0),
    ] {
        let path = at.join(format!("f{mask:o}-{asked:o}"));
        rustix::process::umask(Mode::from_raw_mode(mask));
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::EXCL;
        rustix::fs::open(&path, flags, Mode::from_raw_mode(asked)).unwrap();
        assert_eq!(mode(&path), got, "umask {mask:o}, mode {asked:o}");
    }
}

fn new_directory_takes_the_mode_less_the_umask(at: &Path) {
    for (mask, asked, got) in [
        (0o027, 0o777, 0o750),
        (0, 0o777, 0o777),
        (0, 0o1777, 0o1777),
    ] {
        let path = at.join(format!("d{mask:o}-{asked:o}"));
        rustix::process::umask(Mode::from_raw_mode(mask));
        rustix::fs::mkdir(&path, Mode::from_raw_mode(asked)).unwrap();
        assert_eq!(mode(&path), got, "umask {mask:o}, mode {asked:o}");
    }
}

fn new_entries_belong_to_the_caller(at: &Path) {
    let me = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let made = [
        file(at, "f", b""),
        dir(at, "d"),
        {
            rustix::fs::symlink("x", at.join("l")).unwrap();
            at.join("l")
        },
        {
            let fifo = at.join("p");
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
            fifo
        },
    ];
    for path in made {
        let stat = stat(&path);
        assert_eq!((stat.st_uid, stat.st_gid), me, "{}", path.display());
    }
}

fn exclusive_creation_refuses_what_exists(at: &Path) {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    assert_errno!(try_open(&file(at, "f", b"x"), flags), EXIST);
    assert_errno!(try_open(&dir(at, "d"), flags), EXIST);
    assert_eq!(read(&at.join("f")), b"x");
}

fn exclusive_creation_refuses_a_dangling_link(at: &Path) {
    let link = at.join("l");
    rustix::fs::symlink("nowhere", &link).unwrap();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    assert_errno!(try_open(&link, flags), EXIST);
    assert_errno!(lstat(at.join("nowhere")), NOENT);
}

fn creation_leaves_the_mode_of_what_exists(at: &Path) {
    let path = file(at, "f", b"abc");
    crate::support::set_mode(&path, 0o600);
    drop(open(&path, OFlags::CREATE | OFlags::WRONLY));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(read(&path), b"abc");
}

fn creation_through_a_dangling_link_makes_its_target(at: &Path) {
    rustix::fs::symlink("target", at.join("l")).unwrap();
    let fd = open(&at.join("l"), OFlags::CREATE | OFlags::WRONLY);
    write_at(&fd, 0, b"through");
    assert_eq!(read(&at.join("target")), b"through");
}

fn read_only_file_is_writable_by_its_creator(at: &Path) {
    for bits in [0o400, 0] {
        let path = at.join(format!("f{bits:o}"));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL;
        let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(bits)).unwrap();
        write_at(&fd, 0, b"still mine");
        assert_eq!(read_at(&fd, 0, 100), b"still mine");
        assert_eq!(mode(&path), bits);
    }
}

fn truncating_open_empties(at: &Path) {
    let path = file(at, "f", b"some content");
    let reader = open(&path, OFlags::RDONLY);
    let fd = open(&path, OFlags::WRONLY | OFlags::TRUNC);
    assert_eq!(stat(&path).st_size, 0);
    assert_eq!(read_at(&reader, 0, 100), b"");
    write_at(&fd, 0, b"new");
    assert_eq!(read(&path), b"new");
    assert_eq!(read_at(&reader, 0, 100), b"new");
}

fn opening_what_is_missing(at: &Path) {
    assert_errno!(try_open(&at.join("none"), OFlags::RDONLY), NOENT);
    let below = at.join("none/f");
    assert_errno!(try_open(&below, OFlags::CREATE | OFlags::WRONLY), NOENT);
    assert_errno!(lstat(at.join("none")), NOENT);
}

fn opening_a_directory_for_writing(at: &Path) {
    let path = dir(at, "d");
    for flags in [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::RDONLY | OFlags::CREATE,
    ] {
        assert_errno!(try_open(&path, flags), ISDIR);
    }
    let fd = open(&path, OFlags::RDONLY);
    assert_errno!(rustix::io::read(&fd, &mut [0_u8; 8]), ISDIR);
}

fn a_file_is_no_directory(at: &Path) {
    let path = file(at, "f", b"");
    assert_errno!(try_open(&path.join("x"), OFlags::RDONLY), NOTDIR);
    let below = path.join("x");
    assert_errno!(try_open(&below, OFlags::CREATE | OFlags::WRONLY), NOTDIR);
    assert_errno!(rustix::fs::mkdir(&below, Mode::RWXU), NOTDIR);
    assert_errno!(lstat(path.join(".")), NOTDIR);
}

fn directory_flag_refuses_a_file(at: &Path) {
    let path = file(at, "f", b"");
    assert_errno!(try_open(&path, OFlags::DIRECTORY), NOTDIR);
}

fn nofollow_refuses_a_link(at: &Path) {
    file(at, "f", b"x");
    rustix::fs::symlink("f", at.join("l")).unwrap();
    assert_errno!(try_open(&at.join("l"), OFlags::NOFOLLOW), LOOP);
    assert_eq!(read(&at.join("l")), b"x");
}

fn a_circle_of_links(at: &Path) {
    rustix::fs::symlink("b", at.join("a")).unwrap();
    rustix::fs::symlink("a", at.join("b")).unwrap();
    rustix::fs::symlink("self", at.join("self")).unwrap();
    for name in ["a", "b", "self"] {
        assert_errno!(try_open(&at.join(name), OFlags::RDONLY), LOOP);
        assert!(lstat(at.join(name)).is_ok());
    }
}

fn the_open_mode_binds_the_descriptor(at: &Path) {
    let path = file(at, "f", b"x");
    let reader = open(&path, OFlags::RDONLY);
    assert_errno!(rustix::io::write(&reader, b"y"), BADF);
    assert_errno!(rustix::fs::ftruncate(&reader, 0), INVAL);
    let writer = open(&path, OFlags::WRONLY);
    assert_errno!(rustix::io::read(&writer, &mut [0_u8; 1]), BADF);
}

fn path_descriptor_reads_nothing(at: &Path) {
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::PATH);
    assert_errno!(rustix::io::read(&fd, &mut [0_u8; 1]), BADF);
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_ino, stat(&path).st_ino);
}

fn reopening_through_proc(at: &Path) {
    use std::os::fd::AsRawFd;
    let path = file(at, "f", b"content");
    let fd = open(&path, OFlags::PATH);
    let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let again = open(&link, OFlags::RDWR);
    write_at(&again, 0, b"CON");
    assert_eq!(read_at(&again, 0, 100), b"CONtent");
}

fn open_relative_to_a_directory(at: &Path) {
    let sub = open(&dir(at, "sub"), OFlags::RDONLY | OFlags::DIRECTORY);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL;
    let fd = rustix::fs::openat(&sub, "f", flags, Mode::from_raw_mode(0o600)).unwrap();
    write_at(&fd, 0, b"here");
    // The directory's descriptor stays good when its name changes.
    rustix::fs::rename(at.join("sub"), at.join("moved")).unwrap();
    let fd = rustix::fs::openat(&sub, "f", OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(read_at(&fd, 0, 100), b"here");
    assert_eq!(read(&at.join("moved/f")), b"here");
}

fn no_atime_for_the_owner(at: &Path) {
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::RDONLY | OFlags::NOATIME);
    assert_eq!(read_at(&fd, 0, 10), b"x");
}
