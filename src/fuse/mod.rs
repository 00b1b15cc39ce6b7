//! The only rooms that know FUSE: the adapter, the session, the control files.

pub mod adapter;
mod aside;
mod control;
mod convert;
mod lock_waits;
mod notifier;
pub mod session;
mod shared;
mod watching;
