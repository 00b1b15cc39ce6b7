//! Reading and writing: the bytes come back, at every offset and through every descriptor.

use super::*;
use crate::support::{Dice, assert_same_bytes, content};
use rustix::fs::SeekFrom;
use rustix::io::{pread, pwrite, read as read_fd, write as write_fd};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use std::io::{IoSlice, IoSliceMut};

checks! {
    appenders_do_not_overwrite_each_other,
    append_ignores_the_position,
    offsets_beyond_4_gib,
    reading_at_and_past_the_end,
    writes_are_seen_through_every_descriptor_at_once,
    a_growing_file_is_seen_by_its_reader,
    one_large_write,
    vectored_reads_and_writes,
    positions_and_seeks,
    random_overwrites_match_a_model,
    an_unlinked_file_lives_while_it_is_open,
    direct_reads_and_writes,
    synchronous_writes,
    syncing_files_and_directories,
    a_private_mapping_shows_the_file,
    a_shared_mapping_writes_the_file,
    a_mapping_sees_later_writes,
    sendfile_from_the_file,
    splice_into_a_pipe,
    poll_says_ready,
    an_unknown_ioctl_is_no_tty,
    readahead_advice_is_taken,
    two_threads_write_two_halves,
    zero_length_writes_change_nothing,
    writes_with_flags_of_their_own,
}

const NEW: OFlags = OFlags::CREATE.union(OFlags::RDWR).union(OFlags::EXCL);

fn appenders_do_not_overwrite_each_other(at: &Path) {
    let path = file(at, "f", b"");
    std::thread::scope(|scope| {
        for writer in [b'a', b'b'] {
            let path = &path;
            scope.spawn(move || {
                let fd = open(path, OFlags::WRONLY | OFlags::APPEND);
                for _ in 0..200 {
                    assert_eq!(write_fd(&fd, &[writer; 64]).unwrap(), 64);
                }
            });
        }
    });
    let bytes = read(&path);
    assert_eq!(bytes.len(), 2 * 200 * 64);
    let whole = |piece: &[u8]| piece == [b'a'; 64] || piece == [b'b'; 64];
    assert!(bytes.chunks(64).all(whole), "a record was torn");
    assert_eq!(bytes.iter().filter(|&&b| b == b'a').count(), 200 * 64);
}

fn append_ignores_the_position(at: &Path) {
    let path = file(at, "f", b"start");
    let fd = open(&path, OFlags::RDWR | OFlags::APPEND);
    rustix::fs::seek(&fd, SeekFrom::Start(0)).unwrap();
    write_fd(&fd, b"+one").unwrap();
    // Linux: pwrite on an O_APPEND descriptor appends, whatever the offset (pwrite(2), BUGS).
    pwrite(&fd, b"+two", 0).unwrap();
    assert_eq!(read(&path), b"start+one+two");
}

fn offsets_beyond_4_gib(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    let far = (4 << 30) + 12_345;
    let bytes = content(1, far, 300_000);
    write_at(&fd, far, &bytes);
    write_at(&fd, u64::from(u32::MAX) - 3, b"straddle");
    assert_eq!(stat(&path).st_size as u64, far + bytes.len() as u64);
    assert_same_bytes(far, &read_at(&fd, far, bytes.len()), &bytes);
    assert_eq!(read_at(&fd, u64::from(u32::MAX) - 3, 8), b"straddle");
    assert_eq!(read_at(&fd, 12_345, 10), [0; 10]);
    assert!(stat(&path).st_blocks < 10_000, "the hole takes no room");
}

fn reading_at_and_past_the_end(at: &Path) {
    let fd = open(&file(at, "f", b"12345"), OFlags::RDONLY);
    let mut buffer = [0_u8; 10];
    assert_eq!(pread(&fd, &mut buffer, 3).unwrap(), 2);
    assert_eq!(&buffer[..2], b"45");
    assert_eq!(pread(&fd, &mut buffer, 5).unwrap(), 0);
    assert_eq!(pread(&fd, &mut buffer, 1 << 40).unwrap(), 0);
    let empty = open(&file(at, "empty", b""), OFlags::RDONLY);
    assert_eq!(pread(&empty, &mut buffer, 0).unwrap(), 0);
}

fn writes_are_seen_through_every_descriptor_at_once(at: &Path) {
    let path = at.join("f");
    let one = open(&path, NEW);
    let two = open(&path, OFlags::RDWR);
    for round in 0..50_u8 {
        write_at(&one, u64::from(round) * 1000, &[round; 1000]);
        assert_eq!(read_at(&two, u64::from(round) * 1000, 2000), [round; 1000]);
        write_at(&two, u64::from(round) * 1000, &[round + 100; 500]);
        assert_eq!(
            read_at(&one, u64::from(round) * 1000, 500),
            [round + 100; 500]
        );
    }
    assert_eq!(stat(&path).st_size, 50_000);
}

