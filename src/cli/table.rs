//! The statistics of a mount, for people and for programs.

use crate::observe::names;
use crate::observe::text::{Sample, parse};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What one kind of operation cost.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Operation {
    pub(super) count: f64,
    pub(super) errors: f64,
    /// Seconds; `None` where nothing was measured. So are the next two, which are read off the
    /// histogram: true to the width of a bucket.
    mean_seconds: Option<f64>,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// Every other series, as it stands in the text.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// All of it.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Statistics {
    pub(super) operations: BTreeMap<String, Operation>,
    series: Vec<Series>,
}

impl Statistics {
    fn of(text: &str) -> Self {
        Self::of_samples(parse(text))
    }

    pub(super) fn of_samples(samples: Vec<Sample>) -> Self {
        let (of_operations, rest): (Vec<_>, Vec<_>) =
            samples.into_iter().partition(|s| label(s, "op").is_some());
        let mut by_name: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        for sample in of_operations {
            let name = label(&sample, "op").unwrap_or_default().to_owned();
            by_name.entry(name).or_default().push(sample);
        }
        let measured = by_name
            .into_iter()
            .map(|(name, samples)| (name, operation(&samples)));
        Self {
            operations: measured
                .filter(|(_, operation)| operation.count > 0.0)
                .collect(),
            series: rest.into_iter().map(series).collect(),
        }
    }
}

impl Statistics {
    /// When the source was lost, in words, while it is.
    fn offline_since(&self) -> Option<String> {
        let mut series = self.series.iter();
        let since = series.find(|one| one.name == names::SOURCE_OFFLINE_SINCE)?;
        (since.value > 0.0).then(|| date(since.value as u64))
    }
}

/// Seconds since 1970 as a date and a time of day, in UTC. Days are counted in eras of 400 years that
/// begin in March, as in Howard Hinnant's `civil_from_days`.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = year + era * 400 + later;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// For programs: one JSON object, on one line.
pub fn json(text: &str) -> String {
    // Plain numbers, strings and maps with string keys always have a JSON form.
    serde_json::to_string(&Statistics::of(text)).unwrap_or_default()
}

/// For people: a table of the operations, then everything else, a line each.
pub fn table(text: &str) -> String {
    let statistics = Statistics::of(text);
    let mut out = String::new();
    if let Some(since) = statistics.offline_since() {
        out.push_str(&format!("the source is offline since {since}\n\n"));
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:<16} {:>10} {:>8} {:>9} {:>9} {:>9}",
        "operation", "count", "errors", "mean", "p50", "p99"
    );
    for (name, o) in &statistics.operations {
        let [mean, p50, p99] = [o.mean_seconds, o.p50_seconds, o.p99_seconds].map(duration);
        let _ = writeln!(
            out,
            "{name:<16} {:>10} {:>8} {mean:>9} {p50:>9} {p99:>9}",
            o.count, o.errors
        );
    }
    out.push('\n');
    for series in &statistics.series {
        let _ = writeln!(out, "{:<40} {:>12}", title(series), amount(series));
    }
    out
}

fn label<'a>(sample: &'a Sample, key: &str) -> Option<&'a str> {
    let found = sample.labels.iter().find(|(name, _)| name == key);
    found.map(|(_, value)| value.as_str())
}

fn series(sample: Sample) -> Series {
    Series {
        name: sample.name,
        labels: sample.labels.into_iter().collect(),
        value: sample.value,
    }
}

fn operation(samples: &[Sample]) -> Operation {
    let value = |name: &str| {
        let found = samples.iter().find(|sample| sample.name == name);
        found.map_or(0.0, |sample| sample.value)
    };
    let duration = names::OPERATION_DURATION;
    let measured = value(&format!("{duration}_count"));
    let bucket = format!("{duration}_bucket");
    let buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter(|sample| sample.name == bucket)
        .filter_map(|sample| Some((bound(label(sample, "le")?)?, sample.value)))
        .collect();
    Operation {
        count: value(names::OPERATIONS),
        errors: value(names::OPERATION_ERRORS),
        mean_seconds: (measured > 0.0).then(|| value(&format!("{duration}_sum")) / measured),
        p50_seconds: quantile(&buckets, 0.50),
        p99_seconds: quantile(&buckets, 0.99),
    }
}

