//! A run as one page of HTML that needs nothing else: no script, no other file.

use std::fmt::Write;

use super::Failure;
use super::answers;
use super::experiments::shown as size;
use super::outcome::{Memory, Run, Series, Unit};
use super::plot::{self, Bar, Line};
use super::statistics::{self, median, paired, summary};
use super::table::{self, scale};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222;\
background:#fff}h1,h2{line-height:1.2}h2{margin-top:2em}table{border-collapse:collapse;\
font-size:13px}td,th{padding:2px 9px;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}\
code{font-size:12px;overflow-wrap:anywhere}.warn{background:#fff3cd;padding:.5em 1em}\
.wide{overflow-x:auto}dt{font-weight:600}dd{margin:0 0 .4em}";

/// What is drawn of memory.
type Kind = (&'static str, fn(&Memory) -> u64);
const MEMORY: [Kind; 2] = [
    ("anonymous", |memory| memory.anonymous),
    ("of files", |memory| memory.file),
];

/// The page.
///
/// # Errors
/// When a plot can't be drawn.
pub(super) fn page(run: &Run) -> Result<String, Failure> {
    let title = escaped(&format!("corfs bench {}", run.experiment));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style></head>\n\
         <body>\n<h1>{title}</h1>\n"
    );
    out.push_str(&head(run));
    out.push_str(&list("Answers", "", &answers::answers(run)));
    out.push_str(&list("Where corfs loses", "", &answers::losses(run)));
    out.push_str(&list("Warnings", "warn", &statistics::warnings(run)));
    out.push_str(&sweeps(run)?);
    for work in run.works() {
        out.push_str(&of_work(run, work)?);
    }
    out.push_str(&costs(run));
    out.push_str(&commands(run));
    out.push_str("</body></html>\n");
    Ok(out)
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

fn head(run: &Run) -> String {
    let machine = &run.machine;
    let load = format!(
        "{:.1} before, {:.1} after",
        machine.load[0], machine.load[1]
    );
    let facts = [
        ("When", date(run.began)),
        ("Command", run.command.clone()),
        ("How", table::rounds(run)),
        ("Caches and memory", run.state.clone()),
        (
            "Processor",
            format!("{} × {}", machine.processors, machine.processor),
        ),
        ("Memory", format!("{} MiB", machine.memory >> 20)),
        ("Kernel", machine.kernel.clone()),
        ("File system", machine.file_system.clone()),
        ("Load", load),
        ("corfs", machine.corfs.clone()),
        ("Notes", run.notes.join(" ")),
    ];
    let mut out = String::from("<dl>\n");
    for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escaped(fact));
    }
    out + "</dl>\n"
}

fn list(name: &str, class: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut out = format!("<div class=\"{class}\"><h2>{name}</h2>\n<ul>\n");
    for line in lines {
        let _ = writeln!(out, "<li>{}</li>", escaped(line));
    }
    out + "</ul></div>\n"
}

/// A plot for each sweep: rate, and memory where it was sampled.
fn sweeps(run: &Run) -> Result<String, Failure> {
    let mut names: Vec<(&str, &str, Unit)> = Vec::new();
    for series in &run.series {
        if let Some(sweep) = &series.about.sweep
            && !names.iter().any(|(name, ..)| *name == sweep.name)
        {
            names.push((&sweep.name, &sweep.axis, series.about.unit));
        }
    }
    let mut out = String::new();
    for (name, axis, unit) in names {
        let (words, divisor) = scale(unit);
        let rates = lines(run, name, |series| Some(median(&series.rates())? / divisor));
        let _ = write!(
            out,
            "<h2>{}</h2>\n{}\n",
            escaped(name),
            plot::lines(&rates, axis, words)?
        );
        for (kind, of) in MEMORY {
            let held = lines(run, name, |series| {
                Some(of(series.memory.as_ref()?) as f64 / 1048576.0)
            });
            let unit = format!("MiB {kind} at most");
            let _ = writeln!(out, "{}", plot::lines(&held, axis, &unit)?);
        }
    }
    Ok(out)
}

