//! Who looks at the source: whether it is well, when something failed; whether it is back, when it
//! was lost.
//!
//! A look may hang, so it is taken by a thread of its own, of which never more than one waits for
//! one mount of the source. While the source is held, it is the root that is held which is looked
//! at; when it was let go, whatever stands at its path: what has its type, its fsname and one of the
//! names that its root had is the source again, whatever its device is called now.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::Mirror;
use super::loss::place_of;
use super::outage::{Cause, Judge, Look};
use super::rest::Calm;
use crate::cache::{Names, SourceKey};
use crate::sys::{Errno, OrFail, Result, mountinfo};

/// How often it is looked whether the source is still mounted.
const CALM: Duration = Duration::from_secs(2);
/// How often a lost source is looked for, and how soon after a look the next suspicion counts.
const RETRY: Duration = Duration::from_millis(1000);
const SOON: Duration = Duration::from_millis(300);
/// A source that takes longer to tell of its root does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// However short a deadline readers were given.
const LEAST: Duration = Duration::from_secs(1);
/// Names of the root by which the source is known again.
const KNOWN: usize = 64;
/// Mounts that hang, each with a thread that waits for it.
const MOST_HUNG: usize = 4;

/// What became of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is not asked any more.
    Lost,
    /// It is asked again.
    Back,
}

/// Who is told of it: from a thread that answers no request and holds no lock.
pub type OnTurn = Box<dyn Fn(Turn) + Send + Sync>;

