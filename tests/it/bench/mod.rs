//! `corfs bench` from its words to its files, with sizes that measure nothing: what it says must be
//! whole, and what it made must be gone.

mod browser;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    Need, Scratch, USER, as_user, children_of, corfs, output, read_file, require, run, tool,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder to measure in, and one for what is found.
struct Bench {
    place: Scratch,
    found: Scratch,
}

impl Bench {
    fn new() -> Self {
        Self {
            place: Scratch::new(),
            found: Scratch::new(),
        }
    }

    fn json(&self) -> PathBuf {
        self.found.path().join("run.json")
    }

    fn command(&self, words: &str) -> Command {
        let mut command = corfs();
        command.arg("bench").args(words.split(' '));
        command.arg("--dir").arg(self.place.path());
        for form in ["json", "csv", "html"] {
            let file = self.found.path().join(format!("run.{form}"));
            command.arg(format!("--{form}")).arg(file);
        }
        command
    }

    /// Runs it to its end, and returns what it printed and saved.
    #[track_caller]
    fn measure(&self, words: &str) -> (String, Value) {
        self.complete(&mut self.command(words))
    }

    /// The same, of a command with words that have spaces in them.
    #[track_caller]
    fn complete(&self, command: &mut Command) -> (String, Value) {
        let table = run(command);
        let run = saved(&self.json());
        assert_eq!(run["complete"], true);
        self.is_clean();
        let csv = read_file(&self.found.path().join("run.csv"));
        let samples: usize = all(&run)
            .map(|s| s["samples"].as_array().unwrap().len())
            .sum();
        assert_eq!(String::from_utf8_lossy(&csv).lines().count(), samples + 1);
        (table, run)
    }

    /// Nothing is left of it, mounted or not.
    #[track_caller]
    fn is_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.place.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = self.place.path().to_str().unwrap();
        assert!(!mounts.contains(ours), "{mounts}");
    }
}

fn saved(path: &Path) -> Value {
    serde_json::from_slice(&read_file(path)).expect("JSON")
}

fn all(run: &Value) -> impl Iterator<Item = &Value> {
    run["series"].as_array().expect("series").iter()
}

fn named<'a>(run: &'a Value, work: &str, subject: &str) -> &'a Value {
    all(run)
        .find(|s| s["work"] == work && s["subject"] == subject)
        .unwrap_or_else(|| panic!("no {work}, {subject}: {run:#}"))
}

#[track_caller]
fn samples(series: &Value) -> usize {
    assert_eq!(series["failed"], Value::Null, "{series:#}");
    series["samples"].as_array().expect("samples").len()
}

#[test]
fn copies_are_measured_by_every_method() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let (table, run) = bench.measure(
        "copy --size=2M --sizes=1M --chunks=1M --workers=2 --rounds=2 --warmup=0 --seed=1",
    );
    for size in ["copy 1 MiB", "copy 2 MiB"] {
        for subject in [
            "map-write",
            "map-map",
            "read-write",
            "auto",
            "cp",
            "cp by default",
            "cp in corfs",
            "cp by default in corfs",
            ".copy in corfs",
        ] {
            assert_eq!(samples(named(&run, size, subject)), 2, "{size}, {subject}");
        }
        for (subject, ours, command) in [
            ("map-map", false, "corfs copy --method=map-map "),
            ("auto", true, "corfs copy --reflink=never SRC... DIR"),
            ("cp", false, "cp --reflink=never SRC... DIR"),
            ("cp in corfs", true, "; cp --reflink=never SRC... DIR"),
            (".copy in corfs", true, ">DIR/.copy"),
        ] {
            let series = named(&run, size, subject);
            assert_eq!(series["ours"], ours, "{subject}");
            let typed = series["command"].as_str().unwrap();
            assert!(typed.contains(command), "{subject}: {typed}");
        }
    }
    for work in ["copy 2 MiB, chunk 1 MiB", "copy 2 MiB, workers 2"] {
        assert_eq!(samples(named(&run, work, "map-map")), 2);
    }
    // Both sides mapped: at least a fault each 64 KiB of each.
    let mapped = &named(&run, "copy 2 MiB", "map-map")["samples"][0];
    assert!(mapped["minor"].as_u64().unwrap() >= 32, "{mapped}");
    assert!(table.contains("What each cost"), "{table}");
    assert!(table.contains("read and write in 2 rounds"), "{table}");
    let counted = tool("strace").is_some();
    let calls = &named(&run, "copy 2 MiB", "read-write")["calls"];
    assert_eq!(calls.as_u64().is_some_and(|calls| calls > 0), counted);
    assert_eq!(
        table.contains("System calls: counted by strace"),
        counted,
        "{table}"
    );
}

