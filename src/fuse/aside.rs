//! What may take long, beside the event loops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The most threads beside the event loops; past that the loops do the work themselves.
const MOST: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Threads for operations that wait for the disk: fsync, a large copy.
#[derive(Debug, Default)]
pub(super) struct Aside {
    running: Arc<AtomicUsize>,
}

impl Aside {
    /// Runs `job` on a thread of its own; on this one when there are too many, or none is to be
    /// had.
    pub(super) fn run(&self, name: &str, job: impl FnOnce() + Send + 'static) {
        let job = super::oplog::carried(job);
        let slot: Arc<Mutex<Option<Job>>> = Arc::new(Mutex::new(Some(Box::new(job))));
        if self.running.fetch_add(1, Ordering::Relaxed) < MOST {
            let (theirs, running) = (slot.clone(), self.running.clone());
            let spawned = std::thread::Builder::new()
                .name(name.to_owned())
                .stack_size(256 << 10)
                .spawn(move || {
                    take_and_run(&theirs);
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            if spawned.is_ok() {
                return;
            }
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
        take_and_run(&slot);
    }
}

fn take_and_run(slot: &Mutex<Option<Job>>) {
    let job = slot.lock().take();
    if let Some(job) = job {
        job();
    }
}
