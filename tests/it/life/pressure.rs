//! Disks, memory and descriptors that run out; sources that change their mind.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use memmap2::{MmapMut, MmapOptions};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::PATIENCE;
use super::load::{self, Load};
use crate::support::{
    Loop, Mount, Need, OTHER, Scratch, Tmpfs, USER, apart, assert_content, errno_of, output,
    require, run, sbin, set_mode, tool, wait_until, write_content,
};

/// Fills what is left.
fn fill(at: &Path) {
    let file = File::create(at.join("filler")).unwrap();
    let mut size = 1 << 20;
    let mut offset = 0;
    while size >= 4096 {
        match file.write_at(&vec![1; size], offset) {
            Ok(count) => offset += count as u64,
            Err(_) => size /= 2,
        }
    }
    // What a file system allocates late is not there before.
    let _ = file.sync_all();
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// The whole file, mapped shared and writable.
fn map(file: &File) -> MmapMut {
    // SAFETY: the bytes are touched by the kernel alone, which checks every page; other processes
    // may change them meanwhile, and are meant to.
    unsafe { MmapOptions::new().map_mut(file) }.unwrap()
}

/// Stores into a mapping by way of the kernel: a page that is not to be had is EFAULT and not
/// the SIGBUS that would end the test.
fn store(map: &mut [u8]) -> io::Result<usize> {
    File::open("/dev/zero")?.read(map)
}

/// Loads from a mapping, in the same way.
fn load(map: &[u8]) -> io::Result<usize> {
    let mut into = tempfile::tempfile()?;
    into.write(map)
}

#[test]
fn a_full_disk_is_told_to_whoever_writes() {
    if !require(&[Need::Fuse, Need::Root, Need::Filesystem("ext4")]) {
        return;
    }
    let tmpfs = Tmpfs::new(8 << 20);
    let ext4 = Loop::new("ext4", 16 << 20);
    for source in [tmpfs.path(), ext4.path()] {
        write_content(&source.join("whole"), 3, 1 << 20);
        let holed = File::create(source.join("holed")).unwrap();
        holed.set_len(1 << 20).unwrap();
        let mount = Mount::of(source).start();
        let at = mount.path();
        fill(source);
        let what = source.display();
        let big = vec![7; 1 << 20];
        let written = fs::write(at.join("new"), &big);
        assert_eq!(errno_of(&what, written), Errno::NOSPC);
        let copied = fs::write(at.join(".copy"), "whole copied\n");
        assert_eq!(errno_of(&what, copied), Errno::NOSPC);
        assert!(!source.join("copied").exists());
        let file = open(&at.join("holed")).unwrap();
        let written = file.write_all_at(&big, 0);
        assert_eq!(errno_of(&what, written), Errno::NOSPC);
        let allocated =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20);
        assert_eq!(allocated, Err(Errno::NOSPC));
        // What is there can still be read and written over.
        let whole = open(&at.join("whole")).unwrap();
        whole.write_all_at(b"over", 0).unwrap();
        fs::remove_file(source.join("filler")).unwrap();
        fs::write(at.join("new"), "room again").unwrap();
        drop((file, whole));
        assert_eq!(mount.finish().code(), Some(0));
    }
}

/// What ext4 keeps for root stays so: through root's mount a user fills as much as natively.
#[test]
fn what_is_reserved_for_root_is_not_for_users() {
    if !require(&[Need::Fuse, Need::Root, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 64 << 20);
    set_mode(disk.path(), 0o777);
    let left = || {
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        (stat.f_bavail * stat.f_frsize, stat.f_bfree * stat.f_frsize)
    };
    let (available, free) = left();
    let reserved = free - available;
    assert!(
        reserved > 1 << 20,
        "mkfs.ext4 reserves a twentieth: {reserved}"
    );
    let mount = Mount::of(disk.path()).opt("allow_other").start();
    for place in [disk.path(), mount.path()] {
        let path = place.join("filler");
        let told = apart(Some((USER, OTHER)), || {
            let file = File::create(&path).unwrap();
            let part = vec![7; 1 << 20];
            let at = |n: u64| file.write_all_at(&part, n << 20);
            errno_of(place.display(), (0..64).try_for_each(at))
        });
        assert_eq!(told, Errno::NOSPC);
        // Room may be reckoned before it is taken: less than the last request, more or less.
        let (_, free) = left();
        assert!(
            free + (1 << 20) >= reserved,
            "{free} of {reserved}, {}",
            place.display()
        );
        fs::remove_file(&path).unwrap();
    }
}

/// A store into a hole: natively the page fault asks for the block, and SIGBUS says that there
/// is none; through FUSE the page is taken, and msync says it.
#[test]
fn a_store_that_finds_the_disk_full_is_told_by_msync() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(4 << 20);
    let holed = File::create(source.path().join("holed")).unwrap();
    holed.set_len(1 << 20).unwrap();
    drop(holed);
    let mut mount = Mount::of(source.path()).start();
    fill(source.path());
    let native = open(&source.path().join("holed")).unwrap();
    let stored = store(&mut map(&native)[..4096]);
    assert_eq!(errno_of("natively", stored), Errno::FAULT);
    let file = open(&mount.path().join("holed")).unwrap();
    let mut mapped = map(&file);
    assert_eq!(store(&mut mapped[..4096]).unwrap(), 4096);
    assert_eq!(errno_of("msync", mapped.flush()), Errno::NOSPC);
    assert!(mount.alive());
}

