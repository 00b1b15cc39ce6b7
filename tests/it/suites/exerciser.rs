//! An exerciser in the manner of fsx for what its crate lacks: one file changed at random through
//! two descriptors (one of them O_DIRECT) and through mappings, with zeroed ranges and space set
//! aside, compared byte by byte with what it must hold, on the mount and on the source beneath.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate};

use super::million;
use crate::support::{
    Buffer, Dice, Loop, Mount, MountBuilder, Need, Scratch, assert_same_bytes, content,
    drop_caches, read_file, require,
};

/// What O_DIRECT is aligned to; a page, which every file system takes.
const BLOCK: u64 = 4096;

/// Places in the pool that a write's bytes may begin at.
const POOL: usize = 1 << 20;

/// Operations between two comparisons of the whole file, on the mount and beneath.
const BETWEEN_CHECKS: u64 = 5_000;

/// A file in exercise, and what it must hold.
struct Exerciser {
    path: PathBuf,
    /// The same file, not by way of the mount.
    beneath: PathBuf,
    buffered: File,
    direct: File,
    /// Held over several operations, as a program maps a file; see [`Self::hold`].
    held: Option<memmap2::MmapMut>,
    model: Vec<u8>,
    /// The file is never longer.
    limit: u64,
    /// No operation is longer.
    longest: u64,
    dice: Dice,
    /// What is written is a piece of this from anywhere: quickly had, hardly ever twice the same.
    pool: Vec<u8>,
    buffer: Buffer,
}

/// A byte range of the file.
#[derive(Clone, Copy)]
struct Range {
    from: u64,
    len: usize,
}

impl Range {
    fn end(self) -> u64 {
        self.from + self.len as u64
    }

    fn of<T>(self, bytes: &mut [T]) -> &mut [T] {
        &mut bytes[self.from as usize..][..self.len]
    }
}

impl Exerciser {
    fn new(folder: &Path, beneath: &Path, limit: u64, longest: u64, seed: u64) -> Self {
        let name = "exercised";
        let path = folder.join(name);
        let buffered = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("create");
        Self {
            direct: Self::open(&path, libc::O_DIRECT),
            path,
            beneath: beneath.join(name),
            buffered,
            held: None,
            model: Vec::new(),
            limit,
            longest,
            dice: Dice::new(seed),
            pool: content(seed, 0, POOL + longest as usize),
            buffer: Buffer::new((longest + BLOCK) as usize),
        }
    }

    fn open(path: &Path, flags: i32) -> File {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .expect("open")
    }

    /// Runs `operations`, each with a check of its own, all of the file checked now and then.
    fn run(&mut self, operations: u64) {
        for number in 0..operations {
            self.step(number);
            if number % BETWEEN_CHECKS == BETWEEN_CHECKS - 1 || number == operations - 1 {
                self.check(number);
            }
        }
    }

