//! The mount and the source's own side at once: locks, shared memory, appended records, times.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, Timespec, Timestamps, flock, ftruncate};

use super::{open, write_at};
use crate::children::{Actor, lock};
use crate::support::{Mount, Need, Scratch, is_root, read_file, require, wait_until, write_file};

/// Longer than any timeout of attributes and names that a mount has by default.
const SEEN: Duration = Duration::from_secs(20);

/// A file of both sides, by its two names.
struct Sides {
    /// On the mount.
    inside: PathBuf,
    /// In the source.
    outside: PathBuf,
    mount: Mount,
    source: Scratch,
}

fn sides(options: &str, content: &[u8]) -> Option<Sides> {
    if !require(&[Need::Fuse]) {
        return None;
    }
    let source = Scratch::new();
    let outside = source.file("f", content);
    let mount = Mount::of(source.path()).opt(options).start();
    Some(Sides {
        inside: mount.path().join("f"),
        outside,
        mount,
        source,
    })
}

// ---------------------------------------------------------------------------------------------
// Locks

#[test]
fn a_lock_of_the_mount_is_seen_on_the_source() {
    let Some(both) = sides("io=mmap", b"0123456789") else {
        return;
    };
    let mut inside = Actor::locker(&both.inside);
    let mut outside = Actor::locker(&both.outside);
    for kind in ["", "ofd-"] {
        assert_eq!(inside.ask(&format!("set {kind}write 2 3")), "ok");
        assert_eq!(outside.ask("set read 4 1"), "held");
        assert_eq!(outside.ask("set write 0 2"), "ok");
        assert_eq!(outside.ask("set write 5 0"), "ok", "to the end of any file");
        // It is the daemon's open that holds it there.
        assert_eq!(outside.ask("get write 0 0"), "write 2 3 -1");
        assert_eq!(outside.ask("set unlock 0 0"), "ok");
        assert_eq!(inside.ask(&format!("set {kind}read 2 3")), "ok");
        assert_eq!(outside.ask("set read 0 0"), "ok", "readers share");
        assert_eq!(inside.ask(&format!("set {kind}write 2 1")), "held");
        assert_eq!(outside.ask("set unlock 0 0"), "ok");
        assert_eq!(inside.ask(&format!("set {kind}unlock 0 0")), "ok");
    }
    assert_eq!(inside.ask("set write 0 0"), "ok");
    assert_eq!(inside.ask("reopen"), "ok");
    wait_until("a close drops it there too", SEEN, || {
        outside.ask("set write 0 0") == "ok"
    });
}

#[test]
fn a_lock_of_the_source_is_seen_on_the_mount() {
    let Some(both) = sides("io=mmap", b"0123456789") else {
        return;
    };
    let mut inside = Actor::locker(&both.inside);
    let mut outside = Actor::locker(&both.outside);
    assert_eq!(outside.ask("set write 2 3"), "ok");
    for kind in ["", "ofd-"] {
        assert_eq!(inside.ask(&format!("set {kind}read 4 1")), "held");
        assert_eq!(inside.ask(&format!("set {kind}write 5 5")), "ok");
        assert_eq!(inside.ask(&format!("set {kind}unlock 0 0")), "ok");
    }
    let holder = outside.pid();
    assert_eq!(inside.ask("get write 0 0"), format!("write 2 3 {holder}"));
}

#[test]
fn who_waits_on_one_side_gets_the_lock_of_the_other() {
    let Some(both) = sides("io=mmap", b"0123456789") else {
        return;
    };
    let mut inside = Actor::locker(&both.inside);
    let mut outside = Actor::locker(&both.outside);
    assert_eq!(outside.ask("set write 0 5"), "ok");
    inside.order("wait write 3 4");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(outside.ask("set unlock 0 5"), "ok");
    assert_eq!(inside.answer(), "ok");

    outside.order("wait read 5 1");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(inside.ask("set unlock 0 0"), "ok");
    assert_eq!(outside.answer(), "ok");

    // And a signal ends the wait for one who does not know the mount.
    assert_eq!(outside.ask("set write 0 5"), "ok");
    let signal = inside.handles("plain");
    inside.order("wait write 0 5");
    std::thread::sleep(Duration::from_millis(100));
    let said = inside.answer_after(|| signal(libc::SIGUSR1));
    assert_eq!(said, format!("errno {}", libc::EINTR));
}

