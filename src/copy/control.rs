//! An open `.copy`: takes writes, has their lines done in order, answers.
//!
//! No thread waits with a writer: what is left of his lines is taken up again when a copy ends.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::clerks::Clerks;
use super::engine::Order;
use super::jobs::{Job, New, Registry, Shares, Waited, closed, guarded};
use super::language::wording::title;
use super::language::{CopyRequest, Request, parse};
use super::leftovers;
use super::lines::{Lines, Pass, Step};
use super::options::Priority;
use super::resolve::{Change, Tree};
use super::tree::copy_all;
use crate::observe::Metrics;
use crate::sys::creds::Credentials;
use crate::sys::watch::{CallerWatch, same_process};
use crate::sys::{Errno, Fail, Result, umask};

/// Writes and flushes that wait for their answer, in all handles of a mount: of one user, of all,
/// and of anybody whatever the others have.
const MOST_WAITING: (usize, usize, usize) = (1024, 2048, 16);
/// The same for their bytes.
const MOST_BYTES: (usize, usize, usize) = (16 << 20, 64 << 20, 1 << 20);
/// Copies that are under way when the mount is to go may end within so long: who waits for one keeps
/// the mount busy, and a source that hangs would keep it for ever.
const GRACE: Duration = Duration::from_secs(5);
/// Lines that are read in one go, before it is another's turn.
const LINES_A_TURN: usize = 64;
/// A write of one line up to so many bytes is read by the one who brings it.
const SHORT: usize = 4096;

/// What a mount tells its copies.
pub struct JobsOptions {
    /// The root of the mounted tree, as it is held at this moment; no name leads out of it.
    pub root: Root,
    /// What an absolute name must begin with: the mountpoint, absolute, as it was given and as
    /// the kernel names it.
    pub mountpoints: Vec<PathBuf>,
    /// The mount is read-only: every copy is refused with EROFS.
    pub read_only: bool,
    /// The name that the mount answers itself (`.copy`): no file is newly made under it, EEXIST.
    pub control_name: Option<OsString>,
    /// The kernel keeps what is written on the mount: has it write that to the source now. It would
    /// not hear of another size of a file that it knows, so none is written into (EOPNOTSUPP).
    pub write_back: Option<WriteBack>,
    /// A copy of which a system call does not come back for so long fails with ETIMEDOUT.
    pub patience: Option<Duration>,
}

/// Gives the root of the mounted tree, or says why there is none now.
pub type Root = Box<dyn Fn() -> Result<Arc<OwnedFd>> + Send + Sync>;

/// Called before a copy, on a thread that holds no lock.
pub type WriteBack = Box<dyn Fn() + Send + Sync>;

