//! What was measured: the file of a run, as JSON (all of it) and as CSV (a line a sample).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Failure;

/// The layout of the file; raised when an older program would misread a newer one.
pub(crate) const VERSION: u32 = 1;

/// What an amount of work is counted in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Bytes,
    Operations,
}

/// Where something stands in a sweep: those of one `name` are drawn together.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Sweep {
    /// What is asked, in words.
    pub(crate) name: String,
    /// To which line of the plot it belongs.
    pub(crate) line: String,
    /// What is swept: `size`, `chunk`, ...
    pub(crate) axis: String,
    /// Bytes; of `workers`, a number.
    pub(crate) value: f64,
}

/// What one series of samples is of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct About {
    /// The work, the same for all that are compared with each other.
    pub(crate) work: String,
    /// Who does it.
    pub(crate) subject: String,
    /// The one that the others of its work are compared with.
    pub(crate) baseline: bool,
    /// How much one sample does.
    pub(crate) amount: f64,
    pub(crate) unit: Unit,
    pub(crate) sweep: Option<Sweep>,
    /// What does it, exactly; of files and folders that differ from run to run, SRC and DIR.
    pub(crate) command: String,
    /// Whether it is corfs, by the ways that one gets without choosing a method; `None` in a file
    /// that is older than this mark.
    #[serde(default)]
    pub(crate) ours: Option<bool>,
}

/// What one run of the work cost, its process with all its threads.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// The measured round, from 0.
    pub(crate) round: usize,
    /// Elapsed, user and system time in seconds.
    pub(crate) seconds: f64,
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Page faults without and with I/O.
    pub(crate) minor: u64,
    pub(crate) major: u64,
    /// Context switches: it waited; it was made to.
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
}

/// The most memory that was seen resident, in bytes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Whose.
    pub(crate) whose: String,
    /// Heap and stacks.
    pub(crate) anonymous: u64,
    /// Mapped files.
    pub(crate) file: u64,
}

/// All samples of one kind.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Series {
    #[serde(flatten)]
    pub(crate) about: About,
    pub(crate) samples: Vec<Sample>,
    /// Why there are no (more) samples.
    pub(crate) failed: Option<String>,
    /// Of a run of its own, for looking costs time.
    pub(crate) memory: Option<Memory>,
    /// System calls of the process, of a run of its own.
    pub(crate) calls: Option<u64>,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// Bytes.
    pub(crate) memory: u64,
    /// Of the (first) directory: kind, device, options of its mount.
    pub(crate) file_system: String,
    /// One minute's load before the first round and after the last.
    pub(crate) load: [f64; 2],
    pub(crate) corfs: String,
}

/// A whole run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Run {
    pub(crate) version: u32,
    /// `copy`, `read`, `meta` or `fault`.
    pub(crate) experiment: String,
    /// Seconds since 1970.
    pub(crate) began: u64,
    pub(crate) machine: Machine,
    /// The words of the command.
    pub(crate) command: String,
    pub(crate) rounds: usize,
    pub(crate) warmups: usize,
    pub(crate) seed: u64,
    /// What was done to caches and memory before each run, in words.
    pub(crate) state: String,
    /// Why nothing was counted or sampled, and what else one should know.
    pub(crate) notes: Vec<String>,
    /// Set at the end: no round is missing.
    pub(crate) complete: bool,
    pub(crate) series: Vec<Series>,
}

impl Series {
    /// Whether it is corfs.
    pub(crate) fn is_ours(&self) -> bool {
        let about = &self.about;
        let by_words = || match about.command.strip_prefix("corfs ") {
            Some(words) if words.starts_with("copy ") => about.subject == "auto",
            other => other.is_some(),
        };
        about.ours.unwrap_or_else(by_words)
    }

    pub(crate) fn new(about: About) -> Self {
        Self {
            about,
            samples: Vec::new(),
            failed: None,
            memory: None,
            calls: None,
        }
    }

