//! All series of one mount.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter as Counts;
use prometheus_client::metrics::gauge::Gauge as Gauges;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::names;
use super::op::{
    CopyEnd, Fallback, Invalidated, Op, OpenMode, PassthroughState, ReadMode, WatchedBy,
};
use super::series::{family, single};
use crate::sys::memory;

pub(super) type Counter = Counts<u64, AtomicU64>;
type Gauge = Gauges<u64, AtomicU64>;

/// Upper bounds of the latency buckets in seconds, each about four times the one before: from a
/// reply out of memory to a source that all but hangs.
const DURATION_BUCKETS: [f64; 13] = [
    0.000_001, 0.000_004, 0.000_016, 0.000_064, 0.000_25, 0.001, 0.004, 0.016, 0.064, 0.25, 1.0,
    4.0, 30.0,
];

/// The counters, gauges and histograms of one mount.
///
/// Every series is made at the start and held here, those of one family in an array that the
/// label's enum indexes: counting looks nothing up and allocates nothing. A counter is one atomic
/// addition, a histogram one short lock of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    operations: Box<[Counter]>,
    errors: Box<[Counter]>,
    durations: Box<[Histogram]>,
    opens: Box<[Counter]>,
    passthrough: Box<[Gauge]>,
    read: Box<[Counter]>,
    fallback: Box<[Counter]>,
    written: Counter,
    windows: Gauge,
    mapped: Gauge,
    mapped_peak: Gauge,
    budget: Gauge,
    hits: Counter,
    misses: Counter,
    evictions: Counter,
    readied: Counter,
    faults: Counter,
    copies_started: Counter,
    copies_running: Gauge,
    copies: Box<[Counter]>,
    copied: Counter,
    inodes: Gauge,
    inode_limit: Gauge,
    pruned: Counter,
    handles: Gauge,
    descriptors: Gauge,
    resident: Gauge,
    source_workers: Gauge,
    source_timeouts: Counter,
    source_interrupts: Counter,
    source_offline: Gauge,
    source_offline_since: Gauge,
    source_outages: Counter,
    source_apart: Counter,
    names_noted: Counter,
    names_dropped: Counter,
    watching: Box<[Gauge]>,
    watches: Gauge,
    unwatched: Counter,
    watch_events: Counter,
    invalidations: Box<[Counter]>,
    overflows: Counter,
    cache: CacheSeries,
}

/// What the cache counts.
#[derive(Debug)]
struct CacheSeries {
    hits: Counter,
    misses: Counter,
    fills: Counter,
    filled: Counter,
    stored: Counter,
    waits: Counter,
    provisional: Counter,
    unstored: Counter,
    evictions: Counter,
    corrupt: Counter,
    errors: Counter,
    used: Gauge,
    limit: Gauge,
}

impl CacheSeries {
    fn new(r: &mut Registry) -> Self {
        Self {
            hits: single(r, names::CACHE_HITS),
            misses: single(r, names::CACHE_MISSES),
            fills: single(r, names::CACHE_FILLS),
            filled: single(r, names::CACHE_FILLED_BYTES),
            stored: single(r, names::CACHE_STORED_BYTES),
            waits: single(r, names::CACHE_WAITS),
            provisional: single(r, names::CACHE_PROVISIONAL),
            unstored: single(r, names::CACHE_UNSTORED),
            evictions: single(r, names::CACHE_EVICTIONS),
            corrupt: single(r, names::CACHE_CORRUPT),
            errors: single(r, names::CACHE_ERRORS),
            used: single(r, names::CACHE_USED),
            limit: single(r, names::CACHE_LIMIT),
        }
    }
}

