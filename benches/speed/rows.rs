//! The rows: what is measured, how, and what is to be reached.

use std::path::Path;

use crate::Sizes;
use crate::works::{self, nothing};

pub(crate) type Work = fn(&Path, &Sizes);

/// What is done before the time is taken, under it, and after.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    /// On which file systems; none named is the first.
    pub(crate) on: &'static [&'static str],
    /// Options of the mount.
    pub(crate) options: &'static str,
    pub(crate) before: Work,
    /// Seconds between `before` and `work`: more than the kernel's trust, which is one.
    pub(crate) pause: u64,
    pub(crate) work: Work,
    pub(crate) after: Work,
    /// So much of the native speed at least, or 0.9 of the floor's where that is less.
    pub(crate) least: f64,
    /// How many times the size of the large file is made ready in memory: once for each cache that
    /// its bytes go through, the mount's and the source's.
    pub(crate) caches: u64,
}

const PLAIN: Row = Row {
    what: "",
    on: &[],
    options: "",
    before: nothing,
    pause: 0,
    work: nothing,
    after: nothing,
    least: 0.0,
    caches: 1,
};

const PASSED: Row = Row {
    options: "passthrough=always",
    least: 0.97,
    ..PLAIN
};

const KEPT_BACK: Row = Row {
    options: "writeback=on",
    ..PLAIN
};

const WATCHED: Row = Row {
    options: "coherence=watch",
    pause: 2,
    ..PLAIN
};

const FILES: &[&str] = &["xfs"];

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    Row { what: "sequential 1 MiB, buffered", work: works::sequential, least: 0.30, ..PLAIN },
    Row { what: "sequential 1 MiB, O_DIRECT", on: &["tmpfs"], work: works::direct, least: 0.50, ..PLAIN },
    Row { what: "random 4 KiB, one reader", work: works::random, least: 0.05, ..PLAIN },
    Row { what: "random 4 KiB, four readers", work: works::random_four, least: 0.09, ..PLAIN },
    Row { what: "mmap, in order", work: works::mapped_in_order, least: 0.10, ..PLAIN },
    Row { what: "mmap, at random", work: works::mapped_at_random, least: 0.03, ..PLAIN },
    Row { what: "read again", before: works::sequential, work: works::sequential, least: 0.90, ..PLAIN },
    Row { what: "passthrough: sequential", work: works::sequential, ..PASSED },
    Row { what: "passthrough: random, one reader", work: works::random, ..PASSED },
    Row { what: "passthrough: random, four readers", work: works::random_four, ..PASSED },
    Row { what: "passthrough: mmap, in order", work: works::mapped_in_order, ..PASSED },
    Row { what: "passthrough: mmap, at random", work: works::mapped_at_random, ..PASSED },
    Row { what: "write and fsync", work: works::write, after: works::remove_written, caches: 2, least: 0.55, ..PLAIN },
    Row { what: "writeback: write and fsync", work: works::write, after: works::remove_written, caches: 2, least: 0.55, ..KEPT_BACK },
    Row { what: "write 4 KiB", work: works::write_small, after: works::remove_written, least: 0.02, ..PLAIN },
    Row { what: "writeback: write 4 KiB", work: works::write_small, after: works::remove_written, least: 0.30, ..KEPT_BACK },
    Row { what: "passthrough: write and fsync", work: works::write, after: works::remove_written, caches: 2, least: 0.95, ..PASSED },
    Row { what: "create", on: FILES, work: works::create, after: works::remove_made, least: 0.20, ..PLAIN },
    Row { what: "stat, fresh mount", on: FILES, work: works::stat, least: 0.10, ..PLAIN },
    Row { what: "stat again, watched", on: FILES, before: works::stat, work: works::stat, least: 0.80, ..WATCHED },
    Row { what: "readdir and lstat", on: FILES, work: works::list, least: 0.25, ..PLAIN },
    Row { what: "open, read, close", on: FILES, work: works::open_read, least: 0.10, ..PLAIN },
    Row { what: "unlink", on: FILES, before: works::create, work: works::unlink, after: works::remove_made, least: 0.30, ..PLAIN },
    Row { what: "find", on: FILES, work: works::find, least: 0.20, ..PLAIN },
    Row { what: "find again, watched", on: FILES, before: works::find, work: works::find, least: 0.60, ..WATCHED },
    Row { what: "grep -r", on: FILES, work: works::grep, least: 0.15, ..PLAIN },
    Row { what: "grep -r again, watched", on: FILES, before: works::grep, work: works::grep, least: 0.30, ..WATCHED },
    Row { what: "untar", on: FILES, work: works::untar, after: works::remove_out, least: 0.20, ..PLAIN },
    Row { what: "cp -a", on: FILES, work: works::copy, after: works::remove_out, least: 0.70, ..PLAIN },
    Row { what: "rm -rf", on: FILES, before: works::copy, work: works::remove_out, least: 0.40, ..PLAIN },
];