fn bound(le: &str) -> Option<f64> {
    if le == "+Inf" {
        return Some(f64::INFINITY);
    }
    le.parse().ok()
}

/// The value that a share `q` of all is at or below: found in the cumulative buckets, and evenly
/// spread within one (as Prometheus's `histogram_quantile` does). Beyond the last bound: that
/// bound.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let all = buckets.last()?.1;
    if all == 0.0 {
        return None;
    }
    let rank = q * all;
    let (mut low, mut below) = (0.0, 0.0);
    for &(high, count) in buckets {
        if count >= rank {
            let share = (rank - below) / (count - below);
            return Some(if high.is_finite() {
                low + (high - low) * share
            } else {
                low
            });
        }
        (low, below) = (high, count);
    }
    Some(low)
}

/// `corfs_read_bytes_total{mode="mmap"}` becomes `read bytes, mmap`.
fn title(series: &Series) -> String {
    let name = series.name.strip_prefix("corfs_").unwrap_or(&series.name);
    let name = name.strip_suffix("_total").unwrap_or(name);
    let mut title = name.replace('_', " ");
    for value in series.labels.values() {
        title.push_str(", ");
        title.push_str(value);
    }
    title
}

fn amount(series: &Series) -> String {
    if series.name.contains("_bytes") {
        return size(series.value);
    }
    series.value.to_string()
}

pub(super) fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0);
    format!("{amount:.decimals$} {}", UNITS[unit])
}

pub(super) fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(s) if s < 1e-3 => format!("{:.1} us", s * 1e6),
        Some(s) if s < 1.0 => format!("{:.1} ms", s * 1e3),
        Some(s) => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# TYPE corfs_operations counter
corfs_operations_total{op="read"} 100
corfs_operations_total{op="mkdir"} 0
corfs_operation_errors_total{op="read"} 2
corfs_operation_duration_seconds_sum{op="read"} 0.2
corfs_operation_duration_seconds_count{op="read"} 100
corfs_operation_duration_seconds_bucket{op="read",le="0.001"} 50
corfs_operation_duration_seconds_bucket{op="read",le="0.003"} 98
corfs_operation_duration_seconds_bucket{op="read",le="+Inf"} 100
corfs_read_bytes_total{mode="mmap"} 1610612736
corfs_windows 3
# EOF
"#;

    #[test]
    fn people_see_only_what_happened_in_fitting_units() {
        let table = table(TEXT);
        let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = table.lines().map(squeezed).collect();
        assert_eq!(lines[0], "operation count errors mean p50 p99");
        assert_eq!(lines[1], "read 100 2 2.0 ms 1.0 ms 3.0 ms");
        assert!(
            lines.contains(&"read bytes, mmap 1.5 GiB".to_owned()),
            "{table}"
        );
        assert!(lines.contains(&"windows 3".to_owned()), "{table}");
        assert!(!table.contains("mkdir"));
    }

    #[test]
    fn people_are_told_since_when_the_source_is_offline() {
        for (seconds, expected) in [
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (1_772_323_200, "2026-03-01 00:00:00 UTC"),
        ] {
            let text = format!("corfs_source_offline_since_seconds {seconds}\n");
            let table = table(&text);
            let line = format!("the source is offline since {expected}");
            assert!(table.starts_with(&line), "{table}");
        }
        assert!(!table("corfs_source_offline_since_seconds 0\n").contains("offline since 1"));
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let value: serde_json::Value = serde_json::from_str(&json(TEXT)).unwrap();
        let read = &value["operations"]["read"];
        assert_eq!(read["count"], 100.0);
        assert_eq!(read["errors"], 2.0);
        assert_eq!(read["mean_seconds"], 0.002);
        assert_eq!(value["series"][0]["labels"]["mode"], "mmap");
        assert_eq!(value["series"][0]["value"], 1_610_612_736.0);
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let buckets = [(1.0, 10.0), (2.0, 30.0), (f64::INFINITY, 40.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(1.5));
        assert_eq!(quantile(&buckets, 0.25), Some(1.0));
        assert_eq!(quantile(&buckets, 0.99), Some(2.0));
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_text_that_is_none_gives_an_empty_table() {
        assert_eq!(table("garbage").lines().count(), 2);
    }
}
