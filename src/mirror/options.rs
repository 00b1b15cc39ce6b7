//! How a mirror behaves: plain values, made by the command line.

use std::ffi::OsString;
use std::time::Duration;

use super::table::Reach;

/// How a mirror behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Every changing operation is refused with EROFS.
    pub read_only: bool,
    /// Files of the source are opened with O_NOATIME where that is allowed.
    pub noatime: bool,
    /// How reads are served.
    pub io: Io,
    /// Size of a mapped window, in bytes.
    pub window: usize,
    /// The most that may be mapped for reading at any moment, in bytes.
    pub window_budget: usize,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep names that exist.
    pub entry_timeout: Duration,
    /// How long the kernel may keep names that do not exist.
    pub negative_timeout: Duration,
    /// Whether and how the control files show.
    pub control: Control,
    /// The name of the control file in each directory.
    pub control_name: OsString,
    /// The kernel checks permissions by mode and ACL.
    pub default_permissions: bool,
    /// Users other than the one who mounted may enter.
    pub allow_other: bool,
    /// Which way back to an inode whose descriptor was closed is tried first.
    pub reach: Reach,
}

/// How reads are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// From mapped windows of the source files.
    Mmap,
    /// By pread(2) into a buffer of the serving thread, for comparison.
    Pread,
}

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
