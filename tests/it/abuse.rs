//! What users must not bring about, be they hostile or unlucky.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::children::lock;
use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, require, run, set_mode, set_owner, write_file,
};

/// A read lock on the whole file.
fn read_lock(file: &File) -> Result<(), Errno> {
    lock(file, libc::F_SETLK, "read", (0, 0)).map(drop)
}

/// Sets a limit of a running daemon.
fn limit(mount: &Mount, resource: Resource, most: u64) {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let daemon = Pid::from_raw(i32::try_from(mount.server()).unwrap());
    prlimit(daemon, resource, limit).unwrap();
}

/// Closes, and tells what that said.
pub(crate) fn close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor is ours, and given up here.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn who_may_only_read_a_program_keeps_nobody_from_running_it() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let program = source.path().join("true");
    run(Command::new("cp").arg("/bin/true").arg(&program));
    set_mode(&program, 0o755);
    let mount = Mount::of(source.path()).opt("allow_other").start();
    apart(Some((USER, OTHER)), || {
        let file = File::open(mount.path().join("true")).unwrap();
        read_lock(&file).unwrap();
        run(&mut Command::new(&program));
    });
}

#[test]
fn a_lock_on_a_control_file_locks_nobodys_file() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("f", b"0123456789");
    let mount = Mount::of(source.path()).start();
    // Handles of either kind are numbered from 1 on.
    let _users: Vec<File> = (0..8)
        .map(|_| File::open(mount.path().join("f")).unwrap())
        .collect();
    for _ in 0..8 {
        let control = File::open(mount.path().join(".corfs/stats")).unwrap();
        assert_eq!(read_lock(&control).unwrap_err(), Errno::NOLCK);
    }
    let native = File::options().read(true).write(true).open(path).unwrap();
    let seen = lock(&native, libc::F_GETLK, "write", (0, 0)).unwrap();
    assert_eq!(i32::from(seen.l_type), libc::F_UNLCK);
}

#[test]
fn an_open_file_without_a_name_is_served_under_few_descriptors() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, OTHER);
    for name in ["removed", "renamed"] {
        set_owner(&source.file(name, b"still here"), USER, OTHER);
    }
    let many: Vec<String> = (0..300).map(|n| format!("many{n}")).collect();
    for name in &many {
        source.file(name, b"");
    }
    let mount = Mount::of(source.path())
        .as_user(USER, OTHER)
        .descriptors(256)
        .opt("attr_timeout=0")
        .start();
    let (at, from) = (mount.path(), source.path());
    apart(Some((USER, OTHER)), || {
        let open = |name| {
            let mut options = File::options();
            options.read(true).write(true).open(at.join(name)).unwrap()
        };
        let files = ["removed", "renamed"].map(open);
        fs::remove_file(at.join("removed")).unwrap();
        fs::rename(from.join("renamed"), from.join("elsewhere")).unwrap();
        // The descriptors of what was used longest ago are closed, and used again, and closed.
        for name in many.iter().chain(&many) {
            fs::metadata(at.join(name)).unwrap();
        }
        for file in &files {
            assert_eq!(file.metadata().unwrap().len(), 10);
            file.set_len(5).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .unwrap();
            assert_eq!(file.metadata().unwrap().len(), 5);
        }
    });
}

#[test]
fn closing_goes_well_when_all_descriptors_are_used_up() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    for n in 0..400 {
        source.file(&format!("f{n}"), b"");
    }
    let mount = Mount::of(source.path()).start();
    // Root raised it when it started.
    limit(&mount, Resource::Nofile, 256);
    let mut open = Vec::new();
    for n in 0..400 {
        let file = File::options()
            .write(true)
            .open(mount.path().join(format!("f{n}")));
        match file {
            Ok(file) => open.push(file),
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
                break;
            }
        }
    }
    // The table gives way to open files.
    assert!((150..256).contains(&open.len()), "{}", open.len());
    for file in open {
        close(file).unwrap();
    }
    fs::metadata(mount.path().join("f399")).unwrap();
}

#[test]
fn a_write_beyond_the_daemons_own_limit_is_an_error() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mut mount = Mount::of(source.path()).start();
    limit(&mount, Resource::Fsize, 4096);
    let path = mount.path().join("f");
    let file = File::create(&path).unwrap();
    let error = file.write_at(b"x", 8192).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::FBIG));
    assert!(mount.alive());
    write_file(&path, b"small enough");
}

#[test]
fn any_time_may_be_set() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("f", b"");
    let mount = Mount::of(source.path()).start();
    // A thread, because a daemon that lost the request would keep it for ever.
    let at = mount.path().join("f");
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for tv_sec in [i64::MIN, i64::MIN + 1, -1, i64::MAX] {
            let time = Timespec { tv_sec, tv_nsec: 1 };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, &at, &times, AtFlags::empty()).unwrap();
        }
        let _ = told.send(fs::metadata(&at).unwrap().mtime());
    });
    let shown = hears.recv_timeout(Duration::from_secs(20));
    assert_eq!(shown, Ok(fs::metadata(&path).unwrap().mtime()));
}

/// A read-only view of one directory at another; gone with the test.
struct ReadOnlyBind(PathBuf);

impl ReadOnlyBind {
    fn new(what: &Path, at: PathBuf) -> Self {
        run(Command::new("mount").arg("--bind").arg(what).arg(&at));
        let bind = Self(at);
        run(Command::new("mount")
            .args(["-o", "remount,bind,ro"])
            .arg(&bind.0));
        bind
    }
}

impl Drop for ReadOnlyBind {
    fn drop(&mut self) {
        crate::support::detach(&self.0);
    }
}

#[test]
fn a_read_only_mount_inside_the_source_stays_read_only() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let writable = source.dir("writable");
    write_file(&writable.join("f"), b"writable");
    for n in 0..300 {
        source.file(&format!("many{n}"), b"");
    }
    // Of the same file system: device and number are equal by either way.
    let _bind = ReadOnlyBind::new(&writable, source.dir("view"));
    let mount = Mount::of(source.path()).opt("attr_timeout=0").start();
    limit(&mount, Resource::Nofile, 128);
    let try_write = |folder| {
        let mut options = File::options();
        let opened = options
            .write(true)
            .open(mount.path().join(folder).join("f"));
        opened.map_err(|error| Errno::from_io_error(&error))
    };
    for _ in 0..2 {
        try_write("writable").unwrap();
        assert_eq!(try_write("view").unwrap_err(), Some(Errno::ROFS));
        assert_eq!(fs::read(mount.path().join("view/f")).unwrap(), b"writable");
        // Their descriptors are closed, and the inodes found again.
        for n in (0..300).chain(0..300) {
            fs::metadata(mount.path().join(format!("many{n}"))).unwrap();
        }
    }
}

#[test]
fn root_without_capabilities_is_nobody_special() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("theirs", b"secret");
    set_owner(&path, USER, OTHER);
    set_mode(&path, 0o600);
    let mount = Mount::of(source.path()).start();
    let script = "! cat theirs && ! chown 0 theirs && ! chmod 644 theirs && cat mine";
    source.file("mine", b"my own");
    let mut confined = Command::new("setpriv");
    confined
        .args(["--bounding-set=-all", "--inh-caps=-all", "sh", "-c", script])
        .current_dir(mount.path());
    assert_eq!(run(&mut confined), "my own");
    assert_eq!(fs::metadata(&path).unwrap().uid(), USER);
}
