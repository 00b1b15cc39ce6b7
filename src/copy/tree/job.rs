//! What becomes of one name: a file, a link, a special file.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};

use super::exclude::Exclude;
use super::folder::{Folder, Open, shown};
use super::links::{Holder, Links};
use super::pool::{Batch, Entry};
use super::unsynced::Unsynced;
use super::{Names, times};
use crate::copy::engine::small::{self, Small};
use crate::copy::engine::{self, Order, Prepared};
use crate::copy::leftovers;
use crate::copy::resolve::{Newcomer, Source, Target, file_type, same_file};
use crate::copy::{attributes, options::Backup};
use crate::sys::{Errno, Fail, OrFail, Result};

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Finds a file, and does nothing with it.
pub(super) const FIND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Everything that is copied by one call.
pub(super) struct Job<'a> {
    pub(super) names: &'a dyn Names,
    pub(super) order: &'a Order<'a>,
    /// How the files of a tree are copied: those who copy several at a time have one worker each.
    pub(super) within: &'a Order<'a>,
    pub(super) exclude: Exclude,
    pub(super) links: Links,
    /// Small files may go the cheap way.
    pub(super) small: bool,
    /// What failed first, for the errno of all. A leaf in the order of locks.
    first: Mutex<Option<Fail>>,
    /// It was cancelled before all was done.
    stopped: AtomicBool,
    /// Directories above what was named, in which it has got its name.
    pub(super) unsynced: Unsynced,
    /// Copies whose names end as those of backups do: no backup takes their place. By the directory's
    /// device and inode. A leaf in the order of locks.
    pub(super) like_backups: Mutex<HashSet<((u64, u64), OsString)>>,
}

/// Where one name goes.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a OsStr,
    /// What stands there.
    pub(super) existing: Option<&'a Stat>,
    pub(super) holder: Place<'a>,
}

/// Keeps what stands at a spot, right before it is replaced, as it is to be kept. Answers what stands
/// there then.
pub(super) type Keep<'a> = &'a mut dyn FnMut() -> Result<Option<Stat>>;

/// The directory of a spot, as hard links remember it.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Folder(&'a Arc<Folder>),
    Directory(&'a Arc<OwnedFd>),
}

impl Place<'_> {
    pub(super) fn holder(self) -> Holder {
        match self {
            Self::Folder(folder) => Holder::Folder(Arc::clone(folder)),
            Self::Directory(directory) => Holder::Directory(Arc::clone(directory)),
        }
    }

    fn gives_acl(self) -> bool {
        match self {
            Self::Folder(folder) => folder.gives_acl,
            Self::Directory(directory) => attributes::gives_acl(directory.as_fd()),
        }
    }
}

impl<'a> Job<'a> {
    pub(super) fn new(
        names: &'a dyn Names,
        order: &'a Order<'a>,
        within: &'a Order<'a>,
    ) -> Result<Self> {
        Ok(Self {
            names,
            order,
            within,
            exclude: Exclude::new(&order.options.exclude)?,
            links: Links::default(),
            small: small::suits(order.options),
            first: Mutex::new(None),
            stopped: AtomicBool::new(false),
            unsynced: Unsynced::default(),
            like_backups: Mutex::default(),
        })
    }

    /// Something could not be copied; the rest is. What a cancel ended has not failed.
    pub(super) fn failed(&self, folder: Option<&Arc<Folder>>, name: &OsStr, fail: Fail) {
        if fail.errno == Errno::INTR && self.order.progress.is_cancelled() {
            return self.stop();
        }
        self.first.lock().get_or_insert_with(|| fail.clone());
        self.order.progress.failed(&shown(folder, name), fail);
    }

