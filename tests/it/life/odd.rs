//! Odd calls, on purpose or not: the answer is the native one.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, RenameFlags};
use rustix::io::Errno;

use crate::support::{Dice, Mount, Need, Scratch, require};

type Said = Result<i64, Errno>;

/// open(2) with any flags.
fn open_raw(path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends with a zero, and numbers.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()
}

fn number(answer: i64) -> Said {
    if answer < 0 { Err(last()) } else { Ok(answer) }
}

/// A file of four kilobytes to be asked, open for reading and writing.
fn file(at: &Path) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at.join("f"))
        .unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    file
}

fn with_flags(at: &Path, name: &str, flags: i32) -> Said {
    file(at);
    let fd = open_raw(&at.join(name), flags)?;
    let mut byte = [0];
    let read = rustix::io::read(&fd, &mut byte)
        .map_or_else(|e| -i64::from(e.raw_os_error()), |n| n as i64);
    let written =
        rustix::io::write(&fd, b"w").map_or_else(|e| -i64::from(e.raw_os_error()), |n| n as i64);
    Ok(read * 1000 + written)
}

fn odd_flags(at: &Path, say: &mut dyn FnMut(String, Said)) {
    fs::create_dir_all(at.join("d")).unwrap();
    let _ = std::os::unix::fs::symlink("f", at.join("l"));
    let more = [
        0,
        libc::O_APPEND,
        libc::O_DIRECTORY,
        libc::O_NOFOLLOW,
        libc::O_PATH,
        libc::O_EXCL,
        libc::O_TRUNC,
        libc::O_NOATIME,
        libc::O_ASYNC,
        libc::O_NONBLOCK,
        libc::O_DSYNC,
        libc::O_SYNC,
        libc::O_NOCTTY,
        libc::O_CREAT,
        libc::O_CREAT | libc::O_EXCL,
        libc::O_CREAT | libc::O_DIRECTORY,
        libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND,
    ];
    for access in 0..4 {
        for flags in more {
            for name in ["f", "d", "l"] {
                let flags = access | flags;
                say(
                    format!("open {name} {flags:o}"),
                    with_flags(at, name, flags),
                );
            }
        }
    }
}

fn far_offsets(at: &Path, say: &mut dyn FnMut(String, Said)) {
    let far = [
        4095,
        4096,
        1 << 31,
        (1 << 32) - 1,
        i64::MAX - 4096,
        i64::MAX - 1,
        i64::MAX,
        -1,
        i64::MIN,
    ];
    for offset in far {
        let file = file(at);
        let fd = file.as_raw_fd();
        let mut buffer = [0_u8; 100];
        // SAFETY: the buffers live through the calls, and the lengths are theirs.
        let (read, written) = unsafe {
            let read = number(libc::pread(fd, buffer.as_mut_ptr().cast(), 100, offset) as i64);
            // Where it is far, of a file system that can't: of the source's own limit.
            let written = (offset < 1 << 40)
                .then(|| number(libc::pwrite(fd, buffer.as_ptr().cast(), 1, offset) as i64));
            (read, written)
        };
        say(format!("pread {offset}"), read);
        if let Some(written) = written {
            say(format!("pwrite {offset}"), written);
        }
        for whence in [
            libc::SEEK_SET,
            libc::SEEK_CUR,
            libc::SEEK_END,
            libc::SEEK_DATA,
            libc::SEEK_HOLE,
            5,
            77,
        ] {
            if whence < libc::SEEK_DATA && offset > 1 << 40 {
                // How far a position may lie is FUSE's to say here, and it is no limit: a write
                // or a truncation that far is refused by the source.
                continue;
            }
            // SAFETY: numbers only.
            let at = number(unsafe { libc::lseek(fd, offset, whence) });
            say(format!("lseek {offset} {whence}"), at);
        }
        for length in [0, 1, i64::MAX, -1] {
            // SAFETY: numbers only.
            let done = number(unsafe { libc::fallocate(fd, 3, offset, length) }.into());
            say(format!("punch {offset} {length}"), done);
            if length != 1 {
                // SAFETY: numbers only.
                let done = number(unsafe { libc::fallocate(fd, 0, offset, length) }.into());
                say(format!("fallocate {offset} {length}"), done);
            }
            // SAFETY: plain numbers, for which all-zero is a value.
            let mut range: libc::flock = unsafe { std::mem::zeroed() };
            range.l_type = libc::F_WRLCK as i16;
            (range.l_start, range.l_len) = (offset, length);
            // SAFETY: `range` lives through the call.
            let done = number(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw mut range) }.into());
            say(format!("lock {offset} {length}"), done);
            // SAFETY: as before.
            let done = number(unsafe { libc::fcntl(fd, libc::F_GETLK, &raw mut range) }.into());
            say(format!("getlk {offset} {length}"), done);
        }
        if let Ok(offset) = u64::try_from(offset) {
            let (mut from, mut to) = (offset, 0);
            let copied =
                rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 10);
            say(
                format!("copy_file_range {offset}"),
                copied.map(|n| n as i64),
            );
        }
        // SAFETY: numbers only.
        let cut = (offset < 1 << 40).then(|| number(unsafe { libc::ftruncate(fd, offset) }.into()));
        if let Some(cut) = cut {
            say(format!("ftruncate {offset}"), cut);
        }
    }
}

