//! The figures that are to be reached, and which of them were.

use std::time::Duration;

/// What came of the figures, in the order in which they were asked.
#[derive(Default)]
pub(crate) struct Verdicts(Vec<(Option<bool>, String)>);

impl Verdicts {
    /// A number that is to reach another.
    pub(crate) fn at_least(&mut self, what: &str, found: f64, least: f64) {
        let words = format!("{what}: {found:.2}, wanted {least:.2} at least");
        self.push(Some(found >= least), words);
    }

    /// A number that is to stay below another.
    pub(crate) fn at_most(&mut self, what: &str, found: f64, most: f64) {
        let words = format!("{what}: {found:.3}, wanted {most:.3} at most");
        self.push(Some(found <= most), words);
    }

    /// What could not be measured here, and why.
    pub(crate) fn left_out(&mut self, what: &str, why: &str) {
        self.push(None, format!("{what}: {why}"));
    }

    fn push(&mut self, met: Option<bool>, words: String) {
        println!("  {words}");
        self.0.push((met, words));
    }

    pub(crate) fn print(&self) {
        println!("\nWhat was to be reached");
        for (met, words) in &self.0 {
            let word = match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "-",
            };
            println!("  {word:6} {words}");
        }
        let measured = self.0.iter().filter(|(met, _)| met.is_some()).count();
        let met = self.0.iter().filter(|(met, _)| *met == Some(true)).count();
        println!("{met} of {measured} met; under 15 % is no difference");
    }
}

/// The middle of some measurements, of an odd number at best.
pub(crate) fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Bytes in that time, in MB/s.
pub(crate) fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e6 / seconds
}
