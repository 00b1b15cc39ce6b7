//! What a copy can be asked to do: the words of a `.copy` line and of `corfs copy`, as values.
//!
//! Data only; the words for it are in `language`.

use std::ffi::{OsStr, OsString};
use std::num::{NonZeroU16, NonZeroU64};

/// How the bytes get from one file into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Extents are shared (FICLONE, FICLONERANGE).
    Reflink,
    /// The source is mapped and populated, and written from the mapping.
    MapWrite,
    /// Both are mapped, and memory is copied (`mcopy2` of APUE 14.8).
    MapMap,
    /// `copy_file_range(2)`, in capped calls.
    CopyRange,
    /// Through aligned buffers, also for sources that can't be mapped.
    ReadWrite,
}

impl Method {
    /// All of them, in the order of the table in the documentation.
    pub const ALL: [Self; 5] = [
        Self::Reflink,
        Self::MapWrite,
        Self::MapMap,
        Self::CopyRange,
        Self::ReadWrite,
    ];

    /// The word for it, in a line and in the list of jobs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::MapWrite => "map-write",
            Self::MapMap => "map-map",
            Self::CopyRange => "copy-range",
            Self::ReadWrite => "read-write",
        }
    }
}

/// Whether extents are shared, as `cp --reflink` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reflink {
    /// Where it can be.
    #[default]
    Auto,
    /// Or the copy fails.
    Always,
    /// The copy has bytes of its own.
    Never,
}

/// What becomes of holes, as `cp --sparse` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sparse {
    /// Holes of the source are holes of the copy.
    #[default]
    Auto,
    /// Blocks of zeros become holes, too.
    Always,
    /// The copy has none.
    Never,
}

/// What becomes of what stands at the destination, as `cp --backup` has it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Backup {
    /// It is replaced.
    #[default]
    None,
    /// It is renamed to its name and the suffix, over what has that name.
    Simple(OsString),
    /// It is renamed to `NAME.~N~`, N one more than the highest there.
    Numbered,
    /// Numbered where numbered backups of it exist, else simple.
    Existing(OsString),
}

impl Backup {
    /// Whether a backup that has no number may have that name.
    pub(super) fn may_be_called(&self, name: &OsStr) -> bool {
        match self {
            Self::None | Self::Numbered => false,
            Self::Simple(suffix) | Self::Existing(suffix) => {
                name.as_encoded_bytes().ends_with(suffix.as_encoded_bytes())
            }
        }
    }
}

/// Which attributes of the source the copy gets, as `cp --preserve` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preserve {
    /// Permission bits and POSIX ACL; without, a new file has the source's bits less the umask.
    pub mode: bool,
    /// User and group; what the caller may not give away stays the caller's, as `cp -p` does.
    pub ownership: bool,
    /// Access and modification time, to the nanosecond.
    pub timestamps: bool,
    /// Names of one file within the tree stay names of one file.
    pub links: bool,
    /// Extended attributes other than ACL.
    pub xattr: bool,
}

impl Preserve {
    /// Mode and times: what a copy keeps unless told otherwise.
    pub const DEFAULT: Self = Self {
        mode: true,
        ownership: false,
        timestamps: true,
        links: false,
        xattr: false,
    };
    /// Everything (`-a`).
    pub const ALL: Self = Self {
        mode: true,
        ownership: true,
        timestamps: true,
        links: true,
        xattr: true,
    };
    /// Nothing.
    pub const NONE: Self = Self {
        mode: false,
        ownership: false,
        timestamps: false,
        links: false,
        xattr: false,
    };
}

impl Default for Preserve {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How urgent the copy's reading and writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Priority {
    /// As everybody's.
    #[default]
    Normal,
    /// Only when nobody else wants the disk or a processor (`ioprio_set(2)` idle, SCHED_IDLE).
    Idle,
}

/// A chunk where nobody names one, in bytes: 4 to 8 MiB were the fastest on ext4 and XFS.
pub const DEFAULT_CHUNK: u64 = 8 << 20;

/// How to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// The one method to use; `None` (`auto`) shares extents where it may and can, else maps, and
    /// goes down the ladder where something is not possible.
    pub method: Option<Method>,
    /// Whether extents are shared.
    pub reflink: Reflink,
    /// Bytes mapped at a time by one worker: 64 KiB to 1 GiB, a multiple of 4096.
    pub chunk: u64,
    /// Threads that move bytes of one file, or files of a tree; `None` (`auto`) measures.
    pub workers: Option<NonZeroU16>,
    /// Past the page cache (O_DIRECT) where both files can.
    pub direct: bool,
    /// What becomes of holes.
    pub sparse: Sparse,
    /// Data and directory are on disk before the copy is called done.
    pub sync: bool,
    /// Into the file that stands at the destination, which keeps its inode: not whole or absent.
    pub inplace: bool,
    /// The copy is read again from storage and compared by hash.
    pub verify: bool,
    /// An interrupted copy leaves what it has, and goes on from it.
    pub resume: bool,
    /// Directories with what is in them.
    pub recursive: bool,
    /// Which attributes the copy gets.
    pub preserve: Preserve,
    /// Not into other file systems mounted within the source.
    pub one_file_system: bool,
    /// What stands at a destination stays.
    pub no_clobber: bool,
    /// What stands at a destination and is not older than the source stays.
    pub update: bool,
    /// The destination is never a directory to copy into (`-T`).
    pub no_target_directory: bool,
    /// What becomes of what stands at a destination.
    pub backup: Backup,
    /// Globs: names (or, with a slash in them, paths within the source) that are left out.
    pub exclude: Vec<Vec<u8>>,
    /// Bytes a second, all workers together.
    pub limit: Option<NonZeroU64>,
    /// How urgent it is.
    pub priority: Priority,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            method: None,
            reflink: Reflink::Auto,
            chunk: DEFAULT_CHUNK,
            workers: None,
            direct: false,
            sparse: Sparse::Auto,
            sync: false,
            inplace: false,
            verify: false,
            resume: false,
            recursive: false,
            preserve: Preserve::DEFAULT,
            one_file_system: false,
            no_clobber: false,
            update: false,
            no_target_directory: false,
            backup: Backup::None,
            exclude: Vec::new(),
            limit: None,
            priority: Priority::Normal,
        }
    }
}
