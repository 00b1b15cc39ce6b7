//! Bytes moved between two open files, by every method.

use std::fs::File;
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fstat};

use super::workers::Kind;
use super::*;
use crate::copy::extents::Extents;
use crate::observe::Metrics;
use crate::sys::pages;

const MIB: u64 = 1 << 20;

fn options(method: Option<Method>) -> CopyOptions {
    CopyOptions {
        method,
        reflink: Reflink::Never,
        chunk: 64 << 10,
        ..CopyOptions::default()
    }
}

fn every() -> impl Iterator<Item = Option<Method>> {
    Method::ALL.into_iter().map(Some).chain([None])
}

/// Two files of one folder, which are gone with it.
fn pair(folder: &Path) -> (File, File) {
    let open = |name| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(folder.join(name)).unwrap()
    };
    (open("from"), open("to"))
}

fn moved<T>(
    from: &File,
    to: &File,
    options: &CopyOptions,
    progress: &Progress,
    look: impl FnOnce(Pass<'_>) -> T,
) -> T {
    let metrics = Metrics::new();
    let order = Order {
        options,
        progress,
        metrics: &metrics,
    };
    let stat = fstat(from).unwrap();
    look(Pass::new(from.as_fd(), to.as_fd(), &stat, &order))
}

fn run(from: &File, to: &File, options: &CopyOptions) -> Result<Option<Method>> {
    let progress = Progress::new(None);
    moved(from, to, options, &progress, |pass| pass.run())?;
    assert_eq!(progress.bytes_done(), progress.bytes_total(), "{options:?}");
    Ok(progress.method())
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 9)) as u8 | 1).collect()
}

/// Data and holes in turn, of these lengths; some of the data are zeros.
fn lay_out(file: &File, parts: &[(u32, u32, bool)]) {
    let mut at = 0;
    for &(data, hole, zeros) in parts {
        let bytes = if zeros {
            vec![0; data as usize]
        } else {
            pattern(data as usize)
        };
        file.write_all_at(&bytes, at).unwrap();
        at += u64::from(data) + u64::from(hole);
        file.set_len(at).unwrap();
    }
    // So that what is allocated is known.
    file.sync_all().unwrap();
}

/// What ext4 takes for the tree of a file with many extents counts as the file's.
const TREE: u64 = 128 << 10;

