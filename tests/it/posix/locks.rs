//! Record locks (fcntl) between processes, and whole-file locks (flock).

use super::*;
use crate::children::{Actor, lock};
use crate::support::wait_until;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::time::Duration;

checks! {
    a_write_lock_excludes,
    read_locks_share,
    ranges_that_do_not_touch_do_not_clash,
    the_holder_is_named,
    locks_go_with_their_process,
    a_waiter_gets_the_lock_when_it_is_free,
    a_waiter_gets_the_lock_when_its_holder_dies,
    a_waiter_can_be_killed,
    a_lock_is_split_and_joined,
    an_ofd_lock_excludes_another_open,
    an_ofd_lock_goes_with_its_open,
    flock_excludes_another_open,
    flock_ends_with_its_descriptor,
    flock_shares_and_converts,
}

/// Two processes that have the same new file open.
fn two(at: &Path) -> (Actor, Actor) {
    let path = file(at, "f", b"0123456789");
    (Actor::locker(&path), Actor::locker(&path))
}

fn a_write_lock_excludes(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    assert_eq!(b.ask("set write 0 10"), "held");
    assert_eq!(b.ask("set read 5 1"), "held");
    assert_eq!(
        a.ask("set write 0 10"),
        "ok",
        "one's own lock is no obstacle"
    );
    assert_eq!(a.ask("set unlock 0 10"), "ok");
    assert_eq!(b.ask("set write 0 10"), "ok");
}

fn read_locks_share(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set read 0 0"), "ok");
    assert_eq!(b.ask("set read 0 0"), "ok");
    assert_eq!(b.ask("set write 3 1"), "held");
    assert_eq!(a.ask("set unlock 0 0"), "ok");
    assert_eq!(b.ask("set write 3 1"), "ok");
    assert_eq!(a.ask("set read 3 1"), "held");
    assert_eq!(a.ask("set read 4 1"), "ok");
}

fn ranges_that_do_not_touch_do_not_clash(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    assert_eq!(b.ask("set write 10 10"), "ok");
    assert_eq!(b.ask("set write 9 1"), "held");
    assert_eq!(a.ask("set write 19 1"), "held");
    assert_eq!(a.ask("set write 5000000000 1"), "ok");
    assert_eq!(b.ask("set write 20 0"), "held", "to the end of any file");
}

fn the_holder_is_named(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(b.ask("get write 0 0"), "free");
    assert_eq!(a.ask("set write 3 4"), "ok");
    assert_eq!(b.ask("get read 0 0"), format!("write 3 4 {}", a.pid()));
    assert_eq!(
        a.ask("get write 0 0"),
        "free",
        "one's own lock is no obstacle"
    );
    assert_eq!(b.ask("get write 7 3"), "free");
}

fn locks_go_with_their_process(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 0"), "ok");
    assert_eq!(b.ask("set write 0 0"), "held");
    a.kill(rustix::process::Signal::KILL);
    wait_until(
        "the lock of a dead process goes",
        Duration::from_secs(10),
        || b.ask("set write 0 0") == "ok",
    );
}

/// Whether a process sleeps in its lock call, as far as /proc can say: it has no answer yet.
fn waits(actor: &mut Actor, order: &str) {
    actor.order(order);
    std::thread::sleep(Duration::from_millis(100));
}

fn a_waiter_gets_the_lock_when_it_is_free(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    waits(&mut b, "wait write 5 1");
    assert_eq!(a.ask("set write 0 10"), "ok", "others go on");
    assert_eq!(a.ask("set unlock 0 10"), "ok");
    assert_eq!(b.answer(), "ok");
    assert_eq!(a.ask("set write 5 1"), "held");
}

fn a_waiter_gets_the_lock_when_its_holder_dies(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    waits(&mut b, "wait read 0 10");
    a.kill(rustix::process::Signal::KILL);
    assert_eq!(b.answer(), "ok");
}

