//! Watching directory by directory, by inotify: what anybody may do.
//!
//! Every directory that the kernel knows has a watch, up to a limit. An event names a directory
//! and a name in it, so the last name by which each inode was found is kept too.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FileType, Stat};

use super::Stale;
use crate::mirror::InodeTable;
use crate::mirror::inode::{Digest, Inode, NodeId, ROOT, Version};
use crate::observe::Metrics;
use crate::sys::procfd;
use crate::sys::{Errno, Fail, OrFail, Result};

/// How many bytes of events are read at once.
const BUFFER: usize = 64 << 10;
/// How many things may be stale before the kernel is told of them.
const ENOUGH: usize = 4096;
/// How many bufferfuls are read before the kernel is told of what is stale: where others are busy
/// all the time, the queue may never be empty.
const ROUNDS: usize = 16;
/// Times of change that lie no further apart, in nanoseconds, are of a file system that tells one
/// change from the next (Linux 6.13: Documentation/filesystems/multigrain-ts.rst). Where they are those
/// of the clock's last tick, there is a millisecond between two at least.
const TICK: i64 = 500_000;

/// The watched directories.
///
/// Order of locks: `state`, then the inode table's. Watches are added and removed under `state`,
/// so that no event comes of a watch that it does not know: those calls wait for no disk.
#[derive(Debug)]
pub(super) struct Directories {
    events: OwnedFd,
    limit: usize,
    hasher: RandomState,
    state: Mutex<State>,
    buffer: Mutex<Vec<MaybeUninit<u8>>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    /// The watch of each directory.
    watch: HashMap<NodeId, i32>,
    /// The directories of each watch: more than one where one is mounted again inside the source,
    /// for inotify has one watch an inode.
    directories: HashMap<i32, Vec<NodeId>>,
    /// Directories that could not be watched.
    beyond: HashSet<NodeId>,
    /// What a name (its hash, with its directory) was last said to mean.
    meaning: HashMap<u64, NodeId>,
    /// Where an inode was last found.
    home: HashMap<NodeId, Found>,
    /// Files as they were when this mirror changed them last.
    ours: HashMap<NodeId, Version>,
    /// Devices (st_dev) whose files were seen to change twice within [`TICK`], with times that differ.
    exact: HashSet<u64>,
}

/// Where an inode was last found, and as what.
#[derive(Debug)]
struct Found {
    parent: NodeId,
    /// Of the name in it.
    hash: u64,
    /// What the kernel may believe of a file for long.
    told: Option<Digest>,
}

/// One event, apart from the buffer it came in.
struct Event {
    watch: i32,
    what: ReadFlags,
    name: Option<Box<OsStr>>,
}

/// What makes something stale.
fn changes() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVE_SELF
        | WatchFlags::DELETE_SELF
        | WatchFlags::ONLYDIR
}

/// Half of what this user may have: his other programs want some too.
fn default_limit() -> usize {
    std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .map_or(4096, |most| most / 2)
}

impl Directories {
    /// Watches at most `limit` directories, the root first; none given, half of
    /// fs.inotify.max_user_watches.
    ///
    /// # Errors
    /// Those of inotify_init1(2) (EMFILE) and inotify_add_watch(2) on the root.
    pub(super) fn open(
        limit: Option<usize>,
        table: &InodeTable,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let directories = Self {
            events: inotify::init(flags).or_fail("inotify_init1")?,
            limit: limit.unwrap_or_else(default_limit).max(1),
            hasher: RandomState::new(),
            state: Mutex::default(),
            buffer: Mutex::new(vec![MaybeUninit::uninit(); BUFFER]),
            metrics: metrics.clone(),
        };
        let root = table.fd(table.root())?;
        directories.add(&mut directories.state.lock(), ROOT, root.as_fd())?;
        Ok(directories)
    }

    fn add(&self, state: &mut State, id: NodeId, fd: BorrowedFd<'_>) -> Result<()> {
        if state.watch.contains_key(&id) {
            return Ok(());
        }
        if state.watch.len() >= self.limit {
            return Err(Fail::new(Errno::NOSPC, "inotify_add_watch"));
        }
        let path = procfd::path(fd);
        let watch =
            inotify::add_watch(&self.events, &*path, changes()).or_fail("inotify_add_watch")?;
        state.watch.insert(id, watch);
        state.directories.entry(watch).or_default().push(id);
        self.metrics.set_watches(state.watch.len() as u64);
        Ok(())
    }