/// The thread that looks.
#[derive(Debug, Default)]
pub(super) struct Prober {
    /// A leaf.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Prober {
    pub(super) fn start(
        &self,
        mirror: &Arc<Mirror>,
        patience: Option<Duration>,
        told: OnTurn,
    ) -> Result<()> {
        let watcher = Watcher {
            mirror: Arc::clone(mirror),
            patience: patience.map_or(PATIENCE, |patience| patience.clamp(LEAST, PATIENCE)),
            told,
            pending: None,
            hung: 0,
            was_mounted: false,
            lost: mirror.outage.cause().is_some(),
            calm: Calm::begins(),
        };
        let thread = Builder::new().name("corfs-probe".into());
        let thread = thread.spawn(move || watcher.watch()).or_fail("spawn")?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Waits for its end, unless it is within a call that hangs.
    pub(super) fn end(&self) {
        if let Some(thread) = self.thread.lock().take() {
            let until = std::time::Instant::now() + Duration::from_secs(1);
            while !thread.is_finished() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// An answer: the root, or what was found in its place.
type Answer = std::result::Result<Arc<OwnedFd>, Look>;

struct Watcher {
    mirror: Arc<Mirror>,
    patience: Duration,
    told: OnTurn,
    /// A look that has no answer yet, and the mount at which it looks.
    pending: Option<(Receiver<Answer>, u64)>,
    /// Looks that were given up.
    hung: usize,
    /// The mount of the root was seen in the list of mounts.
    was_mounted: bool,
    /// It was told that the source is lost.
    lost: bool,
    calm: Calm,
}

impl Watcher {
    fn watch(mut self) {
        let mut judge = Judge::default();
        let mirror = Arc::clone(&self.mirror);
        self.is_unmounted();
        loop {
            if let Some(cause) = mirror.outage.cause() {
                if !self.lost {
                    // Somebody else found it lost.
                    self.lose(cause);
                }
                if mirror.outage.rest(RETRY) {
                    return;
                }
                self.look_for_it(&mut judge);
                continue;
            }
            let wishes = mirror.outage.wait(if judge.is_content() {
                CALM
            } else {
                judge.pause()
            });
            if wishes.ended {
                return;
            }
            if self.is_unmounted() {
                self.lose(Cause::Gone);
            } else if wishes.suspected || !judge.is_content() {
                let (look, _) = self.look(!mirror.is_resting());
                if let Some(cause) = judge.hear(look) {
                    self.lose(cause);
                } else if mirror.outage.rest(SOON) {
                    return;
                }
            } else {
                mirror.rest_when_idle(&mut self.calm);
            }
        }
    }

    fn lose(&mut self, cause: Cause) {
        self.lost = true;
        self.mirror.lose(cause);
        (self.told)(Turn::Lost);
    }

    /// The source is lost: is it back?
    fn look_for_it(&mut self, judge: &mut Judge) {
        let held = !self.mirror.lets_go();
        let (look, root) = self.look(held);
        judge.hear(look);
        match root {
            Some(_) if held => self.mirror.outage.close(),
            Some(root) => {
                if let Err(fail) = self.mirror.find_again(&root) {
                    return log::debug!("the source: {fail}");
                }
                self.was_mounted = false;
                self.is_unmounted();
            }
            None => {
                if !held {
                    // Somebody may have been about to open something.
                    self.mirror.let_go();
                }
                return;
            }
        }
        *judge = Judge::default();
        self.lost = false;
        (self.told)(Turn::Back);
    }

    /// Whether the mount that the root is on was unmounted, although it may still answer.
    fn is_unmounted(&mut self) -> bool {
        if !self.mirror.lets_go() {
            return false;
        }
        let (_, mount) = self.mirror.table.place();
        let Ok(mounts) = mountinfo::read() else {
            return false;
        };
        let there = mounts.iter().any(|one| one.id == mount);
        self.was_mounted |= there;
        // Of a mount that this process never could see nothing is known.
        self.was_mounted && !there
    }

    /// Looks at the root that is held, or for one by its path.
    fn look(&mut self, held: bool) -> (Look, Option<Arc<OwnedFd>>) {
        let place = if held { 0 } else { self.mount_at_path() };
        match &self.pending {
            Some((_, at)) if *at != place && self.hung < MOST_HUNG => {
                self.hung += 1;
                self.pending = None;
            }
            _ => {}
        }
        if self.pending.is_none() {
            match self.begin(held) {
                Some(answer) => self.pending = Some((answer, place)),
                None => return (Look::Failed, None),
            }
        }
        let Some((answer, _)) = &self.pending else {
            return (Look::Failed, None);
        };
        let found = match answer.recv_timeout(self.patience) {
            Err(RecvTimeoutError::Timeout) => return (Look::Hung, None),
            // It panicked.
            Err(RecvTimeoutError::Disconnected) => Err(Look::Failed),
            Ok(found) => found,
        };
        self.pending = None;
        match found {
            Ok(root) => (Look::Well, Some(root)),
            Err(look) => (look, None),
        }
    }

    /// The number of the mount at the source's path; asks nobody but the kernel.
    fn mount_at_path(&self) -> u64 {
        let Some(key) = self.mirror.key() else {
            return 0;
        };
        let flags = AtFlags::STATX_DONT_SYNC;
        let told = rustix::fs::statx(rustix::fs::CWD, &key.path, flags, StatxFlags::MNT_ID);
        told.map_or(0, |told| told.stx_mnt_id)
    }

    /// Sends a thread to look. Its answer may come late, or never.
    fn begin(&self, held: bool) -> Option<Receiver<Answer>> {
        let (tell, hear) = std::sync::mpsc::channel();
        let mirror = Arc::clone(&self.mirror);
        let look = move || {
            let found = if held {
                mirror.look_at_root()
            } else {
                mirror.look_at_path()
            };
            // Nobody may be there any more to hear it.
            let _ = tell.send(found);
        };
        let thread = Builder::new()
            .name("corfs-look".into())
            .stack_size(256 << 10);
        thread.spawn(look).is_ok().then_some(hear)
    }
}

impl Mirror {
    /// Whether descriptors of a lost source are let go, and it is looked for by its path: where
    /// there are names to serve instead. Else it is kept as it is held.
    pub(super) fn lets_go(&self) -> bool {
        self.memory.is_some()
    }

    /// As what the source is known.
    fn key(&self) -> Option<&SourceKey> {
        Some(&self.cached.as_ref()?.store.options().source)
    }

    /// The source is not asked from now on.
    pub(super) fn lose(&self, cause: Cause) {
        self.outage.open(cause);
        if self.lets_go() {
            self.let_go();
        }
    }

    /// Closes what is held of the source and can be spared, on a thread that may wait for that.
    pub(super) fn let_go(&self) {
        let files: Vec<_> = self.files.read().values().cloned().collect();
        let mut spared: Vec<_> = files.iter().filter_map(|file| file.spare()).collect();
        if self.table.holds_any() {
            spared.extend(self.table.lose_all());
        }
        self.windows.clear();
        if spared.is_empty() {
            return;
        }
        let drops = move || drop(spared);
        // Without a thread it waits here, where nobody else does.
        let _ = Builder::new().name("corfs-let-go".into()).spawn(drops);
    }

    /// `root` is the source again.
    fn find_again(&self, root: &Arc<OwnedFd>) -> Result<()> {
        let Some(cached) = &self.cached else {
            return Ok(());
        };
        let own = rustix::io::fcntl_dupfd_cloexec(root, 0).or_fail("dup")?;
        // Who was late may hold something of the mount before.
        drop(self.table.lose_all());
        let other = self.table.found_again(own, cached.is_stable())?;
        cached.found_again(root);
        if other {
            self.watch_no_more();
        }
        self.outage.close();
        Ok(())
    }

    /// Whether what is held stands at the source's path.
    pub(super) fn is_at_its_path(&self) -> bool {
        let (Some(key), Ok(held)) = (self.key(), self.table.fd(&self.table.root)) else {
            return false;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(found) = rustix::fs::open(&key.path, flags, Mode::empty()) else {
            return false;
        };
        let number = |fd: &OwnedFd| rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino);
        place_of(&found).is_ok_and(|place| place == self.table.place())
            && number(&found).is_some_and(|ino| Some(ino) == number(&held))
    }

    /// `root` is held from now on, if it is of the mount that was held before.
    pub(super) fn hold_again(&self, root: &Arc<OwnedFd>) -> Result<bool> {
        if self.table.place() != place_of(root)? {
            return Ok(false);
        }
        self.find_again(root).map(|()| true)
    }

    /// The root that is held, if it answers.
    fn look_at_root(&self) -> Answer {
        let fd = self.table.fd(&self.table.root).map_err(|_| Look::Failed)?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let asked = rustix::fs::statx(&*fd, c"", flags, StatxFlags::BASIC_STATS);
        let asked = asked.and_then(|_| rustix::fs::fstatfs(&*fd));
        asked.map_err(|errno| {
            if !self.lets_go() {
                self.outage.tell(errno);
            }
            Look::at(errno)
        })?;
        if !self.options.may_hang {
            return Ok(fd);
        }
        let empty = is_empty(&fd).map_err(Look::at)?;
        let known = self
            .memory
            .as_ref()
            .and_then(|memory| memory.names(Duration::ZERO));
        if empty && known.is_some_and(|names| !names.list(b"", b"", 1).is_empty()) {
            return Err(Look::Gone);
        }
        Ok(fd)
    }

    /// What stands at the source's path, if it is the source.
    pub(super) fn look_at_path(&self) -> Answer {
        let key = self.key().ok_or(Look::Failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(&key.path, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Look::Gone,
                _ => Look::at(errno),
            })?;
        if !key.is_of(fd.as_fd()) {
            return Err(Look::Gone);
        }
        let empty = is_empty(&fd).map_err(Look::at)?;
        let memory = self.memory.as_ref();
        let names = memory.and_then(|memory| memory.names(PATIENCE));
        if !names.is_none_or(|names| is_known(&fd, empty, &names)) {
            return Err(Look::Gone);
        }
        Ok(Arc::new(fd))
    }

    /// Whether the root is not suddenly empty: to be asked before anything is forgotten for its
    /// sake. Only what is asked over a wire can look so.
    pub(super) fn root_looks_well(&self, names: &Names) -> bool {
        if !self.options.may_hang || names.list(b"", b"", 1).is_empty() {
            return true;
        }
        if self.is_resting() {
            return false;
        }
        let fd = self.table.fd(&self.table.root);
        let well = fd.is_ok_and(|fd| is_empty(&fd).is_ok_and(|empty| !empty));
        if !well {
            self.outage.suspect();
        }
        well
    }
}

/// Whether a directory has no entry. A real open: it tells whether we may.
fn is_empty(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::new(fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a root has one of the names that the source's root had, if it had any.
fn is_known(root: &OwnedFd, empty: bool, names: &Names) -> bool {
    let known = names.list(b"", b"", KNOWN);
    let there = |name: &[u8]| {
        rustix::fs::statat(root, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    };
    known.is_empty() || !empty && known.iter().any(|(name, _)| there(name))
}
