//! What holds between the mount and its source.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::children::Actor;
use crate::support::{
    Mount, Need, Scratch, Tmpfs, assert_content, content, errno_of, is_root, output, read_file,
    require, run, set_mode, set_owner, sh, soak, wait_until, write_content, write_file,
};

/// Longer than any timeout of attributes and names that a mount has by default.
const SEEN: Duration = Duration::from_secs(15);

/// All that stat(2) tells, but for the device number, which is the mount's own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    ino: u64,
    mode: u32,
    nlink: u64,
    owner: (u32, u32),
    rdev: u64,
    size: u64,
    blocks: u64,
    blksize: u64,
    times: [(i64, i64); 3],
}

impl Facts {
    fn of(path: &Path) -> Self {
        let m = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self {
            ino: m.ino(),
            mode: m.mode(),
            nlink: m.nlink(),
            owner: (m.uid(), m.gid()),
            rdev: m.rdev(),
            size: m.size(),
            blocks: m.blocks(),
            blksize: m.blksize(),
            times: [
                (m.atime(), m.atime_nsec()),
                (m.mtime(), m.mtime_nsec()),
                (m.ctime(), m.ctime_nsec()),
            ],
        }
    }
}

/// One of each kind, with odd names, modes and times.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("sub/deep")).unwrap();
    write_content(&at.join("file"), 1, 300_001);
    write_file(&at.join("empty"), b"");
    write_content(&at.join("sub/deep/other"), 2, 5000);
    let odd = std::ffi::OsString::from_vec(b"odd \n\xff 'name\"".to_vec());
    write_file(&at.join(&odd), b"odd");
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(50_000_000).unwrap();
    sparse
        .write_all_at(&content(3, 0, 10_000), 20_000_000)
        .unwrap();
    fs::hard_link(at.join("file"), at.join("sub/hard")).unwrap();
    symlink("deep/other", at.join("sub/link")).unwrap();
    symlink("/nowhere at all", at.join("dangling")).unwrap();
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(CWD, at.join(name), kind, Mode::from_raw_mode(0o640), 0).unwrap();
    }
    if is_root() {
        let number = rustix::fs::makedev(300, 70_000);
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, at.join("device"), kind, Mode::RUSR, number).unwrap();
        set_owner(&at.join("empty"), 12_345, 54_321);
    }
    set_mode(&at.join("sub/deep/other"), 0o4751);
    set_mode(&at.join("sub"), 0o1770);
    for (name, seconds, nanoseconds) in [
        ("file", -86_400, 123_456_789),
        ("empty", 5_000_000_000, 999_999_999),
        ("dangling", 1_000_000_000, 1),
        ("sub", 1_234_567_890, 42),
    ] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, at.join(name), &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Every path below `at`, relative to it.
fn walk(at: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(at.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn attributes_are_the_sources() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    make_tree(source.path());
    let mount = Mount::of(source.path()).start();
    let names = walk(source.path());
    assert!(names.len() >= 12);
    assert_eq!(walk(mount.path()), names);
    for name in &names {
        let (native, mirrored) = (source.path().join(name), mount.path().join(name));
        assert_eq!(
            Facts::of(&mirrored),
            Facts::of(&native),
            "{}",
            name.display()
        );
    }
    let (native, mirrored) = (Facts::of(source.path()), Facts::of(mount.path()));
    // The root is node 1, and may say so.
    let ino = mirrored.ino;
    assert!(ino == native.ino || ino == 1, "{ino}");
    assert_eq!(mirrored, Facts { ino, ..native });
}

#[test]
fn the_file_system_is_as_large_as_the_sources() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(8 << 20);
    let mount = Mount::of(source.path()).start();
    write_file(&source.path().join("f"), &[1; 1 << 20]);
    let (native, mirrored) = (
        rustix::fs::statvfs(source.path()).unwrap(),
        rustix::fs::statvfs(mount.path()).unwrap(),
    );
    assert_eq!(mirrored.f_blocks, native.f_blocks);
    assert_eq!(mirrored.f_bfree, native.f_bfree);
    assert_eq!(mirrored.f_bavail, native.f_bavail);
    assert_eq!(mirrored.f_files, native.f_files);
    assert_eq!(mirrored.f_frsize, native.f_frsize);
    assert_eq!(mirrored.f_namemax, native.f_namemax);
}

