//! What stands at a destination is kept under another name.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, Stat, fstat, linkat, openat, renameat,
    renameat_with, statat, unlinkat,
};

use crate::copy::leftovers::{self, hidden_name};
use crate::copy::options::Backup;
use crate::copy::resolve::{file_type, same_file};
use crate::sys::creds::acting_uid;
use crate::sys::{Errno, Fail, OrFail, Result};

/// How many numbers that others are faster to take are tried.
const TRIES: usize = 100;

/// A backup that was made, until it is known whether the copy is.
#[derive(Debug)]
pub(super) struct Made {
    name: OsString,
    /// The old file still stands under its own name, too.
    linked: bool,
    /// The hidden name of what was the backup before.
    former: Option<OsString>,
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

    /// The copy was made: what was the backup before goes.
    pub(super) fn settle(&self, directory: BorrowedFd<'_>) {
        if let Some(former) = &self.former {
            leftovers::unlink(directory, former);
        }
    }

    /// The copy was not made: the old file gets its own name back, and that alone, and what was the
    /// backup before is that again. If another file has that name by now, the old one has no name but
    /// the backup's, and stays there.
    pub(super) fn take_back(&self, directory: BorrowedFd<'_>, name: &OsStr) {
        let given = match (self.linked, &self.former) {
            (false, _) => move_to_free(directory, &self.name, name),
            (true, _) if !is_one_file(directory, &self.name, name) => Err(Errno::EXIST),
            (true, None) => unlinkat(directory, &self.name, AtFlags::empty()),
            (true, Some(_)) => Ok(()),
        };
        if let Err(errno) = given {
            log::warn!("a backup stays, {}: {errno}", self.name.display());
            return self.settle(directory);
        }
        let Some(former) = &self.former else { return };
        match renameat(directory, former, directory, &self.name) {
            // Over another name of the same file a rename does nothing (rename(2)).
            Ok(()) => leftovers::unlink(directory, former),
            Err(errno) => log::warn!(
                "the backup before, {}, stays as {}: {errno}",
                self.name.display(),
                former.display()
            ),
        }
    }
}

/// Whether two names are of one file.
fn is_one_file(directory: BorrowedFd<'_>, one: &OsStr, other: &OsStr) -> bool {
    let stat = |name| statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    match (stat(one), stat(other)) {
        (Ok(one), Ok(other)) => same_file(&one, &other),
        _ => false,
    }
}

/// Refuses, before any work, what [`make`] would refuse after it.
///
/// # Errors
/// EINVAL when the backup would take the place of what is copied; EISDIR for a directory that stands
/// at its name; ENAMETOOLONG; those of a listing, where numbers are looked for.
pub(super) fn check(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    backup: &Backup,
    source: &Stat,
) -> Result<()> {
    let Some(kept) = name_of(directory, name, backup)? else {
        return Ok(());
    };
    match statat(directory, &kept, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stands) if same_file(&stands, source) => Err(takes_the_source()),
        Ok(stands) if file_type(&stands) == FileType::Directory => {
            Err(Fail::new(Errno::ISDIR, "copy").because("a directory has the backup's name"))
        }
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Fail::new(errno, "fstatat").because("the backup")),
    }
}

/// Keeps `name` as `backup` says. It stays under its own name, too, where there are hard links: so it
/// never vanishes. What was the backup before has a hidden name until the end of this one. Nothing
/// is kept of what is not there any more.
///
/// # Errors
/// As [`check`]; those of linkat(2) and renameat(2).
pub(super) fn make(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    backup: &Backup,
    source: &Stat,
) -> Result<Option<Made>> {
    for _ in 0..TRIES {
        let Some(kept) = name_of(directory, name, backup)? else {
            return Ok(None);
        };
        let second = match may_unlink(directory, name) {
            Ok(true) => link(directory, name),
            Ok(false) => Ok(None),
            Err(fail) => Err(fail),
        };
        let is_number = is_number(&kept, name, backup);
        match second.and_then(|second| keep(directory, name, (kept, is_number), second, source)) {
            Ok(made) => return Ok(Some(made)),
            Err(fail) if fail.errno == Errno::NOENT => return Ok(None),
            // Somebody has taken that number.
            Err(fail) if fail.errno == Errno::EXIST && is_number => {}
            Err(fail) => return Err(fail),
        }
    }
    Err(Fail::new(Errno::EXIST, "renameat").because("others take each number that is free"))
}

