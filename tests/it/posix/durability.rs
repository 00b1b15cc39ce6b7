//! What is on the disk when a call on the mount says that it is: the source's disk is copied at
//! that moment, as if the power had failed, and mounted from the copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FallocateFlags, OFlags};
use rustix::io::ReadWriteFlags;
use rustix::mount::UnmountFlags;

use super::{open, write_at};
use crate::children::Actor;
use crate::support::{Loop, Mount, Need, Scratch, content, require, run, sbin};

const SIZE: usize = 100_000;

/// A mount of a file system on a disk of its own.
struct Disk {
    /// Before the disk, so that it goes first.
    mount: Mount,
    disk: Loop,
}

impl Disk {
    fn new(options: &str) -> Option<Self> {
        if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
            return None;
        }
        let disk = Loop::new("ext4", 24 << 20);
        let mount = Mount::of(disk.path()).opt(options).start();
        // What was made so far is on the disk, and the clock of its journal starts anew.
        rustix::fs::syncfs(open(disk.path(), OFlags::RDONLY)).expect("syncfs");
        Some(Self { mount, disk })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.mount.path().join(name)
    }

    /// Shows to `look` what a power failure now would leave.
    fn after_power_failure(&self, look: impl FnOnce(&Path)) {
        let scratch = Scratch::new();
        let image = scratch.path().join("image");
        fs::copy(self.disk.image(), &image).expect("copy the disk");
        let point = scratch.dir("point");
        run(Command::new(sbin("mount"))
            .args(["-t", "ext4", "-o", "loop"])
            .args([&image, &point]));
        /// Unmounts also when the look fails.
        struct Mounted<'a>(&'a Path);
        impl Drop for Mounted<'_> {
            fn drop(&mut self) {
                let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
            }
        }
        let _mounted = Mounted(&point);
        look(&point);
    }

    #[track_caller]
    fn assert_kept(&self, name: &str, bytes: &[u8]) {
        self.after_power_failure(|point| {
            let kept = fs::read(point.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(
                kept == bytes,
                "{name}: {} bytes of {}",
                kept.len(),
                bytes.len()
            );
        });
    }
}

#[test]
fn what_was_synced_survives_a_power_failure() {
    for options in ["io=mmap", "io=pread"] {
        let Some(disk) = Disk::new(options) else {
            return;
        };
        let bytes = content(1, 0, SIZE);
        for (name, data_only) in [("fsync", false), ("fdatasync", true)] {
            let fd = open(&disk.path(name), OFlags::CREATE | OFlags::RDWR);
            write_at(&fd, 0, &bytes);
            match data_only {
                true => rustix::fs::fdatasync(&fd).unwrap(),
                false => rustix::fs::fsync(&fd).unwrap(),
            }
            disk.assert_kept(name, &bytes);
        }
        // A descriptor that only reads, and another's writes.
        write_at(
            &open(&disk.path("other"), OFlags::CREATE | OFlags::RDWR),
            0,
            &bytes,
        );
        rustix::fs::fsync(open(&disk.path("other"), OFlags::RDONLY)).unwrap();
        disk.assert_kept("other", &bytes);
    }
}

#[test]
fn synchronous_writes_survive_a_power_failure() {
    let Some(disk) = Disk::new("io=mmap") else {
        return;
    };
    let bytes = content(2, 0, SIZE);
    for (name, flag) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let fd = open(&disk.path(name), OFlags::CREATE | OFlags::RDWR | flag);
        write_at(&fd, 0, &bytes);
        disk.assert_kept(name, &bytes);
        // Also what is no write of the descriptor's own.
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 2 * SIZE as u64).unwrap();
        write_at(&fd, SIZE as u64, &bytes);
        disk.assert_kept(name, &[&bytes[..], &bytes[..]].concat());
    }
    each_write_by_itself(&disk);
    drop(disk);
    // Where the kernel sends what is written past its pages, it asks for nothing afterwards.
    if let Some(disk) = Disk::new("coherence=strict") {
        each_write_by_itself(&disk);
    }
}

fn each_write_by_itself(disk: &Disk) {
    let bytes = content(3, 0, SIZE);
    for (name, more) in [("plain", OFlags::empty()), ("append", OFlags::APPEND)] {
        for (how, flag) in [
            ("sync", ReadWriteFlags::SYNC),
            ("dsync", ReadWriteFlags::DSYNC),
        ] {
            let name = format!("rwf-{name}-{how}");
            let fd = open(&disk.path(&name), OFlags::CREATE | OFlags::RDWR | more);
            let parts = [std::io::IoSlice::new(&bytes)];
            assert_eq!(rustix::io::pwritev2(&fd, &parts, 0, flag).unwrap(), SIZE);
            disk.assert_kept(&name, &bytes);
        }
    }
}

#[test]
fn stores_survive_a_power_failure_after_msync() {
    let Some(disk) = Disk::new("io=mmap") else {
        return;
    };
    let mut bytes = vec![b'.'; SIZE];
    let path = disk.path("mapped");
    let fd = open(&path, OFlags::CREATE | OFlags::RDWR);
    write_at(&fd, 0, &bytes);
    rustix::fs::fsync(&fd).unwrap();
    let mut actor = Actor::mapper(&path);
    assert_eq!(actor.ask(&format!("map {SIZE}")), "ok");
    assert_eq!(actor.ask("store 50000 stored"), "ok");
    assert_eq!(actor.ask("sync"), "ok");
    bytes[50_000..50_006].copy_from_slice(b"stored");
    disk.assert_kept("mapped", &bytes);
    // By fsync of another's descriptor, too.
    assert_eq!(actor.ask("store 70000 again"), "ok");
    rustix::fs::fsync(&fd).unwrap();
    bytes[70_000..70_005].copy_from_slice(b"again");
    disk.assert_kept("mapped", &bytes);
}

#[test]
fn names_survive_a_power_failure_after_fsync_of_their_directory() {
    let Some(disk) = Disk::new("io=mmap") else {
        return;
    };
    let bytes = content(3, 0, SIZE);
    let sync = || {
        let folder = open(disk.mount.path(), OFlags::RDONLY | OFlags::DIRECTORY);
        rustix::fs::fsync(folder).unwrap();
    };
    // As careful programs replace a file.
    let fd = open(&disk.path("new"), OFlags::CREATE | OFlags::RDWR);
    write_at(&fd, 0, &bytes);
    rustix::fs::fsync(&fd).unwrap();
    rustix::fs::renameat(CWD, disk.path("new"), CWD, disk.path("name")).unwrap();
    sync();
    disk.assert_kept("name", &bytes);
    rustix::fs::link(disk.path("name"), disk.path("link")).unwrap();
    fs::create_dir(disk.path("folder")).unwrap();
    rustix::fs::unlink(disk.path("name")).unwrap();
    sync();
    disk.after_power_failure(|point| {
        assert!(!point.join("new").exists() && !point.join("name").exists());
        assert!(point.join("folder").is_dir());
        assert_eq!(fs::read(point.join("link")).unwrap(), bytes);
    });
}
