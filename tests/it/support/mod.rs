//! What every family of tests leans on: needs, scratch folders, mounts and loop devices that
//! clean up after themselves, and file content that can be checked at any offset.

mod commands;
mod content;
mod devices;
mod faulty;
mod mounts;
mod needs;
mod scratch;
mod stats;

pub(crate) use commands::*;
pub(crate) use content::*;
pub(crate) use devices::*;
pub(crate) use faulty::{Faults, FaultySource, On};
pub(crate) use mounts::*;
pub(crate) use needs::*;
pub(crate) use scratch::*;
pub(crate) use stats::*;
