//! Very many entries.

use std::time::Instant;

use super::*;

#[test]
fn a_mount_does_not_look_at_what_is_cached() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // Making them takes long.
    let files = if soak(10) >= 10 { 100_000 } else { 2_000 };
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    let cache = cache_folder(&scratch, "cache");
    for at in 0..files {
        let folder = source.join((at / 1000).to_string());
        if at % 1000 == 0 {
            fs::create_dir(&folder).expect("mkdir");
        }
        write_file(&folder.join(at.to_string()), at.to_string().as_bytes());
    }
    let mount = cached(&source, &cache).opt("block=64K").start();
    run(corfs().args(["cache", "warm", "--quiet"]).arg(mount.path()));
    assert!(mount.finish().success());
    assert_eq!(
        files_of(&cache, "index").len() as u64,
        files,
        "all are cached"
    );
    let mut times: Vec<Duration> = (0..3)
        .map(|_| {
            let began = Instant::now();
            let mount = cached(&source, &cache).start();
            let time = began.elapsed();
            let last = files - 1;
            let path = mount.path().join(format!("{}/{last}", last / 1000));
            assert_eq!(read_file(&path), last.to_string().as_bytes());
            assert_eq!(
                counted(&mount, "filled_bytes_total"),
                0,
                "it comes from the cache"
            );
            time
        })
        .collect();
    times.sort();
    println!("{files} entries: mounted in {:?}", times[1]);
    // A scan would take much longer with a hundred thousand.
    assert!(times[0] < Duration::from_secs(5), "{times:?}");
}
