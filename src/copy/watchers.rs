//! One thread that looks after those who wait for a copy, and cancels it when they are to stop.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::jobs::Job;
use crate::sys::watch::CallerWatch;
use crate::sys::{OrFail, Result};

/// How often each of them is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Who waits for which job.
#[derive(Default)]
pub(super) struct Watchers {
    /// A leaf in the order of locks.
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    watched: Vec<(Arc<CallerWatch>, Arc<Job>)>,
    /// The thread is there; it ends when there is nobody left to look after.
    running: bool,
}

impl Watchers {
    /// From now on the job is cancelled when its waiter dies or has a stopping signal pending.
    ///
    /// # Errors
    /// EAGAIN when no thread can be had.
    pub(super) fn add(self: &Arc<Self>, waiter: &Arc<CallerWatch>, job: &Arc<Job>) -> Result<()> {
        let mut list = self.list.lock();
        if !list.running {
            let watchers = Arc::clone(self);
            std::thread::Builder::new()
                .name("corfs-watch".into())
                .spawn(move || watchers.look())
                .or_fail("thread")?;
            list.running = true;
        }
        list.watched.push((Arc::clone(waiter), Arc::clone(job)));
        Ok(())
    }

    /// The job has ended.
    pub(super) fn remove(&self, job: &Arc<Job>) {
        self.list
            .lock()
            .watched
            .retain(|(_, other)| !Arc::ptr_eq(job, other));
    }

    fn look(&self) {
        loop {
            let watched = {
                let mut list = self.list.lock();
                if list.watched.is_empty() {
                    list.running = false;
                    return;
                }
                list.watched.clone()
            };
            for (waiter, job) in watched {
                if waiter.signalled().is_some() {
                    job.progress.cancel();
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
