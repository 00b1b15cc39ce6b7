//! The page cache and the memory that a work finds.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Advice, CWD, Mode, OFlags};

use super::progress::Stop;

/// How much is read or touched before one looks whether somebody wants us to stop.
const MIB: usize = 1 << 20;

/// Every file at or below a path.
pub(super) fn below(path: &Path, with: &mut dyn FnMut(&Path)) {
    let Ok(stat) = fs::symlink_metadata(path) else {
        return;
    };
    if !stat.is_dir() {
        return with(path);
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        below(&entry.path(), with);
    }
}

/// The bytes of all files at and below a path.
pub(super) fn size(path: &Path) -> u64 {
    let mut bytes = 0;
    below(path, &mut |path| {
        bytes += fs::symlink_metadata(path).map_or(0, |stat| stat.len());
    });
    bytes
}

/// Reads a file, so that its pages are in the page cache, until somebody wants us to stop; returns
/// how many bytes it has read.
pub(super) fn warm(path: &Path, stop: &Stop) -> io::Result<u64> {
    let file = fs::File::open(path)?;
    let mut all = 0;
    while !stop.asked() {
        match io::copy(&mut (&file).take(MIB as u64), &mut io::sink())? {
            0 => break,
            read => all += read,
        }
    }
    Ok(all)
}

/// Has the kernel drop what it caches of one file, as far as nobody maps it or has written to it.
pub(super) fn drop_pages(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    if let Ok(file) = rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}

/// Has the file system of a directory write out what is dirty.
pub(super) fn write_out(directory: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(directory) = rustix::fs::openat(CWD, directory, flags, Mode::empty()) {
        let _ = rustix::fs::syncfs(&directory);
    }
}

/// Has the kernel drop all caches; whether it may be asked to.
pub(super) fn drop_caches() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Takes as much memory as a run will need, and gives it back: a virtual machine returns idle
/// memory to its host, and whoever comes first would fetch it again. Ends early when somebody wants
/// us to stop; returns how many bytes it took.
pub(super) fn ready_memory(bytes: u64, stop: &Stop) -> usize {
    let bytes = bytes.min(super::machine::meminfo("MemAvailable") / 2);
    let mut memory = vec![0u8; bytes as usize];
    let mut taken = 0;
    for block in memory.chunks_mut(MIB).take_while(|_| !stop.asked()) {
        for page in block.chunks_mut(4096) {
            page[0] = 1;
        }
        taken += block.len();
    }
    std::hint::black_box(&memory);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_us_to_stop_waits_neither_for_files_nor_for_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, vec![1; 2 * MIB + 1]).unwrap();
        let stop = Stop::default();
        assert_eq!(warm(&file, &stop).unwrap(), 2 * MIB as u64 + 1);
        assert_eq!(ready_memory(2 * MIB as u64 + 1, &stop), 2 * MIB + 1);
        stop.ask();
        assert_eq!(warm(&file, &stop).unwrap(), 0);
        assert_eq!(ready_memory(2 * MIB as u64 + 1, &stop), 0);
    }
}