/// Whether that name of a backup is by number, and not by a suffix that looks like one.
fn is_number(kept: &OsStr, name: &OsStr, backup: &Backup) -> bool {
    !matches!(backup, Backup::Simple(_)) && number_of(kept.as_bytes(), name.as_bytes()).is_some()
}

/// By a second name that the file has already, or by its only one.
fn keep(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    (kept, is_number): (OsString, bool),
    second: Option<OsString>,
    source: &Stat,
) -> Result<Made> {
    let from = second.as_deref().unwrap_or(name);
    // A number is one backup's for ever.
    let moved = match is_number {
        true => move_to_free(directory, from, &kept)
            .or_fail("renameat")
            .map(|()| None),
        false => move_to(directory, from, &kept, second.is_some(), source),
    };
    if let Some(second) = &second
        && !matches!(&moved, Ok(Some(former)) if former == second)
    {
        // Over another name of the same file a rename does nothing (rename(2)).
        leftovers::unlink(directory, second);
    }
    Ok(Made {
        former: moved?,
        linked: second.is_some(),
        name: kept,
    })
}

/// Renames to the name of the backup. Answers the hidden name of what stood there: its own, if it is
/// hidden, where two names can be exchanged.
fn move_to(
    directory: BorrowedFd<'_>,
    from: &OsStr,
    kept: &OsStr,
    is_hidden: bool,
    source: &Stat,
) -> Result<Option<OsString>> {
    let stands = statat(directory, kept, AtFlags::SYMLINK_NOFOLLOW).ok();
    if stands.is_some_and(|stands| same_file(&stands, source)) {
        return Err(takes_the_source());
    }
    let mut former = None;
    // A directory stays where it is, and the backup is refused.
    if stands.is_some_and(|stands| file_type(&stands) != FileType::Directory) {
        let exchange = RenameFlags::EXCHANGE;
        if is_hidden && renameat_with(directory, from, directory, kept, exchange).is_ok() {
            return Ok(Some(from.to_owned()));
        }
        let hidden = hidden_name();
        let aside = renameat(directory, kept, directory, &hidden);
        former = aside.is_ok().then_some(hidden);
    }
    let moved = renameat(directory, from, directory, kept).or_fail("renameat");
    if let (Err(_), Some(former)) = (&moved, &former) {
        let _ = renameat(directory, former, directory, kept);
    }
    moved.map(|()| former)
}

fn takes_the_source() -> Fail {
    Fail::new(Errno::INVAL, "copy").because("the backup would take the place of the source")
}

/// The name of a backup that is made now; `None` when none is.
pub(super) fn name_of(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    backup: &Backup,
) -> Result<Option<OsString>> {
    Ok(match backup {
        Backup::None => None,
        Backup::Simple(suffix) => Some(with_suffix(name, suffix)),
        Backup::Numbered => Some(numbered(name, highest(directory, name)?)?),
        Backup::Existing(suffix) => Some(match highest(directory, name)? {
            0 => with_suffix(name, suffix),
            most => numbered(name, most)?,
        }),
    })
}

