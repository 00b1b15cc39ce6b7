//! The guardian and its server: who ends whom, and what is left.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{PATIENCE, Stand};
use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, as_user, errno_of, is_mounted, read_file, require,
    run, set_mode, set_owner, soak, stop_process, wait_until, write_file,
};

/// How long something may take that nothing holds up.
pub(crate) const SOON: Duration = Duration::from_secs(30);

fn process(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("a process")
}

fn send(pid: u32, signal: Signal) {
    kill_process(process(pid), signal).expect("kill");
}

/// Whether a process has ended, waited for or not.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some(state) if state != 'Z' && state != 'X')
}

#[test]
fn a_server_that_dies_takes_its_mount_along_and_is_spoken_of() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", b"content");
    let mut mount = Mount::of(source.path()).start();
    let user = File::open(mount.path().join("f")).expect("open");
    send(mount.server(), Signal::KILL);
    let status = mount.wait(SOON).expect("the guardian's end");
    assert_eq!(status.code(), Some(2), "{}", mount.log());
    assert!(!is_mounted(mount.path(), "fuse.corfs"));
    let log = mount.log();
    assert!(log.contains("died: killed by signal 9"), "{log}");
    let mut byte = [0];
    let lost = (&user).read(&mut byte).expect_err("nobody serves it");
    let lost = errno_of("read", Err::<(), _>(lost));
    assert!(
        [Errno::NOTCONN, Errno::CONNABORTED].contains(&lost),
        "{lost}"
    );
}

#[test]
fn a_users_server_that_dies_takes_its_mount_along_too() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    for path in [&stand.source, &stand.point] {
        set_owner(path, USER, USER);
    }
    let log = stand.scratch().path().join("log");
    fs::write(&log, "").expect("write");
    set_owner(&log, USER, USER);
    let words = ["--log-file", log.to_str().expect("text")];
    run(as_user(&mut stand.mount(&words), USER, USER));
    kill_process(stand.server(), Signal::KILL).expect("kill");
    stand.await_end();
    assert!(!stand.is_mounted());
    let log = fs::read_to_string(&log).expect("read");
    assert!(
        log.contains("ERROR") && log.contains("died: killed"),
        "{log}"
    );
}

#[test]
fn a_server_that_dies_takes_no_other_mount_along() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mut mount = Mount::of(source.path()).start();
    let server = mount.server();
    let cover = crate::support::Tmpfs::at(mount.path(), 1 << 20);
    send(server, Signal::KILL);
    let status = mount.wait(SOON).expect("the guardian's end");
    assert_eq!(status.code(), Some(2), "{}", mount.log());
    assert!(is_mounted(mount.path(), "tmpfs"));
    drop(cover);
}

#[test]
fn the_server_dies_with_its_guardian_whatever_it_has_done() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    set_mode(source.path(), 0o777);
    let mut mount = Mount::of(source.path()).opt("allow_other").start();
    // A change of credentials takes the signal at the parent's death from a thread (prctl(2)).
    apart(Some((USER, OTHER)), || {
        for n in 0..32 {
            write_file(&mount.path().join(format!("f{n}")), b"x");
        }
        fs::write(mount.path().join(".copy"), "f1 g\n").expect("copy");
    });
    let server = mount.server();
    send(mount.guardian(), Signal::KILL);
    mount.wait(SOON).expect("its end");
    wait_until("the server dies", SOON, || has_ended(server));
    wait_until("the mount is dead", SOON, || {
        rustix::fs::stat(mount.path().join("f1")).is_err_and(|errno| errno == Errno::NOTCONN)
    });
    assert!(is_mounted(mount.path(), "fuse.corfs"));
    run(crate::support::corfs().arg("umount").arg(mount.path()));
    assert!(!is_mounted(mount.path(), "fuse.corfs"));
}

#[test]
fn auto_unmount_holds_when_either_dies() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    for of in [Mount::guardian, Mount::server] {
        let mut mount = Mount::of(source.path()).opt("auto_unmount").start();
        wait_until("it serves", SOON, || mount.log().contains("mounted on"));
        send(of(&mount), Signal::KILL);
        mount.wait(SOON).expect("its end");
        wait_until("the dead mount is gone", SOON, || {
            !is_mounted(mount.path(), "fuse.corfs")
        });
    }
}

