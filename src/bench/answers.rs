//! What the numbers say to the questions of the mmap tradition (APUE 3rd ed., 14.8): when does
//! mmap win over read and write, and what does it cost?

use super::experiments::{COLD, WHOLE, shown};
use super::outcome::{Run, Sample, Series};
use super::plot::number;
use super::statistics::{Ratio, Verdict, median, paired};

const MIB: f64 = 1048576.0;

/// Sentences; none for an experiment of which nothing is asked.
pub(super) fn answers(run: &Run) -> Vec<String> {
    let found = match run.experiment.as_str() {
        "copy" => vec![wins(run), faults(run), chunks(run), memory(run)],
        "fault" => vec![a_fault(run), windows(run), reuse(run)],
        _ => Vec::new(),
    };
    found.into_iter().flatten().collect()
}

/// Where something else was faster than a mode of corfs, and how much; the modes in the order in
/// which they were planned, which begins with the default one.
pub(super) fn losses(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    for work in run.works() {
        for ours in run.of_work(work).filter(|series| series.is_ours()) {
            let faster: Vec<String> = run
                .of_work(work)
                .filter(|series| !series.is_ours())
                .filter_map(|series| Some((series, paired(series, ours)?)))
                .filter(|(_, ratio)| ratio.verdict() == Verdict::Faster)
                .map(|(series, ratio)| format!("{} {:.2} times", series.about.subject, ratio.value))
                .collect();
            if !faster.is_empty() {
                let (who, faster) = (&ours.about.subject, faster.join(", "));
                found.push(format!("{work}: {faster} as fast as {who}"));
            }
        }
    }
    found
}

/// The series of a line of a sweep over one thing, by growing value; the questions are asked of warm
/// caches.
fn line<'a>(run: &'a Run, axis: &str, line: &str) -> Vec<(f64, &'a Series)> {
    let of = |series: &'a Series| {
        let sweep = series.about.sweep.as_ref()?;
        let fits = sweep.axis == axis && sweep.line == line && !series.samples.is_empty();
        let warm = !series.about.work.starts_with(COLD);
        (fits && warm).then_some((sweep.value, series))
    };
    let mut found: Vec<_> = run.series.iter().filter_map(of).collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found
}

fn rate(series: &Series) -> f64 {
    median(&series.rates()).unwrap_or(0.0)
}

fn of(series: &Series, value: fn(&Sample) -> f64) -> f64 {
    let all: Vec<f64> = series.samples.iter().map(value).collect();
    median(&all).unwrap_or(0.0)
}

/// From what size on the mapped methods win.
fn wins(run: &Run) -> Vec<String> {
    let mapped = ["map-write", "map-map"];
    mapped
        .iter()
        .filter_map(|method| wins_from(run, method))
        .collect()
}

fn wins_from(run: &Run, method: &str) -> Option<String> {
    let sizes = line(run, "size", method);
    let ratios: Vec<_> = sizes
        .iter()
        .filter_map(|(size, series)| {
            let baseline = run.baseline(&series.about.work)?;
            Some((*size as u64, paired(series, baseline)?))
        })
        .collect();
    let (largest, last) = ratios.last()?;
    if matches!(last.verdict(), Verdict::Few | Verdict::Unclear) {
        return Some(format!(
            "{method} at the largest size measured, {}, is {}.",
            shown(*largest),
            against(last, "read and write")
        ));
    }
    // The longest run of wins that reaches the largest size.
    let first_win = ratios
        .iter()
        .rev()
        .take_while(|(_, ratio)| ratio.verdict() == Verdict::Faster)
        .last();
    Some(match first_win {
        Some((size, ratio)) => format!(
            "{method} wins over read and write from {} on ({:.2} times as fast there, {:.2} at {}).",
            shown(*size),
            ratio.value,
            last.value,
            shown(*largest)
        ),
        None => {
            let best = ratios
                .iter()
                .filter(|(_, ratio)| ratio.verdict() == Verdict::Faster)
                .max_by(|a, b| a.1.value.total_cmp(&b.1.value));
            let best = best.map_or("it clearly does at none".into(), |(size, ratio)| {
                format!("its best is {:.2} at {}", ratio.value, shown(*size))
            });
            format!(
                "{method} does not win over read and write at the largest size measured, {} ({:.2} \
                 [{:.2}..{:.2}] times as fast); {best}.",
                shown(*largest),
                last.value,
                last.low,
                last.high,
            )
        }
    })
}