/// Renames to a name that nothing has: else EEXIST.
fn move_to_free(directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
    match renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
        // Not on this file system.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return other,
    }
    match statat(directory, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => renameat(directory, from, directory, to),
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

/// Gives a file a second name, a hidden one; `None` where it can't have two.
fn link(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OsString>> {
    let hidden = hidden_name();
    match linkat(directory, name, directory, &hidden, AtFlags::empty()) {
        Ok(()) => Ok(Some(hidden)),
        // Not on this file system; not this file (`fs.protected_hardlinks`); too many links.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::EXIST | Errno::XDEV) => Ok(None),
        Err(errno) => Err(errno).or_fail("linkat"),
    }
}

fn with_suffix(name: &OsStr, suffix: &OsStr) -> OsString {
    let mut kept = name.to_owned();
    kept.push(suffix);
    kept
}

/// With the number after that one.
fn numbered(name: &OsStr, most: u64) -> Result<OsString> {
    let none = || Fail::new(Errno::OVERFLOW, "copy").because("no number is left for a backup");
    let number = most.checked_add(1).ok_or_else(none)?;
    Ok(with_suffix(name, OsStr::new(&format!(".~{number}~"))))
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

    fn made(
        directory: &fs::File,
        backup: &Backup,
        source: &Stat,
        links: bool,
    ) -> Result<Option<Made>> {
        let (directory, name) = (directory.as_fd(), OsStr::new("f"));
        if links {
            return make(directory, name, backup, source);
        }
        let kept = name_of(directory, name, backup)?.unwrap();
        let is_number = is_number(&kept, name, backup);
        keep(directory, name, (kept, is_number), None, source).map(Some)
    }

    #[test]
    fn backups_have_the_names_that_cp_gives_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let directory = fs::File::open(folder.path()).unwrap();
        let own = fstat(&directory).unwrap();
        let keep = |backup| {
            fs::write(file("f"), "old").unwrap();
            let made = made(&directory, &backup, &own, true).unwrap().unwrap();
            made.settle(directory.as_fd());
            made.name
        };
        assert_eq!(keep(Backup::Existing("~".into())), "f~");
        assert_eq!(keep(Backup::Simple(".bak".into())), "f.bak");
        assert_eq!(keep(Backup::Numbered), "f.~1~");
        fs::write(file("f.~9~"), "").unwrap();
        fs::write(file("f.~x~"), "").unwrap();
        assert_eq!(keep(Backup::Numbered), "f.~10~");
        assert_eq!(keep(Backup::Existing("~".into())), "f.~11~");
        // Of nothing is none.
        fs::remove_file(file("f")).unwrap();
        assert!(
            made(&directory, &Backup::Numbered, &own, true)
                .unwrap()
                .is_none()
        );
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
        let early = |backup| check(directory.as_fd(), "f".as_ref(), &backup, &source);
        assert_eq!(early(backup.clone()).unwrap_err().errno, Errno::INVAL);
        assert!(early(Backup::Existing("~".into())).is_err());
        assert!(early(Backup::Simple(".old".into())).is_ok());
        for links in [true, false] {
            let refused = made(&directory, &backup, &source, links);
            assert_eq!(refused.unwrap_err().errno, Errno::INVAL);
            assert_eq!(fs::read(file("f~")).unwrap(), b"source");
            assert_eq!(fs::read(file("f")).unwrap(), b"new");
        }
        // It would be numbered.
        fs::write(file("f.~1~"), "").unwrap();
        assert!(early(Backup::Existing("~".into())).is_ok());
        let other = fstat(&directory).unwrap();
        let made = made(&directory, &backup, &other, false).unwrap();
        fs::write(file("f"), "another").unwrap();
        made.unwrap().take_back(directory.as_fd(), "f".as_ref());
        assert_eq!(fs::read(file("f")).unwrap(), b"another");
        assert_eq!(fs::read(file("f~")).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn the_old_file_never_vanishes_and_what_was_the_backup_comes_back() {
        for (links, before, again) in [
            (true, None, false),
            (true, Some("older"), false),
            (true, Some("older"), true),
            (false, None, false),
            (false, Some("older"), false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            if again {
                // As a kill may have left it.
                fs::hard_link(file("f"), file("f~")).unwrap();
            } else if let Some(text) = before {
                fs::write(file("f~"), text).unwrap();
            }
            let backup = Backup::Simple("~".into());
            let make = || made(&directory, &backup, &own, links).unwrap().unwrap();
            let backed_up = make();
            assert_eq!(backed_up.still_stands(), links);
            assert_eq!(file("f").exists(), links);
            assert_eq!(fs::read(file("f~")).unwrap(), b"old");
            backed_up.take_back(directory.as_fd(), OsStr::new("f"));
            assert_eq!(fs::read(file("f")).unwrap(), b"old");
            let text = before.map(|text| if again { "old" } else { text }.to_owned());
            assert_eq!(fs::read_to_string(file("f~")).ok(), text);
            let count = || fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(
                count(),
                1 + usize::from(before.is_some()),
                "{links} {before:?}"
            );
            let backed_up = make();
            backed_up.settle(directory.as_fd());
            assert_eq!(fs::read(file("f~")).unwrap(), b"old");
            assert_eq!(count(), 1 + usize::from(links), "{links} {before:?}");
        }
    }

    #[test]
    fn what_is_refused_is_refused_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let directory = fs::File::open(folder.path()).unwrap();
        let own = fstat(&directory).unwrap();
        fs::create_dir(folder.path().join("f~")).unwrap();
        let early = |name: &str, backup: Backup| {
            let checked = check(directory.as_fd(), name.as_ref(), &backup, &own);
            checked.map_err(|fail| fail.errno)
        };
        let simple = || Backup::Simple("~".into());
        assert_eq!(early("f", simple()), Err(Errno::ISDIR));
        assert_eq!(early(&"n".repeat(255), simple()), Err(Errno::NAMETOOLONG));
        assert_eq!(early("f", Backup::Numbered), Ok(()));
        assert_eq!(early("f", Backup::None), Ok(()));
    }

    /// Another copy to the same name was faster, after this one had made its backup.
    #[test]
    fn the_only_name_that_the_old_file_has_stays() {
        for before in [None, Some("older")] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            if let Some(text) = before {
                fs::write(file("f~"), text).unwrap();
            }
            let backup = Backup::Simple("~".into());
            let backed_up = made(&directory, &backup, &own, true).unwrap().unwrap();
            fs::write(file("another"), "another").unwrap();
            fs::rename(file("another"), file("f")).unwrap();
            backed_up.take_back(directory.as_fd(), OsStr::new("f"));
            assert_eq!(fs::read(file("f")).unwrap(), b"another");
            assert_eq!(fs::read(file("f~")).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_number_that_another_has_taken_is_left_to_it() {
        for links in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            fs::write(file("f.~1~"), "another's").unwrap();
            let (directory, name) = (directory.as_fd(), OsStr::new("f"));
            let second = links.then(|| link(directory, name).unwrap().unwrap());
            let kept = keep(directory, name, ("f.~1~".into(), true), second, &own);
            assert_eq!(kept.unwrap_err().errno, Errno::EXIST);
            assert_eq!(fs::read(file("f.~1~")).unwrap(), b"another's");
            assert_eq!(fs::read(file("f")).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_suffix_that_looks_like_a_number_is_none_and_numbers_end() {
        for links in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            fs::write(file("f.~1~"), "older").unwrap();
            let backup = Backup::Simple(".~1~".into());
            let backed_up = made(&directory, &backup, &own, links).unwrap().unwrap();
            backed_up.settle(directory.as_fd());
            assert_eq!(fs::read(file("f.~1~")).unwrap(), b"old");
            fs::write(file(&format!("f.~{}~", u64::MAX)), "").unwrap();
            fs::write(file("f"), "new").unwrap();
            let refused = make(directory.as_fd(), "f".as_ref(), &Backup::Numbered, &own);
            assert_eq!(refused.unwrap_err().errno, Errno::OVERFLOW);
            assert_eq!(fs::read(file("f")).unwrap(), b"new");
        }
    }

    #[test]
    fn a_directory_is_no_backup_and_stays() {
        for links in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| folder.path().join(name);
            let directory = fs::File::open(folder.path()).unwrap();
            let own = fstat(&directory).unwrap();
            fs::write(file("f"), "old").unwrap();
            fs::create_dir(file("f~")).unwrap();
            let refused = made(&directory, &Backup::Simple("~".into()), &own, links);
            assert_eq!(refused.unwrap_err().errno, Errno::ISDIR);
            assert!(file("f~").is_dir());
            assert_eq!(fs::read(file("f")).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }
}
