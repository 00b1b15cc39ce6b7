//! Files that change behind the mirror while they are read, and a device that fails under it: the
//! daemon lives, every byte was the file's at some moment, and no reader hangs.
//!
//! A byte says which file, which offset and which generation it is of, so that every single one
//! can be judged: the high three bits are the generation (1 to 7, hence no data is zero), the low
//! five a mark of file and offset.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::children::Actor;
use crate::support::{
    Buffer, Dice, Loop, Mount, Need, Scratch, assert_content, drop_caches, errno_of, read_file,
    require, run, sh, soak, wait_until, write_content,
};

/// Files in each set.
const FILES: u64 = 3;
/// No file is ever larger, in bytes: several windows of the mount below.
const LARGEST: u64 = 6 << 20;
/// A read that takes longer hangs.
const HUNG: Duration = Duration::from_secs(30);

// ---------------------------------------------------------------------------------------------
// The content

/// After so many bytes the marks repeat: a prime, so that no two pages of a file are alike.
const PERIOD: u64 = 65_537;

/// For each generation the bytes of one period and a page more, so that any page is one slice.
static PATTERN: LazyLock<[Vec<u8>; 8]> = LazyLock::new(|| {
    std::array::from_fn(|generation| {
        let byte = |at: u64| {
            let mixed = (at % PERIOD + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (generation as u8) << 5 | (mixed >> 59) as u8
        };
        (0..PERIOD + 4096).map(byte).collect()
    })
});

/// At most a page of one generation (1 to 7; 0 has the marks alone) of a file.
fn page_of(file: u64, generation: u8, offset: u64, len: usize) -> &'static [u8] {
    let at = ((offset + file * 7919) % PERIOD) as usize;
    &PATTERN[usize::from(generation)][at..at + len]
}

/// The bytes of one generation of a file.
fn bytes_of(file: u64, generation: u8, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize);
    while (bytes.len() as u64) < len {
        let piece = (len - bytes.len() as u64).min(4096) as usize;
        bytes.extend(page_of(
            file,
            generation,
            offset + bytes.len() as u64,
            piece,
        ));
    }
    bytes
}

/// What a stretch of a file turned out to be.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    /// Bytes that are zero: never written as data.
    zeros: u64,
    /// The first byte that was the file's at no moment.
    wrong: Option<u64>,
}

fn judge(file: u64, offset: u64, bytes: &[u8]) -> Judged {
    let mut judged = Judged::default();
    for (page, piece) in bytes.chunks(4096).enumerate() {
        let start = offset + page as u64 * 4096;
        // Nearly always a page is of one generation: then one comparison says all.
        let generation = piece[0] >> 5;
        if generation == 0
            || start + 4096 > LARGEST
            || piece != page_of(file, generation, start, piece.len())
        {
            judge_bytes(file, start, piece, &mut judged);
        }
    }
    judged
}

fn judge_bytes(file: u64, start: u64, piece: &[u8], judged: &mut Judged) {
    if piece == &[0; 4096][..piece.len()] {
        judged.zeros += piece.len() as u64;
        return;
    }
    let marks = page_of(file, 0, start, piece.len());
    for ((at, &byte), &mark) in (start..).zip(piece).zip(marks) {
        if byte == 0 {
            judged.zeros += 1;
        } else if byte >> 5 == 0 || byte & 31 != mark || at >= LARGEST {
            judged.wrong.get_or_insert(at);
        }
    }
}

/// A set of files and what may happen to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// Everything, extension and holes too: zeros are the file's.
    Holed,
    /// Only what leaves no hole: truncated to whole pages, appended to, replaced. No byte of them
    /// is ever zero.
    Solid,
}

impl Set {
    fn path(self, dir: &Path, file: u64) -> PathBuf {
        dir.join(format!("{self:?}-{file}"))
    }

    /// A number for the content: no two files share it.
    fn seed(self, file: u64) -> u64 {
        file + if self == Set::Solid { 100 } else { 0 }
    }
}

// ---------------------------------------------------------------------------------------------
// Those who change the files, each a process

