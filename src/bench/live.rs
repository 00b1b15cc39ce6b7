//! The runner that really measures: it prepares caches and memory, and starts a process for each
//! piece of work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::conduct::Runner;
use super::outcome::{Memory, Sample};
use super::place::{self, Place, Stage, below};
use super::probe::Probe;

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
    /// Mounted just now, and the kernel has dropped all its caches.
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

/// Those who are measured, and their works. What is mounted goes before what it shows.
pub(super) struct Live {
    places: Vec<Place>,
    home: Stage,
    tasks: Vec<Task>,
    folders: u64,
    looks_at_memory: bool,
    /// System calls of a process that does nothing; `None` when none are counted.
    idle_calls: Option<u64>,
}

impl Live {
    pub(super) fn new(home: Stage, places: Vec<Place>, tasks: Vec<Task>) -> Self {
        Self {
            places,
            home,
            tasks,
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
        self.idle_calls = Some(self.traced(&Probe::Nothing)?);
        Ok(())
    }

    /// Puts caches and memory into the state that the task wants, and makes its folder.
    fn prepare(&mut self, at: usize) -> Result<Option<Folder>, String> {
        let task = &self.tasks[at];
        let place = &mut self.places[task.place];
        place.is_there()?;
        let folder = match task.folder {
            Some(files) => {
                self.folders += 1;
                Some(Folder::new(place, self.folders, files)?)
            }
            None => None,
        };
        if task.state.is_fresh() {
            place.remount()?;
        }
        ready_pages(place, task);
        place::ready_memory(task.fills);
        if task.state == State::Cold {
            place::drop_caches();
            // The program itself is not to be read from the disk while it is measured.
            finish(start(&Probe::Nothing)?)?;
        }
        Ok(folder)
    }

    /// Runs the task once, with `run` for its probe.
    fn once<T>(
        &mut self,
        at: usize,
        run: impl FnOnce(&Self, &Probe) -> Result<T, String>,
    ) -> Result<T, String> {
        let folder = self.prepare(at)?;
        let task = &self.tasks[at];
        let none = Path::new("");
        let seen = folder.as_ref().map_or(none, |folder| folder.seen.as_path());
        let probe = (task.probe)(seen);
        if matches!(task.state, State::Again | State::Later) {
            finish(start(&probe)?)?;
        }
        if task.state == State::Later {
            std::thread::sleep(LATER);
        }
        run(self, &probe)
    }

    /// Under strace, which counts.
    fn traced(&self, probe: &Probe) -> Result<u64, String> {
        let report = self.home.source().with_file_name("strace");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-q", "-c", "-U", "calls,name", "-o"])
            .arg(&report);
        command.arg("--");
        let traced = spawn(command, probe).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "strace is not installed".to_owned(),
            _ => format!("strace: {error}"),
        })?;
        finish(traced)?;
        let text = fs::read_to_string(&report).map_err(|error| format!("strace: {error}"))?;
        total(&text).ok_or_else(|| "strace has another form of report".to_owned())
    }
}

impl Runner for Live {
    fn measure(&mut self, at: usize) -> Result<Sample, String> {
        self.once(at, |_, probe| finish(start(probe)?))
    }

    fn memory(&mut self, at: usize) -> Option<Memory> {
        if !self.looks_at_memory {
            return None;
        }
        let found = self.once(at, |live, probe| {
            let child = start(probe)?;
            let place = &live.places[live.tasks[at].place];
            let (whose, pid) = match place.server() {
                Some(server) => ("the daemon", server),
                None => ("the process", child.id()),
            };
            watch(child, pid, whose)
        });
        // What has ended before it was looked at once has shown nothing.
        found
            .ok()
            .filter(|memory| memory.anonymous + memory.file > 0)
    }

    fn calls(&mut self, at: usize) -> Option<u64> {
        let idle = self.idle_calls?;
        let counted = self.once(at, |live, probe| live.traced(probe));
        Some(counted.ok()?.saturating_sub(idle))
    }
}

/// Has the pages of what the task reads where its state wants them.
fn ready_pages(place: &Place, task: &Task) {
    place::write_out(place.source());
    for name in &task.reads {
        // A new mount holds no pages, and who goes through it to drop them has it know all names.
        if !place.is_plain() && !task.state.is_fresh() {
            below(&place.root().join(name), &mut |path| {
                place::drop_pages(path)
            });
        }
        below(&place.source().join(name), &mut |path| ready(task, path));
    }
    if !task.reads.is_empty() {
        // What is read from there instead.
        below(&place.cache(), &mut |path| ready(task, path));
    }
}

/// Has the pages of one file in the page cache, or not.
fn ready(task: &Task, path: &Path) {
    match task.state {
        State::Cold => place::drop_pages(path),
        // What can't be read is told of by the work itself.
        _ => drop(place::warm(path)),
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

fn start(probe: &Probe) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| format!("find corfs: {error}"))?;
    spawn(Command::new(program), probe).map_err(|error| format!("start corfs: {error}"))
}

/// Starts a probe; `command` is corfs, or what runs it.
fn spawn(mut command: Command, probe: &Probe) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    if command.get_program() != program.as_os_str() {
        command.arg(&program);
    }
    let json = serde_json::to_string(probe)?;
    command
        .args(["bench", "probe", &json])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for a probe and reads what it found.
fn finish(child: Child) -> Result<Sample, String> {
    let output = child
        .wait_with_output()
        .map_err(|error| format!("wait for the work: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("corfs: ");
        return Err(if said.is_empty() {
            format!("the work ended with {}", output.status)
        } else {
            said.to_owned()
        });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the work said: {error}"))
}

/// The most memory that a process, with its children, has while the work is done.
fn watch(mut child: Child, pid: u32, whose: &str) -> Result<Memory, String> {
    let mut most = Memory {
        whose: whose.into(),
        ..Memory::default()
    };
    loop {
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        let (anonymous, file) = resident(pid);
        most.anonymous = most.anonymous.max(anonymous);
        most.file = most.file.max(file);
        match ended {
            Some(status) if status.success() => return Ok(most),
            Some(status) => return Err(status.to_string()),
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

    #[test]
    fn the_total_of_straces_report_is_found() {
        let report = "    calls syscall\n--------- ----------------\n        5 read\n        \
                      3 total_odd\n--------- ----------------\n        8 total\n";
        assert_eq!(total(report), Some(8));
        assert_eq!(total("nothing"), None);
    }

    #[test]
    fn our_own_memory_is_seen() {
        let block = std::hint::black_box(vec![1u8; 16 << 20]);
        assert!(resident(std::process::id()).0 > block.len() as u64);
        assert_eq!(resident(u32::MAX), (0, 0));
    }
}
