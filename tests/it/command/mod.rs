//! The command: what it mounts, what it refuses and in which words, how it ends.

mod copy;
mod errors;
mod life;
mod rights;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Scratch, is_mounted, output, reachable_binary, wait_until};

/// How long a daemon may take to end.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A source with one file, a mountpoint, and the program. What it mounts is unmounted on drop,
/// and the daemons that serve it are killed if they stay.
pub(crate) struct Stand {
    pub(crate) source: PathBuf,
    pub(crate) point: PathBuf,
    binary: PathBuf,
    scratch: Scratch,
}

impl Stand {
    pub(crate) fn new() -> Self {
        Self::named("source", "mnt")
    }

    pub(crate) fn named(source: &str, point: &str) -> Self {
        let scratch = Scratch::new();
        let (source, point) = (scratch.dir(source), scratch.dir(point));
        fs::write(source.join("file"), "content").expect("a file");
        Self {
            source,
            point,
            binary: reachable_binary(&scratch),
            scratch,
        }
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// `corfs` with words.
    pub(crate) fn corfs<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words).current_dir("/");
        command
    }

    /// `corfs SOURCE MOUNTPOINT` with more words behind it.
    pub(crate) fn mount(&self, more: &[&str]) -> Command {
        let mut command = self.corfs([&self.source, &self.point]);
        command.args(more);
        command
    }

    /// Mounts in the background; panics unless that goes well.
    #[track_caller]
    pub(crate) fn mounted(self, more: &[&str]) -> Self {
        crate::support::run(&mut self.mount(more));
        assert!(self.is_mounted());
        self
    }

    pub(crate) fn umount(&self, more: &[&str]) -> Output {
        let mut command = self.corfs(["umount"]);
        output(command.args(more).arg(&self.point))
    }

    /// Unmounts by the command. It may be busy for a moment: every program that another test
    /// starts holds our open files from its fork to its exec.
    #[track_caller]
    pub(crate) fn unmounted(&self) {
        wait_until("it is unmounted", PATIENCE, || {
            self.umount(&[]).status.success()
        });
    }

    pub(crate) fn is_mounted(&self) -> bool {
        is_mounted(&self.point, "fuse.corfs")
    }

    /// The living processes that have the mountpoint among their words, zombies not counted.
    pub(crate) fn daemons(&self) -> Vec<Pid> {
        processes_with(&self.point)
    }

    /// The one daemon, its keeper and its server not counted; panics unless there is just one.
    #[track_caller]
    pub(crate) fn daemon(&self) -> Pid {
        let mut found = self.daemons();
        found.retain(|pid| !words(*pid).contains(&b"umount".to_vec()));
        let all = found.clone();
        found.retain(|pid| parent_of(*pid).is_none_or(|parent| !all.contains(&parent)));
        assert_eq!(found.len(), 1, "daemons of {}", self.point.display());
        found[0]
    }

    /// The process that serves for the one daemon.
    #[track_caller]
    pub(crate) fn server(&self) -> Pid {
        let guardian = self.daemon().as_raw_nonzero().get().unsigned_abs();
        let server = crate::support::server_of(guardian).expect("a serving process");
        Pid::from_raw(server.cast_signed()).expect("a process")
    }

    #[track_caller]
    pub(crate) fn await_end(&self) {
        wait_until("the daemon ends", PATIENCE, || self.daemons().is_empty());
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.point.join("file")
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        while self.is_mounted() && crate::support::detach(&self.point) {}
        for pid in self.daemons() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The corfs that live and have `path` among their words (a `fusermount3` may have it too).
pub(crate) fn processes_with(path: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let path = path.as_os_str().as_bytes().to_vec();
    let ours = |words: Vec<Vec<u8>>| words.contains(&path) && words[0].ends_with(b"corfs");
    pids.filter_map(Pid::from_raw)
        .filter(|pid| ours(words(*pid)))
        .collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

/// The command line of a process; a zombie has none.
fn words(pid: Pid) -> Vec<Vec<u8>> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    line.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

/// Panics unless the command failed with that code and said all of `words`, on standard error
/// alone and with the program's name first.
#[track_caller]
pub(crate) fn refuses(command: &mut Command, code: i32, words: &[&str]) {
    let out = output(command);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{command:?}: {stderr}");
    assert!(stderr.starts_with("corfs: "), "{command:?}: {stderr}");
    for word in words {
        assert!(
            stderr.contains(word),
            "{command:?}: no {word:?} in: {stderr}"
        );
    }
    assert!(out.stdout.is_empty(), "{command:?}: {out:?}");
}
