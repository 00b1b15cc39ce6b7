//! What an interrupted copy leaves, and what the next one makes of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::open;

use super::super::tests::ends;
use super::*;
use crate::copy::options::{CopyOptions, Method, Reflink};
use crate::observe::Metrics;

const SIZE: u64 = (24 << 20) + 777;

struct World {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let bytes: Vec<u8> = (0..SIZE).map(|i| ((i * 31) ^ (i >> 9)) as u8 | 1).collect();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("from"), &bytes).unwrap();
        Self { folder, bytes }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Copies, to be cancelled when `until` bytes are done. Answers how it ended, and the bytes
    /// that were moved.
    fn copy(&self, resume: bool, until: u64) -> (Option<Errno>, u64) {
        // Slowly enough that who is to cancel it does not come too late on a busy machine.
        let pace = std::num::NonZeroU64::new(48 << 20).filter(|_| !resume && until < SIZE);
        let (progress, metrics) = (Progress::new(pace), Metrics::new());
        let outcome = self.copy_with(resume, until, &progress, &metrics);
        let text = metrics.open_metrics();
        let moved = text
            .lines()
            .find_map(|line| line.strip_prefix("corfs_copy_bytes_total "));
        let moved = moved.unwrap().parse().unwrap();
        (outcome.err().map(|fail| fail.errno), moved)
    }

    fn copy_with(
        &self,
        resume: bool,
        until: u64,
        progress: &Progress,
        metrics: &Metrics,
    ) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = open(self.path(), flags, Mode::empty()).unwrap();
        let (source, target) = ends((&root, "from"), (&root, "to")).unwrap();
        let options = CopyOptions {
            resume,
            chunk: 1 << 20,
            reflink: Reflink::Never,
            method: Some(Method::MapWrite),
            ..CopyOptions::default()
        };
        let order = Order {
            options: &options,
            progress,
            metrics,
        };
        std::thread::scope(|scope| {
            let copying = scope.spawn(|| super::super::copy(&source, &target, &order));
            while progress.bytes_done() < until && !copying.is_finished() {
                std::hint::spin_loop();
            }
            if until < SIZE {
                progress.cancel();
            }
            copying.join().unwrap().map(drop)
        })
    }

    fn part(&self) -> PathBuf {
        self.path().join(part_name(OsStr::new("to")))
    }

    fn journal(&self) -> PathBuf {
        self.path().join(journal_of(&part_name(OsStr::new("to"))))
    }

    /// Interrupts a copy after a part of it.
    fn interrupted() -> Self {
        let this = Self::new();
        let (errno, _) = this.copy(true, 6 << 20);
        assert_eq!(errno, Some(Errno::INTR));
        assert!(this.part().exists() && this.journal().exists());
        this
    }

    #[track_caller]
    fn assert_done(&self) {
        assert!(fs::read(self.path().join("to")).unwrap() == self.bytes);
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["from", "to"]);
    }
}

#[test]
fn only_what_is_missing_is_moved() {
    let world = World::interrupted();
    assert_eq!(fs::metadata(world.part()).unwrap().mode() & 0o7777, 0o600);
    let (errno, moved) = world.copy(true, SIZE);
    assert_eq!(errno, None);
    assert!(moved <= SIZE - (4 << 20), "{moved} bytes were moved again");
    world.assert_done();
}

#[test]
fn it_can_be_interrupted_again_and_again() {
    let world = World::new();
    let mut moved = 0;
    for _ in 0..100 {
        let (errno, bytes) = world.copy(true, 1 << 20);
        moved += bytes;
        match errno {
            None => break,
            Some(errno) => assert_eq!(errno, Errno::INTR),
        }
    }
    let (errno, bytes) = world.copy(true, SIZE);
    assert_eq!(errno, None);
    world.assert_done();
    let twice = 2 * SIZE + bytes;
    assert!(moved <= twice, "{moved} bytes for {SIZE}");
}

#[test]
fn without_it_nothing_is_left_and_what_was_left_goes() {
    let world = World::new();
    assert_eq!(world.copy(false, 6 << 20).0, Some(Errno::INTR));
    assert!(!world.part().exists());
    let world = World::interrupted();
    assert_eq!(world.copy(false, SIZE), (None, SIZE));
    world.assert_done();
}

#[test]
fn another_source_is_copied_from_the_beginning() {
    let mut world = World::interrupted();
    world.bytes[0] = 99;
    let from = File::options().write(true).open(world.path().join("from"));
    from.unwrap().write_all_at(&[99], 0).unwrap();
    assert_eq!(world.copy(true, SIZE), (None, SIZE));
    world.assert_done();
}