impl Metrics {
    /// All series at zero.
    pub fn new() -> Self {
        let mut r = Registry::default();
        let counter = Counter::default;
        let ops = || Op::ALL.iter().map(|op| op.label());
        let modes = ReadMode::ALL.iter().map(|mode| mode.label());
        let open_modes = OpenMode::ALL.iter().map(|mode| mode.label());
        let states = PassthroughState::ALL.iter().map(|state| state.label());
        let reasons = Fallback::ALL.iter().map(|reason| reason.label());
        let ends = CopyEnd::ALL.iter().map(|end| end.label());
        let watchers = WatchedBy::ALL.iter().map(|by| by.label());
        let told = Invalidated::ALL.iter().map(|what| what.label());
        let seconds = || Histogram::new(DURATION_BUCKETS);
        let operations = family(&mut r, names::OPERATIONS, "op", ops(), counter, None);
        Self {
            errors: family(&mut r, names::OPERATION_ERRORS, "op", ops(), counter, None),
            durations: family(
                &mut r,
                names::OPERATION_DURATION,
                "op",
                ops(),
                seconds,
                Some(&operations),
            ),
            operations,
            opens: family(&mut r, names::OPENS, "mode", open_modes, counter, None),
            passthrough: family(
                &mut r,
                names::PASSTHROUGH,
                "state",
                states,
                Gauge::default,
                None,
            ),
            read: family(&mut r, names::READ_BYTES, "mode", modes, counter, None),
            fallback: family(
                &mut r,
                names::READ_FALLBACK_BYTES,
                "reason",
                reasons,
                counter,
                None,
            ),
            written: single(&mut r, names::WRITTEN_BYTES),
            windows: single(&mut r, names::WINDOWS),
            mapped: single(&mut r, names::WINDOW_MAPPED),
            mapped_peak: single(&mut r, names::WINDOW_MAPPED_PEAK),
            budget: single(&mut r, names::WINDOW_BUDGET),
            hits: single(&mut r, names::WINDOW_HITS),
            misses: single(&mut r, names::WINDOW_MISSES),
            evictions: single(&mut r, names::WINDOW_EVICTIONS),
            readied: single(&mut r, names::WINDOWS_READIED),
            faults: single(&mut r, names::FAULTS_SURVIVED),
            copies_started: single(&mut r, names::COPIES_STARTED),
            copies_running: single(&mut r, names::COPIES_RUNNING),
            copies: family(&mut r, names::COPIES, "end", ends, counter, None),
            copied: single(&mut r, names::COPY_BYTES),
            inodes: single(&mut r, names::INODES),
            inode_limit: single(&mut r, names::INODE_LIMIT),
            pruned: single(&mut r, names::INODES_PRUNED),
            handles: single(&mut r, names::HANDLES),
            descriptors: single(&mut r, names::DESCRIPTORS),
            resident: single(&mut r, names::RESIDENT),
            source_workers: single(&mut r, names::SOURCE_WORKERS),
            source_timeouts: single(&mut r, names::SOURCE_TIMEOUTS),
            source_interrupts: single(&mut r, names::SOURCE_INTERRUPTS),
            source_offline: single(&mut r, names::SOURCE_OFFLINE),
            source_offline_since: single(&mut r, names::SOURCE_OFFLINE_SINCE),
            source_outages: single(&mut r, names::SOURCE_OUTAGES),
            source_apart: single(&mut r, names::SOURCE_APART),
            names_noted: single(&mut r, names::NAMES_NOTED),
            names_dropped: single(&mut r, names::NAMES_DROPPED),
            watching: family(
                &mut r,
                names::WATCHING,
                "by",
                watchers,
                Gauge::default,
                None,
            ),
            watches: single(&mut r, names::WATCHES),
            unwatched: single(&mut r, names::UNWATCHED),
            watch_events: single(&mut r, names::WATCH_EVENTS),
            invalidations: family(&mut r, names::INVALIDATIONS, "what", told, counter, None),
            overflows: single(&mut r, names::WATCH_OVERFLOWS),
            cache: CacheSeries::new(&mut r),
            registry: r,
        }
    }

