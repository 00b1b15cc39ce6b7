//! Whether a source may make us wait for somebody else: a server, or another process.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mount};
use super::place::Place;

/// The file systems, by the types of /proc/mounts, whose answers wait for a disk of this machine
/// or for nothing. What is not among them may hang, as the automounter (autofs) does until a server
/// answers; what lies upon other directories (overlay, ecryptfs) does as they do.
const LOCAL: [&str; 35] = [
    "adfs",
    "affs",
    "bcachefs",
    "befs",
    "bfs",
    "btrfs",
    "cgroup2",
    "configfs",
    "cramfs",
    "debugfs",
    "devtmpfs",
    "efs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "minix",
    "msdos",
    "nilfs2",
    "ntfs3",
    "proc",
    "ramfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "udf",
    "vfat",
    "xfs",
];

/// Whether the file system of `source`, or one mounted somewhere in it, is not known to be local.
/// Asks nobody but the kernel.
pub(super) fn may_hang(source: &Place) -> bool {
    let (Ok(home), Ok(mounts)) = (source.mount(), mountinfo::read()) else {
        return true;
    };
    let inside = |mount: &&Mount| mount.mountpoint.starts_with(source.path());
    let local = |mount: &Mount| is_local(mount, &mounts, DEEPEST);
    !local(&home) || !mounts.iter().filter(inside).all(local)
}

/// So many file systems may lie upon each other; the kernel lets overlay do so twice.
const DEEPEST: usize = 4;

fn is_local(mount: &Mount, mounts: &[Mount], depth: usize) -> bool {
    let layers = match mount.kind.to_str() {
        Some("overlay") => layers(mount.options.as_bytes()),
        Some("ecryptfs") => vec![PathBuf::from(&mount.source)],
        Some("zfs") => return true,
        kind => return LOCAL.iter().any(|local| kind == Some(local)),
    };
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    // In a container they are elsewhere, and only seem to lie in what lies upon them: images are
    // local.
    let beneath = layers.iter().filter_map(|layer| holder(layer, mounts));
    let mut beneath = beneath.filter(|beneath| beneath.id != mount.id);
    beneath.all(|mount| is_local(mount, mounts, depth))
}

/// The directories of an overlay: `lowerdir=/a:/b`, `lowerdir+=/c`, `upperdir=/d`, in which a
/// backslash takes a colon or comma for itself (Documentation/filesystems/overlayfs.rst).
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for option in split(options, b',') {
        let mut words = option.splitn(2, |byte| *byte == b'=');
        let (name, value) = (words.next().unwrap_or_default(), words.next());
        let names: [&[u8]; 4] = [b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir"];
        if let Some(value) = value.filter(|_| names.contains(&name)) {
            let paths = split(value, b':').into_iter().map(plain);
            found.extend(paths.filter(|path| path.is_absolute()));
        }
    }
    found
}

/// The parts of a text between marks that no backslash stands before.
fn split(text: &[u8], mark: u8) -> Vec<&[u8]> {
    let mut escaped = false;
    let parts = text.split(|byte| {
        let ends = *byte == mark && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    parts.collect()
}

fn plain(escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(byte) = rest.next() {
        let taken = if *byte == b'\\' { rest.next() } else { None };
        bytes.push(*taken.unwrap_or(byte));
    }
    OsString::from_vec(bytes).into()
}

/// The mount that holds a path.
fn holder<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let over = mounts.iter().filter(|m| path.starts_with(&m.mountpoint));
    over.max_by_key(|mount| mount.mountpoint.as_os_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(at: &str, kind: &str, options: &str) -> Mount {
        Mount {
            id: at.len() as u64,
            device: (0, 1),
            root: "/".into(),
            mountpoint: at.into(),
            kind: kind.into(),
            source: "/lower".into(),
            options: options.into(),
        }
    }

    fn local(mount: &Mount, others: &[Mount]) -> bool {
        is_local(mount, others, DEEPEST)
    }

    #[test]
    fn disks_and_memory_are_local_and_servers_and_processes_are_not() {
        for kind in ["ext4", "xfs", "btrfs", "tmpfs", "zfs"] {
            assert!(local(&mount("/m", kind, "rw"), &[]), "{kind}");
        }
        for kind in [
            "nfs4",
            "cifs",
            "fuse.sshfs",
            "fuseblk",
            "ceph",
            "9p",
            "autofs",
            "new",
        ] {
            assert!(!local(&mount("/m", kind, "rw"), &[]), "{kind}");
        }
    }

    #[test]
    fn what_lies_upon_other_directories_hangs_as_they_do() {
        let others = [
            mount("/", "ext4", "rw"),
            mount("/net", "nfs4", "rw"),
            mount("/a,b", "nfs4", "rw"),
            mount("/lower", "fuse.sshfs", "rw"),
        ];
        let overlay = |options| local(&mount("/m", "overlay", options), &others);
        assert!(overlay("rw,lowerdir=/x:/y,upperdir=/u,workdir=/net/w"));
        assert!(overlay("ro,lowerdir=relative:/net\\:x"));
        assert!(!overlay("rw,lowerdir=/x:/net/y,upperdir=/u"));
        assert!(!overlay("rw,lowerdir=/x,upperdir=/net/u"));
        assert!(!overlay("rw,lowerdir+=/x,lowerdir+=/net/x"));
        assert!(!overlay("rw,lowerdir=/a\\,b/x"));
        assert!(!local(&mount("/m", "ecryptfs", "rw"), &others));
        let image = [mount("/", "overlay", "lowerdir=/x")];
        assert!(local(&image[0], &image));
    }

    #[test]
    fn a_folder_of_this_system_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of_directory(folder.path()).unwrap();
        let mounts = mountinfo::read().unwrap();
        let local = |place: &Place| is_local(&place.mount().unwrap(), &mounts, DEEPEST);
        assert_eq!(may_hang(&place), !local(&place));
        assert!(Place::of_directory(Path::new("/proc")).is_ok_and(|place| local(&place)));
    }
}
