//! What each way promises by itself.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::process::Command;

use rustix::process::Signal;

use super::*;
use crate::support::{Need, Scratch, output, read_file, require, run, set_mode, write_file};

/// The bytes of READ requests that the daemon has answered for files.
fn bytes_asked(mount: &Mount) -> f64 {
    mount
        .stats()
        .value("corfs_read_bytes_total", &[("mode", "mmap")])
}

#[test]
fn pages_stay_cached_over_a_new_open_only_while_the_file_is_the_same() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let file = source.file("file", &[b'a'; 4096]);
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let age = || {
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(old)
            .unwrap()
    };
    age();
    // The change of the time is itself a change, by ctime: only a settled file is kept.
    std::thread::sleep(Duration::from_millis(2500));
    let mount = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    let on = mount.path().join("file");
    for _ in 0..2 {
        assert_eq!(read_file(&on), [b'a'; 4096]);
    }
    let before = bytes_asked(&mount);
    assert_eq!(read_file(&on), [b'a'; 4096]);
    assert_eq!(bytes_asked(&mount), before, "the pages were kept");
    // Other bytes, of the same size and mtime: only ctime tells.
    write_file(&file, &[b'b'; 4096]);
    age();
    assert_eq!(read_file(&on), [b'b'; 4096]);
}

#[test]
fn strict_reads_come_from_the_source_even_where_no_time_has_changed() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("file", &[b'a'; 8192]);
    let behind = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: the file stays as long as it is.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&behind) }.unwrap();
    map[0] = b'1';
    let mount = Way::Strict.start(source.path());
    let mut on = File::open(mount.path().join("file")).unwrap();
    let mut first = || {
        let mut byte = [0];
        on.rewind().and_then(|()| on.read_exact(&mut byte)).unwrap();
        byte[0]
    };
    // Stores into a page that is dirty already: they move no time.
    for byte in b'2'..=b'9' {
        map[0] = byte;
        assert_eq!(first(), byte);
    }
}

#[test]
fn strict_writes_are_in_the_source_at_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Way::Strict.start(source.path());
    let mut on = File::create(mount.path().join("file")).unwrap();
    let mut expected = Vec::new();
    for part in [&b"one"[..], b" two", &[b'x'; 70_000]] {
        on.write_all(part).unwrap();
        expected.extend_from_slice(part);
        assert_eq!(read_file(&source.path().join("file")), expected);
        assert_eq!(on.metadata().unwrap().len(), expected.len() as u64);
    }
}

#[test]
fn programs_run_from_a_strict_mount_and_libraries_are_mapped() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let program = source.path().join("program");
    fs::copy(fs::canonicalize("/bin/sh").unwrap(), &program).unwrap();
    set_mode(&program, 0o755);
    let mount = Way::Strict.start(source.path());
    let mut command = Command::new(mount.path().join("program"));
    assert_eq!(run(command.args(["-c", "echo well"])), "well\n");
    let script = mount.path().join("script");
    write_file(&script, b"#!/bin/sh\necho also\n");
    set_mode(&script, 0o755);
    let out = output(&mut Command::new(&script));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "also\n");
}

/// `tail -f` as programs do it: one descriptor, read on at the end.
#[test]
fn a_growing_file_is_followed_in_every_way() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for way in [Way::Ttl, Way::Strict, Way::Watch] {
        let source = Scratch::new();
        let path = source.file("log", b"first\n");
        let mount = way.start(source.path());
        let mut follower = File::open(mount.path().join("log")).unwrap();
        let mut seen = Vec::new();
        follower.read_to_end(&mut seen).unwrap();
        let mut writer = File::options().append(true).open(&path).unwrap();
        let mut written = b"first\n".to_vec();
        for line in 0..40 {
            let line = format!("line {line} {}\n", "x".repeat(line * 37));
            writer.write_all(line.as_bytes()).unwrap();
            written.extend_from_slice(line.as_bytes());
            way.shows(&format!("grown to {}", written.len()), || {
                follower.read_to_end(&mut seen).unwrap();
                seen.len() >= written.len()
            });
            assert_eq!(seen, written, "{way:?}");
        }
    }
}

#[test]
fn tail_follows_a_file_on_a_watched_mount() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("tail")]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("log", b"");
    let mount = Way::Watch.start(source.path());
    let out = source.path().join("out");
    let mut tail = Command::new("tail")
        .args(["-n", "+1", "-s", "0.1", "-f"])
        .arg(mount.path().join("log"))
        .stdout(File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let mut writer = File::options().append(true).open(&path).unwrap();
    let mut written = Vec::new();
    for line in 0..20 {
        let line = format!("line {line}\n");
        writer.write_all(line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        std::thread::sleep(Duration::from_millis(10));
    }
    let start = Instant::now();
    while read_file(&out) != written && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = tail.kill();
    let _ = tail.wait();
    assert_eq!(
        String::from_utf8_lossy(&read_file(&out)),
        String::from_utf8_lossy(&written)
    );
}

/// What this mirror writes for its users costs them no cached page, and no working directory.
#[test]
fn the_mirrors_own_changes_are_no_news() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Way::Watch.start(source.path());
    let folder = mount.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let script = "echo one > a; mv a b; ln b c; rm c; echo two > b; chmod 600 b; sleep 0.3; pwd -P";
    let mut shell = Command::new("sh");
    let stands = run(shell.arg("-c").arg(script).current_dir(&folder));
    assert_eq!(Path::new(stands.trim_end()), folder);
    assert_eq!(read_file(&folder.join("b")), b"two\n");
    let stats = mount.stats();
    let told = |what| stats.value("corfs_invalidations_total", &[("what", what)]);
    assert!(
        stats.value("corfs_watch_events_total", &[]) > 0.0,
        "they were seen"
    );
    assert_eq!(told("data"), 0.0);
    // The one rename: that name is to be asked for once more.
    assert!(told("name") <= 1.0, "{}", told("name"));
}

#[test]
fn a_hangup_drops_names_and_attributes_and_bytes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("file", b"one");
    source.file("gone", b"");
    let long = "attr_timeout=3600,entry_timeout=3600";
    let mount = Mount::of(source.path()).opt(long).start();
    let on = mount.path().join("file");
    assert_eq!(read_file(&on), b"one");
    assert!(mount.path().join("gone").exists());
    fs::remove_file(source.path().join("gone")).unwrap();
    fs::remove_file(&path).unwrap();
    source.file("file", b"three");
    assert!(
        mount.path().join("gone").exists(),
        "the kernel was told to believe it"
    );
    mount.signal(Signal::HUP);
    comes_true("removed", PATIENCE, || !mount.path().join("gone").exists());
    comes_true("replaced", PATIENCE, || read_file(&on) == b"three");
}
