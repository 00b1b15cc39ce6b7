//! The floor: a minimal program on the same FUSE library, which answers from memory.
//!
//! What it takes is what the kernel, the library and two processes take on this machine; no mirror
//! served by requests can be much faster. It shows a tree of the shape of the source's, whose files
//! hold zeros but for the archive, takes what is written and forgets it. Asked for passthrough, it
//! hands to the kernel the large file, and a file of the source in place of each new one; asked for
//! writeback, it has the kernel keep what is written.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};

/// How long the kernel may believe an answer: as on a mirror of its kind.
const TTL: Duration = Duration::from_secs(1);
const WATCHED: Duration = Duration::from_secs(60);
const ROOT: u64 = 1;
const ARCHIVE: &str = "tree.tar";
const LARGE: &str = "big";
/// As much as one request may ask for.
const MOST: usize = 1 << 20;
static ZEROS: [u8; MOST] = [0; MOST];

struct Node {
    kind: FileType,
    size: u64,
    mode: u16,
    parent: u64,
    children: BTreeMap<OsString, u64>,
}

struct Floor {
    nodes: RwLock<HashMap<u64, Node>>,
    next: AtomicU64,
    ttl: Duration,
    /// The one file that is read for what is in it, and its number.
    archive: OnceLock<(u64, Vec<u8>)>,
    /// The one file that the kernel is to read by itself, its number, and its name there once it has.
    passed: OnceLock<(u64, fs::File)>,
    backing: OnceLock<BackingId>,
    writeback: bool,
    /// Where new files are made for the kernel, and the last of them.
    made_in: Option<PathBuf>,
    made: Mutex<Option<Made>>,
}