    /// An operation was answered; its request was taken up at `started`.
    pub fn operation(&self, op: Op, started: Instant, failed: bool) {
        let at = op as usize;
        self.operations[at].inc();
        if failed {
            self.errors[at].inc();
        }
        self.durations[at].observe(started.elapsed().as_secs_f64());
    }

    /// A file was opened, and is served that way.
    pub fn opened(&self, mode: OpenMode) {
        self.opens[mode as usize].inc();
    }

    /// Whether the kernel serves files by itself, and why not.
    pub fn set_passthrough(&self, state: PassthroughState) {
        for (at, gauge) in self.passthrough.iter().enumerate() {
            gauge.set(u64::from(at == state as usize));
        }
    }

    /// A read was answered with that many bytes.
    pub fn read(&self, mode: ReadMode, bytes: u64) {
        self.read[mode as usize].inc_by(bytes);
    }

    /// That many bytes should have come from a window, and came by pread.
    pub fn fallback(&self, reason: Fallback, bytes: u64) {
        self.fallback[reason as usize].inc_by(bytes);
    }

    /// That many bytes were written to the source.
    pub fn written(&self, bytes: u64) {
        self.written.inc_by(bytes);
    }

    /// A request was answered from a window that was mapped already.
    pub fn window_hit(&self) {
        self.hits.inc();
    }

    /// The window of a request had to be mapped first.
    pub fn window_miss(&self) {
        self.misses.inc();
    }

    /// A window was unmapped to make room for another.
    pub fn window_evicted(&self) {
        self.evictions.inc();
    }

    /// A window was mapped ahead of a sequential reader.
    pub fn window_readied_ahead(&self) {
        self.readied.inc();
    }

    /// A window of that many bytes is about to be mapped. Counted before mmap, so that the highest
    /// value ever seen is an upper bound of the truth.
    pub fn window_mapped(&self, bytes: u64) {
        self.windows.inc();
        let now = self.mapped.inc_by(bytes).saturating_add(bytes);
        self.mapped_peak.inner().fetch_max(now, Ordering::Relaxed);
    }

    /// A window of that many bytes is unmapped.
    pub fn window_unmapped(&self, bytes: u64) {
        self.windows.dec();
        self.mapped.dec_by(bytes);
    }

    /// The ceiling of the mapped bytes.
    pub fn set_window_budget(&self, bytes: u64) {
        self.budget.set(bytes);
    }

    /// A page could not be had, and nobody died.
    pub fn fault_survived(&self) {
        self.faults.inc();
    }

    /// A copy was taken, and waits for its turn.
    pub fn copy_started(&self) {
        self.copies_started.inc();
    }

    /// So many copies have their turn.
    pub fn set_copies_running(&self, count: usize) {
        self.copies_running.set(count as u64);
    }

    /// A copy that had begun is over.
    pub fn copy_ended(&self, end: CopyEnd) {
        self.copies[end as usize].inc();
    }

    /// A copy moved that many bytes.
    pub fn copied(&self, bytes: u64) {
        self.copied.inc_by(bytes);
    }

    /// The kernel knows that many inodes.
    pub fn set_inodes(&self, n: u64) {
        self.inodes.set(n);
    }

    /// That many inodes may be known; the largest number stands for any.
    pub fn set_inode_limit(&self, n: u64) {
        self.inode_limit.set(if n == u64::MAX { 0 } else { n });
    }

    /// The kernel was asked to forget that many inodes.
    pub fn pruned(&self, n: u64) {
        self.pruned.inc_by(n);
    }

    /// The inode table holds that many descriptors.
    pub fn set_descriptors(&self, n: u64) {
        self.descriptors.set(n);
    }

    /// A file or directory was opened through the mount.
    pub fn handle_opened(&self) {
        self.handles.inc();
    }

    /// A file or directory that was open through the mount is closed.
    pub fn handle_closed(&self) {
        self.handles.dec();
    }

