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
        ] {
            let mut entry = entry(op, path);
            (entry.offset, entry.size) = (Some(0), Some(1));
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
