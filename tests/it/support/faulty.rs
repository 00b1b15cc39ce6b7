//! A source that fails, delays, hangs and cuts short on command: a small FUSE file system of the
//! test process, over a folder (root only).
//!
//! Every request that meets a fault waits on a thread of its own, so that one that hangs stalls
//! nobody else, and each test decides when it goes on.

mod serve;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Scratch, wait_until};

/// What a request wants, as far as faults tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Lookup,
    Getattr,
    Setattr,
    Open,
    Read,
    Write,
    Flush,
    Fsync,
    /// The same of a directory.
    Fsyncdir,
    /// Always refused, in the end: not on this file system.
    Fallocate,
    /// The same.
    CopyRange,
    Create,
    Mkdir,
    Unlink,
    Rename,
    Readdir,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Error(Errno),
    Delay(Duration),
    /// Until the faults are healed, or for ever.
    Hang,
}

#[derive(Clone, Debug)]
struct Rule {
    on: On,
    /// The name of the file it is about; of any when there is none.
    name: Option<String>,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// What happens to every request.
    all: Option<Fault>,
    /// The root has no names.
    empty: bool,
    /// Requests that hang now.
    waiting: Vec<On>,
    /// Reads bring at most so many bytes, and the file is opened for direct I/O.
    short: Option<usize>,
    /// Files end here, whatever their attributes say.
    cut: Option<u64>,
    /// Reads from there on fail.
    broken: Option<(u64, Errno)>,
    /// Writes from there on fail.
    full: Option<(u64, Errno)>,
    /// What is written there is stored wrong.
    spoilt: Option<u64>,
    /// Changes with every healing, and ends the hanging.
    healed: u64,
    /// Directories, as often as each was synced.
    synced: Vec<PathBuf>,
}

/// What was asked of the source since it is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Requests to read.
    pub(crate) reads: u64,
    /// Bytes that they brought.
    pub(crate) bytes: u64,
}

/// A line over which all bytes go, one after the other.
#[derive(Debug)]
struct Wire {
    bytes_per_second: f64,
    /// Until then it is taken.
    free: Instant,
}

