//! From the names in a line to descriptors, without ever leaving the mounted tree.
//!
//! The kernel walks every name, with `openat2` and RESOLVE_BENEATH, under the credentials of the
//! one who asks; nothing here compares or cleans paths to decide what may be reached.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, accessat, fstat, openat,
    openat2, readlinkat, statat,
};

use super::tree::{Destination, Found, Names};
use crate::sys::{Errno, Fail, OrFail, Result};

/// As many links as the kernel follows in one name (`path_resolution(7)`).
const MOST_LINKS: usize = 40;
/// `openat2` says EAGAIN when something was renamed meanwhile and it can't be sure of `..`.
const TRIES: usize = 64;
/// The mount's own folder, at its root alone.
const FOLDER_OF_FIGURES: &str = ".corfs";
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Where names begin and what they must not leave.
pub struct Tree<'a> {
    /// The root of the mounted tree: an absolute name's start, a climb's end.
    pub root: BorrowedFd<'a>,
    /// The directory that holds the `.copy`: a relative name's start.
    pub directory: BorrowedFd<'a>,
    /// What an absolute name must begin with: any of these.
    pub mountpoints: &'a [PathBuf],
    /// A name that the mount answers itself: no file is newly made under it.
    pub reserved: Option<&'a OsStr>,
    /// The file creation mask of the one who copies.
    pub umask: u32,
    /// Told of what has come to be something else.
    pub told: &'a (dyn Fn(Change<'_>) + Sync),
}

/// What whoever remembers names and files is to forget.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// What a name of a directory means, and the directory's attributes.
    Name(BorrowedFd<'a>, &'a OsStr),
    /// The attributes of a file, by device and inode, and its bytes if that is true.
    File((u64, u64), bool),
}

/// A regular file, open for reading.
pub(super) struct Source {
    pub(super) file: OwnedFd,
    /// As it was when it was opened, hence with the access time before our own reading.
    pub(super) stat: Stat,
}

impl Source {
    /// Opens a regular file that was found.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn open(found: BorrowedFd<'_>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(CWD, proc_name(found), flags, Mode::empty())
            .map_err(|errno| Fail::new(errno, "open").because("the source"))?;
        let stat = fstat(&file).or_fail("fstat")?;
        Ok(Self { file, stat })
    }
}

/// Where a file will stand.
#[derive(Debug)]
pub struct Target {
    /// The directory that holds it.
    pub directory: OwnedFd,
    /// Its name there: one component.
    pub name: OsString,
    /// What stands there now.
    pub existing: Option<Stat>,
    /// What is to become of what comes to stand there meanwhile.
    pub newcomer: Newcomer,
}

/// What becomes of a file that came to stand at a destination while its copy was made: unless one of
/// these says otherwise it is replaced, if the caller may write to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newcomer {
    /// It stays if it is not older than this time of modification, in seconds and nanoseconds
    /// (`update`; `no_clobber`, with the earliest).
    pub stays_from: Option<(i64, i64)>,
    /// What would be replaced is to have a backup, which nobody has kept of this one: the copy fails.
    pub needs_backup: bool,
}

impl Newcomer {
    /// Whether this one is to be replaced.
    ///
    /// # Errors
    /// EEXIST.
    pub(super) fn gives_way(self, found: &Stat) -> Result<bool> {
        if self.stays_from.is_some_and(|from| modified(found) >= from) {
            return Ok(false);
        }
        if self.needs_backup {
            return Err(Fail::new(Errno::EXIST, "copy")
                .because("a file came to stand there meanwhile, which has no backup"));
        }
        Ok(true)
    }
}

/// Seconds and nanoseconds of the last modification.
#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_wrap,
    reason = "the types differ between machines; nanoseconds are below 2^30"
)]
pub(super) fn modified(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime as i64, stat.st_mtime_nsec as i64)
}

/// A name without its absolute beginning.
#[derive(Clone)]
struct Place {
    from_root: bool,
    path: Vec<u8>,
}

