//! Deeds of many kinds by users of many kinds, in a directory and in its twin behind a mount: the
//! answers and the outcome must be the same.

use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, UTIME_NOW, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::*;
use crate::support::{Dice, set_mode, set_owner, soak, write_file};

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Somebody who does something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Actor {
    uid: u32,
    gid: u32,
    groups: &'static [u32],
    /// Effective and permitted; `None` is what such a user has.
    capabilities: Option<CapabilitySet>,
}

pub(super) const fn user(uid: u32, gid: u32, groups: &'static [u32]) -> Actor {
    Actor {
        uid,
        gid,
        groups,
        capabilities: None,
    }
}

pub(super) const fn with(actor: Actor, capabilities: CapabilitySet) -> Actor {
    Actor {
        capabilities: Some(capabilities),
        ..actor
    }
}

pub(super) const ACTORS: &[Actor] = &[
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
    pub(super) fn does<T: Send>(self, mask: u32, work: impl FnOnce() -> T + Send) -> T {
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
    SetList(&'static str, u32, u32),
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
    // One at least: a change to nobody is refused natively only where it would take an idle
    // set-group-id bit, see `rights::a_setgid_bit_without_execution_stays`.
    let owners = match (one_of(dice, &OWNERS), one_of(dice, &OWNERS)) {
        (None, None) => (Some(1000), None),
        owners => owners,
    };
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
        _ => Deed::SetList(
            one_of(dice, &[ACCESS_ACL, DEFAULT_ACL]),
            mode & 7,
            one_of(dice, &[300, 3000]),
        ),
    }
}

/// An ACL: owner rwx, 1001 and a group as given, group r-x, others r-x.
fn list(rights: u32, group: u32) -> Vec<u8> {
    let none = u32::MAX;
    let mut value = vec![2, 0, 0, 0];
    for (tag, rights, id) in [
        (1_u16, 7, none),
        (2, rights, 1001),
        (4, 5, none),
        (8, rights, group),
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
            Self::SetList(name, rights, group) => {
                rustix::fs::lsetxattr(path, name, &list(rights, group), XattrFlags::empty())
                    .map(said)
            }
        }
    }
}

/// What is at a name, as root sees it: all that rights depend on and a deed may have changed.
pub(super) fn facts(path: &Path) -> String {
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

/// Makes the one known difference even: see
/// `rights::a_setgid_bit_without_execution_goes_with_the_write_of_a_member_too`.
fn take_idle_setgid(native: &Path, mounted: &Path) {
    let bits = |path: &Path| rustix::fs::lstat(path).map_or(0, |stat| stat.st_mode);
    let (expected, found) = (bits(native), bits(mounted));
    let either = expected | found;
    let idle = either & libc::S_IFMT != libc::S_IFDIR && either & 0o2010 == 0o2000;
    if idle && expected ^ found == 0o2000 {
        set_mode(native, found & 0o5777);
        set_mode(mounted, found & 0o5777);
    }
}

pub(super) const FOLDERS: [&str; 9] = [
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
pub(super) fn build(root: &Path) {
    std::fs::create_dir_all(root).unwrap();
    set_mode(root, 0o755);
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
                rustix::fs::setxattr(&folder, name, &list(rights, 300), XattrFlags::empty())
                    .unwrap();
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

/// After so many deeds most is closed to most; then others begin afresh.
const FRESH: u64 = 1000;

/// A directory and its twin, each as it is shown and as it lies in its source.
pub(super) struct Twins<'a> {
    pub(super) shown: &'a Path,
    pub(super) source: &'a Path,
    pub(super) shown_by_corfs: &'a Path,
    pub(super) source_of_corfs: &'a Path,
    /// What is said there of an id that is nobody's. Where there is a second reason to refuse,
    /// either may be told first.
    pub(super) nobody: &'a [Errno],
}

impl Twins<'_> {
    /// Users, directories, masks and deeds by chance; the same on both sides. `CORFS_SEED` begins
    /// elsewhere.
    pub(super) fn compare(&self, actors: &[Actor], deeds: u64) {
        let seed = std::env::var("CORFS_SEED").map_or(1, |seed| seed.parse().unwrap());
        let (mut dice, mut done, mut last) = (Dice::new(seed << 32), 0, Vec::new());
        for number in 0..soak(deeds) {
            let (actor, deed) = (one_of(&mut dice, actors), any_deed(&mut dice));
            let mask = one_of(&mut dice, &[0, 0o22, 0o77, 0o027]);
            let round = PathBuf::from(format!("round{}", number / FRESH));
            if number % FRESH == 0 {
                build(&self.source.join(&round));
                build(&self.source_of_corfs.join(&round));
            }
            let (name, other) = (any_name(&mut dice), any_name(&mut dice));
            let (name, other) = (round.join(name), round.join(other));
            let run =
                |root: &Path| actor.does(mask, || deed.run(&root.join(&name), &root.join(&other)));
            let before = facts(&self.shown.join(&name));
            let (expected, found) = (run(self.shown), run(self.shown_by_corfs));
            done += u64::from(expected.is_ok());
            last.push(format!(
                "{number}: {actor:?} {mask:o} {deed:?} {name:?} ({before}) {other:?}: {expected:?}"
            ));
            let history = last[last.len().saturating_sub(6)..].join("\n");
            let refused = found.is_err() && expected.is_err();
            if !(refused && self.nobody.iter().any(|&nobody| expected == Err(nobody))) {
                assert_eq!(found, expected, "\n{history}");
            }
            // What links lead to, too.
            let (linked, also) = (name.with_file_name("n0"), other.with_file_name("n0"));
            for path in [&name, &other, &linked, &also] {
                take_idle_setgid(&self.shown.join(path), &self.shown_by_corfs.join(path));
            }
            let above = name.parent().unwrap().to_owned();
            for path in [&name, &other, &linked, &also, &above] {
                for (native, ours) in [
                    (self.source, self.source_of_corfs),
                    (self.shown, self.shown_by_corfs),
                ] {
                    let expected = facts(&native.join(path));
                    assert_eq!(facts(&ours.join(path)), expected, "{path:?}\n{history}");
                }
            }
        }
        println!("{done} deeds went well of {}", last.len());
        let enough = last.len() as u64 / 10;
        assert!(done > enough, "too few deeds went well to tell anything");
    }
}
