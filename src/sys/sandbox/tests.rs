//! A child of this process enters the sandbox and tries; what it found comes back as text.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

use super::*;
use crate::sys::{Errno, sched, umask};

/// What the child found, each under its name.
type Findings = BTreeMap<String, String>;

/// Forks, lets the child do `work`, and returns what it found.
fn in_a_child(work: impl FnOnce(&mut Findings)) -> Findings {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    // SAFETY: the child has one thread and ends by _exit. Others of this process may have held
    // locks of this program's; the C library's own are made whole by its fork, and the work prints
    // nothing and takes no lock that another test takes.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let mut findings = Findings::new();
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut findings)));
        let text: String = findings
            .iter()
            .map(|(k, v)| format!("{k}\t{v}\n"))
            .collect();
        let written = File::from(write).write_all(text.as_bytes()).is_ok();
        // SAFETY: ends this process, and runs nothing of it any more.
        unsafe { libc::_exit(i32::from(whole.is_err() || !written)) }
    }
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    let end = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
    let (_, status) = end.unwrap().unwrap();
    assert_eq!(
        status.exit_status(),
        Some(0),
        "the child's end, after: {text}"
    );
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Enters the sandbox with `folder` as the source.
fn enter_with(folder: &Path) -> InForce {
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
    let allow = |path: &Path, access| Allowed {
        beneath: open(path),
        access,
    };
    enter(vec![
        allow(folder, Access::Mirror),
        allow(Path::new("/proc"), Access::Read),
    ])
    .unwrap()
}

/// `ok`, or the errno by its number.
fn word<T, E: Into<std::io::Error>>(done: std::result::Result<T, E>) -> String {
    match done.map_err(Into::into) {
        Ok(_) => "ok".into(),
        Err(error) => error.raw_os_error().unwrap_or(0).to_string(),
    }
}

fn number(errno: Errno) -> String {
    errno.raw_os_error().to_string()
}

/// A call by its number, which no wrapper stands before.
fn call(number: libc::c_long, one: libc::c_long) -> String {
    // SAFETY: each call here is refused, or harmless, for a null or zero in its other arguments.
    let done = unsafe { libc::syscall(number, one, 0, 0, 0, 0, 0) };
    word(if done < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    })
}