    /// Something is left undone, for it was cancelled.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What the whole came to.
    pub(super) fn outcome(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) {
            self.order.progress.check()?;
        }
        let Some(first) = self.first.lock().clone() else {
            return Ok(());
        };
        let (failed, _) = self.order.progress.failures();
        let (_, total) = self.order.progress.files();
        Err(Fail::new(first.errno, "copy")
            .because(format!("{failed} of {total} failed, the first: {first}")))
    }

    /// Copies the files of one directory, and gives that its attributes if it was all.
    pub(super) fn batch(&self, batch: &Batch, small: &mut Small) {
        for entry in &batch.entries {
            if self.order.progress.check().is_err() {
                self.stop();
                batch.open.folder.fall_short();
                break;
            }
            match self.entry(&batch.open, entry, small) {
                Ok(_) => self.order.progress.file_done(),
                Err(fail) => {
                    let name = OsStr::from_bytes(entry.name.to_bytes());
                    self.failed(Some(&batch.open.folder), name, fail);
                }
            }
        }
        self.leave(&batch.open);
    }

    fn entry(&self, open: &Open, entry: &Entry, small: &mut Small) -> Result<bool> {
        let name = OsStr::from_bytes(entry.name.to_bytes());
        let existing = match open.folder.made {
            true => None,
            false => look(open.copy.as_fd(), name)?,
        };
        let spot = Spot {
            directory: open.copy.as_fd(),
            name,
            existing: existing.as_ref(),
            holder: Place::Folder(&open.folder),
        };
        if entry.kind == FileType::RegularFile
            && let Some(source) = open_regular(open.source.as_fd(), &entry.name)?
        {
            return self.regular(&source, spot, small);
        }
        let found = openat(&open.source, &entry.name, FIND, Mode::empty()).or_fail("open")?;
        let stat = fstat(&found).or_fail("fstat")?;
        self.refuse_own_target(&stat, &shown(Some(&open.folder), name), existing.as_ref())?;
        self.found(found, &stat, spot, small)
    }

    /// A link that takes the place of what it leads to would lead to itself, and that be lost.
    /// `path` is that of the link, from where names begin.
    ///
    /// # Errors
    /// EINVAL.
    pub(super) fn refuse_own_target(
        &self,
        link: &Stat,
        path: &[u8],
        existing: Option<&Stat>,
    ) -> Result<()> {
        let options = self.order.options;
        let Some(existing) = existing.filter(|_| !options.no_clobber && !self.keeps_backups())
        else {
            return Ok(());
        };
        let kinds = (file_type(link), file_type(existing));
        if kinds == (FileType::Symlink, FileType::RegularFile)
            && let Ok(target) = self.names.source(path, true)
            && same_file(&target.stat, existing)
        {
            return Err(Fail::new(Errno::INVAL, "copy")
                .because("the link leads to the file that it would replace"));
        }
        Ok(())
    }

    /// Copies what is no directory; false when what stands there stays.
    ///
    /// # Errors
    /// EISDIR for a directory, in the source or at the destination; EINVAL for a file onto itself
    /// or onto a special file; EEXIST for a reserved name; those of the engine.
    pub(super) fn found(
        &self,
        found: OwnedFd,
        stat: &Stat,
        spot: Spot<'_>,
        small: &mut Small,
    ) -> Result<bool> {
        match file_type(stat) {
            FileType::Directory => {
                Err(Fail::new(Errno::ISDIR, "open").because("it became a directory"))
            }
            FileType::RegularFile => {
                let source = Source::open(found.as_fd())?;
                self.regular(&source, spot, small)
            }
            _ => self.node(found.as_fd(), stat, spot),
        }
    }

    fn regular(&self, source: &Source, spot: Spot<'_>, small: &mut Small) -> Result<bool> {
        if self.stays(&source.stat, spot)? {
            let forgone = super::census::bytes(&source.stat, self.order.options);
            self.order.progress.forgo(forgone);
            return Ok(false);
        }
        self.once(&source.stat, spot, || self.bytes(source, spot, small))
    }

    fn bytes(&self, source: &Source, spot: Spot<'_>, small: &mut Small) -> Result<bool> {
        let parts = self.tidy(spot)?;
        if spot.existing.is_none() && self.small {
            let gives_acl = spot.holder.gives_acl();
            if small.copy(source, spot.directory, spot.name, self.order, gives_acl)? {
                if parts {
                    engine::abandon(spot.directory, spot.name);
                }
                self.names.published(spot.directory, spot.name);
                return Ok(true);
            }
        }
        self.place(spot, &source.stat, |keep| self.engine(source, spot, keep))
    }

    /// By the engine, which takes files of any size.
    fn engine(&self, source: &Source, spot: Spot<'_>, keep: Keep<'_>) -> Result<bool> {
        let directory = rustix::io::fcntl_dupfd_cloexec(spot.directory, 3).or_fail("dup")?;
        let mut target = Target {
            directory,
            name: spot.name.to_owned(),
            existing: spot.existing.copied(),
            newcomer: self.newcomer(&source.stat, spot),
        };
        let standing = spot.existing.map(file_type);
        if standing == Some(FileType::RegularFile) && !self.keeps_backups() {
            target.check_writable()?;
        }
        let order = match spot.holder {
            Place::Folder(_) => self.within,
            Place::Directory(_) => self.order,
        };
        let copy = match engine::prepare(source, &target, order)? {
            Prepared::InPlace => return Ok(true),
            Prepared::Apart(copy) => copy,
        };
        match self.make_way(&mut target, keep) {
            Ok(true) => copy.publish(&target),
            Ok(false) => {
                copy.discard(spot.directory);
                Ok(false)
            }
            Err(fail) => {
                copy.interrupt(spot.directory);
                Err(fail)
            }
        }
    }

    /// Only now, with the copy complete, is what stands there kept: until then nothing changes.
    /// False when that has come meanwhile and is to stay.
    fn make_way(&self, target: &mut Target, keep: Keep<'_>) -> Result<bool> {
        if self.keeps_backups() && !target.check_standing()? {
            return Ok(false);
        }
        target.existing = keep()?;
        Ok(true)
    }

    /// Removes what dead copies have left where this one goes; in a new directory is none. True
    /// when interrupted ones are there.
    fn tidy(&self, spot: Spot<'_>) -> Result<bool> {
        match spot.holder {
            Place::Folder(folder) if folder.made => Ok(false),
            _ => leftovers::visit(spot.directory, self.order.progress),
        }
    }

    /// Puts something at a name, and removes what an interrupted copy to that has left.
    pub(super) fn instead_of_parts(
        &self,
        spot: Spot<'_>,
        put: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        let parts = self.tidy(spot)?;
        let placed = put()?;
        if parts && placed {
            engine::abandon(spot.directory, spot.name);
        }
        Ok(placed)
    }

    /// What becomes of what somebody else puts where this source goes, meanwhile.
    pub(super) fn newcomer(&self, source: &Stat, spot: Spot<'_>) -> Newcomer {
        let options = self.order.options;
        let stays_from = match (options.no_clobber, options.update) {
            (true, _) => Some((i64::MIN, 0)),
            (false, true) => Some(times::modified_as_kept(source, spot.directory)),
            (false, false) => None,
        };
        Newcomer {
            stays_from,
            needs_backup: self.keeps_backups(),
        }
    }

    fn keeps_backups(&self) -> bool {
        self.order.options.backup != Backup::None
    }

    /// Whether what stands there is to stay, by `no_clobber` or `update`.
    pub(super) fn stays(&self, source: &Stat, spot: Spot<'_>) -> Result<bool> {
        let Some(existing) = spot.existing else {
            if self.names.is_reserved(spot.directory, spot.name) {
                return Err(Fail::new(Errno::EXIST, "open")
                    .because("the name of the control file, or of the folder of figures"));
            }
            return Ok(false);
        };
        let options = self.order.options;
        let is_new_enough = || times::is_no_older(existing, source, spot.directory);
        if options.no_clobber || options.update && is_new_enough() {
            return Ok(true);
        }
        let refused =
            match file_type(existing) {
                _ if same_file(existing, source) => Fail::new(Errno::INVAL, "copy")
                    .because("source and destination are the same file"),
                FileType::Directory => {
                    Fail::new(Errno::ISDIR, "open").because("a directory stands at the destination")
                }
                FileType::RegularFile | FileType::Symlink => return Ok(false),
                _ if file_type(source) != FileType::RegularFile => return Ok(false),
                _ => Fail::new(Errno::INVAL, "open")
                    .because("a special file stands at the destination"),
            };
        Err(refused)
    }
}

/// What stands at a name; nothing is no error.
pub(super) fn look(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Fail::new(errno, "fstatat").because("the destination")),
    }
}

/// Opens a regular file; `None` when the listing was wrong about it.
pub(super) fn open_regular(directory: BorrowedFd<'_>, name: &CStr) -> Result<Option<Source>> {
    let file = match openat(directory, name, READ, Mode::empty()) {
        Ok(file) => file,
        // A link now, or a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno).or_fail("open"),
    };
    let stat = fstat(&file).or_fail("fstat")?;
    let regular = file_type(&stat) == FileType::RegularFile;
    Ok(regular.then_some(Source { file, stat }))
}
