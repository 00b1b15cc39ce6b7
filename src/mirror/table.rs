//! What the kernel knows: node ids, lookup counts, and the descriptors behind them.
//!
//! Every inode that the kernel knows stands in the table. It is held by an `O_PATH` descriptor,
//! so that its number can't come to mean another file. When there are more of them than the
//! table's share of descriptors, those not used lately are closed, and found again by file handle
//! (privileged) or by parent and name, with their identity checked: another file in that place is
//! ESTALE, never served.
//!
//! `Reach::NameFirst` is for a process under Landlock. A descriptor that was opened by handle may be of
//! no name at all (the kernel has no dentry for it, and makes one without a parent), or of a hard
//! link outside the source. Attributes are to be had by it; but Landlock, which looks from the
//! dentry upwards for what allows the access, refuses to open it: EACCES, on ext4, XFS and btrfs
//! alike, once the dentry is out of the cache (Linux 6.18). So the name goes first, and the
//! handle is for what has lost its name.
//!
//! Order of locks: `state` before `clock`; the locks of an [`Inode`] are leaves. None is held
//! across a system call.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::inode::{Found, Home, Inode, Key, NodeId, Parked, ROOT};
use crate::observe::Metrics;
use crate::sys::handle::FileHandle;
use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::FileId;

/// Ids that are not inode numbers of the source's own file system carry this bit.
const SYNTHETIC: u64 = 1 << 63;
/// Synthetic ids of virtual files carry this one as well.
const VIRTUAL: u64 = SYNTHETIC | 1 << 62;
/// How many parents may have to be found again on the way to one inode.
const DEEPEST: usize = 256;

/// Flags for a descriptor that only names an inode.
const NAME_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Which way back to an inode whose descriptor was closed is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By file handle, where there are handles, and by nothing else then.
    HandleFirst,
    /// By parent and name, and by handle when that fails.
    NameFirst,
}

/// All inodes that the kernel knows.
#[derive(Debug)]
pub struct InodeTable {
    state: Mutex<State>,
    /// Ids in the order in which their descriptors may be closed: a second-chance queue.
    clock: Mutex<VecDeque<NodeId>>,
    root: Arc<Inode>,
    /// A readable descriptor on the root's file system, when handles can be opened there.
    handles: Option<OwnedFd>,
    open: AtomicUsize,
    limit: usize,
    pub(super) reach: Reach,
    next_file: AtomicU64,
    next_synthetic: AtomicU64,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    by_id: HashMap<NodeId, Entry>,
    by_key: HashMap<Key, Arc<Inode>>,
    /// The mounts inside the source, by device and mount.
    mounts: HashMap<(u64, u64), u64>,
}

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    lookups: u64,
}

impl InodeTable {
    /// A table that holds at most `limit` descriptors, with the source's root in it.
    ///
    /// # Errors
    /// Those of fstat(2) on the root.
    pub fn new(root: OwnedFd, limit: usize, metrics: Arc<Metrics>) -> Result<Self> {
        let stat = rustix::fs::fstat(&root).or_fail("fstat")?;
        let handles = handle_mount(&root);
        let key = Key::of(root.as_fd(), &stat)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let root = Arc::new(Inode::new(ROOT, FileId(0), key, kind, root, None));
        let entry = Entry {
            inode: root.clone(),
            lookups: 1,
        };
        Ok(Self {
            state: Mutex::new(State {
                by_id: HashMap::from([(ROOT, entry)]),
                by_key: HashMap::from([(root.key, root.clone())]),
                mounts: HashMap::new(),
            }),
            clock: Mutex::new(VecDeque::new()),
            root,
            handles,
            open: AtomicUsize::new(1),
            limit: limit.max(16),
            reach: Reach::HandleFirst,
            next_file: AtomicU64::new(1),
            next_synthetic: AtomicU64::new(1),
            metrics,
        })
    }

    /// The same table with another first way back to its inodes.
    #[must_use]
    pub fn with_reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// The root of the mirror.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The inode that the kernel calls `id`.
    ///
    /// # Errors
    /// ESTALE when there is none.
    pub fn get(&self, id: NodeId) -> Result<Arc<Inode>> {
        self.peek(id)
            .ok_or(Fail::new(Errno::STALE, "find the inode"))
    }

