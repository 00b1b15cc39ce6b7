//! A source that nobody asks for anything is let go of, so that it can be unmounted: until somebody
//! asks again.
//!
//! Whoever needs the source holds the gate shared for as long as that takes; letting go and coming
//! back are done alone. Only what can be found again by its path is let go of, and only while no
//! file and no directory is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::Mirror;
use super::outage::{Cause, Look};

/// Whether the source is let go of, for want of anything to do.
#[derive(Debug, Default)]
pub(super) struct Rest {
    gate: RwLock<()>,
    resting: AtomicBool,
    /// Somebody is about to let go.
    falling_asleep: AtomicBool,
    /// Requests that needed the source, ever.
    asked: AtomicU64,
}

/// Since when nobody has asked.
#[derive(Debug)]
pub(super) struct Calm {
    asked: u64,
    since: Instant,
}

impl Calm {
    pub(super) fn begins() -> Self {
        Self::since_now(0)
    }

    /// How long it has lasted, now that `asked` requests have been served.
    fn lasts(&mut self, asked: u64) -> Duration {
        if asked != self.asked {
            *self = Self::since_now(asked);
        }
        self.since.elapsed()
    }

    fn since_now(asked: u64) -> Self {
        Self {
            asked,
            since: Instant::now(),
        }
    }
}

impl Mirror {
    /// Does what needs the source, when that is held: it is taken up again first. While it is lost
    /// there is nothing to hold.
    pub fn serve_awake<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.options.source_idle.is_none() || !self.lets_go() || self.is_apart() {
            return work();
        }
        loop {
            let held = self.rest.gate.read_recursive();
            if !self.rest.resting.load(Ordering::Acquire) {
                self.rest.asked.fetch_add(1, Ordering::Relaxed);
                return work();
            }
            drop(held);
            self.wake();
        }
    }

    pub(super) fn is_resting(&self) -> bool {
        self.rest.resting.load(Ordering::Acquire)
    }

    /// Lets go of the source, when nobody has asked for long: on a thread that may wait for it.
    pub(super) fn rest_when_idle(self: &Arc<Self>, calm: &mut Calm) {
        let (Some(idle), true) = (self.options.source_idle, self.lets_go()) else {
            return;
        };
        let asked = self.rest.asked.load(Ordering::Relaxed);
        let lasts = calm.lasts(asked);
        // What is watched is watched through what is held.
        if lasts < idle || self.watch.is_some() || self.is_resting() {
            return;
        }
        *calm = Calm::since_now(asked);
        let mirror = Arc::clone(self);
        let work = move || {
            if !mirror.rest.falling_asleep.swap(true, Ordering::AcqRel) {
                mirror.rest_if_to_be_found();
                mirror.rest.falling_asleep.store(false, Ordering::Release);
            }
        };
        // Without a thread it stays as it is.
        let _ = Builder::new().name("corfs-rest".into()).spawn(work);
    }

    /// What was renamed, or lies below another mount now (our own, say), would not be found again.
    fn rest_if_to_be_found(&self) {
        if !self.is_at_its_path() {
            return;
        }
        let Some(_alone) = self.rest.gate.try_write() else {
            return;
        };
        if self.is_apart() || !self.files.read().is_empty() || !self.dirs.read().is_empty() {
            return;
        }
        self.rest.resting.store(true, Ordering::Release);
        self.let_go();
        log::debug!("the source is let go of until somebody asks");
    }

    /// Takes the source up again. When it is not there, or another mount stands there, it counts as
    /// lost: who looks for it then tells the kernel what has changed.
    fn wake(&self) {
        let _alone = self.rest.gate.write();
        if !self.is_resting() {
            return;
        }
        let found = self.look_at_path().and_then(|root| {
            let held = self.hold_again(&root).map_err(|_| Look::Failed)?;
            held.then_some(()).ok_or(Look::Gone)
        });
        if let Err(look) = found {
            self.outage.open(match look {
                Look::Gone => Cause::Gone,
                _ => Cause::Fails,
            });
        }
        self.rest.resting.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_the_calm() {
        let mut calm = Calm::begins();
        calm.since -= Duration::from_secs(60);
        assert!(calm.lasts(0) >= Duration::from_secs(60));
        assert!(calm.lasts(1) < Duration::from_secs(30));
        calm.since -= Duration::from_secs(60);
        assert!(calm.lasts(1) >= Duration::from_secs(60));
    }
}
