//! What is read is the source's, and asked of it once.

use super::*;

#[test]
fn what_was_read_once_is_read_from_the_cache_after_a_restart() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    let size = 5 * MIB + 4321;
    write_content(&world.behind("dir-file"), 3, size);
    fs::create_dir(world.behind("dir")).unwrap();
    write_content(&world.behind("dir/below"), 4, 70_000);
    for (at, way) in ["passthrough=never", "passthrough=never,io=pread", ""]
        .iter()
        .enumerate()
    {
        let first = counted_run(&world, way, size);
        let all = if at == 0 { size + 70_000 } else { 0 };
        assert_eq!(first, all, "{way}: asked of the source");
        let warm = counted_run(&world, way, size);
        assert_eq!(warm, 0, "{way}: asked of the source again");
    }
}

/// Reads both files by a mount of its own; answers the bytes asked of the source.
fn counted_run(world: &World, way: &str, size: u64) -> u64 {
    let mount = match way {
        "" => world.mount(),
        way => world.mount().opt(way),
    }
    .start();
    let bytes = keep(&mount, "dir-file");
    assert_eq!(bytes.len() as u64, size);
    assert_content(3, 0, &bytes);
    assert_content(4, 0, &keep(&mount, "dir/below"));
    let asked = counted(&mount, "filled_bytes_total");
    assert!(mount.finish().success());
    asked
}

#[test]
fn a_part_that_is_read_fetches_its_blocks_and_nothing_more() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    write_content(&world.behind("f"), 1, 16 * MIB);
    let mount = world.mount().opt("block=64K").start();
    let file = File::open(mount.path().join("f")).unwrap();
    // Far apart, so that nobody takes it for the beginning of a walk; the kernel itself may read
    // ahead, but not past a request of one page at random.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    for block in [200u64, 7, 133, 60] {
        let offset = block * 65_536 + 100;
        assert_content(1, offset, &read_at(&file, offset, 50));
    }
    stored(&mount);
    assert_eq!(counted(&mount, "filled_bytes_total"), 4 * 65_536);
    // A range over the edge of a block that is there and one that is not.
    let offset = 8 * 65_536 - 10;
    assert_content(1, offset, &read_at(&file, offset, 20));
    assert_eq!(counted(&mount, "filled_bytes_total"), 5 * 65_536);
}

#[test]
fn eight_readers_ask_the_source_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    let size = 32 * MIB;
    write_content(&world.behind("f"), 9, size);
    let mount = world.mount().opt("passthrough=never").start();
    std::thread::scope(|scope| {
        for reader in 0..8u64 {
            let path = mount.path().join("f");
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                for at in 0..32 {
                    let offset = (at + 4 * reader) % 32 * MIB;
                    assert_content(9, offset, &read_at(&file, offset, MIB as usize));
                }
            });
        }
    });
    let asked = counted(&mount, "filled_bytes_total");
    let once = size..=size + size / 50;
    assert!(once.contains(&asked), "asked {asked} of {size}");
    stored(&mount);
    assert!(mount.finish().success());
    let again = world.mount().start();
    assert_content(9, 0, &read_file(&again.path().join("f")));
    assert_eq!(counted(&again, "filled_bytes_total"), 0);
}

#[test]
fn every_read_is_held_against_its_checksum_under_verify_always() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let world = World::new();
    write_content(&world.behind("f"), 5, 3 * MIB + 5);
    let mount = world.mount().opt("verify=always").start();
    assert_content(5, 0, &keep(&mount, "f"));
    assert!(mount.finish().success());
    let mount = world.mount().opt("verify=always").start();
    assert_content(5, 0, &read_file(&mount.path().join("f")));
    assert_eq!(counted(&mount, "filled_bytes_total"), 0);
    assert_eq!(opens(&mount, "whole"), 0, "no passthrough");
    let block = mount
        .stats()
        .value("corfs_read_bytes_total", &[("mode", "block")]);
    assert_eq!(block as u64, 3 * MIB + 5, "served from what was hashed");
}

#[test]
fn an_ordinary_user_has_a_cache_too() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let world = World::new();
    write_content(&world.behind("f"), 2, 3 * MIB);
    for path in [world.source.path(), &world.behind("f"), world.cache.path()] {
        set_owner(path, USER, USER);
    }
    for round in 0..2 {
        let mount = world.mount().as_user(USER, USER).start();
        let filled = apart(Some((USER, USER)), || {
            assert_content(2, 0, &read_file(&mount.path().join("f")));
            stored(&mount);
            assert_eq!(opens(&mount, "whole"), 0, "passthrough is root's");
            counted(&mount, "filled_bytes_total")
        });
        assert_eq!(filled, if round == 0 { 3 * MIB } else { 0 });
        assert!(mount.finish().success());
    }
}

#[test]
fn bytes_of_the_cache_come_from_mapped_windows() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    write_content(&world.behind("f"), 2, 8 * MIB);
    let mount = world.mount().start();
    keep(&mount, "f");
    assert!(mount.finish().success());
    let mount = world.mount().opt("passthrough=never").start();
    assert_content(2, 0, &read_file(&mount.path().join("f")));
    let stats = mount.stats();
    let mapped = stats.value("corfs_read_bytes_total", &[("mode", "mmap")]);
    // More where the kernel lost pages meanwhile.
    assert!(mapped as u64 >= 8 * MIB, "{mapped}");
}