    /// An inode was found as `name` of `parent`: from now on events of it are known for what they
    /// are, and if it is a directory it is watched.
    pub(super) fn entered(&self, table: &InodeTable, parent: NodeId, name: &OsStr, inode: &Inode) {
        let hash = self.hash(parent, name);
        let mut state = self.state.lock();
        state.settle(inode.id, parent, hash);
        if inode.kind != FileType::Directory || state.watch.contains_key(&inode.id) {
            return;
        }
        drop(state);
        let fd = table.fd(inode).ok();
        let fd = fd.filter(|fd| super::refuse_unwatchable(fd.as_fd()).is_ok());
        let mut state = self.state.lock();
        let added = fd.is_some_and(|fd| self.add(&mut state, inode.id, fd.as_fd()).is_ok());
        if added {
            state.beyond.remove(&inode.id);
        } else if state.beyond.insert(inode.id) {
            self.metrics.unwatched();
        }
    }

    pub(super) fn forgotten(&self, table: &InodeTable, id: NodeId) {
        let mut state = self.state.lock();
        // Entered again meanwhile, under the same number.
        if table.get(id).is_ok() {
            return;
        }
        state.unsettle(id);
        state.ours.remove(&id);
        state.beyond.remove(&id);
        if let Some(watch) = state.watch.remove(&id) {
            if state.leave(watch, id) {
                // EINVAL: it went with its directory.
                let _ = inotify::remove_watch(&self.events, watch);
            }
            self.metrics.set_watches(state.watch.len() as u64);
        }
    }

