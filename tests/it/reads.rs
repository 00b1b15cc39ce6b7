//! Reading through mapped windows and through buffers: the same bytes, within the budget.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::SeekFrom;
use rustix::process::Signal;

use crate::support::{
    Buffer, Dice, Mount, Need, Scratch, assert_content, assert_same_bytes, content, drop_caches,
    require, soak, wait_until, write_content, write_file,
};

const MIB: u64 = 1 << 20;

/// What a daemon may take beside its windows: the program itself, its threads and buffers.
const BESIDE: u64 = 32 * MIB;

fn open(path: &Path, direct: bool) -> File {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads file `seed` whole, in requests of 1 MiB, and checks every byte.
fn read_and_check(path: &Path, direct: bool, seed: u64, size: u64) {
    let file = open(path, direct);
    let mut buffer = Buffer::new(MIB as usize);
    let mut offset = 0;
    loop {
        let bytes = buffer.bytes(MIB as usize);
        let n = file
            .read_at(bytes, offset)
            .unwrap_or_else(|e| panic!("read at {offset}: {e}"));
        if n == 0 {
            break;
        }
        assert_content(seed, offset, &bytes[..n]);
        offset += n as u64;
    }
    assert_eq!(offset, size, "the file ends early or late");
}

/// The highest resident memory of the daemon while `work` runs, sampled every few milliseconds.
fn peak_memory(mount: &Mount, work: impl FnOnce()) -> u64 {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(mount.rss().all, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        // Tells the sampler to end also when the work panics.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _ends = Ends(&done);
        work();
    });
    peak.into_inner()
}

/// The share of read bytes that came from windows.
fn share_from_windows(mount: &Mount) -> f64 {
    let stats = mount.stats();
    let bytes = |mode| stats.value("corfs_read_bytes_total", &[("mode", mode)]);
    bytes("mmap") / (bytes("mmap") + bytes("pread"))
}

#[test]
fn a_large_file_is_read_right_cold_and_warm() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let size = soak(1 << 30) + 1234;
    write_content(&source.path().join("big"), 1, size);
    for options in ["io=mmap", "io=pread", "io=mmap,window_budget=8M"] {
        let mount = Mount::of(source.path()).opt(options).start();
        let path = mount.path().join("big");
        let budget = mount.stats().value("corfs_window_budget_bytes", &[]) as u64;
        drop_caches();
        let peak = peak_memory(&mount, || {
            for direct in [false, false, true, true] {
                read_and_check(&path, direct, 1, size);
            }
        });
        let stats = mount.stats();
        let mapped = stats.value("corfs_window_mapped_bytes_peak", &[]) as u64;
        eprintln!(
            "{options}: resident at most {} KiB, mapped {} KiB",
            peak >> 10,
            mapped >> 10
        );
        assert!(
            mapped <= budget,
            "{options}: {mapped} mapped, the budget is {budget}"
        );
        if options.contains("8M") {
            assert_eq!(budget, 8 * MIB);
            assert!(
                peak > 0 && peak < budget + BESIDE,
                "{options}: {peak} bytes resident"
            );
        }
        if options.contains("mmap") {
            let share = share_from_windows(&mount);
            assert!(share > 0.99, "{options}: only {share} from windows");
        } else {
            let mapped = stats.value("corfs_read_bytes_total", &[("mode", "mmap")]);
            assert_eq!(mapped, 0.0, "io=pread maps nothing");
        }
    }
}

#[test]
fn random_reads_agree_direct_and_buffered() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let size = 40 * MIB + 777;
    write_content(&source.path().join("f"), 2, size);
    for options in ["io=mmap", "io=pread", "io=mmap,window=64K,window_budget=2M"] {
        let mount = Mount::of(source.path()).opt(options).start();
        let path = mount.path().join("f");
        let files = [open(&path, true), open(&path, false)];
        let mut buffer = Buffer::new(2 << 20);
        let mut dice = Dice::new(3);
        for _ in 0..soak(10_000) {
            let file = &files[dice.below(2) as usize];
            let mut offset = dice.below(size + MIB);
            let mut len = match dice.below(3) {
                0 => dice.below(5000) + 1,
                1 => dice.below(100_000) + 1,
                _ => dice.below(2 * MIB) + 1,
            };
            if dice.below(2) == 0 {
                (offset, len) = (offset & !4095, len.next_multiple_of(4096));
            }
            let bytes = buffer.bytes(len.min(2 * MIB) as usize);
            let n = file
                .read_at(bytes, offset)
                .unwrap_or_else(|e| panic!("{offset}+{len}: {e}"));
            let expected = size.saturating_sub(offset).min(bytes.len() as u64);
            assert_eq!(n as u64, expected, "{options}: {len} bytes at {offset}");
            assert_content(2, offset, &bytes[..n]);
        }
    }
}

