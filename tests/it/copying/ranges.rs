//! copy_file_range on a mount: what cp uses, and every other program may.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

use crate::support::{
    Dice, Mount, Need, Scratch, Tmpfs, assert_content, assert_same_bytes, content, read_file,
    require, run, soak, write_content,
};

use super::disks::*;

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

/// Until all is copied, or nothing more comes.
fn copy_all(from: (&File, u64), to: (&File, u64), len: usize) -> Result<usize, Errno> {
    let (mut start, mut at, mut done) = (from.1, to.1, 0);
    while done < len {
        let (from, to) = (from.0, to.0);
        match copy_file_range(from, Some(&mut start), to, Some(&mut at), len - done)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// What the same does in memory.
fn model(from: &[u8], start: usize, to: &mut Vec<u8>, at: usize, len: usize) -> usize {
    let len = len.min(from.len().saturating_sub(start));
    if len > 0 {
        to.resize(to.len().max(at + len), 0);
        to[at..at + len].copy_from_slice(&from[start..start + len]);
    }
    len
}

/// Random ranges between two files and within one, with readers of both by all ways, whose cached
/// pages must never be what was there before.
fn follows_the_model(kind: &str, source: &Path, mount: &Mount) {
    let at = mount.path();
    let (a, b) = (open(&at.join("a")), open(&at.join("b")));
    let mut models = [content(1, 0, 900_000), content(2, 0, 500_000)];
    a.write_all_at(&models[0], 0).unwrap();
    b.write_all_at(&models[1], 0).unwrap();
    // A hole in the middle.
    a.set_len(1_500_000).unwrap();
    a.write_all_at(&content(3, 0, 100_000), 1_400_000).unwrap();
    models[0].resize(1_400_000, 0);
    models[0].extend(content(3, 0, 100_000));
    let mut dice = Dice::new(kind.len() as u64);
    for step in 0..soak(400) {
        let place = |dice: &mut Dice| match dice.below(2) {
            0 => dice.below(400) * 4096,
            _ => dice.below(1_600_000),
        };
        let (start, there) = (place(&mut dice), place(&mut dice));
        let mut len = 1 + place(&mut dice) as usize / 2;
        let (from, to) = (dice.below(2) as usize, dice.below(2) as usize);
        if from == to {
            // Behind its end it would go on with what it has just written there.
            len = len.min(models[from].len().saturating_sub(start as usize));
        }
        let files = [&a, &b];
        let outcome = copy_all((files[from], start), (files[to], there), len);
        let left = (models[from].len() as u64)
            .saturating_sub(start)
            .min(len as u64);
        let what = format!("{kind}, step {step}: {from}+{start} to {to}+{there}, {len} bytes");
        if from == to && start.abs_diff(there) < left {
            assert_eq!(outcome, Err(Errno::INVAL), "{what}");
        } else {
            let bytes = models[from].clone();
            let count = model(&bytes, start as usize, &mut models[to], there as usize, len);
            assert_eq!(outcome, Ok(count), "{what}");
        }
        for (name, expected) in ["a", "b"].into_iter().zip(&models) {
            // What the descriptor that is open all the time reads comes from cached pages.
            let file = if name == "a" { &a } else { &b };
            let mut seen = vec![0; expected.len()];
            file.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(
                file.metadata().unwrap().len(),
                expected.len() as u64,
                "{what}"
            );
            assert_same_bytes(0, &seen, expected);
            assert_same_bytes(0, &read_file(&source.join(name)), expected);
        }
    }
}

#[test]
fn ranges_follow_a_model_on_every_file_system() {
    on_each(&ALL, |kind, disk| {
        let mount = Mount::of(disk).start();
        follows_the_model(kind, disk, &mount);
    });
}

#[test]
fn ranges_follow_a_model_whatever_the_kernel_believes() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for options in ["coherence=watch", "coherence=strict", "passthrough=always"] {
        let source = Scratch::new();
        let mount = Mount::of(source.path()).opt(options).start();
        follows_the_model(options, source.path(), &mount);
    }
}

#[test]
fn a_mapping_of_the_target_shows_what_was_copied_there() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("a"), 1, MIB);
    write_content(&source.path().join("b"), 2, MIB);
    let mount = Mount::of(source.path()).start();
    let (a, b) = (open(&mount.path().join("a")), open(&mount.path().join("b")));
    // SAFETY: nobody truncates the file, and the bytes are read after each change is done.
    let map = unsafe { memmap2::Mmap::map(&b) }.unwrap();
    assert_content(2, 0, &map);
    assert_eq!(copy_all((&a, 0), (&b, 0), MIB as usize), Ok(MIB as usize));
    assert_content(1, 0, &map);
}