/// The commands, shared by the test and the requests.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
    /// Neither of these two is a fault that is healed.
    asked: Mutex<Asked>,
    wire: Mutex<Option<Wire>>,
    /// Seconds by which ctimes are shown older than they are.
    older: AtomicU64,
    /// The folder that is shown.
    root: std::sync::OnceLock<PathBuf>,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rule(&self, on: On, name: Option<&str>, fault: Fault) {
        let name = name.map(str::to_owned);
        self.state().rules.push(Rule { on, name, fault });
    }

    /// Requests of that kind about files of that name (any, if none is given) fail.
    pub(crate) fn fail(&self, on: On, name: Option<&str>, errno: Errno) {
        self.rule(on, name, Fault::Error(errno));
    }

    /// They take so much longer.
    pub(crate) fn delay(&self, on: On, name: Option<&str>, time: Duration) {
        self.rule(on, name, Fault::Delay(time));
    }

    /// They hang until [`Faults::heal`].
    pub(crate) fn hang(&self, on: On, name: Option<&str>) {
        self.rule(on, name, Fault::Hang);
    }

    /// Every request fails.
    pub(crate) fn fail_all(&self, errno: Errno) {
        self.state().all = Some(Fault::Error(errno));
    }

    /// Every request hangs until [`Faults::heal`].
    pub(crate) fn hang_all(&self) {
        self.state().all = Some(Fault::Hang);
    }

    /// The root looks as if it had nothing in it.
    pub(crate) fn look_empty(&self) {
        self.state().empty = true;
    }

    /// Reads bring at most so many bytes at a time; for files opened from now on.
    pub(crate) fn short_reads(&self, bytes: usize) {
        self.state().short = Some(bytes);
    }

    /// Reads find the end of every file here, while its attributes tell of more.
    pub(crate) fn cut(&self, end: u64) {
        self.state().cut = Some(end);
    }

    /// Reads that reach beyond this offset fail, as of a bad sector. None is short: the kernel would
    /// take that for the end of the file, fill its page with zeros, and believe them.
    pub(crate) fn break_from(&self, offset: u64, errno: Errno) {
        self.state().broken = Some((offset, errno));
    }

    /// Writes from this offset on fail.
    pub(crate) fn fill_from(&self, offset: u64, errno: Errno) {
        self.state().full = Some((offset, errno));
    }

    /// The byte that is written at this offset is stored wrong.
    pub(crate) fn spoil(&self, offset: u64) {
        self.state().spoilt = Some(offset);
    }

    /// No more faults; what hangs goes on.
    pub(crate) fn heal(&self) {
        self.heal_but(Vec::new());
    }

    /// What hangs goes on, and from the same moment on requests of that kind hang.
    pub(crate) fn hang_next(&self, on: On) {
        let fault = Fault::Hang;
        self.heal_but(vec![Rule {
            on,
            name: None,
            fault,
        }]);
    }

    fn heal_but(&self, rules: Vec<Rule>) {
        let mut state = self.state();
        let healed = state.healed + 1;
        let waiting = std::mem::take(&mut state.waiting);
        *state = State {
            healed,
            waiting,
            rules,
            ..State::default()
        };
        drop(state);
        self.changed.notify_all();
    }

    /// Which directories were synced since the last healing, each as often as it was.
    pub(crate) fn synced(&self) -> Vec<PathBuf> {
        let mut synced = self.state().synced.clone();
        synced.sort();
        synced
    }

    /// What was read so far, and the count begins anew.
    pub(crate) fn take_asked(&self) -> Asked {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on all that is read together comes at most so fast; `None`: as fast as it can.
    pub(crate) fn bandwidth(&self, bytes_per_second: Option<u64>) {
        let wire = bytes_per_second.map(|bytes| Wire {
            bytes_per_second: bytes as f64,
            free: Instant::now(),
        });
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = wire;
    }

    /// From now on all ctimes are shown as so much older, which nobody can set: so that a file just
    /// made looks like one that has been there for long.
    pub(crate) fn show_older(&self, by: Duration) {
        self.older.store(by.as_secs(), Ordering::Relaxed);
    }

    /// Whether reading takes its time, and should not hold up other requests.
    fn is_slow(&self) -> bool {
        let wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        wire.is_some()
    }

    /// Counts what a read brings, and waits until it is through the wire.
    fn transfer(&self, bytes: u64) {
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.reads += 1;
            asked.bytes += bytes;
        }
        let arrival = {
            let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
            wire.as_mut().map(|wire| {
                let takes = Duration::from_secs_f64(bytes as f64 / wire.bytes_per_second);
                wire.free = wire.free.max(Instant::now()) + takes;
                wire.free
            })
        };
        if let Some(arrival) = arrival {
            std::thread::sleep(arrival.saturating_duration_since(Instant::now()));
        }
    }

    /// How many requests of that kind hang now.
    pub(crate) fn hanging(&self, on: On) -> usize {
        self.state().waiting.iter().filter(|&&w| w == on).count()
    }

    /// Waits until so many requests of that kind hang.
    #[track_caller]
    pub(crate) fn await_hanging(&self, on: On, count: usize) {
        let what = format!("{count} requests hang on {on:?}");
        wait_until(&what, Duration::from_secs(20), || self.hanging(on) >= count);
    }

    fn fault(&self, on: On, path: &Path) -> Option<Fault> {
        let name = path.file_name().map(|name| name.to_string_lossy());
        let state = self.state();
        if state.all.is_some() {
            return state.all;
        }
        let root = self.root.get().map(PathBuf::as_path);
        if state.empty && on == On::Lookup && path.parent() == root {
            return Some(Fault::Error(Errno::NOENT));
        }
        let meets = |rule: &&Rule| {
            rule.on == on && (rule.name.is_none() || rule.name.as_deref() == name.as_deref())
        };
        state.rules.iter().find(meets).map(|rule| rule.fault)
    }

    /// Whether that folder is to look empty.
    fn hides(&self, folder: &Path) -> bool {
        self.state().empty && self.root.get().map(PathBuf::as_path) == Some(folder)
    }

    /// Undergoes a fault, and says what is left to tell the caller.
    fn undergo(&self, on: On, fault: Fault) -> Result<(), Errno> {
        match fault {
            Fault::Error(errno) => return Err(errno),
            Fault::Delay(time) => std::thread::sleep(time),
            Fault::Hang => {
                let mut state = self.state();
                let before = state.healed;
                state.waiting.push(on);
                while state.healed == before {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if let Some(at) = state.waiting.iter().position(|&w| w == on) {
                    state.waiting.swap_remove(at);
                }
            }
        }
        Ok(())
    }
}

/// The file system, mounted; healed, cut off and unmounted on drop.
#[derive(Debug)]
pub(crate) struct FaultySource {
    faults: Arc<Faults>,
    point: PathBuf,
    store: PathBuf,
    thread: Option<JoinHandle<()>>,
    _scratch: Scratch,
}

impl FaultySource {
    /// An empty one, without faults.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        let (store, point) = (scratch.dir("store"), scratch.dir("faulty"));
        let faults: Arc<Faults> = Arc::default();
        let _ = faults.root.set(store.clone());
        let thread = serve_at(&store, &point, &faults);
        Self {
            faults,
            point,
            store,
            thread: Some(thread),
            _scratch: scratch,
        }
    }

    /// Mounts it anew where it was, after [`FaultySource::die`] or an unmount.
    #[track_caller]
    pub(crate) fn come_back(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.thread = Some(serve_at(&self.store, &self.point, &self.faults));
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// The folder that it shows, without faults.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// What goes wrong.
    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Cuts the connection: all that is asked from now on, and all that hangs, fails with
    /// ENOTCONN or ECONNABORTED.
    pub(crate) fn die(&self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::FORCE | UnmountFlags::DETACH);
        self.faults.heal();
    }
}

impl Drop for FaultySource {
    fn drop(&mut self) {
        self.die();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Mounts and serves; numbers its inodes anew.
#[track_caller]
fn serve_at(store: &Path, point: &Path, faults: &Arc<Faults>) -> JoinHandle<()> {
    let device = mount(point);
    let server = serve::Server::new(store.to_owned(), faults.clone());
    let mut config = Config::default();
    config.n_threads = Some(2);
    let session = Session::from_fd(server, device, SessionACL::All, config).expect("session");
    std::thread::spawn(move || {
        // Its end is the unmount's, whatever it calls it.
        let _ = session.run();
    })
}

fn mount(point: &Path) -> OwnedFd {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse");
    let words = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let words = std::ffi::CString::new(words).expect("no zero byte");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("faulty", point, "fuse.faulty", flags, words.as_c_str()).expect("mount");
    device.into()
}
