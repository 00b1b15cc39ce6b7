//! `map=` beside the kernel's own mapped mounts (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::CapabilitySet;

use super::deeds::{Actor, Twins, user, with};
use crate::support::{Mount, Need, Scratch, detach, require, wait_until};

/// A process in a user namespace of its own, which is what the kernel takes a map from.
struct Namespace(Child);

impl Namespace {
    fn new(users: &str, groups: &str) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "sleep", "600"])
            .stdin(Stdio::null());
        let namespace = Self(command.spawn().unwrap());
        let own = std::fs::metadata("/proc/self/ns/user").unwrap().ino();
        wait_until("a user namespace", Duration::from_secs(10), || {
            std::fs::metadata(namespace.file("ns/user")).is_ok_and(|m| m.ino() != own)
        });
        std::fs::write(namespace.file("uid_map"), users).unwrap();
        std::fs::write(namespace.file("gid_map"), groups).unwrap();
        namespace
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory, shown elsewhere through a map by the kernel; unmounted on drop.
struct Mapped(PathBuf, Scratch);

impl Mapped {
    /// Or why this kernel or this file system can't.
    fn of(source: &Path, users: &str, groups: &str) -> Result<Self, String> {
        let scratch = Scratch::new();
        let point = scratch.dir("mapped");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, source, flags).map_err(|e| e.to_string())?;
        let namespace = Namespace::new(users, groups);
        set_map(&tree, &File::open(namespace.file("ns/user")).unwrap())
            .map_err(|error| format!("no mapped mounts here: {error}"))?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", CWD, &point, empty).unwrap();
        Ok(Self(point, scratch))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn set_map(tree: &OwnedFd, namespace: &File) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: open descriptors, an empty name, and a structure of the size that is told, all of
    // which outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

const ACTORS: &[Actor] = &[
    user(0, 0, &[]),
    user(2000, 2000, &[]),
    user(2000, 1001, &[200, 3000]),
    user(1000, 1001, &[]),
    user(1001, 200, &[]),
    user(1001, 1001, &[7, 300]),
    user(1002, 0, &[2000]),
    user(1002, 3000, &[]),
    with(user(0, 0, &[3000]), CapabilitySet::empty()),
    with(user(1001, 200, &[]), CapabilitySet::FOWNER),
    with(user(1002, 1002, &[]), CapabilitySet::DAC_OVERRIDE),
];

#[test]
fn a_map_is_what_the_kernels_own_would_be() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let (native, mirrored) = (Scratch::new(), Scratch::new());
    // From, to, how many: what is in no line has no id on the other side.
    let users = "0 0 1000\n1000 2000 1\n1001 1001 999\n2001 2001 60000\n";
    let groups = "0 0 300\n300 3000 1\n301 301 2699\n3001 3001 60000\n";
    let kernels = match Mapped::of(native.path(), users, groups) {
        Ok(mapped) => mapped,
        Err(words) => {
            let all = std::env::var_os("CORFS_REQUIRE_ALL");
            assert!(all.is_none_or(|v| v != "1"), "{words}");
            return eprintln!("SKIP: {words}");
        }
    };
    let mount = Mount::of(mirrored.path())
        .opt("allow_other,suid,dev,map=u1000:2000:1/g300:3000:1")
        .start();
    let twins = Twins {
        shown: &kernels.0,
        source: native.path(),
        shown_by_corfs: mount.path(),
        source_of_corfs: mirrored.path(),
        nobody: &[Errno::OVERFLOW, Errno::INVAL],
    };
    twins.compare(ACTORS, 20_000);
}