/// Called when a file has taken its place, or was changed in it, on a thread that holds no lock and
/// acts as the one who copies; before the write that asked for it is answered.
pub type Tell = Box<dyn Fn(Change<'_>) + Send + Sync>;

type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// All copies of one mount.
pub struct Jobs {
    options: JobsOptions,
    metrics: Arc<Metrics>,
    tell: Tell,
    registry: Arc<Registry>,
    clerks: Arc<Clerks>,
    /// The writes and flushes that wait for their answer. A leaf in the order of locks.
    waiting: Mutex<Waiting>,
    all_answered: Condvar,
}

struct Waiting {
    count: Shares,
    bytes: Shares,
}

/// What becomes of a line.
enum Run {
    Done(Result<()>),
    /// [`ControlHandle::settle`] will be told.
    Later,
}

impl Jobs {
    /// No jobs yet. What copies that were killed have left in the root goes now; elsewhere with the
    /// next job there.
    pub fn new(options: JobsOptions, metrics: Arc<Metrics>, tell: Tell) -> Arc<Self> {
        if !options.read_only
            && let Ok(root) = (options.root)()
        {
            leftovers::visit_at_mount(root);
        }
        let shares = |(each, all, always)| Shares::new(each, all, always);
        Arc::new(Self {
            registry: Registry::new(Arc::clone(&metrics), options.patience),
            options,
            metrics,
            tell,
            clerks: Arc::default(),
            waiting: Mutex::new(Waiting {
                count: shares(MOST_WAITING),
                bytes: shares(MOST_BYTES),
            }),
            all_answered: Condvar::new(),
        })
    }

    /// What a line may say, and the copies that run, wait, and were done lately, for people: a
    /// line each, oldest first, and errors below it. Root sees all, everybody else his own.
    pub fn status_text(&self, viewer_uid: u32) -> Vec<u8> {
        self.registry.describe(viewer_uid).into_bytes()
    }

    /// The same copies for programs: a JSON array of objects. `bytes_*` and `files_*` count those
    /// of this attempt, `rate_*` are bytes a second, `errors` are the files of a tree that failed
    /// (the first hundred of `failed`), `errno` and `error` tell how the job failed.
    pub fn status_json(&self, viewer_uid: u32) -> Vec<u8> {
        self.registry.json(viewer_uid).into_bytes()
    }

    /// The mount is to go, when its last user does: copies that run or wait now and are still there
    /// some seconds from now are cancelled (see [`Jobs::tick`]). Others are taken as before.
    pub fn wind_up(&self) {
        self.registry.wind_up(Instant::now() + GRACE);
    }

    /// To be called every second: cancels those whose time is over.
    pub fn tick(&self) {
        self.registry.cancel_overdue();
    }

    /// Cancels all copies, takes no more (ECANCELED), and waits until every write is answered: a
    /// second at most, whatever hangs.
    pub fn shutdown(&self) {
        self.registry.close();
        let mut waiting = self.waiting.lock();
        while waiting.count.taken() > 0 {
            self.all_answered.wait(&mut waiting);
        }
        drop(waiting);
        self.registry.drain();
    }

    fn admit(&self, user: u32, bytes: usize) -> Result<()> {
        if self.registry.is_closed() {
            return Err(closed());
        }
        let mut waiting = self.waiting.lock();
        if !waiting.count.allows(user, 1) || !waiting.bytes.allows(user, bytes) {
            let why = match waiting.count.of(user) {
                own if own >= MOST_WAITING.0 => format!("{own} of your writes wait already"),
                _ => format!("{} writes wait already", waiting.count.taken()),
            };
            return Err(Fail::new(Errno::AGAIN, "write").because(why));
        }
        waiting.count.take(user, 1);
        waiting.bytes.take(user, bytes);
        Ok(())
    }

    fn dismiss(&self, user: u32, bytes: usize) {
        let mut waiting = self.waiting.lock();
        waiting.count.give_back(user, 1);
        waiting.bytes.give_back(user, bytes);
        self.all_answered.notify_all();
    }

    /// Does what one line says, or begins to.
    fn line(
        self: &Arc<Self>,
        handle: &Arc<ControlHandle>,
        waiter: &Arc<CallerWatch>,
        line: &[u8],
    ) -> Run {
        let request = match guarded(|| parse(line)) {
            Ok(None) => return Run::Done(Ok(())),
            Ok(Some(request)) => request,
            Err(fail) => return self.refused(handle, line, fail),
        };
        let user = handle.user;
        let answer = || {
            let handle = Arc::clone(handle);
            Box::new(move |outcome| handle.settle(outcome))
        };
        let run = match request {
            Request::Copy(copy) => {
                let waiter = (!copy.background).then(|| (Arc::clone(waiter), answer() as _));
                let later = waiter.is_some();
                let entered = self.enter(handle, *copy, waiter);
                entered.map(|_| if later { Run::Later } else { Run::Done(Ok(())) })
            }
            Request::Cancel(which) => self
                .registry
                .cancel(user, which)
                .map(|()| Run::Done(Ok(()))),
            Request::Pause(number) => self.hold(user, number, true),
            Request::ResumeJob(number) => self.hold(user, number, false),
            Request::Wait(number) => {
                let waiter = Arc::clone(waiter);
                match self.registry.wait(user, number, waiter, answer()) {
                    // How that job ended is told with that job, not with this line.
                    Ok(Waited::Now(outcome)) => return Run::Done(outcome),
                    Ok(Waited::Later) => Ok(Run::Later),
                    Err(fail) => Err(fail),
                }
            }
        };
        run.unwrap_or_else(|fail| self.refused(handle, line, fail))
    }

    fn hold(&self, user: u32, number: u64, held: bool) -> Result<Run> {
        let done = self.registry.hold(user, number, held);
        done.map(|()| Run::Done(Ok(())))
    }

    fn refused(&self, handle: &ControlHandle, line: &[u8], fail: Fail) -> Run {
        match fail.errno {
            Errno::AGAIN => self.registry.turn_away(handle.user, &fail),
            _ => self.registry.refuse(handle.user, line, &fail),
        }
        Run::Done(Err(fail))
    }

    fn enter(
        self: &Arc<Self>,
        handle: &Arc<ControlHandle>,
        request: CopyRequest,
        waiter: Option<(Arc<CallerWatch>, Answer<()>)>,
    ) -> Result<u64> {
        let new = New {
            owner: handle.user,
            title: title(&request.sources, &request.destination),
            limit: request.options.limit,
            idle: request.options.priority == Priority::Idle,
            waiter,
            work: {
                // Not the handle: a copy in the background outlives it.
                let jobs = Arc::clone(self);
                let directory = Arc::clone(&handle.directory);
                let (opener, umask) = (handle.opener.clone(), handle.umask);
                Box::new(move |job| {
                    // With our own rights: the way to it need not be open to the opener.
                    let root = (jobs.options.root)()?;
                    umask::set(umask)?;
                    opener.run_as(|| jobs.copy(&root, &directory, umask, job, &request))?
                })
            },
        };
        self.registry.enter(new)
    }

    /// On a thread of its own, under the credentials of the opener.
    fn copy(
        &self,
        root: &OwnedFd,
        directory: &OwnedFd,
        umask: u32,
        job: &Job,
        request: &CopyRequest,
    ) -> Result<()> {
        if self.options.read_only {
            return Err(Fail::new(Errno::ROFS, "copy"));
        }
        if let Some(write_back) = &self.options.write_back {
            if request.options.inplace {
                return Err(Fail::new(Errno::OPNOTSUPP, "copy").because(
                    "--inplace: under writeback=on the kernel keeps the size of what stands there",
                ));
            }
            job.progress.at_length(write_back);
        }
        let tree = Tree {
            root: root.as_fd(),
            directory: directory.as_fd(),
            mountpoints: &self.options.mountpoints,
            reserved: self.options.control_name.as_deref(),
            umask,
            told: &*self.tell,
        };
        let order = Order {
            options: &request.options,
            progress: &job.progress,
            metrics: &self.metrics,
        };
        copy_all(&request.sources, &request.destination, &tree, &order)
    }
}

/// Who writes or closes.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// The user id in the request's header.
    pub uid: u32,
    /// The thread in the request's header; 0 if unknown.
    pub pid: u32,
}

