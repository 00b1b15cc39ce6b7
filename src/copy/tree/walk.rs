//! Walks a tree, makes its directories, and hands its files to the workers.
//!
//! Depth first, with one stack of directories, of which the deepest few are open: those above are
//! opened again by `..` on the way back, and their listing goes on where it was.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RawDir, SeekFrom, Stat, chmodat, fstat, mkdirat, openat, seek,
    statat,
};

use super::folder::{Base, Folder, LIST, Open, PLACE, id};
use super::job::Job;
use super::nursery;
use super::pool::{Batch, Entry, Pool, Work};
use crate::copy::attributes;
use crate::copy::engine::small::Small;
use crate::copy::leftovers;
use crate::copy::publish;
use crate::copy::resolve::{file_type, proc_name};
use crate::sys::{Errno, Fail, OrFail, Result, umask};

/// Levels that are open, besides the top.
const OPEN: usize = 16;
/// Files of one directory that are handed over at once: mostly all of them, so that two workers are
/// in different directories. In one, each new name on XFS waits for the same allocation group
/// (measured: 0.34 s for 10,000 files with one worker, 0.42 s with two in the same directories, a
/// quarter of it in `xfs_read_agi`).
const BATCH: usize = 512;
/// Bytes of one getdents(2).
pub(super) const LISTING: usize = 32 << 10;

/// One walk through one source.
pub(super) struct Walk<'a> {
    job: &'a Job<'a>,
    pool: &'a Pool,
    small: &'a mut Small,
    stack: Vec<Level>,
    /// The copy's top: not to be met in the source.
    top: (u64, u64),
    device: u64,
    buffer: Vec<MaybeUninit<u8>>,
}

/// What was read of a listing, each name with the position after it.
pub(super) type Entries = VecDeque<(Entry, u64)>;

struct Level {
    folder: Arc<Folder>,
    /// The top, and the deepest [`OPEN`].
    open: Option<Arc<Open>>,
    /// Still to be looked at.
    entries: Entries,
    /// The position after what was looked at last.
    position: u64,
    /// Files that are not yet handed over.
    files: Vec<Entry>,
}

impl Level {
    /// Of which so much of the listing has been read.
    fn new(open: Open, entries: Entries) -> Self {
        Self {
            folder: Arc::clone(&open.folder),
            open: Some(Arc::new(open)),
            entries,
            position: 0,
            files: Vec::new(),
        }
    }
}

impl<'a> Walk<'a> {
    /// From a directory that is open on both sides.
    pub(super) fn new(job: &'a Job<'a>, pool: &'a Pool, small: &'a mut Small, top: Open) -> Self {
        let (device, copy) = (id(&top.folder.stat).0, top.folder.copy);
        Self {
            job,
            pool,
            small,
            stack: vec![Level::new(top, Entries::new())],
            top: copy,
            device,
            buffer: vec![MaybeUninit::uninit(); LISTING],
        }
    }

    /// To the end, or until cancelled; what was begun gets its attributes in either case.
    pub(super) fn run(&mut self) {
        while !self.stack.is_empty() {
            if self.job.order.progress.check().is_err() {
                return self.give_up();
            }
            match self.next() {
                Ok(Some(entry)) => self.entry(entry),
                Ok(None) => self.ascend(),
                Err(fail) => {
                    self.failed(OsStr::new(""), fail);
                    if let Some(level) = self.stack.last() {
                        level.folder.fall_short();
                    }
                    self.ascend();
                }
            }
        }
    }

    fn failed(&self, name: &OsStr, fail: Fail) {
        let folder = self.stack.last().map(|level| &level.folder);
        self.job.failed(folder, name, fail);
    }

    /// The next name in the deepest directory.
    fn next(&mut self) -> Result<Option<Entry>> {
        let Some(level) = self.stack.last_mut() else {
            return Ok(None);
        };
        if level.entries.is_empty()
            && let Some(open) = &level.open
        {
            list(open.source.as_fd(), &mut self.buffer, &mut level.entries)?;
        }
        Ok(level.entries.pop_front().map(|(entry, after)| {
            level.position = after;
            entry
        }))
    }

