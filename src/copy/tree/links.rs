//! Names of one file within what is copied stay names of one file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, Stat, statat};

use super::folder::{Folder, id};
use crate::copy::progress::Progress;
use crate::sys::{OrFail, Result};

/// How long one sleeps who waits for another name's copy before he looks whether he is cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// Files with several names of which not all have been met: about 150 bytes each, the name, and
/// the chain of directories above it where nothing else holds that.
#[derive(Default)]
pub(super) struct Links {
    /// A leaf in the order of locks.
    known: Mutex<HashMap<(u64, u64), Known>>,
    changed: Condvar,
}

struct Known {
    /// `None` while it is copied.
    copy: Option<Copied>,
    /// Names that are still to come.
    left: u64,
}

/// The first copy of a file with several names.
#[derive(Clone)]
pub(super) struct Copied {
    holder: Holder,
    pub(super) name: OsString,
    pub(super) id: (u64, u64),
}

/// The directory that holds it.
#[derive(Clone)]
pub(super) enum Holder {
    /// Within a tree.
    Folder(Arc<Folder>),
    /// Where a source that is no directory went.
    Directory(Arc<OwnedFd>),
}

/// What is to be done with a name of such a file.
pub(super) enum Turn {
    /// It is the first: to be copied, and [`Links::copied`] told about it.
    First,
    /// To be linked to this.
    Link(Copied),
}

impl Links {
    /// A name of the file was met. Waits while another name of it is copied.
    ///
    /// # Errors
    /// EINTR when cancelled.
    pub(super) fn meet(&self, source: &Stat, progress: &Progress) -> Result<Turn> {
        let mut known = self.known.lock();
        loop {
            let Some(file) = known.get_mut(&id(source)) else {
                let left = links(source) - 1;
                known.insert(id(source), Known { copy: None, left });
                return Ok(Turn::First);
            };
            if let Some(copy) = file.copy.clone() {
                file.left = file.left.saturating_sub(1);
                if file.left == 0 {
                    known.remove(&id(source));
                }
                return Ok(Turn::Link(copy));
            }
            self.changed.wait_for(&mut known, LOOK);
            if progress.is_cancelled() {
                return progress.check().map(|()| Turn::First);
            }
        }
    }

    /// The first is copied, or (`None`) could not be: then the next name is the first.
    pub(super) fn copied(&self, source: &Stat, place: Option<(Holder, BorrowedFd<'_>, OsString)>) {
        let copy = place.and_then(|(holder, directory, name)| {
            let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let id = id(&stat);
            Some(Copied { holder, name, id })
        });
        let mut known = self.known.lock();
        match (copy, known.get_mut(&id(source))) {
            (Some(copy), Some(file)) => file.copy = Some(copy),
            _ => _ = known.remove(&id(source)),
        }
        self.changed.notify_all();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.lock().len()
    }
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the width differs between machines"
)]
fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

impl Copied {
    /// The directory that holds it, opened again. `None` when something else stands there now.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn find(&self) -> Result<Option<OwnedFd>> {
        let directory = match &self.holder {
            Holder::Folder(folder) => folder.open_copy()?,
            Holder::Directory(directory) => {
                rustix::io::fcntl_dupfd_cloexec(directory.as_fd(), 3).or_fail("dup")?
            }
        };
        let found = statat(&directory, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        Ok(found
            .is_ok_and(|stat| id(&stat) == self.id)
            .then_some(directory))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn what_all_names_of_are_met_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "").unwrap();
        for name in ["b", "c"] {
            fs::hard_link(path("a"), path(name)).unwrap();
        }
        let stat = rustix::fs::stat(path("a")).unwrap();
        let (links, progress) = (Links::default(), Progress::new(None));
        let directory = Arc::new(OwnedFd::from(File::open(folder.path()).unwrap()));
        assert!(matches!(links.meet(&stat, &progress), Ok(Turn::First)));
        links.copied(&stat, None);
        assert_eq!(links.len(), 0, "it could not be copied");
        assert!(matches!(links.meet(&stat, &progress), Ok(Turn::First)));
        let holder = Holder::Directory(directory.clone());
        links.copied(&stat, Some((holder, directory.as_fd(), "a".into())));
        for left in [1, 0] {
            let Ok(Turn::Link(copy)) = links.meet(&stat, &progress) else {
                panic!("the second name is a link");
            };
            assert!(copy.find().unwrap().is_some());
            assert_eq!(links.len(), left);
        }
    }

    #[test]
    fn who_waits_for_another_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let stat = rustix::fs::stat(folder.path()).unwrap();
        let (links, progress) = (Links::default(), Progress::new(None));
        assert!(links.meet(&stat, &progress).is_ok());
        progress.cancel();
        assert!(links.meet(&stat, &progress).is_err());
    }
}