/// Changes the files below a directory until it is told to end; the part of a child process.
pub(crate) fn mutate(dir: &Path, seed: u64, ended: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !ended.load(Ordering::Relaxed) {
        let file = dice.below(FILES);
        match dice.below(2) {
            0 => change_holed(dir, file, seed, &mut dice),
            _ => change_solid(dir, file, seed, &mut dice),
        }
    }
}

fn change_holed(dir: &Path, file: u64, me: u64, dice: &mut Dice) {
    let set = Set::Holed;
    let path = set.path(dir, file);
    let generation = dice.below(7) as u8 + 1;
    let offset = dice.below(LARGEST);
    let len = (dice.below(300_000) + 1).min(LARGEST - offset);
    let open = || {
        File::options()
            .write(true)
            .open(&path)
            .expect("it is always there")
    };
    match dice.below(6) {
        // Down, or up with a hole at the end.
        0 | 1 => open().set_len(offset).expect("truncate"),
        2 | 3 => {
            let bytes = bytes_of(set.seed(file), generation, offset, len);
            open().write_all_at(&bytes, offset).expect("write");
        }
        4 => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(open(), flags, offset, len).expect("punch");
        }
        _ => replace(dir, set, file, me, generation, offset),
    }
}

fn change_solid(dir: &Path, file: u64, me: u64, dice: &mut Dice) {
    let set = Set::Solid;
    let path = set.path(dir, file);
    let generation = dice.below(7) as u8 + 1;
    // Whole pages, lest zeroing the rest of a page show, which is the kernel's doing.
    let size = dice.below(LARGEST / 4096) * 4096;
    match dice.below(4) {
        0 => replace(dir, set, file, me, generation, size),
        _ => {
            let open = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .expect("there");
            // One at a time, or an append could land behind the other's truncation: a hole.
            rustix::fs::flock(&open, rustix::fs::FlockOperation::LockExclusive).expect("flock");
            let now = open.metadata().expect("fstat").len();
            if size < now {
                open.set_len(size).expect("truncate");
            } else {
                let len = (size - now).min(500_000);
                let bytes = bytes_of(set.seed(file), generation, now, len);
                open.write_all_at(&bytes, now).expect("append");
            }
        }
    }
}

fn replace(dir: &Path, set: Set, file: u64, me: u64, generation: u8, size: u64) {
    let temporary = dir.join(format!("temporary-{me}"));
    fs::write(&temporary, bytes_of(set.seed(file), generation, 0, size)).expect("write");
    fs::rename(&temporary, set.path(dir, file)).expect("rename");
}

// ---------------------------------------------------------------------------------------------
// Those who read them

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Buffered,
    Mapped,
}

/// What one kind of reader met, summed over all of that kind.
#[derive(Clone, Debug, Default)]
struct Tally {
    reads: u64,
    bytes: u64,
    /// Reads of the solid set that returned a zero.
    zeros: u64,
    /// EIO, or EFAULT from a mapping, which is its SIGBUS.
    faults: u64,
    slowest: Duration,
}

/// What all readers share.
struct Watch {
    began: Instant,
    ended: AtomicBool,
    /// For each reader, when its current read began: milliseconds since `began`, 0 for none.
    reading: Vec<AtomicU64>,
    wrong: Mutex<Vec<String>>,
}

impl Watch {
    fn new(readers: usize) -> Self {
        Self {
            began: Instant::now(),
            ended: AtomicBool::new(false),
            reading: (0..readers).map(|_| AtomicU64::new(0)).collect(),
            wrong: Mutex::default(),
        }
    }

