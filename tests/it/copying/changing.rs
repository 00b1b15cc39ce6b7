//! The source, or the destination's directory, changes while a file is copied.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::*;
use crate::support::{
    FaultySource, Mount, Need, Scratch, Tmpfs, require, run, sbin, write_content,
};

const SIZE: u64 = 24 << 20;
/// Slow enough for something to happen meanwhile.
const SLOWLY: &str = "--reflink=never --chunk=1M --limit=40M";

fn world() -> (Scratch, Mount) {
    let source = Scratch::new();
    write_content(&source.path().join("f"), 1, SIZE);
    source.file("to", b"old");
    let mount = Mount::of(source.path()).start();
    (source, mount)
}

/// Lets something happen to the source once; the copy is then of the state after it.
fn once(happens: impl Fn(&Path), size: u64) {
    let (source, mount) = world();
    let at = source.path();
    let line = format!("{SLOWLY} f to");
    assert_eq!(during(&mount, &line, || happens(at)), Ok(()));
    assert!(read_file(&at.join("to")) == read_file(&at.join("f")));
    assert_eq!(read_file(&at.join("to")).len() as u64, size);
    assert_eq!(names(at), ["f", "to"]);
}

fn opened(at: &Path) -> File {
    File::options().write(true).open(at.join("f")).unwrap()
}

#[test]
fn a_source_that_changes_once_is_copied_as_it_is_then() {
    if !require(&[Need::Fuse]) {
        return;
    }
    once(|at| opened(at).set_len(SIZE / 3).unwrap(), SIZE / 3);
    once(
        |at| opened(at).write_all_at(b"more", SIZE).unwrap(),
        SIZE + 4,
    );
    once(|at| opened(at).write_all_at(b"other", 100).unwrap(), SIZE);
}

#[test]
fn a_source_that_is_unlinked_or_replaced_is_copied_as_it_was_opened() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for replace in [false, true] {
        let (source, mount) = world();
        let at = source.path();
        let answer = during(&mount, &format!("{SLOWLY} f to"), || {
            if replace {
                write_content(&at.join("g"), 2, SIZE);
                fs::rename(at.join("g"), at.join("f")).unwrap();
            } else {
                fs::remove_file(at.join("f")).unwrap();
            }
        });
        assert_eq!(answer, Ok(()));
        assert_file(&at.join("to"), 1, SIZE);
    }
}

#[test]
fn a_source_that_changes_all_the_time_is_busy_and_nothing_is_left() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for options in ["", "--resume", "--verify"] {
        let (source, mount) = world();
        let file = opened(source.path());
        let line = format!("{options} {SLOWLY} f to");
        let copy = telling(mount.path(), &line);
        let mut round = 0u64;
        while !copy.is_finished() {
            file.write_all_at(&round.to_le_bytes(), round % SIZE)
                .unwrap();
            round += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(copy.join().unwrap(), Err(Errno::BUSY), "{options}");
        let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
        assert!(list.contains("changed while copying"), "{list}");
        assert_eq!(read_file(&source.path().join("to")), b"old");
        assert_eq!(names(source.path()), ["f", "to"], "{options}");
    }
}

#[test]
fn a_destination_directory_that_is_removed_is_an_error() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world();
    let folder = source.dir("d");
    let answer = during(&mount, &format!("{SLOWLY} f d/to"), || {
        fs::remove_dir(&folder).unwrap();
    });
    assert_eq!(answer, Err(Errno::NOENT));
    assert_eq!(names(source.path()), ["f", "to"]);
}

#[test]
fn a_source_that_is_read_only_takes_no_copy() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let disk = Tmpfs::new(8 << 20);
    fs::write(disk.path().join("f"), "text").unwrap();
    let remount = ["-o", "remount,ro"];
    run(Command::new(sbin("mount")).args(remount).arg(disk.path()));
    let mount = Mount::of(disk.path()).start();
    for options in ["", "--resume", "--inplace"] {
        let answer = tell(mount.path(), &format!("{options} f to"));
        assert_eq!(answer, Err(Errno::ROFS), "{options}");
    }
    assert_eq!(names(disk.path()), ["f"]);
}

#[test]
fn a_source_that_can_not_be_read_from_somewhere_is_an_error() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store();
    let methods = ["map-write", "map-map", "read-write", "copy-range"];
    for (number, method) in methods.into_iter().enumerate() {
        // Each of its own, whose pages nobody has.
        let name = format!("f{number}");
        write_content(&store.join(&name), 1, 8 << 20);
        fs::write(store.join("to"), "old").unwrap();
        let mount = Mount::of(source.path()).start();
        source.faults().break_from(5 << 20, Errno::IO);
        let listed = names(store);
        let answer = tell(mount.path(), &format!("--method={method} {name} to"));
        assert_eq!(answer, Err(Errno::IO), "{method}");
        assert_eq!(read_file(&store.join("to")), b"old");
        assert_eq!(names(store), listed);
        source.faults().heal();
        tell(mount.path(), &format!("--method={method} {name} to")).unwrap();
        assert_file(&store.join("to"), 1, 8 << 20);
    }
}
