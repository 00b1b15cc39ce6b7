//! What lies outside, and how it was.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::{NAMES, PLACES, open_to_all};
use crate::support::{Scratch, write_file};

/// The folder beside the source.
pub(super) const NAME: &str = "outside";
/// The bytes of its files, over and over.
pub(super) const MARK: &[u8] = b"OUTSIDE!";
/// The attribute that everything there has, and some things inside with another value.
pub(super) const ATTRIBUTE: &str = "user.where";
/// When everything there was changed, in seconds since 1970.
pub(super) const CHANGED: i64 = 1_000_000_007;
/// When it was last read: before that, so that a reading would be noted even with relatime.
const READ: i64 = 1_000_000_000;

/// Builds it: a folder with the names of the source's top, and below each those of its folders.
pub(super) fn build(scratch: &Scratch) {
    let root = scratch.dir(NAME);
    let mut all = vec![root.clone(), root.join("f")];
    for place in 0..PLACES {
        all.push(root.join(format!("s{place}")));
        folder(&root.join(format!("s{place}")), 2, &mut all);
    }
    write_file(&root.join("f"), &MARK.repeat(100));
    for path in &all {
        open_to_all(path);
        rustix::fs::setxattr(path, ATTRIBUTE, MARK, XattrFlags::empty()).unwrap();
    }
    // Last, and from the leaves up: making changes the times of what it is made in.
    for path in all.iter().rev() {
        let at = |seconds| Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let both = Timestamps {
            last_access: at(READ),
            last_modification: at(CHANGED),
        };
        rustix::fs::utimensat(CWD, path, &both, AtFlags::empty()).unwrap();
    }
}

fn folder(path: &Path, depth: u32, all: &mut Vec<PathBuf>) {
    std::fs::create_dir(path).unwrap();
    let mut file = |name: String| {
        write_file(&path.join(&name), &MARK.repeat(100));
        all.push(path.join(name));
    };
    file("f".into());
    // Half of the names exist, so that making and removing both find something to do.
    (0..NAMES / 2).for_each(|n| file(format!("n{n}")));
    if depth > 0 {
        all.push(path.join("t"));
        folder(&path.join("t"), depth - 1, all);
    }
}

/// All that can be known of what is outside: of each name the attributes, times, links, extended
/// attributes and bytes. Taking it leaves no trace.
pub(super) fn snapshot(scratch: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    enter(scratch, &scratch.join(NAME), &mut all);
    all
}

/// Fails when anything outside is not as it was.
pub(super) fn assert_untouched(before: &BTreeMap<PathBuf, String>, scratch: &Path) {
    let now = snapshot(scratch);
    let mut names: Vec<&PathBuf> = before.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let was = before.get(name);
        let is = now.get(name);
        assert_eq!(is, was, "{} was touched", name.display());
    }
}

fn enter(base: &Path, path: &Path, all: &mut BTreeMap<PathBuf, String>) {
    let s = rustix::fs::lstat(path).unwrap();
    let mut text = format!(
        "{} {:o} {}:{} {} links {} bytes, read {}.{:09} changed {}.{:09} {}.{:09}",
        s.st_ino,
        s.st_mode,
        s.st_uid,
        s.st_gid,
        s.st_nlink,
        s.st_size,
        s.st_atime,
        s.st_atime_nsec,
        s.st_mtime,
        s.st_mtime_nsec,
        s.st_ctime,
        s.st_ctime_nsec
    );
    for name in xattr_names(path) {
        let mut value = [0; 256];
        let length = rustix::fs::lgetxattr(path, &*name, &mut value[..]).unwrap();
        text.push_str(&format!(" {name}={}", value[..length].escape_ascii()));
    }
    let kind = FileType::from_raw_mode(s.st_mode);
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    if kind == FileType::RegularFile {
        let file = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        let mut bytes = vec![0; 100_000];
        let length = rustix::io::pread(&file, &mut bytes, 0).unwrap();
        if bytes[..length] != *MARK.repeat(100) {
            text.push_str(&format!(" bytes {}", bytes[..length].escape_ascii()));
        }
    }
    if kind == FileType::Directory {
        let open = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        for name in names(open.as_fd()) {
            enter(base, &path.join(name), all);
        }
    }
    all.insert(path.strip_prefix(base).unwrap().to_owned(), text);
}

fn xattr_names(path: &Path) -> Vec<String> {
    let mut list = vec![0_u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|&byte| byte == 0);
    let names = names.filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(open: rustix::fd::BorrowedFd<'_>) -> Vec<String> {
    let Ok(entries) = rustix::fs::Dir::read_from(open) else {
        return Vec::new();
    };
    let names =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name != "." && name != "..").collect()
}

/// Fails when bytes of the outside stand in a file of the source.
pub(super) fn assert_not_within(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            assert_not_within(&path);
        } else if kind.is_file() {
            assert!(
                !is_marked(&std::fs::read(&path).unwrap()),
                "{} is from outside",
                path.display()
            );
        }
    }
}

/// Whether bytes are those of a file outside.
pub(super) fn is_marked(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK)
}
