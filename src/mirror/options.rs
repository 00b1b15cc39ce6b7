//! How a mirror behaves: plain values, settled by the command line.

use std::ffi::OsString;
use std::time::Duration;

/// What is in force for one mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Every change is answered EROFS.
    pub read_only: bool,
    /// Reads leave the source's access times alone where the system allows it.
    pub noatime: bool,
    /// How the bytes of a file reach the reply.
    pub io: Io,
    /// Bytes of one mapped window.
    pub window: usize,
    /// The most bytes that all windows may map at once.
    pub window_budget: usize,
    /// How long the kernel may trust attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may trust that a name leads to its inode.
    pub entry_timeout: Duration,
    /// How long the kernel may trust that a name does not exist; zero asks every time.
    pub negative_timeout: Duration,
    /// Whether `.copy` and `.corfs` exist, and whether `.copy` is listed.
    pub control: Control,
    /// The name of the control file in every directory.
    pub control_name: OsString,
    /// The kernel checks modes and owners.
    pub default_permissions: bool,
    /// Users other than the mount's owner may come in.
    pub allow_other: bool,
}

/// How reads are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// From mapped windows.
    Mmap,
    /// Through a buffer, by pread.
    Pread,
}

/// Where the control files show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Found by name, never listed.
    Hidden,
    /// Listed in the root directory, found by name everywhere.
    Visible,
    /// There are none.
    Off,
}
