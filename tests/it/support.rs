//! What every family of tests leans on: needs, scratch folders, mounts and loop devices that
//! clean up after themselves, and file content that can be checked at any offset.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

/// How long a mount may take to appear, and a daemon to go after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// An ordinary user of the tests: `nobody` on every system we know, but any number would do.
pub(crate) const USER: u32 = 65_534;
/// A second ordinary user, in no file of the system.
pub(crate) const OTHER: u32 = 54_321;

// ---------------------------------------------------------------------------------------------
// Needs

/// Something that a test cannot do without and that not every machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// `/dev/fuse`, open to us.
    Fuse,
    /// `/dev/fuse` and `fusermount3` usable by an ordinary user.
    UserFuse,
    /// uid 0.
    Root,
    /// A command in `PATH` (or an `sbin`).
    Tool(&'static str),
    /// A file system that the kernel can mount, its `mkfs`, and loop devices. Implies root.
    Filesystem(&'static str),
}

/// Whether everything a test needs is here. If not, says `SKIP: reason` on stderr, or panics under
/// `CORFS_REQUIRE_ALL=1`.
#[must_use]
pub(crate) fn require(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|&need| missing(need)) else {
        return true;
    };
    assert!(
        std::env::var_os("CORFS_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "CORFS_REQUIRE_ALL=1, but {reason}"
    );
    eprintln!("SKIP: {reason}");
    false
}

/// What is missing for `need`, in words; `None` when nothing is.
fn missing(need: Need) -> Option<String> {
    match need {
        Need::Fuse => File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .err()
            .map(|error| format!("/dev/fuse cannot be opened: {error}")),
        Need::UserFuse => missing(Need::Fuse)
            .or_else(|| missing(Need::Tool("fusermount3")))
            .or_else(|| {
                let mode = fs::metadata("/dev/fuse").map_or(0, |m| m.mode());
                (mode & 0o006 != 0o006)
                    .then(|| "/dev/fuse is closed to ordinary users (chmod 0666)".into())
            }),
        Need::Root => (!is_root()).then(|| "not root".into()),
        Need::Tool(name) => tool(name)
            .is_none()
            .then(|| format!("{name} is not installed")),
        Need::Filesystem(kind) => missing_filesystem(kind),
    }
}

/// What is missing to make and mount a `kind` on a loop device.
fn missing_filesystem(kind: &'static str) -> Option<String> {
    if !is_root() {
        return Some("not root".into());
    }
    let mkfs = format!("mkfs.{kind}");
    if tool(&mkfs).is_none() {
        return Some(format!("{mkfs} is not installed"));
    }
    if tool("losetup").is_none() || !Path::new("/dev/loop-control").exists() {
        return Some("no loop devices".into());
    }
    let known = || {
        fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .any(|line| line.trim() == kind)
    };
    if !known() {
        // The kernel may have it as a module; without modprobe the answer stays no.
        let _ = Command::new("modprobe")
            .arg(kind)
            .stderr(Stdio::null())
            .status();
    }
    (!known()).then(|| format!("the kernel has no {kind}"))
}

/// Whether we are uid 0.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a command lies, also in the folders that an ordinary user's `PATH` lacks.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

/// The size of a long test: `full` scaled by `CORFS_SOAK` (1 is the full size, 0.1 the default),
/// at least 1.
pub(crate) fn soak(full: u64) -> u64 {
    let scale = std::env::var("CORFS_SOAK")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(0.1);
    // Sizes here are far below 2^52, so the detour over f64 is exact enough.
    ((full as f64 * scale) as u64).max(1)
}

// ---------------------------------------------------------------------------------------------
// Scratch folders

/// A temporary folder, open to every user, that vanishes with the test.
#[derive(Debug)]
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new folder under `CORFS_TEST_DIR`, else the system's temporary folder.
    pub(crate) fn new() -> Self {
        let base =
            std::env::var_os("CORFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let base = fs::canonicalize(&base).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
        let dir = tempfile::Builder::new()
            .prefix("corfs-it-")
            .tempdir_in(&base)
            .unwrap_or_else(|e| panic!("a folder in {}: {e}", base.display()));
        set_mode(dir.path(), 0o755);
        Self(dir)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new directory in it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        path
    }

    /// A new file in it.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        write_file(&path, content);
        path
    }
}

