//! The few system calls that no crate wraps, and the error type that all floors share.

pub mod creds;
mod fail;
pub mod handle;
pub mod process;
pub mod watch;

pub use fail::{Errno, Fail, OrFail, Result};
