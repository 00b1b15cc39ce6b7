//! Hidden names of copies under way: whose they are, and the end of those whose owner is dead.
//!
//! A temporary file that has a name is locked (`flock(2)`) by the one who fills it, as long as he
//! lives. Who gets the lock of one has a leftover before him, wherever a lock is known to all who
//! could hold it: on a file system that one kernel alone has. Elsewhere (a network, FUSE) locks may
//! be local to a host or a mount; there the name must also tell that its owner was a process of
//! this boot and this pid namespace which is there no more. In doubt it stays.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, fstatfs, openat,
    statat, unlinkat,
};

use super::progress::Progress;
use super::resolve::same_file;
use super::unseen;
use crate::sys::{Errno, OrFail, Result};

const PREFIX: &str = ".corfs-copy-";
const SUFFIX: &str = ".tmp";
/// What an interrupted `--resume` leaves on purpose; see `engine::resume`.
pub(super) const PART: &str = ".corfs-part-";
pub(super) const JOURNAL: &str = ".journal";
/// An interrupted copy that nobody resumed for so many seconds is given up: a week.
const ABANDONED: u64 = 7 * 24 * 3600;
/// Names that are looked at in one directory: a copy into a directory of millions is not to wait
/// for a list of them all.
pub(super) const MOST_NAMES: usize = 100_000;
/// Directories of a job that are remembered as looked at. A tree is copied directory by directory.
const MOST_SWEPT: usize = 64;

/// File systems that no other kernel has mounted (`statfs(2)`): ext4, XFS, btrfs, tmpfs, f2fs,
/// bcachefs, ZFS, FAT, exFAT.
const OF_ONE_KERNEL: [u64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x4d44,
    0x2011_bab0,
];

/// A process, told apart from every other one, also of other hosts and of other times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    /// `/proc/sys/kernel/random/boot_id` without its dashes.
    boot: String,
    /// The inode of its pid namespace.
    namespace: u64,
    pid: u32,
    /// In clock ticks after boot (`proc_pid_stat(5)`).
    start: u64,
}

impl Owner {
    fn this() -> &'static Self {
        static THIS: OnceLock<Owner> = OnceLock::new();
        THIS.get_or_init(|| {
            let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino());
            Self {
                // Without /proc nobody can be told apart: what has this boot is never judged.
                boot: boot.chars().filter(char::is_ascii_hexdigit).collect(),
                namespace,
                pid: std::process::id(),
                start: own_start().unwrap_or(0),
            }
        })
    }

    /// Whose hidden name it is; `None` if it is none.
    fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let mut fields = name.split('-');
        let owner = Self {
            boot: fields.next()?.to_owned(),
            namespace: fields.next()?.parse().ok()?,
            pid: fields.next()?.parse().ok()?,
            start: fields.next()?.parse().ok()?,
        };
        let _count: u64 = fields.next()?.parse().ok()?;
        fields.next().is_none().then_some(owner)
    }

    /// Whether this machine, or another, has been started since: where it can't be another, as on a file
    /// system of one kernel, the process is no more.
    fn is_of_another_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot != Self::this().boot
    }

    /// Whether it can be told for sure that the process is no more, from its name alone.
    ///
    /// Of another process only that its number is free counts, or that nobody has waited for its
    /// end: what else /proc knows of a process may be withheld while it executes a program, and it
    /// may be waiting for us.
    fn is_gone(&self) -> bool {
        let this = Self::this();
        if self.boot.is_empty() || self.boot != this.boot || self.namespace != this.namespace {
            return false;
        }
        if self.pid == this.pid {
            return self.start != this.start;
        }
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => has_ended(&stat),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

/// The third field: a zombie, or less.
fn has_ended(stat: &str) -> bool {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    matches!(fields.trim_start().as_bytes().first(), Some(b'Z' | b'X'))
}

/// The 22nd field; the second, in parentheses, may hold anything.
fn own_start() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A name that nobody has, for a temporary file of this process.
pub(super) fn hidden_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let Owner {
        boot,
        namespace,
        pid,
        start,
    } = Owner::this();
    format!("{PREFIX}{boot}-{namespace}-{pid}-{start}-{count}{SUFFIX}").into()
}

/// Locks a temporary file, as long as the descriptor is open, against being taken for a leftover.
/// False when somebody was quicker and has it, or has removed it.
pub(super) fn hold(file: BorrowedFd<'_>) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fstat(file).or_fail("fstat")?.st_nlink > 0),
        Err(Errno::WOULDBLOCK) => Ok(false),
        // No locks on this file system: nobody can have it, and nobody will remove it.
        Err(_) => Ok(true),
    }
}

/// Where a job has looked already, and whether interrupted copies are there.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// A leaf in the order of locks.
    directories: Mutex<Vec<((u64, u64), bool)>>,
}

/// Removes what dead copies have left in a directory that a job copies into, once a job. True when
/// there are interrupted copies, which may be resumed.
///
/// With the rights in force on this thread; what these do not allow stays, and is no error.
pub(super) fn visit(directory: BorrowedFd<'_>, progress: &Progress) -> Result<bool> {
    let stat = fstat(directory).or_fail("fstat")?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the width differs between machines"
    )]
    let key = (stat.st_dev as u64, stat.st_ino as u64);
    let swept = &progress.swept.directories;
    if let Some((_, parts)) = swept.lock().iter().find(|(known, _)| *known == key) {
        return Ok(*parts);
    }
    let parts = sweep(directory, MOST_NAMES, || progress.check())?;
    let mut swept = swept.lock();
    if swept.len() >= MOST_SWEPT {
        swept.remove(0);
    }
    swept.push((key, parts));
    Ok(parts)
}