    fn step(&mut self, number: u64) {
        match self.dice.below(100) {
            0..12 => self.read(),
            12..24 => self.read_direct(),
            24..36 => self.read_mapped(),
            36..46 => self.write(),
            46..56 => self.write_direct(),
            56..66 => self.write_mapped(),
            66..71 => self.truncate(),
            71..76 => self.clear(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            76..81 => self.zero(),
            81..84 => self.set_aside(),
            84..90 => self.copy(),
            90..92 => self.hold(),
            92..94 => self.sync(),
            94..97 => self.forget(),
            _ => self.reopen(),
        }
        let size = self.buffered.metadata().expect("fstat").size();
        assert_eq!(
            size,
            self.model.len() as u64,
            "size after operation {number}"
        );
    }

    /// A range that begins within `size`, at least a byte long unless `size` is 0.
    fn range(&mut self, size: u64) -> Range {
        let from = self.dice.below(size.max(1));
        let len = (1 + self.dice.below(self.longest)).min(size - from.min(size));
        Range {
            from,
            len: len as usize,
        }
    }

    /// As [`Self::range`], in whole blocks.
    fn blocks(&mut self, size: u64) -> Range {
        let blocks = size / BLOCK;
        let first = self.dice.below(blocks.max(1));
        let len = (1 + self.dice.below(self.longest / BLOCK)).min(blocks - first.min(blocks));
        Range {
            from: first * BLOCK,
            len: (len * BLOCK) as usize,
        }
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// Puts new content into that range of the model.
    fn fill(&mut self, range: Range) {
        self.grow(range.end());
        let at = self.dice.below(POOL as u64) as usize;
        let bytes = &self.pool[at..][..range.len];
        range.of(&mut self.model).copy_from_slice(bytes);
    }

    fn grow(&mut self, size: u64) {
        if size > self.size() {
            self.model.resize(size as usize, 0);
        }
    }

    fn read(&mut self) {
        let range = self.range(self.size());
        let bytes = self.buffer.bytes(range.len);
        self.buffered
            .read_exact_at(bytes, range.from)
            .expect("read");
        assert_same_bytes(range.from, bytes, range.of(&mut self.model));
    }

    /// Whole blocks, over the end of the file now and then.
    fn read_direct(&mut self) {
        let range = self.blocks(self.size().next_multiple_of(BLOCK));
        let there = (self.size().min(range.end()) - range.from) as usize;
        let bytes = self.buffer.bytes(range.len);
        let read = self.direct.read_at(bytes, range.from).expect("direct read");
        assert_eq!(
            read, there,
            "bytes of a direct read of {} at {}",
            range.len, range.from
        );
        assert_same_bytes(
            range.from,
            &bytes[..read],
            &self.model[range.from as usize..][..read],
        );
    }

    /// By the mapping that is held if it reaches so far, else by a new one.
    fn read_mapped(&mut self) {
        let range = self.range(self.size());
        if range.len == 0 {
            return;
        }
        let expected = range.of(&mut self.model);
        match &mut self.held {
            Some(map) if map.len() as u64 >= range.end() => {
                assert_same_bytes(range.from, range.of(map), expected);
            }
            // SAFETY: nobody but this test changes the file, and never while this mapping lives.
            _ => assert_same_bytes(range.from, &unsafe { map(&self.buffered, range) }, expected),
        }
    }

    fn write(&mut self) {
        let range = self.range(self.limit);
        self.fill(range);
        let bytes = range.of(&mut self.model);
        self.buffered
            .write_all_at(bytes, range.from)
            .expect("write");
    }

    fn write_direct(&mut self) {
        let range = self.blocks(self.limit);
        self.fill(range);
        let aligned = self.buffer.bytes(range.len);
        aligned.copy_from_slice(range.of(&mut self.model));
        let written = self
            .direct
            .write_at(aligned, range.from)
            .expect("direct write");
        assert_eq!(
            written, range.len,
            "bytes of a direct write at {}",
            range.from
        );
    }

    /// Sometimes by the mapping that is held, sometimes followed by an msync, as programs do.
    fn write_mapped(&mut self) {
        let range = self.range(self.size());
        if range.len == 0 {
            return;
        }
        self.fill(range);
        let bytes = range.of(&mut self.model);
        if let Some(map) = self
            .held
            .as_mut()
            .filter(|map| map.len() as u64 >= range.end())
        {
            range.of(map).copy_from_slice(bytes);
            return;
        }
        // SAFETY: as in `read_mapped`.
        let mut map = unsafe { map(&self.buffered, range) };
        map.copy_from_slice(bytes);
        if self.dice.below(8) == 0 {
            map.flush().expect("msync");
        }
    }

    /// A mapping of the whole file, until the file is cut or opened anew.
    fn hold(&mut self) {
        let whole = Range {
            from: 0,
            len: self.model.len(),
        };
        // SAFETY: it is given up before the file is cut; changes by other ways are what we test.
        self.held = (whole.len > 0).then(|| unsafe { map(&self.buffered, whole) });
    }

    fn truncate(&mut self) {
        self.held = None;
        let size = self.dice.below(self.limit);
        self.model.resize(size as usize, 0);
        self.buffered.set_len(size).expect("ftruncate");
    }

    /// A punched or zeroed range reads as zeros; the size stays.
    fn clear(&mut self, how: FallocateFlags) {
        let range = self.range(self.size());
        if range.len == 0 {
            return;
        }
        range.of(&mut self.model).fill(0);
        fallocate(&self.buffered, how, range.from, range.len as u64).expect("fallocate");
    }

    fn zero(&mut self) {
        if self.dice.below(2) == 0 {
            return self.clear(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE);
        }
        let range = self.range(self.limit);
        self.grow(range.end());
        range.of(&mut self.model).fill(0);
        let how = FallocateFlags::ZERO_RANGE;
        fallocate(&self.buffered, how, range.from, range.len as u64).expect("zero range");
    }

    fn set_aside(&mut self) {
        let range = self.range(self.limit);
        let mut how = FallocateFlags::KEEP_SIZE;
        if self.dice.below(2) == 0 {
            how = FallocateFlags::empty();
            self.grow(range.end());
        }
        fallocate(&self.buffered, how, range.from, range.len as u64).expect("fallocate");
    }

    /// From one range of the file to another that does not touch it.
    fn copy(&mut self) {
        let from = self.range(self.size());
        let mut to = self.range(self.limit);
        to.len = to.len.min(from.len);
        if to.len == 0 || (to.from < from.end() && from.from < to.end()) {
            return;
        }
        let (mut at, mut into) = (from.from, to.from);
        while into < to.end() {
            let rest = (to.end() - into) as usize;
            let (source, target) = (&self.buffered, &self.buffered);
            let done = copy_file_range(source, Some(&mut at), target, Some(&mut into), rest);
            assert_ne!(
                done.expect("copy_file_range"),
                0,
                "a copy inside the file ended early"
            );
        }
        self.grow(to.end());
        let start = from.from as usize;
        self.model
            .copy_within(start..start + to.len, to.from as usize);
    }

    fn sync(&mut self) {
        match self.dice.below(3) {
            0 => self.buffered.sync_all().expect("fsync"),
            1 => self.direct.sync_data().expect("fdatasync"),
            _ => {
                if let Some(map) = &self.held {
                    map.flush().expect("msync");
                }
            }
        }
    }

    /// Lets go of the mount's cached pages of the file, those that are clean.
    fn forget(&mut self) {
        fadvise(&self.buffered, 0, None, Advice::DontNeed).expect("fadvise");
    }

    fn reopen(&mut self) {
        self.held = None;
        self.buffered = Self::open(&self.path, 0);
        if self.dice.below(2) == 0 {
            self.direct = Self::open(&self.path, libc::O_DIRECT);
        }
    }

    /// All of it, on the mount and, once written back, beneath.
    fn check(&mut self, number: u64) {
        let here = read_file(&self.path);
        assert_same_bytes(0, &here, &self.model);
        if let Some(map) = &self.held {
            assert_same_bytes(0, map, &self.model[..map.len()]);
        }
        self.buffered.sync_all().expect("fsync");
        let beneath = read_file(&self.beneath);
        assert!(
            beneath == self.model,
            "the source differs after operation {number}"
        );
    }
}

/// Maps a range that need not begin on a page.
///
/// # Safety
/// As [`memmap2::MmapMut::map_mut`]: the file must not be cut while the mapping lives.
unsafe fn map(file: &File, range: Range) -> memmap2::MmapMut {
    let mut options = memmap2::MmapOptions::new();
    options.offset(range.from).len(range.len);
    // SAFETY: the caller's word.
    unsafe { options.map_mut(file) }.expect("mmap")
}

/// `full` operations on the mount of a `kind`, a tenth of them natively first: that machine and
/// exerciser are well.
fn exercise(kind: &'static str, mount: impl Fn(MountBuilder) -> MountBuilder, seed: u64) {
    if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
        return;
    }
    let source = Loop::new(kind, 400 << 20);
    let operations = million();
    let (limit, longest) = (600_000, 70_000);
    let native = Scratch::in_folder(source.path());
    let at = native.path();
    Exerciser::new(at, at, limit, longest, seed).run(operations.div_ceil(10));
    let mount = mount(Mount::of(source.path())).start();
    Exerciser::new(mount.path(), source.path(), limit, longest, seed).run(operations);
    let left = fs::read(source.path().join("exercised")).expect("read");
    assert!(drop_caches());
    let mount = mount.remount();
    assert!(
        read_file(&mount.path().join("exercised")) == left,
        "after a new mount"
    );
    println!("exerciser on {kind}: seed {seed}, {operations} operations");
}

#[test]
fn exerciser_finds_nothing_over_ext4() {
    exercise("ext4", |mount| mount, 2_001);
}

#[test]
fn exerciser_finds_nothing_over_xfs_with_small_windows() {
    exercise(
        "xfs",
        |mount| mount.opt("window=64K,window_budget=2M"),
        2_002,
    );
}

#[test]
fn exerciser_finds_nothing_under_pread_over_btrfs() {
    exercise("btrfs", |mount| mount.opt("io=pread"), 2_003);
}

#[test]
fn exerciser_finds_nothing_over_xfs_where_the_kernel_keeps_what_is_written() {
    exercise("xfs", |mount| mount.opt("writeback=on"), 2_004);
}
