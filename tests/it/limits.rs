//! What the FUSE protocol, the kernel's FUSE client or the FUSE library keeps from the mount: each
//! beside what the source's file system does, so that a change of either is noticed.
//!
//! `docs/SEMANTICS.md` gives the reasons.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use corfs::sys::flags;
use corfs::sys::handle::FileHandle;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, StatxFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags};

use crate::support::{
    Loop, Mount, Need, Tmpfs, apart, drop_caches, read_file, require, run, sbin, set_owner,
    write_content,
};

const OWNER: (u32, u32) = (crate::support::USER, crate::support::USER);

/// A file system of its own, mounted by corfs, with `suid`, `dev` and everybody let in.
struct Pair {
    mount: Mount,
    source: Loop,
}

impl Pair {
    /// `None` where the machine lacks what it takes.
    fn over(kind: &'static str) -> Option<Self> {
        if !require(&[Need::Fuse, Need::Filesystem(kind)]) {
            return None;
        }
        let size = if kind == "ext4" { 64 << 20 } else { 400 << 20 };
        let source = Loop::new(kind, size);
        let mount = Mount::of(source.path()).opt("allow_other,suid,dev").start();
        Some(Self { mount, source })
    }

    /// The same name natively and on the mount.
    fn both(&self, name: &str) -> [PathBuf; 2] {
        [self.source.path().join(name), self.mount.path().join(name)]
    }

    /// A new file of 64 KiB, natively and by the mount.
    fn file(&self, name: &str) -> [PathBuf; 2] {
        let both = self.both(name);
        write_content(&both[0], 1, 64 << 10);
        both
    }

    /// What `try_it` says natively, and on the mount, of a new file of 64 KiB each.
    fn compare<T>(&self, try_it: impl Fn(&File) -> Result<T, Errno>) -> [Result<T, Errno>; 2] {
        let [native, _] = self.file("native");
        let [_, mounted] = self.file("mounted");
        [native, mounted].map(|path| try_it(&open(&path, 0)))
    }
}

fn open(path: &Path, flags: i32) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap_or_else(|e| panic!("open {}: {e}", path.display()))
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).expect("an errno")
}

/// ioctl(2) with a buffer that the kernel reads and writes; `request` must not want a longer one.
fn ioctl(file: &File, request: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: each request below reads and writes at most a structure of the buffer's length.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, buffer.as_mut_ptr()) } {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

#[test]
fn files_without_a_name_are_refused() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let nameless = |folder: &Path| -> Result<OwnedFd, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600))
    };
    nameless(pair.source.path()).expect("natively");
    let refused = nameless(pair.mount.path()).expect_err("on the mount");
    assert_eq!(refused, Errno::OPNOTSUPP);
}

#[test]
fn the_time_of_birth_is_not_shown() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let shown = pair.file("f").map(|path| {
        let mask = StatxFlags::ALL;
        let stat = rustix::fs::statx(CWD, &path, AtFlags::empty(), mask).expect("statx");
        stat.stx_mask & StatxFlags::BTIME.bits() != 0
    });
    assert_eq!(shown, [true, false]);
}

#[test]
fn shared_extents_are_refused() {
    let Some(pair) = Pair::over("xfs") else {
        return;
    };
    let [native, mounted] = pair.file("f");
    let clone = |path: &Path| {
        let copy = File::create(path.with_extension("copy")).expect("create");
        rustix::fs::ioctl_ficlone(copy, open(path, 0))
    };
    clone(&native).expect("natively");
    assert_eq!(clone(&mounted), Err(Errno::OPNOTSUPP));
    // A copy inside the source shares them all the same where the file system likes to.
    let copy = pair.mount.path().join("whole");
    fs::copy(&mounted, &copy).expect("copy");
    assert!(read_file(&copy) == read_file(&native));
}

#[test]
fn ranges_are_neither_collapsed_nor_inserted() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    for how in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        let [native, mounted] = pair.compare(|file| fallocate(file, how, 4096, 8192));
        native.expect("natively");
        assert_eq!(mounted, Err(Errno::OPNOTSUPP), "{how:?}");
    }
    for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        let how = how | FallocateFlags::KEEP_SIZE;
        let both = pair.compare(|file| fallocate(file, how, 4096, 8192));
        assert_eq!(both, [Ok(()), Ok(())], "{how:?}");
    }
}

#[test]
fn extents_are_not_mapped() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    /// _IOWR('f', 11, struct fiemap), linux/fs.h.
    const FIEMAP: u64 = 0xc020_660b;
    let [native, mounted] = pair.compare(|file| {
        // fm_start 0, fm_length everything, no room for extents: only their number is asked for.
        let mut request = [0; 32];
        request[8..16].fill(0xff);
        ioctl(file, FIEMAP, &mut request)
    });
    native.expect("natively");
    assert_eq!(mounted, Err(Errno::OPNOTSUPP));
    // Where data and holes are can be asked otherwise.
    let both = pair.compare(|file| rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0)));
    assert_eq!(both, [Ok(64 << 10); 2]);
}

