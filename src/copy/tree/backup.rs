//! What stands at a destination is kept under another name.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    AtFlags, Mode, OFlags, RawDir, RenameFlags, Stat, fstat, linkat, openat, renameat,
    renameat_with, statat, unlinkat,
};

use crate::copy::leftovers::hidden_name;
use crate::copy::options::Backup;
use crate::copy::resolve::same_file;
use crate::sys::creds::acting_uid;
use crate::sys::{Errno, Fail, OrFail, Result};

/// A backup that was made, and how it is taken back when the copy fails.
#[derive(Debug)]
pub(super) struct Made {
    name: OsString,
    /// The old file still stands under its own name, too.
    linked: bool,
}

impl Made {
    /// Its name.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Whether the old file stands under its own name still.
    pub(super) fn still_stands(&self) -> bool {
        self.linked
    }

    /// The copy was not made: the old file gets its own name back, and that alone.
    pub(super) fn take_back(&self, directory: BorrowedFd<'_>, name: &OsStr) {
        let done = if self.linked {
            unlinkat(directory, &self.name, AtFlags::empty())
        } else {
            give_back(directory, &self.name, name)
        };
        if let Err(errno) = done {
            log::warn!("a backup stays, {}: {errno}", self.name.display());
        }
    }
}

/// Keeps `name` as `backup` says. It stays under its own name, too, where there are hard links and
/// `may_link` (the copy replaces that name, and doesn't write into the file): so it never vanishes.
///
/// # Errors
/// EINVAL when the backup would take the place of what is copied; those of linkat(2) and renameat(2).
pub(super) fn make(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    backup: &Backup,
    source: &Stat,
    may_link: bool,
) -> Result<Option<Made>> {
    let kept = match backup {
        Backup::None => return Ok(None),
        Backup::Simple(suffix) => with_suffix(name, suffix),
        Backup::Numbered => numbered(name, highest(directory, name)? + 1),
        Backup::Existing(suffix) => match highest(directory, name)? {
            0 => with_suffix(name, suffix),
            most => numbered(name, most + 1),
        },
    };
    let taken = statat(directory, &kept, AtFlags::SYMLINK_NOFOLLOW);
    if taken.is_ok_and(|taken| same_file(&taken, source)) {
        return Err(Fail::new(Errno::INVAL, "copy")
            .because("the backup would take the place of the source"));
    }
    if may_link && may_unlink(directory, name)? && link(directory, name, &kept)? {
        return Ok(Some(Made {
            name: kept,
            linked: true,
        }));
    }
    renameat(directory, name, directory, &kept).or_fail("renameat")?;
    Ok(Some(Made {
        name: kept,
        linked: false,
    }))
}

/// Gives the old file its name back, unless another has it by now.
fn give_back(directory: BorrowedFd<'_>, kept: &OsStr, name: &OsStr) -> rustix::io::Result<()> {
    match renameat_with(directory, kept, directory, name, RenameFlags::NOREPLACE) {
        // Not on this file system.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return other,
    }
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => renameat(directory, kept, directory, name),
        Err(errno) => Err(errno),
        Ok(_) => Err(Errno::EXIST),
    }
}

/// Whether a second name of this file could be taken away again: in a sticky directory only the
/// owner of the one or the other may. Whom a capability allows it goes the other way, too.
fn may_unlink(directory: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let holder = fstat(directory).or_fail("fstat")?;
    if holder.st_mode & Mode::SVTX.as_raw_mode() == 0 || holder.st_uid == acting_uid() {
        return Ok(true);
    }
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).or_fail("fstatat")?;
    Ok(stat.st_uid == acting_uid())
}

/// False where this file can't have two names.
fn link(directory: BorrowedFd<'_>, name: &OsStr, kept: &OsStr) -> Result<bool> {
    let hidden = hidden_name();
    match linkat(directory, name, directory, &hidden, AtFlags::empty()) {
        Ok(()) => {}
        // Not on this file system; not this file (`fs.protected_hardlinks`); too many links.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::EXIST | Errno::XDEV) => {
            return Ok(false);
        }
        Err(errno) => return Err(errno).or_fail("linkat"),
    }
    let renamed = renameat(directory, &hidden, directory, kept).or_fail("renameat");
    // Over another name of the same file a rename does nothing (rename(2)).
    let _ = unlinkat(directory, &hidden, AtFlags::empty());
    renamed.map(|()| true)
}

