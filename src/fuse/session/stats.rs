//! Reading the statistics of a mount, from outside.

use super::mountinfo::{self, Mount};
use super::place::Place;
use super::refusal::{Code, Refusal, said, shown};
use std::io;
use std::path::{Path, PathBuf};

/// The text of `.corfs/stats` of the corfs mount that `path` lies in.
pub fn read(path: &Path) -> Result<String, Refusal> {
    let name = shown(path);
    let failed = |error: io::Error| Refusal::system(format!("stat {name}: {}", said(error)));
    let mount = Place::of_any(path)
        .and_then(|place| place.mount())
        .map_err(failed)?;
    if !mount.is_corfs() {
        return Err(Refusal {
            code: Code::Usage,
            words: format!(
                "stat {name}: not in a corfs mount but in {} on {}",
                mount.kind.display(),
                shown(&mount.mountpoint)
            ),
        });
    }
    let file = root(mount).map_err(failed)?.join(".corfs/stats");
    std::fs::read_to_string(&file).map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::NotFound {
            "; has the source a .corfs of its own?"
        } else {
            ""
        };
        Refusal::system(format!("read {}: {}{remedy}", shown(&file), said(error)))
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