#[test]
fn ioctls_of_the_sources_file_system_do_not_reach_it() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    // FS_IOC_GETVERSION; FS_IOC_GETFSUUID: a generation number, the file system's UUID.
    for (request, length) in [(0x8008_7601, 8), (0x8011_1500, 17)] {
        let [native, mounted] = pair.compare(|file| ioctl(file, request, &mut vec![0; length]));
        native.expect("natively");
        assert_eq!(mounted, Err(Errno::NOTTY), "{request:#x}");
    }
}

/// The ioctls that do: inode flags, set by those who may, and in force at once.
#[test]
fn inode_flags_are_the_sources() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    // FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL.
    const IMMUTABLE: u32 = 0x10;
    const APPEND: u32 = 0x20;
    const NODUMP: u32 = 0x40;
    let [native, mounted] = pair.file("f");
    set_owner(&native, OWNER.0, OWNER.1);
    let file = open(&mounted, 0);
    let get = |file: &File| flags::get(file.as_fd()).expect("get flags");
    let plain = get(&file);
    let beneath = open(&native, 0);
    assert_eq!(plain, get(&beneath));
    for flag in [IMMUTABLE, APPEND, NODUMP] {
        flags::set(file.as_fd(), plain | flag).expect("set flags");
        assert_eq!([get(&file), get(&beneath)], [plain | flag; 2]);
        if flag != NODUMP {
            assert!(
                fs::remove_file(&mounted).is_err(),
                "{flag:#x} is not in force"
            );
        }
        flags::set(file.as_fd(), plain).expect("clear flags");
    }
    apart(Some(OWNER), || {
        let own = open(&mounted, 0);
        flags::set(own.as_fd(), plain | NODUMP).expect("the owner's flag");
        let error = flags::set(own.as_fd(), plain | IMMUTABLE).expect_err("root's flag");
        assert_eq!(error.errno, Errno::PERM);
        let error = flags::set(own.as_fd(), plain | flags::JOURNAL_DATA).expect_err("root's flag");
        assert_eq!(error.errno, Errno::PERM);
    });
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).expect("stat");
        (metadata.ctime(), metadata.ctime_nsec())
    };
    assert_eq!(changed(&mounted), changed(&native));
    flags::set(file.as_fd(), plain).expect("clear flags");
    assert_eq!(changed(&mounted), changed(&native), "at once");
    let folder = pair.mount.path().join("folder");
    fs::create_dir(&folder).expect("mkdir");
    let folder = File::open(&folder).expect("open");
    flags::set(folder.as_fd(), get(&folder) | NODUMP).expect("a folder's flag");
}

/// Project numbers are an attribute of `struct fsxattr`.
#[test]
fn project_numbers_are_the_sources() {
    let Some(pair) = Pair::over("xfs") else {
        return;
    };
    let [native, mounted] = pair.file("f");
    let file = open(&mounted, 0);
    let mut fsxattr = flags::get_fsxattr(file.as_fd()).expect("get");
    // fsx_projid follows three other numbers of 32 bits.
    fsxattr[12..16].copy_from_slice(&4711_u32.to_ne_bytes());
    flags::set_fsxattr(file.as_fd(), &fsxattr).expect("set");
    let beneath = flags::get_fsxattr(open(&native, 0).as_fd()).expect("get");
    assert_eq!(beneath[12..16], 4711_u32.to_ne_bytes());
}

#[test]
fn file_handles_end_with_the_mount() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.file("f");
    let of = |path: &Path| FileHandle::of(open(path, 0).as_fd()).expect("name_to_handle_at");
    let (native, mounted) = (of(&native), of(&mounted));
    let folder = |path: &Path| File::open(path).expect("open");
    let reopen = |handle: &FileHandle, root: &Path| {
        let opened = handle.open(folder(root).as_fd(), OFlags::RDONLY);
        opened.map(drop).map_err(|fail| fail.errno)
    };
    assert_eq!(reopen(&mounted, pair.mount.path()), Ok(()));
    let mount = pair.mount.remount();
    assert!(drop_caches());
    assert_eq!(reopen(&mounted, mount.path()), Err(Errno::STALE));
    assert_eq!(reopen(&native, pair.source.path()), Ok(()));
}

/// Bytes that a loop device's disk was asked to write since it was made.
fn written(source: &Loop) -> u64 {
    let source = fs::metadata(source.path()).expect("stat");
    let (major, minor) = (libc::major(source.dev()), libc::minor(source.dev()));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).expect("stat");
    let sectors = stat.split_whitespace().nth(6).and_then(|n| n.parse().ok());
    512 * sectors.unwrap_or(0_u64)
}

