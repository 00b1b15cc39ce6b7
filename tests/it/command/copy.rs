//! `corfs copy`: a cp of its own, and the way to a mount's `.copy`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{PATIENCE, Stand, refuses};
use crate::support::{
    Mount, Need, Scratch, USER, as_user, assert_content, content, corfs, describe, output,
    reachable_binary, read_file, require, run, set_mode, set_owner, sh, wait_until, write_content,
};

/// Bytes of the files that are copied while somebody looks on.
const SIZE: u64 = 8 << 20;

/// `corfs copy` with words, in a folder.
fn copy<S: AsRef<OsStr>>(folder: &Path, words: impl IntoIterator<Item = S>) -> Command {
    let mut command = corfs();
    command.arg("copy").args(words).current_dir(folder);
    command
}

/// Runs it; panics unless it copied, without a word.
#[track_caller]
fn copies(command: &mut Command) {
    let out = output(command);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {stderr}");
    assert!(out.stdout.is_empty() && out.stderr.is_empty(), "{out:?}");
}

/// The names in a folder, where something might have been left behind.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into()
        })
        .collect();
    names.sort();
    names
}

/// A folder with a file `f` of 100,000 bytes (seed 1) and a directory `d`.
fn world() -> Scratch {
    let folder = Scratch::new();
    folder.file("f", &content(1, 0, 100_000));
    folder.dir("d");
    folder
}

#[track_caller]
fn assert_copied(path: &Path) {
    let bytes = read_file(path);
    assert_eq!(bytes.len(), 100_000, "{}", path.display());
    assert_content(1, 0, &bytes);
}

/// The objects that were printed.
#[track_caller]
fn objects(out: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&out.stdout);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

#[test]
fn plain_paths_are_copied_as_by_cp_and_quietly() {
    let folder = world();
    let at = folder.path();
    copies(&mut copy(at, ["f", "new"]));
    copies(&mut copy(at, ["f", "d"]));
    copies(&mut copy(at, [at.join("f"), at.join("d/absolute")]));
    copies(&mut copy(&at.join("d"), ["../f", "./up"]));
    symlink("f", at.join("link")).expect("a link");
    symlink("d", at.join("to-d")).expect("a link");
    copies(&mut copy(at, ["link", "to-d"]));
    for name in ["new", "d/f", "d/absolute", "d/up", "d/link"] {
        assert_copied(&at.join(name));
    }
    let (one, other) = (at.join("f"), at.join("new"));
    let times = |path: &Path| {
        let found = fs::metadata(path).expect("stat");
        (found.mode(), found.mtime(), found.mtime_nsec())
    };
    assert_eq!(times(&one), times(&other));
    assert_eq!(names(at), ["d", "f", "link", "new", "to-d"]);
}

#[test]
fn a_name_may_be_any_bytes_and_begin_with_a_dash() {
    use std::os::unix::ffi::OsStrExt;
    let folder = world();
    let odd = OsStr::from_bytes(b"-a '\n\xff");
    copies(&mut copy(
        folder.path(),
        [OsStr::new("--"), OsStr::new("f"), odd],
    ));
    assert_copied(&folder.path().join(odd));
}

#[test]
fn an_error_says_what_was_tried_on_what_and_why() {
    let folder = world();
    let at = folder.path();
    refuses(
        &mut copy(at, ["none", "new"]),
        1,
        &["copy none -> new: ", "No such file or directory"],
    );
    refuses(
        &mut copy(at, ["f", "none/new"]),
        1,
        &["copy f -> none/new: ", "No such file or directory"],
    );
    refuses(&mut copy(at, ["d", "new"]), 1, &["-r copies directories"]);
    refuses(&mut copy(at, ["f", "f"]), 1, &["the same file"]);
    refuses(&mut copy(at, ["f", "f/new"]), 1, &["Not a directory"]);
    assert_eq!(names(at), ["d", "f"]);
}

