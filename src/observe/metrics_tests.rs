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
    assert!(text.contains("corfs_operation_duration_seconds_bucket{le=\"+Inf\",op=\"read\"} 1\n"));
    assert!(text.contains("\ncorfs_window_mapped_bytes 0\n"));
    assert!(!text.contains("duration_seconds_count{op=\"ioctl\"}"));
    for line in text.lines().filter(|line| line.starts_with("# HELP")) {
        assert!(line.split(' ').count() > 4, "no help: {line}");
    }
    let lines = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(parse(&text).len(), lines, "every sample parses");
}
