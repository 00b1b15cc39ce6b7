//! What is measured: the works of each experiment, and who does them.

mod copies;
mod faults;
mod metadata;
mod reads;

pub(super) use faults::{SMALL, WHOLE};

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::live::{State, Task};
use super::outcome::{About, Series, Sweep, Unit};
use super::place::Place;
use super::probe::Probe;
use super::progress::Stop;
use super::stage::{Kind, Subject};
use super::{Experiment, Failure, Measure};

/// How the name of a work begins that finds caches cold, where the same is done with warm ones too.
pub(super) const COLD: &str = "cold: ";

/// The works, and what measures each; one for one.
pub(super) struct Plan {
    pub(super) series: Vec<Series>,
    pub(super) tasks: Vec<Task>,
}

/// Who is measured: the directory first, then corfs in its modes, then others.
///
/// # Errors
/// When two have the same name: their samples could not be told apart.
pub(super) fn subjects(asked: &Measure, privileged: bool) -> Result<Vec<Subject>, Failure> {
    let all = everybody(asked, privileged);
    for (at, one) in all.iter().enumerate() {
        if all[..at].iter().any(|other| other.name == one.name) {
            return Err(Failure(format!(
                "two of those to be measured are called '{}' (directories, --corfs, --peer, and the \
                 mounts of --windows and --budgets have names); give each its own with NAME=",
                one.name
            )));
        }
    }
    Ok(all)
}

fn everybody(asked: &Measure, privileged: bool) -> Vec<Subject> {
    let subject = |name: &str, kind| Subject {
        name: name.into(),
        kind,
    };
    let mut all = vec![subject(asked.directory_name(), Kind::Native)];
    for (name, path) in asked.directories.iter().skip(1) {
        let shown = path.display().to_string();
        let name = name.as_deref().unwrap_or(&shown);
        all.push(subject(name, Kind::Elsewhere(path.clone())));
    }
    if asked.experiment == Experiment::Fault {
        return all;
    }
    let defaults = defaults(asked.experiment, privileged);
    let corfs: Vec<(String, String)> = match (&asked.corfs[..], asked.no_corfs) {
        (_, true) => Vec::new(),
        ([], false) => defaults
            .iter()
            .map(|(n, o)| (n.to_string(), o.to_string()))
            .collect(),
        (given, false) => given.to_vec(),
    };
    for (name, options) in corfs {
        all.push(subject(&name, Kind::Corfs(options)));
    }
    for (name, command) in &asked.peers {
        all.push(subject(name, Kind::Peer(command.clone())));
    }
    if asked.experiment == Experiment::Read && !asked.no_corfs {
        all.extend(reads::swept(asked));
    }
    all
}

/// The modes of corfs that are measured unless others are named.
fn defaults(experiment: Experiment, privileged: bool) -> Vec<(&'static str, &'static str)> {
    match experiment {
        Experiment::Copy => vec![("corfs", "io=mmap")],
        Experiment::Read => {
            let mut modes = vec![
                ("io=mmap", "io=mmap"),
                ("io=pread", "io=pread"),
                // Files that the bench has just made do not change any more.
                ("cached", "cache={CACHE},racy=0"),
            ];
            if privileged {
                modes.push(("passthrough", "passthrough=always"));
            }
            modes
        }
        Experiment::Meta => vec![
            ("coherence=ttl", "io=mmap"),
            ("coherence=watch", "coherence=watch"),
        ],
        Experiment::Fault => Vec::new(),
    }
}

/// The plan of what is asked for, with the files that it needs.
pub(super) fn plan(asked: &Measure, places: &[Place], stop: &Stop) -> Result<Plan, Failure> {
    let mut planner = Planner {
        asked,
        places,
        stop,
        plan: Plan {
            series: Vec::new(),
            tasks: Vec::new(),
        },
    };
    match asked.experiment {
        Experiment::Copy => copies::plan(&mut planner)?,
        Experiment::Read => reads::plan(&mut planner)?,
        Experiment::Meta => metadata::plan(&mut planner)?,
        Experiment::Fault => faults::plan(&mut planner)?,
    }
    if planner.plan.series.is_empty() {
        return Err(Failure("--only leaves nothing to measure".into()));
    }
    Ok(planner.plan)
}

/// Where the plan grows.
struct Planner<'a> {
    asked: &'a Measure,
    places: &'a [Place],
    stop: &'a Stop,
    plan: Plan,
}

/// One series to be.
struct Entry<'a> {
    work: String,
    subject: String,
    baseline: bool,
    amount: f64,
    unit: Unit,
    sweep: Option<Sweep>,
    /// What does it, in words that can be typed.
    command: String,
    /// Whether it is corfs, as one gets it without choosing a method.
    ours: bool,
    place: usize,
    state: State,
    reads: &'a [&'a str],
    folder: Option<u64>,
    fills: u64,
    probe: Box<dyn Fn(&Path) -> Probe>,
}

