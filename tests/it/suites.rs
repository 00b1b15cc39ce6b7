//! Foreign suites of POSIX and data checks, run on the mount and on its source: what passes
//! natively passes on the mount.
//!
//! `mount-scripts/test.sh` installs them into `target/suites`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::bounded;
use crate::support::{
    Loop, Mount, MountBuilder, Need, Scratch, Tmpfs, USER, as_user, is_root, output, require,
    set_mode, set_owner, soak, tool, write_file,
};

/// Where a suite lies: in `PATH`, or where the test script installs it. Skips (or fails, as
/// [`require`] does) when it is nowhere.
fn suite(name: &'static str) -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/suites/bin")
        .join(name);
    if installed.is_file() {
        return Some(installed);
    }
    require(&[Need::Tool(name)]).then(|| tool(name)).flatten()
}

/// The suite where every user may run it: a checkout may lie in a folder closed to others.
fn open_to_all(program: &Path, scratch: &Scratch) -> PathBuf {
    let copy = scratch.path().join("suite");
    crate::support::run(Command::new("cp").arg(program).arg(&copy));
    set_mode(&copy, 0o755);
    copy
}

// ---------------------------------------------------------------------------------------------
// pjdfstest

/// What passes natively and cannot pass on the mount, each with the reason.
const CANNOT_PASS: &[(&str, &str)] = &[(
    "link::link_count_max",
    "the suite skips it: glibc knows LINK_MAX by the magic number of a file system, and FUSE's \
     says 127, which is unknown",
)];

/// How one test of pjdfstest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// With what the suite says about it.
    Failed(String),
    Skipped,
}

/// Reads the suite's output: a line `name  ok|FAILED|skipped` a test, words on it in lines that
/// begin with a tab.
fn verdicts(text: &str) -> BTreeMap<String, Verdict> {
    let mut found: BTreeMap<String, Verdict> = BTreeMap::new();
    let mut failed: Option<String> = None;
    for line in text.lines() {
        if line.starts_with('\t') {
            if let Some(Verdict::Failed(words)) = failed.as_ref().and_then(|n| found.get_mut(n)) {
                words.push_str(line.trim());
            }
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, word] = words[..] else { continue };
        let verdict = match word {
            "ok" => Verdict::Passed,
            "skipped" => Verdict::Skipped,
            "FAILED" => Verdict::Failed(String::new()),
            _ => continue,
        };
        failed = (word == "FAILED").then(|| name.to_owned());
        found.insert(name.to_owned(), verdict);
    }
    found
}

/// Two ordinary users with a group of their own name-able by the suite, as TOML pairs.
fn dummy_users() -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group_of = |gid: &str| {
        groups.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.get(2) == Some(&gid)).then(|| fields[0].to_owned())
        })
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let pairs: Vec<String> = passwd
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else {
                return None;
            };
            let group = group_of(gid).filter(|_| uid != "0" && gid != "0")?;
            Some(format!("[{name:?}, {group:?}]"))
        })
        .take(2)
        .collect();
    assert_eq!(pairs.len(), 2, "two ordinary users in /etc/passwd");
    pairs.join(", ")
}

/// Runs pjdfstest in `folder` and returns how each test ended.
fn pjdfstest(
    program: &Path,
    config: &Path,
    other: &Path,
    folder: &Path,
    user: bool,
) -> BTreeMap<String, Verdict> {
    let mut command = bounded(program);
    command
        .arg("-c")
        .arg(config)
        .arg("-s")
        .arg(other)
        .arg("-p")
        .arg(folder)
        .env("RUST_BACKTRACE", "0")
        .env("NO_COLOR", "1")
        .current_dir(folder);
    if user && is_root() {
        as_user(&mut command, USER, USER);
    }
    let out = output(&mut command);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("Summary: "),
        "{command:?} did not come to its end ({}): {text}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    verdicts(&text)
}

/// The suite's configuration. No `allow_remount`: remounting by mount(8) is refused as busy now and
/// then on the native side already; read-only mounts have tests of their own.
fn pjdfstest_config(scratch: &Scratch) -> PathBuf {
    let users = dummy_users();
    let text = format!(
        "[features]\n\
         posix_fallocate = {{}}\nrename_ctime = {{}}\nstat_st_birthtime = {{}}\n\
         utime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.02\nallow_remount = false\n\
         [dummy_auth]\nentries = [{users}]\n"
    );
    scratch.file("pjdfstest.toml", text.as_bytes())
}

