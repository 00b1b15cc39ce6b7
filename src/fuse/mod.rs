//! The only rooms that know FUSE.

pub mod session;
