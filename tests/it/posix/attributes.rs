//! Times, modes and owners.

use super::*;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

checks! {
    times_keep_their_nanoseconds,
    times_before_1970,
    times_after_2038,
    now_and_omit,
    every_pair_of_times,
    a_symbolic_link_has_no_mode_to_change,
    times_of_a_symbolic_link,
    times_of_an_open_file,
    writing_moves_mtime,
    reading_leaves_mtime,
    a_new_entry_moves_the_directory,
    chmod_moves_ctime_only,
    a_chown_to_nobody_moves_ctime_only,
    permission_bits_are_kept,
    chmod_of_an_open_file,
    sizes_and_blocks,
    file_kinds,
    owner_and_group_change [Need::Root],
    owner_alone_and_group_alone [Need::Root],
    a_links_owner_changes_alone [Need::Root],
    a_change_of_owner_drops_suid [Need::Root],
}

fn ts(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

fn set_times(path: &Path, atime: Timespec, mtime: Timespec) {
    let times = Timestamps {
        last_access: atime,
        last_modification: mtime,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .unwrap_or_else(|e| panic!("utimensat {}: {e}", path.display()));
}

/// atime and mtime, seconds and nanoseconds.
fn times(path: &Path) -> ((i64, u64), (i64, u64)) {
    let stat = stat(path);
    (
        (stat.st_atime, stat.st_atime_nsec),
        (stat.st_mtime, stat.st_mtime_nsec),
    )
}

fn times_keep_their_nanoseconds(at: &Path) {
    for path in [file(at, "f", b"x"), dir(at, "d")] {
        set_times(&path, ts(1_000_000_000, 123_456_789), ts(1_500_000_000, 1));
        assert_eq!(
            times(&path),
            ((1_000_000_000, 123_456_789), (1_500_000_000, 1))
        );
    }
}

fn times_before_1970(at: &Path) {
    let path = file(at, "f", b"x");
    for (seconds, nanoseconds) in [
        (-1, 0),
        (-1, 500_000_000),
        (-1_000_000, 1),
        (-2, 999_999_999),
    ] {
        set_times(&path, ts(seconds, nanoseconds), ts(seconds, nanoseconds));
        let want = (seconds, nanoseconds as u64);
        assert_eq!(times(&path), (want, want));
    }
    set_times(&path, ts(0, 0), ts(0, 1));
    assert_eq!(times(&path), ((0, 0), (0, 1)));
}

fn times_after_2038(at: &Path) {
    let path = file(at, "f", b"x");
    for seconds in [1 << 31, (1 << 32) + 5, 10_000_000_000] {
        set_times(&path, ts(seconds, 7), ts(seconds + 1, 999_999_999));
        assert_eq!(times(&path), ((seconds, 7), (seconds + 1, 999_999_999)));
    }
}

fn now_and_omit(at: &Path) {
    let path = file(at, "f", b"x");
    set_times(&path, ts(1000, 1), ts(2000, 2));
    set_times(&path, ts(0, UTIME_OMIT), ts(3000, 3));
    assert_eq!(times(&path), ((1000, 1), (3000, 3)));
    set_times(&path, ts(4000, 4), ts(0, UTIME_OMIT));
    assert_eq!(times(&path), ((4000, 4), (3000, 3)));
    let before = now() - 2;
    set_times(&path, ts(0, UTIME_OMIT), ts(0, UTIME_NOW));
    let (atime, mtime) = times(&path);
    assert_eq!(atime, (4000, 4));
    assert!(mtime.0 >= before && mtime.0 <= now() + 2, "{mtime:?}");
    set_times(&path, ts(0, UTIME_NOW), ts(0, UTIME_NOW));
    assert!(times(&path).0.0 >= before);
}

/// Each of: now, as it is, before 1970, after 2038; for both times, of a file, directory and link.
fn every_pair_of_times(at: &Path) {
    let link = at.join("l");
    rustix::fs::symlink("nowhere", &link).unwrap();
    let kinds = [
        ts(0, UTIME_NOW),
        ts(0, UTIME_OMIT),
        ts(-1_000_000_007, 999_999_999),
        ts(5_000_000_000, 1),
    ];
    for path in [file(at, "f", b"x"), dir(at, "d"), link] {
        for atime in kinds {
            for mtime in kinds {
                set_times(&path, ts(1234, 5), ts(6789, 10));
                let before = now() - 2;
                set_times(&path, atime, mtime);
                let (a, m) = times(&path);
                for (set, got, old) in [(atime, a, (1234, 5)), (mtime, m, (6789, 10))] {
                    match set.tv_nsec {
                        UTIME_NOW => assert!(got.0 >= before && got.0 <= now() + 2, "{got:?}"),
                        UTIME_OMIT => assert_eq!(got, old),
                        nanoseconds => assert_eq!(got, (set.tv_sec, nanoseconds as u64)),
                    }
                }
            }
        }
    }
}

fn a_symbolic_link_has_no_mode_to_change(at: &Path) {
    file(at, "f", b"");
    rustix::fs::symlink("f", at.join("l")).unwrap();
    let name = std::ffi::CString::new(at.join("l").to_str().unwrap()).unwrap();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is a C string that lives through the call.
    let done = unsafe { libc::fchmodat(libc::AT_FDCWD, name.as_ptr(), 0o600, flags) };
    let error = std::io::Error::last_os_error();
    assert_eq!((done, error.raw_os_error()), (-1, Some(libc::EOPNOTSUPP)));
    assert_eq!(mode(&at.join("f")), 0o644);
    assert_eq!(mode(&at.join("l")), 0o777);
}

fn now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

fn times_of_a_symbolic_link(at: &Path) {
    let target = file(at, "f", b"x");
    set_times(&target, ts(1, 1), ts(2, 2));
    let link = at.join("l");
    rustix::fs::symlink("f", &link).unwrap();
    set_times(&link, ts(5000, 5), ts(6000, 6));
    assert_eq!(times(&link), ((5000, 5), (6000, 6)));
    assert_eq!(times(&target), ((1, 1), (2, 2)));
}

fn times_of_an_open_file(at: &Path) {
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::RDONLY);
    let given = Timestamps {
        last_access: ts(7000, 7),
        last_modification: ts(8000, 8),
    };
    rustix::fs::futimens(&fd, &given).unwrap();
    assert_eq!(times(&path), ((7000, 7), (8000, 8)));
    rustix::fs::unlink(&path).unwrap();
    rustix::fs::futimens(&fd, &given).unwrap();
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_mtime, 8000);
}