#[test]
fn wrong_words_are_refused_and_help_is_none() {
    let folder = world();
    let at = folder.path();
    refuses(&mut copy(at, ["f"]), 1, &["the destination is missing"]);
    refuses(&mut copy(at, [""; 0]), 1, &["the names are missing"]);
    refuses(
        &mut copy(at, ["--frobnicate", "f", "g"]),
        1,
        &["--frobnicate"],
    );
    refuses(
        &mut copy(at, ["--method=x", "f", "g"]),
        1,
        &["--method", "map-write"],
    );
    refuses(
        &mut copy(at, ["--direct", "--reflink=always", "f", "g"]),
        1,
        &["--direct"],
    );
    refuses(
        &mut copy(at, ["-r", "--exclude={a", "d", "g"]),
        1,
        &["--exclude takes a glob", "{a"],
    );
    let help = run(&mut copy(at, ["--help"]));
    for word in ["SRC... DST", "--json", "Exit codes", "--recursive"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert_eq!(names(at), ["d", "f"]);
}

#[test]
fn programs_are_told_by_lines_of_json() {
    let folder = world();
    let at = folder.path();
    let out = output(&mut copy(at, ["--json", "f", "new"]));
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let told = objects(&out);
    let result = told.last().expect("a result");
    assert_eq!(result["type"], "result");
    assert_eq!(result["state"], "done");
    assert_eq!(result["bytes_done"], 100_000);
    assert_eq!(result["files_done"], 1);
    assert_eq!(result["totals_known"], true);
    assert!(result["error"].is_null() && result["seconds"].is_number());
    let out = output(&mut copy(at, ["--json", "none", "new"]));
    assert_eq!(out.status.code(), Some(1));
    let told = objects(&out);
    let result = told.last().expect("a result");
    assert_eq!(result["state"], "failed");
    assert_eq!(result["errno"], libc::ENOENT);
    assert!(
        result["error"]
            .as_str()
            .is_some_and(|text| text.contains("No such file"))
    );
}

#[test]
fn programs_are_told_of_progress() {
    for through in [false, true] {
        if through && !require(&[Need::Fuse]) {
            return;
        }
        let folder = Scratch::new();
        write_content(&folder.path().join("big"), 3, SIZE);
        let mount = through.then(|| Mount::of(folder.path()).start());
        let at = mount.as_ref().map_or(folder.path(), Mount::path);
        let slowly = ["--method=map-write", "--limit=3M", "--chunk=64K"];
        let words = slowly.iter().chain(&["--json", "big", "new"]);
        let out = output(&mut copy(at, words));
        assert!(out.status.success(), "{out:?}");
        let told = objects(&out);
        let (result, progress) = told.split_last().expect("a result");
        assert_eq!(result["bytes_done"], SIZE);
        assert_eq!(result["method"], "map-write");
        assert!(!progress.is_empty(), "two seconds at least: {result}");
        for line in progress {
            assert_eq!(line["type"], "progress");
            let done = line["bytes_done"].as_u64().expect("a number");
            assert!((1..=SIZE).contains(&done), "{line}");
        }
    }
}

/// Two minutes' work.
const SLOW: [&str; 5] = [
    "--reflink=never",
    "--limit=64K",
    "--chunk=64K",
    "big",
    "new",
];

/// A copy that is so slow that there is time to stop it; killed and reaped on drop.
struct Slow(Child);

impl Slow {
    /// A folder with a large `big`, and a `new` that says `old`.
    fn prepared() -> Scratch {
        let folder = Scratch::new();
        write_content(&folder.path().join("big"), 3, SIZE);
        folder.file("new", b"old");
        folder
    }

    /// Copies `big` to `new` in that folder.
    fn start(work: &Path) -> Self {
        Self::start_with(work, &SLOW)
    }

    /// `corfs copy` with words in that folder.
    fn start_with(work: &Path, words: &[&str]) -> Self {
        // What a shell starts in the background ignores SIGINT, and so may this test.
        let mut command = Command::new("env");
        let child = command
            .arg("--default-signal=INT,TERM,HUP")
            .arg(env!("CARGO_BIN_EXE_corfs"))
            .arg("copy")
            .args(words)
            .current_dir(work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("kill");
    }

    /// How it ended: the signal, and its words.
    #[track_caller]
    fn end(&mut self) -> (Option<i32>, String) {
        use std::io::Read;
        use std::os::unix::process::ExitStatusExt;
        let mut status = None;
        wait_until("the copy stops", PATIENCE, || {
            status = self.0.try_wait().expect("wait");
            status.is_some()
        });
        let mut words = String::new();
        let mut stderr = self.0.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut words).expect("words");
        (status.and_then(|status| status.signal()), words)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a process has a temporary file of a test open: a copy is under way.
fn is_writing(pid: u32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let targets = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    targets
        .map(|path| path.to_string_lossy().into_owned())
        .any(|path| {
            path.contains("corfs-it-") && (path.ends_with(" (deleted)") || path.ends_with(".tmp"))
        })
}

#[track_caller]
fn assert_untouched(folder: &Scratch) {
    assert_eq!(names(folder.path()), ["big", "new"]);
    assert_eq!(read_file(&folder.path().join("new")), b"old");
}

#[test]
fn who_is_told_to_stop_cleans_up_and_ends_by_that_signal() {
    for (signal, again) in [
        (Signal::INT, false),
        (Signal::INT, true),
        (Signal::TERM, false),
        (Signal::HUP, false),
    ] {
        let folder = Slow::prepared();
        let mut slow = Slow::start(folder.path());
        wait_until("bytes move", PATIENCE, || is_writing(slow.0.id()));
        slow.signal(signal);
        if again {
            slow.signal(signal);
        }
        let (ended, words) = slow.end();
        assert_eq!(ended, Some(signal.as_raw()), "{words}");
        assert!(words.contains("stopped"), "{words}");
        assert_untouched(&folder);
    }
}

#[test]
fn the_same_words_go_on_from_what_ctrl_c_has_left() {
    let folder = Slow::prepared();
    let at = folder.path();
    // A range of 4 MiB takes two seconds.
    let words = |limit| {
        [
            "--resume",
            "--reflink=never",
            limit,
            "--chunk=64K",
            "big",
            "new",
        ]
    };
    let mut slow = Slow::start_with(at, &words("--limit=2M"));
    let is_recorded = |name: &String| {
        // The header alone has 112 bytes.
        let journal = name.ends_with(".journal").then(|| at.join(name));
        journal.is_some_and(|path| fs::metadata(path).is_ok_and(|journal| journal.len() > 112))
    };
    wait_until("a range is recorded", PATIENCE, || {
        names(at).iter().any(is_recorded)
    });
    slow.signal(Signal::INT);
    let (ended, words_of_end) = slow.end();
    assert_eq!(ended, Some(libc::SIGINT), "{words_of_end}");
    assert!(
        words_of_end.contains("the same words again go on from there"),
        "{words_of_end}"
    );
    assert_eq!(read_file(&at.join("new")), b"old");
    assert!(names(at).iter().any(is_recorded), "{:?}", names(at));
    copies(&mut copy(at, words("--limit=100M")));
    assert_content(3, 0, &read_file(&at.join("new")));
    assert_eq!(names(at), ["big", "new"]);
}

#[test]
fn an_idle_copy_has_no_thread_that_is_not() {
    let folder = Slow::prepared();
    let words = [&["--priority=idle", "--workers=2"], &SLOW[..]].concat();
    let slow = Slow::start_with(folder.path(), &words);
    wait_until("bytes move", PATIENCE, || is_writing(slow.0.id()));
    let tasks = fs::read_dir(format!("/proc/{}/task", slow.0.id())).expect("a process");
    let stats = tasks.flatten().filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).ok();
        // It copies nothing.
        stat.filter(|stat| !stat.contains("(corfs-look)"))
    });
    // The 41st field (proc_pid_stat(5)); the third follows the name.
    let policy = |stat: String| stat.rsplit(") ").next()?.split(' ').nth(38)?.parse().ok();
    let policies: Vec<Option<u32>> = stats.map(policy).collect();
    assert!(!policies.is_empty());
    // SCHED_IDLE is 5.
    assert!(
        policies.iter().all(|policy| *policy == Some(5)),
        "{policies:?}"
    );
}

