//! `map=`: owners shown by other numbers, and callers known by theirs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::*;
use crate::support::{
    Mount, Need, Scratch, detach, is_mounted, output, require, run, set_mode, set_owner, wait_until,
};

/// What the kernel shows for an owner who is none (proc/sys/kernel/overflowuid).
const OVERFLOW: u32 = 65_534;
/// What an ACL shows for one.
const STRANGER: u32 = u32::MAX - 1;

/// A source whose user 1000 owns the directory `d` and the file `f`, and its mount.
fn world(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    set_owner(&source.dir("d"), 1000, 1000);
    let file = source.file("f", b"of 1000\n");
    set_owner(&file, 1000, 1000);
    set_mode(&file, 0o600);
    let mount = Mount::of(source.path())
        .opt("allow_other,attr_timeout=0,entry_timeout=0")
        .opt(options)
        .start();
    (source, mount)
}

/// Name and owner of each entry, as a listing with attributes gives them.
fn listed(folder: &Path) -> Vec<(String, u32, u32)> {
    let text = run(Command::new("ls").arg("-lnA").arg(folder));
    let mut rows: Vec<_> = text
        .lines()
        .skip(1)
        .map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let id = |at: usize| words[at].parse().unwrap();
            (words[8].to_owned(), id(2), id(3))
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn owners_show_mapped() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:2");
    for (name, id) in [("next", 1001), ("other", 5), ("covered", 2001)] {
        set_owner(&source.file(name, b""), id, id);
    }
    set_owner(&source.file("mixed", b""), 1001, 5);
    let expected = [
        ("covered", OVERFLOW, OVERFLOW),
        ("d", 2000, 2000),
        ("f", 2000, 2000),
        ("mixed", 2001, 5),
        ("next", 2001, 2001),
        ("other", 5, 5),
    ]
    .map(|(name, uid, gid)| (name.to_owned(), uid, gid));
    assert_eq!(listed(mount.path()), expected);
    let open = fs::File::open(mount.path().join("f")).unwrap();
    assert_eq!(rustix::fs::fstat(&open).unwrap().st_uid, 2000);
    let config = String::from_utf8(fs::read(mount.path().join(".corfs/config")).unwrap()).unwrap();
    assert!(
        config.contains("\nmap=u1000:2000:2/g1000:2000:2\n"),
        "{config}"
    );
}

#[test]
fn who_is_shown_as_nobody_is_nobodys() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    let covered = source.file("covered", b"x");
    set_owner(&covered, 2000, 2000);
    set_mode(&covered, 0o640);
    let shown = mount.path().join("covered");
    for id in [OVERFLOW, 2000, 1000] {
        as_user(id, || {
            assert_eq!(read(&shown), Err(Errno::ACCESS), "as {id}");
            assert_eq!(chmod(&shown, 0o666), Err(Errno::OVERFLOW), "as {id}");
        });
    }
    // As on the kernel's own mapped mounts, not even root's rights reach what has no owner.
    assert_eq!(make(&shown), Err(Errno::ACCESS));
    assert_eq!(chmod(&shown, 0o666), Err(Errno::OVERFLOW));
    assert_eq!(rustix::fs::unlink(&shown), Err(Errno::OVERFLOW));
    assert_eq!(owner(&covered), (2000, 2000));
}

#[test]
fn what_a_caller_makes_is_his_in_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    let folder = mount.path().join("d");
    as_user(2000, || {
        make(&folder.join("file")).unwrap();
        make_dir(&folder.join("dir")).unwrap();
        rustix::fs::symlink("file", folder.join("link")).unwrap();
        rustix::fs::mknodat(CWD, folder.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        rustix::fs::link(folder.join("file"), folder.join("hard")).unwrap();
        rustix::fs::rename(folder.join("hard"), folder.join("dir/moved")).unwrap();
        assert_eq!(read(&mount.path().join("f")).unwrap(), b"of 1000\n");
        let whiteout = RenameFlags::WHITEOUT;
        let (from, to) = (folder.join("dir/moved"), folder.join("white"));
        match rustix::fs::renameat_with(CWD, &from, CWD, &to, whiteout) {
            Ok(()) => assert_eq!(owner(&from), (2000, 2000)),
            Err(errno) => assert_eq!(errno, Errno::INVAL, "only where there are none"),
        }
    });
    for (name, uid, gid) in listed(&folder) {
        assert_eq!((uid, gid), (2000, 2000), "{name} on the mount");
        assert_eq!(
            owner(&source.path().join("d").join(&name)),
            (1000, 1000),
            "{name}"
        );
    }
    assert_eq!(listed(&folder).len(), 5);
}

