//! Inode flags and project numbers, the ioctls that the kernel hands on in a form of its own.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};

use super::{Caller, Mirror, NodeId};
use crate::sys::flags::{
    FSXATTR, GET_FLAGS, GET_FSXATTR, JOURNAL_DATA, SET_FLAGS, SET_FSXATTR, get, get_fsxattr, set,
    set_fsxattr,
};
use crate::sys::{Errno, Fail, Result};

impl Mirror {
    /// Answers FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR with the
    /// bytes that go back to the caller. Who may set which flag the kernel has judged already
    /// (fileattr_set_prepare, by the owner that it knows and the caller's capabilities).
    ///
    /// # Errors
    /// ENOTTY for every other command, for what is neither file nor directory, and where the
    /// source's file system has no flags; EROFS; EPERM; those of ioctl_iflags(2).
    pub fn ioctl(&self, caller: &Caller, id: NodeId, cmd: u32, data: &[u8]) -> Result<Vec<u8>> {
        if ![GET_FLAGS, SET_FLAGS, GET_FSXATTR, SET_FSXATTR].contains(&cmd) {
            return Err(Fail::new(Errno::NOTTY, "ioctl"));
        }
        let fd = self.open_for_flags(id)?;
        let fd = fd.as_fd();
        match cmd {
            GET_FLAGS => Ok(get(fd)?.to_ne_bytes().to_vec()),
            GET_FSXATTR => Ok(get_fsxattr(fd)?.to_vec()),
            SET_FLAGS => {
                self.writable("ioctl")?;
                let flags = u32::from_ne_bytes(exactly(data)?);
                if (get(fd)? ^ flags) & JOURNAL_DATA != 0 && caller.uid != 0 {
                    return Err(Fail::new(Errno::PERM, "ioctl FS_IOC_SETFLAGS"));
                }
                self.act_as(caller, || set(fd, flags))?;
                Ok(Vec::new())
            }
            _ => {
                self.writable("ioctl")?;
                let raw: [u8; FSXATTR] = exactly(data)?;
                self.act_as(caller, || set_fsxattr(fd, &raw))?;
                Ok(Vec::new())
            }
        }
    }

    fn open_for_flags(&self, id: NodeId) -> Result<OwnedFd> {
        let inode = self.table.get(id)?;
        if ![FileType::RegularFile, FileType::Directory].contains(&inode.kind) {
            return Err(Fail::new(Errno::NOTTY, "ioctl"));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        self.reopen(&inode, flags, flags - OFlags::NOATIME)
    }
}

fn exactly<const N: usize>(data: &[u8]) -> Result<[u8; N]> {
    let array = data.first_chunk::<N>().copied();
    array.ok_or_else(|| Fail::new(Errno::INVAL, "ioctl"))
}
