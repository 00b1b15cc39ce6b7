//! Trees, compared with what `cp -a` makes of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};
use rustix::io::Errno;

use crate::children::Actor;
use crate::programs::tree::{Tree, assert_same, build, snapshot};
use crate::support::{
    Dice, Loop, Need, Scratch, Tmpfs, assert_same_bytes, content, require, run, sbin, set_mode,
    set_owner, soak, tool, write_content, write_file,
};

use super::*;

/// All that is known of a tree, but for where data lies: that is the file system's.
fn known(root: &Path) -> Tree {
    let mut tree = snapshot(root);
    tree.values_mut().for_each(|entry| entry.data.clear());
    tree
}

fn by_cp(from: &Path, to: &Path) -> Tree {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
    known(to)
}

/// A tree that nobody thought of.
fn grow(root: &Path, dice: &mut Dice, entries: u64) {
    fs::create_dir(root).unwrap();
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    let mut all = Vec::new();
    for number in 0..entries {
        let folder = folders[dice.below(folders.len() as u64) as usize].clone();
        let path = folder.join(format!("n{number}"));
        match dice.below(12) {
            0..3 => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            3 => symlink(format!("../n{}", dice.below(entries)), &path).unwrap(),
            4 if !files.is_empty() => {
                let other: &std::path::PathBuf = &files[dice.below(files.len() as u64) as usize];
                fs::hard_link(other, &path).unwrap();
            }
            5 => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            _ => {
                let size = [0, 100, 4096, 65_536, 65_537, 300_000][dice.below(6) as usize];
                write_content(&path, number, size);
                files.push(path.clone());
            }
        }
        all.push(path);
    }
    for (number, path) in all.iter().enumerate().rev() {
        dress(path, number as i64, dice);
    }
}

fn dress(path: &Path, number: i64, dice: &mut Dice) {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    set_owner(
        path,
        dice.below(3) as u32 * 1000,
        dice.below(3) as u32 * 1000,
    );
    if !kind.is_symlink() {
        set_mode(path, dice.below(0o10000) as u32);
    }
    if (kind.is_file() || kind.is_dir()) && dice.below(3) == 0 {
        let value = content(dice.below(99), 0, dice.below(300) as usize);
        lsetxattr(path, "user.some", &value, XattrFlags::empty()).unwrap();
    }
    let time = Timespec {
        tv_sec: 1_000_000_000 + number,
        tv_nsec: dice.below(1_000_000_000) as i64,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn everything_that_archivers_are_asked_for_is_copied() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.path().join("from");
    build(&from);
    let before = known(&from);
    copy(scratch.path(), &archive(), &["from"], "to").well();
    assert_same("the copy", &known(&scratch.path().join("to")), &before);
    assert_same("cp -a", &by_cp(&from, &scratch.path().join("cp")), &before);
    // Over what stands there, too.
    copy(scratch.path(), &archive(), &["from/."], "to").well();
    assert_same("again", &known(&scratch.path().join("to")), &before);
    let blocks = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(scratch.path().join(name)).unwrap().blocks()
    };
    assert!(blocks("to/sparse") <= blocks("from/sparse"));
}

#[test]
fn random_trees_come_out_as_those_of_cp() {
    if !require(&[Need::Root]) {
        return;
    }
    for seed in 0..soak(100) {
        let scratch = Scratch::new();
        let mut dice = Dice::new(seed << 20);
        let from = scratch.path().join("from");
        grow(&from, &mut dice, 150);
        copy(scratch.path(), &archive(), &["from"], "to").well();
        let expected = by_cp(&from, &scratch.path().join("cp"));
        let copied = known(&scratch.path().join("to"));
        assert_same(&format!("seed {seed}"), &copied, &expected);
    }
}

#[test]
fn file_systems_within_are_left_out_or_entered() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    write_file(&from.join("here"), b"here");
    fs::create_dir(from.join("mounted")).unwrap();
    let within = Tmpfs::at(&from.join("mounted"), 1 << 20);
    write_file(&from.join("mounted/there"), b"there");
    copy(scratch.path(), &archive(), &["from"], "all").well();
    let bounded = CopyOptions {
        one_file_system: true,
        ..archive()
    };
    copy(scratch.path(), &bounded, &["from"], "bounded").well();
    drop(within);
    let to = |name: &str| scratch.path().join(name);
    assert_eq!(fs::read(to("all/mounted/there")).unwrap(), b"there");
    assert_eq!(fs::read_dir(to("bounded/mounted")).unwrap().count(), 0);
    assert_eq!(fs::read(to("bounded/here")).unwrap(), b"here");
}