    pub(super) fn changed_by_us(&self, id: NodeId, fd: BorrowedFd<'_>) {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            return;
        };
        let now = Version::of(&stat);
        let mut state = self.state.lock();
        // The kernel knows that it does not know its attributes now.
        state.told(id, None);
        let before = state.ours.insert(id, now);
        if before.is_some_and(|before| (1..TICK).contains(&now.after(&before))) {
            state.exact.insert(stat.st_dev);
        }
    }

    pub(super) fn renamed_by_us(&self, table: &InodeTable, parent: &Inode, name: &OsStr) {
        if let Ok(Some(inode)) = table.find_at(parent, name) {
            let hash = self.hash(parent.id, name);
            self.state.lock().settle(inode.id, parent.id, hash);
        }
    }

    pub(super) fn covers_names(&self, parent: NodeId) -> bool {
        self.state.lock().watch.contains_key(&parent)
    }

    /// Whether changes of this inode show: a directory's by its own watch, another's by that of
    /// the directory it was found in, unless it has names elsewhere. Then that is what the kernel is
    /// told of it.
    pub(super) fn covers(&self, id: NodeId, stat: &Stat) -> bool {
        let mut state = self.state.lock();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return state.watch.contains_key(&id);
        }
        let covers = stat.st_nlink == 1 && state.is_at_home(id);
        state.told(id, covers.then(|| Version::of(stat).digest()));
        covers
    }

    /// Whether the kernel believes a file to be another than it is, though it was covered: somebody
    /// gave it a name in a directory without a watch, of which there is no event, and used that.
    pub(super) fn is_mistaken(&self, id: NodeId, stat: &Stat) -> bool {
        let told = self.state.lock().home.get(&id).and_then(|home| home.told);
        told.is_some_and(|told| told != Version::of(stat).digest())
    }

    pub(super) fn gather(&self, table: &InodeTable, stale: &mut HashSet<Stale>) -> Result<()> {
        for _ in 0..ROUNDS {
            if stale.len() >= ENOUGH {
                break;
            }
            let events = self.read()?;
            if events.is_empty() {
                break;
            }
            for event in events {
                self.metrics.watch_event();
                self.take(table, &event, stale);
            }
        }
        Ok(())
    }

    /// One bufferful of events.
    fn read(&self) -> Result<Vec<Event>> {
        let mut buffer = self.buffer.lock();
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    watch: event.wd(),
                    what: event.events(),
                    name: event
                        .file_name()
                        .map(|name| OsStr::from_bytes(name.to_bytes()).into()),
                }),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(errno) => return Err(Fail::new(errno, "read events")),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        Ok(events)
    }

    fn take(&self, table: &InodeTable, event: &Event, stale: &mut HashSet<Stale>) {
        if event.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            stale.insert(Stale::Everything);
            return;
        }
        let directories = self.state.lock().directories.get(&event.watch).cloned();
        for directory in directories.into_iter().flatten() {
            self.take_of(table, directory, event, stale);
        }
    }

    /// What one event makes stale of one of the directories that it is of.
    fn take_of(
        &self,
        table: &InodeTable,
        directory: NodeId,
        event: &Event,
        stale: &mut HashSet<Stale>,
    ) {
        if event.what.contains(ReadFlags::IGNORED) {
            return self.lost(table, directory, event.watch, stale);
        }
        let Some(name) = &event.name else {
            stale.insert(Stale::Attributes(directory));
            return;
        };
        let names =
            ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        if event.what.intersects(names) {
            self.take_name(table, directory, name, stale);
        } else {
            let bytes = ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE;
            self.take_change(table, directory, name, event.what.intersects(bytes), stale);
        }
    }

    /// A watch has ended by itself: its directory was removed, or its file system is gone.
    fn lost(&self, table: &InodeTable, id: NodeId, watch: i32, stale: &mut HashSet<Stale>) {
        let mut state = self.state.lock();
        state.leave(watch, id);
        if state.watch.get(&id) == Some(&watch) {
            state.watch.remove(&id);
        }
        self.metrics.set_watches(state.watch.len() as u64);
        drop(state);
        let removed = || {
            let inode = table.get(id).ok()?;
            let stat = rustix::fs::fstat(&*table.fd(&inode).ok()?).ok()?;
            Some(stat.st_nlink == 0)
        };
        stale.insert(match removed() {
            Some(false) => Stale::Everything,
            _ => Stale::Attributes(id),
        });
    }

    /// A name has come or gone. What the kernel was told by an answer of ours, and is still so, it
    /// must not lose: somebody may stand in that directory.
    fn take_name(
        &self,
        table: &InodeTable,
        directory: NodeId,
        name: &OsStr,
        stale: &mut HashSet<Stale>,
    ) {
        stale.insert(Stale::Attributes(directory));
        let hash = self.hash(directory, name);
        let told = self.state.lock().meaning.get(&hash).copied();
        let parent = table.get(directory);
        let true_one = parent.and_then(|parent| table.find_at(&parent, name));
        let true_one = true_one.ok().flatten().map(|inode| inode.id);
        for id in told.into_iter().chain(true_one) {
            stale.insert(Stale::Attributes(id));
        }
        if told.is_some() && told == true_one {
            return;
        }
        let mut state = self.state.lock();
        if told.is_some() && state.meaning.get(&hash).copied() == told {
            state.meaning.remove(&hash);
        }
        drop(state);
        // What was told by no answer yet is either that there is nothing, or an answer under way,
        // ours to a request that made the name perhaps: then it is only to be asked for once more.
        stale.insert(Stale::Name {
            parent: directory,
            name: name.into(),
            wrong: told.is_some(),
        });
    }

    /// Bytes or attributes of an entry have changed.
    fn take_change(
        &self,
        table: &InodeTable,
        directory: NodeId,
        name: &OsStr,
        bytes: bool,
        stale: &mut HashSet<Stale>,
    ) {
        let hash = self.hash(directory, name);
        let told = self.state.lock().meaning.get(&hash).copied();
        let inode = match told {
            Some(id) => table.get(id).ok(),
            // Known by another of its names.
            None => {
                let parent = table.get(directory);
                parent
                    .and_then(|parent| table.find_at(&parent, name))
                    .ok()
                    .flatten()
            }
        };
        let Some(inode) = inode else { return };
        if self.as_we_left_it(table, &inode) {
            return;
        }
        stale.insert(match bytes && inode.kind == FileType::RegularFile {
            true => Stale::Data(inode.id),
            false => Stale::Attributes(inode.id),
        });
    }

    /// Whether nothing has happened to it since this mirror changed it. If somebody else did
    /// before that, the times that our change gave it have the kernel drop its pages all the same.
    /// Where times are not known to be exact, somebody may have changed it since and left the same.
    fn as_we_left_it(&self, table: &InodeTable, inode: &Inode) -> bool {
        let Some(ours) = self.state.lock().ours.get(&inode.id).copied() else {
            return false;
        };
        let now = table
            .fd(inode)
            .and_then(|fd| rustix::fs::fstat(&*fd).or_fail("fstat"));
        now.is_ok_and(|stat| {
            Version::of(&stat) == ours && self.state.lock().exact.contains(&stat.st_dev)
        })
    }

    fn hash(&self, parent: NodeId, name: &OsStr) -> u64 {
        self.hasher.hash_one((parent, name))
    }
}

