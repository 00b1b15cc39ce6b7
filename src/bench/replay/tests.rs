//! What a log says is done again, and nothing outside of the directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use super::*;
use crate::observe::Op;

fn entry(op: Op, path: &str) -> Entry {
    Entry {
        time: Duration::from_secs(5),
        op,
        path: Some(path.into()),
        other: None,
        offset: None,
        size: None,
        mode: None,
        flags: None,
        errno: 0,
        took: Duration::from_micros(10),
        uid: 0,
        pid: 0,
        handle: None,
        bytes: None,
        to_handle: None,
        to_offset: None,
    }
}

/// `outside` lies beside `dir`, in which everything happens.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        fs::write(folder.path().join("outside"), "outside").unwrap();
        Self(folder)
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("dir")
    }

    fn play(&self, entries: &[Entry]) -> Vec<Played> {
        let mut actor = Actor::new(&self.dir()).unwrap();
        entries.iter().map(|entry| actor.play(entry)).collect()
    }
}

#[test]
fn a_life_of_files_is_played() {
    let ground = Ground::new();
    let with = |op, path: &str, set: &dyn Fn(&mut Entry)| {
        let mut entry = entry(op, path);
        set(&mut entry);
        entry
    };
    let range = |entry: &mut Entry| (entry.offset, entry.size) = (Some(3), Some(5));
    let to = |other: &'static str| move |entry: &mut Entry| entry.other = Some(other.into());
    let entries = [
        with(Op::Mkdir, "sub", &|e| e.mode = Some(0o755)),
        with(Op::Create, "sub/a", &|e| {
            (e.mode, e.flags) = (Some(0o644), Some(2))
        }),
        with(Op::Write, "sub/a", &range),
        with(Op::Read, "sub/a", &range),
        with(Op::Setattr, "sub/a", &|e| {
            (e.size, e.mode) = (Some(4), Some(0o600))
        }),
        with(Op::Fsync, "sub/a", &|_| ()),
        with(Op::Lookup, "sub/a", &|_| ()),
        with(Op::Getattr, "", &|_| ()),
        with(Op::Link, "sub/a", &to("sub/b")),
        with(Op::Symlink, "sub/s", &to("a")),
        with(Op::Readlink, "sub/s", &|_| ()),
        with(Op::Rename, "sub/a", &to("c")),
        with(Op::Readdirplus, "sub", &|e| e.offset = Some(0)),
        with(Op::Open, "c", &|e| e.flags = Some(0)),
        with(Op::Release, "c", &|_| ()),
        with(Op::Statfs, "", &|_| ()),
        with(Op::Access, "c", &|e| e.flags = Some(4)),
        with(Op::Unlink, "sub/s", &|_| ()),
        with(Op::Unlink, "sub/b", &|_| ()),
        with(Op::Rmdir, "sub", &|_| ()),
    ];
    let played = ground.play(&entries);
    for (entry, played) in entries.iter().zip(&played) {
        assert_eq!(*played, Played::Ended(0), "{entry:?}");
    }
    let left = ground.dir().join("c");
    assert_eq!(fs::read(&left).unwrap(), [0; 4]);
    assert_eq!(
        fs::metadata(&left).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(fs::read_dir(ground.dir()).unwrap().count(), 1);
}

#[test]
fn no_name_leads_out() {
    let ground = Ground::new();
    symlink("../outside", ground.dir().join("file")).unwrap();
    fs::write(ground.dir().join("plain"), "plain").unwrap();
    symlink("..", ground.dir().join("up")).unwrap();
    symlink(ground.0.path(), ground.dir().join("absolute")).unwrap();
    let outside = [
        "../outside",
        "up/outside",
        "absolute/outside",
        "/etc/hostname",
        "file",
    ];
    let whole = ground.0.path().join("outside");
    let before = fs::metadata(&whole).unwrap();
    for path in outside {
        for op in [
            Op::Write,
            Op::Read,
            Op::Setattr,
            Op::Open,
            Op::Create,
            Op::Fallocate,
            Op::CopyFileRange,
        ] {
            let mut entry = entry(op, path);
            (entry.offset, entry.size) = (Some(0), Some(1));
            if op == Op::CopyFileRange {
                (entry.other, entry.to_offset) = (entry.path.replace(b"plain".to_vec()), Some(0));
            }
            (entry.flags, entry.mode) = (
                Some(libc::O_RDWR as u32 | libc::O_TRUNC as u32),
                Some(0o777),
            );
            let played = ground.play(&[entry])[0];
            assert!(
                matches!(played, Played::Ended(errno) if errno != 0),
                "{op:?} {path}: {played:?}"
            );
        }
    }
    for path in outside {
        let mut mode = entry(Op::Setattr, path);
        mode.mode = Some(0);
        let played = ground.play(&[mode])[0];
        assert!(
            matches!(played, Played::Ended(errno) if errno != 0),
            "{path}"
        );
    }
    for path in &outside[..4] {
        for op in [Op::Unlink, Op::Rename, Op::Link, Op::Lookup] {
            let mut away = entry(op, path);
            away.other = Some(b"mine".to_vec());
            let mut there = entry(op, "file");
            there.other = Some(path.as_bytes().to_vec());
            let played = ground.play(&[away])[0];
            assert!(
                matches!(played, Played::Ended(errno) if errno != 0),
                "{op:?} {path}: {played:?}"
            );
            if matches!(op, Op::Rename | Op::Link) {
                let played = ground.play(&[there])[0];
                assert!(
                    matches!(played, Played::Ended(errno) if errno != 0),
                    "{op:?} to {path}"
                );
            }
        }
    }
    assert_eq!(fs::read(&whole).unwrap(), b"outside");
    let after = fs::metadata(&whole).unwrap();
    assert_eq!(after.permissions(), before.permissions());
    assert_eq!(fs::read_dir(ground.0.path()).unwrap().count(), 2);
    // A link itself may be renamed and removed: it is in the directory.
    assert_eq!(
        ground.play(&[entry(Op::Unlink, "file")]),
        [Played::Ended(0)]
    );
}

#[test]
fn devices_and_what_needs_a_program_are_left_out() {
    let ground = Ground::new();
    let mut device = entry(Op::Mknod, "null");
    device.mode = Some(libc::S_IFCHR | 0o666);
    let mut nameless = entry(Op::Read, "");
    nameless.path = None;
    let setxattr = entry(Op::Setxattr, "");
    let played = ground.play(&[device, nameless, setxattr, entry(Op::Setlk, "x")]);
    assert_eq!(played, [Played::LeftOut; 4]);
    let fifo = ground.dir().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let mut read = entry(Op::Read, "fifo");
    (read.offset, read.size) = (Some(0), Some(1));
    assert_eq!(
        ground.play(&[read]),
        [Played::Ended(libc::EOPNOTSUPP)],
        "and does not wait"
    );
}

/// A file of the log that is open under that number.
fn made(path: &str, handle: u64, flags: i32) -> Entry {
    let mut made = entry(Op::Create, path);
    (made.mode, made.flags) = (Some(0o644), Some(flags as u32));
    made.handle = Some(handle);
    made
}

fn written(path: Option<&str>, handle: Option<u64>, size: u64) -> Entry {
    let mut write = entry(Op::Write, "");
    write.path = path.map(Into::into);
    write.handle = handle;
    (write.offset, write.size) = (Some(0), Some(size));
    write
}

#[test]
fn ranges_are_copied_between_files() {
    let ground = Ground::new();
    fs::write(ground.dir().join("from"), "0123456789").unwrap();
    let mut copy = entry(Op::CopyFileRange, "from");
    copy.other = Some(b"to".to_vec());
    (copy.offset, copy.size) = (Some(2), Some(1 << 20));
    (copy.to_handle, copy.to_offset) = (Some(7), Some(1));
    let played = ground.play(&[made("to", 7, libc::O_WRONLY), copy]);
    assert_eq!(played, [Played::Ended(0); 2]);
    assert_eq!(fs::read(ground.dir().join("to")).unwrap(), b"\x0023456789");
}

/// As git makes its objects: nobody may open them for writing once more.
#[test]
fn a_file_is_written_by_who_made_it_until_it_is_released() {
    let ground = Ground::new();
    let file = ground.dir().join("object");
    let mut object = made("object", 3, libc::O_RDWR | libc::O_APPEND | libc::O_EXCL);
    object.mode = Some(0o444);
    let mut release = entry(Op::Release, "object");
    release.handle = Some(3);
    let mut actor = Actor::new(&ground.dir()).unwrap();
    assert_eq!(actor.play(&object), Played::Ended(0));
    // Whatever stands there now is not what the log had opened.
    fs::rename(&file, ground.dir().join("elsewhere")).unwrap();
    for _ in 0..2 {
        let write = written(Some("object"), Some(3), 5);
        assert_eq!(actor.play(&write), Played::Ended(0));
    }
    assert_eq!(actor.moved(), Some(5));
    let elsewhere = fs::metadata(ground.dir().join("elsewhere")).unwrap();
    assert_eq!(elsewhere.len(), 5, "by its offset, though it appends");
    assert_eq!(actor.play(&release), Played::Ended(0));
    let late = actor.play(&written(Some("object"), Some(3), 5));
    assert_eq!(late, Played::Ended(libc::ENOENT));
}

#[test]
fn modes_are_made_as_the_log_has_them() {
    let ground = Ground::new();
    let mut folder = entry(Op::Mkdir, "folder");
    folder.mode = Some(0o777);
    let mut file = made("file", 1, libc::O_WRONLY);
    file.mode = Some(0o666);
    assert_eq!(ground.play(&[folder, file]), [Played::Ended(0); 2]);
    for (name, mode) in [("folder", 0o777), ("file", 0o666)] {
        let made = fs::metadata(ground.dir().join(name)).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn what_has_no_name_is_not_another_of_that_name() {
    let ground = Ground::new();
    let entries = [
        made("name", 1, libc::O_RDWR),
        entry(Op::Unlink, "name"),
        made("name", 2, libc::O_RDWR),
        written(None, Some(1), 9),
        // Opened before the log began.
        written(None, Some(77), 9),
        written(None, None, 9),
    ];
    let played = ground.play(&entries);
    assert_eq!(played[..4], [Played::Ended(0); 4]);
    assert_eq!(played[4..], [Played::LeftOut; 2]);
    assert_eq!(fs::metadata(ground.dir().join("name")).unwrap().len(), 0);
}

#[test]
fn more_files_than_are_kept_open_are_reached_by_name() {
    let ground = Ground::new();
    let mut actor = Actor::new(&ground.dir()).unwrap();
    let name = |number: u64| format!("{number}");
    for number in 0..600 {
        let made = made(&name(number), number, libc::O_RDWR);
        assert_eq!(actor.play(&made), Played::Ended(0), "{number}");
    }
    for number in 0..600 {
        let write = written(Some(&name(number)), Some(number), 3);
        assert_eq!(actor.play(&write), Played::Ended(0), "{number}");
        let stat = fs::metadata(ground.dir().join(name(number))).unwrap();
        assert_eq!(stat.len(), 3);
    }
}

#[test]
fn another_number_of_bytes_is_told() {
    let ground = Ground::new();
    fs::write(ground.dir().join("short"), "123").unwrap();
    let log = ground.0.path().join("log");
    let mut read = entry(Op::Read, "short");
    (read.offset, read.size) = (Some(0), Some(4096));
    let mut lines = String::from(HEADER);
    for bytes in [Some(3), None, Some(4096)] {
        read.bytes = bytes;
        lines.push_str(&read.line());
    }
    fs::write(&log, lines).unwrap();
    let replay = Replay {
        log,
        directory: ground.dir(),
        timed: false,
    };
    let words = run(&replay).unwrap();
    assert!(
        words.contains("first: 4096 bytes then, 3 bytes now"),
        "{words}"
    );
    let row: Vec<&str> = words.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[1], row[6]), ("3", "1"), "{words}");
}

#[test]
fn open_files_of_one_log_are_not_those_of_the_next() {
    let ground = Ground::new();
    for name in ["first", "second"] {
        fs::write(ground.dir().join(name), "").unwrap();
    }
    let log = ground.0.path().join("log");
    let mut open = entry(Op::Open, "first");
    (open.flags, open.handle) = (Some(libc::O_RDWR as u32), Some(5));
    // The daemon of the second began with the same numbers, before somebody read its log.
    let mut write = entry(Op::Write, "second");
    (write.offset, write.size, write.handle) = (Some(0), Some(3), Some(5));
    let text = format!("{HEADER}{}{HEADER}{}", open.line(), write.line());
    fs::write(&log, text).unwrap();
    run(&Replay {
        log,
        directory: ground.dir(),
        timed: false,
    })
    .unwrap();
    let size = |name| fs::metadata(ground.dir().join(name)).unwrap().len();
    assert_eq!((size("first"), size("second")), (0, 3));
}

#[test]
fn what_was_refused_changes_nothing_now() {
    let ground = Ground::new();
    fs::write(ground.dir().join("file"), "content").unwrap();
    let refused = |op, errno| {
        let mut entry = entry(op, "file");
        (entry.errno, entry.mode) = (errno, Some(0o600));
        entry.flags = Some((libc::O_WRONLY | libc::O_TRUNC) as u32);
        entry
    };
    let played = ground.play(&[
        refused(Op::Unlink, libc::EACCES),
        refused(Op::Setattr, libc::EROFS),
        refused(Op::Open, libc::EACCES),
        refused(Op::Mkdir, libc::EEXIST),
    ]);
    let left_out = |at: usize| matches!(played[at], Played::LeftOut);
    assert!(left_out(0) && left_out(1), "{played:?}");
    assert!(matches!(played[3], Played::Ended(libc::EEXIST)));
    let text = fs::read_to_string(ground.dir().join("file")).unwrap();
    assert_eq!(text, "content");
}

#[test]
fn no_more_is_copied_than_was() {
    let ground = Ground::new();
    fs::write(ground.dir().join("from"), [7; 5000]).unwrap();
    fs::write(ground.dir().join("to"), "").unwrap();
    let mut copy = entry(Op::CopyFileRange, "from");
    (copy.other, copy.offset, copy.to_offset) = (Some("to".into()), Some(0), Some(0));
    (copy.size, copy.bytes) = (Some(1 << 20), Some(100));
    ground.play(&[copy]);
    assert_eq!(fs::read(ground.dir().join("to")).unwrap(), [7; 100]);
}

#[test]
fn the_account_tells_what_ended_otherwise_and_what_was_lost() {
    let ground = Ground::new();
    let log = ground.0.path().join("log");
    let missing = entry(Op::Lookup, "none").line();
    let text = format!(
        "{HEADER}{missing}{LOST}7\n{}nonsense\n",
        entry(Op::Statfs, "").line()
    );
    fs::write(&log, text).unwrap();
    let mut replay = Replay {
        log: log.clone(),
        directory: ground.dir(),
        timed: true,
    };
    let words = run(&replay).unwrap();
    assert!(words.contains("first: well then, No such file"), "{words}");
    assert!(words.contains("7 operations were lost"), "{words}");
    assert!(words.contains("1 lines are no operations"), "{words}");
    fs::write(&log, "something else\n").unwrap();
    assert!(run(&replay).unwrap_err().0.contains("no log of operations"));
    replay.directory = "/nonexistent".into();
    assert!(run(&replay).is_err());
}

/// A damaged log, or one that somebody else has written.
#[test]
fn numbers_that_no_clock_has_are_survived() {
    let ground = Ground::new();
    let log = ground.0.path().join("log");
    let mut late = entry(Op::Statfs, "");
    late.time = Duration::from_secs(u64::MAX);
    let mut long = entry(Op::Lookup, "none");
    long.took = Duration::from_secs(u64::MAX);
    let lost = format!("{LOST}{}\n", u64::MAX);
    let lines = [entry(Op::Statfs, ""), late, long].map(|entry| entry.line());
    fs::write(&log, format!("{HEADER}{}{lost}{lost}", lines.concat())).unwrap();
    for timed in [true, false] {
        let replay = Replay {
            log: log.clone(),
            directory: ground.dir(),
            timed,
        };
        let words = run(&replay).unwrap();
        assert!(words.contains("lookup"), "{words}");
        let unread = words.contains("1 lines are no operations");
        assert_eq!(unread, timed, "{words}");
    }
}
