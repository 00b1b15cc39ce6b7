//! What the kernel knows: node ids, lookup counts, and the descriptors behind them.
//!
//! Every inode that the kernel knows stands in the table. It is held by an `O_PATH` descriptor,
//! so that its number can't come to mean another file; but for files that were only listed, which
//! most often nobody opens: those enter as if their descriptor had been closed. When there are more of them than the
//! table's share of descriptors, those not used lately are closed, and found again as
//! [`super::reach`] says. When there are more inodes than the table's limit, the kernel is asked
//! to forget those not used lately ([`super::prune`]).
//!
//! Order of locks: `state` before `clock`; the locks of an [`Inode`] are leaves, and may be taken
//! under `state`. None is held across a system call.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::fs::{AtFlags, FileType, Stat, Statx, StatxFlags};

use super::inode::{Entry, Found, Home, Inode, Key, NodeId, Parked, ROOT};
use super::known::Known;
use super::reach::{Reach, handle_mount, openat_name_only};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail, OrFail, Result};
use crate::window::FileId;

/// Ids that are not inode numbers of the source's own file system carry this bit.
const SYNTHETIC: u64 = 1 << 63;
/// Synthetic ids of virtual files carry this one as well.
const VIRTUAL: u64 = SYNTHETIC | 1 << 62;

/// What a table may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Descriptors of inodes.
    pub descriptors: usize,
    /// Inodes, before the kernel is asked to forget some.
    pub inodes: usize,
}

/// All inodes that the kernel knows.
#[derive(Debug)]
pub struct InodeTable {
    pub(super) state: Mutex<State>,
    /// Signalled when there are too many inodes, and at the end; waited for with `state`.
    pub(super) crowded: Condvar,
    /// Ids in the order in which their descriptors may be closed: a second-chance queue.
    pub(super) clock: Mutex<VecDeque<NodeId>>,
    pub(super) root: Arc<Inode>,
    /// A readable descriptor on the root's file system, when handles can be opened there.
    pub(super) handles: RwLock<Option<Arc<OwnedFd>>>,
    pub(super) reach: Reach,
    pub(super) open: AtomicUsize,
    pub(super) ceilings: Ceilings,
    /// Inodes forgotten so far.
    pub(super) forgotten: AtomicU64,
    /// A leaf.
    pub(super) seat: RwLock<Seat>,
    /// Any `Stat`, to be filled in: it can't be made from nothing.
    blank: Stat,
    next_file: AtomicU64,
    next_synthetic: AtomicU64,
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) known: Known,
    /// The inodes whose id does not follow from their key.
    aliases: HashMap<Key, Arc<Inode>, RandomState>,
    /// The mounts inside the source, by device and mount: their numbers, from 1.
    pub(super) sites: HashMap<(u64, u64), u32>,
    /// Who prunes waits for the table to hold more than so many.
    pub(super) wake_above: usize,
    /// No more pruning.
    pub(super) ending: bool,
}

/// Where the root is.
#[derive(Debug)]
pub(super) struct Seat {
    /// Its device and mount.
    pub(super) place: (u64, u64),
    /// Their number: 0, and another once a source that numbers its inodes anew was mounted anew.
    pub(super) site: u32,
    /// The numbers before it.
    pub(super) former: Vec<u32>,
}

/// What one statx(2) tells of an inode.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its attributes.
    pub stat: Stat,
    /// What identifies it.
    pub key: Key,
}

impl Seen {
    /// Its type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

impl InodeTable {
    /// A table within `ceilings`, with the source's root in it, whose inodes are found again in
    /// the order that `reach` says.
    ///
    /// # Errors
    /// Those of fstat(2) and statx(2) on the root.
    pub fn new(
        root: OwnedFd,
        ceilings: Ceilings,
        reach: Reach,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let blank = rustix::fs::fstat(&root).or_fail("fstat")?;
        let place = site_of(&statx(root.as_fd(), c"")?);
        let handles = handle_mount(&root).map(Arc::new);
        let key = Key {
            ino: blank.st_ino,
            site: 0,
        };
        let kind = FileType::from_raw_mode(blank.st_mode);
        let root = Entry::Open(root);
        let root = Arc::new(Inode::new(ROOT, FileId(0), key, kind, root, None));
        let mut known = Known::new();
        known.insert(root.clone());
        metrics.set_inodes(1);
        metrics.set_inode_limit(ceilings.inodes as u64);
        Ok(Self {
            state: Mutex::new(State {
                known,
                aliases: HashMap::from_iter([(key, root.clone())]),
                sites: HashMap::new(),
                wake_above: usize::MAX,
                ending: false,
            }),
            crowded: Condvar::new(),
            clock: Mutex::new(VecDeque::new()),
            root,
            handles: RwLock::new(handles),
            reach,
            open: AtomicUsize::new(1),
            ceilings: Ceilings {
                descriptors: ceilings.descriptors.max(16),
                ..ceilings
            },
            forgotten: AtomicU64::new(0),
            seat: RwLock::new(Seat {
                place,
                site: 0,
                former: Vec::new(),
            }),
            blank,
            next_file: AtomicU64::new(1),
            next_synthetic: AtomicU64::new(1),
            metrics,
        })
    }

