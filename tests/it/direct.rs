//! Who writes past the page cache.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::support::{
    Buffer, FaultySource, Mount, Need, On, Scratch, read_file, require, write_content,
};

const PATIENCE: Duration = Duration::from_secs(10);
const BLOCK: usize = 4096;
const WRITERS: usize = 4;

fn open(path: &Path, direct: bool) -> File {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let mut options = File::options();
    options.read(true).write(true).custom_flags(flags);
    let opened = options.open(path);
    opened.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Writes a block of such bytes.
fn write(file: &File, number: usize, byte: u8) {
    let mut buffer = Buffer::new(BLOCK);
    buffer.bytes(BLOCK).fill(byte);
    let at = (number * BLOCK) as u64;
    file.write_all_at(buffer.bytes(BLOCK), at).expect("write");
}

fn kernel() -> (u32, u32) {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// How many workers the mount comes to have, until there are enough or nothing more is to be expected.
fn most_at_work(mount: &Mount) -> f64 {
    let began = Instant::now();
    let mut most = 0.0;
    while most < WRITERS as f64 && began.elapsed() < PATIENCE {
        most = mount.stats().value("corfs_source_workers", &[]).max(most);
        std::thread::sleep(Duration::from_millis(10));
    }
    most
}

#[test]
fn they_do_not_wait_for_each_other() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    if kernel() < (6, 9) {
        eprintln!("SKIP: before Linux 6.9 they wait where files may be mapped as well");
        return;
    }
    let source = FaultySource::new();
    let store = source.store().to_owned();
    write_content(&store.join("f"), 1, (WRITERS * BLOCK) as u64);
    let mount = Mount::of(source.path()).opt("coherence=strict").start();
    let files: Vec<File> = (0..WRITERS)
        .map(|_| open(&mount.path().join("f"), true))
        .collect();
    source.faults().hang(On::Write, None);
    let most = std::thread::scope(|scope| {
        for (number, file) in files.iter().enumerate() {
            scope.spawn(move || write(file, number, number as u8));
        }
        // In the source they take turns; the mount passes them all on.
        let most = most_at_work(&mount);
        source.faults().heal();
        most
    });
    assert!(most >= WRITERS as f64, "{most} at work");
    let written: Vec<u8> = (0..WRITERS).flat_map(|n| vec![n as u8; BLOCK]).collect();
    assert!(read_file(&store.join("f")) == written);
    drop(files);
    assert!(mount.finish().success());
}

#[test]
fn what_they_write_shows_in_reads_and_mappings_and_theirs_in_it() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for option in ["coherence=ttl", "coherence=strict"] {
        let source = Scratch::new();
        write_content(&source.path().join("f"), 1, (2 * BLOCK) as u64);
        let mount = Mount::of(source.path()).opt(option).start();
        let path = mount.path().join("f");
        let (direct, plain) = (open(&path, true), open(&path, false));
        let see = |number: usize| {
            let mut bytes = [0; BLOCK];
            plain
                .read_exact_at(&mut bytes, (number * BLOCK) as u64)
                .expect("read");
            bytes
        };
        let _ = (see(0), see(1));
        write(&direct, 1, 7);
        assert_eq!(see(1), [7; BLOCK], "{option}");
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                2 * BLOCK,
                flags,
                MapFlags::SHARED,
                &direct,
                0,
            )
        };
        let Ok(mapped) = mapped else {
            // Before Linux 6.6, where nothing may be cached.
            assert_eq!(option, "coherence=strict");
            continue;
        };
        let byte = |number: usize| mapped.cast::<u8>().wrapping_add(number * BLOCK);
        // SAFETY: within the mapping, of a file that nobody cuts.
        unsafe {
            assert_eq!(byte(1).read_volatile(), 7, "{option}");
            byte(0).write_volatile(9);
        }
        write(&direct, 1, 8);
        // SAFETY: as before.
        assert_eq!(unsafe { byte(1).read_volatile() }, 8, "{option}");
        let mut buffer = Buffer::new(BLOCK);
        direct.read_exact_at(buffer.bytes(BLOCK), 0).expect("read");
        assert_eq!(buffer.bytes(BLOCK)[0], 9, "{option}");
        assert_eq!(see(0)[0], 9, "{option}");
        // SAFETY: nothing refers to it any more.
        unsafe { munmap(mapped, 2 * BLOCK) }.expect("munmap");
        drop((direct, plain));
        drop(mount);
        let left = read_file(&source.path().join("f"));
        assert_eq!((left[0], left[BLOCK]), (9, 8), "{option}");
    }
}

/// Each writes its own blocks, behind the end as well.
#[test]
fn many_at_once_lose_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let blocks = 256;
    let source = Scratch::new();
    write_content(&source.path().join("f"), 1, (blocks / 2 * BLOCK) as u64);
    let mount = Mount::of(source.path()).start();
    let path = mount.path().join("f");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let path = &path;
            scope.spawn(move || {
                let file = open(path, true);
                for number in (writer..blocks).step_by(WRITERS) {
                    write(&file, number, number as u8);
                }
            });
        }
    });
    let written: Vec<u8> = (0..blocks).flat_map(|n| vec![n as u8; BLOCK]).collect();
    assert!(read_file(&path) == written);
    assert!(read_file(&source.path().join("f")) == written);
}