impl State {
    fn settle(&mut self, id: NodeId, parent: NodeId, hash: u64) {
        let told = self.home.get(&id).and_then(|home| home.told);
        self.unsettle(id);
        self.home.insert(id, Found { parent, hash, told });
        self.meaning.insert(hash, id);
    }

    fn told(&mut self, id: NodeId, told: Option<Digest>) {
        if let Some(home) = self.home.get_mut(&id) {
            home.told = told;
        }
    }

    /// Whether it is by the name, in a directory with a watch, by which it was last found.
    fn is_at_home(&self, id: NodeId) -> bool {
        let there = |home: &Found| {
            self.watch.contains_key(&home.parent) && self.meaning.get(&home.hash) == Some(&id)
        };
        self.home.get(&id).is_some_and(there)
    }

    /// A directory is no longer of this watch; true when it was the last.
    fn leave(&mut self, watch: i32, id: NodeId) -> bool {
        let Some(directories) = self.directories.get_mut(&watch) else {
            return true;
        };
        directories.retain(|other| *other != id);
        let last = directories.is_empty();
        if last {
            self.directories.remove(&watch);
        }
        last
    }

    fn unsettle(&mut self, id: NodeId) {
        if let Some(home) = self.home.remove(&id)
            && self.meaning.get(&home.hash) == Some(&id)
        {
            self.meaning.remove(&home.hash);
        }
    }
}

impl AsFd for Directories {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    struct World {
        dir: tempfile::TempDir,
        table: InodeTable,
        directories: Directories,
    }

    impl World {
        fn new(limit: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("file"), b"x").unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
            let metrics = Arc::new(Metrics::new());
            let table = InodeTable::of(root, metrics.clone());
            let directories = Directories::open(Some(limit), &table, &metrics).unwrap();
            Self {
                dir,
                table,
                directories,
            }
        }

        fn lookup(&self, name: &str) -> (NodeId, Stat) {
            let name = OsStr::new(name);
            let (inode, stat) = self.table.lookup(self.table.root(), name).unwrap();
            self.directories.entered(&self.table, ROOT, name, &inode);
            (inode.id, stat)
        }

