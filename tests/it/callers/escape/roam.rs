//! Those who do everything through the mount that takes a name.
//!
//! They never follow a link themselves: what leads outside then is the daemon's doing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::outside::{ATTRIBUTE, CHANGED, is_marked, names};
use super::{NAMES, PLACES, SPARES};
use crate::support::Dice;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Directories that are kept open, as the working directories of others are.
const KEPT: usize = 12;

/// What one of them does.
const DEEDS: [(&str, Deed); 21] = [
    ("stat", look),
    ("read", read),
    ("read by path", read_by_path),
    ("list", list),
    ("create", create),
    ("truncate", truncate),
    ("mkdir", mkdir),
    ("mknod", mknod),
    ("symlink", symlink),
    ("link", link),
    ("rename", rename),
    ("exchange", exchange),
    ("unlink", unlink),
    ("rmdir", rmdir),
    ("chmod", chmod),
    ("chown", chown),
    ("utimens", utimens),
    ("setxattr", setxattr),
    ("getxattr", getxattr),
    ("copy", copy),
    ("copy up", copy_up),
];

type Deed = fn(&mut Roamer) -> Result<(), Errno>;

struct Roamer {
    dice: Dice,
    top: OwnedFd,
    kept: Vec<OwnedFd>,
    point: String,
    /// What was met of the outside.
    met: Vec<String>,
}

/// Roams until it is told to end; returns how often each deed went well, and what it met.
pub(crate) fn roam(mount: &Path, seed: u64, ended: &AtomicBool) -> String {
    let mut roamer = Roamer {
        dice: Dice::new(seed << 32),
        top: rustix::fs::open(mount, FOLDER, Mode::empty()).expect("the mount"),
        kept: Vec::new(),
        point: mount.to_str().expect("a plain name").into(),
        met: Vec::new(),
    };
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    while !ended.load(Ordering::Relaxed) {
        let (name, deed) = DEEDS[roamer.dice.below(DEEDS.len() as u64) as usize];
        let count = counts.entry(name).or_default();
        count.0 += 1;
        count.1 += u64::from(deed(&mut roamer).is_ok());
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(name, (tried, done))| format!("{name}: {done}/{tried}"))
        .collect();
    format!("{} {}", roamer.met.join(" "), counts.join(", "))
}

/// Fails unless every deed went well now and then, by one of them.
pub(super) fn assert_worked(told: &[String]) {
    for (name, _) in DEEDS {
        let went = |words: &String| !words.contains(&format!(" {name}: 0/"));
        assert!(told.iter().any(went), "nobody's {name} ever went well");
    }
}

impl Roamer {
    fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.dice.below(things.len() as u64) as usize]
    }

    /// A directory, found now or long ago.
    fn folder(&mut self) -> Result<OwnedFd, Errno> {
        let path = self.folder_path();
        if self.kept.len() >= KEPT && self.dice.below(3) > 0 {
            let kept = &self.kept[self.dice.below(KEPT as u64) as usize];
            return Ok(kept.try_clone().expect("a descriptor"));
        }
        let folder = self.open(&path, FOLDER)?;
        let copy = folder.try_clone().expect("a descriptor");
        if self.kept.len() < KEPT {
            self.kept.push(copy);
        } else {
            let old = self.dice.below(KEPT as u64) as usize;
            self.kept[old] = copy;
        }
        Ok(folder)
    }

    fn folder_path(&mut self) -> String {
        let place = self.dice.below(PLACES);
        match self.dice.below(5) {
            0 => ".".into(),
            1 | 2 => format!("s{place}"),
            3 => format!("alt/x{}", self.dice.below(SPARES)),
            _ => format!("s{place}/t"),
        }
    }

    /// Opens by a path of the mount without following a link.
    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        rustix::fs::openat2(
            &self.top,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// A name that is exchanged, one that is there, or one that may be.
    fn name(&mut self) -> String {
        match self.dice.below(6) {
            0 => "f".into(),
            1 => "t".into(),
            2 => format!("s{}", self.dice.below(PLACES)),
            _ => self.free_name(),
        }
    }

    /// A name for what comes and goes.
    fn free_name(&mut self) -> String {
        format!("n{}", self.dice.below(NAMES))
    }

    /// The thing itself, link or not, as the daemon will know it.
    fn thing(&mut self) -> Result<OwnedFd, Errno> {
        let (folder, name) = (self.folder()?, self.name());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, name, flags, Mode::empty())
    }

    fn judge(&mut self, what: &str, stat: &Stat) {
        if stat.st_mtime == CHANGED {
            self.meet(what);
        }
    }

    fn judge_bytes(&mut self, what: &str, bytes: &[u8]) {
        if is_marked(bytes) {
            self.meet(what);
        }
    }

    fn meet(&mut self, what: &str) {
        if self.met.len() < 20 {
            self.met.push(format!("{what} met the OUTSIDE;"));
        }
    }

    fn read_all(&mut self, what: &str, file: &OwnedFd) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(file)?;
        self.judge(what, &stat);
        let mut bytes = [0; 4096];
        let count = rustix::io::pread(file, &mut bytes, 0)?;
        self.judge_bytes(what, &bytes[..count]);
        Ok(())
    }
}

fn look(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.name());
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    r.judge("stat", &stat);
    let thing = r.thing()?;
    r.judge("fstat", &rustix::fs::fstat(thing)?);
    Ok(())
}

fn read(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.name());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, name, flags, Mode::empty())?;
    r.read_all("read", &file)
}

