//! Content that can be checked at any offset.

use std::fs::File;
use std::path::Path;

/// The eight bytes of file `seed` at eight-byte block `index` (SplitMix64).
fn block(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// The bytes of file `seed` from `offset`, pseudo-random and always the same.
pub(crate) fn content(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let first = offset / 8;
    let skip = (offset % 8) as usize;
    let blocks = (skip + len).div_ceil(8) as u64;
    let mut bytes = Vec::with_capacity(blocks as usize * 8);
    for index in first..first + blocks {
        bytes.extend_from_slice(&block(seed, index));
    }
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// Panics, naming the first wrong offset, unless `bytes` are those of file `seed` from `offset`.
#[track_caller]
pub(crate) fn assert_content(seed: u64, offset: u64, bytes: &[u8]) {
    let expected = content(seed, offset, bytes.len());
    assert_same_bytes(offset, bytes, &expected);
}

/// Panics with the first difference (not with two dumps) unless both are equal.
#[track_caller]
pub(crate) fn assert_same_bytes(offset: u64, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "length of the bytes at {offset}");
    if got != expected {
        let at = got
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        panic!(
            "wrong byte at {}: {:#04x}, expected {:#04x}",
            offset + at as u64,
            got[at],
            expected[at]
        );
    }
}

/// Writes file `seed` of `size` bytes at `path`.
pub(crate) fn write_content(path: &Path, seed: u64, size: u64) {
    use std::io::Write;
    let mut file = File::create(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(1 << 20) as usize;
        file.write_all(&content(seed, offset, len))
            .unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        offset += len as u64;
    }
}

/// Memory aligned as O_DIRECT likes it.
#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "only its size and alignment matter")] [u8; 4096]);

/// A buffer for direct reads.
pub(crate) struct Buffer(Vec<Page>);

impl Buffer {
    /// Room for `len` bytes, none of them zero.
    pub(crate) fn new(len: usize) -> Self {
        let pages = len.div_ceil(4096);
        Self((0..pages).map(|_| Page([0xee; 4096])).collect())
    }

    /// The first `len` bytes of it.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.0.len() * 4096);
        // SAFETY: the pages are contiguous, initialised bytes without padding, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

/// A small generator for test decisions (offsets, lengths); not for content.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The same seed gives the same throws.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound` (which is not 0).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(block(0x5eed_d1ce ^ bound, self.0)) % bound
    }
}

#[test]
fn content_is_the_same_from_every_offset() {
    let whole = content(7, 0, 100);
    for offset in 0..40 {
        assert_eq!(content(7, offset as u64, 60), whole[offset..offset + 60]);
    }
    assert_ne!(content(8, 0, 100), whole);
}