#[test]
fn who_is_nobody_in_the_source_makes_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    set_mode(&source.dir("open"), 0o777);
    let folder = mount.path().join("open");
    make(&folder.join("old")).unwrap();
    for (uid, gid) in [(1000, 5), (5, 1000), (STRANGER, 5)] {
        as_member(uid, gid, &[], || {
            assert_eq!(make(&folder.join("f")), Err(Errno::OVERFLOW), "{uid}:{gid}");
            assert_eq!(make_dir(&folder.join("d")), Err(Errno::OVERFLOW));
            assert_eq!(
                rustix::fs::symlink("x", folder.join("l")),
                Err(Errno::OVERFLOW)
            );
            assert_eq!(copy(&folder, "a", "b"), Err(Errno::OVERFLOW));
            let (old, new) = (folder.join("old"), folder.join("new"));
            assert_eq!(rustix::fs::rename(&old, &new), Err(Errno::OVERFLOW));
        });
    }
    as_user(5, || make(&folder.join("plain")).unwrap());
    assert_eq!(owner(&source.path().join("open/plain")), (5, 5));
    assert_eq!(fs::read_dir(source.path().join("open")).unwrap().count(), 2);
}

#[test]
fn supplementary_groups_are_mapped_back() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=g1000:3000:1");
    for (name, mode) in [("shared", 0o770), ("setgid", 0o2770)] {
        let folder = source.dir(name);
        set_owner(&folder, 0, 1000);
        set_mode(&folder, mode);
    }
    let at = mount.path();
    as_member(7, 7, &[1000, 9], || {
        assert_eq!(
            make(&at.join("shared/f")),
            Err(Errno::ACCESS),
            "not that 1000"
        );
        assert_eq!(copy(at, "f", "shared/c"), Err(Errno::ACCESS));
    });
    set_mode(&source.path().join("f"), 0o640);
    as_member(7, 7, &[9, 3000], || {
        make(&at.join("shared/f")).unwrap();
        make_dir(&at.join("setgid/d")).unwrap();
        copy(at, "f", "shared/c").unwrap();
        assert_eq!(chown(&at.join("shared/f"), None, Some(3000)), Ok(()));
        assert_eq!(
            chown(&at.join("shared/f"), None, Some(1000)),
            Err(Errno::PERM)
        );
    });
    assert_eq!(owner(&source.path().join("shared/f")), (7, 1000));
    assert_eq!(owner(&source.path().join("shared/c")), (7, 7));
    assert_eq!(owner(&source.path().join("setgid/d")), (7, 1000));
    assert_eq!(owner(&at.join("setgid/d")), (7, 3000));
}

#[test]
fn a_new_owner_is_mapped_back() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1/u1:2:1");
    let (shown, file) = (mount.path().join("f"), source.path().join("f"));
    chown(&shown, Some(0), Some(0)).unwrap();
    assert_eq!(owner(&file), (0, 0));
    chown(&shown, Some(2000), None).unwrap();
    assert_eq!((owner(&file), owner(&shown)), ((1000, 0), (2000, 0)));
    chown(&shown, Some(2), Some(2000)).unwrap();
    assert_eq!((owner(&file), owner(&shown)), ((1, 1000), (2, 2000)));
    for (uid, gid) in [(Some(1000), None), (None, Some(1000)), (Some(1), Some(5))] {
        assert_eq!(chown(&shown, uid, gid), Err(Errno::OVERFLOW));
    }
    assert_eq!(owner(&file), (1, 1000), "nothing was done by half");
    as_user(2, || {
        assert_eq!(chown(&shown, Some(5), None), Err(Errno::PERM));
        chmod(&shown, 0o640).unwrap();
    });
}

fn acl_of(path: &Path) -> String {
    run(Command::new("getfacl").args(["-ncp"]).arg(path))
}

fn set_acl(path: &Path, entry: &str) -> bool {
    output(Command::new("setfacl").args(["-nm", entry]).arg(path))
        .status
        .success()
}