/// Writes a whole file.
pub(crate) fn write_file(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

/// Reads a whole file.
pub(crate) fn read_file(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// Sets the permission bits.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|e| panic!("chmod {mode:o} {}: {e}", path.display()));
}

/// Changes owner and group (root only).
pub(crate) fn set_owner(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
        .unwrap_or_else(|e| panic!("chown {uid}:{gid} {}: {e}", path.display()));
}

// ---------------------------------------------------------------------------------------------
// Content that can be checked at any offset

/// The eight bytes of file `seed` at eight-byte block `index` (SplitMix64).
fn block(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// The bytes of file `seed` from `offset`, pseudo-random and always the same.
pub(crate) fn content(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8;
    let skip = (offset % 8) as usize;
    let blocks = (skip + len).div_ceil(8) as u64;
    let mut bytes = Vec::with_capacity(blocks as usize * 8);
    for index in first..first + blocks {
        bytes.extend_from_slice(&block(seed, index));
    }
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// Panics, naming the first wrong offset, unless `bytes` are those of file `seed` from `offset`.
#[track_caller]
pub(crate) fn assert_content(seed: u64, offset: u64, bytes: &[u8]) {
    let expected = content(seed, offset, bytes.len());
    assert_same_bytes(offset, bytes, &expected);
}

/// Panics with the first difference (not with two dumps) unless both are equal.
#[track_caller]
pub(crate) fn assert_same_bytes(offset: u64, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "length of the bytes at {offset}");
    if got != expected {
        let at = got
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        panic!(
            "wrong byte at {}: {:#04x}, expected {:#04x}",
            offset + at as u64,
            got[at],
            expected[at]
        );
    }
}

/// Writes file `seed` of `size` bytes at `path`.
pub(crate) fn write_content(path: &Path, seed: u64, size: u64) {
    use std::io::Write;
    let mut file = File::create(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(1 << 20) as usize;
        file.write_all(&content(seed, offset, len))
            .unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        offset += len as u64;
    }
}

/// Memory aligned as O_DIRECT likes it.
#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "only its size and alignment matter")] [u8; 4096]);

/// A buffer for direct reads.
pub(crate) struct Buffer(Vec<Page>);

impl Buffer {
    /// Room for `len` bytes, none of them zero.
    pub(crate) fn new(len: usize) -> Self {
        let pages = len.div_ceil(4096);
        Self((0..pages).map(|_| Page([0xee; 4096])).collect())
    }

    /// The first `len` bytes of it.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.0.len() * 4096);
        // SAFETY: the pages are contiguous, initialised bytes without padding, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

/// A small generator for test decisions (offsets, lengths); not for content.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The same seed gives the same throws.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound` (which is not 0).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(block(0x5eed_d1ce ^ bound, self.0)) % bound
    }
}

// ---------------------------------------------------------------------------------------------
// Commands

/// Runs a command and returns what it printed; panics with all of it unless it succeeds.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let out = output(command);
    assert!(
        out.status.success(),
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        describe(out.status),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command to its end, whatever it says.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// A script for `sh` with `folder` as its working directory.
pub(crate) fn sh(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(folder);
    command
}

/// Lets a command run as an ordinary user with no other groups (root only).
pub(crate) fn as_user(command: &mut Command, uid: u32, gid: u32) -> &mut Command {
    // std drops the supplementary groups when root asks for another uid.
    command.uid(uid).gid(gid)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended oddly".into(),
    }
}

/// Polls until `done` says so; panics with `what` when it takes longer than `patience`.
#[track_caller]
pub(crate) fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` in a thread that has its own umask and working directory, and, if `ids` are given,
/// the credentials of an ordinary user (root only). Panics in it are ours.
pub(crate) fn apart<T: Send>(ids: Option<(u32, u32)>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            own_umask();
            if let Some((uid, gid)) = ids {
                become_user(uid, gid, &[]);
            }
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Gives this thread a umask and a working directory of its own.
fn own_umask() {
    // SAFETY: CLONE_FS touches the root, working directory and umask of this thread only; no
    // descriptor, memory or signal state is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
        .expect("unshare(CLONE_FS)");
}

/// Changes the credentials of this thread alone (the raw system calls, unlike libc's, leave the
/// other threads as they are).
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    use rustix::fs::{Gid, Uid};
    let groups: Vec<Gid> = groups.iter().map(|&g| Gid::from_raw(g)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups).expect("setgroups");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("setresgid");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("setresuid");
}

// ---------------------------------------------------------------------------------------------
// Mounts

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

    /// Runs the daemon under `ulimit -n`, soft and hard.
    pub(crate) fn descriptors(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Runs the daemon in a process namespace of its own, where callers outside have no number
    /// (root only). [`Mount::pid`] is then that of `unshare`.
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
                let mut shell = Command::new("sh");
                shell
                    .arg("-c")
                    .arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
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
            as_user(&mut command, uid, gid);
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

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        let child = self.child.as_ref().map_or(0, Child::id);
        if self.builder.wrapper.is_empty() {
            return child;
        }
        // The wrapper has one child; it takes no signal itself, and ends with it.
        fs::read_to_string(format!("/proc/{child}/task/{child}/children"))
            .ok()
            .and_then(|pids| pids.trim().parse().ok())
            .unwrap_or(child)
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

    /// Resident memory of the daemon.
    pub(crate) fn rss(&self) -> Memory {
        memory_of(self.pid())
    }

    /// The numbers of `.corfs/stats` at this moment.
    #[track_caller]
    pub(crate) fn stats(&self) -> Stats {
        let path = self.point.join(".corfs/stats");
        Stats::parse(&String::from_utf8_lossy(&read_file(&path)))
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a daemon");
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
        let pid = self.pid();
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

// ---------------------------------------------------------------------------------------------
// Statistics

/// One line of `.corfs/stats`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The metric, with its suffix (`_total`, `_bucket`, …).
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its number.
    pub(crate) value: f64,
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (head, value) = line.rsplit_once(' ')?;
        let (name, labels) = match head.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}')?),
            None => (head, ""),
        };
        // No label value of ours holds a comma or a quote.
        let labels = labels
            .split(',')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=')?;
                Some((key.to_owned(), value.trim_matches('"').to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value: value.parse().ok()?,
        })
    }
}

/// The numbers of `.corfs/stats` at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// In the order of the file.
    pub(crate) samples: Vec<Sample>,
}

impl Stats {
    /// Reads OpenMetrics text; panics on a line that is none.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line:?}")))
            .collect();
        Self { samples }
    }

    /// The sum of all samples of that name which carry (at least) those labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(k, v)| sample.labels.get(*k).is_some_and(|x| x == v))
        };
        self.samples.iter().filter(fits).map(|s| s.value).sum()
    }

    /// As [`Stats::sum`], but panics when there is no such sample.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(
            self.samples.iter().any(|sample| sample.name == name),
            "no {name} among the statistics"
        );
        self.sum(name, labels)
    }
}

// ---------------------------------------------------------------------------------------------
// Loop devices

/// A file system of its own on a loop device: unmounted, detached and deleted on drop.
#[derive(Debug)]
pub(crate) struct Loop {
    device: PathBuf,
    image: PathBuf,
    point: PathBuf,
    _scratch: Scratch,
}

/// Only one at a time asks for a free loop device, so that two tests do not get the same.
static LOSETUP: Mutex<()> = Mutex::new(());

impl Loop {
    /// Makes a `kind` (ext4, xfs, btrfs) of `size` bytes and mounts it. Ask for
    /// [`Need::Filesystem`] first. XFS wants at least 300 MiB, btrfs 110.
    #[track_caller]
    pub(crate) fn new(kind: &str, size: u64) -> Self {
        let scratch = Scratch::new();
        let image = scratch.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(size))
            .unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        let quiet = if kind == "ext4" { "-qF" } else { "-qf" };
        run(Command::new(sbin(&format!("mkfs.{kind}")))
            .arg(quiet)
            .arg(&image));
        let point = scratch.dir("loop");
        let device = {
            let _one = LOSETUP.lock().unwrap_or_else(|e| e.into_inner());
            run(Command::new(sbin("losetup"))
                .args(["--find", "--show"])
                .arg(&image))
        };
        let this = Self {
            device: PathBuf::from(device.trim()),
            image,
            point,
            _scratch: scratch,
        };
        run(Command::new(sbin("mount"))
            .args(["-t", kind])
            .arg(&this.device)
            .arg(&this.point));
        set_mode(&this.point, 0o777);
        this
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// The file behind the device.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        let _ = Command::new(sbin("losetup"))
            .arg("--detach")
            .arg(&self.device)
            .status();
    }
}

/// A tmpfs of its own: unmounted on drop (root only).
#[derive(Debug)]
pub(crate) struct Tmpfs {
    point: PathBuf,
    _scratch: Option<Scratch>,
}

impl Tmpfs {
    /// A tmpfs of `size` bytes on a new folder.
    #[track_caller]
    pub(crate) fn new(size: u64) -> Self {
        let scratch = Scratch::new();
        let point = scratch.dir("tmpfs");
        let mut this = Self::at(&point, size);
        this._scratch = Some(scratch);
        this
    }

    /// A tmpfs of `size` bytes on a folder that exists.
    #[track_caller]
    pub(crate) fn at(point: &Path, size: u64) -> Self {
        run(Command::new(sbin("mount"))
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=0777"))
            .arg("tmpfs")
            .arg(point));
        Self {
            point: point.into(),
            _scratch: None,
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// The path of a tool that [`require`] found; its name otherwise.
pub(crate) fn sbin(name: &str) -> PathBuf {
    tool(name).unwrap_or_else(|| name.into())
}

/// Drops the page cache, so that what follows is cold. Returns false when we may not (not root).
pub(crate) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// The errno of a failed call; panics with `what` if it went well.
#[track_caller]
pub(crate) fn errno_of<T>(what: impl Display, result: io::Result<T>) -> rustix::io::Errno {
    match result {
        Ok(_) => panic!("{what}: went well, an error was expected"),
        Err(error) => rustix::io::Errno::from_io_error(&error)
            .unwrap_or_else(|| panic!("{what}: {error}, an errno was expected")),
    }
}

/// Whether a file is a socket (std has no one-word test on a path).
pub(crate) fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

#[test]
fn content_is_the_same_from_every_offset() {
    let whole = content(7, 0, 100);
    for offset in 0..40 {
        assert_eq!(content(7, offset as u64, 60), whole[offset..offset + 60]);
    }
    assert_ne!(content(8, 0, 100), whole);
}

#[test]
fn a_sample_of_the_statistics_is_understood() {
    let stats = Stats::parse(
        "# TYPE a counter\na_total{mode=\"mmap\",x=\"y\"} 3\na_total{mode=\"pread\"} 4\nb 1.5\n# EOF\n",
    );
    assert_eq!(stats.value("a_total", &[("mode", "mmap")]), 3.0);
    assert_eq!(stats.value("a_total", &[]), 7.0);
    assert_eq!(stats.value("b", &[]), 1.5);
}

#[test]
fn escapes_of_the_mount_table_are_undone() {
    assert_eq!(unescape(br"/a\040b\134c"), OsStr::new("/a b\\c"));
    assert_eq!(unescape(br"\04"), OsStr::new("\\04"));
}
