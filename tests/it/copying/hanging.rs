//! The source hangs.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::{FaultySource, Mount, Need, On, require, sh, write_content};

/// Waits for a child that was told to stop, while the source still hangs.
#[track_caller]
fn ends(mut child: std::process::Child) {
    wait_until("the caller is answered", PATIENCE, || {
        child.try_wait().unwrap().is_some()
    });
}

#[test]
fn a_cancel_is_answered_while_the_copy_hangs_and_what_it_made_goes_later() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store().to_owned();
    for (number, on) in [On::Read, On::Write, On::Create, On::Rename]
        .into_iter()
        .enumerate()
    {
        let name = format!("f{number}");
        write_content(&store.join(&name), 1, 4 << 20);
        fs::write(store.join("to"), "old").unwrap();
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let mount = Mount::of(source.path()).start();
            let listed = names(&store);
            source.faults().hang(on, None);
            let mut writer = sh(
                mount.path(),
                &format!("echo --method=map-write {name} to > .copy"),
            );
            let child = writer.stderr(Stdio::null()).spawn().unwrap();
            source.faults().await_hanging(on, 1);
            kill_process(Pid::from_child(&child), signal).unwrap();
            ends(child);
            assert!(source.faults().hanging(on) > 0, "{on:?} still hangs");
            // While a name is made or changed the kernel lets nobody look for names beside it.
            if matches!(on, On::Read | On::Write) {
                let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
                assert!(list.contains("cancelled"), "{list}");
                // The others of the mount are served.
                Command::new("ls").arg(mount.path()).output().unwrap();
            }
            source.faults().heal();
            if on == On::Rename {
                // The system call that was under way takes effect.
                wait_until("the rename is done", PATIENCE, || {
                    names(&store) == listed && read_file(&store.join("to")) != b"old"
                });
                assert_file(&store.join("to"), 1, 4 << 20);
                fs::write(store.join("to"), "old").unwrap();
            } else {
                wait_until("nothing is left", PATIENCE, || names(&store) == listed);
                assert_eq!(read_file(&store.join("to")), b"old");
            }
        }
        fs::remove_file(store.join(&name)).unwrap();
    }
}

#[test]
fn an_unmount_does_not_wait_for_a_cancelled_copy_that_hangs() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    write_content(&source.store().join("f"), 1, 1 << 20);
    let mount = Mount::of(source.path()).start();
    source.faults().hang(On::Read, Some("f"));
    let mut writer = sh(mount.path(), "echo --method=map-write f to > .copy");
    let child = writer.stderr(Stdio::null()).spawn().unwrap();
    source.faults().await_hanging(On::Read, 1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    ends(child);
    assert!(mount.finish().success());
    assert!(source.faults().hanging(On::Read) > 0);
    assert!(!source.store().join("to").exists());
}
