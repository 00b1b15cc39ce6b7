//! One inode of the source, as long as the kernel knows it.
//!
//! There may be a million of them: what only few have (a descriptor, a version) is not inline.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags};
use xxhash_rust::xxh3::xxh3_64;

use crate::sys::handle::FileHandle;
use crate::sys::short::Short;
use crate::sys::{OrFail, Result};
use crate::window::FileId;

/// The number by which the kernel knows an inode.
pub type NodeId = u64;

/// A mark of an inode: used since the descriptors were last thinned out.
const TOUCHED: u8 = 1;
/// Used since the table was last pruned.
const USED: u8 = 2;
/// The next lookup of it gives another id.
const SUPERSEDED: u8 = 4;
/// Its last name went through the mount.
const NAMELESS: u8 = 8;

/// The root of the mirror.
pub const ROOT: NodeId = 1;

/// What identifies an inode, while a descriptor keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Inode number on its device.
    pub ino: u64,
    /// Device and mount, as the table numbers them; 0 are those of the root. By another mount the
    /// same file may be read-only.
    pub site: u32,
}

/// One inode of the source.
#[derive(Debug)]
pub struct Inode {
    /// The number by which the kernel knows it.
    pub id: NodeId,
    /// The key of its windows; unlike the id never used twice.
    pub file_id: FileId,
    /// Number, device and mount.
    pub key: Key,
    /// Its type, which never changes.
    pub kind: FileType,
    /// How many files are open on it.
    pub opens: AtomicU32,
    /// How often the kernel looked it up without forgetting it. Changed under the table's lock.
    pub(super) lookups: AtomicU64,
    /// What is remembered of it, in one byte: [`TOUCHED`], [`USED`], [`SUPERSEDED`],
    /// [`NAMELESS`].
    marks: AtomicU8,
    /// A leaf lock: nothing else is taken, and no system call made, under it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// Where it was last seen; the root has none.
    home: Option<Home>,
    /// What only those have that were opened.
    opened: Option<Box<OpenState>>,
}

/// What is known of an inode that is or was open.
#[derive(Debug, Default)]
struct OpenState {
    /// What the kernel's cached pages are of (see [`super::file`]).
    cached: Option<Digest>,
    /// While it is open.
    in_use: Option<Box<InUse>>,
}

/// What is known of an inode that is open, or has several names.
#[derive(Debug, Default)]
struct InUse {
    /// The descriptors of its open files.
    files: Vec<Weak<OwnedFd>>,
    /// The time of its last change as the kernel, which keeps what is written, last told it.
    kept: Option<KeptTime>,
    /// The name by which it was seen before it was linked under the one by which it is now.
    former: Option<Home>,
}

/// A time of change, and whether something has been written since that gave the file another.
#[derive(Clone, Copy, Debug)]
struct KeptTime {
    mtime: (i64, u32),
    overwritten: bool,
}

/// Size and times of a file: while these are equal, so are its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    size: i64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

/// A hash of a version, for those of which there may be a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(NonZeroU64);

impl Version {
    pub(super) fn digest(&self) -> Digest {
        let mut bytes = [0; 40];
        let (mtime, ctime) = (self.mtime, self.ctime);
        let numbers = [
            self.size.to_le_bytes(),
            mtime.0.to_le_bytes(),
            mtime.1.to_le_bytes(),
            ctime.0.to_le_bytes(),
            ctime.1.to_le_bytes(),
        ];
        bytes.copy_from_slice(numbers.as_flattened());
        Digest(NonZeroU64::new(xxh3_64(&bytes)).unwrap_or(NonZeroU64::MIN))
    }

    /// The version that `stat` shows.
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// How long it was from a former change to this one, in nanoseconds; less than nothing if the
    /// clock was set back.
    pub(super) fn after(&self, former: &Self) -> i64 {
        let nanoseconds = |(seconds, nanoseconds): (i64, u64)| {
            let seconds = seconds.saturating_mul(1_000_000_000);
            seconds.saturating_add_unsigned(nanoseconds)
        };
        nanoseconds(self.ctime).saturating_sub(nanoseconds(former.ctime))
    }

    /// When it was last changed, in seconds since 1970.
    pub(super) fn changed(&self) -> i64 {
        self.mtime.0.max(self.ctime.0)
    }
}

