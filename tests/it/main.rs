//! The integration tests: one binary, one module a family, real mounts and real files.
//!
//! What a test needs beyond a temporary folder it asks for with [`support::require`]; without it
//! the test says `SKIP` and passes, or fails under `CORFS_REQUIRE_ALL=1`. The size of the long
//! ones follows `CORFS_SOAK` (see [`support::soak`]).

#![allow(
    dead_code,
    reason = "not every helper is used by every set of families"
)]

mod abuse;
mod bench;
mod cached;
mod callers;
mod ceilings;
mod children;
mod coherence;
mod command;
mod control;
mod copying;
mod direct;
mod fuzz;
mod inspect;
mod life;
mod limits;
mod mirror;
mod offline;
mod oplog;
mod passthrough;
mod posix;
mod programs;
mod reads;
mod sandbox;
mod semantics;
mod slow;
mod stairs;
mod storm;
mod suites;
mod support;
mod validity;
mod writeback;