fn any_method() -> impl Strategy<Value = Option<Method>> {
    prop::option::of(prop::sample::select(&Method::ALL[..]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_layout_is_copied_by_every_method(
        parts in prop::collection::vec((1u32..200_000, 0u32..400_000, any::<bool>()), 0..8),
        method in any_method(),
        chunk in 1u64..40,
        workers in prop::option::of(1u16..5),
        sparse in prop::sample::select(&[Sparse::Auto, Sparse::Always, Sparse::Never][..]),
        reflink in prop::sample::select(&[Reflink::Auto, Reflink::Never][..]),
        direct in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = pair(folder.path());
        lay_out(&from, &parts);
        let options = CopyOptions {
            chunk: chunk * 4096,
            workers: workers.and_then(NonZeroU16::new),
            sparse,
            direct,
            ..CopyOptions { reflink, ..options(method) }
        };
        run(&from, &to, &options).unwrap();
        prop_assert!(bytes_of(&from) == bytes_of(&to));
        let flags = |file: &File| fcntl_getfl(file).unwrap();
        prop_assert!(!(flags(&from) | flags(&to)).contains(OFlags::DIRECT));
        to.sync_all().unwrap();
        let allocated = |file: &File| file.metadata().unwrap().blocks() * 512;
        match sparse {
            Sparse::Never => prop_assert!(allocated(&to) >= to.metadata().unwrap().len()),
            _ => prop_assert!(allocated(&to) <= allocated(&from) + TREE),
        }
    }

    #[test]
    fn what_is_there_already_is_not_touched_and_the_rest_is_told(
        parts in prop::collection::vec((1u32..200_000, 0u32..300_000, Just(false)), 1..6),
        cuts in prop::collection::btree_set(0u64..1_500_000, 0..10),
        method in any_method(),
        workers in 1u16..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = pair(folder.path());
        lay_out(&from, &parts);
        let size = from.metadata().unwrap().len();
        let cuts: Vec<u64> = cuts.into_iter().filter(|&at| at < size).collect();
        let already: Vec<_> = cuts.chunks_exact(2).map(|ends| ends[0]..ends[1]).collect();
        for range in &already {
            to.write_all_at(&vec![b'!'; (range.end - range.start) as usize], range.start).unwrap();
        }
        let told = Mutex::new(already.clone());
        let options = CopyOptions { workers: NonZeroU16::new(workers), ..options(method) };
        let progress = Progress::new(None);
        moved(&from, &to, &options, &progress, |pass| {
            pass.already(&already).on_done(&|range| { told.lock().push(range); Ok(()) }).run()
        }).unwrap();
        let mut expected = bytes_of(&from);
        for range in &already {
            expected[range.start as usize..range.end as usize].fill(b'!');
        }
        prop_assert!(bytes_of(&to) == expected);
        prop_assert_eq!(progress.bytes_done(), progress.bytes_total());
        // Together they are the data, once.
        let mut told = told.into_inner();
        told.sort_by_key(|range| range.start);
        prop_assert!(told.windows(2).all(|two| two[0].end <= two[1].start), "{:?}", told);
        for extent in Extents::new(from.as_fd(), size) {
            let extent = extent.unwrap();
            let covered = plan::overlap(&told, &extent);
            prop_assert_eq!(covered, extent.end - extent.start, "{:?} of {:?}", extent, told);
        }
    }
}

#[test]
fn each_method_is_the_one_that_was_asked_for_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    from.write_all_at(&pattern(300_000), 0).unwrap();
    let plain = shared::never_shares(shared::kind(from.as_fd()));
    let ranges = if plain {
        Method::CopyRange
    } else {
        Method::MapWrite
    };
    for (asked, used) in [
        // Nothing is shared that must not be.
        (Some(Method::Reflink), Method::MapWrite),
        (None, Method::MapWrite),
        (Some(Method::MapWrite), Method::MapWrite),
        (Some(Method::MapMap), Method::MapMap),
        (Some(Method::CopyRange), ranges),
        (Some(Method::ReadWrite), Method::ReadWrite),
    ] {
        let done = run(&from, &to, &options(asked));
        assert_eq!(done.unwrap(), Some(used), "{asked:?}");
    }
}

#[test]
fn the_ladder_follows_the_file_systems_and_the_options() {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const NFS: u64 = 0x6969;
    use Method::{CopyRange, MapMap, MapWrite, ReadWrite};
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let ladder = |kind, method, reflink, sparse, direct| {
        let options = CopyOptions {
            method,
            reflink,
            sparse,
            ..CopyOptions::default()
        };
        moved(&file, &file, &options, &Progress::new(None), |pass| {
            pass.ladder((kind, kind), direct)
        })
    };
    let (auto, never) = (Reflink::Auto, Reflink::Never);
    let holes = Sparse::Auto;
    let bytes = [MapWrite, ReadWrite];
    assert_eq!(ladder(EXT4, None, auto, holes, false), bytes);
    assert_eq!(
        ladder(NFS, None, auto, holes, false),
        [CopyRange, MapWrite, ReadWrite]
    );
    // A server may share what it copies.
    assert_eq!(ladder(NFS, None, never, holes, false), bytes);
    assert_eq!(ladder(XFS, Some(CopyRange), never, holes, false), bytes);
    let by_ranges = [CopyRange, MapWrite, ReadWrite];
    assert_eq!(ladder(XFS, Some(CopyRange), auto, holes, false), by_ranges);
    assert_eq!(
        ladder(EXT4, Some(CopyRange), never, holes, false),
        by_ranges
    );
    // The kernel does not look for zeros, and keeps holes where it shares.
    assert_eq!(
        ladder(EXT4, Some(CopyRange), auto, Sparse::Always, false),
        bytes
    );
    assert_eq!(
        ladder(XFS, Some(CopyRange), auto, Sparse::Never, false),
        bytes
    );
    let by_maps = [MapMap, MapWrite, ReadWrite];
    assert_eq!(ladder(XFS, Some(MapMap), auto, holes, false), by_maps);
    assert_eq!(
        ladder(XFS, Some(MapMap), auto, Sparse::Always, false),
        bytes
    );
    assert_eq!(ladder(XFS, Some(MapMap), auto, holes, true), [ReadWrite]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    from.write_all_at(b"text", 0).unwrap();
    let always = CopyOptions {
        reflink: Reflink::Always,
        ..CopyOptions::default()
    };
    for wrong in [
        CopyOptions {
            method: Some(Method::MapWrite),
            ..always.clone()
        },
        CopyOptions {
            sparse: Sparse::Always,
            ..always
        },
    ] {
        let fail = run(&from, &to, &wrong).unwrap_err();
        assert_eq!(fail.errno, Errno::INVAL, "{wrong:?}");
    }
}

#[test]
fn sharing_that_must_be_and_cannot_is_an_error_and_else_none() {
    // tmpfs shares no extents.
    let shm = Path::new("/dev/shm");
    if shared::kind(File::open(shm).unwrap().as_fd()) != 0x0102_1994 {
        crate::sys::testing::skip("no tmpfs at /dev/shm");
        return;
    }
    let folder = tempfile::tempdir_in(shm).unwrap();
    let (from, to) = pair(folder.path());
    from.write_all_at(&pattern(100_000), 0).unwrap();
    let asked = |reflink, method| CopyOptions {
        reflink,
        ..options(method)
    };
    for method in [None, Some(Method::Reflink)] {
        let fail = run(&from, &to, &asked(Reflink::Always, method)).unwrap_err();
        assert_eq!(fail.errno, Errno::OPNOTSUPP);
        let done = run(&from, &to, &asked(Reflink::Auto, method)).unwrap();
        assert_eq!(done, Some(Method::MapWrite));
        assert!(bytes_of(&to) == pattern(100_000));
    }
}

#[test]
fn blocks_of_zeros_become_holes_when_asked_for() {
    for method in every() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = pair(folder.path());
        let mut bytes = vec![0; 3 << 20];
        bytes[MIB as usize] = 1;
        bytes.extend(b"the end");
        from.write_all_at(&bytes, 0).unwrap();
        let options = CopyOptions {
            sparse: Sparse::Always,
            ..options(method)
        };
        run(&from, &to, &options).unwrap();
        to.sync_all().unwrap();
        assert!(to.metadata().unwrap().blocks() * 512 <= TREE, "{method:?}");
        assert!(bytes_of(&to) == bytes);
    }
}

#[test]
fn every_method_can_be_cancelled_between_two_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    // More than what three workers hold of the largest parts.
    from.set_len(256 * MIB).unwrap();
    for at in 0..128 {
        from.write_all_at(&[7; MIB as usize], at * 2 * MIB).unwrap();
    }
    for method in every() {
        for (workers, direct) in [(1, false), (3, false), (2, true)] {
            let progress = Progress::new(None);
            let options = CopyOptions {
                workers: NonZeroU16::new(workers),
                direct,
                ..options(method)
            };
            let outcome = moved(&from, &to, &options, &progress, |pass| {
                let cancel = |_| {
                    progress.cancel();
                    Ok(())
                };
                pass.on_done(&cancel).run()
            });
            assert_eq!(outcome.unwrap_err().errno, Errno::INTR, "{method:?}");
            assert!(progress.bytes_done() < 128 * MIB, "{method:?}");
        }
    }
}