#[test]
fn inodes_that_run_out_are_told_to_whoever_creates() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(8 << 20);
    run(Command::new(sbin("mount"))
        .args(["-o", "remount,nr_inodes=20"])
        .arg(source.path()));
    let mount = Mount::of(source.path()).start();
    let at = mount.path();
    fs::write(at.join("file"), "x").unwrap();
    let made = (0..30).map(|n| File::create(at.join(format!("f{n}"))));
    let error = made.filter_map(Result::err).next().expect("an end");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let nospc = |what: &str, made: io::Result<()>| assert_eq!(errno_of(what, made), Errno::NOSPC);
    nospc("mkdir", fs::create_dir(at.join("d")));
    nospc("symlink", std::os::unix::fs::symlink("x", at.join("l")));
    nospc(".copy", fs::write(at.join(".copy"), "file copied\n"));
    fs::remove_file(at.join("f0")).unwrap();
    // It is free when the kernel has told of the last close and forgotten the file.
    wait_until("an inode is free", PATIENCE, || {
        fs::create_dir(at.join("d")).is_ok()
    });
}

#[test]
fn a_quota_is_told_to_whoever_writes() {
    if !require(&[Need::Fuse, Need::Filesystem("btrfs"), Need::Tool("btrfs")]) {
        return;
    }
    let disk = Loop::new("btrfs", 256 << 20);
    let btrfs = |words: &[&str], at: &Path| {
        run(Command::new(tool("btrfs").unwrap()).args(words).arg(at));
    };
    let volume = disk.path().join("volume");
    btrfs(&["subvolume", "create"], &volume);
    write_content(&volume.join("whole"), 3, 1 << 20);
    btrfs(&["quota", "enable"], disk.path());
    btrfs(&["quota", "rescan", "-w"], disk.path());
    btrfs(&["qgroup", "limit", "4M"], &volume);
    let mut mount = Mount::of(&volume).start();
    let written = fs::write(mount.path().join("new"), vec![1; 8 << 20]);
    assert_eq!(errno_of("write", written), Errno::DQUOT);
    let line = "whole copied\n".repeat(8);
    let copied = (0..8).find_map(|n| {
        let line = line.replace("copied", &format!("copied{n}"));
        fs::write(mount.path().join(".copy"), line).err()
    });
    let copied = copied.map_or(Ok(()), Err);
    assert_eq!(errno_of(".copy", copied), Errno::DQUOT);
    assert!(mount.alive());
}

#[test]
fn the_daemon_has_no_right_to_exceed_quotas() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.server())).unwrap();
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
        // CAP_SYS_RESOURCE, capability.h.
        assert_eq!(effective & (1 << 24), 0, "{effective:x}");
    }
}

#[test]
fn a_source_that_becomes_read_only_says_so() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(8 << 20);
    write_content(&source.path().join("whole"), 3, 1 << 20);
    let remount = |how: &str| {
        let mut command = Command::new(sbin("mount"));
        command.args(["-o", how]).arg(source.path());
        run(&mut command);
    };
    let mount = Mount::of(source.path()).start();
    let at = mount.path();
    fs::write(at.join("file"), "x").unwrap();
    remount("remount,ro");
    let rofs = |what: &str, done: io::Result<()>| assert_eq!(errno_of(what, done), Errno::ROFS);
    rofs("create", fs::write(at.join("new"), ""));
    rofs("open", open(&at.join("file")).map(drop));
    rofs("mkdir", fs::create_dir(at.join("d")));
    rofs("unlink", fs::remove_file(at.join("file")));
    rofs("rename", fs::rename(at.join("file"), at.join("other")));
    rofs(".copy", fs::write(at.join(".copy"), "whole copied\n"));
    assert_content(3, 0, &fs::read(at.join("whole")).unwrap());
    remount("remount,rw");
    fs::write(at.join("file"), "writable again").unwrap();
    // With a writer at work it is the source that refuses to become read-only, as natively.
    let _writer = open(&at.join("file")).unwrap();
    let refused = output(
        Command::new(sbin("mount"))
            .args(["-o", "remount,ro"])
            .arg(source.path()),
    );
    assert!(!refused.status.success());
}