/// The lines of a sweep; `value` gives what is drawn of a series.
fn lines(run: &Run, name: &str, value: impl Fn(&Series) -> Option<f64>) -> Vec<Line> {
    let mut found: Vec<Line> = Vec::new();
    for series in &run.series {
        let Some(sweep) = series.about.sweep.as_ref().filter(|s| s.name == name) else {
            continue;
        };
        let Some(value) = value(series) else {
            continue;
        };
        let point = (sweep.value, value);
        match found.iter_mut().find(|line| line.name == sweep.line) {
            Some(line) => line.points.push(point),
            None => found.push(Line {
                name: sweep.line.clone(),
                points: vec![point],
            }),
        }
    }
    for line in &mut found {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    found
}

fn of_work(run: &Run, work: &str) -> Result<String, Failure> {
    let unit = run
        .of_work(work)
        .next()
        .map_or(Unit::Bytes, |s| s.about.unit);
    let (words, divisor) = scale(unit);
    let measured: Vec<_> = run
        .of_work(work)
        .filter_map(|series| Some((series, summary(&series.rates())?)))
        .collect();
    let bars: Vec<Bar<'_>> = measured
        .iter()
        .map(|(series, found)| Bar {
            name: &series.about.subject,
            middle: found.median / divisor,
            least: found.min / divisor,
            most: found.max / divisor,
        })
        .collect();
    let mut out = format!(
        "<h2>{}</h2>\n{}\n",
        escaped(work),
        plot::bars(&bars, words)?
    );
    let _ = writeln!(
        out,
        "<table><tr><th></th><th>median {words}</th><th>range</th><th>ratio</th></tr>"
    );
    for (series, found) in &measured {
        let [median, min, max] =
            [found.median, found.min, found.max].map(|value| plot::number(value / divisor));
        let ratio = match run.baseline(work) {
            _ if series.about.baseline => "1.00".into(),
            Some(baseline) => paired(series, baseline).map_or(String::new(), |r| table::shown(&r)),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{median}</td><td>{min}..{max}</td><td>{ratio}</td></tr>",
            escaped(&series.about.subject)
        );
    }
    out.push_str("</table>\n");
    for series in run.of_work(work) {
        if let Some(why) = &series.failed {
            let _ = writeln!(
                out,
                "<p>{}: {}</p>",
                escaped(&series.about.subject),
                escaped(why)
            );
        }
    }
    Ok(out)
}

fn costs(run: &Run) -> String {
    let mut out =
        String::from("<h2>What each cost (medians)</h2>\n<div class=\"wide\"><table><tr><th></th>");
    for column in table::COSTS {
        let _ = write!(out, "<th>{column}</th>");
    }
    out.push_str("</tr>\n");
    for series in &run.series {
        let Some(fields) = table::cost(series) else {
            continue;
        };
        let name = format!("{}: {}", series.about.work, series.about.subject);
        let _ = write!(out, "<tr><td>{}</td>", escaped(&name));
        for field in fields {
            let _ = write!(out, "<td>{field}</td>");
        }
        out.push_str("</tr>\n");
    }
    out + "</table></div>\n"
}

/// What does each, exactly; the same command is shown once.
fn commands(run: &Run) -> String {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for series in &run.series {
        let pair = (series.about.subject.as_str(), series.about.command.as_str());
        if !seen.contains(&pair) {
            seen.push(pair);
        }
    }
    let mut out = String::from("<h2>Commands</h2>\n<dl>\n");
    for (subject, command) in seen {
        let (subject, command) = (escaped(subject), escaped(command));
        let _ = writeln!(out, "<dt>{subject}</dt><dd><code>{command}</code></dd>");
    }
    let _ = writeln!(
        out,
        "</dl>\n<p>Plots: medians, with a line from the least to the most. No \
        difference: all of the interval is within 15 %. SRC and DIR in a command: the files of the \
        work, and the folder of the run. Sizes: {} is 1,048,576 bytes.</p>",
        size(1 << 20)
    );
    out
}

/// `2026-11-28 05:00:00 UTC` from seconds since 1970.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar from days (Howard Hinnant, chrono-compatible low-level date algorithms).
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn a_page_has_all_and_needs_nothing() {
        let mut odd = series("work <1>", "a & b", false, &[0.2; 5]);
        odd.about.command = "do \"it\" <now>".into();
        let mut absent = series("work <1>", "absent", false, &[]);
        absent.failed = Some("it is not <there>".into());
        let native = series("work <1>", "native", true, &[0.1; 5]);
        let text = page(&run(vec![native, odd, absent])).unwrap();
        for part in [
            "<svg",
            "work &lt;1&gt;",
            "a &amp; b",
            "do &quot;it&quot; &lt;now&gt;",
            "it is not &lt;there&gt;",
            "0.50 [0.50..0.50] slower",
            "1970-01-01 00:00:00 UTC",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        for part in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!text.contains(part), "{part} is there");
        }
    }

    /// A file of a run may come from anybody.
    #[test]
    fn a_name_of_an_experiment_is_text() {
        let mut run = run(vec![series("work", "native", true, &[0.1; 5])]);
        run.experiment = "<script>&".into();
        let text = page(&run).unwrap();
        assert_eq!(text.matches("corfs bench &lt;script&gt;&amp;<").count(), 2);
        assert!(!text.contains("<script"), "{text}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_846_994), "2026-11-28 06:23:14 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59:59 UTC");
    }
}
