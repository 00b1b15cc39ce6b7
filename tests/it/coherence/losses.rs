//! When events are lost, everything that the kernel cached is dropped.

use std::fs;

use rustix::process::{Pid, Signal};

use super::*;
use crate::support::{
    Need, Scratch, Tmpfs, USER, apart, read_file, require, set_owner, stop_process, write_file,
};

/// More than the queue of events holds by default (fs.fanotify.max_queued_events and
/// fs.inotify.max_queued_events, 16384 each).
fn more_than_the_queue_holds(kind: &str) -> u64 {
    let path = format!("/proc/sys/fs/{kind}/max_queued_events");
    let most: u64 = fs::read_to_string(path).unwrap().trim().parse().unwrap();
    most + 500
}

/// Continues the daemon also when the test fails: a stopped one could not be unmounted.
struct Stopped<'a>(&'a Mount);

impl<'a> Stopped<'a> {
    fn new(mount: &'a Mount) -> Self {
        let stopped = Self(mount);
        stop_process(Pid::from_raw(mount.server().cast_signed()).expect("a server"));
        stopped
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal_server(Signal::CONT);
    }
}

fn changes_beyond_the_queue_show(source: &Path, mount: &Mount, events: u64) {
    write_file(&source.join("file"), b"before");
    write_file(&source.join("gone"), b"");
    fs::create_dir(source.join("dir")).unwrap();
    let on = |name: &str| mount.path().join(name);
    assert_eq!(read_file(&on("file")), b"before");
    assert!(on("gone").exists() && on("dir").is_dir() && !on("new").exists());
    let noise = source.join("dir");
    let stopped = Stopped::new(mount);
    for n in 0..events {
        fs::File::create(noise.join(n.to_string())).unwrap();
    }
    // These come last, and find no room.
    write_file(&source.join("file"), b"afterwards");
    fs::remove_file(source.join("gone")).unwrap();
    write_file(&source.join("new"), b"");
    fs::rename(&noise, source.join("moved")).unwrap();
    drop(stopped);
    comes_true("overwritten", PATIENCE, || {
        read_file(&on("file")) == b"afterwards"
    });
    comes_true("removed", PATIENCE, || !on("gone").exists());
    comes_true("created", PATIENCE, || on("new").exists());
    comes_true("moved", PATIENCE, || {
        on("moved").is_dir() && !on("dir").exists()
    });
    assert!(mount.stats().value("corfs_watch_overflows_total", &[]) >= 1.0);
    assert!(
        mount.log().contains("changes of the source were lost"),
        "{}",
        mount.log()
    );
    // And the watch goes on.
    write_file(&source.join("file"), b"later");
    comes_true("later", PATIENCE, || read_file(&on("file")) == b"later");
}

#[test]
fn more_changes_than_the_queue_holds_drop_everything() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // A file system of its own: the machine's other events would take room in the queue.
    let source = Tmpfs::new(64 << 20);
    let mount = Way::Watch.start(source.path());
    let events = more_than_the_queue_holds("fanotify");
    changes_beyond_the_queue_show(source.path(), &mount, events);
}

#[test]
fn more_changes_than_an_ordinary_users_queue_holds_drop_everything() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, USER);
    let mount = Way::Inotify
        .mount(source.path())
        .as_user(USER, USER)
        .start();
    let events = more_than_the_queue_holds("inotify");
    apart(Some((USER, USER)), || {
        changes_beyond_the_queue_show(source.path(), &mount, events);
    });
}
