//! Methods, holes and space, on each kind of file system.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::support::{
    Dice, Mount, Need, Scratch, assert_content, assert_same_bytes, content, read_file, require,
    soak, wait_until, write_content,
};

use super::disks::*;

const MIB: u64 = 1 << 20;

/// A line's options, the method that then moves the bytes where extents are shared, and elsewhere.
const ASKED: [(&str, &str, &str); 12] = [
    ("", "reflink", "map-write"),
    ("--method=reflink", "reflink", "map-write"),
    ("--reflink=never", "map-write", "map-write"),
    ("--method=map-write", "map-write", "map-write"),
    ("--method=map-write --workers=3", "map-write", "map-write"),
    ("--method=map-map", "map-map", "map-map"),
    (
        "--method=map-map --workers=2 --chunk=64K",
        "map-map",
        "map-map",
    ),
    ("--method=copy-range", "copy-range", "copy-range"),
    // What shares extents there must not be used.
    (
        "--method=copy-range --reflink=never",
        "map-write",
        "copy-range",
    ),
    ("--method=read-write", "read-write", "read-write"),
    ("--sparse=always --reflink=never", "map-write", "map-write"),
    ("--sparse=never --reflink=never", "map-write", "map-write"),
];

#[test]
fn every_method_copies_on_every_file_system_and_says_which_it_was() {
    on_each(&ALL, |kind, disk| {
        let shares = SHARING.contains(&kind);
        write_content(&disk.join("f"), 3, 9 * MIB + 123);
        let mount = Mount::of(disk).start();
        for (options, sharing, other) in ASKED {
            let method = copy(&mount, &format!("{options} f t")).unwrap();
            let expected = if shares { sharing } else { other };
            assert_eq!(method, expected, "{options} on {kind}");
            let bytes = read_file(&disk.join("t"));
            assert_eq!(bytes.len() as u64, 9 * MIB + 123, "{options} on {kind}");
            assert_content(3, 0, &bytes);
        }
    });
}

#[test]
fn extents_are_shared_unless_forbidden_and_then_never() {
    on_each(&SHARING, |kind, disk| {
        write_content(&disk.join("f"), 3, 24 * MIB + 5);
        let mount = Mount::of(disk).start();
        let taken = |options: &str, name: &str| {
            let before = free(disk);
            copy(&mount, &format!("{options} f {name}")).unwrap();
            assert_content(3, 0, &read_file(&disk.join(name)));
            // It stays: space comes back in the background, which the next one would count.
            before.saturating_sub(free(disk))
        };
        for options in [
            "",
            "--reflink=always",
            "--method=reflink",
            "--method=copy-range",
        ] {
            let name = format!("shared{}", options.len());
            let taken = taken(options, &name);
            assert!(taken < 8 * MIB, "{options} on {kind} took {taken} bytes");
        }
        for options in [
            "--reflink=never",
            "--reflink=never --method=copy-range",
            "--reflink=never --method=map-map",
            "--method=map-write",
            "--method=read-write",
        ] {
            let name = format!("own{}", options.len());
            let taken = taken(options, &name);
            assert!(taken > 20 * MIB, "{options} on {kind} took {taken} bytes");
        }
    });
}

