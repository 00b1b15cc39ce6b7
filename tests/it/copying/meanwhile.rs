//! What others do while a file is copied, and what a file system says only at the end.

use std::time::Instant;

use super::resume::{hidden, recorded};
use super::*;
use crate::support::{FaultySource, Mount, Need, On, require, write_content};

const SIZE: u64 = 4 << 20;

#[test]
fn what_comes_to_stand_there_meanwhile_is_treated_as_what_stood_there_before() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let theirs = b"theirs";
    for (words, stays) in [
        ("-n", Some(Ok(()))),
        ("-u", Some(Ok(()))),
        ("-b", Some(Err(Errno::EXIST))),
        ("-n --resume", Some(Ok(()))),
        ("", None),
    ] {
        let source = FaultySource::new();
        let store = source.store().to_owned();
        write_content(&store.join("f"), 1, SIZE);
        let mount = Mount::of(source.path()).start();
        source.faults().hang(On::Read, Some("f"));
        let copy = telling(mount.path(), &format!("{words} f to"));
        source.faults().await_hanging(On::Read, 1);
        fs::write(mount.path().join("to"), theirs).unwrap();
        source.faults().heal();
        let answer = copy.join().unwrap();
        match stays {
            Some(expected) => {
                assert_eq!(answer, expected, "{words}");
                assert_eq!(read_file(&store.join("to")), theirs, "{words}");
            }
            None => {
                assert_eq!(answer, Ok(()));
                assert_file(&store.join("to"), 1, SIZE);
            }
        }
        assert_eq!(names(&store), ["f", "to"], "{words}");
        assert!(mount.finish().success());
    }
}

#[test]
fn what_is_told_at_close_alone_fails_the_copy() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for words in ["f", "--resume f", "small", "-r tree"] {
        let source = FaultySource::new();
        let store = source.store().to_owned();
        write_content(&store.join("f"), 1, SIZE);
        write_content(&store.join("small"), 1, 100);
        fs::create_dir(store.join("tree")).unwrap();
        write_content(&store.join("tree/one"), 1, 100);
        let mount = Mount::of(source.path()).start();
        let listed = names(&store);
        source.faults().fail(On::Flush, None, Errno::DQUOT);
        assert_eq!(
            tell(mount.path(), &format!("{words} to")),
            Err(Errno::DQUOT),
            "{words}"
        );
        source.faults().heal();
        match words {
            "-r tree" => assert!(names(&store.join("to")).is_empty()),
            _ => assert_eq!(names(&store), listed, "{words}"),
        }
        assert!(mount.finish().success());
    }
}

#[test]
fn a_cancel_while_a_part_is_checked_leaves_the_part() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let size = 24 << 20;
    let source = FaultySource::new();
    let store = source.store().to_owned();
    write_content(&store.join("f"), 1, size);
    let mount = Mount::of(source.path()).start();
    let words = "--resume --reflink=never f to";
    let copy = telling(mount.path(), &format!("--limit=30M {words}"));
    wait_until("ranges are recorded", PATIENCE, || {
        recorded(&store).len() >= 2
    });
    tell(mount.path(), "--cancel all").unwrap();
    assert_eq!(copy.join().unwrap(), Err(Errno::CANCELED));
    let had = recorded(&store);
    let part = hidden(&store, false).unwrap();
    let name = part.file_name().and_then(OsStr::to_str).unwrap();
    source.faults().hang(On::Read, Some(name));
    let copy = telling(mount.path(), words);
    source.faults().await_hanging(On::Read, 1);
    tell(mount.path(), "--cancel all").unwrap();
    assert_eq!(copy.join().unwrap(), Err(Errno::CANCELED));
    source.faults().heal();
    // The one that hung has gone when another may begin.
    let before = moved(&mount);
    let mut answer = tell(mount.path(), words);
    let began = Instant::now();
    while answer == Err(Errno::BUSY) && began.elapsed() < PATIENCE {
        assert_eq!(recorded(&store), had);
        answer = tell(mount.path(), words);
    }
    assert_eq!(answer, Ok(()));
    let had: u64 = had.iter().map(|range| range.end - range.start).sum();
    let moved = moved(&mount) - before;
    assert!(moved <= size - had, "{moved} bytes, {had} were there");
    assert_file(&store.join("to"), 1, size);
    assert_eq!(names(&store), ["f", "to"]);
    assert!(mount.finish().success());
}

#[test]
fn a_copy_whose_file_system_is_silent_too_long_is_answered() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for on in [On::Read, On::Write] {
        let source = FaultySource::new();
        let store = source.store().to_owned();
        write_content(&store.join("f"), 1, SIZE);
        let mount = Mount::of(source.path())
            .opt("source_timeout_write=2")
            .start();
        source.faults().hang(on, None);
        let copy = telling(mount.path(), "--method=map-write f to");
        source.faults().await_hanging(on, 1);
        wait_until("it is answered", PATIENCE, || copy.is_finished());
        assert!(source.faults().hanging(on) > 0);
        assert_eq!(copy.join().unwrap(), Err(Errno::TIMEDOUT), "{on:?}");
        let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
        assert!(list.contains("source_timeout_write"), "{list}");
        source.faults().heal();
        wait_until("nothing is left", PATIENCE, || names(&store) == ["f"]);
        // What works and takes its time is not silent.
        tell(mount.path(), "--limit=1M f slow").unwrap();
        assert_file(&store.join("slow"), 1, SIZE);
        assert!(mount.finish().success());
    }
}