#[test]
fn copies_are_measured_with_cold_caches_too() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let (_, run) = bench.measure(
        "copy --size=1M --sizes= --chunks= --workers= --rounds=1 --warmup=0 --no-look --cold",
    );
    for work in ["copy 1 MiB", "cold: copy 1 MiB"] {
        for subject in ["read-write", "map-map", "cp", ".copy in corfs"] {
            assert_eq!(samples(named(&run, work, subject)), 1, "{work}, {subject}");
        }
    }
    let cold = named(&run, "cold: copy 1 MiB", "map-map");
    assert_eq!(cold["sweep"]["name"], "cold: every method, by size");
    assert!(
        run["state"]
            .as_str()
            .unwrap()
            .contains("drops all its caches")
    );
}

#[test]
fn reads_are_measured_on_mounts_and_their_peers() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("bindfs")]) {
        return;
    }
    let bench = Bench::new();
    let other = Scratch::new();
    let (_, run) = bench.measure(&format!(
        "read --size=1M --files=5 --rounds=1 --warmup=0 --readers=2 --windows=64K --budgets=4M \
         --dir=other={} --corfs=strict=coherence=strict --peer=bindfs=bindfs\t-f\t{{SRC}}\t{{MNT}}",
        other.path().display()
    ));
    let works: std::collections::BTreeSet<_> =
        all(&run).map(|s| s["work"].as_str().unwrap()).collect();
    assert!(works.len() >= 10, "{works:?}");
    for work in works.iter().filter(|work| !work.contains(':')) {
        // The place that was named first is the baseline.
        for subject in ["other", "strict", "bindfs"] {
            assert_eq!(samples(named(&run, work, subject)), 1, "{work}, {subject}");
        }
    }
    let swept = named(&run, "windows: sequential 1 MiB, O_DIRECT", "window 64 KiB");
    assert_eq!(samples(swept), 1);
    assert_eq!(swept["sweep"]["value"], 65536.0);
    assert_eq!(swept["memory"]["whose"], "the daemon");
    assert!(swept["memory"]["anonymous"].as_u64().unwrap() > 0);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}

/// It has what it is to give before it is measured: while it is, nothing is fetched. One whose cache
/// has no room for that is left out.
#[test]
fn a_cached_mount_is_measured_with_its_cache_full() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let words = "read --size=1M --files=5 --rounds=1 --warmup=0 --readers= --windows= --budgets= \
                 --no-look --only=small";
    let (_, run) = bench.measure(words);
    let cached = named(&run, "small files of 4 KiB", "cached");
    assert_eq!(samples(cached), 1);
    assert!(
        cached["command"]
            .as_str()
            .unwrap()
            .contains(".cache,racy=0")
    );
    let (_, run) = bench.measure(&format!(
        "{words} --corfs=tiny=cache={{CACHE}},cache_size=4M,racy=999"
    ));
    let tiny = named(&run, "small files of 4 KiB", "tiny");
    let failed = tiny["failed"].as_str().expect("why");
    assert!(failed.contains("its cache has 0 of"), "{failed}");
}

/// Pages that a mount has mapped survive a drop of caches, and whoever reads them next has them from
/// memory: all others are gone before a peer is mounted for a cold work.
#[test]
fn nothing_else_is_mounted_before_a_cold_work() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let seen = bench.found.path().join("seen");
    let spy = format!(
        "--peer=spy=(cat /proc/self/mountinfo; echo end) >>{}; mount --bind {{SRC}} {{MNT}}",
        seen.display()
    );
    let words = "read --size=1M --files=2 --rounds=3 --warmup=0 --readers= --windows= --budgets= \
                 --no-look --cold --corfs=plain=io=mmap";
    let mut command = bench.command(words);
    let (_, run) = bench.complete(command.args(["--only=cold: sequential", &spy]));
    let work = "cold: sequential 1 MiB, buffered";
    for subject in ["native", "plain", "spy"] {
        assert_eq!(samples(named(&run, work, subject)), 3, "{subject}");
    }
    let seen = String::from_utf8(read_file(&seen)).expect("text");
    let ours = bench.place.path().to_str().unwrap();
    let shown: Vec<bool> = seen
        .split_terminator("end\n")
        .map(|all| all.contains(ours))
        .collect();
    // At first the others are mounted, as before every other work.
    assert_eq!(shown, [true, false, false, false]);
}

