//! The table's descriptors: which are open, which may be closed, and the way back to an inode
//! whose descriptor was closed.
//!
//! The ways back are a file handle (privileged, on the root's own mount), the descriptor of an
//! open file of that inode, and the name under which it was last seen, in a directory that may
//! itself have to be found again. Whatever is found must be the inode that was parked: another
//! file in that place is ESTALE, never served.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags};

use super::inode::{Found, Home, Inode, Key, NodeId, Parked};
use super::table::{InodeTable, Seen};
use crate::sys::handle::FileHandle;
use crate::sys::{Errno, Fail, OrFail, Result};

/// Flags for a descriptor that only names an inode.
pub(super) const NAME_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Which way back to a parked inode is tried first. Each falls back on the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By file handle: one system call, and right whatever was renamed.
    HandleFirst,
    /// By parent and name. For a process under Landlock, which refuses to open anew what was
    /// opened by handle and has no path (a disconnected dentry).
    NameFirst,
}

/// The end of every way that leads nowhere.
const STALE: Fail = Fail::new(Errno::STALE, "find the inode again");

impl InodeTable {
    /// A descriptor of the inode: the table's own (`O_PATH`), or that of an open file of it.
    ///
    /// # Errors
    /// ESTALE when it is gone, or its name now means another file; EMFILE and ENFILE.
    pub fn fd(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.at_once(inode)? {
            return Ok(fd);
        }
        match self.by_name(inode) {
            Err(fail) if fail.errno == Errno::STALE => self.by_handle_at_last(inode),
            found => found,
        }
    }

    /// The descriptor, unless names have to be followed to it.
    fn at_once(&self, inode: &Inode) -> Result<Option<Arc<OwnedFd>>> {
        let parked = match inode.found() {
            Found::Open(fd) => return Ok(Some(fd)),
            Found::Gone => return Err(Fail::new(Errno::STALE, "find the inode")),
            Found::Parked(parked) => parked,
        };
        if self.reach == Reach::NameFirst {
            return Ok(None);
        }
        match self.by_handle(inode, &parked) {
            // No privilege any more, or a file system that makes handles but opens none.
            Err(fail)
                if matches!(
                    fail.errno,
                    Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL
                ) =>
            {
                Ok(None)
            }
            found => found,
        }
    }

    /// None where there is no handle, or none of the root's mount.
    fn by_handle(&self, inode: &Inode, parked: &Parked) -> Result<Option<Arc<OwnedFd>>> {
        let (Parked::Handle(handle), Some(mount)) = (parked, self.handle_mount_of(inode.key))
        else {
            return Ok(None);
        };
        let fd = self.with_room(|| handle.open(mount.as_fd(), NAME_ONLY))?;
        self.admit(inode, fd, parked).map(Some)
    }

    fn by_handle_at_last(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        match inode.found() {
            Found::Open(fd) => Ok(fd),
            Found::Parked(parked) if self.reach == Reach::NameFirst => {
                self.by_handle(inode, &parked)?.ok_or(STALE)
            }
            _ => Err(STALE),
        }
    }

    /// A name is about to go through the mount: if it is the last of an inode that was only listed,
    /// nothing else would find that for who has it without having opened it (O_PATH, a bind mount).
    /// Of several names it is not to be sought any more by that one. Returns who has no name when this
    /// one has gone.
    pub(super) fn hold(&self, parent: NodeId, dir: &OwnedFd, name: &OsStr) -> Option<Arc<Inode>> {
        let (seen, birth) = self.see_with_birth(dir.as_fd(), name).ok()?;
        let inode = self.find(seen.key)?;
        if seen.stat.st_nlink > 1 && inode.kind != FileType::Directory {
            inode.loses(&Home::new(parent, name));
            return None;
        }
        if seen.stat.st_nlink == 1 && birth.is_some() && birth == inode.born() {
            self.hold_born(&inode, dir, name, birth);
        }
        Some(inode)
    }