fn a_waiter_can_be_killed(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    waits(&mut b, "wait write 0 10");
    let started = std::time::Instant::now();
    b.kill(rustix::process::Signal::TERM);
    assert!(started.elapsed() < Duration::from_secs(10), "it hung");
    // The dead waiter got nothing.
    let mut c = Actor::locker(&at.join("f"));
    assert_eq!(a.ask("set unlock 0 10"), "ok");
    wait_until(
        "the dead waiter's request goes",
        Duration::from_secs(10),
        || c.ask("set write 0 10") == "ok",
    );
}

fn a_lock_is_split_and_joined(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 100"), "ok");
    assert_eq!(a.ask("set unlock 40 20"), "ok");
    assert_eq!(b.ask("set write 40 20"), "ok");
    assert_eq!(b.ask("set write 39 1"), "held");
    assert_eq!(b.ask("set write 60 1"), "held");
    assert_eq!(b.ask("set unlock 40 20"), "ok");
    assert_eq!(a.ask("set read 40 20"), "ok");
    assert_eq!(b.ask("set read 40 20"), "ok");
}

/// Two opens of a new file, and a third that stays as it is.
fn three_opens(at: &Path) -> [File; 3] {
    let path = file(at, "f", b"");
    [(); 3].map(|()| open(&path, OFlags::RDWR).into())
}

fn try_ofd(file: &File, kind: &str) -> bool {
    lock(file, libc::F_OFD_SETLK, kind, (0, 0)).is_ok()
}

fn an_ofd_lock_excludes_another_open(at: &Path) {
    let [a, b, _c] = three_opens(at);
    assert!(try_ofd(&a, "write"));
    assert!(!try_ofd(&b, "read"), "though it is the same process");
    drop(a.try_clone().unwrap());
    assert!(!try_ofd(&b, "read"), "a duplicate's end is not its own");
    assert!(try_ofd(&a, "unlock"));
    assert!(try_ofd(&b, "read"));
}

fn an_ofd_lock_goes_with_its_open(at: &Path) {
    let [a, b, c] = three_opens(at);
    assert!(try_ofd(&a, "write"));
    drop(a);
    wait_until("the lock goes", Duration::from_secs(10), || {
        try_ofd(&b, "write")
    });
    drop(b);
    wait_until("and the next", Duration::from_secs(10), || {
        try_ofd(&c, "write")
    });
}

fn flock_excludes_another_open(at: &Path) {
    let path = file(at, "f", b"");
    let (a, b) = (open(&path, OFlags::RDONLY), open(&path, OFlags::RDONLY));
    flock(&a, FlockOperation::LockExclusive).unwrap();
    assert_errno!(
        flock(&b, FlockOperation::NonBlockingLockExclusive),
        WOULDBLOCK
    );
    assert_errno!(flock(&b, FlockOperation::NonBlockingLockShared), WOULDBLOCK);
    flock(&a, FlockOperation::Unlock).unwrap();
    flock(&b, FlockOperation::NonBlockingLockExclusive).unwrap();
}

fn flock_ends_with_its_descriptor(at: &Path) {
    let path = file(at, "f", b"");
    let (a, b) = (open(&path, OFlags::RDONLY), open(&path, OFlags::RDONLY));
    flock(&a, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| flock(&b, FlockOperation::LockExclusive));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiter.is_finished());
        drop(a);
        waiter.join().unwrap().unwrap();
    });
}

fn flock_shares_and_converts(at: &Path) {
    let path = file(at, "f", b"");
    let (a, b) = (open(&path, OFlags::RDONLY), open(&path, OFlags::RDONLY));
    flock(&a, FlockOperation::LockShared).unwrap();
    flock(&b, FlockOperation::LockShared).unwrap();
    assert_errno!(
        flock(&a, FlockOperation::NonBlockingLockExclusive),
        WOULDBLOCK
    );
    flock(&b, FlockOperation::Unlock).unwrap();
    flock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
}
