//! Files, directories with what is in them, links and special files: what one `SRC... DST` names.
//!
//! Names are resolved by whoever knows what they mean (a [`Names`]); beneath what it found every
//! step is one component on a directory's descriptor, and no symbolic link is followed.

mod backup;
mod census;
pub(super) mod exclude;
mod folder;
mod job;
mod links;
mod nursery;
mod pool;
mod put;
mod times;
mod unsynced;
mod walk;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::{CWD, FileType, Mode, Stat, fstat, openat};

use self::census::Census;
use self::folder::{Folder, LIST, PLACE, id};
use self::job::{Job, Place, Spot, look};
use self::pool::Pool;
use self::walk::{Walk, base};
use super::engine::Order;
use super::engine::small::Small;
use super::options::Backup;
use super::resolve::{Target, file_type, proc_name};
use crate::sys::{Errno, Fail, OrFail, Result, umask};

/// Threads where nobody says how many: from the third on nothing is gained, for those who make
/// names wait for each other in the file system.
const WORKERS: usize = 2;

/// What the names of a copy mean: beneath a mount's root, or as everywhere.
///
/// Called under the credentials of the one who copies, from several threads.
pub trait Names: Sync {
    /// Finds what is to be copied, and opens it as an `O_PATH` descriptor. A symbolic link at the
    /// end of the name is what is found, unless it is to be followed or a slash comes after it.
    ///
    /// # Errors
    /// ENOENT, EACCES, ELOOP, ENAMETOOLONG as the kernel has them; EXDEV for what lies outside.
    fn source(&self, name: &[u8], follow: bool) -> Result<Found>;

    /// Finds where a copy goes. A link to a directory leads there; one to anything else is
    /// followed if `follow` says so, else is what stands there.
    ///
    /// # Errors
    /// As [`Names::source`]; ENOENT when the directory that would hold it is missing, and for a
    /// link to nothing that would be followed.
    fn destination(&self, name: &[u8], follow: bool) -> Result<Destination>;

