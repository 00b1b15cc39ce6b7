//! Answers while the source is not asked: from the names that were seen, and the files that are
//! cached.
//!
//! What was never seen is an error, and not an absence: only where every name of a directory is
//! known is one that is not among them ENOENT.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, FileType, StatVfs};

use super::attr::{Attr, again};
use super::cached::Reader;
use super::file::{Asked, Opened};
use super::inode::{Inode, NodeId};
use super::outage::{Cause, is_end};
use super::{Mirror, ROOT};
use crate::cache::{Identity, Names, Record};
use crate::sys::{Errno, Fail, OrFail, Result};

/// How long the first who asks waits for the store of names to be opened: after a mount without a
/// source, and after a crash.
const OPENING: Duration = Duration::from_secs(20);

/// The kinds of ACLs that are kept.
const ACLS: [(&str, u8); 2] = [
    ("system.posix_acl_access", b'a'),
    ("system.posix_acl_default", b'd'),
];

/// What is kept of the root when the source said that it has no ACLs at all.
pub(super) const NO_ACLS: u8 = b'!';

/// The kind of an ACL, by the name of its attribute.
pub(super) fn acl_kind(name: &OsStr) -> Option<u8> {
    ACLS.iter()
        .find(|(known, _)| name == *known)
        .map(|(_, kind)| *kind)
}

impl Mirror {
    /// Whether this thread must not ask the source.
    pub(super) fn is_apart(&self) -> bool {
        self.outage.cause().is_some()
    }

    /// Whether the source is not asked at present.
    pub fn is_offline(&self) -> bool {
        self.is_apart()
    }

    /// Serves a request to its end without the source, if that is not asked at present; else gives
    /// `work` back.
    pub fn serve_apart<W: FnOnce()>(&self, work: W) -> std::result::Result<(), W> {
        let done = self.outage.apart(work);
        if done.is_ok() {
            self.metrics.source_apart();
        }
        done
    }

