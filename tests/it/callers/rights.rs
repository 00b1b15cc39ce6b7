//! Rights as they are natively.

use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::deeds::{ACTORS, FOLDERS, Twins, build, facts, user};
use super::*;
use crate::support::{
    Mount, MountBuilder, Need, Scratch, output, require, set_mode, set_owner, tool,
};

#[test]
fn deeds_end_as_they_do_natively() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (native, mirrored) = (Scratch::new(), Scratch::new());
    let mount = Mount::of(mirrored.path())
        .opt("allow_other,suid,dev")
        .start();
    let twins = Twins {
        shown: native.path(),
        source: native.path(),
        shown_by_corfs: mount.path(),
        source_of_corfs: mirrored.path(),
        nobody: &[],
    };
    twins.compare(ACTORS, 20_000);
}

/// The kernel's FUSE leaves a set-group-id bit to a file that its group may not execute
/// (fs/fuse/dir.c, fuse_setattr); the write itself, made as the stranger, takes it in the source.
#[test]
fn a_setgid_bit_without_execution_goes_with_a_strangers_write() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other").start();
    for (bits, left) in [(0o2666, 0o666), (0o2676, 0o676)] {
        for root in [source.path(), mount.path()] {
            let path = source.file("f", b"x");
            set_owner(&path, 1000, 1000);
            set_mode(&path, bits);
            as_user(1001, || make(&root.join("f")).unwrap());
            let found = rustix::fs::stat(&path).unwrap().st_mode & 0o7777;
            assert_eq!(found, left, "{bits:o} in {}", root.display());
            // Nor is it a reason to refuse a change of owner that changes nothing.
            set_mode(&path, 0o2666);
            let changed = as_user(1001, || chown(&root.join("f"), None, None));
            assert_eq!(changed.is_ok(), root == mount.path());
        }
    }
}

/// Natively it goes with what strangers to the file's group do. Whoever writes through the mount
/// does so as himself but without his groups. Nobody reads anything from that bit.
#[test]
fn a_setgid_bit_without_execution_goes_with_the_write_of_a_member_too() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other").start();
    let left = |root: &Path, group: &'static [u32], deed: fn(&Path)| {
        let path = source.file("f", b"x");
        set_owner(&path, 1000, 1000);
        set_mode(&path, 0o2666);
        user(1001, 1001, group).does(0, || deed(&root.join("f")));
        rustix::fs::stat(&path).unwrap().st_mode & 0o7777
    };
    let write: fn(&Path) = |path| make(path).unwrap();
    let truncate: fn(&Path) = |path| truncated(path);
    for (group, deed, natively, here) in [
        (&[1000][..], write, 0o2666, 0o666),
        (&[], write, 0o666, 0o666),
        (&[1000], truncate, 0o2666, 0o2666),
        (&[], truncate, 0o666, 0o666),
    ] {
        assert_eq!(left(source.path(), group, deed), natively, "{group:?}");
        assert_eq!(left(mount.path(), group, deed), here, "{group:?}");
    }
}

/// The file was opened by root, who would keep the bits, and is written by somebody else.
#[test]
fn set_ids_go_with_the_write_of_who_was_lent_roots_descriptor() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other,suid").start();
    for root in [source.path(), mount.path()] {
        let path = source.file("f", b"x");
        set_owner(&path, 1000, 1000);
        set_mode(&path, 0o6777);
        let look = || rustix::fs::stat(root.join("f")).unwrap().st_mode & 0o7777;
        assert_eq!(look(), 0o6777);
        let file = std::fs::File::options()
            .write(true)
            .open(root.join("f"))
            .unwrap();
        rustix::io::pwrite(&file, b"root", 0).unwrap();
        assert_eq!(look(), 0o6777, "root keeps them");
        as_user(1001, || rustix::io::pwrite(&file, b"else", 0).unwrap());
        assert_eq!(look(), 0o777, "{}", root.display());
        assert_eq!(rustix::fs::stat(&path).unwrap().st_mode & 0o7777, 0o777);
    }
}

fn truncated(path: &Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is a string that ends in a NUL and outlives the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), 0) }, 0);
}