        fn gathered(&self) -> HashSet<Stale> {
            let mut stale = HashSet::new();
            self.directories.gather(&self.table, &mut stale).unwrap();
            stale
        }
    }

    fn name(name: &str, wrong: bool) -> Stale {
        Stale::Name {
            parent: ROOT,
            name: OsStr::new(name).into(),
            wrong,
        }
    }

    #[test]
    fn changes_are_known_by_the_name_last_answered() {
        let world = World::new(10);
        let (file, stat) = world.lookup("file");
        assert!(world.directories.covers(file, &stat) && world.directories.covers_names(ROOT));
        let path = world.dir.path().join("file");
        std::fs::write(&path, b"other bytes").unwrap();
        assert_eq!(world.gathered(), HashSet::from([Stale::Data(file)]));
        std::fs::rename(&path, world.dir.path().join("other")).unwrap();
        let moved = [
            name("file", true),
            name("other", false),
            Stale::Attributes(ROOT),
            Stale::Attributes(file),
        ];
        assert_eq!(world.gathered(), HashSet::from(moved));
        assert!(
            !world.directories.covers(file, &stat),
            "not where it was found"
        );
        world.lookup("other");
        assert!(world.directories.covers(file, &stat));
    }

    /// There is no event of a name in a directory without a watch, nor of what is done by it.
    #[test]
    fn a_file_that_was_changed_by_a_name_made_elsewhere_is_found_out_when_it_is_looked_at() {
        let world = World::new(1);
        let path = world.dir.path().join("file");
        let looked = || rustix::fs::stat(&path).unwrap();
        let (file, _) = world.lookup("file");
        let directories = &world.directories;
        assert!(!directories.is_mistaken(file, &looked()), "nothing is told");
        assert!(directories.covers(file, &looked()));
        assert!(!directories.is_mistaken(file, &looked()));
        std::fs::create_dir(world.dir.path().join("dir")).unwrap();
        world.gathered();
        let other = world.dir.path().join("dir/other");
        std::fs::hard_link(&path, &other).unwrap();
        std::fs::write(&other, b"other bytes").unwrap();
        assert_eq!(world.gathered(), HashSet::new());
        assert!(directories.is_mistaken(file, &looked()));
        world.lookup("file");
        assert!(directories.is_mistaken(file, &looked()), "still");
        assert!(!directories.covers(file, &looked()), "it has two names");
        assert!(!directories.is_mistaken(file, &looked()));
    }

    #[test]
    fn what_an_answer_has_told_already_is_no_news() {
        let world = World::new(10);
        let path = world.dir.path().join("new");
        std::fs::write(&path, b"x").unwrap();
        let (new, _) = world.lookup("new");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(5).unwrap();
        let dev = rustix::fs::fstat(&file).unwrap().st_dev;
        world.directories.state.lock().exact.insert(dev);
        world.directories.changed_by_us(new, file.as_fd());
        let stale = world.gathered();
        assert!(!stale.contains(&Stale::Data(new)), "{stale:?}");
        assert!(
            !stale.iter().any(|s| matches!(s, Stale::Name { .. })),
            "{stale:?}"
        );
    }

    /// Two changes within a tick of a coarse clock leave the same times.
    #[test]
    fn where_times_may_be_coarse_our_own_change_is_news() {
        let world = World::new(10);
        let (file, _) = world.lookup("file");
        let path = world.dir.path().join("file");
        let ours = std::fs::File::options().write(true).open(path).unwrap();
        ours.set_len(5).unwrap();
        world.directories.changed_by_us(file, ours.as_fd());
        assert_eq!(world.gathered(), HashSet::from([Stale::Data(file)]));
    }

    #[test]
    fn times_are_exact_where_they_differ_by_less_than_a_tick() {
        let stat = rustix::fs::stat("/").unwrap();
        let later = |nanoseconds: u64| {
            let mut stat = stat;
            stat.st_ctime += 1;
            stat.st_ctime_nsec = nanoseconds;
            Version::of(&stat)
        };
        let is_exact = |by: u64| (1..TICK).contains(&later(1000 + by).after(&later(1000)));
        assert!(is_exact(1) && is_exact(300_000));
        assert!(!is_exact(0) && !is_exact(999_000) && !is_exact(4_000_000));
        let back = later(0).after(&later(1000));
        assert!(!(1..TICK).contains(&back), "{back}");
    }

    #[test]
    fn a_file_of_two_names_and_a_directory_beyond_the_limit_are_not_covered() {
        let world = World::new(2);
        for dir in ["one", "two"] {
            std::fs::create_dir(world.dir.path().join(dir)).unwrap();
        }
        let ((one, stat), (two, _)) = (world.lookup("one"), world.lookup("two"));
        assert!(world.directories.covers(one, &stat) && world.directories.covers_names(one));
        assert!(!world.directories.covers(two, &stat) && !world.directories.covers_names(two));
        // What is forgotten makes room.
        world.table.forget(one, 1);
        world.directories.forgotten(&world.table, one);
        world.lookup("two");
        assert!(world.directories.covers_names(two));
        let path = world.dir.path().join("file");
        std::fs::hard_link(&path, world.dir.path().join("second")).unwrap();
        let (file, stat) = world.lookup("file");
        assert!(!world.directories.covers(file, &stat));
    }
}
