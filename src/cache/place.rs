//! Where a cache directory is: that it is ours alone and stands apart, and how things beneath it
//! are opened.
//!
//! ```text
//! DIR/CACHEDIR.TAG
//! DIR/v1/ledger                       the budget (`ledger`)
//! DIR/v1/STORE/source                 key and what it was, as text
//! DIR/v1/STORE/state, users           epochs (`trust`); who uses it, by locks
//! DIR/v1/STORE/entries/XX/HASH.index  one entry (`layout`)
//! DIR/v1/STORE/entries/XX/HASH.data   its bytes, sparse
//! DIR/v1/STORE/orphans/               replaced entries that somebody still reads
//! ```

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, statat};

use crate::sys::{Errno, Fail, OrFail, Result};

/// What every name beneath the directory is opened with.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Symbolic links on the way to a cache directory, as the kernel allows (path_resolution(7)).
const MAX_LINKS: usize = 40;

const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # This directory is a cache made by corfs. Backups may leave it out (bford.info/cachedir).\n";

/// Opens what is beneath `dir`, never through a symbolic link.
pub(super) fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd> {
    let mode = if flags.intersects(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, mode, BENEATH).or_fail("openat2")
}

/// Opens a directory beneath `dir` for reading.
pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a directory, which is made (0700) if it is not there: whether it was made, too.
pub(super) fn make_dir(dir: BorrowedFd<'_>, name: &str) -> Result<(OwnedFd, bool)> {
    match open_dir(dir, name) {
        Err(fail) if fail.errno == Errno::NOENT => {}
        opened => return Ok((opened?, false)),
    }
    let made = match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Err(Errno::EXIST) => false,
        done => {
            done.or_fail("mkdirat")?;
            true
        }
    };
    Ok((open_dir(dir, name)?, made))
}

/// All of a small file.
pub(super) fn read_small(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>> {
    let fd = open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut bytes = vec![0; 64 << 10];
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pread(&fd, &mut bytes[at..], at as u64).or_fail("pread")? {
            0 => break,
            n => at += n,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(Fail::new(Errno::IO, "pwrite")),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fail("pwrite"),
        }
    }
    Ok(())
}

/// Reads up to the end of `buffer` or of the file: how much there was.
pub(super) fn read_all(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).or_fail("pread"),
        }
    }
    Ok(at)
}

/// Gives a small file new content in one step, on disk when this returns. To be called by one at
/// a time: so a temporary file that somebody left who was killed is the next one's.
pub(super) fn replace(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = format!(".{name}.tmp");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let fd = open(dir, &temporary, flags)?;
    write_all(fd.as_fd(), bytes, 0)?;
    rustix::fs::fsync(&fd).or_fail("fsync")?;
    rustix::fs::renameat(dir, &temporary, dir, name).or_fail("renameat")?;
    rustix::fs::fsync(dir).or_fail("fsync")
}

/// The names in a directory, without `.` and `..`, and of what type they are.
pub(super) fn list(dir: BorrowedFd<'_>) -> Result<Vec<(String, FileType)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).or_fail("getdents")? {
        let entry = entry.or_fail("getdents")?;
        // Every name of ours is ASCII.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            // Some file systems do not say (readdir(3), DT_UNKNOWN).
            let kind = match entry.file_type() {
                FileType::Unknown => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |stat| {
                        FileType::from_raw_mode(stat.st_mode)
                    }),
                kind => kind,
            };
            found.push((name.to_owned(), kind));
        }
    }
    Ok(found)
}

/// Opens a cache directory, which is made if only its last name is missing.
///
/// # Errors
/// EACCES with words when it belongs to somebody else, others can write it, or the way to it goes
/// through a symbolic link that others can change; ENOTDIR; those of the file system.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd> {
    let path = std::path::absolute(path).or_fail("cache directory")?;
    let fd = walk(&path)?;
    refuse_others(fd.as_fd(), &path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&fd, ".", flags, Mode::empty()).or_fail("open the cache directory")
}

/// Whether somebody other than its owner, or an owner who is neither we nor root, can put names
/// into a folder.
fn others_can_write(stat: &Stat) -> bool {
    let owner = stat.st_uid;
    let ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    !ours || stat.st_mode & 0o022 != 0
}

fn refuse_others(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(fd).or_fail("fstat")?;
    let refuse = |why: &str| {
        let words = format!("{}: {why}", path.display());
        Err(Fail::new(Errno::ACCESS, "cache directory").because(words))
    };
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to somebody else");
    }
    if stat.st_mode & 0o022 != 0 {
        return refuse("others can write it (chmod go-w)");
    }
    Ok(())
}

/// One component at a time from the root, so that every symbolic link is seen.
fn walk(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || rustix::fs::open("/", flags, Mode::empty()).or_fail("open /");
    let mut at = root()?;
    let mut links = 0;
    // The names that are still to go, the next one last.
    let mut names: Vec<PathBuf> = reversed(path);
    while let Some(name) = names.pop() {
        let opened = rustix::fs::openat(&at, &name, flags, Mode::empty());
        let next = match opened {
            Err(Errno::NOENT) if names.is_empty() => {
                rustix::fs::mkdirat(&at, &name, Mode::RWXU).or_fail("make the cache directory")?;
                rustix::fs::openat(&at, &name, flags, Mode::empty())
            }
            opened => opened,
        };
        let next = next.map_err(|errno| {
            Fail::new(errno, "cache directory").because(path.display().to_string())
        })?;
        let stat = rustix::fs::fstat(&next).or_fail("fstat")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            at = next;
            continue;
        }
        links += 1;
        let parent = rustix::fs::fstat(&at).or_fail("fstat")?;
        if links > MAX_LINKS || others_can_write(&parent) {
            let words = format!(
                "{}: {} is a symbolic link that others can change",
                path.display(),
                name.display()
            );
            return Err(Fail::new(Errno::ACCESS, "cache directory").because(words));
        }
        let target = rustix::fs::readlinkat(&at, &name, Vec::new()).or_fail("readlinkat")?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            at = root()?;
        }
        names.extend(reversed(target));
    }
    Ok(at)
}

