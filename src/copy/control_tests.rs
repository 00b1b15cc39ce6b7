//! Writes on an open `.copy`, and what they answer.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command as Program};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Longer than anything here takes, for tests that would else hang.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    folder: tempfile::TempDir,
    jobs: Arc<Jobs>,
    /// Names that were published.
    published: Receiver<String>,
    /// Each word sent lets one copy to a name that begins with `hold` go on.
    release: Sender<()>,
}

impl World {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/a"), "text").unwrap();
        let root = folder_fd(folder.path());
        let options = JobsOptions {
            root: Box::new(move || Ok(Arc::clone(&root))),
            mountpoints: vec!["/mnt".into()],
            read_only,
            control_name: Some(".copy".into()),
            write_back: None,
            patience: None,
        };
        let (sender, published) = channel();
        let (release, held) = channel();
        let (sender, held) = (Mutex::new(sender), Mutex::new(held));
        let note: Tell = Box::new(move |change| {
            let Change::Name(_, name) = change else {
                return;
            };
            let name = name.to_str().unwrap().to_owned();
            assert!(!name.contains("panic"), "on purpose");
            if name.starts_with("hold") {
                held.lock().recv_timeout(PATIENCE).unwrap();
            }
            let _ = sender.lock().send(name);
        });
        let jobs = Jobs::new(options, Arc::new(Metrics::new()), note);
        Self {
            folder,
            jobs,
            published,
            release,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("d").join(name)
    }

    fn open(&self) -> Desk {
        self.open_as(Credentials::of_self())
    }

    fn open_as(&self, opener: Credentials) -> Desk {
        let writer = Writer {
            uid: opener.uid,
            pid: std::process::id(),
        };
        let directory = folder_fd(&self.path(""));
        let handle =
            ControlHandle::open(Arc::clone(&self.jobs), directory, opener.uid, opener, 0o022);
        Desk { handle, writer }
    }

    fn status(&self) -> String {
        String::from_utf8(self.jobs.status_text(0)).unwrap()
    }

    fn listing(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }

