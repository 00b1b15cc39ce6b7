//! Folders and files of a test.

use std::fs::{self};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A temporary folder, open to every user, that vanishes with the test.
#[derive(Debug)]
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new folder under `CORFS_TEST_DIR`, else the system's temporary folder.
    pub(crate) fn new() -> Self {
        let base =
            std::env::var_os("CORFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::in_folder(&base)
    }

    /// A new folder in one that exists.
    pub(crate) fn in_folder(base: &Path) -> Self {
        let base = fs::canonicalize(base).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
        let dir = tempfile::Builder::new()
            .prefix("corfs-it-")
            .tempdir_in(&base)
            .unwrap_or_else(|e| panic!("a folder in {}: {e}", base.display()));
        set_mode(dir.path(), 0o755);
        Self(dir)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new directory in it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        path
    }

    /// A new file in it.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        write_file(&path, content);
        path
    }
}

/// Writes a whole file.
pub(crate) fn write_file(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

/// Reads a whole file.
pub(crate) fn read_file(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// Sets the permission bits.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|e| panic!("chmod {mode:o} {}: {e}", path.display()));
}

/// Changes owner and group (root only).
pub(crate) fn set_owner(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
        .unwrap_or_else(|e| panic!("chown {uid}:{gid} {}: {e}", path.display()));
}

/// Makes a file look as if nobody had touched it for two days: it is not changing just now.
///
/// Only mtime can be set. Where a file's ctime counts too, that is as young as this call.
pub(crate) fn age(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64);
    let old = Timespec {
        tv_sec: now - 2 * 86_400,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    utimensat(CWD, path, &times, AtFlags::empty())
        .unwrap_or_else(|e| panic!("utimensat {}: {e}", path.display()));
}

/// What `du` would say: the blocks of all that has a name below `folder`, and its own, in bytes.
/// What goes away meanwhile is not counted, nor is a second name of a file.
pub(crate) fn disk_usage(folder: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    disk_usage_of(folder, &mut seen)
}

fn disk_usage_of(path: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !seen.insert(meta.ino()) {
        return 0;
    }
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        for entry in entries {
            sum += disk_usage_of(&entry.path(), seen);
        }
    }
    sum
}
