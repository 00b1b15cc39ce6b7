//! Mappings of mounted files, and stores through mappings behind the mirror.

use std::fs::File;

use memmap2::{Mmap, MmapMut};

use super::*;
use crate::support::{Need, Scratch, read_file, require};

const SIZE: usize = 64 << 10;

/// A file behind the mirror, and a shared mapping of it on the mirror.
fn mapped(way: Way, source: &Scratch) -> (File, Mount, Mmap) {
    let path = source.file("file", &[b'a'; SIZE]);
    let behind = File::options().read(true).write(true).open(path).unwrap();
    let mount = way.start(source.path());
    let on = File::open(mount.path().join("file")).unwrap();
    // SAFETY: the file is never made shorter.
    let map = unsafe { Mmap::map(&on) }.unwrap();
    assert!(map.iter().all(|byte| *byte == b'a'));
    (behind, mount, map)
}

/// The byte as it is in memory now.
fn byte(map: &Mmap, at: usize) -> u8 {
    // SAFETY: a byte of a mapping that lives; volatile because it changes under us.
    unsafe { std::ptr::read_volatile(map.as_ptr().add(at)) }
}

fn write_at(file: &File, byte: u8, at: u64) {
    std::os::unix::fs::FileExt::write_all_at(file, &[byte], at).unwrap();
}

/// The kernel takes the page away from those who mapped it.
#[test]
fn a_mapping_on_a_watched_mount_sees_writes_behind_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let (behind, _mount, map) = mapped(Way::Watch, &source);
    for new in b'b'..=b'e' {
        write_at(&behind, new, 5000);
        Way::Watch.shows("in a mapping", || byte(&map, 5000) == new);
    }
    assert_eq!(byte(&map, 4999), b'a');
}

/// Without a watch it is whoever asks for the attributes, when they are due, that has old pages
/// dropped; a mapping alone asks for nothing.
#[test]
fn a_mapping_sees_writes_behind_it_when_the_attributes_are_asked_for() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let (behind, mount, map) = mapped(Way::Ttl, &source);
    write_at(&behind, b'b', 5000);
    let on = mount.path().join("file");
    comes_true("in a mapping", PATIENCE, || {
        let _ = std::fs::metadata(&on).unwrap();
        byte(&map, 5000) == b'b'
    });
}

/// A new mapping on a strict mount begins with the source's bytes.
#[test]
fn a_new_mapping_on_a_strict_mount_is_of_the_sources_bytes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let (behind, mount, old) = mapped(Way::Strict, &source);
    for new in b'b'..=b'e' {
        write_at(&behind, new, 5000);
        let on = File::open(mount.path().join("file")).unwrap();
        // SAFETY: the file is never made shorter.
        let map = unsafe { Mmap::map(&on) }.unwrap();
        assert_eq!(byte(&map, 5000), new);
        assert_eq!(byte(&old, 5000), new, "its pages were dropped for all");
    }
}

/// Stores through a mapping on the mount are the source's after msync, in every way.
#[test]
fn stores_through_a_mapping_reach_the_source_with_msync() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for way in [Way::Ttl, Way::Strict, Way::Watch] {
        let source = Scratch::new();
        let path = source.file("file", &[b'a'; SIZE]);
        let mount = way.start(source.path());
        let on = File::options()
            .read(true)
            .write(true)
            .open(mount.path().join("file"))
            .unwrap();
        // SAFETY: the file is never made shorter.
        let mut map = unsafe { MmapMut::map_mut(&on) }.unwrap();
        for new in b'b'..=b'e' {
            map[7000] = new;
            map.flush().unwrap();
            assert_eq!(read_file(&path)[7000], new, "{way:?}");
            // By a second descriptor of the mount, too.
            assert_eq!(read_file(&mount.path().join("file"))[7000], new, "{way:?}");
        }
    }
}

/// There is no event of a store behind the mirror, but there is one when the file that was mapped
/// for writing loses its last mapping and descriptor.
#[test]
fn stores_behind_a_watched_mount_show_when_the_mapping_ends() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let (behind, mount, map) = mapped(Way::Watch, &source);
    let on = mount.path().join("file");
    // SAFETY: the file is never made shorter.
    let mut stored = unsafe { MmapMut::map_mut(&behind) }.unwrap();
    stored[9000] = b'z';
    stored.flush().unwrap();
    drop(stored);
    drop(behind);
    Way::Watch.shows("stored", || read_file(&on)[9000] == b'z');
    assert_eq!(byte(&map, 9000), b'z');
}

/// While the mapping behind the mirror lasts, its stores show when the attributes are due, if the
/// store moved the file's time.
#[test]
fn stores_behind_a_watched_mount_show_after_its_timeout() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("file", &[b'a'; SIZE]);
    let behind = File::options().read(true).write(true).open(path).unwrap();
    let mount = Mount::of(source.path())
        .opt("coherence=watch,watch_timeout=0.5")
        .start();
    let on = mount.path().join("file");
    assert_eq!(read_file(&on)[9000], b'a');
    // SAFETY: the file is never made shorter.
    let mut stored = unsafe { MmapMut::map_mut(&behind) }.unwrap();
    let events = || {
        mount
            .stats()
            .value("corfs_invalidations_total", &[("what", "data")])
    };
    let before = events();
    stored[9000] = b'z';
    comes_true("stored", PATIENCE, || read_file(&on)[9000] == b'z');
    assert_eq!(events(), before, "the timeout did it, no event");
}
