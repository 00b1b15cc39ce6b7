//! A tree with everything that an archiver must bring back, and its comparison.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::support::{content, is_root, run, set_mode, set_owner, tool, write_file};

/// Data and holes of the sparse file lie on multiples of this, so that no tool moves their edges.
const GRAIN: u64 = 256 << 10;

// ---------------------------------------------------------------------------------------------
// Making

/// Fills the empty `root`. What only root can make (owners, devices, trusted attributes, files
/// that their owner cannot read) is left out for an ordinary user.
pub(crate) fn build(root: &Path) {
    fs::create_dir(root).unwrap_or_else(|e| panic!("mkdir {}: {e}", root.display()));
    build_files(root);
    build_links(root);
    build_sparse(root);
    build_specials(root);
    build_attributes(root);
    if is_root() {
        build_owners(root);
    }
    build_modes(root);
    build_times(root);
}

fn build_files(root: &Path) {
    let sizes = [0, 1, 4095, 4096, 4097, 70_000, (1 << 20) + 3];
    for folder in ["", "sub", "sub/deep", "sub/deep/er", "other", "empty"] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        if folder.ends_with("empty") {
            continue;
        }
        for (seed, &size) in sizes.iter().enumerate() {
            write_file(
                &folder.join(format!("file-{size}")),
                &content(seed as u64, 0, size),
            );
        }
    }
    let names: [&[u8]; 7] = [
        b"with space",
        b"with\nnewline",
        b"-dash",
        b"back\\slash \"quote\" 'quote'",
        "Gr\u{fc}\u{df}e \u{65e5}\u{672c}".as_bytes(),
        b"no utf-8 \xff\xfe",
        &[b'x'; 255],
    ];
    for name in names {
        write_file(&root.join("other").join(OsStr::from_bytes(name)), name);
    }
}

fn build_links(root: &Path) {
    let made = [
        fs::hard_link(root.join("file-70000"), root.join("hard")),
        fs::hard_link(root.join("file-70000"), root.join("sub/deep/hard")),
        symlink("file-1", root.join("soft")),
        symlink("../nowhere", root.join("sub/dangling")),
        symlink("/etc/passwd", root.join("absolute")),
        symlink("long/".repeat(200), root.join("long")),
        symlink("sub", root.join("soft-folder")),
    ];
    for result in made {
        result.expect("a link");
    }
}

/// Eight MiB with data in three places, a hole at the end.
fn build_sparse(root: &Path) {
    let file = File::create(root.join("sparse")).expect("sparse");
    file.set_len(8 << 20).expect("sparse");
    for grain in [0, 5, 17] {
        file.write_all_at(&content(grain, 0, GRAIN as usize), grain * GRAIN)
            .expect("sparse");
    }
}

fn build_specials(root: &Path) {
    let fifo = root.join("special-fifo");
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).expect("mkfifo");
    if is_root() {
        // Numbers of null and loop0; nothing opens them.
        let nodes = [
            ("special-char", FileType::CharacterDevice, 1, 3),
            ("special-block", FileType::BlockDevice, 7, 0),
        ];
        for (name, kind, major, minor) in nodes {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, root.join(name), kind, mode, device).expect("mknod");
        }
    }
}

fn build_attributes(root: &Path) {
    let long = content(99, 0, 1000);
    let mut wanted: Vec<(&str, &str, &[u8])> = vec![
        ("file-4096", "user.text", b"words"),
        ("file-4096", "user.binary", b"\x00\xff\x00"),
        ("file-4096", "user.empty", b""),
        ("file-0", "user.long", &long),
        ("sub", "user.on-a-folder", b"yes"),
    ];
    if is_root() {
        wanted.push(("other", "trusted.on-a-folder", b"trusted"));
    }
    for (name, key, value) in wanted {
        match rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty()) {
            Ok(()) => {}
            // Not every file system of a source keeps them: then there are none to bring back.
            Err(Errno::NOTSUP) => return,
            Err(error) => panic!("{key} on {name}: {error}"),
        }
    }
    if tool("setfacl").is_some() {
        run(Command::new("setfacl")
            .args(["-m", "u:1234:rw,g:4321:r,m::rw", "file-4097"])
            .current_dir(root));
        run(Command::new("setfacl")
            .args(["-d", "-m", "u:1234:rwx", "sub/deep"])
            .current_dir(root));
    }
}

fn build_owners(root: &Path) {
    for (name, uid, gid) in [
        ("file-4096", 1234, 4321),
        ("soft", 1234, 4321),
        ("sub/deep", 4_000_000_000, 7),
        ("special-fifo", 5, 6),
        ("sparse", 1234, 0),
    ] {
        set_owner(&root.join(name), uid, gid);
    }
}