    fn entry(&mut self, mut entry: Entry) {
        let Some(open) = self.stack.last().and_then(|level| level.open.clone()) else {
            return;
        };
        if entry.kind == FileType::Unknown {
            match statat(&open.source, &entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => entry.kind = file_type(&stat),
                // What opens it will say it better.
                Err(_) => entry.kind = FileType::RegularFile,
            }
        }
        let name = entry.name.to_bytes();
        let is_directory = entry.kind == FileType::Directory;
        let path = || open.folder.path_within(name).into();
        if self.job.exclude.leaves_out(name, is_directory, path) {
            return;
        }
        self.job.order.progress.add_files_total(1);
        if !is_directory {
            return self.file(entry);
        }
        let name = OsStr::from_bytes(name);
        match self.enter(&open, name) {
            Ok(Some((open, listed))) => self.descend(Level::new(open, listed)),
            Ok(None) => {}
            Err(fail) => self.failed(name, fail),
        }
    }

    fn file(&mut self, entry: Entry) {
        let Some(level) = self.stack.last_mut() else {
            return;
        };
        level.files.push(entry);
        if level.files.len() >= BATCH {
            let last = self.stack.len() - 1;
            self.submit(last);
        }
    }

    /// Hands over the files of a level.
    fn submit(&mut self, level: usize) {
        let level = &mut self.stack[level];
        if let (Some(open), false) = (&level.open, level.files.is_empty()) {
            let batch = Batch {
                open: Arc::clone(open),
                entries: std::mem::take(&mut level.files),
            };
            self.pool.submit(self.job, Work::Files(batch), self.small);
        }
    }

    /// Opens a directory and makes its copy. `None` where there is nothing to go into, else it is
    /// open, and so much of its listing has been read.
    fn enter(&mut self, open: &Arc<Open>, name: &OsStr) -> Result<Option<(Open, Entries)>> {
        let source = openat(&open.source, name, LIST, Mode::empty()).or_fail("open")?;
        let stat = fstat(&source).or_fail("fstat")?;
        if id(&stat) == self.top {
            return Err(Fail::new(Errno::INVAL, "copy").because("a directory into itself"));
        }
        let is_elsewhere = id(&stat).0 != self.device;
        let (listed, whole) = match is_elsewhere || !nursery::suits(self.job, open, name)? {
            true => (Entries::new(), false),
            false => self.listing(source.as_fd())?,
        };
        if whole && nursery::is_one(&listed) {
            self.raise(open, name, (source, stat), listed);
            return Ok(None);
        }
        let above = Some(Arc::clone(&open.folder));
        let stands = !open.folder.made;
        let entered = self.job.enter(
            (source, stat),
            (open.copy.as_fd(), name, stands),
            |stat, copy, made| Folder::new(above, name.to_owned(), None, stat, copy, made),
        )?;
        if self.job.order.options.one_file_system && is_elsewhere {
            self.job.leave(&entered);
            return Ok(None);
        }
        Ok(Some((entered, listed)))
    }

    /// The beginning of a listing, all of it if it is not much, and whether it is. One that can't be
    /// read is read again, and found out, when the directory has its copy.
    fn listing(&mut self, source: BorrowedFd<'_>) -> Result<(Entries, bool)> {
        let mut listed = Entries::new();
        let mut whole = Ok(false);
        // One call tells as little as it likes: of long names, or by FUSE, a few dozen.
        while matches!(whole, Ok(false)) && listed.len() <= nursery::MOST {
            whole = list(source, &mut self.buffer, &mut listed);
        }
        if whole.is_err() {
            seek(source, SeekFrom::Start(0)).or_fail("lseek")?;
            listed.clear();
        }
        Ok((listed, whole.unwrap_or(false)))
    }