/// Removes leftovers among the first `most` names of a directory. True when there are interrupted
/// copies.
///
/// # Errors
/// Those of `check`, which is called now and then.
pub(super) fn sweep(
    directory: BorrowedFd<'_>,
    most: usize,
    check: impl Fn() -> Result<()>,
) -> Result<bool> {
    // Who may not list a directory doesn't find what is left in it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(list) = openat(directory, ".", flags, Mode::empty()).and_then(Dir::new) else {
        return Ok(false);
    };
    let local = is_told_by_locks(directory);
    let mut parts = false;
    for (number, entry) in list.take(most).enumerate() {
        if number % 1024 == 1023 {
            check()?;
        }
        let Ok(entry) = entry else {
            break;
        };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if let Some(owner) = Owner::of(name) {
            remove_leftover(directory, name, &owner, local);
        } else if name.as_bytes().starts_with(PART.as_bytes()) {
            parts = true;
            remove_abandoned(directory, name);
        }
    }
    Ok(parts)
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "the type differs between machines; the numbers are below 2^32"
)]
fn is_of_one_kernel(system: &rustix::fs::StatFs) -> bool {
    OF_ONE_KERNEL.contains(&(system.f_type as u64 & 0xffff_ffff))
}

fn remove_leftover(directory: BorrowedFd<'_>, name: &OsStr, owner: &Owner, local: bool) {
    // Of a hard link on its way to its place nobody holds a lock.
    if owner == Owner::this() {
        return;
    }
    let gone = owner.is_gone();
    if !local && !gone {
        return;
    }
    if let Some((file, stat)) = unheld(directory, name) {
        // With a second name it may be a hard link on its way, which nobody locks.
        if gone || owner.is_of_another_boot() || stat.st_nlink == 1 {
            unlink(directory, name);
        }
        drop(file);
    } else if gone && is_no_file(directory, name) {
        unlink(directory, name);
    } else if local {
        unseen::remove_leftover(directory, name);
    }
}

/// Whether in this directory a lock tells that a hidden name is somebody's.
pub(super) fn is_told_by_locks(directory: BorrowedFd<'_>) -> bool {
    fstatfs(directory).is_ok_and(|system| is_of_one_kernel(&system))
}

/// A symbolic link or a special file, which nobody can lock.
fn is_no_file(directory: BorrowedFd<'_>, name: &OsStr) -> bool {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        kind != FileType::RegularFile && kind != FileType::Directory
    })
}

/// Opens and locks a regular file of that name that nobody has locked.
fn unheld(directory: BorrowedFd<'_>, name: &OsStr) -> Option<(OwnedFd, Stat)> {
    let common = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // NFS locks for writing only what is open for it; our own may be read-only by now.
    let open = |flags| openat(directory, name, flags | common, Mode::empty());
    let file = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).ok()?;
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // A copy that was done between the open and the lock has taken the file elsewhere.
    let named = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    same_file(&named, &stat).then_some((file, stat))
}

/// Interrupted copies that nobody resumed for long, and journals whose part is gone.
fn remove_abandoned(directory: BorrowedFd<'_>, name: &OsStr) {
    if let Some(part) = name.as_bytes().strip_suffix(JOURNAL.as_bytes()) {
        let part = statat(
            directory,
            OsStr::from_bytes(part),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        if part.is_err_and(|errno| errno == Errno::NOENT) {
            unlink(directory, name);
        }
        return;
    }
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let old = |stat: &Stat| {
        let written = u64::try_from(stat.st_mtime).unwrap_or(0);
        now.saturating_sub(written) > ABANDONED
    };
    if unheld(directory, name).is_some_and(|(_, stat)| old(&stat)) {
        give_up(directory, name);
    }
}

/// Removes an interrupted copy, unless somebody is at it.
pub(super) fn abandon(directory: BorrowedFd<'_>, part: &OsStr) {
    if let Some((file, _)) = unheld(directory, part) {
        give_up(directory, part);
        drop(file);
    }
}

fn give_up(directory: BorrowedFd<'_>, part: &OsStr) {
    unlink(directory, &journal_of(part));
    unlink(directory, part);
}

/// The name of the journal of a part.
pub(super) fn journal_of(part: &OsStr) -> OsString {
    let mut name = part.to_owned();
    name.push(JOURNAL);
    name
}

/// Removes a hidden name; that it is gone already is as well.
pub(super) fn unlink(directory: BorrowedFd<'_>, name: &OsStr) {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => log::warn!("a temporary file stays behind, {}: {errno}", name.display()),
    }
}

/// Looks at the first names of the directory that a mount shows first, on a thread of its own: that
/// may wait for the source, and the mount is not to wait for it.
pub(super) fn visit_at_mount(root: std::sync::Arc<OwnedFd>) {
    /// One page of names or a few: the next job into a directory looks at all of them.
    const A_FEW: usize = 1024;
    let look = move || {
        if let Err(fail) = sweep(root.as_fd(), A_FEW, || Ok(())) {
            log::debug!("leftovers: {fail}");
        }
    };
    let thread = std::thread::Builder::new().name("corfs-sweep".into());
    if let Err(error) = thread.spawn(look) {
        log::debug!("leftovers: {error}");
    }
}

#[cfg(test)]
#[path = "leftovers_tests.rs"]
mod tests;