    fn complain(&self, words: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(|e| e.into_inner());
        wrong.push(words);
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The reader whose read has taken too long, if there is one.
    fn hung(&self) -> Option<usize> {
        let now = self.began.elapsed().as_millis() as u64;
        let late = |since: &AtomicU64| {
            let since = since.load(Ordering::Relaxed);
            since > 0 && now.saturating_sub(since) > HUNG.as_millis() as u64
        };
        self.reading.iter().position(late)
    }
}

/// The largest read.
const MOST: usize = 1 << 20;

fn read_on(dir: &Path, way: Way, me: usize, watch: &Watch) -> Tally {
    let mut dice = Dice::new(1000 + me as u64);
    let mut buffer = Buffer::new(MOST);
    let mut tally = Tally::default();
    while !watch.ended.load(Ordering::Relaxed) {
        let set = [Set::Holed, Set::Solid][dice.below(2) as usize];
        let file = dice.below(FILES);
        let flags = if way == Way::Direct {
            libc::O_DIRECT
        } else {
            0
        };
        let path = set.path(dir, file);
        watch.reading[me].store(
            watch.began.elapsed().as_millis() as u64 + 1,
            Ordering::Relaxed,
        );
        match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(open) => {
                let rounds = dice.below(8) + 1;
                for _ in 0..rounds {
                    one_read(
                        &open,
                        way,
                        (set, file),
                        (me, watch),
                        &mut dice,
                        &mut buffer,
                        &mut tally,
                    );
                }
            }
            // The kernel looks a replaced name up again once, not twice.
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {}
            Err(error) => watch.complain(format!("open {}: {error}", path.display())),
        }
        watch.reading[me].store(0, Ordering::Relaxed);
    }
    tally
}

fn one_read(
    open: &File,
    way: Way,
    (set, file): (Set, u64),
    (me, watch): (usize, &Watch),
    dice: &mut Dice,
    buffer: &mut Buffer,
    tally: &mut Tally,
) {
    let offset = dice.below(LARGEST / 4096) * 4096;
    let len = ((dice.below(256) + 1) * 4096) as usize;
    let started = Instant::now();
    watch.reading[me].store(
        watch.began.elapsed().as_millis() as u64 + 1,
        Ordering::Relaxed,
    );
    let result = match way {
        Way::Mapped => read_mapping(open, offset, buffer.bytes(len)),
        _ => open.read_at(buffer.bytes(len), offset),
    };
    tally.slowest = tally.slowest.max(started.elapsed());
    tally.reads += 1;
    match result {
        Ok(n) => {
            tally.bytes += n as u64;
            let judged = judge(set.seed(file), offset, &buffer.bytes(MOST)[..n]);
            tally.zeros += u64::from(set == Set::Solid && judged.zeros > 0);
            if let Some(at) = judged.wrong {
                let byte = buffer.bytes(MOST)[(at - offset) as usize];
                watch.complain(format!(
                    "{way:?} {set:?}-{file}: {byte:#04x} at {at} of a read of {n} at {offset}"
                ));
            }
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => {
            tally.faults += 1;
        }
        Err(error) => watch.complain(format!("{way:?} {set:?}-{file}: read at {offset}: {error}")),
    }
}

/// Maps a stretch of the file and has the kernel copy it out, so that a lost page is EFAULT and
/// not the SIGBUS that would end the test.
fn read_mapping(open: &File, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let len = into.len();
    // SAFETY: a new mapping at an address of the kernel's choice; no reference to it is made.
    let map = unsafe {
        let nowhere = std::ptr::null_mut();
        mmap(
            nowhere,
            len,
            ProtFlags::READ,
            MapFlags::SHARED,
            open,
            offset,
        )?
    };
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: map,
        iov_len: len,
    };
    // SAFETY: `local` is our buffer of that length; the kernel checks every page of `remote`.
    let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    let error = std::io::Error::last_os_error();
    // SAFETY: our own mapping, used no more.
    unsafe { munmap(map, len) }?;
    usize::try_from(n).map_err(|_| error)
}

// ---------------------------------------------------------------------------------------------
// The storm

/// Eight readers of the mount, and two of the source in the same race, for comparison.
const READERS: [(bool, Way); 10] = [
    (true, Way::Direct),
    (true, Way::Direct),
    (true, Way::Direct),
    (true, Way::Buffered),
    (true, Way::Buffered),
    (true, Way::Buffered),
    (true, Way::Mapped),
    (true, Way::Mapped),
    (false, Way::Direct),
    (false, Way::Buffered),
];