/// Where an inode's descriptor is.
#[derive(Debug)]
enum Place {
    Open(Arc<OwnedFd>),
    Parked(Parked),
    Gone,
}

/// What an inode is known by after its descriptor was closed: numbers are used again, handles and
/// birth times are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// To compare handles needs no privilege; to open them does.
    Handle(FileHandle),
    /// When it came to be, where the file system has no handles.
    Born(i64, u32),
    /// When it last changed, where the file system does not say when it came to be.
    Changed(i64, u32),
    /// Its name alone: the source went, or did not answer, before anything could be asked.
    Lost,
}

/// A name of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) parent: NodeId,
    name: Short,
}

impl Home {
    pub(super) fn new(parent: NodeId, name: &OsStr) -> Self {
        let name = Short::new(name.as_bytes());
        Self { parent, name }
    }

    pub(super) fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.as_bytes())
    }
}

/// What `Inode::found` found.
pub(super) enum Found {
    /// Its own descriptor, or that of an open file.
    Open(Arc<OwnedFd>),
    Parked(Parked),
    Gone,
}

/// By what an inode enters the table.
#[derive(Debug)]
pub(super) enum Entry {
    Open(OwnedFd),
    /// Only seen in a listing, where it was born then: most are never opened.
    Born(i64, u32),
    /// Never seen itself: its name was known.
    Unseen,
}

impl Inode {
    pub(super) fn new(
        id: NodeId,
        file_id: FileId,
        key: Key,
        kind: FileType,
        entry: Entry,
        home: Option<Home>,
    ) -> Self {
        let state = State {
            place: match entry {
                Entry::Open(fd) => Place::Open(Arc::new(fd)),
                Entry::Born(seconds, nanoseconds) => {
                    Place::Parked(Parked::Born(seconds, nanoseconds))
                }
                Entry::Unseen => Place::Parked(Parked::Lost),
            },
            home,
            opened: None,
        };
        Self {
            id,
            file_id,
            key,
            kind,
            opens: AtomicU32::new(0),
            lookups: AtomicU64::new(1),
            marks: AtomicU8::new(USED),
            state: Mutex::new(state),
        }
    }

    pub(super) fn found(&self) -> Found {
        let state = self.state.lock();
        match &state.place {
            Place::Open(fd) => {
                self.mark(TOUCHED);
                Found::Open(fd.clone())
            }
            // An open file may be of a source that was there before.
            Place::Parked(Parked::Lost) => Found::Parked(Parked::Lost),
            Place::Parked(parked) => match state.lent() {
                Some(fd) => Found::Open(fd),
                None => Found::Parked(parked.clone()),
            },
            Place::Gone => Found::Gone,
        }
    }

    /// When it was born, in seconds and nanoseconds, where the table knows it by that.
    pub(super) fn born(&self) -> Option<(i64, u32)> {
        match &self.state.lock().place {
            Place::Parked(Parked::Born(seconds, nanoseconds)) => Some((*seconds, *nanoseconds)),
            _ => None,
        }
    }

    /// The descriptor that is the table's own.
    pub(super) fn own(&self) -> Option<Arc<OwnedFd>> {
        match &self.state.lock().place {
            Place::Open(fd) => Some(fd.clone()),
            _ => None,
        }
    }

