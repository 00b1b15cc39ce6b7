//! The end of a mount while copies are under way: they end, and leave nothing.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use super::*;
use crate::support::{
    FaultySource, Need, On, Scratch, corfs, is_mounted, require, sh, soak, write_content,
};

/// A shell that waits for a copy.
fn waits(dir: &Path, line: &str) -> Child {
    let mut writer = sh(dir, &format!("echo {line} > .copy"));
    writer.stderr(Stdio::null()).spawn().expect("sh")
}

#[test]
fn a_signal_to_the_daemon_ends_copies_that_are_waited_for() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // Each takes the seconds that copies have left.
    let all = [
        ("auto", false),
        ("off", false),
        ("auto", true),
        ("off", true),
    ];
    for (sandbox, of_server) in all.into_iter().take(soak(4).max(2) as usize) {
        let source = Scratch::new();
        write_content(&source.path().join("f"), 1, 8 << 20);
        let opt = format!("sandbox={sandbox}");
        let mut mount = Mount::of(source.path()).opt(opt).start();
        tell(mount.path(), "--limit 1K f back &").unwrap();
        let mut writer = waits(mount.path(), "--limit 1K f to");
        wait_until("both run", PATIENCE, || {
            let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
            list.matches(" running").count() >= 2
        });
        match of_server {
            true => mount.signal_server(Signal::TERM),
            false => mount.signal(Signal::TERM),
        }
        // Nobody else has anything open, so it goes when the writer has his answer.
        let status = mount.wait(PATIENCE).expect("the daemon ends");
        assert!(status.success(), "{}", mount.log());
        assert!(!writer.wait().unwrap().success());
        assert_eq!(names(source.path()), ["f"]);
    }
}

#[test]
fn a_signal_ends_the_daemon_although_a_copy_hangs_in_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (file, tree) = ("--method=map-write f to", "-r d to");
    // Each takes some seconds: so long the server's last words are waited for.
    let all = [
        (On::Write, file),
        (On::Create, tree),
        (On::Read, tree),
        (On::Open, file),
        (On::Create, file),
        (On::Write, tree),
    ];
    let some = usize::try_from(soak(6)).unwrap().max(2);
    for (on, line) in all.into_iter().take(some) {
        let source = FaultySource::new();
        let store = source.store();
        write_content(&store.join("f"), 1, 1 << 20);
        fs::create_dir(store.join("d")).unwrap();
        write_content(&store.join("d/f"), 1, 1 << 20);
        let mut mount = Mount::of(source.path()).start();
        let place = mount.path().to_owned();
        source.faults().hang(on, None);
        let mut writer = waits(mount.path(), line);
        source.faults().await_hanging(on, 1);
        mount.signal(Signal::TERM);
        wait_until("the writer is answered", PATIENCE, || {
            writer.try_wait().unwrap().is_some()
        });
        wait_until("the name is gone", PATIENCE, || {
            !is_mounted(&place, "fuse.corfs")
        });
        let start = Instant::now();
        let ended = mount.wait(PATIENCE);
        let hangs = source.faults().hanging(on) > 0;
        assert!(ended.is_some(), "{on:?} {line}: the daemon stays");
        assert!(hangs, "{on:?}: nothing hung any more");
        println!("{on:?} {line}: {:?}", start.elapsed());
        source.faults().heal();
    }
}

#[test]
fn an_unmount_ends_copies_in_the_background_and_leaves_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    write_content(&at.join("f"), 1, 8 << 20);
    source.dir("d");
    write_content(&at.join("d/f"), 1, 8 << 20);
    for plain in [true, false] {
        let mut mount = Mount::of(at).start();
        tell(mount.path(), "--limit 1K f to &\n--limit 1K -r d d2 &").unwrap();
        wait_until("the tree is begun", PATIENCE, || at.join("d2").exists());
        let mut umount = match plain {
            true => corfs(),
            false => Command::new("umount"),
        };
        if plain {
            umount.arg("umount");
        }
        // The look at the list may still be on its way out.
        wait_until("nothing keeps it", PATIENCE, || {
            umount.arg(mount.path()).stderr(Stdio::null());
            umount.status().unwrap().success()
        });
        let status = mount.wait(PATIENCE).expect("the daemon ends");
        assert!(status.success(), "{}", mount.log());
        assert_eq!(names(&at.join("d2")), [""; 0]);
        fs::remove_dir(at.join("d2")).unwrap();
        assert_eq!(names(at), ["d", "f"]);
    }
}
