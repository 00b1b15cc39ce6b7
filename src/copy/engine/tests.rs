//! Copies made by the engine alone, on real files.

use std::ffi::OsString;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

use super::super::extents::Extents;
use super::super::options::Method;
use super::super::resolve::Tree;
use super::super::tree::{Destination, Names};
use super::*;

#[path = "inplace_tests.rs"]
mod inplace;

const METHODS: [Method; 2] = [Method::MapWrite, Method::MapMap];

type Outcome = std::result::Result<Method, Errno>;

fn copy_between(
    from: &Path,
    source: &str,
    to: &Path,
    target: &str,
    method: Method,
    progress: &Progress,
) -> Outcome {
    copy_in_chunks(from, source, to, target, method, progress, 64 << 10)
}

fn tree(folder: &OwnedFd) -> Tree<'_> {
    Tree {
        root: folder.as_fd(),
        directory: folder.as_fd(),
        mountpoints: &[],
        reserved: None,
        umask: 0o022,
        told: &|_| {},
    }
}

/// What is copied, and where to.
pub(super) fn ends(
    from: (&OwnedFd, &str),
    to: (&OwnedFd, &str),
) -> std::result::Result<(Source, Target), Errno> {
    let found = tree(from.0)
        .source(from.1.as_bytes(), true)
        .and_then(|found| Source::open(found.file.as_fd()))
        .map_err(|fail| fail.errno)?;
    match tree(to.0).destination(to.1.as_bytes(), true) {
        Ok(Destination::Name { target, .. }) => Ok((found, *target)),
        Ok(Destination::Directory(_)) => Err(Errno::ISDIR),
        Err(fail) => Err(fail.errno),
    }
}

fn copy_in_chunks(
    from: &Path,
    source: &str,
    to: &Path,
    target: &str,
    method: Method,
    progress: &Progress,
    chunk: u64,
) -> Outcome {
    let folder = |path| open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (from, to) = (folder(from), folder(to));
    let (found, place) = ends((&from, source), (&to, target))?;
    let metrics = Metrics::new();
    let options = CopyOptions {
        chunk,
        method: Some(method),
        ..CopyOptions::default()
    };
    let order = Order {
        options: &options,
        progress,
        metrics: &metrics,
    };
    let done = copy(&found, &place, &order);
    done.map(|_| progress.method().unwrap())
        .map_err(|fail| fail.errno)
}

fn copy_within(folder: &Path, source: &str, target: &str, method: Method) -> Outcome {
    copy_between(folder, source, folder, target, method, &Progress::new(None))
}

fn listing(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn stretches(path: &Path) -> Vec<Range<u64>> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    Extents::new(file.as_fd(), size)
        .map(Result::unwrap)
        .collect()
}

/// Ends the threads that look at it, also when the test fails: a scope waits for them.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that tell every place from every other one near it.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 9)) as u8 | 1).collect()
}

#[test]
fn mode_and_times_are_kept() {
    for method in METHODS {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::write(&from, pattern(70_001)).unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o751)).unwrap();
        let moment = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        let times = FileTimes::new()
            .set_accessed(moment(5_000_000_000))
            .set_modified(moment(7));
        File::options()
            .write(true)
            .open(&from)
            .unwrap()
            .set_times(times)
            .unwrap();

        assert_eq!(copy_within(folder.path(), "from", "to", method), Ok(method));
        let made = fs::metadata(folder.path().join("to")).unwrap();
        assert_eq!(made.mode() & 0o7777, 0o751);
        assert_eq!((made.mtime(), made.mtime_nsec()), (7, 123_456_789));
        assert_eq!(
            (made.atime(), made.atime_nsec()),
            (5_000_000_000, 123_456_789)
        );
        assert_eq!(fs::read(folder.path().join("to")).unwrap(), pattern(70_001));
    }
}

#[test]
fn holes_stay_holes() {
    for method in METHODS {
        let folder = tempfile::tempdir().unwrap();
        let from = File::create(folder.path().join("from")).unwrap();
        from.set_len((6 << 30) + 77).unwrap();
        from.write_all_at(&pattern(200_000), 12_345).unwrap();
        from.write_all_at(&pattern(5), 3 << 30).unwrap();
        from.write_all_at(&pattern(9), (6 << 30) - 4).unwrap();
        let progress = Progress::new(None);
        let place = folder.path();
        assert_eq!(
            copy_between(place, "from", place, "to", method, &progress),
            Ok(method)
        );

        let (from, to) = (place.join("from"), place.join("to"));
        assert_eq!(stretches(&from), stretches(&to));
        assert_eq!(fs::metadata(&to).unwrap().len(), (6 << 30) + 77);
        for stretch in stretches(&from) {
            let read = |path| {
                let mut bytes = vec![0; (stretch.end - stretch.start) as usize];
                File::open(path)
                    .unwrap()
                    .read_exact_at(&mut bytes, stretch.start)
                    .unwrap();
                bytes
            };
            assert_eq!(read(&from), read(&to));
        }
        let data: u64 = stretches(&from)
            .iter()
            .map(|part| part.end - part.start)
            .sum();
        assert_eq!(
            (progress.bytes_done(), progress.bytes_total()),
            (data, data)
        );
    }
}

