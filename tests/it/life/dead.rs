//! What a daemon that was killed leaves, and how it is taken away.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use super::{PATIENCE, family};
use crate::command::{Stand, processes_with, refuses};
use crate::support::{
    Need, OTHER, Tmpfs, USER, as_user, errno_of, is_mounted, output, require, run, set_owner,
    wait_until,
};

/// Kills all that serves the mount, which stays.
fn kill(stand: &Stand) {
    for pid in family(stand) {
        let _ = kill_process(pid, Signal::KILL);
    }
    wait_until("they are dead", PATIENCE, || family(stand).is_empty());
    assert!(stand.is_mounted());
    let errno = errno_of("a dead mount", fs::read_dir(&stand.point));
    // Of a user's mount root learns nothing.
    assert!(
        matches!(errno, Errno::NOTCONN | Errno::CONNABORTED | Errno::ACCESS),
        "{errno}"
    );
}

fn killed(stand: &Stand, ids: Option<(u32, u32)>) {
    let mut command = stand.mount(&[]);
    if let Some((uid, gid)) = ids {
        as_user(&mut command, uid, gid);
    }
    run(&mut command);
    kill(stand);
}

#[test]
fn a_dead_mount_of_any_name_goes_by_any_way_to_say_it() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    for ids in [None, Some((USER, OTHER))] {
        for name in [
            "mnt",
            "with space",
            "new\nline\tand tab",
            "back\\040slash",
            "-l",
        ] {
            let stand = Stand::named("source", name);
            if let Some((uid, gid)) = ids {
                set_owner(&stand.point, uid, gid);
                set_owner(&stand.source, uid, gid);
            }
            let folder = stand.scratch().path();
            symlink(&stand.point, folder.join("link")).unwrap();
            let absolute = stand.point.to_str().unwrap();
            for words in [
                vec![absolute.to_owned()],
                vec![format!("{absolute}/")],
                vec!["--".to_owned(), name.to_owned()],
                vec![format!("./source/../{name}//")],
                vec!["link".to_owned()],
                vec!["--lazy".to_owned(), absolute.to_owned()],
                vec!["--force".to_owned(), format!("./{name}")],
            ] {
                killed(&stand, ids);
                let mut command = stand.corfs(["umount"]);
                command.args(&words).current_dir(folder);
                if let Some((uid, gid)) = ids {
                    as_user(&mut command, uid, gid);
                }
                run(&mut command);
                assert!(!stand.is_mounted(), "{words:?}");
            }
        }
    }
}

#[test]
fn a_dead_mount_goes_alone_whatever_lives_around_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    // Below: a living file system, on whose root it was mounted.
    let below = Tmpfs::at(&stand.point, 1 << 20);
    killed(&stand, None);
    assert!(stand.umount(&[]).status.success());
    assert!(!stand.is_mounted() && is_mounted(below.path(), "tmpfs"));
    // On top: another that hides it, and is nobody's to unmount in its stead.
    killed(&stand, None);
    let above = Tmpfs::at(&stand.point, 1 << 20);
    let mut umount = stand.corfs(["umount"]);
    refuses(
        umount.arg(&stand.point),
        32,
        &["not a corfs mount but tmpfs"],
    );
    assert!(stand.is_mounted() && is_mounted(above.path(), "tmpfs"));
    drop(above);
    assert!(stand.umount(&[]).status.success());
    assert!(!stand.is_mounted());
    // Its folder: in a living mount of ours.
    let outer = Stand::new().mounted(&[]);
    fs::create_dir_all(outer.source.join("deep/er")).unwrap();
    let inner = outer.point.join("deep/er");
    run(&mut stand.corfs([&stand.source, &inner]));
    for pid in processes_with(&inner) {
        let _ = kill_process(pid, Signal::KILL);
    }
    wait_until("it is dead", PATIENCE, || fs::read_dir(&inner).is_err());
    run(stand.corfs(["umount"]).arg(&inner));
    assert!(!is_mounted(&inner, "fuse.corfs") && outer.is_mounted());
    fs::write(inner.join("f"), "the living one's").unwrap();
    assert_eq!(
        fs::read(outer.source.join("deep/er/f")).unwrap(),
        b"the living one's"
    );
}

#[test]
fn a_dead_mount_in_use_says_so_and_goes_lazily() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    run(&mut stand.mount(&[]));
    let user = File::open(stand.file()).unwrap();
    kill(&stand);
    let mut umount = stand.corfs(["umount", "."]);
    refuses(umount.current_dir(&stand.point), 32, &["busy", "--lazy"]);
    assert!(stand.is_mounted());
    run(stand
        .corfs(["umount", "--lazy", "."])
        .current_dir(&stand.point));
    assert!(!stand.is_mounted());
    drop(user);
}

#[test]
fn a_folder_of_a_dead_mount_is_not_its_root() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    fs::create_dir(stand.source.join("folder")).unwrap();
    run(&mut stand.mount(&[]));
    let umount = |path: &Path| {
        let mut command = stand.corfs(["umount"]);
        command.arg(path);
        command
    };
    let root = stand.point.display().to_string();
    let folder = stand.point.join("folder");
    refuses(&mut umount(&folder), 32, &["not mounted", "lies in", &root]);
    refuses(&mut umount(&stand.file()), 32, &["Not a directory"]);
    kill(&stand);
    // Whether the kernel still knows the folder or not.
    refuses(&mut umount(&folder), 32, &["lies in"]);
    wait_until("the kernel asks again", PATIENCE, || {
        let out = output(&mut umount(&folder));
        assert_eq!(out.status.code(), Some(32), "{out:?}");
        String::from_utf8_lossy(&out.stderr).contains("in a mount whose daemon is dead")
    });
    run(&mut umount(&stand.point));
}

#[test]
fn what_stood_in_the_source_outlives_a_killed_daemon() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    run(&mut stand.mount(&[]));
    let path = stand.point.join("written");
    fs::write(&path, "by a daemon that died").unwrap();
    kill(&stand);
    // What write(2) took is the source's, with no close and no fsync.
    assert_eq!(
        fs::read(stand.source.join("written")).unwrap(),
        b"by a daemon that died"
    );
    run(stand.corfs(["umount"]).arg(&stand.point));
    run(&mut stand.mount(&[]));
    assert_eq!(fs::read(&path).unwrap(), b"by a daemon that died");
    run(Command::new("umount").arg(&stand.point));
}
