//! What a cache breaks easily: files that change under those who have them open, pages that
//! outlive their version, and readers who fail for want of what the cache took.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SIZE: u64 = 200_000;

fn direct(path: &Path) -> std::os::fd::OwnedFd {
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDONLY;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("open")
}

/// By a request of its own, past the kernel's pages.
#[track_caller]
fn asked(file: &std::os::fd::OwnedFd, offset: u64) -> Vec<u8> {
    let mut room = Buffer::new(65_536);
    let bytes = room.bytes(65_536);
    let count = rustix::io::pread(file, &mut *bytes, offset).expect("read");
    bytes[..count].to_vec()
}

#[test]
fn who_reads_at_the_end_follows_a_file_that_grows() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    let old = version(b'A', SIZE);
    fs::write(world.behind("f"), &old).unwrap();
    let mount = world.mount().opt("passthrough=never").start();
    keep(&mount, "f");
    let on = mount.path().join("f");
    let (reader, past) = (File::open(&on).unwrap(), direct(&on));
    same(&read_at(&reader, 0, SIZE as usize), &old, "before");
    assert_eq!(asked(&past, SIZE), b"");
    writable(&world.behind("f"))
        .write_all_at(b"more", SIZE)
        .unwrap();
    wait_until("a reader past the pages sees it", PATIENCE, || {
        asked(&past, SIZE) == b"more"
    });
    wait_until("a reader by pages sees it", PATIENCE, || {
        let mut more = [0; 8];
        matches!(reader.read_at(&mut more, SIZE), Ok(4)) && &more[..4] == b"more"
    });
}

/// The kernel reads pages of the kept version while its attributes are the new one's already.
#[test]
fn pages_of_a_version_that_was_believed_do_not_outlive_that() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    let (old, new) = (version(b'A', SIZE), version(b'B', SIZE));
    fs::write(world.behind("f"), &old).unwrap();
    let mount = world
        .mount()
        .opt("validate=ttl:8,attr_timeout=0,passthrough=never")
        .start();
    keep(&mount, "f");
    writable(&world.behind("f")).write_all_at(&new, 0).unwrap();
    let changed = std::time::Instant::now();
    wait_until("its times say something", PATIENCE, || {
        changed.elapsed() > Duration::from_millis(3100)
    });
    let on = mount.path().join("f");
    let first = read_file(&on);
    assert!(first == old || first == new, "a mixture");
    wait_until("it is believed no longer", PATIENCE, || {
        read_file(&on) == new
    });
}

#[test]
fn of_a_file_that_is_never_validated_the_size_is_that_of_the_bytes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), version(b'A', SIZE)).unwrap();
    let mount = world
        .mount()
        .opt("validate=never,attr_timeout=0,passthrough=never")
        .start();
    keep(&mount, "f");
    for size in [SIZE + 7, 70_000] {
        let new = version(b'B', size);
        fs::write(world.behind("f"), &new).unwrap();
        same(&read_file(&mount.path().join("f")), &new, "after a change");
        same(&keep(&mount, "f"), &new, "kept");
    }
}

/// A page fault asks for no attributes.
#[test]
fn a_mapping_of_a_watched_file_shows_what_changed() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), version(b'A', SIZE)).unwrap();
    let mount = world
        .mount()
        .opt("coherence=watch,passthrough=never")
        .start();
    keep(&mount, "f");
    let file = File::open(mount.path().join("f")).unwrap();
    // SAFETY: nothing truncates the file while the mapping lives.
    let mapping = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    for letter in *b"ABCB" {
        let now = version(letter, SIZE);
        writable(&world.behind("f")).write_all_at(&now, 0).unwrap();
        wait_until("the mapping shows it", PATIENCE, || mapping[..] == now[..]);
    }
}