#[test]
fn a_file_without_data_is_copied() {
    for method in METHODS {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("empty")).unwrap();
        assert_eq!(
            copy_within(folder.path(), "empty", "a", method),
            Ok(Method::ReadWrite)
        );
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().len(), 0);
        File::create(folder.path().join("hole"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        assert_eq!(copy_within(folder.path(), "hole", "b", method), Ok(method));
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), vec![0; 1 << 20]);
    }
}

#[test]
fn what_cannot_be_mapped_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path();
    let progress = || Progress::new(None);
    let proc = Path::new("/proc");
    assert_eq!(
        copy_between(proc, "version", to, "a", Method::MapMap, &progress()),
        Ok(Method::ReadWrite)
    );
    assert_eq!(
        fs::read(to.join("a")).unwrap(),
        fs::read("/proc/version").unwrap()
    );

    let sys = Path::new("/sys/kernel/mm/transparent_hugepage");
    if !sys.join("enabled").exists() {
        crate::sys::testing::skip(&format!("no {}", sys.display()));
        return;
    }
    // It says that it has a page, and has a line.
    assert_eq!(
        copy_between(sys, "enabled", to, "b", Method::MapMap, &progress()),
        Ok(Method::ReadWrite)
    );
    assert_eq!(
        fs::read(to.join("b")).unwrap(),
        fs::read(sys.join("enabled")).unwrap()
    );
}

#[test]
fn a_file_is_not_copied_onto_itself() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "text").unwrap();
    fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
    for name in ["a", "b", "./a"] {
        assert_eq!(
            copy_within(folder.path(), "a", name, Method::MapWrite),
            Err(Errno::INVAL)
        );
    }
    assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"text");
    assert_eq!(listing(folder.path()), ["a", "b"]);
}

#[test]
fn special_bits_are_kept_only_for_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    let own = fs::metadata(folder.path()).unwrap();
    for (uid, gid, kept) in [
        (own.uid(), own.gid(), 0o6755),
        (own.uid(), 1, 0o4755),
        (1, 1, 0o755),
    ] {
        fs::write(&from, "text").unwrap();
        if chown(&from, Some(uid), Some(gid)).is_err() {
            crate::sys::testing::skip("may not give files away");
            continue;
        }
        fs::set_permissions(&from, Permissions::from_mode(0o6755)).unwrap();
        copy_within(folder.path(), "from", "to", Method::MapWrite).unwrap();
        let made = fs::metadata(folder.path().join("to")).unwrap();
        assert_eq!(made.mode() & 0o7777, kept);
        fs::remove_file(&from).unwrap();
    }
}

#[test]
fn a_cancelled_copy_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let mut from = File::create(place.join("from")).unwrap();
    for _ in 0..128 {
        from.write_all(&[7; 1 << 20]).unwrap();
    }
    fs::write(place.join("to"), "old").unwrap();
    for method in METHODS {
        let progress = Progress::new(None);
        std::thread::scope(|scope| {
            let copying =
                scope.spawn(|| copy_between(place, "from", place, "to", method, &progress));
            while progress.bytes_done() == 0 && !copying.is_finished() {
                std::thread::yield_now();
            }
            progress.cancel();
            assert_eq!(copying.join().unwrap(), Err(Errno::INTR));
        });
        assert!(progress.bytes_done() < 128 << 20);
        assert_eq!(fs::read(place.join("to")).unwrap(), b"old");
        assert_eq!(listing(place), ["from", "to"]);
    }
}

