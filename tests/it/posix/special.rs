//! FIFOs, sockets and device nodes.

use super::*;
use rustix::fs::{CWD, FileType, mknodat};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

checks! {
    a_fifo_carries_bytes,
    a_fifo_without_a_reader,
    a_socket_takes_connections,
    a_datagram_socket,
    nodes_of_regular_files_and_sockets,
    an_existing_name_refuses_a_node,
    device_nodes_keep_their_numbers [Need::Root],
    device_nodes_are_not_for_everyone [Need::Root],
    special_files_have_attributes,
}

fn a_fifo_carries_bytes(at: &Path) {
    let path = at.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert_eq!(mode(&path), 0o600);
    let bytes = crate::support::content(1, 0, 200_000);
    std::thread::scope(|scope| {
        scope.spawn(|| crate::support::write_file(&path, &bytes));
        assert_eq!(read(&path), bytes);
    });
}

fn a_fifo_without_a_reader(at: &Path) {
    let path = at.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_errno!(try_open(&path, OFlags::WRONLY | OFlags::NONBLOCK), NXIO);
    let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK);
    let writer = open(&path, OFlags::WRONLY | OFlags::NONBLOCK);
    assert_errno!(rustix::io::read(&reader, &mut [0_u8; 4]), AGAIN);
    rustix::io::write(&writer, b"abc").unwrap();
    let mut bytes = [0_u8; 10];
    assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 3);
}

/// Names of sockets are at most 107 bytes; a path of `/proc/self/fd` is short wherever `at` is.
fn short(at: &Path) -> (OwnedFd, PathBuf) {
    use std::os::fd::AsRawFd;
    let fd = open(at, OFlags::PATH | OFlags::DIRECTORY);
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    (fd, path)
}

fn a_socket_takes_connections(at: &Path) {
    use std::io::{Read, Write};
    let (_fd, at) = short(at);
    let path = at.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(crate::support::is_socket(&path));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(b"hello").unwrap();
        });
        let mut text = String::new();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    });
    let again = UnixListener::bind(&path).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    // Another test's child may hold it for a moment, between fork and exec.
    crate::support::wait_until("nobody listens", Duration::from_secs(60), || {
        UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    rustix::fs::unlink(&path).unwrap();
}

fn a_datagram_socket(at: &Path) {
    let (_fd, at) = short(at);
    let server = UnixDatagram::bind(at.join("d")).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.send_to(b"note", at.join("d")).unwrap();
    let mut bytes = [0_u8; 10];
    assert_eq!(server.recv(&mut bytes).unwrap(), 4);
}

fn nodes_of_regular_files_and_sockets(at: &Path) {
    let bits = Mode::from_raw_mode(0o640);
    for kind in [FileType::RegularFile, FileType::Socket, FileType::Fifo] {
        let path = at.join(format!("{kind:?}"));
        mknodat(CWD, &path, kind, bits, 0).unwrap();
        assert_eq!(FileType::from_raw_mode(stat(&path).st_mode), kind);
        assert_eq!(mode(&path), 0o640);
    }
    let path = at.join("RegularFile");
    crate::support::write_file(&path, b"usable");
    assert_eq!(read(&path), b"usable");
    assert_errno!(try_open(&at.join("Socket"), OFlags::RDONLY), NXIO);
}

fn an_existing_name_refuses_a_node(at: &Path) {
    let path = file(at, "f", b"");
    assert_errno!(mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0), EXIST);
    assert_errno!(
        mknodat(CWD, at.join("no/f"), FileType::Fifo, Mode::RWXU, 0),
        NOENT
    );
}

fn device_nodes_keep_their_numbers(at: &Path) {
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("block", FileType::BlockDevice, 7, 200),
        ("large", FileType::CharacterDevice, 4000, 1_000_000),
    ] {
        let path = at.join(name);
        let number = rustix::fs::makedev(major, minor);
        mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), number).unwrap();
        let stat = stat(&path);
        assert_eq!(FileType::from_raw_mode(stat.st_mode), kind, "{name}");
        let (a, b) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        assert_eq!((a, b), (major, minor), "{name}");
    }
}

fn device_nodes_are_not_for_everyone(at: &Path) {
    set_mode(at, 0o777);
    apart(Some((USER, OTHER)), || {
        let number = rustix::fs::makedev(1, 3);
        let kind = FileType::CharacterDevice;
        assert_errno!(
            mknodat(CWD, at.join("null"), kind, Mode::RWXU, number),
            PERM
        );
    });
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
}

fn special_files_have_attributes(at: &Path) {
    use rustix::fs::{AtFlags, Timespec, Timestamps, utimensat};
    for kind in [FileType::Fifo, FileType::Socket] {
        let path = at.join(format!("{kind:?}"));
        mknodat(CWD, &path, kind, Mode::RWXU, 0).unwrap();
        set_mode(&path, 0o604);
        let time = Timespec {
            tv_sec: 1000,
            tv_nsec: 5,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        let stat = stat(&path);
        assert_eq!(
            (stat.st_mode & 0o7777, stat.st_mtime, stat.st_mtime_nsec),
            (0o604, 1000, 5)
        );
        rustix::fs::link(&path, at.join(format!("{kind:?}-2"))).unwrap();
        rustix::fs::rename(&path, at.join(format!("{kind:?}-3"))).unwrap();
        rustix::fs::unlink(at.join(format!("{kind:?}-3"))).unwrap();
    }
}
