//! Listings, and names that do not exist, as the kernel keeps them where the source is watched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::support::{Need, Scratch, USER, require, set_owner};

fn names(at: &Path) -> BTreeSet<OsString> {
    let listed = fs::read_dir(at).expect("opendir");
    listed.map(|e| e.expect("readdir").file_name()).collect()
}

/// Listings that the server was asked for.
fn asked(mount: &Mount) -> f64 {
    let stats = mount.stats();
    let of = |op| stats.sum("corfs_operations_total", &[("op", op)]);
    of("readdir") + of("readdirplus")
}

/// A directory that was changed just now is not kept: its next change might have the same mtime.
fn settled(at: &Path) {
    comes_true("the directory has settled", PATIENCE, || {
        let modified = fs::metadata(at).and_then(|m| m.modified()).expect("mtime");
        modified
            .elapsed()
            .is_ok_and(|age| age > Duration::from_secs(3))
    });
}

fn kept_and_never_stale(way: Way, source: &Path, mount: &Mount) {
    let (behind, on) = (source.join("dir"), mount.path().join("dir"));
    settled(&behind);
    let before = names(&on);
    assert_eq!(before, names(&behind));
    // Twice: the first may still have dropped what was there.
    assert_eq!(names(&on), before);
    let so_far = asked(mount);
    assert_eq!(names(&on), before);
    assert_eq!(asked(mount), so_far, "{way:?}: listed from what is kept");
    // Two changes at once, which leave the number of names alone.
    for round in 0..50 {
        fs::write(behind.join(format!("new-{round}")), b"x").expect("create");
        fs::remove_file(behind.join(format!("{round}"))).expect("unlink");
        way.shows("created and removed", || names(&on) == names(&behind));
    }
    fs::rename(behind.join("new-7"), behind.join("renamed")).expect("rename");
    way.shows("renamed", || names(&on) == names(&behind));
}

fn source() -> Scratch {
    let source = Scratch::new();
    source.dir("dir");
    for number in 0..200 {
        source.file(&format!("dir/{number}"), b"x");
    }
    source
}

#[test]
fn a_watched_directory_is_listed_from_what_is_kept_and_never_stale() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = source();
    let mount = Way::Watch.start(source.path());
    kept_and_never_stale(Way::Watch, source.path(), &mount);
    let (behind, on) = (source.path().join("dir"), mount.path().join("dir"));
    fs::write(on.join("through the mount"), b"x").expect("create");
    assert_eq!(names(&on), names(&behind));
    fs::remove_file(on.join("through the mount")).expect("unlink");
    assert_eq!(names(&on), names(&behind));
}

#[test]
fn one_that_was_opened_with_its_listing_kept_is_read_and_synced_as_any_other() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = source();
    let mount = Way::Watch.start(source.path());
    let (behind, on) = (source.path().join("dir"), mount.path().join("dir"));
    settled(&behind);
    let before = names(&on);
    assert_eq!(names(&on), before);
    let opened = fs::File::open(&on).expect("open the directory");
    let mut stream = rustix::fs::Dir::read_from(&opened).expect("a stream of it");
    opened.sync_all().expect("fsync");
    opened.sync_data().expect("fdatasync");
    let mut count = || {
        stream.rewind();
        stream.by_ref().filter(|e| e.is_ok()).count()
    };
    assert_eq!(count(), before.len() + 2);
    fs::write(behind.join("new"), b"x").expect("create");
    comes_true("created behind", PATIENCE, || count() == before.len() + 3);
    fs::remove_dir_all(&behind).expect("remove it behind");
    comes_true("removed behind", PATIENCE, || !on.exists());
}

/// A mount of an ordinary user's, who owns its folders.
fn of_user(source: &Scratch) -> Mount {
    for path in [source.path(), &source.path().join("dir")] {
        set_owner(path, USER, USER);
    }
    let mount = Way::Inotify.mount(source.path()).as_user(USER, USER);
    mount.opt("allow_other").start()
}

#[test]
fn one_that_the_mounts_owner_may_not_read_any_more_is_refused_each_time() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = source();
    let mount = of_user(&source);
    let (behind, on) = (source.path().join("dir"), mount.path().join("dir"));
    settled(&behind);
    let before = names(&on);
    assert_eq!(names(&on), before);
    let opened = fs::File::open(&on).expect("open the directory");
    fs::set_permissions(&behind, fs::Permissions::from_mode(0o300)).expect("chmod");
    let refused = || fs::read_dir(&on).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
    comes_true("it is refused", PATIENCE, refused);
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..3 {
        assert!(refused());
    }
    // Who has it open keeps that.
    opened.sync_all().expect("fsync");
    fs::set_permissions(&behind, fs::Permissions::from_mode(0o700)).expect("chmod");
    comes_true("it is shown again", PATIENCE, || {
        fs::read_dir(&on).is_ok() && names(&on) == before
    });
}

#[test]
fn so_is_one_that_inotify_watches() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = source();
    let mount = of_user(&source);
    assert_eq!(watched_by(&mount), "inotify");
    kept_and_never_stale(Way::Inotify, source.path(), &mount);
}

#[test]
fn a_missing_name_is_remembered_where_it_is_watched_until_it_is_there() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = source();
    let count = |mount: &Mount| {
        let stats = mount.stats();
        stats.sum("corfs_operations_total", &[("op", "lookup")])
    };
    for (options, kept) in [
        ("coherence=watch", true),
        ("coherence=watch,negative_timeout=0", false),
        ("coherence=ttl", false),
    ] {
        let mount = Mount::of(source.path()).opt(options).start();
        let (behind, on) = (
            source.path().join("dir/none"),
            mount.path().join("dir/none"),
        );
        assert!(!on.exists());
        let so_far = count(&mount);
        // Reading the statistics looks names up too.
        let usual = count(&mount) - so_far;
        let so_far = count(&mount);
        for _ in 0..100 {
            assert!(!on.exists());
        }
        let asked = count(&mount) - so_far - usual;
        assert_eq!(asked < 100.0, kept, "{options}: asked {asked} times");
        fs::write(&behind, b"x").expect("create");
        comes_true("created behind", PATIENCE, || on.exists());
        fs::remove_file(&behind).expect("unlink");
        comes_true("removed behind", PATIENCE, || !on.exists());
    }
}
