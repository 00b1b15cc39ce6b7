//! `corfs bench read`: reading through each mount, in every pattern.

use super::{Entry, Planner, shown};
use crate::bench::live::State;
use crate::bench::outcome::{Sweep, Unit};
use crate::bench::probe::{Pattern, Probe};
use crate::bench::stage::{Kind, Subject};
use crate::bench::{Failure, Measure};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// A request of the sweep of budgets, in bytes.
const PART: u64 = 64 << 10;
/// The budget of the sweep of windows, and of that of budgets the window, in bytes.
const ROOMY: u64 = 256 << 20;

/// One pattern of reading.
struct Work {
    name: String,
    pattern: Pattern,
    block: u64,
    direct: bool,
    readers: usize,
    state: State,
}

/// The mounts of the sweeps over windows and budgets.
pub(super) fn swept(asked: &Measure) -> Vec<Subject> {
    let windows = asked.windows.iter().map(|&window| {
        let options = format!("io=mmap,window={window},window_budget={ROOMY}");
        (window_name(window), options)
    });
    let budgets = asked.budgets.iter().map(|&budget| {
        let options = format!("io=mmap,window_budget={budget}");
        (budget_name(budget), options)
    });
    let subject = |(name, options)| Subject {
        name,
        kind: Kind::Corfs(options),
    };
    windows.chain(budgets).map(subject).collect()
}

fn window_name(bytes: u64) -> String {
    format!("window {}", shown(bytes))
}

fn budget_name(bytes: u64) -> String {
    format!("budget {}", shown(bytes))
}

pub(super) fn plan(planner: &mut Planner<'_>) -> Result<(), Failure> {
    planner.make_file("big", planner.asked.size)?;
    planner.make_files("small", planner.asked.files, PAGE, 0)?;
    for work in works(planner.asked) {
        for place in 0..planner.places.len() {
            if !is_swept(planner, place) {
                add(planner, &work, place, None);
            }
        }
    }
    if planner.asked.no_corfs {
        return Ok(());
    }
    sweep(
        planner,
        "windows: sequential 1 MiB, O_DIRECT",
        MIB,
        Pattern::Sequential,
        "window",
    );
    sweep(
        planner,
        "budgets: random 64 KiB, O_DIRECT",
        PART,
        Pattern::Random,
        "budget",
    );
    Ok(())
}

fn is_swept(planner: &Planner<'_>, place: usize) -> bool {
    let name = &planner.places[place].subject.name;
    let (windows, budgets) = (&planner.asked.windows, &planner.asked.budgets);
    if planner.asked.no_corfs {
        return false;
    }
    windows.iter().any(|&w| *name == window_name(w))
        || budgets.iter().any(|&b| *name == budget_name(b))
}

/// Patterns of one reader: name, pattern, bytes a request, O_DIRECT, state.
#[rustfmt::skip]
const ALONE: [(&str, Pattern, u64, bool, State); 7] = [
    ("sequential 1 MiB, buffered", Pattern::Sequential, MIB, false, State::Warm),
    ("sequential 1 MiB, O_DIRECT", Pattern::Sequential, MIB, true, State::Warm),
    ("sequential 1 MiB, read again", Pattern::Sequential, MIB, false, State::Again),
    ("strided, 64 KiB of each 512", Pattern::Strided, PART, false, State::Warm),
    ("mmap by the reader, sequential", Pattern::MappedSequential, PART, false, State::Warm),
    ("mmap by the reader, random 4 KiB", Pattern::MappedRandom, PAGE, false, State::Warm),
    ("small files of 4 KiB", Pattern::SmallFiles, PAGE, false, State::Fresh),
];

/// The same, where cold caches are asked for.
#[rustfmt::skip]
const COLD: [(&str, Pattern, u64, bool, State); 3] = [
    ("cold: sequential 1 MiB, buffered", Pattern::Sequential, MIB, false, State::Cold),
    ("cold: random 4 KiB, buffered", Pattern::Random, PAGE, false, State::Cold),
    ("cold: small files of 4 KiB", Pattern::SmallFiles, PAGE, false, State::Cold),
];

