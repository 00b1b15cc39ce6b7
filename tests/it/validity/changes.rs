//! A source that changes behind the cache: nothing stale after an open.

use std::os::unix::fs::MetadataExt;

use super::*;

/// What becomes of a file behind the mount.
struct Change {
    what: &'static str,
    make: fn(&Path),
    /// What the file is then.
    bytes: Vec<u8>,
}

const SIZE: u64 = 200_000;

fn old() -> Vec<u8> {
    version(b'A', SIZE)
}

fn new() -> Vec<u8> {
    version(b'B', SIZE)
}

fn times_of(path: &Path) -> fs::FileTimes {
    let meta = fs::metadata(path).unwrap();
    let set = fs::FileTimes::new();
    set.set_modified(meta.modified().unwrap())
        .set_accessed(meta.accessed().unwrap())
}

fn changes() -> Vec<Change> {
    vec![
        Change {
            what: "rewritten in place, of the same size",
            make: |path| fs::write(path, new()).unwrap(),
            bytes: new(),
        },
        Change {
            what: "rewritten in place, and its mtime restored",
            make: |path| {
                let times = times_of(path);
                let file = writable(path);
                file.write_all_at(&new(), 0).unwrap();
                file.set_times(times).unwrap();
            },
            bytes: new(),
        },
        Change {
            what: "replaced by rename",
            make: |path| {
                let other = path.with_extension("other");
                fs::write(&other, new()).unwrap();
                fs::rename(&other, path).unwrap();
            },
            bytes: new(),
        },
        Change {
            what: "replaced by one of the same times",
            make: |path| {
                let other = path.with_extension("other");
                fs::write(&other, new()).unwrap();
                writable(&other).set_times(times_of(path)).unwrap();
                fs::rename(&other, path).unwrap();
            },
            bytes: new(),
        },
        Change {
            what: "truncated",
            make: |path| writable(path).set_len(70_000).unwrap(),
            bytes: old()[..70_000].to_vec(),
        },
        Change {
            what: "appended to",
            make: |path| writable(path).write_all_at(b"more", SIZE).unwrap(),
            bytes: [&old()[..], b"more"].concat(),
        },
        Change {
            what: "removed and made anew",
            make: |path| {
                fs::remove_file(path).unwrap();
                fs::write(path, new()).unwrap();
            },
            bytes: new(),
        },
    ]
}

/// Every change, with the file open or not at the time, by each way in which it may be served.
fn none_is_stale(options: &str) {
    for change in changes() {
        for held in [false, true] {
            let world = World::new();
            fs::write(world.behind("f"), old()).unwrap();
            let mount = world.mount().opt(options).start();
            same(&keep(&mount, "f"), &old(), "f");
            let on = mount.path().join("f");
            let reader = held.then(|| File::open(&on).unwrap());
            if let Some(reader) = &reader {
                assert_eq!(read_at(reader, 0, 100), old()[..100]);
            }
            (change.make)(&world.behind("f"));
            // What the kernel still knows of the old file's attributes may live a second; an open
            // then asks for them anew, and what it reads is the new file's.
            wait_until(change.what, PATIENCE, || {
                fs::metadata(&on).is_ok_and(|m| {
                    let beneath = fs::metadata(world.behind("f")).unwrap();
                    let of = |m: &fs::Metadata| (m.len(), m.ino(), m.ctime(), m.ctime_nsec());
                    of(&m) == of(&beneath)
                })
            });
            let what = change.what;
            assert_eq!(
                read_file(&on),
                change.bytes,
                "{options}, held {held}: {what}"
            );
            assert_eq!(
                keep(&mount, "f"),
                change.bytes,
                "{options}, held {held}: {what}"
            );
            drop(reader);
            assert!(mount.finish().success());
            let mount = world.mount().opt(options).start();
            assert_eq!(
                read_file(&mount.path().join("f")),
                change.bytes,
                "remounted: {what}"
            );
        }
    }
}

#[test]
fn no_change_behind_the_mount_is_stale_after_an_open() {
    if require(&[Need::Fuse]) {
        none_is_stale("passthrough=never");
    }
}

#[test]
fn no_change_behind_the_mount_is_stale_after_an_open_by_passthrough() {
    if require(&[Need::Fuse, Need::Root]) {
        none_is_stale("passthrough=cached");
    }
}

#[test]
fn no_change_is_stale_after_an_open_where_each_read_is_verified() {
    if require(&[Need::Fuse]) {
        none_is_stale("verify=always,block=64K");
    }
}

