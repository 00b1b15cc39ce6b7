//! The bytes of one file, by the best method that goes.
//!
//! First the extents are shared, where that is wanted and possible. What is left goes down a ladder
//! of methods: one that says "not possible here" leaves the rest to the next, and only the last
//! one's errors, and real ones (a full disk, a broken one), end the copy.
//!
//! - `share` reflink; `reserve` space before work; `plan` who moves what
//! - `course` the workers and the ladder; `workers` how many there are
//! - `mapped`, `buffered`, and `shared` for copy-range: the methods; `direct` O_DIRECT

mod buffered;
mod course;
mod direct;
mod mapped;
mod plan;
mod reserve;
pub(in crate::copy) mod shared;
mod workers;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Stat, fstat, ftruncate};
use rustix::param::page_size;

use self::course::Course;
use self::direct::Direct;
use self::plan::Plan;
use super::Order;
use crate::copy::options::{CopyOptions, Method, Reflink, Sparse};
use crate::copy::progress::Progress;
use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::Map;

/// Files up to this many bytes go through a buffer unless a method is named: to map and reserve
/// would cost more than to copy.
const SMALL: u64 = 64 << 10;
/// Bytes of one copy_file_range at least: a server may sync after each.
const RANGE: u64 = 32 << 20;

/// What is called for each range that has been written, by whoever wrote it.
type OnDone<'a> = &'a (dyn Fn(Range<u64>) -> Result<()> + Sync);

