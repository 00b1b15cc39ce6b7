//! The runner that really measures: it prepares caches and memory, and starts a process for each
//! piece of work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::child::{self, Trouble, Wait};
use super::conduct::Runner;
use super::outcome::{Memory, Sample};
use super::pages::{self, below};
use super::place::Place;
use super::probe::{Chore, Probe};
use super::progress::Stop;
use super::stage::Stage;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// How long `coherence=ttl` trusts what it was told, and a second more.
const LATER: Duration = Duration::from_secs(2);

/// What was done to caches just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The source's pages are in the page cache, those of the mount are not.
    Warm,
    /// The same, and what is mounted was mounted just now.
    Fresh,
    /// The same work was done just before.
    Again,
    /// The same work was done two seconds before.
    Later,
    /// Mounted just now, as the only one, and the kernel has dropped all its caches.
    Cold,
}

impl State {
    /// What is mounted is mounted anew before.
    fn is_fresh(self) -> bool {
        matches!(self, Self::Fresh | Self::Cold)
    }
}

/// A piece of work, and what it needs.
pub(super) struct Task {
    /// Its place, by number.
    pub(super) place: usize,
    pub(super) state: State,
    /// What it reads, by names below the source.
    pub(super) reads: Vec<PathBuf>,
    /// It gets an empty folder, with so many empty files `f0` and up in it.
    pub(super) folder: Option<u64>,
    /// Bytes of memory that it will fill.
    pub(super) fills: u64,
    /// What to do, given the folder.
    pub(super) probe: Box<dyn Fn(&Path) -> Probe>,
}

impl Task {
    /// What is mounted is mounted anew before: the work is to find it so, or has a folder that was
    /// made beneath it, which some file systems would not see.
    fn is_mounted_anew(&self) -> bool {
        self.state.is_fresh() || self.folder.is_some()
    }
}

/// Those who are measured, and their works. What is mounted goes before what it shows.
pub(super) struct Live {
    places: Vec<Place>,
    home: Stage,
    tasks: Vec<Task>,
    /// How long a work may take, and each process that prepares it.
    limit: Duration,
    stop: Stop,
    /// Who was killed and has not ended, and where.
    stuck: Vec<(usize, Child)>,
    folders: u64,
    looks_at_memory: bool,
    /// System calls of a process that does nothing; `None` when none are counted.
    idle_calls: Option<u64>,
}

impl Live {
    pub(super) fn new(
        home: Stage,
        places: Vec<Place>,
        tasks: Vec<Task>,
        limit: Duration,
        stop: &Stop,
    ) -> Self {
        Self {
            places,
            home,
            tasks,
            limit,
            stop: stop.clone(),
            stuck: Vec::new(),
            folders: 0,
            looks_at_memory: false,
            idle_calls: None,
        }
    }

    /// Has memory sampled, too.
    pub(super) fn look_at_memory(&mut self) {
        self.looks_at_memory = true;
    }

    /// Has system calls counted, too; else why they can't be.
    pub(super) fn count_calls(&mut self) -> Result<(), String> {
        let counted = self.traced(&Probe::Nothing, &self.wait());
        self.idle_calls = Some(counted.map_err(Trouble::words)?);
        Ok(())
    }

    fn wait(&self) -> Wait {
        Wait::within(self.limit, &self.stop)
    }

    /// Puts caches and memory into the state that the task wants, and makes its folder.
    fn prepare(&mut self, at: usize) -> Result<Option<Folder>, Trouble> {
        let task = &self.tasks[at];
        let there = self.places[task.place].is_there();
        there.map_err(Trouble::Failed)?;
        if task.state == State::Cold {
            rest_beside(&mut self.places, task.place).map_err(Trouble::Failed)?;
        }
        let place = &mut self.places[task.place];
        let folder = match task.folder {
            Some(files) => {
                self.folders += 1;
                Some(Folder::new(place, self.folders, files).map_err(Trouble::Failed)?)
            }
            None => None,
        };
        let mounted = match task.is_mounted_anew() {
            true => place.remount(),
            false => place.wake(),
        };
        mounted.map_err(Trouble::Failed)?;
        self.ready_pages(task)?;
        pages::ready_memory(task.fills, &self.stop);
        match self.stop.asked() {
            true => Err(Trouble::stopped()),
            false => Ok(folder),
        }
    }

