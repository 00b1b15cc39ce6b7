//! Processes that do something for us and can be given up. Nobody else touches a mount: what is
//! mounted may never answer, and who waits for it then can't even be killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::probe::Probe;
use super::progress::Stop;

/// How often one looks whether to wait any longer.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// How long a killed process may take to end, unless it waits for a mount.
const GRACE: Duration = Duration::from_secs(2);

/// Why nobody waits any longer when somebody wants us to stop.
const STOPPED: &str = "stopped";

/// How long one waits.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    stop: Stop,
    until: Instant,
    limit: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It has failed, in its own words.
    Failed(String),
    /// It was killed, because it took too long or because somebody wants us to stop.
    Late(String),
    /// It was killed, and does not end: what it waits for does not let it go.
    Stuck(String, Child),
}

impl Trouble {
    /// In words.
    pub(super) fn words(self) -> String {
        match self {
            Self::Failed(words) | Self::Late(words) | Self::Stuck(words, _) => words,
        }
    }

    /// In words, and with what to do about it, for what `--limit` has ended.
    pub(super) fn words_of_limit(self) -> String {
        match self {
            Self::Late(words) | Self::Stuck(words, _) if words != STOPPED => {
                format!("{words}; --limit allows for more")
            }
            other => other.words(),
        }
    }

    /// Somebody wants us to stop.
    pub(super) fn stopped() -> Self {
        Self::Late(STOPPED.into())
    }
}

impl Wait {
    /// From now on, until somebody wants us to stop.
    pub(super) fn within(limit: Duration, stop: &Stop) -> Self {
        Self {
            stop: stop.clone(),
            until: Instant::now() + limit,
            limit,
        }
    }

    /// Why to wait no longer.
    pub(super) fn over(&self) -> Option<String> {
        if self.stop.asked() {
            return Some(STOPPED.into());
        }
        let late = Instant::now() > self.until;
        late.then(|| format!("given up after {} s", self.limit.as_secs_f64().ceil()))
    }
}

/// Starts a probe.
pub(super) fn start(probe: &Probe) -> Result<Child, Trouble> {
    let failed = |error: io::Error| Trouble::Failed(format!("start corfs: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    spawn(Command::new(program), probe).map_err(failed)
}

/// Starts a probe; `command` is corfs, or what runs it. What to do goes by standard input: one word
/// of a command is not to be longer than 128 KiB.
pub(super) fn spawn(mut command: Command, probe: &Probe) -> io::Result<Child> {
    let program = std::env::current_exe()?;
    if command.get_program() != program.as_os_str() {
        command.arg(&program);
    }
    let json = serde_json::to_vec(probe)?;
    // A group of its own: Ctrl-C is for us, who then end all of the group.
    let mut child = command
        .args(["bench", "probe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    if let Some(mut to) = child.stdin.take() {
        // Who has ended before it has read this tells why.
        let _ = to.write_all(&json);
    }
    Ok(child)
}

/// Has a probe do something, and returns what it printed.
pub(super) fn ask(probe: &Probe, wait: &Wait) -> Result<Vec<u8>, Trouble> {
    output(start(probe)?, wait)
}

/// Waits for a probe, and returns what it printed.
pub(super) fn output(mut child: Child, wait: &Wait) -> Result<Vec<u8>, Trouble> {
    let failed = |error: io::Error| Trouble::Failed(format!("wait for the work: {error}"));
    let [said, complained] = match gather(&mut child, wait).map_err(failed)? {
        Ok(both) => both,
        Err(why) => return Err(give_up(child, why)),
    };
    let status = ended(&mut child, wait).map_err(failed)?;
    let Some(status) = status else {
        let why = wait.over().unwrap_or_default();
        return Err(give_up(child, why));
    };
    if status.success() {
        return Ok(said);
    }
    let complained = String::from_utf8_lossy(&complained);
    let words = complained.trim().trim_start_matches("corfs: ");
    Err(Trouble::Failed(match words {
        "" => format!("the work ended with {status}"),
        words => words.to_owned(),
    }))
}

/// What comes through both pipes until they are closed; else why it is not waited for.
fn gather(child: &mut Child, wait: &Wait) -> io::Result<Result<[Vec<u8>; 2], String>> {
    let pipes = [
        child.stdout.take().map(OwnedFd::from),
        child.stderr.take().map(OwnedFd::from),
    ];
    let mut open: Vec<(usize, File)> = (pipes.into_iter().enumerate())
        .filter_map(|(which, pipe)| Some((which, File::from(pipe?))))
        .collect();
    let mut said = [Vec::new(), Vec::new()];
    let mut block = [0; 4096];
    while !open.is_empty() {
        // While we were stopped ourselves (Ctrl-Z) the work may have ended in time.
        let (over, ended) = (wait.over(), has_ended(child)?);
        let found = ready(&open)?;
        if let Some(why) = over
            && (!ended || found.is_empty())
        {
            return Ok(Err(why));
        }
        for at in found.into_iter().rev() {
            let (which, pipe) = &mut open[at];
            match pipe.read(&mut block)? {
                0 => drop(open.remove(at)),
                count => said[*which].extend_from_slice(&block[..count]),
            }
        }
    }
    Ok(Ok(said))
}

/// Which of them can be read without waiting, after a short wait.
fn ready(open: &[(usize, File)]) -> io::Result<Vec<usize>> {
    let mut wanted: Vec<PollFd<'_>> = open
        .iter()
        .map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN))
        .collect();
    match poll(&mut wanted, Some(&LOOK)) {
        Ok(_) => {}
        // A signal: somebody may want us to stop.
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    }
    let is_ready = |(_, fd): &(usize, &PollFd<'_>)| !fd.revents().is_empty();
    let found = wanted.iter().enumerate().filter(is_ready);
    Ok(found.map(|(at, _)| at).collect())
}

/// Whether it has ended; its number stays its own, for those who then kill its group.
pub(super) fn has_ended(child: &Child) -> io::Result<bool> {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(Pid::from_child(child)), how)?.is_some())
}

