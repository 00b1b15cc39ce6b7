//! Two saved runs, side by side.

use std::fmt::Write;

use super::outcome::Run;
use super::plot::number;
use super::stage::{MOUNT, STAGE};
use super::statistics::{median, unpaired};
use super::table::{scale, shown};

/// A table of what both have measured; what only one has is named at the end.
pub(super) fn compare(before: &Run, after: &Run) -> String {
    let mut out = format!(
        "{:<52} {:>9} {:>9}  {}\n",
        "", "before", "after", "after : before"
    );
    let mut missing = Vec::new();
    for old in &before.series {
        let about = &old.about;
        let name = format!("{}, {}", about.work, about.subject);
        let found = after.find(&about.work, &about.subject);
        let Some(new) = found.filter(|new| new.about.unit == about.unit) else {
            missing.push(format!("only before: {name}"));
            continue;
        };
        let (unit, divisor) = scale(about.unit);
        let rate = |rates: &[f64]| median(rates).map_or("-".into(), |rate| number(rate / divisor));
        let (a, b) = (rate(&old.rates()), rate(&new.rates()));
        let ratio = match about.amount == new.about.amount {
            true => unpaired(new, old).map_or(String::new(), |ratio| shown(&ratio)),
            false => "another amount of work".into(),
        };
        // Writing to a String cannot fail.
        let name = format!("{name} [{unit}]");
        let _ = writeln!(out, "{name:<52} {a:>9} {b:>9}  {ratio}");
    }
    for new in &after.series {
        if before.find(&new.about.work, &new.about.subject).is_none() {
            missing.push(format!(
                "only after: {}, {}",
                new.about.work, new.about.subject
            ));
        }
    }
    let lines = missing.into_iter().chain(differences(before, after));
    for line in lines.chain(of_series(before, after)) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// What makes the two hard to compare.
fn differences(before: &Run, after: &Run) -> Vec<String> {
    let (a, b) = (&before.machine, &after.machine);
    let processors = [a, b].map(|machine| machine.processors.to_string());
    let pairs = [
        ("experiment", &before.experiment, &after.experiment),
        ("corfs", &a.corfs, &b.corfs),
        ("number of processors", &processors[0], &processors[1]),
        ("kernel", &a.kernel, &b.kernel),
        ("processor", &a.processor, &b.processor),
        ("file system", &a.file_system, &b.file_system),
    ];
    let mut found: Vec<String> = pairs
        .iter()
        .filter(|(_, a, b)| a != b)
        .map(|(what, a, b)| format!("another {what}: {a} before, {b} after"))
        .collect();
    if before.state != after.state {
        found.push("another preparation of caches and memory; bench draw shows it".into());
    }
    for (run, when) in [(before, "before"), (after, "after")] {
        if !run.complete {
            found.push(format!("the run {when} is not complete"));
        }
    }
    found
}

/// Where the same name stands for other work, or for another command; said once of each.
fn of_series(before: &Run, after: &Run) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for old in &before.series {
        let a = &old.about;
        let Some(new) = after.find(&a.work, &a.subject) else {
            continue;
        };
        let b = &new.about;
        let mut differ = Vec::new();
        if a.amount != b.amount {
            let (a, b) = (a.amount, b.amount);
            differ.push(format!(
                "another amount in {}: {a} before, {b} after; no verdict",
                new.about.work
            ));
        }
        let commands = [&a.command, &b.command].map(|command| without_places(command));
        if commands[0] != commands[1] {
            let [a, b] = commands;
            differ.push(format!(
                "another command of {}: {a} before, {b} after",
                new.about.subject
            ));
        }
        differ.retain(|line| !found.contains(line));
        found.append(&mut differ);
    }
    found
}

/// A command without the folder of its bench and the numbers of its mounts, which differ each time.
fn without_places(command: &str) -> String {
    let mut out = String::new();
    let mut rest = command;
    while let Some(at) = rest.find(STAGE) {
        let begins = rest[..at]
            .rfind([' ', '=', '\'', '"', ','])
            .map_or(0, |at| at + 1);
        out.push_str(&rest[..begins]);
        out.push_str("DIR");
        rest = after_number(&rest[at + STAGE.len()..]);
        if let Some(number) = rest.strip_prefix(MOUNT) {
            out.push_str("/mnt");
            rest = after_number(number);
        }
    }
    out + rest
}

fn after_number(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn a_name_that_stands_for_other_work_gets_no_verdict() {
        let before = run(vec![
            series("w", "native", true, &[1.0; 5]),
            series("w", "it", false, &[1.0; 5]),
        ]);
        let mut after = before.clone();
        after.series[0].about.amount = 2.0;
        after.series[1].about.command = "do something else".into();
        after.state = "cold".into();
        after.machine.processors = 8;
        after.machine.corfs = "9.9".into();
        let text = compare(&before, &after);
        for part in [
            "another amount of work\n",
            "another amount in w: 1 before, 2 after",
            "another command of it: do w as it before, do something else after",
            "another preparation",
            "another number of processors: 0 before, 8 after",
            "another corfs:  before, 9.9 after",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("no difference").count(), 1, "{text}");
        assert!(!compare(&before, &before).contains("another"));
    }

    #[test]
    fn where_the_bench_was_is_no_difference() {
        let at = |folder: &str, number: u32| {
            format!(
                "corfs -f -o cache={folder}/corfs-bench-{number}-0/mnt-{number}.cache,io=mmap \
                 {folder}/corfs-bench-{number}-0/source {folder}/corfs-bench-{number}-0/mnt-{number}"
            )
        };
        let one = without_places(&at("/a", 1));
        assert_eq!(one, without_places(&at("/data/b", 23)));
        assert_eq!(
            one,
            "corfs -f -o cache=DIR/mnt.cache,io=mmap DIR/source DIR/mnt"
        );
        assert_eq!(without_places("cp SRC... DIR"), "cp SRC... DIR");
    }

    #[test]
    fn two_runs_are_compared_by_work_and_subject() {
        let before = run(vec![
            series("w", "native", true, &[1.0; 5]),
            series("w", "gone", false, &[1.0]),
        ]);
        let mut after = run(vec![
            series("w", "native", true, &[0.5; 5]),
            series("w", "new", false, &[1.0]),
        ]);
        after.machine.kernel = "Linux 7".into();
        after.complete = false;
        let text = compare(&before, &after);
        assert!(text.contains("2.00 [2.00..2.00] faster"), "{text}");
        assert!(text.contains("only before: w, gone"), "{text}");
        assert!(text.contains("only after: w, new"), "{text}");
        assert!(text.contains("another kernel"), "{text}");
        assert!(text.contains("after is not complete"), "{text}");
        assert!(compare(&before, &before).contains("1.00 [1.00..1.00] no difference"));
    }
}