fn a_growing_file_is_seen_by_its_reader(at: &Path) {
    let path = file(at, "log", b"");
    let reader = open(&path, OFlags::RDONLY);
    let writer = open(&path, OFlags::WRONLY | OFlags::APPEND);
    let mut buffer = [0_u8; 100];
    for line in 0..100 {
        let text = format!("line {line}\n");
        assert_eq!(read_fd(&reader, &mut buffer).unwrap(), 0);
        write_fd(&writer, text.as_bytes()).unwrap();
        let n = read_fd(&reader, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], text.as_bytes());
    }
}

fn one_large_write(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    let bytes = content(2, 0, 5_000_001);
    assert_eq!(write_fd(&fd, &bytes).unwrap(), bytes.len());
    assert_same_bytes(0, &read(&path), &bytes);
    let mut back = vec![0; bytes.len()];
    assert_eq!(pread(&fd, &mut back, 0).unwrap(), bytes.len());
    assert_same_bytes(0, &back, &bytes);
}

fn vectored_reads_and_writes(at: &Path) {
    let fd = open(&at.join("f"), NEW);
    let (a, b, c) = (
        content(3, 0, 5000),
        content(3, 5000, 1),
        content(3, 5001, 70_000),
    );
    let parts = [IoSlice::new(&a), IoSlice::new(&b), IoSlice::new(&c)];
    assert_eq!(rustix::io::pwritev(&fd, &parts, 7).unwrap(), 75_001);
    let (mut x, mut y) = (vec![0; 60_000], vec![0; 15_001]);
    let parts = &mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(rustix::io::preadv(&fd, parts, 7).unwrap(), 75_001);
    assert_same_bytes(0, &[x, y].concat(), &content(3, 0, 75_001));
}

fn positions_and_seeks(at: &Path) {
    use rustix::fs::{seek, tell};
    let fd = open(&file(at, "f", b"0123456789"), OFlags::RDWR);
    let mut two = [0_u8; 2];
    read_fd(&fd, &mut two).unwrap();
    assert_eq!(tell(&fd).unwrap(), 2);
    assert_eq!(seek(&fd, SeekFrom::Current(3)).unwrap(), 5);
    read_fd(&fd, &mut two).unwrap();
    assert_eq!(&two, b"56");
    assert_eq!(seek(&fd, SeekFrom::End(-1)).unwrap(), 9);
    assert_eq!(seek(&fd, SeekFrom::End(100)).unwrap(), 110);
    assert_errno!(seek(&fd, SeekFrom::End(-11)), INVAL);
    assert_eq!(tell(&fd).unwrap(), 110);
}

fn random_overwrites_match_a_model(at: &Path) {
    let path = at.join("f");
    let (one, two) = (open(&path, NEW), open(&path, OFlags::RDWR));
    let mut model: Vec<u8> = Vec::new();
    let mut dice = Dice::new(4);
    for step in 0..600 {
        let fd = if dice.below(2) == 0 { &one } else { &two };
        let offset = dice.below(200_000) as usize;
        let len = dice.below(20_000) as usize + 1;
        match dice.below(10) {
            0..5 => {
                let bytes = content(step, 0, len);
                if model.len() < offset + len {
                    model.resize(offset + len, 0);
                }
                model[offset..offset + len].copy_from_slice(&bytes);
                write_at(fd, offset as u64, &bytes);
            }
            5 => {
                model.resize(offset, 0);
                rustix::fs::ftruncate(fd, offset as u64).unwrap();
            }
            _ => {
                let end = (offset + len).min(model.len());
                let expected = model.get(offset..end).unwrap_or_default();
                assert_same_bytes(offset as u64, &read_at(fd, offset as u64, len), expected);
            }
        }
        assert_eq!(stat(&path).st_size as usize, model.len(), "step {step}");
    }
    assert_same_bytes(0, &read(&path), &model);
}

fn an_unlinked_file_lives_while_it_is_open(at: &Path) {
    let path = file(at, "f", b"before");
    let (fd, second) = (open(&path, OFlags::RDWR), open(&path, OFlags::RDONLY));
    rustix::fs::unlink(&path).unwrap();
    assert_errno!(rustix::fs::lstat(&path), NOENT);
    write_at(&fd, 6, b" and after");
    assert_eq!(read_at(&second, 0, 100), b"before and after");
    let stat = rustix::fs::fstat(&fd).unwrap();
    assert_eq!((stat.st_nlink, stat.st_size), (0, 16));
    rustix::fs::ftruncate(&fd, 3).unwrap();
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(read_at(&second, 0, 100), b"bef");
    assert_eq!(rustix::fs::fstat(&second).unwrap().st_mode & 0o777, 0o600);
    // A new file of that name is another file.
    file(at, "f", b"new");
    assert_eq!(read_at(&fd, 0, 100), b"bef");
}

