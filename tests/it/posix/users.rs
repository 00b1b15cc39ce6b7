//! What servers and other particular users ask of a mount: notifications, ways of the kernel to
//! move bytes, access times, sizes and numbers at their ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, OFlags, Timespec, Timestamps, inotify};
use rustix::io::Errno;

use super::{open, read_at, write_at};
use crate::support::{
    Loop, Mount, Need, Scratch, assert_same_bytes, content, read_file, require, run, write_file,
};

fn mounted(options: &str) -> Option<(Scratch, Mount)> {
    require(&[Need::Fuse]).then(|| {
        let source = Scratch::new();
        let mount = Mount::of(source.path()).opt(options).start();
        (source, mount)
    })
}

// ---------------------------------------------------------------------------------------------
// Notifications

#[test]
fn inotify_tells_what_users_of_the_mount_do() {
    let Some((source, mount)) = mounted("io=mmap") else {
        return;
    };
    source.file("old", b"old");
    let watch =
        inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    let flags = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::ATTRIB;
    inotify::add_watch(&watch, mount.path(), flags).unwrap();
    let at = |name: &str| mount.path().join(name);
    write_file(&at("new"), b"x");
    crate::support::set_mode(&at("new"), 0o600);
    fs::rename(at("new"), at("moved")).unwrap();
    fs::remove_file(at("old")).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    while let Ok(event) = reader.next() {
        let name = event
            .file_name()
            .map(|name| name.to_str().unwrap().to_owned());
        seen.push((event.events(), name.unwrap_or_default()));
    }
    let expected = [
        (inotify::ReadFlags::CREATE, "new"),
        (inotify::ReadFlags::CLOSE_WRITE, "new"),
        (inotify::ReadFlags::ATTRIB, "new"),
        (inotify::ReadFlags::MOVED_TO, "moved"),
        (inotify::ReadFlags::DELETE, "old"),
    ];
    let expected: Vec<_> = expected.map(|(what, name)| (what, name.to_owned())).into();
    assert_eq!(seen, expected);
}

// ---------------------------------------------------------------------------------------------
// Bytes moved by the kernel

/// sendfile, splice and copy_file_range from a file to another.
fn moved_by_the_kernel(from: &Path, to: &Path) {
    let bytes = content(1, 0, 300_000);
    write_file(from, &bytes);
    let input = open(from, OFlags::RDONLY);
    let fresh = || open(to, OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC);
    let check = |what: &str| {
        let got = read_file(to);
        assert!(got == bytes, "{what}: {} bytes", got.len());
    };
    let output = fresh();
    let mut offset = 0;
    while offset < bytes.len() as u64 {
        assert_ne!(
            rustix::fs::sendfile(&output, &input, Some(&mut offset), 1 << 20).unwrap(),
            0
        );
    }
    check("sendfile");

    let output = fresh();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (mut offset, mut end) = (0, 0);
    let flags = rustix::pipe::SpliceFlags::empty();
    while offset < bytes.len() as u64 {
        let mut count =
            rustix::pipe::splice(&input, Some(&mut offset), &writer, None, 65_536, flags).unwrap();
        while count > 0 {
            count -=
                rustix::pipe::splice(&reader, None, &output, Some(&mut end), count, flags).unwrap();
        }
    }
    check("splice");

    let output = fresh();
    let (mut offset, mut end) = (0, 0);
    loop {
        let (a, b) = (Some(&mut offset), Some(&mut end));
        match rustix::fs::copy_file_range(&input, a, &output, b, 1 << 20) {
            Ok(0) => break check("copy_file_range"),
            Ok(_) => {}
            // Between two kinds of file system (copy_file_range(2), since Linux 5.19); cp goes on
            // by itself.
            Err(errno) => break assert_eq!(errno, Errno::XDEV),
        }
    }
    run(std::process::Command::new("cp").arg(from).arg(to));
    check("cp");
}