/// Fails for every test that passes natively and not on the mount, unless it is listed; and for a
/// listed one that passes, so that the list stays true.
#[track_caller]
fn compare(native: &BTreeMap<String, Verdict>, mount: &BTreeMap<String, Verdict>) {
    let listed = |name: &str| CANNOT_PASS.iter().any(|(listed, _)| *listed == name);
    let mut faults = String::new();
    let mut passed = 0;
    for (name, _) in native.iter().filter(|(_, v)| **v == Verdict::Passed) {
        let fault = match mount.get(name) {
            Some(Verdict::Passed) if listed(name) => "passes, take it off the list".to_owned(),
            Some(Verdict::Passed) => {
                passed += 1;
                continue;
            }
            _ if listed(name) => continue,
            Some(Verdict::Failed(words)) => format!("failed: {words}"),
            Some(Verdict::Skipped) => "skipped on the mount only".to_owned(),
            None => "not run on the mount".to_owned(),
        };
        let _ = writeln!(faults, "{name}: {fault}");
    }
    println!("pjdfstest: {passed} tests pass natively and on the mount");
    assert!(
        faults.is_empty(),
        "these pass natively, not on the mount:\n{faults}"
    );
}

/// The suite as root, with all that only root may do, on a file system of that kind.
fn pjdfstest_as_root_on(kind: &'static str, size: u64) {
    if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
        return;
    }
    let Some(program) = suite("pjdfstest") else {
        return;
    };
    let scratch = Scratch::new();
    let config = pjdfstest_config(&scratch);
    let other = Tmpfs::new(1 << 20);
    let source = Loop::new(kind, size);
    let run = |folder: &Path| pjdfstest(&program, &config, other.path(), folder, false);
    let native = run(source.path());
    assert!(native.len() > 300, "only {} tests were run", native.len());
    let mount = Mount::of(source.path())
        .opt("allow_other,default_permissions,suid,dev")
        .start();
    compare(&native, &run(mount.path()));
}

#[test]
fn pjdfstest_passes_as_root_over_ext4() {
    pjdfstest_as_root_on("ext4", 256 << 20);
}

#[test]
fn pjdfstest_passes_as_root_over_xfs() {
    pjdfstest_as_root_on("xfs", 400 << 20);
}

#[test]
fn pjdfstest_passes_as_an_ordinary_user() {
    if !require(&[Need::Fuse, Need::UserFuse]) {
        return;
    }
    let Some(program) = suite("pjdfstest") else {
        return;
    };
    let scratch = Scratch::new();
    let program = open_to_all(&program, &scratch);
    let config = pjdfstest_config(&scratch);
    let source = scratch.dir("source");
    let mut mount = Mount::of(&source);
    if is_root() {
        set_owner(&source, USER, USER);
        mount = mount.as_user(USER, USER);
    }
    let other = Path::new("/dev/shm");
    let run = |folder: &Path| pjdfstest(&program, &config, other, folder, true);
    let native = run(&source);
    let mount = mount.start();
    compare(&native, &run(mount.path()));
}

#[test]
fn the_output_of_pjdfstest_is_understood() {
    let found = verdicts(
        "open::a       ok\nopen::b    FAILED\n\tassertion failed\nopen::c  skipped\n\tno root\n\n\
         Summary: 1 failed, 1 skipped, 1 passed\n",
    );
    assert_eq!(found.len(), 3);
    assert_eq!(found["open::a"], Verdict::Passed);
    assert_eq!(found["open::b"], Verdict::Failed("assertion failed".into()));
    assert_eq!(found["open::c"], Verdict::Skipped);
}

// ---------------------------------------------------------------------------------------------
// fsx

/// One kind of life of a file under fsx.
struct Exercise {
    /// Largest size of the file in bytes.
    file: u64,
    /// Largest operation in bytes.
    operation: u64,
    /// All offsets and sizes are multiples of this.
    align: u64,
    /// Whether each store through a mapping is followed by an msync.
    msync: bool,
    /// Operations at full length; see [`soak`].
    full: u64,
    seed: u64,
}

