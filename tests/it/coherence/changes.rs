//! Every kind of change, in every way, on every file system that a source commonly has.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{Timespec, XattrFlags};

use super::*;
use crate::support::{
    Loop, Need, Scratch, Tmpfs, USER, apart, read_file, require, run, set_owner, write_file,
};

/// Two names of one file: behind the mirror, and on it.
struct Both {
    way: Way,
    behind: std::path::PathBuf,
    on: std::path::PathBuf,
}

impl Both {
    fn of(way: Way, source: &Path, mount: &Mount, name: &str) -> Self {
        Self {
            way,
            behind: source.join(name),
            on: mount.path().join(name),
        }
    }

    /// A file that the kernel knows by heart: name, attributes, bytes.
    fn known(way: Way, source: &Path, mount: &Mount, name: &str) -> Self {
        let both = Self::of(way, source, mount, name);
        write_file(&both.behind, b"before");
        both.way.shows("created", || both.on.exists());
        assert_eq!(read_file(&both.on), b"before");
        both
    }

    #[track_caller]
    fn stat_shows(&self, what: &str, right: impl Fn(&fs::Metadata) -> bool) {
        self.way.shows(what, || {
            fs::symlink_metadata(&self.on).is_ok_and(|m| right(&m))
        });
    }

    #[track_caller]
    fn content_shows(&self, what: &str, expected: &[u8]) {
        self.way.shows(what, || {
            fs::read(&self.on).is_ok_and(|bytes| bytes == expected)
        });
    }
}

fn bytes_show(way: Way, source: &Path, mount: &Mount) {
    let file = Both::known(way, source, mount, "bytes");
    let mut open = File::open(&file.on).unwrap();
    let mut reread = || {
        let mut bytes = Vec::new();
        open.rewind()
            .and_then(|()| open.read_to_end(&mut bytes))
            .unwrap();
        bytes
    };
    assert_eq!(reread(), b"before");
    let mut behind = File::options().write(true).open(&file.behind).unwrap();
    behind.write_all(b"after!").unwrap();
    way.shows("overwritten, to who has it open", || reread() == b"after!");
    file.content_shows("overwritten", b"after!");
    behind.write_all(b" and more").unwrap();
    file.content_shows("appended", b"after! and more");
    file.stat_shows("size", |m| m.len() == 15);
    behind.set_len(3).unwrap();
    file.stat_shows("truncated", |m| m.len() == 3);
    file.content_shows("truncated", b"aft");
    behind.set_len(5).unwrap();
    file.content_shows("grown", b"aft\0\0");
}

fn attributes_show(way: Way, source: &Path, mount: &Mount) {
    let file = Both::known(way, source, mount, "attributes");
    fs::set_permissions(&file.behind, Permissions::from_mode(0o612)).unwrap();
    file.stat_shows("chmod", |m| m.mode() & 0o7777 == 0o612);
    if way != Way::Inotify || rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file.behind, Some(123), Some(456)).unwrap();
        file.stat_shows("chown", |m| (m.uid(), m.gid()) == (123, 456));
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options()
        .write(true)
        .open(&file.behind)
        .unwrap()
        .set_modified(time)
        .unwrap();
    file.stat_shows("utimes", |m| m.mtime() == 1_000_000_000);
    rustix::fs::setxattr(&file.behind, "user.a", b"1", XattrFlags::empty()).unwrap();
    let ctime = fs::metadata(&file.behind).unwrap().ctime_nsec();
    file.stat_shows("setxattr, by ctime", |m| m.ctime_nsec() == ctime);
    let mut value = [0u8; 4];
    let length = rustix::fs::getxattr(&file.on, "user.a", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"1");
}