    /// How much is done a second, of each sample.
    pub(crate) fn rates(&self) -> Vec<f64> {
        let rate = |sample: &Sample| self.about.amount / sample.seconds.max(1e-9);
        self.samples.iter().map(rate).collect()
    }
}

impl Run {
    /// The works, in the order in which they were planned.
    pub(crate) fn works(&self) -> Vec<&str> {
        let mut works: Vec<&str> = Vec::new();
        for series in &self.series {
            if !works.contains(&series.about.work.as_str()) {
                works.push(&series.about.work);
            }
        }
        works
    }

    /// Who did a work.
    pub(crate) fn of_work<'a>(&'a self, work: &'a str) -> impl Iterator<Item = &'a Series> {
        let of = move |series: &&Series| series.about.work == work;
        self.series.iter().filter(of)
    }

    /// The one that the others of a work are compared with.
    pub(crate) fn baseline(&self, work: &str) -> Option<&Series> {
        let baselines = self.series.iter().filter(|series| series.about.baseline);
        baselines.into_iter().find(|s| s.about.work == work)
    }

    /// The series of a work and subject.
    pub(crate) fn find(&self, work: &str, subject: &str) -> Option<&Series> {
        let is = |s: &&Series| s.about.work == work && s.about.subject == subject;
        self.series.iter().find(is)
    }

    /// Reads the file of a run.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = fs::read_to_string(path).map_err(|e| Failure(format!("read {shown}: {e}")))?;
        let run: Self = serde_json::from_str(&text)
            .map_err(|error| Failure(format!("{shown} is no run of corfs bench: {error}")))?;
        if run.version != VERSION {
            return Err(Failure(format!(
                "{shown} has layout {}, this program reads {VERSION}",
                run.version
            )));
        }
        Ok(run)
    }

    pub(crate) fn json(&self) -> String {
        // Numbers, strings and lists always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    pub(crate) fn csv(&self) -> String {
        let mut out = String::from(
            "work,subject,unit,amount,round,seconds,user,system,minor_faults,major_faults,\
             voluntary_switches,involuntary_switches,system_calls,peak_anonymous_bytes,\
             peak_file_bytes\n",
        );
        for series in &self.series {
            for sample in &series.samples {
                out.push_str(&line(series, sample));
            }
        }
        out
    }
}

/// One line of CSV (RFC 4180).
fn line(series: &Series, sample: &Sample) -> String {
    let about = &series.about;
    let unit = match about.unit {
        Unit::Bytes => "bytes",
        Unit::Operations => "operations",
    };
    let known = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
    let memory = series.memory.as_ref();
    let fields = [
        quoted(&about.work),
        quoted(&about.subject),
        unit.to_owned(),
        about.amount.to_string(),
        sample.round.to_string(),
        sample.seconds.to_string(),
        sample.user.to_string(),
        sample.system.to_string(),
        sample.minor.to_string(),
        sample.major.to_string(),
        sample.voluntary.to_string(),
        sample.involuntary.to_string(),
        known(series.calls),
        known(memory.map(|m| m.anonymous)),
        known(memory.map(|m| m.file)),
    ];
    fields.join(",") + "\n"
}

fn quoted(field: &str) -> String {
    format!("\"{}\"", field.replace('"', "\"\""))
}

/// Writes a file whole or not at all, so that one who stops us keeps the round before.
pub(crate) fn save(path: &Path, text: &str) -> Result<(), Failure> {
    let beside = beside(path);
    write_new(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| unwritten(path, &error))
}

/// Writes a file that was not there, whole; nothing is left of one that can't be written.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    let written = file.write_all(text.as_bytes());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Whether [`save`] can be believed to work; what stands there stays as it is.
pub(crate) fn can_save(path: &Path) -> Result<(), Failure> {
    // A rename would put a file in the place of a device.
    if fs::metadata(path).is_ok_and(|stat| !stat.is_file()) {
        return Err(unwritten(path, &"it is no regular file"));
    }
    let beside = beside(path);
    write_new(&beside, "")
        .and_then(|()| fs::remove_file(&beside))
        .map_err(|error| unwritten(path, &error))
}

