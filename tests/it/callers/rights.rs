//! Rights as they are natively: the same deeds of the same users, in a directory and in its twin
//! behind a mount, with the same answers and the same outcome.

use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, UTIME_NOW, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::*;
use crate::support::{
    Dice, Mount, Need, Scratch, output, require, set_mode, set_owner, soak, tool, write_file,
};

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Somebody who does something.
#[derive(Clone, Copy, Debug)]
struct Actor {
    uid: u32,
    gid: u32,
    groups: &'static [u32],
    /// Effective and permitted; `None` is what such a user has.
    capabilities: Option<CapabilitySet>,
}

const fn user(uid: u32, gid: u32, groups: &'static [u32]) -> Actor {
    Actor {
        uid,
        gid,
        groups,
        capabilities: None,
    }
}

const fn with(actor: Actor, capabilities: CapabilitySet) -> Actor {
    Actor {
        capabilities: Some(capabilities),
        ..actor
    }
}

const ACTORS: &[Actor] = &[
    user(0, 0, &[]),
    user(1000, 1000, &[]),
    user(1000, 1000, &[200, 300]),
    user(1001, 200, &[]),
    user(1001, 1001, &[7, 300]),
    user(1002, 0, &[1000]),
    user(0, 200, &[]),
    with(user(0, 0, &[]), CapabilitySet::empty()),
    with(
        user(0, 0, &[300]),
        CapabilitySet::all().difference(CapabilitySet::FSETID.union(CapabilitySet::CHOWN)),
    ),
    with(user(1001, 200, &[]), CapabilitySet::FOWNER),
    with(user(1002, 1002, &[]), CapabilitySet::DAC_OVERRIDE),
    with(
        user(1002, 300, &[]),
        CapabilitySet::CHOWN.union(CapabilitySet::FOWNER),
    ),
];

impl Actor {
    /// Does something on a thread with this identity.
    fn does<T: Send>(self, mask: u32, work: impl FnOnce() -> T + Send) -> T {
        apart(None, || {
            rustix::process::umask(Mode::from_raw_mode(mask));
            if self.capabilities.is_some() {
                rustix::thread::set_keep_capabilities(true).unwrap();
            }
            if self.uid != 0 || self.gid != 0 || !self.groups.is_empty() {
                become_user(self.uid, self.gid, self.groups);
            }
            if let Some(kept) = self.capabilities {
                let old = rustix::thread::capabilities(None).unwrap();
                let sets = CapabilitySets {
                    effective: old.permitted & kept,
                    permitted: old.permitted & kept,
                    inheritable: CapabilitySet::empty(),
                };
                rustix::thread::set_capabilities(None, sets).unwrap();
            }
            work()
        })
    }
}