#[test]
fn a_mount_inside_the_source_is_mirrored() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    write_file(&source.path().join("f"), b"outer");
    let inner = Tmpfs::at(&source.dir("inner"), 8 << 20);
    write_file(&inner.path().join("f"), b"inner");
    let mount = Mount::of(source.path()).start();
    let at = mount.path().join("inner");
    assert_eq!(read_file(&at.join("f")), b"inner");
    write_file(&at.join("new"), b"through");
    assert_eq!(read_file(&inner.path().join("new")), b"through");
    // Two file systems may use one inode number; the mount must not take one file for the other.
    let inodes: BTreeMap<u64, PathBuf> = walk(mount.path())
        .into_iter()
        .map(|name| (Facts::of(&mount.path().join(&name)).ino, name))
        .collect();
    assert_eq!(inodes.len(), 4, "{inodes:?}");
    let flags = RenameFlags::empty();
    let (from, to) = (mount.path().join("f"), at.join("moved"));
    let across = rustix::fs::renameat_with(CWD, &from, CWD, &to, flags);
    assert_eq!(across, Err(Errno::XDEV));
    assert_eq!(rustix::fs::link(&from, &to), Err(Errno::XDEV));
}

#[test]
fn a_link_out_of_the_source_is_only_read() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, outside) = (Scratch::new(), Scratch::new());
    let target = outside.file("f", b"outside");
    symlink(&target, source.path().join("absolute")).unwrap();
    symlink("..", source.path().join("up")).unwrap();
    let mount = Mount::of(source.path()).start();
    assert_eq!(
        fs::read_link(mount.path().join("absolute")).unwrap(),
        target
    );
    // The kernel follows it from the mount: `up` is the mountpoint's parent, not the source's.
    let parent = mount.path().parent().unwrap();
    assert_eq!(Facts::of(&mount.path().join("up/.")), Facts::of(parent));
    fs::remove_file(mount.path().join("absolute")).unwrap();
    assert_eq!(read_file(&target), b"outside");
}

#[test]
fn changes_behind_the_mount_are_seen() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for name in ["grown", "cut", "same", "chmod", "gone", "replaced", "kind"] {
        source.file(name, b"0123456789");
    }
    let mount = Mount::of(source.path()).start();
    let at = mount.path();
    let natively = |name: &str| source.path().join(name);
    for name in ["grown", "cut", "same", "chmod", "gone", "replaced", "kind"] {
        assert_eq!(read_file(&at.join(name)), b"0123456789");
    }
    assert!(!at.join("new").exists());
    assert_eq!(fs::read_dir(at).unwrap().count(), 7);

    write_file(&natively("grown"), b"0123456789 and more");
    write_file(&natively("cut"), b"01");
    write_file(&natively("same"), b"9876543210");
    set_mode(&natively("chmod"), 0o600);
    fs::remove_file(natively("gone")).unwrap();
    let temporary = source.file("temporary", b"another file");
    fs::rename(temporary, natively("replaced")).unwrap();
    fs::remove_file(natively("kind")).unwrap();
    fs::create_dir(natively("kind")).unwrap();
    write_file(&natively("new"), b"new");

    let shows = |name: &str, expected: &[u8]| {
        wait_until(&format!("{name} shows the change"), SEEN, || {
            fs::read(at.join(name)).is_ok_and(|bytes| bytes == expected)
        });
    };
    shows("grown", b"0123456789 and more");
    shows("cut", b"01");
    shows("same", b"9876543210");
    shows("replaced", b"another file");
    shows("new", b"new");
    wait_until("chmod shows the change", SEEN, || {
        Facts::of(&at.join("chmod")).mode & 0o777 == 0o600
    });
    wait_until("gone is gone", SEEN, || !at.join("gone").exists());
    wait_until("kind is a directory", SEEN, || at.join("kind").is_dir());
    assert_eq!(fs::read_dir(at).unwrap().count(), 7);
}

