//! Walks over a million files (at `CORFS_SOAK=1`) by a daemon with few descriptors.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::children::Actor;
use crate::support::{Loop, Need, Scratch, USER, require, run, set_owner, sh, soak};

/// A million in the full run; in the short one as many as fit into its time.
fn how_many() -> u64 {
    match soak(10) {
        10.. => soak(1_000_000),
        _ => soak(100_000),
    }
}

/// Every name with its inode number, mode and size, in one order.
const FIND: &str = "find . -mindepth 1 -printf '%P %i %m %s\\n' | LC_ALL=C sort | cksum";
const LIST: &str = "LC_ALL=C ls -lRi . | cksum";

fn timed(folder: &Path, script: &str) -> (String, Duration) {
    let started = Instant::now();
    let said = run(&mut sh(folder, script));
    (said, started.elapsed())
}

/// Looks at all files in the reverse of their order; returns how many there were, and the sum of
/// what tells them apart.
fn backwards(base: &Path, count: u64) -> (u64, u64) {
    let (mut seen, mut sum) = (0, 0_u64);
    for folder in (0..count.div_ceil(A_FOLDER)).rev() {
        let path = base.join(folder_name(folder));
        for n in (0..A_FOLDER.min(count - folder * A_FOLDER)).rev() {
            let file = fs::symlink_metadata(path.join(file_name(n)));
            let file = file.unwrap_or_else(|e| panic!("{folder}/{n}: {e}"));
            assert_eq!(
                file.mode() & 0o777,
                mode_of(folder, n).bits(),
                "{folder}/{n}"
            );
            sum = sum.wrapping_mul(31).wrapping_add(file.ino());
            seen += 1;
        }
    }
    (seen, sum)
}

/// How many descriptors one process may well have.
const A_PROCESS: u64 = 10_000;

/// Lets processes hold on to every file.
fn hold_all(base: &Path, count: u64) -> Vec<Actor> {
    let base = base.to_str().expect("a plain name");
    let firsts = (0..count).step_by(A_PROCESS as usize);
    let holders = firsts.map(|first| Actor::holder(base, first, A_PROCESS.min(count - first)));
    let mut holders: Vec<_> = holders.collect();
    for holder in &mut holders {
        assert_eq!(holder.answer(), "holding");
    }
    holders
}

/// Points at files without opening them; the part of a child process.
pub(crate) fn hold(base: &Path, first: u64, count: u64) -> Vec<OwnedFd> {
    allow_ourselves(count);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    (first..first + count)
        .map(|n| {
            let folder = base.join(folder_name(n / A_FOLDER));
            rustix::fs::open(folder.join(file_name(n % A_FOLDER)), flags, Mode::empty()).unwrap()
        })
        .collect()
}

/// One line of figures: the pass, the native time and the mount's with what the daemon held.
fn tell(pass: &str, native: Duration, mount: Duration, peak: &Peak) {
    println!(
        "{pass:<8} native {:>7.2} s, mount {:>7.2} s ({:.1} times); inodes {}, descriptors {}, \
         memory {:.1} MiB",
        native.as_secs_f64(),
        mount.as_secs_f64(),
        mount.as_secs_f64() / native.as_secs_f64(),
        peak.inodes,
        peak.descriptors,
        peak.memory as f64 / MIB as f64
    );
}

/// Runs all passes on both, compares what they say, and returns the most that the daemon held.
fn walk(native: &Path, mount: &Mount, count: u64) -> u64 {
    let mut most = 0;
    let mut hold = |pass: &str, native: Duration, took: Duration, peak: &Peak| {
        tell(pass, native, took, peak);
        assert!(peak.descriptors <= 1024, "{peak:?}");
        most = most.max(peak.memory);
    };
    for (pass, script) in [("find", FIND), ("ls -lR", LIST)] {
        let (expected, natively) = timed(native, script);
        let ((said, took), _, peak) = watched(mount, || timed(mount.path(), script));
        assert_eq!(said, expected, "{pass}");
        hold(pass, natively, took, &peak);
    }
    let started = Instant::now();
    let expected = backwards(native, count);
    let natively = started.elapsed();
    assert_eq!(expected.0, count);
    let (seen, took, peak) = watched(mount, || backwards(mount.path(), count));
    assert_eq!(seen, expected);
    hold("reverse", natively, took, &peak);
    most
}

