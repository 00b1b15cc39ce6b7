//! After a request, wait awake for the next one, for a moment.
//!
//! A program that works through a directory sends its next request some microseconds after the last
//! answer. By then the event loops sleep, and to wake one takes longer than most requests do: tens of
//! microseconds where its processor sleeps too, more on a virtual machine. So a loop that answered
//! looks at the connection a while before it goes to sleep, as a network card's driver does
//! (net.core.busy_poll) or an idle virtual processor (guest_halt_poll_ns).
//!
//! That helps only if no other loop sleeps in a read of the connection, for the kernel would wake it
//! at each request, to find nothing (fs/fuse/dev.c, fuse_dev_wake_and_unlock). So while requests
//! come fast, one at a time and easy to answer, one loop leads and the others stay away, looking every
//! few milliseconds whether it got stuck. When there is more to do, or nothing, all read as they
//! would without this. Who leads gives way to whatever else wants to run on its processor.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::beside::{self, Beside};
use super::oplog::{Asked, Noted};
use super::shared::Shared;
use crate::observe::Op;

/// Requests come fast while they are no more than so many windows apart, on the mean: with nobody
/// awake, that is the time of two wake-ups too, the loop's and the program's.
const FAST: u64 = 4;
/// A pause counts as at most so many windows: after one, requests need not prove themselves anew.
const LONGEST_PAUSE: u64 = 4 * FAST;
/// While waiting awake was in vain lately, it is tried again after so many requests.
const TRY_AFTER: u64 = 8;
/// It is worth it while so many of a thousand times there was a request.
const CAUGHT: u64 = 500;
/// Requests that take longer than this many nanoseconds, on the mean, are for all loops.
const EASY: u64 = 500_000;
/// So many of a thousand requests may have waited when a loop was done with the last.
const BACKLOG: u64 = 500;
/// Where so many have waited, only after so many requests does one look whether it is still so: to look
/// is a system call, and takes a lock that all loops want. After bursts, as of forgotten inodes, one is
/// to see soon that they have passed.
const CROWD: u64 = 750;
const LOOK_AFTER: u64 = 4;
/// So many of a thousand requests may be such that nobody waits for, for the loop to go to its client's
/// processor. The client goes on while they are served, on another processor; on one they wait until
/// it sleeps, and it then waits for them too. Of opendir and releasedir by turns (find(1)) half are.
const UNAWAITED: u64 = 425;
/// How often who stays away looks: the first, and the others, who disturb the two at work.
const LOOK: Duration = Duration::from_millis(2);
const LATER_LOOK: Duration = Duration::from_millis(8);
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
const NOBODY: u64 = 0;

thread_local! {
    /// A number of this thread's own, once it has one.
    static ME: Cell<u64> = const { Cell::new(NOBODY) };
}

/// A moving mean, in which the newest weighs an eighth. An update that is lost to another thread's is
/// no harm.
#[derive(Debug)]
struct Mean(AtomicU64);

impl Mean {
    fn new(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }

