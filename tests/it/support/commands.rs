//! Other programs, and threads with an identity of their own.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Runs a command and returns what it printed; panics with all of it unless it succeeds.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let out = output(command);
    assert!(
        out.status.success(),
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        describe(out.status),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command to its end, whatever it says.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// A script for `sh` with `folder` as its working directory.
pub(crate) fn sh(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(folder);
    command
}

/// Lets a command run as an ordinary user with no other groups (root only).
pub(crate) fn as_user(command: &mut Command, uid: u32, gid: u32) -> &mut Command {
    // std drops the supplementary groups when root asks for another uid.
    command.uid(uid).gid(gid)
}

/// As [`as_user`], with supplementary groups.
pub(crate) fn as_member<'a>(
    command: &'a mut Command,
    uid: u32,
    gid: u32,
    groups: &[u32],
) -> &'a mut Command {
    if groups.is_empty() {
        return as_user(command, uid, gid);
    }
    use rustix::fs::{Gid, Uid};
    let groups: Vec<Gid> = groups.iter().map(|&g| Gid::from_raw(g)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // std has no stable word for groups: the process becomes the user by itself.
    // SAFETY: three system calls on values that are ready, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
        })
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended oddly".into(),
    }
}

/// Polls until `done` says so; panics with `what` when it takes longer than `patience`.
#[track_caller]
pub(crate) fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stops a process (SIGSTOP), and waits until it has: its threads run on, and may answer requests,
/// until one of them has taken the signal.
#[track_caller]
pub(crate) fn stop_process(pid: Pid) {
    rustix::process::kill_process(pid, Signal::STOP).expect("kill");
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let has_stopped = |task: io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.expect("a thread").path().join("stat"));
        // A thread that has just ended has none. One that can't be interrupted stops before it
        // runs again; what it waits for may be a thread that has stopped.
        stat.map_or(true, |stat| stat.contains(") T ") || stat.contains(") D "))
    };
    wait_until("all threads have stopped", Duration::from_secs(30), || {
        fs::read_dir(&tasks).expect("a process").all(has_stopped)
    });
}

/// Runs `work` in a thread that has its own umask and working directory, and, if `ids` are given,
/// the credentials of an ordinary user (root only). Panics in it are ours.
pub(crate) fn apart<T: Send>(ids: Option<(u32, u32)>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            own_umask();
            if let Some((uid, gid)) = ids {
                become_user(uid, gid, &[]);
            }
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Gives this thread a umask and a working directory of its own.
fn own_umask() {
    // SAFETY: CLONE_FS touches the root, working directory and umask of this thread only; no
    // descriptor, memory or signal state is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
        .expect("unshare(CLONE_FS)");
}

/// Changes the credentials of this thread alone (the raw system calls, unlike libc's, leave the
/// other threads as they are).
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    use rustix::fs::{Gid, Uid};
    let groups: Vec<Gid> = groups.iter().map(|&g| Gid::from_raw(g)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups).expect("setgroups");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("setresgid");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("setresuid");
}
