//! What is done and timed, alike on the native directory, on a mount, and on the floor.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Sizes;
use crate::common::MIB;

/// Bytes of a small file, and of a page.
pub(crate) const SMALL: u64 = 4096;

pub(crate) fn big(at: &Path) -> PathBuf {
    at.join("big")
}

fn small(at: &Path, number: u64) -> PathBuf {
    at.join(format!("small/{number:05}"))
}

/// Positions of `count` pages in `size` bytes, without an order; each once where the number of pages
/// is a power of two.
fn pages(size: u64, count: u64, seed: u64) -> impl Iterator<Item = u64> {
    let all = size / SMALL;
    let step = (0x9e37_79b1 % all) | 1;
    (0..count.min(all)).map(move |at| (seed + at * step) % all * SMALL)
}

fn aligned(room: &mut Vec<u8>) -> &mut [u8] {
    room.resize(MIB + 4096, 0);
    let start = room.as_ptr().align_offset(4096);
    &mut room[start..start + MIB]
}

fn read_through(path: &Path, flags: i32) {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .expect("open");
    let mut room = Vec::new();
    let buffer = aligned(&mut room);
    let mut offset = 0;
    loop {
        let count = file.read_at(buffer, offset).expect("read");
        if count == 0 {
            return;
        }
        offset += count as u64;
    }
}

pub(crate) fn sequential(at: &Path, _: &Sizes) {
    read_through(&big(at), 0);
}

pub(crate) fn direct(at: &Path, _: &Sizes) {
    read_through(&big(at), libc::O_DIRECT);
}

fn random_by(at: &Path, sizes: &Sizes, readers: u64) {
    std::thread::scope(|scope| {
        for reader in 0..readers {
            scope.spawn(move || {
                let file = File::open(big(at)).expect("open");
                let mut page = [0; SMALL as usize];
                for offset in pages(sizes.file, sizes.reads, reader * 7919) {
                    file.read_exact_at(&mut page, offset).expect("read");
                }
            });
        }
    });
}

pub(crate) fn random(at: &Path, sizes: &Sizes) {
    random_by(at, sizes, 1);
}

pub(crate) fn random_four(at: &Path, sizes: &Sizes) {
    random_by(at, sizes, 4);
}

/// The file mapped by the reader.
fn mapped(at: &Path) -> memmap2::Mmap {
    let file = File::open(big(at)).expect("open");
    // SAFETY: the files of a bench are changed by nobody while it reads them.
    unsafe { memmap2::Mmap::map(&file) }.expect("mmap")
}

pub(crate) fn mapped_in_order(at: &Path, _: &Sizes) {
    let map = mapped(at);
    let sum: u64 = map.iter().step_by(512).map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
}

pub(crate) fn mapped_at_random(at: &Path, sizes: &Sizes) {
    let map = mapped(at);
    let _ = map.advise(memmap2::Advice::Random);
    let touched = pages(sizes.file, sizes.reads, 1);
    let sum: u64 = touched.map(|offset| u64::from(map[offset as usize])).sum();
    std::hint::black_box(sum);
}

/// A new file, to the disk.
pub(crate) fn write(at: &Path, sizes: &Sizes) {
    let file = File::create(at.join("written")).expect("create");
    let block = vec![0x5au8; MIB];
    for number in 0..sizes.file / MIB as u64 {
        file.write_all_at(&block, number * MIB as u64)
            .expect("write");
    }
    file.sync_all().expect("fsync");
}

/// A new file, in small pieces.
pub(crate) fn write_small(at: &Path, sizes: &Sizes) {
    let file = File::create(at.join("written")).expect("create");
    for number in 0..sizes.reads {
        file.write_all_at(&[0x5a; 4096], number * 4096)
            .expect("write");
    }
    file.sync_all().expect("fsync");
}

pub(crate) fn remove_written(at: &Path, _: &Sizes) {
    let _ = fs::remove_file(at.join("written"));
}

pub(crate) fn create(at: &Path, sizes: &Sizes) {
    fs::create_dir(at.join("made")).expect("mkdir");
    for number in 0..sizes.files {
        let path = at.join(format!("made/{number:05}"));
        fs::write(path, [0x5a; SMALL as usize]).expect("create and write");
    }
}

pub(crate) fn unlink(at: &Path, sizes: &Sizes) {
    for number in 0..sizes.files {
        fs::remove_file(at.join(format!("made/{number:05}"))).expect("unlink");
    }
}

pub(crate) fn remove_made(at: &Path, _: &Sizes) {
    let _ = fs::remove_dir_all(at.join("made"));
}

pub(crate) fn stat(at: &Path, sizes: &Sizes) {
    for number in 0..sizes.files {
        fs::metadata(small(at, number)).expect("stat");
    }
}

pub(crate) fn list(at: &Path, _: &Sizes) {
    for entry in fs::read_dir(at.join("small")).expect("opendir") {
        entry.expect("readdir").metadata().expect("lstat");
    }
}

pub(crate) fn open_read(at: &Path, sizes: &Sizes) {
    let mut page = [0; SMALL as usize];
    for number in 0..sizes.files {
        let mut file = File::open(small(at, number)).expect("open");
        file.read_exact(&mut page).expect("read");
    }
}

fn run(program: &str, at: &Path, words: &[&str]) {
    let status = Command::new(program)
        .args(words)
        .current_dir(at)
        .stdout(Stdio::null())
        .status()
        .expect("start a program");
    // grep that finds nothing says 1.
    assert!(status.code().is_some_and(|code| code < 2), "{program}");
}

pub(crate) fn find(at: &Path, _: &Sizes) {
    // By size, or it would look at no file.
    run("find", at, &["tree", "-size", "-1000k"]);
}

pub(crate) fn grep(at: &Path, _: &Sizes) {
    run("grep", at, &["-r", "no such words", "tree"]);
}

pub(crate) fn untar(at: &Path, _: &Sizes) {
    run("mkdir", at, &["out"]);
    run("tar", at, &["-xf", "tree.tar", "-C", "out"]);
}

pub(crate) fn copy(at: &Path, _: &Sizes) {
    run("cp", at, &["-a", "tree", "out"]);
}

pub(crate) fn remove_out(at: &Path, _: &Sizes) {
    run("rm", at, &["-rf", "out"]);
}

pub(crate) fn nothing(_: &Path, _: &Sizes) {}
