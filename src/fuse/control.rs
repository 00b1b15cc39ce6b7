//! The virtual files: `.copy` in every directory, the `.corfs/` folder at the root.
//!
//! Every lookup of a `.copy` answers a fresh node id with timeout 0: the kernel admits one writer
//! an inode at a time, so with one id a second `echo` would reach us only when the first had
//! ended. A real entry of that name in the source wins, and is served like any other.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FopenFlags, ReplyEmpty, ReplyWrite, Request};
use parking_lot::Mutex;

use super::convert;
use super::oplog::{OpLog, take_noted};
use crate::copy::{ControlHandle, Jobs, Writer};
use crate::mirror::{self, Attr, Caller, Inode, InodeTable, MAX_READ, Mirror, NodeId, ROOT};
use crate::observe::{Fallback, Metrics, ReadMode};
use crate::sys::watch::umask_of;
use crate::sys::{Errno, Fail, Result};

/// The folder at the root.
const FOLDER: &str = ".corfs";

/// Which virtual file a node id stands for.
#[derive(Clone, Debug)]
enum Node {
    /// The `.copy` of this directory.
    Copy(Arc<Inode>),
    Folder,
    Stats,
    Config,
    /// The list of jobs for programs.
    Jobs,
    /// The log of operations, for those who read it now.
    OpLog,
}

/// One open of a virtual file.
struct Handle {
    opener: u32,
    /// What a reader sees: taken anew when it reads from the start.
    text: Mutex<Arc<[u8]>>,
    copy: Option<Arc<ControlHandle>>,
}

/// All virtual files of one mount. Its locks are leaves.
pub(super) struct ControlFiles {
    mirror: Arc<Mirror>,
    metrics: Arc<Metrics>,
    jobs: Arc<Jobs>,
    config: Arc<[u8]>,
    owner: (u32, u32),
    mounted: i64,
    folder: NodeId,
    stats: NodeId,
    settings: NodeId,
    list: NodeId,
    log: NodeId,
    oplog: Arc<OpLog>,
    copies: Mutex<HashMap<NodeId, (Arc<Inode>, u64)>>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    shadowed: AtomicBool,
    /// The source may not answer: what needs none of its answers must not wait for one.
    apart: bool,
    /// Whether the source has a [`FOLDER`] of its own, as far as it has been asked.
    folder_is_real: AtomicBool,
}