#[test]
fn a_bind_mount_does_not_hide_that_a_tree_goes_into_itself() {
    if !require(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    fs::create_dir(from.join("below")).unwrap();
    write_file(&from.join("f"), b"");
    let point = scratch.dir("elsewhere");
    let unmount = || rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    for bound in ["from", "from/below"] {
        rustix::mount::mount_bind(scratch.path().join(bound), &point).unwrap();
        let done = copy(scratch.path(), &archive(), &["from"], "elsewhere/new");
        unmount().unwrap();
        assert_eq!(done.outcome.unwrap_err().errno, Errno::INVAL, "{bound}");
    }
    // Of the second the kernel tells nothing above the mount: the walk met its own copy.
    assert!(!from.join("new").exists());
    assert!(from.join("below/new/f").exists());
    assert!(!from.join("below/new/below/new").exists());
}

#[test]
fn a_quota_that_is_reached_leaves_whole_files() {
    if !require(&[Need::Filesystem("btrfs"), Need::Tool("btrfs")]) {
        return;
    }
    let disk = Loop::new("btrfs", 256 << 20);
    let btrfs = |words: &[&str], at: &Path| {
        run(Command::new(tool("btrfs").unwrap()).args(words).arg(at));
    };
    let volume = disk.path().join("volume");
    btrfs(&["subvolume", "create"], &volume);
    btrfs(&["quota", "enable"], disk.path());
    btrfs(&["quota", "rescan", "-w"], disk.path());
    btrfs(&["qgroup", "limit", "4M"], &volume);
    // The rights that a mount's daemon has given up (`sys::process::keep_to_quotas`).
    let user = corfs::sys::creds::Credentials {
        uid: crate::support::USER,
        gid: crate::support::USER,
        groups: vec![],
        effective: 0,
    };
    set_mode(&volume, 0o777);
    let from = disk.path().join("from");
    fs::create_dir(&from).unwrap();
    for number in 0..12 {
        write_content(&from.join(format!("f{number}")), number, 1 << 20);
    }
    let options = CopyOptions {
        reflink: corfs::copy::options::Reflink::Never,
        ..archive()
    };
    let full = user.run_as(|| copy(disk.path(), &options, &["from"], "volume/to"));
    let full = full.unwrap();
    assert_eq!(full.outcome.as_ref().unwrap_err().errno, Errno::DQUOT);
    assert!(
        full.failed()
            .iter()
            .all(|(_, errno)| *errno == Errno::DQUOT)
    );
    for entry in fs::read_dir(volume.join("to")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), 1 << 20);
    }
}

/// Files of several sizes, whose content follows from their names.
fn plain(root: &Path, folders: u64, files: u64) {
    for folder in 0..folders {
        let path = root.join(format!("d{folder}"));
        fs::create_dir_all(&path).unwrap();
        for number in 0..files {
            let seed = folder * files + number;
            let size = if number == 0 { 700_000 } else { 3000 };
            write_content(&path.join(format!("f{seed}-{size}")), seed, size);
        }
    }
}

/// Every file has its whole content; nothing else has a name, unless it is hidden and to go with the
/// next copy.
fn assert_whole(folder: &Path) -> u64 {
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(".corfs-copy-") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found += assert_whole(&entry.path());
            continue;
        }
        let parts = name.strip_prefix('f').and_then(|rest| rest.split_once('-'));
        let (seed, size) = parts.unwrap_or_else(|| panic!("{name} was left"));
        let (seed, size) = (seed.parse().unwrap(), size.parse().unwrap());
        let bytes = fs::read(entry.path()).unwrap();
        assert_same_bytes(0, &bytes, &content(seed, 0, size));
        found += 1;
    }
    found
}

#[test]
fn a_killed_copy_leaves_no_part_of_a_file_under_its_name() {
    let mut dice = Dice::new(99);
    let mut met = 0;
    for _ in 0..soak(200) {
        let scratch = Scratch::new();
        plain(&scratch.dir("from"), 6, 12);
        scratch.dir("to");
        let copier = Actor::copier(scratch.path());
        std::thread::sleep(Duration::from_micros(dice.below(60_000)));
        copier.kill(rustix::process::Signal::KILL);
        let found = assert_whole(&scratch.path().join("to"));
        met += u64::from(found > 0 && found < 72);
        copy(scratch.path(), &archive(), &["from/."], "to").well();
        let mut names =
            crate::support::output(std::process::Command::new("find").arg(scratch.path()));
        let names = String::from_utf8(std::mem::take(&mut names.stdout)).unwrap();
        assert!(!names.contains(".corfs-"), "{names}");
        assert_eq!(assert_whole(&scratch.path().join("to")), 72);
    }
    println!("{met} were killed in the middle");
    assert!(met > 0, "none was killed in the middle");
}

#[test]
fn files_with_names_elsewhere_take_no_descriptor_each() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    for folder in ["from", "elsewhere", "to"] {
        source.dir(folder);
    }
    let mut line = "-a".to_owned();
    for number in 0..600 {
        let file = source.file(&format!("from/f{number}"), b"text");
        let other = source.path().join(format!("elsewhere/f{number}"));
        fs::hard_link(file, other).unwrap();
        line += &format!(" from/f{number}");
    }
    let mount = Mount::of(source.path()).start();
    let limit = rustix::process::Rlimit {
        current: Some(256),
        maximum: Some(256),
    };
    let daemon = rustix::process::Pid::from_raw(i32::try_from(mount.server()).unwrap());
    rustix::process::prlimit(daemon, rustix::process::Resource::Nofile, limit).unwrap();
    tell(mount.path(), &format!("{line} to")).unwrap();
    assert_eq!(names(&source.path().join("to")).len(), 600);
}

#[test]
fn a_large_tree_takes_no_more_memory_than_a_small_one() {
    let disk = match require(&[Need::Filesystem("xfs")]) {
        true => Loop::new("xfs", 1 << 30),
        false => return,
    };
    let entries = soak(100_000);
    let from = disk.path().join("from");
    for folder in 0..entries / 100 {
        let path = from.join(format!("{}/{folder}", folder % 10));
        fs::create_dir_all(&path).unwrap();
        for file in 0..99 {
            fs::File::create(path.join(format!("file-{file}"))).unwrap();
        }
    }
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<u64>().unwrap()
    };
    let before = resident();
    copy(disk.path(), &archive(), &["from"], "to").well();
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} KiB");
    let count = |path: &Path| {
        let mut words = Command::new(sbin("find"));
        run(words.arg(path)).lines().count()
    };
    assert_eq!(count(&disk.path().join("to")), count(&from));
    println!("{entries} entries, {grown} KiB more");
}