fn read_by_path(r: &mut Roamer) -> Result<(), Errno> {
    let path = format!("{}/f", r.folder_path());
    let file = r.open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    r.read_all("read by path", &file)
}

fn list(r: &mut Roamer) -> Result<(), Errno> {
    let folder = r.folder()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(&folder, ".", flags, Mode::empty())?;
    r.judge("list", &rustix::fs::fstat(&open)?);
    for name in names(open.as_fd()) {
        if let Ok(stat) = rustix::fs::statat(&open, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            r.judge("list", &stat);
        }
    }
    Ok(())
}

fn create(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    let exclusive = r.one_of(&[OFlags::EXCL, OFlags::empty(), OFlags::TRUNC]);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | exclusive;
    let file = rustix::fs::openat(
        &folder,
        name,
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o666),
    )?;
    r.judge("create", &rustix::fs::fstat(&file)?);
    rustix::io::pwrite(&file, b"inside", 0).map(drop)
}

fn truncate(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.name());
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(&folder, name, flags | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::pwrite(&file, &b"inside".repeat(200), 0).map(drop)
}

fn mkdir(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o777))
}

fn mknod(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    let kind = r.one_of(&[
        rustix::fs::FileType::Fifo,
        rustix::fs::FileType::RegularFile,
    ]);
    rustix::fs::mknodat(&folder, name, kind, Mode::from_raw_mode(0o666), 0)
}

fn symlink(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    let target = r.one_of(&[
        "../outside/f",
        "../outside",
        "../../outside/s0",
        "../outside/absent",
    ]);
    rustix::fs::symlinkat(target, &folder, name)
}

fn link(r: &mut Roamer) -> Result<(), Errno> {
    let (from, name) = (r.folder()?, r.name());
    let (to, new) = (r.folder()?, r.free_name());
    rustix::fs::linkat(&from, name, &to, new, AtFlags::empty())
}

fn rename(r: &mut Roamer) -> Result<(), Errno> {
    let (from, name) = (r.folder()?, r.free_name());
    let (to, new) = (r.folder()?, r.free_name());
    rustix::fs::renameat(&from, name, &to, new)
}

fn exchange(r: &mut Roamer) -> Result<(), Errno> {
    let (from, name) = (r.folder()?, r.free_name());
    let (to, new) = (r.folder()?, r.free_name());
    rustix::fs::renameat_with(&from, name, &to, new, RenameFlags::EXCHANGE)
}

fn unlink(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    rustix::fs::unlinkat(&folder, name, AtFlags::empty())
}

fn rmdir(r: &mut Roamer) -> Result<(), Errno> {
    let (folder, name) = (r.folder()?, r.free_name());
    rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR)
}

fn chmod(r: &mut Roamer) -> Result<(), Errno> {
    let thing = r.thing()?;
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    rustix::fs::chmod(path, Mode::from_raw_mode(0o777))
}

fn chown(r: &mut Roamer) -> Result<(), Errno> {
    let thing = r.thing()?;
    let stat = rustix::fs::fstat(&thing)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(&thing, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

fn utimens(r: &mut Roamer) -> Result<(), Errno> {
    let thing = r.thing()?;
    let at = Timespec {
        tv_sec: 5,
        tv_nsec: 5,
    };
    let both = Timestamps {
        last_access: at,
        last_modification: at,
    };
    rustix::fs::utimensat(&thing, "", &both, AtFlags::EMPTY_PATH)
}

/// Of a link only root may set one, and no `user.` one: then it is the link's own.
fn setxattr(r: &mut Roamer) -> Result<(), Errno> {
    let thing = r.thing()?;
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    let name = r.one_of(&[ATTRIBUTE, "trusted.where"]);
    rustix::fs::setxattr(&*path, name, b"inside", XattrFlags::empty())?;
    rustix::fs::removexattr(&*path, name)
}

fn getxattr(r: &mut Roamer) -> Result<(), Errno> {
    let thing = r.thing()?;
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    let mut list = [0_u8; 256];
    rustix::fs::listxattr(&*path, &mut list[..])?;
    let mut value = [0; 64];
    match rustix::fs::getxattr(&*path, ATTRIBUTE, &mut value[..]) {
        Ok(count) => r.judge_bytes("getxattr", &value[..count]),
        Err(Errno::NODATA) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}

fn copy(r: &mut Roamer) -> Result<(), Errno> {
    let (from, name) = (r.folder_path(), r.name());
    let to = match r.dice.below(3) {
        0 => "keep".to_owned(),
        _ => r.folder_path(),
    };
    let start = r
        .one_of(&[String::new(), format!("{}/", r.point)].each_ref())
        .clone();
    let new = r.free_name();
    order(
        r,
        ".copy",
        &format!("{start}{from}/{name} {start}{to}/{new}"),
    )
}

/// From a directory below, by way of the one above: which may be another by then.
fn copy_up(r: &mut Roamer) -> Result<(), Errno> {
    let holder = format!("s{}", r.dice.below(PLACES));
    let to = match r.dice.below(2) {
        0 => "keep".to_owned(),
        _ => r.folder_path(),
    };
    let (from, new) = (r.folder_path(), r.free_name());
    order(
        r,
        &format!("{holder}/.copy"),
        &format!("../{from}/f ../{to}/{new}"),
    )
}

fn order(r: &Roamer, control: &str, line: &str) -> Result<(), Errno> {
    let control = r.open(control, OFlags::WRONLY)?;
    rustix::io::write(&control, format!("{line}\n").as_bytes()).map(drop)
}