/// syncfs(2) on the mount writes the mount's pages back to the source's cache, and ends there.
#[test]
fn syncfs_does_not_reach_the_disk() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    const SIZE: u64 = 8 << 20;
    // How much of a new file reaches the disk by syncfs.
    let synced = |folder: &Path| {
        let path = folder.join("new");
        rustix::fs::syncfs(File::open(pair.source.path()).expect("open")).expect("syncfs");
        let before = written(&pair.source);
        write_content(&path, 1, SIZE);
        rustix::fs::syncfs(File::open(folder).expect("open")).expect("syncfs");
        let done = written(&pair.source) - before;
        fs::remove_file(&path).expect("unlink");
        done
    };
    assert!(synced(pair.source.path()) >= SIZE);
    // Anybody may sync(2) the whole machine meanwhile; hardly ten times in a row.
    let least = (0..10).map(|_| synced(pair.mount.path())).min();
    assert!(least < Some(SIZE), "it reaches the disk now");
    // fsync does.
    let before = written(&pair.source);
    let path = pair.mount.path().join("new");
    write_content(&path, 1, SIZE);
    open(&path, 0).sync_all().expect("fsync");
    assert!(written(&pair.source) - before >= SIZE);
}

/// A lease on a file of the mount is broken by the mount's users, not by the source's.
#[test]
fn leases_hold_among_the_mounts_users() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.file("f");
    let lease = |path: &Path| {
        let file = File::open(path).expect("open");
        // SAFETY: F_SETLEASE takes an int. Breaking it sends SIGIO, so that is ignored first.
        let taken = unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
        };
        assert_eq!(taken, 0, "{}", last_error());
        file
    };
    let write = |path: &Path| {
        let opened = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        opened
            .map(drop)
            .map_err(|e| Errno::from_io_error(&e).expect("an errno"))
    };
    let held = lease(&native);
    assert_eq!(write(&native), Err(Errno::WOULDBLOCK));
    drop(held);
    let held = lease(&mounted);
    assert_eq!(write(&native), Ok(()));
    assert_eq!(write(&mounted), Err(Errno::WOULDBLOCK));
    drop(held);
}

#[test]
fn nothing_is_read_without_waiting() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.compare(|file| {
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0).expect("read");
        let mut vector = [io::IoSliceMut::new(&mut bytes)];
        rustix::io::preadv2(file, &mut vector, 0, ReadWriteFlags::NOWAIT)
    });
    assert_eq!(native, Ok(16));
    assert_eq!(mounted, Err(Errno::OPNOTSUPP));
}

/// The mount takes more than the source: any place and length, from any memory.
#[test]
fn direct_io_needs_no_alignment() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.file("f").map(|path| {
        let mut bytes = [0; 100];
        let read = open(&path, libc::O_DIRECT).read_at(&mut bytes, 1);
        read.map_err(|e| Errno::from_io_error(&e).expect("an errno"))
    });
    assert_eq!(native, Err(Errno::INVAL));
    assert_eq!(mounted, Ok(100));
}

#[test]
fn file_systems_inside_the_source_have_one_device_number() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.both("inner");
    fs::create_dir(&native).expect("mkdir");
    let _inner = Tmpfs::at(&native, 1 << 20);
    let device = |path: &Path| fs::metadata(path).expect("stat").dev();
    assert_ne!(device(&native), device(pair.source.path()));
    assert_eq!(device(&mounted), device(pair.mount.path()));
}

/// Times of access are kept by the source, as it is mounted: the mount's own relatime and
/// strictatime mean nothing.
#[test]
fn times_of_access_follow_the_sources_mount() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let [native, mounted] = pair.file("f");
    for (option, moves) in [("strictatime", true), ("noatime", false)] {
        run(Command::new(sbin("mount"))
            .args(["-o", &format!("remount,{option}")])
            .arg(pair.source.path()));
        let atime = || {
            let stat = fs::metadata(&native).expect("stat");
            (stat.atime(), stat.atime_nsec())
        };
        let before = atime();
        std::thread::sleep(std::time::Duration::from_millis(20));
        // Direct: what the mount has cached asks nobody.
        open(&mounted, libc::O_DIRECT)
            .read_at(&mut [0; 100], 0)
            .expect("read");
        assert_eq!(atime() > before, moves, "{option}");
    }
}

#[test]
fn the_most_links_of_a_file_are_not_told() {
    let Some(pair) = Pair::over("ext4") else {
        return;
    };
    let most = |path: &Path| {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
        // SAFETY: `path` is a C string that lives through the call.
        unsafe { libc::pathconf(path.as_ptr(), libc::_PC_LINK_MAX) }
    };
    assert_eq!(most(pair.source.path()), 65_000);
    assert_eq!(most(pair.mount.path()), 127);
    let [_, mounted] = pair.file("f");
    for n in 0..200 {
        fs::hard_link(&mounted, mounted.with_extension(n.to_string())).expect("link");
    }
}