fn writing_moves_mtime(at: &Path) {
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::RDWR);
    let at_end = || open(&path, OFlags::WRONLY | OFlags::APPEND);
    let end = at_end();
    let changes: [&dyn Fn(); 5] = [
        &|| write_at(&fd, 0, b"y"),
        &|| assert_eq!(rustix::io::write(&end, b"z"), Ok(1)),
        &|| assert_eq!(rustix::io::write(at_end(), b"z"), Ok(1)),
        &|| rustix::fs::ftruncate(&fd, 100).unwrap(),
        &|| drop(open(&path, OFlags::WRONLY | OFlags::TRUNC)),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        set_times(&path, ts(1000, 0), ts(1000, 0));
        change();
        assert!(times(&path).1.0 > 1000, "change {n}");
    }
}

fn reading_leaves_mtime(at: &Path) {
    let path = file(at, "f", b"x");
    set_times(&path, ts(1000, 5), ts(1000, 6));
    assert_eq!(read(&path), b"x");
    assert_eq!(times(&path).1, (1000, 6));
}

fn a_new_entry_moves_the_directory(at: &Path) {
    let path = dir(at, "d");
    let changes: [&dyn Fn(); 5] = [
        &|| drop(file(&path, "f", b"")),
        &|| rustix::fs::rename(path.join("f"), path.join("g")).unwrap(),
        &|| rustix::fs::link(path.join("g"), path.join("h")).unwrap(),
        &|| rustix::fs::unlink(path.join("h")).unwrap(),
        &|| drop(dir(&path, "e")),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        set_times(&path, ts(1000, 0), ts(1000, 0));
        change();
        assert!(times(&path).1.0 > 1000, "change {n}");
    }
}

fn chmod_moves_ctime_only(at: &Path) {
    let path = file(at, "f", b"x");
    set_times(&path, ts(1000, 5), ts(1000, 6));
    let before = stat(&path);
    // Longer than the kernel's clock tick, by which it stamps.
    std::thread::sleep(std::time::Duration::from_millis(20));
    crate::support::set_mode(&path, 0o600);
    let after = stat(&path);
    assert_eq!((after.st_mtime, after.st_mtime_nsec), (1000, 6));
    let stamp = |s: &rustix::fs::Stat| (s.st_ctime, s.st_ctime_nsec);
    assert!(stamp(&after) > stamp(&before));
}

