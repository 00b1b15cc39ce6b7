//! An ordinary user's mirror watches by inotify, directory by directory.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::changes::every_kind_shows;
use super::*;
use crate::support::{Need, Scratch, USER, apart, read_file, require, set_owner, write_file};

/// A source of the user's own, and his mirror of it.
fn of_user(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    set_owner(source.path(), USER, USER);
    let mount = Way::Inotify.mount(source.path()).as_user(USER, USER);
    let mount = match options {
        "" => mount.start(),
        options => mount.opt(options).start(),
    };
    (source, mount)
}

#[test]
fn every_kind_of_change_shows_to_an_ordinary_user() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let (source, mount) = of_user("");
    apart(Some((USER, USER)), || {
        assert_eq!(watched_by(&mount), "inotify");
        every_kind_shows(Way::Inotify, source.path(), &mount);
        let stats = mount.stats();
        assert_eq!(stats.value("corfs_unwatched_total", &[]), 0.0);
        assert_eq!(stats.value("corfs_watching", &[("by", "inotify")]), 1.0);
    });
}

/// Directories beyond the limit are answered with the ordinary timeouts, and counted.
#[test]
fn what_the_limit_leaves_unwatched_shows_after_the_ordinary_timeouts() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let (source, mount) = of_user("watch_limit=3,attr_timeout=0.3,entry_timeout=0.3");
    apart(Some((USER, USER)), || {
        for dir in 0..6 {
            let dir = source.path().join(format!("dir{dir}"));
            fs::create_dir(&dir).unwrap();
            write_file(&dir.join("file"), b"before");
        }
        for dir in 0..6 {
            let name = format!("dir{dir}/file");
            assert_eq!(read_file(&mount.path().join(name)), b"before");
        }
        let stats = mount.stats();
        assert_eq!(stats.value("corfs_watches", &[]), 3.0);
        assert_eq!(stats.value("corfs_unwatched_total", &[]), 4.0);
        for dir in 0..6 {
            let name = format!("dir{dir}/file");
            write_file(&source.path().join(&name), b"afterwards");
            let on = mount.path().join(&name);
            comes_true(&name, PATIENCE, || read_file(&on) == b"afterwards");
            fs::remove_file(source.path().join(&name)).unwrap();
            comes_true(&name, PATIENCE, || !on.exists());
        }
    });
}

/// A watch goes with the kernel's memory of its directory, and makes room for another.
#[test]
fn a_watch_ends_when_the_kernel_forgets_its_directory() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let (source, mount) = of_user("");
    apart(Some((USER, USER)), || {
        let watches = || mount.stats().value("corfs_watches", &[]);
        assert_eq!(watches(), 1.0);
        for dir in 0..20 {
            fs::create_dir(source.path().join(format!("dir{dir}"))).unwrap();
            let on = mount.path().join(format!("dir{dir}"));
            comes_true("a new directory", PATIENCE, || on.is_dir());
        }
        // Not all, should somebody drop this machine's caches just now.
        assert!(watches() > 1.0);
        for dir in 0..20 {
            fs::remove_dir(source.path().join(format!("dir{dir}"))).unwrap();
        }
        comes_true("the watches end", PATIENCE, || watches() == 1.0);
    });
}

/// A file with names in directories that the kernel may not know is not believed for long.
#[test]
fn a_file_with_a_name_elsewhere_shows_what_is_done_to_it_there() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let (source, mount) = of_user("attr_timeout=0.3");
    let elsewhere = source.path().with_file_name(format!(
        "{}-elsewhere",
        source.path().file_name().unwrap().to_string_lossy()
    ));
    let file = source.file("file", b"before");
    fs::hard_link(&file, &elsewhere).unwrap();
    let _gone = Gone(&elsewhere);
    set_owner(&file, USER, USER);
    apart(Some((USER, USER)), || {
        let on = mount.path().join("file");
        assert_eq!(fs::metadata(&on).unwrap().nlink(), 2);
        assert_eq!(read_file(&on), b"before");
        write_file(&elsewhere, b"afterwards");
        comes_true("written elsewhere", PATIENCE, || {
            read_file(&on) == b"afterwards"
        });
    });
}

/// A name that is made in a directory that the kernel does not know gives no event, and what is done
/// by it neither.
#[test]
fn what_is_done_by_a_name_made_out_of_sight_shows_when_the_file_is_opened() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    // For ever, as far as the user is concerned.
    let (source, mount) = of_user("");
    apart(Some((USER, USER)), || {
        let file = source.path().join("file");
        write_file(&file, b"before");
        let other = source.path().join("unknown/other");
        fs::create_dir(other.with_file_name("")).unwrap();
        let on = mount.path().join("file");
        comes_true("the file", PATIENCE, || on.exists());
        for text in [&b"afterwards"[..], b"and again"] {
            assert!(!read_file(&on).is_empty());
            assert_eq!(fs::metadata(&on).unwrap().nlink(), 1);
            fs::hard_link(&file, &other).unwrap();
            write_file(&other, text);
            assert_eq!(read_file(&on), text, "at once");
            assert_eq!(fs::metadata(&on).unwrap().nlink(), 2);
            fs::remove_file(&other).unwrap();
            comes_true("one name", PATIENCE, || {
                fs::metadata(&on).unwrap().nlink() == 1
            });
        }
    });
}

struct Gone<'a>(&'a Path);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// The user's own writes through the mount do not have the kernel drop what it just cached, and
/// he keeps standing where he stands.
#[test]
fn an_ordinary_users_own_changes_are_no_news_either() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let (_source, mount) = of_user("");
    apart(Some((USER, USER)), || {
        let folder = mount.path().join("folder");
        fs::create_dir(&folder).unwrap();
        std::env::set_current_dir(&folder).unwrap();
        for round in 0..20 {
            fs::write("file", vec![b'x'; 10_000]).unwrap();
            fs::rename("file", format!("file{round}")).unwrap();
            fs::create_dir(format!("dir{round}")).unwrap();
        }
        comes_true("the events are read", PATIENCE, || {
            mount.stats().value("corfs_watch_events_total", &[]) > 60.0
        });
        assert_eq!(std::env::current_dir().unwrap(), folder);
        std::env::set_current_dir("/").unwrap();
    });
}