impl Names for Tree<'_> {
    fn source(&self, name: &[u8], follow: bool) -> Result<Found> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        let file = self.open(&self.place(name)?, flags)?;
        let stat = fstat(&file).or_fail("fstat")?;
        let name = OsStr::from_bytes(taken_as(name)).to_owned();
        Ok(Found { file, stat, name })
    }

    fn destination(&self, name: &[u8], follow: bool) -> Result<Destination> {
        let mut place = self.place(name)?;
        let mut through_link = false;
        for _ in 0..=MOST_LINKS {
            let refused = match self.open(&place, FOLDER) {
                Ok(directory) => return Ok(Destination::Directory(directory)),
                Err(fail) => fail,
            };
            let (target, only_directory) = self.look(&place, refused)?;
            let is_link = target.existing.as_ref().map(file_type) == Some(FileType::Symlink);
            if !is_link || !follow {
                if through_link && target.existing.is_none() {
                    return Err(Fail::new(Errno::NOENT, "open")
                        .because("not writing through a dangling symbolic link"));
                }
                return Ok(Destination::Name {
                    target: Box::new(target),
                    only_directory,
                });
            }
            let text = readlinkat(&target.directory, &target.name, Vec::new());
            let text = text.or_fail("readlinkat")?;
            if text.as_bytes().first() == Some(&b'/') {
                return Err(leaves());
            }
            let (parent, _) = split_last(&place.path).unwrap_or_default();
            place.path = join(parent, text.as_bytes());
            through_link = true;
        }
        Err(Fail::new(Errno::LOOP, "open").because("too many symbolic links"))
    }

    fn is_reserved(&self, directory: BorrowedFd<'_>, name: &OsStr) -> bool {
        self.reserved == Some(name) || name == FOLDER_OF_FIGURES && self.is_root(directory)
    }

    fn umask(&self) -> u32 {
        self.umask
    }

    fn published(&self, directory: BorrowedFd<'_>, name: &OsStr) {
        (self.told)(Change::Name(directory, name));
    }

    fn changed(&self, file: (u64, u64), bytes: bool) {
        (self.told)(Change::File(file, bytes));
    }
}

impl Tree<'_> {
    fn is_root(&self, directory: BorrowedFd<'_>) -> bool {
        let stats = fstat(directory).and_then(|one| Ok((one, fstat(self.root)?)));
        stats.is_ok_and(|(one, root)| same_file(&one, &root))
    }

    /// What stands at the last component of a place, which could not be opened as a directory.
    fn look(&self, place: &Place, refused: Fail) -> Result<(Target, bool)> {
        let slashes = place.path.iter().rev().take_while(|b| **b == b'/').count();
        let path = &place.path[..place.path.len() - slashes];
        let Some((parent, last)) = split_last(path) else {
            return Err(refused);
        };
        let holder = Place {
            from_root: place.from_root,
            path: parent.to_vec(),
        };
        let mut target = Target {
            directory: self.open(&holder, FOLDER)?,
            name: OsStr::from_bytes(last).to_owned(),
            existing: None,
            newcomer: Newcomer::default(),
        };
        target.existing = target.stat()?;
        match target.existing.as_ref().map(file_type) {
            // With a slash after it a link is followed, and a file is none.
            Some(_) if slashes > 0 => Err(refused),
            Some(FileType::Directory) => Err(refused),
            _ => Ok((target, slashes > 0)),
        }
    }

    /// Takes the mountpoint off an absolute name.
    fn place(&self, name: &[u8]) -> Result<Place> {
        match name {
            [] => Err(Fail::new(Errno::NOENT, "open").because("an empty name")),
            [b'/', ..] => {
                let mut known = self.mountpoints.iter();
                let path = known.find_map(|at| beneath(name, at.as_os_str().as_bytes()));
                Ok(Place {
                    from_root: true,
                    path: path.ok_or_else(leaves)?.to_vec(),
                })
            }
            _ => Ok(Place {
                from_root: false,
                path: name.to_vec(),
            }),
        }
    }

    fn open(&self, place: &Place, flags: OFlags) -> Result<OwnedFd> {
        let path = or_here(&place.path);
        if place.from_root {
            return open_beneath(self.root, path, flags);
        }
        match open_beneath(self.directory, path, flags) {
            // It climbs above the directory, or a link does; the tree may still hold it.
            Err(fail) if fail.errno == Errno::XDEV => {
                let from_root = join(&self.directory_from_root()?, path);
                open_beneath(self.root, &from_root, flags)
            }
            other => other,
        }
    }

    /// The way from the root to the directory, as the kernel knows it at this moment.
    ///
    /// # Errors
    /// ENOENT when the directory was removed, or moved out of the tree.
    fn directory_from_root(&self) -> Result<Vec<u8>> {
        let gone = || Fail::new(Errno::NOENT, "open").because("the directory is gone");
        let path_of = |fd: BorrowedFd<'_>| {
            readlinkat(CWD, proc_name(fd), Vec::new())
                .or_fail("readlinkat")
                .map(std::ffi::CString::into_bytes)
        };
        let (root, directory) = (path_of(self.root)?, path_of(self.directory)?);
        let path = beneath(&directory, &root).ok_or_else(gone)?;
        // A removed directory's path is a lie ("… (deleted)"), so see where it leads.
        let found = fstat(open_beneath(self.root, or_here(path), FOLDER)?).or_fail("fstat")?;
        let own = fstat(self.directory).or_fail("fstat")?;
        if same_file(&found, &own) {
            Ok(path.to_vec())
        } else {
            Err(gone())
        }
    }
}

