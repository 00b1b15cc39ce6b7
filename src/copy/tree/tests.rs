//! Trees of real files, copied without a mount.

mod large;
mod nursery;
mod totals;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex as StdMutex;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, OFlags, mknodat, open};

use super::super::options::{CopyOptions, Preserve};
use super::super::progress::Progress;
use super::super::resolve::{Change, Tree};
use super::*;
use crate::observe::Metrics;

type Outcome = std::result::Result<(), Errno>;

/// A folder that is a mount's root, whose `.copy` stands at its top.
struct World {
    folder: tempfile::TempDir,
    progress: Arc<Progress>,
    published: StdMutex<Vec<OsString>>,
    /// What somebody else does as soon as the first name is published.
    once_published: StdMutex<Option<Box<dyn FnOnce() + Send>>>,
}

fn archive() -> CopyOptions {
    CopyOptions {
        recursive: true,
        preserve: Preserve::ALL,
        ..CopyOptions::default()
    }
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            progress: Arc::default(),
            published: StdMutex::default(),
            once_published: StdMutex::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dir(&self, name: &str) {
        fs::create_dir_all(self.at(name)).unwrap();
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(folder)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn try_copy(&self, options: &CopyOptions, sources: &[&str], to: &str) -> Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = open(self.folder.path(), flags, Mode::empty()).unwrap();
        let told = |change: Change<'_>| {
            if let Change::Name(_, name) = change {
                self.published.lock().unwrap().push(name.to_owned());
                if let Some(deed) = self.once_published.lock().unwrap().take() {
                    deed();
                }
            }
        };
        let tree = Tree {
            root: root.as_fd(),
            directory: root.as_fd(),
            mountpoints: &[],
            reserved: Some(OsStr::new(".copy")),
            umask: 0o027,
            told: &told,
        };
        let order = Order {
            options,
            progress: &self.progress,
            metrics: &Metrics::new(),
        };
        let sources: Vec<_> = sources
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        copy_all(&sources, to.as_bytes(), &tree, &order)
    }

    fn copy(&self, options: &CopyOptions, sources: &[&str], to: &str) -> Outcome {
        self.try_copy(options, sources, to)
            .map_err(|fail| fail.errno)
    }

    fn failures(&self) -> Vec<(String, Errno)> {
        let (_, failures) = self.progress.failures();
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let mut failures: Vec<_> = failures
            .iter()
            .map(|failure| (shown(&failure.path), failure.fail.errno))
            .collect();
        failures.sort_by(|one, other| one.0.cmp(&other.0));
        failures
    }
}

#[test]
fn two_sources_of_one_name_do_not_replace_each_other() {
    let options = |words: fn(&mut CopyOptions)| {
        let mut options = CopyOptions::default();
        words(&mut options);
        options
    };
    let world = World::new();
    for folder in ["a", "b", "to"] {
        world.dir(folder);
    }
    world.file("a/f", "of a");
    world.file("b/f", "of b");
    let sources = ["a/f", "b/f"];
    for (options, outcome, found) in [
        (options(|_| ()), Err(Errno::EXIST), ("of a", false)),
        (options(|o| o.no_clobber = true), Ok(()), ("of a", false)),
        (
            options(|o| o.backup = Backup::Simple("~".into())),
            Err(Errno::EXIST),
            ("of a", false),
        ),
        (
            options(|o| o.backup = Backup::Numbered),
            Ok(()),
            ("of b", true),
        ),
    ] {
        assert_eq!(world.copy(&options, &sources, "to"), outcome, "{options:?}");
        assert_eq!(world.read("to/f"), found.0, "{options:?}");
        assert_eq!(world.at("to/f.~1~").exists(), found.1, "{options:?}");
        fs::remove_dir_all(world.at("to")).unwrap();
        world.dir("to");
    }
    // The same twice is no other; and where the first put nothing, the second may.
    assert_eq!(
        world.copy(&CopyOptions::default(), &["a/f", "a/f"], "to"),
        Ok(())
    );
    assert_eq!(world.read("to/f"), "of a");
    let time = |name: &str, seconds: u64| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(world.at(name)).unwrap();
        file.set_modified(time).unwrap();
    };
    for (name, seconds) in [("a/f", 1000), ("to/f", 2000), ("b/f", 3000)] {
        time(name, seconds);
    }
    assert_eq!(
        world.copy(&options(|o| o.update = true), &sources, "to"),
        Ok(())
    );
    assert_eq!(world.read("to/f"), "of b");
    // Once by each name; and trees are joined.
    assert_eq!(world.copy(&CopyOptions::default(), &["a/f"], "to"), Ok(()));
    assert_eq!(world.copy(&CopyOptions::default(), &["b/f"], "to"), Ok(()));
    assert_eq!(world.read("to/f"), "of b");
    world.file("a/only", "of a");
    let same = ["a/.", "b/."];
    assert_eq!(world.copy(&archive(), &same, "to"), Ok(()));
    assert_eq!(world.names("to"), ["f", "only"]);
}

