//! The source fails or hangs while it is mirrored.

use super::*;

#[test]
fn a_source_that_fails_is_served_from_memory_until_it_is_back() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for passthrough in ["never", "cached"] {
        let source = faulty();
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch);
        let mount = cached(source.path(), &cache)
            .opt(format!("passthrough={passthrough}"))
            .start();
        let seen = learn(&mount);
        source.faults().fail_all(Errno::IO);
        await_offline(&mount);
        assert_served_from_memory(&mount, &seen);
        let told = run(corfs().arg("stat").arg(mount.path()));
        assert!(told.contains("offline since"), "{told}");
        source.faults().heal();
        await_online(&mount);
        write_content(&source.store().join("f0"), 99, 3 * BLOCK);
        wait_until("a changed file is fresh", PATIENCE, || {
            read_anew(&mount.path().join("f0")).is_ok_and(|bytes| bytes.len() as u64 == 3 * BLOCK)
        });
        assert_content(99, 0, &read_anew(&mount.path().join("f0")).unwrap());
        assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
        fs::write(mount.path().join("d/new"), "x").unwrap();
        assert_eq!(fs::read(source.store().join("d/new")).unwrap(), b"x");
        assert_eq!(mount.finish().code(), Some(0));
    }
}

#[test]
fn a_source_that_hangs_is_served_from_memory_until_it_answers() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    let open = File::open(mount.path().join("f0")).unwrap();
    source.faults().hang_all();
    await_offline(&mount);
    assert_served_from_memory(&mount, &seen);
    let mut bytes = vec![0; 1000];
    open.read_exact_at(&mut bytes, 500).unwrap();
    assert_content(0, 500, &bytes);
    let late = errno_of("a name", fs::read(mount.path().join("d/unread")));
    assert_eq!(late, Errno::TIMEDOUT);
    let opens = new_opens(&mount, 500);
    drop(open);
    eprintln!("opens and reads of cached files while the source hangs: {opens}");
    source.faults().heal();
    await_online(&mount);
    assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
    assert_eq!(mount.finish().code(), Some(0));
}

/// Median and 99th percentile of opening a cached file and reading some of it, in words.
fn new_opens(mount: &Mount, count: u64) -> String {
    let mut times: Vec<Duration> = (0..count)
        .map(|n| {
            let began = Instant::now();
            let file = File::open(mount.path().join(name(n % FILES))).unwrap();
            file.read_exact_at(&mut [0; 4096], 4096 * (n % 20)).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    let at = |share: usize| times[times.len() * share / 100];
    format!("p50 {:?}, p99 {:?}", at(50), at(99))
}

#[test]
fn many_who_wait_for_a_hung_source_keep_nobody_from_what_is_cached() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    source.faults().hang_all();
    std::thread::scope(|scope| {
        // More than there are workers.
        let stuck: Vec<_> = (0..300)
            .map(|n| {
                let path = mount.path().join(format!("d/none{n}"));
                scope.spawn(move || fs::metadata(path).map(drop))
            })
            .collect();
        await_offline(&mount);
        assert_served_from_memory(&mount, &seen);
        for one in stuck {
            errno_of("who waited", one.join().unwrap());
        }
    });
    source.faults().heal();
    await_online(&mount);
    assert_eq!(see(mount.path()).len(), seen.len());
}

#[test]
fn without_a_cache_the_breaker_alone_answers_at_once() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let mount = Mount::of(source.path())
        .opt("source_timeout=2,attr_timeout=0,entry_timeout=0")
        .start();
    fs::metadata(mount.path().join("f0")).unwrap();
    source.faults().hang_all();
    await_offline(&mount);
    let began = Instant::now();
    for _ in 0..200 {
        let missed = fs::metadata(mount.path().join("f0"));
        assert_eq!(errno_of("a lookup", missed), Errno::TIMEDOUT);
    }
    assert!(began.elapsed() < PATIENCE, "nobody waits for the source");
    source.faults().heal();
    await_online(&mount);
    assert_content(0, 0, &read_file(&mount.path().join("f0")));
    assert_eq!(mount.finish().code(), Some(0));
}

#[test]
fn one_bad_file_is_no_outage() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    source.faults().fail(On::Open, Some("f0"), Errno::IO);
    source.faults().fail(On::Lookup, Some("f2"), Errno::IO);
    for _ in 0..50 {
        errno_of("f0", fs::read(mount.path().join("f0")));
        errno_of("f2", fs::metadata(mount.path().join("f2")));
        assert_content(4, 0, &read_file(&mount.path().join("f4")));
    }
    assert_eq!(value(&mount, "source_outages_total"), 0.0);
}

#[test]
fn offline_never_keeps_no_names() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).opt("offline=never").start();
    see(mount.path());
    source.faults().fail_all(Errno::IO);
    await_offline(&mount);
    errno_of("a name", fs::metadata(mount.path().join("f0")));
    assert_eq!(value(&mount, "names_noted_total"), 0.0);
    source.faults().heal();
    await_online(&mount);
    assert_eq!(see(mount.path()).len(), 11);
}

#[test]
fn a_source_that_looks_empty_is_gone_and_nothing_is_dropped() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    source.faults().look_empty();
    wait_until("the source is gone", PATIENCE, || {
        let _ = fs::metadata(mount.path().join("f0"));
        let _ = fs::read_dir(mount.path()).map(Iterator::count);
        is_offline(&mount) == Some(true)
    });
    assert_served_from_memory(&mount, &seen);
    source.faults().heal();
    await_online(&mount);
    assert_eq!(see(mount.path()), seen);
    assert_eq!(
        value(&mount, "cache_fills_total"),
        FILES as f64 * 3.0,
        "nothing is read anew"
    );
}