fn direct_reads_and_writes(at: &Path) {
    let path = at.join("f");
    drop(open(&path, NEW));
    // tmpfs before Linux 6.6 refuses the flag; then there is nothing to check.
    let Ok(fd) = try_open(&path, OFlags::RDWR | OFlags::DIRECT) else {
        return;
    };
    let mut buffer = crate::support::Buffer::new(65_536);
    let bytes = buffer.bytes(65_536);
    bytes.copy_from_slice(&content(5, 0, 65_536));
    assert_eq!(pwrite(&fd, &*bytes, 0).unwrap(), 65_536);
    assert_eq!(pwrite(&fd, &bytes[..4096], 131_072).unwrap(), 4096);
    bytes.fill(1);
    assert_eq!(pread(&fd, &mut *bytes, 0).unwrap(), 65_536);
    assert_same_bytes(0, bytes, &content(5, 0, 65_536));
    assert_eq!(pread(&fd, &mut *bytes, 65_536).unwrap(), 65_536);
    assert_eq!(bytes, &[0; 65_536]);
    // The last read is short, and the cached view agrees.
    assert_eq!(pread(&fd, &mut *bytes, 131_072).unwrap(), 4096);
    assert_same_bytes(0, &read(&path)[131_072..], &content(5, 0, 4096));
}

fn synchronous_writes(at: &Path) {
    let path = at.join("f");
    for flag in [OFlags::SYNC, OFlags::DSYNC] {
        let fd = open(&path, OFlags::CREATE | OFlags::RDWR | flag);
        write_at(&fd, 0, b"safe");
        assert_eq!(read(&path), b"safe");
    }
}

fn syncing_files_and_directories(at: &Path) {
    let fd = open(&at.join("f"), NEW);
    write_at(&fd, 0, b"x");
    rustix::fs::fsync(&fd).unwrap();
    rustix::fs::fdatasync(&fd).unwrap();
    let reader = open(&at.join("f"), OFlags::RDONLY);
    rustix::fs::fsync(&reader).unwrap();
    rustix::fs::fsync(open(at, OFlags::RDONLY | OFlags::DIRECTORY)).unwrap();
}

/// A mapping of the tests, unmapped on drop.
struct Map(*mut u8, usize);

impl Map {
    fn new(fd: &OwnedFd, len: usize, protection: ProtFlags, flags: MapFlags) -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice; it aliases nothing of ours.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
        Self(at.expect("mmap").cast(), len)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for `len` bytes until drop; the checks do not shrink a file that is
        // mapped, and only one thread looks.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no slice of it outlives the check.
        unsafe { rustix::mm::munmap(self.0.cast(), self.1) }.expect("munmap");
    }
}

fn a_private_mapping_shows_the_file(at: &Path) {
    let bytes = content(6, 0, 1_000_000);
    let path = at.join("f");
    crate::support::write_file(&path, &bytes);
    let fd = open(&path, OFlags::RDONLY);
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let mut map = Map::new(&fd, bytes.len(), both, MapFlags::PRIVATE);
    assert_same_bytes(0, map.bytes(), &bytes);
    map.bytes()[0] ^= 1;
    assert_same_bytes(0, &read(&path), &bytes);
}

fn a_shared_mapping_writes_the_file(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    write_at(&fd, 0, &vec![b'.'; 300_000]);
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let mut map = Map::new(&fd, 300_000, both, MapFlags::SHARED);
    map.bytes()[200_000..200_005].copy_from_slice(b"store");
    map.bytes()[7] = b'7';
    // SAFETY: the range is our mapping.
    unsafe { rustix::mm::msync(map.0.cast(), map.1, MsyncFlags::SYNC) }.unwrap();
    drop((map, fd));
    let bytes = read(&path);
    assert_eq!(&bytes[199_999..200_006], b".store.");
    assert_eq!(&bytes[6..9], b".7.");
}

fn a_mapping_sees_later_writes(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    write_at(&fd, 0, &[b'a'; 8192]);
    let mut map = Map::new(&fd, 8192, ProtFlags::READ, MapFlags::SHARED);
    assert_eq!(map.bytes()[5000], b'a');
    write_at(&fd, 5000, b"b");
    assert_eq!(map.bytes()[5000], b'b');
}

fn sendfile_from_the_file(at: &Path) {
    let bytes = content(7, 0, 200_000);
    let path = at.join("f");
    crate::support::write_file(&path, &bytes);
    let fd = open(&path, OFlags::RDONLY);
    let out = open(&at.join("copy"), NEW);
    let mut offset = 0;
    while offset < 200_000 {
        assert_ne!(
            rustix::fs::sendfile(&out, &fd, Some(&mut offset), 200_000).unwrap(),
            0
        );
    }
    assert_same_bytes(0, &read(&at.join("copy")), &bytes);
}

