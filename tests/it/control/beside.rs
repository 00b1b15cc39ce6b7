//! Copies beside everything else: what is cached, what waits, what is interrupted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Mount, Need, Scratch, content, require, soak, wait_until, write_file};

use super::*;

#[test]
fn a_new_file_shows_at_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("negative_timeout=60,entry_timeout=60,attr_timeout=60");
    let at = mount.path();
    for name in ["g", "d/g"] {
        assert!(!at.join(name).exists());
        assert!(!at.join(name).exists());
        copy(at, "f", name).unwrap();
        assert_copied(&at.join(name));
    }
    // And what it replaced does not linger.
    write_file(&at.join("h"), b"old");
    assert_eq!(fs::metadata(at.join("h")).unwrap().len(), 3);
    copy(at, "f", "h").unwrap();
    assert_eq!(fs::metadata(at.join("h")).unwrap().len(), 100_000);
    assert_copied(&at.join("h"));
    assert_eq!(names(at), ["d", "f", "g", "h"]);
}

/// Long enough to do other things meanwhile: a second or so of copying.
fn long_world() -> (Scratch, Mount, u64) {
    let source = Scratch::new();
    let size = soak(4 << 30).max(1 << 30);
    let file = File::create(source.path().join("big")).unwrap();
    let piece = content(5, 0, 4 << 20);
    let mut left = size;
    while left > 0 {
        let len = left.min(piece.len() as u64);
        (&file).write_all(&piece[..len as usize]).unwrap();
        left -= len;
    }
    source.file("f", &content(1, 0, 100_000));
    let mount = Mount::of(source.path()).start();
    (source, mount, size)
}

/// A shell in `dir` that writes a line and waits.
fn echo(dir: &Path, line: &str) -> std::process::Child {
    // `exec` of an external printf: the signal then meets the process that writes.
    Command::new("sh")
        .args([
            "-c",
            "exec /usr/bin/env printf '%s\\n' \"$0\" > .copy",
            line,
        ])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the list shows a running copy of `big` with that name.
fn await_copying(dir: &Path, to: &str) {
    let line = format!("big -> {to}");
    wait_until("the copy begins", Duration::from_secs(20), || {
        jobs(dir)
            .lines()
            .any(|job| job.contains("running") && job.ends_with(&line))
    });
}

#[test]
fn a_long_copy_keeps_nobody_waiting_and_can_be_stopped() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount, size) = long_world();
    let at = mount.path();

    // Stopped by a signal: EINTR before it is done, nothing left.
    let mut waiting = echo(at, "big copy");
    await_copying(at, "copy");
    let started = Instant::now();
    let pid = Pid::from_child(&waiting);
    kill_process(pid, Signal::INT).unwrap();
    let status = waiting.wait().unwrap();
    let took = started.elapsed();
    assert_eq!(
        status.signal(),
        Some(libc::SIGINT),
        "{status}: it was not interrupted"
    );
    eprintln!("a copy told to stop answered after {took:?}");
    wait_until("nothing is left", Duration::from_secs(10), || {
        names(source.path()) == ["big", "f"]
    });
    wait_until("the list says so", Duration::from_secs(10), || {
        jobs(at).contains("cancelled")
    });

    // Others go on beside it.
    let mut waiting = echo(at, "big copy");
    await_copying(at, "copy");
    let mut answers: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut round = 0;
    while waiting.try_wait().unwrap().is_none() {
        let mut timed = |what, work: &dyn Fn()| {
            let started = Instant::now();
            work();
            answers.entry(what).or_default().push(started.elapsed());
        };
        timed("echo", &|| copy(at, "f", "g").unwrap());
        timed("cat", &|| assert!(jobs(at).contains("big")));
        timed("read", &|| assert_copied(&at.join("f")));
        timed("stat", &|| assert!(at.join("g").exists()));
        round += 1;
    }
    let status = waiting.wait().unwrap();
    assert!(status.success(), "{status}: {}", jobs(at));
    assert_eq!(
        fs::metadata(source.path().join("copy")).unwrap().len(),
        size
    );
    // Whoever had to wait for the copy would have had one round.
    assert!(
        round > 1,
        "the others waited, or the copy was over too soon"
    );
    for (what, mut times) in answers {
        times.sort();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!(
            "{what} beside a long copy: {median:?}, at most {most:?} ({} times)",
            times.len()
        );
    }

    // The end of the mount: what is in flight is waited for or cancelled, whole or absent.
    let waiting = echo(at, "big again");
    await_copying(at, "again");
    let status = mount.finish_within(Duration::from_secs(300));
    let ended = waiting.wait_with_output().unwrap();
    let left = names(source.path());
    if ended.status.success() {
        assert_eq!(left, ["again", "big", "copy", "f", "g"]);
        assert_eq!(
            fs::metadata(source.path().join("again")).unwrap().len(),
            size
        );
    } else {
        assert_eq!(left, ["big", "copy", "f", "g"]);
    }
    assert_eq!(status.code(), Some(0));
}

#[test]
fn many_copies_at_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let at = mount.path();
            scope.spawn(move || {
                for round in 0..5 {
                    copy(at, "f", &format!("g{worker}-{round}")).unwrap();
                    // All over the same name: one of them whole, never a mixture.
                    copy(at, "f", "d/same").unwrap();
                }
            });
        }
    });
    assert_eq!(names(source.path()).len(), 2 + 16 * 5);
    for worker in 0..16 {
        assert_copied(&source.path().join(format!("g{worker}-4")));
    }
    assert_eq!(names(&source.path().join("d")), ["same"]);
    assert_copied(&source.path().join("d/same"));
}

#[test]
fn descriptors_do_not_pile_up() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("rw");
    let held = || {
        fs::read_dir(format!("/proc/{}/fd", mount.server()))
            .unwrap()
            .count()
    };
    copy(mount.path(), "f", "g").unwrap();
    let before = held();
    for _ in 0..200 {
        copy(mount.path(), "f", "g").unwrap();
        assert_eq!(copy(mount.path(), "missing", "g"), Err(Errno::NOENT));
        jobs(mount.path());
        let fd = open_control(mount.path()).unwrap();
        assert!(fd.as_raw_fd() > 2);
    }
    wait_until(
        "the descriptors are closed",
        Duration::from_secs(10),
        || held() < before + 50,
    );
}

/// To execute a program closes what is not for it, and some of `/proc` is withheld until that is
/// done: a daemon that reads it to see who waits would wait for him, and he for the daemon, and
/// `ps` for both.
#[test]
fn a_line_that_is_ended_by_executing_a_program_is_run() {
    if !require(&[Need::Fuse, Need::Tool("perl")]) {
        return;
    }
    let (_source, mount) = world("");
    let server = mount.server();
    let script = "open F, '>', '.copy' or die; syswrite F, 'f g' or die; exec 'true'";
    let mut perl = Command::new("perl")
        .args(["-e", script])
        .current_dir(mount.path())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let end = loop {
        match perl.try_wait().unwrap() {
            None if start.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            end => break end,
        }
    };
    if end.is_none() {
        // Nothing else would free him, nor the machine.
        kill_process(Pid::from_raw(server as i32).unwrap(), Signal::KILL).unwrap();
        perl.wait().unwrap();
    }
    assert_eq!(end.expect("it ends").code(), Some(0));
    assert_copied(&mount.path().join("g"));
}