    /// For tests: a table that holds what they look up.
    #[cfg(test)]
    pub(super) fn of(root: OwnedFd, metrics: Arc<Metrics>) -> Self {
        let ceilings = Ceilings {
            descriptors: 100,
            inodes: usize::MAX,
        };
        Self::new(root, ceilings, Reach::HandleFirst, metrics).expect("a table")
    }

    /// The root of the mirror.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The root's attributes as they were when the table was made.
    pub fn root_at_first(&self) -> Stat {
        self.blank
    }

    /// The inode that the kernel calls `id`, for a request of its.
    ///
    /// # Errors
    /// ESTALE when there is none.
    pub fn get(&self, id: NodeId) -> Result<Arc<Inode>> {
        let inode = self.peek(id);
        let inode = inode.ok_or(Fail::new(Errno::STALE, "find the inode"))?;
        inode.touch();
        Ok(inode)
    }

    pub(super) fn peek(&self, id: NodeId) -> Option<Arc<Inode>> {
        self.state.lock().known.get(id).cloned()
    }

    /// The inode of that key, if the kernel knows it.
    pub fn find(&self, key: Key) -> Option<Arc<Inode>> {
        self.state.lock().find(key)
    }

    /// The directory and the name in it by which an inode was last found.
    pub fn last_seen(&self, id: NodeId) -> Option<(NodeId, OsString)> {
        self.peek(id)?.last_seen()
    }

    /// As [`InodeTable::last_seen`], for one that has not lost its last name through the mount.
    pub fn name_of(&self, id: NodeId) -> Option<(NodeId, OsString)> {
        let inode = self.peek(id)?;
        inode.last_seen().filter(|_| !inode.is_nameless())
    }

    /// How often the kernel has looked an inode up, and not yet forgotten it.
    pub fn lookups(&self, id: NodeId) -> u64 {
        let inode = self.peek(id);
        inode.map_or(0, |inode| inode.lookups.load(Ordering::Relaxed))
    }

    /// What a name means in the source at this moment, if the kernel knows that inode. Counts no
    /// lookup.
    ///
    /// # Errors
    /// Those of openat(2), except ENOENT; those of statx(2).
    pub fn find_at(&self, parent: &Inode, name: &OsStr) -> Result<Option<Arc<Inode>>> {
        let dir = self.fd(parent)?;
        let fd = match self.with_room(|| openat_name_only(&dir, name)) {
            Err(fail) if fail.errno == Errno::NOENT => return Ok(None),
            opened => opened?,
        };
        let seen = self.see(fd.as_fd())?;
        match self.find(seen.key) {
            Some(inode) if same_file(&inode, &fd, &seen, &Home::new(parent.id, name))? => {
                Ok(Some(inode))
            }
            _ => Ok(None),
        }
    }

    /// The device on which inodes of that key lie.
    pub fn device_of(&self, key: Key) -> u64 {
        let seat = self.seat.read();
        if key.site == seat.site {
            return seat.place.0;
        }
        drop(seat);
        let state = self.state.lock();
        let mut sites = state.sites.iter();
        sites
            .find(|(_, site)| **site == key.site)
            .map_or(0, |((device, _), _)| *device)
    }

    /// All inodes of that device and number: one for each mount by which the kernel knows it.
    pub fn twins(&self, device: u64, ino: u64) -> Vec<Arc<Inode>> {
        let state = self.state.lock();
        let of_site = |site| state.find(Key { ino, site });
        self.sites_of(&state, device).filter_map(of_site).collect()
    }

    /// Whether that device is known by more than one mount.
    pub fn has_twins(&self, device: u64) -> bool {
        self.sites_of(&self.state.lock(), device).nth(1).is_some()
    }

