//! A copy is whole or absent: it grows in a temporary file, and takes its place at once.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, fsync, linkat, openat, renameat, renameat_with, syncfs,
};

use super::leftovers::{hidden_name, hold, unlink};
use super::resolve::{Target, proc_name};
use crate::sys::{Errno, Fail, OrFail, Result};

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Each ends by somebody else's doing, of which there can't be so much.
const TRIES: usize = 16;
const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A file in the destination's directory that is not yet the destination.
///
/// Ends by [`Temporary::publish`] or [`Temporary::discard`]. Where the file system can, it has no
/// name, so that nothing is left even if the daemon is killed; where it has one, it is locked, so
/// that the next copy there knows it for a leftover when we are gone (see `leftovers`).
pub(super) struct Temporary {
    file: OwnedFd,
    name: Option<OsString>,
}

impl Temporary {
    /// Makes one, readable and writable by its owner only, open for both.
    pub(super) fn create(directory: BorrowedFd<'_>) -> Result<Self> {
        match openat(
            directory,
            ".",
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            PRIVATE,
        ) {
            Ok(file) => Ok(Self { file, name: None }),
            // Not on this file system (`open(2)`, O_TMPFILE).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                Self::create_named(directory)
            }
            Err(errno) => Err(Fail::new(errno, "open").because("a temporary file")),
        }
    }

    fn create_named(directory: BorrowedFd<'_>) -> Result<Self> {
        for _ in 0..TRIES {
            let name = hidden_name();
            let flags = FLAGS | OFlags::CREATE | OFlags::EXCL;
            match openat(directory, &name, flags, PRIVATE) {
                // Somebody has taken the very name.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Fail::new(errno, "open").because("a temporary file")),
                // Not ours to hold: removed as a leftover in the moment before it was locked.
                Ok(file) if !hold(file.as_fd())? => {}
                Ok(file) => {
                    let name = Some(name);
                    return Ok(Self { file, name });
                }
            }
        }
        Err(Fail::new(Errno::EXIST, "open").because("a temporary file"))
    }

    /// One that is there already, under a hidden name in the destination's directory, and that the
    /// caller has locked.
    pub(super) fn adopt(file: OwnedFd, name: OsString) -> Self {
        Self {
            file,
            name: Some(name),
        }
    }

    /// The file itself.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Puts the file in its place; false when what has come to stand there is to stay. Then, and on
    /// an error, nothing has changed and nothing is left.
    pub(super) fn publish(self, target: &Target) -> Result<bool> {
        let directory = target.directory.as_fd();
        let Some(name) = &self.name else {
            return self.publish_unnamed(target);
        };
        let published = move_to(directory, name, target);
        if !matches!(published, Ok(true)) {
            unlink(directory, name);
        }
        published
    }

    fn publish_unnamed(&self, target: &Target) -> Result<bool> {
        let directory = target.directory.as_fd();
        let gives_way = if target.existing.is_none() {
            match self.link(directory, &target.name) {
                Err(Errno::EXIST) => target.check_newcomer()?,
                other => return other.or_fail("linkat").map(|()| true),
            }
        } else {
            target.check_standing()?
        };
        if !gives_way {
            return Ok(false);
        }
        // From here on it has a name, and may be killed while it has.
        hold(self.file())?;
        let name = loop {
            let name = hidden_name();
            match self.link(directory, &name) {
                Err(Errno::EXIST) => {}
                other => break other.or_fail("linkat").map(|()| name)?,
            }
        };
        renameat(directory, &name, directory, &target.name)
            .or_fail("renameat")
            .map(|()| true)
            .inspect_err(|_| unlink(directory, &name))
    }

    /// AT_EMPTY_PATH would need a capability; the way by /proc needs none (`open(2)`, O_TMPFILE).
    fn link(&self, directory: BorrowedFd<'_>, name: &OsString) -> rustix::io::Result<()> {
        let own = proc_name(self.file());
        linkat(CWD, own, directory, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Gives the file up; nothing of it is left in the directory.
    pub(super) fn discard(self, directory: BorrowedFd<'_>) {
        if let Some(name) = &self.name {
            unlink(directory, name);
        }
    }
}

/// Renames over what is there, after a look at it; false when that is to stay.
fn move_to(directory: BorrowedFd<'_>, name: &OsString, target: &Target) -> Result<bool> {
    let gives_way = if target.existing.is_none() {
        match renameat_with(
            directory,
            name,
            directory,
            &target.name,
            RenameFlags::NOREPLACE,
        ) {
            Err(Errno::EXIST) => target.check_newcomer()?,
            // Not on this file system.
            Err(Errno::INVAL | Errno::NOSYS) => target.check_newcomer()?,
            other => return other.or_fail("renameat2").map(|()| true),
        }
    } else {
        target.check_standing()?
    };
    if gives_way {
        renameat(directory, name, directory, &target.name).or_fail("renameat")?;
    }
    Ok(gives_way)
}

/// A directory whose names are to be on disk, held by something that can be synced.
pub(super) struct Names {
    file: OwnedFd,
    /// It is a file of ours in it.
    is_within: bool,
}

impl Names {
    /// Opens the directory; one that may be written to and not read is reached by a file in it.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn of(directory: BorrowedFd<'_>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(directory, ".", flags, Mode::empty()) {
            Ok(file) => Ok(Self {
                file,
                is_within: false,
            }),
            Err(Errno::ACCESS) => {
                let temporary = Temporary::create(directory)?;
                let file = rustix::io::fcntl_dupfd_cloexec(temporary.file(), 3).or_fail("fcntl");
                temporary.discard(directory);
                Ok(Self {
                    file: file?,
                    is_within: true,
                })
            }
            Err(errno) => Err(Fail::new(errno, "open").because("the directory, to sync it")),
        }
    }

    /// Has them on disk, and what else is known of the directory.
    ///
    /// # Errors
    /// Those of fsync(2): what was published stands, but may not survive a crash.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = match self.is_within {
            false => fsync(&self.file),
            true => syncfs(&self.file),
        };
        match synced {
            // The file system has no such thing as a directory on disk.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => other.map_err(|errno| {
                Fail::new(errno, "fsync").because("the copy is in place, but may not be on disk")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use rustix::fs::{Stat, open, statat};

    use super::*;
    use crate::copy::resolve::{Newcomer, modified};

    type Make = fn(BorrowedFd<'_>) -> Result<Temporary>;
    const BOTH: [Make; 2] = [Temporary::create, Temporary::create_named];

    fn target(folder: &Path, name: &str) -> Target {
        let directory = open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let existing = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        Target {
            directory,
            name: name.into(),
            existing,
            newcomer: Newcomer::default(),
        }
    }

    fn write(temporary: &Temporary, text: &str) {
        let file = temporary.file.try_clone().unwrap();
        fs::File::from(file).write_all(text.as_bytes()).unwrap();
    }

    fn listing(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_new_file_appears_whole() {
        for make in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let target = target(folder.path(), "new");
            let temporary = make(target.directory.as_fd()).unwrap();
            write(&temporary, "text");
            assert!(!folder.path().join("new").exists());
            temporary.publish(&target).unwrap();
            assert_eq!(fs::read(folder.path().join("new")).unwrap(), b"text");
            assert_eq!(listing(folder.path()), ["new"]);
        }
    }

    #[test]
    fn an_old_file_is_replaced_at_once_and_also_one_that_came_meanwhile() {
        for make in BOTH {
            for late in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("file");
                let early = (!late).then(|| fs::write(&path, "old").unwrap());
                let target = target(folder.path(), "file");
                assert_eq!(target.existing.is_some(), early.is_some());
                let temporary = make(target.directory.as_fd()).unwrap();
                write(&temporary, "new");
                fs::write(&path, "old").unwrap();
                temporary.publish(&target).unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"new");
                assert_eq!(listing(folder.path()), ["file"]);
            }
        }
    }

    /// A target at which nothing stood, or the file that stands there now.
    fn meant(
        folder: &Path,
        stood: bool,
        newcomer: impl FnOnce(Option<&Stat>) -> Newcomer,
    ) -> Target {
        let path = folder.join("file");
        if stood {
            fs::write(&path, "first").unwrap();
        }
        let target = target(folder, "file");
        // Another file, which has its time of now.
        fs::write(folder.join("next"), "theirs").unwrap();
        fs::rename(folder.join("next"), &path).unwrap();
        let stands = statat(&target.directory, "file", AtFlags::empty()).ok();
        Target {
            newcomer: newcomer(stands.as_ref()),
            ..target
        }
    }

    #[test]
    fn what_is_to_stay_stays_though_it_came_meanwhile() {
        let backed_up = Newcomer {
            stays_from: None,
            needs_backup: true,
        };
        for make in BOTH {
            let stays = |target: &Target, folder: &Path| {
                let temporary = make(target.directory.as_fd()).unwrap();
                write(&temporary, "ours");
                let published = temporary.publish(target);
                assert_eq!(listing(folder), ["file"]);
                let text = fs::read_to_string(folder.join("file")).unwrap();
                assert_eq!(
                    text,
                    if matches!(published, Ok(true)) {
                        "ours"
                    } else {
                        "theirs"
                    }
                );
                published.map_err(|fail| fail.errno)
            };
            for stood in [false, true] {
                let older = |by: i64| {
                    let folder = tempfile::tempdir().unwrap();
                    let target = meant(folder.path(), stood, |now| {
                        let (seconds, nanoseconds) = modified(now.unwrap());
                        Newcomer {
                            stays_from: Some((seconds + by, nanoseconds)),
                            needs_backup: false,
                        }
                    });
                    stays(&target, folder.path())
                };
                assert_eq!(
                    (older(0), older(-1), older(1)),
                    (Ok(false), Ok(false), Ok(true))
                );
                let folder = tempfile::tempdir().unwrap();
                let target = meant(folder.path(), stood, |_| backed_up);
                assert_eq!(stays(&target, folder.path()), Err(Errno::EXIST));
            }
            let folder = tempfile::tempdir().unwrap();
            let target = meant(folder.path(), false, |_| Newcomer {
                stays_from: Some((i64::MIN, 0)),
                needs_backup: true,
            });
            assert_eq!(stays(&target, folder.path()), Ok(false));
        }
    }

    #[test]
    fn a_directory_that_came_meanwhile_stays_and_nothing_is_left() {
        for make in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let target = target(folder.path(), "file");
            let temporary = make(target.directory.as_fd()).unwrap();
            fs::create_dir(folder.path().join("file")).unwrap();
            assert_eq!(temporary.publish(&target).unwrap_err().errno, Errno::ISDIR);
            assert_eq!(listing(folder.path()), ["file"]);
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        for make in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let target = target(folder.path(), "file");
            make(target.directory.as_fd())
                .unwrap()
                .discard(target.directory.as_fd());
            assert!(listing(folder.path()).is_empty());
        }
    }
}
