//! `writeback=on`: the kernel keeps what is written. Nothing of it may be lost, misplaced or kept
//! from who asks for it on the mount, and its errors must come to who wrote.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::support::{
    Loop, Mount, MountBuilder, Need, OTHER, Scratch, Tmpfs, USER, apart, assert_content, content,
    errno_of, is_root, read_file, require, run, set_mode, set_owner, sh,
};

const SIZE: usize = 3_000_001;

fn kept(source: &Path) -> MountBuilder {
    Mount::of(source).opt("writeback=on")
}

fn world() -> Option<(Scratch, Mount)> {
    require(&[Need::Fuse]).then(|| {
        let source = Scratch::new();
        let mount = kept(source.path()).start();
        (source, mount)
    })
}

/// Writes of odd lengths, none of which is a page.
fn write_in_pieces(file: &File, from: u64, to: usize) {
    let mut at = from as usize;
    while at < to {
        let length = (to - at).min(1 + at % 7000);
        let bytes = content(1, at as u64, length);
        file.write_all_at(&bytes, at as u64).expect("write");
        at += length;
    }
}

/// close(2) with its answer.
fn close(file: File) -> Result<(), Errno> {
    // SAFETY: the descriptor was owned, and is given up here.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")),
    }
}

#[test]
fn what_is_written_is_read_at_once_and_in_the_source_after_close_or_fsync() {
    let Some((source, mount)) = world() else {
        return;
    };
    let (inside, outside) = (mount.path().join("f"), source.path().join("f"));
    let file = File::create(&inside).unwrap();
    write_in_pieces(&file, 0, SIZE);
    assert_content(1, 0, &read_file(&inside));
    assert_eq!(fs::metadata(&inside).unwrap().len(), SIZE as u64);
    file.sync_all().unwrap();
    assert_content(1, 0, &read_file(&outside));
    assert_eq!(fs::metadata(&outside).unwrap().len(), SIZE as u64);
    write_in_pieces(&file, SIZE as u64, SIZE + 100_000);
    close(file).unwrap();
    assert_eq!(fs::metadata(&outside).unwrap().len(), SIZE as u64 + 100_000);
    assert_content(1, 0, &read_file(&outside));
    let config = String::from_utf8(read_file(&mount.path().join(".corfs/config"))).unwrap();
    assert!(config.contains("\nwriteback=on\n"), "{config}");
}

/// It is what the option is for.
#[test]
fn small_writes_are_sent_together() {
    let Some((_source, mount)) = world() else {
        return;
    };
    let mut file = File::create(mount.path().join("f")).unwrap();
    let writes = |mount: &Mount| {
        let stats = mount.stats();
        stats.sum("corfs_operations_total", &[("op", "write")])
    };
    let before = writes(&mount);
    for number in 0..10_000u32 {
        file.write_all(&number.to_ne_bytes()).unwrap();
    }
    close(file).unwrap();
    let sent = writes(&mount) - before;
    assert!((1.0..100.0).contains(&sent), "{sent} writes");
}

#[test]
fn times_on_both_sides_are_the_same_after_close() {
    let Some((source, mount)) = world() else {
        return;
    };
    let (inside, outside) = (mount.path().join("f"), source.path().join("f"));
    let mtime = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    let file = File::create(&inside).unwrap();
    write_in_pieces(&file, 0, 10_000);
    let written = mtime(&inside);
    std::thread::sleep(Duration::from_millis(20));
    file.sync_all().unwrap();
    assert_eq!(mtime(&inside), written);
    assert_eq!(mtime(&outside), written);
    file.set_len(5).unwrap();
    let cut = mtime(&inside);
    assert!(cut > written);
    close(file).unwrap();
    assert_eq!((mtime(&inside), mtime(&outside)), (cut, cut));
    let file = File::options().write(true).open(&inside).unwrap();
    write_in_pieces(&file, 0, 10);
    let set = std::time::UNIX_EPOCH + Duration::new(1_000_000, 7);
    file.set_modified(set).unwrap();
    close(file).unwrap();
    assert_eq!(mtime(&outside), (1_000_000, 7));
    assert_eq!(mtime(&inside), (1_000_000, 7));
}