    /// Has the pages of what the task reads where its state wants them.
    fn ready_pages(&self, task: &Task) -> Result<(), Trouble> {
        let place = &self.places[task.place];
        pages::write_out(place.source());
        // A new mount holds no pages, and who goes through it to drop them has it know all names.
        if !place.is_plain() && !task.is_mounted_anew() && !task.reads.is_empty() {
            let all = task.reads.iter().map(|name| place.root().join(name));
            child::ask(&Probe::Chore(Chore::Drop(all.collect())), &self.wait())?;
        }
        for name in &task.reads {
            below(&place.source().join(name), &mut |path| {
                ready(task, path, &self.stop);
            });
        }
        if !task.reads.is_empty() {
            // What is read from there instead.
            below(&place.cache(), &mut |path| ready(task, path, &self.stop));
        }
        Ok(())
    }

    /// Has the kernel drop its caches, but for the programs of the work: they are not to be read
    /// from the disk while it is measured.
    fn cool(&self, probe: &Probe) -> Result<(), Trouble> {
        child::ask(&Probe::Chore(Chore::DropCaches), &self.wait())?;
        let small = self.home.source().with_file_name("small");
        fs::write(&small, "x").map_err(|error| Trouble::Failed(format!("make a file: {error}")))?;
        child::ask(&Probe::Nothing, &self.wait())?;
        match probe.small_scale(&small) {
            Some(probe) => child::ask(&probe, &self.wait()).map(drop),
            None => Ok(()),
        }
    }

    /// Runs the task once, with `run` for its probe.
    fn once<T>(
        &mut self,
        at: usize,
        run: impl FnOnce(&Self, &Probe) -> Result<T, Trouble>,
    ) -> Result<T, String> {
        let tried = self.await_stuck().and_then(|()| self.tried(at, run));
        tried.map_err(|trouble| {
            let place = self.tasks[at].place;
            self.places[place].doubt(&trouble);
            match trouble {
                Trouble::Stuck(words, child) => {
                    self.stuck.push((place, child));
                    Trouble::Late(words).words_of_limit()
                }
                other => other.words_of_limit(),
            }
        })
    }

    /// Waits for those who were killed and did not end at once: they would work beside the next.
    /// Where one takes longer than a work may, nobody works any more.
    fn await_stuck(&mut self) -> Result<(), Trouble> {
        let wait = self.wait();
        while let Some((place, child)) = self.stuck.last_mut() {
            let ended = !matches!(child.try_wait(), Ok(None));
            if !ended && self.stop.asked() {
                return Err(Trouble::stopped());
            }
            if !ended && wait.over().is_none() {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            if !ended {
                self.places[*place].leave_out("a work in it was killed, and does not end");
            }
            self.stuck.pop();
        }
        Ok(())
    }

    fn tried<T>(
        &mut self,
        at: usize,
        run: impl FnOnce(&Self, &Probe) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let folder = self.prepare(at)?;
        let task = &self.tasks[at];
        let none = Path::new("");
        let seen = folder.as_ref().map_or(none, |folder| folder.seen.as_path());
        let probe = (task.probe)(seen);
        if task.state == State::Cold {
            self.cool(&probe)?;
        }
        if matches!(task.state, State::Again | State::Later) {
            child::ask(&probe, &self.wait())?;
        }
        if task.state == State::Later {
            std::thread::sleep(LATER);
        }
        run(self, &probe)
    }

    /// Under strace, which counts.
    fn traced(&self, probe: &Probe, wait: &Wait) -> Result<u64, Trouble> {
        let failed = |error: std::io::Error| Trouble::Failed(format!("strace: {error}"));
        let report = self.home.source().with_file_name("strace");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-q", "-c", "-U", "calls,name", "-o"])
            .arg(&report);
        command.arg("--");
        let traced = child::spawn(command, probe).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Trouble::Failed("strace is not installed".into()),
            _ => failed(error),
        })?;
        child::output(traced, wait)?;
        let text = fs::read_to_string(&report).map_err(failed)?;
        let odd = || Trouble::Failed("strace has another form of report".into());
        total(&text).ok_or_else(odd)
    }
}