/// Its end, while it is waited for.
fn ended(child: &mut Child, wait: &Wait) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if wait.over().is_some() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills it with all that it has started.
pub(super) fn give_up(mut child: Child, why: String) -> Trouble {
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return Trouble::Late(why);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Trouble::Stuck(why, child)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn what_is_said_comes_whole_from_both_pipes() {
        let wait = Wait::within(LONG, &Stop::default());
        let much = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; \
                    echo 0123456789012345678901234567890123456789 >&2; i=$((i+1)); done";
        assert_eq!(output(shell(much), &wait).unwrap().len(), 3000 * 41);
        let failed = output(shell("echo corfs: so >&2; exit 3"), &wait).unwrap_err();
        assert!(matches!(failed, Trouble::Failed(words) if words == "so"));
        let mute = output(shell("exit 3"), &wait).unwrap_err().words();
        assert!(mute.contains("exit status: 3"), "{mute}");
    }

    #[test]
    fn who_is_late_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("pid");
        // The pipes are held open by the child of the child.
        let child = shell(&format!(
            "sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait",
            told.display()
        ));
        eventually("it tells its child", || told.exists());
        let pid = std::fs::read_to_string(told).unwrap();
        assert!(lives(pid.trim()));
        let wait = Wait::within(Duration::from_millis(1), &Stop::default());
        let late = output(child, &wait).unwrap_err();
        assert!(matches!(late, Trouble::Late(words) if words.contains("given up after")));
        eventually("it ends", || !lives(pid.trim()));
    }

    /// Process 1 may leave it unreaped.
    fn lives(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !"ZX".contains(state))
    }

    fn eventually(what: &str, is_so: impl Fn() -> bool) {
        let until = Instant::now() + LONG;
        while !is_so() {
            assert!(Instant::now() < until, "not: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As after Ctrl-Z and a late `fg`.
    #[test]
    fn who_has_ended_is_not_late() {
        let child = shell("echo done");
        eventually("it ends", || has_ended(&child).unwrap());
        let wait = Wait::within(Duration::ZERO, &Stop::default());
        eventually("the time is over", || wait.over().is_some());
        assert_eq!(output(child, &wait).unwrap(), b"done\n");
    }

    #[test]
    fn only_what_is_late_by_the_limit_is_told_of_the_limit() {
        let late = Trouble::Late("given up after 1 s".into());
        assert!(late.words_of_limit().contains("--limit"));
        let stuck = Trouble::Stuck("given up after 1 s".into(), shell(":"));
        assert!(stuck.words_of_limit().contains("--limit"));
        assert_eq!(Trouble::stopped().words_of_limit(), STOPPED);
        assert_eq!(Trouble::Failed("so".into()).words_of_limit(), "so");
    }

    #[test]
    fn who_wants_us_to_stop_does_not_wait() {
        let stop = Stop::default();
        let wait = Wait::within(LONG, &stop);
        stop.ask();
        let late = output(shell("sleep 1000"), &wait).unwrap_err();
        assert!(matches!(late, Trouble::Late(words) if words == "stopped"));
    }
}
