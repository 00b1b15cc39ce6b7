//! Those who read: from front to back, anywhere, one or several at once.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::Dice;

/// Bytes of a request of `cat`, `cp` and most others.
const REQUEST: usize = 128 << 10;
/// Bytes of a small read.
pub(crate) const PAGE: u64 = 4096;

/// Reads a file from front to back; the time it took.
pub(crate) fn through(path: &Path) -> Duration {
    let started = Instant::now();
    let file = File::open(path).expect("open");
    let mut memory = corfs::sys::Aligned::default();
    let buffer = memory.room(REQUEST).expect("memory");
    let mut offset = 0;
    loop {
        match file.read_at(buffer, offset).expect("read") {
            0 => return started.elapsed(),
            count => offset += count as u64,
        }
    }
}

/// Several read it from front to back at once.
pub(crate) fn together(path: &Path, readers: usize) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| through(path));
        }
    });
    started.elapsed()
}

/// Reads pages at places that `seed` chooses, the same for the same seed; the time of each.
pub(crate) fn anywhere(path: &Path, seed: u64, reads: u64) -> Vec<Duration> {
    let file = File::open(path).expect("open");
    let pages = file.metadata().expect("stat").len() / PAGE;
    let mut dice = Dice::new(seed);
    let mut page = [0; PAGE as usize];
    let one = |_| {
        let started = Instant::now();
        file.read_exact_at(&mut page, dice.below(pages) * PAGE)
            .expect("read");
        started.elapsed()
    };
    (0..reads).map(one).collect()
}

/// What a walk sees on the disk: blocks of all that has a name below `folder`, in bytes. What goes
/// away meanwhile is not counted.
pub(crate) fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::symlink_metadata(folder).map_or(0, |meta| meta.blocks() * 512);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => on_disk(&entry.path()),
        _ => entry.metadata().map_or(0, |meta| meta.blocks() * 512),
    });
    own + below.sum::<u64>()
}