/// The same script in a user namespace of its own, whose root has no power outside, and with
/// capabilities dropped; what it says and what it leaves.
#[test]
fn other_namespaces_and_dropped_capabilities_gain_nothing() {
    if !require(&[
        Need::Fuse,
        Need::Root,
        Need::Tool("unshare"),
        Need::Tool("setpriv"),
    ]) {
        return;
    }
    const SCRIPT: &str = r#"
        try() { "$@" 2>/dev/null >&2; echo "$* = $?"; }
        for d in plain shared setgid sticky list setgid-list strangers closed anyones; do
            try touch $d/new; try mkdir $d/sub; try mkfifo $d/fifo; try ln -s n0 $d/link
            try mknod $d/null c 1 3
            try chown 1000 $d/new; try chown 1 $d/new; try chgrp 300 $d/new; try chmod 2755 $d/new
            try ln $d/n0 $d/hard; try mv $d/n1 $d/moved; try rm -f $d/n0
            try setfattr -n user.x -v 1 $d/new; try setfattr -n trusted.x -v 1 $d/new
            try setfattr -n security.x -v 1 $d/new; try cat $d/moved; try setfacl -m u:5:rw $d/new
        done"#;
    let setpriv = tool("setpriv").unwrap();
    let setpriv = setpriv.to_str().unwrap();
    let drop_all: &[&str] = &[setpriv, "--bounding-set", "-all"];
    let drop_some: &[&str] = &[
        setpriv,
        "--bounding-set",
        "-chown,-fsetid,-mknod,-dac_override",
    ];
    let ordinary: &[&str] = &[
        setpriv,
        "--reuid=1000",
        "--regid=1000",
        "--groups=300",
        "unshare",
    ];
    let unmapped = [ordinary, &["-U"]].concat();
    let as_root = [ordinary, &["-U", "-r"]].concat();
    let of_root: &[&str] = &["unshare", "-U", "-r"];
    let nobodys: &[&str] = &["unshare", "-U"];
    for words in [drop_all, drop_some, &unmapped, &as_root, of_root, nobodys] {
        let (native, mirrored) = (Scratch::new(), Scratch::new());
        build(native.path());
        build(mirrored.path());
        let mount = Mount::of(mirrored.path())
            .opt("allow_other,dev,suid")
            .start();
        let said = |root: &Path| {
            let mut command = Command::new(words[0]);
            command
                .args(&words[1..])
                .args(["sh", "-c", SCRIPT])
                .current_dir(root);
            String::from_utf8(output(&mut command).stdout).unwrap()
        };
        let expected = said(native.path());
        assert!(expected.lines().count() > 100, "{words:?}: {expected}");
        assert_eq!(said(mount.path()), expected, "{words:?}");
        let names = "n0 n1 new sub fifo link null hard moved".split(' ');
        for name in names.flat_map(|name| FOLDERS.map(|folder| Path::new(folder).join(name))) {
            let expected = facts(&native.path().join(&name));
            assert_eq!(
                facts(&mirrored.path().join(&name)),
                expected,
                "{words:?} {name:?}"
            );
        }
    }
}

/// An ordinary user's mount that others may enter, where the machine allows that.
fn for_all(mount: MountBuilder) -> Option<Mount> {
    match mount.opt("allow_other,entry_timeout=0").try_start() {
        Ok(mount) => Some(mount),
        Err(words) => {
            assert!(words.contains("user_allow_other"), "{words}");
            let all = std::env::var_os("CORFS_REQUIRE_ALL");
            assert!(all.is_none_or(|v| v != "1"), "{words}");
            eprintln!("SKIP: no user_allow_other in /etc/fuse.conf");
            None
        }
    }
}

/// Who has another group for the moment (sg, newgrp) gets that group's files also from a daemon
/// that may not become him, or none.
#[test]
fn an_ordinary_users_daemon_gives_the_callers_group() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), 1000, 1000);
    let handing = source.dir("handing");
    set_owner(&handing, 1000, 200);
    set_mode(&handing, 0o2775);
    // Without allow_other the kernel lets nobody in who has another group.
    let mount = Mount::of(source.path()).as_member(1000, 1000, &[300]);
    let Some(mount) = for_all(mount) else { return };
    let at = mount.path();
    let make_all = |folder: &str| {
        let fifo = at.join(folder).join("fifo");
        [
            make(&at.join(folder).join("file")),
            make_dir(&at.join(folder).join("dir")),
            rustix::fs::symlink("x", at.join(folder).join("link")),
            rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0),
        ]
    };
    as_member(1000, 300, &[], || {
        assert_eq!(make_all(""), [Ok(()); 4]);
        assert_eq!(make_all("handing"), [Ok(()); 4]);
    });
    for name in ["file", "dir", "link", "fifo"] {
        assert_eq!(owner(&source.path().join(name)), (1000, 300), "{name}");
        assert_eq!(owner(&handing.join(name)), (1000, 200), "{name}");
        std::fs::rename(
            source.path().join(name),
            handing.join(format!("old-{name}")),
        )
        .unwrap();
    }
    as_member(1000, 301, &[], || {
        assert_eq!(
            make_all(""),
            [Err(Errno::PERM); 4],
            "the daemon is not in that group"
        );
    });
    assert_eq!(
        std::fs::read_dir(source.path()).unwrap().count(),
        1,
        "nothing was made"
    );
    as_user(1000, || assert_eq!(make_all(""), [Ok(()); 4]));
    assert_eq!(owner(&source.path().join("dir")), (1000, 1000));
}

/// An ordinary user's daemon acts for that user alone, and never as itself for another.
#[test]
fn an_ordinary_users_daemon_acts_for_nobody_else() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_mode(source.path(), 0o777);
    set_owner(&source.dir("d"), 1000, 1000);
    let mount = Mount::of(source.path()).as_user(1000, 1000);
    let Some(mount) = for_all(mount) else { return };
    let at = mount.path();
    as_user(1000, || make(&at.join("mine")).unwrap());
    for id in [1001, 0] {
        let deeds = || {
            assert_eq!(make(&at.join("new")), Err(Errno::PERM), "as {id}");
            assert_eq!(make_dir(&at.join("dir")), Err(Errno::PERM), "as {id}");
            assert_eq!(rustix::fs::symlink("x", at.join("link")), Err(Errno::PERM));
            let fifo = rustix::fs::mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::RWXU, 0);
            assert_eq!(fifo, Err(Errno::PERM));
            assert_eq!(copy(at, "mine", "copied"), Err(Errno::PERM));
        };
        if id == 0 {
            deeds();
        } else {
            as_user(id, deeds);
        }
    }
    assert_eq!(
        chown(&at.join("mine"), Some(1001), None),
        Err(Errno::PERM),
        "as root"
    );
    let names = std::fs::read_dir(source.path()).unwrap().count();
    assert_eq!(names, 2, "mine and d");
    assert_eq!(owner(&source.path().join("mine")), (1000, 1000));
}
