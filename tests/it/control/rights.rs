//! For whom `.copy` acts: its opener, with its opener's rights and no more.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, become_user, content, require, run, set_mode,
    set_owner, sh,
};

use super::*;

/// A mount that others may enter, of a source in which an ordinary user owns the directory `own`
/// and may read `f`.
fn shared_world() -> (Scratch, Mount) {
    let (source, mount) = world("allow_other");
    set_owner(&source.dir("own"), USER, OTHER);
    (source, mount)
}

#[test]
fn it_acts_with_its_openers_rights() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let secret = source.file("secret", b"secret");
    set_mode(&secret, 0o600);
    let before = names(source.path());
    apart(Some((USER, OTHER)), || {
        let at = mount.path();
        assert_eq!(
            copy(at, "secret", "own/x"),
            Err(Errno::ACCESS),
            "reads what it must not"
        );
        assert_eq!(
            copy(at, "f", "x"),
            Err(Errno::ACCESS),
            "writes where it must not"
        );
        assert_eq!(copy(at, "f", "d/x"), Err(Errno::ACCESS));
        copy(at, "f", "own").unwrap();
        copy(&at.join("own"), "f", "g").unwrap();
    });
    assert_eq!(names(source.path()), before);
    let copied = fs::metadata(source.path().join("own/f")).unwrap();
    assert_eq!((copied.uid(), copied.gid()), (USER, OTHER));
    assert_eq!(names(&source.path().join("own")), ["f", "g"]);
    // Root's copy is root's, wherever it lies.
    copy(mount.path(), "secret", "own/by-root").unwrap();
    assert_eq!(
        fs::metadata(source.path().join("own/by-root"))
            .unwrap()
            .uid(),
        0
    );
}

#[test]
fn supplementary_groups_count() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let path = source.file("grouped", &content(1, 0, 100_000));
    set_owner(&path, 0, 4242);
    set_mode(&path, 0o640);
    apart(Some((USER, OTHER)), || {
        assert_eq!(copy(mount.path(), "grouped", "own/x"), Err(Errno::ACCESS));
    });
    apart(None, || {
        become_user(USER, OTHER, &[77, 4242]);
        copy(mount.path(), "grouped", "own/x").unwrap();
    });
    assert_copied(&source.path().join("own/x"));
}

/// Without a number for its caller the daemon cannot know the groups: none is the safe answer.
#[test]
fn a_caller_from_outside_the_process_namespace_has_no_other_groups() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("grouped", &content(1, 0, 100_000));
    set_owner(&path, 0, 4242);
    set_mode(&path, 0o640);
    source.file("f", &content(1, 0, 100_000));
    set_owner(&source.dir("own"), USER, OTHER);
    let mount = Mount::of(source.path())
        .opt("allow_other")
        .in_a_namespace()
        .start();
    apart(None, || {
        become_user(USER, OTHER, &[4242]);
        assert_eq!(copy(mount.path(), "grouped", "own/x"), Err(Errno::ACCESS));
        copy(mount.path(), "f", "own/g").unwrap();
    });
    assert_copied(&source.path().join("own/g"));
    // Nor is uid 0 without a number more than an owner of files.
    assert_eq!(copy(mount.path(), "f", "own/by-root"), Err(Errno::ACCESS));
    copy(mount.path(), "grouped", "by-root").unwrap();
}

#[test]
fn what_is_new_has_its_openers_umask() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let tree = source.path().join("tree");
    fs::create_dir_all(tree.join("in")).unwrap();
    set_mode(&source.file("tree/in/f", b"x"), 0o666);
    for folder in [&tree, &tree.join("in")] {
        set_mode(folder, 0o777);
    }
    for (umask, folders, files) in [("077", 0o700, 0o600), ("002", 0o775, 0o664)] {
        let script = format!("umask {umask}; echo -r --no-preserve=mode tree {umask} > .copy");
        run(&mut sh(mount.path(), &script));
        let mode = |name: &str| {
            let path = source.path().join(umask).join(name);
            fs::metadata(path).unwrap().mode() & 0o7777
        };
        let modes = ["", "in", "in/f"].map(mode);
        assert_eq!(modes, [folders, folders, files], "{umask}: {modes:?}");
    }
}

#[test]
fn capabilities_count() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let (source, mount) = shared_world();
    let path = source.file("theirs", b"x");
    set_owner(&path, USER, OTHER);
    set_mode(&path, 0o600);
    copy(mount.path(), "theirs", "x").unwrap();
    fs::remove_file(source.path().join("x")).unwrap();
    apart(None, || {
        let sets = capabilities(None).unwrap();
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            ..sets
        };
        set_capabilities(None, none).unwrap();
        assert_eq!(
            copy(mount.path(), "theirs", "x"),
            Err(Errno::ACCESS),
            "uid 0 alone is no right"
        );
    });
    assert!(!source.path().join("x").exists());
}

#[test]
fn a_descriptor_in_other_hands_is_refused() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let fd = open_control(mount.path()).unwrap();
    apart(Some((USER, OTHER)), || {
        assert_eq!(rustix::io::write(&fd, b"f own/x\n"), Err(Errno::PERM));
    });
    let fd = apart(Some((USER, OTHER)), || open_control(mount.path()).unwrap());
    assert_eq!(rustix::io::write(&fd, b"f own/x\n"), Err(Errno::PERM));
    drop(fd);
    assert_eq!(names(&source.path().join("own")), [""; 0]);
}

#[test]
fn a_setuid_program_gains_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let scratch = Scratch::new();
    let program = scratch.path().join("cat");
    run(Command::new("cp").arg("/bin/cat").arg(&program));
    set_mode(&program, 0o4755);
    let secret = source.file("secret", b"secret");
    set_mode(&secret, 0o600);
    let line = scratch.file("line", b"secret own/x\n");
    set_mode(&line, 0o644);
    let control = apart(Some((USER, OTHER)), || open_control(mount.path()).unwrap());
    let said = Command::new(&program)
        .arg(&line)
        .uid(USER)
        .gid(OTHER)
        .stdout(File::from(control))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!said.status.success(), "it wrote as root");
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(words.contains("Operation not permitted"), "{words}");
    assert_eq!(names(&source.path().join("own")), [""; 0]);
}

#[test]
fn a_mount_of_an_ordinary_user() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    set_mode(&source.file("secret", b"secret"), 0o600);
    set_owner(&source.dir("own"), USER, OTHER);
    let mount = Mount::of(source.path()).as_user(USER, OTHER).start();
    apart(Some((USER, OTHER)), || {
        let at = mount.path();
        copy(at, "f", "own/g").unwrap();
        assert_eq!(copy(at, "secret", "own/x"), Err(Errno::ACCESS));
        assert_eq!(copy(at, "f", "x"), Err(Errno::ACCESS));
        assert!(jobs(at).contains("own/g"));
    });
    assert_copied(&source.path().join("own/g"));
    assert_eq!(
        fs::metadata(source.path().join("own/g")).unwrap().uid(),
        USER
    );
}
