//! One thread copies, one looks on.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Standing;
use super::stop::{SIGNALS, Stop};
use super::view::View;
use crate::fuse::session::refusal::{Refusal, said};
use crate::sys::signals::Held;

/// How often the copy is looked at, and whether somebody wants it to stop.
const LOOK: Duration = Duration::from_millis(100);
/// One who was told to stop and is held up by the kernel ends all the same after this: what has a
/// name and is not whole is then taken away by the next copy into that directory.
const PATIENCE: Duration = Duration::from_secs(5);

/// A copy that is under way elsewhere.
pub(super) trait Work: Sync {
    /// How far it is; `None` if nobody knows.
    fn standing(&self) -> Option<Standing>;

    /// Has it stop. Called again and again until it has.
    fn cancel(&self, signal: i32);
}

/// Runs `copy` on this thread, shows how far `work` is, and hands on a word to stop.
///
/// Signals come to this thread only: one who waits in a mount's `.copy` is answered because they
/// are pending for *him*.
pub(super) fn watched<T>(
    work: &dyn Work,
    stop: &Stop,
    view: &mut View,
    copy: impl FnOnce() -> T,
) -> Result<T, Refusal> {
    let over = Over::default();
    std::thread::scope(|scope| {
        let failed = |error| Refusal::system(format!("copy: {error}"));
        let held = Held::back(&SIGNALS).map_err(failed)?;
        let looker = std::thread::Builder::new().name("corfs-look".into());
        let started = looker.spawn_scoped(scope, || look_on(work, stop, view, &over));
        // Also when there is no thread: the process is to end by signals again.
        let released = held.release();
        started.map_err(|error| Refusal::system(format!("start a thread: {}", said(error))))?;
        let _end = End(&over);
        released.map_err(failed)?;
        Ok(copy())
    })
}

fn look_on(work: &dyn Work, stop: &Stop, view: &mut View, over: &Over) {
    let mut since = None;
    while !over.wait(LOOK) {
        if let Some(signal) = stop.asked() {
            let since: Instant = *since.get_or_insert_with(Instant::now);
            view.stopping();
            if since.elapsed() > PATIENCE {
                view.clear();
                super::complain("copy: stopped, though the kernel has not answered yet");
                // If it can't be done, the copy is waited for.
                let _ = stop.end(signal);
            }
            work.cancel(signal);
        }
        if let Some(standing) = work.standing() {
            view.show(&standing);
        }
    }
}

/// Whether the copy has ended. A leaf in the order of locks.
#[derive(Default)]
struct Over {
    is: Mutex<bool>,
    changed: Condvar,
}

impl Over {
    /// Waits so long at most, and answers whether it has.
    fn wait(&self, time: Duration) -> bool {
        let mut is = self.is.lock();
        if !*is {
            self.changed.wait_for(&mut is, time);
        }
        *is
    }
}

/// Says that the copy has ended, also when it panicked: the one who looks on must not stay.
struct End<'a>(&'a Over);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.is.lock() = true;
        self.0.changed.notify_all();
    }
}
