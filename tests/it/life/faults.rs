//! Sources that fail, delay and hang.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use super::PATIENCE;
use crate::support::{
    FaultySource, Mount, Need, On, assert_content, errno_of, is_mounted, require, wait_until,
    write_content,
};

const NEEDS: &[Need] = &[Need::Fuse, Need::Root];

/// A source with two files of pseudo-random content, and its mirror.
fn stand(opt: &str) -> (FaultySource, Mount) {
    let source = FaultySource::new();
    write_content(&source.store().join("a"), 1, 3 << 20);
    write_content(&source.store().join("b"), 2, 3 << 20);
    let mount = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .opt(opt)
        .start();
    (source, mount)
}

#[test]
fn the_faulty_source_is_a_file_system_like_another() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("io=mmap");
    for at in [source.path(), mount.path()] {
        assert_content(1, 0, &fs::read(at.join("a")).unwrap());
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/new"), "new").unwrap();
        fs::rename(at.join("d/new"), at.join("renamed")).unwrap();
        assert_eq!(fs::read(at.join("renamed")).unwrap(), b"new");
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b", "d", "renamed"]);
        fs::remove_file(at.join("renamed")).unwrap();
        fs::remove_dir(at.join("d")).unwrap();
    }
}
