//! Sizes and ranges: truncation, holes, space set aside, copies inside the kernel.

use super::*;
use crate::support::{assert_same_bytes, content};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ftruncate, seek};

checks! {
    truncation_down_and_up,
    truncation_by_name,
    truncation_of_what_cannot_be,
    what_was_cut_off_reads_as_zeros,
    holes_read_as_zeros,
    space_set_aside_extends_the_file,
    space_set_aside_keeps_the_size,
    a_punched_range_reads_as_zeros,
    a_zeroed_range_reads_as_zeros,
    impossible_fallocate_is_refused,
    data_and_holes_are_found,
    seeking_data_past_the_end,
    copy_inside_a_file_system,
    copy_stops_at_the_end,
    copy_between_ranges_of_one_file,
}

const NEW: OFlags = OFlags::CREATE.union(OFlags::RDWR).union(OFlags::EXCL);

fn truncation_down_and_up(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    write_at(&fd, 0, &content(1, 0, 100_000));
    ftruncate(&fd, 1234).unwrap();
    assert_eq!(stat(&path).st_size, 1234);
    assert_same_bytes(0, &read(&path), &content(1, 0, 1234));
    ftruncate(&fd, 70_000).unwrap();
    assert_eq!(stat(&path).st_size, 70_000);
    let bytes = read(&path);
    assert_same_bytes(0, &bytes[..1234], &content(1, 0, 1234));
    assert!(bytes[1234..].iter().all(|&b| b == 0));
    ftruncate(&fd, 0).unwrap();
    assert_eq!(read(&path), b"");
}

fn truncation_by_name(at: &Path) {
    let path = file(at, "f", b"0123456789");
    let cut = |size| {
        std::fs::File::options()
            .write(true)
            .open(&path)?
            .set_len(size)
    };
    cut(4).unwrap();
    assert_eq!(read(&path), b"0123");
    truncate(&path, 6).unwrap();
    assert_eq!(read(&path), b"0123\0\0");
}

/// truncate(2), which opens nothing.
fn truncate(path: &Path, size: i64) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a C string that lives through the call.
    match unsafe { libc::truncate(name.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    }
}

fn truncation_of_what_cannot_be(at: &Path) {
    assert_errno!(truncate(&dir(at, "d"), 0), ISDIR);
    assert_errno!(truncate(&at.join("none"), 0), NOENT);
    assert_errno!(truncate(&file(at, "f", b"x"), -1), INVAL);
    let writer = open(&at.join("f"), OFlags::WRONLY);
    assert_errno!(ftruncate(&writer, u64::MAX / 2 + 1), INVAL);
    assert_eq!(read(&at.join("f")), b"x");
}

fn what_was_cut_off_reads_as_zeros(at: &Path) {
    let fd = open(&at.join("f"), NEW);
    for round in 1..20_u8 {
        write_at(&fd, 0, &[round; 20_000]);
        // Warm the caches that must not survive.
        assert_eq!(read_at(&fd, 0, 20_000), [round; 20_000]);
        ftruncate(&fd, 5000 + u64::from(round)).unwrap();
        ftruncate(&fd, 20_000).unwrap();
        let bytes = read_at(&fd, 0, 30_000);
        let kept = 5000 + usize::from(round);
        assert_eq!(bytes.len(), 20_000);
        assert!(bytes[..kept].iter().all(|&b| b == round));
        assert!(bytes[kept..].iter().all(|&b| b == 0), "round {round}");
    }
}

fn holes_read_as_zeros(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    write_at(&fd, 10_000_000, b"end");
    let bytes = read(&path);
    assert_eq!(bytes.len(), 10_000_003);
    assert!(bytes[..10_000_000].iter().all(|&b| b == 0));
    assert_eq!(&bytes[10_000_000..], b"end");
    assert!(stat(&path).st_blocks < 1000, "the hole takes no room");
}

fn space_set_aside_extends_the_file(at: &Path) {
    let path = file(at, "f", b"abc");
    let fd = open(&path, OFlags::RDWR);
    fallocate(&fd, FallocateFlags::empty(), 0, 100_000).unwrap();
    let after = stat(&path);
    assert_eq!(after.st_size, 100_000);
    assert!(after.st_blocks * 512 >= 100_000, "room is taken");
    assert_eq!(&read(&path)[..5], b"abc\0\0");
    // Within the file nothing changes.
    fallocate(&fd, FallocateFlags::empty(), 10, 100).unwrap();
    assert_eq!(stat(&path).st_size, 100_000);
}

fn space_set_aside_keeps_the_size(at: &Path) {
    let path = file(at, "f", b"abc");
    let fd = open(&path, OFlags::RDWR);
    fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, 1_000_000).unwrap();
    let after = stat(&path);
    assert_eq!(after.st_size, 3);
    assert!(after.st_blocks * 512 >= 1_000_000, "room is taken");
    assert_eq!(read(&path), b"abc");
}

fn a_punched_range_reads_as_zeros(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    let mut bytes = content(2, 0, 200_000);
    write_at(&fd, 0, &bytes);
    assert_same_bytes(0, &read_at(&fd, 0, 200_000), &bytes);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&fd, flags, 10_001, 150_000).unwrap();
    bytes[10_001..160_001].fill(0);
    assert_same_bytes(0, &read_at(&fd, 0, 200_001), &bytes);
    assert_same_bytes(0, &read(&path), &bytes);
    // Beyond the end: nothing, and the size stays.
    fallocate(&fd, flags, 190_000, 100_000).unwrap();
    bytes[190_000..].fill(0);
    assert_same_bytes(0, &read(&path), &bytes);
}