    fn sites_of<'a>(&'a self, state: &'a State, device: u64) -> impl Iterator<Item = u32> + 'a {
        let seat = self.seat.read();
        let home = (device == seat.place.0).then_some(seat.site);
        drop(seat);
        let inside = state
            .sites
            .iter()
            .filter(move |((other, _), site)| *other == device && home != Some(**site));
        home.into_iter().chain(inside.map(|(_, site)| *site))
    }

    /// Every id that the kernel knows at this moment.
    pub fn ids(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.known.iter().map(|inode| inode.id).collect()
    }

    /// An id for a virtual file, never given before.
    pub fn virtual_id(&self) -> NodeId {
        VIRTUAL | self.next_synthetic.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether an id is one of a virtual file.
    pub fn is_virtual(id: NodeId) -> bool {
        id & VIRTUAL == VIRTUAL
    }

    /// Attributes and identity of the inode behind `fd`, by one system call.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn see(&self, fd: BorrowedFd<'_>) -> Result<Seen> {
        Ok(self.seen(&statx(fd, c"")?))
    }

    /// As [`InodeTable::see`], of `name` in `dir` or of `dir` itself, with its time of birth in
    /// seconds and nanoseconds where the file system tells.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(super) fn see_with_birth(
        &self,
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg,
    ) -> Result<(Seen, Option<(i64, u32)>)> {
        // Like O_PATH, it does not have the kernel mount anything.
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | StatxFlags::BTIME;
        let statx = rustix::fs::statx(dir, name, flags, wanted).or_fail("statx")?;
        let told = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = statx.stx_btime;
        let born = told.then_some((born.tv_sec, born.tv_nsec));
        Ok((self.seen(&statx), born))
    }

    fn seen(&self, statx: &Statx) -> Seen {
        let key = Key {
            ino: statx.stx_ino,
            site: self.site(site_of(statx)),
        };
        let stat = stat_of(statx, self.blank);
        Seen { stat, key }
    }

    fn site(&self, site: (u64, u64)) -> u32 {
        let seat = self.seat.read();
        if site == seat.place {
            return seat.site;
        }
        drop(seat);
        let mut state = self.state.lock();
        let next = state.sites.len() as u32 + 1;
        *state.sites.entry(site).or_insert(next)
    }

    /// Opens a name of a directory as `O_PATH`, and counts one lookup of what it means.
    ///
    /// # Errors
    /// Those of openat(2) and statx(2).
    pub fn lookup(&self, parent: &Inode, name: &OsStr) -> Result<(Arc<Inode>, Stat)> {
        let dir = self.fd(parent)?;
        let fd = self.with_room(|| openat_name_only(&dir, name))?;
        let seen = self.see(fd.as_fd())?;
        let inode = self.intern(fd, &seen, parent.id, name)?;
        Ok((inode, seen.stat))
    }

