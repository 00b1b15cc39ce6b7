//! `corfs bench copy`: every method against size, chunk and workers.

use std::path::{Path, PathBuf};

use super::{COLD, Entry, Planner, shown};
use crate::bench::Failure;
use crate::bench::live::State;
use crate::bench::outcome::{Sweep, Unit};
use crate::bench::probe::Probe;
use crate::copy::language::quote;
use crate::copy::options::Method;

/// A run copies so many bytes at least, if the files are small and the largest is not.
const LEAST: u64 = 32 << 20;
/// And so many files at most.
const MOST_FILES: u64 = 256;

/// The names of the sweeps.
const SIZES: &str = "every method, by size";
const COLD_SIZES: &str = "cold: every method, by size";
const CHUNKS: &str = "mapped copies, by chunk";
const WORKERS: &str = "mapped copies, by workers";

/// Something that is copied by several.
struct Work {
    name: String,
    /// Bytes of a file.
    size: u64,
    state: State,
}

impl Work {
    fn warm(size: u64, more: &str) -> Self {
        Self {
            name: format!("copy {}{more}", shown(size)),
            size,
            state: State::Warm,
        }
    }

    fn cold(size: u64) -> Self {
        Self {
            name: format!("{COLD}copy {}", shown(size)),
            size,
            state: State::Cold,
        }
    }

    /// Where one who copies in every size stands.
    fn by_size(&self, line: &str) -> Option<Sweep> {
        let name = match self.state {
            State::Cold => COLD_SIZES,
            _ => SIZES,
        };
        sweep(name, line, "size", self.size)
    }
}

/// The one that all others are compared with: what mcopy2 was compared with.
const BASELINE: Method = Method::ReadWrite;

pub(super) fn plan(planner: &mut Planner<'_>) -> Result<(), Failure> {
    let asked = planner.asked;
    let mut sizes = asked.sizes.clone();
    sizes.retain(|&size| size < asked.size);
    sizes.push(asked.size);
    sizes.sort_unstable();
    sizes.dedup();
    for &size in &sizes {
        planner.make_files(&folder_of(size), files_of(planner, size), size, 0)?;
        by_every_method(planner, &Work::warm(size, ""));
        if asked.cold {
            by_every_method(planner, &Work::cold(size));
        }
    }
    let mapped = [BASELINE, Method::MapWrite, Method::MapMap];
    for &chunk in asked.chunks.iter().filter(|&&chunk| chunk <= asked.size) {
        let work = Work::warm(asked.size, &format!(", chunk {}", shown(chunk)));
        for method in mapped {
            let words = [format!("--chunk={chunk}"), "--workers=1".into()];
            let sweep = sweep(CHUNKS, method.name(), "chunk", chunk);
            engine(planner, &work, method, &words, sweep);
        }
    }
    for &workers in &asked.workers {
        let work = Work::warm(asked.size, &format!(", workers {workers}"));
        for method in mapped {
            let words = [format!("--workers={workers}")];
            let sweep = sweep(WORKERS, method.name(), "workers", workers);
            engine(planner, &work, method, &words, sweep);
        }
    }
    Ok(())
}

fn folder_of(size: u64) -> String {
    format!("files-{size}")
}

fn files_of(planner: &Planner<'_>, size: u64) -> u64 {
    let bytes = LEAST.min(planner.asked.size);
    bytes.div_ceil(size).clamp(1, MOST_FILES)
}

fn sweep(name: &str, line: &str, axis: &str, value: u64) -> Option<Sweep> {
    Some(Sweep {
        name: name.into(),
        line: line.into(),
        axis: axis.into(),
        value: value as f64,
    })
}

fn by_every_method(planner: &mut Planner<'_>, work: &Work) {
    for method in Method::ALL {
        engine(planner, work, method, &[], work.by_size(method.name()));
    }
    let auto = vec!["--reflink=never".to_owned()];
    engine_with(planner, work, "auto", auto, work.by_size("auto"));
    for cp in CPS {
        command(planner, work, cp.name, work.by_size(cp.name), 0, &cp);
    }
    for place in 1..planner.places.len() {
        through_a_mount(planner, work, place);
    }
}

/// As a user of the mount, or of another directory, would copy there.
fn through_a_mount(planner: &mut Planner<'_>, work: &Work, place: usize) {
    let name = planner.places[place].subject.name.clone();
    for cp in CPS {
        let who = format!("{} in {name}", cp.name);
        command(planner, work, &who, None, place, &cp);
    }
    if planner.places[place].is_corfs() {
        let who = format!(".copy in {name}");
        command(planner, work, &who, None, place, &Control);
    }
}

/// A program that copies.
trait Program {
    /// Its words, given sources and a folder.
    fn words(&self, sources: &[String], to: &str) -> Vec<String>;

    /// How one types them, for any sources SRC and folder DIR.
    fn typed(&self) -> String;
}