#[test]
fn lists_name_the_same_people_on_both_sides() {
    if !require(&[
        Need::Fuse,
        Need::Root,
        Need::Tool("setfacl"),
        Need::Tool("getfacl"),
    ]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    let (shown, file) = (mount.path().join("f"), source.path().join("f"));
    chown(&shown, Some(0), Some(0)).unwrap();
    assert!(set_acl(&shown, "u:2000:r,g:2000:rw,u:5:rw,m::rw"));
    let inside = acl_of(&file);
    assert!(
        inside.contains("user:1000:r--") && inside.contains("group:1000:rw-"),
        "{inside}"
    );
    assert!(
        inside.contains("user:5:rw-") && !inside.contains("2000"),
        "{inside}"
    );
    assert!(acl_of(&shown).contains("user:2000:r--"));
    as_user(2000, || {
        read(&shown).unwrap();
        // A user's entry comes before those of his groups.
        assert_eq!(make(&shown), Err(Errno::ACCESS));
        copy(mount.path(), "f", "d/c").unwrap();
    });
    as_member(7, 7, &[2000], || make(&shown).unwrap());
    as_member(1000, 7, &[1000], || {
        assert_eq!(read(&shown), Err(Errno::ACCESS))
    });
    assert!(set_acl(&mount.path().join("d"), "d:u:2000:rw,d:m::rwx"));
    as_user(2000, || make(&mount.path().join("d/new")).unwrap());
    assert!(acl_of(&source.path().join("d")).contains("default:user:1000:rw-"));
    assert!(acl_of(&source.path().join("d/new")).contains("user:1000:rw-"));
    assert!(acl_of(&mount.path().join("d/new")).contains("user:2000:rw-"));
}

#[test]
fn a_list_that_names_a_covered_user_gives_nobody_his_rights() {
    if !require(&[
        Need::Fuse,
        Need::Root,
        Need::Tool("setfacl"),
        Need::Tool("getfacl"),
    ]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    let (shown, file) = (mount.path().join("f"), source.path().join("f"));
    assert!(set_acl(&file, "u:2000:rw,u:1:r,m::rw"));
    chown(&shown, Some(0), Some(0)).unwrap();
    let text = acl_of(&shown);
    assert!(text.contains(&format!("user:{STRANGER}:---")), "{text}");
    for id in [2000, 1000, OVERFLOW, STRANGER] {
        as_user(id, || {
            assert_eq!(read(&shown), Err(Errno::ACCESS), "as {id}")
        });
    }
    as_user(1, || read(&shown).map(drop).unwrap());
    // To write the list back would lose him silently.
    assert!(!set_acl(&shown, "u:1:rw"));
    assert!(!set_acl(&shown, "u:1000:rw"));
    assert!(acl_of(&file).contains("user:2000:rw-"));
    run(Command::new("setfacl").arg("-b").arg(&shown));
    assert!(
        !acl_of(&file).contains("2000"),
        "the whole list can be taken away"
    );
}

#[test]
fn capabilities_of_programs_follow_their_root() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=0:100000:1000");
    let (shown, file) = (mount.path().join("f"), source.path().join("f"));
    let mut value = [0_u8; 20];
    (value[3], value[5]) = (2, 4);
    match rustix::fs::setxattr(&file, "security.capability", &value, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    }
    let mut back = [0_u8; 64];
    let length = rustix::fs::getxattr(&shown, "security.capability", &mut back[..]).unwrap();
    assert_eq!((length, back[3]), (24, 3));
    assert_eq!(back[20..24], 100_000_u32.to_le_bytes());
}

#[test]
fn copies_are_made_by_who_the_opener_is_in_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1");
    let covered = source.file("covered", b"secret");
    set_owner(&covered, 2000, 2000);
    set_mode(&covered, 0o600);
    as_user(2000, || {
        copy(mount.path(), "f", "d/mine").unwrap();
        assert_eq!(copy(mount.path(), "covered", "d/x"), Err(Errno::ACCESS));
        let jobs = String::from_utf8(read(&mount.path().join(".copy")).unwrap()).unwrap();
        assert!(jobs.contains("d/mine"), "he sees his jobs: {jobs}");
    });
    as_user(5, || {
        assert_eq!(copy(mount.path(), "f", "d/x"), Err(Errno::ACCESS))
    });
    assert_eq!(owner(&source.path().join("d/mine")), (1000, 1000));
    assert_eq!(owner(&mount.path().join("d/mine")), (2000, 2000));
    assert!(!source.path().join("d/x").exists());
}

