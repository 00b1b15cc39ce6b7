//! As what a source is known, so that it is the same after every remount.

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::sys::mountinfo::{self, Mount};
use crate::sys::{OrFail, Result, fsuuid};

use super::options::{SourceClock, SourceKey};
use super::{count, place};

/// File systems whose files are stamped by this kernel.
const LOCAL: [&str; 12] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs", "zfs",
    "jfs",
];

impl SourceKey {
    /// What the source behind `dir` is known as: `cache_id` when given; else the UUID of its file
    /// system and the path within it; else its type, its name and its path.
    ///
    /// # Errors
    /// Those of asking for attributes and of reading `/proc/self/mountinfo`.
    pub fn of(dir: BorrowedFd<'_>, cache_id: Option<&str>) -> Result<Self> {
        let dir = open_dir(dir);
        let dir = dir.as_fd();
        let path = std::fs::read_link(crate::sys::procfd::path(dir)).or_fail("readlink")?;
        let mount = mount_of(dir, &path)?;
        let kind = mount.as_ref().map_or("unknown".into(), |mount| {
            mount.kind.to_string_lossy().into_owned()
        });
        let local = LOCAL.contains(&kind.as_str());
        let uuid = if local { uuid_of(dir) } else { None };
        let key = match (cache_id, &uuid, &mount) {
            (Some(id), _, _) => format!("id:{}", id.as_bytes().escape_ascii()),
            (None, Some(uuid), Some(mount)) => {
                format!("uuid:{uuid}:{}", shown(&within(mount, &path)))
            }
            (None, _, Some(mount)) => format!(
                "fs:{kind}:{}:{}",
                mount.source.as_bytes().escape_ascii(),
                shown(&path)
            ),
            (None, _, None) => format!("path:{}", shown(&path)),
        };
        let mut about = format!("type {kind}\npath {}\n", shown(&path));
        if let Some(mount) = &mount {
            // Writing to a String does not fail.
            let _ = writeln!(about, "fsname {}", mount.source.as_bytes().escape_ascii());
            let _ = writeln!(about, "mountpoint {}", shown(&mount.mountpoint));
        }
        if let Some(uuid) = uuid {
            let _ = writeln!(about, "uuid {uuid}");
        }
        Ok(Self::made(key, about, path, &kind))
    }
}

impl SourceKey {
    /// Whether a directory is of the same type and name as this source, by what is mounted there:
    /// it asks nobody but the kernel, and works in a sandbox.
    pub fn is_of(&self, dir: BorrowedFd<'_>) -> bool {
        let path = std::fs::read_link(crate::sys::procfd::path(dir));
        let Ok(Ok(Some(mount))) = path.map(|path| mount_of(dir, &path)) else {
            return false;
        };
        let same = |name: &str, value: String| {
            let known = self.about_line(name);
            known.is_none_or(|known| known == value)
        };
        same("type", mount.kind.to_string_lossy().into_owned())
            && same("fsname", mount.source.as_bytes().escape_ascii().to_string())
    }

    /// As what a cache directory knows the source at one of `paths` (or called `cache_id`), if it
    /// has names of it. Of several the one that was used last.
    pub fn remembered(dir: &Path, paths: &[PathBuf], cache_id: Option<&str>) -> Option<Self> {
        if !dir.is_dir() {
            return None;
        }
        let root = place::open_root(dir).ok()?;
        let top = place::open_dir(root.as_fd(), &format!("v{}", super::layout::VERSION)).ok()?;
        let stores = count::stores(top.as_fd()).ok()?;
        let known = stores.iter().filter_map(|store| {
            let text = place::read_small(top.as_fd(), &format!("{store}/source")).ok()?;
            let text = String::from_utf8(text).ok()?;
            let (key, about) = text.strip_prefix("key ")?.split_once('\n')?;
            let named = match cache_id {
                Some(id) => key == format!("id:{}", id.as_bytes().escape_ascii()),
                None => {
                    let path = about.lines().find_map(|line| line.strip_prefix("path "));
                    paths.iter().any(|one| Some(shown(one).as_str()) == path)
                }
            };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let names = format!("{store}/{}", super::names::PLACE);
            rustix::fs::statat(&top, names, flags).ok()?;
            let used = rustix::fs::statat(&top, format!("{store}/state"), flags).ok()?;
            named.then(|| (used.st_mtime, key.to_owned(), about.to_owned()))
        });
        let (_, key, about) = known.max_by_key(|(used, _, _)| *used)?;
        let kind = about.lines().find_map(|line| line.strip_prefix("type "));
        let kind = kind.unwrap_or_default().to_owned();
        Some(Self::made(key, about, paths.first()?.clone(), &kind))
    }

