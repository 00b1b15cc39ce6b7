//! How what was made comes to its name.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, Stat, fstat, linkat, mknodat, openat, readlinkat,
    renameat, renameat_with, symlinkat, unlinkat,
};

use super::backup;
use super::folder::id;
use super::job::{FIND, Job, Keep, Place, Spot, look};
use super::links::{Copied, Turn};
use crate::copy::attributes;
use crate::copy::leftovers::hidden_name;
use crate::copy::resolve::{file_type, same_file};
use crate::sys::{Errno, Fail, OrFail, Result};

impl Job<'_> {
    /// Copies a file by the first of its names, and links the others to that.
    pub(super) fn once(
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
    pub(super) fn node(&self, source: BorrowedFd<'_>, stat: &Stat, spot: Spot<'_>) -> Result<bool> {
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
    pub(super) fn place(
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
