//! What a mount may hold: inodes, descriptors, memory. All of it under the load of many files, and
//! all of it given back.

pub(crate) mod churn;
mod dirs;
mod held;
mod identity;
mod prune;
pub(crate) mod walks;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Mount, Stats, wait_until};

const MIB: u64 = 1 << 20;

/// How many files lie in one folder of [`make_files`].
const A_FOLDER: u64 = 1000;

/// How long the kernel may take to forget, and the daemon to give back, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Makes `count` empty files, a thousand a folder. Modes differ, so that no file passes for its
/// neighbour.
fn make_files(base: &Path, count: u64) {
    let folder_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for folder in 0..count.div_ceil(A_FOLDER) {
        let path = base.join(folder_name(folder));
        fs::create_dir(&path).unwrap();
        let dir = rustix::fs::open(&path, folder_flags, Mode::empty()).unwrap();
        for n in 0..A_FOLDER.min(count - folder * A_FOLDER) {
            let kind = FileType::RegularFile;
            rustix::fs::mknodat(&dir, file_name(n), kind, mode_of(folder, n), 0).unwrap();
        }
    }
}

fn folder_name(folder: u64) -> String {
    format!("d{folder:04}")
}

fn file_name(n: u64) -> String {
    format!("file{n:04}")
}

fn mode_of(folder: u64, n: u64) -> Mode {
    // None of those that a umask takes.
    let bits = [0o100, 0o040, 0o010, 0o004, 0o001];
    let chosen = folder * 7 + n;
    let chosen = bits
        .iter()
        .enumerate()
        .filter(|(at, _)| chosen >> at & 1 == 1);
    Mode::from_raw_mode(0o400 | chosen.map(|(_, bit)| bit).sum::<u32>())
}

/// This process needs as many descriptors as it is about to use.
fn allow_ourselves(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = (count + 4096).max(limit.current.unwrap_or(u64::MAX));
    let raised = Rlimit {
        current: Some(wanted.min(limit.maximum.unwrap_or(u64::MAX))),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("setrlimit");
}

/// The most that was seen while something ran.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    inodes: u64,
    /// All descriptors of the daemon.
    descriptors: u64,
    /// Resident bytes, all kinds.
    memory: u64,
}

impl Peak {
    fn look(&mut self, mount: &Mount) {
        let fds = fs::read_dir(format!("/proc/{}/fd", mount.server()));
        self.descriptors = self
            .descriptors
            .max(fds.map_or(0, |fds| fds.count() as u64));
        self.memory = self.memory.max(mount.rss().all);
        self.inodes = self.inodes.max(inodes(mount));
    }
}

/// Runs `work`, and returns how long it took and what the daemon held meanwhile.
fn watched<T>(mount: &Mount, work: impl FnOnce() -> T) -> (T, Duration, Peak) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = Peak::default();
            while !ended.load(Ordering::Relaxed) {
                peak.look(mount);
                std::thread::sleep(Duration::from_millis(50));
            }
            peak
        });
        // Also when `work` panics: the scope waits for the watch.
        let _end = SetOnDrop(&ended);
        let started = Instant::now();
        let done = work();
        let took = started.elapsed();
        drop(_end);
        let mut peak = watch.join().expect("the watch");
        peak.look(mount);
        (done, took, peak)
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn gauge(stats: &Stats, name: &str) -> u64 {
    stats.value(name, &[]) as u64
}

fn inodes(mount: &Mount) -> u64 {
    gauge(&mount.stats(), "corfs_inodes")
}

/// Drops the kernel's dentries and inodes until the daemon knows at most `left` (root only).
fn forget_all(mount: &Mount, left: u64) {
    wait_until("the kernel forgets", PATIENCE, || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
        inodes(mount) <= left
    });
}