    /// There are that many threads that wait for the source, or for work.
    pub fn set_source_workers(&self, n: u64) {
        self.source_workers.set(n);
    }

    /// A request was answered because the source did not answer in time.
    pub fn source_timeout(&self) {
        self.source_timeouts.inc();
    }

    /// A request that waited for the source was ended by its caller.
    pub fn source_interrupt(&self) {
        self.source_interrupts.inc();
    }

    /// The source is not asked from now on, in seconds since 1970.
    pub fn source_lost(&self, now: u64) {
        self.source_offline.set(1);
        self.source_offline_since.set(now);
        self.source_outages.inc();
    }

    /// The source is asked again.
    pub fn source_found(&self) {
        self.source_offline.set(0);
        self.source_offline_since.set(0);
    }

    /// A request was answered without the source, which is not asked.
    pub fn source_apart(&self) {
        self.source_apart.inc();
    }

    /// So much was given to the store of names.
    pub fn names_noted(&self, n: u64) {
        self.names_noted.inc_by(n);
    }

    /// So much was not.
    pub fn names_dropped(&self, n: u64) {
        self.names_dropped.inc_by(n);
    }

    /// The source is watched, by that.
    pub fn watching(&self, by: WatchedBy) {
        self.watching[by as usize].set(1);
    }

    /// That many file systems or directories are watched.
    pub fn set_watches(&self, n: u64) {
        self.watches.set(n);
    }

    /// A file system or directory could not be watched.
    pub fn unwatched(&self) {
        self.unwatched.inc();
    }

    /// An event of a change was read.
    pub fn watch_event(&self) {
        self.watch_events.inc();
    }

    /// The kernel was told to forget something.
    pub fn invalidated(&self, what: Invalidated) {
        self.invalidations[what as usize].inc();
    }

    /// Events were lost.
    pub fn watch_overflowed(&self) {
        self.overflows.inc();
    }

    /// A request was answered from the cache alone.
    pub fn cache_hit(&self) {
        self.cache.hits.inc();
    }

    /// A request needed the source.
    pub fn cache_miss(&self) {
        self.cache.misses.inc();
    }

    /// A block of that many bytes was read from the source.
    pub fn cache_filled(&self, bytes: u64) {
        self.cache.fills.inc();
        self.cache.filled.inc_by(bytes);
    }

    /// That many bytes were stored.
    pub fn cache_stored(&self, bytes: u64) {
        self.cache.stored.inc_by(bytes);
    }

    /// A request waits for a block that another is reading.
    pub fn cache_waited(&self) {
        self.cache.waits.inc();
    }

    /// A block was not stored, as its file had changed too lately.
    pub fn cache_provisional(&self) {
        self.cache.provisional.inc();
    }

    /// A block was not stored, as there was no room.
    pub fn cache_unstored(&self) {
        self.cache.unstored.inc();
    }

    /// An entry was removed to make room.
    pub fn cache_evicted(&self) {
        self.cache.evictions.inc();
    }

    /// A stored block was not what it should be.
    pub fn cache_corrupt(&self) {
        self.cache.corrupt.inc();
    }

    /// The cache disk did not do what it was asked.
    pub fn cache_error(&self) {
        self.cache.errors.inc();
    }

    /// What the whole cache directory takes, and may take, in bytes.
    pub fn set_cache_used(&self, used: u64, limit: u64) {
        self.cache.used.set(used);
        self.cache.limit.set(limit);
    }

    /// All series as OpenMetrics text, `# EOF` at its end. Only the histograms of operations that
    /// never happened are left out: they would be most of the text.
    pub fn open_metrics(&self) -> String {
        if let Some(bytes) = memory::resident() {
            self.resident.set(bytes);
        }
        let mut text = String::new();
        // Writing to a String cannot fail; if the encoder refuses a series all the same, what
        // stands before it is of more use than nothing.
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.push_str("# EOF\n");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
