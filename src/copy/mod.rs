//! Copies within the source's own file system, asked for by a line in a `.copy`.

mod extents;
pub mod language;
mod publish;
mod resolve;
mod words;
