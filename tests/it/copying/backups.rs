//! Backups: nothing of them is seen before the copy is complete, and nothing when it fails.

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use super::full::fill;
use super::*;
use crate::support::{
    FaultySource, Mount, Need, On, Scratch, Tmpfs, USER, apart, require, set_mode, set_owner,
    write_content,
};

const SIZE: u64 = 8 << 20;
const KINDS: [&str; 3] = ["--backup=simple", "--backup=numbered", "--backup"];
const STANDING: [(&str, &str); 3] = [("to", "old"), ("to.~1~", "older"), ("to~", "older still")];

/// A file to be copied, and what stands where it goes, with its backups.
fn furnish(at: &Path) {
    write_content(&at.join("f"), 1, SIZE);
    for (name, text) in STANDING {
        fs::write(at.join(name), text).unwrap();
    }
}

#[track_caller]
fn assert_as_before(at: &Path, what: &str) {
    for (name, text) in STANDING {
        let found = fs::read_to_string(at.join(name));
        assert_eq!(found.ok().as_deref(), Some(text), "{name}, {what}");
        assert_eq!(
            fs::metadata(at.join(name)).unwrap().nlink(),
            1,
            "{name}, {what}"
        );
    }
    let mut names = names(at);
    names.retain(|name| name != "filler");
    assert_eq!(names, ["f", "to", "to.~1~", "to~"], "{what}");
}

#[test]
fn a_copy_that_fails_or_is_cancelled_leaves_the_file_and_its_backups_as_they_were() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let disk = Tmpfs::new(3 * SIZE);
    let at = disk.path();
    furnish(at);
    let mount = Mount::of(at).start();
    fill(at, SIZE / 2);
    for kind in KINDS {
        let answer = tell(mount.path(), &format!("{kind} f to"));
        assert_eq!(answer, Err(Errno::NOSPC), "{kind}");
        assert_as_before(at, kind);
    }
    fs::remove_file(at.join("filler")).unwrap();
    for kind in KINDS {
        let answer = during(&mount, &format!("{kind} --limit=4M f to"), || {
            assert_as_before(at, &format!("{kind}, under way"));
            tell(mount.path(), "--cancel all").unwrap();
        });
        assert_eq!(answer, Err(Errno::CANCELED), "{kind}");
        assert_as_before(at, kind);
    }
}

#[test]
fn a_killed_copy_leaves_the_file_and_its_backups_as_they_were() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    furnish(at);
    for kind in KINDS {
        let mut mount = Mount::of(at).start();
        let copy = telling(mount.path(), &format!("{kind} --limit=4M f to"));
        wait_until("bytes are moved", PATIENCE, || moved(&mount) > 0);
        mount.signal_server(Signal::KILL);
        assert!(copy.join().unwrap().is_err());
        assert!(mount.wait(PATIENCE).is_some());
        assert_as_before(at, kind);
    }
}

#[test]
fn a_file_that_may_have_no_second_name_stands_there_until_the_copy_is_complete() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    furnish(at);
    set_mode(at, 0o755);
    set_owner(at, USER, USER);
    set_mode(&at.join("f"), 0o644);
    // Nobody but its owner may give it names (fs.protected_hardlinks).
    set_mode(&at.join("to"), 0o200);
    let mount = Mount::of(at).opt("allow_other").start();
    let told = |words: &str| {
        let (dir, line) = (mount.path().to_owned(), format!("{words} f to"));
        std::thread::spawn(move || apart(Some((USER, USER)), || tell(&dir, &line)))
    };
    let copy = told("--backup=simple --limit=4M");
    wait_until("bytes are moved", PATIENCE, || moved(&mount) > 0);
    assert_as_before(at, "under way");
    tell(mount.path(), "--cancel all").unwrap();
    assert_eq!(copy.join().unwrap(), Err(Errno::CANCELED));
    assert_as_before(at, "cancelled");
    told("--backup=simple").join().unwrap().unwrap();
    assert_file(&at.join("to"), 1, SIZE);
    assert_eq!(read_file(&at.join("to~")), b"old");
    assert_eq!(names(at), ["f", "to", "to.~1~", "to~"]);
}

#[test]
fn a_backup_is_what_stood_there_whatever_was_the_backup_before() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let kinds = [
        ("--backup=simple", "to~", "to.~1~"),
        ("--backup=numbered", "to.~2~", "to~"),
        ("--backup", "to.~2~", "to~"),
        ("--resume --backup=simple", "to~", "to.~1~"),
    ];
    for (kind, made, other) in kinds {
        let source = Scratch::new();
        let at = source.path();
        furnish(at);
        let mount = Mount::of(at).start();
        tell(mount.path(), &format!("{kind} f to")).unwrap();
        assert_file(&at.join("to"), 1, SIZE);
        assert_eq!(read_file(&at.join(made)), b"old", "{kind}");
        let stays = STANDING.iter().find(|(name, _)| *name == other).unwrap();
        assert_eq!(read_file(&at.join(other)), stays.1.as_bytes(), "{kind}");
        assert!(
            !names(at).iter().any(|name| name.starts_with('.')),
            "{kind}"
        );
    }
}

#[test]
fn what_came_to_stand_there_meanwhile_changes_no_backup() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store().to_owned();
    furnish(&store);
    let mount = Mount::of(source.path()).start();
    source.faults().hang(On::Read, Some("f"));
    let copy = telling(mount.path(), "--backup=simple f to");
    source.faults().await_hanging(On::Read, 1);
    let beneath = source.path();
    fs::write(beneath.join("theirs"), "theirs").unwrap();
    fs::rename(beneath.join("theirs"), beneath.join("to")).unwrap();
    source.faults().heal();
    assert_eq!(copy.join().unwrap(), Err(Errno::EXIST));
    assert_eq!(read_file(&store.join("to")), b"theirs");
    assert_eq!(read_file(&store.join("to~")), b"older still");
    assert_eq!(names(&store), ["f", "to", "to.~1~", "to~"]);
    assert!(mount.finish().success());
}
