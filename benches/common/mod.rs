//! What the benches share: files, mounts, memory that is ready, and the order of competitors.

#![allow(dead_code, reason = "not every bench uses every helper")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes of a mebibyte.
pub(crate) const MIB: usize = 1 << 20;

/// Bytes that no file system can compress or leave out.
pub(crate) fn make_file(path: &Path, size: u64) {
    let mut file = File::create(path).expect("create the file");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; MIB];
    for _ in 0..size / MIB as u64 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).expect("fill the file");
    }
    file.sync_all().expect("write the file out");
}

/// The native competitor (0) first and last, the others in an order that rotates.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    let others = count - 1;
    let mut order = vec![0];
    order.extend((0..others).map(|at| 1 + (at + round) % others));
    order.push(0);
    order
}

pub(crate) fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

/// Takes as much memory as a run will need, so that the host has it ready: a virtual machine gives
/// idle memory back to its host, and to get a page again costs several times what it costs to copy
/// one. That may happen at any moment, so memory is taken until that goes about as fast as it ever
/// did.
pub(crate) fn touch(size: u64) {
    static FASTEST: Mutex<BTreeMap<u64, Duration>> = Mutex::new(BTreeMap::new());
    const TRIES: u32 = 6;
    if size == 0 {
        return;
    }
    for _ in 0..TRIES {
        let took = take(size);
        let mut all = FASTEST.lock().expect("no panic");
        let before = all.get(&size).copied();
        all.insert(size, before.map_or(took, |before| before.min(took)));
        if before.is_some_and(|before| took <= before * 3 / 2) {
            return;
        }
    }
}

/// Takes memory and gives it back; answers how long the taking took.
fn take(size: u64) -> Duration {
    let started = Instant::now();
    let mut memory = vec![0u8; size as usize];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    started.elapsed()
}

/// A mount that goes with its value.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) at: PathBuf,
    child: Child,
}

impl Mount {
    pub(crate) fn new(source: &Path, at: &Path, options: &str) -> Self {
        std::fs::create_dir(at).expect("make the mountpoint");
        let child = Command::new(env!("CARGO_BIN_EXE_corfs"))
            .args(["-f", "-o", options])
            .args([source, at])
            .stderr(Stdio::inherit())
            .spawn()
            .expect("start corfs");
        let mount = Self {
            at: at.to_owned(),
            child,
        };
        for _ in 0..500 {
            if at.join(".corfs/stats").exists() {
                return mount;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("corfs did not mount {}", at.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
