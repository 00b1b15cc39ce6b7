//! What of a file's attributes its copy has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use corfs::sys::creds::Credentials;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};
use rustix::io::Errno;

use crate::support::{
    Need, OTHER, Scratch, Tmpfs, USER, content, output, require, run, set_mode, set_owner,
    write_file,
};

use super::*;

fn user(uid: u32) -> Credentials {
    Credentials {
        uid,
        gid: uid,
        groups: vec![],
        effective: 0,
    }
}

fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).expect("stat");
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn bits_for_the_owner_go_where_the_owner_does_not() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    for (name, mode, uid, gid) in [
        ("theirs", 0o6755, OTHER, OTHER),
        ("group", 0o6755, USER, OTHER),
        ("own", 0o6755, USER, USER),
        ("plain", 0o640, OTHER, OTHER),
    ] {
        let path = from.join(name);
        write_file(&path, b"text");
        set_owner(&path, uid, gid);
        set_mode(&path, mode);
    }
    set_mode(&from.join("plain"), 0o644);
    let (kept, dropped) = (scratch.path().join("kept"), scratch.dir("dropped"));
    copy(scratch.path(), &archive(), &["from"], "kept").well();
    for name in ["theirs", "group", "own", "plain"] {
        let (source, copied) = (from.join(name), kept.join(name));
        assert_eq!(mode_and_owner(&copied), mode_and_owner(&source), "{name}");
    }
    set_owner(&dropped, USER, USER);
    let done = user(USER).run_as(|| copy(scratch.path(), &archive(), &["from/."], "dropped"));
    done.expect("run_as").well();
    let expected = [
        ("theirs", 0o755),
        ("group", 0o4755),
        ("own", 0o6755),
        ("plain", 0o644),
    ];
    for (name, mode) in expected {
        assert_eq!(
            mode_and_owner(&dropped.join(name)),
            (mode, USER, USER),
            "{name}"
        );
    }
}

