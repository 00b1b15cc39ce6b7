//! A folder of some file system, its mount, and what is to be copied there.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::common::{self, MIB, Mount};
use crate::competitors::Competitor;

/// Bytes of data in a sparse file, and in how many pieces.
const SPARSE_DATA: u64 = 64 << 20;
const PIECES: u64 = 64;
/// Folders of a tree.
const FOLDERS: u64 = 100;

/// Where copies are made. What is there goes with the value, the mount too.
pub(crate) struct Stage {
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    // Before the folders, or these would still be in use.
    pub(crate) mount: Mount,
    runs: Cell<u64>,
    _source: tempfile::TempDir,
    _point: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new(kind: &str, folder: &Path) -> Self {
        let inside = tempfile::tempdir_in(folder).expect("make a folder there");
        let point = tempfile::tempdir().expect("make a mountpoint");
        let source = inside.path().join("source");
        fs::create_dir(&source).expect("make the source");
        Self {
            kind: kind.to_owned(),
            mount: Mount::new(&source, &point.path().join("mnt"), "control=hidden"),
            source,
            runs: Cell::new(0),
            _source: inside,
            _point: point,
        }
    }

    /// A file of that size is there, on disk and warm.
    pub(crate) fn make_file(&self, name: &str, size: u64) {
        let path = self.source.join(name);
        if fs::metadata(&path).is_ok_and(|found| found.len() == size) {
            return;
        }
        common::make_file(&path, size);
    }

    /// A file of that size with 64 MiB of data, or a quarter if that is less; answers how much.
    pub(crate) fn make_sparse(&self, name: &str, size: u64) -> u64 {
        let file = File::create(self.source.join(name)).expect("create the file");
        file.set_len(size).expect("ftruncate");
        let data = SPARSE_DATA.min(size / 4);
        let piece = vec![0xa5u8; (data / PIECES) as usize];
        for number in 0..PIECES {
            let at = (number * (size / PIECES)) & !0xffff;
            file.write_all_at(&piece, at).expect("write a piece");
        }
        file.sync_all().expect("write the file out");
        data
    }

    /// A hundred folders of files of 1 to 16 KiB; answers the bytes.
    pub(crate) fn make_tree(&self, name: &str, files: u64) -> u64 {
        let block = vec![0x5au8; 16 << 10];
        let mut bytes = 0;
        for folder in 0..FOLDERS {
            let folder_path = self.source.join(name).join(format!("folder-{folder:03}"));
            fs::create_dir_all(&folder_path).expect("make a folder");
            for number in 0..files.div_ceil(FOLDERS) {
                let length = (1 + (folder * 7 + number * 5) % 16) << 10;
                let path = folder_path.join(format!("file-{number:05}"));
                let mut file = File::create(path).expect("create a file");
                file.write_all(&block[..length as usize]).expect("write");
                bytes += length;
            }
        }
        rustix::fs::sync();
        bytes
    }

    /// A name that no run has used: the kernel remembers nothing of it in the mount.
    pub(crate) fn new_name(&self) -> String {
        self.runs.set(self.runs.get() + 1);
        format!("copy-{}", self.runs.get())
    }

    /// Takes a copy away, and has everything on disk.
    pub(crate) fn drop_copy(&self, name: &str) {
        // By the mount, which would else hold what is removed behind it, and its space, for some time.
        let path = self.mount.at.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path).expect("remove the copy"),
            Ok(_) => fs::remove_file(&path).expect("remove the copy"),
            Err(_) => {}
        }
        rustix::fs::sync();
    }

    /// Bytes that a file of the source takes on disk.
    pub(crate) fn allocated(&self, name: &str) -> u64 {
        let found = fs::metadata(self.source.join(name)).expect("stat");
        found.blocks() * 512
    }

    /// Bytes that a copy by that competitor takes.
    pub(crate) fn allocated_by(&self, who: &Competitor, from: &str) -> u64 {
        let to = self.new_name();
        who.run(self, from, &to);
        rustix::fs::sync();
        let allocated = self.allocated(&to);
        self.drop_copy(&to);
        allocated
    }

    /// Bytes that are free on the file system.
    pub(crate) fn free(&self) -> u64 {
        let free = || {
            rustix::fs::sync();
            let found = rustix::fs::statvfs(&self.source).expect("statvfs");
            found.f_bfree * found.f_frsize
        };
        // XFS and btrfs give back what was removed some time later.
        let mut before = free();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(50));
            match free() {
                same if same == before => return same,
                other => before = other,
            }
        }
    }

    /// What the mount says of itself under this name.
    pub(crate) fn config(&self, key: &str) -> String {
        let text = fs::read_to_string(self.mount.at.join(".corfs/config")).expect("the config");
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name == key).then(|| value.to_owned())
        });
        value.unwrap_or_else(|| panic!("no {key} in the config"))
    }
}

/// Empties the page cache; false when we may not.
pub(crate) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Reads a file through once, so that it is cached.
pub(crate) fn warm(path: &Path) {
    let file = File::open(path).expect("open");
    let mut buffer = vec![0u8; MIB];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at).expect("read") {
            0 => return,
            count => at += count as u64,
        }
    }
}
