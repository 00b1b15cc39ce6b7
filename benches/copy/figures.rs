//! The figures that are to be reached, and which of them were.

use crate::contest::Series;

/// Under 15 % is no difference.
const NO_DIFFERENCE: f64 = 0.85;
/// Those who copy bytes of their own, by other means.
const PEERS: [&str; 5] = ["cp", "copy_file_range", "dd", "xcp", "rsync"];

/// Who reads nothing and writes as much: no copy by write(2) is faster.
pub(crate) const FLOOR: &str = "write alone";

/// So many times faster than another is one to be.
struct Target {
    section: &'static str,
    /// On these file systems; none named is all.
    places: &'static [&'static str],
    who: &'static str,
    than: &'static str,
    least: f64,
}

/// `BEST` is the fastest of [`PEERS`].
const BEST: &str = "the best peer";

#[rustfmt::skip]
const TARGETS: &[Target] = &[
    Target { section: "warm", places: &["ext4"], who: "engine", than: "cp", least: 1.6 },
    Target { section: "warm", places: &["xfs"], who: "engine", than: "cp", least: 1.9 },
    Target { section: "warm", places: &["tmpfs", "btrfs"], who: "engine", than: "cp", least: 1.2 },
    Target { section: "warm", places: &[], who: "engine", than: BEST, least: NO_DIFFERENCE },
    Target { section: "warm", places: &[], who: "engine", than: "mcopy2, 1 GiB", least: 1.9 },
    Target { section: "warm", places: &[], who: ".copy", than: "engine", least: 0.95 },
    Target { section: "warm", places: &[], who: "cp in the mount", than: "engine", least: 0.8 },
    Target { section: "reflink", places: &["xfs", "btrfs"], who: "engine", than: "cp", least: 1.0 / 1.5 },
    Target { section: "reflink", places: &["xfs", "btrfs"], who: ".copy", than: "cp", least: 1.0 / 1.5 },
    Target { section: "sparse", places: &[], who: "engine", than: "cp", least: 1.0 },
    Target { section: "tree", places: &["xfs"], who: "engine", than: "cp", least: 1.8 },
    Target { section: "tree", places: &["xfs"], who: ".copy", than: "engine", least: 0.95 },
    Target { section: "cold", places: &[], who: "engine", than: "cp", least: 1.0 },
];

/// What came of the targets, in the order in which they were asked.
#[derive(Default)]
pub(crate) struct Verdicts(Vec<(bool, String)>);

impl Verdicts {
    /// Compares what was found with every target of the section; `what` is for people.
    pub(crate) fn judge(&mut self, section: &str, what: &str, place: &str, found: &[Series]) {
        let concerned = TARGETS.iter().filter(|target| {
            target.section == section
                && (target.places.is_empty() || target.places.contains(&place))
        });
        for target in concerned {
            let (Some(who), Some(than)) = (one(found, target.who), one(found, target.than)) else {
                continue;
            };
            let than_median = than.median();
            let ratio = than_median / who.median();
            let than = if target.than == BEST {
                format!("{BEST} ({})", than.name)
            } else {
                target.than.to_owned()
            };
            let met = ratio >= target.least;
            let floor = one(found, FLOOR).filter(|_| !met && target.who == "engine");
            let floor = floor.map_or(String::new(), |floor| {
                let most = than_median / floor.median();
                format!("; {FLOOR} {most:.2}")
            });
            let words = format!(
                "{place:6} {what}: {} {ratio:.2} of {than}, wanted {:.2}{floor}",
                target.who, target.least
            );
            self.0.push((met, words));
        }
    }

    /// A number that is to stay below another.
    pub(crate) fn at_most(&mut self, place: &str, what: &str, found: u64, most: u64) {
        println!("  {what}: {found}, at most {most}");
        let words = format!("{place:6} {what}: {found}, wanted at most {most}");
        self.0.push((found <= most, words));
    }

    pub(crate) fn print(&self) {
        println!("\nWhat was to be reached");
        for (met, words) in &self.0 {
            println!("  {:6} {words}", if *met { "met" } else { "MISSED" });
        }
        let met = self.0.iter().filter(|(met, _)| *met).count();
        println!("{met} of {} met; under 15 % is no difference", self.0.len());
    }
}

/// The competitor of that name. The best peer is one whose copy has bytes of its own.
fn one<'a>(found: &'a [Series], name: &str) -> Option<&'a Series> {
    if name == BEST {
        let peers = found
            .iter()
            .filter(|series| PEERS.contains(&series.name) && !series.shares);
        return peers.min_by(|a, b| a.median().total_cmp(&b.median()));
    }
    found.iter().find(|series| series.name == name)
}
