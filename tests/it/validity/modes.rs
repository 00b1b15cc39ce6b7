//! Whole files by passthrough, and what becomes of their readers when somebody writes.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use memmap2::{Mmap, MmapMut};
use rustix::fs::FallocateFlags;

use super::*;

const SIZE: u64 = 3 * MIB + 100;

/// A mount whose `f` is whole in the cache: the next open of it is by passthrough.
fn whole() -> (World, Mount) {
    let world = World::new();
    fs::write(world.behind("f"), version(b'A', SIZE)).unwrap();
    let mount = world.mount().start();
    keep(&mount, "f");
    (world, mount)
}

/// An open that is served by the kernel: the one before may not be released yet, and an inode has one
/// way at a time.
#[track_caller]
fn open_whole(mount: &Mount) -> File {
    let mut opened = None;
    wait_until("an open served by the kernel", PATIENCE, || {
        opened = None;
        let so_far = opens(mount, "whole");
        opened = Some(File::open(mount.path().join("f")).expect("open"));
        opens(mount, "whole") > so_far
    });
    opened.expect("opened")
}

fn map(file: &File) -> Mmap {
    // SAFETY: nothing truncates the file while the mapping lives.
    unsafe { Mmap::map(file) }.unwrap()
}

fn map_shared(file: &File) -> MmapMut {
    // SAFETY: as above; stores elsewhere are what the test is about, and it copies what it reads.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

#[test]
fn a_whole_file_is_read_and_mapped_by_the_kernel() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (_world, mount) = whole();
    let moved = || {
        let stats = mount.stats();
        ["mmap", "block"].map(|mode| stats.value("corfs_read_bytes_total", &[("mode", mode)]))
    };
    let file = open_whole(&mount);
    let before = moved();
    let bytes = version(b'A', SIZE);
    same(&read_at(&file, 0, SIZE as usize), &bytes, "read");
    same(&map(&file), &bytes, "mapped");
    assert_eq!(moved(), before, "the daemon moved nothing");
}

#[test]
fn without_the_right_to_it_whole_files_are_served_from_windows() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (world, mount) = whole();
    assert!(mount.finish().success());
    let mount = world.mount().opt("passthrough=never").start();
    let file = File::open(mount.path().join("f")).unwrap();
    assert_eq!((opens(&mount, "whole"), opens(&mount, "cached")), (0, 1));
    same(
        &read_at(&file, 0, SIZE as usize),
        &version(b'A', SIZE),
        "read",
    );
    assert_eq!(counted(&mount, "filled_bytes_total"), 0);
}

/// The reader came first, by passthrough; then the file is written through the mount.
#[test]
fn readers_by_passthrough_see_what_is_written_after_they_opened() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (world, mount) = whole();
    let on = mount.path().join("f");
    let reader = open_whole(&mount);
    let mapping = map(&reader);
    let writer = writable(&on);
    writer.write_all_at(b"written", 10).unwrap();
    assert_eq!(read_at(&reader, 10, 7), b"written");
    assert_eq!(&mapping[10..17], b"written");
    assert_eq!(read_at(&File::open(&on).unwrap(), 10, 7), b"written");
    assert_eq!(&fs::read(world.behind("f")).unwrap()[10..17], b"written");
    // Stores through a shared mapping of the writer, and msync.
    let mut stores = map_shared(&writer);
    stores[20..26].copy_from_slice(b"stored");
    stores.flush().unwrap();
    assert_eq!(&fs::read(world.behind("f")).unwrap()[20..26], b"stored");
    assert_eq!(read_at(&reader, 20, 6), b"stored");
    assert_eq!(&mapping[20..26], b"stored");
    assert_eq!(read_at(&writer, 20, 6), b"stored");
    // Their file is still one.
    let ino = |file: &File| file.metadata().unwrap().ino();
    assert_ne!(ino(&reader), 0);
    drop((mapping, reader, stores, writer));
    let mut now = version(b'A', SIZE);
    now[10..17].copy_from_slice(b"written");
    now[20..26].copy_from_slice(b"stored");
    same(&keep(&mount, "f"), &now, "kept");
    assert!(mount.finish().success());
    let mount = world.mount().start();
    same(&read_file(&mount.path().join("f")), &now, "remounted");
}

/// The writer came first; a reader that comes then is served by us, from the source.
#[test]
fn readers_that_come_while_a_file_is_written_see_every_store() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (world, mount) = whole();
    let on = mount.path().join("f");
    let so_far = opens(&mount, "whole");
    let mut writer = writable(&on);
    let reader = File::open(&on).unwrap();
    assert_eq!(opens(&mount, "whole"), so_far);
    writer.write_all(b"first").unwrap();
    assert_eq!(read_at(&reader, 0, 5), b"first");
    let mut stores = map_shared(&writer);
    let seen = map(&reader);
    stores[5..11].copy_from_slice(b"stored");
    assert_eq!(&seen[5..11], b"stored", "one page for both");
    stores.flush().unwrap();
    assert_eq!(&fs::read(world.behind("f")).unwrap()[..11], b"firststored");
    drop((stores, seen, reader, writer));
    assert_eq!(&keep(&mount, "f")[..11], b"firststored");
}