    /// Counts one lookup of the inode behind `fd`, found as `name` in `parent`.
    ///
    /// # Errors
    /// Those of the calls that tell whether a parked inode is this one.
    pub fn intern(
        &self,
        fd: OwnedFd,
        seen: &Seen,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<Arc<Inode>> {
        let home = Home::new(parent, name);
        let mut fd = fd;
        loop {
            let Some(inode) = self.find(seen.key) else {
                match self.insert(Entry::Open(fd), seen.key, seen.kind(), home.clone()) {
                    Ok(inode) => return Ok(inode),
                    Err(Entry::Open(back)) => fd = back,
                    // Not reached: what was given comes back.
                    Err(_) => return Err(Fail::new(Errno::STALE, "intern")),
                }
                continue;
            };
            if !same_file(&inode, &fd, seen, &home)? {
                self.retire(&inode);
            } else if self.raise(&inode) {
                inode.moved(home);
                self.adopt(&inode, &Arc::new(fd));
                return Ok(inode);
            }
        }
    }

    /// As [`InodeTable::lookup`], for what stands in a listing and may never be opened: by one system
    /// call and without a descriptor, where numbers and times of birth tell inodes apart. `None` for
    /// directories, which are held by descriptors, and where more has to be looked at.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn glance(
        &self,
        parent: &Inode,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<(Arc<Inode>, Stat)>> {
        let (seen, Some(born)) = self.see_with_birth(dir, name)? else {
            return Ok(None);
        };
        if seen.kind() == FileType::Directory {
            return Ok(None);
        }
        let found = self.born(&seen, born, Home::new(parent.id, name));
        Ok(found.map(|inode| (inode, seen.stat)))
    }

    /// Counts one lookup of a file that was just created as `name` in `parent` and is open as `file`.
    /// Where times of birth tell inodes apart it takes no descriptor of its own: the open file lends
    /// its. Else `only_name` opens one.
    ///
    /// # Errors
    /// Those of statx(2), of `only_name` and of [`InodeTable::intern`]; ESTALE for what is no regular
    /// file.
    pub(super) fn enter_created(
        &self,
        file: BorrowedFd<'_>,
        parent: NodeId,
        name: &OsStr,
        only_name: impl FnMut() -> Result<OwnedFd>,
    ) -> Result<(Arc<Inode>, Stat)> {
        let (seen, born) = self.see_with_birth(file, c"")?;
        if seen.kind() != FileType::RegularFile {
            return Err(Fail::new(Errno::STALE, "create"));
        }
        let home = || Home::new(parent, name);
        if let Some(inode) = born.and_then(|born| self.born(&seen, born, home())) {
            return Ok((inode, seen.stat));
        }
        let inode = self.intern(self.with_room(only_name)?, &seen, parent, name)?;
        Ok((inode, seen.stat))
    }

    /// Counts one lookup of the inode that was born then; `None` where more has to be looked at.
    fn born(&self, seen: &Seen, born: (i64, u32), home: Home) -> Option<Arc<Inode>> {
        loop {
            let Some(inode) = self.find(seen.key) else {
                let entry = Entry::Born(born.0, born.1);
                match self.insert(entry, seen.key, seen.kind(), home.clone()) {
                    Ok(inode) => return Some(inode),
                    Err(_) => continue,
                }
            };
            match inode.found() {
                // The descriptor keeps the inode, so its number can't have been given to another.
                Found::Open(_) => {}
                Found::Parked(Parked::Born(s, n)) if (s, n) == born => {}
                Found::Parked(_) | Found::Gone => return None,
            }
            if self.raise(&inode) {
                inode.moved(home);
                return Some(inode);
            }
        }
    }

    /// Enters a new inode; gives back what it was to enter by when somebody else was first.
    pub(super) fn insert(
        &self,
        entry: Entry,
        key: Key,
        kind: FileType,
        home: Home,
    ) -> std::result::Result<Arc<Inode>, Entry> {
        let mut state = self.state.lock();
        if state.find(key).is_some() {
            return Err(entry);
        }
        let has_descriptor = matches!(entry, Entry::Open(_));
        // An id that still stands for another file is not given again.
        let free = natural_id(key).filter(|id| state.known.get(*id).is_none());
        let counted = || SYNTHETIC | self.next_synthetic.fetch_add(1, Ordering::Relaxed);
        let id = free.unwrap_or_else(counted);
        let file_id = FileId(self.next_file.fetch_add(1, Ordering::Relaxed));
        let inode = Arc::new(Inode::new(id, file_id, key, kind, entry, Some(home)));
        if free.is_none() {
            state.aliases.insert(key, inode.clone());
        }
        state.known.insert(inode.clone());
        self.counted(&state);
        drop(state);
        if has_descriptor {
            self.opened(id);
        }
        Ok(inode)
    }

    fn counted(&self, state: &State) {
        self.metrics.set_inodes(state.known.len() as u64);
        if state.known.len() > state.wake_above {
            self.crowded.notify_all();
        }
    }

    /// The id that an inode of that key would most likely get.
    pub fn likely_id(&self, key: Key) -> NodeId {
        natural_id(key).unwrap_or(key.ino)
    }

    /// Counts one more lookup, unless the inode has just been forgotten.
    pub(super) fn raise(&self, inode: &Arc<Inode>) -> bool {
        let state = self.state.lock();
        let known = state.known.get(inode.id);
        let same = known.is_some_and(|known| Arc::ptr_eq(known, inode));
        if same {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            inode.touch();
        }
        same
    }

    /// The next lookup of the inode gives another id; this one stays as it is.
    pub(super) fn supersede(&self, inode: &Arc<Inode>) {
        let mut state = self.state.lock();
        state.drop_alias(inode);
        inode.supersede();
    }

    /// The inode's number now belongs to another file: the kernel's id stays, and is ESTALE.
    fn retire(&self, inode: &Arc<Inode>) {
        let mut state = self.state.lock();
        state.drop_alias(inode);
        let fd = inode.end();
        drop(state);
        self.closed(fd);
    }

    /// Takes back `count` lookups; returns the inode when these were its last.
    pub fn forget(&self, id: NodeId, count: u64) -> Option<Arc<Inode>> {
        let mut state = self.state.lock();
        let lookups = &state.known.get(id)?.lookups;
        let left = lookups.load(Ordering::Relaxed).saturating_sub(count);
        lookups.store(left, Ordering::Relaxed);
        if left > 0 || id == ROOT {
            return None;
        }
        let inode = state.known.remove(id)?;
        state.drop_alias(&inode);
        let fd = inode.end();
        self.counted(&state);
        drop(state);
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.closed(fd);
        Some(inode)
    }

    /// Remembers a new name after a rename.
    pub fn moved(&self, parent: &Inode, name: &OsStr) {
        if let Ok(Some(inode)) = self.find_at(parent, name) {
            inode.moved(Home::new(parent.id, name));
        }
    }
}

impl State {
    fn find(&self, key: Key) -> Option<Arc<Inode>> {
        if let Some(inode) = self.aliases.get(&key) {
            return Some(inode.clone());
        }
        let inode = self.known.get(natural_id(key)?)?;
        (inode.key == key && !inode.is_gone() && !inode.is_superseded()).then(|| inode.clone())
    }

