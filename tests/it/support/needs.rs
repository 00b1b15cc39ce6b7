//! What a test needs of the machine, and how long it may take.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An ordinary user of the tests: `nobody` on every system we know, but any number would do.
pub(crate) const USER: u32 = 65_534;
/// A second ordinary user, in no file of the system.
pub(crate) const OTHER: u32 = 54_321;

/// Something that a test cannot do without and that not every machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// `/dev/fuse`, open to us.
    Fuse,
    /// `/dev/fuse` and `fusermount3` usable by an ordinary user.
    UserFuse,
    /// uid 0.
    Root,
    /// A command in `PATH` (or an `sbin`).
    Tool(&'static str),
    /// A file system that the kernel can mount, its `mkfs`, and loop devices. Implies root.
    Filesystem(&'static str),
}

/// Whether everything a test needs is here. If not, says `SKIP: reason` on stderr, or panics under
/// `CORFS_REQUIRE_ALL=1`.
#[must_use]
pub(crate) fn require(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|&need| missing(need)) else {
        return true;
    };
    assert!(
        std::env::var_os("CORFS_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "CORFS_REQUIRE_ALL=1, but {reason}"
    );
    eprintln!("SKIP: {reason}");
    false
}

/// What is missing for `need`, in words; `None` when nothing is.
fn missing(need: Need) -> Option<String> {
    match need {
        Need::Fuse => File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .err()
            .map(|error| format!("/dev/fuse cannot be opened: {error}")),
        Need::UserFuse => missing(Need::Fuse)
            .or_else(|| missing(Need::Tool("fusermount3")))
            .or_else(|| {
                let mode = fs::metadata("/dev/fuse").map_or(0, |m| m.mode());
                (mode & 0o006 != 0o006)
                    .then(|| "/dev/fuse is closed to ordinary users (chmod 0666)".into())
            }),
        Need::Root => (!is_root()).then(|| "not root".into()),
        Need::Tool(name) => tool(name)
            .is_none()
            .then(|| format!("{name} is not installed")),
        Need::Filesystem(kind) => missing_filesystem(kind),
    }
}

/// What is missing to make and mount a `kind` on a loop device.
fn missing_filesystem(kind: &'static str) -> Option<String> {
    if !is_root() {
        return Some("not root".into());
    }
    let mkfs = format!("mkfs.{kind}");
    if tool(&mkfs).is_none() {
        return Some(format!("{mkfs} is not installed"));
    }
    if tool("losetup").is_none() || !Path::new("/dev/loop-control").exists() {
        return Some("no loop devices".into());
    }
    let known = || {
        fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .any(|line| line.trim() == kind)
    };
    if !known() {
        // The kernel may have it as a module; without modprobe the answer stays no.
        let _ = Command::new("modprobe")
            .arg(kind)
            .stderr(Stdio::null())
            .status();
    }
    (!known()).then(|| format!("the kernel has no {kind}"))
}

/// Whether we are uid 0.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a command lies, also in the folders that an ordinary user's `PATH` lacks.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .chain(postgres_folders())
        .map(|folder| folder.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

/// Where Debian puts each version of PostgreSQL.
fn postgres_folders() -> impl Iterator<Item = PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql");
    let found = versions.into_iter().flatten().flatten();
    found.map(|version| version.path().join("bin"))
}

/// The size of a long test: `full` scaled by `CORFS_SOAK` (1 is the full size, 0.1 the default),
/// at least 1.
pub(crate) fn soak(full: u64) -> u64 {
    let scale = std::env::var("CORFS_SOAK")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(0.1);
    // Sizes here are far below 2^52, so the detour over f64 is exact enough.
    ((full as f64 * scale) as u64).max(1)
}