/// cp, in one of its ways.
struct Cp {
    name: &'static str,
    options: &'static [&'static str],
}

/// Reading and writing alone, as the methods beside it; and as people type it, when it may share
/// extents or have the file system copy (FICLONE, copy_file_range).
const CPS: [Cp; 2] = [
    Cp {
        name: "cp",
        options: &["--reflink=never"],
    },
    Cp {
        name: "cp by default",
        options: &[],
    },
];

impl Program for Cp {
    fn words(&self, sources: &[String], to: &str) -> Vec<String> {
        let options = self.options.iter().map(|&option| option.to_owned());
        let words = ["cp".to_owned()].into_iter().chain(options);
        let words = words.chain(sources.iter().cloned());
        words.chain([to.to_owned()]).collect()
    }

    fn typed(&self) -> String {
        self.words(&["SRC...".to_owned()], "DIR").join(" ")
    }
}

/// A line for the `.copy` of the folder.
struct Control;

impl Control {
    /// Without extents that are shared, as cp beside it.
    fn line(names: &str) -> String {
        format!("--reflink=never {names} .")
    }
}

impl Program for Control {
    fn words(&self, sources: &[String], to: &str) -> Vec<String> {
        let script = "printf '%s\\n' \"$1\" >\"$2/.copy\"";
        let names: Vec<String> = sources.iter().map(|source| relative(source, to)).collect();
        let line = Self::line(&names.join(" "));
        ["sh", "-c", script, "sh", &line, to]
            .map(str::to_owned)
            .to_vec()
    }

    fn typed(&self) -> String {
        format!("printf '%s\\n' '{}' >DIR/.copy", Self::line("../SRC..."))
    }
}

/// A source as the folder of the copy names it: both lie next to each other in the root.
fn relative(source: &str, to: &str) -> String {
    let root = Path::new(to).parent().unwrap_or(Path::new("/"));
    let below = Path::new(source)
        .strip_prefix(root)
        .unwrap_or(Path::new(source));
    let name = Path::new("..").join(below);
    quote(name.to_string_lossy().as_bytes())
}

fn sources(planner: &Planner<'_>, place: usize, size: u64) -> Vec<PathBuf> {
    let folder = planner.places[place].root().join(folder_of(size));
    let name = |number| folder.join(format!("f{number}"));
    (0..files_of(planner, size)).map(name).collect()
}

fn engine(
    planner: &mut Planner<'_>,
    work: &Work,
    method: Method,
    more: &[String],
    sweep: Option<Sweep>,
) {
    let reflink = match method {
        Method::Reflink => "--reflink=always",
        _ => "--reflink=never",
    };
    let mut words = vec![format!("--method={}", method.name()), reflink.to_owned()];
    words.extend_from_slice(more);
    engine_with(planner, work, method.name(), words, sweep);
}

fn engine_with(
    planner: &mut Planner<'_>,
    work: &Work,
    subject: &str,
    words: Vec<String>,
    sweep: Option<Sweep>,
) {
    let sources = sources(planner, 0, work.size);
    let command = format!("corfs copy {} SRC... DIR", words.join(" "));
    let probe = move |to: &Path| Probe::Copy {
        words: words.clone(),
        sources: sources.clone(),
        to: to.to_owned(),
    };
    add(planner, work, subject, command, sweep, 0, Box::new(probe));
}

fn command(
    planner: &mut Planner<'_>,
    work: &Work,
    subject: &str,
    sweep: Option<Sweep>,
    place: usize,
    program: &dyn Program,
) {
    let sources: Vec<String> = sources(planner, place, work.size)
        .iter()
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    // The folder of each run has another name, of which nothing else depends.
    let root = planner.places[place].root().to_string_lossy().into_owned();
    let pattern = format!("{root}/@@");
    let template = program.words(&sources, &pattern);
    let typed = match place {
        0 => program.typed(),
        _ => format!("{}; {}", planner.places[place].command(), program.typed()),
    };
    let probe = move |to: &Path| {
        let to = to.to_string_lossy();
        let word = |word: &String| word.replace(&pattern, &to);
        Probe::Command {
            words: template.iter().map(word).collect(),
        }
    };
    add(planner, work, subject, typed, sweep, place, Box::new(probe));
}

fn add(
    planner: &mut Planner<'_>,
    work: &Work,
    subject: &str,
    command: String,
    sweep: Option<Sweep>,
    place: usize,
    probe: Box<dyn Fn(&Path) -> Probe>,
) {
    let bytes = work.size * files_of(planner, work.size);
    planner.add(Entry {
        work: work.name.clone(),
        subject: subject.into(),
        baseline: subject == BASELINE.name(),
        amount: bytes as f64,
        unit: Unit::Bytes,
        sweep,
        command,
        ours: subject == "auto" || planner.places[place].is_corfs(),
        place,
        state: work.state,
        reads: &[&folder_of(work.size)],
        folder: Some(0),
        fills: bytes,
        probe,
    });
}
