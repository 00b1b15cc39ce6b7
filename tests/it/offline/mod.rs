//! The source goes while it is mirrored, or is not there: what the cache knows is served.

mod absent;
mod outages;
mod returns;
mod torn;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::support::*;

const BLOCK: u64 = 64 << 10;
/// How long anything may take that does not wait for the source.
const PATIENCE: Duration = Duration::from_secs(60);
const FILES: u64 = 6;

/// Makes the tree that these tests know: files in two folders, links, an empty file.
fn plant(at: &Path) {
    fs::create_dir_all(at.join("d/e")).unwrap();
    for n in 0..FILES {
        write_content(&at.join(name(n)), n, size(n));
        age(&at.join(name(n)));
    }
    fs::write(at.join("d/empty"), "").unwrap();
    write_content(&at.join("d/unread"), 77, 3 * BLOCK);
    age(&at.join("d/unread"));
    symlink("../d/e", at.join("d/link")).unwrap();
}

fn name(n: u64) -> String {
    match n % 2 {
        0 => format!("f{n}"),
        _ => format!("d/e/f{n}"),
    }
}

fn size(n: u64) -> u64 {
    2 * BLOCK + 100 * n + 1
}

/// A source that fails on command, with that tree in it, old enough to be kept.
fn faulty() -> FaultySource {
    let source = FaultySource::new();
    source.faults().show_older(Duration::from_secs(2 * 86_400));
    plant(source.store());
    source
}

/// Its mount, with a cache in `cache`, whose kernel remembers little.
fn cached(source: &Path, cache: &Path) -> MountBuilder {
    Mount::of(source)
        .opt(format!("cache={}", cache.display()))
        .opt("block=64K,racy=0,cache_free=0,cache_size=1G")
        .opt("source_timeout=3,attr_timeout=0.2,entry_timeout=0.2")
}

fn cache_folder(scratch: &Scratch) -> std::path::PathBuf {
    let folder = scratch.dir("cache");
    set_mode(&folder, 0o700);
    folder
}

type Told = (u32, u64, u32, u32, i64, i64, i64);
/// Paths, and what stat(2) tells of them.
type Seen = Vec<(String, Told)>;

/// Everything that stat(2) tells, and that a memory of it can know.
fn told(path: &Path) -> Told {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mtime, nanos) = (meta.mtime(), meta.mtime_nsec());
    (
        meta.mode(),
        meta.size(),
        meta.uid(),
        meta.gid(),
        mtime,
        nanos,
        meta.ctime(),
    )
}

/// The names in a folder, sorted.
fn names(at: &Path) -> Vec<String> {
    let entries = fs::read_dir(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All that `ls -lR` and reading what is to be cached ask for; what stat tells of every path.
fn see(mount: &Path) -> Seen {
    let mut seen = Vec::new();
    for folder in ["", "d", "d/e"] {
        for name in names(&mount.join(folder)) {
            let path = Path::new(folder).join(name);
            seen.push((
                path.to_string_lossy().into_owned(),
                told(&mount.join(&path)),
            ));
        }
    }
    assert_eq!(
        fs::read_link(mount.join("d/link")).unwrap(),
        Path::new("../d/e")
    );
    for n in 0..FILES {
        assert_content(n, 0, &read_file(&mount.join(name(n))));
    }
    assert_eq!(read_file(&mount.join("d/empty")), b"");
    seen
}

fn value(mount: &Mount, what: &str) -> f64 {
    mount.stats().value(&format!("corfs_{what}"), &[])
}

/// As [`see`], and waits until all of it is kept.
fn learn(mount: &Mount) -> Seen {
    let seen = see(mount.path());
    wait_until("all is stored", PATIENCE, || {
        value(mount, "cache_stored_bytes_total") >= value(mount, "cache_filled_bytes_total")
    });
    // Notes are kept once a second, in the order in which they were taken: when no more come for
    // some seconds, all are.
    let mut before = 0.0;
    wait_until("all is noted", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(3));
        let now = value(mount, "names_noted_total");
        now > 0.0 && now == std::mem::replace(&mut before, now)
    });
    seen
}

/// Whether it says so; until the source is lost the way to the statistics may be closed.
fn is_offline(mount: &Mount) -> Option<bool> {
    let text = fs::read_to_string(mount.path().join(".corfs/stats")).ok()?;
    Some(Stats::parse(&text).value("corfs_source_offline", &[]) == 1.0)
}

#[track_caller]
fn await_offline(mount: &Mount) {
    // Somebody must ask before anybody can know.
    let path = mount.path().join("d/unread");
    wait_until("the source is lost", PATIENCE, || {
        let _ = fs::symlink_metadata(&path);
        is_offline(mount) == Some(true)
    });
    assert!(value(mount, "source_offline_since_seconds") > 1e9);
}

#[track_caller]
fn await_online(mount: &Mount) {
    wait_until("the source is back", PATIENCE, || {
        is_offline(mount) == Some(false)
    });
}

/// Past the kernel's own pages of it.
fn read_anew(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What holds of a mount whose source is away.
#[track_caller]
fn assert_served_from_memory(mount: &Mount, seen: &[(String, Told)]) {
    let at = mount.path();
    assert_eq!(see(at), seen);
    for n in 0..FILES {
        assert_content(
            n,
            0,
            &read_anew(&at.join(name(n))).expect("what is cached is read"),
        );
    }
    let began = Instant::now();
    let right = [Errno::IO, Errno::TIMEDOUT];
    let unread = errno_of("what is not cached", fs::read(at.join("d/unread")));
    assert!(right.contains(&unread), "{unread}");
    let absent = errno_of("what is not there", fs::metadata(at.join("d/nothing")));
    assert_eq!(absent, Errno::NOENT);
    for attempt in [
        fs::write(at.join("d/new"), "x"),
        fs::create_dir(at.join("dir")),
        fs::remove_file(at.join("f0")),
        fs::rename(at.join("f0"), at.join("f9")),
        File::options().append(true).open(at.join("f0")).map(drop),
        fs::set_permissions(at.join("f0"), mode(0o600)),
    ] {
        assert_eq!(errno_of("a change", attempt), Errno::ROFS);
    }
    assert!(began.elapsed() < PATIENCE / 3, "errors come at once");
}

fn mode(bits: u32) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(bits)
}
