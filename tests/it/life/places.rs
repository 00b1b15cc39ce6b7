//! Where a mount may stand, and what may stand on it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Signal;

use super::PATIENCE;
use super::load::{self, Load};
use crate::command::{Stand, processes_with};
use crate::support::{
    Mount, Need, Scratch, Tmpfs, assert_content, corfs, detach, errno_of, is_mounted, output,
    require, run, sbin, wait_until, write_content,
};

/// A bind mount; gone with the test.
struct Bind(std::path::PathBuf);

impl Bind {
    #[track_caller]
    fn new(what: &Path, at: &Path) -> Self {
        run(Command::new(sbin("mount")).arg("--bind").arg(what).arg(at));
        Self(at.into())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn two_mounts_of_one_source_show_the_same() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    load::furnish(source.path());
    let one = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    let two = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    for (here, there) in [(&one, &two), (&two, &one)] {
        for round in 0..20 {
            let text = format!("round {round}");
            fs::write(here.path().join("f"), &text).unwrap();
            assert_eq!(fs::read_to_string(there.path().join("f")).unwrap(), text);
            fs::rename(here.path().join("f"), here.path().join("g")).unwrap();
            assert_eq!(fs::read_to_string(there.path().join("g")).unwrap(), text);
            fs::remove_file(there.path().join("g")).unwrap();
            assert!(!here.path().join("g").exists());
        }
    }
    // The end of one is not the other's.
    assert_eq!(one.finish().code(), Some(0));
    let load = Load::start(two.path(), None);
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
}

#[test]
fn a_mount_of_a_mount_of_a_mount() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    load::furnish(source.path());
    let mut tower: Vec<Mount> = Vec::new();
    for _ in 0..3 {
        let below = tower.last().map_or(source.path(), Mount::path).to_owned();
        tower.push(Mount::of(&below).start());
    }
    let load = Load::start(tower[2].path(), None);
    load.await_progress();
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    load::assert_tidy(source.path());
    // A file system that is mirrored is in use, and stays when it is told to go.
    let below = tower[1].path().to_owned();
    let refused = output(crate::support::corfs().arg("umount").arg(&below));
    assert_eq!(refused.status.code(), Some(32), "{refused:?}");
    assert_content(77, 0, &fs::read(tower[2].path().join("big")).unwrap());
    // The end begins at the top.
    while let Some(top) = tower.pop() {
        assert_eq!(top.finish().code(), Some(0));
    }
}

#[test]
fn a_source_unmounted_beneath_lazily_is_served_on() {
    if !require(&[Need::Fuse, Need::Filesystem("ext4")]) {
        return;
    }
    let disk = crate::support::Loop::new("ext4", 64 << 20);
    load::furnish(disk.path());
    let mount = Mount::of(disk.path()).start();
    let busy = output(Command::new(sbin("umount")).arg(disk.path()));
    assert!(
        String::from_utf8_lossy(&busy.stderr).contains("busy"),
        "{busy:?}"
    );
    let load = Load::start(mount.path(), None);
    load.await_progress();
    run(Command::new(sbin("umount")).arg("-l").arg(disk.path()));
    assert!(!is_mounted(disk.path(), "ext4"));
    load.await_progress();
    // New names too: the mount holds its source, whatever became of the path.
    fs::write(mount.path().join("new"), "after the end").unwrap();
    fs::remove_file(mount.path().join("new")).unwrap();
    assert_eq!(load.end(), [Ok(()); 4]);
    assert_eq!(mount.finish().code(), Some(0));
}

#[test]
fn a_source_mounted_over_or_moved_is_served_on() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    load::furnish(&source);
    let mount = Mount::of(&source)
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    let over = crate::support::Tmpfs::at(&source, 1 << 20);
    assert_content(77, 0, &fs::read(mount.path().join("big")).unwrap());
    fs::write(mount.path().join("file"), "beneath").unwrap();
    drop(over);
    assert_eq!(fs::read(source.join("file")).unwrap(), b"beneath");
    fs::rename(&source, scratch.path().join("moved")).unwrap();
    fs::write(mount.path().join("file"), "moved").unwrap();
    assert_eq!(
        fs::read(scratch.path().join("moved/file")).unwrap(),
        b"moved"
    );
    fs::write(mount.path().join(".copy"), "file file2\n").unwrap();
    assert_eq!(
        fs::read(scratch.path().join("moved/file2")).unwrap(),
        b"moved"
    );
}

