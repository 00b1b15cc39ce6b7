//! The order of a run: warm-up, then rounds in each of which everyone comes once, in random order.

use super::outcome::{Memory, Run, Sample};

/// Does the works of a run, which are named by their place in it.
pub(crate) trait Runner {
    /// Does it once, and says what it cost; in words why it can't be done.
    fn measure(&mut self, at: usize) -> Result<Sample, String>;

    /// Does it once more, looking at memory all the time; `None` where that is not asked for, or it
    /// was too short; in words why it can't be done.
    fn memory(&mut self, at: usize) -> Result<Option<Memory>, String>;

    /// Does it once more, counting system calls; `None` where nobody can count them; in words why it
    /// can't be done.
    fn calls(&mut self, at: usize) -> Result<Option<u64>, String>;
}

/// What happens while a run is conducted.
pub(crate) trait Observer {
    /// Something begins: its round (warm-up included, in words), and its place.
    fn begins(&mut self, run: &Run, what: &str, at: usize);

    /// A round is done and may be saved.
    fn round_done(&mut self, run: &Run);

    /// Whether somebody wants us to stop.
    fn stopped(&self) -> bool;
}

/// Fills in the samples. Who fails once is left out from then on.
///
/// Ends early, with `complete` unset, when the observer says so.
pub(crate) fn conduct(run: &mut Run, runner: &mut dyn Runner, observer: &mut dyn Observer) {
    let mut random = fastrand::Rng::with_seed(run.seed);
    for turn in 0..run.warmups + run.rounds {
        let what = words(turn, run);
        for at in order(&mut random, run.series.len()) {
            if observer.stopped() {
                return;
            }
            if run.series[at].failed.is_some() {
                continue;
            }
            observer.begins(run, &what, at);
            let found = runner.measure(at);
            if observer.stopped() {
                // What a signal has cut short is no measurement.
                return;
            }
            match found {
                Ok(sample) if turn >= run.warmups => run.series[at].samples.push(Sample {
                    round: turn - run.warmups,
                    ..sample
                }),
                Ok(_) => {}
                Err(words) => run.series[at].failed = Some(words),
            }
        }
        if turn >= run.warmups {
            observer.round_done(run);
        }
    }
    look_closely(run, runner, observer);
}

/// Memory and system calls, in runs of their own: to look at them costs time.
fn look_closely(run: &mut Run, runner: &mut dyn Runner, observer: &mut dyn Observer) {
    for at in 0..run.series.len() {
        if observer.stopped() {
            return;
        }
        if run.series[at].failed.is_some() {
            continue;
        }
        observer.begins(run, "memory and calls", at);
        let memory = runner.memory(at);
        if observer.stopped() {
            return;
        }
        run.series[at].memory = found(run, at, memory, "Memory", "sampled");
        let calls = runner.calls(at);
        if observer.stopped() {
            return;
        }
        run.series[at].calls = found(run, at, calls, "System calls", "counted");
    }
    run.complete = true;
    observer.round_done(run);
}

/// What was found; a note says what is missing, and why.
fn found<T>(
    run: &mut Run,
    at: usize,
    found: Result<Option<T>, String>,
    what: &str,
    done: &str,
) -> Option<T> {
    found.unwrap_or_else(|why| {
        let subject = &run.series[at].about.subject;
        let note = format!("{what} of {subject}: not {done} in all works, {why}.");
        if !run.notes.contains(&note) {
            run.notes.push(note);
        }
        None
    })
}

fn words(turn: usize, run: &Run) -> String {
    if turn < run.warmups {
        return "warm-up".into();
    }
    format!("round {} of {}", turn - run.warmups + 1, run.rounds)
}

