//! What makes stored blocks old: the source has another version, or the mount changed a file.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{OFlags, Stat};

use super::content::{pread_full, with_buffer};
use super::file::OpenFile;
use super::inode::{Inode, NodeId};
use super::{MAX_READ, Mirror};
use crate::cache::Entry;
use crate::sys::Result;

impl Mirror {
    /// Holds what is open of a file against attributes that the source just gave: an entry of
    /// another version is given up.
    pub(super) fn seen(&self, inode: &Inode, stat: &Stat) {
        let Some(cached) = &self.cached else { return };
        let how = self.options.validate;
        let now = cached.identity(stat);
        for entry in cached.open.of(inode.key) {
            let same = entry.is_abandoned() || *entry.identity() == now;
            if !same && (entry.len() != now.size || !cached.believes(entry.path(), how)) {
                entry.abandon();
            }
        }
    }

    fn hold_against_source(&self, file: &OpenFile) {
        // Without an answer here, the source gives none to a read either.
        if self.is_apart() {
            return;
        }
        if let Ok(fd) = file.fd()
            && let Ok(stat) = rustix::fs::fstat(&*fd)
        {
            self.seen(&file.inode, &stat);
        }
    }

    /// Somebody says that a file changed behind the mirror; without an id, any may have.
    pub fn changed_behind(&self, id: Option<NodeId>) {
        if self.cached.is_none() {
            return;
        }
        let key = match id {
            Some(id) => match self.table.peek(id) {
                Some(inode) => Some(inode.key),
                None => return,
            },
            None => None,
        };
        let files = self.files.read();
        let readers = files
            .values()
            .filter(|file| file.reader.is_some() && key.is_none_or(|key| key == file.inode.key));
        let readers: Vec<_> = readers.cloned().collect();
        drop(files);
        for file in readers {
            self.hold_against_source(&file);
        }
    }

    /// Bytes were written through the mount; `at_end` by an append, whose place is not known here.
    pub(super) fn wrote(&self, file: &OpenFile, offset: u64, bytes: &[u8], at_end: bool) {
        match at_end {
            true => self.outdated(&file.inode),
            false => self.correct(&file.inode, |entry| entry.correct(offset, bytes)),
        }
    }

    /// The file was changed through the mount: what is stored of it is given up.
    pub(super) fn outdated(&self, inode: &Inode) {
        self.correct(inode, |entry| {
            entry.abandon();
            Ok(())
        });
    }

    /// The file was cut or stretched through the mount.
    pub(super) fn resized(&self, inode: &Inode, size: u64) {
        self.correct(inode, |entry| entry.resize(size));
    }

    /// A range of an open file was changed through the mount, by bytes that are not known here.
    pub(super) fn changed_within(&self, inode: &Inode, fd: BorrowedFd<'_>, range: Range<u64>) {
        self.correct(inode, |entry| {
            entry.abandon();
            let end = range.end.min(entry.len());
            if range.start >= end {
                return Ok(());
            }
            // It may be open for writing alone.
            let reader = self.proc.reopen(fd, OFlags::RDONLY | OFlags::CLOEXEC)?;
            let mut offset = range.start;
            while offset < end {
                let most = (end - offset).min(MAX_READ as u64) as usize;
                let filled = with_buffer(most, |buffer| {
                    let filled = pread_full(&reader, buffer, offset)?;
                    entry.correct(offset, &buffer[..filled])?;
                    Ok(filled)
                })??;
                if filled == 0 {
                    break;
                }
                offset += filled as u64;
            }
            Ok(())
        });
    }

    /// Those who have an entry of the file open by passthrough are to see what changed; nobody else
    /// is served from it any more.
    fn correct(&self, inode: &Inode, correct: impl Fn(&Entry) -> Result<()>) {
        let Some(cached) = &self.cached else { return };
        cached.changes.fetch_add(1, Ordering::SeqCst);
        for entry in cached.open.of(inode.key) {
            if let Err(fail) = correct(&entry) {
                log::warn!("cache: correct what others read by passthrough: {fail}");
            }
        }
    }

    /// A copy changed the file beneath.
    pub fn copied_over(&self, id: NodeId) {
        let Some(inode) = self.table.peek(id) else {
            return;
        };
        self.outdated(&inode);
        if let Some(cached) = &self.cached
            && !cached.open.of(inode.key).is_empty()
            && let Ok(fd) = self.table.fd(&inode)
            && let Ok(stat) = rustix::fs::fstat(&*fd)
        {
            let size = stat.st_size as u64;
            self.resized(&inode, size);
            self.changed_within(&inode, fd.as_fd(), 0..size);
        }
    }

    /// A file was opened for writing, or its name goes to another: what is stored of it is not
    /// worth its room.
    pub(super) fn uncache(&self, inode: &Inode) {
        let Some(cached) = &self.cached else { return };
        cached.disturb(inode.key);
        if let Some(path) = self.path_of(inode) {
            cached.store.remove(&path);
        }
    }

    /// As [`Mirror::uncache`], by name.
    pub(super) fn uncache_name(&self, parent: &Inode, name: &OsStr) {
        let Some(cached) = &self.cached else { return };
        if let Some(path) = self.path_in(parent, name) {
            cached.store.remove(&path);
        }
    }
}