    /// Waits until the list of jobs says so.
    fn wait_for(&self, text: &str, times: usize) {
        while self.status().matches(text).count() < times {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn folder_fd(path: &Path) -> Arc<OwnedFd> {
    Arc::new(open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap())
}

/// A handle, and the one who writes on it.
struct Desk {
    handle: Arc<ControlHandle>,
    writer: Writer,
}

type Outcome<T> = std::result::Result<T, Errno>;

impl Desk {
    fn send(&self, data: &str) -> Receiver<Outcome<u32>> {
        let (sender, answer) = channel();
        let done = move |outcome: Result<u32>| {
            let _ = sender.send(outcome.map_err(|fail| fail.errno));
        };
        self.handle
            .write(self.writer, data.as_bytes(), false, Box::new(done));
        answer
    }

    fn write(&self, data: &str) -> Outcome<u32> {
        self.send(data).recv_timeout(PATIENCE).unwrap()
    }

    fn flush_by(&self, pid: u32) -> Outcome<()> {
        let (sender, answer) = channel();
        let done = move |outcome: Result<()>| {
            let _ = sender.send(outcome.map_err(|fail| fail.errno));
        };
        let writer = Writer { pid, ..self.writer };
        self.handle.flush(writer, Box::new(done));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    fn flush(&self) -> Outcome<()> {
        self.flush_by(self.writer.pid)
    }
}

fn stranger() -> Credentials {
    Credentials {
        uid: 54_321,
        gid: 54_322,
        groups: vec![],
        effective: 0,
    }
}

/// A process that waits with a signal pending, as one does whose request has reached us.
struct Interrupted(Child);

impl Interrupted {
    fn new() -> Self {
        let child = Program::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    /// Not by SIGINT, which who runs in a shell's background ignores.
    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_line_is_a_copy_and_the_write_ends_with_it() {
    let world = World::new();
    let desk = world.open();
    assert_eq!(desk.write("a 'b c'\n"), Ok(8));
    assert_eq!(world.published.try_recv().unwrap(), "b c");
    assert_eq!(fs::read(world.path("b c")).unwrap(), b"text");
    assert_eq!(desk.write("a ..\n/mnt/a /mnt/d/e # twice\n"), Ok(29));
    assert_eq!(fs::read(world.path("e")).unwrap(), b"text");
    let status = world.status();
    assert!(status.contains("1  done       4/4 B (100 %)") && status.contains("a -> 'b c'"));
    assert_eq!(world.listing(), ["a", "b c", "e"]);
}

#[test]
fn every_error_is_the_errno_of_the_write_and_explained_in_the_list() {
    let world = World::new();
    fs::create_dir_all(world.path("taken/a")).unwrap();
    std::os::unix::fs::symlink("/etc", world.path("out")).unwrap();
    std::os::unix::fs::symlink("none", world.path("dangling")).unwrap();
    let before = world.listing();
    let desk = world.open();
    let cases = [
        ("none b", Errno::NOENT, "openat2"),
        ("a none/b", Errno::NOENT, "openat2"),
        ("a dangling", Errno::NOENT, "dangling symbolic link"),
        ("taken b", Errno::ISDIR, "the source is a directory"),
        (
            "a taken",
            Errno::ISDIR,
            "a directory stands at the destination",
        ),
        ("a ./a", Errno::INVAL, "are the same file"),
        ("a", Errno::INVAL, "column 2: the destination is missing"),
        ("--foo a b", Errno::INVAL, "column 1: unknown option --foo"),
        ("a a/", Errno::NOTDIR, "openat2"),
        ("a .copy", Errno::EXIST, "the name of the control file"),
        ("out/passwd b", Errno::XDEV, "leaves the mounted tree"),
        ("../../x b", Errno::XDEV, "leaves the mounted tree"),
        ("a /tmp/b", Errno::XDEV, "leaves the mounted tree"),
    ];
    for (line, errno, text) in cases {
        assert_eq!(desk.write(&format!("{line}\n")), Err(errno), "{line}");
        let status = world.status();
        let last = status.lines().last().unwrap();
        assert!(last.contains(text), "{line}: {last}");
    }
    assert_eq!(world.status().matches("  failed  ").count(), cases.len());
    assert_eq!(world.listing(), before);
    assert!(world.published.try_recv().is_err());
}

#[test]
fn a_read_only_mount_copies_nothing() {
    let world = World::with(true);
    assert_eq!(world.open().write("none b\n"), Err(Errno::ROFS));
    assert_eq!(world.open().write("a b\n"), Err(Errno::ROFS));
    assert_eq!(world.listing(), ["a"]);
}

#[test]
fn the_opener_decides_not_the_writer() {
    let world = World::new();
    if stranger().run_as(|| ()).is_err() {
        crate::sys::testing::skip("needs the right to act as another user");
        return;
    }
    let mode = |path: PathBuf, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    mode(world.folder.path().to_owned(), 0o755);
    mode(world.path("a"), 0o644);
    let desk = world.open_as(stranger());
    assert_eq!(desk.write("a b\n"), Err(Errno::ACCESS));

    mode(world.path(""), 0o777);
    assert_eq!(desk.write("a b\n"), Ok(4));
    let made = fs::metadata(world.path("b")).unwrap();
    assert_eq!((made.uid(), made.gid()), (54_321, 54_322));
    assert_eq!(
        desk.write("b a\n"),
        Err(Errno::ACCESS),
        "a is not theirs to write"
    );

    mode(world.path("a"), 0o600);
    assert_eq!(desk.write("a c\n"), Err(Errno::ACCESS));
    let root_writes = Desk {
        handle: desk.handle,
        writer: world.open().writer,
    };
    assert_eq!(root_writes.write("a c\n"), Err(Errno::PERM));
    assert_eq!(world.listing(), ["a", "b"]);

    world.open().write("a mine\n").unwrap();
    let theirs = String::from_utf8(world.jobs.status_text(54_321)).unwrap();
    assert!(theirs.contains("a -> b") && !theirs.contains("mine"));
}

#[test]
fn a_failing_line_after_others_makes_the_write_short() {
    let world = World::new();
    let desk = world.open();
    assert_eq!(desk.write("a b\nnone c\na d\n"), Ok(4));
    assert_eq!(desk.write("none c\na d\n"), Err(Errno::NOENT));
    assert_eq!(
        world.status().matches("none -> c").count(),
        1,
        "not run twice"
    );
    assert_eq!(desk.write("a e\nnone f\n"), Ok(4));
    assert_eq!(desk.flush(), Err(Errno::NOENT));
    assert_eq!(desk.flush(), Ok(()));
    assert_eq!(world.listing(), ["a", "b", "e"]);
}

#[test]
fn a_line_in_two_writes_and_one_that_ends_with_the_file() {
    let world = World::new();
    let desk = world.open();
    assert_eq!(desk.write("a "), Ok(2));
    assert_eq!(world.listing(), ["a"]);
    assert_eq!(desk.write("b\na"), Ok(3));
    assert_eq!(desk.write(" c"), Ok(2));
    assert_eq!(world.listing(), ["a", "b"]);
    assert_eq!(desk.flush(), Ok(()));
    assert_eq!(world.listing(), ["a", "b", "c"]);
    assert_eq!(desk.write("none d"), Ok(6));
    assert_eq!(desk.flush(), Err(Errno::NOENT));
    assert_eq!(desk.write(&"x".repeat(70_000)), Err(Errno::INVAL));
}

#[test]
fn a_close_by_another_process_does_not_end_the_line() {
    let world = World::new();
    let desk = world.open();
    let other = Interrupted::new();
    assert_eq!(desk.write("a "), Ok(2));
    assert_eq!(desk.flush_by(other.0.id()), Ok(()));
    assert_eq!(desk.write("b\n"), Ok(2));
    assert_eq!(desk.write("a c"), Ok(3));
    desk.handle.closed();
    assert_eq!(desk.flush(), Ok(()));
    assert_eq!(world.listing(), ["a", "b"]);
}

#[test]
fn a_signal_cancels_what_runs() {
    let world = World::new();
    let large = File::create(world.path("large")).unwrap();
    large.set_len(64 << 20).unwrap();
    let caller = Interrupted::new();
    caller.interrupt();
    let mut desk = world.open();
    desk.writer.pid = caller.0.id();
    // Twenty seconds' work, however fast the machine is.
    let line = "--sparse=never --limit=3M --chunk=64K large b\n";
    assert_eq!(desk.write(line), Err(Errno::INTR));
    assert!(world.status().contains("cancelled"));
    assert_eq!(world.listing(), ["a", "large"]);
}

#[test]
fn a_signal_cancels_what_waits_for_its_turn() {
    let world = World::new();
    let holders: Vec<_> = (0..4).map(|_| world.open()).collect();
    let held: Vec<_> = holders
        .iter()
        .enumerate()
        .map(|(i, desk)| desk.send(&format!("a hold{i}\n")))
        .collect();
    world.wait_for("running", 4);
    let caller = Interrupted::new();
    let mut desk = world.open();
    desk.writer.pid = caller.0.id();
    let answer = desk.send("a b\n");
    world.wait_for("queued", 1);
    caller.interrupt();
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Err(Errno::INTR));
    for answer in held {
        world.release.send(()).unwrap();
        drop(answer);
    }
    world.jobs.shutdown();
    assert_eq!(world.listing(), ["a", "hold0", "hold1", "hold2", "hold3"]);
}

#[test]
fn other_handles_do_not_wait_for_a_long_copy() {
    let world = World::new();
    let long = world.open().send("a hold\n");
    world.wait_for("running", 1);
    assert_eq!(world.open().write("a b\n"), Ok(4));
    assert!(world.status().contains("running") && world.status().contains("done"));
    assert!(long.try_recv().is_err());
    world.release.send(()).unwrap();
    assert_eq!(long.recv_timeout(PATIENCE).unwrap(), Ok(7));
}

#[test]
fn writes_on_one_handle_run_in_order_and_are_bounded() {
    let world = World::new();
    let desk = world.open();
    let first = desk.send("a hold\n");
    world.wait_for("running", 1);
    let next = desk.send("hold b\n");
    let rest: Vec<_> = (2..MOST_WAITING.0).map(|_| desk.send("#\n")).collect();
    assert_eq!(desk.write("a c\n"), Err(Errno::AGAIN));
    assert_eq!(world.open().write("a c\n"), Err(Errno::AGAIN));
    assert!(next.try_recv().is_err());
    world.release.send(()).unwrap();
    assert_eq!(first.recv_timeout(PATIENCE).unwrap(), Ok(7));
    assert_eq!(next.recv_timeout(PATIENCE).unwrap(), Ok(7));
    for answer in rest {
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(2));
    }
    assert_eq!(world.listing(), ["a", "b", "hold"]);
}

#[test]
fn a_shutdown_cancels_answers_and_takes_no_more() {
    let world = World::new();
    let desk = world.open();
    let running = desk.send("a hold\na b\n");
    // Past the last look at a cancel: while it copies, the shutdown would end it before its time.
    while !world.path("hold").exists() {
        std::thread::yield_now();
    }
    let waiting = desk.send("a c\n");
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| world.jobs.shutdown());
        while !world.jobs.registry.is_closed() {
            std::thread::yield_now();
        }
        assert!(!shutdown.is_finished(), "it waits for what runs");
        world.release.send(()).unwrap();
        shutdown.join().unwrap();
    });
    assert_eq!(
        running.try_recv().unwrap(),
        Ok(7),
        "the second line was not run"
    );
    assert_eq!(waiting.try_recv().unwrap(), Err(Errno::CANCELED));
    assert_eq!(desk.write("a d\n"), Err(Errno::CANCELED));
    assert_eq!(world.listing(), ["a", "hold"]);
}

#[test]
fn a_defect_answers_the_writer_and_stops_nobody_else() {
    let world = World::new();
    let desk = world.open();
    assert_eq!(desk.write("a panic\n"), Err(Errno::IO));
    assert_eq!(desk.write("a b\n"), Ok(4));
    let handle = Arc::clone(&desk.handle);
    let answer = Box::new(|_| panic!("on purpose"));
    handle.write(desk.writer, b"a c\n", false, answer);
    assert_eq!(desk.write("a d\n"), Ok(4));
    world.jobs.shutdown();
}

/// The number of the newest job.
fn newest(world: &World) -> String {
    let status = world.status();
    let jobs = status.lines().filter(|line| !line.starts_with('#'));
    let numbers = jobs.filter_map(|line| line[..5].trim().parse::<u64>().ok());
    numbers.max().unwrap().to_string()
}

#[test]
fn a_copy_in_the_background_is_answered_at_once_and_outlives_its_descriptor() {
    let world = World::new();
    let desk = world.open();
    assert_eq!(desk.write("a hold &\nnone b &\n"), Ok(18));
    world.wait_for("running", 1);
    desk.handle.closed();
    drop(desk);
    let number = newest(&world);
    let other = world.open();
    world.wait_for("failed", 1);
    assert_eq!(
        other.write(&format!("--wait {number}\n")),
        Err(Errno::NOENT)
    );
    let waits = other.send("--wait 1\n");
    world.release.send(()).unwrap();
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), Ok(9));
    assert_eq!(other.write("--wait 1\n"), Ok(9));
    assert_eq!(other.write("--wait 77\n"), Err(Errno::SRCH));
    assert!(world.status().contains("no job 77 of yours"));
    assert_eq!(world.listing(), ["a", "hold"]);
}

