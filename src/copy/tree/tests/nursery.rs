//! Directories of small files, which are filled unseen.

use std::os::unix::fs::FileExt;

use super::*;

/// Files of a directory that is worth it.
const FEW: usize = 20;

fn fill(world: &World, folder: &str) {
    world.dir(folder);
    for number in 0..FEW {
        world.file(&format!("{folder}/f{number:02}"), &number.to_string());
    }
}

#[track_caller]
fn assert_filled(world: &World, folder: &str) {
    for number in 0..FEW {
        let name = format!("{folder}/f{number:02}");
        assert_eq!(world.read(&name), number.to_string(), "{name}");
    }
}

/// Once alone, and once by two.
fn both() -> [CopyOptions; 2] {
    [1, 2].map(|workers| CopyOptions {
        workers: NonZeroU16::new(workers),
        ..archive()
    })
}

#[test]
fn it_is_like_any_other_directory() {
    for options in both() {
        let world = World::new();
        for folder in ["src/a", "src/b", "src/c/d"] {
            fill(&world, folder);
        }
        // What is not small, has holes, several names, a mode of its own.
        world.file("src/a/large", &"x".repeat(300_000));
        let sparse = File::create(world.at("src/a/sparse")).unwrap();
        sparse.write_all_at(b"end", 3 << 20).unwrap();
        fs::hard_link(world.at("src/a/f03"), world.at("src/b/name")).unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(world.at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("src/b/f04", 0o4711);
        mode("src/b/f05", 0o200);
        mode("src/a", 0o1755);
        mode("src/b", 0o2510);
        assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
        for folder in ["a", "b", "c/d"] {
            assert_filled(&world, &format!("to/{folder}"));
            let stat = |top: &str| fs::metadata(world.at(&format!("{top}/{folder}"))).unwrap();
            let (from, to) = (stat("src"), stat("to"));
            assert_eq!(to.permissions(), from.permissions(), "{folder}");
            assert_eq!(to.modified().unwrap(), from.modified().unwrap(), "{folder}");
            assert_eq!(
                world.names(&format!("to/{folder}")),
                world.names(&format!("src/{folder}"))
            );
        }
        let stat = |name: &str| fs::metadata(world.at(name)).unwrap();
        assert_eq!(stat("to/a/f03").ino(), stat("to/b/name").ino());
        assert_eq!(stat("to/a/large").len(), 300_000);
        assert!(stat("to/a/sparse").blocks() <= stat("src/a/sparse").blocks());
        assert_eq!(stat("to/b/f04").mode() & 0o7777, 0o4711);
        assert_eq!(stat("to/b/f05").mode() & 0o7777, 0o200);
        assert_eq!(world.names("to"), ["a", "b", "c"]);
        let (done, total) = world.progress.files();
        assert_eq!(
            (done, total),
            (5 + 3 * FEW as u64 + 3, 5 + 3 * FEW as u64 + 3)
        );
        assert_eq!(world.progress.bytes_done(), world.progress.bytes_total());
    }
}

/// One call of getdents tells of some 150 such names.
#[test]
fn with_long_names_too_everything_is_copied() {
    for options in both() {
        for count in [200, 300, 512, 700] {
            let world = World::new();
            world.dir("src/a");
            for number in 0..count {
                world.file(&format!("src/a/{}{number:04}", "n".repeat(200)), "text");
            }
            assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
            assert_eq!(world.names("to/a"), world.names("src/a"), "{count}");
            assert_eq!(world.progress.files(), (count + 2, count + 2));
        }
    }
}

#[test]
fn somebody_who_was_faster_is_joined() {
    for options in both() {
        let world = World::new();
        fill(&world, "src/a");
        // As soon as the tree has its top, which nobody has filled but we.
        *world.once_published.lock().unwrap() = Some(Box::new({
            let at = world.at("to/a");
            move || {
                fs::create_dir(&at).unwrap();
                fs::write(at.join("other"), "other").unwrap();
                fs::write(at.join("f01"), "old").unwrap();
            }
        }));
        assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
        assert_filled(&world, "to/a");
        assert_eq!(world.read("to/a/other"), "other");
        assert_eq!(world.names("to"), ["a"]);
        let (done, total) = world.progress.files();
        assert_eq!((done, total), (FEW as u64 + 2, FEW as u64 + 2));
        assert_eq!(world.progress.bytes_done(), world.progress.bytes_total());
    }
}

#[test]
fn what_fails_in_it_is_told_and_the_rest_is_there() {
    let world = World::new();
    fill(&world, "src/a");
    world.file("src/a/.copy", "of the source");
    assert_eq!(world.copy(&archive(), &["src"], "to"), Err(Errno::EXIST));
    assert_eq!(world.failures(), [("src/a/.copy".into(), Errno::EXIST)]);
    assert_filled(&world, "to/a");
    assert_eq!(world.names("to/a").len(), FEW);
}

#[test]
fn what_a_dead_copy_left_goes_with_the_next_also_where_no_file_goes() {
    let world = World::new();
    fill(&world, "src/a");
    let marked = ".corfs-copy-0123-1-1-1-0.tmp";
    let plain = ".corfs-copy-0123-1-1-1-1.tmp";
    for (name, mode) in [(marked, 0o1700), (plain, 0o700)] {
        world.dir(&format!("to/src/{name}"));
        world.file(&format!("to/src/{name}/f"), "text");
        let path = world.at(&format!("to/src/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    world.dir("to/src/a");
    assert_eq!(world.copy(&archive(), &["src"], "to"), Ok(()));
    // A directory of that name that is not marked is somebody's own.
    assert_eq!(world.names("to/src"), [plain, "a"]);
    assert_filled(&world, "to/src/a");
}
