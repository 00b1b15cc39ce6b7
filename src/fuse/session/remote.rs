//! Whether a source may make us wait for somebody else: a server, or another process.

use super::mountinfo::{self, Mount};
use super::place::Place;

/// The file systems, by the types of /proc/mounts, whose answers wait for a disk of this machine
/// or for nothing. What is not among them may hang.
const LOCAL: [&str; 38] = [
    "adfs",
    "affs",
    "autofs",
    "bcachefs",
    "befs",
    "bfs",
    "btrfs",
    "cgroup2",
    "configfs",
    "cramfs",
    "debugfs",
    "devtmpfs",
    "ecryptfs",
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
    "overlay",
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
    !is_local(&home) || mounts.iter().filter(inside).any(|mount| !is_local(mount))
}

fn is_local(mount: &Mount) -> bool {
    mount.kind == "zfs" || LOCAL.iter().any(|kind| mount.kind == *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn mount(kind: &str) -> Mount {
        Mount {
            id: 1,
            device: (0, 1),
            root: "/".into(),
            mountpoint: "/m".into(),
            kind: kind.into(),
            source: "none".into(),
        }
    }

    #[test]
    fn disks_and_memory_are_local_and_servers_and_processes_are_not() {
        for kind in ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"] {
            assert!(is_local(&mount(kind)), "{kind}");
        }
        for kind in ["nfs4", "cifs", "fuse.sshfs", "fuseblk", "ceph", "9p", "new"] {
            assert!(!is_local(&mount(kind)), "{kind}");
        }
    }

    #[test]
    fn a_folder_of_this_system_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of_directory(folder.path()).unwrap();
        assert_eq!(may_hang(&place), !is_local(&place.mount().unwrap()));
        assert!(
            Place::of_directory(Path::new("/proc")).is_ok_and(|p| is_local(&p.mount().unwrap()))
        );
    }
}
