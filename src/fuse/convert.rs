//! Between the mirror's values and those of the FUSE library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::mirror::{Attr, Caller, Time};
use crate::sys::Fail;

/// Who asked. `umask` counts where the operation creates something.
pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

/// The errno that a caller gets.
pub(super) fn errno(fail: &Fail) -> Errno {
    Errno::from_i32(fail.errno.raw_os_error())
}

/// Attributes for a reply that names the inode: its `ino` is the node id.
pub(super) fn entry_attr(attr: &Attr) -> FileAttr {
    file_attr(attr, attr.id)
}

/// Attributes for a reply about a known inode: its `ino` is what stat(2) shows.
pub(super) fn shown_attr(attr: &Attr) -> FileAttr {
    file_attr(attr, attr.shown_ino())
}

fn file_attr(attr: &Attr, ino: u64) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: system_time(stat.st_atime, stat.st_atime_nsec),
        mtime: system_time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: system_time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: file_type(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The low half of a dev_t is the kernel's own 32-bit form (new_encode_dev).
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// Seconds since 1970, which may be negative, and nanoseconds after that second.
fn system_time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let fraction = Duration::from_nanos(nanoseconds);
    second
        .and_then(|second| second.checked_add(fraction))
        .unwrap_or(UNIX_EPOCH)
}

/// The type of a file; the library knows no unknown one.
pub(super) fn file_type(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Kind;
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::RegularFile | Kind::Unknown => FileType::RegularFile,
    }
}

/// A time to be set, as it was before the library decoded it: fuser 0.18 turns (-5 s, 300 ns)
/// into 5 s *and* 300 ns before 1970, so taking that duration apart gives the true pair back.
pub(super) fn time(time: TimeOrNow) -> Time {
    let time = match time {
        TimeOrNow::Now => return Time::Now,
        TimeOrNow::SpecificTime(time) => time,
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time::At(since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            // The first second of all has no counterpart after 1970: it stays itself.
            let seconds = (before.as_secs() as i64).wrapping_neg();
            Time::At(seconds, before.subsec_nanos())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_a_negative_second_and_a_positive_rest() {
        let time = system_time(-2, 800_000_000);
        let before = UNIX_EPOCH.duration_since(time).unwrap();
        assert_eq!(before, Duration::from_millis(1200));
    }

    #[test]
    fn what_the_library_decodes_wrongly_is_read_rightly() {
        let as_decoded = UNIX_EPOCH - Duration::new(5, 300);
        assert_eq!(time(TimeOrNow::SpecificTime(as_decoded)), Time::At(-5, 300));
    }

    #[test]
    fn the_first_and_the_last_second_of_all_are_times() {
        let first = UNIX_EPOCH - Duration::from_secs(1 << 63);
        let last = UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        for (at, seconds) in [(first, i64::MIN), (last, i64::MAX)] {
            assert_eq!(time(TimeOrNow::SpecificTime(at)), Time::At(seconds, 0));
            assert_eq!(system_time(seconds, 0), at);
        }
    }
}
