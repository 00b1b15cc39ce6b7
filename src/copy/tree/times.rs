//! Times of modification, as exact as a file system keeps them.

use std::os::fd::BorrowedFd;

use rustix::fs::{Stat, fstatfs};

use crate::copy::resolve::modified;

/// Whether what stands in `directory` was modified no earlier than the source. Where a time is kept
/// less exactly than the source's, that is as much as a copy of it can have (cp has it so, too).
pub(super) fn is_no_older(existing: &Stat, source: &Stat, directory: BorrowedFd<'_>) -> bool {
    let (found, wanted) = (modified(existing), modified(source));
    found >= wanted || found >= as_kept(wanted, kind(directory))
}

/// The time of a source as its copy in this directory can have it.
pub(super) fn modified_as_kept(source: &Stat, directory: BorrowedFd<'_>) -> (i64, i64) {
    as_kept(modified(source), kind(directory))
}

/// The type of the file system; 0 when it does not say.
#[allow(clippy::cast_sign_loss, reason = "a number that means itself only")]
fn kind(directory: BorrowedFd<'_>) -> u64 {
    // Its width and sign are the processor's; all known ones fit 32 bits.
    fstatfs(directory).map_or(0, |found| u64::from(found.f_type as u32))
}

/// Seconds and nanoseconds as a file system of this type (statfs(2), linux/magic.h) keeps them: what
/// it has no room for is cut off.
fn as_kept((seconds, nanoseconds): (i64, i64), kind: u64) -> (i64, i64) {
    const FAT: u64 = 0x4d44;
    const EXFAT: u64 = 0x2011_bab0;
    const HFS: u64 = 0x4244;
    const HFS_PLUS: u64 = 0x482b;
    const UDF: u64 = 0x1501_3346;
    const NTFS: u64 = 0x7366_746e;
    const CIFS: u64 = 0xff53_4d42;
    const SMB2: u64 = 0xfe53_4d42;
    let grain = match kind {
        FAT => return (seconds - seconds.rem_euclid(2), 0),
        HFS | HFS_PLUS => 1_000_000_000,
        EXFAT => 10_000_000,
        UDF => 1000,
        NTFS | CIFS | SMB2 => 100,
        _ => 1,
    };
    (seconds, nanoseconds - nanoseconds.rem_euclid(grain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_cut_off_where_the_file_system_has_no_room_for_it() {
        let time = (1_700_000_003, 987_654_321);
        for (kind, kept) in [
            (0x4d44, (1_700_000_002, 0)),
            (0x2011_bab0, (1_700_000_003, 980_000_000)),
            (0x482b, (1_700_000_003, 0)),
            (0x1501_3346, (1_700_000_003, 987_654_000)),
            (0xfe53_4d42, (1_700_000_003, 987_654_300)),
            // ext4, and what nobody knows.
            (0xef53, time),
            (0, time),
        ] {
            assert_eq!(as_kept(time, kind), kept, "{kind:x}");
            // What is kept stays what it is, and is never later.
            assert_eq!(as_kept(kept, kind), kept, "{kind:x}");
            assert!(kept <= time);
        }
        assert_eq!(as_kept((-3, 5), 0x4d44), (-4, 0));
    }
}
