//! Medians, their range, and how far a ratio can be believed.

use super::outcome::{Run, Series};

/// Under 15 % is no difference: so much two runs of the same differ on a shared machine.
pub(crate) const NO_DIFFERENCE: f64 = 0.85;
/// How many times the rounds are drawn again.
const DRAWS: usize = 2000;
/// Fewer rounds than these can't be drawn again in enough ways.
const ENOUGH: usize = 5;
/// The interval holds this share of the draws.
const SHARE: f64 = 0.95;

/// The middle of some numbers, and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// How many times as fast one is as another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// Of the medians.
    pub(crate) value: f64,
    /// A bootstrap interval of 95 %.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// From how many rounds it is.
    pub(crate) rounds: usize,
}

/// What a ratio tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Faster,
    Slower,
    /// They differ by less than 15 %: all of the interval does.
    Same,
    /// The rounds differ more than the two do.
    Unclear,
    /// So few rounds tell nothing: the interval of one is a point.
    Few,
}

/// The middle one, or the mean of the two in the middle. `None` of none.
pub(crate) fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

pub(crate) fn summary(numbers: &[f64]) -> Option<Summary> {
    Some(Summary {
        median: median(numbers)?,
        min: numbers.iter().copied().fold(f64::INFINITY, f64::min),
        max: numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

/// How many times as fast `who` is as `than`, where both were measured in the same rounds: rounds
/// are drawn, and with each both of its samples, because what disturbs a round disturbs both.
pub(crate) fn paired(who: &Series, than: &Series) -> Option<Ratio> {
    let (mine, theirs) = (who.rates(), than.rates());
    let other = |round: usize| than.samples.iter().position(|s| s.round == round);
    let pairs: Vec<(f64, f64)> = (who.samples.iter().zip(&mine))
        .filter_map(|(sample, &rate)| Some((rate, theirs[other(sample.round)?])))
        .collect();
    let split = |pairs: &[(f64, f64)]| -> (Vec<f64>, Vec<f64>) { pairs.iter().copied().unzip() };
    let (a, b) = split(&pairs);
    bootstrap(median(&a)? / median(&b)?, pairs.len(), |random| {
        let drawn: Vec<(f64, f64)> = draw(random, &pairs);
        let (a, b) = split(&drawn);
        Some(median(&a)? / median(&b)?)
    })
}

/// As [`paired`], of two that were measured apart.
pub(crate) fn unpaired(who: &Series, than: &Series) -> Option<Ratio> {
    let (a, b) = (who.rates(), than.rates());
    let rounds = a.len().min(b.len());
    bootstrap(median(&a)? / median(&b)?, rounds, |random| {
        Some(median(&draw(random, &a))? / median(&draw(random, &b))?)
    })
}

/// As many as there are, each any of them.
fn draw<T: Copy>(random: &mut fastrand::Rng, from: &[T]) -> Vec<T> {
    from.iter()
        .map(|_| from[random.usize(..from.len())])
        .collect()
}

/// The seed is fixed: the same samples give the same interval.
fn bootstrap(
    value: f64,
    rounds: usize,
    mut ratio: impl FnMut(&mut fastrand::Rng) -> Option<f64>,
) -> Option<Ratio> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut drawn: Vec<f64> = (0..DRAWS).filter_map(|_| ratio(&mut random)).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| ((drawn.len() - 1) as f64 * share).round() as usize;
    let outside = (1.0 - SHARE) / 2.0;
    Some(Ratio {
        value,
        low: *drawn.get(at(outside))?,
        high: *drawn.get(at(1.0 - outside))?,
        rounds,
    })
}

impl Ratio {
    pub(crate) fn verdict(&self) -> Verdict {
        let differs = !(NO_DIFFERENCE..=1.0 / NO_DIFFERENCE).contains(&self.value);
        let alike = self.low >= NO_DIFFERENCE && self.high <= 1.0 / NO_DIFFERENCE;
        match self.value {
            _ if self.rounds < ENOUGH => Verdict::Few,
            value if differs && value > 1.0 && self.low > 1.0 => Verdict::Faster,
            value if differs && value < 1.0 && self.high < 1.0 => Verdict::Slower,
            _ if alike && !differs => Verdict::Same,
            _ => Verdict::Unclear,
        }
    }
}

/// One who is compared with the baseline of its work.
struct Compared<'a> {
    work: &'a str,
    subject: &'a str,
    baseline: &'a str,
    ratio: Ratio,
}

/// Everybody who has rounds in common with a baseline, by work.
fn compared(run: &Run) -> Vec<Compared<'_>> {
    let mut found = Vec::new();
    for work in run.works() {
        let Some(baseline) = run.baseline(work) else {
            continue;
        };
        for series in run.of_work(work).filter(|series| !series.about.baseline) {
            found.extend(paired(series, baseline).map(|ratio| Compared {
                work,
                subject: &series.about.subject,
                baseline: &baseline.about.subject,
                ratio,
            }));
        }
    }
    found
}