#[test]
fn one_who_waits_for_anothers_copy_can_stop_waiting() {
    let world = World::new();
    assert_eq!(world.open().write("a hold &\n"), Ok(9));
    let caller = Interrupted::new();
    let mut desk = world.open();
    desk.writer.pid = caller.0.id();
    let waits = desk.send("--wait 1\n");
    caller.interrupt();
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), Err(Errno::INTR));
    world.release.send(()).unwrap();
    assert_eq!(
        world.open().write("--wait 1\n"),
        Ok(9),
        "it goes on without him"
    );
}

#[test]
fn a_line_cancels_what_another_waits_for_and_that_is_no_signal() {
    let world = World::new();
    let waits = world.open().send("a hold\n");
    world.wait_for("running", 1);
    // It hangs: it is within a call that does not come back.
    assert_eq!(world.open().write("--cancel 1\n"), Ok(11));
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), Err(Errno::CANCELED));
    assert_eq!(world.open().write("--cancel 1\n"), Err(Errno::SRCH));
    assert_eq!(world.open().write("--cancel all\n"), Ok(13));
    world.release.send(()).unwrap();
    world.jobs.shutdown();
}

#[test]
fn a_held_copy_goes_on_when_it_may() {
    let world = World::new();
    let desk = world.open();
    let holders: Vec<_> = (0..4)
        .map(|i| world.open().send(&format!("a hold{i}\n")))
        .collect();
    world.wait_for("running", 4);
    assert_eq!(desk.write("a b &\n--pause 5\n"), Ok(16));
    world.wait_for("paused", 1);
    for _ in 0..4 {
        world.release.send(()).unwrap();
    }
    for answer in holders {
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(8));
    }
    assert!(!world.path("b").exists());
    assert_eq!(desk.write("--resume-job 5\n--wait 5\n"), Ok(24));
    assert!(world.path("b").exists());
}

