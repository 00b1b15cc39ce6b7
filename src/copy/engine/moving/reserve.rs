//! Space before work: a full disk is found before the first byte moves.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, fstatvfs, statx};

use super::Pass;
use super::plan::overlap;
use super::shared::{is_memory, kind};
use crate::copy::extents::{Extents, cut};
use crate::sys::{Errno, Fail, OrFail, Result, flags, mountinfo};

/// Bytes of one fallocate: it can't be cancelled.
const RESERVE: u64 = 1 << 30;

/// Whether a file is written with compression, by its own flag or by its mount: btrfs leaves out what
/// was reserved (fs/btrfs/inode.c, run_delalloc_nocow), and how much it will take, nobody knows.
fn compresses(file: BorrowedFd<'_>, kind: u64) -> bool {
    const BTRFS: u64 = 0x9123_683e;
    const COMPRESSED: u32 = 0x4;
    if kind != BTRFS {
        return false;
    }
    flags::get(file).is_ok_and(|flags| flags & COMPRESSED != 0) || mount_compresses(file)
}

fn mount_compresses(file: BorrowedFd<'_>) -> bool {
    let asked = StatxFlags::MNT_ID;
    let Ok(found) = statx(file, c"", AtFlags::EMPTY_PATH, asked) else {
        return false;
    };
    let mounts = mountinfo::read().unwrap_or_default();
    let mut mounts = mounts.iter().filter(|mount| mount.id == found.stx_mnt_id);
    mounts.any(|mount| {
        let mut options = mount.options.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.starts_with(b"compress"))
    })
}

impl Pass<'_> {
    /// Walks what is to be moved: counts it, and reserves space for it where `reserve` says so.
    pub(super) fn survey(&self, range: Range<u64>, solid: bool, reserve: bool) -> Result<()> {
        let whole = solid.then(|| Ok(range.clone()));
        let walked = (!solid).then(|| Extents::starting(self.source, range.start, range.end));
        let (mut total, mut there) = (0, 0);
        // In memory, pages that are reserved are walked twice (a fifth to a third of the time of
        // a copy on tmpfs, measured), and what is free there is known to the page.
        let kind = kind(self.destination);
        let reserve = reserve && !compresses(self.destination, kind);
        let mut possible = reserve && !is_memory(kind);
        for extent in whole.into_iter().chain(walked.into_iter().flatten()) {
            let extent = extent?;
            total += extent.end - extent.start;
            there += overlap(self.already, &extent);
            for part in cut(extent, RESERVE) {
                self.progress().check()?;
                possible = possible && self.reserve_part(part)?;
            }
        }
        // What is written in place may have its room already.
        if reserve && !possible && !self.order.options.inplace {
            self.look_for_room(total - there)?;
        }
        self.add_total(total);
        self.progress().surveyed();
        self.add_done(there);
        Ok(())
    }

    /// False where the file system can't reserve: "not this way", not "failed".
    fn reserve_part(&self, part: Range<u64>) -> Result<bool> {
        loop {
            let len = part.end - part.start;
            match fallocate(self.destination, FallocateFlags::empty(), part.start, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => self.progress().check()?,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
                Err(errno) => return Err(errno).or_fail("fallocate"),
            }
        }
    }

    /// The next best: what the file system says is free. It promises nothing.
    fn look_for_room(&self, bytes: u64) -> Result<()> {
        let Ok(found) = fstatvfs(self.destination) else {
            return Ok(());
        };
        // Some have no size at all.
        let free = found.f_bfree.saturating_mul(found.f_frsize);
        if found.f_blocks > 0 && free < bytes {
            let words = format!("{bytes} bytes are needed and {free} are free");
            return Err(Fail::new(Errno::NOSPC, "reserve").because(words));
        }
        Ok(())
    }
}
