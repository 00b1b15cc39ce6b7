//! Reading the statistics of a mount, from outside.

use super::mountinfo::{self, Mount};
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use std::io;
use std::path::{Path, PathBuf};

/// The text of `.corfs/stats` of the corfs mount that `path` lies in.
pub fn read(path: &Path) -> Result<String, Refusal> {
    Watched::new(path)?.read()
}

/// A mount whose statistics are read again and again, whatever becomes of the path that it was found
/// by.
pub struct Watched {
    name: String,
    device: (u32, u32),
    /// Where its root is mounted.
    root: PathBuf,
}

impl Watched {
    /// The corfs mount that `path` lies in.
    ///
    /// # Errors
    /// When it lies in none, or can't be asked.
    pub fn new(path: &Path) -> Result<Self, Refusal> {
        let name = shown(path).to_string();
        let failed = |error: io::Error| Refusal::system(format!("stat {name}: {}", said(error)));
        let mount = Place::of_any(path)
            .and_then(|place| place.mount())
            .map_err(failed)?;
        if !mount.is_corfs() {
            return Err(Refusal::usage(format!(
                "stat {name}: not in a corfs mount but in {} on {}",
                mount.kind.display(),
                shown(&mount.mountpoint)
            )));
        }
        let device = mount.device;
        let root = root(mount).map_err(failed)?;
        Ok(Self { name, device, root })
    }

    /// The text now.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn read(&self) -> Result<String, Refusal> {
        let file = self.root.join(".corfs/stats");
        std::fs::read_to_string(&file).map_err(|error| {
            let remedy = if error.kind() == io::ErrorKind::NotFound {
                "; has the source a .corfs of its own?"
            } else {
                ""
            };
            Refusal::system(format!("read {}: {}{remedy}", shown(&file), said(error)))
        })
    }

    /// As [`Watched::read`], for who has read it before.
    ///
    /// # Errors
    /// Those of [`Watched::read`]; exit code 32 when the mount has gone since.
    pub fn read_again(&self) -> Result<String, Refusal> {
        let gone = || {
            Refusal::mount(format!(
                "stat {}: the mount is gone: it was unmounted, or its daemon has ended",
                self.name
            ))
        };
        // What is mounted there by now may be another one.
        if !self.stands() {
            return Err(gone());
        }
        let read = self.read();
        if read.is_err() && (!self.stands() || self.is_dead()) {
            return Err(gone());
        }
        read
    }

    fn stands(&self) -> bool {
        // Who can't tell goes on, and is told by what it reads.
        mountinfo::read().map_or(true, |mounts| {
            mounts
                .iter()
                .any(|mount| mount.device == self.device && mount.mountpoint == self.root)
        })
    }

    /// It is mounted still, and nobody answers.
    fn is_dead(&self) -> bool {
        let errno = std::fs::symlink_metadata(&self.root).map_err(|error| error.raw_os_error());
        matches!(
            errno,
            Err(Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV))
        )
    }
}

/// Where the root of the file system is mounted: `mount` itself may be a bind mount of a folder.
pub(super) fn root(mount: Mount) -> io::Result<PathBuf> {
    if mount.root == Path::new("/") {
        return Ok(mount.mountpoint);
    }
    mountinfo::read()?
        .into_iter()
        .find(|other| other.device == mount.device && other.root == Path::new("/"))
        .map(|other| other.mountpoint)
        .ok_or_else(|| io::Error::other("only a folder of the mount is mounted here"))
}