#[test]
fn under_nohup_a_hangup_stops_nothing() {
    let folder = world();
    let script = "trap '' HUP; exec \"$0\" copy --reflink=never --limit=100K f new";
    let mut shell = sh(folder.path(), script);
    let mut child = shell
        .arg(env!("CARGO_BIN_EXE_corfs"))
        .stdin(Stdio::null())
        .spawn()
        .expect("start");
    wait_until("bytes move", PATIENCE, || is_writing(child.id()));
    kill_process(Pid::from_child(&child), Signal::HUP).expect("kill");
    let status = child.wait().expect("wait");
    assert!(status.success(), "{}", describe(status));
    assert_copied(&folder.path().join("new"));
}

/// Runs a command on a terminal of its own (script(1)), and answers all that was drawn.
fn on_a_terminal(folder: &Path, words: &str) -> String {
    let line = format!("{} copy {words}", env!("CARGO_BIN_EXE_corfs"));
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(folder);
    // Not the size of the terminal that runs the tests, if there is one.
    run(script.env("COLUMNS", "100").env("TERM", "xterm"))
}

#[test]
fn a_terminal_shows_bytes_rate_and_time_left() {
    if !require(&[Need::Tool("script")]) {
        return;
    }
    let folder = Scratch::new();
    write_content(&folder.path().join("big"), 3, SIZE);
    let drawn = on_a_terminal(folder.path(), "--reflink=never --limit=4M big new");
    for word in ["8.00 MiB", "MiB/s", "left"] {
        assert!(drawn.contains(word), "{word}: {drawn:?}");
    }
    let quiet = on_a_terminal(folder.path(), "-q --reflink=never --limit=8M big quiet");
    assert_eq!(quiet, "");
    let moment = on_a_terminal(folder.path(), "/dev/null nothing || true");
    assert!(!moment.contains("MiB"), "{moment:?}");
    assert_content(3, 0, &read_file(&folder.path().join("new")));
}

