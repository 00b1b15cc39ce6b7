//! The mount itself: by mount(2) where we may, else by `fusermount3`.

use super::fusermount;
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use super::settings::{Access, Settings};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{getgid, getuid};
use rustix::thread::CapabilitySet;
use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The most bytes that one READ may ask for (mount option of fuse(4)).
pub(super) const MAX_READ: usize = 1 << 20;

/// A mount that stands, and the descriptor that its requests come through.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) site: Site,
}

/// Where our mount is, and how to know it from another one there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) path: PathBuf,
    /// Major and minor number of its `st_dev`. The next mount gets the same ones once this is gone.
    pub(super) device: (u32, u32),
    /// Its number that no other mount ever gets (Linux 6.8), so that a daemon whose mount was taken
    /// away by somebody does not take the next one away.
    pub(super) unique: Option<u64>,
}

impl Site {
    /// The mount of ours that is on top at `path`.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let place = Place::of_directory(path).ok()?;
        let mount = place.mount_on_top().ok()??;
        mount.is_corfs().then(|| Self {
            path: path.to_owned(),
            device: mount.device,
            unique: place.unique_mount_id(),
        })
    }

    /// Whether this very mount is still there, on top.
    pub(super) fn stands(&self) -> bool {
        Self::of(&self.path).as_ref() == Some(self)
    }
}

/// Mounts on `target`, with `device` (`/dev/fuse`) where the kernel lets us.
pub(super) fn mount(
    settings: &Settings,
    fsname: &OsStr,
    target: &Path,
    device: OwnedFd,
) -> Result<Mounted, Refusal> {
    if is_privileged() {
        match directly(settings, fsname, target, &device) {
            Ok(()) => return stood(target, device),
            // A capability of a user namespace that does not own this mount namespace.
            Err(Errno::PERM) => {}
            Err(error) => return Err(failed(target, error)),
        }
    }
    drop(device);
    let device = fusermount::mount(settings, fsname, target)?;
    stood(target, device)
}

/// Whether mount(2) is ours to call.
pub(super) fn is_privileged() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn stood(target: &Path, device: OwnedFd) -> Result<Mounted, Refusal> {
    let site = Site::of(target).ok_or_else(|| {
        Refusal::mount(format!(
            "mount on {}: it is not there any more; somebody else mounts or unmounts there",
            shown(target)
        ))
    })?;
    Ok(Mounted { device, site })
}

fn directly(
    settings: &Settings,
    fsname: &OsStr,
    target: &Path,
    device: &OwnedFd,
) -> Result<(), Errno> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},max_read={MAX_READ}",
        device.as_raw_fd(),
        getuid().as_raw(),
        getgid().as_raw(),
    );
    if settings.options.default_permissions {
        data.push_str(",default_permissions");
    }
    if settings.access != Access::Owner {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let kind = super::mountinfo::KIND;
    rustix::mount::mount(fsname, target, kind, flags(settings), data.as_c_str())
}

pub(super) fn flags(settings: &Settings) -> MountFlags {
    let wanted = [
        (settings.options.read_only, MountFlags::RDONLY),
        (!settings.flags.suid, MountFlags::NOSUID),
        (!settings.flags.dev, MountFlags::NODEV),
        (settings.flags.noexec, MountFlags::NOEXEC),
        (settings.flags.sync, MountFlags::SYNCHRONOUS),
        (settings.flags.dirsync, MountFlags::DIRSYNC),
        (settings.options.noatime, MountFlags::NOATIME),
    ];
    wanted
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
        .collect()
}

fn failed(target: &Path, error: Errno) -> Refusal {
    let remedy = match error {
        Errno::NODEV => "; the kernel has no FUSE: modprobe fuse",
        Errno::NOENT => "; the mountpoint was removed meanwhile",
        _ => "",
    };
    Refusal::mount(format!(
        "mount on {}: {}{remedy}",
        shown(target),
        said(error)
    ))
}