/// As `echo x >> f` does it, to a file that was there and is old.
fn append(path: &Path, length: usize) {
    let mut end = File::options().append(true).open(path).unwrap();
    end.write_all(&vec![7; length]).unwrap();
    close(end).unwrap();
}

fn age(path: &Path) {
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000, 7);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(old).unwrap();
}

#[test]
fn an_appended_file_has_the_time_of_the_append_on_both_sides() {
    let Some((source, mount)) = world() else {
        return;
    };
    let (inside, outside) = (mount.path().join("f"), source.file("f", b"old"));
    let mtime = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    for length in [1, 4096, 10_000] {
        age(&inside);
        let before = std::time::SystemTime::now() - Duration::from_secs(1);
        append(&inside, length);
        assert!(mtime(&outside) > before, "{length}: {:?}", mtime(&outside));
        assert_eq!(mtime(&inside), mtime(&outside), "{length}");
    }
    assert_eq!(read_file(&outside).len(), 3 + 1 + 4096 + 10_000);
}

/// Such a file is written past the kernel's pages, and the kernel keeps its own time of it.
#[test]
fn what_may_only_be_appended_to_has_the_time_of_the_append_in_the_source() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4"), Need::Tool("chattr")]) {
        return;
    }
    let source = Loop::new("ext4", 64 << 20);
    let path = source.path().join("f");
    fs::write(&path, "old").unwrap();
    age(&path);
    run(Command::new("chattr").arg("+a").arg(&path));
    let mount = kept(source.path()).start();
    let inside = mount.path().join("f");
    let before = std::time::SystemTime::now() - Duration::from_secs(1);
    let end = || File::options().append(true).open(&inside).unwrap();
    let mtime = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let mut held = end();
    held.write_all(b"1").unwrap();
    held.sync_all().unwrap();
    assert!(mtime(&path) > before, "synced: {:?}", mtime(&path));
    append(&inside, 1);
    close(held).unwrap();
    assert!(mtime(&path) > before, "closed: {:?}", mtime(&path));
    run(Command::new("chattr").arg("-a").arg(&path));
    // Once the kernel has forgotten it.
    let mount = mount.remount();
    assert_eq!(mtime(&mount.path().join("f")), mtime(&path));
}

/// The same of one that its owner may write and not read.
#[test]
fn what_may_only_be_written_has_the_time_of_the_write_in_the_source() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, OTHER);
    let path = source.file("f", b"old");
    set_owner(&path, USER, OTHER);
    set_mode(&path, 0o200);
    age(&path);
    let before = std::time::SystemTime::now() - Duration::from_secs(1);
    let mount = kept(source.path()).as_user(USER, OTHER).start();
    apart(Some((USER, OTHER)), || append(&mount.path().join("f"), 1));
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(written > before, "{written:?}");
}

/// Whose writes are kept may be nobody who could set the file's times.
#[test]
fn an_ordinary_users_daemon_writes_what_is_anothers() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_mode(source.path(), 0o777);
    let path = source.file("f", &content(1, 0, 100));
    set_mode(&path, 0o666);
    let mount = kept(source.path()).as_user(USER, OTHER).start();
    let inside = mount.path().join("f");
    apart(Some((USER, OTHER)), || {
        let file = File::options().write(true).open(&inside).unwrap();
        write_in_pieces(&file, 100, 5000);
        file.sync_all().unwrap();
        close(file).unwrap();
        // Now, and not at a time of one's own choice.
        rustix::fs::utimensat(
            rustix::fs::CWD,
            &inside,
            &rustix::fs::Timestamps {
                last_access: now(),
                last_modification: now(),
            },
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        let file = File::options().write(true).open(&inside).unwrap();
        file.set_len(4000).unwrap();
        close(file).unwrap();
    });
    assert_eq!(read_file(&path), content(1, 0, 4000));
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
}

