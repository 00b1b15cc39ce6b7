//! The statistics of a mount as a live view: what happened between two looks.

use std::collections::HashMap;

use super::table::{Statistics, duration, size};
use crate::observe::names;
use crate::observe::text::{Sample, parse};

/// The series of the cache, where there is one.
const CACHE: &str = "corfs_cache_";

/// What is shown of the operations at least, before all else has its lines.
const FEWEST_OPERATIONS: usize = 2;

/// One view: its lines, by how soon they are left out where there is no room.
#[derive(Debug, Default)]
pub struct Frame {
    /// The head of the table, and the operations, busiest first.
    operations: Vec<String>,
    /// A line each of all else.
    summary: Vec<String>,
    /// Of the cache, and whether it tells of anything.
    cache: Vec<(String, bool)>,
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cache = self.cache.iter().map(|(line, _)| line);
        let above = self.operations.iter().chain(&self.summary);
        above
            .chain(cache)
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Frame {
    /// As text that takes the place of what stands on a screen of so many lines and columns, with the
    /// cursor below it.
    pub fn on_screen(&self, title: &str, (lines, columns): (usize, usize)) -> String {
        let mut out = String::from("\x1b[H");
        for line in std::iter::once(title).chain(self.fitting(lines.saturating_sub(2))) {
            // What stood there may have been longer. Behind a line that is full it would take its end.
            out.push_str("\x1b[K");
            out.push_str(&cut(line, columns));
            out.push('\n');
        }
        out.push_str("\x1b[J");
        out
    }

    /// The lines that matter most, so many.
    fn fitting(&self, most: usize) -> Vec<&str> {
        let all = self.operations.len() + self.summary.len() + self.cache.len();
        let mut lines: Vec<&str> = Vec::new();
        if most > all {
            lines.push("");
        }
        let for_others = self.summary.len() + 1;
        let operations = FEWEST_OPERATIONS.max(most.saturating_sub(for_others)) + 1;
        lines.extend(self.operations.iter().take(operations).map(String::as_str));
        lines.extend(self.summary.iter().map(String::as_str));
        let zeros = most >= all;
        let cache = self.cache.iter().filter(|(_, tells)| zeros || *tells);
        lines.extend(cache.map(|(line, _)| line.as_str()));
        lines.truncate(most);
        lines
    }
}

/// So much of a line as has room; what is not ASCII may take two columns. A name's control characters
/// are not for the terminal.
fn cut(line: &str, columns: usize) -> String {
    let mut room = columns;
    let fits = |c: &char| {
        let width = if c.is_ascii() { 1 } else { 2 };
        let fits = room >= width;
        room = room.saturating_sub(width);
        fits
    };
    let shown = |c: char| if c.is_control() { '?' } else { c };
    line.chars().map(shown).take_while(fits).collect()
}

/// What is shown of the time between two texts, which is `seconds` long.
pub fn frame(before: &str, after: &str, seconds: f64) -> Frame {
    let seconds = seconds.max(1e-3);
    let now = parse(after);
    let passed = difference(&parse(before), &now);
    let view = View {
        passed: &passed,
        now: &now,
        seconds,
    };
    let mut frame = Frame {
        operations: view.operations(),
        cache: view.cache(),
        ..Frame::default()
    };
    view.reads(&mut frame.summary);
    view.windows(&mut frame.summary);
    view.copies(&mut frame.summary);
    frame
}

/// Counters lessened by what they were before; all else as it is now.
fn difference(before: &[Sample], now: &[Sample]) -> Vec<Sample> {
    let counts = |name: &str| {
        ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .any(|ending| name.ends_with(ending))
    };
    let key = |sample: &Sample| (sample.name.clone(), sample.labels.clone());
    let old: HashMap<_, f64> = before.iter().map(|s| (key(s), s.value)).collect();
    let passed = |sample: &Sample| {
        let mut sample = sample.clone();
        if counts(&sample.name) {
            let was = old.get(&key(&sample)).copied().unwrap_or(0.0);
            // A mount that was made anew counts from 0 again.
            sample.value = if was > sample.value {
                sample.value
            } else {
                sample.value - was
            };
        }
        sample
    };
    now.iter().map(passed).collect()
}

struct View<'a> {
    passed: &'a [Sample],
    now: &'a [Sample],
    seconds: f64,
}

fn sum(samples: &[Sample], name: &str) -> f64 {
    let of = samples.iter().filter(|sample| sample.name == name);
    // The sum of nothing is -0.
    of.map(|sample| sample.value)
        .fold(0.0, |sum, value| sum + value)
}

