//! Memory that begins with a page: O_DIRECT wants it so, and the kernel copies into it at full speed.
//!
//! glibc places what it maps for one large allocation 16 bytes after the beginning of a page. There,
//! of all places, a copy from a page is slow: each load seems to depend on a store under way, as
//! both have the same place within their pages. `pread` of cached bytes, 512 KiB at a time, on an
//! AMD EPYC: 1.6 GB/s at 16 bytes after the beginning of a page, 6.9 to 8.4 at 12 other places
//! (`benches/mapped.rs` shows it).

use super::{Errno, Fail, Result};

/// Bytes of the alignment that every buffer has.
pub const ALIGN: usize = 4096;

/// A buffer that grows and stays.
#[derive(Debug, Default)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    align: usize,
}

impl Aligned {
    /// The first `len` bytes, of no particular value, at a multiple of [`ALIGN`].
    ///
    /// # Errors
    /// ENOMEM.
    pub fn room(&mut self, len: usize) -> Result<&mut [u8]> {
        self.room_at(len, ALIGN)
    }

    /// As [`Aligned::room`], at a multiple of `align`, a power of two, if that is more.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn room_at(&mut self, len: usize, align: usize) -> Result<&mut [u8]> {
        if self.len < len || self.align < align {
            self.grow(len.max(self.len), align.max(ALIGN))?;
        }
        Ok(&mut self.bytes[self.start..self.start + len])
    }

    fn grow(&mut self, len: usize, align: usize) -> Result<()> {
        // What was there goes first: both may not fit.
        *self = Self::default();
        let whole = len.saturating_add(align);
        let room = self.bytes.try_reserve_exact(whole);
        room.map_err(|_| Fail::new(Errno::NOMEM, "allocate"))?;
        self.bytes.resize(whole, 0);
        // Where that can't be told it is 0, and direct I/O is refused with EINVAL.
        let start = self.bytes.as_ptr().align_offset(align);
        self.start = if start <= align { start } else { 0 };
        (self.len, self.align) = (len, align);
        Ok(())
    }

    /// How many bytes can be had without more memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no memory is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All that there is room for.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The first `len` bytes of it.
    ///
    /// # Panics
    /// When there is less.
    pub fn held_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len][..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_kept() {
        let mut memory = Aligned::default();
        assert!(memory.is_empty());
        for (len, align) in [
            (1, 512),
            (100_000, 4096),
            (4096, 4096),
            (10, 1 << 16),
            (9, 1),
        ] {
            let room = memory.room_at(len, align).unwrap();
            assert_eq!(room.len(), len);
            assert_eq!(room.as_ptr().addr() % align.max(ALIGN), 0);
            room.fill(7);
        }
        assert_eq!(memory.len(), 100_000);
        assert_eq!(memory.held()[..9], [7; 9]);
    }

    #[test]
    fn too_much_is_an_error() {
        let mut memory = Aligned::default();
        let fail = memory.room(usize::MAX).unwrap_err();
        assert_eq!(fail.errno, Errno::NOMEM);
        assert_eq!(memory.room(10).unwrap().len(), 10);
    }
}