#[test]
fn a_sparse_file_beyond_4_gib() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.path().join("sparse");
    let file = File::create(&path).unwrap();
    let size = 6 << 30;
    file.set_len(size).unwrap();
    let islands = [0, (4 << 30) - 100_000, (4 << 30) + 5 * MIB, size - 300_001];
    for at in islands {
        file.write_all_at(&content(4, at, 300_001), at).unwrap();
    }
    for options in ["io=mmap", "io=pread"] {
        let mount = Mount::of(source.path()).opt(options).start();
        let mirrored = mount.path().join("sparse");
        assert_eq!(fs::metadata(&mirrored).unwrap().len(), size);
        for direct in [true, false] {
            let file = open(&mirrored, direct);
            let mut buffer = Buffer::new(512 << 10);
            for at in islands {
                // Zeros before, the island, zeros after; aligned, for the direct reader.
                let start = at.saturating_sub(65_536) & !4095;
                let bytes = buffer.bytes(512 << 10);
                let n = file.read_at(bytes, start).unwrap();
                assert_eq!(n as u64, (size - start).min(512 << 10));
                let mut expected = vec![0; n];
                let skip = (at - start) as usize;
                let island = content(4, at, 300_001);
                let shown = island.len().min(n - skip);
                expected[skip..skip + shown].copy_from_slice(&island[..shown]);
                assert_same_bytes(start, &bytes[..n], &expected);
            }
            let n = file.read_at(buffer.bytes(4096), size).unwrap();
            assert_eq!(n, 0);
        }
        assert_eq!(
            data_and_holes(&open(&mirrored, false)),
            data_and_holes(&open(&path, false))
        );
    }
}

/// Where data begins and ends, by SEEK_DATA and SEEK_HOLE.
fn data_and_holes(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

#[test]
fn the_mounted_file_can_be_mapped() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let size = 20 * MIB + 55;
    write_content(&source.path().join("f"), 5, size);
    for options in ["io=mmap", "io=pread"] {
        let mount = Mount::of(source.path()).opt(options).start();
        let file = open(&mount.path().join("f"), false);
        // SAFETY: nobody changes the file while it is mapped.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut dice = Dice::new(6);
        for _ in 0..200 {
            let at = dice.below(size - 10_000) as usize;
            assert_content(5, at as u64, &map[at..at + 10_000]);
        }
        assert_content(5, 0, &map);
    }
}

#[test]
fn concurrent_readers_share_a_small_budget() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let size = 12 * MIB;
    for file in 0..4 {
        write_content(&source.path().join(format!("f{file}")), file, size);
    }
    let mount = Mount::of(source.path())
        .opt("io=mmap,window_budget=8M")
        .start();
    let peak = peak_memory(&mount, || {
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let at = mount.path();
                scope.spawn(move || {
                    let mut dice = Dice::new(100 + reader);
                    let mut buffer = Buffer::new(MIB as usize);
                    for _ in 0..soak(2000) {
                        let seed = dice.below(4);
                        let file = open(&at.join(format!("f{seed}")), reader % 2 == 0);
                        let offset = dice.below(size / 4096) * 4096;
                        let len = (dice.below(256) + 1) * 4096;
                        let bytes = buffer.bytes(len as usize);
                        let n = file.read_at(bytes, offset).unwrap();
                        assert_eq!(n as u64, len.min(size - offset));
                        assert_content(seed, offset, &bytes[..n]);
                    }
                });
            }
        });
    });
    let stats = mount.stats();
    let mapped = stats.value("corfs_window_mapped_bytes_peak", &[]);
    assert!(
        mapped > 0.0 && mapped <= (8 * MIB) as f64,
        "{mapped} bytes were mapped at once"
    );
    assert!(peak > 0 && peak < 8 * MIB + BESIDE, "{peak} bytes resident");
    assert!(stats.value("corfs_window_evictions_total", &[]) > 0.0);
}

