//! Into a temporary file, which takes its place at once.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Stat, ftruncate};

use super::Order;
use super::course::{Ground, fill};
use crate::copy::publish::{Temporary, sync_directory};
use crate::copy::resolve::{Source, Target};
use crate::sys::{OrFail, Result};

struct Fresh<'a>(&'a Temporary);

impl Ground for Fresh<'_> {
    fn file(&self) -> BorrowedFd<'_> {
        self.0.file()
    }

    fn begin(&self, _source: &Stat) -> Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }

    fn start_over(&self) -> Result<()> {
        ftruncate(self.file(), 0).or_fail("ftruncate")
    }
}

/// On any error nothing has changed and nothing is left, save one of the directory's sync.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<()> {
    let directory = target.directory.as_fd();
    let temporary = Temporary::create(directory)?;
    if let Err(fail) = fill(source, &Fresh(&temporary), order) {
        temporary.discard(directory);
        return Err(fail);
    }
    publish(temporary, target, order)
}

/// Puts a filled file in its place, on disk with `sync`.
pub(super) fn publish(temporary: Temporary, target: &Target, order: &Order<'_>) -> Result<()> {
    if !order.options.sync {
        return temporary.publish(target);
    }
    let directory = target.directory.as_fd();
    let file = rustix::io::fcntl_dupfd_cloexec(temporary.file(), 0).or_fail("fcntl")?;
    temporary.publish(target)?;
    sync_directory(directory, file.as_fd())
}
