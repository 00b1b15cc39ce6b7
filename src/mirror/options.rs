//! How a mirror behaves: plain values, made by the command line.

use std::ffi::OsString;
use std::time::Duration;

use super::IdMap;
use super::reach::Reach;

/// How a mirror behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Every changing operation is refused with EROFS.
    pub read_only: bool,
    /// Files of the source are opened with O_NOATIME where that is allowed.
    pub noatime: bool,
    /// How reads are served.
    pub io: Io,
    /// Which files the kernel serves by itself.
    pub passthrough: Passthrough,
    /// The kernel keeps what is written until a close or fsync, or longer: nobody else may write.
    pub writeback: bool,
    /// When what is cached is held against the source.
    pub validate: Validate,
    /// What is seen of the source's tree is kept in the cache, and shown while the source is away.
    pub offline: bool,
    /// With `offline`: after how long without a request the source is let go of; `None` for never.
    pub source_idle: Option<Duration>,
    /// The source is asked over a wire, or asks somebody: it may not answer.
    pub may_hang: bool,
    /// How far a sequential reader's blocks are fetched ahead of it, in bytes.
    pub prefetch: u64,
    /// Size of a mapped window, in bytes.
    pub window: usize,
    /// The most that may be mapped for reading at any moment, in bytes.
    pub window_budget: usize,
    /// How many inodes are known before the kernel is asked to forget some; `None` for any number.
    pub inode_limit: Option<usize>,
    /// Which way back to an inode whose descriptor was closed is tried first.
    pub reach: Reach,
    /// How the kernel learns of changes made behind the mirror.
    pub coherence: Coherence,
    /// How long the kernel may keep what is watched, under [`Coherence::Watch`].
    pub watch_timeout: Duration,
    /// The most directories watched, where each needs a watch of its own; `None` leaves half of
    /// the user's watches to others.
    pub watch_limit: Option<usize>,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep names that exist.
    pub entry_timeout: Duration,
    /// How long the kernel may keep names that do not exist; `None`: where it is told of new ones
    /// as long as anything else, elsewhere not at all.
    pub negative_timeout: Option<Duration>,
    /// Whether and how the control files show.
    pub control: Control,
    /// The name of the control file in each directory.
    pub control_name: OsString,
    /// The kernel checks permissions by mode and ACL.
    pub default_permissions: bool,
    /// Users other than the one who mounted may enter.
    pub allow_other: bool,
    /// How owners are shown; `None` shows them as they are.
    pub ids: Option<IdMap>,
}

/// How reads are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// From mapped windows of the source files.
    Mmap,
    /// By pread(2) into a buffer of the serving thread, for comparison.
    Pread,
}

/// Which files are handed to the kernel, which then reads, writes and maps them by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// None.
    Never,
    /// Those that are wholly in the cache, for readers, where the kernel and our privileges allow
    /// it.
    Cached,
    /// Every regular file, where the kernel and our privileges allow it.
    Always,
}

/// When what is cached of a file is held against the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validate {
    /// At every open, and when the kernel asks for attributes.
    Open,
    /// As that, but not again before so long.
    After(Duration),
    /// Never: the source does not change.
    Never,
}

/// How the kernel learns of changes made behind the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// It asks again after a while.
    Ttl,
    /// It asks every time, and keeps nothing.
    Strict,
    /// It is told.
    Watch,
}

/// The timeout that never passes: 136 years. The kernel counts it in ticks of 64 bits.
pub const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Whether and how the control files show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Found by name, in no listing.
    Hidden,
    /// As hidden, and listed in the root.
    Visible,
    /// There are none.
    Off,
}
