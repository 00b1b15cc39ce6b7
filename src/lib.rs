//! corfs, the copy-on-read file system: a mirror served through mapped windows, with copies by
//! control file.
//!
//! The house (imports go down the stairs only; `tests/it/stairs.rs` holds the code to it):
//!
//! ```text
//! main, cli   words of the command line, wiring
//! fuse        the only rooms that know FUSE: adapter, session, control files
//! mirror      the mirrored tree: inodes, names, attributes, open files, callers
//! cache       the copy-on-read store: blocks of the source on local disk
//! copy        the copy engine and the `.copy` language
//! window      mapped windows with a byte budget, the SIGBUS guard
//! sys         system calls that no crate wraps, and the error type of all floors
//! observe     counters and histograms, used by every floor
//! ```

pub mod cache;
pub mod cli;
pub mod copy;
pub mod fuse;
pub mod mirror;
pub mod observe;
pub mod sys;
pub mod window;
