//! What becomes of one name: a file, a link, a special file.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, mknodat, openat, readlinkat,
    renameat, renameat_with, statat, symlinkat, unlinkat,
};

use super::exclude::Exclude;
use super::folder::{Folder, Open, id, shown};
use super::links::{Copied, Holder, Links, Turn};
use super::pool::{Batch, Entry};
use super::unsynced::Unsynced;
use super::{Names, backup, times};
use crate::copy::engine::small::{self, Small};
use crate::copy::engine::{self, Order, Prepared};
use crate::copy::leftovers::{self, hidden_name};
use crate::copy::resolve::{Newcomer, Source, Target, file_type, same_file};
use crate::copy::{attributes, options::Backup};
use crate::sys::{Errno, Fail, OrFail, Result};

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Finds a file, and does nothing with it.
const FIND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Everything that is copied by one call.
pub(super) struct Job<'a> {
    pub(super) names: &'a dyn Names,
    pub(super) order: &'a Order<'a>,
    /// How the files of a tree are copied: those who copy several at a time have one worker each.
    pub(super) within: &'a Order<'a>,
    pub(super) exclude: Exclude,
    links: Links,
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
    like_backups: Mutex<HashSet<((u64, u64), OsString)>>,
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
type Keep<'a> = &'a mut dyn FnMut() -> Result<Option<Stat>>;

/// The directory of a spot, as hard links remember it.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Folder(&'a Arc<Folder>),
    Directory(&'a Arc<OwnedFd>),
}