/// Its device number is the source's own, and it has no process.
#[test]
fn a_bind_mount_is_a_peer_too() {
    if !require(&[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let (_, run) = bench.measure(
        "meta --files=3 --rounds=1 --warmup=0 --no-corfs --only=stat \
         --peer=bind=mount\t--bind\t{SRC}\t{MNT}",
    );
    let bind = named(&run, "stat, fresh mount", "bind");
    assert_eq!(samples(bind), 1);
    assert_eq!(bind["memory"], Value::Null);
    let notes = run["notes"].to_string();
    assert!(notes.contains("Memory of bind: not sampled"), "{notes}");
}

/// It keeps what it has listed once: what is made for it must be there before, or be mounted anew.
#[test]
fn a_peer_that_keeps_its_listing_is_measured_too() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("fuse-overlayfs")]) {
        return;
    }
    let bench = Bench::new();
    let (above, work) = (bench.found.dir("above"), bench.found.dir("work"));
    let peer = format!(
        "--peer=layers=fuse-overlayfs -f -o lowerdir={{SRC}},upperdir={},workdir={} {{MNT}}",
        above.display(),
        work.display()
    );
    // Works before which nothing is mounted anew.
    let words = "read --size=1M --files=2 --rounds=1 --warmup=0 --readers= --no-corfs --no-look";
    let mut read = bench.command(words);
    let (_, run) = bench.complete(read.args(["--only=strided", &peer]));
    let strided = named(&run, "strided, 64 KiB of each 512", "layers");
    assert_eq!(samples(strided), 1);
    let words = "meta --files=2 --rounds=2 --warmup=0 --no-corfs --no-look --only=create";
    let (_, run) = bench.complete(bench.command(words).arg(&peer));
    assert_eq!(samples(named(&run, "create", "layers")), 2);
}

/// What corfs serves by itself, for it lacks the privilege, is no measurement of passthrough.
#[test]
fn passthrough_that_is_none_is_left_out() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    for folder in [&bench.place, &bench.found] {
        std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER)).expect("chown");
    }
    let mut command = bench.command(
        "read --size=1M --files=2 --rounds=1 --warmup=0 --readers= --windows= --budgets= \
         --no-look --only=strided --corfs=pass=passthrough=always --corfs=plain=io=mmap",
    );
    let (table, run) = bench.complete(as_user(&mut command, USER, USER));
    let work = "strided, 64 KiB of each 512";
    let why = named(&run, work, "pass")["failed"].as_str().expect("why");
    assert!(why.contains("handed no file") && why.contains("not_privileged"));
    assert!(table.contains(why), "{table}");
    assert_eq!(samples(named(&run, work, "plain")), 1);
}

/// Where it is possible, it is measured.
#[test]
fn passthrough_is_measured() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let (_, run) = bench.measure(
        "read --size=1M --files=2 --rounds=2 --warmup=0 --readers= --windows= --budgets= \
         --no-look --only=strided --corfs=pass=passthrough=always",
    );
    let pass = named(&run, "strided, 64 KiB of each 512", "pass");
    match pass["failed"].as_str() {
        // An old kernel.
        Some(why) => assert!(why.contains("not_supported"), "{why}"),
        None => assert_eq!(samples(pass), 2),
    }
}

#[test]
fn names_are_measured_fresh_and_again() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let (_, run) =
        bench.measure("meta --files=3 --rounds=1 --warmup=0 --no-look --corfs=plain=io=pread");
    for work in [
        "stat, fresh mount",
        "stat, again",
        "stat, again after 2 s",
        "open, close, again",
        "readdir, fresh mount",
        "walk a tree, again",
        "grep a tree, fresh mount",
        "create",
        "rename",
        "unlink",
    ] {
        for subject in ["native", "plain"] {
            assert_eq!(samples(named(&run, work, subject)), 1, "{work}, {subject}");
        }
    }
    assert!(all(&run).all(|series| series["memory"].is_null()));
}

