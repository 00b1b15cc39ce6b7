use std::path::Path;

use rustix::fs::FileType;

use super::super::options::Share;
use super::super::tests::{open as open_store, options};
use super::*;
use crate::cache::StoreOptions;

fn file(size: u64) -> Record {
    Record {
        whole: true,
        mode: FileType::RegularFile.as_raw_mode() | 0o644,
        size,
        links: 1,
        ..Record::default()
    }
}

fn folder() -> Record {
    Record {
        mode: FileType::Directory.as_raw_mode() | 0o755,
        ..file(0)
    }
}

fn put(path: &str, record: Record) -> Change {
    Change::Put(path.into(), record)
}

fn names_in(names: &Names, path: &str) -> Vec<String> {
    let found = names.list(path.as_bytes(), b"", 1000);
    let name = |(name, _): (Vec<u8>, Record)| String::from_utf8_lossy(&name).into_owned();
    found.into_iter().map(name).collect()
}

fn store(dir: &Path) -> Arc<Store> {
    open_store(&StoreOptions {
        size: Share::Bytes(1 << 30),
        ..options(dir)
    })
}

fn opened(dir: &Path) -> Names {
    store(dir).names().unwrap().expect("nobody else has it")
}

#[test]
fn what_was_kept_is_found_again_after_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let names = opened(dir.path());
    assert_eq!(names.get(b"a"), None);
    let kept = [
        Change::Put(Vec::new(), folder()),
        put("d", folder()),
        put("d/x", file(1)),
        put("d/e", folder()),
        put("d/e/y", file(2)),
        put("da", file(3)),
    ];
    assert_eq!(names.keep(&kept), 0);
    names.close();
    let names = opened(dir.path());
    assert_eq!(names.get(b"d/x"), Some(file(1)));
    assert_eq!(names.get(b""), Some(folder()));
    assert_eq!(names_in(&names, ""), ["d", "da"]);
    assert_eq!(names_in(&names, "d"), ["e", "x"]);
    assert_eq!(names.list(b"d", b"e", 9).len(), 1, "what is behind a name");
    assert_eq!(names.keep(&[Change::Gone(b"d".to_vec())]), 0);
    assert_eq!(names_in(&names, ""), ["da"]);
    assert_eq!(names.get(b"d/e/y"), None, "nor what was below");
}

#[test]
fn a_listing_takes_away_what_is_not_in_it_and_leaves_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let names = opened(dir.path());
    let count = 3 * PART + 5;
    let name = |n: usize| format!("{n:06}").into_bytes();
    let old: Vec<_> = (0..count)
        .map(|n| Change::Put(child(b"d", &name(n)), file(n as u64)))
        .collect();
    assert_eq!(names.keep(&old), 0);
    assert!(!names.is_listed(b"d"));
    let even = (0..count + 2).step_by(2);
    let listed: Vec<Named> = even.map(|n| (name(n), FileType::RegularFile, 7)).collect();
    let mut shuffled = listed.clone();
    shuffled.reverse();
    assert_eq!(
        names.keep(&Change::listing(b"d", b"v1".to_vec(), shuffled)),
        0
    );
    assert!(names.has_listed(b"d", b"v1") && !names.has_listed(b"d", b"v2"));
    let mut found = Vec::new();
    loop {
        let after = found
            .last()
            .map_or(Vec::new(), |(name, _): &(Vec<u8>, Record)| name.clone());
        let more = names.list(b"d", &after, 100);
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    let got: Vec<_> = found.iter().map(|(name, _)| name.clone()).collect();
    let wanted: Vec<_> = listed.iter().map(|(name, _, _)| name.clone()).collect();
    assert_eq!(got, wanted);
    assert!(found[0].1.whole, "what was known of it stays");
    let last = found.last().unwrap();
    assert!(
        !last.1.whole && last.1.ino == 7,
        "of a new one the type is known"
    );
    let none = Change::listing(b"d", b"v3".to_vec(), Vec::new());
    assert_eq!(names.keep(&none), 0);
    assert!(names_in(&names, "d").is_empty() && names.is_listed(b"d"));
}