    /// Also of one that is open: its file lends a descriptor only until it is closed. What can't be had
    /// now is not to be had at all.
    fn hold_born(&self, inode: &Inode, dir: &OwnedFd, name: &OsStr, birth: Option<(i64, u32)>) {
        let Ok(fd) = self.with_room(|| openat_name_only(dir, name)) else {
            return;
        };
        let same = |(seen, born): (Seen, _)| seen.key == inode.key && born == birth;
        if self.see_with_birth(fd.as_fd(), c"").is_ok_and(same) {
            self.adopt(inode, &Arc::new(fd));
        }
    }

    /// Goes up to an ancestor that has a descriptor, and down again.
    fn by_name(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let home = inode.home().ok_or(STALE)?;
        let mut above = Vec::new();
        let mut parent = self.ancestor(home.parent)?;
        let most = self.state.lock().known.len();
        let mut dir = loop {
            if let Some(fd) = self.at_once(&parent)? {
                break fd;
            }
            // Names changed behind us can make a ring of what we remember.
            if above.len() > most {
                return Err(STALE);
            }
            let home = parent.home().ok_or(STALE)?;
            let next = self.ancestor(home.parent)?;
            above.push((parent, home));
            parent = next;
        };
        for (ancestor, home) in above.iter().rev() {
            dir = self.step(ancestor, &dir, home.name())?;
        }
        self.step(inode, &dir, home.name())
    }

    fn ancestor(&self, id: NodeId) -> Result<Arc<Inode>> {
        self.peek(id).ok_or(STALE)
    }

    fn step(&self, inode: &Inode, dir: &OwnedFd, name: &OsStr) -> Result<Arc<OwnedFd>> {
        let parked = match inode.found() {
            Found::Open(fd) => return Ok(fd),
            Found::Gone => return Err(STALE),
            Found::Parked(parked) => parked,
        };
        let opened = self.with_room(|| openat_name_only(dir, name));
        let fd = opened.map_err(|fail| match fail.errno {
            Errno::NOENT | Errno::NOTDIR => STALE,
            _ => fail,
        })?;
        self.admit(inode, fd, &parked)
    }

    /// Lets a descriptor be the inode's if it is of the one that was parked.
    fn admit(&self, inode: &Inode, fd: OwnedFd, parked: &Parked) -> Result<Arc<OwnedFd>> {
        let same = match parked {
            // Number and birth by one call.
            Parked::Born(seconds, nanoseconds) => {
                let (seen, born) = self.see_with_birth(fd.as_fd(), c"")?;
                seen.key == inode.key && born == Some((*seconds, *nanoseconds))
            }
            // Its number may be another now, of a source that was mounted anew.
            Parked::Lost => self.see(fd.as_fd())?.kind() == inode.kind,
            _ => self.see(fd.as_fd())?.key == inode.key && parked.is(&fd)?,
        };
        if !same {
            return Err(STALE);
        }
        let fd = Arc::new(fd);
        self.adopt(inode, &fd);
        Ok(fd)
    }

    pub(super) fn adopt(&self, inode: &Inode, fd: &Arc<OwnedFd>) {
        if inode.adopt(fd) {
            self.opened(inode.id);
        }
    }

    /// A descriptor to open handles of that inode with: what is opened by one is opened by the
    /// root's mount.
    fn handle_mount_of(&self, key: Key) -> Option<Arc<OwnedFd>> {
        if !self.is_home(key) {
            return None;
        }
        self.handles.read().clone()
    }