/// What the kernel asks a mount that was made for the work is what the work asks: nobody was there
/// before it.
#[test]
fn a_fresh_mount_is_first_looked_at_by_the_work() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let log = bench.found.path().join("requests");
    let mut command = bench.command("meta --files=3 --rounds=1 --warmup=0 --no-look");
    let told = format!("--corfs=told=debug,log_file={}", log.display());
    let (_, run) = bench.complete(command.args(["--only=grep a tree, fresh", &told]));
    assert_eq!(samples(named(&run, "grep a tree, fresh mount", "told")), 1);
    let log = String::from_utf8(read_file(&log)).expect("text");
    let opened = log.lines().filter(|line| line.contains(" OPEN ")).count();
    assert_eq!(opened, 3, "each file once: {log}");
}

#[test]
fn faults_are_measured_and_saved_runs_shown_again() {
    let bench = Bench::new();
    let (table, run) = bench.measure("fault --size=1M --windows=64K,1M --rounds=3 --seed=5");
    assert_eq!(run["seed"], 5);
    assert_eq!(samples(named(&run, "4 KiB anywhere", "a mapping each")), 3);
    assert_eq!(
        samples(named(&run, "every page once, window 64 KiB", "map, touch")),
        3
    );
    let each = &named(&run, "4 KiB anywhere", "a mapping each")["samples"][0];
    assert!(
        each["minor"].as_u64().unwrap() >= 20_000,
        "a fault each: {each}"
    );
    // A buffer of 1 MiB has 256 pages of its own, which are there before.
    let work = "every page once, window 1 MiB";
    let whole = &named(&run, work, "pread, a window each")["samples"][0];
    assert!(whole["minor"].as_u64().unwrap() < 128, "{whole}");
    let drawn = bench.found.path().join("drawn.html");
    let words = |words: &[&str]| {
        let mut command = corfs();
        command.arg("bench").args(words);
        command
    };
    let json = bench.json();
    let json = json.to_str().unwrap();
    let again = run_of(&mut words(&[
        "draw",
        json,
        "--html",
        drawn.to_str().unwrap(),
    ]));
    assert_eq!(again, table, "the same run, the same table");
    let page = read_file(&bench.found.path().join("run.html"));
    assert_eq!(read_file(&drawn), page);
    assert!(String::from_utf8_lossy(&page).contains("<svg"));
    let compared = run_of(&mut words(&["compare", json, json]));
    assert!(compared.contains("1.00 ["), "{compared}");
    assert!(!compared.contains("only "), "{compared}");
}

fn run_of(command: &mut Command) -> String {
    run(command)
}

#[test]
fn who_can_not_be_mounted_is_left_out_and_the_others_are_measured() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let (table, run) = bench.measure(
        "meta --files=2 --rounds=1 --warmup=0 --only=create --no-look --corfs=plain=io=pread \
         --corfs=odd=cache=/proc/none --peer=gone=no-such-program\t{SRC}\t{MNT}",
    );
    for subject in ["native", "plain"] {
        assert_eq!(samples(named(&run, "create", subject)), 1, "{subject}");
    }
    for (subject, why) in [("odd", "/proc/none"), ("gone", "no-such-program")] {
        let series = named(&run, "create", subject);
        assert!(series["samples"].as_array().unwrap().is_empty());
        let failed = series["failed"].as_str().expect("why");
        assert!(failed.contains(why), "{failed}");
        assert!(table.contains(failed), "{table}");
    }
}

#[test]
fn who_can_not_be_measured_is_named() {
    let bench = Bench::new();
    let fails = |words: &str, why: &str| {
        let out = output(&mut bench.command(words));
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains(why), "{why}: {said}");
        bench.is_clean();
    };
    fails("meta --no-corfs --only=nothing", "nothing to measure");
    fails(
        "read --peer=io=mmap={SRC}{MNT} --peer=io={SRC}{MNT}",
        "called 'io'",
    );
    let mut unsaved = corfs();
    unsaved.args(["bench", "meta", "--json=/nonexistent/r.json", "--dir"]);
    let out = output(unsaved.arg(bench.place.path()));
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("write /nonexistent/r.json"), "{said}");
    assert!(
        !said.contains("op/s"),
        "before anything is measured: {said}"
    );
    let nowhere = output(corfs().args(["bench", "meta", "--dir", "/nonexistent"]));
    assert_eq!(nowhere.status.code(), Some(2));
}