#[test]
fn an_ordinary_user_copies_what_he_may() {
    if !require(&[Need::Root]) {
        return;
    }
    let folder = world();
    let at = folder.path();
    let binary = reachable_binary(&folder);
    set_owner(&at.join("d"), USER, USER);
    folder.file("secret", b"x");
    set_mode(&at.join("secret"), 0o600);
    let as_him = |from: &str, to: &str| {
        let mut command = Command::new(&binary);
        command.args(["copy", from, to]).current_dir(at);
        as_user(&mut command, USER, USER);
        command
    };
    copies(&mut as_him("f", "d/mine"));
    assert_eq!(fs::metadata(at.join("d/mine")).expect("stat").uid(), USER);
    refuses(&mut as_him("secret", "d/x"), 1, &["Permission denied"]);
    refuses(&mut as_him("f", "elsewhere"), 1, &["Permission denied"]);
    assert_eq!(names(&at.join("d")), ["mine"]);
}

/// A tree with files that everybody may read and one that only root may.
fn tree(folder: &Scratch) -> PathBuf {
    let tree = folder.dir("tree");
    fs::create_dir_all(tree.join("a/b")).expect("mkdir");
    for (number, name) in ["one", "a/two", "a/b/three", "secret"].iter().enumerate() {
        write_content(&tree.join(name), number as u64, 5000);
    }
    symlink("a/two", tree.join("link")).expect("a link");
    set_mode(&tree.join("secret"), 0o600);
    tree
}

#[test]
fn a_tree_is_copied_with_all_that_is_in_it() {
    let folder = world();
    let at = folder.path();
    tree(&folder);
    let out = output(&mut copy(at, ["-a", "--json", "tree", "f", "d"]));
    assert!(out.status.success(), "{out:?}");
    assert_copied(&at.join("d/f"));
    assert_content(2, 0, &read_file(&at.join("d/tree/a/b/three")));
    let link = fs::read_link(at.join("d/tree/link")).expect("a link");
    assert_eq!(link, Path::new("a/two"));
    let told = objects(&out);
    let result = told.last().expect("a result");
    // Four files, three directories and a link; and the file beside them.
    assert_eq!(result["files_done"], 9, "{result}");
    assert_eq!(result["files_total"], 9, "{result}");
    assert_eq!(result["bytes_done"], 120_000, "{result}");
}

