//! A daemon that is stopped and goes on.

use rustix::process::{Pid, Signal, kill_process};

use super::load::{self, Load};
use super::{PATIENCE, cycles, family, head};
use crate::children::Actor;
use crate::command::Stand;
use crate::support::{Need, require, soak, stop_process, wait_until};

/// Stops every process that serves the mount.
fn stop_all(family: &[Pid]) {
    family.iter().copied().for_each(stop_process);
}

/// Lets them go on.
fn continue_all(family: &[Pid]) {
    for &pid in family {
        kill_process(pid, Signal::CONT).unwrap();
    }
}

/// Lets them go on when the test fails too: the readers could not be joined.
struct Going<'a>(&'a [Pid]);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        for &pid in self.0 {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

#[test]
fn a_daemon_that_was_stopped_goes_on_and_nothing_is_lost() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    load::furnish(&stand.source);
    let child = cycles::begin(&stand, true, None);
    // The mount is made before the process that serves it.
    std::fs::metadata(stand.file()).unwrap();
    let family = family(&stand);
    let mut holder = Actor::locker(&stand.file());
    let mut waiter = Actor::locker(&stand.file());
    let mut beneath = Actor::locker(&stand.source.join("file"));
    assert_eq!(holder.ask("set write 0 5"), "ok");
    waiter.order("wait write 0 5");
    let load = Load::start(&stand.point, None);
    // The last, so that it goes first: the others wait for what they asked.
    let _going = Going(&family);
    for _ in 0..soak(100) {
        load.await_progress();
        stop_all(&family);
        // Everybody waits, and the locks hold.
        let mut rounds = u64::MAX;
        wait_until("all wait", PATIENCE, || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            std::mem::replace(&mut rounds, load.rounds()) == load.rounds()
        });
        assert_eq!(beneath.ask("set write 0 5"), "held");
        continue_all(&family);
    }
    assert_eq!(holder.ask("set unlock 0 5"), "ok");
    assert_eq!(waiter.answer(), "ok");
    assert_eq!(beneath.ask("set write 0 5"), "held");
    // A signal that came while it was stopped is obeyed when it goes on.
    stop_all(&family);
    kill_process(head(&stand), Signal::TERM).unwrap();
    assert!(stand.is_mounted());
    continue_all(&family);
    wait_until("the name is gone", PATIENCE, || !stand.is_mounted());
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    drop((holder, waiter));
    assert_eq!(child.unwrap().wait().unwrap().code(), Some(0));
    load::assert_tidy(&stand.source);
}
