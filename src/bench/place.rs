//! Where a work is done: a directory, a corfs mount, a peer's mount; each cleaned up when it goes.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Failure;
use super::progress::Stop;
use crate::sys::mountinfo;

/// How long a mount may take to come, and its daemon to go.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let pid = std::process::id();
        for number in 0.. {
            let folder = directory.join(format!("corfs-bench-{pid}-{number}"));
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
    /// Why it could not be mounted: it is left out from then on.
    absent: Option<String>,
}

#[derive(Debug)]
struct Mounted {
    point: PathBuf,
    child: Child,
    kind: Kind,
    /// The mount was seen.
    up: bool,
}

impl Place {
    /// Mounts what is to be mounted; `number` is no other place's. Who does not mount is a place
    /// too, one that is not [there](Self::is_there).
    pub(super) fn new(
        subject: Subject,
        home: &Stage,
        number: usize,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let stage = match &subject.kind {
            Kind::Elsewhere(path) => Some(Stage::new(path)?),
            _ => None,
        };
        let source = stage.as_ref().unwrap_or(home).source();
        let point = home.folder.join(format!("mnt-{number}"));
        let mut place = Self {
            subject,
            source,
            mounted: None,
            stage,
            point,
            stop: stop.clone(),
            absent: None,
        };
        if !place.is_plain() {
            make_dir(&place.point)?;
            place.mount();
        }
        Ok(place)
    }

    /// Fails with why it could not be mounted.
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

    /// The command that mounts it.
    pub(super) fn command(&self) -> String {
        let (source, point) = (self.source.display(), self.point.display());
        match &self.subject.kind {
            Kind::Native | Kind::Elsewhere(_) => format!("in {source}"),
            Kind::Corfs(options) => {
                let options = self.with_cache(options);
                format!("corfs -f -o {options} {source} {point}")
            }
            Kind::Peer(command) => filled(command, &self.source, &self.point),
        }
    }

    /// The process whose memory is the mount's.
    pub(super) fn server(&self) -> Option<u32> {
        let mounted = self.mounted.as_ref()?;
        if let Kind::Corfs(_) = self.subject.kind {
            let config = fs::read_to_string(self.point.join(".corfs/config")).ok()?;
            let pid = |line: &str| line.strip_prefix("server_pid=")?.parse().ok();
            return config.lines().find_map(pid);
        }
        last_of_line(mounted.child.id())
    }

    /// Unmounts and mounts anew: what the kernel and the daemon remembered is gone.
    pub(super) fn remount(&mut self) -> Result<(), String> {
        if !self.is_plain() {
            self.mounted = None;
            self.mount();
        }
        self.is_there()
    }

    fn mount(&mut self) {
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
        below(self.root(), &mut |path| {
            if !self.stop.asked() {
                // What can't be read is not there when it is looked for.
                let _ = warm(path);
            }
        });
        self.stop.check()?;
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
        let deadline = Instant::now() + PATIENCE;
        while let Some(mounted) = &mut self.mounted {
            let listed = has_mounts(&self.point).map_err(|error| error.to_string())?;
            // It may be mounted before it answers.
            if listed && fs::metadata(&self.point).is_ok() {
                mounted.up = true;
                break;
            }
            // A peer may go to the background: its command then ends well.
            if let Ok(Some(status)) = mounted.child.try_wait()
                && !status.success()
            {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(format!("{status}; {last}"));
            }
            if Instant::now() > deadline {
                return Err("nothing was mounted within 30 s".into());
            }
            self.stop.check().map_err(|stopped| stopped.0)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
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
        match (&self.kind, self.up) {
            (Kind::Corfs(_), _) if runs => {
                // It unmounts by itself, lazily if it must.
                let _ = kill_process(pid, Signal::TERM);
            }
            (_, true) => unmount(&self.point),
            (_, false) if runs => {
                // Nothing else tells it that it is not waited for any more.
                let _ = kill_process_group(pid, Signal::TERM);
            }
            (_, false) => {}
        }
        if !self.ends_within(PATIENCE) {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = self.child.wait();
        }
        // What was killed has unmounted nothing.
        if matches!(has_mounts(&self.point), Ok(true)) {
            unmount(&self.point);
        }
    }
}

/// Unmounts, lazily, as root or by the setuid helper.
fn unmount(point: &Path) {
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

/// Reads a file, so that its pages are in the page cache.
pub(super) fn warm(path: &Path) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    io::copy(&mut file, &mut io::sink())?;
    Ok(())
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
/// memory to its host, and whoever comes first would fetch it again.
pub(super) fn ready_memory(bytes: u64) {
    let bytes = bytes.min(super::machine::meminfo("MemAvailable") / 2);
    let mut memory = vec![0u8; bytes as usize];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
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
