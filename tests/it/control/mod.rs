//! The control file `.copy`: what it does, what it refuses, and for whom.

mod beside;
mod copies;
mod crowd;
mod looks;
mod queue;
mod refusals;
mod rights;

use std::fs::{self};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{Mount, Scratch, assert_content, content, read_file};

/// Opens the `.copy` of a directory as the shell's `>` does.
fn open_control(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    rustix::fs::open(dir.join(".copy"), flags, Mode::from_raw_mode(0o666))
}

/// close(2) with its answer, which dropping hides.
fn close(fd: OwnedFd) -> Result<(), Errno> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned, and is given up here.
    match unsafe { libc::close(fd.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    }
}

/// Writes `bytes` into the `.copy` of a directory.
fn tell(dir: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Errno> {
    let (fd, mut rest) = (open_control(dir)?, bytes.as_ref());
    // Lines before one that fails count as written; the failure is told at the next try, as any
    // program that writes on after a short write will make it.
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&fd, rest)?..];
    }
    close(fd)
}

/// `echo from to > .copy`, without a shell.
fn copy(dir: &Path, from: &str, to: &str) -> Result<(), Errno> {
    tell(dir, format!("{from} {to}\n"))
}

/// The names in a directory of the source, where a copy would leave something behind.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A source with a file `f` of 100,000 bytes (seed 1) and a directory `d`, and its mount.
fn world(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.dir("d");
    let mount = Mount::of(source.path()).opt(options).start();
    (source, mount)
}

#[track_caller]
fn assert_copied(path: &Path) {
    let bytes = read_file(path);
    assert_eq!(bytes.len(), 100_000, "{}", path.display());
    assert_content(1, 0, &bytes);
}

/// The text of a directory's `.copy`.
fn jobs(dir: &Path) -> String {
    String::from_utf8(read_file(&dir.join(".copy"))).unwrap()
}
