//! What a bench has mounted: unmounted, and its daemon ended, when it goes.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::child::{self, Wait};
use super::probe::{Chore, Probe};
use super::progress::Stop;
use super::stage::{Kind, has_mounts};
use crate::sys::mountinfo::{self, Mount};

/// How long a mount may take to come and to answer, and its daemon to go.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long its daemon may take to go when somebody wants us to stop, or does not answer.
pub(super) const HURRY: Duration = Duration::from_secs(10);

/// A mount, and the process that was started for it.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) point: PathBuf,
    pub(super) child: Child,
    pub(super) kind: Kind,
    /// The mount was seen.
    pub(super) up: bool,
    /// It does not answer.
    pub(super) hung: bool,
    /// The device of what is mounted: a mount that shows the same is not that of a peer alone.
    pub(super) device: (u32, u32),
    pub(super) stop: Stop,
}

impl Mounted {
    /// Whether it still runs, so that its number is no other process's.
    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// With all that it has started and that is not in a group of its own.
    fn kill(&mut self) {
        if self.runs() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }

    /// The number of its connection, if it is a FUSE mount, and not one that only shows the file
    /// system of the source, which is not ours to end.
    fn connection(&self) -> Option<u32> {
        let mounts = mountinfo::read().unwrap_or_default();
        let ours = mounts.iter().find(|mount| mount.mountpoint == self.point)?;
        (ours.device != self.device)
            .then(|| connection(ours))
            .flatten()
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.runs() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let (pid, runs) = (Pid::from_child(&self.child), self.runs());
        let patience = if self.stop.asked() { HURRY } else { PATIENCE };
        match (&self.kind, self.up) {
            _ if self.hung => self.kill(),
            (Kind::Corfs(_), _) if runs => {
                // It unmounts by itself, lazily if it must.
                let _ = kill_process(pid, Signal::TERM);
            }
            (_, true) => within(patience, Chore::Unmount(self.point.clone())),
            (_, false) if runs => {
                // Nothing else tells it that it is not waited for any more.
                let _ = kill_process_group(pid, Signal::TERM);
            }
            (_, false) => {}
        }
        if !self.ends_within(patience) {
            self.kill();
            self.ends_within(HURRY);
        }
        // What was killed has unmounted nothing, and a daemon in the background may still hang.
        if matches!(has_mounts(&self.point), Ok(true)) {
            let point = self.point.clone();
            within(
                HURRY,
                match self.connection() {
                    Some(connection) => Chore::End { point, connection },
                    None => Chore::Unmount(point),
                },
            );
        }
    }
}

/// Has it done by a process that is not waited for longer than that.
fn within(patience: Duration, chore: Chore) {
    // That somebody wants us to stop is why it is done.
    let wait = Wait::within(patience, &Stop::default());
    let _ = child::ask(&Probe::Chore(chore), &wait);
}

/// Has the kernel answer, with errors, in the place of a FUSE daemon that does not, and unmounts.
pub(super) fn end(point: &Path, connection: u32) {
    let name = format!("/sys/fs/fuse/connections/{connection}/abort");
    let file = fs::OpenOptions::new().write(true).open(name);
    let told = file.and_then(|mut file| file.write_all(b"1"));
    // Where that file system is not mounted root has another way.
    let forced = UnmountFlags::FORCE | UnmountFlags::DETACH;
    if told.is_err() && rustix::mount::unmount(point, forced).is_ok() {
        return;
    }
    unmount(point);
}

/// Unmounts, lazily, as root or by the setuid helper.
pub(super) fn unmount(point: &Path) {
    if rustix::mount::unmount(point, UnmountFlags::empty()).is_ok()
        || rustix::mount::unmount(point, UnmountFlags::DETACH).is_ok()
    {
        return;
    }
    let _ = Command::new("fusermount3")
        .args(["-uzq", "--"])
        .arg(point)
        .status();
}

/// The number of a FUSE mount's connection, which the kernel calls after a device of no disk. That of
/// `fuseblk` is a disk's, and its minor alone another's connection.
fn connection(mount: &Mount) -> Option<u32> {
    let kind = mount.kind.as_bytes();
    let is_fuse = kind == b"fuse" || kind.starts_with(b"fuse.");
    let (major, minor) = mount.device;
    (is_fuse && major == 0).then_some(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_without_a_disk_names_its_connection() {
        let of = |kind: &str, device| {
            connection(&Mount {
                id: 1,
                device,
                root: "/".into(),
                mountpoint: "/mnt".into(),
                kind: kind.into(),
                source: "x".into(),
                options: "".into(),
            })
        };
        assert_eq!(of("fuse", (0, 57)), Some(57));
        assert_eq!(of("fuse.bindfs", (0, 57)), Some(57));
        assert_eq!(of("fuseblk", (8, 1)), None);
        assert_eq!(of("fuse", (8, 1)), None);
        assert_eq!(of("fusectl", (0, 31)), None);
    }
}
