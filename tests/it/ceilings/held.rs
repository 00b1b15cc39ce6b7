//! Files held open, as many as the daemon's limit lets.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::support::{
    MountBuilder, Need, Scratch, USER, apart, errno_of, require, run, set_owner, sh, soak,
};

fn name(n: u64) -> String {
    format!("held{n}")
}

/// A folder with `count` files, each of its own content.
fn files(count: u64) -> Scratch {
    let source = Scratch::new();
    for n in 0..count {
        source.file(&name(n), n.to_string().as_bytes());
    }
    source
}

/// Opens files until none more can be; panics unless the error is the right one.
fn open_all(folder: &Path, count: u64) -> Vec<File> {
    let mut held = Vec::new();
    for n in 0..count {
        match File::open(folder.join(name(n))) {
            Ok(file) => held.push(file),
            Err(error) => {
                let errno = errno_of(n, Err::<(), _>(error));
                assert!([Errno::MFILE, Errno::NFILE].contains(&errno), "{errno}");
                break;
            }
        }
    }
    held
}

/// Every file held is the one that was opened.
fn check(held: &[File]) {
    for (n, file) in held.iter().enumerate() {
        let mut bytes = [0; 20];
        let length = file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[..length], n.to_string().as_bytes());
        assert_eq!(file.metadata().unwrap().len(), length as u64, "file {n}");
    }
}

/// Mounts, and holds all of `count` files, of which `least` must open, as the one who mounted.
fn hold(builder: MountBuilder, user: Option<(u32, u32)>, source: &Path, count: u64, least: u64) {
    allow_ourselves(count);
    let mut mount = builder.start();
    apart(user, || hold_in(&mount, source, count, least));
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.server())).unwrap();
    println!("{} descriptors at the end", fds.count());
    assert!(mount.alive());
}

/// Their names may go, and others take them.
fn hold_in(mount: &Mount, source: &Path, count: u64, least: u64) {
    let held = open_all(mount.path(), count);
    println!("{} of {count} files held open", held.len());
    assert!(held.len() as u64 >= least, "{} open", held.len());
    check(&held);
    // What has no descriptor of its own must not be taken for what gets its name or number.
    let half = held.len() / 2;
    for n in 0..half as u64 {
        fs::remove_file(source.join(name(n))).unwrap();
        fs::write(source.join(name(n)), b"another").unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    check(&held);
    for file in &held[..half] {
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
    drop(held);
    wait_until("all are closed", PATIENCE, || {
        gauge(&mount.stats(), "corfs_handles") == 0
    });
    for n in 0..count {
        let expected = match n < half as u64 {
            true => b"another".to_vec(),
            false => n.to_string().into_bytes(),
        };
        assert_eq!(fs::read(mount.path().join(name(n))).unwrap(), expected);
    }
}

#[test]
fn as_many_as_the_limit_lets_and_then_emfile() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = files(1200);
    let builder = Mount::of(source.path()).descriptors(1024);
    hold(builder, None, source.path(), 1200, 950);
}

#[test]
fn ten_thousand_at_once() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let count = soak(10_000);
    let source = files(count);
    // No more descriptors than files, but for a few that the daemon needs itself.
    let builder = Mount::of(source.path()).descriptors(count + 64);
    hold(builder, None, source.path(), count, count);
}

/// One descriptor an open file: that of the file serves for the inode as well.
#[test]
fn an_ordinary_user_holds_as_many() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = files(1200);
    set_owner(source.path(), USER, USER);
    run(&mut sh(source.path(), &format!("chown -R {USER}:{USER} .")));
    let builder = Mount::of(source.path())
        .as_user(USER, USER)
        .descriptors(1024);
    hold(builder, Some((USER, USER)), source.path(), 1200, 950);
}
