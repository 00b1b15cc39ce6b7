//! Reading the statistics of a mount, from outside.

use super::mountinfo::{self, Mount};
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use std::io;
use std::path::{Path, PathBuf};

/// The text of `.corfs/stats` of the corfs mount that `path` lies in.
pub fn read(path: &Path) -> Result<String, Refusal> {
    look(path).map_err(|missed| missed.refusal)
}

/// As [`read`], for who has read it before.
///
/// # Errors
/// Those of [`read`]; exit code 32 when the mount has gone since.
pub fn read_again(path: &Path) -> Result<String, Refusal> {
    look(path).map_err(|missed| match missed.gone {
        true => Refusal::mount(format!(
            "stat {}: the mount is gone: it was unmounted, or its daemon has ended",
            shown(path)
        )),
        false => missed.refusal,
    })
}

/// Why there is no text.
struct Missed {
    refusal: Refusal,
    /// If there was one before, the mount has gone.
    gone: bool,
}

impl Missed {
    fn new(what: &str, error: io::Error, remedy: &str) -> Self {
        // What lies in the mount goes with it; a daemon that has ended leaves ENOTCONN, one that ends
        // at this moment ECONNABORTED.
        let gone = match error.raw_os_error() {
            Some(errno) => [
                libc::ENOENT,
                libc::ENOTDIR,
                libc::ENODEV,
                libc::ENOTCONN,
                libc::ECONNABORTED,
            ]
            .contains(&errno),
            // It has just left the list of mounts.
            None => true,
        };
        let refusal = Refusal::system(format!("{what}: {}{remedy}", said(error)));
        Self { refusal, gone }
    }
}

fn look(path: &Path) -> Result<String, Missed> {
    let name = shown(path);
    let failed = |error| Missed::new(&format!("stat {name}"), error, "");
    let mount = Place::of_any(path)
        .and_then(|place| place.mount())
        .map_err(failed)?;
    if !mount.is_corfs() {
        let words = format!(
            "stat {name}: not in a corfs mount but in {} on {}",
            mount.kind.display(),
            shown(&mount.mountpoint)
        );
        return Err(Missed {
            refusal: Refusal::usage(words),
            gone: true,
        });
    }
    let file = root(mount).map_err(failed)?.join(".corfs/stats");
    std::fs::read_to_string(&file).map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::NotFound {
            "; has the source a .corfs of its own?"
        } else {
            ""
        };
        Missed::new(&format!("read {}", shown(&file)), error, remedy)
    })
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
