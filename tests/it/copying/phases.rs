//! A cancel is answered in every phase of a copy, while the source hangs in it; and each directory
//! is synced once.

use std::time::Instant;

use corfs::window::Map;

use super::disks::SHARING;
use super::*;
use crate::support::{Faults, FaultySource, Loop, Need, On, require, soak, write_content};

const SIZE: u64 = 4 << 20;

/// A world with a file and a tree, to be copied into `to`, beside which nobody waits.
fn world() -> (FaultySource, Mount) {
    let source = FaultySource::new();
    let store = source.store().to_owned();
    for name in ["from/a", "from/b"] {
        fs::create_dir_all(store.join(name)).unwrap();
        for file in ["one", "two"] {
            write_content(&store.join(name).join(file), 1, 10_000);
        }
    }
    write_content(&store.join("from/large"), 2, SIZE);
    fs::create_dir(store.join("to")).unwrap();
    let mount = Mount::of(source.path()).start();
    (source, mount)
}

/// What hangs goes on before the mount is taken away, also when the test fails.
struct Healing<'a>(&'a Faults);

impl Drop for Healing<'_> {
    fn drop(&mut self) {
        self.0.heal();
    }
}

/// Has the line hang, cancels it by another, and sees it answered while it hangs still.
#[track_caller]
fn answered_while_it_hangs(words: &str, on: &[On]) {
    let (source, mount) = world();
    let faults = source.faults();
    let _heal = Healing(faults);
    let line = format!("{words} to");
    faults.hang(on[0], None);
    let waits = telling(mount.path(), &line);
    for (at, phase) in on.iter().enumerate() {
        if at > 0 {
            faults.hang_next(*phase);
        }
        wait_until(&format!("{line}: hangs on {phase:?}"), PATIENCE, || {
            assert!(!waits.is_finished(), "{line} is over before {phase:?}");
            faults.hanging(*phase) > 0
        });
    }
    let last = on[on.len() - 1];
    let asked = Instant::now();
    tell(mount.path(), "--cancel all").unwrap();
    wait_until(&format!("{line}: is answered"), PATIENCE, || {
        waits.is_finished()
    });
    println!("{line}: {on:?}, {} ms", asked.elapsed().as_millis());
    assert!(faults.hanging(last) > 0, "{line}: {last:?} still hangs");
    assert_eq!(waits.join().unwrap(), Err(Errno::CANCELED), "{line}");
    faults.heal();
    wait_until(&format!("{line}: nothing hidden is left"), PATIENCE, || {
        names(&source.store().join("to"))
            .iter()
            .all(|name| !name.starts_with(".corfs"))
    });
    assert!(mount.finish().success());
}

#[test]
fn a_cancel_is_answered_in_every_method() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for method in ["map-write", "map-map", "copy-range", "read-write"] {
        for on in [On::Read, On::Write] {
            answered_while_it_hangs(&format!("--method={method} from/large"), &[on]);
        }
    }
    answered_while_it_hangs("--direct from/large", &[On::Read]);
    answered_while_it_hangs("--resume from/large", &[On::Write]);
}

#[test]
fn a_cancel_is_answered_in_every_phase() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for (words, on) in [
        ("from/large", &[On::Create][..]),
        ("--method=map-write from/large", &[On::Fallocate]),
        ("--method=copy-range from/large", &[On::CopyRange]),
        ("from/large", &[On::Setattr]),
        ("from/large", &[On::Rename]),
        ("--sync from/large", &[On::Fsync]),
        ("--sync from/large", &[On::Fsyncdir]),
        ("--verify from/large", &[On::Fsync]),
        ("--verify from/large", &[On::Fsync, On::Read]),
    ] {
        answered_while_it_hangs(words, on);
    }
}

/// How many threads of the process are in FICLONE (linux/fs.h).
fn sharing(process: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let is_in = |task: &fs::DirEntry| {
        let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        call.split(' ').any(|word| word == "0x40049409")
    };
    tasks.flatten().filter(is_in).count()
}

