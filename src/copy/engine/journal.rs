//! What an interrupted copy has, in a file beside it: which ranges, each with the hash of its bytes.
//!
//! One header, then records, appended as ranges are written; all numbers little-endian. Nothing of
//! it is believed: a header that is torn, of another version, or of another source or part makes
//! the copy start again; records end where one doesn't hold its own checksum; and a range counts
//! only when the part's bytes have its hash. So it need not be synced: what a crash of the machine
//! tears, of journal or part, doesn't hold.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::ftruncate;
use rustix::io::pread;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::write_all;
use crate::sys::{Errno, OrFail, Result};

const MAGIC: [u8; 16] = *b"corfs-journal\n\x1a\0";
const VERSION: u64 = 1;
/// Magic, version, identity, checksum.
const HEADER: usize = 16 + 8 + 8 * FIELDS + 8;
const RECORD: usize = 32;
const FIELDS: usize = 10;
/// Records of one journal: 2 MiB of them. Ranges that find no room are copied again.
pub(super) const MOST_RECORDS: usize = 65_536;

/// What a journal is about: the source's state, the part, the destination's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(pub(super) [u64; FIELDS]);

/// A range of the part, and the XXH3 of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) range: Range<u64>,
    pub(super) hash: u64,
}

fn header(identity: &Identity) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let (body, checksum) = bytes.split_at_mut(HEADER - 8);
    body[..16].copy_from_slice(&MAGIC);
    let numbers = std::iter::once(&VERSION).chain(&identity.0);
    for (place, number) in body[16..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    checksum.copy_from_slice(&xxh3_64(body).to_le_bytes());
    bytes
}

/// Records are of one header: those of another, left behind it, don't hold.
fn encode(record: &Record, identity: &Identity) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let (body, checksum) = bytes.split_at_mut(RECORD - 8);
    let numbers = [record.range.start, record.range.end, record.hash];
    for (place, number) in body.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let sum = xxh3_64_with_seed(body, seed(identity));
    checksum.copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], identity: &Identity) -> Option<Record> {
    let (body, checksum) = bytes.split_at_checked(RECORD - 8)?;
    if xxh3_64_with_seed(body, seed(identity)).to_le_bytes() != checksum {
        return None;
    }
    let number = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    Some(Record {
        range: number(0)?..number(8)?,
        hash: number(16)?,
    })
}

fn seed(identity: &Identity) -> u64 {
    xxh3_64(&header(identity))
}

/// The records of a journal, and makes it ready for more: what is behind the last good one is cut
/// off. `None` when it is not about `identity`, or is no journal.
pub(super) fn read(file: BorrowedFd<'_>, identity: &Identity) -> Result<Option<Vec<Record>>> {
    let mut bytes = vec![0; HEADER + RECORD * MOST_RECORDS];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(file, &mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fail("pread"),
        }
    }
    let Some(records) = parse(&bytes[..filled], identity) else {
        return Ok(None);
    };
    let end = HEADER + RECORD * records.len();
    ftruncate(file, end as u64).or_fail("ftruncate")?;
    Ok(Some(records))
}

fn parse(bytes: &[u8], identity: &Identity) -> Option<Vec<Record>> {
    let records = bytes.strip_prefix(&header(identity))?;
    let whole = records.chunks_exact(RECORD);
    Some(whole.map_while(|one| decode(one, identity)).collect())
}

/// Begins a journal anew.
pub(super) fn begin(file: BorrowedFd<'_>, identity: &Identity) -> Result<()> {
    ftruncate(file, 0).or_fail("ftruncate")?;
    write_all(file, &header(identity), 0)
}

/// Writes the record of that number.
pub(super) fn put(
    file: BorrowedFd<'_>,
    identity: &Identity,
    number: usize,
    record: &Record,
) -> Result<()> {
    let at = HEADER + RECORD * number;
    write_all(file, &encode(record, identity), at as u64)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    const ONE: Identity = Identity([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);

    fn records(count: u64) -> Vec<Record> {
        let record = |i: u64| Record {
            range: i * 100..i * 100 + 7,
            hash: i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        (0..count).map(record).collect()
    }

    fn journal(count: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        begin(file.as_fd(), &ONE).unwrap();
        for (number, record) in records(count).iter().enumerate() {
            put(file.as_fd(), &ONE, number, record).unwrap();
        }
        file
    }

    #[test]
    fn what_was_put_is_read() {
        for count in [0, 1, 5] {
            let file = journal(count);
            assert_eq!(read(file.as_fd(), &ONE).unwrap().unwrap(), records(count));
        }
    }

    #[test]
    fn another_identity_is_foreign_in_every_field() {
        let file = journal(3);
        for field in 0..FIELDS {
            let mut other = ONE;
            other.0[field] += 1;
            assert_eq!(read(file.as_fd(), &other).unwrap(), None);
        }
        assert!(read(file.as_fd(), &ONE).unwrap().is_some());
    }

    #[test]
    fn records_of_an_earlier_header_do_not_hold_behind_a_new_one() {
        let old = journal(3);
        let mut bytes = vec![0; HEADER + 3 * RECORD];
        old.read_exact_at(&mut bytes, 0).unwrap();
        let other = Identity([7; FIELDS]);
        bytes[..HEADER].copy_from_slice(&header(&other));
        assert_eq!(parse(&bytes, &other), Some(Vec::new()));
    }

    #[test]
    fn a_torn_tail_is_cut_off_and_what_follows_is_found() {
        let file = journal(3);
        file.set_len((HEADER + 2 * RECORD + 11) as u64).unwrap();
        assert_eq!(read(file.as_fd(), &ONE).unwrap().unwrap(), records(2));
        put(file.as_fd(), &ONE, 2, &records(3)[2]).unwrap();
        assert_eq!(read(file.as_fd(), &ONE).unwrap().unwrap(), records(3));
    }

    proptest! {
        #[test]
        fn no_damage_is_believed(at in 0..HEADER + 3 * RECORD, xor in 1u8.., len in 0..300usize) {
            let file = journal(3);
            let mut bytes = vec![0; HEADER + 3 * RECORD];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes[at] ^= xor;
            bytes.truncate(len.min(bytes.len()).max(at + 1));
            let good = if at < HEADER { None } else { Some(((at - HEADER) / RECORD).min(3)) };
            let parsed = parse(&bytes, &ONE);
            prop_assert_eq!(parsed.as_ref().map(Vec::len), good);
            if let Some(parsed) = parsed {
                prop_assert_eq!(&parsed[..], &records(3)[..parsed.len()]);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(parse(&bytes, &ONE), None);
        }
    }
}
