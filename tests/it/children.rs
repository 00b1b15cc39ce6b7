//! Parts of tests that must be processes of their own: this binary runs itself again, as one test
//! named [`role`], and takes orders line by line.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

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

    /// A process that opens `file`, maps it on command, and looks at or changes what it mapped.
    #[track_caller]
    pub(crate) fn mapper(file: &Path) -> Self {
        let mut actor = Self::spawn("mapper");
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

    /// A process that exchanges names below `root` ([`crate::callers::escape`]) until it is told
    /// `end`, as that user if one is given.
    #[track_caller]
    pub(crate) fn swapper(root: &Path, seed: u64, user: Option<u32>) -> Self {
        Self::escaping("swapper", root, seed, user)
    }

    /// As [`Actor::swapper`], one that does everything with names through the mount at `root`.
    #[track_caller]
    pub(crate) fn roamer(root: &Path, seed: u64, user: Option<u32>) -> Self {
        Self::escaping("roamer", root, seed, user)
    }

    #[track_caller]
    fn escaping(role: &str, root: &Path, seed: u64, user: Option<u32>) -> Self {
        let mut actor = Self::spawn(role);
        actor.order(root.to_str().expect("a plain name"));
        actor.order(&seed.to_string());
        actor.order(&user.map_or_else(String::new, |id| id.to_string()));
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

    /// A process that copies trees below `root` ([`crate::copying::trees`]) until it is killed.
    #[track_caller]
    pub(crate) fn copier(root: &Path) -> Self {
        let mut actor = Self::spawn("copier");
        actor.order(root.to_str().expect("a plain name"));
        assert_eq!(actor.answer(), "begun");
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
            // In a group with a parent outside it: SIGTSTP stops nobody whose group is an orphan, as
            // ours is where the tests were started in a session of their own.
            .process_group(0)
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

    /// Waits for the next answer, and does `nudge` again and again until it comes: a signal that is
    /// sent before its wait has begun is lost to it.
    #[track_caller]
    pub(crate) fn answer_after(&mut self, nudge: impl Fn() + Sync) -> String {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // An end to it also when the actor dies without an answer.
                for _ in 0..600 {
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    nudge();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            });
            let answer = self.answer();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            answer
        })
    }

    /// Gives an order and waits for its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, words: &str) -> String {
        self.order(words);
        self.answer()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// Says what SIGUSR1 shall do, and returns a way to send a signal to the thread that waits:
    /// one that is sent to the process may be taken by another.
    #[track_caller]
    pub(crate) fn handles(&mut self, how: &str) -> impl Fn(i32) + use<> {
        let thread: i32 = self
            .ask(&format!("handle {how}"))
            .parse()
            .expect("a thread");
        let process = self.child.id();
        move |signal| {
            // SAFETY: plain numbers; the actor lives until it is dropped.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
            assert_eq!(sent, 0, "tgkill");
        }
    }

    /// Waits for its end, which an order brought about.
    pub(crate) fn end(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait")
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
        Ok("mapper") => mapper(),
        Ok("mutator") => mutator(),
        Ok("swapper") => escaping(crate::callers::escape::swap),
        Ok("roamer") => escaping(crate::callers::escape::roam),
        Ok("worker") => worker(),
        Ok("holder") => holder(),
        Ok("copier") => copier(),
        Ok(other) => panic!("no such part: {other}"),
        Err(_) => {}
    }
}

fn copier() {
    let root = std::io::stdin()
        .lines()
        .next()
        .expect("an order")
        .expect("a line");
    answer("begun");
    crate::copying::copy_for_ever(Path::new(&root));
}

fn answer(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{ANSWER}{words}").expect("stdout");
    out.flush().expect("stdout");
}

fn open(name: &str) -> std::fs::File {
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).open(name);
    file.unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// First line: the file. Then `set|wait read|write|unlock START LEN`, `get read|write START LEN`
/// (`ofd-` before the kind: of the open, not of the process); `reopen` and `dup`, which close a
/// second descriptor; `fork`, whose child tries to lock all of the file and ends; `handle
/// plain|restart|ignore|block`, what SIGUSR1 shall do (the answer is the thread to send it to).
fn locker() -> ! {
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let name = lines.next().expect("a file name");
    let file = open(&name);
    answer("open");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        answer(&match words[..] {
            [order, kind, start, len] => {
                let numbers = (start.parse().expect("start"), len.parse().expect("length"));
                order_lock(&file, order, kind, numbers)
            }
            ["handle", how] => {
                handle(how);
                rustix::thread::gettid().as_raw_nonzero().to_string()
            }
            ["reopen"] => {
                drop(open(&name));
                "ok".into()
            }
            ["dup"] => {
                drop(file.try_clone().expect("dup"));
                "ok".into()
            }
            ["fork"] => fork(&file),
            _ => panic!("not an order: {line:?}"),
        });
    }
    // Not a return: the harness has nothing to add.
    std::process::exit(0)
}

