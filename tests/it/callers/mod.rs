//! For whom something is done: owners mapped, rights as they are natively, and no name that leads
//! out of the source.

mod deeds;
pub(crate) mod escape;
mod forced;
mod idmapped;
mod mapping;
mod rights;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{apart, become_user};

/// Does something as an ordinary user of those groups, with the mask 022.
fn as_member<T: Send>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    apart(None, || {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        become_user(uid, gid, groups);
        work()
    })
}

/// As [`as_member`], of one group alone, whose number is the user's.
fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    as_member(id, id, &[], work)
}

/// User and group, as stat(2) tells them.
#[track_caller]
fn owner(path: &Path) -> (u32, u32) {
    let m = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (m.uid(), m.gid())
}

/// Makes a file with a line in it, or says why not.
fn make(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?;
    rustix::io::write(&file, b"line\n").map(drop)
}

/// Makes a directory, or says why not.
fn make_dir(path: &Path) -> Result<(), Errno> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o777))
}

/// Reads a file, or says why not.
fn read(path: &Path) -> Result<Vec<u8>, Errno> {
    std::fs::read(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn chown(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    use rustix::fs::{Gid, Uid};
    rustix::fs::chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn chmod(path: &Path, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
}

/// `echo from to > dir/.copy`.
fn copy(dir: &Path, from: &str, to: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let control = rustix::fs::open(dir.join(".copy"), flags, Mode::empty())?;
    rustix::io::write(&control, format!("{from} {to}\n").as_bytes()).map(drop)
}