fn status_of(thread: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn every_layer_is_in_force_and_holds_later_threads_too() {
    let folder = tempfile::tempdir().unwrap();
    let before = capabilities(None).unwrap();
    let findings = in_a_child(|findings| {
        findings.insert("in force".into(), enter_with(folder.path()).to_string());
        let of_thread = std::thread::spawn(|| status_of("thread-self"));
        for (who, status) in [
            ("process", status_of("self")),
            ("thread", of_thread.join().unwrap()),
        ] {
            for (key, value) in status {
                findings.insert(format!("{who} {key}"), value);
            }
        }
        let etc = std::thread::spawn(|| word(File::open("/etc/passwd")));
        findings.insert("thread open".into(), etc.join().unwrap());
    });
    assert_eq!(
        findings["in force"],
        "no_new_privs capabilities landlock seccomp"
    );
    let kept = format!("{:016x}", (before.permitted & KEPT_CAPABILITIES).bits());
    for who in ["process", "thread"] {
        let of = |key: &str| findings[&format!("{who} {key}")].as_str();
        assert_eq!(of("NoNewPrivs"), "1", "{who}");
        assert_eq!(of("Seccomp"), "2", "{who}");
        assert_eq!((of("CapEff"), of("CapPrm")), (&*kept, &*kept), "{who}");
        for none in ["CapInh", "CapAmb"] {
            assert_eq!(of(none), "0000000000000000", "{who} {none}");
        }
        if before.effective.contains(CapabilitySet::SETPCAP) {
            let bound = u64::from_str_radix(of("CapBnd"), 16).unwrap();
            assert_eq!(bound & !KEPT_CAPABILITIES.bits(), 0, "{who} {bound:x}");
        }
    }
    assert_eq!(findings["thread open"], number(Errno::ACCESS));
}

/// What a mirror does with a source, tried in `folder`.
fn as_a_mirror(findings: &mut Findings, folder: &Path) {
    let mut tried = |name: &str, word: String| findings.insert(format!("in {name}"), word);
    let (a, b) = (folder.join("a"), folder.join("b"));
    tried("mkdir", word(fs::create_dir(&a).and(fs::create_dir(&b))));
    tried("write", word(fs::write(a.join("file"), "1234")));
    tried("read", word(fs::read(a.join("file"))));
    tried("list", word(fs::read_dir(&a)));
    tried("rename", word(fs::rename(a.join("file"), b.join("file"))));
    tried("link", word(fs::hard_link(b.join("file"), a.join("link"))));
    tried(
        "symlink",
        word(std::os::unix::fs::symlink("x", a.join("symlink"))),
    );
    let fifo = rustix::fs::mknodat(
        CWD,
        b.join("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    );
    tried("mkfifo", word(fifo));
    let named = rustix::fs::open(a.join("link"), OFlags::PATH, Mode::empty()).unwrap();
    let path = crate::sys::procfd::path(std::os::fd::AsFd::as_fd(&named));
    tried("reopen", word(File::options().write(true).open(&path)));
    let truncate = File::options().write(true).truncate(true).open(&path);
    tried("truncate", word(truncate));
    tried("chmod", word(rustix::fs::chmod(&*path, Mode::RWXU)));
    tried("remove", word(fs::remove_file(b.join("file"))));
    let thread = std::thread::spawn(|| umask::set(0o27).is_ok());
    let own_umask = thread.join().unwrap();
    findings.insert("in umask of a thread".into(), own_umask.to_string());
}

#[test]
fn a_mirror_does_all_that_it_does_and_nothing_outside() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "secret").unwrap();
    let (source, other) = (folder.path(), outside.path());
    let findings = in_a_child(|findings| {
        let (parent, own) = (rustix::process::getppid(), rustix::process::getpid());
        enter_with(source);
        as_a_mirror(findings, source);
        let mut tried = |name: &str, word: String| findings.insert(format!("out {name}"), word);
        tried("read", word(File::open(other.join("file"))));
        tried("list", word(fs::read_dir(other)));
        tried("create", word(File::create(other.join("new"))));
        tried("remove", word(fs::remove_file(other.join("file"))));
        tried("device", word(File::open("/dev/null")));
        tried(
            "link in",
            word(fs::hard_link(other.join("file"), source.join("stolen"))),
        );
        let magic = format!("/proc/{}/root/etc/passwd", own.as_raw_nonzero());
        tried("by a magic link", word(File::open(magic)));
        let parent = parent.map_or(0, |pid| pid.as_raw_nonzero().get());
        let namespace = fs::metadata(format!("/proc/{parent}/ns/user"));
        tried("another's namespace", word(namespace));
        tried("kill", call(libc::SYS_kill, parent.into()));
    });
    for (name, word) in &findings {
        let right = match &**name {
            "in umask of a thread" => "true".into(),
            // Across file systems it is EXDEV as ever; the rights are looked at first.
            "out link in" if *word == number(Errno::XDEV) => word.clone(),
            "out kill" => number(Errno::PERM),
            name if name.starts_with("in ") => "ok".into(),
            _ => number(Errno::ACCESS),
        };
        assert_eq!(*word, right, "{name}");
    }
    assert!(!source.join("stolen").exists());
    assert_eq!(fs::read(other.join("file")).unwrap(), b"secret");
}

#[test]
fn calls_that_a_file_server_never_makes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let program = CString::new("/bin/true").unwrap();
    let source = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
    let findings = in_a_child(|findings| {
        enter_with(folder.path());
        let mut tried = |name: &str, word: String| findings.insert(name.to_owned(), word);
        let exec = {
            let words = [program.as_ptr(), std::ptr::null()];
            // SAFETY: a C string and two lists that end with a null; it returns, being refused.
            unsafe { libc::execve(program.as_ptr(), words.as_ptr(), words.as_ptr().add(1)) };
            std::io::Error::last_os_error()
        };
        tried("execve", word::<(), _>(Err(exec)));
        tried(
            "run",
            word(std::process::Command::new("/bin/true").status()),
        );
        // SAFETY: refused; were it not, the child would end as the last thing it does.
        let forked = unsafe { libc::fork() };
        let last = std::io::Error::last_os_error();
        tried("fork", word(if forked < 0 { Err(last) } else { Ok(()) }));
        let mounted = rustix::mount::mount(&*source, &*source, c"tmpfs", MountFlags::empty(), None);
        tried("mount", word(mounted));
        tried(
            "umount",
            word(rustix::mount::unmount(&*source, UnmountFlags::DETACH)),
        );
        for (name, flags) in [
            ("unshare mounts", UnshareFlags::NEWNS),
            ("unshare users", UnshareFlags::NEWUSER),
            ("unshare both", UnshareFlags::FS | UnshareFlags::NEWNS),
        ] {
            // SAFETY: refused; nothing is unshared that Rust code shares.
            let done = unsafe { rustix::thread::unshare_unsafe(flags) };
            tried(name, word(done));
        }
        let traced = libc::c_long::from(libc::PTRACE_TRACEME);
        for (name, number, argument) in [
            ("execveat", libc::SYS_execveat, -1),
            ("ptrace", libc::SYS_ptrace, traced),
            ("process_vm_readv", libc::SYS_process_vm_readv, 1),
            ("pidfd_getfd", libc::SYS_pidfd_getfd, 0),
            ("chroot", libc::SYS_chroot, 0),
            ("pivot_root", libc::SYS_pivot_root, 0),
            ("fsopen", libc::SYS_fsopen, 0),
            ("fsmount", libc::SYS_fsmount, -1),
            ("move_mount", libc::SYS_move_mount, -1),
            ("open_tree", libc::SYS_open_tree, -1),
            ("mount_setattr", libc::SYS_mount_setattr, -1),
            ("setns", libc::SYS_setns, -1),
            ("bpf", libc::SYS_bpf, 0),
            ("init_module", libc::SYS_init_module, 0),
            ("finit_module", libc::SYS_finit_module, -1),
            ("kexec_load", libc::SYS_kexec_load, 0),
            ("perf_event_open", libc::SYS_perf_event_open, 0),
            ("userfaultfd", libc::SYS_userfaultfd, 0),
            ("io_uring_setup", libc::SYS_io_uring_setup, 1),
            ("keyctl", libc::SYS_keyctl, 0),
            ("reboot", libc::SYS_reboot, 0),
            ("swapon", libc::SYS_swapon, 0),
            ("settimeofday", libc::SYS_settimeofday, 0),
            ("fanotify_init", libc::SYS_fanotify_init, 0),
            ("socket", libc::SYS_socket, libc::AF_INET.into()),
            ("netlink", libc::SYS_socket, libc::AF_NETLINK.into()),
            ("connect", libc::SYS_connect, -1),
            ("setpriority", libc::SYS_setpriority, 0),
            ("sched_setattr", libc::SYS_sched_setattr, 0),
            ("turns of others", libc::SYS_sched_setscheduler, 1),
            ("place of others", libc::SYS_sched_setaffinity, 1),
        ] {
            tried(name, call(number, argument));
        }
        tried("unix socket", call(libc::SYS_socket, libc::AF_UNIX.into()));
        tried("clone3", call(libc::SYS_clone3, 0));
        #[cfg(target_arch = "x86_64")]
        for (name, number) in [("iopl", libc::SYS_iopl), ("vfork", libc::SYS_vfork)] {
            tried(name, call(number, 3));
        }
        #[cfg(target_arch = "x86_64")]
        tried("x32 execve", call(0x4000_0000 + 520, 0));
    });
    for (name, word) in &findings {
        let right = match &**name {
            // There is no type 0; the filter let it through to the kernel's own check.
            "unix socket" => Errno::SOCKTNOSUPPORT,
            "clone3" | "x32 execve" => Errno::NOSYS,
            _ => Errno::PERM,
        };
        assert_eq!(*word, number(right), "{name}");
    }
}