/// Page faults of each method at the largest size.
fn faults(run: &Run) -> Vec<String> {
    let methods = ["read-write", "map-write", "map-map", "copy-range"];
    let each: Vec<String> = methods
        .iter()
        .filter_map(|method| {
            let (_, series) = *line(run, "size", method).last()?;
            let minor = of(series, |s| s.minor as f64) / (series.about.amount / MIB);
            let major = of(series, |s| s.major as f64);
            Some(format!(
                "{method} {} (and {major:.0} with I/O)",
                number(minor)
            ))
        })
        .collect();
    sentence("Page faults a MiB at the largest size", &each)
        .into_iter()
        .collect()
}

/// What the wrong chunk costs.
fn chunks(run: &Run) -> Vec<String> {
    let of_method = |method: &&str| {
        let chunks = line(run, "chunk", method);
        let best = chunks
            .iter()
            .max_by(|a, b| rate(a.1).total_cmp(&rate(b.1)))?;
        let worst = chunks
            .iter()
            .min_by(|a, b| rate(a.1).total_cmp(&rate(b.1)))?;
        if chunks.len() < 2 {
            return None;
        }
        let ratio = paired(best.1, worst.1)?;
        let [fast, slow] = [best, worst].map(|(chunk, _)| shown(*chunk as u64));
        Some(match ratio.verdict() {
            Verdict::Faster => format!(
                "By chunk, {method} was fastest with {fast} ({} MiB/s) and slowest with {slow} ({} \
                 MiB/s).",
                number(rate(best.1) / MIB),
                number(rate(worst.1) / MIB)
            ),
            _ => format!(
                "By chunk, {method} with {fast}, its best, is {}, its worst.",
                against(&ratio, &slow)
            ),
        })
    };
    ["map-write", "map-map"]
        .iter()
        .filter_map(of_method)
        .collect()
}

/// What each holds at the largest size.
fn memory(run: &Run) -> Vec<String> {
    let methods = ["read-write", "map-write", "map-map", "copy-range", "cp"];
    let each: Vec<String> = methods
        .iter()
        .filter_map(|method| {
            let (_, series) = *line(run, "size", method).last()?;
            let memory = series.memory.as_ref()?;
            let [anonymous, file] =
                [memory.anonymous, memory.file].map(|bytes| number(bytes as f64 / MIB));
            Some(format!(
                "{method} {anonymous} anonymous and {file} of files"
            ))
        })
        .collect();
    let name = "Memory held at most at the largest size, in MiB, the program's own text among it";
    sentence(name, &each).into_iter().collect()
}

fn sentence(name: &str, each: &[String]) -> Option<String> {
    (!each.is_empty()).then(|| format!("{name}: {}.", each.join(", ")))
}

/// Fewer faults than these may be those of anything.
const FAULTS: f64 = 100.0;

/// Two who do the same, one of them with more page faults.
struct Faulting<'a> {
    more: &'a Series,
    fewer: &'a Series,
    /// What the difference is the price of.
    price_of: &'static str,
    /// Who took more, and than whom.
    who: String,
    than: &'static str,
}

impl Faulting<'_> {
    /// The price, where both the faults and the time differ clearly.
    fn price(&self) -> Option<String> {
        let differ = |value: fn(&Sample) -> f64| of(self.more, value) - of(self.fewer, value);
        let (faults, seconds) = (differ(|s| s.minor as f64), differ(|s| s.seconds));
        if faults < FAULTS || paired(self.fewer, self.more)?.verdict() != Verdict::Faster {
            return None;
        }
        Some(format!(
            "{} costs about {} microseconds: {} took {} faults and {} ms more than {}.",
            self.price_of,
            number(seconds / faults * 1e6),
            self.who,
            number(faults),
            number(seconds * 1e3),
            self.than
        ))
    }
}

/// The price of a fault, of those that are measured with and without: by itself, and with a mapping
/// of its own.
fn a_fault(run: &Run) -> Vec<String> {
    let groups = [touched(run), mapped_each(run)];
    if groups.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let first = |group: &Vec<Faulting<'_>>| group.iter().find_map(Faulting::price);
    let found: Vec<String> = groups.iter().filter_map(first).collect();
    if found.is_empty() {
        return vec![
            "What a page fault costs is not to be told: nobody who took more of them was clearly \
             slower."
                .into(),
        ];
    }
    found
}