fn now() -> rustix::fs::Timespec {
    rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    }
}

/// A part of a page is written: the kernel has to read the rest by a handle that can't.
#[test]
fn who_may_only_write_writes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("f", &content(1, 0, 10_000));
    set_mode(&path, 0o200);
    let mut mount = kept(source.path());
    if is_root() {
        set_mode(source.path(), 0o777);
        set_owner(&path, USER, OTHER);
        mount = mount.opt("allow_other");
    }
    let mount = mount.start();
    let inside = mount.path().join("f");
    let ids = is_root().then_some((USER, OTHER));
    apart(ids, || overwrite_and_append(&inside));
    set_mode(&path, 0o644);
    assert_content(1, 0, &read_file(&path));
    assert_eq!(fs::metadata(&path).unwrap().len(), 20_000);
    drop(mount);
    if !is_root() || !require(&[Need::UserFuse]) {
        return;
    }
    let path = source.file("g", &content(1, 0, 10_000));
    set_mode(&path, 0o200);
    set_owner(&path, USER, OTHER);
    let mount = kept(source.path()).as_user(USER, OTHER).start();
    apart(Some((USER, OTHER)), || {
        overwrite_and_append(&mount.path().join("g"))
    });
    assert_content(1, 0, &read_file(&path));
    assert_eq!(fs::metadata(&path).unwrap().len(), 20_000);
}

fn overwrite_and_append(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    write_in_pieces(&file, 5001, 7003);
    let mut end = File::options().append(true).open(path).unwrap();
    for at in (10_000u64..20_000).step_by(100) {
        end.write_all(&content(1, at, 100)).unwrap();
    }
    close(file).unwrap();
    close(end).unwrap();
}

/// The kernel knows where the end is; the source does not yet.
#[test]
fn appended_records_are_neither_lost_nor_torn() {
    let Some((source, mount)) = world() else {
        return;
    };
    let inside = mount.path().join("f");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let inside = &inside;
            scope.spawn(move || {
                let direct = if writer == 3 { libc::O_DIRECT } else { 0 };
                let mut file = File::options()
                    .append(true)
                    .create(true)
                    .custom_flags(direct)
                    .open(inside)
                    .unwrap();
                for _ in 0..300 {
                    file.write_all(&[b'a' + writer; 1000]).unwrap();
                }
            });
        }
    });
    let bytes = read_file(&source.path().join("f"));
    assert_eq!(bytes.len(), 4 * 300 * 1000);
    let mut counts = [0; 4];
    for record in bytes.chunks(1000) {
        assert!(
            record.iter().all(|byte| *byte == record[0]),
            "a torn record"
        );
        counts[usize::from(record[0] - b'a')] += 1;
    }
    assert_eq!(counts, [300; 4]);
}

/// What may only be appended to takes no pages: they have places of their own.
#[test]
fn what_may_only_be_appended_to_is() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4"), Need::Tool("chattr")]) {
        return;
    }
    let source = Loop::new("ext4", 64 << 20);
    let path = source.path().join("f");
    fs::write(&path, content(1, 0, 777)).unwrap();
    run(Command::new("chattr").arg("+a").arg(&path));
    let mount = kept(source.path()).start();
    let mut file = File::options()
        .append(true)
        .open(mount.path().join("f"))
        .unwrap();
    for at in (777u64..20_000).step_by(1000) {
        file.write_all(&content(1, at, 1000)).unwrap();
    }
    close(file).unwrap();
    run(Command::new("chattr").arg("-a").arg(&path));
    let bytes = read_file(&path);
    assert_eq!(bytes.len(), 20_777);
    assert_content(1, 0, &bytes);
}