#[test]
fn who_is_told_may_end_it_and_all_workers_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    from.write_all_at(&vec![7; 32 * MIB as usize], 0).unwrap();
    for method in every() {
        let options = CopyOptions {
            workers: NonZeroU16::new(3),
            ..options(method)
        };
        let outcome = moved(&from, &to, &options, &Progress::new(None), |pass| {
            let refuse = |_| Err(Fail::new(Errno::DQUOT, "note"));
            pass.on_done(&refuse).run()
        });
        assert_eq!(outcome.unwrap_err().errno, Errno::DQUOT, "{method:?}");
    }
}

#[test]
fn what_is_taken_back_is_no_longer_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    from.write_all_at(&pattern(1_000_000), 0).unwrap();
    let progress = Progress::new(None);
    moved(&from, &to, &options(None), &progress, |pass| {
        pass.run().unwrap();
        assert_eq!(progress.bytes_done(), 1_000_000);
        pass.take_back();
    });
    assert_eq!((progress.bytes_done(), progress.bytes_total()), (0, 0));
}

#[test]
fn a_large_copy_finds_out_how_many_workers_it_wants() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = pair(folder.path());
    // Enough for a stretch of each, by several copies.
    let chunk = pattern(MIB as usize);
    (0..160).for_each(|at| from.write_all_at(&chunk, at * MIB).unwrap());
    let kind = Kind {
        source: shared::kind(from.as_fd()),
        destination: shared::kind(to.as_fd()),
        method: Some(Method::MapWrite),
        free: true,
        direct: false,
    };
    let options = CopyOptions {
        chunk: 4 * MIB,
        ..options(None)
    };
    let before = workers::stretches(kind);
    run(&from, &to, &options).unwrap();
    assert!(workers::stretches(kind) > before);
    let mut part = vec![0; MIB as usize];
    for at in 0..160 {
        to.read_exact_at(&mut part, at * MIB).unwrap();
        assert!(part == chunk, "at {at} MiB");
    }
}

#[test]
fn what_is_not_cached_goes_through_a_buffer_unless_mappings_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(3 << 20);
    let cached = |file: &File| pages::cached(file.as_fd(), 0, 3 << 20);
    for method in [None, Some(Method::MapWrite), Some(Method::MapMap)] {
        let (from, to) = pair(folder.path());
        from.write_all_at(&bytes, 0).unwrap();
        let mapped = method.or(Some(Method::MapWrite));
        assert_eq!(run(&from, &to, &options(method)).unwrap(), mapped);
        from.sync_all().unwrap();
        fadvise(&from, 0, None, Advice::DontNeed).unwrap();
        if cached(&from) != Some(0) {
            return crate::sys::testing::skip("nothing is known of a cache, or all stays in it");
        }
        let expected = method.or(Some(Method::ReadWrite));
        assert_eq!(run(&from, &to, &options(method)).unwrap(), expected);
        assert!(bytes_of(&to) == bytes, "{method:?}");
    }
}