#[test]
fn open_files_survive_what_happens_behind_the_mount() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("removed"), 1, 3_000_000);
    write_content(&source.path().join("replaced"), 2, 3_000_000);
    let mount = Mount::of(source.path()).start();
    let open = |name: &str| fs::File::open(mount.path().join(name)).unwrap();
    let (removed, replaced) = (open("removed"), open("replaced"));
    fs::remove_file(source.path().join("removed")).unwrap();
    let other = source.path().join("other");
    write_content(&other, 3, 3_000_000);
    fs::rename(&other, source.path().join("replaced")).unwrap();
    let mut bytes = vec![0; 3_000_000];
    removed.read_exact_at(&mut bytes, 0).unwrap();
    assert_content(1, 0, &bytes);
    replaced.read_exact_at(&mut bytes, 0).unwrap();
    assert_content(2, 0, &bytes);
    assert_eq!(removed.metadata().unwrap().len(), 3_000_000);
}

/// ext4 gives a removed file's number to the next one. With few descriptors the daemon must close
/// those of inodes it still has to know, and must then tell the newcomer from the old.
#[test]
fn an_inode_never_comes_to_mean_another_file() {
    if !require(&[Need::Fuse]) {
        return;
    }
    const FILES: usize = 600;
    let source = Scratch::new();
    let name = |n: usize| format!("f{n}");
    for n in 0..FILES {
        source.file(&name(n), b"old");
    }
    let mount = Mount::of(source.path()).descriptors(256).start();
    let pinned: Vec<_> = (0..FILES)
        .map(|n| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::open(mount.path().join(name(n)), flags, Mode::empty()).unwrap()
        })
        .collect();
    for n in 0..FILES {
        fs::remove_file(source.path().join(name(n))).unwrap();
    }
    for n in 0..FILES {
        source.file(&name(n), b"newcomer");
    }
    let mut stale = 0;
    for (n, fd) in pinned.iter().enumerate() {
        use std::os::fd::AsRawFd;
        match fs::read(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Ok(bytes) => assert_eq!(bytes, b"old", "file {n} means another file now"),
            Err(error) => {
                let errno = errno_of(n, Err::<(), _>(error));
                assert!([Errno::STALE, Errno::NOENT].contains(&errno), "{errno}");
                stale += 1;
            }
        }
    }
    eprintln!("{stale} of {FILES} removed files were stale, the rest still held");
    for n in 0..FILES {
        wait_until("the newcomer shows", SEEN, || {
            fs::read(mount.path().join(name(n))).is_ok_and(|bytes| bytes == b"newcomer")
        });
    }
}

#[test]
fn a_directory_of_100_000_entries_under_few_descriptors() {
    if !require(&[Need::Fuse]) {
        return;
    }
    const ENTRIES: usize = 100_000;
    let source = Scratch::new();
    let big = source.dir("big");
    for n in 0..ENTRIES {
        rustix::fs::mknodat(
            CWD,
            big.join(format!("e{n}")),
            FileType::RegularFile,
            Mode::RUSR,
            0,
        )
        .unwrap();
    }
    write_file(&big.join("last"), b"readable");
    let mut mount = Mount::of(source.path()).descriptors(1024).start();
    let at = mount.path().join("big");
    let mut seen = vec![false; ENTRIES];
    for entry in fs::read_dir(&at).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(n) = name.strip_prefix('e') {
            let first = !std::mem::replace(&mut seen[n.parse::<usize>().unwrap()], true);
            assert!(first, "{name} came twice");
        }
    }
    assert!(seen.iter().all(|&seen| seen), "an entry is missing");
    let inodes: std::collections::HashSet<u64> = fs::read_dir(&at)
        .unwrap()
        .map(|entry| fs::symlink_metadata(entry.unwrap().path()).unwrap().ino())
        .collect();
    assert_eq!(inodes.len(), ENTRIES + 1, "one number each");
    assert_eq!(read_file(&at.join("last")), b"readable");
    let held = fs::read_dir(format!("/proc/{}/fd", mount.server()))
        .unwrap()
        .count();
    assert!(held <= 1024, "{held} descriptors");
    assert!(mount.alive());
}

