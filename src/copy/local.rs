//! Names as everywhere: from the working directory on, through whatever is mounted.
//!
//! What cp does with them, this does: the kernel walks each name, links within it are followed, and
//! nothing is out of reach but what its rights forbid.

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};

use super::resolve::{Newcomer, Target};
use super::tree::{Destination, Found, Names};
use crate::sys::{Errno, Fail, OrFail, Result};

/// As many links as the kernel follows in one name (`path_resolution(7)`).
const MOST_LINKS: usize = 40;
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const FOLDER: OFlags = PLACE.union(OFlags::DIRECTORY);

/// The names of an ordinary process.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    umask: u32,
}

impl Local {
    /// Of this process. To be called while it has one thread: the kernel tells the file creation
    /// mask only to those who set it.
    pub fn of_this_process() -> Self {
        let mask = rustix::process::umask(Mode::empty());
        rustix::process::umask(mask);
        Self {
            umask: mask.as_raw_mode(),
        }
    }
}

impl Names for Local {
    fn source(&self, name: &[u8], follow: bool) -> Result<Found> {
        let flags = if follow {
            PLACE
        } else {
            PLACE.union(OFlags::NOFOLLOW)
        };
        let file = open(name, flags)?;
        let stat = fstat(&file).or_fail("fstat")?;
        let name = split(name).map_or_else(OsString::new, |(_, last)| last.to_owned());
        Ok(Found { file, stat, name })
    }

    fn destination(&self, name: &[u8], follow: bool) -> Result<Destination> {
        let mut name = name.to_vec();
        for _ in 0..=MOST_LINKS {
            match look(&name, follow)? {
                Step::There(destination) => return Ok(destination),
                Step::Link(next) => name = next,
            }
        }
        Err(Fail::new(Errno::LOOP, "open").because("too many symbolic links"))
    }

    fn is_reserved(&self, _: BorrowedFd<'_>, _: &OsStr) -> bool {
        false
    }

    fn umask(&self) -> u32 {
        self.umask
    }

    fn published(&self, _: BorrowedFd<'_>, _: &OsStr) {}
}

enum Step {
    There(Destination),
    /// A link at the end is to be followed to here.
    Link(Vec<u8>),
}

/// What stands at a destination's name.
fn look(name: &[u8], follow: bool) -> Result<Step> {
    let Some((parent, last)) = split(name) else {
        return open(name, FOLDER).map(|folder| Step::There(Destination::Directory(folder)));
    };
    let directory = open(or_here(parent), FOLDER)?;
    let existing = match statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(Fail::new(errno, "fstatat").because("the destination")),
    };
    let only_directory = name.ends_with(b"/");
    match existing.as_ref().map(kind) {
        Some(FileType::Directory) => return folder(&directory, last),
        Some(FileType::Symlink) => match statat(&directory, last, AtFlags::empty()) {
            Ok(stat) if kind(&stat) == FileType::Directory => return folder(&directory, last),
            Ok(_) if !follow => {}
            Ok(stat) => return follow_link(&directory, parent, last, &stat),
            Err(Errno::NOENT) if follow => return Err(dangling()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Fail::new(errno, "fstatat").because("the destination")),
        },
        _ => {}
    }
    Ok(Step::There(Destination::Name {
        target: Box::new(Target {
            directory,
            name: last.to_owned(),
            existing,
            newcomer: Newcomer::default(),
        }),
        only_directory,
    }))
}

fn folder(directory: &OwnedFd, name: &OsStr) -> Result<Step> {
    let folder = openat(directory, name, FOLDER, Mode::empty())
        .map_err(|errno| Fail::new(errno, "open").because("the destination"))?;
    Ok(Step::There(Destination::Directory(folder)))
}

/// Goes where a link that leads to `stat` says.
///
/// # Errors
/// EINVAL for a link of /proc, whose text is no name, to what has none.
fn follow_link(directory: &OwnedFd, parent: &[u8], last: &OsStr, stat: &Stat) -> Result<Step> {
    let text = readlinkat(directory, last, Vec::new()).or_fail("readlinkat")?;
    let next = join(parent, text.as_bytes());
    let same = |other: &Stat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
    match statat(CWD, OsStr::from_bytes(&next), AtFlags::empty()) {
        Ok(found) if same(&found) => Ok(Step::Link(next)),
        Err(errno) if errno != Errno::NOENT => Err(Fail::new(errno, "fstatat")),
        _ => Err(Fail::new(Errno::INVAL, "open")
            .because("the destination is a link to something that has no name")),
    }
}

fn dangling() -> Fail {
    Fail::new(Errno::NOENT, "open").because("not writing through a dangling symbolic link")
}

fn open(name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    // The kernel says ENOENT to an empty name, too.
    openat(CWD, OsStr::from_bytes(name), flags, Mode::empty()).or_fail("open")
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What comes before the last name (empty, or with its slash), and that name without slashes behind
/// it; `None` where the path can only mean a directory that is there.
fn split(path: &[u8]) -> Option<(&[u8], &OsStr)> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|&byte| byte == b'/');
    let (parent, last) = path[..end].split_at(start.map_or(0, |at| at + 1));
    (last != b"." && last != b"..").then(|| (parent, OsStr::from_bytes(last)))
}

fn or_here(parent: &[u8]) -> &[u8] {
    if parent.is_empty() { b"." } else { parent }
}

/// Where `text` leads when it stands in a link in `parent`.
fn join(parent: &[u8], text: &[u8]) -> Vec<u8> {
    match text {
        [b'/', ..] => text.to_vec(),
        _ => [parent, text].concat(),
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