fn works(asked: &Measure) -> Vec<Work> {
    let alone = |&(name, pattern, block, direct, state): &(&str, _, _, _, _)| Work {
        name: name.into(),
        pattern,
        block,
        direct,
        readers: 1,
        state,
    };
    let mut works: Vec<Work> = ALONE.iter().map(alone).collect();
    for &readers in &asked.readers {
        works.extend(together(readers));
    }
    if asked.cold {
        works.extend(COLD.iter().map(alone));
    }
    works
}

/// What several readers do at once, and one beside them.
fn together(readers: usize) -> Vec<Work> {
    let many = match readers {
        1 => "1 reader".to_owned(),
        more => format!("{more} readers"),
    };
    let work = |what: &str, pattern, block, direct| Work {
        name: format!("{what}, {many}"),
        pattern,
        block,
        direct,
        readers,
        state: State::Warm,
    };
    let mut works = vec![
        work("random 4 KiB, buffered", Pattern::Random, PAGE, false),
        work("random 4 KiB, O_DIRECT", Pattern::Random, PAGE, true),
    ];
    // One alone reads so anyway.
    if readers > 1 {
        let name = "sequential 1 MiB, buffered";
        works.push(work(name, Pattern::Sequential, MIB, false));
    }
    works
}

/// Requests of each reader, where the pattern has no end of its own.
fn requests(asked: &Measure, block: u64) -> u64 {
    (asked.size / block).clamp(1, 4096)
}

fn add(planner: &mut Planner<'_>, work: &Work, place: usize, sweep: Option<Sweep>) {
    let asked = planner.asked;
    let (size, blocks) = (asked.size, asked.size / work.block);
    let requests = requests(asked, work.block);
    let at = &planner.places[place];
    let (name, bytes) = match work.pattern {
        Pattern::SmallFiles => ("small", None),
        Pattern::Random | Pattern::MappedRandom => ("big", None),
        Pattern::Strided => ("big", Some(blocks.div_ceil(8) * work.block)),
        _ => ("big", Some(blocks * work.block)),
    };
    let operations = match work.pattern {
        Pattern::SmallFiles => asked.files,
        _ => requests * work.readers as u64,
    };
    let path = at.root().join(name);
    let probe = Probe::Read {
        path,
        pattern: work.pattern,
        block: work.block,
        direct: work.direct,
        readers: work.readers,
        requests,
    };
    planner.add(Entry {
        work: work.name.clone(),
        subject: at.subject.name.clone(),
        baseline: place == 0,
        amount: bytes.unwrap_or(operations) as f64,
        unit: if bytes.is_some() {
            Unit::Bytes
        } else {
            Unit::Operations
        },
        sweep,
        command: at.command(),
        ours: at.is_corfs(),
        place,
        state: work.state,
        reads: &[name],
        folder: None,
        fills: if name == "big" { size } else { 0 },
        probe: Box::new(move |_| probe.clone()),
    });
}

/// The directory itself, and the mounts that differ in one size.
fn sweep(planner: &mut Planner<'_>, name: &str, block: u64, pattern: Pattern, axis: &str) {
    let sizes = match axis {
        "window" => planner.asked.windows.clone(),
        _ => planner.asked.budgets.clone(),
    };
    if sizes.is_empty() {
        return;
    }
    let work = Work {
        name: name.into(),
        pattern,
        block,
        direct: true,
        readers: 1,
        state: State::Warm,
    };
    add(planner, &work, 0, None);
    for size in sizes {
        let subject = match axis {
            "window" => window_name(size),
            _ => budget_name(size),
        };
        let of = |place: &crate::bench::place::Place| place.subject.name == subject;
        let Some(place) = planner.places.iter().position(of) else {
            continue;
        };
        let sweep = Sweep {
            name: name.into(),
            line: "io=mmap".into(),
            axis: axis.into(),
            value: size as f64,
        };
        add(planner, &work, place, Some(sweep));
    }
}