/// Something to be done to a name, sometimes to two.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Create { exclusive: bool, mode: u32 },
    Mkdir(u32),
    Node(FileType, u32),
    Symlink,
    Link,
    Rename,
    Exchange,
    Unlink,
    Rmdir,
    Chmod(u32),
    Chown(Option<u32>, Option<u32>),
    Lchown(Option<u32>, Option<u32>),
    Write,
    Truncate,
    OpenTruncating,
    Allocate,
    Read,
    ReadUntimed,
    List,
    TimesNow,
    TimesThen,
    Ask(Access),
    SetAttribute(&'static str),
    GetAttribute(&'static str),
    RemoveAttribute(&'static str),
    SetList(&'static str, u32),
}

const ATTRIBUTES: [&str; 5] = ["user.a", "trusted.a", "security.a", "system.a", ACCESS_ACL];
const MODES: [u32; 10] = [
    0o644, 0o600, 0o666, 0o755, 0o2755, 0o4755, 0o6777, 0o2660, 0o040, 0o1777,
];
const OWNERS: [Option<u32>; 7] = [
    None,
    Some(0),
    Some(1000),
    Some(1001),
    Some(200),
    Some(300),
    Some(1002),
];

fn one_of<T: Copy>(dice: &mut Dice, things: &[T]) -> T {
    things[dice.below(things.len() as u64) as usize]
}

fn any_deed(dice: &mut Dice) -> Deed {
    let mode = one_of(dice, &MODES);
    let owners = (one_of(dice, &OWNERS), one_of(dice, &OWNERS));
    match dice.below(30) {
        0..=2 => Deed::Create {
            exclusive: dice.below(2) == 0,
            mode,
        },
        3 | 4 => Deed::Mkdir(mode),
        5 => Deed::Node(
            one_of(
                dice,
                &[
                    FileType::Fifo,
                    FileType::Socket,
                    FileType::RegularFile,
                    FileType::CharacterDevice,
                ],
            ),
            mode,
        ),
        6 => Deed::Symlink,
        7 => Deed::Link,
        8 => Deed::Rename,
        9 => Deed::Exchange,
        10 => Deed::Unlink,
        11 => Deed::Rmdir,
        12 | 13 => Deed::Chmod(mode),
        14 | 15 => Deed::Chown(owners.0, owners.1),
        16 => Deed::Lchown(owners.0, owners.1),
        17 => Deed::Write,
        18 => Deed::Truncate,
        19 => Deed::OpenTruncating,
        20 => Deed::Allocate,
        21 => Deed::Read,
        22 => Deed::ReadUntimed,
        23 => Deed::List,
        24 => Deed::TimesNow,
        25 => Deed::TimesThen,
        26 => Deed::Ask(one_of(
            dice,
            &[Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK],
        )),
        27 => Deed::SetAttribute(one_of(dice, &ATTRIBUTES[..4])),
        28 => match dice.below(2) {
            0 => Deed::GetAttribute(one_of(dice, &ATTRIBUTES)),
            _ => Deed::RemoveAttribute(one_of(dice, &ATTRIBUTES)),
        },
        _ => Deed::SetList(one_of(dice, &[ACCESS_ACL, DEFAULT_ACL]), mode & 7),
    }
}

/// An ACL: owner rwx, 1001 and group 300 as given, group r-x, others r-x.
fn list(rights: u32) -> Vec<u8> {
    let none = u32::MAX;
    let mut value = vec![2, 0, 0, 0];
    for (tag, rights, id) in [
        (1_u16, 7, none),
        (2, rights, 1001),
        (4, 5, none),
        (8, rights, 300),
        (16, 7, none),
        (32, 5, none),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend([rights as u8, 0]);
        value.extend(id.to_le_bytes());
    }
    value
}

fn open(path: &Path, flags: OFlags, mode: u32) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::from_raw_mode(mode))
}

fn times(path: &Path, seconds: i64, nanoseconds: i64) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let both = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &both, AtFlags::SYMLINK_NOFOLLOW)
}

