//! The source is unmounted under us, and mounted again.

use super::*;

#[test]
fn a_source_that_dies_and_is_mounted_anew_is_the_same_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for sandbox in ["auto", "off"] {
        let mut source = faulty();
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch);
        let mount = cached(source.path(), &cache)
            .opt(format!("sandbox={sandbox}"))
            .start();
        let seen = learn(&mount);
        let before = fs::metadata(source.path()).unwrap().dev();
        source.die();
        await_offline(&mount);
        assert_served_from_memory(&mount, &seen);
        let keeper = Tmpfs::new(1 << 20);
        source.come_back();
        // Anonymous device numbers are given again when nobody has them.
        let other = fs::metadata(source.path()).unwrap().dev() != before;
        eprintln!("sandbox={sandbox}: another device number: {other}");
        await_online(&mount);
        assert_eq!(
            see(mount.path()),
            seen,
            "sandbox={sandbox}\n{}",
            mount.log()
        );
        assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
        write_content(&source.store().join("f2"), 98, BLOCK);
        wait_until("a changed file is fresh", PATIENCE, || {
            read_anew(&mount.path().join("f2")).is_ok_and(|bytes| bytes.len() as u64 == BLOCK)
        });
        fs::write(mount.path().join("d/new"), "x").unwrap();
        drop(keeper);
        assert_eq!(mount.finish().code(), Some(0));
    }
}

/// A tmpfs that is mounted where one was before, with the same tree.
#[test]
fn a_local_source_unmounted_under_us_is_gone_and_what_is_mounted_again_is_it() {
    if !require(&[Need::Root, Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let source = Loop::new("ext4", 64 << 20);
    plant(source.path());
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    let umount = |lazy: &[&str]| {
        output(
            std::process::Command::new(sbin("umount"))
                .args(lazy)
                .arg(source.path()),
        )
    };
    assert!(!umount(&[]).status.success(), "it is held");
    let numbers = |at: &Path| fs::metadata(at.join("f0")).unwrap().ino();
    let ino = numbers(mount.path());
    assert!(umount(&["-l"]).status.success());
    await_offline(&mount);
    assert_served_from_memory(&mount, &seen);
    // It let go: the device is free.
    wait_until("the device is free", PATIENCE, || {
        let fsck = output(
            std::process::Command::new(sbin("e2fsck"))
                .args(["-n", "-f"])
                .arg(source.device()),
        );
        !String::from_utf8_lossy(&fsck.stderr).contains("is mounted")
    });
    run(std::process::Command::new(sbin("mount"))
        .arg(source.device())
        .arg(source.path()));
    await_online(&mount);
    assert_eq!(see(mount.path()), seen);
    assert_eq!(
        numbers(mount.path()),
        ino,
        "inode numbers are what they were"
    );
    assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
    fs::write(mount.path().join("d/new"), "x").unwrap();
    assert_eq!(mount.finish().code(), Some(0));
}

/// What changes while the source is away, or after it came back, is told by no event, or by one that
/// may come at any time: the kernel must not go on believing what it was told for long.
#[test]
fn a_watched_source_mounted_anew_shows_what_changed_meanwhile_and_afterwards() {
    if !require(&[Need::Root, Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    for sandbox in ["auto", "off"] {
        let source = Loop::new("ext4", 64 << 20);
        plant(source.path());
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch);
        let mount = cached(source.path(), &cache)
            .opt("coherence=watch")
            .opt(format!("sandbox={sandbox}"))
            .start();
        learn(&mount);
        run(std::process::Command::new(sbin("umount"))
            .arg("-l")
            .arg(source.path()));
        await_offline(&mount);
        let aside = scratch.dir("aside");
        let attach = |at: &Path| {
            run(std::process::Command::new(sbin("mount"))
                .arg(source.device())
                .arg(at))
        };
        attach(&aside);
        write_content(&aside.join("f0"), 98, BLOCK);
        fs::remove_file(aside.join("d/e/f1")).unwrap();
        fs::write(aside.join("d/new"), "x").unwrap();
        run(std::process::Command::new(sbin("umount")).arg(&aside));
        attach(source.path());
        await_online(&mount);
        let at = |name: &str| mount.path().join(name);
        wait_until("what changed meanwhile shows", PATIENCE, || {
            read_anew(&at("f0")).is_ok_and(|bytes| bytes.len() as u64 == BLOCK)
                && fs::metadata(at("d/e/f1")).is_err()
                && names(&at("d")).contains(&"new".to_owned())
        });
        assert_content(98, 0, &read_anew(&at("f0")).unwrap());
        write_content(&source.path().join("f2"), 99, BLOCK);
        fs::rename(source.path().join("d/new"), source.path().join("d/newer")).unwrap();
        wait_until("what changes afterwards shows", PATIENCE, || {
            read_anew(&at("f2")).is_ok_and(|bytes| bytes.len() as u64 == BLOCK)
                && fs::metadata(at("d/new")).is_err()
                && fs::metadata(at("d/newer")).is_ok()
        });
        assert_content(99, 0, &read_anew(&at("f2")).unwrap());
        assert_eq!(mount.finish().code(), Some(0), "sandbox={sandbox}");
    }
}

#[test]
fn while_offline_the_source_can_be_unmounted() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mut source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    let reader = File::open(mount.path().join("f0")).unwrap();
    let umount = || output(std::process::Command::new(sbin("umount")).arg(source.path()));
    assert!(!umount().status.success(), "it is held");
    source.faults().fail_all(Errno::IO);
    await_offline(&mount);
    wait_until("it is let go", PATIENCE, || umount().status.success());
    source.faults().heal();
    assert_served_from_memory(&mount, &seen);
    let mut bytes = vec![0; 100];
    reader.read_exact_at(&mut bytes, 7).unwrap();
    assert_content(0, 7, &bytes);
    source.come_back();
    await_online(&mount);
    assert_eq!(see(mount.path()), seen);
}

#[test]
fn something_else_in_its_place_is_not_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mut source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    source.die();
    await_offline(&mount);
    let other = Tmpfs::at(source.path(), 1 << 20);
    fs::write(other.path().join("f0"), "another").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(value(&mount, "source_offline"), 1.0);
    assert_served_from_memory(&mount, &seen);
    drop(other);
    source.come_back();
    await_online(&mount);
    assert_eq!(see(mount.path()), seen);
}

/// Whether the server of a mount has anything below `source` open, or that folder itself.
fn holds(mount: &Mount, source: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", mount.server())).unwrap();
    open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|path| path.starts_with(source))
}