/// Ctrl-C reaches all of the group, the process that is measured among them.
#[test]
fn who_stops_it_keeps_the_rounds_that_are_done() {
    if !require(&[Need::Fuse]) {
        return;
    }
    use std::os::unix::process::CommandExt;
    let bench = Bench::new();
    let mut child = bench
        .command("read --size=1M --files=2 --rounds=100000 --warmup=0 --only=small --no-look")
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    wait_until("a round is saved", PATIENCE, || bench.json().exists());
    rustix::process::kill_process_group(Pid::from_child(&child), Signal::INT).expect("kill");
    wait_until("it ends", PATIENCE, || {
        child.try_wait().expect("wait").is_some()
    });
    let out = child.wait_with_output().expect("wait");
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains("stopped") && said.contains("NOT COMPLETE"),
        "{said}"
    );
    let run = saved(&bench.json());
    assert_eq!(run["complete"], false);
    assert!(all(&run).all(|series| samples(series) >= 1), "{run:#}");
    bench.is_clean();
}

/// As who is told by another does.
#[test]
fn term_ends_it_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let mut child = bench
        .command("meta --files=2 --rounds=100000 --warmup=0 --only=create --no-look")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    wait_until("a round is saved", PATIENCE, || bench.json().exists());
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kill");
    wait_until("it ends", PATIENCE, || {
        child.try_wait().expect("wait").is_some()
    });
    bench.is_clean();
}

/// Nor does Ctrl-\ leave a mount.
#[test]
fn quit_ends_it_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let mut child = bench
        .command("meta --files=2 --rounds=100000 --warmup=0 --only=create --no-look")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    wait_until("a round is saved", PATIENCE, || bench.json().exists());
    kill_process(Pid::from_child(&child), Signal::QUIT).expect("kill");
    wait_until("it ends", PATIENCE, || {
        child.try_wait().expect("wait").is_some()
    });
    bench.is_clean();
}

/// A bench with a peer that has stopped answering while a work waits for it.
struct Hung {
    bench: Bench,
    child: Child,
    peer: Pid,
}

impl Hung {
    fn new(words: &str) -> Self {
        let bench = Bench::new();
        let number = bench.found.path().join("peer");
        let child = bench
            .command(words)
            .args(["--only=O_DIRECT", "--no-corfs", "--no-look", "--readers="])
            .arg(format!(
                "--peer=it=echo $$ >{}; exec bindfs -f {{SRC}} {{MNT}}",
                number.display()
            ))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        wait_until("a round is saved", PATIENCE, || bench.json().exists());
        let number = String::from_utf8(read_file(&number)).expect("text");
        let peer = Pid::from_raw(number.trim().parse().expect("a number")).expect("a process");
        kill_process(peer, Signal::STOP).expect("stop");
        let hung = Self { bench, child, peer };
        wait_until("a work waits", PATIENCE, || hung.waits());
        hung
    }

    /// Whether a process of the bench waits for a FUSE daemon, by where it is in the kernel.
    fn waits(&self) -> bool {
        let waits = |pid: &u32| {
            let at = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            at.contains("request_wait") || at.contains("fuse")
        };
        children_of(self.child.id()).iter().any(waits)
    }
}

impl Drop for Hung {
    /// Of a test that has failed nothing is to hang either, nor to stay mounted.
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            // The bench has ended its peer, whose number may be another's by now.
            return;
        }
        let _ = self.child.kill();
        let _ = kill_process(self.peer, Signal::KILL);
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.bench.place.path())) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn a_peer_that_hangs_keeps_nobody_from_stopping() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("bindfs")]) {
        return;
    }
    let mut hung = Hung::new("read --size=1M --files=2 --rounds=100000 --warmup=0");
    kill_process(Pid::from_child(&hung.child), Signal::TERM).expect("kill");
    wait_until("it ends", PATIENCE, || {
        hung.child.try_wait().expect("wait").is_some()
    });
    hung.bench.is_clean();
    let run = saved(&hung.bench.json());
    let native = named(&run, "sequential 1 MiB, O_DIRECT", "native");
    assert!(samples(native) >= 1);
}

