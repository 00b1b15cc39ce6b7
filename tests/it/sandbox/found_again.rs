//! Inodes whose descriptors were closed are found again under the sandbox as without it: a file
//! handle alone gives the kernel no place in the tree, and Landlock then refuses to open it.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::support::{
    Loop, Mount, Need, Scratch, Tmpfs, drop_caches, errno_of, read_file, require, write_file,
};

/// More files than the daemon has descriptors for inodes: 64, of 128.
const FILES: usize = 400;
const FOLDERS: usize = 8;

/// The file systems of the tests, each with what keeps it.
enum Ground {
    Loop(Loop),
    Tmpfs(Tmpfs),
    Folder(Scratch),
}

impl Ground {
    fn path(&self) -> &Path {
        match self {
            Self::Loop(disk) => disk.path(),
            Self::Tmpfs(tmpfs) => tmpfs.path(),
            Self::Folder(folder) => folder.path(),
        }
    }
}

fn on_each_file_system(test: fn(&Path)) {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs"] {
        if require(&[Need::Filesystem(kind)]) {
            eprintln!("{kind}");
            run_on(Ground::Loop(Loop::new(kind, 512 << 20)), test);
        }
    }
    eprintln!("tmpfs");
    run_on(Ground::Tmpfs(Tmpfs::new(64 << 20)), test);
    run_on(Ground::Folder(Scratch::new()), test);
}

fn run_on(ground: Ground, test: fn(&Path)) {
    // Not the file system's root: there is an outside to get into.
    let source = ground.path().join("source");
    fs::create_dir(&source).expect("mkdir");
    test(&source);
}

fn name(n: usize) -> PathBuf {
    format!("d{}/f{n}", n % FOLDERS).into()
}

fn make_files(source: &Path) {
    for folder in 0..FOLDERS {
        fs::create_dir(source.join(format!("d{folder}"))).expect("mkdir");
    }
    for n in 0..FILES {
        write_file(&source.join(name(n)), format!("content {n}").as_bytes());
    }
    // What is dirty stays in the cache.
    rustix::fs::sync();
}

fn mount(source: &Path) -> Mount {
    // The kernel asks for the inode by its number then, and for no name.
    Mount::of(source)
        .opt("entry_timeout=3600,attr_timeout=0,threads=4")
        .descriptors(128)
        .start()
}

/// Lets the kernel go on knowing every file of the mount, and nothing of the source.
fn pin(mount: &Mount) -> Vec<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |n| rustix::fs::open(mount.path().join(name(n)), flags, Mode::empty());
    (0..FILES).map(|n| open(n).expect("a name")).collect()
}

/// Drops what nobody holds. More than once, as what falls may have held what is above it.
fn forget_the_source() {
    for _ in 0..3 {
        assert!(drop_caches());
    }
}

fn magic(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[test]
fn what_is_where_it_was_is_opened_changed_and_linked() {
    on_each_file_system(|source| {
        make_files(source);
        let mount = mount(source);
        let pinned = pin(&mount);
        forget_the_source();
        for (n, fd) in pinned.iter().enumerate() {
            let (path, content) = (magic(fd), format!("content {n}"));
            let on = |what: &str| format!("{what} {n}");
            assert_eq!(read_file(Path::new(&path)), content.as_bytes());
            let stat = rustix::fs::stat(&*path).expect("stat");
            assert_eq!(stat.st_size as usize, content.len());
            rustix::fs::setxattr(&*path, "user.x", b"v", XattrFlags::empty())
                .unwrap_or_else(|errno| panic!("{}: {errno}", on("setxattr")));
            rustix::fs::chmod(&*path, Mode::from_raw_mode(0o640)).expect("chmod");
        }
        forget_the_source();
        for (n, fd) in pinned.iter().enumerate() {
            let path = magic(fd);
            let linked = mount.path().join(format!("link{n}"));
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, &*path, rustix::fs::CWD, &linked, follow)
                .unwrap_or_else(|errno| panic!("link {n}: {errno}"));
            fs::remove_file(linked).expect("unlink");
        }
        forget_the_source();
        for (n, fd) in pinned.iter().enumerate() {
            let file = File::options().write(true).open(magic(fd));
            let file = file.unwrap_or_else(|error| panic!("open {n}: {error}"));
            file.set_len(3)
                .unwrap_or_else(|error| panic!("truncate {n}: {error}"));
            drop(file);
            assert_eq!(read_file(&source.join(name(n))), b"con");
        }
    });
}