fn order_lock(file: &std::fs::File, order: &str, kind: &str, range: (i64, i64)) -> String {
    let (ofd, kind) = match kind.strip_prefix("ofd-") {
        Some(kind) => (true, kind),
        None => (false, kind),
    };
    let command = |posix, other| if ofd { other } else { posix };
    match order {
        "set" => said(lock(
            file,
            command(libc::F_SETLK, libc::F_OFD_SETLK),
            kind,
            range,
        )),
        "wait" => said(lock(
            file,
            command(libc::F_SETLKW, libc::F_OFD_SETLKW),
            kind,
            range,
        )),
        "get" => got(lock(
            file,
            command(libc::F_GETLK, libc::F_OFD_GETLK),
            kind,
            range,
        )),
        _ => panic!("not an order: {order:?}"),
    }
}

extern "C" fn nothing(_signal: i32) {}

/// What SIGUSR1 shall do to this process.
fn handle(how: &str) {
    // SAFETY: sigaction and sigset_t are plain numbers, for which all-zero is a value; the handler
    // does nothing at all.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32) = nothing;
        action.sa_sigaction = match how {
            "ignore" => libc::SIG_IGN,
            _ => handler as *const () as usize,
        };
        action.sa_flags = if how == "restart" {
            libc::SA_RESTART
        } else {
            0
        };
        let old = std::ptr::null_mut();
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, old), 0);
        if how == "block" {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            assert_eq!(
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()),
                0
            );
        }
    }
}

/// A child tries to lock the whole file for writing by the descriptor that it got, says `ok` or
/// `held`, and ends, which closes its copy of the descriptor.
fn fork(file: &std::fs::File) -> String {
    // SAFETY: the child makes system calls only, and none that allocates.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let free = lock(file, libc::F_SETLK, "write", (0, 0)).is_ok();
            // SAFETY: ends this process at once, without what its parent would do at exit.
            unsafe { libc::_exit(i32::from(!free)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            match libc::WEXITSTATUS(status) {
                0 => "ok".into(),
                1 => "held".into(),
                other => panic!("the child ended with {other}"),
            }
        }
    }
}

/// First line: the file. Then `map LEN`, `store AT TEXT`, `load AT LEN`, `sync`, `lock`, `unmap`,
/// `close`. A touch beyond the end of the file ends it with SIGBUS.
fn mapper() -> ! {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mlock, mmap, msync, munmap};
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let mut file = Some(open(&lines.next().expect("a file name")));
    let (mut at, mut len) = (std::ptr::null_mut::<u8>(), 0);
    answer("open");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |n: usize| words[n].parse::<usize>().expect("a number");
        let byte = |offset: usize| {
            assert!(offset < len, "not mapped: {offset}");
            at.wrapping_add(offset)
        };
        let mut said = String::from("ok");
        // SAFETY: every address lies in the mapping of `len` bytes at `at`, which nothing but
        // these orders uses; other processes change it, so each byte is read and written once.
        unsafe {
            match words[0] {
                "map" => {
                    len = number(1);
                    let both = ProtFlags::READ | ProtFlags::WRITE;
                    let file = file.as_ref().expect("an open file");
                    let hint = std::ptr::null_mut();
                    at = mmap(hint, len, both, MapFlags::SHARED, file, 0)
                        .expect("mmap")
                        .cast();
                }
                "store" => {
                    for (n, &value) in words[2].as_bytes().iter().enumerate() {
                        byte(number(1) + n).write_volatile(value);
                    }
                }
                "load" => {
                    let load = |n| byte(number(1) + n).read_volatile();
                    let bytes: Vec<u8> = (0..number(2)).map(load).collect();
                    said = bytes.escape_ascii().to_string();
                }
                "sync" => msync(at.cast(), len, MsyncFlags::SYNC).expect("msync"),
                "lock" => mlock(at.cast(), len).expect("mlock"),
                "unmap" => munmap(at.cast(), len).expect("munmap"),
                "close" => drop(file.take()),
                _ => panic!("not an order: {line:?}"),
            }
        }
        answer(&said);
    }
    std::process::exit(0)
}

/// Two lines, the directory and the seed; then it works until the third.
fn mutator() -> ! {
    let dir = line();
    let seed = line().parse().expect("a seed");
    let ended = AtomicBool::new(false);
    until_told(&ended, || {
        crate::storm::mutate(Path::new(&dir), seed, &ended)
    });
    answer("ended");
    std::process::exit(0)
}

/// Three lines, the directory, the seed, and the user to become if any; it works until the fourth,
/// and answers what came of it.
fn escaping(part: fn(&Path, u64, &AtomicBool) -> String) -> ! {
    let dir = line();
    let seed = line().parse().expect("a seed");
    if let Ok(id) = line().parse() {
        crate::support::become_user(id, id, &[]);
    }
    let ended = AtomicBool::new(false);
    let came = until_told(&ended, || part(Path::new(&dir), seed, &ended));
    answer(&came);
    std::process::exit(0)
}

/// The next order.
fn line() -> String {
    let mut line = String::new();
    // An end is an answer too: the other side is gone.
    std::io::stdin().read_line(&mut line).expect("stdin");
    line.trim_end().to_owned()
}

/// Works on this thread until the next order, of which `ended` tells.
fn until_told<T>(ended: &AtomicBool, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            line();
            ended.store(true, Ordering::Relaxed);
        });
        work()
    })
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