#[test]
fn a_plan_stops_at_the_right_line_also_at_words_to_jobs() {
    let world = World::new();
    let desk = world.open();
    let plan = "# a plan\n\na b\n--cancel 99\na c\n";
    assert_eq!(desk.write(plan), Ok(14));
    assert_eq!(desk.write(&plan[14..]), Err(Errno::SRCH));
    assert_eq!(
        desk.write("a b c\n"),
        Err(Errno::NOTDIR),
        "several, and no directory"
    );
    assert_eq!(world.listing(), ["a", "b"]);
}

#[test]
fn long_writes_are_read_in_parts() {
    let world = World::new();
    let desk = world.open();
    let plan = "# much\n".repeat(10_000) + "a b\n" + &"--cancel all\n".repeat(300) + "a c\n";
    assert_eq!(desk.write(&plan), Ok(plan.len() as u32));
    assert_eq!(world.listing(), ["a", "b", "c"]);
}

#[test]
fn a_write_that_nobody_goes_on_with_counts_what_is_done() {
    let world = World::new();
    let desk = world.open();
    let first = desk.send("a b\na hold\na c\n");
    while !world.path("hold").exists() {
        std::thread::yield_now();
    }
    let second = desk.send("a d\n");
    // As when no thread can be had.
    let fail = Fail::new(Errno::AGAIN, "thread");
    desk.handle.refuse_all(&fail);
    assert_eq!(first.recv_timeout(PATIENCE).unwrap(), Ok(4));
    assert_eq!(second.recv_timeout(PATIENCE).unwrap(), Err(Errno::AGAIN));
    world.release.send(()).unwrap();
    world.jobs.shutdown();
    assert_eq!(world.listing(), ["a", "b", "hold"]);
}

