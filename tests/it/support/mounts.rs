//! Mounts that go when the test ends, however it ends.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// How long a mount may take to appear, and a daemon to go after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) fn corfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_corfs"))
}

/// How a mount is to be made; see [`Mount::of`].
#[derive(Clone, Debug)]
pub(crate) struct MountBuilder {
    source: PathBuf,
    options: Vec<OsString>,
    user: Option<(u32, u32)>,
    groups: &'static [u32],
    descriptors: Option<u64>,
    wrapper: &'static [&'static str],
}

impl MountBuilder {
    /// Adds one or more `-o` words.
    pub(crate) fn opt(mut self, words: impl AsRef<OsStr>) -> Self {
        self.options.push(words.as_ref().into());
        self
    }

    /// Runs the daemon as an ordinary user (root only).
    #[expect(
        clippy::wrong_self_convention,
        reason = "reads as the builder's other words do"
    )]
    pub(crate) fn as_user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// As [`MountBuilder::as_user`], with supplementary groups.
    #[expect(
        clippy::wrong_self_convention,
        reason = "reads as the builder's other words do"
    )]
    pub(crate) fn as_member(mut self, uid: u32, gid: u32, groups: &'static [u32]) -> Self {
        self.groups = groups;
        self.as_user(uid, gid)
    }

    /// Runs the daemon under `ulimit -n`, soft and hard.
    pub(crate) fn descriptors(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Runs the daemon in a process namespace of its own, where callers outside have no number
    /// (root only).
    pub(crate) fn in_a_namespace(mut self) -> Self {
        self.wrapper = &["unshare", "--pid", "--fork"];
        self
    }

    /// Mounts; panics with the daemon's log unless the mount stands in time.
    #[track_caller]
    pub(crate) fn start(self) -> Mount {
        match self.try_start() {
            Ok(mount) => mount,
            Err(words) => panic!("{words}"),
        }
    }

    /// Mounts, or says in words why not.
    pub(crate) fn try_start(self) -> Result<Mount, String> {
        let scratch = Scratch::new();
        let point = scratch.dir("mnt");
        if let Some((uid, gid)) = self.user {
            set_owner(&point, uid, gid);
        }
        let log = scratch.path().join("corfs.log");
        let child = self.spawn(&scratch, &point, &log)?;
        let mut mount = Mount {
            builder: self,
            child: Some(child),
            log,
            point,
            scratch: Some(scratch),
        };
        mount.await_mounted()?;
        Ok(mount)
    }

    fn spawn(&self, scratch: &Scratch, point: &Path, log: &Path) -> Result<Child, String> {
        let binary = match self.user {
            Some(_) => reachable_binary(scratch),
            None => env!("CARGO_BIN_EXE_corfs").into(),
        };
        let stderr = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut command = match self.descriptors {
            None if !self.wrapper.is_empty() => {
                let mut wrapper = Command::new(self.wrapper[0]);
                wrapper.args(&self.wrapper[1..]).arg(binary);
                wrapper
            }
            // `exec` keeps the pid that we signal and measure.
            Some(limit) => {
                // Root's daemon would raise the limit again.
                let binding = match self.user {
                    None if rustix::process::geteuid().is_root() => {
                        "setpriv --bounding-set -sys_resource"
                    }
                    _ => "",
                };
                let mut shell = Command::new("sh");
                shell
                    .arg("-c")
                    .arg(format!("ulimit -n {limit}; exec {binding} \"$0\" \"$@\""));
                shell.arg(binary);
                shell
            }
            None => Command::new(binary),
        };
        command.arg("-f").arg(&self.source).arg(point);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(stderr.try_clone().map_err(|e| e.to_string())?)
            .stderr(stderr);
        if let Some((uid, gid)) = self.user {
            as_member(&mut command, uid, gid, self.groups);
        }
        command.spawn().map_err(|e| format!("{command:?}: {e}"))
    }
}

/// The binary, or a copy of it where an ordinary user can reach it.
pub(crate) fn reachable_binary(scratch: &Scratch) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_corfs"));
    let open = |p: &Path| fs::metadata(p).is_ok_and(|m| m.mode() & 0o001 != 0);
    if binary.ancestors().all(open) {
        return binary.into();
    }
    let copy = scratch.path().join("corfs");
    // `cp`, not our own write: a concurrent fork of this process would inherit the descriptor open
    // for writing, and the exec would fail with ETXTBSY.
    run(Command::new("cp").arg(binary).arg(&copy));
    set_mode(&copy, 0o755);
    copy
}

/// A mounted corfs in the foreground; unmounted and reaped on drop, also when the test panics.
#[derive(Debug)]
pub(crate) struct Mount {
    builder: MountBuilder,
    child: Option<Child>,
    log: PathBuf,
    point: PathBuf,
    scratch: Option<Scratch>,
}

/// Resident memory of a process in bytes, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// VmRSS: the sum.
    pub(crate) all: u64,
    /// RssAnon: heap, stacks.
    pub(crate) anon: u64,
    /// RssFile: mapped windows, the program's text.
    pub(crate) file: u64,
}

impl Mount {
    /// A mount of `source` on a new folder, with default options.
    pub(crate) fn of(source: &Path) -> MountBuilder {
        MountBuilder {
            source: source.into(),
            options: Vec::new(),
            user: None,
            groups: &[],
            descriptors: None,
            wrapper: &[],
        }
    }

    /// The mountpoint.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// The mirrored directory.
    pub(crate) fn source(&self) -> &Path {
        &self.builder.source
    }