    fn drop_alias(&mut self, inode: &Arc<Inode>) {
        if let Some(known) = self.aliases.get(&inode.key)
            && Arc::ptr_eq(known, inode)
        {
            self.aliases.remove(&inode.key);
        }
    }
}

/// The inode's own number on the root's mount; elsewhere one made of the mount and the number.
fn natural_id(key: Key) -> Option<NodeId> {
    const INO_BITS: u32 = 48;
    if key.site == 0 {
        return (key.ino != ROOT && key.ino != 0 && key.ino < SYNTHETIC).then_some(key.ino);
    }
    // Site 0 is left to the ids that are merely counted; 14 bits are left below VIRTUAL.
    (key.site < 1 << 14 && key.ino < 1 << INO_BITS)
        .then_some(SYNTHETIC | u64::from(key.site) << INO_BITS | key.ino)
}

/// Whether `fd`, found as `seen` by the name `home`, is that inode, which has its number.
fn same_file(inode: &Inode, fd: &OwnedFd, seen: &Seen, home: &Home) -> Result<bool> {
    match inode.found() {
        // The descriptor keeps the inode, so its number can't have been given to another.
        Found::Open(_) => Ok(true),
        // The number may have been, while the source was away: number and name together, or one
        // of several names.
        Found::Parked(Parked::Lost) => Ok(inode.kind == seen.kind()
            && (inode.home().as_ref() == Some(home)
                || inode.kind != FileType::Directory && seen.stat.st_nlink > 1)),
        Found::Parked(parked) => parked.is(fd),
        Found::Gone => Ok(false),
    }
}

/// Attributes and mount of `name` in `dir`, or of `dir` itself when the name is empty.
pub(super) fn statx(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(dir, name, flags, wanted).or_fail("statx")
}

/// Device and mount; 0 for the mount where the kernel does not tell (before Linux 5.8).
pub(super) fn site_of(statx: &Statx) -> (u64, u64) {
    let told = statx.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let device = rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor);
    (device, if told { statx.stx_mnt_id } else { 0 })
}

/// The same attributes in the form of fstat(2); the types of its fields differ by architecture.
#[allow(
    clippy::unnecessary_cast,
    reason = "needed on other architectures than this"
)]
fn stat_of(x: &Statx, blank: Stat) -> Stat {
    let mut stat = blank;
    stat.st_dev = rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor) as _;
    stat.st_rdev = rustix::fs::makedev(x.stx_rdev_major, x.stx_rdev_minor) as _;
    stat.st_ino = x.stx_ino as _;
    stat.st_nlink = x.stx_nlink as _;
    stat.st_mode = x.stx_mode as _;
    stat.st_uid = x.stx_uid as _;
    stat.st_gid = x.stx_gid as _;
    stat.st_size = x.stx_size as _;
    stat.st_blksize = x.stx_blksize as _;
    stat.st_blocks = x.stx_blocks as _;
    stat.st_atime = x.stx_atime.tv_sec as _;
    stat.st_atime_nsec = x.stx_atime.tv_nsec as _;
    stat.st_mtime = x.stx_mtime.tv_sec as _;
    stat.st_mtime_nsec = x.stx_mtime.tv_nsec as _;
    stat.st_ctime = x.stx_ctime.tv_sec as _;
    stat.st_ctime_nsec = x.stx_ctime.tv_nsec as _;
    stat
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
