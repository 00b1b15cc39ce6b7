//! Every obstacle has its own words and its exit code, and leaves nothing mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use super::{Stand, refuses};
use crate::support::{Need, as_user, require, run, sbin, set_mode, sh};
use crate::support::{USER, set_owner};

#[test]
fn a_wrong_command_line_is_a_matter_of_usage() {
    let stand = Stand::new();
    refuses(&mut stand.corfs(["/only-one"]), 1, &["MOUNTPOINT"]);
    refuses(&mut stand.mount(&["--frobnicate"]), 1, &["--frobnicate"]);
    refuses(
        &mut stand.mount(&["-o", "ro,frobnicate"]),
        1,
        &["frobnicate", "not known"],
    );
    refuses(
        &mut stand.mount(&["-o", "allow_other,allow_root"]),
        1,
        &["only one"],
    );
    refuses(
        &mut stand.mount(&["--window=3K"]),
        1,
        &["window=3K", "64K to 1G"],
    );
    refuses(
        &mut stand.mount(&["-o", "window_budget=1M"]),
        1,
        &["window_budget=1M", "2M"],
    );
    refuses(&mut stand.mount(&["--control-name=a/b"]), 1, &["a/b"]);
    refuses(&mut stand.corfs(["umount"]), 1, &["MOUNTPOINT"]);
    assert!(!stand.is_mounted());
}

#[test]
fn each_end_of_a_mount_must_be_a_directory() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let file = stand.source.join("file");
    let (source, point) = (stand.source.as_path(), stand.point.as_path());
    let nowhere = Path::new("/nowhere/at/all");
    let cases = [
        (
            nowhere,
            point,
            "source /nowhere/at/all: No such file or directory",
        ),
        (&file, point, "file: Not a directory"),
        (
            source,
            nowhere,
            "mountpoint /nowhere/at/all: No such file or directory; make it first",
        ),
        (source, &file, "file: Not a directory"),
    ];
    for (from, to, words) in cases {
        refuses(&mut stand.corfs([from, to]), 32, &[words]);
        refuses(stand.corfs([from, to]).arg("-f"), 32, &[words]);
    }
    assert!(!stand.is_mounted());
}

#[test]
fn a_mountpoint_with_something_in_it_wants_to_be_asked_for() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    fs::write(stand.point.join("hidden"), "").expect("a file");
    refuses(&mut stand.mount(&[]), 32, &["not empty", "-o nonempty"]);
    let stand = stand.mounted(&["-o", "nonempty"]);
    assert!(!stand.point.join("hidden").exists());
    stand.unmounted();
    assert!(stand.point.join("hidden").exists());
}

#[test]
fn ends_within_each_other_are_refused_by_whatever_name() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let inner = stand.source.join("inner");
    fs::create_dir(&inner).expect("mkdir");
    let link = stand.scratch().path().join("link");
    symlink(&stand.source, &link).expect("a link");
    for source in [&stand.source, &link] {
        let within = "mountpoint lies inside the source";
        refuses(&mut stand.corfs([source, &inner]), 32, &[within]);
        refuses(
            stand.corfs([&inner, source]).args(["-o", "nonempty"]),
            32,
            &["source lies inside"],
        );
        refuses(
            &mut stand.corfs([source, &stand.source]),
            32,
            &["same directory"],
        );
    }
}

#[test]
fn a_bind_mount_does_not_hide_that_ends_overlap() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    let inner = stand.source.join("inner");
    fs::create_dir(&inner).expect("mkdir");
    let other = stand.scratch().dir("other name");
    let script = "set -e; mount --bind \"$1\" \"$2\"; \"$3\" \"$2\" \"$4\"";
    let mut command = unshared(script);
    command.args([&stand.source, &other, &stand.binary, &inner]);
    refuses(&mut command, 32, &["mountpoint lies inside the source"]);
}

/// A shell script, its arguments to follow, where mounts are nobody else's.
fn unshared(script: &str) -> Command {
    let mut command = Command::new(sbin("unshare"));
    command.args(["-m", "sh", "-c", script, "sh"]);
    command
}

#[test]
fn a_mountpoint_in_use_says_how_to_free_it() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    let point = stand.point.display().to_string();
    let remedy = format!("corfs umount {point}");
    refuses(&mut stand.mount(&[]), 32, &["already mounted", &remedy]);
    let daemon = stand.daemon();
    kill_process(daemon, Signal::KILL).expect("kill");
    stand.await_end();
    refuses(&mut stand.mount(&[]), 32, &["dead mount", &remedy]);
    assert!(stand.is_mounted());
    stand.unmounted();
    assert!(!stand.is_mounted());
    let stand = stand.mounted(&[]);
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
}