/// Something that a mirror does, and the capability that it takes.
type Deed = (&'static str, CapabilitySet, fn(&Path) -> String);

/// A file of somebody else's, in a group that is not ours.
fn theirs(folder: &Path) -> std::path::PathBuf {
    folder.join("theirs")
}

fn chmod(path: &Path, mode: u32) -> String {
    word(rustix::fs::chmod(path, Mode::from_raw_mode(mode)))
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> String {
    let flags = rustix::fs::XattrFlags::empty();
    word(rustix::fs::setxattr(path, name, value, flags))
}

/// By the handle of a folder, as inodes are found again.
fn open_by_handle(folder: &Path) -> String {
    let folder = File::open(folder).unwrap();
    let folder = std::os::fd::AsFd::as_fd(&folder);
    let handle = crate::sys::handle::FileHandle::of(folder).unwrap();
    match handle.open(folder, OFlags::PATH) {
        Ok(_) => "ok".into(),
        Err(fail) => number(fail.errno),
    }
}

/// Keeps the setgid bit of a file whose group the process is not in.
fn keep_setgid(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let done = chmod(&theirs(folder), 0o2755);
    match fs::metadata(theirs(folder)).unwrap().mode() & 0o2000 {
        0 if done == "ok" => number(Errno::PERM),
        _ => done,
    }
}

/// `chattr +a`, and back.
fn only_grow(folder: &Path) -> String {
    const APPEND: u32 = 0x20;
    let file = File::open(folder).unwrap();
    let file = std::os::fd::AsFd::as_fd(&file);
    let before = crate::sys::flags::get(file).unwrap();
    let set = |flags| crate::sys::flags::set(file, flags);
    match set(before | APPEND).and_then(|()| set(before)) {
        Ok(()) => "ok".into(),
        Err(fail) => number(fail.errno),
    }
}

/// Its own group stays: the switch of the user alone.
fn act_for_a_user() -> String {
    let other = crate::sys::creds::Credentials {
        uid: 54_321,
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
        effective: 0,
    };
    match other.run_as(|| ()) {
        Ok(()) => "ok".into(),
        Err(fail) => number(fail.errno),
    }
}

const DEEDS: &[Deed] = &[
    ("chown", CapabilitySet::CHOWN, |folder| {
        let path = theirs(folder);
        word(std::os::unix::fs::chown(path, Some(54_323), None))
    }),
    ("read what is shut", CapabilitySet::DAC_OVERRIDE, |folder| {
        word(File::options().write(true).open(theirs(folder)))
    }),
    (
        "open by handle",
        CapabilitySet::DAC_READ_SEARCH,
        open_by_handle,
    ),
    ("chmod", CapabilitySet::FOWNER, |folder| {
        chmod(&theirs(folder), 0o755)
    }),
    ("keep setgid", CapabilitySet::FSETID, keep_setgid),
    ("act for a user", CapabilitySet::SETUID, |_| {
        act_for_a_user()
    }),
    ("act for a group", CapabilitySet::SETGID, |_| {
        let groups = [rustix::process::Gid::from_raw(8)];
        word(rustix::thread::set_thread_groups(&groups))
    }),
    ("make a device", CapabilitySet::MKNOD, |folder| {
        let kind = rustix::fs::FileType::CharacterDevice;
        let device = rustix::fs::makedev(1, 3);
        let path = folder.join("null");
        word(rustix::fs::mknodat(CWD, path, kind, Mode::RWXU, device))
    }),
    (
        "let a file only grow",
        CapabilitySet::LINUX_IMMUTABLE,
        only_grow,
    ),
    ("capabilities of a file", CapabilitySet::SETFCAP, |folder| {
        // struct vfs_cap_data, revision 2: CAP_CHOWN permitted (linux/capability.h).
        let mut value = [0_u8; 20];
        (value[3], value[4]) = (2, 1);
        set_attribute(&theirs(folder), "security.capability", &value)
    }),
    ("trusted attributes", CapabilitySet::SYS_ADMIN, |folder| {
        set_attribute(&theirs(folder), "trusted.x", b"v")
    }),
    ("take turns again", CapabilitySet::SYS_NICE, |_| {
        sched::give_way().unwrap();
        match sched::take_turns() {
            Ok(()) => "ok".into(),
            Err(fail) => number(fail.errno),
        }
    }),
];

/// The sandbox, and in it a deed, with one capability less where one is named.
fn deed_without(deed: fn(&Path) -> String, less: CapabilitySet) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = theirs(folder.path());
    fs::write(&path, "x").unwrap();
    rustix::fs::chmod(&path, Mode::from_raw_mode(0o400)).unwrap();
    std::os::unix::fs::chown(&path, Some(54_321), Some(54_322)).unwrap();
    let findings = in_a_child(|findings| {
        enter_with(folder.path());
        let mut sets = capabilities(None).unwrap();
        sets.effective -= less;
        sets.permitted -= less;
        rustix::thread::set_capabilities(None, sets).unwrap();
        findings.insert("deed".into(), deed(folder.path()));
    });
    findings["deed"].clone()
}

#[test]
fn each_capability_that_stays_is_needed_and_is_enough() {
    if !capabilities(None)
        .unwrap()
        .permitted
        .contains(KEPT_CAPABILITIES)
    {
        crate::sys::testing::skip("needs root's capabilities");
        return;
    }
    let mut named = CapabilitySet::empty();
    for &(name, capability, deed) in DEEDS {
        named |= capability;
        assert_eq!(deed_without(deed, CapabilitySet::empty()), "ok", "{name}");
        let refused = deed_without(deed, capability);
        assert_ne!(refused, "ok", "{name} without {capability:?}");
    }
    assert_eq!(named, KEPT_CAPABILITIES, "each has a deed");
}

/// Installs a filter that answers one call with an errno, as a kernel without it would.
fn pretend_absent(number: libc::c_long, errno: Errno) {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = BTreeMap::from([(number, Vec::new())]);
    let answer = seccompiler::SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
    let allow = seccompiler::SeccompAction::Allow;
    let filter = seccompiler::SeccompFilter::new(rules, allow, answer, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn what_the_kernel_lacks_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    for (number, errno, lacks, rest) in [
        (
            libc::SYS_landlock_create_ruleset,
            Errno::OPNOTSUPP,
            "landlock (",
            "no_new_privs capabilities seccomp",
        ),
        (
            libc::SYS_seccomp,
            Errno::INVAL,
            "seccomp (",
            "no_new_privs capabilities landlock",
        ),
    ] {
        let findings = in_a_child(|findings| {
            pretend_absent(number, errno);
            let in_force = enter_with(folder.path());
            findings.insert("in force".into(), in_force.to_string());
            findings.insert("missing".into(), in_force.missing.join("; "));
        });
        assert_eq!(findings["in force"], rest);
        let missing = &findings["missing"];
        assert!(missing.starts_with(lacks), "{missing}");
        assert!(!missing.contains(';'), "{missing}");
    }
}

#[test]
fn who_has_threads_does_not_enter() {
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || receive.recv());
    let refused = enter(Vec::new());
    drop(send);
    other.join().unwrap().unwrap_err();
    assert_eq!(refused.unwrap_err().errno, Errno::BUSY);
}

#[test]
fn the_layers_are_named() {
    assert_eq!(InForce::default().to_string(), "none");
    let some = InForce {
        landlock: true,
        no_new_privs: true,
        ..InForce::default()
    };
    assert_eq!(some.to_string(), "no_new_privs landlock");
}
