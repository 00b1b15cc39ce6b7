//! All series of one mount.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter as Counts;
use prometheus_client::metrics::gauge::Gauge as Gauges;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::names;
use super::op::{
    CopyEnd, Fallback, Invalidated, Op, OpenMode, PassthroughState, ReadMode, WatchedBy,
};
use crate::sys::memory;

type Counter = Counts<u64, AtomicU64>;
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

/// A sample's name without `_total` and unit, which the encoder puts back.
fn base(name: &str) -> (&str, Option<Unit>) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    if let Some(base) = name.strip_suffix("_bytes") {
        (base, Some(Unit::Bytes))
    } else if let Some(base) = name.strip_suffix("_seconds") {
        (base, Some(Unit::Seconds))
    } else {
        (name, None)
    }
}

/// One series without labels.
fn single<M>(registry: &mut Registry, name: &'static str) -> M
where
    M: Series + Default,
{
    let metric = M::default();
    let (base, unit) = base(name);
    // The registry ends the help with a full stop of its own.
    let help = names::help(name).trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(base, help, unit, metric.clone()),
        None => registry.register(base, help, metric.clone()),
    }
    metric
}

/// One series a label value, in the order of `values`.
fn family<M: Series>(
    registry: &mut Registry,
    name: &'static str,
    key: &'static str,
    values: impl Iterator<Item = &'static str>,
    new: impl Fn() -> M,
    happened: Option<&[Counter]>,
) -> Box<[M]> {
    let series: Box<[(&'static str, M)]> = values.map(|value| (value, new())).collect();
    let metrics = series.iter().map(|(_, metric)| metric.clone()).collect();
    registry.register_collector(Box::new(Family {
        name,
        key,
        series,
        happened: happened.map(Box::from),
    }));
    metrics
}

/// A metric that several owners share.
trait Series: EncodeMetric + TypedMetric + Clone + std::fmt::Debug + Send + Sync + 'static {}

impl<M> Series for M where
    M: EncodeMetric + TypedMetric + Clone + std::fmt::Debug + Send + Sync + 'static
{
}

/// The registry's half of a family. The library's own `Family` keeps a hash map, whose order would
/// change from run to run.
#[derive(Debug)]
struct Family<M> {
    name: &'static str,
    key: &'static str,
    series: Box<[(&'static str, M)]>,
    /// Where given, a series whose counter of the same index is zero is left out.
    happened: Option<Box<[Counter]>>,
}

impl<M: Series> Collector for Family<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (base, unit) = base(self.name);
        let mut encoder =
            encoder.encode_descriptor(base, names::help(self.name), unit.as_ref(), M::TYPE)?;
        for (at, (value, metric)) in self.series.iter().enumerate() {
            let counter = self.happened.as_ref().and_then(|all| all.get(at));
            if counter.is_none_or(|counter| counter.get() > 0) {
                metric.encode(encoder.encode_family(&[(self.key, *value)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::{Sample, parse};
    use super::*;

    fn value(samples: &[Sample], name: &str, label: Option<(&str, &str)>) -> f64 {
        let wanted: Vec<_> = label
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let mut found = samples
            .iter()
            .filter(|sample| sample.name == name && sample.labels == wanted);
        let sample = found.next().expect(name);
        assert!(found.next().is_none(), "{name} twice");
        sample.value
    }

    #[test]
    fn what_is_counted_stands_in_the_text_under_its_name() {
        let m = Metrics::new();
        let started = Instant::now();
        m.operation(Op::CopyFileRange, started, true);
        m.operation(Op::CopyFileRange, started, false);
        m.read(ReadMode::Mmap, 1 << 40);
        m.read(ReadMode::Pread, 2);
        m.fallback(Fallback::Control, 3);
        m.written(4);
        m.copy_started();
        m.set_copies_running(3);
        m.copy_ended(CopyEnd::Cancelled);
        m.copied(5);
        m.set_inodes(6);
        m.set_descriptors(7);
        m.set_inode_limit(8);
        m.pruned(9);
        m.handle_opened();
        m.handle_opened();
        m.handle_closed();
        m.fault_survived();
        m.set_source_workers(10);
        m.source_timeout();
        m.source_interrupt();
        m.source_lost(1_700_000_000);
        m.source_apart();
        m.names_noted(11);
        m.names_dropped(12);
        m.watching(WatchedBy::Inotify);
        m.set_watches(8);
        m.unwatched();
        m.watch_event();
        m.invalidated(Invalidated::Data);
        m.watch_overflowed();
        let samples = parse(&m.open_metrics());
        let op = Some(("op", "copy_file_range"));
        for (name, label, expected) in [
            (names::OPERATIONS, op, 2.0),
            (names::OPERATION_ERRORS, op, 1.0),
            (names::OPERATIONS, Some(("op", "ioctl")), 0.0),
            ("corfs_operation_duration_seconds_count", op, 2.0),
            (
                names::READ_BYTES,
                Some(("mode", "mmap")),
                1_099_511_627_776.0,
            ),
            (names::READ_BYTES, Some(("mode", "pread")), 2.0),
            (names::READ_FALLBACK_BYTES, Some(("reason", "control")), 3.0),
            (names::WRITTEN_BYTES, None, 4.0),
            (names::COPIES_STARTED, None, 1.0),
            (names::COPIES_RUNNING, None, 3.0),
            (names::COPIES, Some(("end", "cancelled")), 1.0),
            (names::COPIES, Some(("end", "done")), 0.0),
            (names::COPY_BYTES, None, 5.0),
            (names::INODES, None, 6.0),
            (names::DESCRIPTORS, None, 7.0),
            (names::INODE_LIMIT, None, 8.0),
            (names::INODES_PRUNED, None, 9.0),
            (names::HANDLES, None, 1.0),
            (names::FAULTS_SURVIVED, None, 1.0),
            (names::SOURCE_WORKERS, None, 10.0),
            (names::SOURCE_TIMEOUTS, None, 1.0),
            (names::SOURCE_INTERRUPTS, None, 1.0),
            (names::SOURCE_OFFLINE, None, 1.0),
            (names::SOURCE_OFFLINE_SINCE, None, 1_700_000_000.0),
            (names::SOURCE_OUTAGES, None, 1.0),
            (names::SOURCE_APART, None, 1.0),
            (names::NAMES_NOTED, None, 11.0),
            (names::NAMES_DROPPED, None, 12.0),
            (names::WATCHING, Some(("by", "fanotify")), 0.0),
            (names::WATCHING, Some(("by", "inotify")), 1.0),
            (names::WATCHES, None, 8.0),
            (names::UNWATCHED, None, 1.0),
            (names::WATCH_EVENTS, None, 1.0),
            (names::INVALIDATIONS, Some(("what", "data")), 1.0),
            (names::WATCH_OVERFLOWS, None, 1.0),
        ] {
            assert_eq!(value(&samples, name, label), expected, "{name} {label:?}");
        }
    }

    #[test]
    fn the_peak_stays_when_windows_go() {
        let m = Metrics::new();
        m.set_window_budget(100);
        m.window_mapped(60);
        m.window_mapped(30);
        m.window_unmapped(60);
        m.window_mapped(10);
        m.window_hit();
        m.window_miss();
        m.window_miss();
        m.window_evicted();
        m.window_readied_ahead();
        let samples = parse(&m.open_metrics());
        for (name, expected) in [
            (names::WINDOWS, 2.0),
            (names::WINDOW_MAPPED, 40.0),
            (names::WINDOW_MAPPED_PEAK, 90.0),
            (names::WINDOW_BUDGET, 100.0),
            (names::WINDOW_HITS, 1.0),
            (names::WINDOW_MISSES, 2.0),
            (names::WINDOW_EVICTIONS, 1.0),
            (names::WINDOWS_READIED, 1.0),
        ] {
            assert_eq!(value(&samples, name, None), expected, "{name}");
        }
    }

    #[test]
    fn a_label_indexes_its_own_series() {
        for (at, op) in Op::ALL.iter().enumerate() {
            assert_eq!(*op as usize, at, "{op:?}");
        }
    }

    #[test]
    fn the_text_keeps_the_format() {
        let m = Metrics::new();
        m.operation(Op::Read, Instant::now(), false);
        let text = m.open_metrics();
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.contains("# TYPE corfs_read_bytes counter\n# UNIT corfs_read_bytes bytes\n"));
        assert!(text.contains("corfs_operations_total{op=\"read\"} 1\n"));
        assert!(
            text.contains("corfs_operation_duration_seconds_bucket{le=\"+Inf\",op=\"read\"} 1\n")
        );
        assert!(text.contains("\ncorfs_window_mapped_bytes 0\n"));
        assert!(!text.contains("duration_seconds_count{op=\"ioctl\"}"));
        for line in text.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(line.split(' ').count() > 4, "no help: {line}");
        }
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(parse(&text).len(), lines, "every sample parses");
    }
}
