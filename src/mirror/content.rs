//! The bytes of open files: read from windows, written, allocated, looked for, copied.

use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::file::WriteSync;
use super::{Io, MAX_READ, Mirror};
use crate::copy::copy_range;
use crate::observe::{Fallback, ReadMode};
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};
use crate::window::Pattern;

thread_local! {
    /// The buffer of `io=pread`, kept so that no request pays for fresh pages.
    static BUFFER: RefCell<Aligned> = RefCell::default();
}

impl Mirror {
    /// Reads up to `size` bytes at `offset` and lends them to `send`: from a mapped window, which
    /// nothing of ours touches, or from this thread's buffer.
    ///
    /// Less than `size` means the end of the file.
    ///
    /// # Errors
    /// Those of pread(2); EIO for a page that the source lost.
    pub fn read<R>(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        send: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let file = self.file(handle)?;
        let end = offset.saturating_add(size.min(MAX_READ) as u64);
        let before = file.read_end.swap(end, Ordering::Relaxed);
        // Requests of one reader's readahead overtake each other by some hundred kilobytes.
        let sequential = before.abs_diff(offset) <= MAX_READ as u64;
        let send = match self.read_cached(&file, offset..end, sequential, send) {
            Ok(done) => return done,
            Err(send) => send,
        };
        let fd = match self.source_of(&file) {
            // It was opened while the source was away, or had nothing to be kept: its end.
            Err(_) if file.is_past_what_is_known(offset) => return Ok(send(&[])),
            fd => fd?,
        };
        if self.options.io == Io::Pread {
            return self.read_buffered(&fd, offset, size, None, send);
        }
        let length = rustix::fs::fstat(&*fd).or_fail("fstat")?.st_size as u64;
        if length == 0 {
            // Empty, or of a file system that makes its bytes up as they are read.
            return self.read_buffered(&fd, offset, size, None, send);
        }
        if offset >= length {
            return Ok(send(&[]));
        }
        let range = offset..end.min(length);
        let id = file.inode.file_id;
        let pattern = Pattern::of(sequential, range.end - offset, length);
        match self.windows.slice(id, &fd, range, length, pattern) {
            Ok(slice) => {
                // Again, now that the pages are there: bytes past a new end are no longer the
                // file's, though the last page still has zeros for them.
                let length = rustix::fs::fstat(&*fd).or_fail("fstat")?.st_size as u64;
                let kept = length.saturating_sub(offset).min(slice.len() as u64) as usize;
                self.metrics.read(ReadMode::Mmap, kept as u64);
                Ok(slice.lend(|bytes| send(&bytes[..kept])))
            }
            Err(miss) => self.read_buffered(&fd, offset, size, Some(miss.reason()), send),
        }
    }

    fn read_buffered<R>(
        &self,
        fd: &OwnedFd,
        offset: u64,
        size: usize,
        reason: Option<Fallback>,
        send: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        with_buffer(size.min(MAX_READ), |buffer| {
            let filled = pread_full(fd, buffer, offset)?;
            self.metrics.read(ReadMode::Pread, filled as u64);
            if let Some(reason) = reason {
                self.metrics.fallback(reason, filled as u64);
            }
            Ok(send(&buffer[..filled]))
        })?
    }

