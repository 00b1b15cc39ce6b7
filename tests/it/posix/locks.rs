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
    closing_any_descriptor_of_the_file_drops_the_locks,
    locks_are_not_inherited_by_a_child,
    locks_stay_over_exec,
    a_caught_signal_ends_the_wait,
    a_handler_that_restarts_goes_on_waiting,
    a_signal_nobody_hears_does_not_end_the_wait,
    a_stop_does_not_end_the_wait,
    a_circle_of_waiters_is_told,
    a_lock_needs_the_matching_open_mode,
    an_ofd_lock_is_the_opens_and_not_the_processs,
    a_waiter_for_an_ofd_lock_gets_it,
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

fn closing_any_descriptor_of_the_file_drops_the_locks(at: &Path) {
    for close in ["reopen", "dup"] {
        let path = file(at, close, b"0123456789");
        let (mut a, mut b) = (Actor::locker(&path), Actor::locker(&path));
        assert_eq!(a.ask("set write 0 10"), "ok");
        assert_eq!(b.ask("set write 5 1"), "held");
        assert_eq!(a.ask(close), "ok");
        assert_eq!(b.ask("set write 0 10"), "ok", "after {close}");
    }
}

fn locks_are_not_inherited_by_a_child(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("fork"), "ok", "nobody holds it yet");
    assert_eq!(
        b.ask("set write 0 10"),
        "ok",
        "the child's lock went with it"
    );
    assert_eq!(b.ask("set unlock 0 10"), "ok");
    assert_eq!(a.ask("set write 3 1"), "ok");
    assert_eq!(a.ask("fork"), "held");
    assert_eq!(
        b.ask("set write 3 1"),
        "held",
        "the child's end took its parent's"
    );
}

fn locks_stay_over_exec(at: &Path) {
    use std::os::unix::process::CommandExt;
    let path = file(at, "f", b"0123456789");
    let held: File = rustix::fs::open(&path, OFlags::RDWR, Mode::empty())
        .unwrap()
        .into();
    let mut command = std::process::Command::new("sleep");
    command.arg("600");
    // SAFETY: a system call only, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            lock(&held, libc::F_SETLK, "write", (0, 5))?;
            Ok(())
        })
    };
    let mut sleeper = command.spawn().unwrap();
    let mut other = Actor::locker(&path);
    let (inside, beside) = (other.ask("set write 4 1"), other.ask("set write 5 1"));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!((&*inside, &*beside), ("held", "ok"));
    wait_until("the lock goes with it", Duration::from_secs(10), || {
        other.ask("set write 4 1") == "ok"
    });
}

fn a_caught_signal_ends_the_wait(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    let signal = b.handles("plain");
    waits(&mut b, "wait write 5 1");
    let said = b.answer_after(|| signal(libc::SIGUSR1));
    assert_eq!(said, format!("errno {}", libc::EINTR));
    // It goes on as it was, and without the lock.
    assert_eq!(b.ask("set write 5 1"), "held");
    assert_eq!(a.ask("set unlock 0 10"), "ok");
    assert_eq!(b.ask("wait write 5 1"), "ok");
}

fn a_handler_that_restarts_goes_on_waiting(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 10"), "ok");
    let signal = b.handles("restart");
    waits(&mut b, "wait write 5 1");
    signal(libc::SIGUSR1);
    // Longer than corfs takes to look at who waits.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(a.ask("set unlock 0 10"), "ok");
    assert_eq!(b.answer(), "ok");
    assert_eq!(a.ask("set write 5 1"), "held");
}

fn a_signal_nobody_hears_does_not_end_the_wait(at: &Path) {
    for how in ["ignore", "block"] {
        let path = file(at, how, b"0123456789");
        let (mut a, mut b) = (Actor::locker(&path), Actor::locker(&path));
        assert_eq!(a.ask("set write 0 10"), "ok");
        let signal = b.handles(how);
        waits(&mut b, "wait write 5 1");
        signal(libc::SIGUSR1);
        // Longer than corfs takes to look at who waits.
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(a.ask("set unlock 0 10"), "ok");
        assert_eq!(b.answer(), "ok", "{how}");
    }
}

