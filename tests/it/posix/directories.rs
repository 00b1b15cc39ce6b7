//! Directories: their names, their listings, their end.

use super::*;
use rustix::fs::{lstat, mkdir, rmdir, unlink};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

checks! {
    directories_come_and_go,
    a_full_directory_stays,
    a_file_is_not_removed_as_a_directory,
    the_root_names_are_refused,
    names_of_255_bytes,
    names_of_256_bytes_are_refused,
    names_of_any_bytes,
    listings_agree_with_stat,
    what_may_only_be_listed_tells_its_types,
    dot_has_the_directorys_number,
    ten_thousand_entries_each_once,
    telling_and_seeking,
    rewinding_shows_what_is_new,
    removing_while_listing,
    changes_are_seen_at_once,
    the_parent_of_a_directory,
    a_removed_directory_takes_nothing,
    deep_nesting,
    paths_longer_than_any_name_for_them,
    entries_that_stay_come_once_while_others_come_and_go,
    the_file_system_says_its_size,
}

fn directories_come_and_go(at: &Path) {
    let path = dir(at, "d");
    assert_errno!(mkdir(&path, Mode::RWXU), EXIST);
    assert_errno!(mkdir(file(at, "f", b""), Mode::RWXU), EXIST);
    assert_errno!(mkdir(at.join("none/d"), Mode::RWXU), NOENT);
    assert_eq!(stat(&path).st_mode & libc::S_IFMT, libc::S_IFDIR);
    rmdir(&path).unwrap();
    assert_errno!(lstat(&path), NOENT);
    assert_errno!(rmdir(&path), NOENT);
    dir(at, "d");
}

fn a_full_directory_stays(at: &Path) {
    let path = dir(at, "d");
    file(&path, "f", b"");
    assert_errno!(rmdir(&path), NOTEMPTY);
    unlink(path.join("f")).unwrap();
    rmdir(&path).unwrap();
}

fn a_file_is_not_removed_as_a_directory(at: &Path) {
    assert_errno!(rmdir(file(at, "f", b"")), NOTDIR);
    assert_errno!(unlink(dir(at, "d")), ISDIR);
    assert_errno!(unlink(at.join("none")), NOENT);
    assert_errno!(unlink(at.join("f/x")), NOTDIR);
}

fn the_root_names_are_refused(at: &Path) {
    let path = dir(at, "d");
    assert_errno!(rmdir(path.join(".")), INVAL);
    file(&path, "f", b"");
    assert_errno!(rmdir(path.join("..")), NOTEMPTY);
    assert_errno!(mkdir(path.join("."), Mode::RWXU), EXIST);
}

fn names_of_255_bytes(at: &Path) {
    let long = "n".repeat(255);
    let path = file(at, &long, b"x");
    assert_eq!(read(&path), b"x");
    dir(at, &"d".repeat(255));
    rustix::fs::symlink("x", at.join("s".repeat(255))).unwrap();
    rustix::fs::rename(&path, at.join("m".repeat(255))).unwrap();
    assert_eq!(listing(at).len(), 3);
    assert!(listing(at).contains_key("m".repeat(255).as_bytes()));
}

fn names_of_256_bytes_are_refused(at: &Path) {
    let long = at.join("n".repeat(256));
    assert_errno!(lstat(&long), NAMETOOLONG);
    assert_errno!(
        try_open(&long, OFlags::CREATE | OFlags::WRONLY),
        NAMETOOLONG
    );
    assert_errno!(mkdir(&long, Mode::RWXU), NAMETOOLONG);
    assert_errno!(rustix::fs::symlink("x", &long), NAMETOOLONG);
    assert_errno!(rustix::fs::rename(file(at, "f", b""), &long), NAMETOOLONG);
    assert_errno!(rustix::fs::link(at.join("f"), &long), NAMETOOLONG);
    assert_errno!(unlink(&long), NAMETOOLONG);
}

