//! Who may do what. Most of it takes root to set the scene and an ordinary user to play in it.

use super::*;
use crate::support::become_user;
use rustix::fs::{Access, AtFlags, CWD, accessat};

checks! {
    access_answers_for_the_owner,
    a_strangers_file_is_closed [Need::Root],
    a_closed_directory_is_closed [Need::Root],
    a_group_member_may [Need::Root],
    strangers_do_not_change_attributes [Need::Root],
    now_is_for_writers_other_times_for_the_owner [Need::Root],
    a_write_by_another_drops_suid [Need::Root],
    a_truncation_by_another_drops_suid [Need::Root],
    a_write_drops_file_capabilities [Need::Root],
    a_setgid_directory_hands_on_its_group [Need::Root],
    a_sticky_directory_guards_its_entries [Need::Root],
    a_sticky_directorys_owner_may_do_all [Need::Root],
    chmod_outside_the_group_drops_setgid [Need::Root],
    an_acl_from_outside_the_group_drops_setgid [Need::Root, Need::Tool("setfacl")],
    a_whiteout_is_its_makers [Need::Root],
    an_unwritable_directory_takes_nothing [Need::Root],
    a_program_runs_from_here,
    an_unexecutable_program_does_not,
}

/// Does something as an ordinary user with no other groups.
fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    apart(Some((USER, OTHER)), work)
}

fn access_answers_for_the_owner(at: &Path) {
    let ask = |path: &Path, what| accessat(CWD, path, what, AtFlags::empty());
    let path = file(at, "f", b"");
    crate::support::set_mode(&path, 0o600);
    ask(&path, Access::EXISTS).unwrap();
    ask(&path, Access::READ_OK | Access::WRITE_OK).unwrap();
    assert_errno!(ask(&path, Access::EXEC_OK), ACCESS);
    crate::support::set_mode(&path, 0o700);
    ask(&path, Access::EXEC_OK).unwrap();
    assert_errno!(ask(&at.join("none"), Access::EXISTS), NOENT);
    assert_errno!(ask(&path.join("x"), Access::EXISTS), NOTDIR);
    if !is_root() {
        crate::support::set_mode(&path, 0);
        assert_errno!(ask(&path, Access::READ_OK), ACCESS);
    }
}

fn a_strangers_file_is_closed(at: &Path) {
    let path = file(at, "f", b"secret");
    crate::support::set_mode(&path, 0o600);
    as_stranger(|| {
        for flags in [
            OFlags::RDONLY,
            OFlags::WRONLY,
            OFlags::RDWR,
            OFlags::WRONLY | OFlags::TRUNC,
        ] {
            assert_errno!(try_open(&path, flags), ACCESS);
        }
        let read = accessat(CWD, &path, Access::READ_OK, AtFlags::empty());
        assert_errno!(read, ACCESS);
        assert_eq!(stat(&path).st_size, 6);
    });
    assert_eq!(read(&path), b"secret");
    crate::support::set_mode(&path, 0o604);
    as_stranger(|| assert_eq!(read(&path), b"secret"));
}

fn a_closed_directory_is_closed(at: &Path) {
    let folder = dir(at, "d");
    file(&folder, "f", b"x");
    for (bits, listed, entered) in [
        (0o700, false, false),
        (0o704, true, false),
        (0o701, false, true),
    ] {
        crate::support::set_mode(&folder, bits);
        as_stranger(|| {
            let list = try_open(&folder, OFlags::RDONLY | OFlags::DIRECTORY);
            assert_eq!(list.is_ok(), listed, "{bits:o}");
            assert_eq!(
                try_open(&folder.join("f"), OFlags::RDONLY).is_ok(),
                entered,
                "{bits:o}"
            );
            assert_eq!(
                rustix::fs::lstat(folder.join("f")).is_ok(),
                entered,
                "{bits:o}"
            );
        });
    }
}

fn a_group_member_may(at: &Path) {
    let path = file(at, "f", b"x");
    set_owner(&path, 0, 4242);
    crate::support::set_mode(&path, 0o640);
    as_stranger(|| assert_errno!(try_open(&path, OFlags::RDONLY), ACCESS));
    apart(None, || {
        become_user(USER, OTHER, &[4242]);
        assert_eq!(read(&path), b"x");
        assert_errno!(try_open(&path, OFlags::WRONLY), ACCESS);
    });
}

