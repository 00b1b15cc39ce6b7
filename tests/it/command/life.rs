//! A mount from its beginning to its end.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, Stand};
use crate::support::{Need, output, require, run, stop_process, wait_until};

/// The daemon in the foreground, once it answers.
fn foreground(stand: &Stand, more: &[&str]) -> Child {
    let mut command = stand.mount(more);
    let child = command.arg("-f").stderr(Stdio::piped()).spawn();
    let child = child.expect("corfs");
    wait_until("the mount answers", PATIENCE, || stand.file().exists());
    child
}

/// What the daemon says at its end; panics unless it exits with 0.
#[track_caller]
fn ended(mut child: Child) -> String {
    let mut log = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut log).expect("text");
    let status = child.wait().expect("wait");
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

fn tell(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, signal).expect("kill");
}

#[test]
fn the_parent_returns_when_the_mount_answers_and_holds_no_pipe() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    // `output` waits for the end of both pipes: a daemon that kept them would keep us.
    let out = output(&mut stand.mount(&[]));
    assert!(
        out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(),
        "{out:?}"
    );
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
    let daemon = stand.daemon();
    let folder = fs::read_link(format!("/proc/{}/cwd", daemon.as_raw_nonzero()));
    assert_eq!(folder.expect("cwd"), Path::new("/"));
    stand.unmounted();
    stand.await_end();
}

#[test]
fn any_name_is_mounted_and_shown_as_it_is() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for (source, point) in [
        ("with space", "also here"),
        ("comma,ro,dev", "m,allow_other"),
        ("back\\slash\\,", "m\\040x"),
        ("new\nline\ttab", "m\nn\t#"),
        ("-o", "-f"),
        ("umount", "stat"),
    ] {
        let stand = Stand::named(source, point).mounted(&[]);
        assert_eq!(
            fs::read(stand.file()).expect("read"),
            b"content",
            "{source:?}"
        );
        let escaped = |path: &Path| {
            let mut text = String::new();
            for &byte in path.as_os_str().as_bytes() {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => text += &format!("\\{byte:03o}"),
                    _ => text.push(char::from(byte)),
                }
            }
            text
        };
        let begin = format!(
            "{} {} fuse.corfs rw,nosuid,nodev,",
            escaped(&stand.source),
            escaped(&stand.point)
        );
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        // Kernels before 5.18 do not escape `#`.
        let shown = |line: &str| line.replace('#', "\\043").starts_with(&begin);
        assert!(mounts.lines().any(shown), "{begin} not in\n{mounts}");
        stand.unmounted();
    }
}

#[test]
fn words_of_the_mount_reach_the_kernel() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let words = "ro,suid,dev,noexec,noatime,sync,dirsync,allow_other,fsname=a\\,b c,_netdev,x-y=z";
    let stand = Stand::new().mounted(&["-o", words]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = mounts
        .lines()
        .find(|line| line.contains(stand.point.to_str().expect("text")));
    let line = line.expect("mounted");
    assert!(line.starts_with("a,b\\040c "), "{line}");
    let options: Vec<&str> = line
        .split(' ')
        .nth(3)
        .expect("options")
        .split(',')
        .collect();
    for word in [
        "ro",
        "noexec",
        "noatime",
        "sync",
        "dirsync",
        "allow_other",
        "default_permissions",
    ] {
        assert!(options.contains(&word), "no {word} in {line}");
    }
    assert!(
        !options.contains(&"nosuid") && !options.contains(&"nodev"),
        "{line}"
    );
}

#[test]
fn sigterm_and_sigint_end_an_idle_mount_with_0() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let stand = Stand::new();
        let child = foreground(&stand, &[]);
        tell(&child, signal);
        let log = ended(child);
        assert!(log.contains("unmounted"), "{log}");
        assert!(!stand.is_mounted());
    }
}

#[test]
fn a_busy_mount_ends_when_its_last_user_has_gone() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let mut child = foreground(&stand, &[]);
    let mut user = File::open(stand.file()).expect("open");
    tell(&child, Signal::TERM);
    wait_until("the name is gone", PATIENCE, || !stand.is_mounted());
    tell(&child, Signal::TERM);
    let mut content = String::new();
    user.read_to_string(&mut content)
        .expect("served to the end");
    assert_eq!(content, "content");
    assert!(
        child.try_wait().expect("wait").is_none(),
        "the daemon left its user"
    );
    drop(user);
    let log = ended(child);
    assert!(log.contains("unmounted lazily"), "{log}");
}

#[test]
fn an_unmount_by_somebody_else_ends_it_with_0() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    let child = foreground(&stand, &[]);
    // Whoever asks first whether the mount answers may be at it still.
    wait_until("umount", PATIENCE, || {
        rustix::mount::unmount(&stand.point, rustix::mount::UnmountFlags::empty()).is_ok()
    });
    ended(child);
}

