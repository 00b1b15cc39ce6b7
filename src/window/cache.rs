//! The windows that reads are answered from.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::{Mode, OFlags};

use super::ahead::{Ahead, Job};
use super::budget::{Budget, Reservation, Touched, Window};
use super::options::{Geometry, Span, WindowOptions};
use super::table::{Found, Gone, Key, Table};
use crate::observe::{Fallback, Metrics};
use crate::sys::{Errno, procfd};

/// Room for a window that nobody asked for yet is made only of windows that were not used for this
/// long: readying ahead must not take a window from under a reader.
const IDLE_FOR_AHEAD: Duration = Duration::from_millis(5);

/// The identity of a file within this process. Never reused, so that a window of a file that is
/// gone cannot come to stand for another file with its inode number.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileId(pub u64);

/// How a reader goes through a file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// It will go on behind this request.
    Sequential,
    /// It may go anywhere, by large steps.
    Random,
    /// It may go anywhere, and asks for little. To map and populate for that what is asked for once
    /// costs more than pread does: what it asks for again comes from a window. To unmap another
    /// window for it costs several times as much: it must have been asked for many times.
    Scattered,
}

impl Pattern {
    /// The largest scattered request, in bytes: populating as much costs about what mapping does.
    const SMALL: usize = 64 << 10;

    /// That of a request for `len` bytes of a file of `size` bytes. Small files are read whole, and
    /// there is nothing behind that.
    pub fn of(sequential: bool, len: u64, size: u64) -> Self {
        match sequential {
            true if size > Self::SMALL as u64 => Self::Sequential,
            _ if len <= Self::SMALL as u64 => Self::Scattered,
            _ => Self::Random,
        }
    }
}

/// Why a request cannot be answered from a window. The caller goes by pread, which gives the bytes
/// or the true errno.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Miss {
    /// Everything that is mapped is in use, and one more window would pass the budget.
    Budget,
    /// One scattered request is no reason to map a window, or to populate it there.
    Cold,
    /// A page could not be had: the file is shorter by now, or its device failed.
    Fault,
    /// The file cannot be mapped, or not that range of it.
    Unmappable,
}

impl Miss {
    /// The same, as it is counted.
    pub fn reason(self) -> Fallback {
        match self {
            Self::Budget => Fallback::Budget,
            Self::Cold => Fallback::Cold,
            Self::Fault => Fallback::Fault,
            Self::Unmappable => Fallback::Unmappable,
        }
    }
}

/// Mapped windows of source files, which never map more than the budget together.
///
/// A window is counted from before its mmap until after its munmap, also while it is not listed
/// any more because its file was forgotten or has grown, and a pin still holds it.
#[derive(Debug)]
pub struct WindowCache {
    geometry: Geometry,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    /// Never held across mmap, munmap, madvise or any I/O. No other lock is taken under it.
    table: Mutex<Table>,
    /// Wakes those who wait for a window that another thread maps, or for room that another
    /// thread is making.
    changed: Condvar,
    ahead: Ahead,
}