#[test]
fn a_read_only_mount_changes_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    make_tree(source.path());
    let before: Vec<_> = walk(source.path())
        .into_iter()
        .map(|name| (Facts::of(&source.path().join(&name)), name))
        .collect();
    let mount = Mount::of(source.path()).opt("ro").start();
    let at = |name: &str| mount.path().join(name);
    let (file, new) = (at("file"), at("new"));
    let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::RWXU).map(drop);
    let time = Timespec {
        tv_sec: 5,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let owner = Some(rustix::fs::Uid::from_raw(7));
    let attribute = rustix::fs::XattrFlags::empty();
    let changes: Vec<(&str, Result<(), Errno>)> = vec![
        ("create", open(&new, OFlags::CREATE | OFlags::WRONLY)),
        ("open to write", open(&file, OFlags::WRONLY)),
        (
            "open to truncate",
            open(&file, OFlags::RDONLY | OFlags::TRUNC),
        ),
        ("mkdir", rustix::fs::mkdir(&new, Mode::RWXU)),
        ("rmdir", rustix::fs::rmdir(at("sub"))),
        ("unlink", rustix::fs::unlink(&file)),
        ("rename", rustix::fs::rename(&file, &new)),
        ("link", rustix::fs::link(&file, &new)),
        ("symlink", rustix::fs::symlink("x", &new)),
        (
            "mknod",
            rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0),
        ),
        ("chmod", rustix::fs::chmod(&file, Mode::RWXU)),
        ("chown", rustix::fs::chown(&file, owner, None)),
        (
            "utimensat",
            rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()),
        ),
        (
            "setxattr",
            rustix::fs::setxattr(&file, "user.x", b"1", attribute),
        ),
        ("removexattr", rustix::fs::removexattr(&file, "user.x")),
        ("open .copy to write", open(&at(".copy"), OFlags::WRONLY)),
        (
            "open sub/.copy to write",
            open(&at("sub/.copy"), OFlags::WRONLY),
        ),
    ];
    for (what, result) in changes {
        assert_eq!(result, Err(Errno::ROFS), "{what}");
    }
    let access = rustix::fs::accessat(CWD, &file, rustix::fs::Access::WRITE_OK, AtFlags::empty());
    assert_eq!(access, Err(Errno::ROFS));
    // What reads, works.
    assert_content(1, 0, &read_file(&file));
    assert!(fs::read_dir(mount.path()).unwrap().count() > 5);
    drop(mount);
    for (facts, name) in before {
        let now = Facts::of(&source.path().join(&name));
        let atime = now.times[0];
        let [_, mtime, ctime] = facts.times;
        let times = [atime, mtime, ctime];
        assert_eq!(now, Facts { times, ..facts }, "{}", name.display());
    }
    assert!(!source.path().join("new").exists());
}

#[test]
fn a_real_tree_is_the_same_through_the_mount() {
    if !require(&[Need::Fuse, Need::Tool("diff")]) {
        return;
    }
    // A part of it in the short run: it has tens of thousands of small files.
    let full = soak(10) >= 10;
    let tree = ["/usr/share/zoneinfo", "/usr/share/perl", "/usr/share/doc"];
    let tree = match full {
        true => Path::new("/usr/share"),
        false => tree
            .map(Path::new)
            .into_iter()
            .find(|p| p.is_dir())
            .expect("a tree"),
    };
    let mount = Mount::of(tree).opt("ro").start();
    let differences = run(Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(tree)
        .arg(mount.path()));
    assert_eq!(differences, "");
}