impl Exercise {
    /// Everything that fsx can do on Linux, often what makes a file's size and holes change.
    fn config(&self) -> String {
        // Rounded down to the alignment, fsx's posix_fallocate may ask for 0 bytes: EINVAL.
        let fallocate = if self.align == 1 { 2 } else { 0 };
        format!(
            "flen = {}\nnomsyncafterwrite = {}\n\
             [opsize]\nmin = {}\nmax = {}\nalign = {}\n\
             [weights]\n\
             close_open = 2\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
             truncate = 5\nfsync = 0.5\nfdatasync = 0.5\nposix_fallocate = {fallocate}\npunch_hole = 5\n\
             sendfile = 5\nposix_fadvise = 2\ncopy_file_range = 5\n",
            self.file, !self.msync, self.align, self.operation, self.align
        )
    }

    /// A short run natively, which shows that the machine can do it, then the run on the mount.
    fn run(&self, mount: impl FnOnce(MountBuilder) -> MountBuilder) {
        if !require(&[Need::Fuse]) {
            return;
        }
        let Some(program) = suite("fsx") else { return };
        let scratch = Scratch::new();
        let config = scratch.path().join("fsx.toml");
        write_file(&config, self.config().as_bytes());
        let source = scratch.dir("source");
        let operations = soak(self.full);
        let go = |folder: &Path, operations: u64| {
            self.exercise(&program, &config, folder, &scratch, operations);
        };
        go(&source, operations.div_ceil(10));
        let mount = mount(Mount::of(&source)).start();
        go(mount.path(), operations);
        println!("fsx: seed {}, {operations} operations", self.seed);
    }

    #[track_caller]
    fn exercise(
        &self,
        program: &Path,
        config: &Path,
        folder: &Path,
        scratch: &Scratch,
        operations: u64,
    ) {
        let mut command = bounded(program);
        command
            .arg("-f")
            .arg(config)
            .args(["-N", &operations.to_string()])
            .args(["-S", &self.seed.to_string()])
            .arg("-P")
            .arg(scratch.path())
            .arg(folder.join("exercised"));
        let out = output(&mut command);
        if !out.status.success() {
            let words = String::from_utf8_lossy(&out.stderr);
            let lines: Vec<&str> = words.lines().collect();
            // What it saw stands before the log of its last thousand operations, the latest of
            // which stand at the end.
            let (head, tail) = (lines.len().min(30), lines.len().saturating_sub(30));
            panic!(
                "{command:?}: {}, seed {}\n{}\n...\n{}\nwith\n{}",
                out.status,
                self.seed,
                lines[..head].join("\n"),
                lines[tail.max(head)..].join("\n"),
                self.config()
            );
        }
    }
}

#[test]
fn fsx_finds_nothing_in_a_small_file() {
    let exercise = Exercise {
        file: 256 << 10,
        operation: 64 << 10,
        align: 1,
        msync: true,
        full: 200_000,
        seed: 1_001,
    };
    exercise.run(|mount| mount);
}

#[test]
fn fsx_finds_nothing_in_a_file_of_many_windows_under_a_small_budget() {
    let exercise = Exercise {
        file: (9 << 20) + 1234,
        operation: 300_000,
        align: 1,
        msync: false,
        full: 300_000,
        seed: 1_002,
    };
    exercise.run(|mount| mount.opt("window=1M,window_budget=4M"));
}

#[test]
fn fsx_finds_nothing_in_whole_pages() {
    let exercise = Exercise {
        file: 1 << 20,
        operation: 128 << 10,
        align: 4096,
        msync: false,
        full: 200_000,
        seed: 1_003,
    };
    exercise.run(|mount| mount);
}

#[test]
fn fsx_finds_nothing_under_pread() {
    let exercise = Exercise {
        file: 256 << 10,
        operation: 64 << 10,
        align: 1,
        msync: false,
        full: 300_000,
        seed: 1_004,
    };
    exercise.run(|mount| mount.opt("io=pread"));
}