fn odd_names(at: &Path, say: &mut dyn FnMut(String, Said)) {
    let names: [&[u8]; 14] = [
        b"",
        b".",
        b"..",
        b"...",
        b"new\nline",
        b"\xff\xfe",
        b" ",
        b"-",
        b"f/",
        b"f/x",
        b"d/../..",
        b"\x01\x7f",
        &[b'n'; 255],
        &[b'n'; 256],
    ];
    file(at);
    for name in names {
        // Not Path::join: it would take the slash away.
        let mut path = at.as_os_str().as_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(name);
        let path = Path::new(OsStr::from_bytes(&path));
        let shown: String = name.escape_ascii().to_string();
        let shown = &shown[..shown.len().min(12)];
        let len = name.len();
        let mut tell = |what: &str, done: Result<(), Errno>| {
            say(format!("{what} {shown:?} of {len}"), done.map(|()| 0));
        };
        let mode = Mode::from_raw_mode(0o700);
        tell("mkdir", rustix::fs::mkdir(path, mode));
        tell("stat", rustix::fs::lstat(path).map(drop));
        tell(
            "create",
            open_raw(path, libc::O_CREAT | libc::O_WRONLY).map(drop),
        );
        tell("link", rustix::fs::link(at.join("f"), path));
        tell("symlink", rustix::fs::symlink("x", path));
        tell("rename", rustix::fs::rename(path, at.join("renamed")));
        for flags in 0..8 {
            let flags = RenameFlags::from_bits_retain(flags);
            // A whiteout is a device, which may be another's at another time.
            if flags.contains(RenameFlags::WHITEOUT) {
                continue;
            }
            let renamed = rustix::fs::renameat_with(CWD, at.join("renamed"), CWD, path, flags);
            tell(&format!("renameat2 {flags:?}"), renamed);
        }
        tell("unlink", rustix::fs::unlink(path));
        tell("rmdir", rustix::fs::rmdir(path));
        let _ = fs::remove_dir(at.join("renamed"));
    }
}

fn odd_nodes(at: &Path, say: &mut dyn FnMut(String, Said)) {
    let path = CString::new(at.join("node").as_os_str().as_bytes()).unwrap();
    for kind in 0..16 {
        for mode in [0, 0o7777] {
            // SAFETY: a string that ends with a zero, and numbers.
            let made = number(
                unsafe { libc::mknod(path.as_ptr(), (kind << 12) | mode, 0x1234_5678) }.into(),
            );
            say(format!("mknod {kind:x} {mode:o}"), made);
            let _ = fs::remove_file(at.join("node"));
        }
    }
    for flags in [0x1000, 0x100, 0x800, 0x8000, 0x4000] {
        let made = rustix::fs::statat(CWD, at.join("f"), AtFlags::from_bits_retain(flags));
        say(
            format!("fstatat {flags:x}"),
            made.map(|stat| i64::from(stat.st_mode)),
        );
    }
}

