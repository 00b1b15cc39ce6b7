//! Where a work is done: a directory, a corfs mount, a peer's mount; each cleaned up when it goes.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Failure;
use super::child::{self, Trouble, Wait};
use super::probe::{Chore, Probe};
use super::progress::Stop;
use crate::copy::language::quote;
use crate::observe::text;
use crate::sys::mountinfo::{self, Mount};

/// How long a mount may take to come and to answer, and its daemon to go.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long its daemon may take to go when somebody wants us to stop, or does not answer.
const HURRY: Duration = Duration::from_secs(10);
/// How much is read or touched before one looks whether somebody wants us to stop.
const MIB: usize = 1 << 20;
/// How the names of the folders of a bench and of its mountpoints begin.
pub(super) const STAGE: &str = "corfs-bench-";
pub(super) const MOUNT: &str = "/mnt-";

/// What stands in the options of a mount for a folder that is its cache.
pub(super) const CACHE: &str = "{CACHE}";

/// One who is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// How one gets to what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The directory itself.
    Native,
    /// A corfs mount of it, with these words for `-o`, and `{CACHE}` filled in.
    Corfs(String),
    /// What this shell command mounts of it, with `{SRC}` and `{MNT}` filled in.
    Peer(String),
    /// Another directory altogether, which gets a source of its own.
    Elsewhere(PathBuf),
}

/// A folder of ours in the directory to be measured, with the source and the mountpoints; removed
/// with everything in it when it goes.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
}

impl Stage {
    pub(super) fn new(directory: &Path) -> Result<Self, Failure> {
        let directory = directory
            .canonicalize()
            .map_err(|e| Failure(format!("{}: {e}", directory.display())))?;
        if directory.to_str().is_none() {
            return Err(Failure(format!(
                "--dir {}: the name is not UTF-8, as those in the file of a run must be; measure in \
                 another folder",
                directory.display()
            )));
        }
        let pid = std::process::id();
        for number in 0.. {
            let folder = directory.join(format!("{STAGE}{pid}-{number}"));
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let stage = Self { folder };
                    make_dir(&stage.source())?;
                    return Ok(stage);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure(format!("make {}: {error}", folder.display()))),
            }
        }
        Err(Failure("no name is left".into()))
    }

    /// What is measured natively, and mirrored.
    pub(super) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // To remove what is still mounted would be to empty it, and it may show others' files.
        let gone = match has_mounts(&self.folder) {
            Ok(false) => fs::remove_dir_all(&self.folder),
            Ok(true) => Err(io::Error::other("something is still mounted in it")),
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            eprintln!("corfs: {} is left: {error}", self.folder.display());
        }
    }
}

/// Whether something is mounted at or below a folder of ours. Its device number would not tell: a
/// bind mount shows that of what it binds.
fn has_mounts(folder: &Path) -> io::Result<bool> {
    let mounts = mountinfo::read()?;
    Ok(mounts.iter().any(|m| m.mountpoint.starts_with(folder)))
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path).map_err(|e| Failure(format!("make {}: {e}", path.display())))
}

/// One who is measured, at work.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) subject: Subject,
    source: PathBuf,
    mounted: Option<Mounted>,
    stage: Option<Stage>,
    point: PathBuf,
    stop: Stop,
    /// How long a work may take.
    limit: Duration,
    /// Why it could not be mounted, or was given up: it is left out from then on.
    absent: Option<String>,
    /// How many opens this mount has passed through, when one looked last.
    passed: f64,
}

#[derive(Debug)]
struct Mounted {
    point: PathBuf,
    child: Child,
    kind: Kind,
    /// The mount was seen.
    up: bool,
    /// It does not answer.
    hung: bool,
    /// The device of what is mounted: a mount that shows the same is not that of a peer alone.
    device: (u32, u32),
    stop: Stop,
}

impl Place {
    /// `number` is no other place's. Nothing is mounted yet: some file systems never look again at
    /// what they have listed once, so that files are to be there before.
    pub(super) fn new(
        subject: Subject,
        home: &Stage,
        number: usize,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let stage = match &subject.kind {
            Kind::Elsewhere(path) => Some(Stage::new(path)?),
            _ => None,
        };
        let source = stage.as_ref().unwrap_or(home).source();
        let point = home.folder.join(format!("mnt-{number}"));
        let place = Self {
            subject,
            source,
            mounted: None,
            stage,
            point,
            stop: stop.clone(),
            limit,
            absent: None,
            passed: 0.0,
        };
        if !place.is_plain() {
            make_dir(&place.point)?;
        }
        Ok(place)
    }

