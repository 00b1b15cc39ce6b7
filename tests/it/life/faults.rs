//! Sources that fail, delay and hang.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use super::PATIENCE;
use crate::abuse::close;
use crate::command::refuses;
use crate::support::{
    FaultySource, Mount, Need, OTHER, On, Scratch, USER, apart, assert_content, become_user, corfs,
    errno_of, is_mounted, reachable_binary, require, run, sbin, wait_until, write_content,
};

const NEEDS: &[Need] = &[Need::Fuse, Need::Root];

/// A source with two files of pseudo-random content, and its mirror.
fn stand(opt: &str) -> (FaultySource, Mount) {
    let source = FaultySource::new();
    write_content(&source.store().join("a"), 1, 3 << 20);
    write_content(&source.store().join("b"), 2, 3 << 20);
    let mount = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .opt(opt)
        .start();
    // The mount is made before the process that serves it has looked at its source.
    fs::metadata(mount.path()).unwrap();
    (source, mount)
}

#[test]
fn the_faulty_source_is_a_file_system_like_another() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("io=mmap");
    for at in [source.path(), mount.path()] {
        assert_content(1, 0, &fs::read(at.join("a")).unwrap());
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/new"), "new").unwrap();
        fs::rename(at.join("d/new"), at.join("renamed")).unwrap();
        assert_eq!(fs::read(at.join("renamed")).unwrap(), b"new");
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b", "d", "renamed"]);
        fs::remove_file(at.join("renamed")).unwrap();
        fs::remove_dir(at.join("d")).unwrap();
    }
}

/// Does something on a thread, and tells how it went whenever that is.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = told.send(work());
    });
    hears
}

/// Reads the whole file aside.
fn reader(path: PathBuf) -> Receiver<io::Result<Vec<u8>>> {
    aside(move || fs::read(path))
}

/// The mirror of a source that is well again does all that a mirror does.
#[track_caller]
fn assert_well(mount: &mut Mount) {
    assert!(mount.alive());
    // A fault that stood for long enough has opened the circuit breaker.
    wait_until("the source is asked again", PATIENCE, || {
        mount.stats().value("corfs_source_offline", &[]) == 0.0
    });
    let at = mount.path();
    assert_content(1, 0, &fs::read(at.join("a")).unwrap());
    fs::write(at.join("well"), "again").unwrap();
    fs::remove_file(at.join("well")).unwrap();
    mount.stats();
}

type Attempt = fn(&Path) -> io::Result<()>;

