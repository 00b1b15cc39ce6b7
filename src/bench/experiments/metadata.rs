//! `corfs bench meta`: names and attributes.

use super::{Entry, Planner};
use crate::bench::Failure;
use crate::bench::live::State;
use crate::bench::outcome::Unit;
use crate::bench::probe::{Deed, Probe};

/// Bytes of a file.
const SIZE: u64 = 4096;
/// Files of each folder of the tree.
const PER: u64 = 50;

pub(super) fn plan(planner: &mut Planner<'_>) -> Result<(), Failure> {
    let files = planner.asked.files;
    planner.make_files("flat", files, SIZE, 0)?;
    planner.make_files("tree", files, SIZE, PER)?;
    let tree = files + files.div_ceil(PER);
    // What is done, where, to how many names.
    let looks = [
        ("stat", Deed::Stat, "flat", files),
        ("open, close", Deed::Open, "flat", files),
        ("readdir", Deed::Readdir, "flat", files),
        ("walk a tree", Deed::Walk, "tree", tree),
        ("grep a tree", Deed::Grep, "tree", tree),
    ];
    let mut states = vec![
        ("fresh mount", State::Fresh),
        ("again", State::Again),
        ("again after 2 s", State::Later),
    ];
    if planner.asked.cold {
        states.push(("cold", State::Cold));
    }
    for (name, deed, folder, count) in looks {
        for &(when, state) in &states {
            // Whether names are believed after their timeout is told by one work.
            if state == State::Later && deed != Deed::Stat {
                continue;
            }
            add(
                planner,
                &format!("{name}, {when}"),
                deed,
                state,
                Some(folder),
                count,
            );
        }
    }
    for (name, deed) in [
        ("create", Deed::Create),
        ("rename", Deed::Rename),
        ("unlink", Deed::Unlink),
    ] {
        add(planner, name, deed, State::Warm, None, files);
    }
    Ok(())
}

/// In a folder that stays, or in one made for each run.
fn add(
    planner: &mut Planner<'_>,
    work: &str,
    deed: Deed,
    state: State,
    stays: Option<&'static str>,
    count: u64,
) {
    for place in 0..planner.places.len() {
        let at = &planner.places[place];
        let stays_at = stays.map(|name| at.root().join(name));
        let probe = move |made: &std::path::Path| Probe::Names {
            folder: stays_at.clone().unwrap_or_else(|| made.to_owned()),
            deed,
            count,
        };
        let there = if deed == Deed::Create { 0 } else { count };
        let reads: &[&str] = match stays {
            // What is inside the files is asked for by one work only.
            Some("tree") if deed == Deed::Grep => &["tree"],
            _ => &[],
        };
        planner.add(Entry {
            work: work.into(),
            subject: at.subject.name.clone(),
            baseline: place == 0,
            amount: count as f64,
            unit: Unit::Operations,
            sweep: None,
            command: at.command(),
            ours: at.is_corfs(),
            place,
            state,
            reads,
            folder: stays.is_none().then_some(there),
            fills: 0,
            probe: Box::new(probe),
        });
    }
}