impl Runner for Live {
    fn measure(&mut self, at: usize) -> Result<Sample, String> {
        let found = self.once(at, |live, probe| {
            let found = sample(&child::ask(probe, &live.wait())?)?;
            Ok((found, probe.opens_files()))
        });
        let (found, opens_files) = found?;
        if opens_files {
            let place = &mut self.places[self.tasks[at].place];
            if let Err(trouble) = place.has_passed_through() {
                place.doubt(&trouble);
                return Err(trouble.words());
            }
        }
        Ok(found)
    }

    fn memory(&mut self, at: usize) -> Result<Option<Memory>, String> {
        if !self.looks_at_memory {
            return Ok(None);
        }
        let memory = self.once(at, |live, probe| {
            let place = &live.places[live.tasks[at].place];
            // To ask for it takes a while, in which the work would not be looked at.
            let server = place.server().map_err(Trouble::Failed)?;
            let child = child::start(probe)?;
            let (whose, pid) = match server {
                Some(server) => ("the daemon", server),
                None => ("the process", child.id()),
            };
            watch(child, pid, whose, &live.wait())
        })?;
        // What has ended before it was looked at once has shown nothing.
        Ok((memory.anonymous + memory.file > 0).then_some(memory))
    }

    fn calls(&mut self, at: usize) -> Result<Option<u64>, String> {
        let Some(idle) = self.idle_calls else {
            return Ok(None);
        };
        let counted = self.once(at, |live, probe| live.traced(probe, &live.wait()))?;
        Ok(Some(counted.saturating_sub(idle)))
    }
}

/// Unmounts all that show the files of this place: pages that one of them has mapped survive a drop
/// of caches, for whoever reads them then.
fn rest_beside(places: &mut [Place], at: usize) -> Result<(), String> {
    let source = places[at].source().to_owned();
    let beside = places.iter_mut().filter(|place| place.source() == source);
    beside.into_iter().try_for_each(Place::rest)
}

/// Has the pages of one file in the page cache, or not.
fn ready(task: &Task, path: &Path, stop: &Stop) {
    match task.state {
        State::Cold => pages::drop_pages(path),
        // What can't be read is told of by the work itself.
        _ => drop(pages::warm(path, stop)),
    }
}

