//! `sandbox=auto`: what the serving process has given up, what it still does, and the two
//! processes' life with each other. What the sandbox itself refuses, the tests of
//! `sys::sandbox` try from within.

mod found_again;
mod processes;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, as_user, children_of, errno_of, output, read_file,
    require, run, set_mode, set_owner, write_file,
};

/// The capabilities that README's table says stay: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER,
/// FSETID, SETGID, SETUID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_NICE, MKNOD, SETFCAP (linux/capability.h).
const KEPT: u64 = 1 << 0
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 6
    | 1 << 7
    | 1 << 9
    | 1 << 21
    | 1 << 23
    | 1 << 27
    | 1 << 31;

/// `/proc/PID/status` of every thread of a process, by the thread.
fn threads(pid: u32) -> BTreeMap<String, BTreeMap<String, String>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(folder).expect("a living process");
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let text = fs::read_to_string(entry.path().join("status")).ok()?;
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            let fields = lines.map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                fields.collect(),
            ))
        })
        .collect()
}

/// Makes every kind of thread of the server: event loops, copies, those beside them.
fn work(mount: &Mount) {
    let at = mount.path();
    for n in 0..8 {
        write_file(&at.join(format!("w{n}")), b"some bytes");
        read_file(&at.join(format!("w{n}")));
        File::open(at.join(format!("w{n}")))
            .and_then(|file| file.sync_all())
            .expect("fsync");
    }
    fs::write(at.join(".copy"), "w1 copied\n").expect("copy");
    assert_eq!(read_file(&at.join("copied")), b"some bytes");
}

/// Panics unless every thread of the server is shut in, with at most these capabilities.
#[track_caller]
fn assert_shut_in(mount: &Mount, most: u64) {
    let threads = threads(mount.server());
    assert!(threads.len() > 4, "{} threads", threads.len());
    for (thread, status) in threads {
        let name = &status["Name"];
        assert_eq!(status["NoNewPrivs"], "1", "{thread} {name}");
        assert_eq!(status["Seccomp"], "2", "{thread} {name}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let held = u64::from_str_radix(&status[set], 16).expect("hexadecimal");
            assert_eq!(held & !most, 0, "{thread} {name} {set} {held:x}");
        }
    }
}

fn config(mount: &Mount) -> String {
    String::from_utf8(read_file(&mount.path().join(".corfs/config"))).expect("text")
}

#[test]
fn every_thread_of_the_server_is_shut_in() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    work(&mount);
    assert_shut_in(&mount, KEPT);
    for status in threads(mount.server()).values() {
        let bound = u64::from_str_radix(&status["CapBnd"], 16).expect("hexadecimal");
        assert_eq!(bound & !KEPT, 0, "{bound:x}");
    }
    let config = config(&mount);
    assert!(config.contains("\nsandbox=auto\n"), "{config}");
    let all = "\nsandbox_in_force=no_new_privs capabilities landlock seccomp\n";
    assert!(config.contains(all), "{config}");
    let server = format!("\nserver_pid={}\n", mount.server());
    assert!(config.contains(&server), "{config}");
    assert!(!mount.log().contains("not in force"), "{}", mount.log());
}

#[test]
fn an_ordinary_users_server_is_shut_in_too_and_its_mount_taken_away() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_owner(source.path(), USER, OTHER);
    let mount = Mount::of(source.path()).as_user(USER, OTHER).start();
    apart(Some((USER, OTHER)), || {
        work(&mount);
        assert!(config(&mount).contains("_privs capabilities landlock seccomp\n"));
    });
    assert_shut_in(&mount, 0);
    let point = mount.path().to_path_buf();
    assert!(mount.finish().success());
    assert!(!crate::support::is_mounted(&point, "fuse.corfs"));
}

#[test]
fn without_the_sandbox_one_process_does_it_all() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("sandbox=off").start();
    work(&mount);
    assert_eq!(children_of(mount.guardian()), Vec::<u32>::new());
    for status in threads(mount.guardian()).values() {
        assert_eq!(status["NoNewPrivs"], "0");
        assert_eq!(status["Seccomp"], "0");
    }
    let config = config(&mount);
    assert!(
        config.contains("\nsandbox=off\nsandbox_in_force=none\n"),
        "{config}"
    );
    assert!(mount.finish().success());
}