    /// The process that was started: it keeps the mount, takes the signals, and ends last.
    pub(crate) fn guardian(&self) -> u32 {
        let child = self.child.as_ref().map_or(0, Child::id);
        if self.builder.wrapper.is_empty() {
            return child;
        }
        // The wrapper has one child; it takes no signal itself, and ends with it.
        children_of(child).first().copied().unwrap_or(child)
    }

    /// The process that serves the mount, and holds its memory and descriptors; the only one
    /// under `sandbox=off`.
    #[track_caller]
    pub(crate) fn server(&self) -> u32 {
        let guardian = self.guardian();
        if self.builder.options.iter().any(|o| o == "sandbox=off") {
            return guardian;
        }
        // It is made just after the mount.
        let mut server = None;
        wait_until("there is a serving process", PATIENCE, || {
            server = server_of(guardian);
            server.is_some()
        });
        server.expect("a server")
    }

    /// What the daemon has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |e| format!("(no log: {e})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Whether the daemon lives (a zombie does not).
    pub(crate) fn alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// Resident memory of the serving process.
    pub(crate) fn rss(&self) -> Memory {
        memory_of(self.server())
    }

    /// The numbers of `.corfs/stats` at this moment.
    #[track_caller]
    pub(crate) fn stats(&self) -> Stats {
        let path = self.point.join(".corfs/stats");
        Stats::parse(&String::from_utf8_lossy(&read_file(&path)))
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.guardian().cast_signed()).expect("a daemon");
        kill_process(pid, signal).expect("kill");
    }

    /// Sends a signal to the process that serves, which is not for the daemon as a whole.
    pub(crate) fn signal_server(&self, signal: Signal) {
        let pid = Pid::from_raw(self.server().cast_signed()).expect("a server");
        kill_process(pid, signal).expect("kill");
    }

    /// Unmounts and mounts the same source anew, on a new mountpoint.
    #[track_caller]
    pub(crate) fn remount(mut self) -> Self {
        self.stop();
        self.builder.clone().start()
    }

    /// Ends the daemon with SIGTERM and returns how it went; panics if it does not go in time.
    #[track_caller]
    pub(crate) fn finish(self) -> ExitStatus {
        self.finish_within(PATIENCE)
    }

    /// As [`Mount::finish`], where something in flight may hold it up for longer.
    #[track_caller]
    pub(crate) fn finish_within(mut self, patience: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        match self.wait(patience) {
            Some(status) => status,
            None => panic!("the daemon did not go within {patience:?} of SIGTERM"),
        }
    }

    /// Waits for the daemon's end; `None` if it still runs after `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        let child = self.child.as_mut()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn await_mounted(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !is_mounted(&self.point, "fuse.corfs") {
            let child = self.child.as_mut().ok_or("no daemon")?;
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                self.child = None;
                return Err(format!(
                    "corfs ended before it mounted ({}): {}",
                    describe(status),
                    self.log()
                ));
            }
            if Instant::now() > deadline {
                return Err(format!("not mounted after {PATIENCE:?}: {}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// SIGTERM, a bounded wait, then by force; never panics.
    fn stop(&mut self) {
        let pid = self.guardian();
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
            if self.wait(PATIENCE).is_none() {
                eprintln!("corfs {pid:?} did not go on SIGTERM; killing it");
                detach(&self.point);
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        if is_mounted(&self.point, "fuse.corfs") {
            detach(&self.point);
        }
    }
}

/// Unmounts lazily, with the setuid helper where we have no right of our own; whether it did.
pub(crate) fn detach(point: &Path) -> bool {
    rustix::mount::unmount(point, UnmountFlags::DETACH).is_ok()
        || Command::new("fusermount3")
            .args(["-uzq", "--"])
            .arg(point)
            .status()
            .is_ok_and(|status| status.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of corfs {:?}:\n{}---", self.builder, self.log());
        }
        self.stop();
        if let Some(scratch) = self
            .scratch
            .take_if(|_| is_mounted(&self.point, "fuse.corfs"))
        {
            // Deleting the folder now would delete the mirrored files through the mount.
            eprintln!("still mounted, left behind: {}", self.point.display());
            std::mem::forget(scratch);
        }
    }
}

/// The processes that the first thread of `pid` has made, and that have not been waited for.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The serving process of a guardian, if it lives: its child that is neither the keeper of
/// `auto_unmount` nor a `fusermount3`, both of which have other words than their parent.
pub(crate) fn server_of(guardian: u32) -> Option<u32> {
    let words = |pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = words(guardian);
    children_of(guardian)
        .into_iter()
        .find(|&child| !ours.is_empty() && words(child) == ours)
}

/// Resident memory of a process; zeros when it is gone.
pub(crate) fn memory_of(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bytes = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024)
    };
    Memory {
        all: bytes("VmRSS:"),
        anon: bytes("RssAnon:"),
        file: bytes("RssFile:"),
    }
}

/// Whether a file system of type `kind` is mounted at `point`.
pub(crate) fn is_mounted(point: &Path, kind: &str) -> bool {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|&b| b == b'\n').any(|line| {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let dash = fields.iter().position(|&f| f == b"-");
        let at = fields.get(4).map(|f| unescape(f));
        let of = dash.and_then(|dash| fields.get(dash + 1));
        at.as_deref() == Some(point.as_os_str()) && of == Some(&kind.as_bytes())
    })
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[test]
fn escapes_of_the_mount_table_are_undone() {
    assert_eq!(unescape(br"/a\040b\134c"), OsStr::new("/a b\\c"));
    assert_eq!(unescape(br"\04"), OsStr::new("\\04"));
}
