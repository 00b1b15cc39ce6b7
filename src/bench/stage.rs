//! The folder of a bench, with its source and mountpoints, and who is measured there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::sys::mountinfo;

/// How the names of the folders of a bench and of its mountpoints begin.
pub(super) const STAGE: &str = "corfs-bench-";
pub(super) const MOUNT: &str = "/mnt-";

/// One who is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// How one gets to what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The directory itself.
    Native,
    /// A corfs mount of it, with these words for `-o`, and `{CACHE}` filled in.
    Corfs(String),
    /// What this shell command mounts of it, with `{SRC}` and `{MNT}` filled in.
    Peer(String),
    /// Another directory altogether, which gets a source of its own.
    Elsewhere(PathBuf),
}

/// A folder of ours in the directory to be measured, with the source and the mountpoints; removed
/// with everything in it when it goes.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
}

impl Stage {
    pub(super) fn new(directory: &Path) -> Result<Self, Failure> {
        let directory = directory
            .canonicalize()
            .map_err(|e| Failure(format!("{}: {e}", directory.display())))?;
        if directory.to_str().is_none() {
            return Err(Failure(format!(
                "--dir {}: the name is not UTF-8, as those in the file of a run must be; measure in \
                 another folder",
                directory.display()
            )));
        }
        let pid = std::process::id();
        for number in 0.. {
            let folder = directory.join(format!("{STAGE}{pid}-{number}"));
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let stage = Self { folder };
                    make_dir(&stage.source())?;
                    return Ok(stage);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure(format!("make {}: {error}", folder.display()))),
            }
        }
        Err(Failure("no name is left".into()))
    }

    /// Where a place of this number mounts.
    pub(super) fn mountpoint(&self, number: usize) -> PathBuf {
        self.folder.join(format!("mnt-{number}"))
    }

    /// What is measured natively, and mirrored.
    pub(super) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // To remove what is still mounted would be to empty it, and it may show others' files.
        let gone = match has_mounts(&self.folder) {
            Ok(false) => fs::remove_dir_all(&self.folder),
            Ok(true) => Err(io::Error::other("something is still mounted in it")),
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            eprintln!("corfs: {} is left: {error}", self.folder.display());
        }
    }
}

/// Whether something is mounted at or below a folder of ours. Its device number would not tell: a
/// bind mount shows that of what it binds.
pub(super) fn has_mounts(folder: &Path) -> io::Result<bool> {
    let mounts = mountinfo::read()?;
    Ok(mounts.iter().any(|m| m.mountpoint.starts_with(folder)))
}

pub(super) fn make_dir(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path).map_err(|e| Failure(format!("make {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_name_that_no_run_can_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
        fs::create_dir(&odd).unwrap();
        let refused = Stage::new(&odd).unwrap_err().0;
        assert!(refused.contains("not UTF-8"), "{refused}");
        assert_eq!(fs::read_dir(&odd).unwrap().count(), 0);
    }

    #[test]
    fn a_stage_goes_with_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::new(folder.path()).unwrap();
        let second = Stage::new(folder.path()).unwrap();
        assert_ne!(stage.source(), second.source());
        fs::write(stage.source().join("file"), "x").unwrap();
        drop((stage, second));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Stage::new(Path::new("/nonexistent")).is_err());
    }
}