#[test]
fn old_readers_keep_the_old_version_and_new_ones_get_the_new() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (world, mount) = whole();
    let on = mount.path().join("f");
    let reader = open_whole(&mount);
    let mapping = map(&reader);
    let new = version(b'Z', SIZE);
    fs::write(world.behind("f"), &new).unwrap();
    wait_until("the change shows", PATIENCE, || read_file(&on) == new);
    let old = version(b'A', SIZE);
    assert_eq!(read_at(&reader, MIB, 1000), old[MIB as usize..][..1000]);
    same(&mapping, &old, "mapped before");
    assert!(reader.metadata().is_ok());
    same(&keep(&mount, "f"), &new, "kept");
    same(&read_file(&on), &new, "read");
    drop((reader, mapping));
    same(&read_file(&on), &new, "read");
}

#[test]
fn programs_run_from_the_cache() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let world = World::new();
    fs::copy("/bin/true", world.behind("true")).unwrap();
    let mount = world.mount().start();
    keep(&mount, "true");
    // What is read without a miss may still be on its way to the store.
    stored(&mount);
    for _ in 0..3 {
        run(&mut std::process::Command::new(mount.path().join("true")));
    }
    assert!(opens(&mount, "whole") > 0);
    assert_eq!(names(mount.path()), ["true"]);
}

/// All of an open file, as its reader sees it now.
#[track_caller]
fn seen(file: &File) -> Vec<u8> {
    let mut all = vec![0; SIZE as usize + 1000];
    let mut filled = 0;
    while filled < all.len() {
        match file
            .read_at(&mut all[filled..], filled as u64)
            .expect("read")
        {
            0 => break,
            count => filled += count,
        }
    }
    all.truncate(filled);
    all
}

/// Changes a file, which it leaves open for writing.
type Changed<'a> = &'a dyn Fn(&Path) -> File;

/// The kernel reads a file of the cache, which is as long as the file was, and is made like the
/// source's whatever changes that; but an append has no place in it.
#[test]
fn readers_by_passthrough_see_what_changes_before_the_end_that_they_opened() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let append = |on: &Path| {
        let file = File::options().append(true).open(on).unwrap();
        (&file).write_all(b"tail").unwrap();
        file
    };
    let truncate = |on: &Path| {
        let file = writable(on);
        file.set_len(1000).unwrap();
        file
    };
    let stretch = |on: &Path| {
        let file = writable(on);
        file.set_len(5000).unwrap();
        file.set_len(SIZE / 2).unwrap();
        file
    };
    let punch = |on: &Path| {
        // Such a descriptor can't read what is there now.
        let file = File::options().write(true).open(on).unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 0, 8192).unwrap();
        file
    };
    let copy = |on: &Path| {
        let file = writable(on);
        let (mut from, mut to) = (MIB, 0);
        let copied =
            rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 8000);
        assert_eq!(copied, Ok(8000));
        file
    };
    let inplace = |on: &Path| {
        let at = on.parent().unwrap();
        fs::write(at.join("other"), version(b'O', SIZE - 3000)).unwrap();
        fs::write(at.join(".copy"), "--inplace other f").unwrap();
        fs::remove_file(at.join("other")).unwrap();
        writable(on)
    };
    let changes: [(&str, Changed<'_>); 6] = [
        ("append", &append),
        ("truncate", &truncate),
        ("truncate and stretch", &stretch),
        ("punch", &punch),
        ("copy_file_range", &copy),
        (".copy --inplace", &inplace),
    ];
    let old = version(b'A', SIZE);
    for (what, change) in changes {
        let (world, mount) = whole();
        let on = mount.path().join("f");
        let reader = open_whole(&mount);
        let mapping = map(&reader);
        let writer = change(&on);
        let now = fs::read(world.behind("f")).unwrap();
        assert!(now != old, "{what}: the source is not changed");
        let shown = now.len().min(old.len());
        same(&seen(&reader), &now[..shown], what);
        same(&mapping[..shown], &now[..shown], what);
        let fresh = File::open(&on).unwrap();
        same(&seen(&fresh), &now, what);
        // What is written afterwards shows to both.
        writer.write_all_at(b"written", 100).unwrap();
        if what != "append" {
            assert_eq!(read_at(&reader, 100, 7), b"written", "{what}");
            assert_eq!(read_at(&fresh, 100, 7), b"written", "{what}");
        }
        let now = fs::read(world.behind("f")).unwrap();
        drop((mapping, reader, fresh, writer));
        same(&keep(&mount, "f"), &now, what);
    }
}

/// Of what is written over the end, they see the part that lies before it.
#[test]
fn readers_by_passthrough_see_up_to_the_end_that_they_opened() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (world, mount) = whole();
    let on = mount.path().join("f");
    let reader = open_whole(&mount);
    writable(&on)
        .write_all_at(&[b'#'; 200], SIZE - 100)
        .unwrap();
    let now = fs::read(world.behind("f")).unwrap();
    assert_eq!(now.len() as u64, SIZE + 100);
    same(&seen(&reader), &now[..SIZE as usize], "the old reader");
    same(&read_file(&on), &now, "a new one");
}