#[test]
fn tar_takes_a_tree_out_and_brings_it_in() {
    if !require(&[Need::Fuse, Need::Tool("tar"), Need::Tool("diff")]) {
        return;
    }
    let source = Scratch::new();
    let tree = source.dir("tree");
    make_tree(&tree);
    fs::remove_file(tree.join("socket")).unwrap();
    let mount = Mount::of(source.path()).opt("dev,suid").start();
    let out = Scratch::new();
    let archive = out.path().join("archive");
    let tar = |words: &[&str], at: &Path| {
        run(Command::new("tar")
            .args(["--xattrs", "--sparse"])
            .args(words)
            .arg(&archive)
            .arg("-C")
            .arg(at)
            .arg("tree"));
    };
    tar(&["--create", "--file"], mount.path());
    tar(
        &["--extract", "--preserve-permissions", "--file"],
        out.path(),
    );
    assert_same_tree(&out.path().join("tree"), &tree);
    fs::rename(&tree, source.path().join("original")).unwrap();
    tar(
        &["--extract", "--preserve-permissions", "--file"],
        mount.path(),
    );
    assert_same_tree(&tree, &source.path().join("original"));
}

/// The same names, kinds, modes, owners, sizes, links, modification times and content.
fn assert_same_tree(one: &Path, two: &Path) {
    let names = walk(two);
    assert_eq!(walk(one), names);
    for name in names {
        let (a, b) = (Facts::of(&one.join(&name)), Facts::of(&two.join(&name)));
        let kept = |f: &Facts| (f.mode, f.owner, f.rdev, f.nlink, f.times[1]);
        assert_eq!(kept(&a), kept(&b), "{}", name.display());
        let kind = FileType::from_raw_mode(a.mode);
        if kind == FileType::RegularFile {
            assert!(
                read_file(&one.join(&name)) == read_file(&two.join(&name)),
                "{name:?}"
            );
            assert!(a.blocks < b.blocks + 64, "{name:?}: holes were filled");
        } else if kind == FileType::Symlink {
            assert_eq!(
                fs::read_link(one.join(&name)).unwrap(),
                fs::read_link(two.join(&name)).unwrap()
            );
        }
    }
}

#[test]
fn cp_copies_inside_the_mount() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("f"), 1, 5_000_003);
    let mount = Mount::of(source.path()).start();
    run(&mut sh(
        mount.path(),
        "cp -p f g && cp --sparse=always g h && mv h i",
    ));
    for name in ["g", "i"] {
        let bytes = read_file(&source.path().join(name));
        assert_eq!(bytes.len(), 5_000_003);
        assert_content(1, 0, &bytes);
    }
}

#[test]
fn locks_meet_those_on_the_source() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let native = source.file("f", b"0123456789");
    let mount = Mount::of(source.path()).start();
    let mut inside = Actor::locker(&mount.path().join("f"));
    let mut outside = Actor::locker(&native);
    assert_eq!(inside.ask("set write 0 5"), "ok");
    assert_eq!(outside.ask("set write 4 1"), "held");
    assert_eq!(outside.ask("set write 5 5"), "ok");
    assert_eq!(inside.ask("set read 9 1"), "held");
    assert!(inside.ask("get write 5 5").starts_with("write 5 5 "));
    inside.order("wait write 5 5");
    assert_eq!(outside.ask("set unlock 5 5"), "ok");
    assert_eq!(inside.answer(), "ok");
    drop(inside);
    wait_until("the locks go with their process", SEEN, || {
        outside.ask("set write 0 10") == "ok"
    });
}

#[test]
fn a_source_with_an_odd_name() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let scratch = Scratch::new();
    let odd = std::ffi::OsString::from_vec(b"a b,c\\d\n\xff=".to_vec());
    let source = scratch.path().join(odd);
    fs::create_dir(&source).unwrap();
    write_file(&source.join("f"), b"here");
    let mount = Mount::of(&source).start();
    assert_eq!(read_file(&mount.path().join("f")), b"here");
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let escaped = br"a\040b,c\134d\012";
    assert!(
        table.windows(escaped.len()).any(|w| w == escaped),
        "the source shows"
    );
}