impl WindowCache {
    /// An empty cache. The options should have passed [`WindowOptions::check`]; with impossible
    /// ones every request is a miss.
    pub fn new(options: WindowOptions, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            geometry: options.geometry(),
            budget: Budget::new(options.budget, Arc::clone(&metrics)),
            metrics,
            table: Mutex::new(Table::new()),
            changed: Condvar::new(),
            ahead: Ahead::new(),
        })
    }

    /// The bytes of `range`, mapped, populated once, and pinned. Pages that the kernel took back since
    /// come as they are touched: [`MapSlice::present`].
    ///
    /// `fd` is any descriptor of the file that is open for reading. `size` is the file's size in
    /// bytes that the caller took just now, and `range` is clipped to it and no longer than the
    /// longest request. For a sequential `pattern` the next window is readied before it is asked
    /// for.
    ///
    /// # Errors
    ///
    /// A [`Miss`]; nothing stays pinned.
    pub fn slice(
        self: &Arc<Self>,
        file: FileId,
        fd: &Arc<OwnedFd>,
        range: Range<u64>,
        size: u64,
        pattern: Pattern,
    ) -> Result<MapSlice, Miss> {
        if range.is_empty() {
            return Ok(MapSlice::default());
        }
        let span = self.geometry.span(range.start, size);
        let span = span.ok_or(Miss::Unmappable)?;
        let within = within(&span, &range).ok_or(Miss::Unmappable)?;
        let key = (file, span.index);
        let window = self.pin(key, &span, within.end, fd.as_fd(), pattern)?;
        if pattern == Pattern::Scattered {
            return self.scattered(window, within);
        }
        window.start(&within);
        if pattern == Pattern::Sequential
            && let Some(next) = self.geometry.next(&span, range.end, size)
            && window.first_ahead()
        {
            let fd = Arc::clone(fd);
            self.ahead.ask(self, Job::new(file, fd, next, size));
        }
        let before = window.is_populated(&within);
        if !before {
            window
                .populate(&within)
                .map_err(|errno| self.no_page(errno))?;
        }
        Ok(MapSlice {
            window: Some(window),
            range: within,
            before,
        })
    }

    /// [`Self::slice`] for a scattered request.
    fn scattered(&self, window: Arc<Window>, within: Range<usize>) -> Result<MapSlice, Miss> {
        let touched = window.touch(&within);
        match touched {
            Touched::Never => return Err(Miss::Cold),
            Touched::Before => window
                .populate_around(&within)
                .map_err(|errno| self.no_page(errno))?,
            Touched::Often => {}
        }
        Ok(MapSlice {
            window: Some(window),
            range: within,
            before: touched == Touched::Often,
        })
    }

    fn no_page(&self, errno: Errno) -> Miss {
        match errno {
            Errno::FAULT | Errno::HWPOISON => {
                self.metrics.fault_survived();
                Miss::Fault
            }
            _ => Miss::Unmappable,
        }
    }

    /// The window of that key, mapped if it is not, spanning at least its first `len` bytes.
    fn pin(
        &self,
        key: Key,
        span: &Span,
        len: usize,
        fd: BorrowedFd<'_>,
        pattern: Pattern,
    ) -> Result<Arc<Window>, Miss> {
        if span.len > self.budget.limit() {
            return Err(Miss::Budget);
        }
        let scattered = pattern == Pattern::Scattered;
        let mut table = self.table.lock();
        let (ticket, outgrown) = loop {
            let now = Instant::now();
            match table.find(key, len, now) {
                Found::Window(window) => {
                    drop(table);
                    self.metrics.window_hit();
                    return Ok(window);
                }
                // One maps and the others wait, so that no window is mapped or counted twice. If
                // it failed for that one, the next in line tries.
                Found::Mapping => self.changed.wait(&mut table),
                Found::Nothing(None)
                    if scattered && !table.warms(key, self.budget.missing(span.len) > 0, now) =>
                {
                    return Err(Miss::Cold);
                }
                Found::Nothing(outgrown) => break (table.begin(key), outgrown),
            }
        };
        self.depart(table, outgrown.into_iter().collect());
        self.metrics.window_miss();
        self.map(key, ticket, span, fd, Duration::ZERO)
    }

    /// Maps a window that [`Table::begin`] was called for.
    fn map(
        &self,
        key: Key,
        ticket: u64,
        span: &Span,
        fd: BorrowedFd<'_>,
        idle: Duration,
    ) -> Result<Arc<Window>, Miss> {
        let reader = for_reading(fd);
        let fd = reader.as_ref().map_or(fd, AsFd::as_fd);
        let window = self
            .reserve(span.len, idle)
            .ok_or(Miss::Budget)
            .and_then(|bytes| Window::map(fd, span, bytes).map_err(|_| Miss::Unmappable))
            .map(Arc::new);
        self.table
            .lock()
            .settle(key, ticket, window.as_ref().ok(), Instant::now());
        self.changed.notify_all();
        window
    }

    /// Takes bytes of the budget, unmapping windows that were not used for `idle` until they fit.
    fn reserve(&self, len: usize, idle: Duration) -> Option<Reservation> {
        loop {
            if let Some(reservation) = self.budget.reserve(len) {
                return Some(reservation);
            }
            let mut table = self.table.lock();
            let missing = self.budget.missing(len);
            let gone = table.evict(missing, idle, Instant::now());
            if !gone.is_empty() {
                gone.iter().for_each(|_| self.metrics.window_evicted());
                self.depart(table, gone);
            } else if table.departing > 0 {
                // All that could go is on its way: its room is there in a moment.
                self.changed.wait(&mut table);
            } else {
                // Room may have come between the first try and the lock.
                return self.budget.reserve(len);
            }
        }
    }

    /// Lets windows go that were taken out of the table: unmaps, without the lock, those that are
    /// not pinned. Until that is done they count as departing, so that nobody who needs their room
    /// takes it for lost.
    fn depart(&self, mut table: MutexGuard<'_, Table>, gone: Gone) {
        if gone.is_empty() {
            return;
        }
        table.departing += 1;
        drop(table);
        drop(gone);
        self.table.lock().departing -= 1;
        self.changed.notify_all();
    }

    /// Maps the window at `start` for a reader that is about to reach it, if the window before it
    /// still stands, and this one does not.
    pub(super) fn ready_ahead(&self, job: &Job) -> Option<(Arc<Window>, Range<usize>)> {
        let span = self.geometry.span(job.start, job.size)?;
        let key = (job.file, span.index);
        let ticket = {
            let mut table = self.table.lock();
            // If the window before is gone, so is the file, or the reader, or the room for more.
            let stands = table.contains((job.file, span.index.checked_sub(1)?));
            if !stands || table.contains(key) || span.len > self.budget.limit() {
                return None;
            }
            table.begin(key)
        };
        let fd = job.fd.as_fd();
        let window = self.map(key, ticket, &span, fd, IDLE_FOR_AHEAD).ok()?;
        self.metrics.window_readied_ahead();
        // The tail belongs to the window behind: populating it here would do that work twice.
        let own = window
            .len()
            .min(usize::try_from(self.geometry.window).ok()?);
        Some((window, 0..own))
    }

    /// Unmaps all of that file that is not in use; what is in use goes when it is released.
    pub fn forget(&self, file: FileId) {
        let mut table = self.table.lock();
        let gone = table.forget(file);
        self.depart(table, gone);
    }

    /// Unmaps everything that is not in use.
    pub fn clear(&self) {
        let mut table = self.table.lock();
        let gone = table.clear();
        self.depart(table, gone);
    }

    /// Unmaps windows that were not used for that long: as long as a deleted file is mapped, its
    /// space on disk does not come back.
    pub fn trim_idle(&self, idle: Duration) {
        let mut table = self.table.lock();
        let gone = table.evict(usize::MAX, idle, Instant::now());
        self.depart(table, gone);
    }

    /// Bytes mapped now, those being mapped and being unmapped among them. Never above the budget.
    pub fn mapped_bytes(&self) -> usize {
        self.budget.bytes()
    }
}