fn reversed(path: &Path) -> Vec<PathBuf> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// Refuses a cache inside another directory (the source, the mountpoint), and the reverse.
///
/// # Errors
/// EINVAL with words that name `what`.
pub(super) fn refuse_overlap(
    cache: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    what: &str,
) -> Result<()> {
    let refuse = |words: String| Err(Fail::new(Errno::INVAL, "cache directory").because(words));
    if is_inside(cache, other)? {
        return refuse(format!("it lies inside the {what}"));
    }
    if is_inside(other, cache)? {
        return refuse(format!("the {what} lies inside it"));
    }
    Ok(())
}

/// Whether `inner` is `outer` or beneath it, by the device and inode of each ancestor.
fn is_inside(inner: BorrowedFd<'_>, outer: BorrowedFd<'_>) -> Result<bool> {
    let id = |fd: BorrowedFd<'_>| -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(fd).or_fail("fstat")?;
        Ok((stat.st_dev, stat.st_ino))
    };
    let outer = id(outer)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = inner.try_clone_to_owned().or_fail("dup")?;
    loop {
        let here = id(at.as_fd())?;
        if here == outer {
            return Ok(true);
        }
        let above = rustix::fs::openat(&at, "..", flags, Mode::empty()).or_fail("open ..")?;
        if id(above.as_fd())? == here {
            return Ok(false);
        }
        at = above;
    }
}

/// Puts the tag into a cache directory that has none.
pub(super) fn tag(root: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match open(root, "CACHEDIR.TAG", flags) {
        Ok(fd) => write_all(fd.as_fd(), TAG, 0),
        Err(fail) if fail.errno == Errno::EXIST => Ok(()),
        Err(fail) => Err(fail),
    }
}

/// Bytes that a name takes on disk, by `st_blocks`; 0 for what is not there.
pub(super) fn allocated(dir: BorrowedFd<'_>, name: &str) -> u64 {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(0, |stat| blocks_of(&stat))
}

/// The same of attributes. `st_blocks` counts units of 512 bytes (inode(7)).
pub(super) fn blocks_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn refused(path: &Path) -> String {
        open_root(path).unwrap_err().to_string()
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_last_name_is_made_and_is_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        open_root(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        open_root(&path).unwrap();
        assert!(open_root(&folder.path().join("no/cache")).is_err());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o770, 0o702, 0o777] {
            chmod(folder.path(), mode);
            assert!(
                refused(folder.path()).contains("others can write"),
                "{mode:o}"
            );
        }
        chmod(folder.path(), 0o755);
        open_root(folder.path()).unwrap();
    }

    #[test]
    fn a_symbolic_link_is_followed_only_where_nobody_else_can_change_it() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink("../real", real.join("up")).unwrap();
        symlink(real.join("up"), folder.path().join("link")).unwrap();
        chmod(&real, 0o700);
        open_root(&folder.path().join("link")).unwrap();
        chmod(folder.path(), 0o1777);
        assert!(refused(&folder.path().join("link")).contains("link that others can change"));
        assert!(refused(&folder.path().join("link/x")).contains("link that others can change"));
        open_root(&real).unwrap();
    }

    #[test]
    fn a_file_is_no_cache_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(open_root(file.path()).unwrap_err().errno, Errno::NOTDIR);
    }

    #[test]
    fn a_cache_inside_the_source_is_refused_and_so_is_the_reverse() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b/c");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        let open = |path: &Path| std::fs::File::open(path).unwrap();
        let (outer, inner, beside) = (
            open(folder.path()),
            open(&inner),
            open(&folder.path().join("d")),
        );
        let overlap = |a: &std::fs::File, b: &std::fs::File| {
            refuse_overlap(a.as_fd(), b.as_fd(), "source").map_err(|fail| fail.to_string())
        };
        assert!(
            overlap(&inner, &outer)
                .unwrap_err()
                .contains("inside the source")
        );
        assert!(
            overlap(&outer, &inner)
                .unwrap_err()
                .contains("lies inside it")
        );
        assert!(overlap(&outer, &outer).is_err());
        overlap(&inner, &beside).unwrap();
    }

    #[test]
    fn nothing_beneath_is_reached_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        symlink("file", folder.path().join("link")).unwrap();
        let root = open_root(folder.path()).unwrap();
        assert_eq!(read_small(root.as_fd(), "file").unwrap(), b"x");
        for name in ["link", "../x", "/etc/passwd"] {
            assert!(open(root.as_fd(), name, OFlags::RDONLY).is_err(), "{name}");
        }
    }

    #[test]
    fn a_replaced_file_has_its_new_content_and_no_temporary_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = open_root(folder.path()).unwrap();
        for text in ["a", "longer", ""] {
            replace(root.as_fd(), "state", text.as_bytes()).unwrap();
            assert_eq!(read_small(root.as_fd(), "state").unwrap(), text.as_bytes());
        }
        tag(root.as_fd()).unwrap();
        tag(root.as_fd()).unwrap();
        let mut names: Vec<_> = list(root.as_fd())
            .unwrap()
            .into_iter()
            .map(|n| n.0)
            .collect();
        names.sort();
        assert_eq!(names, ["CACHEDIR.TAG", "state"]);
    }
}