/// After the owners, as chown takes the setuid bit.
fn build_modes(root: &Path) {
    for (name, mode) in [
        ("file-1", 0o4755),
        ("file-4095", 0o2710),
        ("other/file-1", 0o600),
        ("sub/file-1", 0o444),
        ("sub/deep/er", 0o1777),
        ("empty", 0o2755),
        ("other", 0o700),
    ] {
        set_mode(&root.join(name), mode);
    }
    if is_root() {
        set_mode(&root.join("sub/file-0"), 0);
    }
}

/// Times with nanoseconds for everything, before 1970 and after 2038 too; last of all, deepest
/// first, as each step before and below changes a folder's.
fn build_times(root: &Path) {
    for (index, path) in walk(root).iter().rev().enumerate() {
        let nanoseconds = 123_456_789 + index as i64;
        let (tv_sec, tv_nsec) = match index % 5 {
            0 => (-86_400 * 365, 0),
            1 => (2_400_000_000 + index as i64, nanoseconds),
            _ => (1_000_000_000 + index as i64, nanoseconds),
        };
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
    }
}

/// Every path beneath and with `root`, folders before what is in them.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            let entries =
                fs::read_dir(&path).unwrap_or_else(|e| panic!("list {}: {e}", path.display()));
            let mut names: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
            names.sort();
            found.extend(names);
        }
    }
    found
}

// ---------------------------------------------------------------------------------------------
// Comparing

/// All that is known of one name, save what no archiver can bring back (ctime, inode number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// Major and minor number of a device.
    device: u64,
    /// Target of a symbolic link.
    target: Option<PathBuf>,
    /// The first name of the same inode, and how many there are.
    inode: (PathBuf, u64),
    size: u64,
    content: u64,
    /// Where there is data, as first and last byte.
    pub(crate) data: Vec<(u64, u64)>,
}

impl Entry {
    /// A time after this one is when the tree was made, and is the same for all.
    pub(crate) fn forget_late_times(&mut self, seconds: i64) {
        if self.modified.0 > seconds {
            self.modified = (i64::MAX, 0);
        }
    }
}

/// What lies beneath and with a folder, by its name from there.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// Reads everything about a tree.
pub(crate) fn snapshot(root: &Path) -> Tree {
    let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
    walk(root)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).expect("beneath").to_owned();
            let meta = fs::symlink_metadata(&path)
                .unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
            let first = first_names
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| name.clone())
                .clone();
            (name, entry(&path, &meta, first))
        })
        .collect()
}

fn entry(path: &Path, meta: &Metadata, first: PathBuf) -> Entry {
    let kind = meta.file_type();
    let regular = kind.is_file();
    Entry {
        kind: match () {
            () if regular => "file",
            () if kind.is_dir() => "folder",
            () if kind.is_symlink() => "symlink",
            () if kind.is_fifo() => "fifo",
            () if kind.is_socket() => "socket",
            () if kind.is_char_device() => "char",
            () => "block",
        },
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        attributes: attributes(path),
        device: if kind.is_char_device() || kind.is_block_device() {
            meta.rdev()
        } else {
            0
        },
        target: kind
            .is_symlink()
            .then(|| fs::read_link(path).expect("readlink")),
        inode: (first, if kind.is_dir() { 0 } else { meta.nlink() }),
        size: if regular { meta.size() } else { 0 },
        content: if regular { digest(path) } else { 0 },
        data: if regular { data(path) } else { Vec::new() },
    }
}

fn digest(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())));
    hasher.finish()
}

/// Where a file has data, by SEEK_DATA and SEEK_HOLE.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("SEEK_DATA in {}: {error}", path.display()),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).expect("SEEK_HOLE");
        found.push((start, at));
    }
}

fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = Vec::with_capacity(1 << 16);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return BTreeMap::new(),
        Err(error) => panic!("listxattr {}: {error}", path.display()),
    }
    list.split(|&b| b == 0)
        .filter(|key| !key.is_empty())
        .map(|key| {
            let mut value = Vec::with_capacity(1 << 16);
            rustix::fs::lgetxattr(path, key, rustix::buffer::spare_capacity(&mut value))
                .unwrap_or_else(|e| panic!("getxattr {}: {e}", path.display()));
            (OsString::from_vec(key.to_vec()), value)
        })
        .collect()
}

/// Panics with the first differences unless both trees are the same in everything.
#[track_caller]
pub(crate) fn assert_same(what: &str, got: &Tree, expected: &Tree) {
    let mut words = String::new();
    let mut faults = 0;
    for name in expected
        .keys()
        .chain(got.keys().filter(|k| !expected.contains_key(*k)))
    {
        let (left, right) = (got.get(name), expected.get(name));
        if left != right {
            faults += 1;
            if faults <= 10 {
                let _ = writeln!(words, "{name:?}\n     got {left:?}\nexpected {right:?}");
            }
        }
    }
    assert!(faults == 0, "{what}: {faults} differences\n{words}");
}
