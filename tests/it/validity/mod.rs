//! The copy-on-read cache while all goes well: what is served from it, when it is held against the
//! source, and in which way files are served.

mod broken;
mod changes;
mod modes;
mod reading;
mod refusals;
mod told;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::*;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A source, a cache, and the ways to mount them. Files that were made just now are kept all the
/// same, unless a test says otherwise.
struct World {
    source: Scratch,
    cache: Scratch,
}

impl World {
    fn new() -> Self {
        let (source, cache) = (Scratch::new(), Scratch::new());
        set_mode(cache.path(), 0o700);
        Self { source, cache }
    }

    fn mount(&self) -> MountBuilder {
        Mount::of(self.source.path()).opt(format!(
            "cache={},cache_id=test,racy=0,cache_size=1G,cache_free=0",
            self.cache.path().display()
        ))
    }

    fn behind(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }
}

fn counted(mount: &Mount, what: &str) -> u64 {
    mount.stats().value(&format!("corfs_cache_{what}"), &[]) as u64
}

fn opens(mount: &Mount, mode: &str) -> u64 {
    mount.stats().value("corfs_opens_total", &[("mode", mode)]) as u64
}

/// Waits until all that was fetched is stored.
#[track_caller]
fn stored(mount: &Mount) {
    wait_until("what was fetched is stored", PATIENCE, || {
        counted(mount, "stored_bytes_total") >= counted(mount, "filled_bytes_total")
    });
}

/// Reads a file of the mount until that asks nothing of the source: all of it is kept. Past the
/// kernel's own pages.
#[track_caller]
fn keep(mount: &Mount, name: &str) -> Vec<u8> {
    let path = mount.path().join(name);
    let read = || {
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).expect("open");
        let mut room = Buffer::new(MIB as usize);
        let mut all = Vec::new();
        loop {
            let bytes = room.bytes(MIB as usize);
            let count = rustix::io::pread(&file, &mut *bytes, all.len() as u64).expect("read");
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&bytes[..count]);
        }
    };
    let mut bytes = read();
    wait_until("all of it is kept", PATIENCE, || {
        let before = counted(mount, "misses_total");
        bytes = read();
        counted(mount, "misses_total") == before
    });
    bytes
}

/// As `assert_eq`, in a few words.
#[track_caller]
fn same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "{what}: where the first byte is wrong");
}

#[track_caller]
fn read_at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).expect("read");
    bytes
}

fn writable(path: &Path) -> File {
    let mut options = File::options();
    let opened = options.read(true).write(true).open(path);
    opened.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Bytes of 64 different letters, so that each version of a file is its own.
fn version(letter: u8, len: u64) -> Vec<u8> {
    (0..len).map(|at| letter ^ (at % 61) as u8).collect()
}

/// A path's parent, listed: names only.
fn names(at: &Path) -> Vec<String> {
    let listed = fs::read_dir(at).expect("opendir");
    let mut names: Vec<String> = listed
        .map(|e| {
            e.expect("readdir")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
