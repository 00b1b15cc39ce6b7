//! `passthrough=always`: the kernel serves files by itself, and everything stays as it was.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use memmap2::MmapMut;

use crate::support::{
    Mount, MountBuilder, Need, OTHER, Scratch, Tmpfs, USER, assert_content, read_file, require,
    set_mode, set_owner, write_content,
};

const MIB: u64 = 1 << 20;

fn through(source: &Path) -> MountBuilder {
    Mount::of(source).opt("passthrough=always")
}

fn opens(mount: &Mount, mode: &str) -> f64 {
    mount.stats().value("corfs_opens_total", &[("mode", mode)])
}

fn state(mount: &Mount) -> String {
    let states = mount.stats().samples;
    let on = |s: &&crate::support::Sample| s.name == "corfs_passthrough" && s.value == 1.0;
    let found: Vec<_> = states.iter().filter(on).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].labels["state"].clone()
}

/// Bytes of the source's files that the daemon itself has moved.
fn moved(mount: &Mount) -> (f64, f64) {
    let stats = mount.stats();
    let read = stats.value("corfs_read_bytes_total", &[("mode", "mmap")]);
    (read, stats.value("corfs_written_bytes_total", &[]))
}

fn writable(path: &Path) -> File {
    let mut options = File::options();
    let opened = options.read(true).write(true).open(path);
    opened.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn map(file: &File) -> MmapMut {
    // SAFETY: the file belongs to this test, which neither truncates nor reads it elsewhere
    // through a reference while the mapping lives.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

#[test]
fn the_kernel_reads_and_writes_by_itself() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    write_content(&source.path().join("a"), 1, 3 * MIB);
    let mount = through(source.path()).start();
    let file = writable(&mount.path().join("a"));
    let mut bytes = vec![0; 3 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_content(1, 0, &bytes);
    file.write_all_at(b"stored", MIB).unwrap();
    assert_eq!(moved(&mount), (0.0, 0.0));
    assert_eq!(state(&mount), "on");
    assert_eq!(opens(&mount, "passthrough"), 1.0);
    let mut stored = [0; 6];
    let beneath = File::open(source.path().join("a")).unwrap();
    beneath.read_exact_at(&mut stored, MIB).unwrap();
    assert_eq!(&stored, b"stored");
}

#[test]
fn the_time_of_a_store_through_mmap_is_seen_by_stat_at_once() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("a", &[0; 8192]);
    let mount = through(source.path()).opt("attr_timeout=3600").start();
    let there = mount.path().join("a");
    let old = filetime(&there);
    // The kernel may keep these attributes for an hour, unless it is told otherwise.
    assert_eq!(filetime(&there), old);
    std::thread::sleep(Duration::from_millis(50));
    let file = writable(&there);
    let mut mapping = map(&file);
    mapping[5] = 1;
    let new = filetime(&there);
    assert!(new > old, "{new:?} {old:?}");
    assert_eq!(new, filetime(&path), "as in the source");
    // Known attributes with one more open that only reads; the writer is still there.
    drop(File::open(&there).unwrap());
    file.set_len(4096).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().len(), 4096);
    drop((mapping, file));
    assert_eq!(fs::metadata(&there).unwrap().len(), 4096);
}

fn filetime(path: &Path) -> (i64, i64) {
    let stat = fs::metadata(path).unwrap();
    (stat.mtime(), stat.mtime_nsec())
}

#[test]
fn all_opens_of_an_inode_share_their_way_and_the_pages_are_one() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("a", &[7; 4096]);
    fs::hard_link(&path, source.path().join("b")).unwrap();
    let mount = through(source.path()).start();
    let (a, b) = (mount.path().join("a"), mount.path().join("b"));
    let readers: Vec<File> = (0..20).map(|_| File::open(&a).unwrap()).collect();
    let mut stores = map(&writable(&b));
    stores[9] = 1;
    for reader in &readers {
        let mut byte = [0];
        reader.read_exact_at(&mut byte, 9).unwrap();
        assert_eq!(byte, [1]);
    }
    // The source's own side shares the pages too.
    assert_eq!(read_file(&path)[9], 1);
    drop((readers, stores));
    // The last release is answered after close(2) has returned.
    crate::support::wait_until("the releases", Duration::from_secs(10), || {
        mount.stats().value("corfs_handles", &[]) <= 1.0
    });
    assert_eq!(read_file(&a)[9], 1);
}

/// The source's own pages are always of this moment, so nothing needs to be kept from the kernel.
#[test]
fn strict_coherence_is_kept_by_the_kernel_too() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let beneath = source.path().join("a");
    fs::write(&beneath, "first").unwrap();
    let mount = through(source.path()).opt("coherence=strict").start();
    let held = writable(&mount.path().join("a"));
    assert_eq!(read_file(&mount.path().join("a")), b"first");
    fs::write(&beneath, "second, longer").unwrap();
    let mut bytes = [0; 14];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"second, longer");
    assert_eq!(held.metadata().unwrap().len(), 14);
    let mut mapped = map(&held);
    mapped[0] = b'S';
    assert_eq!(fs::read(&beneath).unwrap(), b"Second, longer");
    assert_eq!((state(&mount).as_str(), moved(&mount)), ("on", (0.0, 0.0)));
}

#[test]
fn a_created_file_is_passed_through_and_grows() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(64 * MIB);
    let mount = through(source.path()).opt("attr_timeout=3600").start();
    let path = mount.path().join("new");
    let file = File::create_new(&path).unwrap();
    file.write_all_at(&[1; 100], 50).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 150);
    drop(file);
    assert_eq!(opens(&mount, "passthrough"), 1.0);
    let file = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, b"end").unwrap();
    assert_eq!(read_file(&source.path().join("new")).len(), 153);
    assert_eq!(read_file(&path), read_file(&source.path().join("new")));
}

#[test]
fn an_ordinary_users_mount_serves_files_by_itself_and_says_why() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, OTHER);
    let file = source.file("a", b"bytes");
    set_mode(&file, 0o644);
    let mount = through(source.path()).as_user(USER, OTHER).start();
    let (before, read) = crate::support::apart(Some((USER, OTHER)), || {
        (state(&mount), read_file(&mount.path().join("a")))
    });
    assert_eq!(before, "not_privileged", "before anything is opened");
    assert_eq!(read, b"bytes");
    let stats = crate::support::apart(Some((USER, OTHER)), || {
        (state(&mount), opens(&mount, "passthrough"))
    });
    assert_eq!(stats, ("not_privileged".to_owned(), 0.0));
}

#[test]
fn a_file_that_hides_its_size_is_still_read_by_us() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mount = through(Path::new("/proc/sys")).opt("ro").start();
    let native = read_file(Path::new("/proc/sys/kernel/ostype"));
    assert_eq!(read_file(&mount.path().join("kernel/ostype")), native);
    assert_eq!(native, b"Linux\n");
    assert_eq!(opens(&mount, "passthrough"), 0.0);
}
