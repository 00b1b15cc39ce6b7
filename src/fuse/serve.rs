//! Where a request is served: by the event loop that got it, or by a worker that may wait for the
//! source.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use parking_lot::Mutex;

use super::adapter::Adapter;
use super::oplog::{Line, carried, noted, take_noted};
use super::shared::Shared;
use super::workers::{Job, Pending};
use crate::mirror::NodeId;

/// Who does what touches the source, and how long it may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Workers do; else the event loops themselves.
    pub workers: bool,
    /// After this long, who only wants to know or to read is answered ETIMEDOUT.
    pub timeout: Option<Duration>,
    /// The same for who changes something.
    pub timeout_write: Option<Duration>,
    /// The source is not there yet.
    pub absent: bool,
    /// Event loops.
    pub loops: usize,
    /// How long one of them waits awake for the next request.
    pub busy_poll: Duration,
}

/// How long a request may wait for the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It asks or reads: there is no harm in an early end.
    Read,
    /// It changes something: when it is ended early nobody knows whether that was done.
    Write,
    /// As `Write`, and to be done after an early answer too: the locks of who closes a file must go.
    Flush,
    /// Nobody waits for it, and it must be done.
    Release,
}

/// A reply of the library.
pub(super) trait Answer: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! answers {
    ($($reply:ident),*) => {
        $(impl Answer for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

answers!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// The right to answer once.
pub(super) enum Slot<R: Answer> {
    /// Nobody else has it.
    Own(R),
    /// Somebody may answer first when it takes too long.
    Shared(Arc<Place<R>>),
}

/// Where a reply lies until somebody takes it.
pub(super) struct Place<R> {
    reply: Mutex<Option<R>>,
    /// For who answers before the work has ended.
    line: Line,
}

impl<R: Answer> Slot<R> {
    /// Whether somebody may answer first.
    pub(super) fn may_be_late(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// The reply, unless somebody has answered already: what was done for the caller then is to be
    /// undone. To be called when nothing is left that could wait, for the log is told of the end.
    #[must_use]
    pub(super) fn take(self) -> Option<R> {
        let (reply, line) = self.take_untold()?;
        line.tell();
        Some(reply)
    }

    /// As [`Slot::take`], for whoever knows the end only then: the log is to be told of it before the
    /// answer.
    #[must_use]
    pub(super) fn take_untold(self) -> Option<(R, Line)> {
        // Who has answered already has told of it.
        let line = take_noted();
        let reply = match self {
            Self::Own(reply) => Some(reply),
            Self::Shared(place) => place.reply.lock().take(),
        };
        reply.map(|reply| (reply, line))
    }

    /// Answers with an error, unless somebody has answered.
    pub(super) fn refuse(self, errno: Errno) {
        if let Some(reply) = self.take() {
            reply.refuse(errno);
        }
    }
}

impl<R: Answer> Pending for Place<R> {
    fn refuse(&self, errno: Errno) -> bool {
        let reply = self.reply.lock().take();
        let pending = reply.is_some();
        if let Some(reply) = reply {
            self.line.clone().tell_as(errno);
            reply.refuse(errno);
        }
        pending
    }

    fn is_pending(&self) -> bool {
        self.reply.lock().is_some()
    }
}

/// A name as it was lent to [`Adapter::serve`].
pub(super) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

impl Adapter {
    /// Does `work`, which touches the source and answers: here, or by a worker, who gets copies of
    /// what is `lent`. `caller` is the thread that waits.
    pub(super) fn serve<R: Answer, const N: usize>(
        &self,
        wait: Wait,
        caller: u32,
        reply: R,
        lent: [&[u8]; N],
        work: impl FnOnce(&Arc<Shared>, [&[u8]; N], Slot<R>) + Send + 'static,
    ) {
        let shared = &self.shared;
        let Some(workers) = &shared.workers else {
            let mirror = &shared.mirror;
            return mirror.serve_awake(|| work(shared, lent, Slot::Own(reply)));
        };
        if wait != Wait::Read {
            return workers.submit(job(shared, wait, caller, reply, lent, work));
        }
        // Without the source there is nothing to wait for.
        let mut asked = Some((reply, work));
        let apart = shared.mirror.serve_apart(|| {
            if let Some((reply, work)) = asked.take() {
                work(shared, lent, Slot::Own(reply));
            }
        });
        drop(apart);
        if let Some((reply, work)) = asked {
            workers.submit(job(shared, wait, caller, reply, lent, work));
        }
    }

    /// As [`Adapter::serve`], for what may take the disk long: never done here.
    pub(super) fn serve_aside<R: Answer>(
        &self,
        what: &'static str,
        caller: u32,
        reply: R,
        work: impl FnOnce(&Arc<Shared>, Slot<R>) + Send + 'static,
    ) {
        let shared = &self.shared;
        if shared.workers.is_some() {
            return self.serve(Wait::Write, caller, reply, [], move |shared, [], slot| {
                work(shared, slot);
            });
        }
        let theirs = shared.clone();
        shared
            .aside
            .run(what, move || work(&theirs, Slot::Own(reply)));
    }
}

impl Adapter {
    /// The kernel takes back lookups. It waits for no answer; but the last one closes descriptors
    /// and windows, of which some file systems (SMB) tell the server and wait for it.
    pub(super) fn forget_by_whom(&self, id: NodeId, count: u64) {
        let shared = &self.shared;
        let Some(workers) = &shared.workers else {
            return shared.mirror.forget(id, count);
        };
        let mut forgotten = shared.forgotten.lock();
        let first = forgotten.is_empty();
        forgotten.push((id, count));
        drop(forgotten);
        if first {
            let shared = shared.clone();
            workers.submit(Job::of_nobody(move || {
                let forgotten = std::mem::take(&mut *shared.forgotten.lock());
                for (id, count) in forgotten {
                    shared.mirror.forget(id, count);
                }
            }));
        }
    }
}

/// The same work, for a worker.
fn job<R: Answer, const N: usize>(
    shared: &Arc<Shared>,
    wait: Wait,
    caller: u32,
    reply: R,
    lent: [&[u8]; N],
    work: impl FnOnce(&Arc<Shared>, [&[u8]; N], Slot<R>) + Send + 'static,
) -> Job {
    let place = Arc::new(Place {
        reply: Mutex::new(Some(reply)),
        line: noted(),
    });
    let patience = match wait {
        Wait::Read => shared.serving.timeout,
        Wait::Write | Wait::Flush => shared.serving.timeout_write,
        Wait::Release => None,
    };
    let (shared, kept) = (shared.clone(), lent.map(Box::<[u8]>::from));
    let slot = Slot::Shared(place.clone());
    Job {
        pending: place,
        reads: wait == Wait::Read,
        deadline: patience.map(|patience| Instant::now() + patience),
        caller,
        must: matches!(wait, Wait::Flush | Wait::Release),
        watched: wait != Wait::Release,
        run: Box::new(carried(move || {
            let lent = kept.each_ref().map(|kept| &**kept);
            shared.mirror.serve_awake(|| work(&shared, lent, slot));
        })),
    }
}