/// The calls of all kinds together, from the report of `strace -c -U calls,name`.
fn total(report: &str) -> Option<u64> {
    let line = report
        .lines()
        .find(|line| line.trim_end().ends_with(" total"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A folder for one run, removed after it.
struct Folder {
    /// On the source's own file system.
    own: PathBuf,
    /// Where the work finds it.
    seen: PathBuf,
}

impl Folder {
    fn new(place: &Place, number: u64, files: u64) -> Result<Self, String> {
        let name = format!("work-{number}");
        let folder = Self {
            own: place.source().join(&name),
            seen: place.root().join(&name),
        };
        let failed = |error: std::io::Error| format!("make {}: {error}", folder.own.display());
        fs::create_dir(&folder.own).map_err(failed)?;
        for number in 0..files {
            fs::File::create(folder.own.join(format!("f{number}"))).map_err(failed)?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.own);
    }
}

/// What a probe found.
fn sample(said: &[u8]) -> Result<Sample, Trouble> {
    let odd = |error| Trouble::Failed(format!("the work said: {error}"));
    serde_json::from_slice(said).map_err(odd)
}

/// The most memory that a process, with its children, has while the work is done.
fn watch(mut child: Child, pid: u32, whose: &str, wait: &Wait) -> Result<Memory, Trouble> {
    let mut most = Memory {
        whose: whose.into(),
        ..Memory::default()
    };
    loop {
        let failed = |error: std::io::Error| Trouble::Failed(error.to_string());
        let ended = child.try_wait().map_err(failed)?;
        let (anonymous, file) = resident(pid);
        most.anonymous = most.anonymous.max(anonymous);
        most.file = most.file.max(file);
        match ended {
            Some(status) if status.success() => return Ok(most),
            Some(status) => return Err(Trouble::Failed(status.to_string())),
            None if wait.over().is_some() => {
                return Err(child::give_up(child, wait.over().unwrap_or_default()));
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

/// Anonymous and file memory of a process and its children, in bytes.
fn resident(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0) << 10
    };
    // Memory that is shared, as that of tmpfs files, is a file's.
    let own = (value("RssAnon:"), value("RssFile:") + value("RssShmem:"));
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.map(resident)
        .fold(own, |sum, child| (sum.0 + child.0, sum.1 + child.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stage::{Kind, Subject};

    #[test]
    fn the_total_of_straces_report_is_found() {
        let report = "    calls syscall\n--------- ----------------\n        5 read\n        \
                      3 total_odd\n--------- ----------------\n        8 total\n";
        assert_eq!(total(report), Some(8));
        assert_eq!(total("nothing"), None);
    }

    /// Somebody with one place and one process in it that was killed in vain; that ends when its
    /// standard input does.
    fn with_stuck(limit: Duration, stop: &Stop) -> (tempfile::TempDir, Live) {
        let folder = tempfile::tempdir().unwrap();
        let home = Stage::new(folder.path()).unwrap();
        let subject = Subject {
            name: "native".into(),
            kind: Kind::Native,
        };
        let place = Place::new(subject, &home, 0, limit, stop).unwrap();
        let mut live = Live::new(home, vec![place], Vec::new(), limit, stop);
        let stuck = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn();
        live.stuck.push((0, stuck.unwrap()));
        (folder, live)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn who_does_not_end_is_waited_for_before_the_next_work() {
        let (_folder, mut live) = with_stuck(LONG, &Stop::default());
        let (pid, stdin) = {
            let child = &mut live.stuck[0].1;
            (child.id(), child.stdin.take())
        };
        let ends = std::thread::spawn(move || drop(stdin));
        live.await_stuck().unwrap();
        ends.join().unwrap();
        assert!(live.stuck.is_empty());
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "it was not waited for"
        );
        live.places[0].is_there().unwrap();
    }

    #[test]
    fn who_wants_us_to_stop_does_not_wait_for_who_does_not_end() {
        let stop = Stop::default();
        let (_folder, mut live) = with_stuck(LONG, &stop);
        stop.ask();
        assert_eq!(live.await_stuck().unwrap_err().words(), "stopped");
        // Its standard input is closed first.
        live.stuck[0].1.wait().unwrap();
    }

    #[test]
    fn where_somebody_does_not_end_at_all_nobody_works_any_more() {
        let (_folder, mut live) = with_stuck(Duration::ZERO, &Stop::default());
        live.await_stuck().unwrap();
        let why = live.places[0].is_there().unwrap_err();
        assert!(why.contains("does not end"), "{why}");
    }

    #[test]
    fn our_own_memory_is_seen() {
        let block = std::hint::black_box(vec![1u8; 16 << 20]);
        assert!(resident(std::process::id()).0 > block.len() as u64);
        assert_eq!(resident(u32::MAX), (0, 0));
    }
}