#[test]
fn an_error_of_the_source_is_the_callers_and_passes() {
    if !require(NEEDS) {
        return;
    }
    let writable = |at: &Path| File::options().write(true).open(at.join("a"));
    let attempts: &[(On, Errno, Attempt)] = &[
        (On::Lookup, Errno::IO, |at| {
            fs::metadata(at.join("fresh")).map(drop)
        }),
        (On::Lookup, Errno::STALE, |at| {
            fs::metadata(at.join("other")).map(drop)
        }),
        (On::Getattr, Errno::IO, |at| {
            fs::metadata(at.join("a")).map(drop)
        }),
        (On::Open, Errno::IO, |at| File::open(at.join("a")).map(drop)),
        (On::Open, Errno::TIMEDOUT, |at| {
            File::open(at.join("a")).map(drop)
        }),
        (On::Open, Errno::ACCESS, |at| {
            File::open(at.join("a")).map(drop)
        }),
        (On::Read, Errno::IO, |at| fs::read(at.join("b")).map(drop)),
        (On::Create, Errno::DQUOT, |at| fs::write(at.join("new"), "")),
        (On::Create, Errno::NOSPC, |at| fs::write(at.join("new"), "")),
        (On::Mkdir, Errno::NOSPC, |at| fs::create_dir(at.join("dir"))),
        (On::Mkdir, Errno::ROFS, |at| fs::create_dir(at.join("dir"))),
        (On::Unlink, Errno::IO, |at| fs::remove_file(at.join("a"))),
        (On::Rename, Errno::NOSPC, |at| {
            fs::rename(at.join("a"), at.join("c"))
        }),
        (On::Readdir, Errno::IO, |at| {
            fs::read_dir(at)?.collect::<Result<Vec<_>, _>>().map(drop)
        }),
        (On::Setattr, Errno::NOSPC, |at| fs::write(at.join("a"), "")),
        (On::Fsync, Errno::IO, |at| {
            File::open(at.join("a"))?.sync_all()
        }),
    ];
    let writes: &[(On, Errno)] = &[
        (On::Write, Errno::NOSPC),
        (On::Write, Errno::DQUOT),
        (On::Write, Errno::IO),
        (On::Flush, Errno::IO),
    ];
    for io in ["io=mmap", "io=pread"] {
        let (source, mut mount) = stand(io);
        for (on, errno, attempt) in attempts {
            source.faults().fail(*on, None, *errno);
            let native = errno_of(format!("{on:?} natively"), attempt(source.path()));
            let got = errno_of(format!("{on:?} with {io}"), attempt(mount.path()));
            assert_eq!((got, native), (*errno, *errno), "{on:?} with {io}");
            source.faults().heal();
            assert_well(&mut mount);
        }
        for (on, errno) in writes {
            let file = writable(mount.path()).unwrap();
            source.faults().fail(*on, None, *errno);
            let written = file.write_at(b"x", 3 << 20);
            // As a program sees it that looks at what close(2) says.
            let closed = written.and_then(|_| close(file));
            assert_eq!(errno_of(format!("{on:?} with {io}"), closed), *errno);
            source.faults().heal();
            File::options()
                .write(true)
                .open(source.store().join("a"))
                .unwrap()
                .set_len(3 << 20)
                .unwrap();
            assert_well(&mut mount);
        }
        assert_eq!(mount.finish().code(), Some(0));
    }
}

#[test]
fn a_hung_read_stalls_those_who_need_it_and_nobody_else() {
    if !require(NEEDS) {
        return;
    }
    for io in ["io=mmap", "io=pread"] {
        let (source, mut mount) = stand(io);
        source.faults().hang(On::Read, Some("a"));
        let stuck = reader(mount.path().join("a"));
        source.faults().await_hanging(On::Read, 1);
        let at = mount.path().to_owned();
        let others = aside(move || {
            assert_content(2, 0, &fs::read(at.join("b")).unwrap());
            assert_eq!(fs::metadata(at.join("a")).unwrap().len(), 3 << 20);
            fs::write(at.join("c"), "c").unwrap();
            fs::write(at.join(".copy"), "b d\n").unwrap();
            assert_content(2, 0, &fs::read(at.join("d")).unwrap());
            fs::read_dir(&at).unwrap().count()
        });
        assert_eq!(others.recv_timeout(PATIENCE), Ok(4), "{io}");
        mount.stats();
        assert!(stuck.try_recv().is_err());
        source.faults().heal();
        assert_content(1, 0, &stuck.recv_timeout(PATIENCE).unwrap().unwrap());
        assert_well(&mut mount);
    }
}

#[test]
fn a_slow_source_is_read_aright() {
    if !require(NEEDS) {
        return;
    }
    let (source, mut mount) = stand("io=mmap");
    for on in [On::Lookup, On::Getattr, On::Open, On::Read, On::Write] {
        source.faults().delay(on, None, Duration::from_millis(20));
    }
    assert_content(2, 0, &fs::read(mount.path().join("b")).unwrap());
    fs::write(mount.path().join("w"), "slow").unwrap();
    source.faults().heal();
    assert_eq!(fs::read(source.store().join("w")).unwrap(), b"slow");
    assert_well(&mut mount);
}