fn names_of_any_bytes(at: &Path) {
    let names: [&[u8]; 9] = [
        b"new\nline",
        b"\xff\xfe\x80",
        b" leading and trailing ",
        b"quotes'\"`$(x)",
        b"back\\slash",
        "grüße-日本".as_bytes(),
        b"...",
        b"\x01\x7f",
        b"-rf",
    ];
    for name in names {
        let path = at.join(OsString::from_vec(name.to_vec()));
        crate::support::write_file(&path, name);
        assert_eq!(read(&path), name);
    }
    let all: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
    crate::support::write_file(&at.join(OsString::from_vec(all.clone())), b"");
    let listed = listing(at);
    assert_eq!(listed.len(), names.len() + 1);
    assert!(names.iter().all(|&name| listed.contains_key(name)));
    assert!(listed.contains_key(&all));
}

/// Every name but the dots, with `d_ino` and `d_type`; a name that comes twice is a panic.
fn listing(at: &Path) -> BTreeMap<Vec<u8>, (u64, u8)> {
    let mut found = BTreeMap::new();
    for entry in Stream::open(at) {
        if ![&b"."[..], b".."].contains(&&entry.name[..]) {
            let name = entry.name.clone();
            assert!(
                found.insert(name, (entry.ino, entry.kind)).is_none(),
                "{entry:?} twice"
            );
        }
    }
    found
}

fn listings_agree_with_stat(at: &Path) {
    use rustix::fs::{CWD, FileType, mknodat};
    file(at, "file", b"x");
    dir(at, "dir");
    rustix::fs::symlink("x", at.join("link")).unwrap();
    rustix::fs::link(at.join("file"), at.join("hard")).unwrap();
    mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    mknodat(CWD, at.join("socket"), FileType::Socket, Mode::RWXU, 0).unwrap();
    let listed = listing(at);
    assert_eq!(listed.len(), 6);
    for (name, (ino, kind)) in listed {
        let stat = stat(&at.join(OsString::from_vec(name.clone())));
        assert_eq!(ino, stat.st_ino, "{}", name.escape_ascii());
        // DT_UNKNOWN is allowed by readdir(3), but every file system here knows.
        assert_eq!(
            u32::from(kind),
            (stat.st_mode & libc::S_IFMT) >> 12,
            "{}",
            name.escape_ascii()
        );
    }
    let dots: Vec<_> = Stream::open(at).filter(|e| e.name[0] == b'.').collect();
    assert_eq!(dots.len(), 2);
    for dot in dots {
        assert_eq!(u32::from(dot.kind), libc::S_IFDIR >> 12);
    }
}

fn what_may_only_be_listed_tells_its_types(at: &Path) {
    let path = dir(at, "d");
    dir(&path, "folder");
    file(&path, "plain", b"");
    rustix::fs::symlink("away", path.join("link")).unwrap();
    crate::support::set_mode(&path, 0o444);
    let types: BTreeMap<_, _> = std::fs::read_dir(&path)
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| (entry.file_name(), entry.file_type().unwrap()))
        .collect();
    crate::support::set_mode(&path, 0o755);
    assert!(types[OsStr::new("folder")].is_dir());
    assert!(types[OsStr::new("plain")].is_file());
    assert!(types[OsStr::new("link")].is_symlink());
}

fn dot_has_the_directorys_number(at: &Path) {
    for path in [at, dir(at, "d").as_path(), at.parent().unwrap()] {
        let fd = open(path, OFlags::RDONLY | OFlags::DIRECTORY);
        let listed = rustix::fs::Dir::read_from(&fd).unwrap();
        let dot = listed.map(Result::unwrap).find(|e| e.file_name() == c".");
        assert_eq!(dot.unwrap().ino(), stat(path).st_ino, "{}", path.display());
    }
}

fn ten_thousand_entries_each_once(at: &Path) {
    for n in 0..10_500 {
        drop(open(
            &at.join(format!("entry-{n}")),
            OFlags::CREATE | OFlags::WRONLY,
        ));
    }
    let listed = listing(at);
    assert_eq!(listed.len(), 10_500);
    assert!(listed.contains_key(&b"entry-0"[..]) && listed.contains_key(&b"entry-10499"[..]));
}

/// An entry as readdir(3) tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: Vec<u8>,
    ino: u64,
    kind: u8,
}