/// What stays is another's: the source's other names are not linked to it.
#[test]
fn a_name_that_stays_is_not_what_others_are_linked_to() {
    for workers in [1, 2] {
        let world = World::new();
        world.file("large", &"x".repeat(200_000));
        world.dir("src");
        for name in ["src/1", "src/2", "src/3"] {
            fs::hard_link(world.at("large"), world.at(name)).unwrap();
        }
        let to = world.at("to");
        // The first that the copy meets, which somebody else makes as soon as the directory is there.
        let mut names: Vec<_> = fs::read_dir(world.at("src"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let others = names.split_off(1);
        let first = to.join(&names[0]);
        *world.once_published.lock().unwrap() = Some(Box::new({
            let first = first.clone();
            move || fs::write(first, "theirs").unwrap()
        }));
        let options = CopyOptions {
            no_clobber: true,
            workers: NonZeroU16::new(workers),
            ..archive()
        };
        assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
        assert_eq!(fs::read_to_string(&first).unwrap(), "theirs");
        let found = |name| fs::metadata(to.join(name)).unwrap();
        assert_eq!(found(&others[0]).len(), 200_000);
        assert_eq!(found(&others[0]).ino(), found(&others[1]).ino());
    }
}

#[test]
fn a_small_file_that_is_a_hole_stays_one() {
    let world = World::new();
    world.dir("src");
    for size in [5000, 60_000] {
        let name = format!("src/{size}");
        File::create(world.at(&name))
            .unwrap()
            .set_len(size)
            .unwrap();
    }
    assert_eq!(world.copy(&archive(), &["src"], "to"), Ok(()));
    for size in [5000, 60_000] {
        let stat = |top: &str| fs::metadata(world.at(&format!("{top}/{size}"))).unwrap();
        assert_eq!(stat("to").len(), size);
        assert_eq!(stat("to").blocks(), stat("src").blocks());
    }
}

#[test]
fn a_directory_goes_where_cp_puts_it() {
    let world = World::new();
    world.dir("src/sub");
    world.file("src/sub/f", "text");
    world.dir("there");
    assert_eq!(
        world.copy(&CopyOptions::default(), &["src"], "x"),
        Err(Errno::ISDIR)
    );
    for (source, to, found) in [
        ("src", "new", "new/sub/f"),
        ("src", "slash/", "slash/sub/f"),
        ("src/", "there", "there/src/sub/f"),
        ("src/.", "there", "there/sub/f"),
        ("src/sub/..", "there", "there/sub/f"),
    ] {
        assert_eq!(
            world.copy(&archive(), &[source], to),
            Ok(()),
            "{source} {to}"
        );
        assert_eq!(world.read(found), "text");
    }
    let onto = CopyOptions {
        no_target_directory: true,
        ..archive()
    };
    world.file("src/second", "");
    assert_eq!(world.copy(&onto, &["src"], "there"), Ok(()));
    assert_eq!(world.names("there"), ["second", "src", "sub"]);
    world.file("plain", "");
    assert_eq!(
        world.copy(&archive(), &["src"], "plain"),
        Err(Errno::NOTDIR)
    );
    assert_eq!(
        world.copy(&archive(), &["plain"], "none/"),
        Err(Errno::NOENT)
    );
    assert_eq!(world.copy(&onto, &["plain"], "there"), Err(Errno::ISDIR));
}

#[test]
fn several_sources_need_a_directory() {
    let world = World::new();
    world.file("a", "a");
    world.dir("b");
    world.dir("to");
    assert_eq!(
        world.copy(&archive(), &["a", "b"], "none"),
        Err(Errno::NOTDIR)
    );
    assert_eq!(world.copy(&archive(), &["a", "b"], "a"), Err(Errno::NOTDIR));
    assert_eq!(
        world.copy(&archive(), &["a", "none", "b"], "to"),
        Err(Errno::NOENT)
    );
    assert_eq!(world.names("to"), ["a", "b"]);
    assert_eq!(world.failures(), [("none".into(), Errno::NOENT)]);
}

#[test]
fn a_directory_is_not_copied_into_itself() {
    let world = World::new();
    world.dir("a/b/c");
    symlink("a/b", world.at("link")).unwrap();
    for to in ["a/new", "a/b", "a/b/c/", "a/b/c/x", "link", "link/x", "a"] {
        assert_eq!(
            world.copy(&archive(), &["a"], to),
            Err(Errno::INVAL),
            "{to}"
        );
    }
    assert_eq!(world.copy(&archive(), &["a/."], "a"), Err(Errno::INVAL));
    assert_eq!(world.copy(&archive(), &["."], "new"), Err(Errno::INVAL));
    assert_eq!(world.names("a"), ["b"]);
    assert_eq!(world.names("a/b"), ["c"]);
    assert_eq!(world.names("."), ["a", "link"]);
}

#[test]
fn links_stay_links_and_names_of_one_file_stay_that() {
    let world = World::new();
    world.dir("src/z");
    world.file("src/a", "shared");
    fs::hard_link(world.at("src/a"), world.at("src/z/b")).unwrap();
    fs::hard_link(world.at("src/a"), world.at("outside")).unwrap();
    symlink("nowhere", world.at("src/dangling")).unwrap();
    symlink("/", world.at("src/away")).unwrap();
    symlink("z", world.at("src/inward")).unwrap();
    world.dir("to");
    for _again in 0..2 {
        assert_eq!(world.copy(&archive(), &["src", "outside"], "to"), Ok(()));
        let inode = |name: &str| fs::symlink_metadata(world.at(name)).unwrap().ino();
        assert_eq!(inode("to/src/a"), inode("to/src/z/b"));
        assert_eq!(inode("to/src/a"), inode("to/outside"));
        assert_eq!(fs::metadata(world.at("to/outside")).unwrap().nlink(), 3);
        for (name, text) in [("dangling", "nowhere"), ("away", "/"), ("inward", "z")] {
            let link = fs::read_link(world.at("to/src").join(name)).unwrap();
            assert_eq!(link, Path::new(text));
        }
    }
    let apart = CopyOptions {
        preserve: Preserve::DEFAULT,
        ..archive()
    };
    assert_eq!(world.copy(&apart, &["src"], "apart"), Ok(()));
    assert_eq!(fs::metadata(world.at("apart/a")).unwrap().nlink(), 1);
    assert_eq!(
        world.names("to/src"),
        ["a", "away", "dangling", "inward", "z"]
    );
}

#[test]
fn special_files_are_made_and_never_opened() {
    let world = World::new();
    world.dir("src");
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(
            CWD,
            world.at("src").join(name),
            kind,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
    }
    for _again in 0..2 {
        assert_eq!(world.copy(&archive(), &["src"], "to"), Ok(()));
        world.dir("to");
        let stat = |name: &str| fs::symlink_metadata(world.at(name)).unwrap();
        assert!(stat("to/fifo").file_type().is_fifo());
        assert!(stat("to/socket").file_type().is_socket());
        assert_eq!(stat("to/fifo").mode() & 0o7777, 0o640);
    }
    world.file("plain", "");
    assert_eq!(
        world.copy(&archive(), &["plain"], "to/fifo"),
        Err(Errno::INVAL)
    );
}

#[test]
fn a_link_that_stands_in_the_copy_is_replaced_and_leads_nowhere() {
    let world = World::new();
    world.dir("src/folder");
    world.file("src/f", "new");
    world.file("src/folder/f", "new");
    world.dir("to");
    world.file("victim", "old");
    world.dir("victims");
    for inplace in [false, true] {
        let options = CopyOptions {
            inplace,
            ..archive()
        };
        let _ = fs::remove_file(world.at("to/f"));
        let _ = fs::remove_file(world.at("to/folder"));
        symlink("../victim", world.at("to/f")).unwrap();
        symlink("../victims", world.at("to/folder")).unwrap();
        assert_eq!(world.copy(&options, &["src/."], "to"), Err(Errno::NOTDIR));
        assert_eq!(world.read("victim"), "old");
        assert_eq!(world.read("to/f"), "new");
        assert!(!fs::symlink_metadata(world.at("to/f")).unwrap().is_symlink());
        assert!(world.names("victims").is_empty());
    }
}

#[test]
fn what_stands_there_stays_or_is_kept_as_asked() {
    let world = World::new();
    let old = std::time::SystemTime::UNIX_EPOCH;
    let prepare = || {
        for folder in ["src", "to"] {
            let _ = fs::remove_dir_all(world.at(folder));
            world.dir(folder);
            world.file(&format!("{folder}/f"), folder);
            world.file(&format!("{folder}/g"), folder);
        }
        let aged = File::options().write(true).open(world.at("to/f")).unwrap();
        aged.set_modified(old).unwrap();
        let aged = File::options().write(true).open(world.at("src/g")).unwrap();
        aged.set_modified(old).unwrap();
    };
    let copy = |options: CopyOptions| {
        prepare();
        assert_eq!(world.copy(&options, &["src/."], "to"), Ok(()));
        (world.read("to/f"), world.read("to/g"), world.names("to"))
    };
    let stays = copy(CopyOptions {
        no_clobber: true,
        ..archive()
    });
    assert_eq!((&*stays.0, &*stays.1), ("to", "to"));
    let updated = copy(CopyOptions {
        update: true,
        ..archive()
    });
    assert_eq!((&*updated.0, &*updated.1), ("src", "to"));
    let kept = copy(CopyOptions {
        backup: Backup::Simple(".old".into()),
        ..archive()
    });
    assert_eq!((&*kept.0, &*kept.1), ("src", "src"));
    assert_eq!(kept.2, ["f", "f.old", "g", "g.old"]);
    assert_eq!(world.read("to/f.old"), "to");
    let kept = copy(CopyOptions {
        backup: Backup::Numbered,
        inplace: true,
        ..archive()
    });
    assert_eq!(kept.2, ["f", "f.~1~", "g", "g.~1~"]);
    assert_eq!(world.read("to/g.~1~"), "to");
}

#[test]
fn a_backup_takes_the_place_of_no_copy_of_the_same_job() {
    let world = World::new();
    for folder in ["src", "to"] {
        world.dir(folder);
        world.file(&format!("{folder}/f"), folder);
        world.file(&format!("{folder}/f~"), &format!("{folder}~"));
    }
    let options = CopyOptions {
        backup: Backup::Simple("~".into()),
        ..archive()
    };
    let copied = world.copy(&options, &["src/f~", "src/f"], "to");
    assert_eq!(copied, Err(Errno::EXIST));
    assert_eq!(world.failures(), [("src/f".to_owned(), Errno::EXIST)]);
    assert_eq!(world.names("to"), ["f", "f~", "f~~"]);
    assert_eq!(
        ["f", "f~", "f~~"].map(|name| world.read(&format!("to/{name}"))),
        ["to", "src~", "to~"]
    );
}

#[test]
fn what_is_excluded_is_left_out() {
    let world = World::new();
    world.dir("src/build/deep");
    world.dir("src/keep");
    for name in [
        "src/a.o",
        "src/a.c",
        "src/keep/b.o",
        "src/keep/top",
        "src/top",
    ] {
        world.file(name, "");
    }
    let options = CopyOptions {
        exclude: vec![b"*.o".to_vec(), b"build/".to_vec(), b"/top".to_vec()],
        ..archive()
    };
    assert_eq!(world.copy(&options, &["src"], "to"), Ok(()));
    assert_eq!(world.names("to"), ["a.c", "keep"]);
    assert_eq!(world.names("to/keep"), ["top"]);
}

#[test]
fn what_fails_is_counted_and_the_rest_is_copied() {
    let world = World::new();
    world.dir("src/folder");
    world.dir("src/clash");
    world.dir("to/over");
    for name in ["src/one", "src/over", "src/two", "src/.copy", "to/clash"] {
        world.file(name, "");
    }
    let failed = world.try_copy(&archive(), &["src/."], "to").unwrap_err();
    assert_eq!(world.names("to"), ["clash", "folder", "one", "over", "two"]);
    assert_eq!(
        world.failures(),
        [
            ("src/./.copy".into(), Errno::EXIST),
            ("src/./clash".into(), Errno::NOTDIR),
            ("src/./over".into(), Errno::ISDIR),
        ]
    );
    let words = failed.to_string();
    assert!(words.contains("3 of 7 failed"), "{words}");
    assert_eq!(world.progress.files(), (4, 7));
    assert!(world.progress.totals_known());
}

#[test]
fn a_cancelled_tree_says_so_and_nothing_else() {
    let world = World::new();
    world.dir("src");
    world.file("src/f", "");
    world.progress.cancel();
    assert_eq!(world.copy(&archive(), &["src"], "to"), Err(Errno::INTR));
    assert!(world.failures().is_empty());
}

#[test]
fn what_is_cancelled_before_its_name_is_on_disk_is_not_called_done() {
    for (sync, outcome) in [(true, Err(Errno::INTR)), (false, Ok(()))] {
        let world = World::new();
        world.file("f", "text");
        let progress = Arc::clone(&world.progress);
        *world.once_published.lock().unwrap() = Some(Box::new(move || progress.cancel()));
        let options = CopyOptions {
            sync,
            ..CopyOptions::default()
        };
        assert_eq!(world.copy(&options, &["f"], "to"), outcome, "sync: {sync}");
        assert_eq!(world.read("to"), "text");
    }
}

#[test]
fn what_an_interrupted_copy_left_goes_whatever_takes_its_name() {
    let inplace = CopyOptions {
        inplace: true,
        ..CopyOptions::default()
    };
    for (options, sources, stands) in [
        (CopyOptions::default(), &["f"][..], false),
        (CopyOptions::default(), &["f"], true),
        (inplace, &["f"], true),
        (archive(), &["link"], false),
        (archive(), &["fifo"], true),
        (archive(), &["one", "two"], false),
        (archive(), &["one", "two"], true),
    ] {
        let world = World::new();
        world.dir("to");
        world.file("f", "text");
        world.file("one", "text");
        fs::hard_link(world.at("one"), world.at("two")).unwrap();
        symlink("f", world.at("link")).unwrap();
        mknodat(CWD, world.at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let name = *sources.last().unwrap();
        if stands {
            world.file(&format!("to/{name}"), "old");
        }
        let hash = xxhash_rust::xxh3::xxh3_128(name.as_bytes());
        for end in ["", ".journal"] {
            world.file(&format!("to/.corfs-part-{hash:032x}{end}"), "");
        }
        assert_eq!(world.copy(&options, sources, "to"), Ok(()), "{name}");
        assert_eq!(world.names("to"), sources, "{name}, {stands}");
    }
}

#[test]
fn directories_get_their_modes_and_times_last() {
    let world = World::new();
    world.dir("src/a/b");
    world.file("src/a/b/f", "text");
    for (name, mode) in [("src/a/b", 0o2500), ("src/a", 0o1555), ("src", 0o750)] {
        let path = world.at(name);
        let file = File::open(&path).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        file.set_modified(time).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(world.copy(&archive(), &["src"], "to"), Ok(()));
    for name in ["", "a", "a/b"] {
        let stat = |top: &str| fs::metadata(world.at(top).join(name)).unwrap();
        let (from, to) = (stat("src"), stat("to"));
        assert_eq!(from.mode(), to.mode(), "{name}");
        let time = |stat: &fs::Metadata| (stat.mtime(), stat.mtime_nsec());
        assert_eq!(time(&from), time(&to), "{name}");
    }
    let bare = CopyOptions {
        preserve: Preserve::NONE,
        ..archive()
    };
    fs::set_permissions(world.at("src/a"), fs::Permissions::from_mode(0o577)).unwrap();
    assert_eq!(world.copy(&bare, &["src"], "bare"), Ok(()));
    let mode = |name: &str| fs::metadata(world.at(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("bare"), 0o750, "less the mask");
    assert_eq!(mode("bare/a"), 0o550);
    assert_eq!(mode("bare/a/b/f"), 0o640);
    fs::set_permissions(world.at("src/a/b/f"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(world.copy(&bare, &["src/a/b/f"], "large"), Ok(()));
    assert_eq!(mode("large"), 0o750);
}

#[test]
fn names_near_the_longest_work_and_longer_ones_are_refused() {
    let world = World::new();
    world.dir("src");
    world.file(&format!("src/{}", "x".repeat(255)), "long");
    assert_eq!(world.copy(&archive(), &["src"], "to"), Ok(()));
    assert_eq!(world.read(&format!("to/{}", "x".repeat(255))), "long");
    let longer = "x".repeat(256);
    assert_eq!(
        world.copy(&archive(), &["src"], &longer),
        Err(Errno::NAMETOOLONG)
    );
    let backup = CopyOptions {
        backup: Backup::Simple("~".into()),
        ..archive()
    };
    assert_eq!(
        world.copy(&backup, &["src/."], "to"),
        Err(Errno::NAMETOOLONG)
    );
    assert_eq!(world.read(&format!("to/{}", "x".repeat(255))), "long");
    symlink("round", world.at("round")).unwrap();
    assert_eq!(world.copy(&archive(), &["round/x"], "to"), Err(Errno::LOOP));
}
