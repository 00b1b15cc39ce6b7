//! fanotify(7): what happens on a whole file system, with names, for privileged processes.
//!
//! No crate wraps the reports by file handle (FAN_REPORT_DFID_NAME, Linux 5.9), so the records are
//! taken apart here, from bytes, as `include/uapi/linux/fanotify.h` lays them out.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::handle::{FileHandle, last_error};
use super::{Errno, Fail, Result};

/// A name of a directory came to be.
pub const CREATE: u64 = libc::FAN_CREATE;
/// A name of a directory went.
pub const DELETE: u64 = libc::FAN_DELETE;
/// A name was renamed away.
pub const MOVED_FROM: u64 = libc::FAN_MOVED_FROM;
/// A name was renamed to, perhaps over another.
pub const MOVED_TO: u64 = libc::FAN_MOVED_TO;
/// Bytes of a file changed.
pub const MODIFY: u64 = libc::FAN_MODIFY;
/// A file that was open for writing, or mapped so, has lost its last descriptor and mapping.
pub const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
/// Attributes of an inode changed, its link count too.
pub const ATTRIB: u64 = libc::FAN_ATTRIB;
/// An inode has another name, and so another ctime.
pub const MOVE_SELF: u64 = libc::FAN_MOVE_SELF;
/// What it happened to is a directory.
pub const ON_DIRECTORY: u64 = libc::FAN_ONDIR;
/// Events were lost: there were more than the queue holds.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// All that makes something stale which a kernel may have cached of a file system.
const CHANGES: u64 = CREATE
    | DELETE
    | MOVED_FROM
    | MOVED_TO
    | MODIFY
    | CLOSE_WRITE
    | ATTRIB
    | MOVE_SELF
    | ON_DIRECTORY;

/// The file system of an event, as statfs(2) tells it.
pub type Fsid = [i32; 2];

/// A queue of events.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

/// One event; events of the same process on the same name may come as one, with both bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub mask: u64,
    /// The process that did it, as this process numbers it; 0 for one out of its sight.
    pub pid: u32,
    /// The file system.
    pub fsid: Fsid,
    /// The directory that the name is of.
    pub dir: Option<FileHandle>,
    /// The name; none for what happened to a directory itself.
    pub name: Option<Box<OsStr>>,
    /// What the event is about. Before Linux 5.17 events of names come without.
    pub target: Option<FileHandle>,
}

impl Fanotify {
    /// A queue of at most fs.fanotify.max_queued_events (16,384 by default).
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, EINVAL before Linux 5.9, ENOSYS without fanotify, EMFILE.
    pub fn new() -> Result<Self> {
        let class = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let names = libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID;
        match init(class | names | libc::FAN_REPORT_TARGET_FID) {
            Err(fail) if fail.errno == Errno::INVAL => init(class | names),
            made => made,
        }
        .map(Self)
    }

    /// Watches the file system that `path` lies on, symbolic links followed.
    ///
    /// # Errors
    /// EXDEV in a btrfs subvolume, EOPNOTSUPP and ENODEV where the file system has no handles or
    /// no id, ENOSPC beyond fs.fanotify.max_user_marks.
    pub fn watch_file_system(&self, path: &CStr) -> Result<()> {
        // SAFETY: the descriptor is ours, the path a C string; the kernel only reads it.
        let done = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                CHANGES,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(last_error("fanotify_mark")),
        }
    }

    /// Hands the events that are there to `each`; false when there were none.
    ///
    /// # Errors
    /// Those of read(2), except EAGAIN; EPROTO for records of another version.
    pub fn read(&self, buffer: &mut [u8], mut each: impl FnMut(Event)) -> Result<bool> {
        let length = match rustix::io::read(&self.0, &mut *buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(Fail::new(errno, "read events")),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (event, after) = parse(rest).ok_or(Fail::new(Errno::PROTO, "read events"))?;
            if event.mask != 0 {
                each(event);
            }
            rest = after;
        }
        Ok(length > 0)
    }
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn init(flags: u32) -> Result<OwnedFd> {
    // SAFETY: two plain numbers; the descriptor that comes back is nobody else's.
    let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as u32) };
    if fd < 0 {
        return Err(last_error("fanotify_init"));
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The id of the file system that `fd` lies on, as events carry it.
///
/// # Errors
/// Those of fstatfs(2).
pub fn fsid(fd: BorrowedFd<'_>) -> Result<Fsid> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a descriptor that lives, and room for what the kernel fills in.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(last_error("fstatfs"));
    }
    // SAFETY: the call went well, so the kernel has filled it.
    let id = unsafe { stat.assume_init() }.f_fsid;
    // SAFETY: `fsid_t` is two ints by its definition (statfs(2)), which are private in libc.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, Fsid>(id) })
}