#[test]
fn a_source_that_reads_short_is_read_to_the_end() {
    if !require(NEEDS) {
        return;
    }
    for io in ["io=mmap", "io=pread"] {
        let (source, mut mount) = stand(io);
        source.faults().short_reads(1000);
        let bytes = fs::read(mount.path().join("b")).unwrap();
        assert_content(2, 0, &bytes);
        assert_eq!(bytes.len(), 3 << 20, "{io}");
        source.faults().heal();
        assert_well(&mut mount);
    }
}

#[test]
fn a_copy_from_a_failing_source_leaves_nothing_and_says_why() {
    if !require(NEEDS) {
        return;
    }
    let (source, mut mount) = stand("io=mmap");
    let copy = |line: &str| fs::write(mount.path().join(".copy"), line);
    for (on, name, errno) in [
        (On::Read, Some("b"), Errno::IO),
        (On::Write, None, Errno::NOSPC),
        (On::Write, None, Errno::DQUOT),
        (On::Rename, None, Errno::IO),
        (On::Fsync, None, Errno::IO),
    ] {
        source.faults().fail(on, name, errno);
        let copied = copy("b to\n");
        source.faults().heal();
        if on == On::Fsync && copied.is_ok() {
            // Whether a copy is synced is not this test's affair; that a failure shows is.
            fs::remove_file(mount.path().join("to")).unwrap();
        } else {
            assert_eq!(errno_of(format!("{on:?}"), copied), errno);
        }
        let mut names: Vec<_> = fs::read_dir(source.store())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b"], "{on:?}");
    }
    copy("b to\n").unwrap();
    assert_content(2, 0, &fs::read(source.store().join("to")).unwrap());
    assert_well(&mut mount);
}

#[test]
fn a_source_that_dies_is_an_error_and_a_clean_end() {
    if !require(NEEDS) {
        return;
    }
    let (source, mut mount) = stand("io=mmap");
    let open = File::open(mount.path().join("a")).unwrap();
    source.die();
    for result in [
        open.read_at(&mut [0; 10], 0).map(drop),
        fs::metadata(mount.path().join("b")).map(drop),
        fs::write(mount.path().join("new"), ""),
        fs::read_dir(mount.path()).map(drop),
    ] {
        let errno = errno_of("a dead source", result);
        let right = [Errno::NOTCONN, Errno::CONNABORTED];
        assert!(right.contains(&errno), "{errno}");
    }
    drop(open);
    assert!(mount.alive());
    assert_eq!(mount.finish().code(), Some(0));
}

#[test]
fn sigterm_takes_the_name_of_a_mount_whose_source_hangs() {
    if !require(NEEDS) {
        return;
    }
    let (source, mut mount) = stand("io=mmap");
    source.faults().hang(On::Read, Some("a"));
    let stuck = reader(mount.path().join("a"));
    source.faults().await_hanging(On::Read, 1);
    mount.signal(Signal::TERM);
    wait_until("the name is gone", PATIENCE, || {
        !is_mounted(mount.path(), "fuse.corfs")
    });
    wait_until("the log tells", PATIENCE, || {
        mount.log().contains("unmounted lazily") && mount.log().contains("/abort")
    });
    assert!(mount.alive());
    source.faults().heal();
    assert_content(1, 0, &stuck.recv_timeout(PATIENCE).unwrap().unwrap());
    assert_eq!(mount.wait(PATIENCE).and_then(|s| s.code()), Some(0));
}