#[test]
fn a_growing_file_is_followed() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for options in ["io=mmap", "io=pread"] {
        for direct in [false, true] {
            follow(options, direct);
        }
    }
}

/// As `tail -f` does, while the file grows behind the mount.
fn follow(options: &str, direct: bool) {
    let source = Scratch::new();
    let native = source.file("log", b"");
    let mount = Mount::of(source.path())
        .opt(options)
        .opt("attr_timeout=0")
        .start();
    let writer = File::options().append(true).open(&native).unwrap();
    let reader = open(&mount.path().join("log"), direct);
    let mut buffer = Buffer::new(100_000);
    let (mut written, mut seen) = (0_u64, 0_u64);
    // Pieces of odd sizes, so that the end crosses pages and windows.
    for piece in [1, 100, 4000, 10_000, 4096, 63_000, 5, 90_000, 4_200_000, 77] {
        use std::io::Write;
        (&writer).write_all(&content(7, written, piece)).unwrap();
        written += piece as u64;
        wait_until(
            "the reader sees what was appended",
            Duration::from_secs(20),
            || {
                loop {
                    let bytes = buffer.bytes(100_000);
                    let n = reader.read_at(bytes, seen).unwrap();
                    assert_content(7, seen, &bytes[..n]);
                    seen += n as u64;
                    if n == 0 {
                        break seen == written;
                    }
                }
            },
        );
    }
}

#[test]
fn sighup_drops_the_windows() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("f"), 8, 20 * MIB);
    let mut mount = Mount::of(source.path()).opt("io=mmap").start();
    read_and_check(&mount.path().join("f"), true, 8, 20 * MIB);
    assert!(mount.stats().value("corfs_windows", &[]) > 0.0);
    mount.signal(Signal::HUP);
    wait_until("the windows are gone", Duration::from_secs(10), || {
        let stats = mount.stats();
        stats.value("corfs_windows", &[]) == 0.0
            && stats.value("corfs_window_mapped_bytes", &[]) == 0.0
    });
    assert!(mount.alive());
    read_and_check(&mount.path().join("f"), true, 8, 20 * MIB);
}

#[test]
fn a_file_changed_behind_an_open_window_is_read_anew() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let native = source.file("f", &content(9, 0, 5_000_000));
    for options in ["io=mmap", "io=pread"] {
        let mount = Mount::of(source.path()).opt(options).start();
        let reader = open(&mount.path().join("f"), true);
        let mut buffer = Buffer::new(65_536);
        let mut expect = |seed: u64, offset: u64| {
            let bytes = buffer.bytes(65_536);
            assert_eq!(reader.read_at(bytes, offset).unwrap(), 65_536);
            assert_content(seed, offset, bytes);
        };
        // A direct read asks the daemon every time: it must be right at once.
        write_file(&native, &content(9, 0, 5_000_000));
        expect(9, 1 << 20);
        let writer = File::options().write(true).open(&native).unwrap();
        for seed in 10..30 {
            writer
                .write_all_at(&content(seed, 1 << 20, 65_536), 1 << 20)
                .unwrap();
            expect(seed, 1 << 20);
        }
        writer.set_len(1 << 20).unwrap();
        assert_eq!(reader.read_at(buffer.bytes(65_536), 1 << 20).unwrap(), 0);
        writer.set_len(2 << 20).unwrap();
        // The kernel asks for nothing past the size that it knows, until its attributes expire.
        let bytes = buffer.bytes(65_536);
        wait_until("the file is seen to grow", Duration::from_secs(15), || {
            reader.read_at(bytes, 1 << 20).unwrap() == 65_536
        });
        assert!(
            bytes.iter().all(|&b| b == 0),
            "what was cut off must not come back"
        );
    }
}
