//! The copy-on-read cache when things break: no wrong byte, no passed limit, no failed reader.

mod commands;
mod crowd;
mod direct;
mod disks;
mod flips;
mod kills;
mod many;
mod power;
mod sources;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::*;

/// Bytes of a block in these tests: the smallest, so that there are many.
const BLOCK: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// A tree of files whose bytes are known, each `seed` being its own.
struct Tree {
    /// Where it is made.
    path: PathBuf,
    files: u64,
    size: u64,
}

impl Tree {
    /// So many files of about that size: none is a whole number of blocks.
    fn new(path: &Path, files: u64, size: u64) -> Self {
        let this = Self {
            path: path.to_owned(),
            files,
            size: size + 777,
        };
        for at in 0..files {
            write_content(&path.join(name(at)), at, this.len(at));
        }
        this
    }

    /// Bytes of that file.
    fn len(&self, at: u64) -> u64 {
        self.size + at * 13
    }

    fn bytes(&self) -> u64 {
        (0..self.files).map(|at| self.len(at)).sum()
    }

    /// Reads some bytes anywhere, below `mount`; panics when they are wrong.
    #[track_caller]
    fn read_somewhere(&self, mount: &Path, dice: &mut Dice) -> io::Result<()> {
        let at = dice.below(self.files);
        let offset = dice.below(self.len(at));
        let len = (dice.below(3 * BLOCK) + 1).min(self.len(at) - offset);
        let mut bytes = vec![0xee; len as usize];
        let file = File::open(mount.join(name(at)))?;
        file.read_exact_at(&mut bytes, offset)?;
        assert_content(at, offset, &bytes);
        Ok(())
    }

    /// Reads all of all files; panics when a byte is wrong or cannot be read.
    #[track_caller]
    fn compare(&self, mount: &Path) {
        for at in 0..self.files {
            let bytes = read_file(&mount.join(name(at)));
            assert_eq!(bytes.len() as u64, self.len(at), "length of {}", name(at));
            assert_content(at, 0, &bytes);
        }
    }

    /// The same past the kernel's own pages of them: all is asked of the mount again.
    #[track_caller]
    fn compare_anew(&self, mount: &Path) {
        for at in 0..self.files {
            let file = File::open(mount.join(name(at))).expect("open");
            let advice = rustix::fs::Advice::DontNeed;
            rustix::fs::fadvise(&file, 0, None, advice).expect("fadvise");
            let mut bytes = vec![0; self.len(at) as usize];
            file.read_exact_at(&mut bytes, 0).expect("read");
            assert_content(at, 0, &bytes);
        }
    }
}

fn name(at: u64) -> String {
    format!("file-{at:03}")
}

/// A mount of `source` with its cache in `cache`, with small blocks; files that were made just now
/// are kept all the same.
fn cached(source: &Path, cache: &Path) -> MountBuilder {
    Mount::of(source)
        .opt(format!("cache={}", cache.display()))
        .opt("cache_id=test,block=64K,racy=0,cache_free=0")
        .opt("cache_size=1G")
}

/// A counter of the cache, summed over its labels.
#[track_caller]
fn counted(mount: &Mount, what: &str) -> u64 {
    mount.stats().value(&format!("corfs_cache_{what}"), &[]) as u64
}

/// All files of a kind in a cache directory: `data` or `index`.
fn files_of(cache: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![cache.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Copies a cache as it is at this moment to another file system, as a disk finds it after the
/// power was away: whatever it holds is suspect there.
fn copy_cache(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            fs::create_dir_all(&to).expect("mkdir");
            copy_cache(&path, &to);
        } else {
            // One that has gone meanwhile is not there.
            let _ = fs::copy(&path, &to);
        }
        let _ = fs::set_permissions(&to, meta.permissions());
    }
}

/// A folder for a cache, as corfs wants it.
fn cache_folder(scratch: &Scratch, name: &str) -> PathBuf {
    let folder = scratch.dir(name);
    set_mode(&folder, 0o700);
    folder
}