/// `struct fanotify_event_metadata` and its records; what follows them.
fn parse(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let head = usize::from(u16_at(bytes, 6)?);
    let version = *bytes.get(4)?;
    if version != libc::FANOTIFY_METADATA_VERSION || length < head || head < 24 {
        return None;
    }
    let (whole, after) = bytes.split_at_checked(length)?;
    let mut event = Event {
        mask: u64::from_ne_bytes(whole.get(8..16)?.try_into().ok()?),
        pid: u32_at(whole, 20)?,
        ..Event::default()
    };
    let mut records = whole.get(head..)?;
    while records.len() >= 4 {
        let size = usize::from(u16_at(records, 2)?);
        if size < 4 {
            return None;
        }
        let (record, rest) = records.split_at_checked(size)?;
        take_record(&mut event, record);
        records = rest;
    }
    Some((event, after))
}

/// `struct fanotify_event_info_fid`: type, pad, length, fsid, then a `struct file_handle`, then,
/// of some types, a name that ends in NUL. Types that we did not ask for are passed over.
fn take_record(event: &mut Event, record: &[u8]) -> Option<()> {
    let kind = *record.first()?;
    let of_dir = [
        libc::FAN_EVENT_INFO_TYPE_DFID,
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME,
    ];
    if kind != libc::FAN_EVENT_INFO_TYPE_FID && !of_dir.contains(&kind) {
        return None;
    }
    let fsid = [u32_at(record, 4)? as i32, u32_at(record, 8)? as i32];
    let length = u32_at(record, 12)? as usize;
    let handle_type = u32_at(record, 16)? as i32;
    let (handle, name) = record.get(20..)?.split_at_checked(length)?;
    let handle = FileHandle::reported(handle_type, handle)?;
    event.fsid = fsid;
    if kind == libc::FAN_EVENT_INFO_TYPE_FID {
        event.target = Some(handle);
        return Some(());
    }
    event.dir = Some(handle);
    if kind == libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
        let name = CStr::from_bytes_until_nul(name).ok()?.to_bytes();
        event.name = (name != b".").then(|| OsStr::from_bytes(name).into());
    }
    Some(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for number in [7u32, 8, handle.len() as u32, 1] {
            body.extend(number.to_ne_bytes());
        }
        body.extend(handle);
        body.extend(name);
        let mut record = vec![kind, 0];
        record.extend((body.len() as u16 + 4).to_ne_bytes());
        record.extend(body);
        record
    }

    fn event(mask: u64, pid: i32, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let mut bytes = (24 + records.len() as u32).to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    #[test]
    fn an_event_has_its_directory_its_name_and_its_target() {
        let records = [
            record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1, 2], b"a b\0\0\0"),
            record(libc::FAN_EVENT_INFO_TYPE_FID, &[3], b""),
        ];
        let two = [event(CREATE, 5, &records), event(OVERFLOW, 0, &[])].concat();
        let (first, rest) = parse(&two).unwrap();
        assert_eq!((first.mask, first.pid, first.fsid), (CREATE, 5, [7, 8]));
        assert_eq!(first.dir, FileHandle::reported(1, &[1, 2]));
        assert_eq!(first.name.as_deref(), Some(OsStr::new("a b")));
        assert_eq!(first.target, FileHandle::reported(1, &[3]));
        let (second, rest) = parse(rest).unwrap();
        assert_eq!((second.mask, second.target), (OVERFLOW, None));
        assert!(rest.is_empty());
    }

    #[test]
    fn what_happened_to_a_directory_itself_has_no_name() {
        let dot = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1], b".\0");
        let bytes = event(ATTRIB, 5, &[dot]);
        let (event, _) = parse(&bytes).unwrap();
        assert_eq!((event.name, event.target), (None, None));
        assert!(event.dir.is_some());
    }

    #[test]
    fn what_is_cut_short_or_of_another_version_is_no_event() {
        let record = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[1, 2], b"name\0");
        let whole = event(CREATE, 5, &[record]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        let mut other = whole;
        other[4] += 1;
        assert_eq!(parse(&other), None);
    }
}
