//! What stands where in the files of a cache directory: bytes to values and back, no I/O.
//!
//! An index, all numbers little endian:
//!
//! ```text
//!   0 magic "corfsidx"        8 version u32     12 where the records start u32
//!  16 block size u32         20 epoch made u32  24 generation u64
//!  32 size u64               40 mtime s i64     48 mtime ns u32   52 ctime ns u32
//!  56 ctime s i64            64 inode or 0 u64  72 length of the path u32   76 zero u32
//!  80 xxh3-64 of bytes 0..80 and of the path u64                 88 zero u64
//!  96 last used, s u64      104 uses u32       108 zero u32      (outside the checksum)
//! 112 pinned u8             113 zeros                             (outside the checksum)
//! 128 the path, zeros to a multiple of 16, then 16 bytes a block:
//!     xxh3-64 of the block's bytes u64, epoch u32, check u32
//! ```

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use super::identity::{Identity, Stamp};
use super::options::BLOCKS;

/// The version of all that is described here; it stands in the path of every file, too.
pub(super) const VERSION: u32 = 1;
/// Bytes of the header before the path.
pub(super) const FIXED: usize = 128;
/// Bytes of one record.
pub(super) const RECORD: u64 = 16;
/// Where use stands in an index.
pub(super) const USE_AT: u64 = 96;
/// Where the pin stands in an index.
pub(super) const PIN_AT: u64 = 112;
/// The longest path that is cached, in bytes (PATH_MAX).
pub(super) const MAX_PATH: usize = 4096;

const MAGIC: [u8; 8] = *b"corfsidx";
/// What the header's checksum covers, besides the path.
const CHECKED: usize = 80;

/// The name of an entry: the hash of its path within the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name(pub(super) u128);

impl Name {
    pub(super) fn of(path: &[u8]) -> Self {
        Self(xxh3_128(path))
    }

    /// The folder that it is in, of 256.
    pub(super) fn fan(self) -> usize {
        (self.0 >> 120) as usize
    }

    /// 32 hexadecimal digits.
    pub(super) fn hex(self) -> String {
        format!("{:032x}", self.0)
    }

    /// From what [`Name::hex`] gave.
    pub(super) fn from_hex(text: &[u8]) -> Option<Self> {
        let digits = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
        if text.len() != 32 || !text.iter().all(digits) {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

/// How an entry is used: outside the checksummed part, as it changes at every open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// Seconds since 1970.
    pub(super) last: u64,
    pub(super) uses: u32,
}

impl Use {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.last.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.uses.to_le_bytes());
        bytes
    }
}

/// The header of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) block: u32,
    /// In which epoch the entry was made.
    pub(super) made: u32,
    /// Tells this entry from all others that had its name; salts the records.
    pub(super) generation: u64,
    pub(super) identity: Identity,
    pub(super) path: Vec<u8>,
    pub(super) used: Use,
    pub(super) pinned: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Where the records start behind a path of that length.
fn records_at(path: usize) -> usize {
    FIXED + path.next_multiple_of(RECORD as usize)
}

/// How many blocks of `block` bytes a file of `size` bytes has.
pub(super) fn blocks(size: u64, block: u32) -> u64 {
    size.div_ceil(u64::from(block.max(1)))
}

impl Header {
    /// Bytes from the start of the file to the first record.
    pub(super) fn records_at(&self) -> u64 {
        records_at(self.path.len()) as u64
    }

    pub(super) fn blocks(&self) -> u64 {
        blocks(self.identity.size, self.block)
    }

    /// Bytes of the whole index.
    pub(super) fn index_len(&self) -> u64 {
        self.records_at() + self.blocks() * RECORD
    }