/// Values of a series by its one label, those that are not 0.
fn by_label<'a>(samples: &'a [Sample], name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    samples
        .iter()
        .filter(move |sample| sample.name == name && sample.value != 0.0)
        .filter_map(|sample| Some((sample.labels.first()?.1.as_str(), sample.value)))
}

impl View<'_> {
    fn rate(&self, name: &str) -> f64 {
        sum(self.passed, name) / self.seconds
    }

    fn operations(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<16} {:>10} {:>9} {:>9} {:>9}",
            "operation", "a second", "errors", "p50", "p99"
        )];
        let statistics = Statistics::of_samples(self.passed.to_vec());
        let mut all: Vec<_> = statistics.operations.iter().collect();
        all.sort_by(|a, b| b.1.count.total_cmp(&a.1.count));
        for (name, o) in all {
            let [p50, p99] = [o.p50_seconds, o.p99_seconds].map(duration);
            let (rate, errors) = (o.count / self.seconds, o.errors / self.seconds);
            lines.push(format!(
                "{name:<16} {rate:>10.0} {errors:>9.0} {p50:>9} {p99:>9}"
            ));
        }
        lines
    }

    fn reads(&self, out: &mut Vec<String>) {
        let mut parts: Vec<String> = by_label(self.passed, names::READ_BYTES)
            .map(|(mode, bytes)| format!("{mode} {}/s", size(bytes / self.seconds)))
            .collect();
        parts.extend(
            by_label(self.passed, names::OPENS)
                .map(|(mode, opens)| format!("{:.0} opens {mode}", opens)),
        );
        let state = by_label(self.now, names::PASSTHROUGH).next();
        parts.extend(state.map(|(state, _)| format!("passthrough {}", state.replace('_', " "))));
        line(out, "reads", &parts);
        let written = self.rate(names::WRITTEN_BYTES);
        if written > 0.0 {
            line(out, "writes", &[format!("{}/s", size(written))]);
        }
    }

    fn windows(&self, out: &mut Vec<String>) {
        let (hits, misses) = (
            sum(self.passed, names::WINDOW_HITS),
            sum(self.passed, names::WINDOW_MISSES),
        );
        let share = match hits + misses {
            asked if asked > 0.0 => format!("{:.1} % hits", hits / asked * 100.0),
            _ => "not asked".into(),
        };
        let [mapped, budget, resident] =
            [names::WINDOW_MAPPED, names::WINDOW_BUDGET, names::RESIDENT]
                .map(|name| size(sum(self.now, name)));
        line(
            out,
            "windows",
            &[share, format!("{mapped} mapped of {budget}")],
        );
        line(out, "memory", &[format!("{resident} resident")]);
    }

    fn copies(&self, out: &mut Vec<String>) {
        let taken = sum(self.now, names::COPIES_STARTED) - sum(self.now, names::COPIES);
        let running = sum(self.now, names::COPIES_RUNNING);
        let waiting = (taken - running).max(0.0);
        let moved = size(self.rate(names::COPY_BYTES));
        line(
            out,
            "copies",
            &[
                format!("{running:.0} in progress"),
                format!("{waiting:.0} waiting"),
                format!("{moved}/s"),
            ],
        );
    }

    /// Whatever the cache counts: a rate of what grows, else the value.
    fn cache(&self) -> Vec<(String, bool)> {
        let mut lines = Vec::new();
        let buckets = |name: &str| name.ends_with("_bucket") || name.ends_with("_sum");
        let of_cache = self
            .passed
            .iter()
            .filter(|s| s.name.starts_with(CACHE) && !buckets(&s.name));
        for sample in of_cache {
            let mut name = sample.name[CACHE.len()..]
                .trim_end_matches("_total")
                .replace('_', " ");
            for (_, value) in &sample.labels {
                name.push_str(", ");
                name.push_str(value);
            }
            let grows = sample.name.ends_with("_total") || sample.name.ends_with("_count");
            let value = if grows {
                sample.value / self.seconds
            } else {
                sample.value
            };
            let shown = if sample.name.contains("_bytes") {
                size(value)
            } else {
                format!("{value:.0}")
            };
            let ending = if grows { "/s" } else { "" };
            let told = format!("{:<10} {name} {shown}{ending}", "cache");
            lines.push((told, sample.value != 0.0));
        }
        lines
    }
}

