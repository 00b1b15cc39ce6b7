//! The disk beneath the source goes away.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use rustix::io::Errno;

use super::PATIENCE;
use super::load::{self, Load};
use crate::support::{
    FaultySource, Loop, Mount, Need, On, Scratch, assert_content, drop_caches, errno_of, require,
    run, sbin, wait_until, write_content,
};

#[test]
fn a_disk_that_is_pulled_is_eio_and_a_clean_end() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let below = FaultySource::new();
    let image = below.store().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let disk = Loop::over("ext4", Scratch::new(), below.path().join("image"));
    load::furnish(disk.path());
    write_content(&disk.path().join("cold"), 8, 16 << 20);
    run(Command::new("sync").arg("-f").arg(disk.path()));
    let mut mount = Mount::of(disk.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    let at = mount.path().to_owned();
    let mut open = File::options();
    open.read(true).custom_flags(libc::O_DIRECT);
    let cold = open.open(at.join("cold")).unwrap();
    let load = Load::start(&at, None);
    load.await_progress();
    assert!(drop_caches());
    for on in [On::Read, On::Write, On::Fsync] {
        below.faults().fail(on, None, Errno::IO);
    }
    // What is not in memory is an error; what is, is right.
    let mut buffer = crate::support::Buffer::new(1 << 20);
    wait_until("the disk is missed", PATIENCE, || {
        (0..16).any(|piece| {
            let offset = piece << 20;
            match cold.read_at(buffer.bytes(1 << 20), offset) {
                Ok(count) => {
                    assert_content(8, offset, &buffer.bytes(1 << 20)[..count]);
                    false
                }
                Err(error) => error.raw_os_error() == Some(libc::EIO),
            }
        })
    });
    let file = File::options().write(true).open(at.join("cold"));
    let synced = file.and_then(|file| {
        file.write_at(b"lost", 17 << 20)?;
        file.sync_all()
    });
    let errno = errno_of("a write that must reach the disk", synced);
    // ext4 makes itself read-only when its journal fails.
    assert!([Errno::IO, Errno::ROFS].contains(&errno), "{errno}");
    // Those at work may find all they want in memory; none hears of anything else.
    for end in load.end() {
        let right = [Ok(()), Err(Errno::IO), Err(Errno::ROFS)];
        assert!(right.contains(&end), "{end:?}");
    }
    assert!(mount.alive(), "{}", mount.log());
    mount.stats();
    drop(cold);
    assert_eq!(mount.finish().code(), Some(0));
    below.faults().heal();
}

#[test]
fn a_loop_device_detached_in_use_stays_until_it_is_free() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 64 << 20);
    load::furnish(disk.path());
    let mount = Mount::of(disk.path()).start();
    let load = Load::start(mount.path(), None);
    run(Command::new(sbin("losetup"))
        .arg("--detach")
        .arg(disk.device()));
    load.await_progress();
    assert!(drop_caches());
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    assert_eq!(mount.finish().code(), Some(0));
    load::assert_tidy_but(disk.path(), "lost+found");
    // With its last user it goes: the mount kept nothing.
    run(Command::new(sbin("umount")).arg(disk.path()));
    let name = disk.device().file_name().unwrap().to_owned();
    let backing = std::path::Path::new("/sys/block")
        .join(name)
        .join("loop/backing_file");
    wait_until("it is free", PATIENCE, || {
        // Or another test's already.
        fs::read_to_string(&backing)
            .map_or(true, |file| file.trim() != disk.image().to_str().unwrap())
    });
}