#[test]
fn a_dead_mount_is_unmounted_by_any_name() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let folder = stand.scratch().path();
    for name in ["mnt/", "./mnt", "source/../mnt"] {
        run(&mut stand.mount(&[]));
        kill_process(stand.daemon(), Signal::KILL).expect("kill");
        stand.await_end();
        run(stand.corfs(["umount", name]).current_dir(folder));
        assert!(!stand.is_mounted(), "{name}");
    }
}

#[test]
fn what_cannot_be_unmounted_is_said() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let umount = |path: &Path| {
        let mut command = stand.corfs(["umount"]);
        command.arg(path);
        command
    };
    refuses(&mut umount(&stand.point), 32, &["not mounted"]);
    refuses(
        &mut umount(Path::new("/nowhere")),
        32,
        &["/nowhere: No such file"],
    );
    refuses(
        &mut umount(Path::new("/proc")),
        32,
        &["not a corfs mount but proc"],
    );
    run(&mut stand.mount(&[]));
    let user = fs::File::open(stand.file()).expect("open");
    refuses(&mut umount(&stand.point), 32, &["busy", "--lazy"]);
    assert!(stand.is_mounted());
    drop(user);
    stand.unmounted();
    stand.await_end();
}

#[test]
fn a_log_that_cannot_be_opened_is_the_systems_fault() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    refuses(
        &mut stand.mount(&["--log-file=/nowhere/log"]),
        2,
        &["/nowhere/log: No such file"],
    );
    assert!(!stand.is_mounted());
}

#[test]
fn statistics_are_only_to_be_had_of_a_mount_of_ours() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let stat = |path: &Path| {
        let mut command = stand.corfs(["stat"]);
        command.arg(path);
        command
    };
    refuses(
        &mut stat(Path::new("/proc")),
        1,
        &["not in a corfs mount but in proc on /proc"],
    );
    refuses(
        &mut stat(Path::new("/nowhere")),
        2,
        &["/nowhere: No such file"],
    );
    fs::create_dir(stand.source.join(".corfs")).expect("mkdir");
    run(&mut stand.mount(&[]));
    refuses(
        &mut stat(&stand.point),
        2,
        &[".corfs/stats", "a .corfs of its own?"],
    );
}

#[test]
fn a_source_that_its_user_may_not_list_is_refused() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    set_owner(&stand.point, USER, USER);
    set_mode(&stand.source, 0o711);
    let mut command = stand.mount(&[]);
    refuses(
        as_user(&mut command, USER, USER),
        32,
        &["source", "Permission denied"],
    );
}

#[test]
fn a_user_learns_why_fusermount3_refused() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    let mut command = stand.mount(&[]);
    refuses(
        as_user(&mut command, USER, USER),
        32,
        &["no write access", "directories of his own"],
    );
    set_owner(&stand.point, USER, USER);
    let script = format!(
        "mount --bind /dev/null /etc/fuse.conf; exec setpriv --reuid {USER} --regid {USER} \
         --clear-groups \"$1\" \"$2\" \"$3\" -o allow_other"
    );
    let mut command = unshared(&script);
    command.args([&stand.binary, &stand.source, &stand.point]);
    refuses(&mut command, 32, &["user_allow_other", "/etc/fuse.conf"]);
}

#[test]
fn what_the_system_lacks_is_named_with_its_remedy() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    set_owner(&stand.point, USER, USER);
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    let hidden =
        "for f in /usr/bin/fusermount3 /bin/fusermount3; do mount --bind /dev/null $f; done";
    let shut = "cp -a /dev/fuse \"$4\"; chmod 600 \"$4\"; mount --bind \"$4\" /dev/fuse";
    let cases = [
        ("mount -t tmpfs none /dev", "", "modprobe fuse"),
        (shut, user.as_str(), "chmod 666 /dev/fuse"),
        (hidden, user.as_str(), "apt install fuse3"),
    ];
    for (lack, who, words) in cases {
        let mut command = unshared(&format!(
            "{lack}; PATH=/usr/bin:/bin exec {who} \"$1\" \"$2\" \"$3\""
        ));
        let device = stand.scratch().path().join("device");
        command.args([&stand.binary, &stand.source, &stand.point, &device]);
        refuses(&mut command, 32, &[words]);
        assert!(!stand.is_mounted());
    }
}

#[test]
fn a_mount_of_another_user_is_not_ours_to_unmount() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    let mut command = stand.corfs(["umount"]);
    command.arg(&stand.point);
    refuses(
        as_user(&mut command, USER, USER),
        32,
        &["user who mounted it"],
    );
    assert!(stand.is_mounted());
    let listing = format!("ls '{}'", stand.point.display());
    let mut listing = sh(Path::new("/"), &listing);
    let seen = crate::support::output(as_user(&mut listing, USER, USER));
    assert!(
        !seen.status.success(),
        "without allow_other nobody else comes in"
    );
}
