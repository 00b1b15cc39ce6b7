//! How many workers move the bytes of one file: chosen by measurement.
//!
//! Writers of one file take turns (ext4, XFS and others lock the inode for a write), but while one
//! writes another can have the source's pages brought in. Whether that gains anything depends on
//! the file systems, the device, the machine and who else is at work, so large copies are timed in
//! stretches, with one worker and with more in turn, and then go on with what was fastest. What was
//! found is remembered for the life of the process, by kind of copy, and looked at again now and
//! then.

use parking_lot::Mutex;

use crate::copy::options::Method;

/// Bytes of one stretch.
pub(super) const STRETCH: u64 = 32 << 20;
/// Files smaller than this have one worker: they would be done before it was known.
pub(super) const LARGE: u64 = 64 << 20;
/// Stretches that are remembered of each number of workers.
const SAMPLES: usize = 3;
/// One stretch in so many is spent on a number that was slower before.
const AGAIN: u32 = 32;
/// How much faster more workers must be: they take a processor from others.
const GAIN: f64 = 1.1;
/// Kinds of copies that are remembered.
const MOST_KINDS: usize = 64;

/// What is alike of two copies: the types of both file systems, and the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) method: Option<Method>,
    pub(super) direct: bool,
}

/// Stretches so far.
#[derive(Debug, Default)]
struct Trials {
    numbers: Vec<Number>,
    stretches: u32,
}

#[derive(Debug)]
struct Number {
    workers: u16,
    /// The last rates, bytes a second; the oldest is overwritten.
    rates: [f64; SAMPLES],
    taken: usize,
}

impl Number {
    fn median(&self) -> f64 {
        let mut rates = self.rates;
        rates.sort_by(f64::total_cmp);
        rates[SAMPLES / 2]
    }
}

impl Trials {
    fn new(most: u16) -> Self {
        let numbers = [1, 2, 4].into_iter().filter(|&workers| workers <= most);
        let number = |workers| Number {
            workers,
            rates: [0.0; SAMPLES],
            taken: 0,
        };
        Self {
            numbers: numbers.map(number).collect(),
            stretches: 0,
        }
    }

    /// How many workers the next stretch is to have.
    fn next(&self) -> u16 {
        let least = self.numbers.iter().min_by_key(|number| number.taken);
        match least {
            None => 1,
            Some(number) if number.taken < SAMPLES => number.workers,
            Some(_) if self.stretches.is_multiple_of(AGAIN) => self.another(),
            Some(_) => self.best(),
        }
    }

    fn best(&self) -> u16 {
        let mut best: Option<&Number> = None;
        for number in &self.numbers {
            if best.is_none_or(|best| number.median() > best.median() * GAIN) {
                best = Some(number);
            }
        }
        best.map_or(1, |number| number.workers)
    }

    /// The number that was looked at longest ago, but for the best.
    fn another(&self) -> u16 {
        let best = self.best();
        let others = self.numbers.iter().filter(|number| number.workers != best);
        let least = others.min_by_key(|number| number.taken);
        least.map_or(best, |number| number.workers)
    }

    fn record(&mut self, workers: u16, rate: f64) {
        self.stretches = self.stretches.wrapping_add(1);
        let mut numbers = self.numbers.iter_mut();
        if let Some(number) = numbers.find(|number| number.workers == workers) {
            number.rates[number.taken % SAMPLES] = rate;
            number.taken += 1;
        }
    }
}

/// A leaf in the order of locks, held for a look only.
static KNOWN: Mutex<Vec<(Kind, Trials)>> = Mutex::new(Vec::new());

fn with<T>(kind: Kind, look: impl FnOnce(&mut Trials) -> T) -> T {
    let mut known = KNOWN.lock();
    let place = match known.iter().position(|(other, _)| *other == kind) {
        Some(place) => place,
        None => {
            if known.len() >= MOST_KINDS {
                known.swap_remove(0);
            }
            known.push((kind, Trials::new(most())));
            known.len() - 1
        }
    };
    look(&mut known[place].1)
}

/// How many workers the next stretch of such a copy is to have.
pub(super) fn next(kind: Kind) -> u16 {
    with(kind, |trials| trials.next())
}

/// A stretch with that many ran at `rate` bytes a second.
pub(super) fn record(kind: Kind, workers: u16, rate: f64) {
    with(kind, |trials| trials.record(workers, rate));
}

/// How many stretches of such copies have been timed.
#[cfg(test)]
pub(super) fn stretches(kind: Kind) -> u32 {
    with(kind, |trials| trials.stretches)
}

/// A processor for each, and some for others.
fn most() -> u16 {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => 1,
        2..8 => 2,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(trials: &mut Trials, stretches: u32, rate: impl Fn(u16) -> f64) -> Vec<u16> {
        let one = |_| {
            let workers = trials.next();
            trials.record(workers, rate(workers));
            workers
        };
        (0..stretches).map(one).collect()
    }

    #[test]
    fn what_is_faster_is_kept_and_the_other_looked_at_again() {
        let mut trials = Trials::new(2);
        let chosen = run(&mut trials, 40, f64::from);
        assert_eq!(chosen[..6], [1, 2, 1, 2, 1, 2]);
        assert!(chosen[6..32].iter().all(|&workers| workers == 2));
        assert_eq!(chosen.iter().filter(|&&workers| workers == 1).count(), 4);
        // The machine has changed: after some time so has the choice.
        let later = run(&mut trials, 200, |workers| 10.0 / f64::from(workers));
        assert!(later[150..].iter().filter(|&&workers| workers == 1).count() > 40);
    }

    #[test]
    fn a_small_gain_is_no_reason_for_more() {
        let mut trials = Trials::new(4);
        let chosen = run(&mut trials, 30, |workers| 1.0 + f64::from(workers) / 100.0);
        assert_eq!(chosen[..3], [1, 2, 4]);
        assert!(chosen[9..].iter().all(|&workers| workers == 1));
    }

    #[test]
    fn one_processor_has_one_worker() {
        let mut trials = Trials::new(1);
        assert!(
            run(&mut trials, 50, |_| 1.0)
                .iter()
                .all(|&workers| workers == 1)
        );
    }

    #[test]
    fn kinds_are_remembered_apart_and_not_without_end() {
        for source in 0..3 * MOST_KINDS as u64 {
            let kind = Kind {
                source,
                destination: 1,
                method: None,
                direct: false,
            };
            assert_eq!(next(kind), 1);
            record(kind, 1, 1.0);
            assert_eq!(next(kind), most().min(2));
        }
        assert!(KNOWN.lock().len() <= MOST_KINDS);
    }
}