    /// Whether it must not be found again.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state.lock().place, Place::Gone)
    }

    /// Whether an open file would lend its descriptor.
    pub(super) fn is_lent(&self) -> bool {
        self.state.lock().is_lent()
    }

    /// Gives a parked inode a descriptor again; false when it has one or is gone.
    pub(super) fn adopt(&self, fd: &Arc<OwnedFd>) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.place, Place::Parked(_)) {
            return false;
        }
        state.place = Place::Open(fd.clone());
        true
    }

    /// Closes the descriptor, keeping what the inode is known by; false when there was none.
    pub(super) fn park(&self, parked: Parked) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.place, Place::Open(_)) {
            return false;
        }
        let old = std::mem::replace(&mut state.place, Place::Parked(parked));
        drop(state);
        drop(old);
        true
    }

    /// Lets go of the descriptor without asking the source anything, and returns it, to be closed
    /// by somebody who may wait.
    #[must_use]
    pub(super) fn lose(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        if matches!(state.place, Place::Gone) {
            return None;
        }
        match std::mem::replace(&mut state.place, Place::Parked(Parked::Lost)) {
            Place::Open(fd) => Some(fd),
            _ => None,
        }
    }

    /// Marks the inode as one that must not be found again; returns the descriptor that it had,
    /// to be closed without a lock.
    #[must_use]
    pub(super) fn end(&self) -> Option<Arc<OwnedFd>> {
        match std::mem::replace(&mut self.state.lock().place, Place::Gone) {
            Place::Open(fd) => Some(fd),
            _ => None,
        }
    }

    /// Remembers the descriptor of an open file.
    pub(super) fn lend(&self, fd: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        state.in_use().files.push(Arc::downgrade(fd));
    }

    /// Forgets the descriptor of an open file, which is about to be closed; true when the inode
    /// has no other from now on.
    pub(super) fn take_back(&self, fd: &Arc<OwnedFd>) -> bool {
        let mut state = self.state.lock();
        if let Some(opened) = &mut state.opened {
            if let Some(in_use) = opened.in_use.as_deref_mut() {
                let files = &mut in_use.files;
                files.retain(|file| file.as_ptr() != Arc::as_ptr(fd));
                // Some may have been closed without us.
                files.retain(|file| file.strong_count() > 0);
                if files.is_empty() {
                    in_use.kept = None;
                    // A former name stays: it is not of those who have it open.
                    opened.in_use.take_if(|in_use| in_use.former.is_none());
                }
            }
            if opened.in_use.is_none() && opened.cached.is_none() {
                state.opened = None;
            }
        }
        let parked = match &state.place {
            Place::Parked(parked) => *parked != Parked::Lost,
            _ => false,
        };
        parked && !state.is_lent()
    }

    /// What the kernel's cached pages are of, if it may have any.
    pub(super) fn cached(&self) -> Option<Digest> {
        let state = self.state.lock();
        state.opened.as_ref()?.cached
    }

    /// Remembers what the kernel's cached pages are of; returns what they were of.
    pub(super) fn now_caches(&self, version: Option<Digest>) -> Option<Digest> {
        let mut state = self.state.lock();
        let opened = state.opened.get_or_insert_default();
        std::mem::replace(&mut opened.cached, version)
    }

    /// The kernel told the time of the last change, in seconds and nanoseconds, of a file that is
    /// open.
    pub(super) fn keep_time(&self, mtime: (i64, u32)) {
        if let Some(in_use) = self.state.lock().if_in_use() {
            in_use.kept = Some(KeptTime {
                mtime,
                overwritten: false,
            });
        }
    }

    /// The file is open for writing; the kernel knows it with the time that `stat` shows, unless it
    /// has told another.
    pub(super) fn keep_time_of(&self, stat: &Stat) {
        let mut state = self.state.lock();
        state.in_use().kept.get_or_insert(KeptTime {
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            overwritten: false,
        });
    }

    /// Something was written that the kernel had kept.
    pub(super) fn overwrite_time(&self) {
        let mut state = self.state.lock();
        if let Some(kept) = state.if_in_use().and_then(|in_use| in_use.kept.as_mut()) {
            kept.overwritten = true;
        }
    }

    /// The time that the kernel told last, if something was written since.
    pub(super) fn take_overwritten(&self) -> Option<(i64, u32)> {
        let mut state = self.state.lock();
        let kept = state.if_in_use()?.kept.as_mut()?;
        std::mem::take(&mut kept.overwritten).then_some(kept.mtime)
    }

    /// Most often it is set already: looking costs less than setting.
    fn mark(&self, what: u8) {
        if self.marks.load(Ordering::Relaxed) & what == 0 {
            self.marks.fetch_or(what, Ordering::Relaxed);
        }
    }

    fn take(&self, what: u8) -> bool {
        self.marks.fetch_and(!what, Ordering::Relaxed) & what != 0
    }

    /// The next lookup of it gives another id. Under the table's lock.
    pub(super) fn supersede(&self) {
        self.mark(SUPERSEDED);
    }

    pub(super) fn is_superseded(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & SUPERSEDED != 0
    }

    pub(super) fn take_touched(&self) -> bool {
        self.take(TOUCHED)
    }

    /// A request named it.
    pub(super) fn touch(&self) {
        self.mark(USED);
    }

    pub(super) fn take_used(&self) -> bool {
        self.take(USED)
    }

    pub(super) fn home(&self) -> Option<Home> {
        self.state.lock().home.clone()
    }

    /// The directory and the name in it by which it was last seen; the root has none.
    pub fn last_seen(&self) -> Option<(NodeId, OsString)> {
        let home = self.home()?;
        Some((home.parent, home.name().to_owned()))
    }

    /// It has been linked under another name than `home`.
    pub(super) fn linked(&self, home: Home) {
        self.state.lock().in_use().former = Some(home);
    }

    /// Is to lose a name, not its last: from now on it is sought by another, if one is known.
    pub(super) fn loses(&self, home: &Home) {
        let mut state = self.state.lock();
        let lost = state.home.as_ref() == Some(home);
        let former = state.if_in_use().and_then(|in_use| match lost {
            true => in_use.former.take(),
            false => in_use.former.take_if(|former| former == home).and(None),
        });
        if former.is_some() {
            state.home = former;
        }
    }

    /// Its last name has gone through the mount: where it was last seen another may stand. If it was
    /// seen elsewhere meanwhile, it has a name still.
    pub(super) fn lost_its_name(&self, home: &Home) {
        let state = self.state.lock();
        if state.home.as_ref() == Some(home) {
            self.mark(NAMELESS);
        }
    }

    pub(super) fn is_nameless(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & NAMELESS != 0
    }

    pub(super) fn moved(&self, home: Home) {
        let mut state = self.state.lock();
        if self.is_nameless() {
            self.take(NAMELESS);
        }
        if state.home.as_ref() != Some(&home) {
            state.home = Some(home);
        }
    }
}

