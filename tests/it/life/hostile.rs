//! Users who try what they can: garbage, crowds, positions that nobody gave them. The daemon lives,
//! and serves the others.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{RawDir, SeekFrom};
use rustix::io::Errno;

use super::load::{self, Load};
use crate::children::lock;
use crate::support::{
    Buffer, Dice, Mount, Need, Scratch, assert_content, require, soak, write_content,
};

/// The names from a position of a directory on, as the kernel gives them.
fn names_from(folder: &File, position: u64) -> Result<Vec<Vec<u8>>, Errno> {
    rustix::fs::seek(folder, SeekFrom::Start(position))?;
    let mut buffer = Vec::with_capacity(8192);
    let mut raw = RawDir::new(folder, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    Ok(names)
}

#[test]
fn any_position_of_a_directory_may_be_asked_for() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for n in 0..300 {
        source.file(&format!("file{n}"), b"");
    }
    for options in ["control=hidden", "control=visible"] {
        let mut mount = Mount::of(source.path()).opt(options).start();
        let at = mount.path().to_owned();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let at = &at;
                scope.spawn(move || {
                    let mut dice = Dice::new(seed);
                    let folder = File::open(at).unwrap();
                    for _ in 0..300 {
                        let position = match dice.below(4) {
                            0 => dice.below(1 << 63),
                            1 => (1 << 63) - 1 - dice.below(40),
                            2 => dice.below(400),
                            _ => 0,
                        };
                        // What is there is the source's to say; that it ends is ours.
                        let names = names_from(&folder, position);
                        let names = names.unwrap_or_else(|error| {
                            assert_eq!(error, Errno::INVAL, "{position}");
                            Vec::new()
                        });
                        assert!(names.len() <= 304);
                        assert!(position > 0 || names.len() >= 302);
                    }
                });
            }
        });
        assert!(mount.alive());
    }
}

/// A line for `.copy` that nobody would write.
fn garbage(dice: &mut Dice) -> Vec<u8> {
    const WORDS: [&[u8]; 22] = [
        b"big",
        b"..",
        b"../..",
        b"/",
        b"/etc/passwd",
        b"new",
        b".copy",
        b".corfs/stats",
        b"'",
        b"\"",
        b"\\",
        b"$'\\x",
        b"--method=map-map",
        b"--chunk=0",
        b"--chunk=1T",
        b"--",
        b"--help",
        b"&",
        b"\0",
        b"\xff\xfe",
        b"folder",
        b"loop/loop/loop",
    ];
    let mut line = Vec::new();
    for _ in 0..dice.below(6) {
        match dice.below(12) {
            0 => {
                for _ in 0..dice.below(300) {
                    line.push(dice.below(256) as u8);
                }
            }
            1 => line.extend(vec![b'x'; dice.below(70_000) as usize]),
            2 => line.push(b'\n'),
            _ => line.extend_from_slice(WORDS[dice.below(WORDS.len() as u64) as usize]),
        }
        if dice.below(3) > 0 {
            line.push(b' ');
        }
    }
    if dice.below(4) > 0 {
        line.push(b'\n');
    }
    line
}

#[test]
fn garbage_on_a_control_file_does_no_harm() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let outer = Scratch::new();
    let source = outer.dir("source");
    outer.file("outside", b"untouched");
    fs::create_dir(source.join("folder")).unwrap();
    std::os::unix::fs::symlink("loop", source.join("loop")).unwrap();
    std::os::unix::fs::symlink("../../outside", source.join("folder/out")).unwrap();
    load::furnish(&source);
    let mut mount = Mount::of(&source).start();
    let at = mount.path().to_owned();
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let at = &at;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                let folder = if seed % 2 == 0 {
                    at.clone()
                } else {
                    at.join("folder")
                };
                for _ in 0..soak(1000) {
                    let control = folder.join(".copy");
                    let mut file = File::options().write(true).open(&control).unwrap();
                    for _ in 0..=dice.below(3) {
                        let line = garbage(&mut dice);
                        let _ = file.write(&line);
                    }
                    if dice.below(5) == 0 {
                        let status = fs::read(&control).unwrap();
                        // One line a job, and one for its error, whatever the names were.
                        let shown = |c: char| c == '\n' || !(c.is_control() || c == '\u{fffd}');
                        let text = std::str::from_utf8(&status);
                        let text = text.is_ok_and(|text| text.chars().all(shown));
                        assert!(text, "{}", status.escape_ascii());
                    }
                }
            });
        }
    });
    assert!(mount.alive(), "{}", mount.log());
    assert!(mount.rss().anon < 128 << 20, "{:?}", mount.rss());
    assert_eq!(
        fs::read(outer.path().join("outside")).unwrap(),
        b"untouched"
    );
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    // The source may have copies now, each of them whole; its own file is as it was.
    let mut files = vec![source.clone()];
    while let Some(path) = files.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            files.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 600_000, "{path:?}");
            assert_content(77, 0, &bytes);
        }
    }
    let load = Load::start(mount.path(), None);
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
}