#[test]
fn a_journal_is_not_believed() {
    let damages: [fn(&World); 5] = [
        |world| fs::remove_file(world.journal()).unwrap(),
        |world| fs::write(world.journal(), "no journal").unwrap(),
        |world| {
            let part = fs::read(world.part()).unwrap();
            fs::remove_file(world.part()).unwrap();
            // Another file with the same bytes, whose inode is not the part's.
            fs::write(world.path().join("other"), "").unwrap();
            fs::write(world.part(), part).unwrap();
            fs::remove_file(world.path().join("other")).unwrap();
        },
        |world| {
            let journal = File::options().write(true).open(world.journal());
            journal.unwrap().write_all_at(&[0xff], 20).unwrap();
        },
        |world| fs::remove_file(world.part()).unwrap(),
    ];
    for damage in damages {
        let world = World::interrupted();
        damage(&world);
        let (errno, _) = world.copy(true, SIZE);
        assert_eq!(errno, None);
        world.assert_done();
    }
}

#[test]
fn a_foreign_part_is_neither_written_to_nor_believed() {
    let world = World::new();
    let victim = world.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    for kind in 0..4 {
        match kind {
            0 => symlink("victim", world.part()).unwrap(),
            1 => fs::hard_link(&victim, world.part()).unwrap(),
            2 => {
                fs::write(world.part(), "open to all").unwrap();
                fs::set_permissions(world.part(), fs::Permissions::from_mode(0o666)).unwrap();
            }
            _ => symlink("victim", world.journal()).unwrap(),
        }
        assert_eq!(world.copy(true, SIZE), (None, SIZE), "{kind}");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        fs::remove_file(world.path().join("to")).unwrap();
        assert!(!world.part().exists() && fs::symlink_metadata(world.journal()).is_err());
    }
    // What can't be removed either is left alone.
    fs::create_dir(world.part()).unwrap();
    assert_eq!(world.copy(true, SIZE), (None, SIZE));
    assert!(world.part().is_dir());
}

#[test]
fn two_do_not_share_a_part() {
    let world = World::interrupted();
    let other = File::open(world.part()).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(world.copy(true, SIZE), (Some(Errno::BUSY), 0));
    // Nor is it taken away from the one who is at it.
    assert_eq!(world.copy(false, SIZE), (None, SIZE));
    assert!(world.part().exists());
    drop(other);
    let (errno, moved) = world.copy(true, SIZE);
    assert_eq!(errno, None);
    assert!(moved < SIZE);
    world.assert_done();
}

#[test]
fn what_is_checked_past_the_page_cache_does_not_stay_in_it() {
    for direct in [false, true] {
        let world = World::interrupted();
        let options = CopyOptions {
            resume: true,
            direct,
            ..CopyOptions::default()
        };
        let order = Order {
            options: &options,
            progress: &Progress::new(None),
            metrics: &Metrics::new(),
        };
        let root = open(
            world.path(),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
        let (source, target) = ends((&root, "from"), (&root, "to")).unwrap();
        let part = Part::open(&target, &order).unwrap().unwrap();
        rustix::fs::fsync(&part.file).unwrap();
        fadvise(&part.file, 0, None, Advice::DontNeed).unwrap();
        let cached = || crate::sys::pages::cached(part.file.as_fd(), 0, SIZE);
        if cached() != Some(0) {
            return crate::sys::testing::skip("nothing is known of a cache, or all stays in it");
        }
        assert!(!part.begin(&source.stat).unwrap().is_empty());
        assert_eq!(cached() == Some(0), direct, "{:?} pages", cached());
    }
}

#[test]
fn small_files_are_just_copied() {
    let world = World::new();
    fs::write(world.path().join("from"), "small").unwrap();
    let progress = Progress::new(None);
    progress.cancel();
    assert!(
        world
            .copy_with(true, SIZE, &progress, &Metrics::new())
            .is_err()
    );
    assert!(!world.part().exists());
    assert_eq!(world.copy(true, SIZE), (None, 5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn bytes_that_changed_in_the_part_are_copied_again(
        at in prop::collection::vec((0..SIZE, any::<u8>()), 1..5),
        holes in any::<bool>(),
    ) {
        let mut world = World::new();
        if holes {
            world.bytes[2 << 20..9 << 20].fill(0);
            let from = File::options().write(true).open(world.path().join("from")).unwrap();
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(&from, punch, 2 << 20, 7 << 20).is_err() {
                from.write_all_at(&vec![0; 7 << 20], 2 << 20).unwrap();
            }
        }
        prop_assert_eq!(world.copy(true, 8 << 20).0, Some(Errno::INTR));
        if let Ok(part) = File::options().write(true).open(world.part()) {
            for (at, byte) in at {
                part.write_all_at(&[byte], at).unwrap();
            }
        }
        prop_assert_eq!(world.copy(true, SIZE).0, None);
        world.assert_done();
    }

    #[test]
    fn joined_ranges_are_what_was_put_in(
        parts in prop::collection::vec((0u64..200, 1u64..20), 0..40),
    ) {
        let mut ranges = Vec::new();
        let mut known = [false; 256];
        for (start, len) in parts {
            insert(&mut ranges, start..start + len);
            known[start as usize..(start + len) as usize].fill(true);
        }
        prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
        for (at, known) in known.iter().enumerate() {
            let found = ranges.iter().any(|range| range.contains(&(at as u64)));
            prop_assert_eq!(found, *known);
        }
    }
}
