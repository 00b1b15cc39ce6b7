//! File systems of a test's own, and copies on them.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use crate::support::{Loop, Mount, Need, Tmpfs, require};

/// A file system of a test's own.
#[derive(Debug)]
pub(super) enum Disk {
    Loop(Loop),
    Tmpfs(Tmpfs),
}

impl Disk {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Loop(disk) => disk.path(),
            Self::Tmpfs(disk) => disk.path(),
        }
    }
}

/// Runs a test on each of these kinds that is to be had.
pub(super) fn on_each(kinds: &[&'static str], test: impl Fn(&str, &Path)) {
    for &kind in kinds {
        let disk = if kind == "tmpfs" {
            if !require(&[Need::Fuse, Need::Root]) {
                continue;
            }
            Disk::Tmpfs(Tmpfs::new(400 << 20))
        } else {
            if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
                continue;
            }
            Disk::Loop(Loop::new(kind, 400 << 20))
        };
        test(kind, disk.path());
    }
}

pub(super) const ALL: [&str; 4] = ["ext4", "xfs", "btrfs", "tmpfs"];
/// Those that share extents.
pub(super) const SHARING: [&str; 2] = ["xfs", "btrfs"];

/// `echo LINE > .copy`; the line ends with the destination's name. The method that the list of
/// jobs shows for it.
pub(super) fn copy(mount: &Mount, line: &str) -> Result<String, Errno> {
    let control = mount.path().join(".copy");
    fs::write(&control, format!("{line}\n"))
        .map_err(|error| Errno::from_io_error(&error).expect("an errno"))?;
    let list = fs::read_to_string(control).expect("the list of jobs");
    let last = list.lines().rev().find(|job| job.contains(" -> "));
    let words: Vec<&str> = last.expect("a job").split_whitespace().collect();
    let methods = [
        "reflink",
        "map-write",
        "map-map",
        "copy-range",
        "read-write",
    ];
    let method = words.iter().find(|word| methods.contains(word));
    Ok((*method.expect("a method")).to_owned())
}

/// Bytes free on a file system, when everything has been written.
pub(super) fn free(at: &Path) -> u64 {
    let folder = fs::File::open(at).expect("the folder");
    rustix::fs::syncfs(&folder).expect("syncfs");
    let found = rustix::fs::statvfs(at).expect("statvfs");
    found.f_bfree * found.f_frsize
}

/// Takes all space of a file system but so many bytes.
pub(super) fn fill(at: &Path, left: u64) {
    let filler = fs::File::create(at.join("filler")).expect("the filler");
    let mut bytes = free(at).saturating_sub(left);
    // What is free is not all for data: less until it goes.
    while rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
        filler.set_len(0).expect("space back");
        bytes -= 4 << 20;
    }
}
