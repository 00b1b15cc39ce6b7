//! Threads that read what was written to a `.copy`: few, however many write, and there only while
//! there is something to read. The copies themselves have threads of their own.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::control::ControlHandle;
use super::jobs::Turns;
use crate::sys::{OrFail, Result};

/// Reading lines costs little; two, so that one who writes long nonsense keeps nobody waiting long.
const MOST: usize = 2;
/// So long one stays when there is nothing to do.
const LINGER: Duration = Duration::from_secs(2);

/// Those threads, and what they have to do: in turn for each user.
#[derive(Default)]
pub(super) struct Clerks {
    /// A leaf in the order of locks.
    desk: Mutex<Desk>,
    work: Condvar,
}

#[derive(Default)]
struct Desk {
    turns: Turns<Arc<ControlHandle>>,
    threads: usize,
    resting: usize,
}

impl Clerks {
    /// Has a handle go on with what was written to it.
    ///
    /// # Errors
    /// EAGAIN when no thread can be had; then it is left to the caller.
    pub(super) fn hand(self: &Arc<Self>, handle: &Arc<ControlHandle>) -> Result<()> {
        let mut desk = self.desk.lock();
        if desk.resting == 0 && desk.threads < MOST {
            let clerks = Arc::clone(self);
            let spawned = std::thread::Builder::new()
                .name("corfs-lines".into())
                .spawn(move || clerks.serve())
                .or_fail("thread");
            match spawned {
                Ok(_) => desk.threads += 1,
                Err(fail) if desk.threads == 0 => return Err(fail),
                Err(_) => {}
            }
        }
        desk.turns.push(handle.user(), Arc::clone(handle));
        self.work.notify_one();
        Ok(())
    }

    fn serve(&self) {
        while let Some((user, handle)) = self.next() {
            if handle.advance() {
                self.desk.lock().turns.push(user, handle);
            }
        }
    }

    fn next(&self) -> Option<(u32, Arc<ControlHandle>)> {
        let mut desk = self.desk.lock();
        loop {
            if let Some(next) = desk.turns.pop(|_, _| true) {
                return Some(next);
            }
            desk.resting += 1;
            let over = self.work.wait_for(&mut desk, LINGER).timed_out();
            desk.resting -= 1;
            if over && desk.turns.is_empty() {
                desk.threads -= 1;
                return None;
            }
        }
    }
}