fn strangers_do_not_change_attributes(at: &Path) {
    let path = file(at, "f", b"x");
    crate::support::set_mode(&path, 0o666);
    as_stranger(|| {
        assert_errno!(rustix::fs::chmod(&path, Mode::RWXU), PERM);
        let uid = rustix::fs::Uid::from_raw(USER);
        assert_errno!(rustix::fs::chown(&path, Some(uid), None), PERM);
        let fd = open(&path, OFlags::RDWR);
        assert_errno!(rustix::fs::fchmod(&fd, Mode::RWXU), PERM);
    });
    assert_eq!(mode(&path), 0o666);
    assert_eq!(stat(&path).st_uid, 0);
}

fn now_is_for_writers_other_times_for_the_owner(at: &Path) {
    use rustix::fs::{Timespec, Timestamps, UTIME_NOW, utimensat};
    let path = file(at, "f", b"x");
    let at_time = |nanoseconds| {
        let time = Timespec {
            tv_sec: 1000,
            tv_nsec: nanoseconds,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &both, AtFlags::empty())
    };
    crate::support::set_mode(&path, 0o666);
    at_time(5).unwrap();
    as_stranger(|| {
        assert_errno!(at_time(0), PERM);
        assert_eq!(stat(&path).st_mtime, 1000);
        at_time(UTIME_NOW).unwrap();
        assert!(stat(&path).st_mtime > 1000);
    });
    crate::support::set_mode(&path, 0o644);
    as_stranger(|| assert_errno!(at_time(UTIME_NOW), ACCESS));
}

fn a_write_by_another_drops_suid(at: &Path) {
    let path = file(at, "f", b"program");
    for (before, after) in [(0o6777, 0o777), (0o4666, 0o666)] {
        crate::support::set_mode(&path, before);
        as_stranger(|| write_at(&open(&path, OFlags::WRONLY), 0, b"P"));
        assert_eq!(mode(&path), after, "{before:o}");
    }
    // Whoever has CAP_FSETID may.
    crate::support::set_mode(&path, 0o4755);
    write_at(&open(&path, OFlags::WRONLY), 0, b"Q");
    assert_eq!(mode(&path), 0o4755);
}

fn a_truncation_by_another_drops_suid(at: &Path) {
    let path = file(at, "f", b"program");
    crate::support::set_mode(&path, 0o4777);
    as_stranger(|| drop(open(&path, OFlags::WRONLY | OFlags::TRUNC)));
    assert_eq!(mode(&path), 0o777, "by open");
    crate::support::set_mode(&path, 0o4777);
    as_stranger(|| rustix::fs::ftruncate(open(&path, OFlags::WRONLY), 3).unwrap());
    assert_eq!(mode(&path), 0o777, "by ftruncate");
}

fn a_write_drops_file_capabilities(at: &Path) {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let path = file(at, "f", b"program");
    // VFS_CAP_REVISION_2, CAP_NET_BIND_SERVICE permitted (linux/capability.h).
    let mut value = [0_u8; 20];
    value[3] = 2;
    value[5] = 4;
    match setxattr(&path, "security.capability", &value, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    }
    let mut back = [0_u8; 64];
    assert_eq!(
        getxattr(&path, "security.capability", &mut back[..]).unwrap(),
        20
    );
    write_at(&open(&path, OFlags::WRONLY), 0, b"P");
    let left = getxattr(&path, "security.capability", &mut back[..]);
    assert_errno!(left, NODATA);
}

fn a_setgid_directory_hands_on_its_group(at: &Path) {
    let folder = dir(at, "d");
    set_owner(&folder, 0, 4242);
    crate::support::set_mode(&folder, 0o2777);
    as_stranger(|| {
        let plain = file(&folder, "f", b"");
        assert_eq!((stat(&plain).st_uid, stat(&plain).st_gid), (USER, 4242));
        let inner = dir(&folder, "e");
        assert_eq!(stat(&inner).st_gid, 4242);
        assert_eq!(mode(&inner) & 0o2000, 0o2000, "handed on");
        rustix::fs::symlink("x", folder.join("l")).unwrap();
        assert_eq!(stat(&folder.join("l")).st_gid, 4242);
    });
}

fn a_sticky_directory_guards_its_entries(at: &Path) {
    let folder = dir(at, "d");
    crate::support::set_mode(&folder, 0o1777);
    let path = file(&folder, "f", b"x");
    crate::support::set_mode(&path, 0o666);
    as_stranger(|| {
        assert_errno!(rustix::fs::unlink(&path), PERM);
        assert_errno!(rustix::fs::rename(&path, folder.join("g")), PERM);
        let mine = file(&folder, "mine", b"");
        assert_errno!(rustix::fs::rename(&mine, &path), PERM);
        rustix::fs::unlink(&mine).unwrap();
    });
    assert_eq!(read(&path), b"x");
}

