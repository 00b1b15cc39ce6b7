//! The ceiling of mapped bytes.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::map::{Access, RawMap};
use super::options::Span;
use crate::observe::Metrics;
use crate::sys::Errno;

/// How many windows may be mapped at once, whatever their bytes: files of one page each would
/// otherwise pass the kernel's limit of mappings (`vm.max_map_count`, 65530 by default), with room
/// left here for the copies and for all else that maps.
const MOST_WINDOWS: usize = 16 << 10;

/// How much of a cold range the kernel reads at a time while it populates: its readahead of a
/// mapping. A longer range is started as a whole first.
const PIECE: usize = 128 << 10;

/// What a fault maps at once of what is in the page cache (fault_around_bytes, 64 KiB by default), and
/// the grain in which it is remembered what was asked for.
const AROUND: usize = 64 << 10;

/// How much is populated at a time ahead of a reader.
const AHEAD: usize = 512 << 10;

/// Bytes and windows mapped, never above their ceilings.
///
/// Kept in atomics and not under the table's lock, so that a window that goes because its last
/// pin went can give its bytes back without that lock.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    bytes: AtomicUsize,
    windows: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.set_window_budget(limit as u64);
        Arc::new(Self {
            limit,
            bytes: AtomicUsize::new(0),
            windows: AtomicUsize::new(0),
            metrics,
        })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes mapped now, those being mapped and being unmapped among them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Takes `len` bytes of the budget, if they fit, before they are mapped.
    pub(super) fn reserve(self: &Arc<Self>, len: usize) -> Option<Reservation> {
        take(&self.windows, 1, MOST_WINDOWS).then_some(())?;
        if !take(&self.bytes, len, self.limit) {
            self.windows.fetch_sub(1, Ordering::Release);
            return None;
        }
        self.metrics.window_mapped(len as u64);
        Some(Reservation {
            budget: Arc::clone(self),
            len,
        })
    }

    /// Bytes that must go before `len` more fit.
    pub(super) fn missing(&self, len: usize) -> usize {
        self.bytes().saturating_add(len).saturating_sub(self.limit)
    }
}

/// Adds `amount`, unless the sum would pass `limit`.
fn take(counter: &AtomicUsize, amount: usize, limit: usize) -> bool {
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            now.checked_add(amount).filter(|sum| *sum <= limit)
        })
        .is_ok()
}

/// Bytes taken from the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    len: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.metrics.window_unmapped(self.len as u64);
        self.budget.bytes.fetch_sub(self.len, Ordering::AcqRel);
        self.budget.windows.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A mapped window. Whoever holds it in an `Arc` pins it.
#[derive(Debug)]
pub(super) struct Window {
    // The order of these two matters: fields are dropped as they stand, and the bytes may be given
    // back only when they are unmapped.
    map: RawMap,
    _reservation: Reservation,
    /// A bit for each [`PIECE`] whose I/O was started.
    started: Bits,
    /// A bit for each [`AROUND`] of which scattered requests asked for something.
    touched: Bits,
    /// A bit for each that was populated.
    populated: Bits,
    ahead: AtomicBool,
}

/// Whether scattered requests asked for something before.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    Never,
    Before,
    /// So often that it was populated.
    Often,
}

/// A bit for each grain of a window. Only hints: no order is needed.
#[derive(Debug)]
struct Bits {
    grain: usize,
    words: Box<[AtomicU64]>,
}

impl Bits {
    fn new(len: usize, grain: usize) -> Self {
        let words = len.div_ceil(grain).div_ceil(64);
        Self {
            grain,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Each word of the range, and the bits in it.
    fn within(&self, range: &Range<usize>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let grains = range.start / self.grain..range.end.div_ceil(self.grain);
        grains.filter_map(|grain| Some((self.words.get(grain / 64)?, 1_u64 << (grain % 64))))
    }

    fn has(&self, range: &Range<usize>) -> bool {
        self.within(range)
            .all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Sets the bits of the range; whether all were set.
    fn set(&self, range: &Range<usize>) -> bool {
        self.within(range).fold(true, |all, (word, bit)| {
            all & (word.fetch_or(bit, Ordering::Relaxed) & bit != 0)
        })
    }
}

impl Window {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        span: &Span,
        reservation: Reservation,
    ) -> Result<Self, Errno> {
        debug_assert_eq!(reservation.len, span.len);
        Ok(Self {
            map: RawMap::new(fd, span.offset, span.len, Access::Read)?,
            _reservation: reservation,
            started: Bits::new(span.len, PIECE),
            touched: Bits::new(span.len, AROUND),
            populated: Bits::new(span.len, AROUND),
            ahead: AtomicBool::new(false),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether this call is the first to ask for the window behind this one.
    pub(super) fn first_ahead(&self) -> bool {
        !self.ahead.swap(true, Ordering::Relaxed)
    }

    /// Starts the I/O for a range of which some piece was not started yet. A populate of a cold
    /// range would go piece by piece, each waiting for the one before; a request of one piece
    /// gains nothing.
    pub(super) fn start(&self, range: &Range<usize>) {
        if range.len() > PIECE && !self.started.set(range) {
            self.map.will_need(range);
        }
    }

    /// Remembers that a scattered request asked for the range; what was known of it before.
    pub(super) fn touch(&self, range: &Range<usize>) -> Touched {
        if self.is_populated(range) {
            return Touched::Often;
        }
        match self.touched.set(range) {
            true => Touched::Before,
            false => Touched::Never,
        }
    }

    /// Whether the range was populated before. The kernel may have taken pages back since, and the
    /// file may have lost some.
    pub(super) fn is_populated(&self, range: &Range<usize>) -> bool {
        self.populated.has(range)
    }

    /// Populates the range for scattered requests, and what is around it: the next of them need not
    /// ask for it.
    pub(super) fn populate_around(&self, range: &Range<usize>) -> Result<(), Errno> {
        let start = range.start - range.start % AROUND;
        let end = range.end.next_multiple_of(AROUND).min(self.len());
        // A page that is lost may be another one.
        self.populate(&(start..end))
            .or_else(|_| self.populate(range))
    }

    /// Populates the range for a reader who is about to reach it, and may overtake this.
    pub(super) fn populate_ahead(&self, range: &Range<usize>) {
        for start in range.clone().step_by(AHEAD) {
            let end = (start + AHEAD).min(range.end);
            // A failure is told to who asks for the page.
            if self.populate(&(start..end)).is_err() {
                return;
            }
        }
    }

    pub(super) fn populate(&self, range: &Range<usize>) -> Result<(), Errno> {
        self.map.populate(range, Access::Read)?;
        let start = range.start.next_multiple_of(AROUND);
        let end = match range.end == self.len() {
            true => range.end,
            false => range.end - range.end % AROUND,
        };
        if start < end {
            self.populated.set(&(start..end));
        }
        Ok(())
    }

    pub(super) fn lend<R>(&self, range: Range<usize>, f: impl FnOnce(&[u8]) -> R) -> R {
        self.map.lend(range, f)
    }
}
