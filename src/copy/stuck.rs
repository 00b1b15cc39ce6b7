//! Work that may never come back: it has a thread of its own, and the one who waits for it is
//! answered without it once the job is cancelled.
//!
//! A thread that waits for a source which hangs can't be interrupted. It goes on by itself, sees
//! that it is cancelled as soon as the system call under way returns, and cleans up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::progress::Progress;
use crate::sys::{Errno, Fail, OrFail, Result};

/// How often the one who waits looks whether he still shall.
const LOOK: Duration = Duration::from_millis(50);
/// What work that is not stuck needs to see that it is cancelled, and to clean up. Within it the
/// answer tells how it truly ended.
const GRACE: Duration = Duration::from_millis(400);
/// Threads that may be stuck: each has a stack, and descriptors of its own.
const MOST_STUCK: usize = 64;

/// The threads of one mount that were left to themselves.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// A leaf in the order of locks.
    count: Mutex<usize>,
}

impl Stuck {
    /// Does `work` on a thread of its own, and answers what it answers; EINTR when `progress` is
    /// cancelled and the work does not come back within half a second.
    ///
    /// # Errors
    /// EAGAIN when no thread can be had, and when 64 are stuck already. EIO after a panic.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        progress: &Progress,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if *self.count.lock() >= MOST_STUCK {
            return Err(Fail::new(Errno::AGAIN, "copy").because("too many copies hang"));
        }
        let (send, receive) = sync_channel(1);
        let left: Arc<Mutex<Option<Arc<Self>>>> = Arc::default();
        let own = Arc::clone(&left);
        let thread = std::thread::Builder::new().name("corfs-copier".into());
        thread
            .spawn(move || {
                let answer = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                    Err(Fail::new(Errno::IO, "copy").because("a defect; see the log"))
                });
                // Nobody may be there any more to hear it.
                let _ = send.send(answer);
                // Whoever left it has done so under the lock, before he looked for an answer.
                if let Some(stuck) = own.lock().take() {
                    *stuck.count.lock() -= 1;
                }
            })
            .or_fail("thread")?;
        let mut cancelled = None;
        loop {
            match receive.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fail::new(Errno::IO, "copy").because("its thread has ended"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let overdue = progress.is_cancelled()
                && cancelled.get_or_insert_with(Instant::now).elapsed() >= GRACE;
            if overdue {
                return self.leave(&left, || receive.try_recv().ok());
            }
        }
    }

    /// Answers without the thread, unless it has come back in this very moment.
    fn leave<T>(
        self: &Arc<Self>,
        left: &Mutex<Option<Arc<Self>>>,
        answer: impl FnOnce() -> Option<Result<T>>,
    ) -> Result<T> {
        let mut left = left.lock();
        if let Some(answer) = answer() {
            return answer;
        }
        *self.count.lock() += 1;
        *left = Some(Arc::clone(self));
        log::warn!("a cancelled copy hangs: what it has made goes when its system call returns");
        Err(Fail::new(Errno::INTR, "copy").because("cancelled; it hangs"))
    }

    /// How many are stuck now.
    #[cfg(test)]
    fn count(&self) -> usize {
        *self.count.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_that_comes_back_answers_by_itself() {
        let stuck = Arc::new(Stuck::default());
        let progress = Progress::new(None);
        assert_eq!(stuck.run(&progress, || Ok(7)).unwrap(), 7);
        let refused = stuck.run(&progress, || Err::<(), _>(Fail::new(Errno::NOENT, "open")));
        assert_eq!(refused.unwrap_err().errno, Errno::NOENT);
        // A cancel that finds it done, or ending in time, changes nothing of how it ended.
        progress.cancel();
        assert_eq!(stuck.run(&progress, || Ok(8)).unwrap(), 8);
        assert_eq!(stuck.count(), 0);
    }

    #[test]
    fn a_panic_is_an_error() {
        let stuck = Arc::new(Stuck::default());
        let answer = stuck.run(&Progress::new(None), || -> Result<()> {
            panic!("on purpose")
        });
        assert_eq!(answer.unwrap_err().errno, Errno::IO);
    }

    #[test]
    fn who_is_cancelled_need_not_wait_for_what_hangs_and_not_too_many_hang() {
        let stuck = Arc::new(Stuck::default());
        let progress = Progress::new(None);
        progress.cancel();
        let mut ends = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..MOST_STUCK {
                let (end, hang) = channel::<()>();
                ends.push(end);
                let (stuck, progress) = (&stuck, &progress);
                scope.spawn(move || {
                    let answer = stuck.run(progress, move || {
                        let _ = hang.recv();
                        Ok(())
                    });
                    assert_eq!(answer.unwrap_err().errno, Errno::INTR);
                });
            }
        });
        assert_eq!(stuck.count(), MOST_STUCK);
        let refused = stuck.run(&progress, || Ok(())).unwrap_err();
        assert_eq!(refused.errno, Errno::AGAIN);
        drop(ends);
        while stuck.count() > 0 {
            std::thread::sleep(LOOK);
        }
        stuck.run(&progress, || Ok(())).unwrap();
    }
}