fn a_stop_does_not_end_the_wait(at: &Path) {
    for stop in [libc::SIGSTOP, libc::SIGTSTP] {
        let path = file(at, &format!("f{stop}"), b"0123456789");
        let (mut a, mut b) = (Actor::locker(&path), Actor::locker(&path));
        assert_eq!(a.ask("set write 0 10"), "ok");
        let signal = b.handles("plain");
        waits(&mut b, "wait write 5 1");
        signal(stop);
        wait_until("it stops at once", Duration::from_secs(10), || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", b.pid())).unwrap();
            stat.contains(") T ")
        });
        b.signal(rustix::process::Signal::CONT);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(a.ask("set unlock 0 10"), "ok");
        assert_eq!(b.answer(), "ok", "signal {stop}");
        assert_eq!(a.ask("set write 5 1"), "held");
    }
}

fn a_circle_of_waiters_is_told(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set write 0 1"), "ok");
    assert_eq!(b.ask("set write 1 1"), "ok");
    // Who closes the circle is told, whichever that is, and lets the other go on.
    let told = format!("errno {}", libc::EDEADLK);
    let wait = |actor: &mut Actor, own: u8, other: u8| {
        let said = actor.ask(&format!("wait write {other} 1"));
        if said == told {
            assert_eq!(actor.ask(&format!("set unlock {own} 1")), "ok");
        }
        said
    };
    let mut said = std::thread::scope(|scope| {
        let one = scope.spawn(|| wait(&mut a, 0, 1));
        let two = scope.spawn(|| wait(&mut b, 1, 0));
        [one.join().unwrap(), two.join().unwrap()]
    });
    said.sort();
    assert_eq!(said, [told.clone(), "ok".into()]);
}

fn a_lock_needs_the_matching_open_mode(at: &Path) {
    let path = file(at, "f", b"0123456789");
    let reader = File::from(open(&path, OFlags::RDONLY));
    let writer = File::from(open(&path, OFlags::WRONLY));
    for command in [libc::F_SETLK, libc::F_OFD_SETLK] {
        assert_errno!(lock(&reader, command, "write", (0, 1)), BADF);
        assert_errno!(lock(&writer, command, "read", (0, 1)), BADF);
        lock(&reader, command, "read", (0, 1)).unwrap();
        lock(&reader, command, "unlock", (0, 1)).unwrap();
        lock(&writer, command, "write", (0, 1)).unwrap();
        lock(&writer, command, "unlock", (0, 1)).unwrap();
    }
}

fn an_ofd_lock_is_the_opens_and_not_the_processs(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set ofd-write 0 5"), "ok");
    // Another process, and its own process by the other kind of lock.
    assert_eq!(b.ask("set write 4 1"), "held");
    assert_eq!(b.ask("set ofd-read 4 1"), "held");
    assert_eq!(a.ask("set write 4 1"), "held");
    // Natively -1 for the process; see `limits`.
    assert!(b.ask("get write 0 0").starts_with("write 0 5 "));
    // Closing another descriptor takes the process's own locks only, and a child shares the open.
    assert_eq!(a.ask("set write 7 1"), "ok");
    assert_eq!(a.ask("reopen"), "ok");
    assert_eq!(b.ask("set write 7 1"), "ok");
    assert_eq!(b.ask("set ofd-read 4 1"), "held");
    assert_eq!(a.ask("dup"), "ok");
    assert_eq!(b.ask("set ofd-read 4 1"), "held");
    assert_eq!(a.ask("set ofd-unlock 0 5"), "ok");
    assert_eq!(b.ask("set ofd-read 4 1"), "ok");
}

fn a_waiter_for_an_ofd_lock_gets_it(at: &Path) {
    let (mut a, mut b) = two(at);
    assert_eq!(a.ask("set ofd-write 0 10"), "ok");
    waits(&mut b, "wait ofd-write 5 1");
    assert_eq!(a.ask("set ofd-unlock 0 10"), "ok");
    assert_eq!(b.answer(), "ok");
    assert_eq!(a.ask("set read 5 1"), "held");
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