fn a_zeroed_range_reads_as_zeros(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    let mut bytes = content(3, 0, 100_000);
    write_at(&fd, 0, &bytes);
    assert_same_bytes(0, &read_at(&fd, 0, 100_000), &bytes);
    match fallocate(&fd, FallocateFlags::ZERO_RANGE, 5, 50_000) {
        // tmpfs and btrfs of some kernels have none.
        Err(Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    }
    bytes[5..50_005].fill(0);
    assert_same_bytes(0, &read(&path), &bytes);
    fallocate(&fd, FallocateFlags::ZERO_RANGE, 90_000, 20_000).unwrap();
    bytes.resize(110_000, 0);
    bytes[90_000..].fill(0);
    assert_same_bytes(0, &read(&path), &bytes);
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    fallocate(&fd, flags, 109_000, 20_000).unwrap();
    assert_eq!(stat(&path).st_size, 110_000);
}

fn impossible_fallocate_is_refused(at: &Path) {
    let path = file(at, "f", b"abc");
    let reader = open(&path, OFlags::RDONLY);
    assert_errno!(fallocate(&reader, FallocateFlags::empty(), 0, 10), BADF);
    let fd = open(&path, OFlags::RDWR);
    assert_errno!(fallocate(&fd, FallocateFlags::empty(), 0, 0), INVAL);
    let punch_only = fallocate(&fd, FallocateFlags::PUNCH_HOLE, 0, 1);
    assert!(matches!(punch_only, Err(Errno::OPNOTSUPP | Errno::INVAL)));
    assert_eq!(read(&path), b"abc");
}

const MIB: u64 = 1 << 20;

fn data_and_holes_are_found(at: &Path) {
    let fd = open(&at.join("f"), NEW);
    write_at(&fd, MIB, &[1; 65_536]);
    write_at(&fd, 3 * MIB, &[2; 65_536]);
    ftruncate(&fd, 5 * MIB).unwrap();
    assert_eq!(seek(&fd, SeekFrom::Data(0)).unwrap(), MIB);
    assert_eq!(seek(&fd, SeekFrom::Data(MIB + 5)).unwrap(), MIB + 5);
    assert_eq!(seek(&fd, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&fd, SeekFrom::Hole(MIB)).unwrap(), MIB + 65_536);
    assert_eq!(seek(&fd, SeekFrom::Data(2 * MIB)).unwrap(), 3 * MIB);
    assert_errno!(seek(&fd, SeekFrom::Data(4 * MIB)), NXIO);
    assert_eq!(seek(&fd, SeekFrom::Hole(4 * MIB)).unwrap(), 4 * MIB);
}

fn seeking_data_past_the_end(at: &Path) {
    let fd = open(&file(at, "f", b"abc"), OFlags::RDONLY);
    assert_eq!(seek(&fd, SeekFrom::Hole(0)).unwrap(), 3);
    assert_eq!(seek(&fd, SeekFrom::Data(1)).unwrap(), 1);
    assert_errno!(seek(&fd, SeekFrom::Data(3)), NXIO);
    assert_errno!(seek(&fd, SeekFrom::Hole(3)), NXIO);
}

/// Calls until all is copied or nothing more comes; the sum.
fn copy_all(from: &OwnedFd, mut start: u64, to: &OwnedFd, mut at: u64, len: usize) -> usize {
    let mut copied = 0;
    while copied < len {
        match copy_file_range(from, Some(&mut start), to, Some(&mut at), len - copied).unwrap() {
            0 => break,
            n => copied += n,
        }
    }
    copied
}

fn copy_inside_a_file_system(at: &Path) {
    let bytes = content(4, 0, 3_000_000);
    let from = open(&at.join("from"), NEW);
    write_at(&from, 0, &bytes);
    let to = open(&at.join("to"), NEW);
    write_at(&to, 0, &[7; 100]);
    assert_eq!(copy_all(&from, 1_000_000, &to, 50, 1_500_000), 1_500_000);
    assert_eq!(read_at(&to, 0, 50), [7; 50]);
    assert_same_bytes(
        50,
        &read_at(&to, 50, 2_000_000),
        &bytes[1_000_000..2_500_000],
    );
    // What was just written through the descriptor is what is copied.
    write_at(&from, 0, b"changed");
    assert_eq!(copy_all(&from, 0, &to, 0, 7), 7);
    assert_eq!(&read(&at.join("to"))[..7], b"changed");
}

fn copy_stops_at_the_end(at: &Path) {
    let from = open(&file(at, "from", b"0123456789"), OFlags::RDONLY);
    let to = open(&at.join("to"), NEW);
    assert_eq!(copy_all(&from, 4, &to, 0, 100), 6);
    assert_eq!(copy_all(&from, 10, &to, 0, 100), 0);
    assert_eq!(copy_all(&from, 1000, &to, 0, 100), 0);
    assert_eq!(read(&at.join("to")), b"456789");
    let reader = open(&at.join("to"), OFlags::RDONLY);
    assert_errno!(
        copy_file_range(&from, Some(&mut 0), &reader, Some(&mut 0), 5),
        BADF
    );
}

fn copy_between_ranges_of_one_file(at: &Path) {
    let fd = open(&at.join("f"), NEW);
    let bytes = content(5, 0, 100_000);
    write_at(&fd, 0, &bytes);
    assert_eq!(copy_all(&fd, 0, &fd, 200_000, 100_000), 100_000);
    assert_same_bytes(0, &read_at(&fd, 200_000, 100_000), &bytes);
    assert_eq!(read_at(&fd, 150_000, 3), [0; 3]);
    assert_errno!(
        copy_file_range(&fd, Some(&mut 0), &fd, Some(&mut 500), 1000),
        INVAL
    );
}