    /// Writes at `offset`, or at the end of a file opened for appending; `from_pages` says that
    /// the bytes are those of pages stored to through a mapping, which have a place of their own;
    /// `sync` is what the caller asked for with this write.
    ///
    /// # Errors
    /// Those of pwrite(2), when nothing could be written.
    pub fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        (from_pages, sync): (bool, WriteSync),
    ) -> Result<usize> {
        let file = self.file(handle)?;
        let fd = file.fd()?;
        let mut flags = ReadWriteFlags::empty();
        flags.set(ReadWriteFlags::APPEND, file.append && !from_pages);
        // Else the kernel asks for it when the write is done (generic_write_sync).
        if file.past_pages {
            flags |= sync.0;
        }
        let mut done = 0;
        while done < data.len() {
            let rest = [IoSlice::new(&data[done..])];
            let write = || rustix::io::pwritev2(&*fd, &rest, offset + done as u64, flags);
            match file.changed(write)? {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(Fail::new(errno, "pwrite")),
            }
        }
        self.metrics.written(done as u64);
        if self.options.writeback {
            self.keep_time_of_write(&file, &fd, from_pages);
        }
        self.wrote(&file, offset, &data[..done], file.append && !from_pages);
        self.changed_by_us(file.inode.id, fd.as_fd());
        Ok(done)
    }

    /// Brings a file's data, and unless `data_only` its metadata, to the disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        let file = self.file(handle)?;
        if !file.writable && self.outage.cause().is_some() {
            // Whoever wrote has a handle of his own.
            return self.outage.check("fsync");
        }
        self.settle_times(&file);
        let fd = file.fd()?;
        if data_only {
            return rustix::fs::fdatasync(&*fd).or_fail("fdatasync");
        }
        rustix::fs::fsync(&*fd).or_fail("fsync")
    }

    /// Allocates, punches or zeroes a range; `mode` as in fallocate(2).
    ///
    /// # Errors
    /// EROFS; those of fallocate(2).
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        self.writable("fallocate")?;
        let file = self.file(handle)?;
        let (fd, mode) = (file.fd()?, FallocateFlags::from_bits_retain(mode));
        file.changed(|| rustix::fs::fallocate(&*fd, mode, offset, length))?
            .or_fail("fallocate")?;
        let range = offset..offset.saturating_add(length);
        self.changed_within(&file.inode, fd.as_fd(), range);
        self.changed_by_us(file.inode.id, fd.as_fd());
        Ok(())
    }

    /// The next data or hole at or after `offset`; `whence` is SEEK_DATA or SEEK_HOLE.
    ///
    /// # Errors
    /// ENXIO past the end, EINVAL for another `whence`; ENOSYS where the kernel keeps what is written:
    /// what it has not sent yet would be told as holes. It then knows of no hole but the end.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> Result<u64> {
        if self.options.writeback {
            return Err(Fail::new(Errno::NOSYS, "lseek"));
        }
        let file = self.file(handle)?;
        let offset = u64::try_from(offset).map_err(|_| Fail::new(Errno::NXIO, "lseek"))?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Fail::new(Errno::INVAL, "lseek")),
        };
        rustix::fs::seek(&*self.source_of(&file)?, from).or_fail("lseek")
    }

    /// Whether a copy from there takes no longer than a read or a write may: a thread for it would
    /// take longer than the copy of a small file.
    pub fn copies_at_once(&self, from: (u64, u64), length: u64) -> bool {
        let fd = self.file(from.0).and_then(|file| file.fd());
        let size = fd.ok().and_then(|fd| rustix::fs::fstat(&*fd).ok());
        let size = size.map_or(0, |stat| stat.st_size);
        (size as u64).saturating_sub(from.1).min(length) <= MAX_READ as u64
    }

    /// Copies between two open files, or two places of one, beneath the mirror; may move less than
    /// `length`. Not told to the kernel: before it asked it had written back what it had stored,
    /// and when it has the answer it drops the pages of the target's range (fs/fuse/file.c,
    /// __fuse_copy_file_range). To tell it from here would wait for the very request.
    ///
    /// # Errors
    /// EROFS; those of [`copy_range`].
    pub fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), length: u64) -> Result<u64> {
        self.writable("copy_file_range")?;
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let (from_fd, to_fd) = (self.source_of(&source)?, target.fd()?);
        let places = ((from_fd.as_fd(), from.1), (to_fd.as_fd(), to.1));
        let copied = target.changed(|| copy_range(places.0, places.1, length))?;
        let moved = copied.as_ref().copied().unwrap_or(length);
        let range = to.1..to.1.saturating_add(moved);
        self.changed_within(&target.inode, to_fd.as_fd(), range);
        self.changed_by_us(target.inode.id, to_fd.as_fd());
        copied
    }
}

/// Lends `size` bytes of this thread's buffer.
///
/// # Errors
/// ENOMEM: the one large piece of memory on the way of a read; without it the reader gets an error,
/// and the daemon lives.
pub(super) fn with_buffer<T>(size: usize, work: impl FnOnce(&mut [u8]) -> T) -> Result<T> {
    BUFFER.with_borrow_mut(|buffer| buffer.room(size).map(work))
}

pub(super) fn pread_full(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(_) if filled > 0 => break,
            Err(errno) => return Err(Fail::new(errno, "pread")),
        }
    }
    Ok(filled)
}
