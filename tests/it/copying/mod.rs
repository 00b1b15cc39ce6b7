//! Copies by the library, as a mount makes them, without a mount.

mod attributes;
mod races;
mod trees;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use corfs::copy::options::{CopyOptions, Preserve};
use corfs::copy::progress::{Failure, Progress};
use corfs::copy::tree::copy_all;
use corfs::copy::{Order, Tree};
use corfs::observe::Metrics;
use corfs::sys::Fail;
use rustix::fs::{Mode, OFlags};

/// `-a`.
fn archive() -> CopyOptions {
    CopyOptions {
        recursive: true,
        preserve: Preserve::ALL,
        ..CopyOptions::default()
    }
}

/// What a copy came to, and what of it failed.
struct Done {
    outcome: Result<(), Fail>,
    failures: Vec<Failure>,
}

impl Done {
    #[track_caller]
    fn well(self) {
        if let Err(fail) = self.outcome {
            panic!("{fail}: {:?}", self.failures);
        }
    }

    /// The path and the errno of everything that failed, in order.
    fn failed(&self) -> Vec<(String, rustix::io::Errno)> {
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let mut failed: Vec<_> = self
            .failures
            .iter()
            .map(|failure| (shown(&failure.path), failure.fail.errno))
            .collect();
        failed.sort_by(|one, other| one.0.cmp(&other.0));
        failed
    }
}

/// Copies beneath `root`, as a line in the `.copy` at its top would.
fn copy(root: &Path, options: &CopyOptions, sources: &[&str], destination: &str) -> Done {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).expect("the root");
    let progress = Progress::default();
    let tree = Tree {
        root: root.as_fd(),
        directory: root.as_fd(),
        mountpoints: &[],
        reserved: Some(OsStr::new(".copy")),
        umask: 0o022,
        published: &|_: BorrowedFd<'_>, _: &OsStr| {},
    };
    let order = Order {
        options,
        progress: &progress,
        metrics: &Metrics::new(),
    };
    let sources: Vec<_> = sources
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let outcome = copy_all(&sources, destination.as_bytes(), &tree, &order);
    let failures = progress.failures().1;
    Done { outcome, failures }
}

/// Copies `from` to `to` again and again, once as new and once over what stands there.
pub(crate) fn copy_for_ever(root: &Path) {
    loop {
        for _ in 0..2 {
            copy(root, &archive(), &["from/."], "to").well();
        }
        let _ = std::fs::remove_dir_all(root.join("to"));
        std::fs::create_dir(root.join("to")).expect("mkdir");
    }
}