#[test]
fn the_kernel_moves_bytes_in_out_and_within() {
    for options in ["io=mmap", "io=pread"] {
        let Some((_source, mount)) = mounted(options) else {
            return;
        };
        let outside = Scratch::new();
        let (inside, outside) = (mount.path(), outside.path());
        moved_by_the_kernel(&inside.join("from"), &inside.join("to"));
        moved_by_the_kernel(&inside.join("from"), &outside.join("to"));
        moved_by_the_kernel(&outside.join("from"), &inside.join("to"));
    }
}

// ---------------------------------------------------------------------------------------------
// Access times

/// Reads a file through a mount, and tells whether the source's access time moved. It was older
/// than the last change, so that a source with `relatime` moves it at a read.
fn a_read_moves_atime(options: &str, flags: OFlags) -> Option<bool> {
    let (source, mount) = mounted(options)?;
    let path = source.file("f", &[1; 10_000]);
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 5 };
    let times = Timestamps {
        last_access: time(1000),
        last_modification: time(2000),
    };
    rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    let fd = open(&mount.path().join("f"), OFlags::RDONLY | flags);
    assert_eq!(read_at(&fd, 0, 20_000), [1; 10_000]);
    drop(fd);
    let moved = fs::metadata(&path).unwrap().atime() != 1000;
    let shown = fs::metadata(mount.path().join("f")).unwrap().atime() != 1000;
    assert_eq!(shown, moved, "{options}: what the mount shows");
    Some(moved)
}

/// Whether the file system of the tests moves access times at all.
fn source_moves_atime() -> bool {
    let scratch = Scratch::new();
    let flags = rustix::fs::statvfs(scratch.path()).unwrap().f_flag;
    !flags.contains(rustix::fs::StatVfsMountFlags::NOATIME)
}

#[test]
fn a_read_moves_the_access_time_as_the_source_does() {
    for io in ["io=mmap", "io=pread"] {
        if let Some(moved) = a_read_moves_atime(io, OFlags::empty()) {
            assert_eq!(moved, source_moves_atime(), "{io}");
        }
    }
}

#[test]
fn noatime_leaves_the_access_time_of_the_source() {
    for io in ["io=mmap", "io=pread"] {
        if let Some(moved) = a_read_moves_atime(&format!("{io},noatime"), OFlags::empty()) {
            assert!(!moved, "{io}");
        }
        if let Some(moved) = a_read_moves_atime(io, OFlags::NOATIME) {
            assert!(!moved, "{io}, O_NOATIME");
        }
    }
}

#[test]
fn noatime_leaves_the_access_time_of_a_directory() {
    for (options, flags) in [("noatime", OFlags::empty()), ("io=mmap", OFlags::NOATIME)] {
        let Some((source, mount)) = mounted(options) else {
            return;
        };
        let path = source.dir("d");
        write_file(&path.join("f"), b"");
        let time = |tv_sec| Timespec { tv_sec, tv_nsec: 5 };
        let times = Timestamps {
            last_access: time(1000),
            last_modification: time(2000),
        };
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        let fd = open(
            &mount.path().join("d"),
            OFlags::RDONLY | OFlags::DIRECTORY | flags,
        );
        assert_eq!(rustix::fs::Dir::read_from(&fd).unwrap().count(), 3);
        assert_eq!(fs::metadata(&path).unwrap().atime(), 1000, "{options}");
    }
}

// ---------------------------------------------------------------------------------------------
// Sizes and numbers

#[test]
fn statfs_is_the_sources() {
    let Some((source, mount)) = mounted("io=mmap") else {
        return;
    };
    let ask = |path: &Path| rustix::fs::statfs(path).unwrap();
    let (inside, outside) = (ask(mount.path()), ask(source.path()));
    // What is free changes while others write.
    let fixed =
        |s: &rustix::fs::StatFs| (s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namelen);
    assert_eq!(fixed(&inside), fixed(&outside));
    let near = |a: u64, b: u64| a.abs_diff(b) < outside.f_blocks / 20 + 1000;
    assert!(near(inside.f_bfree, outside.f_bfree) && near(inside.f_bavail, outside.f_bavail));
}

