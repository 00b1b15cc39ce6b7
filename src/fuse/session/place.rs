//! A path held open without touching what is there: works on dead and hung mounts too.

use super::mountinfo::{self, Mount};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `STATX_MNT_ID_UNIQUE` (linux/stat.h), which rustix lacks.
const MNT_ID_UNIQUE: u32 = 0x4000;

/// An `O_PATH` descriptor, and the path the kernel knows it by.
///
/// Opening and naming the root of a mount sends it no request: so a mount whose daemon is dead,
/// or whose source hangs, can be named and unmounted.
#[derive(Debug)]
pub(super) struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// Opens whatever is at `path`, through symbolic links.
    pub(super) fn of_any(path: &Path) -> io::Result<Self> {
        Self::open(path, OFlags::empty())
    }

    /// Opens the directory at `path`, through symbolic links; anything else is ENOTDIR.
    pub(super) fn of_directory(path: &Path) -> io::Result<Self> {
        Self::open(path, OFlags::DIRECTORY)
    }

    fn open(path: &Path, more: OFlags) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | more;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok(Self { fd, path })
    }

    /// Something that stands for what is not there.
    pub(super) fn standing_for(path: PathBuf, fd: OwnedFd) -> Self {
        Self { fd, path }
    }

    /// Absolute, without symbolic links, `.` and `..`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The mount that it belongs to.
    pub(super) fn mount(&self) -> io::Result<Mount> {
        let id = self.mount_id()?;
        mountinfo::read()?
            .into_iter()
            .find(|mount| mount.id == id)
            .ok_or_else(|| io::Error::other("the mount is not in /proc/self/mountinfo"))
    }

    /// The mount whose root it is, if it is one: the topmost there.
    pub(super) fn mount_on_top(&self) -> io::Result<Option<Mount>> {
        let mount = self.mount()?;
        Ok((mount.mountpoint == self.path).then_some(mount))
    }

    /// `mnt_id` of the descriptor (proc_pid_fdinfo(5)): some file systems (9p) ask their server
    /// before they answer a statx(2), whatever is wanted, and this is to work while that hangs.
    fn mount_id(&self) -> io::Result<u64> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        info.lines()
            .find_map(|line| line.strip_prefix("mnt_id:"))
            .and_then(|id| mountinfo::number(id.as_bytes()))
            .ok_or_else(|| io::Error::other("/proc/self/fdinfo has no mnt_id"))
    }

    /// Whether its file system lies on a block device, as no corfs mount does.
    pub(super) fn is_on_a_device(&self) -> bool {
        self.told(StatxFlags::empty())
            .is_some_and(|told| told.stx_dev_major != 0)
    }

    /// What the kernel says, where the file system lets it, without asking that; `None` if it does
    /// not know `wanted`.
    fn told(&self, wanted: StatxFlags) -> Option<rustix::fs::Statx> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let told = rustix::fs::statx(&self.fd, c"", flags, wanted).ok()?;
        (told.stx_mask & wanted.bits() == wanted.bits()).then_some(told)
    }

    /// The number of its mount that no other mount of this boot has (`STATX_MNT_ID_UNIQUE`); `None`
    /// where the kernel does not tell (before Linux 6.8). Asks nobody but the kernel.
    pub(super) fn unique_id(&self) -> Option<u64> {
        let told = self.told(StatxFlags::from_bits_retain(MNT_ID_UNIQUE))?;
        Some(told.stx_mnt_id)
    }

    /// The descriptor alone.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_place_is_named_without_links_and_dots() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("a\nb ,c");
        fs::create_dir(&real).unwrap();
        symlink("a\nb ,c", folder.path().join("link")).unwrap();
        let place = Place::of_directory(&folder.path().join("link/../link/.")).unwrap();
        assert_eq!(place.path(), real);
        assert_eq!(place.mount_on_top().unwrap(), None);
    }

    #[test]
    fn what_the_kernel_makes_up_is_on_no_device() {
        let proc = Place::of_any(Path::new("/proc")).unwrap();
        assert!(!proc.is_on_a_device());
        assert_eq!(proc.mount().unwrap().kind, "proc");
    }

    #[test]
    fn a_file_is_a_place_but_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Place::of_any(file.path()).is_ok());
        let refused = Place::of_directory(file.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn the_root_directory_is_a_mount() {
        let place = Place::of_directory(Path::new("/")).unwrap();
        let mount = place.mount_on_top().unwrap().unwrap();
        assert_eq!(mount.mountpoint, Path::new("/"));
        assert_ne!(
            place.unique_id(),
            Some(mount.id),
            "ids start where numbers end"
        );
    }
}
