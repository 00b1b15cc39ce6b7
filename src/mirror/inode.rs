//! One inode of the source, as long as the kernel knows it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags};

use crate::sys::handle::FileHandle;
use crate::sys::{OrFail, Result};
use crate::window::FileId;

/// The number by which the kernel knows an inode.
pub type NodeId = u64;

/// The root of the mirror.
pub const ROOT: NodeId = 1;

/// What identifies an inode within one mount of its file system, while a descriptor keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Device.
    pub dev: u64,
    /// Inode number on it.
    pub ino: u64,
    /// The mount by which it was reached; by another one the same file may be read-only. 0 where
    /// the kernel does not tell (before Linux 5.8).
    pub mount: u64,
}

impl Key {
    /// The key of the inode behind `fd`, which `stat` describes.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Self> {
        // What the kernel knows by itself; no server is asked.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let statx = rustix::fs::statx(fd, c"", flags, StatxFlags::MNT_ID).or_fail("statx")?;
        let told = statx.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            mount: if told { statx.stx_mnt_id } else { 0 },
        })
    }
}

/// One inode of the source.
#[derive(Debug)]
pub struct Inode {
    /// The number by which the kernel knows it.
    pub id: NodeId,
    /// The key of its windows; unlike the id never used twice.
    pub file_id: FileId,
    /// Device, number and mount.
    pub key: Key,
    /// Its type, which never changes.
    pub kind: FileType,
    /// How many files are open on it.
    pub opens: AtomicU32,
    /// What the kernel's cached pages are of (see [`super::file`]). A leaf lock.
    pub cached: Mutex<Option<Version>>,
    /// A leaf lock: nothing else is taken, and no system call made, under it.
    place: Mutex<Place>,
    /// Where it was last seen, kept where a handle can't bring it back. A leaf lock.
    home: Mutex<Option<Home>>,
    /// Used since the descriptors were last thinned out.
    touched: AtomicBool,
}

/// Size and times of a file: while these are equal, so are its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    size: i64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Version {
    /// The version that `stat` shows.
    pub fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// When it was last changed, in seconds since 1970.
    pub fn changed(&self) -> i64 {
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

/// What finds an inode again after its descriptor was closed.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) handle: Option<FileHandle>,
    born: Birth,
}

/// When an inode came to be; where the file system does not say, when it last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Birth {
    Born(i64, u32),
    Changed(i64, u32),
}

/// A name of an inode.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) parent: NodeId,
    pub(super) name: Box<OsStr>,
}

/// What `Inode::place` found.
pub(super) enum Found {
    Open(Arc<OwnedFd>),
    Parked(Parked),
    Gone,
}

impl Inode {
    pub(super) fn new(
        id: NodeId,
        file_id: FileId,
        key: Key,
        kind: FileType,
        fd: OwnedFd,
        home: Option<Home>,
    ) -> Self {
        Self {
            id,
            file_id,
            key,
            kind,
            opens: AtomicU32::new(0),
            cached: Mutex::new(None),
            place: Mutex::new(Place::Open(Arc::new(fd))),
            home: Mutex::new(home),
            touched: AtomicBool::new(false),
        }
    }

    pub(super) fn found(&self) -> Found {
        match &*self.place.lock() {
            Place::Open(fd) => {
                self.touched.store(true, Ordering::Relaxed);
                Found::Open(fd.clone())
            }
            Place::Parked(parked) => Found::Parked(parked.clone()),
            Place::Gone => Found::Gone,
        }
    }

    /// Gives a parked inode a descriptor again; false when it has one or is gone.
    pub(super) fn adopt(&self, fd: &Arc<OwnedFd>) -> bool {
        let mut place = self.place.lock();
        if !matches!(*place, Place::Parked(_)) {
            return false;
        }
        *place = Place::Open(fd.clone());
        true
    }

    /// Closes the descriptor, keeping what finds the inode again; false when there was none.
    pub(super) fn park(&self, parked: Parked) -> bool {
        let mut place = self.place.lock();
        if !matches!(*place, Place::Open(_)) {
            return false;
        }
        let old = std::mem::replace(&mut *place, Place::Parked(parked));
        drop(place);
        drop(old);
        true
    }

    /// Marks the inode as one that must not be found again; true when a descriptor was open.
    pub(super) fn end(&self) -> bool {
        let old = std::mem::replace(&mut *self.place.lock(), Place::Gone);
        matches!(old, Place::Open(_))
    }

    pub(super) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    pub(super) fn home(&self) -> Option<Home> {
        self.home.lock().clone()
    }

    pub(super) fn moved(&self, home: Home) {
        *self.home.lock() = Some(home);
    }
}

impl Parked {
    /// What will find the inode behind `fd` again.
    pub(super) fn of(fd: BorrowedFd<'_>, with_handle: bool) -> Result<Self> {
        Ok(Self {
            handle: if with_handle {
                FileHandle::of(fd).ok()
            } else {
                None
            },
            born: Birth::of(fd)?,
        })
    }

    /// Whether `fd`, of the same device and number, is the inode that was parked: numbers are
    /// used again, handles and birth times are not.
    pub(super) fn is(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        if let Some(handle) = &self.handle {
            return Ok(FileHandle::of(fd).is_ok_and(|other| other == *handle));
        }
        Ok(Birth::of(fd)? == self.born)
    }
}

impl Birth {
    fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let wanted = StatxFlags::BTIME | StatxFlags::CTIME;
        let statx =
            rustix::fs::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, wanted).or_fail("statx")?;
        let born = statx.stx_btime;
        if statx.stx_mask & StatxFlags::BTIME.bits() != 0 {
            return Ok(Self::Born(born.tv_sec, born.tv_nsec));
        }
        let changed = statx.stx_ctime;
        Ok(Self::Changed(changed.tv_sec, changed.tv_nsec))
    }
}
