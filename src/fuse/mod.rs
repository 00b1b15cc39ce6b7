//! The only rooms that know FUSE: the adapter, the session, the control files.

pub mod adapter;
mod aside;
mod beside;
mod busy_poll;
mod control;
mod convert;
mod listing;
mod lock_waits;
mod notifier;
mod opened;
mod oplog;
mod passthrough;
mod prune;
mod serve;
pub mod session;
mod shared;
mod watching;
mod workers;
