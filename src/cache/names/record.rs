//! What is kept of one name, as bytes and back.
//!
//! A value of the store, all numbers little endian:
//!
//! ```text
//!  0 check u64: xxh3-64 of the key and of all that follows
//!  8 form u8: 0 for a name of which only type and number are known, else 1
//!  9 mode u32    13 uid u32    17 gid u32    21 links u32
//! 25 inode u64   33 size u64   41 blocks u64 (of 512 bytes)   49 device u64
//! 57 atime, mtime, ctime: seconds i64, nanoseconds u32 each
//! 93 the target of a symbolic link
//! ```

use rustix::fs::{FileType, Stat};
use xxhash_rust::xxh3::Xxh3;

use super::super::identity::Stamp;

const FIXED: usize = 93;
const CHECK: usize = 8;

/// A name as it was last seen in the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Whether more than type and inode number is known.
    pub whole: bool,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner in the source.
    pub uid: u32,
    /// Group in the source.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Inode number in the source.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// What a device file stands for.
    pub rdev: u64,
    /// Time of last access.
    pub atime: Stamp,
    /// Time of last modification.
    pub mtime: Stamp,
    /// Time of last change.
    pub ctime: Stamp,
    /// Where a symbolic link leads; empty when it was not asked.
    pub target: Vec<u8>,
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the types of its fields differ by architecture"
)]
impl Record {
    /// What attributes tell.
    pub fn of(stat: &Stat) -> Self {
        let stamp = |seconds: i64, nanos: u64| Stamp {
            seconds,
            nanos: u32::try_from(nanos).unwrap_or(0),
        };
        Self {
            whole: true,
            mode: stat.st_mode as _,
            uid: stat.st_uid as _,
            gid: stat.st_gid as _,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            ino: stat.st_ino as _,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            rdev: stat.st_rdev as _,
            atime: stamp(stat.st_atime as _, stat.st_atime_nsec as _),
            mtime: stamp(stat.st_mtime as _, stat.st_mtime_nsec as _),
            ctime: stamp(stat.st_ctime as _, stat.st_ctime_nsec as _),
            target: Vec::new(),
        }
    }

    /// What a listing tells of a name.
    pub fn bare(kind: FileType, ino: u64) -> Self {
        Self {
            mode: kind.as_raw_mode(),
            ino,
            ..Self::default()
        }
    }

    /// Whether `newer` tells nothing but another time of last access.
    pub fn tells_all_of(&self, newer: &Self) -> bool {
        let same = Self {
            atime: self.atime,
            target: self.target.clone(),
            ..newer.clone()
        };
        *self == same
    }

    /// Its type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// The attributes; what is not kept is as in `blank`.
    pub fn stat(&self, blank: Stat) -> Stat {
        let mut stat = blank;
        stat.st_mode = self.mode as _;
        stat.st_uid = self.uid as _;
        stat.st_gid = self.gid as _;
        stat.st_nlink = self.links as _;
        stat.st_ino = self.ino as _;
        stat.st_size = self.size as _;
        stat.st_blocks = self.blocks as _;
        stat.st_rdev = self.rdev as _;
        stat.st_atime = self.atime.seconds as _;
        stat.st_atime_nsec = self.atime.nanos as _;
        stat.st_mtime = self.mtime.seconds as _;
        stat.st_mtime_nsec = self.mtime.nanos as _;
        stat.st_ctime = self.ctime.seconds as _;
        stat.st_ctime_nsec = self.ctime.nanos as _;
        stat
    }

    /// The value that stands under `key`.
    pub(super) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.target.len());
        bytes.extend_from_slice(&[0; CHECK]);
        bytes.push(u8::from(self.whole));
        for number in [self.mode, self.uid, self.gid, self.links] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.ino, self.size, self.blocks, self.rdev] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for stamp in [self.atime, self.mtime, self.ctime] {
            bytes.extend_from_slice(&stamp.seconds.to_le_bytes());
            bytes.extend_from_slice(&stamp.nanos.to_le_bytes());
        }
        bytes.extend_from_slice(&self.target);
        sealed(key, bytes)
    }

    /// None for what is torn, foreign or of another key.
    pub(super) fn decode(key: &[u8], bytes: &[u8]) -> Option<Self> {
        let target = unsealed(key, bytes)?.get(FIXED - CHECK..)?.to_vec();
        let u32_at = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let u64_at = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let stamp_at = |at: usize| -> Option<Stamp> {
            Some(Stamp {
                seconds: u64_at(at)? as i64,
                nanos: u32_at(at + 8)?,
            })
        };
        Some(Self {
            whole: *bytes.get(8)? != 0,
            mode: u32_at(9)?,
            uid: u32_at(13)?,
            gid: u32_at(17)?,
            links: u32_at(21)?,
            ino: u64_at(25)?,
            size: u64_at(33)?,
            blocks: u64_at(41)?,
            rdev: u64_at(49)?,
            atime: stamp_at(57)?,
            mtime: stamp_at(69)?,
            ctime: stamp_at(81)?,
            target,
        })
    }
}

/// Fills in the check of a value, for which its first eight bytes are left.
pub(super) fn sealed(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = sum(key, value.get(CHECK..).unwrap_or_default());
    if let Some(place) = value.get_mut(..CHECK) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    value
}

/// What follows the check of a value that is whole, and of that key.
pub(super) fn unsealed<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let check = u64::from_le_bytes(value.get(..CHECK)?.try_into().ok()?);
    let rest = value.get(CHECK..)?;
    (check == sum(key, rest)).then_some(rest)
}

fn sum(key: &[u8], rest: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(rest);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_under_its_key_and_under_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let mut record = Record::of(&stat);
        record.target = b"../\xff".to_vec();
        let bytes = record.encode(b"a\0b");
        assert_eq!(Record::decode(b"a\0b", &bytes), Some(record.clone()));
        assert_eq!(Record::decode(b"a\0c", &bytes), None);
        let again = record.stat(stat);
        assert_eq!(Record::of(&again).mtime, record.mtime);
        assert_eq!(again.st_size, stat.st_size);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_no_record() {
        let bytes = Record::bare(FileType::Directory, 7).encode(b"k");
        assert_eq!(
            Record::decode(b"k", &bytes).unwrap().kind(),
            FileType::Directory
        );
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 4;
            assert_eq!(Record::decode(b"k", &torn), None, "byte {at}");
            assert_eq!(Record::decode(b"k", &bytes[..at]), None, "cut at {at}");
        }
    }
}