impl State {
    fn in_use(&mut self) -> &mut InUse {
        let opened = self.opened.get_or_insert_default();
        opened.in_use.get_or_insert_default()
    }

    fn if_in_use(&mut self) -> Option<&mut InUse> {
        self.opened.as_mut()?.in_use.as_deref_mut()
    }

    fn files(&self) -> &[Weak<OwnedFd>] {
        let opened = self.opened.as_ref();
        let in_use = opened.and_then(|opened| opened.in_use.as_ref());
        in_use.map_or(&[], |in_use| &in_use.files)
    }

    fn lent(&self) -> Option<Arc<OwnedFd>> {
        self.files().iter().find_map(Weak::upgrade)
    }

    /// As `lent().is_some()`, but can't be the last to hold a descriptor, and so close it.
    fn is_lent(&self) -> bool {
        self.files().iter().any(|file| file.strong_count() > 0)
    }
}

impl Parked {
    /// What the inode behind `fd` is known by.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        if let Ok(handle) = FileHandle::of(fd) {
            return Ok(Self::Handle(handle));
        }
        Self::by_times(fd)
    }

    fn by_times(fd: BorrowedFd<'_>) -> Result<Self> {
        let wanted = StatxFlags::BTIME | StatxFlags::CTIME;
        let statx = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted).or_fail("statx")?;
        let born = statx.stx_btime;
        if statx.stx_mask & StatxFlags::BTIME.bits() != 0 {
            return Ok(Self::Born(born.tv_sec, born.tv_nsec));
        }
        let changed = statx.stx_ctime;
        Ok(Self::Changed(changed.tv_sec, changed.tv_nsec))
    }

    /// Whether `fd`, of the same device and number, is the inode that was parked.
    ///
    /// # Errors
    /// As for [`Parked::of`].
    pub(super) fn is(&self, fd: &OwnedFd) -> Result<bool> {
        let now = match self {
            // It may have been seen in a listing alone, though there are handles.
            Self::Born(..) => Self::by_times(fd.as_fd())?,
            Self::Handle(_) | Self::Changed(..) => Self::of(fd.as_fd())?,
            // Who knows nothing but the name has to compare that.
            Self::Lost => return Ok(false),
        };
        Ok(now == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A million of them must leave room below 256 MiB: with the counts of its [`Arc`] and the
    /// allocator's own word an inode is a block of 144 bytes.
    #[test]
    fn an_inode_is_small() {
        assert!(size_of::<Inode>() <= 120, "{}", size_of::<Inode>());
        // Every file that was ever read has one.
        assert!(size_of::<OpenState>() <= 24, "{}", size_of::<OpenState>());
    }
}