/// One open of a `.copy`. Acts as its opener, whoever holds the descriptor.
pub struct ControlHandle {
    jobs: Arc<Jobs>,
    directory: Arc<OwnedFd>,
    user: u32,
    opener: Credentials,
    umask: u32,
    /// Not held while anything runs or is answered; no other lock is taken under it.
    state: Mutex<HandleState>,
}

#[derive(Default)]
struct HandleState {
    lines: Lines,
    queue: VecDeque<Task>,
    /// The first of the queue, once begun.
    current: Option<Task>,
    /// Somebody goes on with what is here, or waits for a copy to do so.
    busy: bool,
    last_writer: Option<u32>,
}

/// A write or a flush that waits for its answer.
struct Task {
    waiter: Arc<CallerWatch>,
    pass: Pass,
    bytes: usize,
    answer: Reply,
}

enum Reply {
    Write(Answer<u32>),
    Flush(Answer<()>),
}

impl Reply {
    fn send(self, outcome: Result<usize>) {
        match self {
            Self::Write(done) => done(outcome.map(count)),
            Self::Flush(done) => done(outcome.map(drop)),
        }
    }
}

/// What a handle has to do next.
enum Next {
    Nothing,
    Execute(Vec<u8>, Arc<CallerWatch>),
    /// To answer; the rest is whether there is more to do then.
    Answer(Reply, Result<usize>, usize, bool),
}