impl Target {
    /// What stands there now; nothing is no error.
    fn stat(&self) -> Result<Option<Stat>> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Fail::new(errno, "fstatat").because("the destination")),
        }
    }

    /// Looks again, when something appeared where nothing was: false when it is to stay. It is
    /// replaced only if the caller may write to it.
    ///
    /// # Errors
    /// EEXIST as [`Newcomer::gives_way`], EISDIR, EINVAL (not a regular file), EACCES.
    pub(super) fn check_newcomer(&self) -> Result<bool> {
        let Some(found) = self.stat()? else {
            return Ok(true);
        };
        if !self.newcomer.gives_way(&found)? {
            return Ok(false);
        }
        match file_type(&found) {
            FileType::RegularFile => self.check_writable().map(|()| true),
            FileType::Directory => {
                Err(Fail::new(Errno::ISDIR, "open")
                    .because("a directory stands at the destination"))
            }
            _ => Err(not_regular("the destination")),
        }
    }

    /// Looks again at what stood there from the beginning, just before it is replaced: false when it
    /// is to stay.
    ///
    /// # Errors
    /// EEXIST when it is another by now, and of the old one was a backup kept.
    pub(super) fn check_standing(&self) -> Result<bool> {
        let Some(before) = &self.existing else {
            return Ok(true);
        };
        if self.newcomer == Newcomer::default() {
            return Ok(true);
        }
        let Some(found) = self.stat()? else {
            return Ok(true);
        };
        // Of the one that stood there is the backup, if there is to be one.
        let newcomer = Newcomer {
            needs_backup: self.newcomer.needs_backup && !same_file(before, &found),
            ..self.newcomer
        };
        newcomer.gives_way(&found)
    }

    /// A rename would replace a file that the caller may not write to; cp would not.
    pub(super) fn check_writable(&self) -> Result<()> {
        // AT_EACCESS: by the identity in force on this thread, not by the real ids.
        let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
        accessat(&self.directory, &self.name, Access::WRITE_OK, flags).map_err(|errno| {
            Fail::new(errno, "access").because("the file that stands at the destination")
        })
    }
}

/// True when both describe one file.
pub(super) fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The name under which a descriptor of ours can be opened or linked again.
pub(super) fn proc_name(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn open_beneath(start: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut answer = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        answer = openat2(start, path, flags, Mode::empty(), resolve);
        if !matches!(answer, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    match answer {
        Err(Errno::XDEV) => Err(leaves()),
        other => other.or_fail("openat2"),
    }
}

fn leaves() -> Fail {
    Fail::new(Errno::XDEV, "open").because("leaves the mounted tree")
}

fn not_regular(which: &str) -> Fail {
    Fail::new(Errno::INVAL, "open").because(format!("{which} is not a regular file"))
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What follows a base in an absolute path, compared by components; `None` if it isn't beneath.
fn beneath<'a>(path: &'a [u8], base: &[u8]) -> Option<&'a [u8]> {
    let mut rest = path;
    for wanted in base
        .split(|&byte| byte == b'/')
        .filter(|part| !is_void(part))
    {
        rest = skip_void(rest);
        let end = rest
            .iter()
            .position(|&byte| byte == b'/')
            .unwrap_or(rest.len());
        if &rest[..end] != wanted {
            return None;
        }
        rest = &rest[end..];
    }
    let start = rest
        .iter()
        .position(|&byte| byte != b'/')
        .unwrap_or(rest.len());
    Some(&rest[start..])
}

/// An empty component, or a dot: neither leads anywhere.
fn is_void(part: &[u8]) -> bool {
    part.is_empty() || part == b"."
}

fn skip_void(mut path: &[u8]) -> &[u8] {
    loop {
        path = match path {
            [b'/', rest @ ..] => rest,
            [b'.', b'/', rest @ ..] => rest,
            _ => return path,
        }
    }
}

/// The parent's path and the last name; `None` where the path can only mean a directory.
fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.iter().rposition(|&byte| byte == b'/');
    let (parent, last) = path.split_at(at.map_or(0, |at| at + 1));
    (!is_void(last) && last != b"..").then_some((parent, last))
}

/// The name under which a directory takes what a path names; empty where that is all that is in it.
fn taken_as(path: &[u8]) -> &[u8] {
    match last_name(path) {
        b"." | b".." => b"",
        name => name,
    }
}

/// The last name in a path, trailing slashes aside.
fn last_name(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|&byte| byte != b'/')
        .map_or(0, |at| at + 1);
    let path = &path[..end];
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent {
        [] => name.to_vec(),
        [.., b'/'] => [parent, name].concat(),
        _ => [parent, b"/", name].concat(),
    }
}

fn or_here(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