/// As for a container: its root, 100000, is root in the source and yet has none of root's rights.
#[test]
fn a_shifted_root_is_no_more_than_an_owner() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=0:100000:65536");
    let at = mount.path();
    set_mode(&source.file("secret", b"x"), 0o600);
    assert_eq!(owner(at), (100_000, 100_000));
    as_user(100_000, || {
        make(&at.join("new")).unwrap();
        read(&at.join("secret")).map(drop).unwrap();
        assert_eq!(read(&at.join("f")), Err(Errno::ACCESS), "of 1000");
        assert_eq!(copy(at, "f", "c"), Err(Errno::ACCESS));
        assert_eq!(make(&at.join("d/x")), Err(Errno::ACCESS));
        copy(at, "secret", "mine").unwrap();
    });
    assert_eq!(owner(&source.path().join("new")), (0, 0));
    assert_eq!(owner(&source.path().join("mine")), (0, 0));
    // The real root's own number is nobody's here, and its power is over what has an owner.
    assert_eq!(make(&at.join("by-root")), Err(Errno::OVERFLOW));
    chmod(&at.join("f"), 0o644).unwrap();
    chown(&at.join("f"), Some(100_000), None).unwrap();
    assert_eq!(owner(&source.path().join("f")), (0, 1000));
    rustix::fs::unlink(at.join("f")).unwrap();
}

#[test]
fn two_users_change_places() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("map=1000:2000:1,map=2000:1000:1");
    set_owner(&source.dir("e"), 2000, 2000);
    as_user(2000, || {
        make(&mount.path().join("d/f")).unwrap();
        assert_eq!(make(&mount.path().join("e/f")), Err(Errno::ACCESS));
    });
    as_user(1000, || make(&mount.path().join("e/f")).unwrap());
    assert_eq!(owner(&source.path().join("d/f")), (1000, 1000));
    assert_eq!(owner(&source.path().join("e/f")), (2000, 2000));
}

#[test]
fn an_ordinary_user_maps_nobody() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), 1000, 1000);
    let mount = Mount::of(source.path()).as_user(1000, 1000);
    let refused = mount
        .clone()
        .opt("map=1000:2000:1")
        .try_start()
        .unwrap_err();
    assert!(refused.contains("exit code 32"), "{refused}");
    assert!(
        refused.contains("option map: only root can make files for other"),
        "{refused}"
    );
    source.file("f", b"");
    let mount = mount.opt("uid=7,gid=8").start();
    as_user(1000, || {
        assert_eq!(owner(&mount.path().join("f")), (7, 8));
        make(&mount.path().join("new")).unwrap();
        assert_eq!(
            chown(&mount.path().join("new"), Some(5), None),
            Err(Errno::PERM)
        );
    });
    assert_eq!(owner(&source.path().join("new")), (1000, 1000));
}

/// A bindfs mount, unmounted on drop.
struct Bindfs(Scratch);

impl Bindfs {
    fn of(source: &Path, option: &str) -> Self {
        let scratch = Scratch::new();
        let point = scratch.dir("mnt");
        let mut command = Command::new("bindfs");
        command.arg(option).arg(source).arg(&point);
        // It leaves a daemon behind, which would keep a pipe open.
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "{command:?}");
        wait_until("bindfs stands", std::time::Duration::from_secs(10), || {
            is_mounted(&point, "fuse")
        });
        Self(scratch)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        detach(&self.path());
    }
}

/// What its users know from bindfs they find here: the same script, the same answers, the same
/// owners in the source.
#[test]
fn as_bindfs_does() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("bindfs")]) {
        return;
    }
    let script = |at: &Path, source: &Path| {
        let mut said = Vec::new();
        for id in [2000, 5, 0] {
            let answers = if id == 0 {
                vec![
                    make(&at.join("d/by-0")),
                    chown(&at.join("f"), Some(2000), Some(7)),
                ]
            } else {
                as_user(id, || {
                    let name = |kind: &str| at.join(format!("d/{kind}-{id}"));
                    vec![
                        make(&name("file")),
                        make_dir(&name("dir")),
                        rustix::fs::symlink("x", name("link")),
                        read(&at.join("f")).map(drop),
                        chmod(&at.join("f"), 0o640),
                        chown(&at.join("f"), Some(1), None),
                    ]
                })
            };
            said.push(answers);
        }
        let owners = |folder: &Path| (owner(folder), listed(folder));
        (
            said,
            [at, &at.join("d"), source, &source.join("d")].map(owners),
        )
    };
    let (ours_source, ours) = world("map=1000:2000:1");
    let theirs_source = Scratch::new();
    set_owner(&theirs_source.dir("d"), 1000, 1000);
    let file = theirs_source.file("f", b"of 1000\n");
    set_owner(&file, 1000, 1000);
    set_mode(&file, 0o600);
    let theirs = Bindfs::of(theirs_source.path(), "--map=1000/2000:@1000/@2000");
    let native = |source: &Scratch| source.path().to_owned();
    assert_eq!(
        script(ours.path(), &native(&ours_source)),
        script(&theirs.path(), &native(&theirs_source))
    );
}
