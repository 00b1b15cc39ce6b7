//! The copy of one file, through a mount: what it promises, whatever befalls it.

mod changing;
mod crash;
mod full;
mod hanging;
mod resume;
mod stored;

use std::fs;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{Mount, content, read_file, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

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