fn names_show(way: Way, source: &Path, mount: &Mount) {
    let (from, to) = (
        Both::known(way, source, mount, "from"),
        Both::of(way, source, mount, "to"),
    );
    assert!(!to.on.exists(), "and the kernel may remember that");
    let open = File::open(&from.on).unwrap();
    fs::rename(&from.behind, &to.behind).unwrap();
    way.shows("renamed from", || !from.on.exists());
    way.shows("renamed to", || to.on.exists());
    // A replacement, while the replaced one is open.
    let new = Both::of(way, source, mount, "new");
    write_file(&new.behind, b"replacement");
    fs::rename(&new.behind, &to.behind).unwrap();
    to.content_shows("replaced", b"replacement");
    way.shows("no name is left of the replaced", || {
        open.metadata().unwrap().nlink() == 0
    });
    let second = Both::of(way, source, mount, "second");
    assert_eq!(fs::metadata(&to.on).unwrap().nlink(), 1);
    fs::hard_link(&to.behind, &second.behind).unwrap();
    to.stat_shows("linked", |m| m.nlink() == 2);
    way.shows("both are one", || {
        let ino = |both: &Both| fs::metadata(&both.on).map(|m| m.ino()).ok();
        ino(&second).is_some() && ino(&second) == ino(&to)
    });
    write_file(&second.behind, b"by another name");
    to.content_shows("written by another name", b"by another name");
    fs::remove_file(&second.behind).unwrap();
    way.shows("deleted", || !second.on.exists());
    to.stat_shows("one name again", |m| m.nlink() == 1);
    let link = Both::of(way, source, mount, "link");
    std::os::unix::fs::symlink("one", &link.behind).unwrap();
    way.shows("symlink", || {
        fs::read_link(&link.on).is_ok_and(|l| l == Path::new("one"))
    });
    fs::remove_file(&link.behind).unwrap();
    std::os::unix::fs::symlink("two", &link.behind).unwrap();
    way.shows("another symlink", || {
        fs::read_link(&link.on).is_ok_and(|l| l == Path::new("two"))
    });
}

fn listing(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return vec!["none".into()];
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

fn directories_show(way: Way, source: &Path, mount: &Mount) {
    let dir = Both::of(way, source, mount, "dir");
    fs::create_dir(&dir.behind).unwrap();
    way.shows("mkdir", || dir.on.is_dir());
    assert_eq!(listing(&dir.on), [""; 0]);
    let inner = Both::known(way, source, mount, "dir/inner");
    way.shows("listed", || listing(&dir.on) == ["inner"]);
    // A directory's own time, which a new entry moves.
    let time = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    let flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, &dir.behind, &times, flags).unwrap();
    dir.stat_shows("utimes of a directory", |m| m.mtime() == 1);
    write_file(&dir.behind.join("second"), b"");
    dir.stat_shows("time of a directory with a new entry", |m| m.mtime() > 1);
    let deep = Both::of(way, source, mount, "dir/deep");
    fs::create_dir(&deep.behind).unwrap();
    way.shows("mkdir below", || deep.on.is_dir());
    let moved = Both::of(way, source, mount, "moved");
    fs::rename(&dir.behind, &moved.behind).unwrap();
    way.shows("gone from its old name", || {
        !inner.on.exists() && !dir.on.exists()
    });
    way.shows("under its new one", || {
        listing(&moved.on) == ["deep", "inner", "second"]
    });
    write_file(&moved.behind.join("deep/later"), b"x");
    way.shows("a new entry below", || moved.on.join("deep/later").exists());
    fs::remove_dir_all(&moved.behind).unwrap();
    way.shows("removed", || !moved.on.exists());
    way.shows("listing of the root", || {
        listing(mount.path()) == listing(source)
    });
}

/// Makes every kind of change in an empty source.
pub(super) fn every_kind_shows(way: Way, source: &Path, mount: &Mount) {
    bytes_show(way, source, mount);
    attributes_show(way, source, mount);
    names_show(way, source, mount);
    directories_show(way, source, mount);
}

fn in_every_way(folder: &Path) {
    for way in [Way::Ttl, Way::Strict, Way::Watch] {
        let source = folder.join(format!("{way:?}"));
        fs::create_dir(&source).unwrap();
        every_kind_shows(way, &source, &way.start(&source));
    }
}

#[test]
fn every_kind_of_change_shows_over_ext4() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    in_every_way(Loop::new("ext4", 64 << 20).path());
}

#[test]
fn every_kind_of_change_shows_over_xfs() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs")]) {
        return;
    }
    in_every_way(Loop::new("xfs", 320 << 20).path());
}

#[test]
fn every_kind_of_change_shows_over_tmpfs() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    in_every_way(Tmpfs::new(64 << 20).path());
}

