//! Watching whole file systems, by fanotify.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{FileType, Mode, OFlags};

use super::Stale;
use crate::mirror::InodeTable;
use crate::mirror::inode::{Inode, NodeId};
use crate::observe::Metrics;
use crate::sys::fanotify::{self, Event, Fanotify, Fsid};
use crate::sys::handle::FileHandle;
use crate::sys::procfd;
use crate::sys::{Errno, Fail, OrFail, Result};

/// How many bytes of events are read at once: some hundreds of them.
const BUFFER: usize = 64 << 10;
/// How many things may be stale before the kernel is told of them.
const ENOUGH: usize = 4096;
/// How many bufferfuls are read before the kernel is told of what is stale: where others are busy
/// all the time, the queue may never be empty.
const ROUNDS: usize = 16;
/// How many handles that had to be opened are remembered, with what they are.
const REMEMBERED: usize = 4096;

/// The file systems of the source. Its locks are leaves; none is held across a system call,
/// except `marking`, which only the first answers of a new file system ever wait for.
#[derive(Debug)]
pub(super) struct Systems {
    events: Fanotify,
    ours: u32,
    home: u64,
    by_fsid: RwLock<HashMap<Fsid, Arc<System>>>,
    /// By device: whether it is watched. What is not in it was never tried.
    devices: RwLock<HashMap<u64, bool>>,
    marking: Mutex<()>,
    remembered: Mutex<LruCache<(Fsid, FileHandle), (u64, u64)>>,
    buffer: Mutex<Vec<u8>>,
    metrics: Arc<Metrics>,
}

/// One watched file system.
#[derive(Debug)]
struct System {
    device: u64,
    /// Any readable descriptor on it: what opens handles. It also keeps the file system from being
    /// unmounted, and with it the mark, of whose end nobody would tell us.
    mount: OwnedFd,
    /// Where its handles hold the inode number, as far as we know.
    layout: Option<Layout>,
}

/// Where a handle holds the inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    kind: i32,
    at: Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    /// The first 32 bits: ext2, ext3, ext4, XFS with small numbers (FILEID_INO32_GEN).
    First32,
    /// The first 64 bits: XFS (fs/xfs/xfs_export.h).
    First64,
    /// 64 bits after 32 others, the lower half first: tmpfs (mm/shmem.c, shmem_encode_fh).
    After32,
}

impl Layout {
    /// The layout on the file system of type `f_type`, if it holds for an inode whose number is
    /// known. Handles are opaque by contract; but NFS clients keep them, so they don't change.
    fn of(f_type: u64, handle: &FileHandle, ino: u64) -> Option<Self> {
        let tried: &[Number] = match f_type {
            0xef53 => &[Number::First32],
            0x5846_5342 => &[Number::First64, Number::First32],
            0x0102_1994 => &[Number::After32],
            _ => &[],
        };
        let kind = handle.kind();
        let fits = tried.iter().map(|&at| Self { kind, at });
        fits.into_iter()
            .find(|layout| layout.number(handle) == Some(ino))
    }

    fn number(self, handle: &FileHandle) -> Option<u64> {
        if handle.kind() != self.kind {
            return None;
        }
        let bytes = handle.bytes();
        let low = |at| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        match self.at {
            Number::First32 => low(0).map(u64::from),
            Number::First64 => Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?)),
            Number::After32 => Some(u64::from(low(4)?) | u64::from(low(8)?) << 32),
        }
    }
}

impl Systems {
    /// Watches the file system that `root` lies on.
    ///
    /// # Errors
    /// Those of fanotify_mark(2); of opening a handle, without which an event
    /// would tell nothing.
    pub(super) fn open(
        events: Fanotify,
        root: BorrowedFd<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let stat = rustix::fs::fstat(root).or_fail("fstat")?;
        let systems = Self {
            events,
            ours: std::process::id(),
            home: stat.st_dev,
            by_fsid: RwLock::default(),
            devices: RwLock::default(),
            marking: Mutex::default(),
            remembered: Mutex::new(LruCache::new(
                REMEMBERED.try_into().unwrap_or(std::num::NonZeroUsize::MIN),
            )),
            buffer: Mutex::new(vec![0; BUFFER]),
            metrics: metrics.clone(),
        };
        systems.mark(root)?;
        Ok(systems)
    }