#[test]
fn a_crowd_of_openers_is_served() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    load::furnish(source.path());
    let mut mount = Mount::of(source.path()).descriptors(512).start();
    let load = Load::start(mount.path(), None);
    let crowd = format!(
        // So many at once as descriptors last for: who comes too late is refused, rightly.
        "for i in $(seq {}); do [ $((i % 40)) != 0 ] || wait; (
            for j in $(seq 20); do
                exec 3< big 4>> log 5< .corfs/stats 6> .copy
                read -r x <&5
                echo $i $j >&4
                exec 3<&- 4>&- 5<&- 6>&-
            done
        ) & done; wait",
        soak(400)
    );
    crate::support::run(&mut crate::support::sh(mount.path(), &crowd));
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    let log = fs::read_to_string(source.path().join("log")).unwrap();
    assert_eq!(log.lines().count() as u64, soak(400) * 20);
    assert!(mount.alive(), "{}", mount.log());
    let open = || mount.stats().value("corfs_handles", &[]);
    // The one that reads the statistics.
    crate::support::wait_until("all are closed", super::PATIENCE, || open() <= 1.0);
}

#[test]
fn files_closed_and_callers_signalled_while_they_read() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("f"), 9, 8 << 20);
    let mut mount = Mount::of(source.path()).start();
    let path = mount.path().join("f");
    let script =
        "trap : ALRM USR1; while :; do cat f > /dev/null; cat f | head -c 100000 > /dev/null; done";
    let mut readers: Vec<_> = (0..4)
        .map(|_| crate::support::sh(mount.path(), script).spawn().unwrap())
        .collect();
    let ended = AtomicBool::new(false);
    // A descriptor that is closed, and another opened in its place, while others read by it.
    let shared = std::sync::RwLock::new(File::open(&path).unwrap());
    std::thread::scope(|scope| {
        let (shared, ended, path) = (&shared, &ended, &path);
        for seed in 0..4 {
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                let mut bytes = vec![0; 300_000];
                while !ended.load(Ordering::Relaxed) {
                    let offset = dice.below(8 << 20);
                    let file = shared.read().unwrap().try_clone().unwrap();
                    let count = file.read_at(&mut bytes, offset).unwrap();
                    assert_content(9, offset, &bytes[..count]);
                }
            });
        }
        for round in 0..soak(1000) {
            *shared.write().unwrap() = File::open(path).unwrap();
            let reader = &readers[round as usize % readers.len()];
            let pid = rustix::process::Pid::from_child(reader);
            let signal = [
                rustix::process::Signal::ALARM,
                rustix::process::Signal::USR1,
            ];
            rustix::process::kill_process(pid, signal[round as usize % 2]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        ended.store(true, Ordering::Relaxed);
    });
    for reader in &mut readers {
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    assert!(mount.alive(), "{}", mount.log());
    let bytes = fs::read(&path).unwrap();
    assert_content(9, 0, &bytes);
}

#[test]
fn a_crowd_of_lockers_takes_turns() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let beneath = source.file("counter", &0_u64.to_le_bytes());
    let mut mount = Mount::of(source.path()).start();
    let path = mount.path().join("counter");
    let crowd = soak(1000);
    std::thread::scope(|scope| {
        for n in 0..crowd {
            // Every fourth comes from beneath.
            let path = if n % 4 == 0 { &beneath } else { &path };
            scope.spawn(move || {
                let file = File::options().read(true).write(true).open(path).unwrap();
                lock(&file, libc::F_OFD_SETLKW, "write", (0, 8)).unwrap();
                // Not from the page cache, which is of the time before the lock.
                let direct = File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(path)
                    .unwrap();
                let mut bytes = Buffer::new(4096);
                let count = direct.read_at(bytes.bytes(4096), 0).unwrap();
                assert_eq!(count, 8);
                let before = u64::from_le_bytes(bytes.bytes(8).try_into().unwrap());
                file.write_all_at(&(before + 1).to_le_bytes(), 0).unwrap();
                lock(&file, libc::F_OFD_SETLK, "unlock", (0, 8)).unwrap();
            });
        }
    });
    assert_eq!(fs::read(&beneath).unwrap(), crowd.to_le_bytes());
    assert!(mount.alive());
}
