//! How much there is to do, told before it is done.

use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::*;

/// Runs `look` when the totals are known, while the copy is under way.
fn while_copying(world: &World, options: &CopyOptions, sources: &[&str], look: impl FnOnce()) {
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| world.copy(options, sources, "to"));
        let start = Instant::now();
        while !world.progress.totals_known() {
            assert!(!copy.is_finished(), "it was over before it was known");
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        look();
        world.progress.pause(false);
        assert_eq!(copy.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_tree_is_counted_ahead_as_it_is_then_copied() {
    let world = World::new();
    world.dir("src/sub/deep");
    world.dir("src/left-out/below");
    world.dir("src/sub/also");
    for name in [
        "src/a",
        "src/sub/b",
        "src/sub/deep/c",
        "src/left-out/d",
        "src/sub/also/e",
    ] {
        world.file(name, &"x".repeat(5000));
    }
    fs::hard_link(world.at("src/a"), world.at("src/sub/again")).unwrap();
    symlink("a", world.at("src/link")).unwrap();
    let sparse = File::create(world.at("src/sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&[7; 65_536], 8 << 20).unwrap();
    let options = CopyOptions {
        exclude: vec![b"left-out/".to_vec(), b"sub/also".to_vec()],
        ..archive()
    };
    world.progress.pause(true);
    while_copying(&world, &options, &["src"], || {
        assert_eq!(world.progress.files(), (0, 9));
        assert_eq!(world.progress.bytes_total(), 3 * 5000 + 65_536);
    });
    assert_eq!(world.progress.files(), (9, 9));
    let bytes = (world.progress.bytes_done(), world.progress.bytes_total());
    assert_eq!(bytes, (3 * 5000 + 65_536, 3 * 5000 + 65_536));
}

#[test]
fn what_stays_is_not_to_be_waited_for() {
    let world = World::new();
    world.dir("src");
    world.dir("to");
    for name in ["src/a", "src/b", "to/a"] {
        world.file(name, &"x".repeat(5000));
    }
    let options = CopyOptions {
        no_clobber: true,
        ..archive()
    };
    world.progress.pause(true);
    while_copying(&world, &options, &["src/."], || {
        assert_eq!(world.progress.bytes_total(), 10_000);
    });
    assert_eq!(world.progress.files(), (3, 3), "what stays is done, too");
    assert_eq!(world.progress.bytes_total(), 5000);
}

#[test]
fn the_total_of_one_file_is_known_as_it_begins() {
    let mut world = World::new();
    world.progress = Progress::new(NonZeroU64::new(1 << 20)).into();
    fs::write(world.at("src"), vec![1; 2 << 20]).unwrap();
    let options = CopyOptions {
        chunk: 64 << 10,
        reflink: crate::copy::options::Reflink::Never,
        ..CopyOptions::default()
    };
    while_copying(&world, &options, &["src"], || {
        assert_eq!(world.progress.files().1, 1);
        assert_eq!(world.progress.bytes_total(), 2 << 20);
        assert!(world.progress.bytes_done() < 2 << 20);
    });
}

#[test]
fn a_directory_that_cannot_be_finished_is_not_done() {
    let world = World::new();
    world.dir("src/closed");
    world.file("src/open", "");
    world.dir("to");
    world.file("to/closed", "in the way");
    assert_eq!(world.copy(&archive(), &["src/."], "to"), Err(Errno::NOTDIR));
    assert_eq!(world.failures(), [("src/./closed".into(), Errno::NOTDIR)]);
    assert_eq!(world.progress.files(), (2, 3));
}