fn splice_into_a_pipe(at: &Path) {
    let bytes = content(8, 0, 30_000);
    let path = at.join("f");
    crate::support::write_file(&path, &bytes);
    let fd = open(&path, OFlags::RDONLY);
    let (from, to) = rustix::pipe::pipe().unwrap();
    let mut got = Vec::new();
    let mut offset = 0;
    while got.len() < bytes.len() {
        let flags = rustix::pipe::SpliceFlags::empty();
        let moved = rustix::pipe::splice(&fd, Some(&mut offset), &to, None, 8192, flags).unwrap();
        assert_ne!(moved, 0);
        let mut piece = vec![0; moved];
        let mut done = 0;
        while done < moved {
            done += read_fd(&from, &mut piece[done..]).unwrap();
        }
        got.extend(piece);
    }
    assert_same_bytes(0, &got, &bytes);
}

fn poll_says_ready(at: &Path) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = open(&at.join("f"), NEW);
    let mut asked = [PollFd::new(&fd, PollFlags::IN | PollFlags::OUT)];
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut asked, Some(&patience)).unwrap(), 1);
    assert_eq!(asked[0].revents(), PollFlags::IN | PollFlags::OUT);
}

fn an_unknown_ioctl_is_no_tty(at: &Path) {
    use std::os::fd::AsRawFd;
    for fd in [
        open(&file(at, "f", b""), OFlags::RDONLY),
        open(at, OFlags::RDONLY),
    ] {
        let mut size = [0_u16; 4];
        // SAFETY: TIOCGWINSZ fills four shorts; the descriptor is open.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
        let error = std::io::Error::last_os_error();
        assert_eq!((done, error.raw_os_error()), (-1, Some(libc::ENOTTY)));
    }
}

fn readahead_advice_is_taken(at: &Path) {
    use rustix::fs::{Advice, fadvise};
    let fd = open(&file(at, "f", &[1; 10_000]), OFlags::RDONLY);
    for advice in [
        Advice::Sequential,
        Advice::Random,
        Advice::WillNeed,
        Advice::DontNeed,
    ] {
        fadvise(&fd, 0, None, advice).unwrap();
    }
    assert_eq!(read_at(&fd, 0, 20_000), [1; 10_000]);
}

fn two_threads_write_two_halves(at: &Path) {
    let path = at.join("f");
    let fd = open(&path, NEW);
    const HALF: usize = 2_000_000;
    std::thread::scope(|scope| {
        for half in 0..2 {
            let fd = &fd;
            scope.spawn(move || {
                for start in (half * HALF..(half + 1) * HALF).step_by(10_000) {
                    write_at(fd, start as u64, &content(9, start as u64, 10_000));
                }
            });
        }
    });
    assert_same_bytes(0, &read(&path), &content(9, 0, 2 * HALF));
}

fn writes_with_flags_of_their_own(at: &Path) {
    use rustix::io::{ReadWriteFlags, preadv2, pwritev2};
    let path = file(at, "f", b"start");
    let fd = open(&path, OFlags::RDWR);
    let write = |bytes, offset, flags| pwritev2(&fd, &[IoSlice::new(bytes)], offset, flags);
    assert_eq!(write(b"+end", 0, ReadWriteFlags::APPEND), Ok(4));
    assert_eq!(write(b"S", 0, ReadWriteFlags::SYNC), Ok(1));
    assert_eq!(write(b"T", 1, ReadWriteFlags::DSYNC), Ok(1));
    assert_eq!(read(&path), b"STart+end");
    let mut bytes = [0; 20];
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    assert_eq!(preadv2(&fd, parts, 2, ReadWriteFlags::empty()), Ok(7));
    assert_eq!(&bytes[..7], b"art+end");
    let unknown = write(b"x", 0, ReadWriteFlags::from_bits_retain(1 << 20));
    assert_errno!(unknown, OPNOTSUPP);
    // readahead(2) takes any range.
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers, on a descriptor that is open.
    assert_eq!(unsafe { libc::readahead(fd.as_raw_fd(), 0, 1 << 20) }, 0);
}

fn zero_length_writes_change_nothing(at: &Path) {
    let path = file(at, "f", b"abc");
    let fd = open(&path, OFlags::RDWR);
    assert_eq!(pwrite(&fd, b"", 100).unwrap(), 0);
    assert_eq!(read(&path), b"abc");
    assert_eq!(pread(&fd, &mut [0_u8; 0], 0).unwrap(), 0);
}