/// Without asking the mount for anything, which would wake it.
#[track_caller]
fn await_rest(mount: &Mount, source: &Path) {
    wait_until("the source is let go of", PATIENCE, || {
        !holds(mount, source)
    });
}

#[test]
fn an_idle_source_is_let_go_of_and_taken_up_again() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for sandbox in ["auto", "off"] {
        let mut source = faulty();
        let scratch = Scratch::new();
        let cache = cache_folder(&scratch);
        let mount = cached(source.path(), &cache)
            .opt("source_idle=1")
            .opt(format!("sandbox={sandbox}"))
            .start();
        let seen = learn(&mount);
        let reader = File::open(mount.path().join("f0")).unwrap();
        // It is looked for once every two seconds.
        std::thread::sleep(Duration::from_secs(5));
        assert!(holds(&mount, source.path()), "a file is open");
        drop(reader);
        await_rest(&mount, source.path());
        // Whatever comes first takes it up: many at once, who read what is not cached.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let path = mount.path().join("d/unread");
                scope.spawn(move || assert_content(77, 0, &read_file(&path)));
            }
        });
        await_rest(&mount, source.path());
        fs::write(mount.path().join("d/new"), "x").unwrap();
        assert_eq!(fs::read(source.store().join("d/new")).unwrap(), b"x");
        fs::remove_file(mount.path().join("d/new")).unwrap();
        await_rest(&mount, source.path());
        fs::write(mount.path().join(".copy"), "f0 d/copy\n").unwrap();
        assert_content(0, 0, &fs::read(source.store().join("d/copy")).unwrap());
        fs::remove_file(mount.path().join("d/copy")).unwrap();
        assert_eq!(see(mount.path()).len(), seen.len());
        assert_eq!(
            value(&mount, "source_outages_total"),
            0.0,
            "{}",
            mount.log()
        );
        // Unmounted while nobody looks, and mounted again at once or later.
        for pause in [0, 5] {
            let before = see(mount.path());
            await_rest(&mount, source.path());
            run(std::process::Command::new(sbin("umount")).arg(source.path()));
            std::thread::sleep(Duration::from_secs(pause));
            if pause > 0 {
                assert_eq!(see(mount.path()), before);
                assert_eq!(is_offline(&mount), Some(true));
            }
            source.come_back();
            await_online(&mount);
            assert_eq!(see(mount.path()), before);
            assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
        }
        assert_eq!(mount.finish().code(), Some(0));
    }
}