/// One attempt. The destination is open for reading and writing, and has no data but what
/// [`Pass::already`] names, or none where the source has holes (in place).
pub(super) struct Pass<'a> {
    source: BorrowedFd<'a>,
    destination: BorrowedFd<'a>,
    size: u64,
    /// Bytes that the source has on disk, at most `size`.
    allocated: u64,
    order: &'a Order<'a>,
    already: &'a [Range<u64>],
    on_done: Option<OnDone<'a>>,
    /// What this attempt has added to the progress: bytes done, bytes in all.
    counted: (AtomicU64, AtomicU64),
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        source: BorrowedFd<'a>,
        destination: BorrowedFd<'a>,
        stat: &Stat,
        order: &'a Order<'a>,
    ) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Self {
            source,
            destination,
            size,
            allocated: u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512)
                .min(size),
            order,
            already: &[],
            on_done: None,
            counted: Default::default(),
        }
    }

    /// Parts that the destination has already: in order, not overlapping. They are not moved again
    /// (unless extents are shared: then all are), and count as done.
    pub(super) fn already(mut self, ranges: &'a [Range<u64>]) -> Self {
        self.already = ranges;
        self
    }

    /// Has `f` called with each range of data when it has been written (or is shared), by the
    /// worker who wrote it; in no order. Its failure ends the pass.
    pub(super) fn on_done(mut self, f: OnDone<'a>) -> Self {
        self.on_done = Some(f);
        self
    }

    /// Takes back what this attempt has counted: its work is thrown away.
    pub(super) fn take_back(&self) {
        let (done, total) = &self.counted;
        let taken = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        self.progress().take_back(taken(done), taken(total));
    }

    fn progress(&self) -> &Progress {
        self.order.progress
    }

    /// Moves the bytes; the destination then has the source's size.
    ///
    /// # Errors
    /// EINVAL for options that contradict each other; EINTR when cancelled; ENOSPC, mostly before
    /// the first byte; EIO for a part of the source that can't be had; with `--reflink=always` what
    /// the file system says; else the kernel's own.
    pub(super) fn run(&self) -> Result<()> {
        let options = self.order.options;
        check(options)?;
        self.set_size()?;
        if self.size == 0 && options.reflink != Reflink::Always {
            self.progress().set_method(Method::ReadWrite);
            return self.stream();
        }
        let shared = if shares(options) { self.share()? } else { 0 };
        if shared == self.size {
            // Of an empty file nothing is shared, and what stands in its copy's place stays.
            return match self.size {
                0 => ftruncate(self.destination, 0).or_fail("ftruncate"),
                _ => Ok(()),
            };
        }
        let direct = Direct::new(self.source, self.destination, options.direct);
        let moved = self.rest(shared, &direct);
        direct.end();
        moved
    }

    /// A file that is written in place keeps what it has beyond, until all else is done.
    fn set_size(&self) -> Result<()> {
        if self.order.options.inplace {
            let own = fstat(self.destination).or_fail("fstat")?;
            if u64::try_from(own.st_size).unwrap_or(0) >= self.size {
                return Ok(());
            }
        }
        ftruncate(self.destination, self.size).or_fail("ftruncate")
    }

    /// Moves what is left from `start` on.
    fn rest(&self, start: u64, direct: &Direct<'_>) -> Result<()> {
        let options = self.order.options;
        let small = self.size <= SMALL && options.method.is_none();
        let kinds = if small {
            (0, 0)
        } else {
            (shared::kind(self.source), shared::kind(self.destination))
        };
        let ladder = self.ladder(kinds, direct.is_on());
        let first = ladder.first().copied();
        // A small file with as many blocks as it can use has no hole, or one that costs its source
        // as much. In memory blocks are pages, and to look for holes is to look at each of them: it
        // took 7 % of the time of a copy on tmpfs.
        let solid = options.sparse == Sparse::Never
            || options.sparse == Sparse::Auto
                && self.allocated == self.size
                && (small || shared::is_memory(kinds.0));
        // How much of it is zeros nobody knows; what the file system shares needs no space; and a
        // single small write finds a full disk by itself.
        let reserve = options.sparse != Sparse::Always
            && !small
            && (first != Some(Method::CopyRange) || shared::never_shares(kinds.1));
        self.survey(start..self.size, solid, reserve)?;
        let mut unit = options.chunk;
        if first == Some(Method::CopyRange) {
            unit = unit.max(RANGE);
        }
        let unit = unit.next_multiple_of((page_size() as u64).max(direct.align()));
        let plan = Plan::new(self.source, start..self.size, unit, solid, self.already);
        Course::new(self, plan, unit, &ladder, direct, kinds).run()
    }

    /// The methods to try, from the best down.
    fn ladder(&self, kinds: (u64, u64), direct: bool) -> Vec<Method> {
        let options = self.order.options;
        let bytes_of_its_own = shared::never_shares(kinds.0) && shared::never_shares(kinds.1);
        let ranges = match options.sparse {
            Sparse::Always => false,
            Sparse::Auto => options.reflink != Reflink::Never || bytes_of_its_own,
            Sparse::Never => bytes_of_its_own,
        };
        let mut ladder = Vec::with_capacity(3);
        match options.method {
            // Past the page cache there is one way.
            _ if direct => {}
            Some(Method::ReadWrite) => {}
            Some(Method::CopyRange) if ranges => ladder.push(Method::CopyRange),
            // A store to a mapping fills the hole that it falls into.
            Some(Method::MapMap) if options.sparse != Sparse::Always => {
                ladder.push(Method::MapMap);
            }
            None if self.size <= SMALL => {}
            None | Some(Method::Reflink)
                if ranges && kinds.0 == kinds.1 && shared::copies_at_the_server(kinds.0) =>
            {
                ladder.push(Method::CopyRange);
            }
            _ => ladder.push(Method::MapWrite),
        }
        if matches!(ladder.first(), Some(Method::CopyRange | Method::MapMap)) {
            ladder.push(Method::MapWrite);
        }
        ladder.push(Method::ReadWrite);
        ladder
    }

    /// Files of procfs and of some FUSE file systems can't be mapped.
    fn is_mappable(&self) -> Result<bool> {
        match Map::read(self.source, 0, page_size()) {
            Ok(_) => Ok(true),
            Err(fail) if fail.errno == Errno::NODEV => Ok(false),
            Err(fail) => Err(fail),
        }
    }

    /// Bytes that moved: they count towards a limit.
    fn count(&self, bytes: u64) -> Result<()> {
        self.order.metrics.copied(bytes);
        self.counted.0.fetch_add(bytes, Ordering::Relaxed);
        self.progress().spend(bytes)
    }

    /// Bytes that are done without having moved.
    fn add_done(&self, bytes: u64) {
        self.counted.0.fetch_add(bytes, Ordering::Relaxed);
        self.progress().add_bytes_done(bytes);
    }

    fn add_total(&self, bytes: u64) {
        self.counted.1.fetch_add(bytes, Ordering::Relaxed);
        self.progress().add_bytes_total(bytes);
    }

    fn done(&self, range: Range<u64>) -> Result<()> {
        match self.on_done {
            Some(told) if !range.is_empty() => told(range),
            _ => Ok(()),
        }
    }
}

/// Extents are shared with the holes between them, and with no other method beside it.
fn shares(options: &CopyOptions) -> bool {
    let named = matches!(options.method, None | Some(Method::Reflink));
    named && options.reflink != Reflink::Never && options.sparse == Sparse::Auto
}

/// EINVAL for what contradicts itself.
fn check(options: &CopyOptions) -> Result<()> {
    if options.reflink == Reflink::Always && !shares(options) {
        return Err(Fail::new(Errno::INVAL, "copy")
            .because("--reflink=always leaves no other method, and holes as they are"));
    }
    Ok(())
}

fn lost(at: u64) -> Fail {
    Fail::new(Errno::IO, "copy").because(format!("the source's bytes at {at} can't be had"))
}

#[cfg(test)]
mod tests;