#[test]
fn acl_are_the_sources_and_not_those_that_the_directory_gives() {
    if !require(&[Need::Root, Need::Tool("setfacl")]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    write_file(&from.join("with"), b"text");
    write_file(&from.join("without"), b"text");
    write_file(&from.join("large"), &content(1, 0, 200_000));
    for name in ["with", "without", "large"] {
        set_mode(&from.join(name), 0o640);
    }
    fs::create_dir(from.join("folder")).unwrap();
    fs::create_dir(from.join("bare")).unwrap();
    fs::create_dir(scratch.path().join("to")).unwrap();
    let acl = |words: &[&str], path: &Path| {
        run(Command::new("setfacl").args(words).arg(path));
    };
    acl(&["-m", "u:1234:rwx,m::rw"], &from.join("with"));
    acl(&["-d", "-m", "u:77:rx"], &from.join("folder"));
    acl(
        &["-d", "-m", "u:99:rwx,g::rwx,o::rwx"],
        &scratch.path().join("to"),
    );
    let shown = |path: &Path| {
        let names = ["with", "without", "large", "folder", "bare", "."];
        let mut words = Command::new("getfacl");
        words.args(["-n", "-p"]).args(names).current_dir(path);
        String::from_utf8(output(&mut words).stdout).unwrap()
    };
    for to in ["to/new", "to/by-cp"] {
        let path = scratch.path().join(to);
        if to == "to/by-cp" {
            run(Command::new("cp").arg("-a").arg(&from).arg(&path));
        } else {
            copy(scratch.path(), &archive(), &["from"], to).well();
        }
        assert_eq!(shown(&path), shown(&from), "{to}");
    }
}

#[test]
fn xattrs_that_must_be_kept_and_cannot_are_an_error() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.file("file", b"text");
    let values = [
        ("user.key", content(3, 0, 1500)),
        ("trusted.key", content(4, 0, 100)),
    ];
    for (key, value) in &values {
        lsetxattr(&file, *key, value, XattrFlags::empty()).expect(key);
    }
    let only = CopyOptions {
        preserve: Preserve {
            xattr: true,
            ..Preserve::NONE
        },
        ..archive()
    };
    copy(scratch.path(), &only, &["file"], "kept").well();
    for (key, value) in &values {
        let mut found = vec![0; 4096];
        let length = lgetxattr(scratch.path().join("kept"), *key, &mut found[..]).expect(key);
        assert_eq!(found[..length], value[..], "{key}");
    }
    // procfs has no extended attributes to give; ramfs takes none.
    let none = scratch.dir("none");
    run(Command::new("mount")
        .args(["-t", "ramfs", "ramfs"])
        .arg(&none));
    let refused = copy(scratch.path(), &only, &["file"], "none/file");
    let left = fs::read_dir(&none).unwrap().count();
    let lenient = copy(scratch.path(), &archive(), &["file"], "none/file");
    let copied = fs::read(none.join("file"));
    rustix::mount::unmount(&none, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(refused.outcome.unwrap_err().errno, Errno::OPNOTSUPP);
    assert_eq!(left, 0);
    lenient.well();
    assert_eq!(copied.unwrap(), b"text");
}

#[test]
fn who_is_not_root_keeps_the_extended_attributes_of_what_is_read_only() {
    if !require(&[Need::Root, Need::Tool("setfacl")]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    let value = content(5, 0, 300);
    // Many in a new directory have their names at once; one alone, and a large one, at last.
    fs::create_dir(from.join("many")).unwrap();
    let mut files: Vec<_> = (0..10).map(|number| format!("many/f{number}")).collect();
    files.extend(["one".to_owned(), "large".to_owned()]);
    for name in &files {
        let path = from.join(name);
        let size = if name == "large" { 200_000 } else { 10 };
        write_file(&path, &content(6, 0, size));
        set_mode(&path, 0o444);
        // Named before the other: it is not to be set before it, for it takes the right to write.
        run(Command::new("setfacl").args(["-m", "u:1234:r"]).arg(&path));
        lsetxattr(&path, "user.key", &value, XattrFlags::empty()).expect("user.key");
    }
    set_owner(&scratch.dir("to"), USER, USER);
    let only = CopyOptions {
        preserve: Preserve {
            xattr: true,
            ..Preserve::NONE
        },
        ..archive()
    };
    for (options, to) in [(archive(), "to/all"), (only, "to/only")] {
        let done = user(USER).run_as(|| copy(scratch.path(), &options, &["from"], to));
        done.expect("run_as").well();
        for name in &files {
            let path = scratch.path().join(to).join(name);
            let mut found = vec![0; 4096];
            let length = lgetxattr(&path, "user.key", &mut found[..])
                .unwrap_or_else(|errno| panic!("{}: {errno}", path.display()));
            assert_eq!(found[..length], value[..], "{to}/{name}");
            assert_eq!(mode_and_owner(&path), (0o444, USER, USER), "{to}/{name}");
        }
    }
}

#[test]
fn who_may_not_make_a_device_gets_the_rest() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    let mode = Mode::from_raw_mode(0o666);
    let null = rustix::fs::makedev(1, 3);
    mknodat(
        CWD,
        from.join("null"),
        FileType::CharacterDevice,
        mode,
        null,
    )
    .unwrap();
    write_file(&from.join("text"), b"text");
    write_file(&from.join("secret"), b"secret");
    set_mode(&from.join("secret"), 0o600);
    fs::create_dir(from.join("closed")).unwrap();
    set_mode(&from.join("closed"), 0o700);
    let to = scratch.dir("to");
    set_owner(&to, USER, USER);
    let done = user(USER).run_as(|| copy(scratch.path(), &archive(), &["from/."], "to"));
    let done = done.expect("run_as");
    assert_eq!(
        done.failed(),
        [
            ("from/./closed".to_owned(), Errno::ACCESS),
            ("from/./null".to_owned(), Errno::PERM),
            ("from/./secret".to_owned(), Errno::ACCESS),
        ]
    );
    assert!(done.outcome.is_err());
    assert_eq!(fs::read(to.join("text")).unwrap(), b"text");
}

#[test]
fn a_tree_on_a_read_only_or_full_file_system_says_so() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    for number in 0..100 {
        write_file(
            &from.join(format!("f{number}")),
            &content(number, 0, 50_000),
        );
    }
    let point = scratch.dir("to");
    let disk = Tmpfs::at(&point, 1 << 20);
    let full = copy(scratch.path(), &archive(), &["from"], "to");
    assert_eq!(full.outcome.unwrap_err().errno, Errno::NOSPC);
    assert!(!full.failures.is_empty());
    let copied = fs::read_dir(point.join("from")).unwrap();
    let mut whole = 0;
    for entry in copied {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let number = name.strip_prefix('f').and_then(|n| n.parse().ok());
        let number = number.unwrap_or_else(|| panic!("{name} was left"));
        assert_eq!(fs::read(entry.path()).unwrap(), content(number, 0, 50_000));
        whole += 1;
    }
    assert!(whole > 0 && whole < 100, "{whole} fit in");
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&point));
    let refused = copy(scratch.path(), &archive(), &["from"], "to/x");
    assert_eq!(refused.outcome.unwrap_err().errno, Errno::ROFS);
    drop(disk);
}