#[test]
fn the_largest_file_is_the_sources() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = Loop::new("ext4", 32 << 20);
    let mount = Mount::of(disk.path()).start();
    let try_size = |at: &Path, size: u64| {
        let fd = open(&at.join("f"), OFlags::CREATE | OFlags::RDWR);
        let grown = rustix::fs::ftruncate(&fd, size);
        let written = rustix::io::pwrite(&fd, b"end", size.saturating_sub(1));
        let length = rustix::fs::fstat(&fd).unwrap().st_size;
        let data = rustix::fs::seek(&fd, rustix::fs::SeekFrom::Data(0));
        let tail = read_at(&fd, (length as u64).saturating_sub(1), 10);
        drop(fd);
        fs::remove_file(at.join("f")).unwrap();
        (grown, written, length, data, tail)
    };
    let tib = 1_u64 << 40;
    let ends = [
        16 * tib - 8192,
        16 * tib - 4096,
        16 * tib - 4095,
        16 * tib,
        17 * tib,
    ];
    for size in [(4 << 30) + 1, tib].into_iter().chain(ends) {
        let (inside, outside) = (try_size(mount.path(), size), try_size(disk.path(), size));
        assert_eq!(inside, outside, "{size}");
    }
    for size in [1 << 62, i64::MAX as u64] {
        let cut = |at: &Path| {
            let fd = open(&at.join("f"), OFlags::CREATE | OFlags::RDWR);
            rustix::fs::ftruncate(&fd, size)
        };
        assert_eq!(cut(mount.path()), cut(disk.path()), "{size}");
    }
}

#[test]
fn the_last_hard_link_is_the_sources() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    // EXT4_LINK_MAX (fs/ext4/ext4.h).
    const MOST: u32 = 65_000;
    let disk = Loop::new("ext4", 64 << 20);
    let mount = Mount::of(disk.path()).start();
    write_file(&disk.path().join("f"), b"");
    let (path, folder) = (disk.path().join("f"), disk.path().join("links"));
    fs::create_dir(&folder).unwrap();
    for n in 1..MOST - 1 {
        rustix::fs::link(&path, folder.join(n.to_string())).unwrap();
    }
    let inside = mount.path().join("f");
    rustix::fs::link(&inside, mount.path().join("last")).unwrap();
    assert_eq!(fs::metadata(&inside).unwrap().nlink(), u64::from(MOST));
    let more = rustix::fs::link(&inside, mount.path().join("more"));
    assert_eq!(more, Err(Errno::MLINK));
    fs::remove_file(mount.path().join("last")).unwrap();
    rustix::fs::link(&inside, mount.path().join("more")).unwrap();
}

#[test]
fn above_the_root_is_the_mountpoints_parent() {
    let Some((source, mount)) = mounted("io=mmap") else {
        return;
    };
    source.dir("d");
    let parent = mount.path().parent().unwrap();
    for name in ["..", "d/../..", "./.."] {
        let (above, parent) = (fs::metadata(mount.path().join(name)), fs::metadata(parent));
        let number = |m: std::io::Result<fs::Metadata>| m.map(|m| (m.dev(), m.ino())).unwrap();
        assert_eq!(number(above), number(parent), "{name}");
    }
    let name = source.path().file_name().unwrap();
    assert!(!mount.path().join("..").join(name).exists());
    write_at(
        &open(&mount.path().join("d/../f"), OFlags::CREATE | OFlags::RDWR),
        0,
        b"x",
    );
    assert_eq!(read_file(&source.path().join("f")), b"x");
    assert_same_bytes(0, &read_file(&mount.path().join("d/../f")), b"x");
}
