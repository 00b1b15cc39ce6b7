//! How many workers move the bytes of one file, and whether from mappings: chosen by measurement.
//!
//! Writers of one file take turns (ext4, XFS and others lock the inode for a write), but while one
//! writes another can have the source's bytes brought in. Of two with mappings each change of the
//! page tables costs the other an interrupt, and reading into a buffer that the processor's cache
//! holds may win; of one now the mapping is better, now the buffer. Measured as ratios to
//! `cp --reflink=never`, 256 MiB cached, two processors, medians of 14 runs, one and two workers with
//! mappings, one and two with buffers: ext4 1.16, 1.74, 1.37, 2.21; XFS, the fastest of 13 (medians
//! told nothing there), 1.37, 1.45, 1.02, 1.72.
//!
//! What gains depends on the file systems, the device, the machine and who else is at work, so
//! large copies are timed in stretches, one worker and more in turn, and then go on in what was fastest.
//! What was found is remembered for the life of the process, by kind of copy, and looked at again
//! now and then.

use parking_lot::Mutex;

use crate::copy::options::Method;

/// Bytes of one stretch.
pub(super) const STRETCH: u64 = 8 << 20;
/// Files smaller than this have one worker: they would be done before it was known.
pub(super) const LARGE: u64 = 64 << 20;
/// Stretches that are remembered of each way.
const SAMPLES: usize = 3;
/// One stretch in so many is spent on a way that was slower before.
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
    /// Nobody asked for the method: a better one may take its place.
    pub(super) free: bool,
    pub(super) direct: bool,
}

/// A way to move the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) workers: u16,
    /// Through buffers, where the method is `map-write`.
    pub(super) buffered: bool,
}

impl Way {
    /// Without buffers.
    pub(super) fn of(workers: u16) -> Self {
        Self {
            workers,
            buffered: false,
        }
    }
}

/// Stretches so far.
#[derive(Debug, Default)]
struct Trials {
    tried: Vec<Tried>,
    stretches: u32,
}

#[derive(Debug)]
struct Tried {
    way: Way,
    /// The last rates, bytes a second; the oldest is overwritten.
    rates: [f64; SAMPLES],
    taken: usize,
}

impl Tried {
    fn median(&self) -> f64 {
        let mut rates = self.rates;
        rates.sort_by(f64::total_cmp);
        rates[SAMPLES / 2]
    }
}

impl Trials {
    /// Up to `most` workers; `buffers` says whether several of them may do without mappings.
    fn new(most: u16, buffers: bool) -> Self {
        let numbers = [1, 2, 4].into_iter().filter(|&workers| workers <= most);
        // Several with mappings were nowhere faster than as many with buffers.
        let tried = numbers.map(|workers| Tried {
            way: Way {
                workers,
                buffered: buffers && workers > 1,
            },
            rates: [0.0; SAMPLES],
            taken: 0,
        });
        Self {
            tried: tried.collect(),
            stretches: 0,
        }
    }

    /// The way of the next stretch.
    fn next(&self) -> Way {
        let least = self.tried.iter().min_by_key(|tried| tried.taken);
        match least {
            None => Way::of(1),
            Some(tried) if tried.taken < SAMPLES => tried.way,
            Some(_) if self.stretches.is_multiple_of(AGAIN) => self.another(),
            Some(_) => self.best(),
        }
    }

    fn best(&self) -> Way {
        let mut best: Option<&Tried> = None;
        let better = |one: &Tried, than: &Tried| {
            let more = one.way.workers > than.way.workers;
            one.median() > than.median() * if more { GAIN } else { 1.0 }
        };
        for tried in &self.tried {
            if best.is_none_or(|best| better(tried, best)) {
                best = Some(tried);
            }
        }
        best.map_or(Way::of(1), |tried| tried.way)
    }

    /// The way that was looked at longest ago, but for the best.
    fn another(&self) -> Way {
        let best = self.best();
        let others = self.tried.iter().filter(|tried| tried.way != best);
        let least = others.min_by_key(|tried| tried.taken);
        least.map_or(best, |tried| tried.way)
    }

    fn record(&mut self, way: Way, rate: f64) {
        self.stretches = self.stretches.wrapping_add(1);
        if let Some(tried) = self.tried.iter_mut().find(|tried| tried.way == way) {
            tried.rates[tried.taken % SAMPLES] = rate;
            tried.taken += 1;
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
            let buffers = kind.free && kind.method == Some(Method::MapWrite) && !kind.direct;
            known.push((kind, Trials::new(most(), buffers)));
            known.len() - 1
        }
    };
    look(&mut known[place].1)
}

/// The way of the next stretch of such a copy.
pub(super) fn next(kind: Kind) -> Way {
    with(kind, |trials| trials.next())
}

/// A stretch in that way ran at `rate` bytes a second.
pub(super) fn record(kind: Kind, way: Way, rate: f64) {
    with(kind, |trials| trials.record(way, rate));
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
        let ways = run_ways(trials, stretches, |way| rate(way.workers));
        ways.into_iter().map(|way| way.workers).collect()
    }

    fn run_ways(trials: &mut Trials, stretches: u32, rate: impl Fn(Way) -> f64) -> Vec<Way> {
        let one = |_| {
            let way = trials.next();
            trials.record(way, rate(way));
            way
        };
        (0..stretches).map(one).collect()
    }

    #[test]
    fn several_workers_have_buffers_where_they_may_and_one_has_a_mapping() {
        for buffers in [false, true] {
            let mut trials = Trials::new(4, buffers);
            let tried = run_ways(&mut trials, 30, |way| f64::from(way.workers));
            let last = Way {
                workers: 4,
                buffered: buffers,
            };
            assert_eq!(tried[0], Way::of(1));
            assert!(tried[9..].iter().all(|&way| way == last), "{tried:?}");
        }
    }

    #[test]
    fn what_is_faster_is_kept_and_the_other_looked_at_again() {
        let mut trials = Trials::new(2, false);
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
        let mut trials = Trials::new(4, false);
        let chosen = run(&mut trials, 30, |workers| 1.0 + f64::from(workers) / 100.0);
        assert_eq!(chosen[..3], [1, 2, 4]);
        assert!(chosen[9..].iter().all(|&workers| workers == 1));
    }

    #[test]
    fn one_processor_has_one_worker() {
        let mut trials = Trials::new(1, true);
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
                free: false,
                direct: false,
            };
            assert_eq!(next(kind), Way::of(1));
            record(kind, Way::of(1), 1.0);
            assert_eq!(next(kind), Way::of(most().min(2)));
        }
        assert!(KNOWN.lock().len() <= MOST_KINDS);
    }
}