/// Touching against populating, of the smallest windows first: they take the most faults. Where the
/// kernel brings in as much at a time for both, it counts as many for both, and there is no price.
fn touched(run: &Run) -> Vec<Faulting<'_>> {
    let price_of = "A page fault (it brings in up to 64 KiB, fault-around)";
    let populated = line(run, "window", "map, populate");
    let windows = line(run, "window", "map, touch").into_iter();
    let found = windows.filter_map(|(window, more)| {
        let (_, fewer) = populated.iter().find(|(value, _)| *value == window)?;
        Some(Faulting {
            more,
            fewer,
            price_of,
            who: format!("with windows of {}, touching", shown(window as u64)),
            than: "populating",
        })
    });
    let kept = small(run, "one mapping, touched", price_of);
    found.chain(kept).collect()
}

/// A mapping for each small read.
fn mapped_each(run: &Run) -> Vec<Faulting<'_>> {
    let price_of = "A page fault with the mmap and munmap of its page";
    small(run, "a mapping each", price_of).into_iter().collect()
}

/// Small reads by somebody, against those from a mapping that is kept and was populated before.
fn small<'a>(run: &'a Run, who: &str, price_of: &'static str) -> Option<Faulting<'a>> {
    let work = super::experiments::SMALL;
    let measured = |who: &str| run.find(work, who).filter(|s| !s.samples.is_empty());
    Some(Faulting {
        more: measured(who)?,
        fewer: measured("one mapping, populated")?,
        price_of,
        who: format!("reading {work}, {who}"),
        than: "one that was populated before",
    })
}

/// How a ratio is told: a difference only where its verdict is one.
fn against(ratio: &Ratio, than: &str) -> String {
    let Ratio {
        value, low, high, ..
    } = ratio;
    match ratio.verdict() {
        Verdict::Faster | Verdict::Slower => format!("{value:.2} times as fast as {than}"),
        Verdict::Same => format!("within 15 % of {than}"),
        Verdict::Unclear => {
            format!("not to be told from {than} ({value:.2} [{low:.2}..{high:.2}] times as fast)")
        }
        Verdict::Few => format!(
            "not to be told from {than} in {} rounds ({value:.2} times as fast)",
            ratio.rounds
        ),
    }
}

/// Each way to have every page once, in its best window, against the best of the best.
fn windows(run: &Run) -> Vec<String> {
    let ways = ["map, populate", "map, touch", "pread", WHOLE];
    let best_of = |way: &&'static str| {
        let of = line(run, "window", way).into_iter();
        let best = of.max_by(|a, b| rate(a.1).total_cmp(&rate(b.1)))?;
        Some((format!("{way} with {}", shown(best.0 as u64)), best.1))
    };
    let mut all: Vec<(String, &Series)> = ways.iter().filter_map(best_of).collect();
    all.sort_by(|a, b| rate(b.1).total_cmp(&rate(a.1)));
    let Some(((first, best), others)) = all.split_first() else {
        return Vec::new();
    };
    let told = |(who, series): &(String, &Series)| {
        let ratio = paired(series, best)?;
        Some(format!("{who} is {}", against(&ratio, "that")))
    };
    let told: Vec<String> = others.iter().filter_map(told).collect();
    let beside = match told.is_empty() {
        true => String::new(),
        false => format!("; {}", told.join("; ")),
    };
    vec![format!(
        "Every page once, each way in its best window: {first} has the best median ({} \
         MiB/s){beside}.",
        number(rate(best) / MIB)
    )]
}

/// Keeping a mapping against making one each time.
fn reuse(run: &Run) -> Vec<String> {
    let small = super::experiments::SMALL;
    let Some(baseline) = run.baseline(small) else {
        return Vec::new();
    };
    let told = |who: &&str| {
        let ratio = paired(run.find(small, who)?, baseline)?;
        Some(format!("{who} is {}", against(&ratio, "pread")))
    };
    let ways = [
        "one mapping, populated",
        "one mapping, touched",
        "a mapping each",
    ];
    let told: Vec<String> = ways.iter().filter_map(told).collect();
    match told.is_empty() {
        true => Vec::new(),
        false => vec![format!("Small reads, {small}: {}.", told.join("; "))],
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