    /// Watches the file system of `fd` (`O_PATH`).
    fn mark(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let stat = rustix::fs::fstat(fd).or_fail("fstat")?;
        let f_type = rustix::fs::fstatfs(fd).or_fail("fstatfs")?.f_type as u64;
        super::refuse_unwatchable(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && kind != FileType::RegularFile {
            return Err(Fail::new(Errno::OPNOTSUPP, "watch"));
        }
        let path = procfd::path(fd);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mount = rustix::fs::open(&*path, flags, Mode::empty()).or_fail("open")?;
        let handle = FileHandle::of(fd)?;
        handle.open(mount.as_fd(), OFlags::PATH)?;
        let path = std::ffi::CString::new(path).map_err(|_| Fail::new(Errno::INVAL, "watch"))?;
        let system = System {
            device: stat.st_dev,
            mount,
            layout: Layout::of(f_type, &handle, stat.st_ino),
        };
        self.by_fsid
            .write()
            .insert(fanotify::fsid(fd)?, Arc::new(system));
        self.events.watch_file_system(&path)?;
        let mut devices = self.devices.write();
        devices.insert(stat.st_dev, true);
        let watched = devices.values().filter(|watched| **watched).count();
        self.metrics.set_watches(watched as u64);
        Ok(())
    }

    /// The first inode of another file system has it watched, if that can be.
    pub(super) fn entered(&self, table: &InodeTable, inode: &Inode) {
        let device = table.device_of(inode.key);
        if device == self.home || self.devices.read().contains_key(&device) {
            return;
        }
        let _one = self.marking.lock();
        if self.devices.read().contains_key(&device) {
            return;
        }
        if let Err(fail) = table.fd(inode).and_then(|fd| self.mark(fd.as_fd())) {
            log::info!("a file system inside the source is not watched: {fail}");
            self.devices.write().insert(device, false);
            self.metrics.unwatched();
        }
    }

    pub(super) fn covers(&self, device: u64) -> bool {
        device == self.home || self.devices.read().get(&device) == Some(&true)
    }

    /// Whether changes of names in `parent` show. A mountpoint inside the source is none: what is
    /// mounted or unmounted there gives no event.
    pub(super) fn covers_names(
        &self,
        table: &InodeTable,
        parent: NodeId,
        child_dev: Option<u64>,
    ) -> bool {
        if child_dev == Some(self.home) {
            return true;
        }
        let parent = table.get(parent).map(|parent| table.device_of(parent.key));
        parent.is_ok_and(|dev| child_dev.is_none_or(|child| child == dev) && self.covers(dev))
    }

    pub(super) fn gather(&self, table: &InodeTable, stale: &mut HashSet<Stale>) -> Result<()> {
        let mut buffer = self.buffer.lock();
        for _ in 0..ROUNDS {
            if stale.len() >= ENOUGH {
                break;
            }
            let more = self.events.read(&mut buffer, |event| {
                self.metrics.watch_event();
                self.take(table, &event, stale);
            })?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// What one event makes stale.
    fn take(&self, table: &InodeTable, event: &Event, stale: &mut HashSet<Stale>) {
        if event.mask & fanotify::OVERFLOW != 0 {
            stale.insert(Stale::Everything);
            return;
        }
        let Some(system) = self.by_fsid.read().get(&event.fsid).cloned() else {
            return;
        };
        // What we do we do for the kernel, which knows it; by this mount, though, and by no other
        // that shows the same file.
        let ours = event.pid == self.ours;
        if ours && !table.has_twins(system.device) {
            return self.take_own(table, &system, event, stale);
        }
        const NAMES: u64 =
            fanotify::CREATE | fanotify::DELETE | fanotify::MOVED_FROM | fanotify::MOVED_TO;
        if event.mask & NAMES != 0 {
            // Of a name that only came to be the kernel can hold that there was none, of a directory
            // that came from elsewhere also an empty one in its place: such goes by being asked for
            // again. To drop it could take the path from whoever has entered it by now.
            let came = match event.mask & fanotify::ON_DIRECTORY {
                0 => fanotify::CREATE,
                _ => fanotify::CREATE | fanotify::MOVED_TO,
            };
            let wrong = !ours && event.mask & NAMES & !came != 0;
            self.take_name(table, &system, event, stale, wrong);
        }
        let target = match (&event.target, &event.name) {
            (Some(target), _) => target,
            (None, None) => match &event.dir {
                Some(dir) => dir,
                None => return,
            },
            (None, Some(_)) => return,
        };
        let bytes = event.mask & (fanotify::MODIFY | fanotify::CLOSE_WRITE) != 0;
        for inode in self.known(table, &system, event.fsid, target) {
            stale.insert(match bytes && inode.kind == FileType::RegularFile {
                true => Stale::Data(inode.id),
                false => Stale::Attributes(inode.id),
            });
        }
    }

    /// After a rename through the mount the kernel moves what it had by the old name to the new
    /// one, although another file may have been renamed: that name is to be asked for once.
    fn take_own(
        &self,
        table: &InodeTable,
        system: &System,
        event: &Event,
        stale: &mut HashSet<Stale>,
    ) {
        if event.mask & fanotify::MOVED_TO != 0 {
            self.take_name(table, system, event, stale, false);
        }
    }

    fn take_name(
        &self,
        table: &InodeTable,
        system: &System,
        event: &Event,
        stale: &mut HashSet<Stale>,
        wrong: bool,
    ) {
        let (Some(dir), Some(name)) = (&event.dir, &event.name) else {
            return;
        };
        for directory in self.known(table, system, event.fsid, dir) {
            stale.insert(Stale::Attributes(directory.id));
            stale.insert(Stale::Name {
                parent: directory.id,
                name: name.clone(),
                wrong: wrong && !told(table, &directory, name),
            });
        }
    }

    /// The inodes that the kernel knows of this handle: more than one where the file system is
    /// mounted more than once inside the source.
    fn known(
        &self,
        table: &InodeTable,
        system: &System,
        fsid: Fsid,
        handle: &FileHandle,
    ) -> Vec<Arc<Inode>> {
        let number = system.layout.and_then(|layout| layout.number(handle));
        let found = match number {
            Some(ino) => Some((system.device, ino)),
            None => self.resolve(system, fsid, handle),
        };
        found.map_or_else(Vec::new, |(device, ino)| table.twins(device, ino))
    }

    /// Device and number behind a handle. A handle never comes to mean another inode.
    fn resolve(&self, system: &System, fsid: Fsid, handle: &FileHandle) -> Option<(u64, u64)> {
        let key = (fsid, handle.clone());
        if let Some(found) = self.remembered.lock().get(&key) {
            return Some(*found);
        }
        let fd = handle.open(system.mount.as_fd(), OFlags::PATH).ok()?;
        let stat = rustix::fs::fstat(fd).ok()?;
        let found = (stat.st_dev, stat.st_ino);
        self.remembered.lock().put(key, found);
        Some(found)
    }
}

/// Whether what the name means at this moment was answered already, so that the kernel has it or is
/// about to: somebody may stand in that directory, have mounted something there, or run that program.
fn told(table: &InodeTable, directory: &Inode, name: &OsStr) -> bool {
    let known = table.find_at(directory, name).ok().flatten();
    let seen = known.and_then(|inode| inode.last_seen());
    seen.is_some_and(|(parent, seen)| parent == directory.id && seen == name)
}

impl AsFd for Systems {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_taken_only_where_it_holds() {
        let handle = FileHandle::reported(1, &[5, 0, 0, 0, 9, 0, 0, 0]).unwrap();
        let ext4 = Layout::of(0xef53, &handle, 5).unwrap();
        assert_eq!(ext4.at, Number::First32);
        assert_eq!(Layout::of(0xef53, &handle, 6), None);
        assert_eq!(Layout::of(0x9123_683e, &handle, 5), None);
        let other_kind = FileHandle::reported(2, &[5, 0, 0, 0, 9, 0, 0, 0]).unwrap();
        assert_eq!(ext4.number(&other_kind), None);
        assert_eq!(ext4.number(&FileHandle::reported(1, &[5]).unwrap()), None);
    }

    #[test]
    fn numbers_of_xfs_and_tmpfs_are_of_64_bits() {
        let ino = 0x1_0000_0007u64;
        let mut bytes = ino.to_ne_bytes().to_vec();
        bytes.extend([9, 0, 0, 0]);
        let xfs = FileHandle::reported(0x81, &bytes);
        assert_eq!(
            Layout::of(0x5846_5342, &xfs.unwrap(), ino).unwrap().at,
            Number::First64
        );
        let words = [9u32, ino as u32, (ino >> 32) as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let tmpfs = FileHandle::reported(1, &bytes);
        assert_eq!(
            Layout::of(0x0102_1994, &tmpfs.unwrap(), ino).unwrap().at,
            Number::After32
        );
    }

    /// A folder with `file` and `other`, known to a table, on a watched file system; none where
    /// this process may not watch one.
    fn watched() -> Option<(tempfile::TempDir, InodeTable, Systems)> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let metrics = Arc::new(Metrics::new());
        let systems =
            match Fanotify::new().and_then(|queue| Systems::open(queue, root.as_fd(), &metrics)) {
                Ok(systems) => systems,
                Err(fail) => {
                    crate::sys::testing::skip(&format!("no fanotify here: {fail}"));
                    return None;
                }
            };
        let table = InodeTable::of(root, metrics);
        Some((dir, table, systems))
    }

    fn id(table: &InodeTable, name: &str) -> NodeId {
        table.lookup(table.root(), name.as_ref()).unwrap().0.id
    }

    fn gathered(table: &InodeTable, systems: &Systems) -> HashSet<Stale> {
        let mut stale = HashSet::new();
        systems.gather(table, &mut stale).unwrap();
        stale
    }

    fn name(name: &str, wrong: bool) -> Stale {
        Stale::Name {
            parent: crate::mirror::ROOT,
            name: std::ffi::OsStr::new(name).into(),
            wrong,
        }
    }

    #[test]
    fn what_others_do_makes_names_and_bytes_and_attributes_stale() {
        let Some((dir, table, mut systems)) = watched() else {
            return;
        };
        systems.ours = 0;
        let (path, root) = (dir.path().join("file"), crate::mirror::ROOT);
        let file = id(&table, "file");
        assert_eq!(gathered(&table, &systems), HashSet::new());
        std::fs::write(&path, b"other bytes").unwrap();
        assert_eq!(
            gathered(&table, &systems),
            HashSet::from([Stale::Data(file)])
        );
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o612);
        std::fs::set_permissions(&path, mode).unwrap();
        assert_eq!(
            gathered(&table, &systems),
            HashSet::from([Stale::Attributes(file)])
        );
        std::fs::rename(&path, dir.path().join("other")).unwrap();
        let moved = [
            name("file", true),
            name("other", true),
            Stale::Attributes(root),
            Stale::Attributes(file),
        ];
        assert_eq!(gathered(&table, &systems), HashSet::from(moved));
        std::fs::remove_file(dir.path().join("other")).unwrap();
        let removed = gathered(&table, &systems);
        assert!(removed.contains(&name("other", true)), "{removed:?}");
        assert!(removed.contains(&Stale::Attributes(file)), "{removed:?}");
    }

    #[test]
    fn what_we_do_ourselves_is_no_news_but_for_the_name_after_a_rename() {
        let Some((dir, table, systems)) = watched() else {
            return;
        };
        id(&table, "file");
        let path = dir.path().join("file");
        std::fs::write(&path, b"other bytes").unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        assert_eq!(gathered(&table, &systems), HashSet::new());
        std::fs::rename(&path, dir.path().join("other")).unwrap();
        let told = [name("other", false), Stale::Attributes(crate::mirror::ROOT)];
        assert_eq!(gathered(&table, &systems), HashSet::from(told));
    }

    #[test]
    fn what_was_answered_since_is_not_taken_away() {
        let Some((dir, table, mut systems)) = watched() else {
            return;
        };
        systems.ours = 0;
        let path = |name| dir.path().join(name);
        std::fs::create_dir(path("made")).unwrap();
        std::fs::create_dir(path("before")).unwrap();
        std::fs::rename(path("before"), path("moved")).unwrap();
        std::fs::create_dir(path("again")).unwrap();
        std::fs::remove_dir(path("again")).unwrap();
        std::fs::create_dir(path("again")).unwrap();
        for told in ["made", "moved", "again"] {
            id(&table, told);
        }
        let stale = gathered(&table, &systems);
        for told in ["made", "moved", "again"] {
            assert!(stale.contains(&name(told, false)), "{told} in {stale:?}");
            assert!(!stale.contains(&name(told, true)), "{told} in {stale:?}");
        }
        assert!(stale.contains(&name("before", true)), "{stale:?}");
    }

    #[test]
    fn what_the_kernel_does_not_know_is_no_news() {
        let Some((dir, table, mut systems)) = watched() else {
            return;
        };
        systems.ours = 0;
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("file"), b"x").unwrap();
        std::fs::write(dir.path().join("file"), b"never looked up").unwrap();
        assert_eq!(gathered(&table, &systems), HashSet::new());
    }
}