/// A name of this process's alone: what stands beside a run may be somebody's.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    beside.into()
}

fn unwritten(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure(format!("write {}: {why}", path.display()))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A series with these times, in seconds, and an amount of 1.
    pub(crate) fn series(work: &str, subject: &str, baseline: bool, seconds: &[f64]) -> Series {
        let mut series = Series::new(About {
            work: work.into(),
            subject: subject.into(),
            baseline,
            amount: 1.0,
            unit: Unit::Operations,
            sweep: None,
            command: format!("do {work} as {subject}"),
            ours: Some(false),
        });
        let sample = |(round, &seconds): (usize, &f64)| Sample {
            round,
            seconds,
            ..Sample::default()
        };
        series.samples = seconds.iter().enumerate().map(sample).collect();
        series
    }

    pub(crate) fn run(series: Vec<Series>) -> Run {
        Run {
            version: VERSION,
            experiment: "mock".into(),
            began: 0,
            machine: Machine::default(),
            command: "corfs bench mock".into(),
            rounds: 3,
            warmups: 1,
            seed: 7,
            state: "warm".into(),
            notes: Vec::new(),
            complete: true,
            series,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{run, series};
    use super::*;

    #[test]
    fn a_run_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let mut run = run(vec![series("a", "native", true, &[0.1, 0.2])]);
        run.series[0].memory = Some(Memory {
            whose: "the process".into(),
            anonymous: 1,
            file: 2,
        });
        save(&path, &run.json()).unwrap();
        assert_eq!(Run::read(&path).unwrap(), run);
        run.version += 1;
        save(&path, &run.json()).unwrap();
        assert!(Run::read(&path).unwrap_err().0.contains("has layout 2"));
        save(&path, "{}").unwrap();
        assert!(Run::read(&path).unwrap_err().0.contains("no run"));
    }

    /// Before the mark, commands told.
    #[test]
    fn whose_is_not_told_in_an_old_file_is_guessed() {
        let whose = |subject: &str, command: &str| {
            let mut one = series("w", subject, false, &[]);
            one.about.command = command.into();
            let mut json = serde_json::to_value(&one).unwrap();
            assert_eq!(
                json.as_object_mut().unwrap().remove("ours"),
                Some(false.into())
            );
            serde_json::from_value::<Series>(json).unwrap().is_ours()
        };
        assert!(whose("io=mmap", "corfs -f -o io=mmap a b"));
        assert!(whose("auto", "corfs copy --reflink=never SRC... DIR"));
        assert!(!whose("map-map", "corfs copy --method=map-map SRC... DIR"));
        assert!(!whose("bindfs", "bindfs -f a b"));
    }

    #[test]
    fn where_nothing_can_be_saved_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        can_save(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let part = folder.path().join("run.json.part");
        for path in [&path, &part] {
            fs::write(path, "old").unwrap();
        }
        can_save(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        save(&path, "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read(&part).unwrap(), b"old", "it is another's");
        let refused = |path: &Path| can_save(path).unwrap_err().0;
        assert!(refused(Path::new("/nonexistent/run.json")).contains("No such file"));
        assert!(refused(folder.path()).contains("no regular file"));
        assert!(refused(Path::new("/dev/null")).contains("no regular file"));
    }

    #[test]
    fn csv_has_a_line_a_sample_and_quotes_what_it_must() {
        let run = run(vec![series("a, \"b\"", "native", true, &[0.5, 0.25])]);
        let text = run.csv();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].split(',').count(), 15);
        assert_eq!(
            lines[2],
            "\"a, \"\"b\"\"\",\"native\",operations,1,1,0.25,0,0,0,0,0,0,,,"
        );
    }
}
