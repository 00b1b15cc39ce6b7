//! File systems of a test's own.

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use rustix::mount::UnmountFlags;

use super::*;

/// A file system of its own on a loop device: unmounted, detached and deleted on drop.
#[derive(Debug)]
pub(crate) struct Loop {
    device: PathBuf,
    image: PathBuf,
    point: PathBuf,
    _scratch: Scratch,
}

/// Only one at a time asks for a free loop device, so that two tests do not get the same.
static LOSETUP: Mutex<()> = Mutex::new(());

impl Loop {
    /// Makes a `kind` (ext4, xfs, btrfs) of `size` bytes and mounts it. Ask for
    /// [`Need::Filesystem`] first. XFS wants at least 300 MiB, btrfs 110.
    #[track_caller]
    pub(crate) fn new(kind: &str, size: u64) -> Self {
        let scratch = Scratch::new();
        let image = scratch.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(size))
            .unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        Self::over(kind, scratch, image)
    }

    /// The same on an image that exists already, somewhere.
    #[track_caller]
    pub(crate) fn over(kind: &str, scratch: Scratch, image: PathBuf) -> Self {
        let quiet = if kind == "ext4" { "-qF" } else { "-qf" };
        run(Command::new(sbin(&format!("mkfs.{kind}")))
            .arg(quiet)
            .arg(&image));
        let point = scratch.dir("loop");
        let device = {
            let _one = LOSETUP.lock().unwrap_or_else(|e| e.into_inner());
            run(Command::new(sbin("losetup"))
                .args(["--find", "--show"])
                .arg(&image))
        };
        let this = Self {
            device: PathBuf::from(device.trim()),
            image,
            point,
            _scratch: scratch,
        };
        run(Command::new(sbin("mount"))
            .args(["-t", kind])
            .arg(&this.device)
            .arg(&this.point));
        set_mode(&this.point, 0o777);
        this
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// The device.
    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// The file behind the device.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        let _ = Command::new(sbin("losetup"))
            .arg("--detach")
            .arg(&self.device)
            // A test may have done it.
            .stderr(Stdio::null())
            .status();
    }
}

/// A tmpfs of its own: unmounted on drop (root only).
#[derive(Debug)]
pub(crate) struct Tmpfs {
    point: PathBuf,
    _scratch: Option<Scratch>,
}

impl Tmpfs {
    /// A tmpfs of `size` bytes on a new folder.
    #[track_caller]
    pub(crate) fn new(size: u64) -> Self {
        let scratch = Scratch::new();
        let point = scratch.dir("tmpfs");
        let mut this = Self::at(&point, size);
        this._scratch = Some(scratch);
        this
    }

    /// A tmpfs of `size` bytes on a folder that exists.
    #[track_caller]
    pub(crate) fn at(point: &Path, size: u64) -> Self {
        run(Command::new(sbin("mount"))
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=0777"))
            .arg("tmpfs")
            .arg(point));
        Self {
            point: point.into(),
            _scratch: None,
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// The path of a tool that [`require`] found; its name otherwise.
pub(crate) fn sbin(name: &str) -> PathBuf {
    tool(name).unwrap_or_else(|| name.into())
}

/// Drops the page cache, so that what follows is cold. Returns false when we may not (not root).
pub(crate) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// The errno of a failed call; panics with `what` if it went well.
#[track_caller]
pub(crate) fn errno_of<T>(what: impl Display, result: io::Result<T>) -> rustix::io::Errno {
    match result {
        Ok(_) => panic!("{what}: went well, an error was expected"),
        Err(error) => rustix::io::Errno::from_io_error(&error)
            .unwrap_or_else(|| panic!("{what}: {error}, an errno was expected")),
    }
}

/// Whether a file is a socket (std has no one-word test on a path).
pub(crate) fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}