#[test]
fn a_source_deleted_beneath_is_empty_and_ends_well() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::create_dir(source.join("folder")).unwrap();
    write_content(&source.join("open"), 5, 2 << 20);
    let mut mount = Mount::of(&source)
        .opt("attr_timeout=0,entry_timeout=0")
        .start();
    let mut open = File::open(mount.path().join("open")).unwrap();
    let folder = File::open(mount.path().join("folder")).unwrap();
    fs::remove_dir_all(&source).unwrap();
    // As natively: what is open is there, and nothing new comes to be.
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut bytes).unwrap();
    assert_content(5, 0, &bytes);
    assert_eq!(bytes.len(), 2 << 20);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    let made = fs::write(mount.path().join("new"), "");
    assert_eq!(errno_of("create", made), Errno::NOENT);
    let made = fs::create_dir(mount.path().join("new"));
    assert_eq!(errno_of("mkdir", made), Errno::NOENT);
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let made = rustix::fs::openat(&folder, "new", flags, mode).map(drop);
    assert_eq!(made, Err(Errno::NOENT));
    assert!(mount.alive());
    drop((open, folder));
    assert_eq!(mount.finish().code(), Some(0));
}

#[test]
fn a_bind_mount_of_the_mount_outlives_its_name() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stand = Stand::new();
    load::furnish(&stand.source);
    fs::create_dir(stand.source.join("sub")).unwrap();
    fs::write(stand.source.join("sub/f"), "bound").unwrap();
    let other = Scratch::new();
    let (whole, part) = (other.dir("whole"), other.dir("part"));
    run(&mut stand.mount(&[]));
    let binds = (
        Bind::new(&stand.point, &whole),
        Bind::new(&stand.point.join("sub"), &part),
    );
    stand.unmounted();
    let load = Load::start(&whole, None);
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    assert_eq!(fs::read(part.join("f")).unwrap(), b"bound");
    assert_eq!(stand.daemons().len(), super::family(&stand).len());
    assert!(!stand.daemons().is_empty());
    // A bind mount is a mount of ours too, and a folder's is no other.
    run(stand.corfs(["umount"]).arg(&part));
    assert!(!is_mounted(&part, "fuse.corfs"));
    assert!(!stand.daemons().is_empty());
    wait_until("it is free", PATIENCE, || {
        output(stand.corfs(["umount"]).arg(&whole)).status.success()
    });
    stand.await_end();
    drop(binds);
}

#[test]
fn sigterm_leaves_a_bind_mount_its_daemon() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    load::furnish(source.path());
    let other = Scratch::new();
    let at = other.dir("bind");
    let mut mount = Mount::of(source.path()).start();
    let bind = Bind::new(mount.path(), &at);
    mount.signal(Signal::TERM);
    wait_until("the name is gone", PATIENCE, || {
        !is_mounted(mount.path(), "fuse.corfs")
    });
    assert_content(77, 0, &fs::read(at.join("big")).unwrap());
    assert!(mount.alive());
    drop(bind);
    assert_eq!(mount.wait(PATIENCE).and_then(|s| s.code()), Some(0));
}

/// A folder above the mountpoint is renamed: the daemon knows the mount by its old name only.
#[test]
fn a_mount_that_was_moved_ends_by_its_new_name() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let (source, above) = (scratch.dir("source"), scratch.dir("above"));
    load::furnish(&source);
    let (point, moved) = (above.join("mnt"), scratch.path().join("moved/mnt"));
    fs::create_dir(&point).unwrap();
    run(crate::support::corfs().args([&source, &point]));
    fs::rename(&above, scratch.path().join("moved")).unwrap();
    let load = Load::start(&moved, None);
    load.await_progress();
    for pid in processes_with(&point) {
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }
    // What is at the old name, or nothing, is not what was mounted.
    load.await_progress();
    assert_eq!(load.end(), [Ok(()); 4]);
    assert!(is_mounted(&moved, "fuse.corfs"));
    run(crate::support::corfs().arg("umount").arg(&moved));
    wait_until("it ends", PATIENCE, || processes_with(&point).is_empty());
    assert!(!is_mounted(&moved, "fuse.corfs"));
}

