//! Has the one who waits for us been told to stop?
//!
//! The kernel does not tell a FUSE daemon that answered INTERRUPT with ENOSYS, and a caller whose
//! request has reached us cannot even be killed until it is answered. But the signals wait for
//! it, and `/proc/PID/status` shows them.
//!
//! Nothing else of `/proc/PID` is read: of one who executes a program, which closes descriptors and
//! waits for our answers to that, `stat` and others are withheld until he has done so (tried on
//! Linux 6.18), and we would wait for each other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

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
    /// The status of this thread, and of none that is given its number later.
    status: Option<File>,
}

impl CallerWatch {
    /// Begins to watch the thread `pid`, as a FUSE request names it.
    ///
    /// For 0 (another pid namespace), and where `/proc` does not show the thread now (`hidepid`;
    /// a caller that waits for us cannot have died), the watch never reports anything.
    pub fn new(pid: u32) -> Self {
        let open = || File::open(format!("/proc/{pid}/status")).ok();
        Self {
            status: (pid != 0).then(open).flatten(),
        }
    }

    /// Whether the caller has died, or has a signal pending that would stop it (SIGINT, SIGTERM,
    /// SIGKILL, SIGHUP or SIGQUIT, neither blocked nor ignored). Costs a small read of `/proc`.
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
        match read_anew(self.status.as_ref()?) {
            Ok(status) => judge(&status, signals),
            // ESRCH: reaped.
            Err(_) => Some(Signalled::Gone),
        }
    }
}

/// What an open file of `/proc` says now.
fn read_anew(file: &File) -> std::io::Result<Vec<u8>> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        match file.read_at(&mut text[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
        text.resize(length + 4096, 0);
    }
    text.truncate(length);
    Ok(text)
}

/// The file creation mask of a thread; None when it is not to be seen (0: another pid namespace).
pub fn umask_of(thread: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{thread}/status")).ok()?;
    u32::from_str_radix(field(&status, "Umask")?, 8).ok()
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

fn judge(status: &[u8], signals: impl IntoIterator<Item = i32>) -> Option<Signalled> {
    // One letter, then the word for it in parentheses.
    if field(status, "State").is_none_or(|state| state.starts_with(['Z', 'X', 'x'])) {
        return Some(Signalled::Gone);
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
            self.wait_for_state('T');
        }

        fn wait_for_state(&self, state: char) {
            loop {
                let status = fs::read(format!("/proc/{}/status", self.0.id())).unwrap();
                if field(&status, "State").unwrap().starts_with(state) {
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
    fn a_mask_is_read() {
        let script = ["-c", "umask 0137; exec sleep 600"];
        let child = Sleeper(Command::new("sh").args(script).spawn().unwrap());
        while umask_of(child.0.id()) != Some(0o137) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(umask_of(0), None);
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
        child.wait_for_state('Z');
        assert_eq!(watch.signalled(), Some(Signalled::Gone));
        child.0.wait().unwrap();
        assert_eq!(watch.signalled(), Some(Signalled::Gone));
    }

    #[test]
    fn nobody_known_is_never_signalled() {
        assert_eq!(CallerWatch::new(0).signalled(), None);
        assert_eq!(CallerWatch::new(u32::MAX).signalled(), None);
    }

    #[test]
    fn the_masks_are_applied() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tx\nState:\tS (sleeping)\nSigQ:\t1/2\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
            .into_bytes()
        };
        let int = 1 << (libc::SIGINT - 1);
        let kill = 1 << (libc::SIGKILL - 1);
        let seen = |status: Vec<u8>| judge(&status, STOPPING);
        assert_eq!(seen(status(int, 0, 0, 0)), Some(Signalled::Pending(2)));
        assert_eq!(seen(status(0, int, 0, 0)), Some(Signalled::Pending(2)));
        assert_eq!(seen(status(int, 0, int, 0)), None);
        assert_eq!(seen(status(0, int, 0, int)), None);
        assert_eq!(seen(status(kill, int, int, 0)), Some(Signalled::Pending(9)));
    }

    #[test]
    fn a_long_status_is_read_whole_and_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = File::open(file.path()).unwrap();
        for length in [10_000, 4096, 3] {
            fs::write(file.path(), vec![b'x'; length]).unwrap();
            assert_eq!(read_anew(&held).unwrap(), vec![b'x'; length]);
        }
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