fn line(out: &mut Vec<String>, name: &str, parts: &[String]) {
    if !parts.is_empty() {
        out.push(format!("{name:<10} {}", parts.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
corfs_operations_total{op="read"} 100
corfs_operations_total{op="getattr"} 7
corfs_operation_errors_total{op="read"} 1
corfs_operation_duration_seconds_bucket{op="read",le="0.001"} 100
corfs_operation_duration_seconds_bucket{op="read",le="0.004"} 100
corfs_operation_duration_seconds_bucket{op="read",le="+Inf"} 100
corfs_window_hits_total 10
corfs_window_misses_total 10
corfs_copies_started_total 3
corfs_copies_total{end="done"} 3
"#;
    const AFTER: &str = r#"
corfs_operations_total{op="read"} 300
corfs_operations_total{op="getattr"} 7
corfs_operation_errors_total{op="read"} 5
corfs_operation_duration_seconds_bucket{op="read",le="0.001"} 100
corfs_operation_duration_seconds_bucket{op="read",le="0.004"} 300
corfs_operation_duration_seconds_bucket{op="read",le="+Inf"} 300
corfs_read_bytes_total{mode="mmap"} 4194304
corfs_window_hits_total 40
corfs_window_misses_total 20
corfs_window_mapped_bytes 1048576
corfs_window_budget_bytes 268435456
corfs_copies_started_total 5
corfs_copies_total{end="done"} 2
corfs_copies_running 1
corfs_passthrough{state="not_asked"} 1
corfs_cache_hits_total 20
corfs_cache_stored_bytes 2048
"#;

    #[test]
    fn a_frame_tells_what_happened_since_the_last() {
        let frame = frame(BEFORE, AFTER, 2.0).to_string();
        let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = frame.lines().map(squeezed).collect();
        for expected in [
            "read 100 2 2.5 ms 4.0 ms",
            "reads mmap 2.0 MiB/s, passthrough not asked",
            "windows 75.0 % hits, 1.0 MiB mapped of 256.0 MiB",
            "copies 1 in progress, 2 waiting, 0 B/s",
            "cache hits 10/s",
            "cache stored bytes 2.0 KiB",
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}: {frame}"
            );
        }
        assert!(
            !frame.contains("getattr"),
            "nothing of it happened: {frame}"
        );
    }

    #[test]
    fn a_mount_made_anew_counts_from_nothing() {
        let frame = frame(AFTER, BEFORE, 1.0).to_string();
        assert!(frame.contains("read                    100"), "{frame}");
        super::frame("", "", 0.0);
    }

    #[test]
    fn a_screen_shows_what_it_has_room_for() {
        let line = |text: &str| text.to_owned();
        let frame = Frame {
            operations: (0..9)
                .map(|n| format!("op {n} {}", "x".repeat(90)))
                .collect(),
            summary: ["reads", "windows", "memory", "copies"].map(line).into(),
            cache: vec![(line("hits 0"), false), (line("misses 1"), true)],
        };
        let shown = |lines, columns| {
            let text = frame.on_screen("corfs on \x1b[31m/ö", (lines, columns));
            let text = text.strip_prefix("\x1b[H").unwrap().to_owned();
            let text = text.strip_suffix("\x1b[J").unwrap().replace("\x1b[K", "");
            assert!(!text.contains('\x1b'), "{text}");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for (lines, columns) in [(1, 1), (2, 5), (4, 80), (10, 60), (14, 80), (200, 80)] {
            let text = shown(lines, columns);
            assert!(text.len() < lines.max(2), "{lines}: {text:?}");
            assert!(text.iter().all(|line| line.chars().count() <= columns));
            assert!("corfs on ?[31m/ö".starts_with(&text[0]), "{text:?}");
        }
        // Two lines are the title's and the cursor's.
        let starts = |text: &[String]| {
            let word = |line: &String| line.chars().take(4).collect::<String>();
            text[1..].iter().map(word).collect::<Vec<_>>().join("|")
        };
        let small = starts(&shown(10, 60));
        assert_eq!(small, "op 0|op 1|op 2|op 3|read|wind|memo|copi");
        let middle = starts(&shown(16, 60));
        assert!(
            middle.ends_with("op 8|read|wind|memo|copi|miss"),
            "{middle}"
        );
        let large = starts(&shown(40, 80));
        assert!(
            large.starts_with("|op 0") && large.ends_with("copi|hits|miss"),
            "{large}"
        );
    }
}