#[test]
fn force_frees_those_who_wait_for_a_source_that_hangs() {
    if !require(NEEDS) {
        return;
    }
    let (source, mut mount) = stand("io=mmap,threads=2");
    // Every loop is stuck: nothing of the mount answers any more.
    source.faults().hang(On::Read, None);
    source.faults().hang(On::Getattr, None);
    let stuck: Vec<_> = ["a", "b", "a", "b"]
        .map(|name| reader(mount.path().join(name)))
        .into();
    wait_until("both loops hang", PATIENCE, || {
        source.faults().hanging(On::Read) + source.faults().hanging(On::Getattr) >= 2
    });
    run(corfs().args(["umount", "--force"]).arg(mount.path()));
    assert!(!is_mounted(mount.path(), "fuse.corfs"));
    for reader in stuck {
        let result = reader.recv_timeout(PATIENCE).expect("freed");
        let errno = errno_of("cut off", result);
        let right = [Errno::NOTCONN, Errno::CONNABORTED];
        assert!(right.contains(&errno), "{errno}");
    }
    // It does not wait for the source for ever; where the source is a FUSE file system the
    // kernel does, for each call that it has begun.
    wait_until("the daemon gives up", PATIENCE, || {
        !mount.alive() || mount.log().contains("left undone")
    });
    source.faults().heal();
    assert_eq!(mount.wait(PATIENCE).and_then(|s| s.code()), Some(0));
}

#[test]
fn the_owner_of_a_mount_may_force_it_too() {
    if !require(&[Need::UserFuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let (source, mut mount) = stand_of(USER);
    source.faults().hang(On::Read, None);
    let path = mount.path().join("a");
    let stuck = aside(move || {
        become_user(USER, OTHER, &[]);
        fs::read(path)
    });
    source.faults().await_hanging(On::Read, 1);
    // By the kernel's own switch, where it is mounted; in a namespace, because it may be
    // mounted once only. What the mount is there for others, its daemon takes away.
    let script = r#"
        mountpoint -q /sys/fs/fuse/connections || mount -t fusectl none /sys/fs/fuse/connections
        exec setpriv --reuid "$1" --regid "$2" --clear-groups "$3" umount --force "$4"
    "#;
    let scratch = Scratch::new();
    let mut command = Command::new(sbin("unshare"));
    command
        .args([
            "-m",
            "--propagation",
            "slave",
            "sh",
            "-e",
            "-c",
            script,
            "sh",
        ])
        .args([USER.to_string(), OTHER.to_string()])
        .arg(reachable_binary(&scratch))
        .arg(mount.path());
    run(&mut command);
    let errno = errno_of("cut off", stuck.recv_timeout(PATIENCE).expect("freed"));
    let right = [Errno::NOTCONN, Errno::CONNABORTED];
    assert!(right.contains(&errno), "{errno}");
    source.faults().heal();
    assert!(mount.wait(PATIENCE).is_some());
    assert!(!is_mounted(mount.path(), "fuse.corfs"));
}

#[test]
fn an_owner_who_cannot_force_is_told_how() {
    if !require(&[Need::UserFuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let (_source, mut mount) = stand_of(USER);
    let scratch = Scratch::new();
    let script = r#"
        mount -t tmpfs none /sys/fs/fuse/connections
        exec setpriv --reuid "$1" --regid "$2" --clear-groups \
            sh -c 'exec 3< "$2/a"; exec "$1" umount --force "$2"' sh "$3" "$4"
    "#;
    let mut command = Command::new(sbin("unshare"));
    command
        .args([
            "-m",
            "--propagation",
            "slave",
            "sh",
            "-e",
            "-c",
            script,
            "sh",
        ])
        .args([USER.to_string(), OTHER.to_string()])
        .arg(reachable_binary(&scratch))
        .arg(mount.path());
    refuses(&mut command, 32, &["/abort", "fusectl", "as root"]);
    assert!(mount.alive() && is_mounted(mount.path(), "fuse.corfs"));
}

/// As [`stand`], the mount being an ordinary user's.
fn stand_of(user: u32) -> (FaultySource, Mount) {
    let source = FaultySource::new();
    write_content(&source.store().join("a"), 1, 3 << 20);
    let mount = Mount::of(source.path()).as_user(user, OTHER).start();
    apart(Some((user, OTHER)), || fs::metadata(mount.path()).unwrap());
    (source, mount)
}
