//! The circuit breaker: whether the source is asked at all.
//!
//! A failure of the source's kind (not ENOENT, not EACCES) is only a suspicion: one bad file is
//! not a bad source. Who decides is the probe ([`super::probe`]), which looks at the source's root:
//! when that fails three times in a row, or says that its connection has ended, or does not answer,
//! the breaker opens. From then on nobody asks the source but the probe, until that finds it well.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::observe::Metrics;
use crate::sys::{Errno, Fail};

/// So many looks in a row must fail.
const FAILURES: u32 = 3;

/// Why the source is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// It answers with errors.
    Fails = 1,
    /// It does not answer.
    Hangs = 2,
    /// What stands in its place is something else, or nothing.
    Gone = 3,
}

impl Cause {
    fn of(number: u8) -> Option<Self> {
        [Self::Fails, Self::Hangs, Self::Gone]
            .into_iter()
            .find(|cause| *cause as u8 == number)
    }

    /// What who needs the source is told.
    fn errno(self) -> Errno {
        match self {
            Self::Hangs => Errno::TIMEDOUT,
            Self::Fails | Self::Gone => Errno::IO,
        }
    }

    /// In words, behind "the source".
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Fails => "fails",
            Self::Hangs => "does not answer",
            Self::Gone => "is gone",
        }
    }
}

thread_local! {
    /// The request that this thread serves is served so to its end, whatever the source does
    /// meanwhile; 0 for none.
    static PINNED: Cell<u8> = const { Cell::new(0) };
}

/// The breaker of one mirror.
#[derive(Debug)]
pub(super) struct Outage {
    /// 0 while the source is asked, else a [`Cause`].
    cause: AtomicU8,
    /// Seconds since 1970 when it began; 0 for none.
    since: AtomicU64,
    /// What who needs a source that fails is told, if not EIO: its own error, as a number; 0.
    errno: AtomicI32,
    /// A leaf.
    wishes: Mutex<Wishes>,
    changed: Condvar,
    metrics: Arc<Metrics>,
}

/// What whoever looks at the source is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Something failed: look now.
    pub(super) suspected: bool,
    /// No more looking.
    pub(super) ended: bool,
}

impl Outage {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            cause: AtomicU8::new(0),
            since: AtomicU64::new(0),
            errno: AtomicI32::new(0),
            wishes: Mutex::default(),
            changed: Condvar::new(),
            metrics,
        }
    }

    /// Why the source is not to be asked for what this thread does, if it is not.
    pub(super) fn cause(&self) -> Option<Cause> {
        Cause::of(match PINNED.get() {
            0 => self.cause.load(Ordering::Acquire),
            pinned => pinned,
        })
    }

    /// Whether this thread serves a request that asks the source for nothing.
    pub(super) fn is_pinned(&self) -> bool {
        PINNED.get() != 0
    }

    /// Does `work`, which asks the source for nothing whatever becomes of the outage meanwhile, if
    /// there is one; else gives `work` back.
    pub(super) fn apart<W: FnOnce()>(&self, work: W) -> Result<(), W> {
        match Cause::of(self.cause.load(Ordering::Acquire)) {
            None => Err(work),
            Some(cause) => {
                self.as_in(cause, work);
                Ok(())
            }
        }
    }

    /// Does `work`, which asks the source for nothing, as if there were such an outage.
    pub(super) fn as_in<T>(&self, cause: Cause, work: impl FnOnce() -> T) -> T {
        /// Also when `work` panics.
        struct Unpin(u8);
        impl Drop for Unpin {
            fn drop(&mut self) {
                PINNED.set(self.0);
            }
        }
        let _unpin = Unpin(PINNED.replace(cause as u8));
        work()
    }

    /// What who needs the source is told.
    ///
    /// # Errors
    /// ETIMEDOUT while it hangs, EIO while it fails or is gone.
    pub(super) fn check(&self, operation: &'static str) -> Result<(), Fail> {
        match self.cause() {
            None => Ok(()),
            Some(cause) => {
                let words = format!("the source {}", cause.words());
                let own = match (cause, self.errno.load(Ordering::Relaxed)) {
                    (Cause::Hangs, _) | (_, 0) => cause.errno(),
                    (_, own) => Errno::from_raw_os_error(own),
                };
                Err(Fail::new(own, operation).because(words))
            }
        }
    }

    /// Something that needed the source failed, or waits for long.
    pub(super) fn suspect(&self) {
        if self.cause.load(Ordering::Relaxed) != 0 {
            return;
        }
        let mut wishes = self.wishes.lock();
        if !wishes.suspected {
            wishes.suspected = true;
            self.changed.notify_all();
        }
    }

    /// An error that somebody was told.
    pub(super) fn heard(&self, errno: Errno) {
        if is_of_the_source(errno) {
            self.suspect();
        }
    }

    pub(super) fn end(&self) {
        self.wishes.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until there is a suspicion or an end, for `time` at most, and takes the suspicion.
    pub(super) fn wait(&self, time: Duration) -> Wishes {
        let mut wishes = self.wishes.lock();
        if *wishes == Wishes::default() {
            self.changed.wait_for(&mut wishes, time);
        }
        let found = *wishes;
        wishes.suspected = false;
        found
    }

    /// Waits for the end, for `time` at most; whether it has come.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let mut wishes = self.wishes.lock();
        let until = std::time::Instant::now() + time;
        while !wishes.ended {
            if self.changed.wait_until(&mut wishes, until).timed_out() {
                break;
            }
        }
        wishes.ended
    }

    /// What who needs the source is told from now on.
    pub(super) fn tell(&self, errno: Errno) {
        self.errno.store(errno.raw_os_error(), Ordering::Relaxed);
    }

    /// From now on the source is not asked; true when it was until now.
    pub(super) fn open(&self, cause: Cause) -> bool {
        let before = self.cause.swap(cause as u8, Ordering::AcqRel);
        if before != 0 {
            return false;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        self.since.store(now, Ordering::Release);
        self.metrics.source_lost(now);
        log::warn!("the source {}: it is not asked any more", cause.words());
        drop(self.wishes.lock());
        self.changed.notify_all();
        true
    }

    /// From now on it is.
    pub(super) fn close(&self) {
        if self.cause.swap(0, Ordering::AcqRel) != 0 {
            self.since.store(0, Ordering::Release);
            self.metrics.source_found();
            log::warn!("the source is back");
        }
    }
}