    /// Runs `open`, which takes a descriptor; when there is none left, once more after some of
    /// the table's own were given back: open files may need what its share leaves free, and more.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn with_room<T>(&self, mut open: impl FnMut() -> Result<T>) -> Result<T> {
        match open() {
            Err(fail) if matches!(fail.errno, Errno::MFILE | Errno::NFILE) => {
                self.thin(self.open.load(Ordering::Relaxed) / 2);
                open()
            }
            opened => opened,
        }
    }

    /// An open file of the inode lends its descriptor, as long as it is open.
    pub(super) fn lend(&self, inode: &Inode, fd: &Arc<OwnedFd>) {
        inode.opens.fetch_add(1, Ordering::Relaxed);
        inode.lend(fd);
    }

    /// An open file is about to be closed. Of an inode without a name, which nothing else would
    /// bring back to those who still have it as their working directory, the table takes a
    /// descriptor of its own from `renew`. True when no file is open on the inode any more.
    pub(super) fn take_back(
        &self,
        inode: &Inode,
        fd: &Arc<OwnedFd>,
        nameless: bool,
        renew: impl FnMut() -> Result<OwnedFd>,
    ) -> bool {
        if inode.take_back(fd)
            && nameless
            && let Ok(own) = self.with_room(renew)
        {
            self.adopt(inode, &Arc::new(own));
        }
        inode.opens.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(super) fn opened(&self, id: NodeId) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.set_descriptors(open as u64);
        let mut clock = self.clock.lock();
        clock.push_back(id);
        let long = clock.len() > 4 * open + 4096;
        drop(clock);
        if long {
            self.compact();
        }
        let limit = self.ceilings.descriptors;
        if open > limit {
            self.thin(limit - limit / 8);
        }
    }

    /// Closes what an inode had, if it had one.
    pub(super) fn closed(&self, fd: Option<Arc<OwnedFd>>) {
        if fd.is_some() {
            let open = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
            self.metrics.set_descriptors(open as u64);
        }
    }

    /// Drops the ids of forgotten inodes from the queue, and all but one of an id that stands in
    /// it more than once: a number that is given, forgotten and given again enters each time.
    fn compact(&self) {
        let state = self.state.lock();
        let mut seen = HashSet::new();
        let mut clock = self.clock.lock();
        clock.retain(|id| state.known.get(*id).is_some() && seen.insert(*id));
        clock.shrink_to(4096);
    }

    /// Closes descriptors not used lately, until at most `goal` are open.
    fn thin(&self, goal: usize) {
        let mut tries = 2 * self.clock.lock().len();
        while self.open.load(Ordering::Relaxed) > goal && tries > 0 {
            tries -= 1;
            let Some(id) = self.clock.lock().pop_front() else {
                return;
            };
            let Some(inode) = self.peek(id) else { continue };
            if inode.take_touched() || !self.park(&inode) {
                self.clock.lock().push_back(id);
            }
        }
    }

    /// Closes one inode's descriptor; false when it must stay because nothing would find it.
    pub(super) fn park(&self, inode: &Inode) -> bool {
        let Some(fd) = inode.own() else {
            return true;
        };
        inode.take_touched();
        let Ok(parked) = Parked::of(fd.as_fd()) else {
            return false;
        };
        let by_handle = self.reach == Reach::HandleFirst
            && matches!(parked, Parked::Handle(_))
            && self.handle_mount_of(inode.key).is_some();
        if !by_handle && !inode.is_lent() && !self.has_name(inode, &fd) {
            return false;
        }
        if inode.park(parked) {
            self.closed(Some(fd));
        }
        true
    }

    /// Whether a name would bring the inode back: it had one, and has not lost its last.
    fn has_name(&self, inode: &Inode, fd: &OwnedFd) -> bool {
        inode.home().is_some() && rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink > 0)
    }
}

pub(super) fn openat_name_only(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, NAME_ONLY, Mode::empty()).or_fail("openat")
}

/// A descriptor to open handles with, if this process may and the file system can.
pub(super) fn handle_mount(root: &OwnedFd) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(root, c".", flags, Mode::empty()).ok()?;
    let handle = FileHandle::of(root.as_fd()).ok()?;
    handle.open(mount.as_fd(), NAME_ONLY).ok()?;
    Some(mount)
}