impl Deed {
    /// Does it; what it said.
    fn run(self, path: &Path, other: &Path) -> Result<String, Errno> {
        fn said(what: impl Debug) -> String {
            format!("{what:?}")
        }
        match self {
            Self::Create { exclusive, mode } => {
                let more = if exclusive {
                    OFlags::EXCL
                } else {
                    OFlags::empty()
                };
                open(path, OFlags::CREATE | OFlags::RDWR | more, mode).map(|_| String::new())
            }
            Self::Mkdir(mode) => rustix::fs::mkdir(path, Mode::from_raw_mode(mode)).map(said),
            Self::Node(kind, mode) => {
                let device = rustix::fs::makedev(1, 3);
                rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).map(said)
            }
            Self::Symlink => rustix::fs::symlink("n0", path).map(said),
            Self::Link => rustix::fs::link(path, other).map(said),
            Self::Rename => rustix::fs::rename(path, other).map(said),
            Self::Exchange => {
                rustix::fs::renameat_with(CWD, path, CWD, other, RenameFlags::EXCHANGE).map(said)
            }
            Self::Unlink => rustix::fs::unlink(path).map(said),
            Self::Rmdir => rustix::fs::rmdir(path).map(said),
            Self::Chmod(mode) => chmod(path, mode).map(said),
            Self::Chown(uid, gid) => chown(path, uid, gid).map(said),
            Self::Lchown(uid, gid) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(said)
            }
            Self::Write => {
                let file = open(path, OFlags::WRONLY, 0)?;
                rustix::io::write(&file, b"written").map(said)
            }
            Self::Truncate => {
                let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
                // SAFETY: a name that ends with NUL, which the call reads.
                match unsafe { libc::truncate(path.as_ptr(), 3) } {
                    0 => Ok(String::new()),
                    _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
                }
            }
            Self::OpenTruncating => {
                open(path, OFlags::WRONLY | OFlags::TRUNC, 0).map(|_| String::new())
            }
            Self::Allocate => {
                let file = open(path, OFlags::RDWR, 0)?;
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100).map(said)
            }
            Self::Read | Self::ReadUntimed => {
                let more = if matches!(self, Self::Read) {
                    OFlags::empty()
                } else {
                    OFlags::NOATIME
                };
                let file = open(path, OFlags::RDONLY | more, 0)?;
                let mut bytes = [0; 200];
                let count = rustix::io::read(&file, &mut bytes)?;
                Ok(said(&bytes[..count]))
            }
            Self::List => {
                let folder = open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
                let mut names = Vec::new();
                for entry in rustix::fs::Dir::new(folder)? {
                    names.push(entry?.file_name().to_owned());
                }
                names.retain(|name| name.as_c_str() != c"lost+found");
                names.sort();
                Ok(said(names))
            }
            Self::TimesNow => times(path, 0, UTIME_NOW).map(said),
            Self::TimesThen => times(path, 12_345, 678).map(said),
            Self::Ask(what) => rustix::fs::accessat(CWD, path, what, AtFlags::EACCESS).map(said),
            Self::SetAttribute(name) => {
                rustix::fs::lsetxattr(path, name, b"value", XattrFlags::empty()).map(said)
            }
            Self::GetAttribute(name) => {
                let mut value = [0; 200];
                let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
                Ok(said(&value[..length]))
            }
            Self::RemoveAttribute(name) => rustix::fs::lremovexattr(path, name).map(said),
            Self::SetList(name, rights) => {
                rustix::fs::lsetxattr(path, name, &list(rights), XattrFlags::empty()).map(said)
            }
        }
    }
}

/// What is at a name, as root sees it: all that rights depend on and a deed may have changed.
fn facts(path: &Path) -> String {
    let Ok(stat) = rustix::fs::lstat(path) else {
        return "nothing".into();
    };
    let size = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => 0,
        _ => stat.st_size,
    };
    let mut text = format!(
        "{:o} {}:{} {} links {size} bytes {:x}",
        stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_rdev
    );
    for name in ATTRIBUTES.iter().chain(&[DEFAULT_ACL]) {
        let mut value = [0; 200];
        if let Ok(length) = rustix::fs::lgetxattr(path, *name, &mut value[..]) {
            text.push_str(&format!(" {name}={:x?}", &value[..length]));
        }
    }
    text
}

/// Makes the one known difference even: see `a_setgid_bit_without_execution_stays`.
fn take_idle_setgid(native: &Path, mounted: &Path) {
    let bits = |path: &Path| rustix::fs::lstat(path).map_or(0, |stat| stat.st_mode);
    let (expected, found) = (bits(native), bits(mounted));
    let idle = found & (libc::S_IFMT | 0o2010) == libc::S_IFREG | 0o2000;
    if idle && found == expected | 0o2000 {
        set_mode(mounted, expected & 0o7777);
    }
}

const FOLDERS: [&str; 9] = [
    "plain",
    "shared",
    "setgid",
    "sticky",
    "list",
    "setgid-list",
    "strangers",
    "closed",
    "anyones",
];

/// Directories of every kind with a few files in each.
fn build(root: &Path) {
    for (name, uid, gid, mode) in [
        ("plain", 1000, 1000, 0o755),
        ("shared", 0, 300, 0o775),
        ("setgid", 1000, 200, 0o2775),
        ("sticky", 0, 0, 0o1777),
        ("list", 1000, 1000, 0o755),
        ("setgid-list", 0, 300, 0o2770),
        ("strangers", 1001, 1001, 0o711),
        ("closed", 0, 0, 0o700),
        ("anyones", 1002, 1002, 0o777),
    ] {
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        set_owner(&folder, uid, gid);
        set_mode(&folder, mode);
        if name.ends_with("list") {
            for (name, rights) in [(ACCESS_ACL, 7), (DEFAULT_ACL, 6)] {
                rustix::fs::setxattr(&folder, name, &list(rights), XattrFlags::empty()).unwrap();
            }
        }
        for (file, uid, gid, mode) in [("n0", 1000, 200, 0o4754), ("n1", 1001, 300, 0o2775)] {
            let path = folder.join(file);
            write_file(&path, file.as_bytes());
            set_owner(&path, uid, gid);
            set_mode(&path, mode);
        }
    }
}