#[test]
fn who_meets_the_end_of_the_source_is_answered_from_memory() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mut source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let seen = {
        let mount = cached(source.path(), &cache).start();
        let seen = learn(&mount);
        assert_eq!(mount.finish().code(), Some(0));
        seen
    };
    type First = fn(&Path) -> io::Result<()>;
    let firsts: [(&str, First); 6] = [
        ("stat", |at| fs::metadata(at.join("d/e/f1")).map(drop)),
        ("ls", |at| fs::read_dir(at.join("d/e")).map(drop)),
        ("cat", |at| fs::read(at.join("f0")).map(drop)),
        ("readlink", |at| fs::read_link(at.join("d/link")).map(drop)),
        ("statfs", |at| Ok(rustix::fs::statvfs(at).map(drop)?)),
        // Nobody asked for it before: it is no error to who lists files.
        ("an ACL", |at| {
            let name = c"system.posix_acl_access";
            match rustix::fs::getxattr(at.join("d"), name, &mut [0; 99]) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                told => Ok(told.map(drop)?),
            }
        }),
    ];
    for (what, first) in firsts {
        let mount = cached(source.path(), &cache).start();
        // What was asked before is asked by its number.
        assert_eq!(see(mount.path()), seen);
        std::thread::sleep(Duration::from_millis(300));
        source.die();
        if let Err(error) = first(mount.path()) {
            panic!("{what}: {error}\n{}", mount.log());
        }
        await_offline(&mount);
        assert_served_from_memory(&mount, &seen);
        source.come_back();
        await_online(&mount);
        assert_eq!(mount.finish().code(), Some(0));
    }
}

#[test]
fn a_source_that_would_not_be_found_again_is_not_let_go_of() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let (source, other) = (scratch.dir("source"), scratch.path().join("other"));
    plant(&source);
    let cache = cache_folder(&scratch);
    let mount = cached(&source, &cache).opt("source_idle=1").start();
    assert_content(0, 0, &read_file(&mount.path().join("f0")));
    fs::rename(&source, &other).unwrap();
    // It is looked for once every two seconds.
    std::thread::sleep(Duration::from_secs(6));
    assert!(holds(&mount, &other), "{}", mount.log());
    assert_content(77, 0, &read_file(&mount.path().join("d/unread")));
    fs::rename(&other, &source).unwrap();
    await_rest(&mount, &source);
    assert_content(2, 0, &read_file(&mount.path().join("f2")));
    assert_eq!(value(&mount, "source_outages_total"), 0.0);
    assert_eq!(mount.finish().code(), Some(0));
}

/// The way to the source is closed to him; it is taken up again before his copy runs.
#[test]
fn a_stranger_who_copies_wakes_an_idle_source_with_our_rights() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let closed = scratch.dir("closed");
    let source = closed.join("source");
    plant(&source);
    set_mode(&closed, 0o700);
    set_mode(&source, 0o777);
    let cache = cache_folder(&scratch);
    let mount = cached(&source, &cache)
        .opt("allow_other,source_idle=1")
        .start();
    // He has the control file open while nobody asks.
    run(std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([
            "sh",
            "-c",
            "exec 3> .copy && sleep 6 && echo 'f0 copied' >&3",
        ])
        .current_dir(mount.path()));
    assert_content(0, 0, &fs::read(source.join("copied")).unwrap());
    assert_eq!(
        value(&mount, "source_outages_total"),
        0.0,
        "{}",
        mount.log()
    );
    assert_eq!(mount.finish().code(), Some(0));
}
