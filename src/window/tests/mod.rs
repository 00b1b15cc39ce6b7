//! Tests of the windows on real files.

mod cache;
mod guard;
mod hammer;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{MapSlice, WindowCache, WindowOptions};
use crate::observe::{Metrics, text};
use crate::sys::Errno;

pub(super) const K: usize = 1 << 10;

/// A byte that tells where in which file it belongs.
pub(super) fn pattern(file: u64, at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16) ^ file.wrapping_mul(37)) as u8
}

pub(super) fn patterned(file: u64, range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| pattern(file, at)).collect()
}

/// A file of the pattern, in a folder that vanishes with the test.
pub(super) struct Source {
    pub(super) id: u64,
    pub(super) file: File,
    pub(super) fd: Arc<OwnedFd>,
}

impl Source {
    pub(super) fn new(dir: &tempfile::TempDir, id: u64, size: usize) -> Self {
        let path = dir.path().join(id.to_string());
        let mut file = File::create(&path).expect("create");
        file.write_all(&patterned(id, 0..size as u64))
            .expect("write");
        let fd = Arc::new(OwnedFd::from(File::open(&path).expect("open")));
        Self { id, file, fd }
    }

    pub(super) fn size(&self) -> u64 {
        self.file.metadata().expect("fstat").len()
    }

    /// Truncates, or goes on with the pattern.
    pub(super) fn resize(&mut self, size: u64) {
        let now = self.size();
        if size <= now {
            self.file.set_len(size).expect("truncate");
        } else {
            self.file.seek(std::io::SeekFrom::Start(now)).expect("seek");
            self.file
                .write_all(&patterned(self.id, now..size))
                .expect("extend");
        }
    }
}

/// The bytes of a slice, copied by the kernel.
pub(super) fn bytes(slice: &MapSlice) -> Result<Vec<u8>, Errno> {
    let memory = rustix::fs::memfd_create("bytes", rustix::fs::MemfdFlags::CLOEXEC)?;
    let written = slice.lend(|bytes| rustix::io::write(memory.as_fd(), bytes))?;
    let mut file = File::from(memory);
    file.rewind().expect("rewind");
    let mut copy = Vec::new();
    file.read_to_end(&mut copy).expect("read");
    assert_eq!(copy.len(), written);
    Ok(copy)
}

pub(super) fn cache(
    window: usize,
    budget: usize,
    max_read: usize,
) -> (Arc<WindowCache>, Arc<Metrics>) {
    let options = WindowOptions {
        window,
        budget,
        max_read,
    };
    let metrics = Arc::new(Metrics::new());
    (WindowCache::new(options, Arc::clone(&metrics)), metrics)
}

/// A series without labels.
pub(super) fn count(metrics: &Metrics, name: &str) -> u64 {
    let samples = text::parse(&metrics.open_metrics());
    let sample = samples.iter().find(|sample| sample.name == name);
    sample.expect(name).value as u64
}

/// Waits until it is so; a test fails that waits for half a minute.
pub(super) fn eventually(what: &str, so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never: {what}");
}