/// An entry has three descriptors; a file that could be opened without a cache can be with one.
#[test]
fn a_cache_leaves_descriptors_to_those_who_open() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let world = World::new();
    const FILES: u64 = 100;
    for path in [world.source.path(), world.cache.path()] {
        set_owner(path, USER, USER);
    }
    for number in 0..FILES {
        write_content(&world.behind(&number.to_string()), number, 5000);
        set_owner(&world.behind(&number.to_string()), USER, USER);
    }
    let mount = world.mount().as_user(USER, USER).descriptors(256).start();
    apart(Some((USER, USER)), || {
        let open = |number: u64| {
            let path = mount.path().join(number.to_string());
            File::open(&path).unwrap_or_else(|e| panic!("file {number}: {e}"))
        };
        for _ in 0..2 {
            let files: Vec<File> = (0..FILES).map(open).collect();
            for (number, file) in files.iter().enumerate() {
                assert_content(number as u64, 0, &read_at(file, 0, 5000));
            }
        }
        assert!(opens(&mount, "cached") > 0);
    });
}

/// One open goes to the kernel with the cache's file while another one, for writing, is under way.
#[test]
fn writers_among_readers_by_passthrough_write_to_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), vec![0; 8192]).unwrap();
    let mount = world.mount().start();
    let on = mount.path().join("f");
    keep(&mount, "f");
    let done = AtomicBool::new(false);
    let rounds = soak(3000);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let file = File::open(&on).expect("open to read");
                    let mut bytes = [0; 8192];
                    file.read_exact_at(&mut bytes, 0).expect("read");
                }
            });
        }
        let written = std::panic::catch_unwind(|| {
            for round in 1..=rounds {
                let file = writable(&on);
                file.write_all_at(&round.to_le_bytes(), 4000).unwrap();
                drop(file);
                let behind = fs::read(world.behind("f")).unwrap();
                assert_eq!(behind[4000..4008], round.to_le_bytes(), "round {round}");
                let again = File::open(&on).unwrap();
                assert_eq!(read_at(&again, 4000, 8), round.to_le_bytes());
            }
        });
        done.store(true, Ordering::Relaxed);
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!("opened by passthrough: {}", opens(&mount, "whole"));
}

/// The kernel asks again at once, so that no caller hears of it; the log tells of both.
#[test]
fn an_open_that_is_sent_back_for_another_look_is_told_as_such() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let world = World::new();
    fs::write(world.behind("f"), vec![0; 8192]).unwrap();
    let mount = world.mount().start();
    let on = mount.path().join("f");
    keep(&mount, "f");
    let before = opens(&mount, "whole");
    let _reader = File::open(&on).unwrap();
    assert_eq!(opens(&mount, "whole"), before + 1);
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(mount.path().join(".corfs/oplog"))
        .unwrap();
    drop(writable(&on));
    let mut told = String::new();
    let ends = |told: &str| -> Vec<String> {
        let opens = told.lines().filter(|line| line.contains("\topen\tf\t"));
        let ends = opens.filter_map(|line| line.split('\t').nth(8));
        ends.map(str::to_owned).collect()
    };
    wait_until("both opens are told", PATIENCE, || {
        // EAGAIN where there is no more yet.
        let _ = log.read_to_string(&mut told);
        ends(&told).len() >= 2
    });
    assert_eq!(ends(&told), [&libc::ESTALE.to_string(), "0"]);
}

#[test]
fn a_fuse_source_is_read_in_any_sizes() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let cache = Scratch::new();
    set_mode(cache.path(), 0o700);
    for (name, size) in [("odd", 1_234_567), ("one", 1), ("none", 0)] {
        write_content(&source.store().join(name), size, size);
    }
    let options = format!(
        "cache={},cache_id=test,racy=0,cache_size=1G,cache_free=0,block=64K",
        cache.path().display()
    );
    for _ in 0..2 {
        let mount = Mount::of(source.path()).opt(&options).start();
        for (name, size) in [("odd", 1_234_567), ("one", 1), ("none", 0)] {
            let bytes = read_file(&mount.path().join(name));
            assert_eq!(bytes.len() as u64, size);
            assert_content(size, 0, &bytes);
        }
        assert!(mount.finish().success());
    }
}
