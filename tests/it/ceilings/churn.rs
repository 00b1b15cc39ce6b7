//! A week's work of several processes in ten minutes (at `CORFS_SOAK=1`), and what is left of it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::*;
use crate::children::Actor;
use crate::support::{Dice, Need, Scratch, content, require, soak};

/// Names in each folder that all processes work in.
const NAMES: u64 = 60;

/// Works below `base` for so many seconds; the part of a child process. Another may do anything to
/// the same names meanwhile, so that each step may fail; what is read must be what was written.
pub(crate) fn work(base: &Path, seed: u64, seconds: u64) {
    let mut dice = Dice::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        step(base, &mut dice);
    }
}

fn step(base: &Path, dice: &mut Dice) {
    let folder = base.join(format!("d{}/e{}", dice.below(4), dice.below(4)));
    let [one, two] = [(); 2].map(|()| folder.join(format!("n{}", dice.below(NAMES))));
    let other = base.join(format!("d{}", dice.below(4)));
    // What fails, fails because of another: it is as good a step as any.
    let _ = match dice.below(12) {
        0 => fs::create_dir_all(&folder),
        1 | 2 => fs::write(&one, content(9, 0, dice.below(40_000) as usize)),
        3 => read_all(&one),
        4 => fs::rename(&one, &two),
        5 => fs::remove_file(&one),
        6 => {
            fs::read_dir(&folder).map(|entries| entries.flatten().for_each(|e| drop(e.metadata())))
        }
        7 => fs::copy(&one, &two).map(drop),
        8 => map(&one),
        9 => fs::hard_link(&one, &two).or_else(|_| symlink("n0", &two)),
        10 => append(&one),
        _ if dice.below(4) == 0 => fs::remove_dir_all(&folder),
        _ => {
            let flags = RenameFlags::EXCHANGE;
            let swapped = rustix::fs::renameat_with(CWD, &folder, CWD, other.join("e0"), flags);
            swapped.map_err(Into::into)
        }
    };
}

fn read_all(path: &Path) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    let expected = content(9, 0, bytes.len());
    // A file under another's hand may have holes; what is there is what was written.
    let right = bytes.iter().zip(&expected).all(|(a, b)| a == b || *a == 0);
    assert!(right, "{}: not what was written", path.display());
    Ok(())
}

fn append(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let at = file.metadata()?.len().min(100_000) & !7;
    file.write_all_at(&content(9, at, 4096), at)
}

fn map(path: &Path) -> std::io::Result<()> {
    let file: OwnedFd = File::open(path)?.into();
    let length = rustix::fs::fstat(&file)?.st_size as usize;
    if length == 0 {
        return Ok(());
    }
    let (hint, prot) = (std::ptr::null_mut(), ProtFlags::READ);
    // SAFETY: the kernel chooses a free place for a new mapping; nothing touches it.
    let at = unsafe { mmap(hint, length, prot, MapFlags::SHARED, &file, 0) }?;
    std::thread::sleep(Duration::from_millis(1));
    // SAFETY: it is our own mapping of that length, and no reference to it exists.
    unsafe { munmap(at, length) }?;
    Ok(())
}

/// What a mount holds, as its statistics tell.
fn held(mount: &Mount) -> [(&'static str, u64); 5] {
    let stats = mount.stats();
    [
        "corfs_inodes",
        "corfs_handles",
        "corfs_descriptors",
        "corfs_windows",
        "corfs_resident_bytes",
    ]
    .map(|name| (name, gauge(&stats, name)))
}

#[test]
fn nothing_is_left_of_a_week() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // Six seconds in the short run.
    let seconds = soak(soak(600));
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let round = |seconds| {
        let base = mount.path().to_str().expect("a plain name").to_owned();
        let order = |seed| Actor::worker(&base, seed, seconds);
        let mut workers: Vec<_> = (0..4).map(order).collect();
        for worker in &mut workers {
            assert_eq!(worker.answer(), "ended");
        }
        // The processes keep nothing, and the kernel is asked to keep nothing either.
        drop(workers);
        forget_all(&mount, 4);
    };
    // The first round brings the program, its threads and their buffers into memory.
    round(1 + seconds / 6);
    std::thread::sleep(Duration::from_secs(3));
    let start = held(&mount);
    round(seconds);
    let operations = mount.stats().sum("corfs_operations_total", &[]);
    println!("{seconds} s by 4 processes, {operations} operations\nbefore {start:?}");
    let mut end = start;
    let settled = |end: &[(&str, u64); 5]| {
        start.iter().zip(end).all(|((name, before), (_, after))| {
            let slack = match *name {
                "corfs_resident_bytes" => 8 * MIB,
                "corfs_inodes" | "corfs_descriptors" => 4,
                _ => 0,
            };
            *after <= before + slack
        })
    };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        end = held(&mount);
        if settled(&end) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("after  {end:?}");
    assert!(settled(&end), "before {start:?}, after {end:?}");
    let handles = gauge(&mount.stats(), "corfs_handles");
    assert_eq!(handles, 0);
}
