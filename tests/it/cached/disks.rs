//! The disk of the cache is full, gone, or can't be written.

use super::*;

#[test]
fn a_full_cache_disk_fails_nobody() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 12, 16 * BLOCK);
    let disk = Loop::new("ext4", 8 << 20);
    let cache = disk.path().join("cache");
    fs::create_dir(&cache).expect("mkdir");
    set_mode(&cache, 0o700);
    let mount = cached(&tree.path, &cache).start();
    tree.compare(mount.path());
    tree.compare(mount.path());
    drop(mount);
    // Somebody else takes the rest.
    let mount = cached(&tree.path, &cache).start();
    let hog = File::create(disk.path().join("hog")).expect("create");
    let piece = vec![1; 64 << 10];
    let mut at = 0;
    while hog.write_all_at(&piece, at).is_ok() {
        at += piece.len() as u64;
    }
    tree.compare(mount.path());
    assert!(mount.finish().success());
}

#[test]
fn a_cache_disk_that_breaks_under_load_fails_nobody() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 10, 10 * BLOCK);
    for passthrough in ["never", "cached"] {
        let disk = Loop::new("ext4", 32 << 20);
        let cache = disk.path().join("cache");
        fs::create_dir(&cache).expect("mkdir");
        set_mode(&cache, 0o700);
        let mount = cached(&tree.path, &cache)
            .opt(format!("passthrough={passthrough}"))
            .start();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|reader| {
                    let (tree, point) = (&tree, mount.path());
                    scope.spawn(move || {
                        let mut dice = Dice::new(reader);
                        for _ in 0..soak(2000) {
                            match tree.read_somewhere(point, &mut dice) {
                                Ok(()) => {}
                                // Those who read the cache's file by passthrough are served by
                                // the kernel: nobody can help them.
                                Err(_) if passthrough == "cached" => {}
                                Err(error) => panic!("a reader got {error}"),
                            }
                        }
                    })
                })
                .collect();
            // The image ends at once: all that is not in memory is an I/O error.
            let image = File::options()
                .write(true)
                .open(disk.image())
                .expect("open");
            image.set_len(1 << 20).expect("truncate");
            drop_caches();
            readers
                .into_iter()
                .for_each(|one| one.join().expect("a reader"));
        });
        drop(mount);
    }
}

#[test]
fn a_cache_on_a_read_only_disk_is_read() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 4, 4 * BLOCK);
    let disk = Loop::new("ext4", 32 << 20);
    let cache = disk.path().join("cache");
    fs::create_dir(&cache).expect("mkdir");
    set_mode(&cache, 0o700);
    let mount = cached(&tree.path, &cache).start();
    tree.compare(mount.path());
    assert!(mount.finish().success());
    run(std::process::Command::new(sbin("mount"))
        .args(["-o", "remount,ro"])
        .arg(disk.path()));
    let mount = cached(&tree.path, &cache).start();
    tree.compare(mount.path());
    let asked = counted(&mount, "filled_bytes_total");
    assert_eq!(asked, 0, "what is there is used");
}
