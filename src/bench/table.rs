//! A run in the terminal: medians with small bars, what it cost, what it says.

use std::fmt::Write;

use super::answers;
use super::outcome::{Run, Sample, Series, Unit};
use super::plot::number;
use super::statistics::{self, Ratio, Verdict, median, paired, summary};

/// How many places the longest bar takes.
const BAR: f64 = 20.0;

/// How long a line of text is at most.
const WIDTH: usize = 100;

/// All of it.
pub(super) fn table(run: &Run) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "corfs bench {}: {}", run.experiment, rounds(run));
    let machine = &run.machine;
    let _ = writeln!(
        out,
        "{} x {}, {}; {}",
        machine.processors, machine.processor, machine.kernel, machine.file_system
    );
    out.push_str(&wrapped(&format!("Caches and memory: {}", run.state)));
    for work in run.works() {
        out.push('\n');
        out.push_str(&of_work(run, work));
    }
    if matches!(run.experiment.as_str(), "copy" | "fault") {
        let _ = write!(out, "\nWhat each cost (medians)\n{}", costs(run));
    }
    let memory = memory(run);
    if !memory.is_empty() {
        let _ = write!(out, "\n{memory}");
    }
    let said = answers::answers(run);
    if !said.is_empty() {
        out.push_str("\nAnswers\n");
    }
    for line in said {
        let _ = writeln!(out, "  {line}");
    }
    let lost = answers::losses(run);
    if !lost.is_empty() {
        out.push_str("\nWhere corfs loses\n");
    }
    for line in lost {
        let _ = writeln!(out, "  {line}");
    }
    for line in &run.notes {
        let _ = writeln!(out, "note: {line}");
    }
    for line in statistics::warnings(run) {
        let _ = writeln!(out, "warning: {line}");
    }
    out
}

/// In lines that fit into a terminal.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let more = word.chars().count();
        if length > 0 && length + 1 + more > WIDTH {
            out.push('\n');
            length = 0;
        }
        if length > 0 {
            out.push(' ');
            length += 1;
        }
        out.push_str(word);
        length += more;
    }
    out + "\n"
}

/// How it was measured, in short.
pub(super) fn rounds(run: &Run) -> String {
    let complete = if run.complete { "" } else { ", NOT COMPLETE" };
    format!(
        "{} rounds after {} of warm-up, in random order (seed {}){complete}; medians, ratios with \
         their 95 % bootstrap interval",
        run.rounds, run.warmups, run.seed
    )
}

/// What rates of a unit are shown in, and by how much they are divided.
pub(super) fn scale(unit: Unit) -> (&'static str, f64) {
    match unit {
        Unit::Bytes => ("MiB/s", 1048576.0),
        Unit::Operations => ("op/s", 1.0),
    }
}

fn of_work(run: &Run, work: &str) -> String {
    let mut out = String::new();
    let unit = run
        .of_work(work)
        .next()
        .map_or(Unit::Bytes, |s| s.about.unit);
    let (words, divisor) = scale(unit);
    let most = (run.of_work(work)).filter_map(|s| summary(&s.rates()));
    let most = most.map(|s| s.median).fold(0.0, f64::max);
    let _ = writeln!(out, "{work} [{words}]");
    for series in run.of_work(work) {
        let name = &series.about.subject;
        let Some(found) = summary(&series.rates()) else {
            let why = series.failed.as_deref().unwrap_or("not measured");
            let _ = writeln!(out, "  {name:<24} {why}");
            continue;
        };
        let [median, min, max] = [found.median, found.min, found.max].map(|n| number(n / divisor));
        let bar = bar(found.median / most);
        let range = format!("{min}..{max}");
        let ratio = match run.baseline(work) {
            Some(baseline) if !series.about.baseline => {
                paired(series, baseline).map_or(String::new(), |ratio| shown(&ratio))
            }
            Some(_) => "1.00".into(),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "  {name:<24} {median:>8} {range:>17} {bar:<20} {ratio}"
        );
        if let Some(why) = &series.failed {
            let _ = writeln!(out, "  {:<24} then failed: {why}", "");
        }
    }
    out
}

/// A ratio with its interval, and what it tells.
pub(super) fn shown(ratio: &Ratio) -> String {
    let mark = match ratio.verdict() {
        Verdict::Faster => " faster",
        Verdict::Slower => " slower",
        Verdict::Same => " no difference",
        Verdict::Unclear => " unclear",
        Verdict::Few => " too few rounds",
    };
    format!(
        "{:.2} [{:.2}..{:.2}]{mark}",
        ratio.value, ratio.low, ratio.high
    )
}

/// A bar in eighths of a place.
fn bar(share: f64) -> String {
    let parts = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if let Some(part) = (eighths % 8).checked_sub(1) {
        bar.push(parts[part]);
    }
    bar
}

