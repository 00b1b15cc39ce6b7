//! What a copy has changed shows on the mount at once, whatever the kernel had cached of it.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::*;
use crate::support::{Need, Scratch, require, set_mode};

/// So long that only being told can have made the kernel ask again.
const WAYS: [&str; 5] = [
    "attr_timeout=600,entry_timeout=600,negative_timeout=600",
    "attr_timeout=600,entry_timeout=600,negative_timeout=600,passthrough=always",
    "attr_timeout=600,entry_timeout=600,negative_timeout=600,sandbox=off,io=pread",
    "coherence=strict",
    "coherence=watch,watch_timeout=never,negative_timeout=600",
];

/// What a look at a file tells, but for what differs between a mirror and its source.
fn shown(path: &Path) -> String {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) => return format!("{:?}", error.kind()),
    };
    let told = |meta: &Metadata| {
        let (mtime, ctime) = (meta.mtime_nsec(), meta.ctime_nsec());
        let times = (meta.mtime(), mtime, meta.ctime(), ctime);
        (meta.mode(), meta.nlink(), meta.uid(), meta.size(), times)
    };
    let mut within: Vec<u8> = Vec::new();
    if meta.is_dir() {
        within = names(path).join("/").into_bytes();
    } else if meta.is_file() {
        within = read_file(path);
    } else if meta.is_symlink() {
        within = fs::read_link(path)
            .unwrap()
            .into_os_string()
            .into_encoded_bytes();
    }
    format!("{:?} {}", told(&meta), within.escape_ascii())
}

/// Looks at all names on the mount, so that the kernel has them, and at the source.
#[track_caller]
fn look(mount: &Mount, names: &[&str], what: &str) {
    for name in names {
        let (on, off) = (mount.path().join(name), mount.source().join(name));
        assert_eq!(shown(&on), shown(&off), "{what}: {name}");
    }
}

fn world(way: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    source.file("f", b"new bytes");
    source.file("to", b"old bytes, of which there are more");
    source.dir("t");
    source.dir("t/d");
    source.file("t/d/x", b"x");
    source.file("t/a", b"names");
    fs::hard_link(source.path().join("t/a"), source.path().join("t/b")).unwrap();
    fs::hard_link(source.path().join("to"), source.path().join("other")).unwrap();
    symlink("a", source.path().join("t/l")).unwrap();
    set_mode(&source.path().join("t/d"), 0o750);
    let mount = Mount::of(source.path()).opt(way).start();
    (source, mount)
}

#[test]
fn names_that_were_not_there_and_those_that_meant_something_else() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for way in WAYS {
        let (_source, mount) = world(way);
        let all = [
            ".", "f", "to", "to~", "new", "other", "t2", "t2/a", "t2/b", "t2/l", "t2/d", "t2/d/x",
        ];
        for (line, what) in [
            ("f new", "made"),
            ("f to", "replaced, of two names"),
            ("--backup t/a new", "kept as a backup"),
            ("-a t t2", "a tree"),
            ("t/d/x t2/a", "replaced in a tree"),
            ("-a t/. t2", "a tree again"),
            ("--inplace f other", "written into"),
            ("--inplace t/a t2/b", "one of two names written into"),
            ("-a --attributes-only-nonsense", "nothing"),
        ] {
            look(&mount, &all, way);
            let told = tell(mount.path(), line);
            assert_eq!(told.is_err(), line.contains("nonsense"), "{way}: {line}");
            look(&mount, &all, &format!("{way}: {what}"));
        }
    }
}

#[test]
fn who_has_a_file_open_or_mapped_sees_what_was_written_into_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    const SIZE: usize = 300_000;
    for way in WAYS {
        let source = Scratch::new();
        let (one, other) = (content(1, 0, SIZE), content(2, 0, SIZE));
        source.file("one", &one);
        source.file("other", &other);
        source.file("short", b"short");
        source.file("to", &one);
        // Neither size nor time of change tells them apart.
        for name in ["one", "other", "to"] {
            let file = File::options().write(true).open(source.path().join(name));
            file.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let mount = Mount::of(source.path()).opt(way).start();
        let file = File::open(mount.path().join("to")).unwrap();
        // SAFETY: a new mapping, of a file that never becomes shorter while it is looked at.
        let map = unsafe {
            let null = std::ptr::null_mut();
            mmap(null, SIZE, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap()
        };
        // SAFETY: as above; read anew each time, for the bytes behind it change.
        let mapped = |at: usize| unsafe { map.cast::<u8>().add(at).read_volatile() };
        for round in 0..4 {
            let (name, bytes) = match round % 2 {
                0 => ("other", &other),
                _ => ("one", &one),
            };
            tell(mount.path(), &format!("--inplace {name} to")).unwrap();
            let mut read = vec![0; SIZE];
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(read == *bytes, "{way}: read in round {round}");
            let differs = (0..SIZE).step_by(4096).find(|&at| mapped(at) != bytes[at]);
            assert_eq!(differs, None, "{way}: mapped, in round {round}");
        }
        // SAFETY: the mapping made above, which nobody uses any more.
        unsafe { munmap(map, SIZE).unwrap() };
        tell(mount.path(), "--inplace short to").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5, "{way}");
        assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 5, "{way}");
        tell(mount.path(), "--inplace one to").unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE as u64, "{way}");
        let mut read = vec![0; SIZE];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == one, "{way}: it grew");
    }
}

#[test]
fn directories_have_their_times_when_the_tree_is_done_whoever_looked_meanwhile() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for way in WAYS {
        let source = Scratch::new();
        source.dir("t");
        source.dir("t/d");
        source.dir("t/d/e");
        for number in 0..8 {
            source.file(&format!("t/d/f{number}"), &content(1, 0, 100_000));
            source.file(&format!("t/d/e/f{number}"), &content(1, 0, 100_000));
        }
        let mount = Mount::of(source.path()).opt(way).start();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for name in ["t2", "t2/d", "t2/d/e", "t2/d/f3", "."] {
                        let _ = fs::symlink_metadata(mount.path().join(name));
                    }
                }
            });
            let told = tell(mount.path(), "-a --limit 4M t t2");
            done.store(true, Ordering::Relaxed);
            told.unwrap();
        });
        look(&mount, &["t2/d/e", "t2/d", "t2", ".", "t2/d/f3"], way);
        for name in ["", "/d", "/d/e"] {
            let mtime = |top: &str| fs::metadata(mount.path().join(format!("{top}{name}")));
            let (one, other) = (mtime("t").unwrap(), mtime("t2").unwrap());
            assert_eq!(one.modified().unwrap(), other.modified().unwrap(), "{way}");
        }
    }
}
