//! What a mount tells of its cache.

use super::*;
use crate::command::Stand;

#[test]
fn configuration_and_statistics_tell_of_the_cache() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    write_content(&world.behind("f"), 1, 3 * MIB);
    let mount = world.mount().opt("validate=ttl:30,block=64K").start();
    keep(&mount, "f");
    let config = fs::read_to_string(mount.path().join(".corfs/config")).unwrap();
    let dir = format!("cache={}", world.cache.path().display());
    for line in [
        dir.as_str(),
        "cache_id=test",
        "cache_size=1073741824",
        "cache_free=0",
        "block=65536",
        "verify=unclean",
        "racy=0",
        "prefetch=8388608",
        "validate=ttl:30",
        "passthrough=cached",
    ] {
        assert!(config.lines().any(|l| l == line), "{line}: {config}");
    }
    stored(&mount);
    assert_eq!(counted(&mount, "filled_bytes_total"), 3 * MIB);
    assert_eq!(counted(&mount, "limit_bytes"), 1 << 30);
    // Looked at every few seconds.
    wait_until("it is told how full the cache is", PATIENCE, || {
        (3 * MIB..6 * MIB).contains(&counted(&mount, "used_bytes"))
    });
    let people = run(corfs().arg("stat").arg(mount.path()));
    for line in ["cache hits ", "cache misses ", "cache limit bytes "] {
        assert!(people.lines().any(|l| l.starts_with(line)), "{people}");
    }
}

/// The daemon works in `/`, whatever the folder was that its caller was in.
#[test]
fn a_cache_given_by_a_relative_path_is_told_by_its_absolute_one() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let folder = fs::canonicalize(stand.scratch().path()).unwrap();
    let cache = stand.scratch().dir("cache");
    set_mode(&cache, 0o700);
    let words = [
        "--cache",
        "cache",
        "-o",
        "cache_size=1G,cache_free=0,racy=0",
    ];
    run(stand.mount(&words).current_dir(&folder));
    let config = fs::read_to_string(stand.point.join(".corfs/config")).unwrap();
    let line = format!("cache={}", folder.join("cache").display());
    assert!(config.lines().any(|l| l == line), "{line}: {config}");
    let warmed = run(stand.corfs(["cache", "warm", "--json"]).arg(&stand.point));
    assert!(warmed.contains('{'), "{warmed}");
    assert_eq!(fs::read(stand.file()).unwrap(), b"content");
    stand.unmounted();
    stand.await_end();
}
