//! What POSIX and Linux promise of a file system: one table of checks, run alike on a native
//! directory and on the mount.
//!
//! `CORFS_CHECK=part-of-a-name` runs only the checks whose name holds it.

mod attributes;
mod creation;
mod data;
mod directories;
mod durability;
mod limits;
mod links;
mod locks;
mod mappings;
mod ranges;
mod renames;
mod rights;
mod sides;
mod special;
mod users;
mod xattrs;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, is_root, require, set_mode, set_owner,
};

/// One promise, checked in an empty directory of its own that the caller owns.
pub(crate) struct Check {
    name: &'static str,
    needs: &'static [Need],
    run: fn(&Path),
}

/// Rows of the table: `name [needs],` with a function of that name in scope.
macro_rules! checks {
    ($($name:ident $([$($need:expr),+])?,)+) => {
        /// The rows of this family.
        pub(super) const CHECKS: &[super::Check] = &[$(super::Check {
            name: stringify!($name),
            needs: &[$($($need),+)?],
            run: $name,
        }),+];
    };
}
use checks;

/// Panics unless the call failed with that errno.
macro_rules! assert_errno {
    ($call:expr, $errno:ident) => {
        match $call {
            Err(errno) => assert_eq!(errno, Errno::$errno, "{}", stringify!($call)),
            Ok(_) => panic!(
                "{}: went well, not {}",
                stringify!($call),
                stringify!($errno)
            ),
        }
    };
}
use assert_errno;

fn table() -> impl Iterator<Item = &'static Check> {
    [
        creation::CHECKS,
        data::CHECKS,
        ranges::CHECKS,
        renames::CHECKS,
        links::CHECKS,
        directories::CHECKS,
        attributes::CHECKS,
        rights::CHECKS,
        xattrs::CHECKS,
        special::CHECKS,
        locks::CHECKS,
        mappings::CHECKS,
    ]
    .into_iter()
    .flatten()
}

// ---------------------------------------------------------------------------------------------
// What the checks are written in

/// Opens, creating with mode 0644 where asked to; panics when it fails.
#[track_caller]
fn open(path: &Path, flags: OFlags) -> OwnedFd {
    try_open(path, flags).unwrap_or_else(|e| panic!("open {} {flags:?}: {e}", path.display()))
}

fn try_open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// A new regular file with that content; returns its path.
#[track_caller]
fn file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    crate::support::write_file(&path, content);
    path
}

/// A new directory; returns its path.
#[track_caller]
fn dir(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
        .unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
    path
}

/// `lstat`.
#[track_caller]
fn stat(path: &Path) -> rustix::fs::Stat {
    rustix::fs::lstat(path).unwrap_or_else(|e| panic!("lstat {}: {e}", path.display()))
}

/// The permission bits with suid, sgid and sticky.
#[track_caller]
fn mode(path: &Path) -> u32 {
    stat(path).st_mode & 0o7777
}

#[track_caller]
fn read(path: &Path) -> Vec<u8> {
    crate::support::read_file(path)
}

/// `pread` until `len` bytes or the end.
#[track_caller]
fn read_at(fd: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match rustix::io::pread(fd, &mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => panic!("pread at {offset}: {e}"),
        }
    }
    bytes.truncate(done);
    bytes
}

/// `pwrite` of it all.
#[track_caller]
fn write_at(fd: &OwnedFd, offset: u64, bytes: &[u8]) {
    let written = rustix::io::pwrite(fd, bytes, offset)
        .unwrap_or_else(|e| panic!("pwrite {} at {offset}: {e}", bytes.len()));
    assert_eq!(written, bytes.len(), "pwrite at {offset} was short");
}

// ---------------------------------------------------------------------------------------------
// The runs

/// Runs every check below `place` and panics with the names of those that failed.
fn run_table(place: &Path, ids: Option<(u32, u32)>) {
    run_all_but(&[], place, ids);
}

/// As [`run_table`], without what can't be so there.
fn run_all_but(exceptions: &[&str], place: &Path, ids: Option<(u32, u32)>) {
    let only = std::env::var("CORFS_CHECK").unwrap_or_default();
    let mut failed = Vec::new();
    let mut run = 0;
    for check in table().filter(|check| check.name.contains(&only)) {
        let privileged = check.needs.iter().any(|need| matches!(need, Need::Root));
        let left_out = exceptions.contains(&check.name);
        if left_out || (privileged && ids.is_some()) || !require(check.needs) {
            continue;
        }
        let folder = place.join(check.name);
        run += 1;
        let checked = catch_unwind(AssertUnwindSafe(|| {
            apart(ids, || {
                dir(place, check.name);
                (check.run)(&folder);
            });
        }));
        if checked.is_err() {
            failed.push(check.name);
        }
    }
    assert!(run > 0, "no check is named {only:?}");
    assert!(
        failed.is_empty(),
        "{} of {run} failed: {failed:#?}",
        failed.len()
    );
}

#[test]
fn the_table_is_large_and_names_are_unique() {
    let mut names: Vec<_> = table().map(|check| check.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(all >= 60, "{all}");
}

#[test]
fn native_directory() {
    let scratch = Scratch::new();
    run_table(scratch.path(), None);
}

#[test]
fn native_directory_as_an_ordinary_user() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o777);
    run_table(scratch.path(), Some((USER, OTHER)));
}

/// The mount as whoever runs the tests; root lets others in, because some checks play them.
fn on_a_mount(option: &str) {
    on_a_mount_but(&[], option);
}

fn on_a_mount_but(exceptions: &[&str], option: &str) {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mut mount = Mount::of(source.path()).opt(option);
    if is_root() {
        mount = mount.opt("allow_other,suid,dev");
    }
    let mount = mount.start();
    run_all_but(exceptions, mount.path(), None);
}

#[test]
fn mount_with_mapped_reads() {
    on_a_mount("io=mmap");
}

#[test]
fn mount_with_plain_reads() {
    on_a_mount("io=pread");
}

#[test]
fn mount_served_by_workers() {
    on_a_mount("source_workers=always");
}

#[test]
fn mount_with_passthrough() {
    on_a_mount("passthrough=always");
}

#[test]
fn mount_that_writes_back() {
    // No hole is known but the end; what is new and empty shows a block while it is open.
    let exceptions = ["data_and_holes_are_found", "sizes_and_blocks"];
    on_a_mount_but(&exceptions, "writeback=on");
}

#[test]
fn root_mount_used_by_an_ordinary_user() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_mode(source.path(), 0o777);
    let mount = Mount::of(source.path()).opt("allow_other").start();
    run_table(mount.path(), Some((USER, OTHER)));
}

#[test]
fn mount_of_an_ordinary_user() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, OTHER);
    let mount = Mount::of(source.path()).as_user(USER, OTHER).start();
    run_table(mount.path(), Some((USER, OTHER)));
}
