//! Copies within the source's own file system, asked for by a line in a `.copy`.
//!
//! The way of a copy: [`ControlHandle::write`] takes bytes, `lines` makes lines of them,
//! [`language`] reads a line, `jobs` gives the copy its turn, `resolve` opens what it names beneath
//! the mounted tree and under the opener's credentials, `engine` moves the bytes into a temporary
//! file, `publish` puts that in its place. `jobs` keeps the list that `cat .copy` and
//! `.corfs/jobs.json` show, and cancels for those who are told to stop; `clerks` are the threads
//! that read lines. A new method is a variant of [`options::Method`] and a branch in the engine's
//! chunk.

mod attributes;
mod clerks;
mod control;
mod engine;
mod extents;
mod jobs;
pub mod language;
mod leftovers;
mod lines;
mod local;
pub mod options;
pub mod progress;
mod publish;
mod resolve;
pub mod tree;
mod unseen;

pub use control::{ControlHandle, Jobs, JobsOptions, Root, Tell, WriteBack, Writer};
pub use engine::Order;
pub use engine::copy_range;
pub use local::Local;
pub use resolve::{Change, Target, Tree};