    /// The bytes from the start of the file to the first record.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; records_at(self.path.len())];
        let mut put = |at: usize, value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        let Identity {
            size,
            mtime,
            ctime,
            ino,
        } = self.identity;
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(records_at(self.path.len()) as u32).to_le_bytes());
        put(16, &self.block.to_le_bytes());
        put(20, &self.made.to_le_bytes());
        put(24, &self.generation.to_le_bytes());
        put(32, &size.to_le_bytes());
        put(40, &mtime.seconds.to_le_bytes());
        put(48, &mtime.nanos.to_le_bytes());
        put(52, &ctime.nanos.to_le_bytes());
        put(56, &ctime.seconds.to_le_bytes());
        put(64, &ino.to_le_bytes());
        put(72, &(self.path.len() as u32).to_le_bytes());
        put(USE_AT as usize, &self.used.encode());
        put(PIN_AT as usize, &[u8::from(self.pinned)]);
        put(FIXED, &self.path);
        let sum = header_sum(&bytes[..CHECKED], &self.path);
        bytes[CHECKED..CHECKED + 8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`; None for what is foreign, torn, newer or impossible.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let path_len = u32_at(bytes, 72)? as usize;
        let plausible = bytes.get(..8)? == MAGIC
            && u32_at(bytes, 8)? == VERSION
            && path_len <= MAX_PATH
            && u32_at(bytes, 12)? as usize == records_at(path_len);
        if !plausible {
            return None;
        }
        let path = bytes.get(FIXED..FIXED + path_len)?;
        let block = u32_at(bytes, 16)?;
        let right = u64_at(bytes, CHECKED)? == header_sum(&bytes[..CHECKED], path);
        if !right || !BLOCKS.contains(&block) || !block.is_power_of_two() {
            return None;
        }
        Some(Self {
            block,
            made: u32_at(bytes, 20)?,
            generation: u64_at(bytes, 24)?,
            identity: Identity {
                size: u64_at(bytes, 32)?,
                mtime: Stamp {
                    seconds: u64_at(bytes, 40)? as i64,
                    nanos: u32_at(bytes, 48)?,
                },
                ctime: Stamp {
                    seconds: u64_at(bytes, 56)? as i64,
                    nanos: u32_at(bytes, 52)?,
                },
                ino: u64_at(bytes, 64)?,
            },
            path: path.to_vec(),
            used: Use {
                last: u64_at(bytes, 96)?,
                uses: u32_at(bytes, 104)?,
            },
            pinned: *bytes.get(PIN_AT as usize)? != 0,
        })
    }
}

fn header_sum(checked: &[u8], path: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(checked);
    hash.update(path);
    hash.digest()
}

/// What is known of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// xxh3-64 of the bytes as stored.
    pub(super) sum: u64,
    /// When they were stored, or last held against the sum.
    pub(super) epoch: u32,
}

impl Record {
    /// The record of block `block` in the entry of that generation.
    pub(super) fn encode(self, generation: u64, block: u64) -> [u8; RECORD as usize] {
        let mut bytes = [0; RECORD as usize];
        bytes[..8].copy_from_slice(&self.sum.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..].copy_from_slice(&self.check(generation, block).to_le_bytes());
        bytes
    }

    /// None for a block that was never stored, and for what is torn or of another entry.
    pub(super) fn decode(bytes: &[u8], generation: u64, block: u64) -> Option<Self> {
        let record = Self {
            sum: u64_at(bytes, 0)?,
            epoch: u32_at(bytes, 8)?,
        };
        // No epoch is 0, so that zeros are no record whatever their check would be.
        let right = record.epoch != 0 && u32_at(bytes, 12)? == record.check(generation, block);
        right.then_some(record)
    }

    fn check(self, generation: u64, block: u64) -> u32 {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.sum.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..20].copy_from_slice(&block.to_le_bytes());
        bytes[20..].copy_from_slice(&generation.to_le_bytes());
        xxh3_64(&bytes) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp() -> impl Strategy<Value = Stamp> {
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Stamp { seconds, nanos })
    }

    fn header() -> impl Strategy<Value = Header> {
        let identity = (0u64..1 << 50, stamp(), stamp(), any::<u64>());
        let path = prop::collection::vec(any::<u8>(), 0..300);
        let used = (any::<u64>(), any::<u32>());
        (
            identity,
            path,
            16u32..=24,
            any::<u32>(),
            any::<u64>(),
            used,
            any::<bool>(),
        )
            .prop_map(
                |(
                    (size, mtime, ctime, ino),
                    path,
                    bits,
                    made,
                    generation,
                    (last, uses),
                    pinned,
                )| {
                    Header {
                        block: 1 << bits,
                        made,
                        generation,
                        identity: Identity {
                            size,
                            mtime,
                            ctime,
                            ino,
                        },
                        path,
                        used: Use { last, uses },
                        pinned,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn a_header_comes_back(header in header()) {
            let bytes = header.encode();
            prop_assert_eq!(bytes.len() as u64, header.records_at());
            prop_assert_eq!(Header::decode(&bytes), Some(header));
        }

        #[test]
        fn a_header_with_a_flipped_bit_is_none_or_the_same_entry(
            header in header(), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let mut bytes = header.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Some(other) = Header::decode(&bytes) {
                let free = (88..FIXED).contains(&at) || at >= FIXED + header.path.len()
                    || (76..80).contains(&at);
                prop_assert!(free, "byte {at}");
                prop_assert_eq!(
                    (other.identity, other.path, other.generation, other.block),
                    (header.identity, header.path, header.generation, header.block)
                );
            }
        }

        #[test]
        fn a_cut_header_is_none(header in header(), cut in any::<prop::sample::Index>()) {
            let bytes = header.encode();
            let whole = FIXED + header.path.len();
            prop_assert_eq!(Header::decode(&bytes[..cut.index(whole)]), None);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            let _ = Header::decode(&bytes);
            if bytes.len() > 16 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                let _ = Header::decode(&bytes);
            }
        }

        #[test]
        fn a_record_belongs_to_its_block_and_its_entry(
            sum: u64, epoch in 1u32.., generation: u64, block: u64, at in 0usize..16, bit in 0u8..8,
        ) {
            let record = Record { sum, epoch };
            let mut bytes = record.encode(generation, block);
            prop_assert_eq!(Record::decode(&bytes, generation, block), Some(record));
            prop_assert_eq!(Record::decode(&bytes, generation, block ^ 1), None);
            prop_assert_eq!(Record::decode(&bytes, generation ^ 1, block), None);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&bytes, generation, block), None);
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(Record::decode(&[0; 16], 0, 0), None);
    }

    #[test]
    fn a_name_is_its_hex_and_nothing_else_is() {
        let name = Name::of(b"a/b");
        assert_eq!(Name::from_hex(name.hex().as_bytes()), Some(name));
        assert_eq!(&name.hex()[..2], format!("{:02x}", name.fan()));
        for text in [
            "",
            "0",
            "0x000000000000000000000000000000",
            "G".repeat(32).as_str(),
        ] {
            assert_eq!(Name::from_hex(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Name::from_hex(name.hex().to_uppercase().as_bytes()), None);
    }
}