fn storm(options: &str) {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for set in [Set::Holed, Set::Solid] {
        for file in 0..FILES {
            replace(source.path(), set, file, 0, 1, LARGEST / 2);
        }
    }
    let mut mount = Mount::of(source.path()).opt(options).start();
    let lasting = Duration::from_secs(soak(60).max(5));
    let watch = Watch::new(READERS.len());
    let mut mutators: Vec<Actor> = [1, 2]
        .map(|seed| Actor::mutator(source.path(), seed))
        .into();
    let tallies = std::thread::scope(|scope| {
        let (watch, mountpoint, native) = (&watch, mount.path(), source.path());
        let readers: Vec<_> = (0..)
            .zip(READERS)
            .map(|(me, (mounted, way))| {
                let dir = if mounted { mountpoint } else { native };
                scope.spawn(move || read_on(dir, way, me, watch))
            })
            .collect();
        while !watch.ended.load(Ordering::Relaxed) && watch.began.elapsed() < lasting {
            std::thread::sleep(Duration::from_millis(20));
            if let Some(me) = watch.hung() {
                watch.complain(format!("{:?} hangs", READERS[me]));
                // What hangs in the mount can only be freed by its end.
                mount.signal(Signal::KILL);
            }
        }
        watch.ended.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + HUNG;
        while readers.iter().any(|r| !r.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if readers.iter().any(|r| !r.is_finished()) {
            watch.complain("a reader did not come back".into());
            mount.signal(Signal::KILL);
        }
        readers
            .into_iter()
            .map(|r| r.join().expect("a reader"))
            .collect::<Vec<_>>()
    });
    mutators
        .iter_mut()
        .for_each(|m| assert_eq!(m.ask("end"), "ended"));
    let wrong = std::mem::take(&mut *watch.wrong.lock().unwrap_or_else(|e| e.into_inner()));
    assert!(wrong.is_empty(), "{options}: {wrong:#?}");
    assert!(mount.alive(), "the daemon died");
    judge_tallies(options, &tallies);
    assert_settled(&mount, source.path());
    let stats = mount.stats();
    let (peak, budget) = (
        stats.value("corfs_window_mapped_bytes_peak", &[]),
        stats.value("corfs_window_budget_bytes", &[]),
    );
    assert!(
        peak <= budget,
        "{peak} bytes were mapped, the budget is {budget}"
    );
}

/// Says what each kind of reader met, and holds the direct ones of the mount to the native ones.
fn judge_tallies(options: &str, tallies: &[Tally]) {
    for (reader, tally) in READERS.iter().zip(tallies) {
        let (place, way) = (if reader.0 { "mount" } else { "native" }, reader.1);
        eprintln!(
            "{options}: {place} {way:?}: {} reads, {} MiB, {} of the solid set with zeros, \
             {} faults, slowest {:?}",
            tally.reads,
            tally.bytes >> 20,
            tally.zeros,
            tally.faults,
            tally.slowest
        );
        assert!(
            tally.reads > 0 && tally.bytes > 0,
            "{place} {way:?} read nothing"
        );
        if way != Way::Mapped {
            // A page lost between populating and replying ends a request with EIO: rare.
            assert!(
                tally.faults * 50 <= tally.reads,
                "{place} {way:?}: {} EIO",
                tally.faults
            );
        }
    }
    let zeros = |mounted: bool, way: Way| {
        let those = READERS
            .iter()
            .zip(tallies)
            .filter(|((m, w), _)| (*m, *w) == (mounted, way));
        let (zeros, reads) = those.fold((0, 0), |(z, r), (_, t)| (z + t.zeros, r + t.reads));
        zeros as f64 / reads as f64
    };
    let native = zeros(false, Way::Direct).max(zeros(false, Way::Buffered));
    let mounted = zeros(true, Way::Direct);
    eprintln!(
        "{options}: zeros in {mounted:.5} of direct reads of the mount, natively {native:.5}"
    );
    // Natively, too, a read meets a page that is just being cut off now and then: up to some in
    // 100,000 were seen, of buffered reads as of mapped ones.
    assert!(
        mounted <= native + 0.001,
        "{options}: zeros passed off as data"
    );
}

/// When the storm is over, the mount shows what the source holds.
fn assert_settled(mount: &Mount, source: &Path) {
    for set in [Set::Holed, Set::Solid] {
        for file in 0..FILES {
            let path = set.path(mount.path(), file);
            let native = read_file(&set.path(source, file));
            let judged = judge(set.seed(file), 0, &native);
            assert_eq!(judged.wrong, None, "the storm itself is wrong");
            if set == Set::Solid {
                assert_eq!(judged.zeros, 0, "the storm itself left a hole");
            }
            wait_until(
                "the mount shows the last state",
                Duration::from_secs(15),
                || fs::read(&path).is_ok_and(|bytes| bytes == native),
            );
        }
    }
}

#[test]
fn files_that_change_are_read_through_windows() {
    storm("io=mmap,window=1M,window_budget=8M");
}

#[test]
fn files_that_change_are_read_through_buffers() {
    storm("io=pread");
}

#[test]
fn every_wrong_byte_is_seen() {
    let good = bytes_of(3, 5, 1000, 5000);
    let fine = judge(3, 1000, &good);
    assert_eq!((fine.zeros, fine.wrong), (0, None));
    let mut holed = good.clone();
    holed[70..90].fill(0);
    assert_eq!(judge(3, 1000, &holed).zeros, 20);
    for wrong in [
        judge(4, 1000, &good),
        judge(3, 1004, &good),
        judge(3, 5096, &good),
    ] {
        assert!(wrong.wrong.is_some_and(|at| at < 6000), "{wrong:?}");
    }
    let mut no_generation = good;
    let at = no_generation
        .iter()
        .position(|&byte| byte & 31 != 0)
        .expect("not all marks are 0");
    no_generation[at] &= 31;
    assert_eq!(judge(3, 1000, &no_generation).wrong, Some(1000 + at as u64));
}

// ---------------------------------------------------------------------------------------------
// A device that fails

#[test]
fn a_failing_device_gives_eio_and_nobody_dies() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let device = Loop::new("ext4", 256 << 20);
    let native = device.path().join("f");
    let size = 160 << 20;
    write_content(&native, 6, size);
    run(&mut sh(device.path(), "sync -f ."));
    // The second half of the device is gone: reading it is an I/O error.
    File::options()
        .write(true)
        .open(device.image())
        .unwrap()
        .set_len(128 << 20)
        .unwrap();
    for options in ["io=mmap", "io=pread"] {
        assert!(drop_caches());
        let open = |path: &Path, flags| {
            File::options()
                .read(true)
                .custom_flags(flags)
                .open(path)
                .unwrap()
        };
        let (good, bad) = good_and_bad(&open(&native, libc::O_DIRECT), size);
        let mut mount = Mount::of(device.path()).opt(options).start();
        let mirrored = mount.path().join("f");
        let mut buffer = Buffer::new(MOST);
        for flags in [libc::O_DIRECT, 0] {
            let file = open(&mirrored, flags);
            for _ in 0..3 {
                let read = file.read_at(buffer.bytes(MOST), bad);
                assert_eq!(errno_of(options, read), Errno::IO, "at {bad}");
                let n = file.read_at(buffer.bytes(MOST), good).unwrap();
                assert_content(6, good, &buffer.bytes(MOST)[..n]);
                assert!(n > 0);
            }
        }
        let file = open(&mirrored, 0);
        let lost = read_mapping(&file, bad, buffer.bytes(MOST));
        assert_eq!(errno_of("a mapping of it", lost), Errno::FAULT);
        assert!(mount.alive(), "{options}: the daemon died");
        assert!(!mount.stats().samples.is_empty());
    }
}

/// A mebibyte that reads well, and one whose first byte is an I/O error already.
fn good_and_bad(file: &File, size: u64) -> (u64, u64) {
    let mut buffer = Buffer::new(MOST);
    let (mut good, mut bad) = (None, None);
    for at in (0..size).step_by(MOST) {
        match file.read_at(buffer.bytes(MOST), at) {
            Ok(MOST) => good = Some(at),
            // The failure begins within it.
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "at {at}");
                bad = Some(at);
            }
        }
    }
    (
        good.expect("some of it is whole"),
        bad.expect("some of it is lost"),
    )
}