fn any_name(dice: &mut Dice) -> PathBuf {
    let mut path = PathBuf::from(one_of(dice, &FOLDERS));
    match dice.below(20) {
        0 => return path,
        1..=4 => path.push(format!("n{}", dice.below(6))),
        _ => {}
    }
    path.push(format!("n{}", dice.below(6)));
    path
}

/// Users, directories, masks and deeds by chance; the same on both sides.
#[test]
fn deeds_end_as_they_do_natively() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (native, mirrored) = (Scratch::new(), Scratch::new());
    build(native.path());
    build(mirrored.path());
    let mount = Mount::of(mirrored.path())
        .opt("allow_other,suid,dev")
        .start();
    let seed = std::env::var("CORFS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let (mut dice, mut done, mut last) = (Dice::new(seed << 32), 0, Vec::new());
    for number in 0..soak(40_000) {
        let (actor, deed) = (one_of(&mut dice, ACTORS), any_deed(&mut dice));
        let mask = one_of(&mut dice, &[0, 0o22, 0o77, 0o027]);
        let (name, other) = (any_name(&mut dice), any_name(&mut dice));
        let run =
            |root: &Path| actor.does(mask, || deed.run(&root.join(&name), &root.join(&other)));
        let before = facts(&native.path().join(&name));
        let (expected, found) = (run(native.path()), run(mount.path()));
        done += u64::from(expected.is_ok());
        last.push(format!(
            "{number}: {actor:?} {mask:o} {deed:?} {name:?} ({before}) {other:?}: {expected:?}"
        ));
        let history = || last[last.len().saturating_sub(6)..].join("\n");
        assert_eq!(found, expected, "\n{}", history());
        for path in [&name, &other] {
            take_idle_setgid(&native.path().join(path), &mount.path().join(path));
        }
        for path in [&name, &other, &name.parent().unwrap().to_owned()] {
            let expected = facts(&native.path().join(path));
            assert_eq!(
                facts(&mirrored.path().join(path)),
                expected,
                "{path:?}\n{}",
                history()
            );
            assert_eq!(
                facts(&mount.path().join(path)),
                expected,
                "mount {path:?}\n{}",
                history()
            );
        }
    }
    println!("{done} deeds went well of {}", last.len());
    assert!(
        done > last.len() as u64 / 10,
        "too few deeds went well to tell anything"
    );
}

/// A rule of the kernel's FUSE (fs/fuse/dir.c, fuse_setattr): of a file that its group may not
/// execute, a stranger's write does not take the set-group-id bit, which does nothing there.
#[test]
fn a_setgid_bit_without_execution_stays() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other").start();
    for (bits, natively, mounted) in [(0o2666, 0o666, 0o2666), (0o2676, 0o676, 0o676)] {
        for (root, left) in [(source.path(), natively), (mount.path(), mounted)] {
            let path = source.file("f", b"x");
            set_owner(&path, 1000, 1000);
            set_mode(&path, bits);
            as_user(1001, || make(&root.join("f")).unwrap());
            let found = rustix::fs::stat(&path).unwrap().st_mode & 0o7777;
            assert_eq!(found, left, "{bits:o} in {}", root.display());
        }
    }
}

