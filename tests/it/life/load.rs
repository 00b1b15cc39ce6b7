//! Work on a mount while something happens to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::PATIENCE;
use crate::support::{Dice, assert_content, become_user, wait_until, write_content};

/// The file that is read and copied, and its content's seed.
const BIG: &str = "big";
const SEED: u64 = 77;
const SIZE: u64 = 600_000;

/// Makes what the work needs in the source.
pub(super) fn furnish(source: &Path) {
    write_content(&source.join(BIG), SEED, SIZE);
}

/// Panics unless there is nothing in the source but what was there and whole results.
#[track_caller]
pub(super) fn assert_tidy(source: &Path) {
    assert_tidy_but(source, "file");
}

/// The same, for a source that has an entry of its own.
#[track_caller]
pub(super) fn assert_tidy_but(source: &Path, own: &str) {
    for entry in std::fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        match name.as_str() {
            name if name == own => {}
            BIG | "copied" => {
                let bytes = std::fs::read(source.join(&name)).unwrap();
                assert_eq!(bytes.len() as u64, SIZE, "{name}");
                assert_content(SEED, 0, &bytes);
            }
            // A writer that was cut off.
            "written" => {}
            other => panic!("left behind: {other:?}"),
        }
    }
}

/// Threads at work on one mount, each with its root open, so that an unmount of the name does not
/// reach them.
pub(super) struct Load {
    stop: Stop,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), Errno>>>,
}

/// Ends the work of a test that fails, too: it would keep the mount.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

type Work = fn(&OwnedFd, &mut Dice) -> Result<(), Errno>;

const WORK: [Work; 4] = [read, write, copy, look];

impl Load {
    /// Begins, as an ordinary user if asked, and returns once everybody is at work.
    #[track_caller]
    pub(super) fn start(point: &Path, ids: Option<(u32, u32)>) -> Self {
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let began = Arc::<AtomicU64>::default();
        let threads = WORK
            .into_iter()
            .zip(0..)
            .map(|(work, seed)| {
                let (stop, rounds, point) = (stop.clone(), rounds.clone(), point.to_owned());
                let began = began.clone();
                std::thread::spawn(move || {
                    if let Some((uid, gid)) = ids {
                        become_user(uid, gid, &[]);
                    }
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let root = rustix::fs::open(&point, flags, Mode::empty());
                    began.fetch_add(1, Ordering::Relaxed);
                    let (root, mut dice) = (root?, Dice::new(seed));
                    while !stop.load(Ordering::Relaxed) {
                        work(&root, &mut dice)?;
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        wait_until("all are at work", PATIENCE, || {
            began.load(Ordering::Relaxed) == WORK.len() as u64
        });
        Self {
            stop: Stop(stop),
            rounds,
            threads,
        }
    }

    /// Waits until so much more was done.
    #[track_caller]
    pub(super) fn await_progress(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_until("the work goes on", PATIENCE, || {
            self.rounds.load(Ordering::Relaxed) > before + 4
        });
    }

    /// How many rounds were done.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Ends the work; what ended each one's before.
    pub(super) fn end(self) -> Vec<Result<(), Errno>> {
        self.stop.0.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for what ends each one's work.
    pub(super) fn join(self) -> Vec<Result<(), Errno>> {
        let join = |thread: JoinHandle<_>| thread.join().expect("no wrong byte");
        self.threads.into_iter().map(join).collect()
    }
}

fn open(root: &OwnedFd, name: &str, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    rustix::fs::openat(root, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn read(root: &OwnedFd, dice: &mut Dice) -> Result<(), Errno> {
    let file = open(root, BIG, OFlags::RDONLY)?;
    let offset = dice.below(SIZE);
    let mut bytes = [0; 4000];
    let count = file.read_at(&mut bytes, offset).map_err(errno)?;
    assert!(count > 0);
    assert_content(SEED, offset, &bytes[..count]);
    Ok(())
}

fn write(root: &OwnedFd, dice: &mut Dice) -> Result<(), Errno> {
    let file = open(root, "written", OFlags::RDWR | OFlags::CREATE)?;
    let bytes = dice.below(u64::MAX).to_le_bytes();
    file.write_all_at(&bytes, 8).map_err(errno)?;
    let mut back = [0; 8];
    file.read_exact_at(&mut back, 8).map_err(errno)?;
    assert_eq!(back, bytes);
    drop(file);
    rustix::fs::unlinkat(root, "written", AtFlags::empty())
}

fn copy(root: &OwnedFd, _: &mut Dice) -> Result<(), Errno> {
    let mut control = open(root, ".copy", OFlags::WRONLY)?;
    control.write_all(b"big copied\n").map_err(errno)?;
    drop(control);
    let copied = open(root, "copied", OFlags::RDONLY)?;
    assert_eq!(copied.metadata().map_err(errno)?.len(), SIZE);
    rustix::fs::unlinkat(root, "copied", AtFlags::empty())
}

fn look(root: &OwnedFd, _: &mut Dice) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(root.as_fd())? {
        let entry = entry?;
        match rustix::fs::statat(root, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