#[test]
fn a_file_cut_under_a_users_mapping_kills_no_daemon() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for io in ["io=mmap", "io=pread"] {
        let source = Scratch::new();
        let path = source.path().join("f");
        write_content(&path, 4, 4 << 20);
        let mut mount = Mount::of(source.path())
            .opt("attr_timeout=0,entry_timeout=0")
            .opt(io)
            .start();
        let file = open(&mount.path().join("f")).unwrap();
        let mapped = map(&file);
        // Some of it the kernel has already, some not.
        assert_eq!(load(&mapped[..1 << 20]).unwrap(), 1 << 20);
        open(&path).unwrap().set_len(10_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 10_000);
        // As natively: past the end there is nothing to be had.
        let lost = load(&mapped[3 << 20..]);
        assert_eq!(errno_of(io, lost), Errno::FAULT);
        let mut bytes = Vec::new();
        File::open(mount.path().join("f"))
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_content(4, 0, &bytes);
        assert_eq!(bytes.len(), 10_000);
        // It grows again, and is what it is.
        write_content(&path, 5, 4 << 20);
        let mut bytes = vec![0; 4 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_content(5, 0, &bytes);
        assert!(mount.alive());
    }
}

/// The size of the daemon's address space in bytes, once all its event loops have what they need.
fn settled_size(mount: &Mount) -> u64 {
    let load = Load::start(mount.path(), None);
    let mut size = 0;
    wait_until("the loops have begun", PATIENCE, || {
        load.await_progress();
        let tasks = fs::read_dir(format!("/proc/{}/task", mount.server())).unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let loops = names.filter(|name| name.starts_with("fuser-")).count();
        let status = fs::read_to_string(format!("/proc/{}/status", mount.server())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        let before = std::mem::replace(&mut size, kib.unwrap() << 10);
        loops == 4 && before == size
    });
    assert_eq!(load.end(), [Ok(()); 4]);
    size
}

/// By what its loops have: a thread of its own (a copy, fsync) is not to be had without memory,
/// and Rust's way to say so is to end the process.
#[test]
fn a_daemon_without_memory_for_more_serves_on() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    load::furnish(source.path());
    for n in 0..4 {
        write_content(&source.path().join(format!("many{n}")), n, 14 << 20);
    }
    for io in ["io=mmap", "io=pread"] {
        let options = format!("{io},window=16M,threads=4");
        let mut mount = Mount::of(source.path()).opt(options).start();
        let size = settled_size(&mount);
        let daemon = Pid::from_raw(mount.server().cast_signed());
        let limit = |most| {
            let limit = Rlimit {
                current: most,
                maximum: None,
            };
            prlimit(daemon, Resource::As, limit).unwrap();
        };
        // Room for small things, and not for two windows.
        limit(Some(size + (24 << 20)));
        let at = mount.path().to_owned();
        for n in 0..4 {
            match fs::read(at.join(format!("many{n}"))) {
                Ok(bytes) => assert_content(n, 0, &bytes),
                // A buffer that is not to be had is an error, as natively.
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOMEM)),
            }
            let _ = fs::write(at.join(format!("new{n}")), vec![1; 1 << 20]);
            assert!(mount.alive(), "{io}: {}", mount.log());
        }
        // The limit was felt: a window did not fit.
        let unmappable = mount.stats().sum(
            "corfs_read_fallback_bytes_total",
            &[("reason", "unmappable")],
        );
        assert_eq!(unmappable > 0.0, io == "io=mmap", "{unmappable}");
        limit(None);
        let load = Load::start(&at, None);
        load.await_progress();
        assert_eq!(load.end(), [Ok(()); 4]);
        assert_content(3, 0, &fs::read(at.join("many3")).unwrap());
        assert!(mount.alive());
        assert_eq!(mount.finish().code(), Some(0));
    }
}