impl ControlHandle {
    /// A `.copy` that stands in `directory` was opened by the user whom requests call `user`; what
    /// is written to it is done as `opener`, which is who that is in the source, with his file
    /// creation mask.
    pub fn open(
        jobs: Arc<Jobs>,
        directory: Arc<OwnedFd>,
        user: u32,
        opener: Credentials,
        umask: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            jobs,
            directory,
            user,
            opener,
            umask,
            state: Mutex::default(),
        })
    }

    /// Takes the bytes of one write. Never waits for a copy: `done` is called once, with the bytes
    /// that count as written or the error of the first line; from the handle's worker when lines
    /// are to be run, else before this returns.
    ///
    /// Writes on one handle run in order. See `copy::lines` for short counts. `is_cut`: the kernel
    /// may have more of the same write(2), which it will hand on as another if all of this counts
    /// as written.
    ///
    /// # Errors
    /// To `done`: EPERM when the writer is not the opener's user (a descriptor given to a setuid
    /// program gains nothing), EAGAIN when too many writes (1024 of a user) or copies wait or no
    /// thread can be had, EINTR when the writer has died or was told to stop, ECANCELED when
    /// another has cancelled the copy and after [`Jobs::shutdown`], and the errors of lines.
    pub fn write(
        self: &Arc<Self>,
        writer: Writer,
        data: &[u8],
        is_cut: bool,
        done: Box<dyn FnOnce(Result<u32>) + Send>,
    ) {
        if writer.uid != self.user {
            let fail = Fail::new(Errno::PERM, "write").because("opened by another user");
            return done(Err(fail));
        }
        match self.keep_part_of_line(writer, data) {
            Some(answer) => done(answer),
            None => {
                let pass = match is_cut {
                    true => Pass::cut_write(data.to_vec()),
                    false => Pass::write(data.to_vec()),
                };
                self.enqueue(writer, pass, data, Reply::Write(done));
            }
        }
    }

    /// A write that ends no line runs nothing, and is answered at once if none is before it.
    fn keep_part_of_line(&self, writer: Writer, data: &[u8]) -> Option<Result<u32>> {
        let mut state = self.state.lock();
        state.last_writer = Some(writer.pid);
        if state.busy || data.contains(&b'\n') {
            return None;
        }
        // Without a newline there is no line to execute.
        match state.lines.next(&mut Pass::write(data.to_vec())) {
            Step::Answer(answer) => Some(answer.map(count)),
            Step::Line(_) => None,
        }
    }

    /// A descriptor of this open is closed: runs a last line that has no newline, and answers an
    /// errno that no write has answered. `done` is called as for [`ControlHandle::write`].
    ///
    /// A close by another process than the last writer's means nothing: whoever inherits a shell's
    /// descriptors closes them when it ends, while the shell may be within a line.
    pub fn flush(self: &Arc<Self>, writer: Writer, done: Box<dyn FnOnce(Result<()>) + Send>) {
        let last_writer = {
            let state = self.state.lock();
            let settled = !state.busy && state.lines.is_settled();
            state.last_writer.filter(|_| !settled)
        };
        let concerned = writer.uid == self.user
            && last_writer.is_some_and(|last| same_process(last, writer.pid));
        if concerned {
            self.enqueue(writer, Pass::flush(), &[], Reply::Flush(done));
        } else {
            done(Ok(()));
        }
    }

    /// The last descriptor is gone: forgets what was not run.
    pub fn closed(self: &Arc<Self>) {
        self.state.lock().lines = Lines::default();
    }

    /// Whose this is.
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    fn enqueue(self: &Arc<Self>, writer: Writer, pass: Pass, data: &[u8], answer: Reply) {
        if let Err(fail) = self.jobs.admit(self.user, data.len()) {
            self.jobs.registry.turn_away(self.user, &fail);
            return answer.send(Err(fail));
        }
        let task = Task {
            waiter: Arc::new(CallerWatch::new(writer.pid)),
            pass,
            bytes: data.len(),
            answer,
        };
        let lines = data.iter().filter(|&&byte| byte == b'\n').count();
        let short = {
            let mut state = self.state.lock();
            let short = lines <= 1 && state.lines.begun() + data.len() <= SHORT;
            state.queue.push_back(task);
            if std::mem::replace(&mut state.busy, true) {
                return;
            }
            short
        };
        if !short || self.advance() {
            self.hand_on();
        }
    }

    /// Leaves what there is to others.
    fn hand_on(self: &Arc<Self>) {
        if let Err(fail) = self.jobs.clerks.hand(self) {
            self.refuse_all(&fail);
        }
    }

    /// There is nobody to go on with what is here. Lines that are done count: who is told of none
    /// would come again with all.
    fn refuse_all(&self, fail: &Fail) {
        let tasks: Vec<(Task, Result<usize>)> = {
            let mut state = self.state.lock();
            let state = &mut *state;
            state.busy = false;
            let current = state.current.take().map(|mut task| {
                let outcome = state.lines.give_up(&mut task.pass, fail.clone());
                (task, outcome)
            });
            let waiting = state.queue.drain(..).map(|task| (task, Err(fail.clone())));
            current.into_iter().chain(waiting).collect()
        };
        for (task, outcome) in tasks {
            self.answer(task.answer, outcome, task.bytes);
        }
    }

    /// Goes on with what was written, until a copy is to be waited for, or it is another's turn:
    /// then true, and there is more. For the one who has made it busy.
    pub(super) fn advance(self: &Arc<Self>) -> bool {
        for _ in 0..LINES_A_TURN {
            match self.next() {
                Next::Nothing => return false,
                Next::Answer(answer, outcome, bytes, more) => {
                    self.answer(answer, outcome, bytes);
                    if !more {
                        return false;
                    }
                }
                Next::Execute(line, waiter) => match self.jobs.line(self, &waiter, &line) {
                    Run::Later => return false,
                    Run::Done(outcome) => self.executed(outcome),
                },
            }
        }
        true
    }

    fn next(&self) -> Next {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.current.is_none() {
            state.current = state.queue.pop_front();
        }
        let Some(task) = &mut state.current else {
            state.busy = false;
            return Next::Nothing;
        };
        match state.lines.next(&mut task.pass) {
            Step::Line(line) => Next::Execute(line, Arc::clone(&task.waiter)),
            Step::Answer(outcome) => {
                state.busy = !state.queue.is_empty();
                match state.current.take() {
                    Some(task) => Next::Answer(task.answer, outcome, task.bytes, state.busy),
                    None => Next::Nothing,
                }
            }
        }
    }

    fn executed(&self, outcome: Result<()>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(task) = &mut state.current {
            state.lines.executed(&mut task.pass, outcome);
        }
    }

    /// The copy has ended that was waited for. Answers if no other line has to be read for that;
    /// the thread that tells is not to be kept.
    fn settle(self: &Arc<Self>, outcome: Result<()>) {
        self.executed(outcome);
        let through = {
            let state = self.state.lock();
            state
                .current
                .as_ref()
                .is_some_and(|task| task.pass.is_through())
        };
        if through && let Next::Answer(answer, outcome, bytes, more) = self.next() {
            self.answer(answer, outcome, bytes);
            if !more {
                return;
            }
        }
        self.hand_on();
    }

    fn answer(&self, answer: Reply, outcome: Result<usize>, bytes: usize) {
        // A panic in the reply must not keep the next writer waiting for ever.
        let _ = guarded(|| {
            answer.send(outcome);
            Ok(())
        });
        self.jobs.dismiss(self.user, bytes);
    }
}

/// The bytes of one write, which the kernel never lets reach 2 GiB.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
