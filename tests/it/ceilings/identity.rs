//! A number that was given again never makes one file of two, however the daemon finds again what
//! it holds no descriptor of.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::*;
use crate::support::{
    Loop, MountBuilder, Need, Scratch, USER, apart, errno_of, read_file, require, run, set_owner,
    sh,
};

const FILES: usize = 400;

fn name(n: usize) -> String {
    format!("f{n}")
}

fn write_all(folder: &Path, text: &str) {
    for n in 0..FILES {
        fs::write(folder.join(name(n)), format!("{text} {n}")).unwrap();
    }
}

fn numbers(folder: &Path) -> HashSet<u64> {
    let ino = |n| fs::metadata(folder.join(name(n))).unwrap().ino();
    (0..FILES).map(ino).collect()
}

/// Replaces all files behind a daemon that must still know the old ones, and holds hardly any.
fn replace(builder: MountBuilder, user: Option<(u32, u32)>, source: &Path) {
    write_all(source, "old");
    let before = numbers(source);
    let mount = builder
        .descriptors(64)
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    apart(user, || {
        let pinned: Vec<_> = (0..FILES)
            .map(|n| {
                let path = mount.path().join(name(n));
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
            })
            .collect();
        for n in 0..FILES {
            fs::remove_file(source.join(name(n))).unwrap();
        }
        write_all(source, "new");
        let again = numbers(source).intersection(&before).count();
        assert!(again > FILES / 2, "ext4 gave only {again} numbers again");
        let mut stale = 0;
        for (n, fd) in pinned.iter().enumerate() {
            match fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
                Ok(bytes) => assert_eq!(bytes, format!("old {n}").into_bytes()),
                Err(error) => {
                    assert_eq!(errno_of(n, Err::<(), _>(error)), Errno::STALE);
                    stale += 1;
                }
            }
        }
        println!("{again} numbers given again, {stale} of {FILES} stale, the rest still held");
        assert!(stale > FILES / 2, "most were parked");
        for n in 0..FILES {
            let bytes = read_file(&mount.path().join(name(n)));
            assert_eq!(bytes, format!("new {n}").into_bytes());
        }
        // Still the old ones, or none.
        for (n, fd) in pinned.iter().enumerate() {
            if let Ok(bytes) = fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
                assert_eq!(bytes, format!("old {n}").into_bytes());
            }
        }
    });
}

#[test]
fn a_number_given_again_is_stale_to_root() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 64 * MIB);
    replace(Mount::of(disk.path()), None, disk.path());
}

#[test]
fn a_number_given_again_is_stale_to_an_ordinary_user() {
    if !require(&[Need::UserFuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 64 * MIB);
    let source = disk.path().join("source");
    fs::create_dir(&source).unwrap();
    set_owner(&source, USER, USER);
    let builder = Mount::of(&source).as_user(USER, USER);
    apart(Some((USER, USER)), || write_all(&source, "old"));
    replace(builder, Some((USER, USER)), &source);
}

/// Someone stands deep below directories that the daemon holds no descriptors of.
#[test]
fn a_working_directory_far_down() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let down = "d/".repeat(600);
    fs::create_dir_all(source.path().join(&down)).unwrap();
    fs::write(source.path().join(&down).join("f"), "deep\n").unwrap();
    for n in 0..400 {
        source.file(&format!("other{n}"), b"");
    }
    set_owner(source.path(), USER, USER);
    for user in [None, Some((USER, USER))] {
        let mut builder = Mount::of(source.path())
            .descriptors(64)
            .opt("attr_timeout=0");
        if let Some((uid, gid)) = user {
            builder = builder.as_user(uid, gid);
        }
        let mount = builder.start();
        let top = mount.path().to_str().unwrap();
        let look = format!("ls -l {top} >/dev/null");
        let script = format!("cd {down} && {look} && {look} && cat f ../d/f && ls ..");
        let said = apart(user, || run(&mut sh(mount.path(), &script)));
        assert_eq!(said, "deep\ndeep\nd\n", "{user:?}");
    }
}
