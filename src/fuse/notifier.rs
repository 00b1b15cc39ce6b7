//! Notifications: what the kernel is told without having asked.
//!
//! Written by ourselves, because the library hides whether the kernel knew the inode at all (its
//! ENOENT is success there), and has neither the flag that only expires an entry nor the
//! notification that drops every name. Layouts: `include/uapi/linux/fuse.h`.
//!
//! To be sent only from threads that answer no request and hold no lock: the kernel may be waiting
//! for an answer of ours under a lock that the notification needs.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use crate::mirror::NodeId;
use crate::sys::{Errno, OrFail, Result};

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
/// Linux 6.16.
const INC_EPOCH: i32 = 8;
/// Linux 6.2; before that the entry is dropped all the same.
const EXPIRE_ONLY: u32 = 1;
/// Linux 6.18.
const PRUNE: i32 = 9;

/// What becomes of a name that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It goes: what it meant is wrong.
    Drop,
    /// It stays, and is asked for at its next use. Who stands in that directory keeps standing.
    Expire,
}

/// How much of an inode the kernel is to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Attributes and access control lists.
    Attributes,
    /// All pages of its data as well.
    All,
}

/// The way to tell the kernel.
#[derive(Debug)]
pub(super) struct Notifier {
    device: OwnedFd,
}

impl Notifier {
    /// By a descriptor of the connection.
    pub(super) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Forgets attributes, or bytes too. False when the kernel has no such inode at this moment: it
    /// may be about to make it of an answer that it already has.
    ///
    /// Waits for reads and writebacks of its pages that are under way.
    ///
    /// # Errors
    /// Those of writev(2): ENOTCONN after the unmount.
    pub(super) fn inval_inode(&self, id: NodeId, extent: Extent) -> Result<bool> {
        let offset = match extent {
            Extent::Attributes => -1i64,
            Extent::All => 0,
        };
        let (ino, offset, length) = (id.to_ne_bytes(), offset.to_ne_bytes(), 0i64.to_ne_bytes());
        self.send(INVAL_INODE, &[&ino, &offset, &length])
    }

    /// Drops or expires a name. False when the kernel has no such name.
    ///
    /// Waits for the directory's lock, hence for what is under way in it.
    ///
    /// # Errors
    /// Those of writev(2).
    pub(super) fn inval_entry(&self, parent: NodeId, name: &OsStr, entry: Entry) -> Result<bool> {
        let flags = match entry {
            Entry::Drop => 0,
            Entry::Expire => EXPIRE_ONLY,
        };
        let (parent, flags) = (parent.to_ne_bytes(), flags.to_ne_bytes());
        let length = (name.len() as u32).to_ne_bytes();
        self.send(
            INVAL_ENTRY,
            &[&parent, &length, &flags, name.as_bytes(), b"\0"],
        )
    }

    /// Drops every name. False when the kernel can't.
    ///
    /// # Errors
    /// Those of writev(2).
    pub(super) fn drop_names(&self) -> Result<bool> {
        match self.send(INC_EPOCH, &[]) {
            Err(fail) if fail.errno == Errno::INVAL => Ok(false),
            sent => sent,
        }
    }

    /// Asks to drop those of these inodes that nobody uses. False when the kernel can't.
    ///
    /// # Errors
    /// Those of writev(2).
    pub(super) fn prune(&self, ids: &[NodeId]) -> Result<bool> {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&(ids.len() as u32).to_ne_bytes());
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        match self.send(PRUNE, &[&head, &ids]) {
            Err(fail) if fail.errno == Errno::INVAL => Ok(false),
            sent => sent.map(|_| true),
        }
    }

    /// `struct fuse_out_header` with the code in place of an error and no request's number, then
    /// the parts.
    fn send(&self, code: i32, parts: &[&[u8]]) -> Result<bool> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(16 + length as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&code.to_ne_bytes());
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        match rustix::io::writev(&self.device, &slices) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno).or_fail("notify the kernel"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(send: impl FnOnce(&Notifier) -> Result<bool>) -> Vec<u8> {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert!(send(&Notifier::new(write)).unwrap());
        let mut bytes = vec![0; 256];
        let length = rustix::io::read(&read, &mut bytes[..]).unwrap();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn an_inode_is_named_with_the_extent() {
        let bytes = sent(|n| n.inval_inode(7, Extent::Attributes));
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..4], 40u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 2i32.to_ne_bytes());
        assert_eq!(bytes[8..16], [0; 8]);
        assert_eq!(bytes[16..24], 7u64.to_ne_bytes());
        assert_eq!(bytes[24..32], (-1i64).to_ne_bytes());
        let all = sent(|n| n.inval_inode(7, Extent::All));
        assert_eq!(all[24..], [0; 16]);
    }

    #[test]
    fn what_is_to_be_dropped_is_counted() {
        let bytes = sent(|n| n.prune(&[5, 6]));
        assert_eq!(bytes[4..8], 9i32.to_ne_bytes());
        assert_eq!(bytes[16..20], 2u32.to_ne_bytes());
        assert_eq!(bytes[20..32], [0; 12]);
        assert_eq!(bytes[32..40], 5u64.to_ne_bytes());
        assert_eq!(bytes.len(), 48);
    }

    #[test]
    fn a_name_ends_in_nul_that_its_length_leaves_out() {
        let bytes = sent(|n| n.inval_entry(9, OsStr::new("ab"), Entry::Expire));
        assert_eq!(bytes[..4], 35u32.to_ne_bytes());
        assert_eq!(bytes[16..24], 9u64.to_ne_bytes());
        assert_eq!(bytes[24..28], 2u32.to_ne_bytes());
        assert_eq!(bytes[28..32], 1u32.to_ne_bytes());
        assert_eq!(bytes[32..], *b"ab\0");
    }
}
