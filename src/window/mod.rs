//! Mapped windows of source files, with a ceiling in bytes, and the SIGBUS guard.
//!
//! [`WindowCache`] answers reads: it lends mapped bytes to system calls and touches none. [`Map`]
//! is for the copy engine, which may have to touch mapped bytes itself and then stands under the
//! guard.
//!
//! A window of index `i` maps `[i*W, min((i+1)*W + T, end of file rounded up to a page))`:
//!
//! ```text
//!    0          W          2W         3W      end of file
//!    |          |          |          |       |
//!    [== window 0 ==tail]  |          |       |
//!               [== window 1 ==tail]  |       |
//!                          [== window 2 ==tail]
//!                                     [ win. 3 ]
//! ```
//!
//! The tail `T` (the longest request) makes every request lie wholly in the window that it starts
//! in, hence in one slice: the reply takes one slice, and a shorter reply would tell the kernel
//! that the file ends there.

mod ahead;
mod budget;
mod cache;
mod guard;
mod map;
mod options;
mod table;
#[cfg(test)]
mod tests;

pub use cache::{FileId, MapSlice, Miss, Pattern, WindowCache};
pub use guard::Map;
pub use options::WindowOptions;