/// A file that the kernel writes by itself.
struct Made {
    id: u64,
    path: PathBuf,
    file: fs::File,
    _backing: BackingId,
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Mounts the floor under a tree like that of `source`, until it is unmounted. Of the options that a
/// mirror would have: where changes are watched, the kernel may keep what it is told, and with
/// passthrough it reads the large file by itself.
pub(crate) fn serve(source: &Path, at: &Path, options: &str) {
    let watched = options.contains("coherence=watch");
    let passes = options.contains("passthrough=always");
    let floor = Floor {
        nodes: RwLock::default(),
        next: AtomicU64::new(ROOT),
        ttl: if watched { WATCHED } else { TTL },
        archive: OnceLock::new(),
        passed: OnceLock::new(),
        backing: OnceLock::new(),
        writeback: options.contains("writeback=on"),
        made_in: passes.then(|| source.to_owned()),
        made: Mutex::new(None),
    };
    floor.add(ROOT, FileType::Directory, 0, 0o755);
    floor.scan(ROOT, source);
    if passes {
        let id = floor
            .find(ROOT, LARGE.as_ref())
            .expect("the large file")
            .ino
            .0;
        let file = fs::File::open(source.join(LARGE)).expect("open the large file");
        floor.passed.get_or_init(|| (id, file));
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("floor".into()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(4);
    config.clone_fd = true;
    fuser::mount(floor, at, &config).expect("mount the floor");
}

impl Floor {
    fn add(&self, parent: u64, kind: FileType, size: u64, mode: u16) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Node {
            kind,
            size,
            mode,
            parent,
            children: BTreeMap::new(),
        };
        self.nodes.write().insert(id, node);
        id
    }

    fn scan(&self, parent: u64, folder: &Path) {
        for entry in fs::read_dir(folder).expect("list the source") {
            let entry = entry.expect("list the source");
            let meta = entry.metadata().expect("stat");
            let kind = FileType::from_std(meta.file_type()).expect("a known type");
            let id = self.add(parent, kind, meta.len(), (meta.mode() & 0o7777) as u16);
            self.enter(parent, &entry.file_name(), id);
            if entry.file_name() == ARCHIVE {
                let bytes = fs::read(entry.path()).expect("read the archive");
                self.archive.get_or_init(|| (id, bytes));
            }
            if kind == FileType::Directory {
                self.scan(id, &entry.path());
            }
        }
    }

    fn enter(&self, parent: u64, name: &OsStr, id: u64) {
        if let Some(node) = self.nodes.write().get_mut(&parent) {
            node.children.insert(name.to_owned(), id);
        }
    }

    fn attr(&self, id: u64) -> Option<FileAttr> {
        self.nodes.read().get(&id).map(|node| attr(id, node))
    }

    fn find(&self, parent: u64, name: &OsStr) -> Option<FileAttr> {
        let nodes = self.nodes.read();
        let id = *nodes.get(&parent)?.children.get(name)?;
        nodes.get(&id).map(|node| attr(id, node))
    }

    fn make(&self, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> FileAttr {
        let id = self.add(parent.0, kind, 0, (mode & 0o7777) as u16);
        self.enter(parent.0, name, id);
        self.attr(id).expect("just made")
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut nodes = self.nodes.write();
        let gone = nodes
            .get_mut(&parent.0)
            .and_then(|node| node.children.remove(name));
        let mut made = self.made.lock();
        made.take_if(|made| gone == Some(made.id));
        match gone.and_then(|id| nodes.remove(&id)) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Names of a directory from the position `offset` on, each with its own position.
    fn names(&self, id: u64, offset: u64) -> Vec<(u64, OsString, FileAttr)> {
        let nodes = self.nodes.read();
        let Some(node) = nodes.get(&id) else {
            return Vec::new();
        };
        let dots = [
            (OsString::from("."), id),
            (OsString::from(".."), node.parent),
        ];
        let named = node.children.iter().map(|(name, id)| (name.clone(), *id));
        let all = dots.into_iter().chain(named).enumerate();
        all.skip(offset as usize)
            .take(1024)
            .filter_map(|(at, (name, id))| {
                let shown = attr(id, nodes.get(&id)?);
                Some((at as u64 + 1, name, shown))
            })
            .collect()
    }
}

fn attr(id: u64, node: &Node) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: node.size,
        blocks: node.size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: node.kind,
        perm: node.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn entry(reply: ReplyEntry, found: Option<FileAttr>, ttl: Duration) {
    match found {
        Some(found) => reply.entry(&ttl, &found, Generation(0)),
        None => reply.error(Errno::ENOENT),
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if self.passed.get().is_some() {
            let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            let _ = config.set_max_stack_depth(1);
        }
        if self.writeback {
            let _ = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        let wanted = InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO;
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_write(MOST as u32);
        if let Err(most) = config.set_max_readahead(MOST as u32) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.find(parent.0, name), self.ttl);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(found) => reply.attr(&self.ttl, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(node) = self.nodes.write().get_mut(&ino.0) {
            node.mode = mode.map_or(node.mode, |mode| (mode & 0o7777) as u16);
            node.size = size.unwrap_or(node.size);
        }
        match self.attr(ino.0) {
            Some(found) => reply.attr(&self.ttl, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(parent, name, FileType::Directory, mode);
        entry(reply, Some(made), self.ttl);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.nodes.write();
        let moved = nodes
            .get_mut(&parent.0)
            .and_then(|node| node.children.remove(name));
        if let (Some(id), Some(node)) = (moved, nodes.get_mut(&newparent.0)) {
            node.children.insert(newname.to_owned(), id);
            return reply.ok();
        }
        reply.error(Errno::ENOENT);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if let Some((id, file)) = self.passed.get()
            && *id == ino.0
        {
            let backing = self
                .backing
                .get_or_init(|| reply.open_backing(file).expect("passthrough"));
            return reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), backing);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        let flags = match self.ttl {
            WATCHED => kept,
            _ => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(parent, name, FileType::RegularFile, mode);
        let handle = FileHandle(0);
        if let Some(folder) = &self.made_in {
            let path = folder.join(".floor");
            let file = fs::File::create(&path).expect("make a file");
            let backing = reply.open_backing(&file).expect("passthrough");
            let none = FopenFlags::empty();
            reply.created_passthrough(&self.ttl, &made, Generation(0), handle, none, &backing);
            *self.made.lock() = Some(Made {
                id: made.ino.0,
                path,
                file,
                _backing: backing,
            });
            return;
        }
        reply.created(&self.ttl, &made, Generation(0), handle, FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some((id, bytes)) = self.archive.get()
            && *id == ino.0
        {
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            return reply.data(&rest[..rest.len().min(size as usize)]);
        }
        let length = self.nodes.read().get(&ino.0).map_or(0, |node| node.size);
        let count = length.saturating_sub(offset).min(u64::from(size)) as usize;
        reply.data(&ZEROS[..count.min(MOST)]);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(node) = self.nodes.write().get_mut(&ino.0) {
            node.size = node.size.max(offset + data.len() as u64);
        }
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(made) = self.made.lock().as_ref().filter(|made| made.id == ino.0) {
            made.file.sync_all().expect("fsync");
        }
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (next, name, shown) in self.names(ino.0, offset) {
            if reply.add(shown.ino, next, shown.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (next, name, shown) in self.names(ino.0, offset) {
            if reply.add(shown.ino, next, name, &self.ttl, &shown, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENODATA);
    }
}
