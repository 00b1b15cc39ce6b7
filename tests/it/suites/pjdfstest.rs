//! pjdfstest (the crate): each test that passes natively passes on the mount.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{open_to_all, suite};
use crate::programs::bounded;
use crate::support::{
    Loop, Mount, Need, Scratch, Tmpfs, USER, as_user, is_root, output, reachable_binary, require,
    sbin, set_owner,
};

/// What passes natively and cannot pass on the mount, each with the reason. One that passes after
/// all fails the comparison, so that the list stays true.
const CANNOT_PASS: &[(&str, &str)] = &[(
    "link::link_count_max",
    "the suite skips it: glibc knows LINK_MAX by the magic number of a file system, and FUSE's \
     says 127, which is unknown",
)];

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// With what the suite says about it.
    Failed(String),
    Skipped,
}

type Verdicts = BTreeMap<String, Verdict>;

/// Reads the suite's output: a line `name  ok|FAILED|skipped` a test, words on it in lines that
/// begin with a tab.
fn verdicts(text: &str) -> Verdicts {
    let mut found = Verdicts::new();
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

fn passed(verdicts: &Verdicts) -> usize {
    let passed = verdicts.values().filter(|v| **v == Verdict::Passed);
    passed.count()
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

/// The suite, ready to run.
struct Suite {
    program: PathBuf,
    scratch: Scratch,
}

impl Suite {
    /// `None` where it is not installed; see [`suite`].
    fn find() -> Option<Self> {
        let scratch = Scratch::new();
        let program = open_to_all(&suite("pjdfstest")?, &scratch);
        Some(Self { program, scratch })
    }

    /// Its configuration, with or without the tests that remount read-only by mount(8).
    fn config(&self, remount: bool) -> PathBuf {
        let users = dummy_users();
        let text = format!(
            "[features]\n\
             posix_fallocate = {{}}\nrename_ctime = {{}}\nstat_st_birthtime = {{}}\n\
             utime_now = {{}}\nutimensat = {{}}\n\
             [settings]\nnaptime = 0.02\nallow_remount = {remount}\n\
             [dummy_auth]\nentries = [{users}]\n"
        );
        let name = format!("remount-{remount}.toml");
        self.scratch.file(&name, text.as_bytes())
    }

    fn arguments(&self, remount: bool, other: &Path, folder: &Path) -> Vec<PathBuf> {
        vec![
            "-c".into(),
            self.config(remount),
            "-s".into(),
            other.into(),
            "-p".into(),
            folder.into(),
        ]
    }

    /// All tests but those that remount, in `folder`.
    fn run(&self, other: &Path, folder: &Path, user: bool) -> Verdicts {
        let mut command = bounded(&self.program);
        command.args(self.arguments(false, other, folder));
        if user && is_root() {
            as_user(&mut command, USER, USER);
        }
        finish(command.current_dir(folder))
    }

    /// The tests of EROFS. They have a process of their own: mount(8) is refused as busy when an
    /// earlier test of the same process left a file open, natively too.
    fn run_remounting(&self, other: &Path, folder: &Path) -> Verdicts {
        // mount.fuse3 looks the program up where an administrator installs it.
        let script =
            "mount -t tmpfs none /usr/local/bin && cp \"$0\" /usr/local/bin/corfs && exec \"$@\"";
        let mut command = bounded(sbin("unshare"));
        command.args(["-m", "sh", "-c", script]);
        command.arg(reachable_binary(&self.scratch));
        command.arg(&self.program);
        command.args(self.arguments(true, other, folder));
        finish(command.arg("erofs").current_dir("/"))
    }

    /// Everything, as root.
    fn run_all(&self, other: &Path, folder: &Path) -> Verdicts {
        let mut found = self.run(other, folder, false);
        let remounting = self.run_remounting(other, folder);
        assert!(remounting.len() > 10, "{remounting:?}");
        found.extend(remounting);
        found
    }
}

/// Runs the suite and returns how each test ended.
fn finish(command: &mut Command) -> Verdicts {
    command.env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
    let out = output(command);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("Summary: "),
        "{command:?} did not come to its end ({}): {text}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    verdicts(&text)
}

/// Fails for every test that passes natively and not on the mount, unless it is listed; and for a
/// listed one that passes. Prints the score.
#[track_caller]
fn compare(what: &str, native: &Verdicts, mount: &Verdicts) {
    let listed = |name: &str| CANNOT_PASS.iter().any(|(listed, _)| *listed == name);
    let mut faults = String::new();
    let mut exceptions = 0;
    for (name, _) in native.iter().filter(|(_, v)| **v == Verdict::Passed) {
        let fault = match mount.get(name) {
            Some(Verdict::Passed) if listed(name) => "passes, take it off the list".to_owned(),
            Some(Verdict::Passed) => continue,
            _ if listed(name) => {
                exceptions += 1;
                continue;
            }
            Some(Verdict::Failed(words)) => format!("failed: {words}"),
            Some(Verdict::Skipped) => "skipped on the mount only".to_owned(),
            None => "not run on the mount".to_owned(),
        };
        let _ = writeln!(faults, "{name}: {fault}");
    }
    println!(
        "pjdfstest {what}: native {}/{}, mount {}/{}, exceptions {exceptions}",
        passed(native),
        native.len(),
        passed(mount),
        mount.len(),
    );
    assert!(
        faults.is_empty(),
        "these pass natively, not on the mount:\n{faults}"
    );
    // Else the suite has renamed it.
    for (name, _) in CANNOT_PASS {
        assert!(native.contains_key(*name), "{name} is listed, but no test");
    }
}

/// The suite as root, with all that only root may do, natively in `source` and on its mount.
fn as_root(what: &str, source: &Path) {
    let Some(suite) = Suite::find() else {
        return;
    };
    let other = Tmpfs::new(1 << 20);
    let native = suite.run_all(other.path(), source);
    assert!(native.len() > 390, "only {} tests were run", native.len());
    let mount = Mount::of(source)
        .opt("allow_other,default_permissions,suid,dev")
        .start();
    let mounted = suite.run_all(other.path(), mount.path());
    compare(what, &native, &mounted);
}

/// As [`as_root`], on a new file system of that kind.
fn as_root_over(kind: &'static str, size: u64) {
    let needs = [
        Need::Fuse,
        Need::Filesystem(kind),
        Need::Tool("mount.fuse3"),
    ];
    if require(&needs) {
        as_root(kind, Loop::new(kind, size).path());
    }
}

#[test]
fn pjdfstest_passes_as_root_over_ext4() {
    as_root_over("ext4", 256 << 20);
}

#[test]
fn pjdfstest_passes_as_root_over_xfs() {
    as_root_over("xfs", 400 << 20);
}

#[test]
fn pjdfstest_passes_as_root_over_btrfs() {
    as_root_over("btrfs", 400 << 20);
}

#[test]
fn pjdfstest_passes_as_root_over_tmpfs() {
    if require(&[Need::Fuse, Need::Root, Need::Tool("mount.fuse3")]) {
        as_root("tmpfs", Tmpfs::new(64 << 20).path());
    }
}

#[test]
fn pjdfstest_passes_as_an_ordinary_user() {
    if !require(&[Need::Fuse, Need::UserFuse]) {
        return;
    }
    let Some(suite) = Suite::find() else {
        return;
    };
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    let mut mount = Mount::of(&source);
    if is_root() {
        set_owner(&source, USER, USER);
        mount = mount.as_user(USER, USER);
    }
    let run = |folder: &Path| suite.run(Path::new("/dev/shm"), folder, true);
    let native = run(&source);
    let mount = mount.start();
    compare("as a user", &native, &run(mount.path()));
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