    /// Whether `name` in this directory is somebody else's and can't be made (`.copy`, `.corfs`).
    fn is_reserved(&self, directory: BorrowedFd<'_>, name: &OsStr) -> bool;

    /// The file creation mask of the one who copies.
    fn umask(&self) -> u32;

    /// A name has come to mean something else. Called for each as it happens (a list would grow
    /// with the tree), by any thread at work, under the credentials of the one who copies, with no
    /// lock held; the copy goes on when it returns.
    fn published(&self, directory: BorrowedFd<'_>, name: &OsStr);

    /// A file that stood there, by device and inode, has changed under its name: its attributes,
    /// and its bytes if `bytes` says so. Called as [`Names::published`] is.
    fn changed(&self, _file: (u64, u64), _bytes: bool) {}
}

/// Something to be copied.
#[derive(Debug)]
pub struct Found {
    /// `O_PATH`, of the file itself (also of a symbolic link).
    pub file: OwnedFd,
    /// What it is.
    pub stat: Stat,
    /// Its last name, under which a directory takes it; empty for `.` and `..`, whose contents
    /// go into the directory itself, as with cp.
    pub name: OsString,
}

/// Where a copy goes.
#[derive(Debug)]
pub enum Destination {
    /// A directory that stands there, `O_PATH`.
    Directory(OwnedFd),
    /// A name at which no directory stands.
    Name {
        /// The directory and the name, and what stands there (a link is not followed in this).
        target: Box<Target>,
        /// A slash ends it: only a directory may be made there.
        only_directory: bool,
    },
}

/// Copies what is named, in order, to the destination: into it where a directory stands there
/// (unless `no_target_directory`), which must be so for more than one source.
///
/// Each regular file is whole or absent. What can't be copied is counted and told to
/// [`Progress::failed`](super::progress::Progress); the rest is copied all the same.
///
/// # Errors
/// For a single source that can't be begun its own error; ENOTDIR when there are several and the
/// destination is no directory; EINVAL for a directory into itself; EINTR when cancelled; else the
/// errno of the first that failed, with how many there were.
pub fn copy_all(
    sources: &[Vec<u8>],
    destination: &[u8],
    names: &dyn Names,
    order: &Order<'_>,
) -> Result<()> {
    let before = umask::of_thread()?;
    // A mode that is to be kept is given as it is.
    umask::set(match order.options.preserve.mode {
        true => 0,
        false => names.umask(),
    })?;
    let mut options = order.options.clone();
    if options.recursive {
        // The files of a tree share its workers, instead of each having several.
        let shared = u16::try_from(workers(order)).ok().and_then(NonZeroU16::new);
        options.workers = shared.or(options.workers);
    }
    let within = Order {
        options: &options,
        ..*order
    };
    let done = Job::new(names, order, &within).and_then(|job| job.all(sources, destination));
    umask::set(before)?;
    done
}

/// What the sources of one line have come to so far. Directories by device and inode.
#[derive(Default)]
struct Line {
    /// Names that sources have become, and which sources.
    taken: HashMap<((u64, u64), OsString), (u64, u64)>,
    /// Where they went. Who remembers one of them is to hold it once, and not once for each source.
    directories: HashMap<(u64, u64), Weak<OwnedFd>>,
}

impl Line {
    /// The descriptor that is held of a directory already, or else this one.
    fn held(&mut self, directory: OwnedFd) -> Result<Arc<OwnedFd>> {
        let id = id(&fstat(&directory).or_fail("fstat")?);
        if let Some(held) = self.directories.get(&id).and_then(Weak::upgrade) {
            return Ok(held);
        }
        let directory = Arc::new(directory);
        self.directories.insert(id, Arc::downgrade(&directory));
        Ok(directory)
    }

    fn named(&mut self, target: Target) -> Result<Goal> {
        let directory = self.held(target.directory)?;
        Ok(Goal::Name(directory, target.name, target.existing))
    }
}

/// Where one source goes.
enum Goal {
    /// Into this directory, which is its copy.
    Into(Arc<OwnedFd>),
    /// To a name in a directory.
    Name(Arc<OwnedFd>, OsString, Option<Stat>),
}

impl Job<'_> {
    fn all(&self, sources: &[Vec<u8>], destination: &[u8]) -> Result<()> {
        let progress = self.order.progress;
        progress.begin_work();
        let census = Census::default();
        let done = std::thread::scope(|scope| {
            let is_tree = self.order.options.recursive || sources.len() > 1;
            let _ending = is_tree.then(|| census.begin(scope, self, sources));
            self.each(sources, destination)
        });
        progress.end_work();
        done?;
        progress.set_totals_known();
        let outcome = self.outcome();
        // Whatever failed, the rest is to stay. Cancelled late, it may all be there, and not on disk.
        let synced = match progress.is_cancelled() && !self.unsynced.is_empty() {
            true => progress.check(),
            false => progress.at_length(|| self.unsynced.sync()),
        };
        outcome.and(synced)
    }

    fn each(&self, sources: &[Vec<u8>], destination: &[u8]) -> Result<()> {
        let mut small = Small::new();
        let progress = self.order.progress;
        if let [source] = sources {
            progress.add_files_total(1);
            progress.set_one_file(true);
            return self.one(source, destination, &mut Line::default(), &mut small);
        }
        self.need_directory(sources, destination)?;
        let mut line = Line::default();
        for source in sources {
            progress.check()?;
            progress.add_files_total(1);
            if let Err(fail) = self.one(source, destination, &mut line, &mut small) {
                self.failed(None, bytes(source), fail);
            }
        }
        Ok(())
    }

    fn need_directory(&self, sources: &[Vec<u8>], destination: &[u8]) -> Result<()> {
        if sources.is_empty() {
            return Err(Fail::new(Errno::INVAL, "copy").because("no source"));
        }
        if self.order.options.no_target_directory {
            return Err(Fail::new(Errno::INVAL, "copy").because("several sources for one name"));
        }
        match self.names.destination(destination, true)? {
            Destination::Directory(_) => Ok(()),
            Destination::Name { .. } => Err(Fail::new(Errno::NOTDIR, "open")
                .because("several sources need a directory that stands there")),
        }
    }

    fn one(
        &self,
        source: &[u8],
        destination: &[u8],
        line: &mut Line,
        small: &mut Small,
    ) -> Result<()> {
        let recursive = self.order.options.recursive;
        let found = self.names.source(source, !recursive)?;
        match file_type(&found.stat) {
            FileType::RegularFile => {}
            FileType::Directory if !recursive => {
                return Err(Fail::new(Errno::ISDIR, "open").because("the source is a directory"));
            }
            _ if !recursive => {
                return Err(
                    Fail::new(Errno::INVAL, "open").because("the source is not a regular file")
                );
            }
            FileType::Directory => {
                self.order.progress.set_one_file(false);
                return self.tree(source, found, destination, line);
            }
            _ => {}
        }
        let Goal::Name(directory, name, existing) = self.goal(&found, destination, line)? else {
            return Err(
                Fail::new(Errno::ISDIR, "open").because("a directory stands at the destination")
            );
        };
        let spot = Spot {
            directory: directory.as_fd(),
            name: &name,
            existing: existing.as_ref(),
            holder: Place::Directory(&directory),
        };
        self.refuse_own_target(&found.stat, source, existing.as_ref())?;
        if !self.is_second(&found.stat, spot, line)? {
            let placed = self.found(found.file, &found.stat, spot, small)?;
            if placed {
                let place = (id(&fstat(spot.directory).or_fail("fstat")?), name.clone());
                line.taken.insert(place, id(&found.stat));
            }
        }
        self.order.progress.file_done();
        Ok(())
    }

    /// Whether a source was copied to this very name before. What one source of the line has just
    /// become is not replaced by another of the same name, or who copies and then removes all of them
    /// has lost one (so does cp). A numbered backup keeps both.
    ///
    /// # Errors
    /// EEXIST.
    fn is_second(&self, source: &Stat, spot: Spot<'_>, line: &Line) -> Result<bool> {
        let directory = id(&fstat(spot.directory).or_fail("fstat")?);
        let before = line.taken.get(&(directory, spot.name.to_owned()));
        let numbered = self.order.options.backup == Backup::Numbered;
        let Some(before) = before.filter(|_| spot.existing.is_some() && !numbered) else {
            return Ok(false);
        };
        if *before == id(source) {
            return Ok(true);
        }
        match self.stays(source, spot)? {
            true => Ok(false),
            false => Err(Fail::new(Errno::EXIST, "copy")
                .because("would replace what another source of the same name has just become")),
        }
    }

    /// Where `found` goes, as cp has it.
    fn goal(&self, found: &Found, destination: &[u8], line: &mut Line) -> Result<Goal> {
        let options = self.order.options;
        let is_directory = file_type(&found.stat) == FileType::Directory;
        // cp writes through a link, but replaces it by another link, and renames it for a backup.
        let follow =
            file_type(&found.stat) == FileType::RegularFile && options.backup == Backup::None;
        let inside = !options.no_target_directory && !found.name.is_empty();
        match self.names.destination(destination, follow)? {
            Destination::Directory(directory) if inside && !follow => {
                let existing = look(directory.as_fd(), &found.name)?;
                let directory = line.held(directory)?;
                Ok(Goal::Name(directory, found.name.clone(), existing))
            }
            Destination::Directory(_) if inside => {
                let name = join(destination, found.name.as_encoded_bytes());
                match self.names.destination(&name, follow)? {
                    Destination::Directory(directory) => Ok(Goal::Into(line.held(directory)?)),
                    Destination::Name { target, .. } => line.named(*target),
                }
            }
            Destination::Directory(directory) => Ok(Goal::Into(line.held(directory)?)),
            Destination::Name { target, .. } if is_directory => line.named(*target),
            Destination::Name {
                target,
                only_directory: false,
            } => line.named(*target),
            Destination::Name { .. } => {
                Err(Fail::new(Errno::NOENT, "open").because("a directory that is not there"))
            }
        }
    }

    fn tree(&self, source: &[u8], found: Found, destination: &[u8], line: &mut Line) -> Result<()> {
        let goal = self.goal(&found, destination, line)?;
        let (Goal::Into(holder) | Goal::Name(holder, ..)) = &goal;
        let holder = holder.as_fd();
        refuse_into_itself(&found.stat, holder)?;
        let flags = LIST - rustix::fs::OFlags::NOFOLLOW;
        let listed = openat(CWD, proc_name(found.file.as_fd()), flags, Mode::empty())
            .map_err(|errno| Fail::new(errno, "open").because("the source"))?;
        let stat = fstat(&listed).or_fail("fstat")?;
        let source = bytes(source).to_owned();
        let mut holder = None;
        let top = match goal {
            Goal::Into(directory) => {
                let copy = openat(&directory, c".", PLACE, Mode::empty()).or_fail("open")?;
                let base = base(&directory, OsStr::new(""));
                self.open((listed, stat), copy, false, |stat, copy, made| {
                    Folder::new(None, source, base, stat, copy, made)
                })?
            }
            Goal::Name(directory, name, existing) => {
                let base = base(&directory, &name);
                let place = (directory.as_fd(), &*name, existing.is_some());
                let top = self.enter((listed, stat), place, |stat, copy, made| {
                    Folder::new(None, source, base, stat, copy, made)
                })?;
                holder = Some(directory);
                top
            }
        };
        let pool = Pool::default();
        let workers = workers(self.order);
        self.order
            .progress
            .set_workers(u16::try_from(workers).unwrap_or(u16::MAX));
        pool.run(self, workers, |small| {
            Walk::new(self, &pool, small, top).run()
        });
        match holder {
            Some(holder) if self.order.options.sync => self.unsynced.add(&holder),
            _ => Ok(()),
        }
    }
}

/// Threads that copy a tree.
fn workers(order: &Order<'_>) -> usize {
    let auto = || std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS));
    order.options.workers.map_or_else(auto, |n| n.get().into())
}

fn bytes(name: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// Climbs from where the copy goes: the source must not be above it. By device and inode, which
/// bind mounts and links don't change.
///
/// # Errors
/// EINVAL.
fn refuse_into_itself(source: &Stat, holder: BorrowedFd<'_>) -> Result<()> {
    let mut at = openat(holder, c".", PLACE, Mode::empty()).or_fail("open")?;
    let mut here = id(&fstat(&at).or_fail("fstat")?);
    loop {
        if here == id(source) {
            return Err(Fail::new(Errno::INVAL, "copy").because("a directory into itself"));
        }
        // Where we may not look, the walk meets its own copy, if it is within the source.
        let Ok(above) = openat(&at, c"..", PLACE, Mode::empty()) else {
            return Ok(());
        };
        let stat = fstat(&above).or_fail("fstat")?;
        if id(&stat) == here {
            return Ok(());
        }
        (at, here) = (above, id(&stat));
    }
}

#[cfg(test)]
mod tests;
