//! Who mounts, and through what: an ordinary user, mount(8), fstab.

use std::fs;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use super::{PATIENCE, Stand};
use crate::support::{Need, USER, as_user, output, require, run, sbin, set_owner, wait_until};

/// A stand whose ends belong to an ordinary user.
fn users(source: &str, point: &str) -> Stand {
    let stand = Stand::named(source, point);
    for path in [&stand.source, &stand.point] {
        set_owner(path, USER, USER);
    }
    stand
}

#[test]
fn a_user_mounts_any_name_and_unmounts_it() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    for (source, point) in [
        ("source", "mnt"),
        ("a b,ro\\,x\\", "m, n\\"),
        ("new\nline", "m\nn"),
    ] {
        let stand = users(source, point);
        run(as_user(&mut stand.mount(&[]), USER, USER));
        assert!(stand.is_mounted(), "{point:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let shown = stand.source.to_str().expect("text");
        let shown = shown
            .replace('\\', "\\134")
            .replace(' ', "\\040")
            .replace('\n', "\\012");
        let begin = format!("{shown} ");
        assert!(
            mounts.lines().any(|l| l.starts_with(&begin)),
            "{begin}: {mounts}"
        );
        let mut command = Command::new("cat");
        let content = run(as_user(command.arg(stand.file()), USER, USER));
        assert_eq!(content, "content");
        let mut command = stand.corfs(["umount"]);
        run(as_user(command.arg(&stand.point), USER, USER));
        stand.await_end();
    }
}

#[test]
fn a_users_mount_ends_by_signal_too_idle_or_busy() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = users("source", "mnt");
    run(as_user(&mut stand.mount(&[]), USER, USER));
    kill_process(stand.daemon(), Signal::TERM).expect("kill");
    stand.await_end();
    assert!(!stand.is_mounted());
    run(as_user(&mut stand.mount(&[]), USER, USER));
    let file = crate::support::apart(Some((USER, USER)), || fs::File::open(stand.file()));
    let file = file.expect("open");
    kill_process(stand.daemon(), Signal::TERM).expect("kill");
    wait_until("the name is gone", PATIENCE, || !stand.is_mounted());
    assert_eq!(stand.daemons().len(), 2, "the daemon left its user");
    drop(file);
    stand.await_end();
}

#[test]
fn a_dead_mount_of_a_user_is_cleaned_by_that_user() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = users("source", "mnt");
    run(as_user(&mut stand.mount(&[]), USER, USER));
    kill_process(stand.daemon(), Signal::KILL).expect("kill");
    stand.await_end();
    let mut command = stand.mount(&[]);
    super::refuses(
        as_user(&mut command, USER, USER),
        32,
        &["dead mount", "corfs umount"],
    );
    let mut command = stand.corfs(["umount"]);
    run(as_user(command.arg(&stand.point), USER, USER));
    assert!(!stand.is_mounted());
}

#[test]
fn auto_unmount_holds_for_a_user_too() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = users("source", "mnt");
    run(as_user(
        &mut stand.mount(&["-o", "auto_unmount"]),
        USER,
        USER,
    ));
    kill_process(stand.daemon(), Signal::KILL).expect("kill");
    wait_until("the dead mount is gone", PATIENCE, || !stand.is_mounted());
    stand.await_end();
}

#[test]
fn mount_and_fstab_mount_it_by_its_type() {
    if !require(&[
        Need::Fuse,
        Need::Root,
        Need::Tool("mount.fuse3"),
        Need::Tool("unshare"),
    ]) {
        return;
    }
    let stand = Stand::new();
    let fstab = stand.scratch().path().join("fstab");
    let (source, point) = (stand.source.display(), stand.point.display());
    let line =
        format!("{source} {point} fuse.corfs ro,noauto,nofail,_netdev,window=8M,x-a=b 0 0\n");
    fs::write(&fstab, line).expect("write");
    // mount.fuse3 looks the program up where an administrator installs it.
    let script = "set -e
        mount -t tmpfs none /usr/local/bin
        cp \"$1\" /usr/local/bin/corfs
        mount -t fuse.corfs \"$2\" \"$3\" -o ro,noatime,user,control=visible
        grep \" $3 \" /proc/self/mounts; cat \"$3/file\"; ls -A \"$3\"
        corfs umount \"$3\"
        mount -T \"$4\" \"$3\"
        grep \" $3 \" /proc/self/mounts; grep ^window= \"$3/.corfs/config\"
        umount \"$3\"
        ! mount -t fuse.corfs \"$2\" \"$3\" -o frobnicate";
    let mut command = Command::new(sbin("unshare"));
    command.args(["-m", "sh", "-c", script, "sh"]);
    let out = output(command.args([&stand.binary, &stand.source, &stand.point, &fstab]));
    let (said, errors) = (
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    );
    assert!(out.status.success(), "{said}{errors}");
    assert!(
        said.contains("fuse.corfs ro,nosuid,nodev,noexec,noatime,"),
        "{said}"
    );
    assert!(said.contains("content") && said.contains(".copy"), "{said}");
    assert!(said.contains("window=8388608"), "{said}");
    assert!(errors.contains("frobnicate: not known"), "{errors}");
    stand.await_end();
}