#[test]
fn one_file_that_fails_keeps_none_of_the_others_back() {
    if !require(&[Need::Root, Need::Fuse]) {
        return;
    }
    for through in [false, true] {
        let folder = world();
        tree(&folder);
        set_owner(&folder.path().join("d"), USER, USER);
        let binary = reachable_binary(&folder);
        let mount = through.then(|| Mount::of(folder.path()).opt("allow_other").start());
        let at = mount.as_ref().map_or(folder.path(), Mount::path);
        let mut command = Command::new(&binary);
        command
            .args(["copy", "-r", "--json", "tree", "d/new"])
            .current_dir(at);
        let out = output(as_user(&mut command, USER, USER));
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("secret: ") && stderr.contains("Permission denied"),
            "{stderr}"
        );
        let told = objects(&out);
        let failed: Vec<_> = told
            .iter()
            .filter(|line| line["type"] == "failed")
            .collect();
        assert_eq!(failed.len(), 1, "{told:?}");
        assert!(
            failed[0]["path"]
                .as_str()
                .is_some_and(|path| path.ends_with("tree/secret"))
        );
        assert_eq!(failed[0]["errno"], libc::EACCES);
        let result = told.last().expect("a result");
        assert_eq!(
            (&result["state"], &result["failed"]),
            (&"failed".into(), &1.into())
        );
        let new = folder.path().join("d/new");
        assert_eq!(names(&new), ["a", "link", "one"]);
        assert_content(2, 0, &read_file(&new.join("a/b/three")));
    }
}

/// A mount of a world.
fn mounted(options: &str) -> (Scratch, Mount) {
    let source = world();
    let mut mount = Mount::of(source.path());
    if !options.is_empty() {
        mount = mount.opt(options);
    }
    let mount = mount.start();
    (source, mount)
}

/// Copies by the `.copy` of this mount so far.
fn jobs_of(mount: &Mount) -> f64 {
    mount.stats().value("corfs_copies_started_total", &[])
}

#[test]
fn names_in_one_mount_go_through_its_control_file() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = mounted("");
    let at = mount.path();
    let mut count = 0.0;
    let mut goes_through = |command: &mut Command| {
        copies(command);
        count += 1.0;
        assert_eq!(jobs_of(&mount), count, "{command:?}");
    };
    goes_through(&mut copy(at, ["f", "a b'c"]));
    goes_through(&mut copy(&at.join("d"), ["../f", "."]));
    goes_through(&mut copy(Path::new("/"), [at.join("f"), at.join("d/g")]));
    symlink("d", at.join("to-d")).expect("a link");
    goes_through(&mut copy(at, ["to-d/../f", "to-d/h"]));
    let folder = Scratch::new();
    symlink(at.join("d"), folder.path().join("in")).expect("a link");
    goes_through(&mut copy(folder.path(), ["in/f", "in/i"]));
    for name in ["a b'c", "d/f", "d/g", "d/h", "d/i"] {
        assert_copied(&mount.source().join(name));
    }
}

#[test]
fn other_names_are_copied_by_the_command_itself() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = mounted("");
    let outside = Scratch::new();
    let out = outside.path().join("out");
    copies(&mut copy(mount.path(), [Path::new("f"), &out]));
    copies(&mut copy(mount.path(), [out.as_path(), Path::new("back")]));
    symlink(&out, source.path().join("leads-out")).expect("a link");
    copies(&mut copy(mount.path(), ["leads-out", "d/led"]));
    assert_copied(&out);
    assert_copied(&source.path().join("back"));
    assert_copied(&source.path().join("d/led"));
    assert_eq!(jobs_of(&mount), 0.0);
}