/// A warning, with its remedy, for each work in which the machine is too noisy to tell somebody
/// from the baseline, or in which too few rounds were measured for that.
pub(crate) fn warnings(run: &Run) -> Vec<String> {
    let all = compared(run);
    let mut found = too_few(&all);
    let noisy = of_works(&all, Verdict::Unclear, |work, who, baseline| {
        format!("{work}: too noisy to tell {who} from {baseline}")
    });
    if noisy.is_empty() {
        return found;
    }
    found.extend(noisy);
    let [before, after] = run.machine.load;
    let processors = run.machine.processors.max(1);
    found.push(format!(
        "what helps: more rounds (--rounds {}), more work in each (--size, --files), a machine \
         that does nothing else (its load was {before:.1} before and {after:.1} after, on \
         {processors} processors)",
        (run.rounds * 3).max(ENOUGH)
    ));
    found
}

/// Rounds are missing where they were not asked for, where somebody has stopped the run, and where
/// one has failed in the middle.
fn too_few(all: &[Compared<'_>]) -> Vec<String> {
    let most = all.iter().map(|one| one.ratio.rounds).max();
    match most {
        Some(most) if most < ENOUGH => vec![format!(
            "an interval of {most} rounds says little; --rounds {ENOUGH} or more"
        )],
        _ => of_works(all, Verdict::Few, |work, who, baseline| {
            format!(
                "{work}: {who} has fewer than {ENOUGH} rounds in common with {baseline}, which says \
                 little"
            )
        }),
    }
}

/// Words for each work in which somebody has this verdict: the work, who, and compared with whom.
fn of_works(
    all: &[Compared<'_>],
    verdict: Verdict,
    words: impl Fn(&str, &str, &str) -> String,
) -> Vec<String> {
    let of_work = |work: &[Compared<'_>]| {
        let is = |one: &&Compared<'_>| one.ratio.verdict() == verdict;
        let who: Vec<&str> = work.iter().filter(is).map(|one| one.subject).collect();
        (!who.is_empty()).then(|| words(work[0].work, &who.join(", "), work[0].baseline))
    };
    all.chunk_by(|a, b| a.work == b.work)
        .filter_map(of_work)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let found = summary(&[2.0, 1.0, 4.0]).unwrap();
        assert_eq!((found.median, found.min, found.max), (2.0, 1.0, 4.0));
    }

    #[test]
    fn a_ratio_lies_in_its_interval_and_is_the_same_each_time() {
        let native = series("w", "native", true, &[1.0, 1.1, 0.9, 1.0, 1.05]);
        let other = series("w", "other", false, &[2.0, 2.2, 1.8, 2.0, 2.1]);
        let ratio = paired(&other, &native).unwrap();
        assert!((ratio.value - 0.5).abs() < 1e-9, "{ratio:?}");
        assert!(ratio.low <= ratio.value && ratio.value <= ratio.high);
        assert_eq!(paired(&other, &native), Some(ratio));
        assert_eq!(ratio.verdict(), Verdict::Slower);
        assert_eq!(paired(&native, &other).unwrap().verdict(), Verdict::Faster);
    }

    /// Where both slow down in the same rounds, the ratio is exact although the times are not.
    #[test]
    fn what_disturbs_both_does_not_widen_a_paired_interval() {
        let native = series("w", "native", true, &[1.0, 3.0, 1.5, 2.0, 5.0]);
        let twice = series("w", "other", false, &[2.0, 6.0, 3.0, 4.0, 10.0]);
        let together = paired(&twice, &native).unwrap();
        assert!(together.high - together.low < 1e-9, "{together:?}");
        let apart = unpaired(&twice, &native).unwrap();
        assert!(apart.high - apart.low > 0.3, "{apart:?}");
    }

    #[test]
    fn only_common_rounds_are_compared() {
        let native = series("w", "native", true, &[1.0, 1.0]);
        let mut late = series("w", "late", false, &[9.0, 0.5]);
        late.samples.remove(0);
        assert!((paired(&late, &native).unwrap().value - 2.0).abs() < 1e-9);
        late.samples.clear();
        assert_eq!(paired(&late, &native), None);
    }

    #[test]
    fn under_15_percent_is_no_difference() {
        let ratio = |value, low, high, rounds| Ratio {
            value,
            low,
            high,
            rounds,
        };
        let verdict = |value, low, high| ratio(value, low, high, ENOUGH).verdict();
        assert_eq!(verdict(1.1, 1.05, 1.15), Verdict::Same);
        assert_eq!(verdict(0.95, 0.9, 1.0), Verdict::Same);
        assert_eq!(verdict(1.3, 1.2, 1.4), Verdict::Faster);
        assert_eq!(verdict(1.3, 0.9, 1.6), Verdict::Unclear);
        assert_eq!(verdict(0.7, 0.5, 0.9), Verdict::Slower);
        assert_eq!(verdict(0.7, 0.5, 1.1), Verdict::Unclear);
        assert_eq!(verdict(1.0, 0.6, 1.5), Verdict::Unclear);
        // Whoever lies on one side of 1 may still be far from it.
        assert_eq!(verdict(0.88, 0.64, 0.99), Verdict::Unclear);
        assert_eq!(verdict(1.1, 1.03, 2.68), Verdict::Unclear);
        assert_eq!(verdict(0.85, 0.67, 0.93), Verdict::Unclear);
        assert_eq!(ratio(9.0, 9.0, 9.0, 1).verdict(), Verdict::Few);
    }

    #[test]
    fn a_noisy_machine_is_named_with_a_remedy() {
        let native = series("w", "native", true, &[1.0, 4.0, 2.0, 1.0, 4.0]);
        let noisy = series("w", "noisy", false, &[4.0, 1.0, 2.0, 4.0, 1.0]);
        let clear = series("w", "clear", false, &[10.0, 41.0, 20.0, 10.0, 41.0]);
        let warned = |series: Vec<Series>| {
            let mut run = run(series);
            run.rounds = 5;
            warnings(&run)
        };
        let noise = warned(vec![native.clone(), noisy, clear.clone()]);
        assert_eq!(noise[0], "w: too noisy to tell noisy from native");
        assert!(noise[1].contains("--rounds 15"), "{}", noise[1]);
        assert!(warned(vec![native, clear]).is_empty());
    }

    /// Also where all of the interval lies below 1.
    #[test]
    fn an_interval_that_leaves_room_for_a_difference_is_warned_of() {
        let native = series("w", "native", true, &[1.0; 5]);
        let wide = series("w", "wide", false, &[1.12, 1.5, 1.05, 1.12, 1.5]);
        let ratio = paired(&wide, &native).unwrap();
        assert!(ratio.value > 0.85 && ratio.high < 1.0 && ratio.low < 0.85);
        let said = warnings(&run(vec![native, wide]));
        assert_eq!(said[0], "w: too noisy to tell wide from native");
    }

    /// However many were planned.
    #[test]
    fn rounds_that_are_missing_are_warned_of_and_give_no_verdict() {
        let native = series("w", "native", true, &[1.0, 1.1, 0.9, 1.0, 1.05]);
        let whole = series("w", "whole", false, &[2.0, 2.2, 1.8, 2.0, 2.1]);
        let failed = series("w", "failed", false, &[9.0]);
        assert_eq!(paired(&failed, &native).unwrap().verdict(), Verdict::Few);
        let mut planned = run(vec![native, whole, failed]);
        planned.rounds = 5;
        let said = warnings(&planned);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with("w: failed has fewer than 5"),
            "{said:?}"
        );
        // As after Ctrl-C in the third.
        for series in &mut planned.series {
            series.samples.truncate(2);
        }
        let said = warnings(&planned);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("an interval of 2 rounds"), "{said:?}");
    }
}
