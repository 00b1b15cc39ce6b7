//! corfs is started while the source is away.

use super::*;

/// What is learnt of a source that is there, by a mount that ends well.
fn taught(source: &FaultySource, cache: &Path) -> Seen {
    let mount = cached(source.path(), cache).start();
    let seen = learn(&mount);
    assert_eq!(mount.finish().code(), Some(0));
    seen
}

#[test]
fn a_source_that_is_absent_at_mount_time_is_served_from_the_cache_until_it_is_there() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for sandbox in ["auto", "off"] {
        let mut source = faulty();
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch);
        let seen = taught(&source, &cache);
        source.die();
        let mount = cached(source.path(), &cache)
            .opt(format!("sandbox={sandbox}"))
            .start();
        assert!(mount.log().contains("as last seen"), "{}", mount.log());
        assert_eq!(value(&mount, "source_offline"), 1.0);
        assert_served_from_memory(&mount, &seen);
        if is_root() {
            let opens = mount
                .stats()
                .sum("corfs_opens_total", &[("mode", "passthrough")]);
            eprintln!("opens by passthrough while absent: {opens}");
        }
        source.come_back();
        await_online(&mount);
        assert_eq!(
            see(mount.path()),
            seen,
            "sandbox={sandbox}\n{}",
            mount.log()
        );
        assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
        assert_eq!(mount.finish().code(), Some(0));
    }
}

#[test]
fn an_ordinary_user_is_served_while_the_source_is_absent_too() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    plant(&source);
    let cache = cache_folder(&scratch);
    set_owner(&cache, USER, USER);
    let mounted = || cached(&source, &cache).as_user(USER, USER);
    let mount = mounted().start();
    let at = mount.path().to_owned();
    let seen = apart(Some((USER, USER)), move || {
        let seen = see(&at);
        // Noted and stored within a second, and at the end in any case.
        std::thread::sleep(Duration::from_secs(2));
        seen
    });
    assert_eq!(mount.finish().code(), Some(0));
    let away = scratch.path().join("away");
    fs::rename(&source, &away).unwrap();
    let mount = mounted().start();
    let at = mount.path().to_owned();
    let expected = seen.clone();
    apart(Some((USER, USER)), move || {
        assert_eq!(see(&at), expected);
        let unread = errno_of("what is not cached", fs::read(at.join("d/unread")));
        assert_eq!(unread, Errno::IO);
        let change = errno_of("a change", fs::write(at.join("f0"), "x"));
        assert_eq!(change, Errno::ROFS);
    });
    fs::rename(&away, &source).unwrap();
    let at = mount.path().to_owned();
    wait_until("the source is back", PATIENCE, || {
        let at = at.clone();
        apart(Some((USER, USER)), move || {
            fs::read(at.join("d/unread")).is_ok()
        })
    });
}

#[test]
fn a_source_that_hangs_at_mount_time_is_served_from_the_cache() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let seen = taught(&source, &cache);
    source.faults().hang_all();
    let mount = cached(source.path(), &cache).start();
    assert_served_from_memory(&mount, &seen);
    source.faults().heal();
    await_online(&mount);
    assert_eq!(see(mount.path()), seen);
}

#[test]
fn what_no_cache_knows_is_refused_with_what_to_do() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let absent = scratch.path().join("absent");
    let refused = cached(&absent, &cache).try_start().unwrap_err();
    assert!(refused.contains("No such file or directory"), "{refused}");
    assert!(refused.contains("the cache does not know it"), "{refused}");
}
