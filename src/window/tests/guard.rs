//! Copies from and to files that change under them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use super::super::Map;
use super::{K, patterned};
use crate::sys::Errno;

fn file(size: usize) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&patterned(0, 0..size as u64))
        .expect("write");
    file
}

fn content(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().expect("fstat").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

fn refuses(map: &Map) {
    let other = file(64 * K);
    let other = Map::write(other.as_fd(), 0, 64 * K).expect("another");
    let out = file(0);
    let mut buf = [0; 1];
    for answer in [
        map.copy_out(0..1, &mut buf),
        map.copy_to(0..1, &other, 0),
        map.populate_read(0..1),
        map.pwrite_to(0..1, out.as_fd(), 0).map(drop),
    ] {
        assert_eq!(answer.expect_err("poisoned").errno, Errno::FAULT);
    }
    other.copy_out(0..1, &mut buf).expect("the other is sound");
}

#[test]
fn a_copy_between_two_mappings_is_exact() {
    let (from, to) = (file(300 * K), file(0));
    to.set_len(300 * K as u64).expect("extend");
    let src = Map::read(from.as_fd(), 64 * K as u64, 200 * K).expect("map");
    let dst = Map::write(to.as_fd(), 4 * K as u64, 200 * K).expect("map");
    src.will_need(0..200 * K);
    src.populate_read(0..200 * K).expect("populate");
    dst.populate_write(0..200 * K).expect("populate");
    src.copy_to(5..150_000, &dst, 77).expect("copy");
    let written = content(&to);
    assert!(written[4 * K + 77..][..149_995] == patterned(0, 65_541..215_536));
    assert!(written[..4 * K + 77].iter().all(|byte| *byte == 0));
    assert!(
        written[4 * K + 77 + 149_995..]
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn bytes_come_out_and_go_by_pwrite() {
    let (from, to) = (file(100 * K), file(0));
    let map = Map::read(from.as_fd(), 0, 100 * K).expect("map");
    let mut buf = vec![0; 99_000];
    map.copy_out(1000..100_000, &mut buf).expect("copy");
    assert!(buf == patterned(0, 1000..100_000));
    let written = map.pwrite_to(10..90_010, to.as_fd(), 5).expect("pwrite");
    assert_eq!(written, 90_000);
    assert!(content(&to)[5..] == patterned(0, 10..90_010));
    assert_eq!(map.len(), 100 * K);
}

#[test]
fn truncation_under_copy_out_is_an_error_and_poisons() {
    let from = file(256 * K);
    let map = Map::read(from.as_fd(), 0, 256 * K).expect("map");
    let mut buf = vec![0; 256 * K];
    map.copy_out(0..256 * K, &mut buf).expect("sound so far");
    from.set_len(10 * K as u64).expect("truncate");
    map.copy_out(0..12 * K, &mut buf[..12 * K])
        .expect("the last page goes on behind the end");
    let fail = map.copy_out(0..256 * K, &mut buf).expect_err("truncated");
    assert_eq!(fail.errno, Errno::FAULT);
    refuses(&map);
}

#[test]
fn truncation_of_the_source_under_copy_to_poisons_the_source_alone() {
    let (from, to) = (file(256 * K), file(256 * K));
    let src = Map::read(from.as_fd(), 0, 256 * K).expect("map");
    let dst = Map::write(to.as_fd(), 0, 256 * K).expect("map");
    from.set_len(0).expect("truncate");
    let fail = src.copy_to(8 * K..200 * K, &dst, 0).expect_err("truncated");
    assert_eq!(fail.errno, Errno::FAULT);
    refuses(&src);
    let mut buf = [0; 8];
    dst.copy_out(0..8, &mut buf).expect("sound");
}

#[test]
fn truncation_of_the_destination_under_copy_to_poisons_the_destination_alone() {
    let (from, to) = (file(256 * K), file(256 * K));
    let src = Map::read(from.as_fd(), 0, 256 * K).expect("map");
    let dst = Map::write(to.as_fd(), 0, 256 * K).expect("map");
    to.set_len(100 * K as u64).expect("truncate");
    let fail = src.copy_to(0..256 * K, &dst, 0).expect_err("truncated");
    assert_eq!(fail.errno, Errno::FAULT);
    refuses(&dst);
    let fail = src.copy_to(0..1, &dst, 0).expect_err("poisoned");
    assert_eq!(fail.errno, Errno::FAULT);
    let mut buf = vec![0; 256 * K];
    src.copy_out(0..256 * K, &mut buf).expect("sound");
    assert!(buf == patterned(0, 0..256 * K as u64));
}

#[test]
fn populate_and_pwrite_tell_of_lost_pages_without_a_signal() {
    let (from, to) = (file(64 * K), file(0));
    let map = Map::read(from.as_fd(), 0, 64 * K).expect("map");
    from.set_len(4 * K as u64).expect("truncate");
    let fail = map.populate_read(0..64 * K).expect_err("truncated");
    assert_eq!(fail.errno, Errno::FAULT);
    let fail = map
        .pwrite_to(4 * K..64 * K, to.as_fd(), 0)
        .expect_err("truncated");
    assert_eq!(fail.errno, Errno::FAULT);
    let written = map.pwrite_to(0..64 * K, to.as_fd(), 0);
    assert!(written.is_ok_and(|written| written <= 4 * K), "short");
    let mut buf = [0; 4];
    map.copy_out(0..4, &mut buf).expect("not poisoned");
}

#[test]
fn wrong_ranges_and_offsets_are_refused() {
    let from = file(8 * K);
    let src = Map::read(from.as_fd(), 0, 8 * K).expect("map");
    let dst = Map::write(from.as_fd(), 0, 8 * K).expect("map");
    let mut buf = [0; 4];
    let errno = |answer: crate::sys::Result<()>| answer.expect_err("refused").errno;
    let at = |offset, len| errno(Map::read(from.as_fd(), offset, len).map(drop));
    assert_eq!(at(1, 8), Errno::INVAL);
    assert_eq!(at(0, 0), Errno::INVAL);
    assert_eq!(at(1 << 63, 8), Errno::OVERFLOW);
    assert_eq!(errno(src.copy_out(8189..8193, &mut buf)), Errno::INVAL);
    assert_eq!(errno(src.copy_out(0..5, &mut buf)), Errno::INVAL);
    assert_eq!(errno(src.copy_to(0..5, &dst, 8188)), Errno::INVAL);
    assert_eq!(errno(src.copy_to(0..5, &dst, usize::MAX)), Errno::INVAL);
    assert_eq!(errno(dst.copy_to(0..5, &src, 0)), Errno::ACCESS);
    assert_eq!(errno(src.populate_read(0..8193)), Errno::INVAL);
    assert_eq!(errno(src.populate_write(0..1)), Errno::ACCESS);
    let out = src.pwrite_to(0..8193, from.as_fd(), 0).map(drop);
    assert_eq!(errno(out), Errno::INVAL);
}

/// A tmpfs that is unmounted with the test.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None` for those who may not mount.
    fn new(options: &std::ffi::CStr) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let dir = tempfile::tempdir().expect("folder");
        match mount("none", dir.path(), "tmpfs", MountFlags::empty(), options) {
            Ok(()) => Some(Self(dir)),
            Err(Errno::PERM) => None,
            Err(errno) => panic!("mount: {errno}"),
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_hole_on_a_full_disk_is_an_error() {
    let Some(disk) = Tmpfs::new(c"size=64k") else {
        crate::sys::testing::skip("only those who may mount can have a full disk");
        return;
    };
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(disk.path().join("to"))
        .expect("create");
    to.set_len(256 * K as u64).expect("a hole");
    let from = file(256 * K);
    let src = Map::read(from.as_fd(), 0, 256 * K).expect("map");
    let dst = Map::write(to.as_fd(), 0, 256 * K).expect("map");
    src.copy_to(0..32 * K, &dst, 0).expect("there is room");
    let fail = dst.populate_write(0..256 * K).expect_err("full");
    assert_eq!(fail.errno, Errno::FAULT);
    let fail = src.copy_to(0..256 * K, &dst, 0).expect_err("full");
    assert_eq!(fail.errno, Errno::FAULT);
    refuses(&dst);
}

/// Runs `f` in a forked child, and tells which signal ended that.
fn signal_of_child(f: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child makes system calls and touches memory that was allocated before, no more:
    // other threads' locks may be held in it for ever.
    match unsafe { libc::fork() } {
        0 => {
            let none = rustix::process::Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
            f();
            // SAFETY: ends the child at once, without running destructors of the parent's.
            unsafe { libc::_exit(0) }
        }
        child => {
            let child = rustix::process::Pid::from_raw(child).expect("fork");
            let (_, status) =
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
                    .expect("wait")
                    .expect("ended");
            status.terminating_signal()
        }
    }
}

#[test]
fn elsewhere_the_signal_kills_as_ever() {
    let from = file(64 * K);
    let map = Map::read(from.as_fd(), 0, 64 * K).expect("map");
    let mut buf = [0; 16];
    map.copy_out(0..16, &mut buf).expect("installs the guard");
    from.set_len(0).expect("truncate");
    let address = map.raw_start();
    let touched = signal_of_child(|| {
        // SAFETY: mapped; the page is lost, which is the point.
        let _ = unsafe { address.read_volatile() };
    });
    assert_eq!(touched, Some(libc::SIGBUS));
    let sent = signal_of_child(|| {
        // SAFETY: a system call without pointers.
        let _ = unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(sent, Some(libc::SIGBUS));
    assert_eq!(signal_of_child(|| ()), None);
}

#[test]
fn a_thread_with_little_stack_survives_too() {
    let mut from = file(64 * K);
    let map = Map::read(from.as_fd(), 0, 64 * K).expect("map");
    from.set_len(0).expect("truncate");
    let thread = std::thread::Builder::new().stack_size(64 * K);
    let answer = thread
        .spawn(move || {
            let mut buf = [0; 16];
            map.copy_out(0..16, &mut buf).map_err(|fail| fail.errno)
        })
        .expect("spawn")
        .join()
        .expect("join");
    assert_eq!(answer, Err(Errno::FAULT));
    assert_eq!(from.read(&mut [0; 4]).expect("alive"), 0);
}
