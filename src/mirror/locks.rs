//! POSIX byte-range locks, forwarded to the source so that its own users see them.
//!
//! Each owner (a process's descriptor table, as the kernel names it) has one open file
//! description a file, and holds its locks by that. It goes when the owner closes any descriptor
//! of the file, as POSIX wants. The owner of an OFD lock is one open of the file: the kernel tells
//! of its end only by the release of that open.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::file::OpenFile;
use super::{Caller, Mirror};
use crate::sys::ofd::{self, Lock};
use crate::sys::{Errno, Result};
use crate::window::FileId;

/// How an attempt to lock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOutcome {
    /// The lock is held, or dropped.
    Done,
    /// Another holds a conflicting one.
    Held,
}

/// All lock owners. Order of locks: `owners`, then one owner's `handles` or `held`, which are leaves.
/// None is held across a system call.
#[derive(Debug, Default)]
pub(super) struct Locks {
    owners: Mutex<HashMap<(FileId, u64), Arc<Owner>>>,
}

#[derive(Debug)]
struct Owner {
    fd: OwnedFd,
    /// The open files by which it came.
    handles: Mutex<Vec<u64>>,
    /// What it holds, with the process that asked: an OFD lock does not name one.
    held: Mutex<Vec<Lock>>,
}

impl Locks {
    pub(super) fn drop_owner(&self, file: FileId, owner: u64) {
        let gone = self.owners.lock().remove(&(file, owner));
        drop(gone);
    }

    /// An open file is gone, and with it those who came by it.
    pub(super) fn drop_handle(&self, file: FileId, handle: u64) {
        let mut owners = self.owners.lock();
        if owners.is_empty() {
            return;
        }
        let came = |key: &(FileId, u64), owner: &Owner| {
            key.0 == file && owner.handles.lock().contains(&handle)
        };
        let gone: Vec<_> = owners.extract_if(|key, owner| came(key, owner)).collect();
        drop(owners);
        drop(gone);
    }

    fn owner(&self, file: FileId, owner: u64) -> Option<Arc<Owner>> {
        self.owners.lock().get(&(file, owner)).cloned()
    }

    /// Our own owners whose locks stand in the way of `lock`.
    fn blockers(&self, file: FileId, except: u64, lock: &Lock) -> Vec<u64> {
        let owners = self.owners.lock();
        owners
            .iter()
            .filter(|((of, owner), _)| *of == file && *owner != except)
            .filter(|(_, owner)| owner.held.lock().iter().any(|held| conflict(held, lock)))
            .map(|((_, owner), _)| *owner)
            .collect()
    }

    /// The process that holds a lock which overlaps `lock`, among our own owners.
    fn holder(&self, file: FileId, except: u64, lock: &Lock) -> Option<i32> {
        let owners = self.owners.lock();
        let others = owners
            .iter()
            .filter(|((of, owner), _)| *of == file && *owner != except);
        for (_, owner) in others {
            let held = owner.held.lock();
            if let Some(found) = held.iter().find(|held| overlap(held, lock)) {
                return Some(found.pid);
            }
        }
        None
    }
}

impl Mirror {
    /// The first lock that stands in the way, if any.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of fcntl(2).
    pub fn getlk(&self, handle: u64, owner: u64, lock: Lock) -> Result<Option<Lock>> {
        let file = self.file(handle)?;
        let id = file.inode.file_id;
        let found = match self.locks.owner(id, owner) {
            Some(own) => ofd::get(own.fd.as_fd(), lock)?,
            None => ofd::get(self.source_of(&file)?.as_fd(), lock)?,
        };
        Ok(found.map(|mut found| {
            if found.pid <= 0 {
                found.pid = self.locks.holder(id, owner, &found).unwrap_or(0);
            }
            found
        }))
    }

    /// Takes or drops a lock, without waiting.
    ///
    /// # Errors
    /// EBADF when the file's mode does not allow that kind; those of fcntl(2).
    pub fn setlk(
        &self,
        caller: &Caller,
        handle: u64,
        owner: u64,
        lock: Lock,
    ) -> Result<LockOutcome> {
        let file = self.file(handle)?;
        let id = file.inode.file_id;
        let own = match self.locks.owner(id, owner) {
            Some(own) => own,
            None if lock.kind == libc::F_UNLCK => return Ok(LockOutcome::Done),
            None => self.new_owner(caller, &file, owner)?,
        };
        own.came_by(handle);
        match ofd::set(own.fd.as_fd(), lock) {
            Ok(()) => {
                note(&mut own.held.lock(), lock);
                Ok(LockOutcome::Done)
            }
            Err(fail) if matches!(fail.errno, Errno::AGAIN | Errno::ACCESS) => {
                Ok(LockOutcome::Held)
            }
            Err(fail) => Err(fail),
        }
    }

    /// The owners, of those on this mount, that one who waits for `lock` waits for.
    pub fn lock_blockers(&self, handle: u64, owner: u64, lock: Lock) -> Vec<u64> {
        match self.file(handle) {
            Ok(file) => self.locks.blockers(file.inode.file_id, owner, &lock),
            Err(_) => Vec::new(),
        }
    }