fn a_chown_to_nobody_moves_ctime_only(at: &Path) {
    let path = file(at, "f", b"x");
    set_times(&path, ts(1000, 5), ts(1000, 6));
    let before = stat(&path);
    std::thread::sleep(std::time::Duration::from_millis(20));
    rustix::fs::chownat(CWD, &path, None, None, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let after = stat(&path);
    assert_eq!((after.st_mtime, after.st_mtime_nsec), (1000, 6));
    let stamp = |s: &rustix::fs::Stat| (s.st_ctime, s.st_ctime_nsec);
    assert!(stamp(&after) > stamp(&before));
    assert_eq!((after.st_uid, after.st_gid), (before.st_uid, before.st_gid));
}

fn permission_bits_are_kept(at: &Path) {
    let plain = file(at, "f", b"x");
    for bits in [0, 0o1, 0o777, 0o640, 0o4711, 0o2755, 0o1644] {
        crate::support::set_mode(&plain, bits);
        // Only root may set the sticky bit of a file, on some systems; Linux lets the owner.
        assert_eq!(mode(&plain), bits);
    }
    let folder = dir(at, "d");
    for bits in [0o1777, 0o2770, 0o700] {
        crate::support::set_mode(&folder, bits);
        assert_eq!(mode(&folder), bits);
    }
}

fn chmod_of_an_open_file(at: &Path) {
    let path = file(at, "f", b"x");
    let fd = open(&path, OFlags::RDONLY);
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0)).unwrap();
    assert_eq!(mode(&path), 0);
    assert_eq!(read_at(&fd, 0, 10), b"x");
    assert_errno!(rustix::fs::chmod(at.join("none"), Mode::RWXU), NOENT);
}

fn sizes_and_blocks(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, OFlags::CREATE | OFlags::RDWR);
    assert_eq!((stat(&path).st_size, stat(&path).st_blocks), (0, 0));
    write_at(&fd, 0, &[1; 100_000]);
    rustix::fs::fsync(&fd).unwrap();
    let stat = stat(&path);
    assert_eq!(stat.st_size, 100_000);
    assert!((196..=512).contains(&stat.st_blocks), "{}", stat.st_blocks);
    assert!(stat.st_blksize >= 512);
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_size, 100_000);
}

fn file_kinds(at: &Path) {
    use rustix::fs::FileType;
    let kind = |path: &Path| FileType::from_raw_mode(stat(path).st_mode);
    assert_eq!(kind(&file(at, "f", b"")), FileType::RegularFile);
    assert_eq!(kind(&dir(at, "d")), FileType::Directory);
    rustix::fs::symlink("d", at.join("l")).unwrap();
    assert_eq!(kind(&at.join("l")), FileType::Symlink);
    assert_eq!(stat(&at.join("f")).st_nlink, 1);
}

fn owner_of(path: &Path) -> (u32, u32) {
    (stat(path).st_uid, stat(path).st_gid)
}

fn owner_and_group_change(at: &Path) {
    for path in [file(at, "f", b""), dir(at, "d")] {
        set_owner(&path, 1234, 5678);
        assert_eq!(owner_of(&path), (1234, 5678));
        // The largest that is not "leave it".
        set_owner(&path, u32::MAX - 1, 0);
        assert_eq!(owner_of(&path), (u32::MAX - 1, 0));
    }
}

fn owner_alone_and_group_alone(at: &Path) {
    use std::os::unix::fs::chown;
    let path = file(at, "f", b"");
    set_owner(&path, 10, 20);
    chown(&path, Some(11), None).unwrap();
    assert_eq!(owner_of(&path), (11, 20));
    chown(&path, None, Some(21)).unwrap();
    assert_eq!(owner_of(&path), (11, 21));
}

fn a_links_owner_changes_alone(at: &Path) {
    let path = file(at, "f", b"");
    rustix::fs::symlink("f", at.join("l")).unwrap();
    set_owner(&at.join("l"), 77, 78);
    assert_eq!(owner_of(&at.join("l")), (77, 78));
    assert_eq!(owner_of(&path), (0, 0));
}

fn a_change_of_owner_drops_suid(at: &Path) {
    let path = file(at, "f", b"");
    crate::support::set_mode(&path, 0o6755);
    set_owner(&path, 5, 5);
    assert_eq!(mode(&path), 0o755);
}