#[test]
fn flock_stays_on_the_mount() {
    let Some(both) = sides("io=mmap", b"") else {
        return;
    };
    let [one, two] = [(); 2].map(|()| open(&both.inside, OFlags::RDWR));
    let outside = open(&both.outside, OFlags::RDWR);
    flock(&one, FlockOperation::LockExclusive).unwrap();
    assert!(flock(&two, FlockOperation::NonBlockingLockShared).is_err());
    flock(&outside, FlockOperation::NonBlockingLockExclusive).unwrap();
    // The two kinds do not meet, as natively.
    let record = lock(&File::from(two), libc::F_SETLK, "write", (0, 0));
    assert!(record.is_ok());
}

// ---------------------------------------------------------------------------------------------
// Shared memory

#[test]
fn stores_are_in_the_source_after_msync_munmap_and_close() {
    for options in ["io=mmap", "io=pread"] {
        let Some(both) = sides(options, &[b'.'; 20_000]) else {
            return;
        };
        let mut actors = [(); 2].map(|()| Actor::mapper(&both.inside));
        for actor in &mut actors {
            assert_eq!(actor.ask("map 20000"), "ok");
        }
        let [one, two] = &mut actors;
        let outside = |at: usize| read_file(&both.outside)[at..at + 3].to_vec();
        assert_eq!(one.ask("store 10000 one"), "ok");
        assert_eq!(two.ask("load 10000 3"), "one");
        assert_eq!(one.ask("sync"), "ok");
        assert_eq!(outside(10_000), b"one");
        // A store to a page that was brought out once is no less seen.
        assert_eq!(two.ask("store 10000 two"), "ok");
        assert_eq!(two.ask("sync"), "ok");
        assert_eq!(outside(10_000), b"two");
        assert_eq!(one.ask("store 15000 end"), "ok");
        assert_eq!(one.ask("unmap"), "ok");
        assert_eq!(one.ask("close"), "ok");
        assert_eq!(outside(15_000), b"end");
    }
}

/// When stat(2) on the mount tells of a store through a mapping of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// With the next stat.
    AtOnce,
    /// When the page has been written to the source: after msync, munmap, close, or by itself.
    Written,
}

/// Each way to open files. The kernel gives FUSE no time for a store, and the source none before
/// it has the bytes.
const STORES: &[(&str, Told)] = &[
    ("io=mmap", Told::Written),
    ("io=pread", Told::Written),
    ("io=mmap,attr_timeout=0", Told::Written),
    ("passthrough=always", Told::AtOnce),
];