#[test]
fn a_peer_that_hangs_is_given_up_and_the_others_go_on() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("bindfs")]) {
        return;
    }
    let mut hung = Hung::new("read --size=1M --files=2 --rounds=100000 --warmup=0 --limit=15");
    let work = "sequential 1 MiB, O_DIRECT";
    let failed = || named(&saved(&hung.bench.json()), work, "it")["failed"].clone();
    wait_until("it is left out", PATIENCE, || !failed().is_null());
    assert!(
        failed()
            .as_str()
            .unwrap()
            .contains("given up after 15 s; --limit")
    );
    let rounds = || samples(named(&saved(&hung.bench.json()), work, "native"));
    let before = rounds();
    wait_until("the others go on", PATIENCE, || rounds() > before);
    kill_process(Pid::from_child(&hung.child), Signal::TERM).expect("kill");
    wait_until("it ends", PATIENCE, || {
        hung.child.try_wait().expect("wait").is_some()
    });
    hung.bench.is_clean();
}

/// It is mounted anew before each work, which takes longer than a work may.
#[test]
fn what_prepares_a_work_is_not_in_its_limit() {
    if !require(&[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let mut command = bench.command(
        "meta --files=2 --rounds=1 --warmup=0 --no-look --no-corfs --limit=5 \
         --peer=slow=sleep\t6;mount\t--bind\t{SRC}\t{MNT}",
    );
    let (_, run) = bench.complete(command.arg("--only=readdir, fresh"));
    assert_eq!(samples(named(&run, "readdir, fresh mount", "slow")), 1);
}

/// As under nohup, when the terminal goes.
#[test]
fn a_hangup_that_is_ignored_ends_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    let words = bench.command("meta --files=2 --rounds=100000 --warmup=0 --only=create --no-look");
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(words.get_program())
        .args(words.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let rounds = || match bench.json().exists() {
        true => samples(named(&saved(&bench.json()), "create", "native")),
        false => 0,
    };
    wait_until("a round is saved", PATIENCE, || rounds() > 0);
    let before = rounds();
    kill_process(Pid::from_child(&child), Signal::HUP).expect("kill");
    // One round may have been under way.
    wait_until("it goes on", PATIENCE, || {
        rounds() > before + 1 || child.try_wait().expect("wait").is_some()
    });
    assert!(child.try_wait().expect("wait").is_none(), "it has ended");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kill");
    wait_until("it ends", PATIENCE, || {
        child.try_wait().expect("wait").is_some()
    });
    bench.is_clean();
}

/// Also before the first round, while somebody is waited for who does not mount.
#[test]
fn who_stops_it_while_it_begins_need_not_wait() {
    let bench = Bench::new();
    let mut child = bench
        .command("read --size=1M --no-corfs --peer=never=sleep\t1000;:\t{SRC}\t{MNT}")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let began = || {
        let folders = fs::read_dir(bench.place.path()).unwrap().flatten();
        folders
            .into_iter()
            .any(|f| f.path().join("mnt-1.log").exists())
    };
    wait_until("it waits for the mount", PATIENCE, began);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kill");
    // It has 30 s of patience itself.
    wait_until("it ends", Duration::from_secs(15), || {
        child.try_wait().expect("wait").is_some()
    });
    let out = child.wait_with_output().expect("wait");
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("stopped before"), "{said}");
    bench.is_clean();
}

/// Who is killed unmounts nothing by himself.
#[test]
fn what_a_killed_corfs_leaves_is_unmounted() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let bench = Bench::new();
    // A work before which nothing is mounted anew.
    let mut child = bench
        .command(
            "read --size=1M --files=2 --rounds=100000 --warmup=0 --only=strided --no-look \
             --windows= --budgets= --corfs=it=io=mmap",
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    wait_until("a round is saved", PATIENCE, || bench.json().exists());
    let guardian = guardian_of(child.id());
    kill_process(guardian, Signal::KILL).expect("kill");
    let work = "strided, 64 KiB of each 512";
    let dead = || !named(&saved(&bench.json()), work, "it")["failed"].is_null();
    wait_until("its work fails", PATIENCE, dead);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kill");
    wait_until("it ends", PATIENCE, || {
        child.try_wait().expect("wait").is_some()
    });
    bench.is_clean();
}

/// The process of the one mount that a bench has; its other children are the works.
fn guardian_of(bench: u32) -> Pid {
    let of = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("/mnt-1\0")
    };
    let mut found = None;
    wait_until("the mount has a process", PATIENCE, || {
        found = children_of(bench).into_iter().find(of);
        found.is_some()
    });
    let number = found.and_then(|pid| i32::try_from(pid).ok());
    number.and_then(Pid::from_raw).expect("a process")
}
