//! Very many who write at once.

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, content, require, soak, wait_until,
};

use super::*;

/// Longer than the crowd takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Threads, descriptors and resident kilobytes of the daemon.
fn held(mount: &Mount) -> (usize, usize, u64) {
    let of = |what: &str| format!("/proc/{}/{what}", mount.server());
    let count = |what: &str| fs::read_dir(of(what)).unwrap().count();
    let status = fs::read_to_string(of("status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let resident = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("task"), count("fd"), resident)
}

/// All turns of root are taken; whoever of the crowd has room waits, and the others are told so.
#[test]
fn thousands_of_writers_all_get_an_answer_and_leave_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let writers = soak(10_000).max(1_500);
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.file("big", &content(2, 0, 6 << 20));
    crate::support::set_owner(&source.dir("own"), USER, OTHER);
    source.dir("d");
    let mount = Mount::of(source.path()).opt("allow_other").start();
    let at = mount.path();
    copy(at, "f", "d/first").unwrap();
    let before = held(&mount);
    for number in 0..4 {
        tell(at, format!("--limit 1K big slow{number} &\n")).unwrap();
    }

    let (done, full, other) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(writers as usize + 1);
    let most = std::thread::scope(|scope| {
        for number in 0..writers {
            let (done, full, other, start) = (&done, &full, &other, &start);
            let write = move || {
                start.wait();
                match copy(at, "f", &format!("d/{number}")) {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(Errno::AGAIN) => full.fetch_add(1, Ordering::Relaxed),
                    Err(errno) => {
                        eprintln!("writer {number}: {errno}");
                        other.fetch_add(1, Ordering::Relaxed)
                    }
                };
            };
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            thread.spawn_scoped(scope, write).expect("a thread");
        }
        start.wait();
        // Four have turns, and the others of 1024 wait, of foreground and background together.
        wait_until("the others are turned away", PATIENCE, || {
            full.load(Ordering::Relaxed) + 1024 - 4 >= writers
        });
        let most = held(&mount);
        // Nobody else is kept out by them.
        apart(Some((USER, OTHER)), || copy(at, "f", "own/g").unwrap());
        assert!(jobs(at).contains("lines of user 0 were not taken; "));
        for number in 0..4 {
            tell(at, format!("--cancel {}\n", number + 2)).unwrap();
        }
        most
    });
    let (done, full, other) = (done.into_inner(), full.into_inner(), other.into_inner());
    eprintln!(
        "{writers} writers: {done} done, {full} turned away; at most {most:?}, before {before:?}"
    );
    assert_eq!((done + full, other), (writers, 0));
    assert!(done >= 1000, "{done}");
    assert_eq!(names(&source.path().join("d")).len() as u64, done + 1);
    assert!(
        most.0 < before.0 + 64,
        "a thread for each: {most:?}, before {before:?}"
    );

    wait_until("threads and descriptors come back", PATIENCE, || {
        let now = held(&mount);
        now.0 <= before.0 + 2 && now.1 <= before.1 + 64
    });
    let after = held(&mount);
    assert!(
        after.2 < before.2 + (64 << 10),
        "{after:?}, before {before:?}"
    );
    copy(at, "f", "last").unwrap();
}
