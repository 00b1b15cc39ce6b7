//! `uid=`, `gid=`: one owner for all that is shown.

use std::fs;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::*;
use crate::support::{Mount, Need, Scratch, output, require, set_mode, set_owner};

/// A source of user 1000, closed to everybody else, and its mount.
fn world(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    let folder = source.dir("d");
    set_owner(&folder, 1000, 1000);
    set_mode(&folder, 0o700);
    let file = folder.join("f");
    crate::support::write_file(&file, b"of 1000\n");
    set_owner(&file, 1000, 1000);
    set_mode(&file, 0o600);
    set_mode(&source.dir("open"), 0o777);
    let mount = Mount::of(source.path())
        .opt("allow_other")
        .opt(options)
        .start();
    (source, mount)
}

#[test]
fn everything_is_the_shown_owners() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("setfacl")]) {
        return;
    }
    let (source, mount) = world("uid=2000,gid=3000");
    let at = mount.path();
    for path in [at, &at.join("d"), &at.join("d/f"), &at.join("open")] {
        assert_eq!(owner(path), (2000, 3000), "{}", path.display());
    }
    let inside = source.path().join("d");
    as_user(2000, || {
        assert_eq!(read(&at.join("d/f")).unwrap(), b"of 1000\n");
        make(&at.join("d/new")).unwrap();
        make_dir(&at.join("d/dir")).unwrap();
        rustix::fs::symlink("x", at.join("d/link")).unwrap();
        chmod(&at.join("d/f"), 0o640).unwrap();
        let acl = Command::new("setfacl")
            .args(["-m", "u:5:r"])
            .arg(at.join("d/f"))
            .status();
        assert!(acl.unwrap().success());
        rustix::fs::rename(at.join("d/new"), at.join("d/moved")).unwrap();
        assert_eq!(owner(&at.join("d/moved")), (2000, 3000));
    });
    // What was made belongs to its maker, as bindfs does it when root mounts.
    for name in ["moved", "dir", "link"] {
        assert_eq!(owner(&inside.join(name)), (2000, 2000), "{name}");
    }
    as_user(1000, || {
        assert_eq!(
            read(&at.join("d/f")),
            Err(Errno::ACCESS),
            "the source's owner is none here"
        );
        assert_eq!(make(&at.join("d/x")), Err(Errno::ACCESS));
        make(&at.join("open/x")).unwrap();
    });
    as_member(7, 7, &[3000], || {
        // The class of a file with a list needs its mask, which chmod made of the group's rights.
        assert_eq!(make(&at.join("d/f")), Err(Errno::ACCESS));
    });
    assert_eq!(owner(&source.path().join("open/x")), (1000, 1000));
    assert_eq!(owner(&inside.join("f")), (1000, 1000));
}

#[test]
fn to_give_away_what_is_one_owners_is_refused() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("uid=2000,gid=3000");
    let (shown, file) = (mount.path().join("d/f"), source.path().join("d/f"));
    chown(&shown, Some(2000), Some(3000)).unwrap();
    for (uid, gid) in [
        (Some(1000), None),
        (None, Some(1000)),
        (Some(2000), Some(0)),
    ] {
        assert_eq!(chown(&shown, uid, gid), Err(Errno::PERM));
    }
    assert_eq!(owner(&file), (1000, 1000));
    let (source, mount) = world("uid=2000");
    chown(&mount.path().join("d/f"), Some(2000), Some(7)).unwrap();
    assert_eq!(
        owner(&source.path().join("d/f")),
        (1000, 7),
        "the group is its own"
    );
}

#[test]
fn with_a_map_the_makers_are_the_maps() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("uid=2000,gid=2000,map=1000:2000:1");
    let at = mount.path();
    as_user(2000, || {
        make(&at.join("d/new")).unwrap();
        copy(&at.join("d"), "new", "copied").unwrap();
    });
    for name in ["new", "copied"] {
        assert_eq!(owner(&source.path().join("d").join(name)), (1000, 1000));
        assert_eq!(owner(&at.join("d").join(name)), (2000, 2000));
    }
}

/// Nobody judges a copy by what is shown, so it is for those alone to whom no mode is an obstacle.
#[test]
fn copies_are_for_the_shown_owner_and_root() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("uid=2000");
    let folder = mount.path().join("d");
    copy(&folder, "f", "by-root").unwrap();
    as_user(2000, || copy(&folder, "f", "by-owner").unwrap());
    for id in [1000, 5] {
        let open = mount.path().join("open");
        as_user(id, || {
            assert_eq!(copy(&open, "../d/f", "x"), Err(Errno::PERM), "as {id}")
        });
    }
    assert_eq!(owner(&source.path().join("d/by-root")), (0, 0));
    assert_eq!(owner(&source.path().join("d/by-owner")), (2000, 2000));
    let (_source, mount) = world("gid=2000");
    as_user(2000, || {
        assert_eq!(
            copy(&mount.path().join("open"), "../d/f", "x"),
            Err(Errno::PERM)
        );
    });
}

/// Rights in the source that the mount's judgement is to replace must not open what nobody judged.
#[test]
fn what_appears_while_a_file_is_made_is_judged() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("uid=2000,negative_timeout=60");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let open = |name: &str| {
        let path = mount.path().join("open").join(name);
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))
    };
    for (name, id) in [("a", 5), ("b", 1000)] {
        assert!(fs::metadata(mount.path().join("open").join(name)).is_err());
        let path = source.path().join("open").join(name);
        crate::support::write_file(&path, b"secret");
        set_owner(&path, 1000, 1000);
        set_mode(&path, 0o600);
        as_user(id, || {
            assert_eq!(open(name).unwrap_err(), Errno::ACCESS, "as {id}")
        });
    }
    as_user(2000, || {
        let file = open("a").unwrap();
        let mut bytes = [0; 9];
        assert_eq!(rustix::io::pread(file, &mut bytes, 0).unwrap(), 6);
    });
}

/// A lock for writing is for those who may write in the source, whatever is shown.
#[test]
fn a_shown_owner_locks_no_strangers_program() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("uid=2000");
    let program = source.path().join("true");
    crate::support::run(Command::new("cp").arg("/bin/true").arg(&program));
    set_mode(&program, 0o755);
    as_user(2000, || {
        let file = fs::File::open(mount.path().join("true")).unwrap();
        crate::children::lock(&file, libc::F_SETLK, "read", (0, 0)).unwrap();
        assert!(output(&mut Command::new(&program)).status.success());
    });
}