/// The columns of costs.
pub(super) const COSTS: [&str; 11] = [
    "user s",
    "system s",
    "elapsed s",
    "minor f",
    "major f",
    "waited",
    "made to",
    "calls",
    "anon MiB",
    "file MiB",
    "CPU %",
];

/// What one series cost: the fields of [`COSTS`]; nothing for one without samples.
pub(super) fn cost(series: &Series) -> Option<Vec<String>> {
    let of = |value: fn(&Sample) -> f64| {
        let all: Vec<f64> = series.samples.iter().map(value).collect();
        median(&all)
    };
    let (user, system, elapsed) = (of(|s| s.user)?, of(|s| s.system)?, of(|s| s.seconds)?);
    let counts = [
        of(|s| s.minor as f64)?,
        of(|s| s.major as f64)?,
        of(|s| s.voluntary as f64)?,
        of(|s| s.involuntary as f64)?,
    ];
    let mut fields = vec![
        format!("{user:.3}"),
        format!("{system:.3}"),
        format!("{elapsed:.3}"),
    ];
    fields.extend(counts.map(|count| format!("{count:.0}")));
    fields.push(series.calls.map_or("-".into(), |calls| calls.to_string()));
    let memory = series.memory.as_ref();
    let mebibytes =
        |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| number(bytes as f64 / 1048576.0));
    fields.push(mebibytes(memory.map(|memory| memory.anonymous)));
    fields.push(mebibytes(memory.map(|memory| memory.file)));
    let busy = (user + system) / elapsed.max(1e-9) * 100.0;
    fields.push(format!("{busy:.0}"));
    Some(fields)
}

/// The table of APUE 14.8: user, system and elapsed time, and what stands behind them.
fn costs(run: &Run) -> String {
    let mut out = format!("  {:<24}", "");
    for column in COSTS {
        let _ = write!(out, " {column:>9}");
    }
    out.push('\n');
    for work in run.works() {
        let _ = writeln!(out, "  {work}");
        for series in run.of_work(work) {
            let Some(fields) = cost(series) else { continue };
            let _ = write!(out, "    {:<22}", series.about.subject);
            for field in fields {
                let _ = write!(out, " {field:>9}");
            }
            out.push('\n');
        }
    }
    out
}

/// The most memory of each subject over all works, where it was sampled.
fn memory(run: &Run) -> String {
    let mut subjects: Vec<(&str, &str, u64, u64)> = Vec::new();
    for series in &run.series {
        let Some(memory) = &series.memory else {
            continue;
        };
        let name = series.about.subject.as_str();
        match subjects.iter_mut().find(|subject| subject.0 == name) {
            Some((_, _, anonymous, file)) => {
                *anonymous = (*anonymous).max(memory.anonymous);
                *file = (*file).max(memory.file);
            }
            None => subjects.push((name, &memory.whose, memory.anonymous, memory.file)),
        }
    }
    if subjects.is_empty() {
        return String::new();
    }
    let mut out = String::from("Memory resident at most, over all works [MiB]\n");
    for (name, whose, anonymous, file) in subjects {
        let [anonymous, file] = [anonymous, file].map(|bytes| number(bytes as f64 / 1048576.0));
        let _ = writeln!(
            out,
            "  {name:<24} {anonymous:>8} anonymous {file:>8} file, of {whose}"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn a_table_shows_medians_ranges_ratios_and_failures() {
        let mut absent = series("work", "absent", false, &[]);
        absent.failed = Some("not possible here".into());
        let run = run(vec![
            series("work", "native", true, &[0.01, 0.011, 0.009, 0.01, 0.01]),
            series("work", "half", false, &[0.02, 0.022, 0.018, 0.02, 0.02]),
            absent,
        ]);
        let text = table(&run);
        assert!(text.contains("work [op/s]"), "{text}");
        assert!(text.contains("0.50 [0.50..0.50] slower"), "{text}");
        assert!(text.contains("not possible here"), "{text}");
        assert!(text.contains("90.9..111"), "{text}");
        assert!(text.contains("seed 7"), "{text}");
        assert!(!text.contains("NOT COMPLETE"), "{text}");
    }

    #[test]
    fn a_table_says_what_was_done_to_caches() {
        let mut run = run(vec![series("work", "native", true, &[0.01])]);
        run.state = "read before and after ".repeat(20);
        let text = table(&run);
        assert!(text.contains("\nCaches and memory: read before and after read"));
        let words = text.replace('\n', " ");
        assert_eq!(words.matches("read before and after").count(), 20, "{text}");
        let mut long = text.lines().filter(|line| line.contains("read before"));
        assert!(long.all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(1.0).chars().count(), 20);
        assert_eq!(bar(0.5), "█".repeat(10));
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0 / 160.0), "▏");
        assert_eq!(bar(f64::NAN), "");
    }
}