#[test]
fn the_time_of_a_store_is_told() {
    for &(options, told) in STORES {
        // Others have no passthrough.
        if told == Told::AtOnce && !is_root() {
            continue;
        }
        let Some(both) = sides(options, &[b'.'; 20_000]) else {
            return;
        };
        let old = Timespec {
            tv_sec: 1000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        let mut actor = Actor::mapper(&both.inside);
        assert_eq!(actor.ask("map 20000"), "ok");
        assert_eq!(actor.ask("load 10000 1"), ".");
        for round in 0..3 {
            // Each time, as a page that is dirty already would tell of no second store.
            rustix::fs::futimens(open(&both.inside, OFlags::RDWR), &times).unwrap();
            let changed = |path: &Path| fs::metadata(path).unwrap().mtime() != 1000;
            assert!(!changed(&both.inside));
            assert_eq!(actor.ask("store 10000 x"), "ok");
            let at_once = changed(&both.inside);
            assert_eq!(at_once, told == Told::AtOnce, "{options}, round {round}");
            assert_eq!(actor.ask("sync"), "ok");
            assert!(changed(&both.outside), "{options}, round {round}");
            wait_until("the mount tells it too", SEEN, || changed(&both.inside));
        }
    }
}

#[test]
fn a_file_cut_in_the_source_is_sigbus_to_its_mapped_reader() {
    use std::os::unix::process::ExitStatusExt;
    for options in ["io=mmap", "io=pread"] {
        let Some(both) = sides(options, &[b'.'; 40_000]) else {
            return;
        };
        let mut actor = Actor::mapper(&both.inside);
        assert_eq!(actor.ask("map 40000"), "ok");
        assert_eq!(actor.ask("load 39999 1"), ".");
        ftruncate(open(&both.outside, OFlags::RDWR), 5000).unwrap();
        wait_until("the mount shows it", SEEN, || {
            fs::metadata(&both.inside).unwrap().len() == 5000
        });
        assert_eq!(actor.ask("load 4999 2"), r".\x00");
        actor.order("load 39999 1");
        let status = actor.end();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}

// ---------------------------------------------------------------------------------------------
// Writes

#[test]
fn what_is_written_is_in_the_source_when_write_returns() {
    for options in ["io=mmap", "io=pread"] {
        let Some(both) = sides(options, b"") else {
            return;
        };
        let fd = open(&both.inside, OFlags::RDWR);
        for round in 0..200_u64 {
            let line = format!("line {round:5}\n");
            write_at(&fd, round * 11, line.as_bytes());
            let outside = read_file(&both.outside);
            assert!(outside.ends_with(line.as_bytes()), "{options}, {round}");
        }
        fs::rename(&both.inside, both.mount.path().join("g")).unwrap();
        assert_eq!(read_file(&both.source.path().join("g")).len(), 200 * 11);
    }
}

/// The kernel's idea of the file's end is late on the mount; where records go must not depend on it.
#[test]
fn appenders_on_both_sides_lose_no_record() {
    use std::io::Write;
    const EACH: usize = 1500;
    for options in ["io=mmap", "io=pread"] {
        let Some(both) = sides(options, b"") else {
            return;
        };
        let paths = [&both.inside, &both.outside, &both.inside];
        std::thread::scope(|scope| {
            for (writer, path) in paths.into_iter().enumerate() {
                scope.spawn(move || {
                    let mut file = File::options().append(true).open(path).unwrap();
                    for record in 0..EACH {
                        let text = format!("{writer} {record:06} {}\n", "x".repeat(90 + writer));
                        assert_eq!(file.write(text.as_bytes()).unwrap(), text.len());
                    }
                });
            }
        });
        let bytes = read_file(&both.outside);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let mut next = [0; 3];
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let writer: usize = words[0].parse().unwrap();
            assert_eq!(words[1], format!("{:06}", next[writer]), "out of order");
            assert_eq!(words[2], "x".repeat(90 + writer), "torn");
            next[writer] += 1;
        }
        assert_eq!(next, [EACH; 3], "{options}");
        wait_until("the mount reads the same", SEEN, || {
            read_file(&both.inside) == bytes
        });
    }
}

/// After an append on the mount that was late about the end, no reader of the mount may find the
/// record where the kernel thought it went.
#[test]
fn an_append_behind_a_late_size_is_read_where_it_is() {
    let Some(both) = sides("io=mmap", &[b'a'; 4096]) else {
        return;
    };
    let appender = open(&both.inside, OFlags::RDWR | OFlags::APPEND);
    let reader = open(&both.inside, OFlags::RDONLY);
    let outside = open(&both.outside, OFlags::RDWR | OFlags::APPEND);
    for round in 0..30 {
        // Lets the kernel know the size, and then be wrong about it.
        let size = fs::metadata(&both.inside).unwrap().len();
        rustix::io::write(&outside, &[b'o'; 4096]).unwrap();
        rustix::io::write(&appender, &[b'i'; 4096]).unwrap();
        if round % 3 == 0 {
            // As long as the kernel took it to be.
            ftruncate(&outside, size + 4096).unwrap();
        }
        let now = read_file(&both.outside);
        wait_until("the reader sees the file as it is", SEEN, || {
            super::read_at(&reader, 0, now.len() + 4096) == now
        });
    }
}

#[test]
fn a_whole_file_replaced_on_one_side_is_whole_on_the_other() {
    let Some(both) = sides("attr_timeout=0,entry_timeout=0", &[0; 50_000]) else {
        return;
    };
    for round in 1..60_u8 {
        let (from, to) = if round % 2 == 0 {
            (both.mount.path(), &both.outside)
        } else {
            (both.source.path(), &both.inside)
        };
        write_file(&from.join("new"), &vec![round; 50_000]);
        fs::rename(from.join("new"), from.join("f")).unwrap();
        assert_eq!(read_file(to), vec![round; 50_000], "round {round}");
    }
}

/// A directory removed while it is listed is ENOENT to getdents64(2), natively too; nothing that was
/// read ahead and is gone may make that look like the end.
#[test]
fn an_error_behind_entries_that_vanished_is_told() {
    let Some(both) = sides("io=mmap", b"") else {
        return;
    };
    let folder = both.source.dir("d");
    for n in 0..3000 {
        write_file(&folder.join(format!("entry-{n}")), b"");
    }
    let inside = both.mount.path().join("d");
    let fd = open(&inside, OFlags::RDONLY | OFlags::DIRECTORY);
    // Some are looked at: the kernel then asks for the next ones with their attributes, and those
    // that are gone are left out. There is room for all that it gets at once, so that it goes on
    // where corfs has read ahead.
    let mut room = [std::mem::MaybeUninit::uninit(); 32 << 10];
    let mut entries = rustix::fs::RawDir::new(&fd, &mut room);
    for _ in 0..10 {
        let entry = entries.next().unwrap().unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        fs::symlink_metadata(inside.join(name)).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
    let end = loop {
        match entries.next() {
            Some(Ok(_)) => {}
            Some(Err(errno)) => break Some(errno),
            None => break None,
        }
    };
    assert_eq!(end, Some(rustix::io::Errno::NOENT));
}