/// The same file open for reading only, if `fd` is open for both. A mapping keeps the open
/// file that it was made by: through one that may write, a program would stay busy (ETXTBSY) in
/// the source until its window goes. Where the file can't be opened again, `None`.
fn for_reading(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(fd).ok()?;
    if flags & OFlags::RWMODE != OFlags::RDWR {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | (flags & OFlags::NOATIME);
    rustix::fs::open(procfd::path(fd), flags, Mode::empty()).ok()
}

/// A range of the file as a range of the window; `None` if it does not lie within.
fn within(span: &Span, range: &Range<u64>) -> Option<Range<usize>> {
    let start = usize::try_from(range.start.checked_sub(span.offset)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(span.offset)?).ok()?;
    (end <= span.len).then_some(start..end)
}

/// Mapped bytes of a file, pinned until this is dropped.
#[derive(Debug, Default)]
pub struct MapSlice {
    /// `None` for no bytes.
    window: Option<Arc<Window>>,
    range: Range<usize>,
    /// They were populated, though not just now.
    before: bool,
}

impl MapSlice {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none, because none were asked for.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Itself, with every page there now: to lend it should not fail.
    ///
    /// # Errors
    ///
    /// [`Miss::Fault`] when a page cannot be had.
    pub fn present(self) -> Result<Self, Miss> {
        match &self.window {
            Some(window) if self.before => window.populate(&self.range).map_err(|_| Miss::Fault)?,
            _ => {}
        }
        Ok(self)
    }

    /// Lends the bytes to a system call, which copies from them.
    ///
    /// `f` must not read them itself: the file may have been truncated since they were populated.
    /// That is EFAULT or a short count to a system call, and SIGBUS to us.
    pub fn lend<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match &self.window {
            Some(window) => window.lend(self.range.clone(), f),
            None => f(&[]),
        }
    }
}