#[test]
fn one_users_waiting_writes_keep_no_other_out() {
    let world = World::new();
    let holders: Vec<_> = (0..4)
        .map(|i| world.open().send(&format!("a hold{i}\n")))
        .collect();
    world.wait_for("running", 4);
    let waits: Vec<_> = (4..MOST_WAITING.0)
        .map(|_| world.open().send("a b\n"))
        .collect();
    assert_eq!(world.open().write("a c\n"), Err(Errno::AGAIN));
    assert!(world.status().contains("1 lines of user 0 were not taken"));
    // Bytes are bounded, too.
    let other = Desk {
        handle: ControlHandle::open(
            Arc::clone(&world.jobs),
            folder_fd(&world.path("")),
            54_321,
            Credentials::of_self(),
            0o022,
        ),
        writer: Writer {
            uid: 54_321,
            pid: 0,
        },
    };
    assert_eq!(other.write("a theirs\n"), Ok(9));
    assert_eq!(
        other.write(&"#".repeat(MOST_BYTES.0 + 1).replace("##", "#\n")),
        Err(Errno::AGAIN)
    );
    for _ in 0..4 {
        world.release.send(()).unwrap();
    }
    for answer in holders.into_iter().chain(waits) {
        assert!(answer.recv_timeout(PATIENCE).unwrap().is_ok());
    }
    // Counted back just after the answer.
    while world.jobs.waiting.lock().count.taken() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(world.jobs.waiting.lock().bytes.taken(), 0);
}

#[test]
fn no_thread_waits_with_a_writer() {
    let threads = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        let names = tasks.filter_map(|task| name(task.unwrap()).ok());
        names.filter(|name| name.trim() == "corfs-lines").count()
    };
    let world = World::new();
    let holders: Vec<_> = (0..4)
        .map(|i| world.open().send(&format!("a hold{i}\n")))
        .collect();
    world.wait_for("running", 4);
    let waits: Vec<_> = (0..500).map(|_| world.open().send("#\na b\n")).collect();
    // Other tests have theirs beside.
    assert!(threads() < 100, "{}", threads());
    assert_eq!(world.status().matches("running").count(), 4);
    for _ in 0..4 {
        world.release.send(()).unwrap();
    }
    for answer in holders.into_iter().chain(waits) {
        assert!(answer.recv_timeout(PATIENCE).unwrap().is_ok());
    }
}