fn with_suffix(name: &OsStr, suffix: &OsStr) -> OsString {
    let mut kept = name.to_owned();
    kept.push(suffix);
    kept
}

fn numbered(name: &OsStr, number: u64) -> OsString {
    with_suffix(name, OsStr::new(&format!(".~{number}~")))
}

/// The highest number of a numbered backup of `name`; 0 without any.
fn highest(directory: BorrowedFd<'_>, name: &OsStr) -> Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(directory, c".", flags, Mode::empty()).or_fail("open")?;
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut entries = RawDir::new(listed, &mut buffer);
    let mut most = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.or_fail("getdents")?;
        most = most.max(number_of(entry.file_name().to_bytes(), name.as_bytes()).unwrap_or(0));
    }
    Ok(most)
}

fn number_of(entry: &[u8], name: &[u8]) -> Option<u64> {
    let number = entry.strip_prefix(name)?;
    let number = number.strip_prefix(b".~")?.strip_suffix(b"~")?;
    let text = OsString::from_vec(number.to_vec()).into_string().ok()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn backups_have_the_names_that_cp_gives_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let directory = fs::File::open(folder.path()).unwrap();
        let own = fstat(&directory).unwrap();
        let keep = |backup| {
            fs::write(file("f"), "old").unwrap();
            make(directory.as_fd(), OsStr::new("f"), &backup, &own, true)
                .unwrap()
                .unwrap()
                .name
        };
        assert_eq!(keep(Backup::Existing("~".into())), "f~");
        assert_eq!(keep(Backup::Simple(".bak".into())), "f.bak");
        assert_eq!(keep(Backup::Numbered), "f.~1~");
        fs::write(file("f.~9~"), "").unwrap();
        fs::write(file("f.~x~"), "").unwrap();
        assert_eq!(keep(Backup::Numbered), "f.~10~");
        assert_eq!(keep(Backup::Existing("~".into())), "f.~11~");
    }

    #[test]
    fn a_backup_does_not_take_the_place_of_the_source_nor_give_back_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let directory = fs::File::open(folder.path()).unwrap();
        fs::write(file("f"), "new").unwrap();
        fs::write(file("f~"), "source").unwrap();
        let source = statat(&directory, "f~", AtFlags::empty()).unwrap();
        let backup = Backup::Simple("~".into());
        for may_link in [true, false] {
            let refused = make(directory.as_fd(), "f".as_ref(), &backup, &source, may_link);
            assert_eq!(refused.unwrap_err().errno, Errno::INVAL);
            assert_eq!(fs::read(file("f~")).unwrap(), b"source");
        }
        let other = fstat(&directory).unwrap();
        let made = make(directory.as_fd(), "f".as_ref(), &backup, &other, false).unwrap();
        fs::write(file("f"), "another").unwrap();
        made.unwrap().take_back(directory.as_fd(), "f".as_ref());
        assert_eq!(fs::read(file("f")).unwrap(), b"another");
        assert_eq!(fs::read(file("f~")).unwrap(), b"new");
    }

    #[test]
    fn the_old_file_never_vanishes_and_comes_back() {
        for may_link in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            // A second time over itself, too.
            for _ in 0..2 {
                let backup = Backup::Simple("~".into());
                let made = make(directory.as_fd(), OsStr::new("f"), &backup, &own, may_link);
                let made = made.unwrap().unwrap();
                assert_eq!(made.still_stands(), may_link);
                assert_eq!(file("f").exists(), may_link);
                assert_eq!(fs::read(file("f~")).unwrap(), b"old");
                if !may_link {
                    made.take_back(directory.as_fd(), OsStr::new("f"));
                    assert!(!file("f~").exists());
                }
                assert_eq!(fs::read(file("f")).unwrap(), b"old");
            }
            let names = fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(names, 1 + usize::from(may_link), "nothing hidden is left");
        }
    }
}