impl Planner<'_> {
    /// Whether a work of this name is asked for.
    fn wanted(&self, work: &str) -> bool {
        let only = &self.asked.only;
        only.is_empty() || only.iter().any(|word| work.contains(word.as_str()))
    }

    fn add(&mut self, entry: Entry<'_>) {
        if !self.wanted(&entry.work) {
            return;
        }
        self.plan.series.push(Series::new(About {
            work: entry.work,
            subject: entry.subject,
            baseline: entry.baseline,
            amount: entry.amount,
            unit: entry.unit,
            sweep: entry.sweep,
            command: entry.command,
            ours: Some(entry.ours),
        }));
        self.plan.tasks.push(Task {
            place: entry.place,
            state: entry.state,
            reads: entry.reads.iter().map(PathBuf::from).collect(),
            folder: entry.folder,
            fills: entry.fills,
            probe: entry.probe,
        });
    }

    /// The sources that need files: that of the first place, and those of places elsewhere.
    fn sources(&self) -> Vec<PathBuf> {
        let own = |(number, place): &(usize, &Place)| *number == 0 || place.is_elsewhere();
        let all = self.places.iter().enumerate().filter(own);
        all.map(|(_, place)| place.source().to_owned()).collect()
    }

    /// Makes a file in each source.
    fn make_file(&self, name: &str, size: u64) -> Result<(), Failure> {
        self.sources()
            .iter()
            .try_for_each(|source| fill(&source.join(name), size, self.stop))
    }

    /// Makes a folder of `count` files of `size` bytes, `per` of them in each folder below; all in
    /// the folder itself for `per` 0.
    fn make_files(&self, name: &str, count: u64, size: u64, per: u64) -> Result<(), Failure> {
        for source in self.sources() {
            let folder = source.join(name);
            let failed = |e: std::io::Error| Failure(format!("make {}: {e}", folder.display()));
            fs::create_dir(&folder).map_err(failed)?;
            for number in 0..count {
                let parent = match number.checked_div(per) {
                    Some(branch) => folder.join(format!("d{branch}")),
                    None => folder.clone(),
                };
                if per > 0 && number % per == 0 {
                    fs::create_dir(&parent).map_err(failed)?;
                }
                fill(&parent.join(format!("f{number}")), size, self.stop)?;
            }
        }
        Ok(())
    }
}

/// A file of bytes that no file system can compress or leave out, on disk.
fn fill(path: &Path, size: u64, stop: &Stop) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure(format!("make {}: {e}", path.display()));
    let mut random = fastrand::Rng::with_seed(size);
    let mut file = fs::File::create_new(path).map_err(failed)?;
    let mut block = vec![0u8; (size as usize).min(1 << 20)];
    let mut left = size;
    while left > 0 {
        stop.check()?;
        let part = (left as usize).min(block.len());
        random.fill(&mut block[..part]);
        file.write_all(&block[..part]).map_err(failed)?;
        left -= part as u64;
    }
    if size > 1 << 20 {
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// A size as people write it: `64 KiB`.
pub(super) fn shown(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut number = bytes;
    while number >= 1024 && number.is_multiple_of(1024) && unit + 1 < units.len() {
        number /= 1024;
        unit += 1;
    }
    format!("{number} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Measure {
        Measure {
            experiment: Experiment::Read,
            directories: vec![(None, "/d".into())],
            corfs: Vec::new(),
            no_corfs: false,
            peers: Vec::new(),
            rounds: 1,
            warmups: 0,
            seed: None,
            size: 1 << 20,
            sizes: Vec::new(),
            files: 1,
            readers: Vec::new(),
            windows: vec![4 << 20],
            budgets: vec![16 << 20],
            chunks: Vec::new(),
            workers: Vec::new(),
            cold: false,
            only: Vec::new(),
            no_look: true,
            limit: std::time::Duration::from_secs(600),
            files_out: super::super::Files::default(),
            command: String::new(),
        }
    }

    #[test]
    fn without_corfs_there_is_no_mount_of_it_in_sweeps_either() {
        let mut asked = reading();
        let mounts = |asked: &Measure| {
            let all = subjects(asked, true).unwrap();
            let of = |subject: &&Subject| matches!(subject.kind, Kind::Corfs(_));
            all.iter().filter(of).count()
        };
        assert_eq!(mounts(&asked), 6);
        asked.no_corfs = true;
        assert_eq!(mounts(&asked), 0);
    }

    #[test]
    fn a_name_stands_for_one() {
        let refused = |change: &dyn Fn(&mut Measure)| {
            let mut asked = reading();
            change(&mut asked);
            subjects(&asked, true).unwrap_err().0
        };
        let peer = |name: &str| (name.to_owned(), "x {SRC} {MNT}".to_owned());
        for name in ["native", "io=mmap", "window 4 MiB", "budget 16 MiB"] {
            let said = refused(&|asked| asked.peers.push(peer(name)));
            assert!(said.contains(&format!("called '{name}'")), "{said}");
        }
        let twice = |asked: &mut Measure| {
            asked
                .directories
                .extend([(None, "/e".into()), (None, "/e".into())])
        };
        assert!(refused(&twice).contains("'/e'"));
    }

    #[test]
    fn who_is_stopped_makes_no_more_files() {
        let folder = tempfile::tempdir().unwrap();
        let (path, stop) = (folder.path().join("big"), Stop::default());
        fill(&path, 3 << 20, &stop).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 20);
        stop.ask();
        let path = folder.path().join("bigger");
        let said = fill(&path, 1 << 40, &stop).unwrap_err().0;
        assert!(said.contains("stopped"), "{said}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
