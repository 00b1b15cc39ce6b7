//! An open `.copy`: takes writes, runs their lines in order on a thread of its own, answers.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::engine::{self, Order};
use super::jobs::{Job, Registry, closed};
use super::language::{CopyRequest, Request, parse};
use super::lines::Lines;
use super::resolve::{Target, Tree};
use super::watchers::Watchers;
use crate::observe::{CopyEnd, Metrics};
use crate::sys::creds::Credentials;
use crate::sys::watch::{CallerWatch, same_process};
use crate::sys::{Errno, Fail, OrFail, Result};

/// Writes and flushes that wait for their answer, in all handles of a mount.
const MOST_WAITING: usize = 1024;

/// What a mount tells its copies.
pub struct JobsOptions {
    /// The root of the mounted tree; no name leads out of it.
    pub root: Arc<OwnedFd>,
    /// What an absolute name must begin with: the mountpoint, absolute, as it was given and as
    /// the kernel names it.
    pub mountpoints: Vec<PathBuf>,
    /// The mount is read-only: every copy is refused with EROFS.
    pub read_only: bool,
    /// The name that the mount answers itself (`.copy`): no file is newly made under it, EEXIST.
    pub control_name: Option<OsString>,
}

/// Called when a file has taken its place, with its directory and name, on a thread that holds no
/// lock and has its own identity; before the write that asked for it is answered.
pub type Published = Box<dyn Fn(BorrowedFd<'_>, &OsStr) + Send + Sync>;

type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// All copies of one mount.
pub struct Jobs {
    options: JobsOptions,
    metrics: Arc<Metrics>,
    published: Published,
    registry: Registry,
    watchers: Arc<Watchers>,
    /// How many writes and flushes wait for their answer. A leaf in the order of locks.
    waiting: Mutex<usize>,
    all_answered: Condvar,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(options: JobsOptions, metrics: Arc<Metrics>, published: Published) -> Arc<Self> {
        Arc::new(Self {
            options,
            metrics,
            published,
            registry: Registry::new(),
            watchers: Arc::default(),
            waiting: Mutex::new(0),
            all_answered: Condvar::new(),
        })
    }

    /// The copies that run, wait, and were done lately, for people: a line each, oldest first, and
    /// the error below it. Root sees all, everybody else his own.
    pub fn status_text(&self, viewer_uid: u32) -> Vec<u8> {
        let mut text = String::from("# no.  state      bytes  rate  method  names\n");
        text.push_str(&self.registry.describe(viewer_uid));
        text.into_bytes()
    }

    /// Cancels all copies, takes no more (ECANCELED), and waits until every write is answered.
    pub fn shutdown(&self) {
        self.registry.close();
        let mut waiting = self.waiting.lock();
        while *waiting > 0 {
            self.all_answered.wait(&mut waiting);
        }
    }

    fn admit(&self) -> Result<()> {
        if self.registry.is_closed() {
            return Err(closed());
        }
        let mut waiting = self.waiting.lock();
        if *waiting >= MOST_WAITING {
            return Err(Fail::new(Errno::AGAIN, "copy").because("too many copies wait"));
        }
        *waiting += 1;
        Ok(())
    }

    fn dismiss(&self) {
        *self.waiting.lock() -= 1;
        self.all_answered.notify_all();
    }

    /// Runs one line to its end.
    fn line(&self, handle: &ControlHandle, waiter: &Arc<CallerWatch>, line: &[u8]) -> Result<()> {
        let command = match parse(line) {
            Ok(Some(Request::Copy(command))) => command,
            Ok(Some(_)) => return Err(Fail::new(Errno::INVAL, "parse")),
            Ok(None) => return Ok(()),
            Err(fail) => {
                self.registry.refuse(handle.user, line, &fail);
                return Err(fail);
            }
        };
        let job = self.registry.enter(handle.user, &command)?;
        self.metrics.copy_started();
        let outcome = guarded(|| self.job(handle, waiter, &job, &command));
        self.metrics.copy_ended(match &outcome {
            Ok(()) => CopyEnd::Done,
            Err(fail) if fail.errno == Errno::INTR => CopyEnd::Cancelled,
            Err(_) => CopyEnd::Failed,
        });
        self.registry.end(&job, &outcome);
        outcome
    }

    fn job(
        &self,
        handle: &ControlHandle,
        waiter: &Arc<CallerWatch>,
        job: &Arc<Job>,
        command: &CopyRequest,
    ) -> Result<()> {
        if self.options.read_only {
            return Err(Fail::new(Errno::ROFS, "copy"));
        }
        self.watchers.add(waiter, job)?;
        let copied = guarded(|| {
            self.registry.start(job)?;
            handle
                .opener
                .run_as(|| self.copy(&handle.directory, job, command))?
        });
        self.watchers.remove(job);
        let target = copied?;
        (self.published)(target.directory.as_fd(), &target.name);
        Ok(())
    }

    /// Under the credentials of the opener.
    fn copy(&self, directory: &OwnedFd, job: &Job, command: &CopyRequest) -> Result<Target> {
        let tree = Tree {
            root: self.options.root.as_fd(),
            directory: directory.as_fd(),
            mountpoints: &self.options.mountpoints,
            reserved: self.options.control_name.as_deref(),
        };
        let source = tree.source(&command.sources[0])?;
        let target = tree.target(&command.destination, &command.sources[0])?;
        let order = Order {
            options: &command.options,
            progress: &job.progress,
            metrics: &self.metrics,
        };
        engine::copy(&source, &target, &order)?;
        Ok(target)
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
    /// Not held while anything runs or is answered; no other lock is taken under it.
    state: Mutex<HandleState>,
}

#[derive(Default)]
struct HandleState {
    /// With the worker while that is busy.
    lines: Lines,
    queue: VecDeque<Task>,
    /// A worker thread is there, and takes what is in the queue.
    busy: bool,
    last_writer: Option<u32>,
}

struct Task {
    waiter: Arc<CallerWatch>,
    what: What,
}

enum What {
    Write(Vec<u8>, Answer<u32>),
    Flush(Answer<()>),
}

impl What {
    fn refuse(self, fail: Fail) {
        match self {
            Self::Write(_, done) => done(Err(fail)),
            Self::Flush(done) => done(Err(fail)),
        }
    }
}

impl ControlHandle {
    /// A `.copy` that stands in `directory` was opened by the user whom requests call `user`; what
    /// is written to it is done as `opener`, which is who that is in the source.
    pub fn open(
        jobs: Arc<Jobs>,
        directory: Arc<OwnedFd>,
        user: u32,
        opener: Credentials,
    ) -> Arc<Self> {
        Arc::new(Self {
            jobs,
            directory,
            user,
            opener,
            state: Mutex::default(),
        })
    }

    /// Takes the bytes of one write. Never waits for a copy: `done` is called once, with the bytes
    /// that count as written or the error of the first line; from the handle's worker when lines
    /// are to be run, else before this returns.
    ///
    /// Writes on one handle run in order. See `copy::lines` for short counts.
    ///
    /// # Errors
    /// To `done`: EPERM when the writer is not the opener's user (a descriptor given to a setuid
    /// program gains nothing), EAGAIN when 1024 writes wait already or no thread can be had, EINTR
    /// when the writer has died or was told to stop, ECANCELED after [`Jobs::shutdown`], and the
    /// errors of lines.
    pub fn write(
        self: &Arc<Self>,
        writer: Writer,
        data: &[u8],
        done: Box<dyn FnOnce(Result<u32>) + Send>,
    ) {
        if writer.uid != self.user {
            let fail = Fail::new(Errno::PERM, "write").because("opened by another user");
            return done(Err(fail));
        }
        match self.keep_part_of_line(writer, data) {
            Some(answer) => done(answer),
            None => self.enqueue(writer, What::Write(data.to_vec(), done)),
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
        Some(state.lines.write(data, &mut |_| Ok(())).map(count))
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
            self.enqueue(writer, What::Flush(done));
        } else {
            done(Ok(()));
        }
    }

    /// The last descriptor is gone: forgets what was not run.
    pub fn closed(self: &Arc<Self>) {
        self.state.lock().lines = Lines::default();
    }

    fn enqueue(self: &Arc<Self>, writer: Writer, what: What) {
        if let Err(fail) = self.jobs.admit() {
            return what.refuse(fail);
        }
        let waiter = Arc::new(CallerWatch::new(writer.pid));
        {
            let mut state = self.state.lock();
            state.queue.push_back(Task { waiter, what });
            if std::mem::replace(&mut state.busy, true) {
                return;
            }
        }
        let handle = Arc::clone(self);
        let worker = std::thread::Builder::new().name("corfs-copy".into());
        if let Err(fail) = worker.spawn(move || handle.work()).or_fail("thread") {
            self.refuse_all(&fail);
        }
    }

    /// There is no worker for what is in the queue.
    fn refuse_all(&self, fail: &Fail) {
        let tasks = {
            let mut state = self.state.lock();
            state.busy = false;
            std::mem::take(&mut state.queue)
        };
        for task in tasks {
            task.what.refuse(fail.clone());
            self.jobs.dismiss();
        }
    }

    /// The worker: until the queue is empty.
    fn work(&self) {
        loop {
            let (task, mut lines) = {
                let mut state = self.state.lock();
                let Some(task) = state.queue.pop_front() else {
                    state.busy = false;
                    return;
                };
                (task, std::mem::take(&mut state.lines))
            };
            let answer = self.run(task, &mut lines);
            self.state.lock().lines = lines;
            // A panic in the reply must not keep the next writer waiting for ever.
            let _ = guarded(|| {
                answer();
                Ok(())
            });
            self.jobs.dismiss();
        }
    }

    /// Runs a task, and answers what will answer it.
    fn run(&self, task: Task, lines: &mut Lines) -> Box<dyn FnOnce()> {
        let waiter = task.waiter;
        let mut execute = |line: &[u8]| self.jobs.line(self, &waiter, line);
        match task.what {
            What::Write(data, done) => {
                let outcome = guarded(|| lines.write(&data, &mut execute));
                Box::new(move || done(outcome.map(count)))
            }
            What::Flush(done) => {
                let outcome = guarded(|| lines.flush(&mut execute));
                Box::new(move || done(outcome))
            }
        }
    }
}

/// The bytes of one write, which the kernel never lets reach 2 GiB.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A panic in a copy is EIO for the one who waits for it, who else would wait for ever.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(Fail::new(Errno::IO, "copy").because("a defect; see the log")))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