/// The kernel refuses a mark in a subvolume (EXDEV): inotify takes its place.
#[test]
fn every_kind_of_change_shows_over_btrfs_and_in_a_subvolume_of_it() {
    let needs = [Need::Fuse, Need::Filesystem("btrfs"), Need::Tool("btrfs")];
    if !require(&needs) {
        return;
    }
    let volume = Loop::new("btrfs", 256 << 20);
    in_every_way(volume.path());
    let sub = volume.path().join("sub");
    run(Command::new("btrfs")
        .args(["subvolume", "create"])
        .arg(&sub));
    every_kind_shows(Way::Inotify, &sub, &Way::Inotify.start(&sub));
}

/// A file system mounted inside the source is watched as soon as the kernel hears of it.
#[test]
fn a_file_system_inside_the_source_is_watched_too() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let inner = Tmpfs::at(&source.dir("inner"), 16 << 20);
    let mount = Way::Watch.start(source.path());
    let on = mount.path().join("inner/file");
    write_file(&inner.path().join("file"), b"one");
    Way::Watch.shows("created inside", || on.exists());
    assert_eq!(read_file(&on), b"one");
    assert_eq!(mount.stats().value("corfs_watches", &[]), 2.0);
    write_file(&inner.path().join("file"), b"three");
    Way::Watch.shows("written inside", || read_file(&on) == b"three");
    drop(mount);
}

/// A file shown twice, by a bind mount inside the source: what is changed through one name on the
/// mount shows by the other, though that is this mirror's own doing.
#[test]
fn what_the_mirror_does_to_a_file_shown_twice_shows_by_its_other_name() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let (one, two) = (source.dir("one"), source.dir("two"));
    write_file(&one.join("file"), b"before");
    run(Command::new("mount").arg("--bind").arg(&one).arg(&two));
    let _unmounted = Unmounted(&two);
    let mount = Way::Watch.start(source.path());
    let (one, two) = (mount.path().join("one/file"), mount.path().join("two/file"));
    assert_eq!(
        (read_file(&one), read_file(&two)),
        (b"before".to_vec(), b"before".to_vec())
    );
    write_file(&one, b"after");
    Way::Watch.shows("by the other name", || read_file(&two) == b"after");
    drop(mount);
}

/// By whichever name it was found last, and although nobody asks for its attributes.
#[test]
fn what_happens_behind_the_mirror_to_a_folder_shown_twice_shows_by_both_names() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let (one, two) = (source.dir("one"), source.dir("two"));
    write_file(&one.join("file"), b"");
    for path in [source.path(), &one, &one.join("file")] {
        set_owner(path, USER, USER);
    }
    run(Command::new("mount").arg("--bind").arg(&one).arg(&two));
    let _unmounted = Unmounted(&two);
    let mount = Way::Inotify.mount(source.path());
    let mount = mount.as_user(USER, USER).start();
    apart(Some((USER, USER)), || {
        assert_eq!(watched_by(&mount), "inotify");
        let size = |folder| {
            mount
                .path()
                .join(folder)
                .join("file")
                .metadata()
                .unwrap()
                .len()
        };
        for (round, folders) in [["one", "two"], ["two", "one"]].into_iter().enumerate() {
            assert_eq!(folders.map(size), [round as u64; 2]);
            write_file(&one.join("file"), &b"xx"[..=round]);
            for folder in folders {
                Way::Inotify.shows(folder, || size(folder) == round as u64 + 1);
            }
        }
    });
    drop(mount);
}

/// The kernel hears of a new directory after somebody has found it: it must not take the path from
/// under the feet of whoever has gone there at once.
#[test]
fn who_enters_a_new_directory_at_once_keeps_his_path() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Way::Watch.start(source.path());
    for round in 0..50 {
        let (made, moved) = (format!("made{round}"), format!("moved{round}"));
        fs::create_dir(source.path().join(&made)).unwrap();
        let in_made = open_folder(&mount.path().join(&made));
        fs::create_dir(source.path().join(".new")).unwrap();
        fs::rename(source.path().join(".new"), source.path().join(&moved)).unwrap();
        let in_moved = open_folder(&mount.path().join(&moved));
        // Told once this shows: events come in their order.
        let last = mount.path().join("last");
        write_file(&source.path().join("last"), format!("{round}").as_bytes());
        Way::Watch.shows("the last", || {
            last.exists() && read_file(&last) == format!("{round}").as_bytes()
        });
        for (name, folder) in [(made, in_made), (moved, in_moved)] {
            let path = fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            assert_eq!(path.unwrap(), mount.path().join(name));
        }
    }
}

fn open_folder(path: &Path) -> fs::File {
    fs::File::open(path).unwrap()
}

struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
