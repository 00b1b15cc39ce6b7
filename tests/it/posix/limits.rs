//! What the kernel's FUSE or the library does not carry: what a program sees there, so that it is
//! noticed when that changes.

use rustix::fs::{FallocateFlags, Mode, OFlags, StatxFlags, fallocate};
use rustix::io::Errno;

use super::{open, read_at, write_at};
use crate::children::Actor;
use crate::support::{Buffer, Mount, Need, Scratch, content, require};

fn mounted() -> Option<(Scratch, Mount)> {
    require(&[Need::Fuse]).then(|| {
        let source = Scratch::new();
        let mount = Mount::of(source.path()).start();
        (source, mount)
    })
}

/// FUSE_TMPFILE is not in fuser's trait.
#[test]
fn a_file_without_a_name_cannot_be_made() {
    let Some((_source, mount)) = mounted() else {
        return;
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let made = rustix::fs::open(mount.path(), flags, Mode::RWXU);
    assert_eq!(made.map(drop), Err(Errno::OPNOTSUPP));
}

/// FUSE_STATX is not in fuser's trait.
#[test]
fn there_is_no_time_of_birth() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    source.file("f", b"");
    let ask = |path: &std::path::Path| {
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::ALL).unwrap()
    };
    let seen = ask(&mount.path().join("f"));
    assert_eq!(seen.stx_mask & StatxFlags::BTIME.bits(), 0);
    assert_eq!(
        seen.stx_mask & StatxFlags::BASIC_STATS.bits(),
        StatxFlags::BASIC_STATS.bits()
    );
}

/// fs/fuse/file.c, fuse_file_fallocate and the missing remap_file_range.
#[test]
fn ranges_are_not_collapsed_inserted_or_shared() {
    let Some((_source, mount)) = mounted() else {
        return;
    };
    let fd = open(&mount.path().join("f"), OFlags::CREATE | OFlags::RDWR);
    write_at(&fd, 0, &[1; 65_536]);
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&fd, mode, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    let other = open(&mount.path().join("g"), OFlags::CREATE | OFlags::RDWR);
    assert_eq!(
        rustix::fs::ioctl_ficlone(&other, &fd),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(read_at(&fd, 0, 70_000), [1; 65_536]);
}

/// FUSE does not say FMODE_NOWAIT.
#[test]
fn reads_that_must_not_wait_are_refused() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    source.file("f", b"content");
    let fd = open(&mount.path().join("f"), OFlags::RDONLY);
    let mut bytes = [0; 7];
    let parts = &mut [std::io::IoSliceMut::new(&mut bytes)];
    let read = rustix::io::preadv2(&fd, parts, 0, rustix::io::ReadWriteFlags::NOWAIT);
    assert_eq!(read, Err(Errno::OPNOTSUPP));
}

/// The kernel's FUSE copies what is not aligned; most local file systems refuse it with EINVAL.
#[test]
fn direct_requests_need_no_alignment() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    let bytes = content(1, 0, 100_000);
    source.file("f", &bytes);
    let fd = open(&mount.path().join("f"), OFlags::RDWR | OFlags::DIRECT);
    let mut buffer = Buffer::new(50_000);
    let room = &mut buffer.bytes(50_000)[1..40_000];
    for offset in [0, 1, 511, 4095, 70_001] {
        let count = rustix::io::pread(&fd, &mut *room, offset).unwrap();
        let end = (offset as usize + room.len()).min(bytes.len());
        assert!(room[..count] == bytes[offset as usize..end], "at {offset}");
    }
    room[..5].copy_from_slice(b"odder");
    assert_eq!(rustix::io::pwrite(&fd, &room[..5], 12_345).unwrap(), 5);
    assert_eq!(
        read_at(&open(&mount.path().join("f"), OFlags::RDONLY), 12_344, 7)[1..6],
        *b"odder"
    );
}

/// fuser does not hand on whether a lock is of a process or of an open.
#[test]
fn an_ofd_lock_is_named_by_a_process() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    source.file("f", b"0123456789");
    let path = mount.path().join("f");
    let (mut a, mut b) = (Actor::locker(&path), Actor::locker(&path));
    assert_eq!(a.ask("set ofd-write 0 5"), "ok");
    let holder = b.ask("get write 0 0");
    let holder = holder.strip_prefix("write 0 5 ").expect("the range");
    let holder: u32 = holder.parse().expect("a process, not -1");
    assert!(std::path::Path::new(&format!("/proc/{}/task/{holder}", a.pid())).exists());
}

/// The kernel asks for FUSE_SYNCFS only of its own virtiofs (fs/fuse/inode.c).
#[test]
fn syncfs_asks_the_source_for_nothing() {
    let Some((source, mount)) = mounted() else {
        return;
    };
    source.file("f", b"");
    let fd = open(&mount.path().join("f"), OFlags::RDWR);
    write_at(&fd, 0, b"x");
    let synced = || {
        mount
            .stats()
            .sum("corfs_operations_total", &[("op", "fsync")])
    };
    rustix::fs::syncfs(&fd).unwrap();
    assert_eq!(synced(), 0.0);
    rustix::fs::fsync(&fd).unwrap();
    assert_eq!(synced(), 1.0);
}

/// swapon(2) wants a file's blocks, which FUSE does not tell.
#[test]
fn a_file_of_the_mount_is_no_swap_space() {
    let Some((_source, mount)) = mounted() else {
        return;
    };
    let needs = [Need::Root, Need::Tool("mkswap"), Need::Tool("swapon")];
    if !require(&needs) {
        return;
    }
    use crate::support::{output, run, sbin};
    use std::process::Command;
    let path = mount.path().join("swap");
    crate::support::write_file(&path, &[0; 1 << 20]);
    crate::support::set_mode(&path, 0o600);
    run(Command::new(sbin("mkswap")).arg(&path));
    let out = output(Command::new(sbin("swapon")).arg(&path));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("Invalid argument"), "{said}");
}
