//! File handles: an inode's name that outlives its descriptors (name_to_handle_at(2)).
//!
//! A handle carries the inode's generation, so that it never opens another file that got the same
//! inode number later.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use super::short::Short;
use super::{Errno, Fail, Result};

/// What the file system calls one inode: its kind of handle in one byte, then the handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(Short);

/// The longest handle (MAX_HANDLE_SZ), in bytes.
const MAX_BYTES: usize = 128;

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; MAX_BYTES],
}

impl FileHandle {
    /// A handle that the kernel reported (fanotify(7)): its type and its bytes. None for a type
    /// that is no handle's.
    pub fn reported(kind: i32, bytes: &[u8]) -> Option<Self> {
        let kind = u8::try_from(kind).ok()?;
        Some(Self::packed(kind, bytes))
    }

    fn packed(kind: u8, bytes: &[u8]) -> Self {
        let mut packed = [kind; 1 + MAX_BYTES];
        let length = bytes.len().min(MAX_BYTES);
        packed[1..=length].copy_from_slice(&bytes[..length]);
        Self(Short::new(&packed[..=length]))
    }

    /// The file system's own name for the layout of the bytes.
    pub fn kind(&self) -> i32 {
        self.0.as_bytes().first().map_or(0, |kind| i32::from(*kind))
    }

    /// What only the file system understands.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes().get(1..).unwrap_or_default()
    }

    /// The handle of the inode behind `fd` (`O_PATH` will do).
    ///
    /// # Errors
    /// EOPNOTSUPP where the file system has no handles. No privilege is needed.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let mut raw = RawHandle {
            handle_bytes: MAX_BYTES as u32,
            handle_type: 0,
            f_handle: [0; MAX_BYTES],
        };
        let mut mount_id = 0i32;
        // SAFETY: the path is an empty C string, `raw` has the layout and the room that its
        // handle_bytes states, `mount_id` is a valid place for an int.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if done < 0 {
            return Err(last_error("name_to_handle_at"));
        }
        // Kinds are numbered in one byte: NFS, for which they were made, has no more room.
        let kind = u8::try_from(raw.handle_type)
            .map_err(|_| Fail::new(Errno::OPNOTSUPP, "name_to_handle_at"))?;
        let length = (raw.handle_bytes as usize).min(raw.f_handle.len());
        Ok(Self::packed(kind, &raw.f_handle[..length]))
    }

    /// Opens the inode again. `mount` is any descriptor, not `O_PATH`, on its file system.
    ///
    /// # Errors
    /// EPERM without CAP_DAC_READ_SEARCH, ESTALE when the inode is gone.
    pub fn open(&self, mount: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let Some((kind, bytes)) = self.0.as_bytes().split_first() else {
            return Err(Fail::new(Errno::STALE, "open_by_handle_at"));
        };
        let mut raw = RawHandle {
            handle_bytes: bytes.len() as u32,
            handle_type: i32::from(*kind),
            f_handle: [0; MAX_BYTES],
        };
        raw.f_handle[..bytes.len()].copy_from_slice(bytes);
        let flags = (flags | OFlags::CLOEXEC).bits();
        // SAFETY: `raw` is a valid file_handle of its stated length, which the kernel only reads
        // (and whose handle_bytes it may check).
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut raw,
                flags,
            )
        };
        if fd < 0 {
            let fail = last_error("open_by_handle_at");
            return Err(match fail.errno {
                // Its number is just being given to a new file: iget_locked (fs/inode.c) finds that
                // one half made and returns nothing, which file systems take for want of memory.
                Errno::NOMEM => Fail::new(Errno::STALE, "open_by_handle_at"),
                _ => fail,
            });
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

pub(super) fn last_error(operation: &'static str) -> Fail {
    let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
    Fail::new(errno, operation)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_handle_names_its_inode_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let one = std::fs::File::create(dir.path().join("one")).unwrap();
        let two = std::fs::File::create(dir.path().join("two")).unwrap();
        let (Ok(a), Ok(b)) = (FileHandle::of(one.as_fd()), FileHandle::of(two.as_fd())) else {
            crate::sys::testing::skip("no file handles on this file system");
            return;
        };
        assert_ne!(a, b);
        assert_eq!(a, FileHandle::of(one.as_fd()).unwrap());
        let mount = std::fs::File::open(dir.path()).unwrap();
        match a.open(mount.as_fd(), OFlags::PATH) {
            Ok(again) => {
                let (x, y) = (rustix::fs::fstat(&again), rustix::fs::fstat(&one));
                assert_eq!(x.unwrap().st_ino, y.unwrap().st_ino);
            }
            Err(fail) => assert_eq!(fail.errno, Errno::PERM),
        }
    }
}