    /// Hands over a directory with all that is in it.
    fn raise(
        &mut self,
        open: &Arc<Open>,
        name: &OsStr,
        (source, stat): (OwnedFd, Stat),
        listed: Entries,
    ) {
        let exclude = &self.job.exclude;
        let stays = |entry: &Entry| {
            let path = || {
                let within = [name.as_bytes(), b"/", entry.name.to_bytes()].concat();
                open.folder.path_within(&within).into()
            };
            !exclude.leaves_out(entry.name.to_bytes(), false, path)
        };
        let entries: Vec<_> = listed.into_iter().map(|(entry, _)| entry).collect();
        let entries: Vec<_> = entries.into_iter().filter(stays).collect();
        self.job
            .order
            .progress
            .add_files_total(entries.len() as u64);
        let nursery = nursery::Nursery {
            above: Arc::clone(open),
            name: name.to_owned(),
            source,
            stat,
            entries,
        };
        self.pool
            .submit(self.job, Work::Nursery(nursery), self.small);
    }

    fn descend(&mut self, level: Level) {
        self.stack.push(level);
        let Some(far) = self
            .stack
            .len()
            .checked_sub(OPEN + 1)
            .filter(|far| *far > 0)
        else {
            return;
        };
        self.submit(far);
        let level = &mut self.stack[far];
        level.open = None;
        level.entries = VecDeque::new();
    }

    /// The deepest directory is listed; on in the one above.
    fn ascend(&mut self) {
        self.submit(self.stack.len() - 1);
        let Some(done) = self.stack.pop() else {
            return;
        };
        let Some(open) = done.open else {
            return;
        };
        if let Some(above) = self.stack.last_mut()
            && above.open.is_none()
        {
            match reopen(&open, &above.folder, above.position) {
                Ok(again) => above.open = Some(Arc::new(again)),
                Err(fail) => self.lost(&fail),
            }
        }
        self.job.leave(&open);
    }

    /// Directories whose way is lost are given up, down to one that is open.
    fn lost(&mut self, fail: &Fail) {
        while self.stack.last().is_some_and(|level| level.open.is_none()) {
            self.failed(OsStr::new(""), fail.clone());
            self.stack.pop();
        }
    }

    /// Cancelled: what stands open gets its attributes.
    fn give_up(&mut self) {
        self.job.stop();
        while let Some(level) = self.stack.pop() {
            if let Some(open) = level.open {
                open.folder.fall_short();
                self.job.leave(&open);
            }
        }
    }
}

/// Opens the directory above again, with its listing where it was left.
fn reopen(open: &Open, folder: &Arc<Folder>, position: u64) -> Result<Open> {
    let above = open.above(folder)?;
    seek(&above.source, SeekFrom::Start(position)).or_fail("lseek")?;
    Ok(above)
}

