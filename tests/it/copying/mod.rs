//! Copies: of one file through a mount, what it promises, whatever befalls it; of trees by the
//! library, as a mount makes them, without a mount.

mod attributes;
mod backups;
mod changing;
mod crash;
mod disks;
mod ends;
mod errors;
mod full;
mod hanging;
mod meanwhile;
mod methods;
mod oddities;
mod options;
mod phases;
mod races;
mod ranges;
mod resume;
mod seen;
mod stored;
mod storms;
mod trees;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use corfs::copy::options::{CopyOptions, Preserve};
use corfs::copy::progress::{Failure, Progress};
use corfs::copy::tree::copy_all;
use corfs::copy::{Order, Tree};
use corfs::observe::Metrics;
use corfs::sys::Fail;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{Mount, content, read_file, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

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
        told: &|_| {},
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

/// Writes one line into the `.copy` of a directory.
fn tell(dir: &Path, line: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join(".copy"), flags, Mode::from_raw_mode(0o666))?;
    rustix::io::write(&file, format!("{line}\n").as_bytes()).map(|_| ())
}

/// The same, on a thread of its own.
fn telling(dir: &Path, line: &str) -> JoinHandle<Result<(), Errno>> {
    let (dir, line) = (dir.to_owned(), line.to_owned());
    std::thread::spawn(move || tell(&dir, &line))
}

/// Tells, and does `then` when some bytes are done. Answers how the copy ended.
#[track_caller]
fn during(mount: &Mount, line: &str, then: impl FnOnce()) -> Result<(), Errno> {
    let before = moved(mount);
    let copy = telling(mount.path(), line);
    wait_until("the copy is under way", PATIENCE, || {
        moved(mount) > before || copy.is_finished()
    });
    assert!(
        !copy.is_finished(),
        "the copy was over before anything befell it"
    );
    then();
    copy.join().unwrap()
}

/// The bytes that the copies of a mount have moved.
fn moved(mount: &Mount) -> u64 {
    mount.stats().value("corfs_copy_bytes_total", &[]) as u64
}

/// All names in a directory, also hidden ones.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_file(path: &Path, seed: u64, size: u64) {
    let bytes = read_file(path);
    assert!(
        bytes.len() as u64 == size && bytes == content(seed, 0, size as usize),
        "{}: {} bytes, or others than those of {seed}",
        path.display(),
        bytes.len()
    );
}