/// opendir(3) and its kin, which std does not hand out whole.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(at: &Path) -> Self {
        let name = CString::new(at.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a C string that lives through the call.
        let stream = unsafe { libc::opendir(name.as_ptr()) };
        assert!(
            !stream.is_null(),
            "opendir: {}",
            std::io::Error::last_os_error()
        );
        Self(stream)
    }

    fn tell(&self) -> i64 {
        // SAFETY: the stream is open until drop.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&mut self, place: i64) {
        // SAFETY: the stream is open, and `place` came from its `telldir`.
        unsafe { libc::seekdir(self.0, place) }
    }

    fn rewind(&mut self) {
        // SAFETY: the stream is open until drop.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Iterator for Stream {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        // SAFETY: errno is this thread's own.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open until drop.
        let entry = unsafe { libc::readdir(self.0) };
        if entry.is_null() {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(0), "readdir: {error}");
            return None;
        }
        // SAFETY: the entry is good until the next call on this stream; its name ends with a NUL.
        let (entry, name) = unsafe {
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr());
            (&*entry, name.to_bytes().to_vec())
        };
        Some(Entry {
            name,
            ino: entry.d_ino,
            kind: entry.d_type,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: open, and not used after.
        unsafe { libc::closedir(self.0) };
    }
}

fn telling_and_seeking(at: &Path) {
    for n in 0..1000 {
        file(at, &format!("f{n}"), b"");
    }
    let mut stream = Stream::open(at);
    let mut seen = Vec::new();
    loop {
        let place = stream.tell();
        let Some(entry) = stream.next() else { break };
        seen.push((place, entry));
    }
    assert_eq!(seen.len(), 1002);
    for at in [500, 3, 1001, 0, 998] {
        let (place, entry) = &seen[at];
        stream.seek(*place);
        assert_eq!(stream.next().as_ref(), Some(entry), "entry {at}");
    }
}

fn rewinding_shows_what_is_new(at: &Path) {
    file(at, "old", b"");
    let mut stream = Stream::open(at);
    assert_eq!(stream.by_ref().count(), 3);
    file(at, "new", b"");
    unlink(at.join("old")).unwrap();
    stream.rewind();
    let names: Vec<_> = stream.map(|e| e.name).collect();
    assert!(names.contains(&b"new".to_vec()));
    assert!(!names.contains(&b"old".to_vec()));
}

fn removing_while_listing(at: &Path) {
    for n in 0..3000 {
        file(at, &format!("f{n}"), b"");
    }
    let mut removed = 0;
    for entry in Stream::open(at).filter(|e| e.name[0] == b'f') {
        unlink(at.join(OsString::from_vec(entry.name))).unwrap();
        removed += 1;
    }
    assert_eq!(removed, 3000, "an entry was skipped or came twice");
    assert_eq!(listing(at).len(), 0);
}

fn changes_are_seen_at_once(at: &Path) {
    for round in 0..50 {
        let path = at.join("f");
        assert_errno!(lstat(&path), NOENT);
        file(at, "f", &[0; 10][..round % 10]);
        assert_eq!(stat(&path).st_size as usize, round % 10);
        assert_eq!(listing(at).len(), 1);
        unlink(&path).unwrap();
        assert_eq!(listing(at).len(), 0);
        mkdir(&path, Mode::RWXU).unwrap();
        assert_eq!(stat(&path).st_mode & libc::S_IFMT, libc::S_IFDIR);
        rmdir(&path).unwrap();
    }
}

fn the_parent_of_a_directory(at: &Path) {
    let inner = dir(&dir(at, "a"), "b");
    assert_eq!(stat(&inner.join("..")).st_ino, stat(&at.join("a")).st_ino);
    assert_eq!(stat(&inner.join("../..")).st_ino, stat(at).st_ino);
    assert_eq!(stat(&inner.join(".")).st_ino, stat(&inner).st_ino);
}

fn a_removed_directory_takes_nothing(at: &Path) {
    let path = dir(at, "d");
    let fd = open(&path, OFlags::RDONLY | OFlags::DIRECTORY);
    rmdir(&path).unwrap();
    let flags = OFlags::CREATE | OFlags::WRONLY;
    assert_errno!(rustix::fs::openat(&fd, "f", flags, Mode::RWXU), NOENT);
    assert_errno!(rustix::fs::mkdirat(&fd, "e", Mode::RWXU), NOENT);
    let entries = rustix::fs::Dir::read_from(&fd).unwrap();
    let names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_owned()).collect();
    assert!(
        names.iter().all(|name| name.to_bytes()[0] == b'.'),
        "{names:?}"
    );
}