fn odd_xattrs(at: &Path, say: &mut dyn FnMut(String, Said)) {
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    file(at);
    let path = at.join("f");
    let long = "n".repeat(255);
    let names = [
        "",
        "user",
        "user.",
        "user.a",
        "nonsense.a",
        "system.nonsense",
        "trusted.t",
        "user.\u{1}",
        &long,
        &format!("user.{}", &long[..250]),
        &format!("user.{long}"),
    ];
    for name in names {
        for size in [0, 1, 3000, 65_536, 65_537, 1 << 20] {
            // What fits differs from one source to the other, and is the source's to say.
            let value = vec![1; size];
            let what = format!("{} {} of {size}", &name[..name.len().min(16)], name.len());
            for flags in [0, 1, 2, 3, 4] {
                let flags = XattrFlags::from_bits_retain(flags);
                let set = setxattr(&path, name, &value, flags);
                say(format!("setxattr {what} {flags:?}"), set.map(|()| 0));
            }
            for room in [0, 1, 2999, 65_536] {
                let mut buffer = vec![0_u8; room];
                let got = getxattr(&path, name, &mut buffer[..]);
                say(format!("getxattr {what} in {room}"), got.map(|n| n as i64));
                let listed = listxattr(&path, &mut buffer[..]);
                say(
                    format!("listxattr {what} in {room}"),
                    listed.map(|n| n as i64),
                );
            }
            say(
                format!("removexattr {what}"),
                removexattr(&path, name).map(|()| 0),
            );
        }
    }
}

fn odd_ioctls(at: &Path, say: &mut dyn FnMut(String, Said)) {
    let file = file(at);
    let folder = File::open(at).unwrap();
    let mut dice = Dice::new(3);
    let mut room = [0_u64; 1024];
    for _ in 0..200 {
        let command = dice.below(1 << 32);
        for fd in [&file, &folder] {
            // SAFETY: a command's size has 14 bits, and there is more room than that... the
            // kernel writes no further than it says.
            let done = number(
                unsafe { libc::ioctl(fd.as_raw_fd(), command as _, room.as_mut_ptr()) }.into(),
            );
            say(format!("ioctl {command:x}"), done.map(|_| 0));
        }
    }
}

type Family = fn(&Path, &mut dyn FnMut(String, Said));

/// What a family of calls answers at a place.
fn answers(family: Family, at: &Path) -> Vec<(String, Said)> {
    let mut answers = Vec::new();
    family(at, &mut |what, said| answers.push((what, said)));
    answers
}

#[test]
fn odd_calls_are_answered_as_natively() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let families: [(&str, Family); 6] = [
        ("flags", odd_flags),
        ("offsets", far_offsets),
        ("names", odd_names),
        ("nodes", odd_nodes),
        ("xattrs", odd_xattrs),
        ("ioctls", odd_ioctls),
    ];
    let mut differences = Vec::new();
    for (name, family) in families {
        let (native, source) = (Scratch::new(), Scratch::new());
        let mut mount = Mount::of(source.path()).start();
        source.dir("sub");
        // Not the root: the root of a mount has ways of its own.
        let natively = answers(family, &native.dir("sub"));
        let mounted = answers(family, &mount.path().join("sub"));
        assert!(mount.alive(), "{}", mount.log());
        assert_eq!(natively.len(), mounted.len());
        let both = natively.iter().zip(&mounted).filter(|(a, b)| a != b);
        differences
            .extend(both.map(|(a, b)| format!("{name}: {}: {:?}, natively {:?}", a.0, b.1, a.1)));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