/// Whether a file that was moved out of the source behind the mount, after the mount had named it,
/// can be opened by that name while the kernel still trusts it.
fn opens_what_has_left(options: &str) -> Result<(), Errno> {
    let (source, elsewhere) = (Scratch::new(), Scratch::new());
    let file = source.file("f", b"content");
    let mount = Mount::of(source.path()).opt(options).start();
    fs::metadata(mount.path().join("f")).expect("stat");
    fs::rename(&file, elsewhere.path().join("f")).expect("moved");
    match File::open(mount.path().join("f")) {
        Ok(_) => Ok(()),
        Err(error) => Err(errno_of("open", Err::<(), _>(error))),
    }
}

#[test]
fn the_server_opens_nothing_outside_the_source() {
    if !require(&[Need::Fuse]) {
        return;
    }
    // Its descriptor of the file would let it, as the second mount shows.
    let options = "entry_timeout=3600,attr_timeout=3600,sandbox=";
    let inside = opens_what_has_left(&format!("{options}auto"));
    assert_eq!(inside, Err(Errno::NOENT));
    assert_eq!(opens_what_has_left(&format!("{options}off")), Ok(()));
}

/// Each needs one of the capabilities that stay.
#[test]
fn what_root_may_on_the_source_root_may_on_the_mount() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("setcap")]) {
        return;
    }
    let source = Scratch::new();
    let theirs = source.file("theirs", b"secret");
    set_owner(&theirs, USER, OTHER);
    set_mode(&theirs, 0o600);
    let mount = Mount::of(source.path()).opt("allow_other,dev").start();
    let at = |name: &str| mount.path().join(name);
    assert_eq!(read_file(&at("theirs")), b"secret", "DAC_OVERRIDE");
    rustix::fs::chmod(at("theirs"), Mode::from_raw_mode(0o2640)).expect("FOWNER");
    let mode = fs::metadata(&theirs).expect("stat").mode() & 0o7777;
    assert_eq!(mode, 0o2640, "FSETID");
    set_owner(&at("theirs"), OTHER, USER);
    for name in ["trusted.t", "security.s", "user.u"] {
        rustix::fs::setxattr(at("theirs"), name, b"v", XattrFlags::empty())
            .unwrap_or_else(|errno| panic!("{name}: {errno}"));
    }
    run(Command::new(crate::support::sbin("setcap"))
        .arg("cap_chown+ep")
        .arg(at("theirs")));
    let null = rustix::fs::makedev(1, 3);
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        null,
    );
    made.expect("MKNOD");
    fs::write(at(".copy"), "theirs mine\n").expect("a copy by root");
    let open = source.dir("open");
    set_mode(&open, 0o777);
    apart(Some((USER, OTHER)), || {
        write_file(&at("open/new"), b"x");
    });
    let new = fs::metadata(open.join("new")).expect("stat");
    assert_eq!((new.uid(), new.gid()), (USER, OTHER), "SETUID, SETGID");
}

#[test]
fn a_namespace_of_ones_own_lends_no_capabilities_to_a_copy() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let source = Scratch::new();
    set_mode(&source.file("secret", b"secret"), 0o600);
    set_mode(&source.dir("open"), 0o777);
    let mount = Mount::of(source.path()).opt("allow_other").start();
    let script = "grep CapEff /proc/self/status; echo ../secret stolen | dd of=.copy conv=notrunc";
    let mut command = Command::new(crate::support::sbin("unshare"));
    command.args(["--user", "--map-root-user", "sh", "-c", script]);
    command.current_dir(mount.path().join("open"));
    let said = output(as_user(&mut command, USER, OTHER));
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(
        !said.status.success() && words.contains("Permission denied"),
        "{said:?}"
    );
    let all = String::from_utf8_lossy(&said.stdout);
    assert!(!all.contains("CapEff:\t0000000000000000"), "{all}");
    assert!(!source.path().join("open/stolen").exists());
}

#[test]
fn the_guardian_holds_neither_source_nor_device() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let held = |pid: u32| -> Vec<_> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
        entries
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect()
    };
    let device = Path::new("/dev/fuse");
    let server = held(mount.server());
    assert!(server.iter().any(|path| path == device), "{server:?}");
    crate::support::wait_until("both have parted", processes::SOON, || {
        let guardian = held(mount.guardian());
        let theirs = |path: &Path| path == device || path.starts_with(source.path());
        !guardian.iter().any(|path| theirs(path))
    });
    for socket in held(mount.guardian()) {
        assert!(!socket.starts_with(mount.path()));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(mount.path(), flags, Mode::empty()).expect("still mounted");
}