#[test]
fn a_million_files_under_few_descriptors() {
    if !require(&[Need::Fuse, Need::Filesystem("xfs"), Need::Tool("find")]) {
        return;
    }
    let count = how_many();
    // A quarter of an XFS is for inodes, of half a kilobyte each; the image is sparse.
    let disk = Loop::new("xfs", 600 * MIB + count * 6000);
    let [source, twin] = ["source", "twin"].map(|name| disk.path().join(name));
    for folder in [&source, &twin] {
        fs::create_dir(folder).unwrap();
        make_files(folder, count);
    }
    println!("{count} files on XFS, ulimit -n 1024");
    let mount = Mount::of(&source).descriptors(1024).start();
    // Once around, so that the program and its buffers stand in memory.
    run(&mut sh(mount.path(), "ls -l d0000 | cksum"));
    forget_all(&mount, 4);
    let start = mount.rss();
    let most = walk(&source, &mount, count);
    assert!(most < 256 * MIB, "{most} bytes resident");

    // Now all at once, which the kernel can't drop as long as somebody points at them.
    let holders = hold_all(mount.path(), count);
    let (known, full) = (inodes(&mount), mount.rss());
    assert!(known > count, "{known} inodes");
    let each = full.all.saturating_sub(start.all) / known;
    println!("{known} inodes at once: {full:?}, {each} bytes each");
    // A few megabytes are buffers, which weigh in the short run.
    assert!(
        full.all < start.all + 8 * MIB + 230 * known,
        "{each} bytes an inode"
    );
    assert!(full.all < 256 * MIB);
    drop(holders);

    // What is in use by nobody goes, and its memory with it.
    forget_all(&mount, 4);
    let back = || mount.rss().anon <= start.anon + 16 * MIB;
    wait_until("the memory comes back", PATIENCE, back);
    println!(
        "memory at the start {start:?}, after all was forgotten {:?}",
        mount.rss()
    );

    let (_, natively) = timed(&twin, "rm -rf d*");
    let ((_, took), _, peak) = watched(&mount, || timed(mount.path(), "rm -rf d*"));
    tell("rm -rf", natively, took, &peak);
    assert_eq!(fs::read_dir(&source).unwrap().count(), 0, "nothing is left");
    assert!(
        peak.descriptors <= 1024 && peak.memory < 256 * MIB,
        "{peak:?}"
    );
    let end = mount.stats();
    assert_eq!(gauge(&end, "corfs_handles"), 0);
}

/// An ordinary user's daemon can't open handles: it finds all again by their names.
#[test]
fn an_ordinary_user_walks_by_names() {
    if !require(&[Need::UserFuse, Need::Root, Need::Tool("find")]) {
        return;
    }
    let count = how_many() / 10;
    let source = Scratch::new();
    make_files(source.path(), count);
    set_owner(source.path(), USER, USER);
    run(&mut sh(source.path(), &format!("chown -R {USER}:{USER} .")));
    let mut mount = Mount::of(source.path())
        .as_user(USER, USER)
        .descriptors(256)
        .opt("default_permissions")
        .start();
    let expected = backwards(source.path(), count);
    let point = mount.path().to_owned();
    let as_its_user =
        |work: &(dyn Fn() -> (u64, u64) + Sync)| crate::support::apart(Some((USER, USER)), work);
    assert_eq!(as_its_user(&|| backwards(&point, count)), expected);
    assert_eq!(as_its_user(&|| backwards(&point, count)), expected);
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.server()))
        .unwrap()
        .count();
    assert!(fds <= 256, "{fds}");
    as_its_user(&|| {
        run(&mut sh(&point, "rm -rf d*"));
        (0, 0)
    });
    assert_eq!(fs::read_dir(source.path()).unwrap().count(), 0);
    assert!(mount.alive());
}
