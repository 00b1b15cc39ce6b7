//! `--resume`: the daemon is killed, and the next one goes on.

use std::ops::Range;
use std::path::PathBuf;

use rustix::process::Signal;

use super::*;
use crate::support::{Dice, Mount, Need, Scratch, USER, require, set_mode, soak, write_content};

const SIZE: u64 = (24 << 20) + 12_345;
/// Before its records, and each of these (see `copy::engine::journal`).
const HEADER: usize = 112;
const RECORD: usize = 32;

pub(super) fn hidden(dir: &Path, journal: bool) -> Option<PathBuf> {
    let name = names(dir)
        .into_iter()
        .find(|name| name.starts_with(".corfs-part-") && name.ends_with(".journal") == journal)?;
    Some(dir.join(name))
}

/// The ranges that a journal has.
pub(super) fn recorded(dir: &Path) -> Vec<Range<u64>> {
    // It may go between the two.
    let bytes = hidden(dir, true).and_then(|path| fs::read(path).ok());
    ranges_of(&bytes.unwrap_or_default())
}

fn ranges_of(journal: &[u8]) -> Vec<Range<u64>> {
    let records = journal.get(HEADER..).unwrap_or_default();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    records
        .chunks_exact(RECORD)
        .map(|record| number(record)..number(&record[8..]))
        .collect()
}

fn bytes_in(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Starts a resumed copy, and kills the server when so many ranges are recorded.
fn killed_after(source: &Path, records: usize) {
    let mut mount = Mount::of(source).start();
    let copy = telling(mount.path(), "--resume --reflink=never --limit=100M f to");
    wait_until("ranges are recorded", PATIENCE, || {
        recorded(source).len() >= records || copy.is_finished()
    });
    mount.signal_server(Signal::KILL);
    let _ = copy.join().unwrap();
    assert!(mount.wait(PATIENCE).is_some());
}

#[test]
fn after_a_kill_only_what_is_missing_is_moved() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    write_content(&at.join("f"), 1, SIZE);
    let mut dice = Dice::new(9);
    let mut resumed = 0;
    for _ in 0..soak(200) {
        killed_after(at, dice.below(7) as usize);
        if at.join("to").exists() {
            assert_file(&at.join("to"), 1, SIZE);
        }
        let had = if at.join("to").exists() {
            Vec::new()
        } else {
            recorded(at)
        };
        resumed += usize::from(!had.is_empty());
        let mount = Mount::of(at).start();
        tell(mount.path(), "--resume --reflink=never f to").unwrap();
        let missing = SIZE - bytes_in(&had);
        assert!(
            moved(&mount) <= missing,
            "{} of {missing} bytes",
            moved(&mount)
        );
        assert_file(&at.join("to"), 1, SIZE);
        assert_eq!(names(at), ["f", "to"]);
        drop(mount);
        fs::remove_file(at.join("to")).unwrap();
    }
    assert!(resumed > 0, "no kill left anything to go on from");
}

#[test]
fn after_a_kill_a_tree_goes_on_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    fs::create_dir(at.join("tree")).unwrap();
    let files = ["a", "b"];
    for (seed, name) in (1..).zip(files) {
        write_content(&at.join("tree").join(name), seed, SIZE);
    }
    let words = "-a -u --resume --reflink=never tree/. to";
    let whole = files.len() as u64 * SIZE;
    let mut dice = Dice::new(10);
    let mut resumed = 0;
    for _ in 0..soak(50) {
        let mut mount = Mount::of(at).start();
        let copy = telling(mount.path(), &format!("--limit=200M {words}"));
        let enough = dice.below(whole);
        wait_until("so much is moved", PATIENCE, || {
            copy.is_finished() || moved(&mount) >= enough
        });
        mount.signal_server(Signal::KILL);
        let _ = copy.join().unwrap();
        assert!(mount.wait(PATIENCE).is_some());
        let mut had = 0;
        let to = at.join("to");
        for (seed, name) in (1..).zip(files) {
            if to.join(name).exists() {
                assert_file(&to.join(name), seed, SIZE);
                had += SIZE;
            }
        }
        let parts = if to.exists() { all_recorded(&to) } else { 0 };
        resumed += usize::from(parts > 0);
        let mount = Mount::of(at).start();
        tell(mount.path(), words).unwrap();
        let missing = whole - had - parts;
        assert!(moved(&mount) <= missing, "{} of {missing}", moved(&mount));
        for (seed, name) in (1..).zip(files) {
            assert_file(&to.join(name), seed, SIZE);
        }
        assert_eq!(names(&to), files);
        drop(mount);
        fs::remove_dir_all(&to).unwrap();
    }
    assert!(resumed > 0, "no kill left anything to go on from");
}

/// Bytes that all journals in a directory have.
fn all_recorded(dir: &Path) -> u64 {
    let journals = names(dir);
    // A copy that has its name may have left its journal.
    let is_of_part = |name: &&String| {
        let part = name.strip_suffix(".journal");
        part.is_some_and(|part| journals.iter().any(|other| other == part))
    };
    let journals = journals.iter().filter(is_of_part);
    let ranges = journals.map(|name| ranges_of(&fs::read(dir.join(name)).unwrap()));
    ranges.map(|ranges| bytes_in(&ranges)).sum()
}

#[test]
fn a_cancelled_copy_goes_on_and_a_changed_source_begins_anew() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    write_content(&at.join("f"), 1, SIZE);
    for change in [false, true] {
        killed_after(at, 2);
        assert!(!at.join("to").exists());
        let had = bytes_in(&recorded(at));
        assert!(had > 0);
        let seed = 1 + u64::from(change);
        if change {
            write_content(&at.join("f"), seed, SIZE);
        }
        let mount = Mount::of(at).start();
        tell(mount.path(), "--resume --verify --sync f to").unwrap();
        assert_file(&at.join("to"), seed, SIZE);
        assert_eq!(names(at), ["f", "to"]);
        fs::remove_file(at.join("to")).unwrap();
    }
}

#[test]
fn what_is_left_is_private_and_another_user_does_not_go_on_from_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let source = Scratch::new();
    let at = source.path();
    set_mode(at, 0o777);
    write_content(&at.join("f"), 1, SIZE);
    killed_after(at, 2);
    for journal in [false, true] {
        let left = fs::metadata(hidden(at, journal).unwrap()).unwrap();
        assert_eq!((left.uid(), left.mode() & 0o7777), (0, 0o600));
    }
    let mount = Mount::of(at).opt("allow_other").start();
    let dir = mount.path().to_owned();
    crate::support::apart(Some((USER, USER)), move || {
        tell(&dir, "--resume --reflink=never f to").unwrap();
    });
    assert_eq!(moved(&mount), SIZE);
    assert_eq!(fs::metadata(at.join("to")).unwrap().uid(), USER);
    assert_file(&at.join("to"), 1, SIZE);
}
