//! What is still to be moved, shared by the workers of one file.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::copy::extents::Extents;
use crate::sys::Result;

/// Hands out the data of a file in parts, in order, each to one worker.
///
/// A part never crosses a multiple of `unit`. Nobody holds a lock while he asks the kernel where
/// data is: he who finds the cursor moved meanwhile asks again.
pub(super) struct Plan<'a> {
    source: BorrowedFd<'a>,
    size: u64,
    unit: u64,
    /// Holes are data.
    solid: bool,
    /// In order, not overlapping.
    already: &'a [Range<u64>],
    at: AtomicU64,
}

/// The stretch of data that one worker found last.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) extent: Range<u64>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        source: BorrowedFd<'a>,
        range: Range<u64>,
        unit: u64,
        solid: bool,
        already: &'a [Range<u64>],
    ) -> Self {
        Self {
            source,
            size: range.end,
            unit,
            solid,
            already,
            at: AtomicU64::new(range.start),
        }
    }

    /// The next part, or nothing when all are given out.
    pub(super) fn claim(&self, walk: &mut Walk) -> Result<Option<Range<u64>>> {
        loop {
            let at = self.at.load(Ordering::Relaxed);
            let Some(part) = self.part(at, walk)? else {
                return Ok(None);
            };
            let claimed =
                self.at
                    .compare_exchange(at, part.end, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_ok() {
                return Ok(Some(part));
            }
        }
    }

    /// What is likely to be claimed next, as far as this worker knows the data.
    pub(super) fn ahead(&self, walk: &Walk) -> Option<Range<u64>> {
        let at = self.at.load(Ordering::Relaxed).max(walk.extent.start);
        let end = walk.extent.end.min(at.saturating_add(self.unit));
        (at < end).then_some(at..end)
    }

    fn part(&self, mut at: u64, walk: &mut Walk) -> Result<Option<Range<u64>>> {
        loop {
            at = self.past_already(at);
            if !self.find(at, walk)? {
                return Ok(None);
            }
            let extent = &walk.extent;
            let start = self.past_already(at.max(extent.start));
            if start < extent.end {
                let unit = (start / self.unit + 1).saturating_mul(self.unit);
                let end = extent.end.min(unit).min(self.next_already(start));
                return Ok(Some(start..end));
            }
            at = start;
        }
    }

    /// Looks up the stretch of data at or after `at`. False when there is none.
    fn find(&self, at: u64, walk: &mut Walk) -> Result<bool> {
        if at >= self.size {
            return Ok(false);
        }
        if !walk.extent.contains(&at) {
            let next = if self.solid {
                Some(at..self.size)
            } else {
                let mut extents = Extents::starting(self.source, at, self.size);
                extents.next().transpose()?
            };
            match next {
                Some(extent) => walk.extent = extent,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn past_already(&self, at: u64) -> u64 {
        let before = self.already.partition_point(|range| range.end <= at);
        // Ranges may touch each other.
        self.already[before..]
            .iter()
            .take_while({
                let mut end = at;
                move |range| {
                    let touches = range.start <= end;
                    end = end.max(range.end);
                    touches
                }
            })
            .fold(at, |at, range| at.max(range.end))
    }

    fn next_already(&self, at: u64) -> u64 {
        let before = self.already.partition_point(|range| range.end <= at);
        self.already.get(before).map_or(u64::MAX, |next| next.start)
    }
}

/// How many bytes of `range` lie in `already`.
pub(super) fn overlap(already: &[Range<u64>], range: &Range<u64>) -> u64 {
    let first = already.partition_point(|part| part.end <= range.start);
    already[first..]
        .iter()
        .take_while(|part| part.start < range.end)
        .map(|part| part.end.min(range.end) - part.start.max(range.start))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_all_but_what_is_already_there(
            size in 1u64..5000,
            unit in 1u64..700,
            cuts in prop::collection::btree_set(0u64..5000, 0..12),
        ) {
            let file = tempfile::tempfile().unwrap();
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let already: Vec<_> = cuts.chunks_exact(2).map(|ends| ends[0]..ends[1]).collect();
            let plan = Plan::new(file.as_fd(), 0..size, unit, true, &already);
            let (mut one, mut two) = (Walk::default(), Walk::default());
            let mut seen = vec![0u8; size as usize];
            let mut turn = 0;
            loop {
                turn += 1;
                let walk = if turn % 3 == 0 { &mut one } else { &mut two };
                let Some(part) = plan.claim(walk).unwrap() else { break };
                prop_assert!(part.start < part.end);
                prop_assert_eq!(part.start / unit, (part.end - 1) / unit);
                seen[part.start as usize..part.end as usize].iter_mut().for_each(|n| *n += 1);
            }
            for (at, count) in seen.iter().enumerate() {
                let there = already.iter().any(|range| range.contains(&(at as u64)));
                prop_assert_eq!(*count, u8::from(!there), "byte {}", at);
            }
            let there = seen.iter().filter(|count| **count == 0).count() as u64;
            prop_assert_eq!(overlap(&already, &(0..size)), there);
        }
    }

    #[test]
    fn what_touches_is_passed_in_one_step() {
        let file = tempfile::tempfile().unwrap();
        let already = [0..5, 5..9, 9..10, 12..13];
        let plan = Plan::new(file.as_fd(), 0..20, 100, true, &already);
        let mut walk = Walk::default();
        let mut parts = Vec::new();
        while let Some(part) = plan.claim(&mut walk).unwrap() {
            parts.push(part);
        }
        assert_eq!(parts, [10..12, 13..20]);
    }
}