#[test]
fn ranges_between_two_mounts_and_two_disks_are_copied() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // Two file systems beneath one mount: the kernel can't copy there, the engine does.
    let source = Scratch::new();
    let within = source.dir("within");
    let disk = Tmpfs::at(&within, 64 << 20);
    write_content(&source.path().join("a"), 1, 3 * MIB + 7);
    let mount = Mount::of(source.path()).start();
    let a = File::open(mount.path().join("a")).unwrap();
    let b = open(&mount.path().join("within/b"));
    let all = 3 * MIB as usize + 7;
    assert_eq!(copy_all((&a, 0), (&b, 11), all), Ok(all));
    assert_content(1, 0, &read_file(&within.join("b"))[11..]);

    // Another mount's file is nothing that we could open: the kernel copies, or says EXDEV, and
    // then cp does.
    let other = Scratch::new();
    let second = Mount::of(other.path()).start();
    let c = open(&second.path().join("c"));
    match copy_all((&a, 0), (&c, 0), all) {
        Ok(count) => assert_eq!(count, all),
        Err(errno) => assert_eq!(errno, Errno::XDEV),
    }
    run(Command::new("cp")
        .arg(mount.path().join("a"))
        .arg(second.path().join("d")));
    assert_content(1, 0, &read_file(&other.path().join("d")));
    drop((a, b, c));
    drop((second, mount, disk));
}

#[test]
fn cp_moves_no_byte_through_fuse_on_any_file_system() {
    on_each(&ALL, |kind, disk| {
        write_content(&disk.join("f"), 3, 24 * MIB);
        File::open(disk.join("f")).unwrap().sync_all().unwrap();
        let mount = Mount::of(disk).start();
        run(Command::new("cp")
            .arg(mount.path().join("f"))
            .arg(mount.path().join("t")));
        let stats = mount.stats();
        for counter in ["corfs_read_bytes_total", "corfs_written_bytes_total"] {
            let bytes = stats.sum(counter, &[]);
            assert!(bytes < MIB as f64, "{counter} on {kind}: {bytes}");
        }
        let copied = read_file(&disk.join("t"));
        assert_eq!(copied.len() as u64, 24 * MIB, "{kind}");
        assert_content(3, 0, &copied);
        // The counters count.
        run(Command::new("dd")
            .arg("bs=1M")
            .arg("status=none")
            .arg(format!("if={}", mount.path().join("t").display()))
            .arg(format!("of={}", mount.path().join("u").display())));
        let stats = mount.stats();
        for counter in ["corfs_read_bytes_total", "corfs_written_bytes_total"] {
            let bytes = stats.sum(counter, &[]);
            assert!(bytes >= (24 * MIB) as f64, "{counter} on {kind}: {bytes}");
        }
    });
}

#[test]
fn cp_shares_extents_where_the_file_system_does_and_keeps_holes() {
    on_each(&SHARING, |kind, disk| {
        write_content(&disk.join("f"), 3, 24 * MIB);
        let holes = open(&disk.join("h"));
        holes.write_all_at(&content(4, 0, 3 << 20), 0).unwrap();
        holes
            .write_all_at(&content(5, 0, 100_000), 64 * MIB)
            .unwrap();
        holes.sync_all().unwrap();
        let mount = Mount::of(disk).start();
        let copy = |from: &str, to: &str| {
            run(Command::new("cp")
                .arg(mount.path().join(from))
                .arg(mount.path().join(to)));
        };
        let before = free(disk);
        copy("f", "t");
        assert_content(3, 0, &read_file(&disk.join("t")));
        let taken = before.saturating_sub(free(disk));
        assert!(taken < 8 * MIB, "{taken} bytes on {kind}");
        // Of a file with holes some versions of cp read the data themselves.
        copy("h", "u");
        let expected = read_file(&disk.join("h"));
        assert_same_bytes(0, &read_file(&disk.join("u")), &expected);
        // Not by its blocks: XFS keeps some ready behind the end for a while.
        let copied = open(&disk.join("u"));
        let hole = seek(&copied, SeekFrom::Hole(0)).unwrap();
        let data = seek(&copied, SeekFrom::Data(hole)).unwrap();
        assert!(
            hole < 4 * MIB && data > 63 * MIB,
            "{hole} to {data} on {kind}"
        );
        fs::remove_file(disk.join("t")).unwrap();
    });
}

#[test]
fn a_full_disk_ends_a_range_with_what_fits_or_an_error() {
    on_each(&["ext4", "tmpfs"], |kind, disk| {
        write_content(&disk.join("f"), 3, 30 * MIB);
        fill(disk, 10 * MIB);
        let mount = Mount::of(disk).start();
        let (from, to) = (open(&mount.path().join("f")), open(&mount.path().join("t")));
        let outcome = copy_all((&from, 0), (&to, 0), 30 << 20);
        assert_eq!(outcome, Err(Errno::NOSPC), "{kind}");
        let bytes = read_file(&disk.join("t"));
        assert_content(3, 0, &bytes[..bytes.len().min(4 << 20)]);
    });
}
