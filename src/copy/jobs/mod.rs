//! The jobs of a mount: what runs, what waits, what was done.
//!
//! The [`Registry`] has the list; its supervisor, one thread while there are jobs, gives them their
//! turns, looks after those who wait for them, and answers for those whose thread does not come
//! back. `view` is what others see of a job, as text for people and as JSON for programs.

mod job;
mod registry;
mod shares;
mod supervisor;
mod table;
mod text;
mod view;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) use job::Job;
pub(super) use registry::{New, Registry, Waited, closed};
pub(super) use shares::{Shares, Turns};

use crate::sys::{Errno, Fail, Result};

/// A panic in a copy is EIO for the one who waits for it, who else would wait for ever.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(defect()))
}

fn defect() -> Fail {
    Fail::new(Errno::IO, "copy").because("a defect; see the log")
}
