use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

const NAMES: Local = Local { umask: 0o022 };

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// A folder with a file `f`, a directory `d`, and links to both and to nothing.
fn world() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    fs::write(path.join("f"), "text").unwrap();
    fs::create_dir(path.join("d")).unwrap();
    for (name, to) in [
        ("to-f", "f"),
        ("to-d", "d"),
        ("to-none", "none"),
        ("loop", "loop"),
    ] {
        symlink(to, path.join(name)).unwrap();
    }
    symlink(path.join("d"), path.join("absolute")).unwrap();
    (folder, path)
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[track_caller]
fn errno<T>(answer: Result<T>) -> Errno {
    match answer {
        Ok(_) => panic!("an error was expected"),
        Err(fail) => fail.errno,
    }
}

/// The inode of the directory, and the name, of a destination that is no directory.
#[track_caller]
fn named(path: &Path, follow: bool) -> (u64, OsString, bool, bool) {
    match NAMES.destination(&bytes(path), follow).unwrap() {
        Destination::Name {
            target,
            only_directory,
        } => {
            let directory = fstat(&target.directory).unwrap().st_ino;
            let there = target.existing.is_some();
            (directory, target.name, there, only_directory)
        }
        Destination::Directory(_) => panic!("a directory"),
    }
}

#[track_caller]
fn directory(path: &Path) -> u64 {
    match NAMES.destination(&bytes(path), true).unwrap() {
        Destination::Directory(folder) => fstat(&folder).unwrap().st_ino,
        Destination::Name { .. } => panic!("a name"),
    }
}

#[test]
fn a_source_is_what_its_name_says_or_where_a_link_leads() {
    let (_folder, path) = world();
    let find = |name: &str, follow| NAMES.source(&bytes(&path.join(name)), follow).unwrap();
    for (name, follow, wanted, called) in [
        ("f", false, "f", "f"),
        ("to-f", true, "f", "to-f"),
        ("to-f", false, "to-f", "to-f"),
        ("to-d/", false, "d", "to-d"),
        ("d/..", false, ".", ""),
        ("d/.", false, "d", ""),
        ("absolute", true, "d", "absolute"),
    ] {
        let found = find(name, follow);
        assert_eq!(found.stat.st_ino, ino(&path.join(wanted)), "{name}");
        assert_eq!(found.name, called, "{name}");
    }
    let missing = |name: &str| errno(NAMES.source(&bytes(&path.join(name)), true));
    assert_eq!(missing("none"), Errno::NOENT);
    assert_eq!(missing("to-none"), Errno::NOENT);
    assert_eq!(missing("loop"), Errno::LOOP);
    assert_eq!(missing("f/x"), Errno::NOTDIR);
    assert_eq!(missing(&"n".repeat(256)), Errno::NAMETOOLONG);
    assert_eq!(errno(NAMES.source(b"", true)), Errno::NOENT);
    assert_eq!(NAMES.source(b"/", true).unwrap().name, "");
}

#[test]
fn a_destination_is_a_directory_or_a_name_in_one() {
    let (_folder, path) = world();
    let (here, below) = (ino(&path), ino(&path.join("d")));
    for name in ["d", "d/", "d/.", "to-d", "to-d/", "absolute"] {
        assert_eq!(directory(&path.join(name)), below, "{name}");
    }
    assert_eq!(directory(&path.join("d/..")), here);
    let there = |name: &str, is: bool| (here, OsString::from(name), is, false);
    assert_eq!(named(&path.join("f"), true), there("f", true));
    assert_eq!(named(&path.join("new"), true), there("new", false));
    assert_eq!(named(&path.join("to-f"), true), there("f", true));
    assert_eq!(named(&path.join("to-f"), false), there("to-f", true));
    assert_eq!(named(&path.join("to-none"), false), there("to-none", true));
    let folder = (here, OsString::from("new"), false, true);
    assert_eq!(named(&path.join("new/"), true), folder);
}

#[test]
fn a_destination_that_can_not_be_is_refused() {
    let (_folder, path) = world();
    let refused = |name: &str| errno(NAMES.destination(&bytes(&path.join(name)), true));
    assert_eq!(refused("none/new"), Errno::NOENT);
    assert_eq!(refused("f/new"), Errno::NOTDIR);
    assert_eq!(refused("none/."), Errno::NOENT);
    assert_eq!(refused("to-none"), Errno::NOENT);
    assert_eq!(refused("loop"), Errno::LOOP);
    assert_eq!(errno(NAMES.destination(b"", true)), Errno::NOENT);
}

#[test]
fn a_link_of_proc_to_what_has_no_name_is_refused() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let name = super::super::resolve::proc_name(std::os::fd::AsFd::as_fd(&reader));
    let answer = NAMES.destination(name.as_bytes(), true);
    assert_eq!(errno(answer), Errno::INVAL);
}