    /// What an owner holds of a range.
    pub fn locks_within(&self, handle: u64, owner: u64, range: Lock) -> Vec<Lock> {
        let file = self.file(handle).ok();
        let own = file.and_then(|file| self.locks.owner(file.inode.file_id, owner));
        own.map_or_else(Vec::new, |own| within(&own.held.lock(), &range))
    }

    fn new_owner(&self, caller: &Caller, file: &OpenFile, owner: u64) -> Result<Arc<Owner>> {
        let fd = self.lock_descriptor(caller, file)?;
        let new = Arc::new(Owner {
            fd,
            handles: Mutex::default(),
            held: Mutex::default(),
        });
        let key = (file.inode.file_id, owner);
        let mut owners = self.locks.owners.lock();
        let first = owners.get(&key).cloned();
        if first.is_none() {
            owners.insert(key, new.clone());
        }
        drop(owners);
        // Who was second closes his descriptor here, without the lock.
        Ok(first.unwrap_or(new))
    }

    /// For both kinds of lock where that is allowed: the same owner may come by another handle.
    /// Never by our own rights: a program that is open for writing can't be run, and who may only
    /// read it must not bring that about.
    fn lock_descriptor(&self, caller: &Caller, file: &OpenFile) -> Result<OwnedFd> {
        let fd = self.source_of(file)?;
        let reopen = |flags| self.proc.reopen(fd.as_fd(), flags);
        let open = |flags| self.table.with_room(|| reopen(flags));
        if file.writable {
            return open(OFlags::RDWR).or_else(|_| open(OFlags::WRONLY));
        }
        if !self.options.read_only
            && let Ok(fd) = self.act_by_own_rights(caller, || reopen(OFlags::RDWR))
        {
            return Ok(fd);
        }
        open(OFlags::RDONLY)
    }
}

impl Owner {
    fn came_by(&self, handle: u64) {
        let mut handles = self.handles.lock();
        if !handles.contains(&handle) {
            handles.push(handle);
        }
    }
}

fn overlap(a: &Lock, b: &Lock) -> bool {
    a.start <= b.end && b.start <= a.end
}

fn conflict(held: &Lock, wanted: &Lock) -> bool {
    overlap(held, wanted) && (held.kind == libc::F_WRLCK || wanted.kind == libc::F_WRLCK)
}

/// The parts of what is held that lie in a range.
fn within(held: &[Lock], range: &Lock) -> Vec<Lock> {
    let parts = held.iter().filter(|held| overlap(held, range));
    let clipped = parts.map(|held| Lock {
        start: held.start.max(range.start),
        end: held.end.min(range.end),
        ..*held
    });
    clipped.collect()
}

/// Enters a lock into what is held: it replaces what it overlaps.
fn note(held: &mut Vec<Lock>, lock: Lock) {
    let mut parts = Vec::new();
    for old in held.drain(..) {
        if !overlap(&old, &lock) {
            parts.push(old);
            continue;
        }
        if old.start < lock.start {
            let end = lock.start - 1;
            parts.push(Lock { end, ..old });
        }
        if old.end > lock.end {
            let start = lock.end + 1;
            parts.push(Lock { start, ..old });
        }
    }
    if lock.kind != libc::F_UNLCK {
        parts.push(lock);
    }
    *held = parts;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: i32, start: u64, end: u64) -> Lock {
        Lock {
            kind,
            start,
            end,
            pid: 7,
        }
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let mut held = Vec::new();
        note(&mut held, lock(libc::F_WRLCK, 0, 99));
        note(&mut held, lock(libc::F_UNLCK, 40, 59));
        assert_eq!(
            held,
            [lock(libc::F_WRLCK, 0, 39), lock(libc::F_WRLCK, 60, 99)]
        );
    }

    #[test]
    fn what_is_held_within_a_range_is_cut_to_it() {
        let held = [lock(libc::F_RDLCK, 0, 49), lock(libc::F_WRLCK, 60, 99)];
        let range = lock(libc::F_WRLCK, 40, 69);
        assert_eq!(
            within(&held, &range),
            [lock(libc::F_RDLCK, 40, 49), lock(libc::F_WRLCK, 60, 69)]
        );
        assert_eq!(within(&held, &lock(libc::F_WRLCK, 50, 59)), []);
    }

    #[test]
    fn what_was_held_within_a_range_brings_it_back_to_what_it_was() {
        let before = [lock(libc::F_RDLCK, 0, 49), lock(libc::F_WRLCK, 60, 99)];
        let asked = lock(libc::F_WRLCK, 40, 69);
        let mut held = before.to_vec();
        let old = within(&held, &asked);
        note(&mut held, asked);
        note(&mut held, lock(libc::F_UNLCK, 40, 69));
        old.iter().for_each(|lock| note(&mut held, *lock));
        for at in 0..120 {
            let kind = |held: &[Lock]| within(held, &lock(0, at, at)).first().map(|one| one.kind);
            assert_eq!(kind(&held), kind(&before), "{at}");
        }
    }

    #[test]
    fn a_new_kind_replaces_what_it_covers() {
        let mut held = Vec::new();
        note(&mut held, lock(libc::F_RDLCK, 10, 19));
        note(&mut held, lock(libc::F_WRLCK, 0, u64::MAX));
        assert_eq!(held, [lock(libc::F_WRLCK, 0, u64::MAX)]);
    }
}
