//! Past the page cache: O_DIRECT on both files, for the time of one pass.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags, fadvise, fcntl_getfl, fcntl_setfl, statx};

/// Alignment where the file system does not say it: what every disk takes.
const USUAL: u64 = 4096;
/// The largest alignment that is gone along with.
const MOST: u64 = 64 << 10;
/// STATX_DIOALIGN (statx(2), Linux 6.1).
const DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

/// One of the two files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

/// What of the two files goes past the page cache.
///
/// The flag belongs to the open file, which nobody else uses while it is copied. It must be taken
/// back by [`Direct::end`], for what comes after the copy reads as it likes.
#[derive(Debug)]
pub(super) struct Direct<'a> {
    files: [BorrowedFd<'a>; 2],
    /// What was turned on, and what still is.
    had: [bool; 2],
    on: [AtomicBool; 2],
    align: u64,
}

impl<'a> Direct<'a> {
    /// Turns it on where it is `wanted` and possible.
    pub(super) fn new(source: BorrowedFd<'a>, destination: BorrowedFd<'a>, wanted: bool) -> Self {
        let files = [source, destination];
        let found = files.map(|file| wanted.then(|| turn_on(file)).flatten());
        Self {
            files,
            had: found.map(|align| align.is_some()),
            on: found.map(|align| AtomicBool::new(align.is_some())),
            align: found.into_iter().flatten().max().unwrap_or(1),
        }
    }

    /// Whether either file goes past the page cache.
    pub(super) fn is_on(&self) -> bool {
        self.on.iter().any(|on| on.load(Ordering::Relaxed))
    }

    /// What offsets, lengths and memory are multiples of, in bytes.
    pub(super) fn align(&self) -> u64 {
        self.align
    }

    /// The file system took the flag but not the I/O: from here on as usual. False when it never
    /// was on: then that is not the reason of an EINVAL. To be asked once for each I/O, since
    /// several workers may meet it at the same time.
    pub(super) fn give_up(&self, side: Side) -> bool {
        let index = side as usize;
        if self.on[index].swap(false, Ordering::Relaxed) {
            turn_off(self.files[index]);
        }
        self.had[index]
    }

    /// Both files are as they were, and what was written past the page cache is not in it.
    pub(super) fn end(&self) {
        let written = self.on[Side::Destination as usize].load(Ordering::Relaxed);
        for (file, on) in self.files.iter().zip(&self.on) {
            if on.swap(false, Ordering::Relaxed) {
                turn_off(*file);
            }
        }
        if written {
            // btrfs writes what has checksums by way of the cache all the same (btrfs(5), from Linux
            // 6.14 on), and then drops the pages that nobody happens to look at: this waits for them.
            let [_, destination] = self.files;
            let _ = fadvise(destination, 0, None, Advice::DontNeed);
        }
    }
}

/// The alignment, if it could be turned on.
fn turn_on(file: BorrowedFd<'_>) -> Option<u64> {
    let told = statx(file, "", AtFlags::EMPTY_PATH, DIOALIGN).ok()?;
    let align = if told.stx_mask & DIOALIGN.bits() == 0 {
        USUAL
    } else {
        // Of offsets; 0 where the file can't. Memory is at a multiple of the same.
        let (offsets, memory) = (told.stx_dio_offset_align, told.stx_dio_mem_align);
        if offsets == 0 {
            0
        } else {
            u64::from(offsets.max(memory))
        }
    };
    if !align.is_power_of_two() || align > MOST {
        return None;
    }
    let flags = fcntl_getfl(file).ok()?;
    fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
    Some(align)
}

fn turn_off(file: BorrowedFd<'_>) {
    let cleared = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags - OFlags::DIRECT));
    if let Err(errno) = cleared {
        log::warn!("a file stays open for direct I/O: {errno}");
    }
}