/// Runs a script where mounts are nobody else's; `$1` is the source, `$2` the mountpoint, `$3` our
/// program.
fn in_a_namespace(stand: &Stand, propagation: &str, script: &str) -> String {
    let mut command = Command::new(sbin("unshare"));
    command
        .args([
            "-m",
            "--propagation",
            propagation,
            "sh",
            "-e",
            "-c",
            script,
            "sh",
        ])
        .arg(&stand.source)
        .arg(&stand.point);
    command.arg(stand.corfs([""; 0]).get_program());
    run(&mut command)
}

#[test]
fn a_mount_in_a_namespace_is_seen_and_ends_there() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let stand = Stand::new();
    let script = r#""$3" "$1" "$2"; cat "$2/file"; "$3" umount "$2"; ! mountpoint -q "$2""#;
    for propagation in ["private", "slave"] {
        assert_eq!(in_a_namespace(&stand, propagation, script), "content");
        assert!(!stand.is_mounted());
        stand.await_end();
    }
    // One that is left goes with the last process of the namespace, and its daemon is one: it
    // is told to go.
    let script = r#""$3" "$1" "$2"; cat "$2/file""#;
    assert_eq!(in_a_namespace(&stand, "private", script), "content");
    assert!(!stand.is_mounted());
    rustix::process::kill_process(super::head(&stand), Signal::TERM).unwrap();
    stand.await_end();
}

#[test]
fn a_copy_of_the_namespace_keeps_the_mount_until_it_ends() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let stand = Stand::new().mounted(&[]);
    // The unmount is not seen where nothing is propagated.
    let script = r#"cat "$2/file"; nsenter -t "$PPID" -m "$3" umount "$2"; cat "$2/file""#;
    let said = in_a_namespace(&stand, "private", script);
    assert_eq!(said, "contentcontent");
    assert!(!stand.is_mounted());
    stand.await_end();
}

#[test]
fn a_mount_serves_as_a_root() {
    let tools = [Need::Tool("unshare"), Need::Tool("ldd")];
    if !require(&[Need::Fuse, Need::Root, tools[0], tools[1]]) {
        return;
    }
    let stand = Stand::new();
    fs::create_dir(stand.source.join("old")).unwrap();
    bring_shell(&stand.source);
    let stand = stand.mounted(&["-o", "suid,dev"]);
    let read = r#"read -r x < /file || true; echo "$x""#;
    let chroot = run(Command::new(sbin("chroot"))
        .arg(&stand.point)
        .args(["/bin/sh", "-c", read])
        .env_clear());
    assert_eq!(chroot, "content\n");
    let script = r#"
        cd "$2"
        pivot_root . old
        exec /bin/sh -c 'read -r x < /file || true; echo "$x"; echo new > /made'
    "#;
    assert_eq!(in_a_namespace(&stand, "private", script), "content\n");
    assert_eq!(fs::read(stand.source.join("made")).unwrap(), b"new\n");
    stand.unmounted();
    stand.await_end();
}

/// Puts a shell there, with the libraries that it needs.
fn bring_shell(root: &Path) {
    let libraries = run(Command::new("ldd").arg("/bin/sh"));
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in std::iter::once("/bin/sh").chain(paths) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        // Of a link, the file.
        run(Command::new("cp").arg("-L").arg(path).arg(&to));
    }
}

/// What `corfs umount` leaves of a mount with a cache that was just filled: nothing that would keep
/// its source.
#[test]
fn the_source_can_be_unmounted_as_soon_as_the_mirror_was() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    for round in 0..8 {
        let source = Tmpfs::new(64 << 20);
        for number in 0..64 {
            let path = source.path().join(number.to_string());
            write_content(&path, number, 200_000);
        }
        let cache = Scratch::new();
        fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let option = format!("racy=0,cache={}", cache.path().display());
        let mut mount = Mount::of(source.path()).opt(option).start();
        for number in 0..64 {
            let bytes = fs::read(mount.path().join(number.to_string())).unwrap();
            assert_content(number, 0, &bytes);
        }
        run(corfs().arg("umount").arg(mount.path()));
        run(Command::new(sbin("umount")).arg(source.path()));
        let status = mount.wait(PATIENCE);
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{round}");
    }
}