/// Reads on in a listing, by one call that tells of something; true at its end.
pub(super) fn list(
    directory: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    entries: &mut VecDeque<(Entry, u64)>,
) -> Result<bool> {
    let before = entries.len();
    let mut listing = RawDir::new(directory, buffer);
    while let Some(entry) = listing.next() {
        let entry = entry.or_fail("getdents")?;
        let (name, kind) = (entry.file_name(), entry.file_type());
        if name != c"." && name != c".." {
            let name = CString::from(name);
            entries.push_back((Entry { name, kind }, entry.next_entry_cookie()));
        }
        // Another call would lose what this one has read, when it fails.
        if listing.is_buffer_empty() && entries.len() > before {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Job<'_> {
    /// Makes the copy of a directory, or takes the one that stands there.
    ///
    /// # Errors
    /// ENOTDIR when something else stands there, EEXIST for a reserved name, those of mkdirat(2).
    pub(super) fn enter(
        &self,
        (source, stat): (OwnedFd, Stat),
        (directory, name, may_stand): (BorrowedFd<'_>, &OsStr, bool),
        folder: impl FnOnce(Stat, (u64, u64), (bool, bool)) -> Arc<Folder>,
    ) -> Result<Open> {
        let reserved = self.names.is_reserved(directory, name);
        if reserved && !(may_stand && super::job::look(directory, name)?.is_some()) {
            return Err(Fail::new(Errno::EXIST, "mkdirat")
                .because("the name of the control file, or of the folder of figures"));
        }
        let mode = match self.order.options.preserve.mode {
            true => 0o700,
            false => stat.st_mode & 0o777 | 0o700,
        };
        let made = match mkdirat(directory, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno).or_fail("mkdirat"),
        };
        let copy = match openat(directory, name, PLACE, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Fail::new(Errno::NOTDIR, "open")
                    .because("what stands at the destination is no directory"));
            }
            other => other.or_fail("open")?,
        };
        if made {
            self.names.published(directory, name);
        }
        self.open((source, stat), copy, made, folder)
    }

    /// A directory and its copy, both open.
    ///
    /// # Errors
    /// EINVAL when they are the same.
    pub(super) fn open(
        &self,
        (source, stat): (OwnedFd, Stat),
        copy: OwnedFd,
        made: bool,
        folder: impl FnOnce(Stat, (u64, u64), (bool, bool)) -> Arc<Folder>,
    ) -> Result<Open> {
        let place = fstat(&copy).or_fail("fstat")?;
        if id(&place) == id(&stat) {
            return Err(Fail::new(Errno::INVAL, "copy")
                .because("source and destination are the same directory"));
        }
        if made && place.st_mode & 0o700 != 0o700 {
            // A mask that takes from the owner: he gets it back when all is done.
            let mode = Mode::from_raw_mode(place.st_mode & 0o7777 | 0o700);
            chmodat(CWD, proc_name(copy.as_fd()), mode, AtFlags::empty()).or_fail("fchmodat")?;
        }
        if !made {
            // Where no file goes nobody else would look.
            leftovers::visit(copy.as_fd(), self.order.progress)?;
        }
        let gives_acl = attributes::gives_acl(copy.as_fd());
        let folder = folder(stat, id(&place), (made, gives_acl));
        Ok(Open {
            folder,
            source,
            copy,
        })
    }

    /// Somebody is done with a directory; the last gives it its attributes, and counts it.
    pub(super) fn leave(&self, open: &Open) {
        if !open.folder.leave() {
            return;
        }
        match self.finish(open) {
            Ok(()) if open.folder.falls_short() => {}
            Ok(()) => self.order.progress.file_done(),
            Err(fail) => self.failed(Some(&open.folder), OsStr::new(""), fail),
        }
        self.names.changed(open.folder.copy, false);
    }

    fn finish(&self, open: &Open) -> Result<()> {
        let (options, stat) = (self.order.options, &open.folder.stat);
        let copy = open.copy.as_fd();
        // Opened as long as it may be read.
        let names = options.sync.then(|| publish::Names::of(copy)).transpose()?;
        attributes::keep_found(open.source.as_fd(), stat, copy, options.preserve)?;
        if open.folder.made && !options.preserve.mode {
            let denied = 0o700 & !(stat.st_mode & !umask::of_thread()?);
            if denied != 0 {
                let own = fstat(copy).or_fail("fstat")?.st_mode & 0o7777 & !denied;
                let mode = Mode::from_raw_mode(own);
                chmodat(CWD, proc_name(copy), mode, AtFlags::empty()).or_fail("fchmodat")?;
            }
        }
        names.map_or(Ok(()), |names| names.sync())
    }
}

/// A base for the top of a tree.
pub(super) fn base(directory: &Arc<OwnedFd>, name: &OsStr) -> Option<Base> {
    Some(Base {
        directory: Arc::clone(directory),
        name: name.to_owned(),
    })
}