#[test]
fn a_mount_whose_control_file_has_another_name_or_is_none() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for (options, jobs) in [("control_name=an odd\\ name", 1.0), ("control=off", 0.0)] {
        let (source, mount) = mounted(options);
        source.file(".copy", b"a file");
        copies(&mut copy(mount.path(), ["f", "new"]));
        assert_copied(&source.path().join("new"));
        assert_eq!(jobs_of(&mount), jobs, "{options}");
        assert_eq!(read_file(&source.path().join(".copy")), b"a file");
    }
}

#[test]
fn a_file_that_has_the_control_files_name_is_never_written() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = world();
    source.file(".copy", b"");
    let mount = Mount::of(source.path()).start();
    copies(&mut copy(mount.path(), ["f", "new"]));
    assert_copied(&source.path().join("new"));
    assert_eq!(read_file(&source.path().join(".copy")), b"");
}

#[test]
fn what_a_mount_refuses_is_told_with_its_reason() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = mounted("ro");
    refuses(
        &mut copy(mount.path(), ["f", "new"]),
        1,
        &["Read-only file system"],
    );
    drop(mount);
    let mount = Mount::of(source.path()).start();
    refuses(
        &mut copy(mount.path(), ["none", "new"]),
        1,
        &["copy none -> new: ", "No such file or directory"],
    );
    refuses(
        &mut copy(mount.path(), ["f", "f"]),
        1,
        &["Invalid argument"],
    );
    assert_eq!(names(source.path()), ["d", "f"]);
}

#[test]
fn who_waits_for_a_mount_is_stopped_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for again in [false, true] {
        let folder = Slow::prepared();
        let mount = Mount::of(folder.path()).start();
        let mut slow = Slow::start(mount.path());
        wait_until("bytes move", PATIENCE, || {
            is_writing(mount.server()) && jobs_of(&mount) > 0.0
        });
        slow.signal(Signal::INT);
        if again {
            slow.signal(Signal::INT);
        }
        let (ended, words) = slow.end();
        assert_eq!(ended, Some(Signal::INT.as_raw()), "{words}");
        assert_untouched(&folder);
        drop(mount);
    }
}

#[test]
fn who_is_cancelled_by_another_is_told_so() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let folder = Slow::prepared();
    let mount = Mount::of(folder.path()).start();
    let mut command = copy(mount.path(), SLOW);
    let child = command
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    wait_until("it is the mount's", PATIENCE, || jobs_of(&mount) > 0.0);
    run(&mut sh(mount.path(), "echo --cancel 1 > .copy"));
    let out = child.wait_with_output().expect("its end");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cancelled by another"), "{stderr}");
    let told = objects(&out);
    let result = told.last().expect("a result");
    assert_eq!(result["type"], "result");
    assert_eq!(result["state"], "cancelled", "{result}");
    assert_eq!(result["errno"], libc::ECANCELED, "{result}");
    drop(mount);
    assert_untouched(&folder);
}

#[test]
fn an_ordinary_user_copies_by_the_mount_of_another() {
    if !require(&[Need::Root, Need::Fuse]) {
        return;
    }
    let (source, mount) = mounted("allow_other");
    set_owner(&source.path().join("d"), USER, USER);
    let binary = reachable_binary(&source);
    let mut command = Command::new(&binary);
    command
        .args(["copy", "f", "d/mine"])
        .current_dir(mount.path());
    copies(as_user(&mut command, USER, USER));
    let made = source.path().join("d/mine");
    assert_copied(&made);
    assert_eq!(fs::metadata(&made).expect("stat").uid(), USER);
    assert_eq!(jobs_of(&mount), 1.0);
}

#[test]
fn a_mount_in_the_background_serves_the_command_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    let new: PathBuf = stand.point.join("new");
    copies(&mut stand.corfs([
        OsStr::new("copy"),
        stand.file().as_os_str(),
        new.as_os_str(),
    ]));
    assert_eq!(read_file(&stand.source.join("new")), b"content");
    stand.unmounted();
    stand.await_end();
}
