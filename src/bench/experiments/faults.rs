//! `corfs bench fault`: what it costs to have the pages of a file in a mapping.

use super::{Entry, Planner, shown};
use crate::bench::Failure;
use crate::bench::live::State;
use crate::bench::outcome::{Sweep, Unit};
use crate::bench::probe::{Probe, Touching};

/// Small reads of one run.
const REQUESTS: u64 = 20_000;

/// The sweep over windows.
const WINDOWS: &str = "every page once, by window";
/// Who reads a window at a time, where the others move it in small pieces.
pub(in crate::bench) const WHOLE: &str = "pread, a window each";
/// The work of small reads.
pub(in crate::bench) const SMALL: &str = "4 KiB anywhere";

pub(super) fn plan(planner: &mut Planner<'_>) -> Result<(), Failure> {
    let size = planner.asked.size;
    planner.make_file("big", size)?;
    let windows = planner.asked.windows.clone();
    for window in windows.into_iter().filter(|&window| window <= size) {
        let whos = [
            ("pread", Touching::Pread),
            (WHOLE, Touching::PreadWhole),
            ("map, populate", Touching::Populate),
            ("map, touch", Touching::Touch),
        ];
        for (who, touching) in whos {
            add(
                planner,
                &format!("every page once, window {}", shown(window)),
                who,
                touching,
                window,
            );
        }
    }
    let whos = [
        ("pread", Touching::PreadEach),
        ("one mapping, populated", Touching::Reuse),
        ("one mapping, touched", Touching::ReuseUntouched),
        ("a mapping each", Touching::MapEach),
    ];
    for (who, touching) in whos {
        add(planner, SMALL, who, touching, size);
    }
    Ok(())
}

fn add(planner: &mut Planner<'_>, work: &str, who: &str, touching: Touching, window: u64) {
    let size = planner.asked.size;
    for place in 0..planner.places.len() {
        let at = &planner.places[place];
        let subject = match place {
            0 => who.to_owned(),
            _ => format!("{who}, {}", at.subject.name),
        };
        let probe = Probe::Fault {
            path: at.root().join("big"),
            touching,
            window,
            requests: REQUESTS,
        };
        let small = work == SMALL;
        planner.add(Entry {
            work: work.into(),
            subject: subject.clone(),
            baseline: place == 0 && who == "pread",
            amount: if small { REQUESTS } else { size } as f64,
            unit: if small { Unit::Operations } else { Unit::Bytes },
            sweep: (!small).then(|| Sweep {
                name: WINDOWS.into(),
                line: subject,
                axis: "window".into(),
                value: window as f64,
            }),
            command: at.command(),
            ours: at.is_corfs(),
            place,
            state: State::Warm,
            reads: &["big"],
            folder: None,
            fills: size,
            probe: Box::new(move |_| probe.clone()),
        });
    }
}
