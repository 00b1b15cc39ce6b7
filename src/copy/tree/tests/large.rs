//! Deep trees, and large ones.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::mkdirat;

use super::*;

/// Builds a chain of directories, each with a file, far below the longest path.
fn build_deep(top: &Path, depth: usize) {
    fs::create_dir(top).unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut at = open(top, flags, Mode::empty()).unwrap();
    for level in 0..depth {
        let write = OFlags::CREATE | OFlags::WRONLY;
        for name in ["before", "zlast"] {
            let file = openat(&at, name, write, Mode::from_raw_mode(0o644)).unwrap();
            rustix::io::write(&file, level.to_string().as_bytes()).unwrap();
        }
        mkdirat(&at, "middle-with-a-long-name", Mode::RWXU).unwrap();
        at = openat(&at, "middle-with-a-long-name", flags, Mode::empty()).unwrap();
    }
}

fn check_deep(top: &Path, depth: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut at = open(top, flags, Mode::empty()).unwrap();
    for level in 0..depth {
        for name in ["before", "zlast"] {
            let file = openat(&at, name, OFlags::RDONLY, Mode::empty()).unwrap();
            let mut text = [0; 16];
            let count = rustix::io::read(&file, &mut text).unwrap();
            assert_eq!(&text[..count], level.to_string().as_bytes());
        }
        at = openat(&at, "middle-with-a-long-name", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_deeper_than_any_path_takes_few_descriptors() {
    const DEPTH: usize = 1500;
    let world = World::new();
    build_deep(&world.at("src"), DEPTH);
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let open = fs::read_dir("/proc/self/fd").unwrap().count();
                most = most.max(open);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            most
        });
        let copied = world.copy(&archive(), &["src"], "to");
        done.store(true, Ordering::Relaxed);
        assert_eq!(copied, Ok(()));
        watch.join().unwrap()
    });
    check_deep(&world.at("to"), DEPTH);
    assert_eq!(world.progress.files().0, 3 * DEPTH as u64 + 1);
    // Of other tests in this process, too.
    assert!(most < 1000, "{most} descriptors");
}

#[test]
fn a_large_directory_and_many_small_ones_arrive_whole_with_any_number_of_workers() {
    for workers in [1, 2, 5] {
        let world = World::new();
        world.dir("src/large");
        for number in 0..2500 {
            world.file(
                &format!("src/large/file-with-a-long-name-{number}"),
                &number.to_string(),
            );
        }
        for number in 0..60 {
            world.dir(&format!("src/{number}/below"));
            world.file(&format!("src/{number}/below/f"), &number.to_string());
        }
        let file = File::create(world.at("src/huge")).unwrap();
        file.set_len(5 << 20).unwrap();
        file.write_all_at(&[7; 100_000], 1 << 20).unwrap();
        let options = CopyOptions {
            workers: std::num::NonZeroU16::new(workers),
            ..archive()
        };
        assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
        for number in 0..2500 {
            let name = format!("to/large/file-with-a-long-name-{number}");
            assert_eq!(world.read(&name), number.to_string());
        }
        for number in 0..60 {
            assert_eq!(
                world.read(&format!("to/{number}/below/f")),
                number.to_string()
            );
        }
        let (from, to) = (
            fs::read(world.at("src/huge")),
            fs::read(world.at("to/huge")),
        );
        assert!(from.unwrap() == to.unwrap());
        let blocks = |name: &str| fs::metadata(world.at(name)).unwrap().blocks();
        assert!(blocks("to/huge") <= blocks("src/huge") + 8);
        let entries = 2500 + 1 + 120 + 60 + 2;
        assert_eq!(world.progress.files(), (entries, entries));
        assert_eq!(world.published.lock().unwrap().len(), entries as usize);
    }
}