/// Everyone once.
fn order(random: &mut fastrand::Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::super::outcome::testing::{run, series};
    use super::*;

    /// Needs as many seconds as its place says, and remembers who came when.
    #[derive(Default)]
    struct Mock {
        came: Vec<usize>,
        fails: Option<(usize, usize)>,
        looked: Vec<usize>,
        blind: bool,
    }

    impl Runner for Mock {
        fn measure(&mut self, at: usize) -> Result<Sample, String> {
            self.came.push(at);
            if self
                .fails
                .is_some_and(|(who, when)| who == at && self.came.len() > when)
            {
                return Err("no such thing".into());
            }
            Ok(Sample {
                seconds: 1.0 + at as f64,
                ..Sample::default()
            })
        }

        fn memory(&mut self, at: usize) -> Result<Option<Memory>, String> {
            self.looked.push(at);
            match self.blind {
                true => Err("dark".into()),
                false => Ok(Some(Memory::default())),
            }
        }

        fn calls(&mut self, at: usize) -> Result<Option<u64>, String> {
            match self.blind {
                true => Err("late".into()),
                false => Ok(Some(at as u64)),
            }
        }
    }

    #[derive(Default)]
    struct Watch {
        begun: usize,
        saved: Vec<Vec<usize>>,
        stop_after: Option<usize>,
    }

    impl Observer for Watch {
        fn begins(&mut self, _: &Run, _: &str, _: usize) {
            self.begun += 1;
        }

        fn round_done(&mut self, run: &Run) {
            let counts = run.series.iter().map(|series| series.samples.len());
            self.saved.push(counts.collect());
        }

        fn stopped(&self) -> bool {
            self.stop_after.is_some_and(|after| self.begun > after)
        }
    }

    fn planned(rounds: usize, warmups: usize) -> Run {
        let all = ["a", "b", "c", "d"].map(|who| series("work", who, who == "a", &[]));
        Run {
            rounds,
            warmups,
            complete: false,
            ..run(all.to_vec())
        }
    }

    #[test]
    fn everyone_comes_once_a_round_in_an_order_that_differs_and_repeats_with_the_seed() {
        let (mut mock, mut watch) = (Mock::default(), Watch::default());
        let mut run = planned(8, 2);
        conduct(&mut run, &mut mock, &mut watch);
        assert_eq!(mock.came.len(), 40);
        let rounds: Vec<&[usize]> = mock.came.chunks(4).collect();
        for round in &rounds {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert!(rounds.windows(2).any(|two| two[0] != two[1]), "{rounds:?}");
        assert!(run.complete);
        for (at, series) in run.series.iter().enumerate() {
            assert_eq!(series.samples.len(), 8, "the warm-up is not counted");
            let numbers: Vec<usize> = series.samples.iter().map(|s| s.round).collect();
            assert_eq!(numbers, (0..8).collect::<Vec<_>>());
            assert_eq!(series.samples[0].seconds, 1.0 + at as f64);
            assert_eq!(series.calls, Some(at as u64));
        }
        let mut again = Mock::default();
        conduct(&mut planned(8, 2), &mut again, &mut Watch::default());
        assert_eq!(again.came, mock.came);
        let mut other = Run {
            seed: 8,
            ..planned(8, 2)
        };
        let mut third = Mock::default();
        conduct(&mut other, &mut third, &mut Watch::default());
        assert_ne!(third.came, mock.came);
    }

    #[test]
    fn each_round_can_be_saved_as_it_ends() {
        let mut watch = Watch::default();
        conduct(&mut planned(3, 1), &mut Mock::default(), &mut watch);
        let each = |count| vec![count; 4];
        assert_eq!(watch.saved, [each(1), each(2), each(3), each(3)]);
    }

    #[test]
    fn who_fails_is_left_out_and_the_others_go_on() {
        let mut mock = Mock {
            fails: Some((2, 6)),
            ..Mock::default()
        };
        let mut run = planned(3, 1);
        conduct(&mut run, &mut mock, &mut Watch::default());
        assert_eq!(run.series[2].failed.as_deref(), Some("no such thing"));
        assert!(run.series[2].samples.len() < 3);
        assert_eq!(run.series[1].samples.len(), 3);
        assert_eq!(mock.looked, [0, 1, 3]);
        assert!(run.complete);
    }

    #[test]
    fn why_memory_and_calls_are_missing_is_noted_once() {
        let mut mock = Mock {
            blind: true,
            ..Mock::default()
        };
        let all = ["one", "two"].map(|work| series(work, "a", true, &[]));
        let mut run = run(all.to_vec());
        conduct(&mut run, &mut mock, &mut Watch::default());
        assert_eq!(
            run.notes,
            [
                "Memory of a: not sampled in all works, dark.",
                "System calls of a: not counted in all works, late."
            ]
        );
        assert!(
            run.series
                .iter()
                .all(|s| s.memory.is_none() && s.calls.is_none())
        );
    }

    #[test]
    fn who_is_stopped_keeps_what_was_measured_before() {
        let mut watch = Watch {
            stop_after: Some(9),
            ..Watch::default()
        };
        let mut run = planned(3, 1);
        conduct(&mut run, &mut Mock::default(), &mut watch);
        assert!(!run.complete);
        let samples: usize = run.series.iter().map(|s| s.samples.len()).sum();
        assert_eq!(samples, 9 - 4, "the one under way does not count");
        assert_eq!(watch.saved.len(), 1);
    }
}
