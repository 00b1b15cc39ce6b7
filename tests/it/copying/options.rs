//! Random options on random trees, over what stands there: what comes out is what GNU cp makes.
//!
//! The words are the same for both, but for these, in which they differ on purpose:
//! - Mode and times are kept unless told otherwise; cp keeps neither.
//! - What stands at a destination is replaced, as by cp's `--remove-destination`: cp alone writes
//!   into the file that stands there, also through a link, and into a fifo.
//! - GNU cp 9.1 puts a tree's simple backups beside the source when it copies into a directory:
//!   backups are compared with `-T` alone.
//! - With `-u` or `-n` cp makes a name of a file with several a link to one that stays.

use std::os::unix::fs::symlink;
use std::process::Command;

use corfs::copy::language::{CopyRequest, Request, parse};
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, mknodat, utimensat};

use super::*;
use crate::programs::tree::{Tree, assert_same, snapshot};
use crate::support::{Dice, Need, Scratch, require, set_mode, set_owner, soak, write_content};

/// Words for both.
fn words(dice: &mut Dice, has_links: bool) -> Vec<String> {
    let mut words = Vec::new();
    let mut say = |dice: &mut Dice, some: &[&str]| {
        let word = some[dice.below(some.len() as u64) as usize];
        words.extend((!word.is_empty()).then(|| word.to_owned()));
    };
    say(dice, &["-r", "-r", "-a", "-R"]);
    say(
        dice,
        &["", "-p", "--preserve=mode", "--preserve=timestamps,xattr"],
    );
    say(
        dice,
        &[
            "",
            "",
            "--preserve=ownership",
            "--preserve=links",
            "--preserve=all",
        ],
    );
    say(
        dice,
        &[
            "",
            "",
            "--no-preserve=ownership",
            "--no-preserve=xattr,timestamps",
        ],
    );
    say(
        dice,
        &["", "--sparse=always", "--sparse=never", "--sparse=auto"],
    );
    if has_links || dice.below(2) == 0 {
        let backups = [
            "--backup",
            "--backup=numbered",
            "--backup=simple",
            "-b",
            "-S.old",
        ];
        match dice.below(2) {
            0 => say(dice, &["", "-T"]),
            _ => {
                say(dice, &["-T"]);
                say(dice, &backups);
            }
        }
    } else {
        say(dice, &["", "-T"]);
        say(dice, &["-n", "-u", "--update", "-x"]);
    }
    words
}

/// Few names, so that those of two trees meet, as things of different kinds.
fn grow(root: &Path, dice: &mut Dice, specials: bool, links: bool) {
    fs::create_dir(root).unwrap();
    let (mut folders, mut files, mut all) = (vec![root.to_owned()], Vec::new(), Vec::new());
    for number in 0..40 {
        let folder = folders[dice.below(folders.len() as u64) as usize].clone();
        let path = folder.join(format!("n{}", dice.below(8)));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match dice.below(10) {
            0..3 => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            3 => symlink(format!("n{}", dice.below(8)), &path).unwrap(),
            4 if specials => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            5 if links && !files.is_empty() => {
                let first: &std::path::PathBuf = &files[dice.below(files.len() as u64) as usize];
                fs::hard_link(first, &path).unwrap();
            }
            _ => {
                write_content(
                    &path,
                    number,
                    [0, 10, 5000, 70_000, 200_000][dice.below(5) as usize],
                );
                files.push(path.clone());
            }
        }
        all.push(path);
    }
    all.push(root.to_owned());
    for path in all.iter().rev() {
        dress(path, dice);
    }
}

fn dress(path: &Path, dice: &mut Dice) {
    set_owner(
        path,
        dice.below(2) as u32 * 1000,
        dice.below(2) as u32 * 1000,
    );
    if !fs::symlink_metadata(path).unwrap().is_symlink() {
        set_mode(path, dice.below(0o1000) as u32 | 0o400);
    }
    let time = Timespec {
        tv_sec: 1_000_000_000 + dice.below(5) as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// All that is known of it, but for where data lies, and for times of this hour.
fn known(root: &Path) -> Tree {
    let mut tree = snapshot(root);
    tree.values_mut().for_each(|entry| {
        entry.data.clear();
        entry.forget_late_times(1_100_000_000);
    });
    tree
}

fn by_cp(at: &Path, words: &[String]) -> bool {
    let mut cp = Command::new("sh");
    cp.current_dir(at)
        .args(["-c", "umask 022; exec cp \"$@\"", "sh"]);
    cp.arg("--remove-destination");
    cp.args(words)
        .args(["from", "to"])
        .output()
        .unwrap()
        .status
        .success()
}

fn by_us(at: &Path, words: &[String]) -> bool {
    let usual = "--no-preserve=mode,timestamps".to_owned();
    let line = [&[usual], words, &["from".into(), "to".into()]]
        .concat()
        .join(" ");
    let Ok(Some(Request::Copy(request))) = parse(line.as_bytes()) else {
        panic!("{line}");
    };
    let CopyRequest { options, .. } = *request;
    copy(at, &options, &["from"], "to").outcome.is_ok()
}

#[test]
fn random_options_come_out_as_those_of_cp() {
    if !require(&[Need::Root]) {
        return;
    }
    let mut met = 0;
    for seed in 0..soak(1000) {
        let mut dice = Dice::new(seed << 20 | 7);
        let has_links = dice.below(2) == 0;
        let words = words(&mut dice, has_links);
        let (stands, seed_of_trees) = (dice.below(3) > 0, dice.below(u64::MAX >> 1));
        let world = || {
            let scratch = Scratch::new();
            let mut dice = Dice::new(seed_of_trees);
            grow(&scratch.path().join("from"), &mut dice, true, has_links);
            if stands {
                let to = scratch.path().join("to");
                grow(&to, &mut dice, false, false);
                if dice.below(2) == 0 {
                    fs::rename(&to, scratch.path().join("old")).unwrap();
                    fs::create_dir(&to).unwrap();
                    fs::rename(scratch.path().join("old"), to.join("from")).unwrap();
                }
            }
            scratch
        };
        let (theirs, ours) = (world(), world());
        let (cp, us) = (by_cp(theirs.path(), &words), by_us(ours.path(), &words));
        let what = format!("seed {seed}: {words:?}");
        assert_eq!(us, cp, "{what}");
        met += u64::from(!cp);
        assert_same(&what, &known(ours.path()), &known(theirs.path()));
    }
    println!("{met} met what can't be replaced");
}