#[test]
fn what_was_renamed_through_the_mount_is_found_by_its_new_name() {
    on_each_file_system(|source| {
        make_files(source);
        let mount = mount(source);
        let pinned = pin(&mount);
        for n in 0..FILES {
            let to = mount
                .path()
                .join(format!("d{}/moved{n}", (n + 1) % FOLDERS));
            fs::rename(mount.path().join(name(n)), to).expect("rename");
        }
        forget_the_source();
        for (n, fd) in pinned.iter().enumerate() {
            let content = fs::read(magic(fd)).unwrap_or_else(|error| panic!("read {n}: {error}"));
            assert_eq!(content, format!("content {n}").as_bytes());
        }
    });
}

/// Nobody told of the new name: attributes go by handle, and an open says ESTALE, upon which the
/// kernel asks for the name anew; never EACCES. A folder keeps its place whatever its name is.
#[test]
fn what_was_renamed_behind_the_mount_is_stale_or_right_but_never_denied() {
    on_each_file_system(|source| {
        make_files(source);
        let mount = mount(source);
        let pinned = pin(&mount);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(mount.path().join("d0"), flags, Mode::empty()).expect("d0");
        for n in 0..FILES {
            fs::rename(source.join(name(n)), source.join(format!("new{n}"))).expect("rename");
        }
        fs::rename(source.join("d0"), source.join("renamed")).expect("rename");
        write_file(&source.join("renamed/inside"), b"here");
        rustix::fs::sync();
        forget_the_source();
        let mut stale = 0;
        for (n, fd) in pinned.iter().enumerate() {
            let size = rustix::fs::stat(magic(fd)).map(|stat| stat.st_size as usize);
            assert_eq!(size, Ok(format!("content {n}").len()), "{n}");
            match fs::read(magic(fd)) {
                Ok(content) => assert_eq!(content, format!("content {n}").as_bytes()),
                Err(error) => {
                    stale += 1;
                    assert_eq!(errno_of(n, Err::<(), _>(error)), Errno::STALE);
                }
            }
            // A name that the kernel still trusts leads to the file as long as that has a
            // descriptor.
            match fs::read(mount.path().join(name(n))) {
                Ok(content) => assert_eq!(content, format!("content {n}").as_bytes()),
                Err(error) => assert_eq!(errno_of(n, Err::<(), _>(error)), Errno::NOENT),
            }
        }
        for n in 0..FILES {
            let content = read_file(&mount.path().join(format!("new{n}")));
            assert_eq!(content, format!("content {n}").as_bytes());
        }
        eprintln!("{stale} of {FILES} were stale");
        let inside = Path::new(&magic(&folder)).join("inside");
        assert_eq!(read_file(&inside), b"here");
    });
}

/// The kernel may know a file by a name outside the source alone, and a handle leads to that one.
#[test]
fn a_hard_link_outside_the_source_is_not_in_the_way() {
    on_each_file_system(|source| {
        make_files(source);
        let outside = source.parent().expect("a parent").join("outside");
        fs::create_dir(&outside).expect("mkdir");
        for n in 0..FILES {
            fs::hard_link(source.join(name(n)), outside.join(format!("f{n}"))).expect("link");
        }
        rustix::fs::sync();
        let mount = mount(source);
        let pinned = pin(&mount);
        forget_the_source();
        let _known: Vec<File> = (0..FILES)
            .map(|n| File::open(outside.join(format!("f{n}"))).expect("open"))
            .collect();
        for (n, fd) in pinned.iter().enumerate() {
            let content = fs::read(magic(fd)).unwrap_or_else(|error| panic!("read {n}: {error}"));
            assert_eq!(content, format!("content {n}").as_bytes());
        }
    });
}