/// A thread with a mount namespace of its own, in which a small tmpfs is mounted: both vanish with
/// it. Skipped where that is not permitted.
fn on_a_small_file_system(size: &str, f: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[allow(deprecated, reason = "what made it unsafe is UnshareFlags::FILES")]
            if let Err(errno) = rustix::thread::unshare(UnshareFlags::NEWNS) {
                crate::sys::testing::skip(&format!("no mount namespace ({errno})"));
                return;
            }
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new(format!("size={size}")).unwrap();
            mount(
                "corfs-test",
                folder.path(),
                "tmpfs",
                MountFlags::empty(),
                options.as_c_str(),
            )
            .unwrap();
            f(folder.path());
            rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_full_disk_changes_nothing() {
    on_a_small_file_system("8m", |place| {
        fs::write(place.join("from"), pattern(5 << 20)).unwrap();
        fs::write(place.join("to"), "old").unwrap();
        for method in METHODS {
            for target in ["to", "new"] {
                let outcome = copy_within(place, "from", target, method);
                assert_eq!(outcome, Err(Errno::NOSPC));
                assert_eq!(fs::read(place.join("to")).unwrap(), b"old");
                assert_eq!(listing(place), ["from", "to"]);
            }
        }
        let used = rustix::fs::statfs(place).unwrap();
        assert!(used.f_bavail > 512, "the space is free again");
    });
}

#[test]
fn a_disk_that_fills_without_reservation_changes_nothing() {
    // A source without a size can't be reserved for: the write itself finds the disk full.
    on_a_small_file_system("64k", |place| {
        let progress = Progress::new(None);
        let method = Method::MapWrite;
        let outcome = copy_between(
            Path::new("/proc"),
            "kallsyms",
            place,
            "to",
            method,
            &progress,
        );
        assert_eq!(outcome, Err(Errno::NOSPC));
        assert!(listing(place).is_empty());
    });
}

#[test]
fn what_is_replaced_is_whole_at_every_moment() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let (small, large) = (vec![b'a'; 100_000], vec![b'b'; 900_000]);
    fs::write(place.join("small"), &small).unwrap();
    fs::write(place.join("large"), &large).unwrap();
    fs::write(place.join("to"), &small).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let seen = fs::read(place.join("to")).unwrap();
                assert!(seen == small || seen == large, "{} bytes", seen.len());
            }
        });
        let ending = Over(&over);
        for round in 0..40 {
            let source = if round % 2 == 0 { "large" } else { "small" };
            copy_within(place, source, "to", METHODS[round / 2 % 2]).unwrap();
        }
        drop(ending);
        reader.join().unwrap();
    });
    assert_eq!(listing(place), ["large", "small", "to"]);
}

#[test]
fn a_source_that_is_truncated_and_extended_is_never_copied_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let source = File::create(place.join("from")).unwrap();
    source.write_all_at(&vec![b'a'; 2 << 20], 0).unwrap();
    let over = AtomicBool::new(false);
    let mut changed = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // No size comes twice, and every byte is an `a` at every moment.
            for round in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let short = 4096 + round * 7 % 1_000_000;
                source.set_len(short).unwrap();
                source
                    .write_all_at(&vec![b'a'; (1 << 20) + round as usize % 999], short)
                    .unwrap();
            }
        });
        let _ending = Over(&over);
        for round in 0..120 {
            match copy_within(place, "from", "to", METHODS[round % 2]) {
                Ok(_) => {
                    let seen = fs::read(place.join("to")).unwrap();
                    assert!(seen.len() >= 4096);
                    assert!(
                        seen.iter().all(|&byte| byte == b'a'),
                        "zeros passed off as data"
                    );
                }
                Err(Errno::BUSY) => changed += 1,
                Err(errno) => panic!("{errno}"),
            }
        }
    });
    assert!(changed > 0, "the storm was no storm");
    let left = listing(place);
    assert!(
        left.iter().all(|name| name == "from" || name == "to"),
        "{left:?}"
    );
}

/// Sizes and places where pages, chunks and pieces begin and end.
fn odd_len() -> impl Strategy<Value = usize> {
    let edges = prop_oneof![
        Just(4096),
        Just(8192),
        Just(65536),
        Just(131_072),
        Just(1 << 18)
    ];
    prop_oneof![
        0usize..300_000,
        (edges, -3i64..=3).prop_map(|(edge, off): (i64, i64)| (edge + off) as usize)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_size_is_copied_whole(
        len in odd_len(),
        map_map in any::<bool>(),
        chunk in 1u64..20,
        hole in prop::option::of((odd_len(), odd_len())),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        let mut bytes = pattern(len);
        fs::write(place.join("from"), &bytes).unwrap();
        if let Some((at, size)) = hole.filter(|&(at, size)| at < len && size > 0) {
            let end = (at + size).min(len);
            bytes[at..end].fill(0);
            let file = File::options().write(true).open(place.join("from")).unwrap();
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(&file, punch, at as u64, (end - at) as u64).is_err() {
                file.write_all_at(&bytes[at..end], at as u64).unwrap();
            }
        }
        let progress = Progress::new(None);
        let method = METHODS[usize::from(map_map)];
        copy_in_chunks(place, "from", place, "to", method, &progress, chunk * 4096).unwrap();
        prop_assert!(fs::read(place.join("to")).unwrap() == bytes);
        prop_assert_eq!(listing(place), ["from", "to"]);
    }
}