/// The same script in a user namespace of its own, whose root has no power outside, and with
/// capabilities dropped; what it says and what it leaves.
#[test]
fn other_namespaces_and_dropped_capabilities_gain_nothing() {
    if !require(&[
        Need::Fuse,
        Need::Root,
        Need::Tool("unshare"),
        Need::Tool("setpriv"),
    ]) {
        return;
    }
    const SCRIPT: &str = r#"
        try() { "$@" 2>/dev/null >&2; echo "$* = $?"; }
        for d in plain shared setgid sticky list setgid-list strangers closed anyones; do
            try touch $d/new; try mkdir $d/sub; try mkfifo $d/fifo; try ln -s n0 $d/link
            try mknod $d/null c 1 3
            try chown 1000 $d/new; try chown 1 $d/new; try chgrp 300 $d/new; try chmod 2755 $d/new
            try ln $d/n0 $d/hard; try mv $d/n1 $d/moved; try rm -f $d/n0
            try setfattr -n user.x -v 1 $d/new; try setfattr -n trusted.x -v 1 $d/new
            try setfattr -n security.x -v 1 $d/new; try cat $d/moved; try setfacl -m u:5:rw $d/new
        done"#;
    let setpriv = tool("setpriv").unwrap();
    let setpriv = setpriv.to_str().unwrap();
    let drop_all: &[&str] = &[setpriv, "--bounding-set", "-all"];
    let drop_some: &[&str] = &[
        setpriv,
        "--bounding-set",
        "-chown,-fsetid,-mknod,-dac_override",
    ];
    let ordinary: &[&str] = &[
        setpriv,
        "--reuid=1000",
        "--regid=1000",
        "--groups=300",
        "unshare",
    ];
    let unmapped = [ordinary, &["-U"]].concat();
    let as_root = [ordinary, &["-U", "-r"]].concat();
    let of_root: &[&str] = &["unshare", "-U", "-r"];
    let nobodys: &[&str] = &["unshare", "-U"];
    for words in [drop_all, drop_some, &unmapped, &as_root, of_root, nobodys] {
        let (native, mirrored) = (Scratch::new(), Scratch::new());
        build(native.path());
        build(mirrored.path());
        let mount = Mount::of(mirrored.path())
            .opt("allow_other,dev,suid")
            .start();
        let said = |root: &Path| {
            let mut command = Command::new(words[0]);
            command
                .args(&words[1..])
                .args(["sh", "-c", SCRIPT])
                .current_dir(root);
            String::from_utf8(output(&mut command).stdout).unwrap()
        };
        let expected = said(native.path());
        assert!(expected.lines().count() > 100, "{words:?}: {expected}");
        assert_eq!(said(mount.path()), expected, "{words:?}");
        let names = "n0 n1 new sub fifo link null hard moved".split(' ');
        for name in names.flat_map(|name| FOLDERS.map(|folder| Path::new(folder).join(name))) {
            let expected = facts(&native.path().join(&name));
            assert_eq!(
                facts(&mirrored.path().join(&name)),
                expected,
                "{words:?} {name:?}"
            );
        }
    }
}

/// An ordinary user's daemon acts for that user alone, and never as itself for another.
#[test]
fn an_ordinary_users_daemon_acts_for_nobody_else() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_mode(source.path(), 0o777);
    set_owner(&source.dir("d"), 1000, 1000);
    let mount = Mount::of(source.path()).as_user(1000, 1000);
    let mount = match mount.opt("allow_other").try_start() {
        Ok(mount) => mount,
        Err(words) => {
            assert!(words.contains("user_allow_other"), "{words}");
            assert!(
                std::env::var_os("CORFS_REQUIRE_ALL").is_none_or(|v| v != "1"),
                "{words}"
            );
            return eprintln!("SKIP: no user_allow_other in /etc/fuse.conf");
        }
    };
    let at = mount.path();
    as_user(1000, || make(&at.join("mine")).unwrap());
    for id in [1001, 0] {
        let deeds = || {
            assert_eq!(make(&at.join("new")), Err(Errno::PERM), "as {id}");
            assert_eq!(make_dir(&at.join("dir")), Err(Errno::PERM), "as {id}");
            assert_eq!(rustix::fs::symlink("x", at.join("link")), Err(Errno::PERM));
            let fifo = rustix::fs::mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::RWXU, 0);
            assert_eq!(fifo, Err(Errno::PERM));
            assert_eq!(copy(at, "mine", "copied"), Err(Errno::PERM));
        };
        if id == 0 {
            deeds();
        } else {
            as_user(id, deeds);
        }
    }
    assert_eq!(
        chown(&at.join("mine"), Some(1001), None),
        Err(Errno::PERM),
        "as root"
    );
    let names = std::fs::read_dir(source.path()).unwrap().count();
    assert_eq!(names, 2, "mine and d");
    assert_eq!(owner(&source.path().join("mine")), (1000, 1000));
}
