//! One unchanging state of the source, wherever its bytes go.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Stat, fstat};

use super::moving::Pass;
use super::{Order, verify};
use crate::copy::attributes;
use crate::copy::resolve::Source;
use crate::sys::{Errno, Fail, OrFail, Result};

/// A source that changes under the copy gets this many attempts.
const ATTEMPTS: usize = 2;

/// Where the bytes go.
pub(super) trait Ground: Sync {
    /// Open for reading and writing.
    fn file(&self) -> BorrowedFd<'_>;

    /// Whether nobody had this file before.
    fn is_new(&self) -> bool {
        true
    }

    /// An attempt at this state of the source begins. Answers what is there already.
    fn begin(&self, source: &Stat) -> Result<Vec<Range<u64>>>;

    /// Whether it is to hear what has been written.
    fn listens(&self) -> bool {
        false
    }

    /// These bytes have been written. Called by any thread that moves bytes.
    fn written(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    /// All bytes of that state have been written.
    fn complete(&self, _source: &Stat) -> Result<()> {
        Ok(())
    }

    /// The attempt was in vain, and another one follows.
    fn start_over(&self) -> Result<()>;
}

/// Fills a place with one state of the source, reads it again if that is asked for, and gives it
/// its attributes. On disk when this returns, with `sync`.
pub(super) fn fill(source: &Source, ground: &dyn Ground, order: &Order<'_>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let before = fstat(&source.file).or_fail("fstat")?;
        let already = ground.begin(&before)?;
        let listen = |range| ground.written(range);
        let mut pass = Pass::new(source.file.as_fd(), ground.file(), &before, order);
        if !already.is_empty() {
            pass = pass.already(&already);
        }
        if ground.listens() {
            pass = pass.on_done(&listen);
        }
        let outcome = pass
            .run()
            .and_then(|()| check(source, ground, &before, order));
        match &outcome {
            // A page that was lost may have been truncated away: that is a change, too.
            Err(fail) if fail.errno != Errno::IO => return outcome,
            Err(_) | Ok(()) => {}
        }
        let after = fstat(&source.file).or_fail("fstat")?;
        if unchanged(&before, &after) {
            outcome?;
            return settle(source, ground, &before, order);
        }
        pass.take_back();
        ground.start_over()?;
        order.progress.check()?;
    }
    Err(Fail::new(Errno::BUSY, "copy").because("the source changed while copying"))
}

fn check(source: &Source, ground: &dyn Ground, before: &Stat, order: &Order<'_>) -> Result<()> {
    ground.complete(before)?;
    if order.options.verify {
        verify::verify(source.file.as_fd(), ground.file(), before, order)?;
    }
    order.progress.check()
}

fn settle(source: &Source, ground: &dyn Ground, before: &Stat, order: &Order<'_>) -> Result<()> {
    let (from, to) = (source.file.as_fd(), ground.file());
    if order.options.sync {
        // What takes long goes first: a part that has got its mode is about to be published.
        let sync = || rustix::fs::fdatasync(to);
        order.progress.at_length(sync).or_fail("fdatasync")?;
        order.progress.check()?;
    }
    let (preserve, is_new) = (order.options.preserve, ground.is_new());
    attributes::keep(from, (&source.stat, before), to, preserve, is_new)?;
    if order.options.sync {
        let sync = || rustix::fs::fsync(to);
        order.progress.at_length(sync).or_fail("fsync")?;
    }
    order.progress.at_length(|| crate::sys::flush(to))?;
    order.progress.check()
}

pub(super) fn unchanged(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| {
        (
            stat.st_size,
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        )
    };
    state(before) == state(after)
}

pub(super) fn same() -> Fail {
    Fail::new(Errno::INVAL, "copy").because("source and destination are the same file")
}
