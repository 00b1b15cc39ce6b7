//! Competitors in turn, in an order that rotates.

use std::time::{Duration, Instant};

use crate::Sizes;
use crate::common::{median, order, touch};
use crate::competitors::Competitor;
use crate::stage::{self, Stage};

/// A small file, copied before what is cold: its program is not to be.
pub(crate) const LITTLE: &str = "little";

/// What came of one competitor.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    /// Sorted.
    times: Vec<Duration>,
    /// Its copy took no space of its own.
    pub(crate) shares: bool,
}

impl Series {
    /// In seconds.
    pub(crate) fn median(&self) -> f64 {
        median(&self.times).as_secs_f64()
    }
}

/// One question.
pub(crate) struct Contest<'a> {
    section: &'static str,
    what: String,
    stage: &'a Stage,
    rounds: usize,
    bytes: Option<u64>,
    touch: u64,
    cold: bool,
}

impl<'a> Contest<'a> {
    pub(crate) fn new(section: &'static str, what: &str, stage: &'a Stage, sizes: &Sizes) -> Self {
        Self {
            section,
            what: what.to_owned(),
            stage,
            rounds: sizes.rounds,
            bytes: None,
            touch: 0,
            cold: false,
        }
    }

    /// So much is copied: rates are printed, and that much memory is made ready.
    pub(crate) fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self.touching(bytes)
    }

    /// That much memory is made ready before each run.
    pub(crate) fn touching(mut self, bytes: u64) -> Self {
        self.touch = bytes;
        self
    }

    /// Nothing is cached when a run begins.
    pub(crate) fn cold(mut self) -> Self {
        self.cold = true;
        self
    }

    /// Runs them all; the first is what the others are compared with.
    pub(crate) fn hold(&self, all: Vec<Competitor>, from: &str) -> Vec<Series> {
        println!("\n{}: {}, {} rounds", self.section, self.what, self.rounds);
        let mut found: Vec<Series> = all.iter().map(|who| self.first(who, from)).collect();
        for round in 0..self.rounds {
            for turn in order(all.len(), round) {
                let time = self.once(&all[turn], from);
                found[turn].times.push(time);
            }
        }
        for series in &mut found {
            series.times.sort();
        }
        self.print(&found);
        found
    }

    /// A run that does not count, but tells whether extents are shared.
    fn first(&self, who: &Competitor, from: &str) -> Series {
        let before = self.stage.free();
        let to = self.stage.new_name();
        who.run(self.stage, from, &to);
        let taken = before.saturating_sub(self.stage.free());
        self.stage.drop_copy(&to);
        Series {
            name: who.name,
            times: Vec::new(),
            // Of the others, space that is given back late would look like it.
            shares: matches!(&*self.stage.kind, "xfs" | "btrfs")
                && self.bytes.is_some_and(|bytes| taken < bytes / 2),
        }
    }

    /// Twice in a row, and the faster counts: in the first the host may have fetched the memory, and
    /// then the second finds it there. Nothing is cold the second time, so that is run once.
    fn once(&self, who: &Competitor, from: &str) -> Duration {
        let first = self.run(who, from);
        if self.cold {
            return first;
        }
        first.min(self.run(who, from))
    }

    fn run(&self, who: &Competitor, from: &str) -> Duration {
        // As much again for the image below, which has pages of its own.
        touch(2 * self.touch);
        if self.cold {
            stage::drop_caches();
            self.copy(who, LITTLE);
        }
        self.copy(who, from)
    }

    fn copy(&self, who: &Competitor, from: &str) -> Duration {
        let to = self.stage.new_name();
        let started = Instant::now();
        who.run(self.stage, from, &to);
        let time = started.elapsed();
        self.stage.drop_copy(&to);
        time
    }

    fn print(&self, found: &[Series]) {
        let (base, best) = (found[0].median(), found[0].times[0]);
        for series in found {
            let (low, high) = (series.times[0], series.times[series.times.len() - 1]);
            let rate = self.bytes.map_or(String::new(), |bytes| {
                format!(" {:6.2} GB/s", bytes as f64 / 1e9 / series.median())
            });
            println!(
                "  {:18} {:9.1} ms ({:.1} to {:.1}){rate}  ratio {:.2}, of the best runs {:.2}{}",
                series.name,
                series.median() * 1e3,
                low.as_secs_f64() * 1e3,
                high.as_secs_f64() * 1e3,
                base / series.median(),
                best.as_secs_f64() / low.as_secs_f64(),
                if series.shares {
                    "  (shares extents)"
                } else {
                    ""
                },
            );
        }
    }
}