    /// Asks the source. Who meets the end of its connection, or is caught by its loss, is answered as
    /// those who come after: from what is kept, where that is done.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn ask<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        let done = work();
        let Err(fail) = &done else {
            return done;
        };
        if !self.lets_go() || self.outage.is_pinned() {
            return done;
        }
        let cause = match self.outage.cause() {
            None if is_end(fail.errno) => Cause::Fails,
            None => return done,
            Some(cause) => cause,
        };
        log::debug!("{fail}: answered from what is kept");
        self.heard(fail);
        self.metrics.source_apart();
        self.outage.as_in(cause, work)
    }

    /// The root as it is held in the source.
    ///
    /// # Errors
    /// ETIMEDOUT or EIO while the source is not asked; those of finding it.
    pub fn root_in_source(&self) -> Result<Arc<OwnedFd>> {
        self.serve_awake(|| {
            self.outage.check("find the root")?;
            self.table.fd(&self.table.root)
        })
    }

    /// A request waits for the source for long.
    pub fn suspect_source(&self) {
        self.outage.suspect();
    }

    /// A request failed so.
    pub fn heard(&self, fail: &Fail) {
        self.outage.heard(fail.errno);
    }

    /// What was never seen.
    fn unknown(&self, operation: &'static str) -> Fail {
        let fail = self.outage.check(operation).err();
        fail.unwrap_or(Fail::new(Errno::IO, operation))
    }

    fn names(&self, operation: &'static str) -> Result<Arc<Names>> {
        let memory = self.memory.as_ref();
        let names = memory.and_then(|memory| memory.names(OPENING));
        names.ok_or_else(|| self.unknown(operation))
    }

    /// Path and record of what the kernel calls `id`.
    fn known(&self, id: NodeId, operation: &'static str) -> Result<(Vec<u8>, Record)> {
        let names = self.names(operation);
        let path = self.path_by(id).ok_or_else(|| self.unknown(operation))?;
        let record = names.as_ref().ok().and_then(|names| names.get(&path));
        match record.filter(|record| record.whole) {
            Some(record) => Ok((path, record)),
            // The root is there whatever was seen, and with it the way to the statistics.
            None if id == ROOT => Ok((path, Record::of(&self.table.root_at_first()))),
            None => Err(self.unknown(operation)),
        }
    }

    fn shown(&self, id: NodeId, record: &Record) -> Attr {
        self.attr(id, record.stat(self.table.root_at_first()))
    }

    /// Whether the tree as last seen has such an entry.
    pub(super) fn has_entry_apart(&self, parent: NodeId, name: &OsStr) -> Result<bool> {
        let names = self.names("lookup")?;
        let parent = self.table.get(parent)?;
        let path = self.path_in(&parent, name);
        Ok(path.is_some_and(|path| names.get(&path).is_some()))
    }

    pub(super) fn lookup_apart(&self, parent: &Inode, name: &OsStr) -> Result<Attr> {
        let names = self.names("lookup")?;
        let path = self.path_in(parent, name);
        let path = path.ok_or_else(|| self.unknown("lookup"))?;
        match names.get(&path) {
            Some(record) if record.whole => {
                let table = &self.table;
                let inode = table.intern_unseen(parent.id, name, record.kind(), record.ino)?;
                Ok(self.shown(inode.id, &record))
            }
            Some(_) => Err(self.unknown("lookup")),
            None => {
                let above = self.path_by(parent.id);
                if above.is_some_and(|above| names.is_listed(&above)) {
                    return Err(Fail::new(Errno::NOENT, "lookup"));
                }
                Err(self.unknown("lookup"))
            }
        }
    }

    pub(super) fn getattr_apart(&self, id: NodeId) -> Result<Attr> {
        let (_, record) = self.known(id, "getattr")?;
        Ok(self.shown(id, &record))
    }

    pub(super) fn readlink_apart(&self, id: NodeId) -> Result<Vec<u8>> {
        let (_, record) = self.known(id, "readlink")?;
        if record.target.is_empty() {
            return Err(self.unknown("readlink"));
        }
        Ok(record.target)
    }

    /// The source's numbers as they were last told; else those of the cache's file system.
    pub(super) fn statfs_apart(&self) -> Result<StatVfs> {
        if let Some(last) = &*self.last_statfs.lock() {
            return Ok(again(last));
        }
        let root = self.cache_root().ok_or_else(|| self.unknown("statfs"))?;
        rustix::fs::fstatvfs(root).or_fail("fstatvfs")
    }

    /// By mode alone, for the one who mounted.
    pub(super) fn access_apart(&self, inode: &Inode, access: Access) -> Result<()> {
        let (_, record) = self.known(inode.id, "access")?;
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let shift = match () {
            () if uid == record.uid => 6,
            () if gid == record.gid => 3,
            () => 0,
        };
        let allowed = match (uid, record.kind()) {
            // Root reads all, and runs what somebody may run.
            (0, FileType::RegularFile) if record.mode & 0o111 == 0 => 0o6,
            (0, _) => 0o7,
            _ => record.mode >> shift & 0o7,
        };
        match access.bits() & 0o7 & !allowed {
            0 => Ok(()),
            _ => Err(Fail::new(Errno::ACCESS, "access")),
        }
    }

    /// Opens a file for reading, of which something is cached in the version that was last seen.
    pub(super) fn open_apart(&self, inode: Arc<Inode>, asked: Asked) -> Result<Opened> {
        let (path, record) = self.known(inode.id, "open")?;
        let stat = record.stat(self.table.root_at_first());
        if record.size == 0 {
            return Ok(self.enter_apart(inode, asked, &stat, None));
        }
        let cached = self.cached.as_ref();
        let cached = cached.filter(|cached| cached.open.has_room());
        let cached = cached.ok_or_else(|| self.unknown("open"))?;
        let entry = cached.store.entry_as_stored(&path);
        let seen: Identity = cached.identity(&stat);
        let entry = entry.filter(|entry| *entry.identity() == seen && !entry.is_abandoned());
        let entry = entry.ok_or_else(|| self.unknown("open"))?;
        cached.open.add(inode.key, &entry);
        Ok(self.enter_apart(inode, asked, &stat, Some(Reader::new(entry))))
    }

    /// An ACL as it was when somebody asked for it. Of others nothing is kept: these are said not to
    /// be supported, as they would be on many a source.
    pub(super) fn xattr_apart(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let Some(kind) = acl_kind(name) else {
            return Err(Fail::new(Errno::OPNOTSUPP, "getxattr"));
        };
        let names = self.names("getxattr")?;
        let path = self.path_by(id).ok_or_else(|| self.unknown("getxattr"))?;
        match names.acl(&path, kind) {
            Some(Some(value)) => Ok(value),
            _ if names.acl(b"", NO_ACLS).is_some() => Err(Fail::new(Errno::NODATA, "getxattr")),
            Some(None) => Err(Fail::new(Errno::NODATA, "getxattr")),
            // Who may do what is not known: then whoever an ACL might concern may not, as the kernel
            // takes this for an error (fs/fuse/acl.c). Who only lists files takes it for no ACL.
            None => Err(Fail::new(Errno::OPNOTSUPP, "getxattr")),
        }
    }

    /// The names of a directory behind `after`, as they were last seen.
    pub(super) fn list_apart(
        &self,
        id: NodeId,
        after: &[u8],
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Record)>> {
        let names = self.names("readdir")?;
        let path = self.path_by(id).ok_or_else(|| self.unknown("readdir"))?;
        let found = names.list(&path, after, most);
        if found.is_empty() && after.is_empty() && !names.is_listed(&path) {
            return Err(self.unknown("readdir"));
        }
        Ok(found)
    }
}