impl Place<'_> {
    fn holder(self) -> Holder {
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
    fn instead_of_parts(&self, spot: Spot<'_>, put: impl FnOnce() -> Result<bool>) -> Result<bool> {
        let parts = self.tidy(spot)?;
        let placed = put()?;
        if parts && placed {
            engine::abandon(spot.directory, spot.name);
        }
        Ok(placed)
    }

    /// What becomes of what somebody else puts where this source goes, meanwhile.
    fn newcomer(&self, source: &Stat, spot: Spot<'_>) -> Newcomer {
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

    /// Copies a file by the first of its names, and links the others to that.
    fn once(
        &self,
        source: &Stat,
        spot: Spot<'_>,
        copy: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        if !self.order.options.preserve.links || source.st_nlink < 2 {
            return copy();
        }
        match self.links.meet(source, self.order.progress)? {
            Turn::First => {
                // Those who wait for it would wait for ever.
                let done = catch_unwind(AssertUnwindSafe(copy)).unwrap_or_else(|_| {
                    Err(Fail::new(Errno::IO, "copy").because("a defect; see the log"))
                });
                // What stayed is another's.
                let place = matches!(done, Ok(true)).then(|| {
                    let holder = spot.holder.holder();
                    (holder, spot.directory, spot.name.to_owned())
                });
                self.links.copied(source, place);
                done
            }
            // What was made is gone, or can't be reached: then this is a copy of its own.
            Turn::Link(first) => match first.find() {
                Ok(Some(holder)) => self.link(holder.as_fd(), &first, (source, spot), copy),
                Ok(None) | Err(_) => copy(),
            },
        }
    }

    fn link(
        &self,
        holder: BorrowedFd<'_>,
        first: &Copied,
        (source, spot): (&Stat, Spot<'_>),
        copy: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        let put = |name: &OsStr| {
            linkat(holder, &first.name, spot.directory, name, AtFlags::empty()).or_fail("linkat")
        };
        let linked = self.instead_of_parts(spot, || {
            self.place(spot, source, |keep| self.replace(spot, source, keep, put))
        });
        // It has another name more.
        self.names.changed(first.id, false);
        match linked {
            // More names than the file system allows, or none (vfat).
            Err(Fail {
                errno: Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP,
                ..
            }) => copy(),
            linked => linked,
        }
    }

    /// Puts something at a name: at once where nothing stands, else under a hidden name that is then
    /// renamed over what stands there; not over what came meanwhile and is to stay (false).
    fn replace(
        &self,
        spot: Spot<'_>,
        source: &Stat,
        keep: Keep<'_>,
        put: impl Fn(&OsStr) -> Result<()>,
    ) -> Result<bool> {
        if spot.existing.is_none() {
            match put(spot.name) {
                // Somebody was faster.
                Err(fail) if fail.errno == Errno::EXIST => {}
                other => return other.map(|()| true),
            }
            if let Some(found) = look(spot.directory, spot.name)?
                && !self.newcomer(source, spot).gives_way(&found)?
            {
                return Ok(false);
            }
        }
        let hidden: OsString = loop {
            let hidden = hidden_name();
            match put(&hidden) {
                Err(fail) if fail.errno == Errno::EXIST => {}
                other => break other.map(|()| hidden)?,
            }
        };
        let renamed = self.may_replace(spot, source).and_then(|may| {
            if may {
                let is_free = keep()?.is_none() && spot.existing.is_some();
                rename(spot, &hidden, is_free).or_fail("renameat")?;
            }
            Ok(may)
        });
        // Over another name of the same file a rename does nothing (rename(2)).
        let _ = unlinkat(spot.directory, &hidden, AtFlags::empty());
        renamed
    }

    /// Looks again at what stood there: another may have come meanwhile that is to stay.
    fn may_replace(&self, spot: Spot<'_>, source: &Stat) -> Result<bool> {
        match (spot.existing, look(spot.directory, spot.name)?) {
            (Some(before), Some(found)) if !same_file(before, &found) => {
                self.newcomer(source, spot).gives_way(&found)
            }
            _ => Ok(true),
        }
    }

    /// Makes a symbolic link or a special file.
    fn node(&self, source: BorrowedFd<'_>, stat: &Stat, spot: Spot<'_>) -> Result<bool> {
        if self.stays(stat, spot)? {
            return Ok(false);
        }
        let make = |name: &OsStr| self.make(source, stat, spot.directory, name);
        self.instead_of_parts(spot, || {
            self.once(stat, spot, || {
                self.place(spot, stat, |keep| self.replace(spot, stat, keep, make))
            })
        })
    }

    fn make(
        &self,
        source: BorrowedFd<'_>,
        stat: &Stat,
        directory: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<()> {
        let kind = file_type(stat);
        if kind == FileType::Symlink {
            let text = readlinkat(source, c"", Vec::new()).or_fail("readlinkat")?;
            symlinkat(text, directory, name).or_fail("symlinkat")?;
        } else {
            // With a mode that is to be kept it gets what others may do at last.
            let most = if self.order.options.preserve.mode {
                0o700
            } else {
                0o777
            };
            let mode = Mode::from_raw_mode(stat.st_mode & most);
            mknodat(directory, name, kind, mode, stat.st_rdev).or_fail("mknodat")?;
        }
        let made = self.dress(source, stat, directory, name);
        if made.is_err() {
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
        made
    }

    /// Gives a new link or special file its attributes, by a descriptor: the name may mean
    /// something else by now.
    fn dress(
        &self,
        source: BorrowedFd<'_>,
        stat: &Stat,
        directory: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<()> {
        let made = openat(directory, name, FIND, Mode::empty()).or_fail("open")?;
        let own = fstat(&made).or_fail("fstat")?;
        if (file_type(&own), own.st_rdev) != (file_type(stat), stat.st_rdev) || own.st_nlink != 1 {
            return Err(Fail::new(Errno::BUSY, "open").because("somebody replaced what was made"));
        }
        let preserve = self.order.options.preserve;
        attributes::keep_found(source, stat, made.as_fd(), preserve)
    }

    /// Puts something at a name. With `sync`, that name is on disk when its directory is done.
    fn place(
        &self,
        spot: Spot<'_>,
        source: &Stat,
        put: impl FnOnce(Keep<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let placed = self.put(spot, source, put)?;
        if placed && self.order.options.backup.may_be_called(spot.name) {
            let directory = id(&fstat(spot.directory).or_fail("fstat")?);
            let place = (directory, spot.name.to_owned());
            self.like_backups.lock().insert(place);
        }
        match spot.holder {
            Place::Directory(directory) if self.order.options.sync => {
                let progress = self.order.progress;
                progress.at_length(|| self.unsynced.add(directory))?;
            }
            Place::Directory(_) | Place::Folder(_) => {}
        }
        Ok(placed)
    }

    /// Refuses a backup by a name that this job has just given to a copy.
    fn spare_own_copy(&self, spot: Spot<'_>) -> Result<()> {
        if self.like_backups.lock().is_empty() {
            return Ok(());
        }
        let kept = backup::name_of(spot.directory, spot.name, &self.order.options.backup)?;
        let Some(kept) = kept else { return Ok(()) };
        let place = (id(&fstat(spot.directory).or_fail("fstat")?), kept);
        if self.like_backups.lock().contains(&place) {
            return Err(Fail::new(Errno::EXIST, "copy")
                .because("the backup would take the place of another copy of this job"));
        }
        Ok(())
    }

    /// Has `put` replace what stands there, which it has kept before; takes the backup back when it
    /// fails, and tells who is to know.
    fn put(
        &self,
        spot: Spot<'_>,
        source: &Stat,
        put: impl FnOnce(Keep<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let options = self.order.options;
        let Some(existing) = spot.existing else {
            let placed = put(&mut || Ok(None))?;
            self.names.published(spot.directory, spot.name);
            return Ok(placed);
        };
        backup::check(spot.directory, spot.name, &options.backup, source)?;
        let mut made = None;
        let put = put(&mut || {
            self.spare_own_copy(spot)?;
            made = backup::make(spot.directory, spot.name, &options.backup, source)?;
            let stands = made.as_ref().is_none_or(backup::Made::still_stands);
            Ok(stands.then_some(*existing))
        });
        if let Some(made) = &made {
            match put {
                Ok(true) => made.settle(spot.directory),
                Ok(false) | Err(_) => made.take_back(spot.directory, spot.name),
            }
            self.names.published(spot.directory, made.name());
        }
        self.names.published(spot.directory, spot.name);
        // It was written into, or has one name less, or a backup's instead.
        self.names.changed(id(existing), options.inplace);
        put
    }
}

/// Gives what has a hidden name its own. Where it `is_free` it is not to be another's by now.
fn rename(spot: Spot<'_>, hidden: &OsStr, is_free: bool) -> rustix::io::Result<()> {
    let (directory, name) = (spot.directory, spot.name);
    if is_free {
        match renameat_with(directory, hidden, directory, name, RenameFlags::NOREPLACE) {
            // Not on this file system.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            other => return other,
        }
    }
    renameat(directory, hidden, directory, name)
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