fn deep_nesting(at: &Path) {
    let mut path = at.to_path_buf();
    for n in 0..150 {
        path = dir(&path, &format!("level-{n}"));
    }
    let path = file(&path, "f", b"deep");
    assert_eq!(read(&path), b"deep");
    std::fs::remove_dir_all(at.join("level-0")).unwrap();
    assert_errno!(lstat(at.join("level-0")), NOENT);
}

/// 400 levels of 50 bytes: five times PATH_MAX, to be had by going down step by step only.
fn paths_longer_than_any_name_for_them(at: &Path) {
    use rustix::process::chdir;
    const LEVELS: usize = 400;
    chdir(at).unwrap();
    for level in 0..LEVELS {
        let name = format!("{level:050}");
        mkdir(&name, Mode::RWXU).unwrap();
        chdir(&name).unwrap();
    }
    crate::support::write_file(Path::new("f"), b"deep");
    assert_eq!(read(Path::new("f")), b"deep");
    assert_eq!(listing(Path::new(".")).len(), 1);
    assert_errno!(lstat("x/".repeat(2048)), NAMETOOLONG);
    rustix::fs::rename("f", "../g").unwrap();
    for level in (0..LEVELS).rev() {
        chdir("..").unwrap();
        if level == LEVELS - 1 {
            assert_eq!(read(Path::new("g")), b"deep");
            unlink("g").unwrap();
        }
        rmdir(format!("{level:050}")).unwrap();
    }
    assert_eq!(stat(Path::new(".")).st_ino, stat(at).st_ino);
}

fn entries_that_stay_come_once_while_others_come_and_go(at: &Path) {
    use std::sync::atomic::{AtomicBool, Ordering};
    const STAY: usize = 2000;
    for n in 0..STAY {
        file(at, &format!("stay-{n}"), b"");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..300).cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let name = at.join(format!("come-{n}"));
                drop(open(&name, OFlags::CREATE | OFlags::WRONLY));
                let moved = at.join(format!("gone-{n}-with-a-longer-name"));
                rustix::fs::rename(&name, &moved).unwrap();
                unlink(&moved).unwrap();
            }
        });
        let listed = std::panic::catch_unwind(|| {
            let mut stream = Stream::open(at);
            for round in 0..6 {
                stays_come_once(&mut stream, STAY, 50 + 37 * round);
                stream.rewind();
            }
        });
        done.store(true, Ordering::Relaxed);
        listed.unwrap();
    });
}

/// Lists to the end, going back to a place some entries ago every `step` entries.
fn stays_come_once(stream: &mut Stream, stay: usize, step: usize) {
    let mut seen = std::collections::HashSet::new();
    let mut marked = None;
    for turn in 0.. {
        if turn % step == 0 {
            // Once back: what comes again must be what came after that place.
            if let Some((place, after)) = marked.replace((stream.tell(), Vec::new())) {
                stream.seek(place);
                for name in &after {
                    let again = stream.by_ref().map(|e| e.name).find(|n| n[0] == b's');
                    assert_eq!(again.as_ref(), Some(name), "after seekdir");
                }
                marked = Some((stream.tell(), Vec::new()));
            }
        }
        let Some(entry) = stream.next() else { break };
        if entry.name[0] == b's' {
            assert!(seen.insert(entry.name.clone()), "twice: {entry:?}");
            let (_, after) = marked.as_mut().unwrap();
            after.push(entry.name);
        }
    }
    assert_eq!(seen.len(), stay, "an entry is missing");
}

fn the_file_system_says_its_size(at: &Path) {
    let fs = rustix::fs::statvfs(at).unwrap();
    assert!(fs.f_bsize >= 512 && fs.f_frsize >= 512);
    assert!(fs.f_blocks > 0 && fs.f_bfree <= fs.f_blocks && fs.f_bavail <= fs.f_bfree);
    assert!(fs.f_namemax >= 255);
    let by_descriptor = rustix::fs::fstatvfs(open(at, OFlags::RDONLY)).unwrap();
    assert_eq!(by_descriptor.f_blocks, fs.f_blocks);
}