#[test]
fn a_full_disk_is_told_at_fsync_or_close() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Tmpfs::new(2 << 20);
    let mount = kept(source.path()).start();
    let fill = |name: &str| {
        let file = File::create(mount.path().join(name)).unwrap();
        // Some of the writes may be told already.
        for at in 0..64u64 {
            let _ = file.write_all_at(&[7; 64 << 10], at << 16);
        }
        file
    };
    let file = fill("synced");
    assert_eq!(errno_of("fsync", file.sync_all()), Errno::NOSPC);
    let _ = close(file);
    fs::remove_file(mount.path().join("synced")).unwrap();
    assert_eq!(close(fill("closed")), Err(Errno::NOSPC));
    // It was told, and there is nothing left of it. The kernel waits for nobody to let go of what was
    // closed or removed.
    fs::remove_file(mount.path().join("closed")).unwrap();
    crate::support::wait_until("the space is free again", Duration::from_secs(10), || {
        let found = rustix::fs::statvfs(source.path()).unwrap();
        found.f_bfree * 2 > found.f_blocks
    });
    let file = File::create(mount.path().join("small")).unwrap();
    write_in_pieces(&file, 0, 1000);
    close(file).unwrap();
    assert_content(1, 0, &read_file(&source.path().join("small")));
}

#[test]
fn a_copy_has_what_the_kernel_still_keeps() {
    let Some((source, mount)) = world() else {
        return;
    };
    let files = ["f", "g"].map(|name| File::create(mount.path().join(name)).unwrap());
    for file in &files {
        write_in_pieces(file, 0, 200_000);
    }
    fs::create_dir(mount.path().join("d")).unwrap();
    run(&mut sh(
        mount.path(),
        "echo 'f copy' > .copy; echo '-r f g d' > .copy",
    ));
    for name in ["copy", "d/f", "d/g"] {
        let bytes = read_file(&source.path().join(name));
        assert_eq!(bytes.len(), 200_000, "{name}");
        assert_content(1, 0, &bytes);
    }
    // In the place of a file that is written meanwhile, whose pages go elsewhere.
    write_in_pieces(&files[1], 200_000, 300_000);
    run(&mut sh(mount.path(), "echo 'f g' > .copy"));
    files[1].sync_all().unwrap();
    for root in [mount.path(), source.path()] {
        assert_eq!(read_file(&root.join("g")), content(1, 0, 200_000));
    }
}

/// The kernel would go on believing its own size of the file.
#[test]
fn a_copy_into_a_file_that_stands_is_refused() {
    let Some((source, mount)) = world() else {
        return;
    };
    source.file("a", b"longer than b");
    source.file("b", b"b");
    let told = fs::write(mount.path().join(".copy"), "--inplace a b\n");
    assert_eq!(errno_of("copy", told), Errno::OPNOTSUPP);
    let jobs = String::from_utf8(read_file(&mount.path().join(".copy"))).unwrap();
    assert!(jobs.contains("writeback=on"), "{jobs}");
    assert_eq!(read_file(&source.path().join("b")), b"b");
}

/// What has not come to the source is a hole there, and no hole.
#[test]
fn what_is_kept_is_no_hole() {
    let Some((_source, mount)) = world() else {
        return;
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.path().join("f"))
        .unwrap();
    file.write_all_at(&content(1, 1 << 20, 10_000), 1 << 20)
        .unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), (1 << 20) + 10_000);
    for (options, name) in [("--sparse=always", "always"), ("--sparse=auto", "auto")] {
        run(&mut sh(
            mount.path(),
            &format!("cp {options} --reflink=auto f {name}"),
        ));
        let bytes = read_file(&mount.path().join(name));
        assert_eq!(bytes.len(), (1 << 20) + 10_000);
        assert_content(1, 1 << 20, &bytes[1 << 20..]);
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0));
    }
}

