//! Into a temporary file, which takes its place at once.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Stat, ftruncate};

use super::Order;
use super::course::{Ground, fill};
use crate::copy::publish::Temporary;
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

/// On any error nothing has changed and nothing is left.
pub(super) fn copy(source: &Source, target: &Target, order: &Order<'_>) -> Result<Temporary> {
    let directory = target.directory.as_fd();
    let temporary = Temporary::create(directory)?;
    if let Err(fail) = fill(source, &Fresh(&temporary), order) {
        temporary.discard(directory);
        return Err(fail);
    }
    Ok(temporary)
}
