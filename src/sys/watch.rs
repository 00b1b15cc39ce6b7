//! Has the one who waits for us been told to stop?
//!
//! The kernel does not tell a FUSE daemon that answered INTERRUPT with ENOSYS, and a caller whose
//! request has reached us cannot even be killed until it is answered. But the signals wait for
//! it, and `/proc/PID/status` shows them.

use std::fs;

/// The signals by which people and systems stop a program.
const STOPPING: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGKILL,
    libc::SIGHUP,
    libc::SIGQUIT,
];

/// Why a caller should no longer be kept waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// The thread has died.
    Gone,
    /// A signal that stops programs is pending for it: the lowest such number.
    Pending(i32),
}

/// Watches one calling thread while its request is worked on.
#[derive(Debug)]
pub struct CallerWatch {
    /// The thread, and when it started: a number may be given again.
    thread: Option<(u32, u64)>,
}

impl CallerWatch {
    /// Begins to watch the thread `pid`, as a FUSE request names it.
    ///
    /// For 0 (another pid namespace), and where `/proc` does not show the thread now (`hidepid`;
    /// a caller that waits for us cannot have died), the watch never reports anything.
    pub fn new(pid: u32) -> Self {
        let thread = (pid != 0)
            .then(|| fs::read(format!("/proc/{pid}/stat")).ok())
            .flatten()
            .and_then(|stat| parse_stat(&stat))
            .map(|(_, start)| (pid, start));
        Self { thread }
    }

    /// Whether the caller has died, or has a signal pending that would stop it (SIGINT, SIGTERM,
    /// SIGKILL, SIGHUP or SIGQUIT, neither blocked nor ignored). Costs two small reads of `/proc`.
    pub fn signalled(&self) -> Option<Signalled> {
        self.pending_of(STOPPING)
    }

    /// As [`CallerWatch::signalled`], for any signal that would end a waiting system call: one who
    /// waits for a lock sets himself a deadline by SIGALRM. What is ignored, by choice or by
    /// default, is never pending.
    pub fn interrupted(&self) -> Option<Signalled> {
        self.pending_of(1..=64)
    }

    fn pending_of(&self, signals: impl IntoIterator<Item = i32>) -> Option<Signalled> {
        let (pid, start) = self.thread?;
        let (Ok(stat), Ok(status)) = (
            fs::read(format!("/proc/{pid}/stat")),
            fs::read(format!("/proc/{pid}/status")),
        ) else {
            return Some(Signalled::Gone);
        };
        judge(&stat, &status, start, signals)
    }
}

/// True when both threads belong to one process; 0 (unknown) belongs to any.
pub fn same_process(one: u32, other: u32) -> bool {
    one == other
        || one == 0
        || other == 0
        || process_of(one).is_some_and(|p| Some(p) == process_of(other))
}

fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{thread}/status")).ok()?;
    field(&status, "Tgid")?.parse().ok()
}

fn judge(
    stat: &[u8],
    status: &[u8],
    start: u64,
    signals: impl IntoIterator<Item = i32>,
) -> Option<Signalled> {
    match parse_stat(stat) {
        None | Some((b'Z' | b'X' | b'x', _)) => return Some(Signalled::Gone),
        Some((_, now)) if now != start => return Some(Signalled::Gone),
        Some(_) => {}
    }
    let mask = |name| field(status, name).and_then(|m| u64::from_str_radix(m, 16).ok());
    let pending = mask("SigPnd").unwrap_or(0) | mask("ShdPnd").unwrap_or(0);
    let deaf = mask("SigBlk").unwrap_or(0) | mask("SigIgn").unwrap_or(0);
    signals
        .into_iter()
        .filter(|signal| (pending & !deaf) >> (signal - 1) & 1 == 1)
        .min()
        .map(Signalled::Pending)
}

/// State and start time (clock ticks since boot) from `/proc/PID/stat`: fields 3 and 22
/// (`proc_pid_stat(5)`). The name before them may hold anything, also spaces and parentheses.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// The value of one line of `/proc/PID/status`, trimmed. Names there may hold any byte.
pub(super) fn field<'a>(status: &'a [u8], name: &str) -> Option<&'a str> {
    status.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        Some(std::str::from_utf8(value).ok()?.trim())
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// A child that is killed and reaped with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }

        /// Stops it, so that signals stay pending (`signal(7)`), as for one who waits for us.
        fn stop(&self) {
            self.signal(Signal::STOP);
            self.wait_for_state(b'T');
        }

        fn wait_for_state(&self, state: u8) {
            loop {
                let stat = fs::read(format!("/proc/{}/stat", self.0.id())).unwrap();
                if parse_stat(&stat).unwrap().0 == state {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_pending_signal_is_seen() {
        let child = Sleeper::new();
        let watch = CallerWatch::new(child.0.id());
        child.stop();
        assert_eq!(watch.signalled(), None);
        child.signal(Signal::USR1);
        assert_eq!(watch.signalled(), None, "USR1 stops nobody's copy");
        child.signal(Signal::TERM);
        assert_eq!(watch.signalled(), Some(Signalled::Pending(libc::SIGTERM)));
        child.signal(Signal::INT);
        assert_eq!(watch.signalled(), Some(Signalled::Pending(libc::SIGINT)));
    }

    #[test]
    fn the_dead_are_gone_reaped_or_not() {
        let mut child = Sleeper::new();
        let watch = CallerWatch::new(child.0.id());
        child.signal(Signal::KILL);
        child.wait_for_state(b'Z');
        assert_eq!(watch.signalled(), Some(Signalled::Gone));
        child.0.wait().unwrap();
        assert_eq!(watch.signalled(), Some(Signalled::Gone));
    }

    #[test]
    fn nobody_known_is_never_signalled() {
        assert_eq!(CallerWatch::new(0).signalled(), None);
        assert_eq!(CallerWatch::new(u32::MAX).signalled(), None);
    }

    const STAT: &[u8] = b"7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";

    #[test]
    fn the_masks_are_applied() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tx\nSigQ:\t1/2\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
            .into_bytes()
        };
        let int = 1 << (libc::SIGINT - 1);
        let kill = 1 << (libc::SIGKILL - 1);
        let seen = |status: Vec<u8>| judge(STAT, &status, 4242, STOPPING);
        assert_eq!(seen(status(int, 0, 0, 0)), Some(Signalled::Pending(2)));
        assert_eq!(seen(status(0, int, 0, 0)), Some(Signalled::Pending(2)));
        assert_eq!(seen(status(int, 0, int, 0)), None);
        assert_eq!(seen(status(0, int, 0, int)), None);
        assert_eq!(seen(status(kill, int, int, 0)), Some(Signalled::Pending(9)));
    }

    #[test]
    fn a_number_given_again_is_another_thread() {
        assert_eq!(parse_stat(STAT), Some((b'S', 4242)));
        assert_eq!(judge(STAT, b"", 4242, STOPPING), None);
        assert_eq!(judge(STAT, b"", 4241, STOPPING), Some(Signalled::Gone));
    }

    #[test]
    fn threads_of_one_process_are_told_from_others() {
        let child = Sleeper::new();
        let own = std::process::id();
        let thread = std::thread::spawn(|| {
            let thread = rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs();
            same_process(thread, std::process::id())
        });
        assert!(thread.join().unwrap());
        assert!(!same_process(own, child.0.id()));
        assert!(same_process(own, 0));
    }
}