/// GNU tar takes a file without blocks for one hole.
#[test]
fn a_file_has_blocks_before_the_source_has() {
    let Some((source, mount)) = world() else {
        return;
    };
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    let inside = mount.path().join("f");
    let file = File::create(&inside).unwrap();
    write_in_pieces(&file, 0, 100_000);
    assert!(blocks(&inside) > 0);
    run(&mut sh(mount.path(), "tar -cSf kept.tar f"));
    file.sync_all().unwrap();
    assert!(
        (196..=512).contains(&blocks(&inside)),
        "{}",
        blocks(&inside)
    );
    write_in_pieces(&file, 100_000, 1_000_000);
    close(file).unwrap();
    assert!(blocks(&inside) >= 1954, "{}", blocks(&inside));
    assert_eq!(blocks(&inside), blocks(&source.path().join("f")));
    run(&mut sh(
        source.path(),
        "mkdir out && tar -C out -xf kept.tar",
    ));
    let bytes = read_file(&source.path().join("out/f"));
    assert_eq!(bytes.len(), 100_000);
    assert_content(1, 0, &bytes);
}

/// From before what is kept, and to before it.
#[test]
fn ranges_are_copied_beside_what_is_kept() {
    let Some((source, mount)) = world() else {
        return;
    };
    let open = |name: &str| {
        let path = mount.path().join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        options.open(path).unwrap()
    };
    let (from, to) = (open("from"), open("to"));
    from.write_all_at(&content(1, 1 << 20, 10_000), 1 << 20)
        .unwrap();
    to.write_all_at(&content(1, 2 << 20, 10_000), 2 << 20)
        .unwrap();
    let (mut at, mut into) = (0, 5000);
    let count = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 4096).unwrap();
    assert_eq!(count, 4096);
    let (mut at, mut into) = (1 << 20, 1 << 20);
    let count = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 10_000).unwrap();
    assert_eq!(count, 10_000);
    close(to).unwrap();
    for root in [mount.path(), source.path()] {
        let bytes = read_file(&root.join("to"));
        assert_eq!(bytes.len(), (2 << 20) + 10_000);
        assert_content(1, 1 << 20, &bytes[1 << 20..][..10_000]);
        assert_content(1, 2 << 20, &bytes[2 << 20..]);
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_was_synced_or_closed_outlives_a_killed_daemon() {
    let Some((source, mut mount)) = world() else {
        return;
    };
    let open = |name: &str| File::create(mount.path().join(name)).unwrap();
    let (synced, closed, kept) = (open("synced"), open("closed"), open("kept"));
    for file in [&synced, &closed, &kept] {
        write_in_pieces(file, 0, 50_000);
    }
    synced.sync_data().unwrap();
    close(closed).unwrap();
    // What comes after a sync may be lost, and takes nothing along.
    write_in_pieces(&synced, 50_000, 60_000);
    mount.signal_server(Signal::KILL);
    let ended = mount.wait(Duration::from_secs(30));
    assert!(ended.is_some(), "the guardian goes with its server");
    for name in ["synced", "closed"] {
        let bytes = read_file(&source.path().join(name));
        assert_eq!(bytes[..50_000], content(1, 0, 50_000), "{name}");
    }
    // Who still has it open is told.
    assert!(kept.sync_all().is_err());
    assert!(kept.as_raw_fd() >= 0);
}

/// The kernel's own sizes and times of a file hold as long as it knows it.
#[test]
fn a_file_replaced_behind_the_mount_shows_and_one_changed_in_place_need_not() {
    let Some((source, mount)) = world() else {
        return;
    };
    let (inside, outside) = (mount.path().join("f"), source.path().join("f"));
    fs::write(&inside, b"first").unwrap();
    source.file("new", b"second, and longer");
    fs::rename(source.path().join("new"), &outside).unwrap();
    crate::support::wait_until("the new file shows", Duration::from_secs(20), || {
        read_file(&inside) == b"second, and longer"
    });
    // Once the kernel has forgotten it, it is asked for anew.
    fs::write(&outside, b"3").unwrap();
    let mount = mount.remount();
    assert_eq!(read_file(&mount.path().join("f")), b"3");
}
