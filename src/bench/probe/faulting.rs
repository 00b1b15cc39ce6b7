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

/// How the bytes of a file come into memory of ours.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::bench) enum Touching {
    /// Windows one after the other, mapped and populated, then copied out.
    Populate,
    /// The same, but the copy faults the pages in.
    Touch,
    /// The same bytes by pread, as many at a time.
    Pread,
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
    let small = |read: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>| {
        let (mut random, mut memory) = (random(), Aligned::default());
        let room = memory.room(PAGE)?;
        (0..requests).try_for_each(|_| read(random.usize(..length / PAGE) * PAGE, room))
    };
    let pread = |at: usize, room: &mut [u8]| file.read_exact_at(room, at as u64).or_fail("pread");
    match touching {
        Touching::Populate => measured(usage::own, || windows(&file, length, window, true)),
        Touching::Touch => measured(usage::own, || windows(&file, length, window, false)),
        Touching::Pread => measured(usage::own, || {
            let mut memory = Aligned::default();
            let room = memory.room(window)?;
            let mut places = (0..length).step_by(window);
            places.try_for_each(|at| {
                let end = window.min(length - at);
                pread(at, &mut room[..end])
            })
        }),
        Touching::Reuse | Touching::ReuseUntouched => {
            let map = Map::read(file.as_fd(), 0, length)?;
            if touching == Touching::Reuse {
                map.populate_read(0..length)?;
            }
            measured(usage::own, || {
                small(&mut |at, room| map.copy_out(at..at + room.len(), room))
            })
        }
        Touching::MapEach => measured(usage::own, || {
            small(&mut |at, room| {
                let map = Map::read(file.as_fd(), at as u64, PAGE)?;
                map.copy_out(0..PAGE, room)
            })
        }),
        Touching::PreadEach => measured(usage::own, || small(&mut |at, room| pread(at, room))),
    }
}

/// The whole file, a window at a time, into a buffer that stays in the processor's cache.
fn windows(file: &File, length: usize, window: usize, populate: bool) -> Result<()> {
    let mut memory = Aligned::default();
    let room = memory.room(window.min(64 << 10))?;
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
