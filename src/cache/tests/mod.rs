//! A store on a real directory, with sources that are bytes in memory.

mod blocks;
mod budget;
mod counting;
mod policy;
mod processes;

mod trust;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::{Share, SourceClock, SourceKey, StoreOptions};
use super::store::Store;
use super::{Entry, Identity, Ready, Stamp};
use crate::observe::Metrics;
use crate::sys::Result;

const BLOCK: u64 = 64 << 10;

/// A store in `dir` that may take 64 MiB, with blocks of 64 KiB.
pub(super) fn options(dir: &Path) -> StoreOptions {
    let source = SourceKey {
        key: "id:test".into(),
        path: "/".into(),
        about: "type test\n".into(),
        stable_inodes: true,
        clock: SourceClock::Ours,
    };
    StoreOptions {
        size: Share::Bytes(64 << 20),
        free: Share::Bytes(0),
        block: BLOCK as u32,
        ..StoreOptions::new(dir.to_owned(), source)
    }
}

pub(super) fn open(options: &StoreOptions) -> Arc<Store> {
    Store::open(options, Arc::new(Metrics::new())).expect("the store opens")
}

/// The bytes of a file that is told by its path and version.
fn content(path: &str, version: u32, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 8);
    let mut n = 0u64;
    let seed = xxhash_rust::xxh3::xxh3_64(path.as_bytes()) ^ u64::from(version);
    while (bytes.len() as u64) < len {
        bytes.extend(xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed).to_le_bytes());
        n += 1;
    }
    bytes.truncate(len as usize);
    bytes
}

/// Its identity: old enough to be believed.
fn identity(version: u32, len: u64) -> Identity {
    let stamp = Stamp {
        seconds: 1_000_000_000,
        nanos: version,
    };
    Identity {
        size: len,
        mtime: stamp,
        ctime: stamp,
        ino: 7,
    }
}

fn entry(store: &Arc<Store>, path: &str, version: u32, len: u64) -> Arc<Entry> {
    let entry = store.entry(path.as_bytes(), &identity(version, len));
    entry.expect("there is an entry")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A source that has all of `bytes`.
fn reader(bytes: &[u8], block: u64) -> impl FnOnce(&mut [u8]) -> Result<usize> + '_ {
    move |buffer| {
        let start = (block * BLOCK) as usize;
        buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
        Ok(buffer.len())
    }
}

fn fill(entry: &Arc<Entry>, block: u64, bytes: &[u8]) {
    let filled = entry.fill(block, soon(), reader(bytes, block), || Ok(true));
    let filled = filled.expect("the source has it");
    let start = filled.offset() as usize;
    assert_eq!(filled.bytes(), &bytes[start..start + filled.bytes().len()]);
}

fn fill_all(entry: &Arc<Entry>, bytes: &[u8]) {
    for block in 0..entry.blocks() {
        fill(entry, block, bytes);
    }
    assert!(entry.store.settle(Duration::from_secs(60)));
}

/// What a reader gets from the data file.
fn served(entry: &Entry) -> Vec<u8> {
    let mut bytes = vec![0; entry.len() as usize];
    let read = rustix::io::pread(&*entry.data(), &mut bytes, 0).expect("data is readable");
    assert_eq!(read, bytes.len());
    bytes
}

/// A series of the store's metrics.
fn counted(store: &Store, name: &str) -> f64 {
    let samples = crate::observe::text::parse(&store.metrics.open_metrics());
    let found = samples.iter().find(|sample| sample.name == name);
    found.expect(name).value
}

/// Bytes on disk of all that is beneath a directory, itself included, as du(1) counts.
fn du(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(told) = dir.symlink_metadata() else {
        return 0;
    };
    let mut bytes = told.blocks() * 512;
    if told.is_dir() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            bytes += du(&entry.path());
        }
    }
    bytes
}

/// The files beneath a directory whose names end so.
fn files(dir: &Path, end: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// Makes the store's last stop one that was not clean, on a machine that has crashed since.
fn crash(dir: &Path) {
    for path in files(dir, "/state") {
        let text = std::fs::read_to_string(&path).expect("state is text");
        let mut state = super::trust::State::decode(&text).expect("state is whole");
        state.clean = false;
        state.place ^= 1;
        std::fs::write(path, state.encode()).expect("state can be written");
    }
}

/// How much of a long test is done.
fn soak() -> f64 {
    let set = std::env::var("CORFS_SOAK").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(0.1)
}