#[test]
fn a_reflink_of_a_file_that_changes_is_one_state_of_it() {
    on_each(&["xfs"], |_, disk| {
        let mount = Mount::of(disk).start();
        let file = File::create(disk.join("f")).unwrap();
        file.write_all_at(&vec![b'a'; 4 << 20], 0).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut letter = b'b';
                while !over.load(Ordering::Relaxed) {
                    file.write_all_at(&vec![letter; 4 << 20], 0).unwrap();
                    letter = if letter == b'z' { b'a' } else { letter + 1 };
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let mut outcomes = Vec::new();
            for _ in 0..soak(200) {
                let outcome = copy(&mount, "--reflink=always f t");
                if outcome.is_ok() {
                    let bytes = read_file(&disk.join("t"));
                    let first = bytes[0];
                    // One write of the writer is one change; a copy sees it whole or not at all.
                    outcomes.push(bytes.len() == 4 << 20 && bytes.iter().all(|b| *b == first));
                } else {
                    assert_eq!(outcome, Err(Errno::BUSY));
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(outcomes.iter().all(|whole| *whole), "a mix called success");
        });
    });
}

#[test]
fn sharing_that_must_be_and_cannot_is_refused() {
    on_each(&["ext4", "tmpfs"], |kind, disk| {
        write_content(&disk.join("f"), 3, MIB);
        let mount = Mount::of(disk).start();
        let refused = copy(&mount, "--reflink=always f t").unwrap_err();
        assert_eq!(refused, Errno::OPNOTSUPP, "{kind}");
        assert!(!disk.join("t").exists());
    });
}

#[test]
fn in_place_of_an_empty_source_whose_extents_are_shared_nothing_is_left() {
    on_each(&SHARING, |kind, disk| {
        fs::write(disk.join("f"), "").unwrap();
        let mount = Mount::of(disk).start();
        for old in [&b"old"[..], &content(3, 0, 300_000)] {
            fs::write(disk.join("t"), old).unwrap();
            let before = fs::metadata(disk.join("t")).unwrap().ino();
            copy(&mount, "--inplace --reflink=always f t").unwrap();
            let after = fs::metadata(disk.join("t")).unwrap();
            assert_eq!((after.ino(), after.len()), (before, 0), "{kind}");
        }
    });
}

#[test]
fn a_source_that_is_cut_off_while_its_extents_are_shared_is_copied_as_it_is_then() {
    on_each(&SHARING, |kind, disk| {
        let file = File::create(disk.join("f")).unwrap();
        file.write_all_at(&content(3, 0, MIB as usize), 0).unwrap();
        // A call for each GiB: there are many of them still to come.
        file.set_len(1 << 50).unwrap();
        let mount = Mount::of(disk).start();
        let jobs = || fs::read_to_string(mount.path().join(".corfs/jobs.json")).unwrap();
        let copied = std::thread::scope(|scope| {
            let copying = scope.spawn(|| copy(&mount, "--reflink=always f t"));
            wait_until("extents are shared", Duration::from_secs(30), || {
                jobs().contains("\"reflink\"") || copying.is_finished()
            });
            assert!(!copying.is_finished(), "it was over too soon on {kind}");
            file.set_len(MIB).unwrap();
            copying.join().unwrap()
        });
        assert_eq!(copied.as_deref(), Ok("reflink"), "{kind}");
        let bytes = read_file(&disk.join("t"));
        assert_eq!(bytes.len() as u64, MIB, "{kind}");
        assert_content(3, 0, &bytes);
    });
}

/// Data and holes in turn; some of the data are zeros. The bytes.
fn sparse_file(path: &Path, dice: &mut Dice) -> Vec<u8> {
    let file = File::create(path).unwrap();
    let mut bytes = Vec::new();
    for seed in 0..=dice.below(10) {
        let data = match dice.below(3) {
            0 => vec![0; dice.below(300_000) as usize],
            _ => content(seed, 0, dice.below(300_000) as usize),
        };
        file.write_all_at(&data, bytes.len() as u64).unwrap();
        bytes.extend(data);
        bytes.resize(bytes.len() + dice.below(700_000) as usize, 0);
        file.set_len(bytes.len() as u64).unwrap();
    }
    file.sync_all().unwrap();
    bytes
}

/// What a file system takes for its own lists of extents may count as the file's.
const LISTS: u64 = 128 << 10;

#[test]
fn random_layouts_are_kept_by_every_method_on_every_file_system() {
    on_each(&ALL, |kind, disk| {
        let mount = Mount::of(disk).start();
        let mut dice = Dice::new(kind.len() as u64);
        for _ in 0..soak(150) {
            let bytes = sparse_file(&disk.join("f"), &mut dice);
            let method = [
                "",
                "reflink",
                "map-write",
                "map-map",
                "copy-range",
                "read-write",
            ];
            let method = match method[dice.below(6) as usize] {
                "" => String::new(),
                name => format!("--method={name}"),
            };
            let chunk = 64 << dice.below(5);
            let workers = ["auto", "1", "2", "5"][dice.below(4) as usize];
            let line = format!("{method} --chunk={chunk}K --workers={workers} f t");
            copy(&mount, &line).unwrap();
            assert_same_bytes(0, &read_file(&disk.join("t")), &bytes);
            let to = File::open(disk.join("t")).unwrap();
            to.sync_all().unwrap();
            let blocks = |name| fs::metadata(disk.join(name)).unwrap().blocks() * 512;
            let (from, to) = (blocks("f"), blocks("t"));
            assert!(to <= from + LISTS, "{line} on {kind}: {to} bytes of {from}");
        }
    });
}

#[test]
fn zeros_become_holes_or_holes_zeros_as_asked() {
    on_each(&ALL, |kind, disk| {
        let mount = Mount::of(disk).start();
        let file = File::create(disk.join("f")).unwrap();
        // 8 MiB of zeros on disk, 8 MiB of hole, and some data.
        file.write_all_at(&vec![0; 8 << 20], 0).unwrap();
        file.write_all_at(&content(1, 0, 100_000), 16 * MIB)
            .unwrap();
        file.sync_all().unwrap();
        let expected = read_file(&disk.join("f"));
        let allocated = |options: &str| {
            copy(&mount, &format!("{options} f t")).unwrap();
            assert_same_bytes(0, &read_file(&disk.join("t")), &expected);
            let to = File::open(disk.join("t")).unwrap();
            to.sync_all().unwrap();
            to.metadata().unwrap().blocks() * 512
        };
        for method in ["map-write", "map-map", "copy-range", "read-write"] {
            let of = |sparse| allocated(&format!("--method={method} --sparse={sparse}"));
            assert!(of("always") < MIB, "{method} on {kind}");
            assert!(of("never") >= 16 * MIB, "{method} on {kind}");
            // XFS may count the hole as data that it will write one day.
            let source = file.metadata().unwrap().blocks() * 512;
            let auto = of("auto");
            assert!(auto >= 8 * MIB, "{method} on {kind}: {auto} bytes");
            assert!(auto <= source + LISTS, "{method} on {kind}: {auto} bytes");
        }
    });
}

#[test]
fn a_full_disk_is_found_before_the_first_byte() {
    on_each(&["ext4", "xfs", "tmpfs"], |kind, disk| {
        write_content(&disk.join("f"), 3, 40 * MIB);
        fill(disk, 20 * MIB);
        let mount = Mount::of(disk).start();
        let before = free(disk);
        for method in ["map-write", "map-map", "read-write"] {
            let refused = copy(&mount, &format!("--reflink=never --method={method} f t"));
            assert_eq!(refused, Err(Errno::NOSPC), "{method} on {kind}");
            let stats = mount.stats();
            let moved = stats.value("corfs_copy_bytes_total", &[]);
            assert_eq!(moved, 0.0, "{method} on {kind}");
        }
        assert!(!disk.join("t").exists());
        assert!(free(disk) + 4 * MIB > before, "the space is back on {kind}");
    });
}

/// Pages of a file in the page cache (mincore(2)).
fn cached_pages(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    if file.metadata().unwrap().len() == 0 {
        return 0;
    }
    // SAFETY: nobody truncates the file, and no byte of it is read.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let mut pages = vec![0u8; map.len().div_ceil(rustix::param::page_size())];
    let start = map.as_ptr().cast_mut().cast();
    // SAFETY: the range is that of the mapping, and there is a byte for each of its pages.
    let answer = unsafe { libc::mincore(start, map.len(), pages.as_mut_ptr()) };
    assert_eq!(answer, 0, "mincore: {}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn direct_copies_are_right_at_every_size_and_leave_no_pages() {
    on_each(&ALL, |kind, disk| {
        let mount = Mount::of(disk).start();
        for (seed, size) in (1..).zip([0, 1, 511, 4096, 70_001, 9 * MIB, 12 * MIB + 77]) {
            write_content(&disk.join("f"), seed, size);
            for workers in ["1", "3"] {
                let line = format!("--direct --reflink=never --workers={workers} f t");
                let method = copy(&mount, &line).unwrap();
                assert!(
                    method == "read-write" || kind == "tmpfs",
                    "{method} on {kind}"
                );
                // What is written past the cache is cut off within a page, which that brings in.
                let cached = cached_pages(&disk.join("t"));
                assert!(
                    cached <= 1 || kind == "tmpfs",
                    "{cached} pages of {size} bytes on {kind}"
                );
                let bytes = read_file(&disk.join("t"));
                assert_eq!(bytes.len() as u64, size, "{kind}");
                assert_content(seed, 0, &bytes);
            }
        }
        // The count counts.
        assert!(cached_pages(&disk.join("t")) > 3000, "{kind}");
    });
}

#[test]
fn the_largest_chunk_and_many_workers_take_little_memory() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("f"), 3, 160 * MIB);
    for options in [
        "--method=map-map --chunk=1G",
        "--method=map-write --chunk=1G",
        "--method=map-map --workers=4",
        "--method=read-write --workers=4",
        "--direct --workers=4",
        "--method=copy-range",
    ] {
        let mount = Mount::of(source.path()).start();
        let before = mount.rss().all;
        let over = AtomicBool::new(false);
        let most = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !over.load(Ordering::Relaxed) {
                    most = most.max(mount.rss().all);
                    std::thread::sleep(Duration::from_millis(2));
                }
                most
            });
            let copied = copy(&mount, &format!("{options} f t"));
            over.store(true, Ordering::Relaxed);
            copied.unwrap();
            watcher.join().unwrap()
        });
        let grown = most.saturating_sub(before) / MIB;
        assert!(grown < 64, "{options}: {grown} MiB");
    }
}