/// Errors of a connection that has ended, which no second look will change: what a FUSE mount says
/// whose server has gone (fs/fuse/dev.c), and file systems of a network without their servers.
pub(super) fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::NOTCONN | Errno::CONNABORTED | Errno::SHUTDOWN)
}

/// Errors that tell of the source, not of a file in it.
fn is_of_the_source(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::IO
            | Errno::TIMEDOUT
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::CONNREFUSED
            | Errno::SHUTDOWN
            | Errno::STALE
            | Errno::NODEV
            | Errno::NXIO
            | Errno::REMOTEIO
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::NOLINK
    )
}

/// What a look at the source came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Well,
    Failed,
    /// The connection to it has ended.
    Ended,
    Gone,
    /// No answer in time.
    Hung,
}

impl Look {
    /// What a failure of the source's root says.
    pub(super) fn at(errno: Errno) -> Self {
        match is_end(errno) {
            true => Self::Ended,
            false => Self::Failed,
        }
    }
}

/// What looks in a row mean.
#[derive(Debug, Default)]
pub(super) struct Judge {
    failures: u32,
}

impl Judge {
    /// Takes note of a look; the cause, when it is one of an outage.
    pub(super) fn hear(&mut self, look: Look) -> Option<Cause> {
        let cause = match look {
            Look::Well => {
                self.failures = 0;
                return None;
            }
            // It had time enough.
            Look::Hung => return Some(Cause::Hangs),
            Look::Ended => return Some(Cause::Fails),
            Look::Failed => Cause::Fails,
            Look::Gone => Cause::Gone,
        };
        self.failures += 1;
        (self.failures >= FAILURES).then_some(cause)
    }

    /// How long to wait before the next look, when the last one failed: a server that is started
    /// anew refuses for a moment.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_millis(100 << self.failures.min(4))
    }

    pub(super) fn is_content(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage() -> Outage {
        Outage::new(Arc::new(Metrics::new()))
    }

    #[test]
    fn three_failures_in_a_row_are_an_outage_and_fewer_are_none() {
        let mut judge = Judge::default();
        let looks = [
            Look::Failed,
            Look::Gone,
            Look::Well,
            Look::Failed,
            Look::Failed,
        ];
        assert!(looks.into_iter().all(|look| judge.hear(look).is_none()));
        assert!(!judge.is_content());
        assert_eq!(judge.hear(Look::Failed), Some(Cause::Fails));
        assert_eq!(judge.hear(Look::Gone), Some(Cause::Gone));
        assert_eq!(judge.hear(Look::Well), None);
        assert!(judge.is_content());
    }

    #[test]
    fn a_look_without_an_answer_is_enough_and_one_at_an_ended_connection() {
        assert_eq!(Judge::default().hear(Look::Hung), Some(Cause::Hangs));
        let ended = Look::at(Errno::NOTCONN);
        assert_eq!(Judge::default().hear(ended), Some(Cause::Fails));
        assert_eq!(Judge::default().hear(Look::at(Errno::IO)), None);
    }

    #[test]
    fn who_needs_the_source_is_told_why_there_is_none() {
        let outage = outage();
        outage.check("read").unwrap();
        for (cause, errno) in [
            (Cause::Hangs, Errno::TIMEDOUT),
            (Cause::Fails, Errno::IO),
            (Cause::Gone, Errno::IO),
        ] {
            outage.open(cause);
            assert_eq!(outage.check("read").unwrap_err().errno, errno);
        }
        assert!(!outage.open(Cause::Fails), "it is open already");
        outage.close();
        outage.check("read").unwrap();
    }

    #[test]
    fn a_request_is_served_in_one_way_to_its_end() {
        let outage = outage();
        assert!(outage.apart(|| panic!("there is no outage")).is_err());
        outage.open(Cause::Gone);
        let done = outage.apart(|| {
            outage.close();
            assert_eq!(outage.cause(), Some(Cause::Gone));
        });
        assert!(done.is_ok());
        assert_eq!(outage.cause(), None);
    }

    #[test]
    fn only_errors_of_the_source_are_a_suspicion() {
        let outage = outage();
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOTDIR, Errno::ROFS] {
            outage.heard(errno);
        }
        assert_eq!(outage.wait(Duration::ZERO), Wishes::default());
        outage.heard(Errno::NOTCONN);
        assert!(outage.wait(Duration::ZERO).suspected);
        assert!(!outage.wait(Duration::ZERO).suspected, "it was taken");
        outage.open(Cause::Fails);
        outage.heard(Errno::IO);
        assert!(!outage.wait(Duration::ZERO).suspected, "it is known");
        outage.end();
        assert!(outage.wait(Duration::from_secs(60)).ended);
    }
}