#[test]
fn a_mount_over_ours_is_left_alone() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    let log = stand.scratch().path().join("log");
    let words = ["--log-file", log.to_str().expect("text")];
    let mut child = foreground(&stand, &words);
    let cover = crate::support::Tmpfs::at(&stand.point, 1 << 20);
    tell(&child, Signal::TERM);
    let left_alone = || fs::read_to_string(&log).is_ok_and(|log| log.contains("left alone"));
    wait_until("it finds another mount over its own", PATIENCE, left_alone);
    assert!(child.try_wait().expect("wait").is_none());
    assert!(crate::support::is_mounted(&stand.point, "tmpfs"));
    drop(cover);
    tell(&child, Signal::TERM);
    ended(child);
}

#[test]
fn sighup_drops_the_windows_and_the_mount_goes_on() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    // Of small files what is read once takes no window.
    let content = vec![7; 1 << 20];
    fs::write(stand.source.join("large"), &content).expect("write");
    let windows = || {
        let text = fs::read_to_string(stand.point.join(".corfs/stats")).expect("stats");
        crate::support::Stats::parse(&text).value("corfs_windows", &[])
    };
    assert!(fs::read(stand.point.join("large")).expect("read") == content);
    assert_eq!(windows(), 1.0);
    kill_process(stand.daemon(), Signal::HUP).expect("kill");
    wait_until("the window is unmapped", PATIENCE, || windows() == 0.0);
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
}

#[test]
fn lazily_unmounted_by_the_command_it_serves_its_users_to_the_end() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    let mut user = File::open(stand.file()).expect("open");
    assert!(stand.umount(&["--lazy"]).status.success());
    assert!(!stand.is_mounted());
    let mut content = String::new();
    user.read_to_string(&mut content).expect("served");
    assert_eq!(content, "content");
    drop(user);
    stand.await_end();
}

#[test]
fn auto_unmount_leaves_no_dead_mount_behind() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&["-o", "auto_unmount"]);
    assert_eq!(stand.daemons().len(), 3, "guardian, server and keeper");
    kill_process(stand.daemon(), Signal::KILL).expect("kill");
    wait_until("the dead mount is gone", PATIENCE, || !stand.is_mounted());
    stand.await_end();
}

#[test]
fn the_log_of_a_background_mount_goes_to_its_file() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let log = stand.scratch().path().join("log");
    fs::write(&log, "before\n").expect("write");
    let mut command = stand.mount(&["--log-file", "log"]);
    run(command.current_dir(stand.scratch().path()));
    stand.unmounted();
    stand.await_end();
    let text = fs::read_to_string(&log).expect("read");
    assert!(
        text.starts_with("before\n") && text.contains("mirroring"),
        "{text}"
    );
    assert!(text.trim_end().ends_with("ended"), "{text}");
}

#[test]
fn systemd_is_told_of_beginning_and_end() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new();
    let path = stand.scratch().path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut command = stand.mount(&["-f"]);
    let child = command
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("corfs");
    let told = || {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length])
            .trim_end()
            .to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
    tell(&child, Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    ended(child);
}

#[test]
fn statistics_are_shown_to_people_and_programs() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    assert_eq!(fs::read(stand.file()).expect("read"), b"content");
    let table = run(stand.corfs(["stat"]).arg(stand.file()));
    assert!(
        table.starts_with("operation") && table.contains("\nopen "),
        "{table}"
    );
    assert!(table.contains("window budget bytes"), "{table}");
    let json = run(stand.corfs(["stat", "--json"]).arg(&stand.point));
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(
        value["operations"]["open"]["count"].as_f64() >= Some(1.0),
        "{json}"
    );
    let series = value["series"].as_array().expect("a list");
    assert!(
        series
            .iter()
            .any(|s| s["name"] == "corfs_window_budget_bytes"),
        "{json}"
    );
}

/// The kernel gives a new mount the device number of one that has gone; the daemon of that one, late
/// to see its end, must not take the new one for its own.
#[test]
fn a_daemon_late_to_end_leaves_the_next_mount_alone() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let device = |stand: &Stand| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&stand.point).expect("stat").dev()
    };
    // Other tests mount too, so that not every round gets the number again.
    for _ in 0..10 {
        let stand = Stand::new();
        run(&mut stand.mount(&[]));
        let late = stand.daemon();
        let before = device(&stand);
        stop_process(late);
        rustix::mount::unmount(&stand.point, rustix::mount::UnmountFlags::empty()).expect("umount");
        run(&mut stand.mount(&[]));
        let same = device(&stand) == before;
        kill_process(late, Signal::CONT).expect("kill");
        wait_until("the late daemon ends", PATIENCE, || {
            !stand.daemons().contains(&late)
        });
        assert!(stand.is_mounted() && stand.file().exists());
        if same {
            return;
        }
    }
}