impl ControlFiles {
    pub(super) fn new(
        mirror: Arc<Mirror>,
        metrics: Arc<Metrics>,
        jobs: Arc<Jobs>,
        oplog: Arc<OpLog>,
        config: String,
    ) -> Self {
        let table = mirror.table();
        Self {
            folder: table.virtual_id(),
            stats: table.virtual_id(),
            settings: table.virtual_id(),
            list: table.virtual_id(),
            log: table.virtual_id(),
            oplog,
            mirror,
            metrics,
            jobs,
            config: config.into_bytes().into(),
            owner: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            mounted: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs() as i64),
            copies: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            shadowed: AtomicBool::new(false),
            apart: false,
            folder_is_real: AtomicBool::new(false),
        }
    }

    /// Whether the source may not answer.
    pub(super) fn set_apart(&mut self, apart: bool) {
        self.apart = apart;
    }

    /// Whether a lookup asks for nothing that only the source knows, though it may hang.
    pub(super) fn is_apart(&self, parent: NodeId, name: &OsStr) -> bool {
        parent == self.folder
            || self.apart
                && parent == ROOT
                && name == FOLDER
                && !self.folder_is_real.load(Ordering::Relaxed)
    }

    /// Asks a source that may hang, once, whether it has a folder of our name; until it has
    /// answered ours is shown.
    pub(super) fn look_for_folder(&self) {
        let real = self.mirror.has_entry(ROOT, OsStr::new(FOLDER));
        self.folder_is_real
            .store(real.unwrap_or(false), Ordering::Relaxed);
    }

    /// Whether it is one of the files that are about the mount, not about a directory of it.
    pub(super) fn is_own(&self, id: NodeId) -> bool {
        let own = [self.folder, self.stats, self.settings, self.list, self.log];
        own.contains(&id)
    }

    fn off(&self) -> bool {
        self.mirror.options().control == mirror::Control::Off
    }

    /// Whether `name` in `parent` is a virtual file: of a virtual file's name, and no real entry.
    pub(super) fn covers(&self, parent: NodeId, name: &OsStr) -> Result<bool> {
        if parent == self.folder {
            return Ok(true);
        }
        let is_copy = !self.off() && name == self.mirror.options().control_name;
        let is_folder = parent == ROOT && name == FOLDER;
        if (!is_copy && !is_folder) || InodeTable::is_virtual(parent) {
            return Ok(false);
        }
        if self.is_apart(parent, name) {
            return Ok(true);
        }
        let real = match self.mirror.has_entry(parent, name) {
            // Statistics are wanted most where the source fails.
            Err(fail) if is_folder && fail.errno == Errno::IO => false,
            found => found?,
        };
        if real && !self.shadowed.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the source has an entry {}: it is served, and that directory has no control \
                 file; choose another name with control_name=",
                name.display()
            );
        }
        Ok(!real)
    }

    /// As [`ControlFiles::covers`], for what this thread works on: of what a control file is asked no
    /// log is told.
    fn is_ours(&self, parent: NodeId, name: &OsStr) -> Result<bool> {
        let ours = self.covers(parent, name)?;
        if ours {
            drop(take_noted());
        }
        Ok(ours)
    }

    /// Refuses to make `name` in `parent` where a virtual file stands: EEXIST.
    pub(super) fn refuse_new(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        match self.is_ours(parent, name)? {
            _ if parent == self.folder => Err(Fail::new(Errno::PERM, "create in .corfs")),
            true => Err(Fail::new(Errno::EXIST, "create over a control file")),
            false => Ok(()),
        }
    }

    /// Refuses to remove or rename a virtual file: EPERM.
    pub(super) fn refuse_change(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        if self.is_ours(parent, name)? {
            return Err(Fail::new(Errno::PERM, "change a control file"));
        }
        Ok(())
    }

    /// Finds a virtual file; None when the name is not one.
    pub(super) fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Attr>> {
        if parent == self.folder {
            let id = match name.as_encoded_bytes() {
                b"stats" => self.stats,
                b"config" => self.settings,
                b"jobs.json" => self.list,
                b"oplog" => self.log,
                _ => return Err(Fail::new(Errno::NOENT, "lookup")),
            };
            return self.getattr(id).map(Some);
        }
        if !self.is_ours(parent, name)? {
            return Ok(None);
        }
        if parent == ROOT && name == FOLDER {
            return self.getattr(self.folder).map(Some);
        }
        let directory = self.mirror.table().get(parent)?;
        let id = self.mirror.table().virtual_id();
        let attr = self.attr(id, &Node::Copy(directory.clone()))?;
        self.copies.lock().insert(id, (directory, 1));
        Ok(Some(attr))
    }

    pub(super) fn forget(&self, id: NodeId, count: u64) {
        let mut copies = self.copies.lock();
        if let Some((_, lookups)) = copies.get_mut(&id) {
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 {
                copies.remove(&id);
            }
        }
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        if id == self.folder {
            return Ok(Node::Folder);
        }
        if id == self.stats {
            return Ok(Node::Stats);
        }
        if id == self.settings {
            return Ok(Node::Config);
        }
        if id == self.list {
            return Ok(Node::Jobs);
        }
        if id == self.log {
            return Ok(Node::OpLog);
        }
        let copies = self.copies.lock();
        match copies.get(&id) {
            Some((directory, _)) => Ok(Node::Copy(directory.clone())),
            None => Err(Fail::new(Errno::STALE, "find the control file")),
        }
    }

    pub(super) fn getattr(&self, id: NodeId) -> Result<Attr> {
        self.attr(id, &self.node(id)?)
    }

    fn attr(&self, id: NodeId, node: &Node) -> Result<Attr> {
        let mut stat = match node {
            Node::Copy(directory) => self.mirror.getattr(directory.id, None)?.stat,
            // The mount's own do not ask the source.
            _ => self.mirror.table().root_at_first(),
        };
        let mode = match node {
            Node::Copy(_) if self.mirror.options().allow_other => libc::S_IFREG | 0o666,
            Node::Copy(_) => libc::S_IFREG | 0o600,
            Node::Folder => libc::S_IFDIR | 0o555,
            Node::Stats | Node::Jobs => libc::S_IFREG | 0o444,
            // They name files and callers.
            Node::Config | Node::OpLog => libc::S_IFREG | 0o400,
        };
        if !matches!(node, Node::Copy(_)) {
            (stat.st_uid, stat.st_gid) = self.owner;
        }
        stat.st_mode = mode;
        stat.st_nlink = if matches!(node, Node::Folder) { 2 } else { 1 };
        (stat.st_size, stat.st_blocks, stat.st_rdev) = (0, 0, 0);
        for time in [&mut stat.st_atime, &mut stat.st_mtime, &mut stat.st_ctime] {
            *time = self.mounted;
        }
        (stat.st_atime_nsec, stat.st_mtime_nsec, stat.st_ctime_nsec) = (0, 0, 0);
        Ok(Attr { id, stat })
    }

    /// Opens a virtual file for the one who asks: what is written to a `.copy` is done with the
    /// rights that its opener has now.
    pub(super) fn open(&self, caller: &Caller, id: NodeId, flags: i32) -> Result<u64> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let copy = match self.node(id)? {
            Node::Folder => return Err(Fail::new(Errno::ISDIR, "open")),
            Node::Copy(directory) if writes => {
                let opener = self.mirror.opener(caller)?;
                let directory = self.mirror.table().fd(&directory)?;
                let user = caller.uid;
                Some(ControlHandle::open(
                    self.jobs.clone(),
                    directory,
                    user,
                    opener,
                    // Whoever is not to be seen has the mask that most have.
                    umask_of(caller.pid).unwrap_or(0o022),
                ))
            }
            Node::Stats | Node::Config | Node::Jobs | Node::OpLog if writes => {
                return Err(Fail::new(Errno::ACCESS, "open for writing"));
            }
            _ => None,
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        if self.is_oplog(id) {
            self.oplog.open(handle, flags)?;
        }
        let open = Handle {
            opener: caller.uid,
            text: Mutex::new(Arc::from([])),
            copy,
        };
        self.handles.lock().insert(handle, Arc::new(open));
        Ok(handle)
    }

    fn handle(&self, handle: u64) -> Result<Arc<Handle>> {
        let handles = self.handles.lock();
        handles
            .get(&handle)
            .cloned()
            .ok_or(Fail::new(Errno::BADF, "find the open control file"))
    }

    /// Reads a virtual file's text: as it is when the reader begins.
    pub(super) fn read<R>(
        &self,
        id: NodeId,
        handle: u64,
        offset: u64,
        size: usize,
        send: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let handle = self.handle(handle)?;
        if offset == 0 {
            let fresh: Arc<[u8]> = match self.node(id)? {
                Node::Copy(_) => self.jobs.status_text(handle.opener).into(),
                Node::Stats => self.metrics.open_metrics().into_bytes().into(),
                Node::Config => self.config.clone(),
                Node::Jobs => self.jobs.status_json(handle.opener).into(),
                // A stream, which the log itself answers.
                Node::OpLog => Arc::from([]),
                Node::Folder => return Err(Fail::new(Errno::ISDIR, "read")),
            };
            *handle.text.lock() = fresh;
        }
        let text = handle.text.lock().clone();
        let start = usize::try_from(offset).map_or(text.len(), |at| at.min(text.len()));
        let part = &text[start..text.len().min(start.saturating_add(size))];
        self.metrics.read(ReadMode::Pread, part.len() as u64);
        self.metrics.fallback(Fallback::Control, part.len() as u64);
        Ok(send(part))
    }

    /// Hands what was written to the handle's jobs, which answer when it is done.
    pub(super) fn write(&self, request: &Request, handle: u64, data: &[u8], reply: ReplyWrite) {
        let copy = match self.copy_handle(handle) {
            Ok(copy) => copy,
            Err(fail) => return reply.error(convert::errno(&fail)),
        };
        let done = Box::new(move |done: Result<u32>| match done {
            Ok(count) => reply.written(count),
            Err(fail) => reply.error(convert::errno(&fail)),
        });
        copy.write(writer(request), data, may_be_cut(data.len()), done);
    }

    /// Runs a last line that has no newline.
    pub(super) fn flush(&self, request: &Request, handle: u64, reply: ReplyEmpty) {
        let Ok(copy) = self.copy_handle(handle) else {
            return reply.ok();
        };
        let done = Box::new(move |done: Result<()>| match done {
            Ok(()) => reply.ok(),
            Err(fail) => reply.error(convert::errno(&fail)),
        });
        copy.flush(writer(request), done);
    }

    fn copy_handle(&self, handle: u64) -> Result<Arc<ControlHandle>> {
        let handle = self.handle(handle)?;
        handle
            .copy
            .clone()
            .ok_or(Fail::new(Errno::BADF, "write to a control file"))
    }

    /// Whether it is the log of operations, which answers reads by itself.
    pub(super) fn is_oplog(&self, id: NodeId) -> bool {
        id == self.log
    }

    /// How the kernel is to read an open control file: past its cache, and the log as a stream.
    pub(super) fn open_flags(&self, id: NodeId) -> FopenFlags {
        if self.is_oplog(id) {
            return FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM;
        }
        FopenFlags::FOPEN_DIRECT_IO
    }

    pub(super) fn release(&self, handle: u64) {
        self.oplog.release(handle);
        let gone = self.handles.lock().remove(&handle);
        if let Some(copy) = gone.and_then(|gone| gone.copy.clone()) {
            copy.closed();
        }
    }

    /// The listing of `.corfs/`, for positions from `offset` on.
    pub(super) fn folder_entries(&self, offset: u64) -> impl Iterator<Item = mirror::Entry> {
        use rustix::fs::FileType::{Directory, RegularFile};
        let entries = [
            (self.folder, Directory, "."),
            (ROOT, Directory, ".."),
            (self.stats, RegularFile, "stats"),
            (self.settings, RegularFile, "config"),
            (self.list, RegularFile, "jobs.json"),
            (self.log, RegularFile, "oplog"),
        ];
        let numbered = entries.into_iter().zip(1u64..);
        numbered
            .filter(move |(_, next)| *next > offset)
            .map(|((ino, kind, name), next)| mirror::Entry {
                ino,
                next,
                kind,
                name: name.into(),
            })
    }

    /// The entry to be shown at the start of the root's listing, under `control=visible`.
    pub(super) fn listed(&self, directory: NodeId, next: u64) -> Option<mirror::Entry> {
        let options = self.mirror.options();
        if options.control != mirror::Control::Visible || directory != ROOT {
            return None;
        }
        let covers = self.covers(ROOT, &options.control_name);
        covers.is_ok_and(|covers| covers).then(|| mirror::Entry {
            ino: self.mirror.table().virtual_id(),
            next,
            kind: rustix::fs::FileType::RegularFile,
            name: options.control_name.clone(),
        })
    }

    pub(super) fn wind_up(&self) {
        self.jobs.wind_up();
    }

    pub(super) fn tick(&self) {
        self.jobs.tick();
    }

    pub(super) fn shutdown(&self) {
        self.jobs.shutdown();
    }
}

/// Whether a write of so many bytes may be the beginning of a longer one: as much as fits in a
/// request, less what its buffer is off the beginning of a page.
fn may_be_cut(bytes: usize) -> bool {
    bytes > MAX_READ - rustix::param::page_size()
}

fn writer(request: &Request) -> Writer {
    Writer {
        uid: request.uid(),
        pid: request.pid(),
    }
}
