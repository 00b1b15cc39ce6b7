//! Which version of a file: what is compared before and after a fill, and at every open.

use rustix::fs::Stat;

/// A time as a file system keeps it: seconds since 1970, then nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest, below 1,000,000,000.
    pub nanos: u32,
}

/// The identity of one version of a source file. Two versions with the same identity are the same
/// bytes, once the times are old enough (`racy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Length in bytes.
    pub size: u64,
    /// When the bytes changed.
    pub mtime: Stamp,
    /// When anything changed.
    pub ctime: Stamp,
    /// The inode number where the source keeps it over remounts, else 0.
    pub ino: u64,
}

impl Identity {
    /// The identity that attributes tell. `stable` says whether the source keeps inode numbers
    /// over remounts ([`super::SourceKey::stable_inodes`]).
    pub fn of(stat: &Stat, stable: bool) -> Self {
        let stamp = |seconds: i64, nanos: u64| Stamp {
            seconds,
            nanos: u32::try_from(nanos).unwrap_or(0),
        };
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stamp(stat.st_mtime, stat.st_mtime_nsec),
            ctime: stamp(stat.st_ctime, stat.st_ctime_nsec),
            ino: if stable { stat.st_ino } else { 0 },
        }
    }
}
