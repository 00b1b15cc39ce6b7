//! `map-write` and `map-map`: the source is mapped and populated piece by piece.

use std::ops::Range;

use super::course::{Course, Outcome, Worker};
use super::lost;
use crate::copy::extents::cut;
use crate::copy::options::Sparse;
use crate::sys::{Errno, Fail, Result};
use crate::window::Map;

/// Bytes populated at a time, and after which a cancel is looked for.
const PIECE: u64 = 4 << 20;
/// Bytes of one write from a mapping. Nothing is gained by more, and from 2 MiB on ext4 and XFS cache
/// a write in huge folios, for which a virtual machine has to fetch memory from its host (measured:
/// 0.46 s for 1 GiB in writes of 256 KiB to 1 MiB, 1 to 6 s in writes of 2 MiB and more).
const WRITE: u64 = 512 << 10;
/// Bytes looked through for zeros at a time.
const LOOK: u64 = 64 << 10;

/// What one worker has mapped: at most one unit of each side, from a multiple of the unit on.
#[derive(Default)]
pub(super) struct Windows {
    source: Option<Window>,
    destination: Option<Window>,
}

struct Window {
    map: Map,
    /// Where in the file the mapping begins.
    base: u64,
}

impl Window {
    fn covers(&self, range: &Range<u64>) -> bool {
        self.base <= range.start && range.end <= self.base + self.map.len() as u64
    }

    /// Bytes of the file as bytes of the mapping. They lie within it, whose length is a `usize`.
    #[allow(clippy::cast_possible_truncation, reason = "within the mapping")]
    fn local(&self, part: &Range<u64>) -> Range<usize> {
        (part.start - self.base) as usize..(part.end - self.base) as usize
    }
}

/// mmap(2) says that it does not do that here, or that there is no room for it.
fn unmappable(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NODEV | Errno::ACCESS | Errno::PERM | Errno::AGAIN | Errno::NOMEM | Errno::INVAL
    )
}

impl Course<'_> {
    /// From the mapping into the destination, by the kernel.
    pub(super) fn map_write(&self, worker: &mut Worker, range: Range<u64>) -> Result<Outcome> {
        let windows = &mut worker.windows;
        let Some(window) = self.window(&mut windows.source, &range, Map::read, self.source())?
        else {
            return Ok(Outcome::NotFrom(range.start));
        };
        for piece in cut(range, PIECE) {
            self.check()?;
            let local = window.local(&piece);
            // Whatever this says: what reads the pages next meets the same, and says it better.
            let _ = window.map.populate_read(local.clone());
            if self.sparse() == Sparse::Always {
                self.write_data(window, piece.clone(), &mut worker.look)?;
            } else {
                self.write(window, piece.clone())?;
            }
            window.map.release(local);
            self.count(piece.end - piece.start)?;
        }
        Ok(Outcome::Done)
    }

    /// From mapping to mapping, by us. The destination is allocated already.
    pub(super) fn map_map(&self, worker: &mut Worker, range: Range<u64>) -> Result<Outcome> {
        let Windows {
            source,
            destination,
        } = &mut worker.windows;
        let source = self.window(source, &range, Map::read, self.source())?;
        let destination = self.window(destination, &range, Map::write, self.destination())?;
        let (Some(source), Some(destination)) = (source, destination) else {
            return Ok(Outcome::NotFrom(range.start));
        };
        for piece in cut(range, PIECE) {
            self.check()?;
            let local = source.local(&piece);
            let _ = source.map.populate_read(local.clone());
            let there = destination.local(&piece);
            if !copy_mapped(&source.map, local.clone(), &destination.map, there.clone()) {
                self.write(source, piece.clone())?;
            }
            source.map.release(local);
            destination.map.release(there);
            self.count(piece.end - piece.start)?;
        }
        Ok(Outcome::Done)
    }

    /// The window that holds the range: the one that is there, or a new one in its place. Nothing
    /// where the file can't be mapped.
    fn window<'w, 'fd>(
        &self,
        slot: &'w mut Option<Window>,
        range: &Range<u64>,
        map: impl FnOnce(std::os::fd::BorrowedFd<'fd>, u64, usize) -> Result<Map>,
        file: std::os::fd::BorrowedFd<'fd>,
    ) -> Result<Option<&'w Window>> {
        if !slot.as_ref().is_some_and(|window| window.covers(range)) {
            // The old one goes first: never two of a side.
            *slot = None;
            let base = range.start - range.start % self.unit();
            let end = (base + self.unit()).min(self.size());
            let len =
                usize::try_from(end - base).map_err(|_| Fail::new(Errno::OVERFLOW, "mmap"))?;
            match map(file, base, len) {
                Ok(map) => *slot = Some(Window { map, base }),
                Err(fail) if unmappable(fail.errno) => return Ok(None),
                Err(fail) => return Err(fail),
            }
        }
        Ok(slot.as_ref())
    }

    /// Has the kernel copy from the mapping into the destination.
    fn write(&self, window: &Window, piece: Range<u64>) -> Result<()> {
        let mut at = piece.start;
        while at < piece.end {
            let local = window.local(&(at..piece.end.min(at + WRITE)));
            match window.map.pwrite_to(local, self.destination(), at) {
                Ok(0) => return Err(lost(at)),
                Ok(count) => at += count as u64,
                Err(fail) if fail.errno == Errno::FAULT => return Err(self.fault(at)),
                Err(fail) if fail.errno == Errno::INTR => self.check()?,
                Err(fail) => return Err(fail),
            }
        }
        Ok(())
    }

    /// Writes what is not zero. What is looked at is what is written, whatever happens to the
    /// source meanwhile.
    fn write_data(&self, window: &Window, piece: Range<u64>, look: &mut Vec<u8>) -> Result<()> {
        for part in cut(piece, LOOK) {
            let local = window.local(&part);
            look.resize(local.len(), 0);
            window
                .map
                .copy_out(local, look)
                .map_err(|fail| match fail.errno {
                    Errno::FAULT => self.fault(part.start),
                    _ => fail,
                })?;
            self.write_nonzero(look, part.start)?;
        }
        Ok(())
    }
}

/// Copies memory to memory. False when a page of either side could not be had: writing it the
/// other way tells which, and why (a full disk, a truncated source).
fn copy_mapped(from: &Map, local: Range<usize>, to: &Map, there: Range<usize>) -> bool {
    to.populate_write(there.clone()).is_ok() && from.copy_to(local, to, there.start).is_ok()
}
