//! A file creation mask for one thread.
//!
//! The mask belongs to the structure that threads of a process share (CLONE_FS); a thread that
//! unshares it has one of its own. So a server can create each file under its caller's mask and
//! leave to the kernel what depends on it: a default ACL overrides the mask (acl(5)).

use std::cell::Cell;

use rustix::fs::Mode;
use rustix::thread::UnshareFlags;

use super::{OrFail, Result};

thread_local! {
    /// This thread's mask, once it has one of its own.
    static OWN: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Sets the mask of the calling thread alone; it stays until the next call.
///
/// # Errors
/// Those of unshare(2), at a thread's first call.
pub fn set(mask: u32) -> Result<()> {
    match OWN.get() {
        Some(own) if own == mask & 0o777 => return Ok(()),
        Some(_) => {}
        None => unshare_fs()?,
    }
    OWN.set(Some(mask & 0o777));
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    Ok(())
}

/// The mask of the calling thread, which has one of its own from now on: it can't be read without
/// being set, and others must not create a file meanwhile.
///
/// # Errors
/// Those of unshare(2), at a thread's first call.
pub fn of_thread() -> Result<u32> {
    if let Some(mask) = OWN.get() {
        return Ok(mask);
    }
    unshare_fs()?;
    let mask = rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    OWN.set(Some(mask.as_raw_mode()));
    Ok(mask.as_raw_mode())
}

fn unshare_fs() -> Result<()> {
    // SAFETY: CLONE_FS separates mask, root and working directory of this thread, and nothing
    // that Rust code shares between threads: descriptors and memory stay common.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.or_fail("unshare")
}