    fn made(key: String, about: String, path: PathBuf, kind: &str) -> Self {
        let local = LOCAL.contains(&kind);
        Self {
            key,
            about,
            path,
            // An overlay may number its inodes anew at every mount.
            stable_inodes: local && kind != "overlay",
            clock: match local {
                true => SourceClock::Ours,
                false => SourceClock::Theirs,
            },
        }
    }

    /// A line of what was last seen.
    pub fn about_line(&self, name: &str) -> Option<&str> {
        let mut lines = self.about.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }
}

/// The directory open for reading, as the ioctl takes no `O_PATH`; else as it is.
fn open_dir(dir: BorrowedFd<'_>) -> Opened<'_> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::empty()).map_or(Opened::Given(dir), Opened::Own)
}

enum Opened<'a> {
    Own(std::os::fd::OwnedFd),
    Given(BorrowedFd<'a>),
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Given(fd) => *fd,
        }
    }
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// The mount that a directory is on; None when mountinfo does not show it.
fn mount_of(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<Mount>> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let told = rustix::fs::statx(dir, c"", flags, StatxFlags::MNT_ID).or_fail("statx")?;
    let mounts = mountinfo::read().or_fail("/proc/self/mountinfo")?;
    if told.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return Ok(mounts.into_iter().find(|mount| mount.id == told.stx_mnt_id));
    }
    // Before Linux 5.8: the longest mountpoint that the path is under, the last one of them.
    let above = mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.mountpoint));
    Ok(above.max_by_key(|mount| mount.mountpoint.as_os_str().len()))
}

/// Where a directory is in its file system, whatever part of that is mounted.
fn within(mount: &Mount, path: &Path) -> PathBuf {
    let below = path.strip_prefix(&mount.mountpoint).unwrap_or(path);
    let mut within = mount.root.clone();
    within.extend(below.components());
    within
}

/// The UUID of a directory's file system, from the kernel or from udev's links.
fn uuid_of(dir: BorrowedFd<'_>) -> Option<String> {
    if let Ok(bytes) = fsuuid::of(dir) {
        let mut text = String::new();
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        return Some(text);
    }
    let device = rustix::fs::fstat(dir).ok()?.st_dev;
    for link in std::fs::read_dir("/dev/disk/by-uuid").ok()?.flatten() {
        // Through the link: the device's number is its target's.
        if std::fs::metadata(link.path()).is_ok_and(|target| target.rdev() == device) {
            let name = link.file_name().to_string_lossy().to_lowercase();
            return Some(name.replace('-', ""));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_one_key_however_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let open = |flags: OFlags| {
            let fd = rustix::fs::open(folder.path(), flags, Mode::empty()).unwrap();
            SourceKey::of(fd.as_fd(), None).unwrap()
        };
        let key = open(OFlags::RDONLY);
        assert_eq!(key, open(OFlags::PATH));
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert!(key.key.ends_with(name), "{key:?}");
        assert!(key.about.contains("fsname "), "{key:?}");
    }

    #[test]
    fn a_given_name_is_the_key_and_two_folders_have_two() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = |folder: &tempfile::TempDir, id: Option<&str>| {
            let fd = std::fs::File::open(folder.path()).unwrap();
            SourceKey::of(fd.as_fd(), id).unwrap().key
        };
        assert_eq!(key(&a, Some("x y")), "id:x y");
        assert_eq!(key(&a, Some("x y")), key(&b, Some("x y")));
        assert_ne!(key(&a, None), key(&b, None));
    }

    #[test]
    fn a_bind_mount_shows_the_same_place_in_its_file_system() {
        let mount = |root: &str, mountpoint: &str| Mount {
            id: 1,
            device: (0, 1),
            root: root.into(),
            mountpoint: mountpoint.into(),
            kind: "ext4".into(),
            source: "/dev/x".into(),
            options: "rw".into(),
        };
        for (mount, path) in [
            (mount("/", "/data"), "/data/a/b"),
            (mount("/a", "/mnt"), "/mnt/b"),
            (mount("/a/b", "/mnt/x"), "/mnt/x"),
            (mount("/", "/"), "/a/b"),
        ] {
            assert_eq!(
                within(&mount, Path::new(path)),
                Path::new("/a/b"),
                "{mount:?}"
            );
        }
    }
}