#[test]
fn either_may_be_stopped_for_a_while() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", b"content");
    source.file("g", b"later");
    let mount = Mount::of(source.path()).start();
    let (guardian, server) = (mount.guardian(), mount.server());
    stop_process(process(guardian));
    assert_eq!(read_file(&mount.path().join("f")), b"content");
    stop_process(process(server));
    let path = mount.path().join("g");
    let reader = std::thread::spawn(move || read_file(&path));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!reader.is_finished(), "nobody serves");
    send(server, Signal::CONT);
    assert_eq!(reader.join().expect("read"), b"later");
    send(guardian, Signal::CONT);
    assert_eq!(read_file(&mount.path().join("f")), b"content");
    assert!(mount.finish().success());
}

#[test]
fn the_server_asks_its_guardian_to_unmount() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    // A terminal's Ctrl-C, or a service manager, reaches one or both, in any order.
    for both in [false, true] {
        let mut mount = Mount::of(source.path()).start();
        let (guardian, server) = (mount.guardian(), mount.server());
        wait_until("it serves", SOON, || mount.log().contains("mounted on"));
        if both {
            send(guardian, Signal::INT);
        }
        // It may have ended by now.
        let pid = Pid::from_raw(server.cast_signed()).expect("a process");
        let _ = kill_process(pid, Signal::INT);
        let status = mount.wait(SOON).expect("its end");
        let log = mount.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(log.matches("unmounted").count(), 1, "{log}");
        // Told twice, it may say that it still waits for the end.
        assert!(both || !log.contains("WARN"), "{log}");
    }
}

#[test]
fn an_aborted_connection_is_cleaned_up_and_told() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mut mount = Mount::of(source.path()).start();
    wait_until("it serves", SOON, || mount.log().contains("mounted on"));
    let device = rustix::fs::stat(mount.path()).expect("stat").st_dev;
    let number = rustix::fs::minor(device);
    let control = Scratch::new();
    let point = control.path();
    run(std::process::Command::new("mount")
        .args(["-t", "fusectl", "none"])
        .arg(point));
    let aborted = fs::write(point.join(format!("{number}/abort")), "1");
    assert!(crate::support::detach(point));
    aborted.expect("abort");
    let status = mount.wait(SOON).expect("its end");
    assert_eq!(status.code(), Some(2), "{}", mount.log());
    assert!(mount.log().contains("was aborted"), "{}", mount.log());
    assert!(!is_mounted(mount.path(), "fuse.corfs"));
}

/// The number of a mount's device is free as soon as the mount is gone: the next one gets it, while
/// the processes of the last are still about to end.
#[test]
fn what_ends_leaves_the_next_mount_at_its_place_alone() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    for round in 0..soak(200) {
        let options: &[&str] = if round % 4 == 0 {
            &["-o", "auto_unmount"]
        } else {
            &[]
        };
        run(&mut stand.mount(options));
        assert_eq!(fs::read(stand.file()).expect("read"), b"content", "{round}");
        assert!(stand.umount(&["--lazy"]).status.success(), "{round}");
    }
    stand.await_end();
    assert!(!stand.is_mounted());
}

/// `NotifyAccess=main` heeds the process that systemd started, and no other.
#[test]
fn it_is_the_guardian_who_tells_systemd() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let path = stand.scratch().path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    rustix::net::sockopt::set_socket_passcred(&socket, true).expect("SO_PASSCRED");
    let mut command = stand.mount(&["-f"]);
    let started = command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null());
    let mut child = started.spawn().expect("corfs");
    let child_pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    assert_eq!(sender(&socket), ("READY=1".into(), Some(child_pid)));
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
    kill_process(child_pid, Signal::TERM).expect("kill");
    assert_eq!(sender(&socket), ("STOPPING=1".into(), Some(child_pid)));
    assert_eq!(child.wait().expect("wait").code(), Some(0));
}

/// The next message, and who sent it.
fn sender(socket: &UnixDatagram) -> (String, Option<Pid>) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut data = [std::io::IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket.as_fd(), &mut data, &mut control, RecvFlags::empty());
    let length = got.expect("a message").bytes;
    let pid = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(who) => Some(who.pid),
        _ => None,
    });
    let text = String::from_utf8_lossy(&bytes[..length]);
    (text.trim_end().to_owned(), pid)
}
