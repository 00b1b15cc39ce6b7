//! Answers to listings.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuser::{FileAttr, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::beside::before_answer;
use super::convert::{self, entry_attr};
use super::oplog::take_noted;
use super::serve::Slot;
use super::shared::{GENERATION, Shared, nameless_attr};
use crate::mirror::{Ahead, Attr, Entry, InodeTable, NodeId};
use crate::observe::Op;

/// The position in a listing after the control file and before the source's first entry. No file
/// system gives it: ext4's and XFS's positions are hashes and offsets below it, and the end of an
/// ext4 directory is the last number of 63 bits.
const AFTER_CONTROL: u64 = (i64::MAX - 15) as u64;

/// The least and the most room for entries with attributes that the kernel gives, in bytes: a page,
/// and since Linux 6.15 what the reader asked for, up to a request's size (fs/fuse/readdir.c).
const ROOM: (usize, usize) = (4 << 10, 1 << 20);

/// What the kernel was seen to give: the library does not tell, and each entry that does not fit
/// was looked up in vain.
#[derive(Debug)]
pub(super) struct Room(AtomicUsize);

impl Default for Room {
    fn default() -> Self {
        Self(AtomicUsize::new(ROOM.0))
    }
}

impl Room {
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Of what was looked up for that much room, so many bytes went in; `all` says that it was
    /// everything.
    fn learn(&self, room: usize, given: usize, all: bool) {
        let seen = if all { 2 * room } else { given };
        self.0.store(seen.clamp(ROOM.0, ROOM.1), Ordering::Relaxed);
    }
}

/// The source's own position.
fn position(offset: u64) -> u64 {
    if offset == AFTER_CONTROL { 0 } else { offset }
}

impl Shared {
    /// Gives names as they are read: by an event loop, from a source that answers.
    pub(super) fn readdir(&self, ino: NodeId, fh: u64, offset: u64, mut reply: ReplyDirectory) {
        let mut emit = |entry: &Entry| add(&mut reply, entry);
        let read = self.measured(Op::Readdir, || {
            if InodeTable::is_virtual(ino) {
                self.control.folder_entries(offset).any(|e| emit(&e));
                return Ok(());
            }
            if let Some(entry) = self.listed(ino, offset) {
                emit(&entry);
            }
            self.mirror.readdir(fh, position(offset), &mut emit)
        });
        take_noted().tell();
        match read {
            Ok(()) => {
                before_answer();
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// As [`Shared::readdir`], with attributes.
    pub(super) fn readdirplus(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut emit =
            |entry: &Entry, attr: Option<&Attr>| self.add_plus(&mut reply, ino, entry, attr);
        let read = self.measured(Op::Readdirplus, || {
            if InodeTable::is_virtual(ino) {
                let mut entries = self.control.folder_entries(offset);
                entries.any(|e| emit(&e, self.control.getattr(e.ino).ok().as_ref()));
                return Ok(());
            }
            if let Some(entry) = self.listed(ino, offset) {
                emit(&entry, None);
            }
            self.mirror.readdirplus(fh, position(offset), &mut emit)
        });
        take_noted().tell();
        match read {
            Ok(()) => {
                before_answer();
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Reads first, and gives names when the source has nothing more to say: the deadline can
    /// answer until then.
    pub(super) fn readdir_by_worker(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        slot: Slot<ReplyDirectory>,
    ) {
        let at = position(offset);
        let listed = self.listed(ino, offset);
        let ahead = match self.asked(Op::Readdir, || self.mirror.read_ahead(fh, at, None)) {
            Ok(ahead) => ahead,
            Err(errno) => return slot.refuse(errno),
        };
        let Some(mut reply) = slot.take() else { return };
        let full = listed.is_some_and(|entry| add(&mut reply, &entry));
        let fits = |ahead: &&Ahead| !full && !add(&mut reply, &ahead.entry);
        let given = ahead.iter().take_while(fits).count();
        // Before the answer, after which the next request comes.
        self.mirror.gave(fh, at, given);
        reply.ok();
    }

    /// As [`Shared::readdir_by_worker`], with attributes.
    pub(super) fn readdirplus_by_worker(
        &self,
        ino: NodeId,
        fh: u64,
        offset: u64,
        slot: Slot<ReplyDirectoryPlus>,
    ) {
        let at = position(offset);
        let listed = self.listed(ino, offset);
        let room = self.room.bytes();
        let read = || self.mirror.read_ahead(fh, at, Some(room));
        let ahead = match self.asked(Op::Readdirplus, read) {
            Ok(ahead) => ahead,
            Err(errno) => return slot.refuse(errno),
        };
        let Some(mut reply) = slot.take() else {
            return self.mirror.not_given(&ahead);
        };
        let full = listed.is_some_and(|entry| self.add_plus(&mut reply, ino, &entry, None));
        let mut bytes = 0;
        let fits = |ahead: &&Ahead| {
            if ahead.vanished {
                return true;
            }
            let fits = !full && !self.add_plus(&mut reply, ino, &ahead.entry, ahead.attr.as_ref());
            bytes += if fits { ahead.size() } else { 0 };
            fits
        };
        let given = ahead.iter().take_while(fits).count();
        self.mirror.not_given(&ahead[given..]);
        let asked: usize = ahead.iter().map(Ahead::size).sum();
        if given < ahead.len() || asked >= room {
            self.room.learn(room, bytes, given == ahead.len());
        }
        self.mirror.gave(fh, at, given);
        reply.ok();
    }

    /// The control file at the start of a listing that shows it.
    fn listed(&self, ino: NodeId, offset: u64) -> Option<Entry> {
        let first = offset == 0;
        first.then(|| self.control.listed(ino, AFTER_CONTROL))?
    }

    /// Adds an entry with its attributes; true when it did not fit.
    fn add_plus(
        &self,
        reply: &mut ReplyDirectoryPlus,
        directory: NodeId,
        entry: &Entry,
        attr: Option<&Attr>,
    ) -> bool {
        let (attr, ttl) = self.shown_entry(directory, entry, attr);
        let (ino, next) = (INodeNo(entry.ino), entry.next);
        reply.add(ino, next, &entry.name, &ttl, &attr, GENERATION)
    }

    fn shown_entry(
        &self,
        directory: NodeId,
        entry: &Entry,
        attr: Option<&Attr>,
    ) -> (FileAttr, Duration) {
        match attr {
            Some(attr) if InodeTable::is_virtual(directory) => (entry_attr(attr), Duration::ZERO),
            Some(attr) => {
                let trust = self.mirror.trust_entry(directory, attr);
                let trust = self.seen_stores(attr, trust);
                (entry_attr(attr), trust.entry.min(trust.attr))
            }
            None => {
                let id = self.mirror.table().virtual_id();
                let kind = convert::file_type(entry.kind);
                (nameless_attr(id, kind), Duration::ZERO)
            }
        }
    }
}

/// Adds a name; true when it did not fit.
fn add(reply: &mut ReplyDirectory, entry: &Entry) -> bool {
    let kind = convert::file_type(entry.kind);
    reply.add(INodeNo(entry.ino), entry.next, kind, &entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_while_all_goes_in_and_shrinks_to_what_did() {
        let room = Room::default();
        room.learn(4096, 4000, true);
        assert_eq!(room.bytes(), 8192);
        room.learn(8192, 5000, false);
        assert_eq!(room.bytes(), 5000);
        room.learn(5000, 0, false);
        assert_eq!(room.bytes(), ROOM.0);
        for _ in 0..20 {
            room.learn(room.bytes(), 0, true);
        }
        assert_eq!(room.bytes(), ROOM.1);
    }
}