#[test]
fn sigterm_unmounts_and_ends_well() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let point = mount.path().to_path_buf();
    let status = mount.finish();
    assert_eq!(status.code(), Some(0), "{status}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(point.to_str().unwrap()));
}

#[test]
fn many_programs_change_one_tree() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let rounds = soak(300).max(30);
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let at = mount.path();
            scope.spawn(move || {
                for round in 0..rounds {
                    let folder = at.join(format!("d{}", (worker + round) % 4));
                    // Another may have made it, or be removing it.
                    let _ = fs::create_dir(&folder);
                    let file = folder.join(format!("w{worker}"));
                    let _ = fs::write(&file, content(worker, 0, 5000));
                    let _ = fs::rename(&file, at.join(format!("moved{worker}")));
                    let _ = fs::read_dir(&folder).map(Iterator::count);
                    let _ = fs::remove_dir(&folder);
                }
            });
        }
    });
    for worker in 0..6 {
        assert_content(
            worker,
            0,
            &read_file(&source.path().join(format!("moved{worker}"))),
        );
    }
    let listed = output(Command::new("ls").arg("-lR").arg(mount.path()));
    assert!(listed.status.success());
    assert_eq!(walk(mount.path()), walk(source.path()));
}

/// The kernel would ask for file capabilities before each of them.
#[test]
fn a_write_is_one_request() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let file = fs::File::create(mount.path().join("f")).unwrap();
    let of = |op| mount.stats().sum("corfs_operations_total", &[("op", op)]);
    let before = (of("write"), of("getxattr"));
    for number in 0..500 {
        file.write_all_at(b"8 bytes!", number * 8).unwrap();
    }
    assert_eq!(of("write") - before.0, 500.0);
    let asked = of("getxattr") - before.1;
    assert!(asked < 50.0, "{asked}");
}

/// Walks of large trees would else take all that the daemon may have, though nobody opens the files.
#[test]
fn what_is_only_listed_takes_no_descriptor() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for folder in 0..10 {
        source.dir(&format!("d{folder}"));
        for file in 0..80 {
            source.file(&format!("d{folder}/f{file}"), b"x");
        }
    }
    let first = source.path().join("d0/f0");
    if fs::metadata(&first).unwrap().created().is_err() {
        println!("SKIP: no times of birth on this file system");
        return;
    }
    let mount = Mount::of(source.path()).start();
    let listed = output(
        Command::new("find")
            .arg(mount.path())
            .args(["-printf", "%s %i\n"]),
    );
    assert_eq!(
        listed.stdout.iter().filter(|byte| **byte == b'\n').count(),
        811
    );
    let held = fs::read_dir(format!("/proc/{}/fd", mount.server())).unwrap();
    assert!(held.count() < 200);
    assert_eq!(read_file(&mount.path().join("d3/f7")), b"x");
    assert_eq!(walk(mount.path()), walk(source.path()));
}

/// Held by O_PATH, which opens nothing: the mirror has to keep what it had only listed.
#[test]
fn what_was_only_listed_outlives_its_name_for_who_holds_it() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for name in ["removed", "replaced", "new"] {
        source.file(name, name.as_bytes());
    }
    let mount = Mount::of(source.path()).start();
    let path = |name: &str| mount.path().join(name);
    for entry in fs::read_dir(mount.path()).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    let hold = |name: &str| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(path(name), flags, Mode::empty()).unwrap()
    };
    let held = ["removed", "replaced"].map(|name| (name, hold(name)));
    fs::remove_file(path("removed")).unwrap();
    fs::rename(path("new"), path("replaced")).unwrap();
    for (name, fd) in &held {
        let stat = rustix::fs::fstat(fd).unwrap();
        assert_eq!(
            (stat.st_nlink, stat.st_size),
            (0, name.len() as i64),
            "{name}"
        );
        let again = Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string());
        assert_eq!(read_file(&again), name.as_bytes());
    }
    assert_eq!(read_file(&path("replaced")), b"new");
}
