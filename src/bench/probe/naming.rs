//! What is done with names: a folder holds `f0` to `f(count-1)`, or is to hold them.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys::{Errno, Fail, OrFail, Result};

/// What is done with every name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::bench) enum Deed {
    Create,
    Stat,
    Open,
    /// The folder is listed, without looking at what is listed.
    Readdir,
    Rename,
    Unlink,
    /// The tree below is walked, and everything in it looked at, as `find -ls` does.
    Walk,
    /// Every file of the tree is searched for a word that is in none, as `grep -r` does.
    Grep,
}

/// Does it.
pub(super) fn run(folder: &Path, deed: Deed, count: u64) -> Result<()> {
    let name = |number: u64| folder.join(format!("f{number}"));
    let mut all = 0..count;
    match deed {
        Deed::Create => all.try_for_each(|n| {
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(name(n));
            made.map(drop).or_fail("create")
        }),
        Deed::Stat => all.try_for_each(|n| {
            let found = fs::symlink_metadata(name(n));
            found.map(drop).or_fail("stat")
        }),
        Deed::Open => all.try_for_each(|n| File::open(name(n)).map(drop).or_fail("open")),
        Deed::Readdir => {
            let listed = fs::read_dir(folder).or_fail("readdir")?.count() as u64;
            agree(listed, count)
        }
        Deed::Rename => all.try_for_each(|n| {
            let to = folder.join(format!("g{n}"));
            fs::rename(name(n), to).or_fail("rename")
        }),
        Deed::Unlink => all.try_for_each(|n| fs::remove_file(name(n)).or_fail("unlink")),
        Deed::Walk => agree(walk(folder, &mut |_| Ok(()))?, count),
        Deed::Grep => {
            let mut text = Vec::new();
            let found = walk(folder, &mut |path| {
                text.clear();
                let mut file = File::open(path).or_fail("open")?;
                file.read_to_end(&mut text).or_fail("read")?;
                let word = b"a word that nobody wrote";
                let there = text.windows(word.len()).any(|part| part == word);
                if there {
                    return Err(Fail::new(Errno::IO, "grep").because("found what is not there"));
                }
                Ok(())
            });
            agree(found?, count)
        }
    }
}

/// What was meant to be there was there: else the time means nothing.
fn agree(found: u64, wanted: u64) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Fail::new(Errno::IO, "count the names").because(format!("{found} of {wanted} found")))
}

/// How many entries lie below; `with` sees each file.
fn walk(folder: &Path, with: &mut dyn FnMut(&Path) -> Result<()>) -> Result<u64> {
    let mut found = 0;
    let entries = fs::read_dir(folder).or_fail("readdir")?;
    let mut names: Vec<OsString> = entries
        .map(|entry| Ok(entry.or_fail("readdir")?.file_name()))
        .collect::<Result<_>>()?;
    names.sort();
    for name in names {
        let path = folder.join(name);
        found += 1;
        let stat = fs::symlink_metadata(&path).or_fail("stat")?;
        if stat.is_dir() {
            found += walk(&path, with)?;
        } else {
            with(&path)?;
        }
    }
    Ok(found)
}
