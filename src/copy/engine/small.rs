//! A small new file: one read, one write, one name. Trees have thousands of them, and each system
//! call counts.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, linkat, openat};
use rustix::io::pread;

use super::course::unchanged;
use super::{Order, write_all};
use crate::copy::attributes;
use crate::copy::leftovers::unlink;
use crate::copy::options::{CopyOptions, Method, Reflink, Sparse};
use crate::copy::resolve::Source;
use crate::sys::{Errno, Fail, OrFail, Result, procfd};

/// Bytes up to which a file is small. Sharing the extents of so few costs more than writing them
/// (a transaction on XFS and btrfs each; the page cache takes them without one).
pub(in crate::copy) const MOST: usize = 64 << 10;

/// A file that nobody has made before.
const NEW: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::RDWR)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What one thread needs for small files.
pub(in crate::copy) struct Small {
    /// A byte more than the largest: a file that grew shows.
    buffer: Vec<u8>,
}

impl Small {
    /// Allocates the buffer.
    pub(in crate::copy) fn new() -> Self {
        Self {
            buffer: vec![0; MOST + 1],
        }
    }

    /// Copies a small file to a name at which nothing stands. False when that can't be done this
    /// way, and nothing has been done: the file is larger or has holes, it changes, something
    /// stands there, the file system has no unnamed files.
    ///
    /// Whole or absent: the file gets its name when it is complete. `inherits` says whether the
    /// directory gives new files an ACL.
    ///
    /// # Errors
    /// As `engine::copy`.
    pub(in crate::copy) fn copy(
        &mut self,
        source: &Source,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        order: &Order<'_>,
        inherits: bool,
    ) -> Result<bool> {
        let stat = &source.stat;
        let Some(bytes) = self.read(source)? else {
            return Ok(false);
        };
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match openat(directory, c".", flags, mode) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => return Ok(false),
            Err(errno) => return Err(Fail::new(errno, "open").because("a temporary file")),
        };
        if !fill(&file, bytes, source, order, inherits)? {
            return Ok(false);
        }
        match link(&file, directory, name) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(errno).or_fail("linkat"),
        }
        count(bytes.len() as u64, order);
        Ok(true)
    }

    /// As [`Small::copy`], in a directory that nobody is to look into yet: under its own name from
    /// the beginning, which saves a file system what an unnamed file costs it. Answers its bytes.
    ///
    /// # Errors
    /// As `engine::copy`; nothing of it is left then.
    pub(in crate::copy) fn copy_unseen(
        &mut self,
        source: &Source,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        order: &Order<'_>,
        inherits: bool,
    ) -> Result<Option<u64>> {
        let Some(bytes) = self.read(source)? else {
            return Ok(None);
        };
        let mode = Mode::from_raw_mode(source.stat.st_mode & 0o777);
        let file = openat(directory, name, NEW, mode).or_fail("open")?;
        let filled = fill(&file, bytes, source, order, inherits);
        if !matches!(filled, Ok(true)) {
            unlink(directory, name);
            return filled.map(|_| None);
        }
        let size = bytes.len() as u64;
        count(size, order);
        Ok(Some(size))
    }

    /// All of a small file, if that is what it is.
    fn read(&mut self, source: &Source) -> Result<Option<&[u8]>> {
        let size = match usize::try_from(source.stat.st_size) {
            Ok(size) if size <= MOST && !has_holes(&source.stat) => size,
            _ => return Ok(None),
        };
        match pread(&source.file, &mut self.buffer[..=size], 0) {
            Ok(count) if count == size => Ok(Some(&self.buffer[..size])),
            // It hides its size, or changes; some files of procfs refuse pread.
            Ok(_) | Err(Errno::INTR | Errno::SPIPE | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno).or_fail("read"),
        }
    }
}

/// Gives a new file its bytes and attributes. False when the source has changed meanwhile.
fn fill(
    file: &OwnedFd,
    bytes: &[u8],
    source: &Source,
    order: &Order<'_>,
    inherits: bool,
) -> Result<bool> {
    let stat = &source.stat;
    write_all(file.as_fd(), bytes, 0)?;
    if !unchanged(stat, &fstat(&source.file).or_fail("fstat")?) {
        return Ok(false);
    }
    let preserve = order.options.preserve;
    let (from, to) = (source.file.as_fd(), file.as_fd());
    attributes::keep_new(from, (stat, stat), to, preserve, inherits)?;
    order.progress.at_length(|| crate::sys::flush(to))?;
    order.progress.check()?;
    Ok(true)
}

fn count(size: u64, order: &Order<'_>) {
    order.progress.set_method(Method::ReadWrite);
    order.progress.add_bytes_total(size);
    order.metrics.copied(size);
    // It is done: a cancel now is for what comes after it.
    let _ = order.progress.spend(size);
}

/// Whether files are to be copied in a way that this one is.
pub(in crate::copy) fn suits(options: &CopyOptions) -> bool {
    let special = options.direct
        || options.sync
        || options.inplace
        || options.verify
        || options.resume
        || options.reflink == Reflink::Always
        || options.sparse != Sparse::Auto;
    options.method.is_none() && !special
}

/// Bytes that a file system may keep within the inode, and count no block for.
const WITHIN: i64 = 4096;

/// By blocks of 512 bytes.
fn has_holes(stat: &Stat) -> bool {
    match stat.st_blocks {
        0 => stat.st_size > WITHIN,
        blocks => blocks.saturating_mul(512) < stat.st_size,
    }
}

/// From Linux 6.10 on whoever opened a file may link it by its descriptor; before, that takes a
/// capability (ENOENT without), and the way by /proc takes none (`open(2)`, O_TMPFILE).
fn link(file: &OwnedFd, directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match linkat(file, c"", directory, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
            let own = procfd::path(file.as_fd());
            linkat(CWD, own, directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}
