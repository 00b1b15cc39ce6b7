//! Mounted and unmounted, again and again, in every way and with people at work.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use super::load::{self, Load};
use super::{PATIENCE, family, head};
use crate::command::Stand;
use crate::support::{
    Need, OTHER, USER, as_user, is_mounted, output, require, set_mode, set_owner, soak, wait_until,
};

/// A way to end a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A program with these words, `CORFS` being ours, and the mountpoint.
    Words(&'static [&'static str]),
    Signal(Signal),
}

/// What becomes of those at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Users {
    /// The mount stays while they are there.
    Stay,
    /// They go on until they have enough.
    GoOn,
    /// They are cut off.
    CutOff,
}

const UMOUNT_FORCE: Way = Way::Words(&["umount", "-f", "-l"]);

const WAYS: [(Way, Users, bool); 10] = [
    (Way::Words(&["CORFS", "umount"]), Users::Stay, true),
    (Way::Signal(Signal::TERM), Users::GoOn, true),
    (Way::Words(&["umount"]), Users::Stay, false),
    (
        Way::Words(&["CORFS", "umount", "--lazy"]),
        Users::GoOn,
        true,
    ),
    (Way::Words(&["fusermount3", "-u"]), Users::Stay, true),
    (Way::Words(&["umount", "-l"]), Users::GoOn, false),
    (Way::Signal(Signal::INT), Users::GoOn, true),
    (Way::Words(&["CORFS", "umount", "-f"]), Users::CutOff, false),
    (Way::Words(&["fusermount3", "-uz"]), Users::GoOn, true),
    (UMOUNT_FORCE, Users::CutOff, false),
];

impl Way {
    /// Whether it went well.
    fn go(self, stand: &Stand, ids: Option<(u32, u32)>) -> bool {
        let words = match self {
            Self::Signal(signal) => return kill_process(head(stand), signal).is_ok(),
            Self::Words(words) => words,
        };
        let mut command = match words[0] {
            "CORFS" => stand.corfs([""; 0]),
            name => Command::new(name),
        };
        command.args(&words[1..]).arg(&stand.point);
        as_whom(&mut command, ids);
        output(&mut command).status.success()
    }
}

fn as_whom(command: &mut Command, ids: Option<(u32, u32)>) {
    if let Some((uid, gid)) = ids {
        as_user(command, uid, gid);
    }
}

/// One life: mounted in the foreground or not, worked upon, ended, gone.
fn live(stand: &Stand, way: Way, users: Users, foreground: bool, ids: Option<(u32, u32)>) {
    let child = begin(stand, foreground, ids);
    let load = Load::start(&stand.point, ids);
    load.await_progress();
    assert_no_zombie(stand);
    if users == Users::Stay {
        // A program of another test that is just being started may hold it too.
        assert!(!way.go(stand, ids), "{way:?}: unmounted though in use");
        assert!(stand.is_mounted());
        load.await_progress();
        assert_eq!(load.end(), [Ok(()); 4], "{way:?}");
        wait_until("it is free", PATIENCE, || way.go(stand, ids));
    } else {
        // Who forces it by umount(8) may find that the daemon was faster to take it away.
        assert!(
            way.go(stand, ids) || (way == UMOUNT_FORCE && !stand.is_mounted()),
            "{way:?}"
        );
        wait_until("the name is gone", PATIENCE, || !stand.is_mounted());
        if users == Users::GoOn {
            load.await_progress();
            assert_eq!(load.end(), [Ok(()); 4], "{way:?}");
        } else {
            for end in load.join() {
                let right = [Err(Errno::NOTCONN), Err(Errno::CONNABORTED)];
                assert!(right.contains(&end), "{way:?}: {end:?}");
            }
        }
    }
    if let Some(mut child) = child {
        let mut end = None;
        wait_until("the daemon ends", PATIENCE, || {
            end = child.try_wait().unwrap();
            end.is_some()
        });
        let log = std::fs::read_to_string(stand.scratch().path().join("log")).unwrap();
        let code = end.and_then(|s| s.code());
        // umount(8) ends the connection first: a daemon that is told of that long before the mount
        // goes takes it for an abort, and the mount away.
        let faster = way == UMOUNT_FORCE && code == Some(2) && log.contains("was aborted");
        assert!(code == Some(0) || faster, "{way:?}: {code:?}: {log}");
    }
    wait_until("no process is left", PATIENCE, || family(stand).is_empty());
    assert!(!is_mounted(&stand.point, "fuse.corfs"));
}

pub(super) fn begin(stand: &Stand, foreground: bool, ids: Option<(u32, u32)>) -> Option<Child> {
    let mut command = stand.mount(if foreground { &["-f"] } else { &[] });
    as_whom(&mut command, ids);
    if !foreground {
        crate::support::run(&mut command);
        return None;
    }
    let log = std::fs::File::create(stand.scratch().path().join("log")).unwrap();
    let child = command.stdin(Stdio::null()).stderr(log).spawn();
    wait_until("it is mounted", PATIENCE, || stand.is_mounted());
    Some(child.unwrap())
}

/// The daemon waits for the programs that it starts.
#[track_caller]
fn assert_no_zombie(stand: &Stand) {
    for pid in family(stand) {
        for child in super::children(pid) {
            let state = super::state(child);
            assert_ne!(state, Some(b'Z'), "a zombie of {pid:?}");
        }
    }
}

/// The descriptors of this process that lead there.
fn descriptors_below(path: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| {
            target
                .as_os_str()
                .as_bytes()
                .starts_with(path.as_os_str().as_bytes())
        })
        .collect()
}

fn cycles(ids: Option<(u32, u32)>, lives: u64) {
    let stand = Stand::new();
    load::furnish(&stand.source);
    if let Some((uid, gid)) = ids {
        set_owner(&stand.point, uid, gid);
        set_owner(&stand.source, uid, gid);
    } else {
        set_mode(&stand.source, 0o755);
    }
    let ways: Vec<_> = WAYS
        .iter()
        .filter(|(_, _, users_too)| ids.is_none() || *users_too)
        .collect();
    for life in 0..lives {
        let turn = life as usize;
        let (way, users, _) = *ways[turn % ways.len()];
        // Every way meets both grounds.
        let foreground = (turn / ways.len()).is_multiple_of(2) ^ turn.is_multiple_of(2);
        live(&stand, way, users, foreground, ids);
        load::assert_tidy(&stand.source);
    }
    let left = descriptors_below(&stand.point);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn nothing_is_left_of_many_lives() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("fusermount3")]) {
        return;
    }
    cycles(None, soak(1000));
}

#[test]
fn nothing_is_left_of_many_lives_of_a_users_mount() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    cycles(Some((USER, OTHER)), soak(500));
}
