//! Parts of tests that must be processes of their own: this binary runs itself again, as one test
//! named [`role`], and takes orders line by line.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::io::Errno;

/// Says to a run of this binary which part it plays.
const ROLE: &str = "CORFS_IT_ROLE";
/// Answers stand on lines that begin so; the test harness prints lines of its own.
const ANSWER: &str = "@ ";

/// A process that plays a part; killed and reaped on drop.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    /// A process that opens `file` and locks ranges of it on command.
    #[track_caller]
    pub(crate) fn locker(file: &Path) -> Self {
        let mut actor = Self::spawn("locker");
        actor.order(file.to_str().expect("a plain name"));
        assert_eq!(actor.answer(), "open");
        actor
    }

    /// A process that changes the files of [`crate::storm`] below `dir` until it is told `end`.
    #[track_caller]
    pub(crate) fn mutator(dir: &Path, seed: u64) -> Self {
        let mut actor = Self::spawn("mutator");
        actor.order(dir.to_str().expect("a plain name"));
        actor.order(&seed.to_string());
        actor
    }

    /// A process that does [`crate::ceilings::churn::work`] below `base` for so many seconds, and
    /// then answers `ended`.
    #[track_caller]
    pub(crate) fn worker(base: &str, seed: u64, seconds: u64) -> Self {
        let mut actor = Self::spawn("worker");
        actor.order(&format!("{seed} {seconds} {base}"));
        actor
    }

    /// A process that holds files of [`crate::ceilings::walks`], without opening them, for as long
    /// as it lives: `count` of them from number `first` on.
    #[track_caller]
    pub(crate) fn holder(base: &str, first: u64, count: u64) -> Self {
        let mut actor = Self::spawn("holder");
        actor.order(&format!("{first} {count} {base}"));
        actor
    }

    #[track_caller]
    fn spawn(role: &str) -> Self {
        // The link, because an ordinary user may not reach the binary by its path.
        let mut child = Command::new("/proc/self/exe")
            .args([
                "--exact",
                "children::role",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("this binary as {role}: {e}"));
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            orders,
            answers,
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order without waiting for its answer.
    #[track_caller]
    pub(crate) fn order(&mut self, words: &str) {
        writeln!(self.orders, "{words}").expect("the actor reads its orders");
    }

    /// Waits for the next answer.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).expect("an answer");
            assert_ne!(read, 0, "the actor ended without an answer");
            // The harness prints `test children::role ... ` before, without a newline.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Gives an order and waits for its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, words: &str) -> String {
        self.order(words);
        self.answer()
    }

    /// Kills it with a signal and waits for its end.
    pub(crate) fn kill(mut self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The entry of such a process; an ordinary test run finds no part to play and passes.
#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("locker") => locker(),
        Ok("mutator") => mutator(),
        Ok("worker") => worker(),
        Ok("holder") => holder(),
        Ok(other) => panic!("no such part: {other}"),
        Err(_) => {}
    }
}

fn answer(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{ANSWER}{words}").expect("stdout");
    out.flush().expect("stdout");
}

/// First line: the file. Then `set|wait read|write|unlock START LEN`, `get read|write START LEN`.
fn locker() -> ! {
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let name = lines.next().expect("a file name");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name)
        .expect("the file opens");
    answer("open");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [order, kind, start, len] = words[..] else {
            panic!("not an order: {line:?}");
        };
        let numbers = (start.parse().expect("start"), len.parse().expect("length"));
        answer(&match order {
            "set" => said(lock(&file, libc::F_SETLK, kind, numbers)),
            "wait" => said(lock(&file, libc::F_SETLKW, kind, numbers)),
            "get" => got(lock(&file, libc::F_GETLK, kind, numbers)),
            _ => panic!("not an order: {line:?}"),
        });
    }
    // Not a return: the harness has nothing to add.
    std::process::exit(0)
}

/// Two lines, the directory and the seed; then it works until the third.
fn mutator() -> ! {
    let line = || {
        let mut line = String::new();
        // An end is an answer too: the other side is gone.
        std::io::stdin().read_line(&mut line).expect("stdin");
        line.trim_end().to_owned()
    };
    let dir = line();
    let seed = line().parse().expect("a seed");
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            line();
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        crate::storm::mutate(Path::new(&dir), seed, &ended);
    });
    answer("ended");
    std::process::exit(0)
}

/// One line: the seed, the seconds, the folder.
fn worker() -> ! {
    let (seed, seconds, base) = numbers_and_folder();
    crate::ceilings::churn::work(Path::new(&base), seed, seconds);
    answer("ended");
    std::process::exit(0)
}

/// One line: the first file, how many, the folder. Then it waits for the end of its orders.
fn holder() -> ! {
    let (first, count, base) = numbers_and_folder();
    let held = crate::ceilings::walks::hold(Path::new(&base), first, count);
    answer("holding");
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(held);
    std::process::exit(0)
}

fn numbers_and_folder() -> (u64, u64, String) {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("stdin");
    let words: Vec<&str> = line.trim_end().splitn(3, ' ').collect();
    let [one, two, folder] = words[..] else {
        panic!("not an order: {line:?}");
    };
    let number = |word: &str| word.parse().expect("a number");
    (number(one), number(two), folder.to_owned())
}

/// fcntl(2) with a range; 0 for `len` means to the end of any file.
pub(crate) fn lock(
    file: &std::fs::File,
    command: i32,
    kind: &str,
    (start, len): (i64, i64),
) -> Result<libc::flock, Errno> {
    let kind = match kind {
        "read" => libc::F_RDLCK,
        "write" => libc::F_WRLCK,
        "unlock" => libc::F_UNLCK,
        _ => panic!("no kind of lock: {kind}"),
    };
    // SAFETY: flock is plain numbers, for which all-zero is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as i16;
    range.l_whence = libc::SEEK_SET as i16;
    range.l_start = start;
    range.l_len = len;
    // SAFETY: the descriptor is open, and `range` lives through the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut range) };
    if done == 0 {
        return Ok(range);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).expect("an errno"))
}

fn said(result: Result<libc::flock, Errno>) -> String {
    match result {
        Ok(_) => "ok".into(),
        // POSIX allows either for a lock that is held.
        Err(Errno::ACCESS | Errno::AGAIN) => "held".into(),
        Err(errno) => format!("errno {}", errno.raw_os_error()),
    }
}

fn got(result: Result<libc::flock, Errno>) -> String {
    match result {
        Ok(range) => match i32::from(range.l_type) {
            libc::F_UNLCK => "free".into(),
            libc::F_RDLCK => format!("read {} {} {}", range.l_start, range.l_len, range.l_pid),
            _ => format!("write {} {} {}", range.l_start, range.l_len, range.l_pid),
        },
        Err(errno) => format!("errno {}", errno.raw_os_error()),
    }
}