    fn peek(&self, id: NodeId) -> Option<Arc<Inode>> {
        let state = self.state.lock();
        state.by_id.get(&id).map(|entry| entry.inode.clone())
    }

    /// The inode of that key, if the kernel knows it.
    pub fn find(&self, key: Key) -> Option<Arc<Inode>> {
        self.state.lock().by_key.get(&key).cloned()
    }

    /// Every id that the kernel knows at this moment.
    pub fn ids(&self) -> Vec<NodeId> {
        self.state.lock().by_id.keys().copied().collect()
    }

    /// An id for a virtual file, never given before.
    pub fn virtual_id(&self) -> NodeId {
        VIRTUAL | self.next_synthetic.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether an id is one of a virtual file.
    pub fn is_virtual(id: NodeId) -> bool {
        id & VIRTUAL == VIRTUAL
    }

    /// A descriptor (`O_PATH`) of the inode.
    ///
    /// # Errors
    /// ESTALE when it is gone, or its name now means another file; EMFILE and ENFILE.
    pub fn fd(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        self.fd_within(inode, DEEPEST)
    }

    fn fd_within(&self, inode: &Inode, depth: usize) -> Result<Arc<OwnedFd>> {
        let parked = match inode.found() {
            Found::Open(fd) => return Ok(fd),
            Found::Gone => return Err(Fail::new(Errno::STALE, "find the inode")),
            Found::Parked(parked) => parked,
        };
        let fd = Arc::new(self.reopen(inode, &parked, depth)?);
        self.adopt(inode, &fd);
        Ok(fd)
    }

    fn reopen(&self, inode: &Inode, parked: &Parked, depth: usize) -> Result<OwnedFd> {
        let handle = parked.handle.as_ref().zip(self.handles.as_ref());
        let Some((handle, mount)) = handle else {
            return self.reopen_by_name(inode, parked, depth);
        };
        if self.reach == Reach::NameFirst
            && let Ok(fd) = self.reopen_by_name(inode, parked, depth)
        {
            return Ok(fd);
        }
        let fd = self.with_room(|| handle.open(mount.as_fd(), NAME_ONLY))?;
        self.checked(inode, parked, fd)
    }

    fn reopen_by_name(&self, inode: &Inode, parked: &Parked, depth: usize) -> Result<OwnedFd> {
        let stale = || Fail::new(Errno::STALE, "find the inode again");
        if depth == 0 {
            return Err(stale());
        }
        let home = inode.home().ok_or_else(stale)?;
        let parent = self.get(home.parent)?;
        let parent = self.fd_within(&parent, depth - 1)?;
        let opened = self.with_room(|| openat_name_only(&parent, &home.name));
        let fd = opened.map_err(|fail| match fail.errno {
            Errno::NOENT | Errno::NOTDIR => stale(),
            _ => fail,
        })?;
        self.checked(inode, parked, fd)
    }

    /// The descriptor, if it is of the inode that was parked; else ESTALE.
    fn checked(&self, inode: &Inode, parked: &Parked, fd: OwnedFd) -> Result<OwnedFd> {
        let stat = rustix::fs::fstat(&fd).or_fail("fstat")?;
        if Key::of(fd.as_fd(), &stat)? != inode.key || !parked.is(fd.as_fd())? {
            return Err(Fail::new(Errno::STALE, "find the inode again"));
        }
        Ok(fd)
    }

    fn adopt(&self, inode: &Inode, fd: &Arc<OwnedFd>) {
        if inode.adopt(fd) {
            self.opened(inode.id);
        }
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

    /// Opens a name of a directory as `O_PATH`, and counts one lookup of what it means.
    ///
    /// # Errors
    /// Those of openat(2) and fstat(2).
    pub fn lookup(&self, parent: &Inode, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        let dir = self.fd(parent)?;
        let fd = self.with_room(|| openat_name_only(&dir, name))?;
        let stat = rustix::fs::fstat(&fd).or_fail("fstat")?;
        let inode = self.intern(fd, &stat, parent.id, name)?;
        Ok((inode, stat))
    }

    /// Counts one lookup of the inode behind `fd`, found as `name` in `parent`.
    ///
    /// # Errors
    /// Those of the calls that tell whether a parked inode is this one.
    pub fn intern(
        &self,
        fd: OwnedFd,
        stat: &Stat,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<Arc<Inode>> {
        let key = Key::of(fd.as_fd(), stat)?;
        let home = self.needs_name(key).then(|| Home {
            parent,
            name: name.into(),
        });
        let mut fd = fd;
        loop {
            let known = self.find(key);
            let Some(inode) = known else {
                let kind = FileType::from_raw_mode(stat.st_mode);
                match self.insert(fd, key, kind, home.clone()) {
                    Ok(inode) => return Ok(inode),
                    Err(back) => fd = back,
                }
                continue;
            };
            if !same_file(&inode, &fd)? {
                self.retire(&inode);
            } else if self.raise(&inode) {
                if let Some(home) = home {
                    inode.moved(home);
                }
                self.adopt(&inode, &Arc::new(fd));
                return Ok(inode);
            }
        }
    }

    /// Enters a new inode; gives the descriptor back when somebody else was first.
    fn insert(
        &self,
        fd: OwnedFd,
        key: Key,
        kind: FileType,
        home: Option<Home>,
    ) -> std::result::Result<Arc<Inode>, OwnedFd> {
        let mut state = self.state.lock();
        if state.by_key.contains_key(&key) {
            return Err(fd);
        }
        let id = self.choose_id(&mut state, key);
        let file_id = FileId(self.next_file.fetch_add(1, Ordering::Relaxed));
        let inode = Arc::new(Inode::new(id, file_id, key, kind, fd, home));
        state.by_key.insert(key, inode.clone());
        let entry = Entry {
            inode: inode.clone(),
            lookups: 1,
        };
        state.by_id.insert(id, entry);
        self.metrics.set_inodes(state.by_id.len() as u64);
        drop(state);
        self.opened(id);
        Ok(inode)
    }

    /// Whether the root's own mount is where it lies.
    fn at_home(&self, key: Key) -> bool {
        (key.dev, key.mount) == (self.root.key.dev, self.root.key.mount)
    }

    /// Whether a file handle brings it back: what is opened by one is opened by the root's mount.
    fn by_handle(&self, key: Key) -> bool {
        self.handles.is_some() && self.at_home(key)
    }

    /// Whether its name is kept, to bring it back.
    fn needs_name(&self, key: Key) -> bool {
        self.reach == Reach::NameFirst || !self.by_handle(key)
    }

    /// The inode's own number on the root's mount; elsewhere one made of the mount and the number.
    /// An id that still stands for another file is not given again.
    fn choose_id(&self, state: &mut State, key: Key) -> NodeId {
        let id = self.natural_id(&mut state.mounts, key);
        match id {
            Some(id) if !state.by_id.contains_key(&id) => id,
            _ => SYNTHETIC | self.next_synthetic.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn natural_id(&self, mounts: &mut HashMap<(u64, u64), u64>, key: Key) -> Option<NodeId> {
        const INO_BITS: u32 = 48;
        if self.at_home(key) {
            return (key.ino != ROOT && key.ino != 0 && key.ino < SYNTHETIC).then_some(key.ino);
        }
        // 0 is left to the ids that are merely counted; 14 bits are left below VIRTUAL.
        let next = mounts.len() as u64 + 1;
        let mount = *mounts.entry((key.dev, key.mount)).or_insert(next);
        (mount < 1 << 14 && key.ino < 1 << INO_BITS)
            .then_some(SYNTHETIC | mount << INO_BITS | key.ino)
    }

    /// The id that an inode of that key would most likely get.
    pub fn likely_id(&self, key: Key) -> NodeId {
        let natural = self.natural_id(&mut self.state.lock().mounts, key);
        natural.unwrap_or(key.ino)
    }

    /// Counts one more lookup, unless the inode has just been forgotten.
    fn raise(&self, inode: &Arc<Inode>) -> bool {
        let mut state = self.state.lock();
        match state.by_id.get_mut(&inode.id) {
            Some(entry) if Arc::ptr_eq(&entry.inode, inode) => {
                entry.lookups += 1;
                true
            }
            _ => false,
        }
    }

    /// The inode's number now belongs to another file: the kernel's id stays, and is ESTALE.
    fn retire(&self, inode: &Arc<Inode>) {
        let mut state = self.state.lock();
        if let Some(known) = state.by_key.get(&inode.key)
            && Arc::ptr_eq(known, inode)
        {
            state.by_key.remove(&inode.key);
        }
        drop(state);
        if inode.end() {
            self.closed();
        }
    }

    /// Takes back `count` lookups; returns the inode when these were its last.
    pub fn forget(&self, id: NodeId, count: u64) -> Option<Arc<Inode>> {
        let mut state = self.state.lock();
        let entry = state.by_id.get_mut(&id)?;
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 || id == ROOT {
            return None;
        }
        let inode = state.by_id.remove(&id)?.inode;
        if let Some(known) = state.by_key.get(&inode.key)
            && Arc::ptr_eq(known, &inode)
        {
            state.by_key.remove(&inode.key);
        }
        self.metrics.set_inodes(state.by_id.len() as u64);
        drop(state);
        if inode.end() {
            self.closed();
        }
        Some(inode)
    }

    /// Remembers a new name after a rename, where names are needed to find an inode again.
    pub fn moved(&self, parent: &Inode, name: &OsStr) {
        if !self.needs_name(parent.key) {
            return;
        }
        let named = || {
            let fd = openat_name_only(&*self.fd(parent)?, name)?;
            let stat = rustix::fs::fstat(&fd).or_fail("fstat")?;
            Key::of(fd.as_fd(), &stat)
        };
        let known = named().ok().and_then(|key| self.find(key));
        if let Some(inode) = known {
            inode.moved(Home {
                parent: parent.id,
                name: name.into(),
            });
        }
    }

    fn opened(&self, id: NodeId) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.set_descriptors(open as u64);
        let mut clock = self.clock.lock();
        clock.push_back(id);
        let long = clock.len() > 4 * open + 4096;
        drop(clock);
        if long {
            self.compact();
        }
        if open > self.limit {
            self.thin(self.limit - self.limit / 8);
        }
    }

    fn closed(&self) {
        let open = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
        self.metrics.set_descriptors(open as u64);
    }

    /// Drops the ids of forgotten inodes from the queue, and all but one of an id that stands in
    /// it more than once: a number that is given, forgotten and given again enters each time.
    fn compact(&self) {
        let state = self.state.lock();
        let mut seen = HashSet::new();
        self.clock
            .lock()
            .retain(|id| state.by_id.contains_key(id) && seen.insert(*id));
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
    fn park(&self, inode: &Inode) -> bool {
        let Found::Open(fd) = inode.found() else {
            return true;
        };
        inode.take_touched();
        let by_handle = self.by_handle(inode.key);
        if !by_handle && !may_park_by_name(inode) {
            return false;
        }
        let Ok(parked) = Parked::of(fd.as_fd(), by_handle) else {
            return false;
        };
        if parked.handle.is_none() && !may_park_by_name(inode) {
            return false;
        }
        if inode.park(parked) {
            self.closed();
        }
        true
    }
}

/// Whether a name would bring the inode back. Who has it open goes on using it when the name is
/// gone, or is another's.
fn may_park_by_name(inode: &Inode) -> bool {
    inode.opens.load(Ordering::Relaxed) == 0 && inode.home().is_some()
}

fn same_file(inode: &Inode, fd: &OwnedFd) -> Result<bool> {
    match inode.found() {
        // The descriptor keeps the inode, so its number can't have been given to another.
        Found::Open(_) => Ok(true),
        Found::Parked(parked) => parked.is(fd.as_fd()),
        Found::Gone => Ok(false),
    }
}

pub(super) fn openat_name_only(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, NAME_ONLY, Mode::empty()).or_fail("openat")
}

/// A descriptor to open handles with, if this process may and the file system can.
fn handle_mount(root: &OwnedFd) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(root, c".", flags, Mode::empty()).ok()?;
    let handle = FileHandle::of(root.as_fd()).ok()?;
    handle.open(mount.as_fd(), NAME_ONLY).ok()?;
    Some(mount)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
