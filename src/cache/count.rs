//! What is in a cache directory, counted by looking at all of it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};

use crate::sys::{Errno, OrFail, Result};

use super::ledger::{self, FANS};
use super::options::BLOCKS;
use super::{place, shelf};

/// What the directory takes, counted while others may be at work.
pub(super) fn count_now(root: BorrowedFd<'_>, top: BorrowedFd<'_>) -> Result<u64> {
    let fans = (0..FANS).try_fold(0, |bytes, fan| Ok(bytes + count_fan(top, fan, false)?))?;
    Ok(fans + count_other(root, top)?)
}

/// The directories beneath `v1`, one a store.
pub(super) fn stores(top: BorrowedFd<'_>) -> Result<Vec<String>> {
    let names = place::list(top)?.into_iter();
    let dirs = names.filter(|(_, kind)| *kind == FileType::Directory);
    Ok(dirs.map(|(name, _)| name).collect())
}

/// Bytes of one folder of all stores, itself included. What the killed left there is removed by
/// who is `alone` with it: nobody makes or takes away anything then.
pub(super) fn count_fan(top: BorrowedFd<'_>, fan: usize, alone: bool) -> Result<u64> {
    let mut bytes = 0u64;
    for store in stores(top)? {
        let path = format!("{store}/entries/{fan:02x}");
        let dir = match place::open_dir(top, &path) {
            Err(fail) if fail.errno == Errno::NOENT => continue,
            opened => opened?,
        };
        bytes += place::allocated(top, &path);
        let list = place::list(dir.as_fd())?;
        let names: HashSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        for name in &names {
            if alone && is_left(dir.as_fd(), name, &names)? {
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::unlinkat(&dir, *name, flags).or_fail("unlinkat")?;
            } else {
                bytes += place::allocated(dir.as_fd(), name) + to_come(dir.as_fd(), name);
            }
        }
    }
    Ok(bytes)
}

/// Whether a name in a folder that nobody changes was left by somebody who was killed: a temporary
/// file of a maker, or data whose index is gone already.
fn is_left(dir: BorrowedFd<'_>, name: &str, names: &HashSet<&str>) -> Result<bool> {
    if name.starts_with('.') {
        return Ok(true);
    }
    let Some(stem) = name.strip_suffix(".data") else {
        return Ok(false);
    };
    if names.contains(format!("{stem}.index").as_str()) {
        return Ok(false);
    }
    let data = place::open(dir, name, OFlags::RDWR)?;
    match shelf::take_unused(data.as_fd()) {
        Err(fail) if fail.errno == Errno::AGAIN => Ok(false),
        taken => taken.map(|()| true),
    }
}

/// What a data file may take with its next block beyond what that reserves: the first block in
/// which its extents are kept. It was reserved when the entry was made, and may be there or not.
fn to_come(dir: BorrowedFd<'_>, name: &str) -> u64 {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let size = rustix::fs::statat(dir, name, flags).map_or(0, |stat| stat.st_size);
    let several = size > 4 * i64::from(*BLOCKS.start());
    if several && name.ends_with(".data") {
        ledger::EXTENTS
    } else {
        0
    }
}

/// Bytes of everything else.
pub(super) fn count_other(root: BorrowedFd<'_>, top: BorrowedFd<'_>) -> Result<u64> {
    let mut bytes = place::allocated(root, ".");
    for (name, kind) in place::list(root)? {
        bytes += place::allocated(root, &name);
        if kind == FileType::Directory && name != "v1" {
            bytes += count_tree(root, &name)?;
        }
    }
    for (name, kind) in place::list(top)? {
        bytes += place::allocated(top, &name);
        if kind == FileType::Directory {
            let dir = place::open_dir(top, &name)?;
            for (name, kind) in place::list(dir.as_fd())? {
                bytes += place::allocated(dir.as_fd(), &name);
                if kind == FileType::Directory && name != "entries" {
                    bytes += count_tree(dir.as_fd(), &name)?;
                }
            }
        }
    }
    Ok(bytes)
}

/// Bytes of all that is beneath a directory.
fn count_tree(dir: BorrowedFd<'_>, name: &str) -> Result<u64> {
    let dir = match place::open_dir(dir, name) {
        Err(fail) if fail.errno == Errno::NOENT => return Ok(0),
        opened => opened?,
    };
    let mut bytes = 0;
    for (name, kind) in place::list(dir.as_fd())? {
        bytes += place::allocated(dir.as_fd(), &name);
        if kind == FileType::Directory {
            bytes += count_tree(dir.as_fd(), &name)?;
        }
    }
    Ok(bytes)
}
