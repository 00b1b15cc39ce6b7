//! Copies within the source's own file system, asked for by a line in a `.copy`.

pub mod language;
mod words;
