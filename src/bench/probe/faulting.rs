//! What it costs to have the pages of a file in a mapping.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{measured, random};
use crate::bench::outcome::Sample;
use crate::sys::{Aligned, Errno, Fail, OrFail, Result, usage};
use crate::window::Map;

/// Bytes of a small read.
const PAGE: usize = 4096;
/// Bytes that are copied out of a window at a time: the buffer stays in the processor's cache.
const PIECE: usize = 64 << 10;

/// How the bytes of a file come into memory of ours.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::bench) enum Touching {
    /// Windows one after the other, mapped and populated, then copied out.
    Populate,
    /// The same, but the copy faults the pages in.
    Touch,
    /// The same bytes by pread, in the pieces in which they are copied out of a window.
    Pread,
    /// The same bytes by pread, a window at a time, into a buffer as large as a window.
    PreadWhole,
    /// Small reads anywhere, from one mapping of the whole file that was populated before.
    Reuse,
    /// Small reads anywhere, from one mapping whose pages come when touched.
    ReuseUntouched,
    /// Small reads anywhere, each from a mapping of its own.
    MapEach,
    /// Small reads anywhere, by pread.
    PreadEach,
}

/// Does it, and says what it cost.
pub(super) fn run(path: &Path, touching: Touching, window: u64, requests: u64) -> Result<Sample> {
    let file = File::open(path).or_fail("open")?;
    let size = file.metadata().or_fail("fstat")?.len();
    let length = usize::try_from(size).map_err(|_| Fail::new(Errno::OVERFLOW, "mmap"))?;
    let window = (window as usize).min(length);
    if window < PAGE {
        return Err(Fail::new(Errno::INVAL, "map").because("the window is less than a page"));
    }
    let room = match touching {
        Touching::Populate | Touching::Touch | Touching::Pread => window.min(PIECE),
        Touching::PreadWhole => window,
        _ => PAGE,
    };
    let mut memory = Aligned::default();
    let room = memory.room(room)?;
    // Its pages come now: they are no part of what anybody does with the file.
    room.fill(1);
    let pread = |at: usize, room: &mut [u8]| file.read_exact_at(room, at as u64).or_fail("pread");
    let small = |room: &mut [u8], read: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>| {
        let mut random = random();
        (0..requests).try_for_each(|_| read(random.usize(..length / PAGE) * PAGE, room))
    };
    match touching {
        Touching::Populate => measured(usage::own, || windows(&file, length, window, true, room)),
        Touching::Touch => measured(usage::own, || windows(&file, length, window, false, room)),
        Touching::Pread | Touching::PreadWhole => measured(usage::own, || {
            let mut places = (0..length).step_by(room.len());
            places.try_for_each(|at| {
                let end = room.len().min(length - at);
                pread(at, &mut room[..end])
            })
        }),
        Touching::Reuse | Touching::ReuseUntouched => {
            let map = Map::read(file.as_fd(), 0, length)?;
            if touching == Touching::Reuse {
                map.populate_read(0..length)?;
            }
            measured(usage::own, || {
                small(room, &mut |at, room| {
                    map.copy_out(at..at + room.len(), room)
                })
            })
        }
        Touching::MapEach => measured(usage::own, || {
            small(room, &mut |at, room| {
                let map = Map::read(file.as_fd(), at as u64, PAGE)?;
                map.copy_out(0..PAGE, room)
            })
        }),
        Touching::PreadEach => {
            measured(usage::own, || small(room, &mut |at, room| pread(at, room)))
        }
    }
}

/// The whole file, a window at a time, into `room`, again and again.
fn windows(
    file: &File,
    length: usize,
    window: usize,
    populate: bool,
    room: &mut [u8],
) -> Result<()> {
    for start in (0..length).step_by(window) {
        let part = window.min(length - start);
        let map = Map::read(file.as_fd(), start as u64, part)?;
        if populate {
            map.populate_read(0..part)?;
        }
        for at in (0..part).step_by(room.len()) {
            let piece = room.len().min(part - at);
            map.copy_out(at..at + piece, &mut room[..piece])?;
        }
    }
    Ok(())
}
