//! What is in a cache directory, counted by looking at all of it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, OFlags, statat, unlinkat};

use crate::sys::{Errno, Result};

use super::ledger::{self, FANS};
use super::options::BLOCKS;
use super::{place, shelf};

/// What the directory takes, counted while others may be at work.
pub(super) fn count_now(root: BorrowedFd<'_>, top: BorrowedFd<'_>) -> Result<u64> {
    let fans = (0..FANS).try_fold(0, |bytes, fan| Ok(bytes + count_fan(top, fan, false)?))?;
    Ok(fans + count_other(root, top, false)?)
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
            // What cannot be removed (a directory, say) takes what it takes.
            let left = alone && is_left(dir.as_fd(), name, &names);
            if !(left && unlinkat(&dir, *name, AtFlags::empty()).is_ok()) {
                bytes += place::allocated(dir.as_fd(), name) + to_come(dir.as_fd(), name);
            }
        }
    }
    Ok(bytes)
}

/// Whether a name in a folder that nobody changes was left by somebody who was killed: a temporary
/// file of a maker, or data whose index is gone already.
fn is_left(dir: BorrowedFd<'_>, name: &str, names: &HashSet<&str>) -> bool {
    if name.starts_with('.') {
        return true;
    }
    let Some(stem) = name.strip_suffix(".data") else {
        return false;
    };
    let unused = || {
        let data = place::open(dir, name, OFlags::RDWR)?;
        shelf::take_unused(data.as_fd())
    };
    !names.contains(format!("{stem}.index").as_str()) && unused().is_ok()
}

/// What a file may take with the next block beyond what that reserves, as it was reserved when the
/// entry was made: of data the first block in which its extents are kept, which may be there or not;
/// of an index the pages that no record was written to.
fn to_come(dir: BorrowedFd<'_>, name: &str) -> u64 {
    let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
        return 0;
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if name.ends_with(".data") && size > 4 * u64::from(*BLOCKS.start()) {
        return ledger::EXTENTS;
    }
    match name.ends_with(".index") {
        true => size
            .next_multiple_of(4096)
            .saturating_sub(place::blocks_of(&stat)),
        false => 0,
    }
}

/// Bytes of everything else. Who is `alone` with it removes what the killed left among the orphans:
/// an index, which goes there first, without data.
pub(super) fn count_other(root: BorrowedFd<'_>, top: BorrowedFd<'_>, alone: bool) -> Result<u64> {
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
            if alone && let Ok(orphans) = place::open_dir(dir.as_fd(), "orphans") {
                remove_halves(orphans.as_fd())?;
            }
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

fn remove_halves(orphans: BorrowedFd<'_>) -> Result<()> {
    let list = place::list(orphans)?;
    let names: HashSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
    for name in &names {
        if let Some(stem) = name.strip_suffix(".index")
            && !names.contains(format!("{stem}.data").as_str())
        {
            // What stays is counted.
            let _ = unlinkat(orphans, *name, AtFlags::empty());
        }
    }
    Ok(())
}

/// Bytes of all that is beneath a directory; nothing of one that is gone, or closed to us: `lost+found`
/// is root's, where the cache directory is a file system's root.
fn count_tree(dir: BorrowedFd<'_>, name: &str) -> Result<u64> {
    let dir = match place::open_dir(dir, name) {
        Err(fail) if matches!(fail.errno, Errno::NOENT | Errno::ACCESS | Errno::PERM) => {
            return Ok(0);
        }
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
