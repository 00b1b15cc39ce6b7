//! F_SETLKW: those who wait for a lock.
//!
//! The kernel can't wait for a lock of another description on our behalf without a thread for
//! each waiter, so one thread asks again for all of them. A waiter that is told to stop is
//! answered EINTR: the kernel does not tell us (fuser answers INTERRUPT with ENOSYS), /proc does.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{Errno, ReplyEmpty};
use parking_lot::Mutex;

use super::convert;
use super::oplog::Line;
use super::serve::Slot;
use super::shared::Shared;
use crate::mirror::{Caller, LockOutcome, Mirror};
use crate::observe::Op;
use crate::sys::ofd::Lock;
use crate::sys::watch::CallerWatch;
use crate::sys::{self, Fail};

/// How long a free lock may stay unnoticed.
const PERIOD: Duration = Duration::from_millis(10);
/// Every so many periods the callers are looked at.
const LOOK: u32 = 10;
/// The most that wait to be looked at by the thread.
const QUEUE: usize = 1024;

/// Who wants which lock.
#[derive(Clone, Copy)]
pub(super) struct Asking {
    pub(super) caller: Caller,
    pub(super) handle: u64,
    pub(super) owner: u64,
    pub(super) lock: Lock,
}

impl Asking {
    fn attempt(&self, mirror: &Mirror) -> crate::sys::Result<LockOutcome> {
        mirror.setlk(&self.caller, self.handle, self.owner, self.lock)
    }

    /// What the owner holds of the range already.
    fn held(&self, mirror: &Mirror) -> Vec<Lock> {
        mirror.locks_within(self.handle, self.owner, self.lock)
    }

    /// Gives back what was taken, but for what was held `before`. What could not be had again was
    /// taken by somebody else in the meantime: by one who waited for a lock that is weaker now.
    fn undo(&self, mirror: &Mirror, before: &[Lock]) {
        if self.lock.kind == libc::F_UNLCK {
            return;
        }
        let free = Lock {
            kind: libc::F_UNLCK,
            ..self.lock
        };
        for lock in std::iter::once(&free).chain(before) {
            let _ = Self {
                lock: *lock,
                ..*self
            }
            .attempt(mirror);
        }
    }
}

/// One who waits.
struct Waiter {
    asking: Asking,
    watch: CallerWatch,
    reply: ReplyEmpty,
    line: Line,
    /// Not looked at yet.
    fresh: bool,
}

impl Waiter {
    fn answer(self, done: Result<(), Errno>) {
        match done {
            Ok(()) => {
                self.line.tell();
                self.reply.ok();
            }
            Err(errno) => {
                self.line.tell_as(errno);
                self.reply.error(errno);
            }
        }
    }
}

impl Shared {
    /// Takes a lock, or gives it back; `sleep` waits for it.
    pub(super) fn setlk(&self, asking: Asking, sleep: bool, slot: Slot<ReplyEmpty>) {
        let before = slot.may_be_late().then(|| asking.held(&self.mirror));
        let done = self.measured(Op::Setlk, || match asking.attempt(&self.mirror)? {
            LockOutcome::Held if !sleep => Err(Fail::new(sys::Errno::AGAIN, "lock")),
            outcome => Ok(outcome),
        });
        if !matches!(done, Ok(LockOutcome::Held)) {
            return match (done, slot.take()) {
                (Ok(_), Some(reply)) => reply.ok(),
                (Err(errno), Some(reply)) => reply.error(errno),
                // He does not know that he has it.
                (Ok(_), None) => asking.undo(&self.mirror, &before.unwrap_or_default()),
                (Err(_), None) => {}
            };
        }
        if let Some((reply, line)) = slot.take_untold() {
            let waiter = Waiter {
                asking,
                watch: CallerWatch::new(asking.caller.pid),
                reply,
                line,
                fresh: true,
            };
            self.lock_waits.wait(&self.mirror, waiter);
        }
    }
}

/// All who wait. The thread ends with its sender.
#[derive(Default)]
pub(super) struct LockWaits {
    sender: Mutex<Option<SyncSender<Waiter>>>,
}

impl LockWaits {
    /// Answers the waiter when it has the lock, or ENOLCK at once when too many wait.
    fn wait(&self, mirror: &Arc<Mirror>, waiter: Waiter) {
        let sender = match self.sender(mirror) {
            Ok(sender) => sender,
            Err(_) => return waiter.answer(Err(Errno::ENOLCK)),
        };
        if let Err(refused) = sender.try_send(waiter) {
            let (std::sync::mpsc::TrySendError::Full(waiter)
            | std::sync::mpsc::TrySendError::Disconnected(waiter)) = refused;
            waiter.answer(Err(Errno::ENOLCK));
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
        attend(&mirror, &mut waiting, round.is_multiple_of(LOOK));
    }
}

/// Tries once for each; `look` says that the callers and the circle of waiters are looked at too.
fn attend(mirror: &Mirror, waiting: &mut Vec<Waiter>, look: bool) {
    let mut at = 0;
    while let Some(waiter) = waiting.get_mut(at) {
        let look = look || std::mem::take(&mut waiter.fresh);
        match attempt(mirror, waiting, at, look) {
            None => at += 1,
            Some(answer) => waiting.swap_remove(at).answer(answer),
        }
    }
}

/// Tries once for one waiter; None when it must go on waiting.
fn attempt(
    mirror: &Mirror,
    waiting: &[Waiter],
    at: usize,
    look: bool,
) -> Option<Result<(), Errno>> {
    let waiter = waiting.get(at)?;
    match waiter.asking.attempt(mirror) {
        Ok(LockOutcome::Done) => Some(Ok(())),
        Ok(LockOutcome::Held) if !look => None,
        Ok(LockOutcome::Held) if waiter.watch.interrupted().is_some() => Some(Err(Errno::EINTR)),
        Ok(LockOutcome::Held) if deadlocked(mirror, waiting, waiter) => Some(Err(Errno::EDEADLK)),
        Ok(LockOutcome::Held) => None,
        Err(fail) => Some(Err(convert::errno(&fail))),
    }
}

/// Whether one who waits is, by way of others who wait, waited for by itself. The kernel tells
/// that for POSIX locks, and not for those of open file descriptions, which stand for them here.
fn deadlocked(mirror: &Mirror, waiting: &[Waiter], waiter: &Waiter) -> bool {
    let blockers = |one: &Waiter| {
        let Asking {
            handle,
            owner,
            lock,
            ..
        } = one.asking;
        mirror.lock_blockers(handle, owner, lock)
    };
    let mut reached = HashSet::new();
    let mut next = blockers(waiter);
    while let Some(owner) = next.pop() {
        if owner == waiter.asking.owner {
            return true;
        }
        if reached.insert(owner) {
            let theirs = waiting.iter().filter(|other| other.asking.owner == owner);
            next.extend(theirs.flat_map(blockers));
        }
    }
    false
}
