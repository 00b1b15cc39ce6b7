//! How a store behaves.

use std::path::PathBuf;
use std::time::Duration;

/// What serves a mount without further wishes: a block of 1 MiB.
pub const BLOCK: u32 = 1 << 20;
/// The smallest and the largest block in bytes.
pub const BLOCKS: std::ops::RangeInclusive<u32> = 64 << 10..=16 << 20;

/// An amount of the file system that the cache is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// That many bytes.
    Bytes(u64),
    /// That many hundredths of its size.
    Percent(u8),
}

impl Share {
    /// In bytes, of a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

/// When stored blocks are held against their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// On first use after a stop that was not clean.
    #[default]
    Unclean,
    /// At every serving.
    Always,
}

/// Whose clock stamps the source's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceClock {
    /// This kernel's: the source is a local file system.
    Ours,
    /// Another machine's, or nobody knows.
    Theirs,
}

/// What the store is opened for: which source, as what it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceKey {
    /// The text that names the store; the same for the same source, whatever the mount.
    pub key: String,
    /// What the source was when it was last seen, for people and for offline use: lines
    /// `name value`.
    pub about: String,
    /// Where it is, or was when it was last seen.
    pub path: PathBuf,
    /// Whether inode numbers outlive a remount.
    pub stable_inodes: bool,
    /// Whose clock stamps its files.
    pub clock: SourceClock,
}

/// Where the store is and how it behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The cache directory; made when it is not there, its parent must be.
    pub dir: PathBuf,
    /// The source.
    pub source: SourceKey,
    /// The most that the whole directory may take, in allocated bytes.
    pub size: Share,
    /// What stays free on its file system, in bytes and, as the same hundredths, in inodes.
    pub free: Share,
    /// Bytes of a block of new entries: a power of two in [`BLOCKS`].
    pub block: u32,
    /// When blocks are held against their checksums.
    pub verify: Verify,
    /// A file whose times are younger than this is not believed to be done with.
    pub racy: Duration,
    /// Bytes that blocks on their way may take in memory; four blocks are always allowed.
    pub buffers: u64,
}

impl StoreOptions {
    /// The defaults for a source: 10 % of the file system, 5 % of it free, blocks of 1 MiB.
    pub fn new(dir: PathBuf, source: SourceKey) -> Self {
        Self {
            dir,
            source,
            size: Share::Percent(10),
            free: Share::Percent(5),
            block: BLOCK,
            verify: Verify::default(),
            racy: Duration::from_secs(2),
            buffers: 64 << 20,
        }
    }
}
