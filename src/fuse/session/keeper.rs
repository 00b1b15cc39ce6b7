//! `auto_unmount`: a second process that takes our mount away when this one dies, however it dies.
//!
//! fusermount3 can do that too, but before 3.15 it does not where the mount is its user's alone
//! (as root it may not look into it), and fuser leaves mounts behind with it.

use super::mount::Site;
use super::refusal::{Refusal, said, shown};
use super::unmount;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// The hidden option of `corfs umount` that makes a keeper, with the mount's `MAJOR:MINOR`.
pub const OPTION: &str = "when-abandoned";

/// The other process, waiting for the end of its standard input, which we hold.
///
/// It ends with us, or when this is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts it: this program again. Our descriptors close in it, so that the mount's connection
    /// ends when we end.
    pub(super) fn start(site: &Site) -> Result<Self, Refusal> {
        let (major, minor) = site.device;
        let child = Command::new("/proc/self/exe")
            .arg0("corfs")
            .arg("umount")
            .arg(format!("--{OPTION}={major}:{minor}"))
            .arg("--")
            .arg(&site.path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                let path = shown(&site.path);
                Refusal::system(format!("auto_unmount of {path}: {}", said(error)))
            })?;
        Ok(Self { child })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Its input ends, and so does it: it finds nothing to unmount, or unmounts it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The keeper itself: waits for the end of standard input, then unmounts what is left.
pub fn keep(mountpoint: PathBuf, device: (u32, u32)) -> Result<(), Refusal> {
    // What is sent to a whole session or group is meant for the daemon.
    let _ = rustix::process::setsid();
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|error| Refusal::system(format!("catch signals: {}", said(error))))?;
    }
    // Which mount it is while it surely stands; the device's number may come back with another.
    let site = Site::of(&mountpoint).filter(|site| site.device == device);
    // `read_to_end` goes on after a signal; an error is an end too.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    if let Some(site) = site {
        unmount::sweep(&site);
    }
    Ok(())
}
