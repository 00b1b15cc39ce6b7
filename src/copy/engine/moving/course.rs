//! The parts of one file, moved by one worker or several, each by the best method that is left.

use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, Scope};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{Advice, fadvise, ftruncate};
use rustix::param::page_size;

use super::Pass;
use super::direct::Direct;
use super::mapped::Windows;
use super::plan::{Plan, Walk};
use super::shared;
use super::workers::{self, Kind, LARGE, STRETCH, Way};
use crate::copy::options::{Method, Sparse};
use crate::sys::{Aligned, Errno, Fail, OrFail, Result, pages};

/// Bytes of a helper's stack.
const STACK: usize = 256 << 10;
/// Bytes at the start of a part that tell whether it is cached.
const LOOK: u64 = 512 << 10;

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// This method does not go on from here: the next one may.
    NotFrom(u64),
}

/// What one worker has for himself.
#[derive(Default)]
pub(super) struct Worker {
    walk: Walk,
    pub(super) windows: Windows,
    pub(super) buffer: Aligned,
    pub(super) look: Vec<u8>,
}

/// One pass over the bytes, after the extents that could be shared.
pub(super) struct Course<'a> {
    pass: &'a Pass<'a>,
    plan: Plan<'a>,
    unit: u64,
    /// From the best down; the last goes anywhere.
    ladder: &'a [Method],
    rung: AtomicUsize,
    direct: &'a Direct<'a>,
    kind: Kind,
    /// Bytes moved by all.
    moved: AtomicU64,
    /// Where the source turned out to end.
    end: AtomicU64,
    /// How many workers there should be, and how many helpers the first one has.
    wanted: AtomicU16,
    /// What would be written from a mapping goes through a buffer.
    buffered: AtomicBool,
    /// The same, because the source was found not to be cached.
    cold: AtomicBool,
    helpers: AtomicU16,
    /// Somebody failed: the others stop.
    over: AtomicBool,
    /// The first failure. A leaf in the order of locks.
    failure: Mutex<Option<Fail>>,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        pass: &'a Pass<'a>,
        plan: Plan<'a>,
        unit: u64,
        ladder: &'a [Method],
        direct: &'a Direct<'a>,
        kinds: (u64, u64),
    ) -> Self {
        Self {
            pass,
            plan,
            unit,
            ladder,
            rung: AtomicUsize::new(0),
            direct,
            kind: Kind {
                source: kinds.0,
                destination: kinds.1,
                method: ladder.first().copied(),
                free: pass.order.options.method.is_none(),
                direct: direct.is_on(),
            },
            moved: AtomicU64::new(0),
            end: AtomicU64::new(u64::MAX),
            wanted: AtomicU16::new(1),
            buffered: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            helpers: AtomicU16::new(0),
            over: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    pub(super) fn pass(&self) -> &Pass<'a> {
        self.pass
    }

    pub(super) fn source(&self) -> BorrowedFd<'a> {
        self.pass.source
    }

    pub(super) fn destination(&self) -> BorrowedFd<'a> {
        self.pass.destination
    }

    pub(super) fn size(&self) -> u64 {
        self.pass.size
    }

    pub(super) fn unit(&self) -> u64 {
        self.unit
    }

    pub(super) fn sparse(&self) -> Sparse {
        self.pass.order.options.sparse
    }

    pub(super) fn direct(&self) -> &Direct<'a> {
        self.direct
    }

    /// EINTR when cancelled, or when another worker has failed.
    pub(super) fn check(&self) -> Result<()> {
        if self.over.load(Ordering::Relaxed) {
            return Err(Fail::new(Errno::INTR, "copy").because("another worker failed"));
        }
        self.pass.progress().check()
    }

    pub(super) fn count(&self, bytes: u64) -> Result<()> {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        self.pass.count(bytes)
    }

    /// The source has no bytes from here on, though its size says so.
    pub(super) fn ends_at(&self, at: u64) {
        self.end.fetch_min(at, Ordering::Relaxed);
    }

    /// A page of the source was not to be had; we are still there.
    pub(super) fn fault(&self, at: u64) -> Fail {
        self.pass.order.metrics.fault_survived();
        super::lost(at)
    }

    /// Moves everything.
    pub(super) fn run(&self) -> Result<()> {
        self.set_method();
        self.advise(Advice::Sequential);
        std::thread::scope(|scope| {
            let led = self.lead(scope);
            self.note(led);
        });
        // The description may be that of an open file of the mount.
        self.advise(Advice::Normal);
        if let Some(fail) = self.failure.lock().take() {
            return Err(fail);
        }
        // Not where the source ends by now, and not the whole block that was written last.
        let end = self.end.load(Ordering::Relaxed).min(self.size());
        if end < self.size() || self.direct.align() > 1 {
            ftruncate(self.destination(), end).or_fail("ftruncate")?;
        }
        Ok(())
    }

    /// The first worker, who also says how many there are to be.
    fn lead<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Result<()> {
        let asked = self.pass.order.options.workers;
        let measured = asked.is_none() && self.worth_measuring();
        let way = match asked {
            Some(number) if self.size() > self.unit => Way::of(number.get()),
            _ if measured => workers::next(self.kind),
            _ => Way::of(1),
        };
        self.set_way(scope, way);
        let mut worker = Worker::default();
        let mut stretch = Stretch::begin(self);
        while self.next(&mut worker)? {
            // Another file of the tree may have let go of some.
            if asked.is_some() && way.workers > 1 {
                self.set_way(scope, way);
            }
            if measured && let Some(way) = stretch.step(self) {
                self.set_way(scope, way);
            }
        }
        Ok(())
    }

    /// What is held to a limit would show that limit.
    fn worth_measuring(&self) -> bool {
        self.size() >= LARGE && self.pass.order.options.limit.is_none()
    }

    fn set_way<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, way: Way) {
        let progress = self.pass.progress();
        let number = way.workers;
        self.wanted.store(number, Ordering::Relaxed);
        if self.buffered.swap(way.buffered, Ordering::Relaxed) != way.buffered {
            self.set_method();
        }
        // What is measured is what was asked for here; a number that was named is that of the job.
        let named = self.pass.order.options.workers;
        let most = named.map_or(u16::MAX, |n| n.get());
        while self.helpers.load(Ordering::Relaxed) + 1 < number && progress.begin_work_unless(most)
        {
            // They act as we do: Linux gives a thread the credentials of the one that starts it.
            let helper = Builder::new()
                .name("copy-worker".into())
                .stack_size(STACK)
                .spawn_scoped(scope, || {
                    self.help();
                    progress.end_work();
                });
            if helper.is_err() {
                progress.end_work();
                break;
            }
            self.helpers.fetch_add(1, Ordering::Relaxed);
        }
        // In a tree there are workers of which this one is one.
        if number > 1 || self.size() >= LARGE || progress.workers() == 0 {
            progress.set_workers(number);
        }
    }

    fn help(&self) {
        let mut worker = Worker::default();
        while self.stays() {
            match self.next(&mut worker) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fail) => {
                    self.note(Err(fail));
                    break;
                }
            }
        }
    }

    /// Whether a helper goes on; one who does not is counted out.
    fn stays(&self) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let leave = |helpers| (helpers + 1 > wanted).then(|| helpers - 1);
        self.helpers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave)
            .is_err()
    }

    fn note(&self, outcome: Result<()>) {
        if let Err(fail) = outcome {
            let mut failure = self.failure.lock();
            if !self.over.swap(true, Ordering::Relaxed) {
                *failure = Some(fail);
            }
        }
    }

    /// Moves the next part. False when there is none.
    fn next(&self, worker: &mut Worker) -> Result<bool> {
        self.check()?;
        let Some(part) = self.plan.claim(&mut worker.walk)? else {
            return Ok(false);
        };
        if !self.direct.is_on() {
            self.read_ahead(&worker.walk);
        }
        self.part(worker, part.clone())?;
        self.pass.done(part)?;
        Ok(true)
    }

    /// How the kernel is to read ahead of us. A hint: it cannot fail.
    fn advise(&self, how: Advice) {
        if !self.direct.is_on() {
            let _ = fadvise(self.source(), 0, None, how);
        }
    }

    /// While this part is written, the next one is read, where a request takes long. Elsewhere the
    /// kernel's own readahead is faster, which reads into large folios; what is asked for by a hint is
    /// read page by page (`force_page_cache_ra`). Measured, 512 MiB not cached on a device of 2 GB/s,
    /// medians of 7, with this hint and without: ext4 313 and 226 ms, XFS 253 and 228.
    fn read_ahead(&self, walk: &Walk) {
        if !shared::is_far(self.kind.source) {
            return;
        }
        if let Some(next) = self.plan.ahead(walk) {
            let len = NonZeroU64::new(next.end - next.start);
            let _ = fadvise(self.source(), next.start, len, Advice::WillNeed);
        }
    }

    fn part(&self, worker: &mut Worker, mut part: Range<u64>) -> Result<()> {
        self.look_for_cold(&part);
        loop {
            let (rung, method) = self.method();
            let outcome = match method {
                Method::CopyRange => self.copy_range(part.clone()),
                Method::MapMap => self.map_map(worker, part.clone()),
                Method::MapWrite => self.map_write(worker, part.clone()),
                // Extents were shared before, if that was possible.
                Method::ReadWrite | Method::Reflink => self.read_write(worker, part.clone()),
            }?;
            match outcome {
                Outcome::Done => return Ok(()),
                Outcome::NotFrom(at) => {
                    part.start = at;
                    self.rung.fetch_max(rung + 1, Ordering::Relaxed);
                    self.set_method();
                }
            }
        }
    }

    /// The rung of the ladder, and what is done there.
    fn method(&self) -> (usize, Method) {
        let rung = self.rung.load(Ordering::Relaxed);
        match self.ladder.get(rung).copied() {
            Some(Method::MapWrite) if self.goes_by_buffer() => (rung, Method::ReadWrite),
            Some(method) => (rung, method),
            None => (rung, Method::ReadWrite),
        }
    }

    fn goes_by_buffer(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) || self.cold.load(Ordering::Relaxed)
    }

    /// Where nobody asked for mappings, what is not cached is read into a buffer, from here to the
    /// end: the kernel reads ahead of a read into larger and larger folios, and of a fault into
    /// single pages, which cost more to map and to let go than their bytes to copy. Measured, not
    /// cached on ext4, a device of 2 GB/s, medians of 7, mapped and by buffer: eight files of 16 MiB
    /// 143 and 100 ms, four of 32 MiB 108 and 80 ms.
    fn look_for_cold(&self, part: &Range<u64>) {
        if !self.kind.free || self.method().1 != Method::MapWrite {
            return;
        }
        let len = (part.end - part.start).min(LOOK);
        let pages = len.div_ceil(page_size() as u64);
        // Where the kernel does not tell, it may be cached.
        let cached = pages::cached(self.source(), part.start, len).unwrap_or(pages);
        if cached < pages.div_ceil(2) {
            self.cold.store(true, Ordering::Relaxed);
            self.set_method();
        }
    }

    fn set_method(&self) {
        self.pass.progress().set_method(self.method().1);
    }
}

/// A stretch of the copy, timed.
struct Stretch {
    way: Way,
    since: Instant,
    from: u64,
    /// It began with others still at work that it should not have.
    unsettled: bool,
}

impl Stretch {
    fn begin(course: &Course<'_>) -> Self {
        Self {
            way: Way {
                workers: course.wanted.load(Ordering::Relaxed),
                buffered: course.buffered.load(Ordering::Relaxed),
            },
            since: Instant::now(),
            from: course.moved.load(Ordering::Relaxed),
            unsettled: true,
        }
    }

    /// After each part: at the end of a stretch, the way of the next.
    fn step(&mut self, course: &Course<'_>) -> Option<Way> {
        let moved = course.moved.load(Ordering::Relaxed);
        if std::mem::take(&mut self.unsettled) {
            (self.since, self.from) = (Instant::now(), moved);
            return None;
        }
        if moved - self.from < STRETCH {
            return None;
        }
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let rate = (moved - self.from) as f64 / seconds;
        workers::record(course.kind, self.way, rate);
        let way = workers::next(course.kind);
        *self = Self {
            way,
            since: Instant::now(),
            from: moved,
            unsettled: way != self.way,
        };
        Some(way)
    }
}
