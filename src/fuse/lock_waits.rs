//! F_SETLKW: those who wait for a lock.
//!
//! The kernel can't wait for a lock of another description on our behalf without a thread for
//! each waiter, so one thread asks again for all of them. A waiter that is told to stop is
//! answered EINTR: the kernel does not tell us (fuser answers INTERRUPT with ENOSYS), /proc does.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{Errno, ReplyEmpty};
use parking_lot::Mutex;

use super::convert;
use crate::mirror::{LockOutcome, Mirror};
use crate::sys::ofd::Lock;
use crate::sys::watch::CallerWatch;

/// How long a free lock may stay unnoticed.
const PERIOD: Duration = Duration::from_millis(10);
/// Every so many periods the callers are looked at.
const LOOK: u32 = 10;
/// The most that wait to be looked at by the thread.
const QUEUE: usize = 1024;

/// One who waits.
pub(super) struct Waiter {
    pub(super) handle: u64,
    pub(super) owner: u64,
    pub(super) lock: Lock,
    pub(super) watch: CallerWatch,
    pub(super) reply: ReplyEmpty,
}

/// All who wait. The thread ends with its sender.
#[derive(Default)]
pub(super) struct LockWaits {
    sender: Mutex<Option<SyncSender<Waiter>>>,
}

impl LockWaits {
    /// Answers the waiter when it has the lock, or ENOLCK at once when too many wait.
    pub(super) fn wait(&self, mirror: &Arc<Mirror>, waiter: Waiter) {
        let sender = match self.sender(mirror) {
            Ok(sender) => sender,
            Err(_) => return waiter.reply.error(Errno::ENOLCK),
        };
        if let Err(refused) = sender.try_send(waiter) {
            let (std::sync::mpsc::TrySendError::Full(waiter)
            | std::sync::mpsc::TrySendError::Disconnected(waiter)) = refused;
            waiter.reply.error(Errno::ENOLCK);
        }
    }

    fn sender(&self, mirror: &Arc<Mirror>) -> std::io::Result<SyncSender<Waiter>> {
        let mut slot = self.sender.lock();
        if let Some(sender) = &*slot {
            return Ok(sender.clone());
        }
        let (sender, receiver) = sync_channel(QUEUE);
        let mirror = Arc::downgrade(mirror);
        std::thread::Builder::new()
            .name("lock-waits".to_owned())
            .spawn(move || serve(&mirror, &receiver))?;
        *slot = Some(sender.clone());
        Ok(sender)
    }
}

fn serve(mirror: &Weak<Mirror>, receiver: &Receiver<Waiter>) {
    let mut waiting: Vec<Waiter> = Vec::new();
    let mut round = 0u32;
    loop {
        if waiting.is_empty() {
            match receiver.recv() {
                Ok(waiter) => waiting.push(waiter),
                Err(_) => return,
            }
        }
        match receiver.recv_timeout(PERIOD) {
            Ok(waiter) => waiting.push(waiter),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(mirror) = mirror.upgrade() else {
            return;
        };
        round = round.wrapping_add(1);
        let look = round.is_multiple_of(LOOK);
        waiting = waiting
            .into_iter()
            .filter_map(|waiter| attempt(&mirror, waiter, look))
            .collect();
    }
}

/// Tries once for one waiter; gives it back when it must go on waiting.
fn attempt(mirror: &Mirror, waiter: Waiter, look: bool) -> Option<Waiter> {
    match mirror.setlk(waiter.handle, waiter.owner, waiter.lock) {
        Ok(LockOutcome::Done) => waiter.reply.ok(),
        Ok(LockOutcome::Held) if look && waiter.watch.signalled().is_some() => {
            waiter.reply.error(Errno::EINTR);
        }
        Ok(LockOutcome::Held) => return Some(waiter),
        Err(fail) => waiter.reply.error(convert::errno(&fail)),
    }
    None
}
