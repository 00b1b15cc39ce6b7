//! A copy is whole or absent: it grows in a temporary file, and takes its place at once.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, unlinkat,
};

use super::resolve::{Target, proc_name};
use crate::sys::{Errno, Fail, OrFail, Result};

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A file in the destination's directory that is not yet the destination.
///
/// Ends by [`Temporary::publish`] or [`Temporary::discard`]. Where the file system can, it has no
/// name, so that nothing is left even if the daemon is killed.
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
        loop {
            let name = hidden_name();
            match openat(
                directory,
                &name,
                FLAGS | OFlags::CREATE | OFlags::EXCL,
                PRIVATE,
            ) {
                // Left behind by another daemon that had this process id.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Fail::new(errno, "open").because("a temporary file")),
                Ok(file) => {
                    let name = Some(name);
                    return Ok(Self { file, name });
                }
            }
        }
    }

    /// The file itself.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Puts the file in its place. On an error nothing has changed and nothing is left.
    pub(super) fn publish(self, target: &Target) -> Result<()> {
        let directory = target.directory.as_fd();
        match &self.name {
            None => self.publish_unnamed(target),
            Some(name) => move_to(directory, name, target).inspect_err(|_| {
                remove(directory, name);
            }),
        }
    }

    fn publish_unnamed(&self, target: &Target) -> Result<()> {
        let directory = target.directory.as_fd();
        if target.existing.is_none() {
            match self.link(directory, &target.name) {
                Err(Errno::EXIST) => target.check_newcomer()?,
                other => return other.or_fail("linkat"),
            }
        }
        let name = loop {
            let name = hidden_name();
            match self.link(directory, &name) {
                Err(Errno::EXIST) => {}
                other => break other.or_fail("linkat").map(|()| name)?,
            }
        };
        renameat(directory, &name, directory, &target.name)
            .or_fail("renameat")
            .inspect_err(|_| remove(directory, &name))
    }

    /// AT_EMPTY_PATH would need a capability; the way by /proc needs none (`open(2)`, O_TMPFILE).
    fn link(&self, directory: BorrowedFd<'_>, name: &OsString) -> rustix::io::Result<()> {
        let own = proc_name(self.file());
        linkat(CWD, own, directory, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Gives the file up; nothing of it is left in the directory.
    pub(super) fn discard(self, directory: BorrowedFd<'_>) {
        if let Some(name) = &self.name {
            remove(directory, name);
        }
    }
}

/// Renames over what is there; over what was not there before only after a look at it.
fn move_to(directory: BorrowedFd<'_>, name: &OsString, target: &Target) -> Result<()> {
    if target.existing.is_none() {
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
            other => return other.or_fail("renameat2"),
        }
    }
    renameat(directory, name, directory, &target.name).or_fail("renameat")
}

fn remove(directory: BorrowedFd<'_>, name: &OsString) {
    if let Err(errno) = unlinkat(directory, name, AtFlags::empty()) {
        log::warn!("a temporary file stays behind, {}: {errno}", name.display());
    }
}

pub(super) fn hidden_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".corfs-copy-{}-{count}.tmp", std::process::id()).into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use rustix::fs::{open, statat};

    use super::*;

    type Make = fn(BorrowedFd<'_>) -> Result<Temporary>;
    const BOTH: [Make; 2] = [Temporary::create, Temporary::create_named];

    fn target(folder: &Path, name: &str) -> Target {
        let directory = open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let existing = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        Target {
            directory,
            name: name.into(),
            existing,
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
