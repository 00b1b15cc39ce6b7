//! Sizes of windows: pure arithmetic.

use crate::sys::{Errno, Fail, Result};

/// The smallest window, in bytes: the kernel faults around 64 KiB at a time, so that a smaller one
/// would cost an mmap for nothing.
const SMALLEST: usize = 64 << 10;

/// How many of the largest windows the budget must hold at least, where it can: one in use, one
/// readied ahead, and the same for a second reader.
const WANTED: usize = 4;

/// Sizes of the windows and the ceiling of what they map together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOptions {
    /// The wanted size of a window in bytes; the one in force may be smaller
    /// ([`WindowOptions::effective_window`]).
    pub window: usize,
    /// Bytes that may be mapped at once.
    pub budget: usize,
    /// The longest request in bytes.
    pub max_read: usize,
}

impl Default for WindowOptions {
    /// Windows of 4 MiB, 256 MiB in all, requests up to the 1 MiB that FUSE sends.
    fn default() -> Self {
        Self {
            window: 4 << 20,
            budget: 256 << 20,
            max_read: 1 << 20,
        }
    }
}

impl WindowOptions {
    /// Whether a cache can be made of these values.
    ///
    /// # Errors
    ///
    /// EINVAL, with words that name the value, for a window below 64 KiB or not a multiple of the
    /// page, for a budget that cannot hold one smallest window, for requests of no bytes.
    pub fn check(&self) -> Result<()> {
        let page = rustix::param::page_size();
        let smallest = SMALLEST.saturating_add(self.tail());
        let reason = if self.max_read == 0 {
            "the longest request must be at least one byte".to_owned()
        } else if self.window < SMALLEST {
            format!("window={} is below {SMALLEST} bytes", self.window)
        } else if !self.window.is_multiple_of(page) {
            format!("window={} is no multiple of {page} bytes", self.window)
        } else if self.budget < smallest {
            format!(
                "window_budget={} is below {smallest} bytes, a smallest window and its tail",
                self.budget
            )
        } else {
            return Ok(());
        };
        Err(Fail::new(Errno::INVAL, "window options").because(reason))
    }

    /// The size of the windows in force, in bytes: the largest power of two, not above the wanted
    /// size and not below 64 KiB, of which (each with its tail) four fit into the budget. If not
    /// even four smallest fit, smallest ones, as many as fit.
    pub fn effective_window(&self) -> usize {
        let mut window = 1_usize << self.window.max(SMALLEST).ilog2();
        while window > SMALLEST && window.saturating_add(self.tail()) > self.budget / WANTED {
            window /= 2;
        }
        window
    }

    /// The overlap of a window with the next, in bytes: the longest request, in whole pages.
    fn tail(&self) -> usize {
        self.max_read
            .checked_next_multiple_of(rustix::param::page_size())
            .unwrap_or(usize::MAX)
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            window: self.effective_window() as u64,
            tail: self.tail() as u64,
            page: rustix::param::page_size() as u64,
        }
    }
}

/// Where windows lie in a file; all in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) window: u64,
    tail: u64,
    page: u64,
}

/// What one window maps of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) index: u64,
    /// Where the window begins in the file, in bytes.
    pub(super) offset: u64,
    /// Bytes mapped, whole pages.
    pub(super) len: usize,
}

impl Geometry {
    /// The window that a request at `start` is answered from, in a file of `size` bytes; `None`
    /// from the end of the file on.
    ///
    /// The file's last page is mapped whole: the bytes behind the end are zeros that nobody asks
    /// for, and a file that grows within that page needs no new window.
    pub(super) fn span(&self, start: u64, size: u64) -> Option<Span> {
        if start >= size {
            return None;
        }
        let index = start / self.window;
        let offset = index * self.window;
        let whole = offset.checked_add(self.window)?.saturating_add(self.tail);
        let end = whole.min(size.checked_next_multiple_of(self.page)?);
        Some(Span {
            index,
            offset,
            len: usize::try_from(end - offset).ok()?,
        })
    }

    /// Whether a request that ends at `end` has reached the second half of its window, and the
    /// file goes on behind that window: then the start of the next window.
    pub(super) fn next(&self, span: &Span, end: u64, size: u64) -> Option<u64> {
        let next = span.offset.checked_add(self.window)?;
        (end > span.offset + self.window / 2 && next < size).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K: usize = 1 << 10;
    const M: usize = 1 << 20;

    fn options(window: usize, budget: usize, max_read: usize) -> WindowOptions {
        WindowOptions {
            window,
            budget,
            max_read,
        }
    }

    #[test]
    fn a_window_shrinks_until_four_fit() {
        for (window, budget, max_read, effective) in [
            (4 * M, 256 * M, M, 4 * M),
            (4 * M, 20 * M, M, 4 * M),
            (4 * M, 20 * M - 1, M, 2 * M),
            (5 * M, 256 * M, M, 4 * M),
            (4 * M, 8 * M, M, M),
            (4 * M, 2 * M, M, 64 * K),
            (64 * K, 256 * M, M, 64 * K),
            (M, 8 * M, 1, M),
        ] {
            let options = options(window, budget, max_read);
            assert_eq!(options.check().map_err(|e| e.to_string()), Ok(()));
            assert_eq!(options.effective_window(), effective, "{options:?}");
        }
    }

    #[test]
    fn impossible_values_are_named() {
        for (options, word) in [
            (options(32 * K, 256 * M, M), "window=32768"),
            (options(64 * K + 1, 256 * M, M), "window=65537"),
            (options(M, M, M), "window_budget=1048576"),
            (options(M, 256 * M, 0), "longest request"),
            (options(M, 256 * M, usize::MAX), "window_budget"),
        ] {
            let fail = options.check().expect_err(word);
            assert_eq!(fail.errno, Errno::INVAL);
            assert!(fail.to_string().contains(word), "{fail}");
        }
        WindowOptions::default().check().expect("the defaults");
    }

    proptest! {
        #[test]
        fn every_request_lies_in_the_window_it_starts_in(
            window in 64 * K..8 * M, budget in 2 * M..64 * M, start in 0_u64..1 << 42,
            len in 1..=M as u64, beyond in 0_u64..1 << 30,
        ) {
            let geometry = options(window, budget, M).geometry();
            let size = start + len + beyond;
            let span = geometry.span(start, size).expect("inside");
            prop_assert!(span.offset <= start);
            prop_assert!(start + len <= span.offset + span.len as u64);
            prop_assert!(span.len <= geometry.window as usize + M);
            prop_assert_eq!(span.len % rustix::param::page_size(), 0);
            prop_assert!(span.offset + (span.len as u64) < size + geometry.page);
        }
    }

    #[test]
    fn behind_the_end_there_is_no_window() {
        let geometry = WindowOptions::default().geometry();
        assert_eq!(geometry.span(0, 0), None);
        assert_eq!(geometry.span(5, 5), None);
        assert_eq!(geometry.span(u64::MAX - 1, u64::MAX), None);
        let page = geometry.page as usize;
        assert_eq!(geometry.span(4, 5).expect("inside").len, page);
    }

    #[test]
    fn the_next_window_is_due_in_the_second_half() {
        let geometry = WindowOptions::default().geometry();
        let (size, w) = (10 * M as u64, 4 * M as u64);
        let span = geometry.span(0, size).expect("inside");
        assert_eq!(geometry.next(&span, w / 2, size), None);
        assert_eq!(geometry.next(&span, w / 2 + 1, size), Some(w));
        assert_eq!(geometry.next(&span, w, w), None);
        assert_eq!(geometry.next(&span, w, w + 1), Some(w));
    }
}