#[test]
fn a_renamed_file_and_what_takes_its_name_are_told_apart() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    for through in [false, true] {
        fs::write(world.behind("a"), old()).unwrap();
        fs::write(world.behind("b"), new()).unwrap();
        let mount = world.mount().start();
        same(&keep(&mount, "a"), &old(), "a");
        same(&keep(&mount, "b"), &new(), "b");
        let at = match through {
            true => mount.path().to_owned(),
            false => world.source.path().to_owned(),
        };
        fs::rename(at.join("a"), at.join("c")).unwrap();
        fs::rename(at.join("b"), at.join("a")).unwrap();
        fs::rename(at.join("c"), at.join("b")).unwrap();
        wait_until("the names show", PATIENCE, || {
            let inode = |path: PathBuf| fs::metadata(path).map(|m| m.ino()).ok();
            ["a", "b"]
                .iter()
                .all(|name| inode(mount.path().join(name)) == inode(world.behind(name)))
        });
        for _ in 0..2 {
            same(&keep(&mount, "a"), &new(), "a");
            same(&keep(&mount, "b"), &old(), "b");
        }
        fs::remove_file(world.behind("a")).unwrap();
        fs::remove_file(world.behind("b")).unwrap();
    }
}

#[test]
fn what_is_written_through_the_mount_is_read() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for options in ["passthrough=never", "verify=always"] {
        let world = World::new();
        fs::write(world.behind("f"), old()).unwrap();
        let mount = world.mount().opt(options).start();
        same(&keep(&mount, "f"), &old(), "f");
        let on = mount.path().join("f");
        let reader = File::open(&on).unwrap();
        let writer = writable(&on);
        writer.write_all_at(b"written", 1000).unwrap();
        assert_eq!(read_at(&reader, 1000, 7), b"written");
        let mut now = old();
        now[1000..1007].copy_from_slice(b"written");
        same(&read_file(&on), &now, options);
        writer.set_len(1003).unwrap();
        same(&read_file(&on), &now[..1003], options);
        drop((reader, writer));
        same(&keep(&mount, "f"), &now[..1003], "f");
        fs::remove_file(&on).unwrap();
        fs::write(&on, b"made through the mount").unwrap();
        same(&keep(&mount, "f"), b"made through the mount", "f");
        assert!(mount.finish().success());
        let mount = world.mount().opt(options).start();
        assert_eq!(
            read_file(&mount.path().join("f")),
            b"made through the mount"
        );
    }
}

#[test]
fn a_copy_over_a_kept_file_is_read() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), old()).unwrap();
    fs::write(world.behind("g"), new()).unwrap();
    let mount = world.mount().start();
    same(&keep(&mount, "f"), &old(), "f");
    for options in ["", "--inplace "] {
        let line = format!("{options}g f\n");
        fs::write(mount.path().join(".copy"), line).unwrap();
        same(&keep(&mount, "f"), &new(), "f");
        fs::write(mount.path().join("f"), old()).unwrap();
        same(&keep(&mount, "f"), &old(), "f");
    }
}

#[test]
fn a_file_that_was_changed_just_now_is_served_and_not_kept_yet() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), old()).unwrap();
    let mount = world.mount().opt("racy=30").start();
    same(&read_file(&mount.path().join("f")), &old(), "served");
    wait_until("it is counted", PATIENCE, || {
        counted(&mount, "provisional_total") > 0
    });
    assert_eq!(counted(&mount, "stored_bytes_total"), 0);
}

#[test]
fn what_is_never_validated_is_read_as_it_was() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for (options, stale) in [
        ("validate=never", true),
        ("validate=ttl:3600", true),
        ("", false),
    ] {
        let world = World::new();
        fs::write(world.behind("f"), old()).unwrap();
        let mut mount = world.mount();
        if !options.is_empty() {
            mount = mount.opt(options);
        }
        let mount = mount.opt("attr_timeout=0").start();
        same(&keep(&mount, "f"), &old(), "f");
        fs::write(world.behind("f"), new()).unwrap();
        // By a new open, past the kernel's own pages.
        mount.signal(rustix::process::Signal::HUP);
        let expected = if stale { old() } else { new() };
        wait_until("the version that is meant", PATIENCE, || {
            read_file(&mount.path().join("f")) == expected
        });
        same(&read_file(&mount.path().join("f")), &expected, options);
    }
}
