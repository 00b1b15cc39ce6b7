//! `corfs umount` waits for the process that served: what it had open of the source and of the cache
//! is free when the command returns.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a server may take to say who it is. One that hangs or was stopped does not say.
const SAYS: Duration = Duration::from_secs(1);

/// How long it is waited for, in seconds: it brings its cache to the disk, and closes files of a
/// source that may hang.
const PATIENCE: i64 = 30;

/// The process that serves a mount.
pub(super) struct Server {
    pid: u32,
    process: OwnedFd,
}

impl Server {
    /// That of the mount at `point`, where it can be told and is of this namespace of processes.
    pub(super) fn of(point: &Path) -> Option<Self> {
        let (told, hears) = channel();
        let config = point.join(".corfs/config");
        // Left behind if nobody answers.
        std::thread::spawn(move || told.send(fs::read_to_string(config)));
        let text = hears.recv_timeout(SAYS).ok()?.ok()?;
        let number = |line: &str| line.strip_prefix("server_pid=")?.parse::<u32>().ok();
        let pid = text.lines().find_map(number)?;
        let process = pidfd_open(
            Pid::from_raw(i32::try_from(pid).ok()?)?,
            PidfdFlags::empty(),
        );
        // The number may be that of another process here.
        let name = |process: &str| fs::read(format!("/proc/{process}/comm")).ok();
        let ours = name(&pid.to_string())? == name("self")?;
        Some(Self {
            pid,
            process: process.ok().filter(|_| ours)?,
        })
    }

    /// Waits for its end, and says so when that does not come.
    pub(super) fn wait(self) {
        let patience = Timespec {
            tv_sec: PATIENCE,
            tv_nsec: 0,
        };
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        if let Ok(0) = rustix::event::poll(&mut end, Some(&patience)) {
            log::warn!(
                "unmounted; its process {} has not ended after {PATIENCE} s, and keeps what it has \
                 open of the source",
                self.pid
            );
        }
    }
}