    /// Fails with why it could not be mounted, or does not answer.
    pub(super) fn is_there(&self) -> Result<(), String> {
        self.absent.clone().map_or(Ok(()), Err)
    }

    /// Nothing is mounted for it.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.subject.kind, Kind::Native | Kind::Elsewhere(_))
    }

    /// It has files of its own, not those of the stage.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.stage.is_some()
    }

    /// Where its work is done.
    pub(super) fn root(&self) -> &Path {
        if self.is_plain() {
            &self.source
        } else {
            &self.point
        }
    }

    /// What it shows, on its own file system.
    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    /// The command that mounts it, as one types it.
    pub(super) fn command(&self) -> String {
        let word = |path: &Path| quote(path.as_os_str().as_bytes());
        let (source, point) = (word(&self.source), word(&self.point));
        match &self.subject.kind {
            Kind::Native | Kind::Elsewhere(_) => format!("in {source}"),
            Kind::Corfs(options) if options.is_empty() => format!("corfs -f {source} {point}"),
            Kind::Corfs(options) => {
                let options = quote(self.with_cache(options).as_bytes());
                format!("corfs -f -o {options} {source} {point}")
            }
            Kind::Peer(command) => filled(command, &self.source, &self.point),
        }
    }

    /// It is a mount of corfs.
    pub(super) fn is_corfs(&self) -> bool {
        matches!(self.subject.kind, Kind::Corfs(_))
    }

    /// A text that a mount of corfs tells of itself.
    fn told(&self, name: &str) -> Result<String, Trouble> {
        let chore = Chore::Text(self.point.join(".corfs").join(name));
        let wait = Wait::within(PATIENCE, &self.stop);
        let said = child::ask(&Probe::Chore(chore), &wait)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Fails where the options ask for passthrough, and no file has been opened in that way since
    /// one looked last: corfs serves it by itself then, and that is another's measurement.
    pub(super) fn has_passed_through(&mut self) -> Result<(), Trouble> {
        let always = |options: &str| options.split(',').any(|word| word == "passthrough=always");
        match &self.subject.kind {
            Kind::Corfs(options) if always(options) => {}
            _ => return Ok(()),
        }
        let (opens, state) = passed(&self.told("stats")?);
        if opens > std::mem::replace(&mut self.passed, opens) {
            return Ok(());
        }
        Err(Trouble::Failed(format!(
            "passthrough=always, but the kernel was handed no file of this work (passthrough is \
             {state}; it takes root, Linux 6.9 and a file system that allows it)"
        )))
    }

    /// The process whose memory is the mount's; none where nothing is mounted.
    pub(super) fn server(&self) -> Result<Option<u32>, String> {
        let Some(mounted) = &self.mounted else {
            return Ok(None);
        };
        let server = if self.is_corfs() {
            let config = self.told("config").map_err(Trouble::words)?;
            let pid = |line: &str| line.strip_prefix("server_pid=")?.parse().ok();
            config.lines().find_map(pid)
        } else if child::has_ended(&mounted.child).unwrap_or(true) {
            // It is in the background, or there is none.
            None
        } else {
            last_of_line(mounted.child.id())
        };
        let unknown = "the process that serves it is not known";
        server.map(Some).ok_or_else(|| unknown.into())
    }

    /// Unmounts and mounts anew: what the kernel and the daemon remembered is gone.
    pub(super) fn remount(&mut self) -> Result<(), String> {
        if !self.is_plain() {
            self.mounted = None;
            self.mount();
        }
        self.is_there()
    }

    /// Unmounts until somebody works here again.
    pub(super) fn rest(&mut self) -> Result<(), String> {
        self.mounted = None;
        let words = |why: &dyn std::fmt::Display| {
            format!("{} can't be unmounted before: {why}", self.subject.name)
        };
        match has_mounts(&self.point) {
            Ok(false) => Ok(()),
            Ok(true) => Err(words(&"it is still mounted")),
            Err(error) => Err(words(&error)),
        }
    }

    /// Mounts again what [rests](Self::rest).
    pub(super) fn wake(&mut self) -> Result<(), String> {
        if !self.is_plain() && self.mounted.is_none() && self.absent.is_none() {
            self.mount();
        }
        self.is_there()
    }

    /// Mounts what is to be mounted. Who does not mount is a place too, one that is not
    /// [there](Self::is_there).
    pub(super) fn mount(&mut self) {
        self.passed = 0.0;
        self.absent = self.try_mount().err();
        if self.absent.is_some() {
            // It must not come later, when nobody looks.
            self.mounted = None;
        }
    }

    fn try_mount(&mut self) -> Result<(), String> {
        let in_words = |error: io::Error| error.to_string();
        if has_mounts(&self.point).map_err(in_words)? {
            return Err("what was mounted before can't be unmounted".into());
        }
        let Some(mut command) = self.starts().map_err(in_words)? else {
            return Ok(());
        };
        let said = fs::File::create(self.log()).map_err(in_words)?;
        let device = fs::metadata(&self.source).map_err(in_words)?.dev();
        // A group of its own: Ctrl-C is for us, who then unmount.
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .process_group(0)
            .spawn()
            .map_err(in_words)?;
        self.mounted = Some(Mounted {
            point: self.point.clone(),
            child,
            kind: self.subject.kind.clone(),
            up: false,
            hung: false,
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            stop: self.stop.clone(),
        });
        self.await_mount()
    }

    /// What starts the process that mounts, where there is one.
    fn starts(&self) -> io::Result<Option<Command>> {
        Ok(match &self.subject.kind {
            Kind::Native | Kind::Elsewhere(_) => None,
            Kind::Corfs(options) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("-f").args([&self.source, &self.point]);
                if !options.is_empty() {
                    command.args(["-o", &self.with_cache(options)]);
                }
                Some(command)
            }
            Kind::Peer(words) => {
                let mut command = Command::new("sh");
                command.args(["-c", &filled(words, &self.source, &self.point)]);
                Some(command)
            }
        })
    }

    /// The words for `-o`.
    fn with_cache(&self, options: &str) -> String {
        options.replace(CACHE, &option_value(&self.cache()))
    }

    /// The folder of its cache, beside its source and its mountpoint; there is none without a cache
    /// of ours.
    pub(super) fn cache(&self) -> PathBuf {
        self.point.with_extension("cache")
    }

    /// Has the cache hold all of the source, if it has one of ours: whoever reads finds it there.
    /// Then it is mounted anew, for what is stored to be written out.
    pub(super) fn fill_cache(&mut self) -> Result<(), Failure> {
        let Kind::Corfs(options) = &self.subject.kind else {
            return Ok(());
        };
        if !options.contains(CACHE) || self.absent.is_some() {
            return Ok(());
        }
        let chore = Chore::Warm(self.point.clone());
        let wait = Wait::within(self.limit, &self.stop);
        if let Err(trouble) = child::ask(&Probe::Chore(chore), &wait) {
            self.stop.check()?;
            self.doubt(&trouble);
            self.absent = Some(format!(
                "its cache can't be filled: {}",
                trouble.words_of_limit()
            ));
            return Ok(());
        }
        if self.remount().is_ok() {
            let (held, all) = (self.held().unwrap_or(0), size(&self.source));
            self.absent = (held < all).then(|| {
                format!(
                    "its cache has {held} of {all} bytes; is there room (cache_size, cache_free)?"
                )
            });
        }
        Ok(())
    }

    /// The bytes that its cache holds.
    fn held(&self) -> Option<u64> {
        let mut command = Command::new(std::env::current_exe().ok()?);
        command
            .args(["cache", "status", "--json"])
            .arg(self.cache());
        let said = command.stdin(Stdio::null()).output().ok()?.stdout;
        let stored = |line: &[u8]| {
            let line: serde_json::Value = serde_json::from_slice(line).ok()?;
            line["stored_bytes"].as_u64()
        };
        Some(said.split(|&byte| byte == b'\n').filter_map(stored).sum())
    }

    /// Where it says why it does not mount.
    fn log(&self) -> PathBuf {
        self.point.with_extension("log")
    }

    fn await_mount(&mut self) -> Result<(), String> {
        let log = self.log();
        let wait = Wait::within(PATIENCE, &self.stop);
        let look = Probe::Chore(Chore::Look(self.point.clone()));
        while let Some(mounted) = &mut self.mounted {
            // It may be mounted before it answers.
            if has_mounts(&self.point).map_err(|error| error.to_string())? {
                match child::ask(&look, &wait) {
                    Ok(_) => {
                        mounted.up = true;
                        break;
                    }
                    Err(Trouble::Failed(_)) => {}
                    Err(Trouble::Stuck(..)) => mounted.hung = true,
                    Err(Trouble::Late(_)) => mounted.hung = !self.stop.asked(),
                }
            }
            // A peer may go to the background: its command then ends well.
            if let Ok(Some(status)) = mounted.child.try_wait()
                && !status.success()
            {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(format!("{status}; {last}"));
            }
            self.stop.check().map_err(|stopped| stopped.0)?;
            if wait.over().is_some() {
                let seconds = PATIENCE.as_secs();
                return Err(match mounted.hung {
                    true => format!("it is mounted, but did not answer within {seconds} s"),
                    false => format!("nothing was mounted within {seconds} s"),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Somebody had to be given up who worked here: it may be that nobody gets an answer any more.
    /// Then it is ended and left out, so that not each of its works waits in vain.
    pub(super) fn doubt(&mut self, trouble: &Trouble) {
        if self.mounted.is_none() {
            return;
        }
        let hangs = match trouble {
            Trouble::Failed(_) => false,
            // Who was stopped need not have waited for the mount; who does not end may wait for the
            // disk.
            Trouble::Late(_) | Trouble::Stuck(..) => !self.stop.asked() && !self.answers(),
        };
        if hangs {
            self.leave_out("it does not answer any more, and was ended");
        }
    }

    /// Ends what is mounted as one that hangs; nobody works here any more.
    pub(super) fn leave_out(&mut self, why: &str) {
        if let Some(mounted) = &mut self.mounted {
            mounted.hung = true;
        }
        self.mounted = None;
        self.absent = Some(why.into());
    }

    fn answers(&self) -> bool {
        let look = Probe::Chore(Chore::Look(self.point.clone()));
        let said = child::ask(&look, &Wait::within(HURRY, &self.stop));
        !matches!(said, Err(Trouble::Late(_) | Trouble::Stuck(..)))
    }
}

/// How many opens the kernel was handed, by the text of a mount's statistics, and whether it takes
/// them.
fn passed(metrics: &str) -> (f64, String) {
    let samples = text::parse(metrics);
    let label = |sample: &text::Sample, key: &str| {
        let of = sample.labels.iter().find(|(name, _)| name == key);
        of.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let opens = samples
        .iter()
        .filter(|s| s.name == "corfs_opens_total" && label(s, "mode") == "passthrough")
        .map(|s| s.value)
        .sum();
    let state = samples
        .iter()
        .find(|s| s.name == "corfs_passthrough" && s.value > 0.0);
    (opens, state.map_or("unknown".into(), |s| label(s, "state")))
}

/// The number of a FUSE mount's connection, which the kernel calls after a device of no disk. That of
/// `fuseblk` is a disk's, and its minor alone another's connection.
fn connection(mount: &Mount) -> Option<u32> {
    let kind = mount.kind.as_bytes();
    let is_fuse = kind == b"fuse" || kind.starts_with(b"fuse.");
    let (major, minor) = mount.device;
    (is_fuse && major == 0).then_some(minor)
}

/// The child of the child, and so on: where a shell has started the daemon.
fn last_of_line(mut pid: u32) -> Option<u32> {
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        match children.split_whitespace().next() {
            Some(child) => pid = child.parse().ok()?,
            None => return Some(pid),
        }
    }
}

fn filled(command: &str, source: &Path, point: &Path) -> String {
    command
        .replace("{SRC}", &shell_word(source))
        .replace("{MNT}", &shell_word(point))
}

/// A path as one word of a shell.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A path as the value of an option in a list.
fn option_value(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\").replace(',', "\\,")
}

impl Mounted {
    /// Whether it still runs, so that its number is no other process's.
    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// With all that it has started and that is not in a group of its own.
    fn kill(&mut self) {
        if self.runs() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }

    /// The number of its connection, if it is a FUSE mount, and not one that only shows the file
    /// system of the source, which is not ours to end.
    fn connection(&self) -> Option<u32> {
        let mounts = mountinfo::read().unwrap_or_default();
        let ours = mounts.iter().find(|mount| mount.mountpoint == self.point)?;
        (ours.device != self.device)
            .then(|| connection(ours))
            .flatten()
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let (pid, runs) = (Pid::from_child(&self.child), self.runs());
        let patience = if self.stop.asked() { HURRY } else { PATIENCE };
        match (&self.kind, self.up) {
            _ if self.hung => self.kill(),
            (Kind::Corfs(_), _) if runs => {
                // It unmounts by itself, lazily if it must.
                let _ = kill_process(pid, Signal::TERM);
            }
            (_, true) => within(patience, Chore::Unmount(self.point.clone())),
            (_, false) if runs => {
                // Nothing else tells it that it is not waited for any more.
                let _ = kill_process_group(pid, Signal::TERM);
            }
            (_, false) => {}
        }
        if !self.ends_within(patience) {
            self.kill();
            self.ends_within(HURRY);
        }
        // What was killed has unmounted nothing, and a daemon in the background may still hang.
        if matches!(has_mounts(&self.point), Ok(true)) {
            let point = self.point.clone();
            within(
                HURRY,
                match self.connection() {
                    Some(connection) => Chore::End { point, connection },
                    None => Chore::Unmount(point),
                },
            );
        }
    }
}

/// Has it done by a process that is not waited for longer than that.
fn within(patience: Duration, chore: Chore) {
    // That somebody wants us to stop is why it is done.
    let wait = Wait::within(patience, &Stop::default());
    let _ = child::ask(&Probe::Chore(chore), &wait);
}

/// Has the kernel answer, with errors, in the place of a FUSE daemon that does not, and unmounts.
pub(super) fn end(point: &Path, connection: u32) {
    let name = format!("/sys/fs/fuse/connections/{connection}/abort");
    let file = fs::OpenOptions::new().write(true).open(name);
    let told = file.and_then(|mut file| file.write_all(b"1"));
    // Where that file system is not mounted root has another way.
    let forced = UnmountFlags::FORCE | UnmountFlags::DETACH;
    if told.is_err() && rustix::mount::unmount(point, forced).is_ok() {
        return;
    }
    unmount(point);
}

/// Unmounts, lazily, as root or by the setuid helper.
pub(super) fn unmount(point: &Path) {
    if rustix::mount::unmount(point, UnmountFlags::empty()).is_ok()
        || rustix::mount::unmount(point, UnmountFlags::DETACH).is_ok()
    {
        return;
    }
    let _ = Command::new("fusermount3")
        .args(["-uzq", "--"])
        .arg(point)
        .status();
}

/// Every file at or below a path.
pub(super) fn below(path: &Path, with: &mut dyn FnMut(&Path)) {
    let Ok(stat) = fs::symlink_metadata(path) else {
        return;
    };
    if !stat.is_dir() {
        return with(path);
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        below(&entry.path(), with);
    }
}

/// The bytes of all files at and below a path.
fn size(path: &Path) -> u64 {
    let mut bytes = 0;
    below(path, &mut |path| {
        bytes += fs::symlink_metadata(path).map_or(0, |stat| stat.len());
    });
    bytes
}

/// Reads a file, so that its pages are in the page cache, until somebody wants us to stop; returns
/// how many bytes it has read.
pub(super) fn warm(path: &Path, stop: &Stop) -> io::Result<u64> {
    let file = fs::File::open(path)?;
    let mut all = 0;
    while !stop.asked() {
        match io::copy(&mut (&file).take(MIB as u64), &mut io::sink())? {
            0 => break,
            read => all += read,
        }
    }
    Ok(all)
}

/// Has the kernel drop what it caches of one file, as far as nobody maps it or has written to it.
pub(super) fn drop_pages(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    if let Ok(file) = rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}

/// Has the file system of a directory write out what is dirty.
pub(super) fn write_out(directory: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(directory) = rustix::fs::openat(CWD, directory, flags, Mode::empty()) {
        let _ = rustix::fs::syncfs(&directory);
    }
}

/// Has the kernel drop all caches; whether it may be asked to.
pub(super) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Takes as much memory as a run will need, and gives it back: a virtual machine returns idle
/// memory to its host, and whoever comes first would fetch it again. Ends early when somebody wants
/// us to stop; returns how many bytes it took.
pub(super) fn ready_memory(bytes: u64, stop: &Stop) -> usize {
    let bytes = bytes.min(super::machine::meminfo("MemAvailable") / 2);
    let mut memory = vec![0u8; bytes as usize];
    let mut taken = 0;
    for block in memory.chunks_mut(MIB).take_while(|_| !stop.asked()) {
        for page in block.chunks_mut(4096) {
            page[0] = 1;
        }
        taken += block.len();
    }
    std::hint::black_box(&memory);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_filled_in_with_words_of_a_shell() {
        let (source, point) = (Path::new("/a b/it's"), Path::new("/mnt"));
        assert_eq!(
            filled("x -f {SRC} {MNT}", source, point),
            "x -f '/a b/it'\\''s' /mnt"
        );
    }

    #[test]
    fn a_cache_is_filled_in_as_a_word_of_a_list() {
        assert_eq!(option_value(Path::new("/a,b\\c d")), "/a\\,b\\\\c d");
    }

    #[test]
    fn a_command_is_typed_as_it_was_run() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a b");
        fs::create_dir(&inside).unwrap();
        let home = Stage::new(&inside).unwrap();
        let typed = |options: &str| {
            let subject = Subject {
                name: options.into(),
                kind: Kind::Corfs(options.into()),
            };
            let number = options.len();
            let place = Place::new(subject, &home, number, PATIENCE, &Stop::default()).unwrap();
            let command = place.command();
            let [source, point] = [place.source(), place.root()].map(|p| p.display().to_string());
            (command, source, point)
        };
        let (command, source, point) = typed("");
        assert_eq!(command, format!("corfs -f '{source}' '{point}'"));
        let (command, source, point) = typed("fsname=a b");
        assert_eq!(
            command,
            format!("corfs -f -o 'fsname=a b' '{source}' '{point}'")
        );
    }

    #[test]
    fn what_was_passed_through_is_read_from_the_statistics() {
        let on = "corfs_passthrough{state=\"on\"} 1\ncorfs_passthrough{state=\"not_asked\"} 0\n\
                  corfs_opens_total{mode=\"mmap\"} 7\ncorfs_opens_total{mode=\"passthrough\"} 3\n";
        assert_eq!(passed(on), (3.0, "on".into()));
        let off = "corfs_passthrough{state=\"not_supported\"} 1\n\
                   corfs_opens_total{mode=\"passthrough\"} 0\n";
        assert_eq!(passed(off), (0.0, "not_supported".into()));
        assert_eq!(passed(""), (0.0, "unknown".into()));
    }

    #[test]
    fn only_a_mount_without_a_disk_names_its_connection() {
        let of = |kind: &str, device| {
            connection(&Mount {
                id: 1,
                device,
                root: "/".into(),
                mountpoint: "/mnt".into(),
                kind: kind.into(),
                source: "x".into(),
                options: "".into(),
            })
        };
        assert_eq!(of("fuse", (0, 57)), Some(57));
        assert_eq!(of("fuse.bindfs", (0, 57)), Some(57));
        assert_eq!(of("fuseblk", (8, 1)), None);
        assert_eq!(of("fuse", (8, 1)), None);
        assert_eq!(of("fusectl", (0, 31)), None);
    }

    #[test]
    fn a_name_that_no_run_can_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
        fs::create_dir(&odd).unwrap();
        let refused = Stage::new(&odd).unwrap_err().0;
        assert!(refused.contains("not UTF-8"), "{refused}");
        assert_eq!(fs::read_dir(&odd).unwrap().count(), 0);
    }

    #[test]
    fn who_wants_us_to_stop_waits_neither_for_files_nor_for_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, vec![1; 2 * MIB + 1]).unwrap();
        let stop = Stop::default();
        assert_eq!(warm(&file, &stop).unwrap(), 2 * MIB as u64 + 1);
        assert_eq!(ready_memory(2 * MIB as u64 + 1, &stop), 2 * MIB + 1);
        stop.ask();
        assert_eq!(warm(&file, &stop).unwrap(), 0);
        assert_eq!(ready_memory(2 * MIB as u64 + 1, &stop), 0);
    }

    /// Though the work was killed and does not end: it may wait for the disk.
    #[test]
    fn a_mount_is_not_left_out_for_who_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let home = Stage::new(folder.path()).unwrap();
        let stop = Stop::default();
        let kind = Kind::Peer("sleep 1000".into());
        let subject = Subject {
            name: "peer".into(),
            kind: kind.clone(),
        };
        let mut place = Place::new(subject, &home, 1, PATIENCE, &stop).unwrap();
        let mut sleep = Command::new("sleep");
        place.mounted = Some(Mounted {
            point: place.point.clone(),
            child: sleep.arg("1000").process_group(0).spawn().unwrap(),
            kind,
            up: false,
            hung: false,
            device: (0, 0),
            stop: stop.clone(),
        });
        stop.ask();
        let work = Command::new("true").spawn().unwrap();
        place.doubt(&Trouble::Stuck("stopped".into(), work));
        place.is_there().unwrap();
        assert!(place.mounted.is_some());
    }

    #[test]
    fn a_stage_goes_with_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::new(folder.path()).unwrap();
        let second = Stage::new(folder.path()).unwrap();
        assert_ne!(stage.source(), second.source());
        fs::write(stage.source().join("file"), "x").unwrap();
        drop((stage, second));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Stage::new(Path::new("/nonexistent")).is_err());
    }
}
