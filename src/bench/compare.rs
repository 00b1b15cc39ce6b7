//! Two saved runs, side by side.

use std::fmt::Write;

use super::outcome::Run;
use super::plot::number;
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
        let ratio = unpaired(new, old).map_or(String::new(), |ratio| shown(&ratio));
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
    for line in missing.iter().chain(&differences(before, after)) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// What makes the two hard to compare.
fn differences(before: &Run, after: &Run) -> Vec<String> {
    let (a, b) = (&before.machine, &after.machine);
    let pairs = [
        ("kernel", &a.kernel, &b.kernel),
        ("processor", &a.processor, &b.processor),
        ("file system", &a.file_system, &b.file_system),
    ];
    let mut found: Vec<String> = pairs
        .iter()
        .filter(|(_, a, b)| a != b)
        .map(|(what, a, b)| format!("another {what}: {a} before, {b} after"))
        .collect();
    for (run, when) in [(before, "before"), (after, "after")] {
        if !run.complete {
            found.push(format!("the run {when} is not complete"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

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
