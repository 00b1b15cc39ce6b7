//! Server and client on one processor.
//!
//! Who sends one request after the other sleeps while it is served, and who serves sleeps, or looks
//! out, in between: together they keep one processor busy. The kernel puts them on two, as it prefers
//! a free processor for whom it wakes, and each request then waits for two interrupts to processors
//! that sleep: on a virtual machine that takes longer than all else. Measured, a virtual machine of two
//! processors, 10,000 files of 4 KiB created on XFS through the mount: 3.4 s on two, 0.82 s on one;
//! left to the kernel 1.7 s.
//!
//! So the loop that leads (see [`super::busy_poll`]) goes to where its client is, and gives way before
//! it answers: a processor on which only SCHED_IDLE runs counts as free, so the client wakes
//! there, and at once. When the client sends its next request and sleeps, the loop goes on, in turn
//! with all others again before it reads that: nothing is held while it gives way.
//!
//! Where the client is nobody tells without danger: `/proc/PID/stat` waits for who calls execve(2), and
//! that waits for us where it closes a file of the mount. Of two processors it is the other one, if it
//! is not this one; where there are more nothing of all this is done.
//!
//! Where others keep that processor busy it may not get it back. Then the next request finds nobody,
//! until one of the loops that stay away looks (see `stay_away` there): it takes over, and none of this
//! is done for a while. One loop at a time gives way, and only while another looks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::sys::sched;

/// How long it is left after a loop did not get its processor back, in nanoseconds.
const REST: u64 = 100_000_000;
/// How long a loop does not change sides again, in nanoseconds. After changes that did not bring the
/// two together it is twice as long each time, up to the last.
const STAY: u64 = 50_000;
const LONGEST: u32 = 8;

thread_local! {
    /// What this loop is to tell when it gives way, while it is to do so before each answer.
    static READY: RefCell<Option<Arc<Beside>>> = const { RefCell::new(None) };
    static GIVEN: Cell<bool> = const { Cell::new(false) };
}

/// Of all loops. Points of time are in nanoseconds since one that the caller knows.
#[derive(Debug)]
pub(super) struct Beside {
    /// Threads may give way, for there is a way back, and others to look after them.
    possible: AtomicBool,
    /// A loop has given way and is not back.
    given: AtomicBool,
    rests_until: AtomicU64,
    changed: AtomicU64,
    /// How often a loop changed sides since the two last were together.
    changes: AtomicU32,
}

impl Beside {
    pub(super) fn new(possible: bool) -> Arc<Self> {
        Arc::new(Self {
            possible: AtomicBool::new(possible),
            given: AtomicBool::new(false),
            rests_until: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            changes: AtomicU32::new(0),
        })
    }

    fn is_on(&self, now: u64) -> bool {
        self.possible.load(Ordering::Relaxed) && now >= self.rests_until.load(Ordering::Relaxed)
    }

    /// Whether the calling thread gives way from now on before it answers.
    pub(super) fn set_ready(self: &Arc<Self>, ready: bool, now: u64) {
        let ready = ready && self.is_on(now);
        if ready != is_ready() {
            READY.set(ready.then(|| Arc::clone(self)));
        }
    }

    /// There was no request when the calling thread came to look: it goes where its client may be.
    pub(super) fn change_sides(&self, now: u64) {
        let changes = self.changes.load(Ordering::Relaxed);
        let due = self.changed.load(Ordering::Relaxed) + (STAY << changes.min(LONGEST));
        if self.is_on(now) && now >= due {
            self.changed.store(now, Ordering::Relaxed);
            self.changes
                .store(changes.saturating_add(1), Ordering::Relaxed);
            // A hint: without it all goes on as it was.
            let _ = sched::change_sides();
        }
    }

    /// The next request was there when the calling thread came back: its client runs where it does.
    pub(super) fn is_together(&self) {
        self.changes.store(0, Ordering::Relaxed);
    }

    /// The calling thread runs in turn again, if it gave way.
    pub(super) fn come_back(&self) {
        if GIVEN.replace(false) {
            // It was tried before whether that goes; limits change.
            if sched::take_turns().is_err() {
                self.possible.store(false, Ordering::Relaxed);
            }
            self.given.store(false, Ordering::Release);
        }
    }

    /// There are requests that nobody reads: if a loop has given way, it does not get its processor
    /// back. It will, as little by little all do.
    pub(super) fn rest(&self, now: u64) {
        if self.given.load(Ordering::Acquire) {
            self.rests_until.store(now + REST, Ordering::Relaxed);
        }
    }
}

/// Whether this process may do it, and it is of use.
pub(super) fn is_possible() -> bool {
    sched::has_two_processors() && sched::may_return()
}

/// Whether the calling thread is to give way before it answers.
pub(super) fn is_ready() -> bool {
    READY.with_borrow(Option::is_some)
}

/// Whether it has, and is not back yet.
pub(super) fn has_given_way() -> bool {
    GIVEN.get()
}

/// The calling thread is about to answer, and holds nothing that others might wait for.
pub(super) fn before_answer() {
    READY.with_borrow(|ready| {
        let Some(beside) = ready else { return };
        let given = sched::give_way().is_ok();
        beside.given.store(given, Ordering::Release);
        GIVEN.set(given);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    #[test]
    fn who_leads_gives_way_before_an_answer_and_comes_back() {
        if !sched::may_return() {
            return crate::sys::testing::skip("needs CAP_SYS_NICE");
        }
        of_thread(|| {
            let beside = Beside::new(true);
            before_answer();
            assert!(!has_given_way() && !is_ready());
            beside.set_ready(true, 0);
            assert!(is_ready() && !has_given_way());
            before_answer();
            assert!(has_given_way() && beside.given.load(Ordering::Relaxed));
            beside.come_back();
            assert!(!has_given_way() && !beside.given.load(Ordering::Relaxed));
            beside.set_ready(false, 0);
            before_answer();
            assert!(!has_given_way());
        });
    }

    #[test]
    fn after_nobody_came_back_it_is_left_for_a_while() {
        if !sched::may_return() {
            return crate::sys::testing::skip("needs CAP_SYS_NICE");
        }
        of_thread(|| {
            let beside = Beside::new(true);
            // Nobody has given way: there is nothing to rest from.
            beside.rest(5);
            beside.set_ready(true, 6);
            assert!(is_ready());
            before_answer();
            beside.rest(7);
            beside.come_back();
            beside.set_ready(true, 7 + REST - 1);
            assert!(!is_ready());
            beside.set_ready(true, 7 + REST);
            assert!(is_ready());
        });
    }

    #[test]
    fn where_there_is_no_way_back_nobody_gives_way() {
        let beside = Beside::new(false);
        beside.set_ready(true, 0);
        before_answer();
        assert!(!is_ready() && !has_given_way());
    }

    #[test]
    fn changes_that_do_not_bring_them_together_become_rare() {
        let beside = Beside::new(true);
        let mut changes = 0;
        for now in (0..1_000_000_000).step_by(10_000) {
            let before = beside.changed.load(Ordering::Relaxed);
            beside.change_sides(now);
            changes += u32::from(beside.changed.load(Ordering::Relaxed) != before);
        }
        assert!((LONGEST..100).contains(&changes), "{changes}");
        beside.is_together();
        assert_eq!(beside.changes.load(Ordering::Relaxed), 0);
    }
}