/// He who writes to a file holds its lock while he waits for the page that he writes from: so the
/// sharing of its extents hangs as long as the page does.
#[test]
fn a_cancel_is_answered_while_extents_are_shared() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for kind in SHARING {
        if !require(&[Need::Filesystem(kind)]) {
            continue;
        }
        let pages = FaultySource::new();
        write_content(&pages.store().join("page"), 1, 4096);
        let disk = Loop::new(kind, 400 << 20);
        write_content(&disk.path().join("from"), 1, SIZE);
        let mount = Mount::of(disk.path()).start();
        let page = fs::File::open(pages.path().join("page")).unwrap();
        let from = disk.path().join("from");
        let file = fs::File::options().write(true).open(from).unwrap();
        pages.faults().hang(On::Read, None);
        let _heal = Healing(pages.faults());
        let holder = std::thread::spawn(move || {
            let map = Map::read(page.as_fd(), 0, 4096).unwrap();
            map.pwrite_to(0..1, file.as_fd(), 0).unwrap();
        });
        pages.faults().await_hanging(On::Read, 1);
        for (before, words) in ["--reflink=always", "--reflink=auto"].iter().enumerate() {
            let waits = telling(mount.path(), &format!("{words} from to"));
            wait_until("extents are being shared", PATIENCE, || {
                sharing(mount.server()) > before
            });
            let asked = Instant::now();
            tell(mount.path(), "--cancel all").unwrap();
            wait_until("it is answered", PATIENCE, || waits.is_finished());
            println!("{kind}, {words}: {} ms", asked.elapsed().as_millis());
            assert!(sharing(mount.server()) > before, "{kind}: it still hangs");
            assert_eq!(waits.join().unwrap(), Err(Errno::CANCELED), "{kind}");
        }
        pages.faults().heal();
        holder.join().unwrap();
        wait_until("nothing is left but what was there", PATIENCE, || {
            sharing(mount.server()) == 0 && names(disk.path()) == ["from"]
        });
        assert!(mount.finish().success());
    }
}

#[test]
fn a_cancel_between_calls_is_heard_at_once() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // What takes long is many calls: between any two of them it ends.
    for words in [
        "--workers=2 from/large",
        "-r --workers=3 from",
        "--verify from/large",
    ] {
        for _ in 0..soak(20) {
            let (source, mount) = world();
            let faults = source.faults();
            for on in [On::Read, On::Write, On::Open] {
                faults.delay(on, None, Duration::from_millis(300));
            }
            let waits = telling(mount.path(), &format!("{words} to"));
            wait_until("it runs", PATIENCE, || {
                fs::read_to_string(mount.path().join(".copy"))
                    .unwrap()
                    .contains("running")
            });
            tell(mount.path(), "--cancel all").unwrap();
            assert_eq!(waits.join().unwrap(), Err(Errno::CANCELED), "{words}");
            faults.heal();
        }
    }
}

#[test]
fn every_directory_of_a_synced_tree_is_synced_once() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world();
    let store = source.store();
    tell(mount.path(), "-r --sync from to").unwrap();
    let expected = ["to", "to/from", "to/from/a", "to/from/b"].map(|name| store.join(name));
    assert_eq!(source.faults().synced(), expected);
    source.faults().heal();
    tell(mount.path(), "--sync from/a/one from/large to").unwrap();
    assert_eq!(source.faults().synced(), [store.join("to")]);
    source.faults().heal();
    tell(mount.path(), "-r from/a to/plain").unwrap();
    assert!(source.faults().synced().is_empty(), "nobody asked for it");
    // When it fails the copy stands, and is not called done.
    source.faults().fail(On::Fsyncdir, None, Errno::IO);
    for line in ["--sync from/large to/new", "-r --sync from/a to/tree"] {
        assert_eq!(tell(mount.path(), line), Err(Errno::IO), "{line}");
    }
    assert_file(&store.join("to/new"), 2, SIZE);
    assert_file(&store.join("to/tree/one"), 1, 10_000);
}