fn a_sticky_directorys_owner_may_do_all(at: &Path) {
    let folder = dir(at, "d");
    set_owner(&folder, USER, OTHER);
    crate::support::set_mode(&folder, 0o1777);
    let path = file(&folder, "roots", b"x");
    as_stranger(|| {
        let mine = file(&folder, "mine", b"y");
        rustix::fs::rename(&mine, &path).unwrap();
        assert_eq!(read(&path), b"y");
    });
    // A directory of another's does not leave it, as its `..` would be written.
    let inner = dir(&folder, "inner");
    apart(Some((OTHER, OTHER)), || {
        assert_errno!(rustix::fs::rename(&inner, folder.join("x")), PERM);
        assert_errno!(rustix::fs::rmdir(&inner), PERM);
    });
    as_stranger(|| rustix::fs::rmdir(&inner).unwrap());
}

fn chmod_outside_the_group_drops_setgid(at: &Path) {
    let path = file(at, "f", b"");
    set_owner(&path, USER, 4242);
    as_stranger(|| {
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o2755)).unwrap();
        assert_eq!(mode(&path), 0o755);
    });
    apart(None, || {
        become_user(USER, OTHER, &[4242]);
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o2755)).unwrap();
        assert_eq!(mode(&path), 0o2755, "a member may");
    });
}

fn an_unwritable_directory_takes_nothing(at: &Path) {
    let path = file(at, "f", b"x");
    as_stranger(|| {
        let new = at.join("new");
        assert_errno!(try_open(&new, OFlags::CREATE | OFlags::WRONLY), ACCESS);
        assert_errno!(rustix::fs::mkdir(&new, Mode::RWXU), ACCESS);
        assert_errno!(rustix::fs::symlink("x", &new), ACCESS);
        assert_errno!(rustix::fs::unlink(&path), ACCESS);
        assert_errno!(rustix::fs::rename(&path, &new), ACCESS);
        let kind = rustix::fs::FileType::Fifo;
        assert_errno!(rustix::fs::mknodat(CWD, &new, kind, Mode::RWXU, 0), ACCESS);
    });
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 1);
}

fn a_program_runs_from_here(at: &Path) {
    use crate::support::{run, set_mode};
    use std::process::Command;
    let script = at.join("script");
    // By another process: a descriptor open for writing here may be inherited by a concurrent
    // fork, and the exec would fail with ETXTBSY.
    run(&mut crate::support::sh(
        at,
        "printf '#!/bin/sh\\necho ran\\n' > script",
    ));
    set_mode(&script, 0o755);
    assert_eq!(run(&mut Command::new(&script)), "ran\n");
    let binary = at.join("true");
    run(Command::new("cp").arg("/bin/true").arg(&binary));
    run(&mut Command::new(&binary));
}

fn an_unexecutable_program_does_not(at: &Path) {
    let script = file(at, "script", b"#!/bin/sh\necho ran\n");
    crate::support::set_mode(&script, 0o644);
    let error = std::process::Command::new(&script).output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

fn an_acl_from_outside_the_group_drops_setgid(at: &Path) {
    for (group, bits) in [(OTHER, 0o2755), (OTHER + 1, 0o755)] {
        let path = file(at, &format!("f{group}"), b"");
        crate::support::set_owner(&path, USER, group);
        crate::support::set_mode(&path, 0o2755);
        let mut set = std::process::Command::new(crate::support::tool("setfacl").unwrap());
        set.args(["-m", "u:1:r-x"]).arg(&path);
        crate::support::run(crate::support::as_user(&mut set, USER, OTHER));
        assert_eq!(mode(&path), bits, "group {group}");
    }
}

fn a_whiteout_is_its_makers(at: &Path) {
    let folder = dir(at, "d");
    crate::support::set_mode(&folder, 0o777);
    as_stranger(|| {
        file(&folder, "from", b"");
        let (from, to) = (folder.join("from"), folder.join("to"));
        let flags = rustix::fs::RenameFlags::WHITEOUT;
        match rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags) {
            Ok(()) => assert_eq!((stat(&from).st_uid, stat(&from).st_gid), (USER, OTHER)),
            Err(errno) => assert_eq!(errno, Errno::INVAL, "only where there are none"),
        }
    });
}