    fn add(&self, value: u64) {
        let mean = self.get();
        self.0.store(mean - mean / 8 + value / 8, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// When to wait awake, and who does. Times are in nanoseconds, points of time since `epoch`.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// How long at most; 0: never.
    window: u64,
    /// A descriptor of the connection.
    device: OnceLock<OwnedFd>,
    epoch: Instant,
    /// The loop that leads.
    leader: AtomicU64,
    next_name: AtomicU64,
    /// Loops that read the connection, or are about to.
    reading: AtomicUsize,
    /// Loops that stay away.
    away: AtomicUsize,
    /// When a loop last was done with a request.
    done: AtomicU64,
    /// How long it was from there to the next request.
    pause: Mean,
    /// How long requests take.
    work: Mean,
    /// How many of a thousand were there already when a loop was done with the last.
    backlog: Mean,
    /// How many of a thousand nobody waited for, those to forget apart: they take next to no time.
    unawaited: Mean,
    /// How many of a thousand times a request came to a loop that waited awake.
    caught: Mean,
    /// Requests since it was last tried.
    untried: AtomicU64,
    /// After how many requests one looks whether a crowd has gone.
    look_in: AtomicU64,
    /// The last request to forget that was counted.
    forgetting: AtomicU64,
    /// On which processor the one who leads does.
    beside: Arc<Beside>,
}

impl BusyPoll {
    /// For so many event loops.
    pub(super) fn new(window: Duration, loops: usize) -> Self {
        let most = u64::MAX / LONGEST_PAUSE;
        let window = u64::try_from(window.as_nanos()).map_or(most, |window| window.min(most));
        Self {
            window,
            device: OnceLock::new(),
            epoch: Instant::now(),
            leader: AtomicU64::new(NOBODY),
            next_name: AtomicU64::new(NOBODY + 1),
            reading: AtomicUsize::new(loops),
            away: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            pause: Mean::new(window * LONGEST_PAUSE),
            work: Mean::new(0),
            backlog: Mean::new(0),
            unawaited: Mean::new(0),
            caught: Mean::new(0),
            untried: AtomicU64::new(0),
            look_in: AtomicU64::new(0),
            forgetting: AtomicU64::new(0),
            beside: Beside::new(window > 0 && loops > 1 && beside::is_possible()),
        }
    }

    /// Gives it a descriptor of the connection; nothing is awaited before.
    pub(super) fn attach(&self, device: OwnedFd) {
        // A second one would be of the same connection.
        let _ = self.device.set(device);
    }

    fn now(&self) -> u64 {
        // Wraps in five hundred years.
        self.epoch.elapsed().as_nanos() as u64
    }

    fn me(&self) -> u64 {
        ME.with(|me| {
            if me.get() == NOBODY {
                me.set(self.next_name.fetch_add(1, Ordering::Relaxed));
            }
            me.get()
        })
    }

    /// A loop has got a request, which somebody waits for if it is `awaited`; returns when.
    fn came(&self, awaited: bool) -> u64 {
        if self.window == 0 {
            return 0;
        }
        self.reading.fetch_sub(1, Ordering::AcqRel);
        let now = self.now();
        // Where several loops serve at once, another may have ended later than this one began.
        let pause = now.saturating_sub(self.done.load(Ordering::Relaxed));
        self.pause.add(pause.min(self.window * LONGEST_PAUSE));
        // Who gives way with the answer comes back when there is the next request: now is the time
        // to see whether there are several.
        if beside::is_ready()
            && awaited
            && let Some(device) = self.device.get()
        {
            self.backlog.add(if is_ready(device) { 1000 } else { 0 });
        }
        now
    }

    /// Requests come one at a time, and are easy.
    fn is_work_for_one(&self) -> bool {
        self.work.get() < EASY && self.backlog.get() < BACKLOG
    }

    /// Clients sleep while most requests are served.
    fn is_waited_for(&self) -> bool {
        self.unawaited.get() < UNAWAITED
    }

    /// That they are, and who waits awake gets them.
    fn is_worth_it(&self) -> bool {
        self.caught.get() >= CAUGHT && self.is_work_for_one()
    }

    /// It is worth a try.
    fn may_be_worth_it(&self) -> bool {
        self.pause.get() < FAST * self.window
            && self.is_work_for_one()
            && self
                .untried
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(TRY_AFTER)
    }

    /// In a crowd it is not yet time to look whether it has gone. What nobody waits for does not tell,
    /// and all of a client's fourth requests may be such.
    fn is_left(&self, awaited: bool) -> bool {
        if self.backlog.get() < CROWD {
            return false;
        }
        let left = self.look_in.load(Ordering::Relaxed);
        let due = left == 0 && awaited;
        let next = if due {
            LOOK_AFTER - 1
        } else {
            left.saturating_sub(1)
        };
        self.look_in.store(next, Ordering::Relaxed);
        !due
    }

    /// A loop is done with the request that came at `began`. It returns when that loop is to read.
    fn went(&self, began: u64, awaited: bool) {
        if self.window == 0 {
            return;
        }
        let now = self.is_done(began);
        self.unawaited.add(if awaited { 0 } else { 1000 });
        if let Some(device) = self.device.get() {
            self.wait(device, now, awaited);
            self.beside.come_back();
            let leads = self.leader.load(Ordering::Acquire) == self.me() && self.is_worth_it();
            let alone = self.reading.load(Ordering::Acquire) == 0;
            let watched = self.away.load(Ordering::Acquire) > 0;
            let ready = leads && alone && watched && self.is_waited_for();
            self.beside.set_ready(ready, now);
        }
        self.reading.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts what has ended; returns when.
    fn is_done(&self, began: u64) -> u64 {
        let now = self.now();
        self.done.store(now, Ordering::Relaxed);
        self.work.add(now.saturating_sub(began));
        now
    }

    /// Begins to forget an inode that the request of this number names. The FUSE library breaks one
    /// that names many up into many calls, of which nobody knows the last: the first is counted, and
    /// after none of them is there any waiting, which would keep the rest from being forgotten for as
    /// long as others are busy.
    fn forgets(&self, unique: u64) -> Option<Forgetting<'_>> {
        let counted = self.forgetting.swap(unique, Ordering::Relaxed) == unique;
        (!counted).then(|| Forgetting {
            waits: self,
            since: self.came(false),
        })
    }

    fn wait(&self, device: &OwnedFd, now: u64, awaited: bool) {
        let me = self.me();
        if self.is_left(awaited) {
            return self.step_down(me);
        }
        let more = is_ready(device);
        if beside::has_given_way() {
            if more {
                self.caught.add(1000);
                self.beside.is_together();
            }
        } else if awaited {
            // What nobody waits for is followed by the next at once.
            self.backlog.add(if more { 1000 } else { 0 });
        }
        if !self.is_worth_it() {
            if !more && self.may_be_worth_it() && self.lead(me) {
                self.look_out(device, now + self.window);
            }
            return self.step_down(me);
        }
        match self.lead(me) {
            _ if more => {}
            false => {
                // Who looks after others has turns of his own.
                self.beside.come_back();
                self.stay_away(device);
            }
            // Those who still sleep in a read get the next requests, one each, and stay away then.
            true if self.reading.load(Ordering::Acquire) > 0 => {}
            true => {
                if self.is_waited_for() {
                    self.beside.change_sides(now);
                }
                if !self.look_out(device, now + self.window) {
                    self.step_down(me);
                }
            }
        }
    }

    /// Whether this loop leads, which it does from now on if nobody did.
    fn lead(&self, me: u64) -> bool {
        let order = Ordering::AcqRel;
        match self
            .leader
            .compare_exchange(NOBODY, me, order, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(leader) => leader == me,
        }
    }

    fn step_down(&self, me: u64) {
        if self.leader.load(Ordering::Relaxed) != me {
            return;
        }
        let order = Ordering::AcqRel;
        // If another leads, it goes on.
        let _ = self
            .leader
            .compare_exchange(me, NOBODY, order, Ordering::Acquire);
    }

    /// Waits awake until there is a request, or the connection has ended; whether it did not wait in
    /// vain.
    fn look_out(&self, device: &OwnedFd, until: u64) -> bool {
        let found = loop {
            if is_ready(device) {
                break true;
            }
            if self.now() >= until {
                break false;
            }
            thread::yield_now();
        };
        self.caught.add(if found { 1000 } else { 0 });
        found
    }

    /// Sleeps as long as the leader does well.
    fn stay_away(&self, device: &OwnedFd) {
        let rank = self.away.fetch_add(1, Ordering::AcqRel);
        let look = if rank == 0 { LOOK } else { LATER_LOOK };
        let patience = look.as_nanos() as u64;
        loop {
            let leader = self.leader.load(Ordering::Acquire);
            thread::sleep(look);
            if !self.is_worth_it() {
                break;
            }
            let now = self.now();
            if now.saturating_sub(self.done.load(Ordering::Relaxed)) > patience {
                // It works on something hard, or there is nothing to do.
                if is_ready(device) {
                    self.beside.rest(now);
                }
                self.step_down(leader);
                break;
            }
        }
        self.away.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a request can be read, or the connection has ended.
fn is_ready(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
    poll(&mut asked, Some(&AT_ONCE)) != Ok(0)
}

/// While it is there, an event loop works on a request.
#[derive(Debug)]
pub(super) struct Begun<'a> {
    waits: &'a BusyPoll,
    since: u64,
    awaited: bool,
    noted: Option<Noted>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.noted.take();
        self.waits.went(self.since, self.awaited);
    }
}

/// While it is there, an event loop works on the first inode of those that it is to forget.
#[derive(Debug)]
pub(super) struct Forgetting<'a> {
    waits: &'a BusyPoll,
    since: u64,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        if self.waits.window > 0 {
            self.waits.is_done(self.since);
            self.waits.reading.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Shared {
    /// An event loop begins to work on what was asked, and works on it as long as the guard is there;
    /// `more` adds to what the log tells of it.
    #[inline]
    pub(super) fn begin(
        &self,
        op: Op,
        request: &Request,
        node: INodeNo,
        more: impl FnOnce(&mut Asked),
    ) -> Begun<'_> {
        let awaited = !matches!(op, Op::Release | Op::Releasedir);
        Begun {
            waits: &self.busy_poll,
            since: self.busy_poll.came(awaited),
            awaited,
            noted: self.note(op, request, node, more),
        }
    }

    /// As [`Self::begin`], for what `request` asks to forget.
    pub(super) fn begin_forget(&self, request: &Request) -> Option<Forgetting<'_>> {
        self.busy_poll.forgets(request.unique().0)
    }
}

#[cfg(test)]
#[path = "busy_poll_tests.rs"]
mod tests;