#[test]
fn names_are_bytes_and_paths_are_long() {
    let dir = tempfile::tempdir().unwrap();
    let names = opened(dir.path());
    let deep = vec![vec![0xffu8; 255]; 40].join(&b'/');
    let odd = b"a\xfe\nb".to_vec();
    let changes = [
        Change::Put(deep.clone(), file(5)),
        Change::Put(odd.clone(), file(6)),
        Change::Target(odd.clone(), b"\xff/..".to_vec()),
        Change::Acl(odd.clone(), b'a', Some(vec![1, 2])),
        Change::Acl(odd.clone(), b'd', None),
    ];
    assert_eq!(names.keep(&changes), 0);
    assert_eq!(names.get(&deep).unwrap().size, 5);
    assert_eq!(names.get(&odd).unwrap().target, b"\xff/..");
    assert_eq!(names.acl(&odd, b'a'), Some(Some(vec![1, 2])));
    assert_eq!(names.acl(&odd, b'd'), Some(None));
    assert_eq!(names.acl(&deep, b'a'), None);
    // As long as nothing was changed, the target stays when the attributes are seen again.
    assert_eq!(names.keep(&[Change::Put(odd.clone(), file(6))]), 0);
    assert_eq!(names.get(&odd).unwrap().target, b"\xff/..");
}

#[test]
fn one_at_a_time_has_the_names() {
    let dir = tempfile::tempdir().unwrap();
    let first = opened(dir.path());
    let store = store(dir.path());
    assert!(store.names().unwrap().is_none());
    first.close();
    assert!(store.names().unwrap().is_some());
}

#[test]
fn what_is_damaged_is_set_aside_and_learnt_anew() {
    let dir = tempfile::tempdir().unwrap();
    let names = opened(dir.path());
    let many: Vec<_> = (0..500).map(|n| put(&format!("f{n}"), file(n))).collect();
    assert_eq!(names.keep(&many), 0);
    let path = dir
        .path()
        .join("v1")
        .join(names.store.name())
        .join("names/tree.redb");
    names.close();
    let whole = std::fs::read(&path).unwrap();
    let mut dice = fastrand::Rng::with_seed(3);
    for round in 0..24 {
        let mut torn = whole.clone();
        match round % 3 {
            0 => torn.truncate(dice.usize(..torn.len())),
            1 => {
                let at = dice.usize(..torn.len());
                torn[at] ^= 1 << dice.u32(..8);
            }
            _ => {
                let at = dice.usize(..torn.len() - 4096);
                torn[at..at + 4096].fill(dice.u8(..));
            }
        }
        std::fs::write(&path, &torn).unwrap();
        let names = opened(dir.path());
        for n in [0u64, 99, 499] {
            let found = names.get(format!("f{n}").as_bytes());
            assert!(found.is_none_or(|found| found == file(n)), "round {round}");
        }
        assert_eq!(names.keep(&[put("new", file(1))]), 0);
        assert_eq!(names.get(b"new"), Some(file(1)));
        names.close();
    }
}

#[test]
fn what_the_file_takes_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let names = opened(dir.path());
    let used = || {
        names
            .store
            .budget
            .as_ref()
            .unwrap()
            .ledger()
            .unwrap()
            .used()
    };
    let many: Vec<_> = (0..5000).map(|n| put(&format!("f{n}"), file(n))).collect();
    assert_eq!(names.keep(&many), 0);
    let there = place::allocated(names.dir.as_fd(), FILE);
    assert!(there > 500_000, "{there}");
    assert!(used() >= there, "{there}");
    let (counted, reserved) = *names.counted.lock();
    assert_eq!(counted, there);
    assert!(reserved <= NEED);
}
