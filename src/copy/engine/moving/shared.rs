//! Methods in which the file system does the work: `reflink` and `copy-range`.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{copy_file_range, fstat, fstatfs, ftruncate, ioctl_ficlone};

use super::course::{Course, Outcome};
use super::{Pass, lost};
use crate::copy::options::{Method, Reflink};
use crate::sys::{Errno, Fail, OrFail, Result, clone};

/// Bytes of one FICLONERANGE: it can't be cancelled, and writes back what of the source is dirty. A
/// multiple of every block.
const SHARE: u64 = 1 << 30;

/// What says "not this way", not "failed", of FICLONE and of copy_file_range.
pub(in crate::copy) fn not_here(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::XDEV
            | Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::NOTTY
            | Errno::PERM
            | Errno::TXTBSY
    )
}

/// The type of a file's file system (statfs(2)); 0 when it does not say.
#[allow(clippy::cast_sign_loss, reason = "a number that means itself only")]
pub(in crate::copy) fn kind(file: BorrowedFd<'_>) -> u64 {
    // Its width and sign are the processor's; all known ones fit 32 bits.
    fstatfs(file).map_or(0, |found| u64::from(found.f_type as u32))
}

/// File systems that copy where the data is, so that it does not come here and go back: NFS, SMB
/// and FUSE (linux/magic.h, statfs(2)), Ceph.
pub(super) fn copies_at_the_server(kind: u64) -> bool {
    const NFS: u64 = 0x6969;
    const CIFS: u64 = 0xff53_4d42;
    const SMB2: u64 = 0xfe53_4d42;
    const FUSE: u64 = 0x6573_5546;
    const CEPH: u64 = 0x00c3_6400;
    matches!(kind, NFS | CIFS | SMB2 | FUSE | CEPH)
}

/// File systems where a request goes to a server and may take long: those, and 9p.
pub(super) fn is_far(kind: u64) -> bool {
    const V9FS: u64 = 0x0102_1997;
    copies_at_the_server(kind) || kind == V9FS
}

/// File systems whose `copy_file_range` is known to copy bytes: ext2 to ext4, tmpfs, F2FS. Every
/// other may share extents there, without being asked (copy_file_range(2)).
pub(in crate::copy) fn never_shares(kind: u64) -> bool {
    matches!(kind, 0xef53 | 0x0102_1994 | 0xf2f5_2010)
}

/// File systems whose files are pages of memory and nothing else: tmpfs.
pub(super) fn is_memory(kind: u64) -> bool {
    kind == 0x0102_1994
}

impl Pass<'_> {
    /// Shares the extents of the whole source. How far that was possible: 0 is "not here".
    ///
    /// # Errors
    /// With `--reflink=always` also what else is "not here".
    pub(super) fn share(&self) -> Result<u64> {
        let must = self.order.options.reflink == Reflink::Always;
        let mut at = 0;
        loop {
            self.progress().check()?;
            let rest = self.size - at;
            let share = || {
                if at == 0 && rest <= SHARE {
                    return ioctl_ficlone(self.destination, self.source);
                }
                // To the end, wherever that is by now: a length within the last block is refused.
                let len = if rest <= SHARE { 0 } else { SHARE };
                clone::range((self.source, at), len, (self.destination, at))
            };
            let shared = self.progress().at_length(share);
            match shared {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                // It is shorter by now: a change of the source, and no refusal.
                Err(Errno::INVAL) if self.source_is_shorter()? => return Err(lost(at)),
                // The source's last block is refused where the destination goes on behind it.
                Err(Errno::INVAL) if self.is_longer()? => {
                    ftruncate(self.destination, self.size).or_fail("ftruncate")?;
                    continue;
                }
                Err(errno) if not_here(errno) && !must => return Ok(at),
                Err(errno) => return Err(Fail::new(errno, "share extents")),
            }
            let end = at + rest.min(SHARE);
            self.shared(at..end)?;
            at = end;
            if at >= self.size {
                return Ok(self.size);
            }
        }
    }

    /// Whether what is written in place has more than the source.
    fn is_longer(&self) -> Result<bool> {
        let own = fstat(self.destination).or_fail("fstat")?;
        let size = u64::try_from(own.st_size).unwrap_or(0);
        Ok(self.order.options.inplace && size > self.size)
    }

    /// Whether the source has been cut off since the pass began.
    fn source_is_shorter(&self) -> Result<bool> {
        let stat = fstat(self.source).or_fail("fstat")?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0) < self.size)
    }

    /// Counts what is shared as done. No byte moved: it does not count towards a limit.
    fn shared(&self, range: Range<u64>) -> Result<()> {
        self.progress().set_method(Method::Reflink);
        // Without asking where data is: of the bytes allocated, a share in proportion would be no
        // better known. What is past the last of them is holes.
        let data = range.end.min(self.allocated) - range.start.min(self.allocated);
        self.add_total(data);
        self.add_done(data);
        self.done(range)
    }
}

impl Course<'_> {
    pub(super) fn copy_range(&self, range: Range<u64>) -> Result<Outcome> {
        let (mut from, mut to) = (range.start, range.start);
        while from < range.end {
            self.check()?;
            let at = from;
            let len = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let copied = copy_file_range(
                self.source(),
                Some(&mut from),
                self.destination(),
                Some(&mut to),
                len,
            );
            match copied {
                // Before the end of the file: some virtual ones do that.
                Ok(0) => return Ok(Outcome::NotFrom(at)),
                Ok(count) => self.count(count as u64)?,
                Err(Errno::INTR) => {}
                Err(errno) if not_here(errno) => return Ok(Outcome::NotFrom(at)),
                Err(errno) => return Err(errno).or_fail("copy_file_range"),
            }
        }
        Ok(Outcome::Done)
    }
}
