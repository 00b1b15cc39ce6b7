//! The mirrored tree, testable without FUSE.

pub mod options;
