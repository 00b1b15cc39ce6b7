//! What can be told before mounting: each obstacle in its own words.

use super::mountinfo::Mount;
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use super::settings::Settings;
use super::{absent, store};
use crate::cache::{SourceKey, Store};
use crate::mirror::{Coherence, refuse_unwatchable};
use crate::observe::Metrics;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Both ends of a mount, found fit for it.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The source, opened before anything can be mounted over its path.
    pub(super) source: Place,
    /// The mountpoint as it is before the mount.
    pub(super) target: Place,
    /// The mountpoint's path, absolute, as it was given.
    pub(super) given: PathBuf,
    /// `/dev/fuse`, open for reading and writing.
    pub(super) device: OwnedFd,
    /// The cache, opened before anything can be mounted over its path.
    pub(super) store: Option<Arc<Store>>,
    /// The source is not there: what stands for it is a folder of the store.
    pub(super) absent: bool,
    /// What is counted from here on.
    pub(super) metrics: Arc<Metrics>,
}

/// Opens both ends, and refuses what could not work, would deadlock or would hide something.
pub(super) fn check(settings: &Settings) -> Result<Prepared, Refusal> {
    refuse_maps_of_users(settings)?;
    let possible = absent::is_possible(settings);
    let answers = !possible || absent::answers(settings);
    let known = possible
        .then(|| absent::remembered(settings, answers))
        .flatten();
    let source = match open_or_missed(settings, known.as_ref(), answers)? {
        Ok(source) => source,
        Err(why) => return check_absent(settings, known, &why),
    };
    if settings.options.coherence == Coherence::Watch {
        refuse_unwatchable(source.as_fd()).map_err(|fail| {
            let path = shown(source.path());
            Refusal::mount(format!("source {path}: {fail}"))
        })?;
    }
    let target = open_mountpoint(&settings.mountpoint)?;
    refuse_mounted(&target)?;
    refuse_overlap(source.path(), target.path())?;
    if !settings.nonempty {
        refuse_full(target.path())?;
    }
    let device = open_device()?;
    let metrics = Arc::new(Metrics::new());
    let store = store::open(settings, &source, &target, &metrics)?;
    // Now: a daemon's working directory is another.
    let given =
        std::path::absolute(&settings.mountpoint).unwrap_or_else(|_| target.path().to_owned());
    Ok(Prepared {
        source,
        target,
        given,
        device,
        store,
        absent: false,
        metrics,
    })
}

/// The source, or in words why it is not there, where the cache knows it.
fn open_or_missed(
    settings: &Settings,
    known: Option<&SourceKey>,
    answers: bool,
) -> Result<Result<Place, String>, Refusal> {
    if !answers {
        return Ok(Err("it does not answer".into()));
    }
    let Some(known) = known else {
        return open_source(&settings.source)
            .map(Ok)
            .map_err(|refusal| advised(settings, refusal));
    };
    match Place::of_directory(&settings.source) {
        Ok(place) if absent::is_there(known, &place) => open_source(&settings.source).map(Ok),
        Ok(_) => Ok(Err("nothing is mounted there".into())),
        Err(error) => Ok(Err(said(error))),
    }
}

/// What would help the next time.
fn advised(settings: &Settings, refusal: Refusal) -> Refusal {
    match &settings.cache {
        Some(_) if settings.options.offline && !settings.source.exists() => Refusal {
            words: format!(
                "{}; the cache does not know it by that path (with cache_id= it is known by any)",
                refusal.words
            ),
            ..refusal
        },
        _ => refusal,
    }
}

/// As [`check`], of a source that is not there.
fn check_absent(
    settings: &Settings,
    known: Option<SourceKey>,
    why: &str,
) -> Result<Prepared, Refusal> {
    let Some(known) = known else {
        return Err(Refusal::mount(format!(
            "source {}: {why}, and the cache does not know it by that path; make it answer, or give \
             the cache_id= under which it was cached",
            shown(&settings.source)
        )));
    };
    let target = open_mountpoint(&settings.mountpoint)?;
    refuse_mounted(&target)?;
    if !settings.nonempty {
        refuse_full(target.path())?;
    }
    let metrics = Arc::new(Metrics::new());
    let device = open_device()?;
    let (source, store) = absent::stand_in(settings, known, why, &target, &metrics)?;
    let given =
        std::path::absolute(&settings.mountpoint).unwrap_or_else(|_| target.path().to_owned());
    Ok(Prepared {
        source,
        target,
        given,
        device,
        store: Some(store),
        absent: true,
        metrics,
    })
}

/// An ordinary user cannot make files for others: refused here, rather than at every call. `uid=`
/// and `gid=` alone change nothing but what is shown.
fn refuse_maps_of_users(settings: &Settings) -> Result<(), Refusal> {
    let ids = settings.options.ids.as_ref();
    let mapped =
        ids.is_some_and(|ids| !ids.users.ranges().is_empty() || !ids.groups.ranges().is_empty());
    if mapped && !rustix::process::geteuid().is_root() {
        return Err(Refusal::mount(
            "option map: only root can make files for other users; uid= and gid= change what is \
             shown",
        ));
    }
    Ok(())
}

fn open_source(path: &Path) -> Result<Place, Refusal> {
    let refuse = |error: Errno| {
        let remedy = match error {
            Errno::NOTDIR => "; only a directory can be mirrored",
            Errno::ACCESS => "; corfs must run as somebody who may list it",
            Errno::NOTCONN => "; it lies in a mount whose daemon is dead",
            _ => "",
        };
        Refusal::mount(format!("source {}: {}{remedy}", shown(path), said(error)))
    };
    let place = Place::of_directory(path).map_err(|error| refuse(errno(&error)))?;
    // An O_PATH descriptor asks for no permission: a real open tells whether it can be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(place.as_fd(), ".", flags, Mode::empty()).map_err(refuse)?;
    Ok(place)
}

fn open_mountpoint(path: &Path) -> Result<Place, Refusal> {
    Place::of_directory(path).map_err(|error| {
        let remedy = match errno(&error) {
            Errno::NOENT => "; make it first: mkdir",
            Errno::NOTDIR => "; a directory is needed",
            Errno::NOTCONN => "; it lies in a mount whose daemon is dead",
            _ => "",
        };
        Refusal::mount(format!(
            "mountpoint {}: {}{remedy}",
            shown(path),
            said(error)
        ))
    })
}

/// Refuses a mountpoint that has a dead mount or a living one of ours on top.
///
/// Another file system there is no hindrance: a disk's empty root is a mountpoint as good as any.
fn refuse_mounted(target: &Place) -> Result<(), Refusal> {
    let path = shown(target.path());
    let unreadable = |error| Refusal::system(format!("mounts of this process: {}", said(error)));
    let on_top: Option<Mount> = target.mount_on_top().map_err(unreadable)?;
    let ours = on_top.as_ref().is_some_and(Mount::is_corfs);
    match ask(target) {
        Err(error @ (Errno::NOTCONN | Errno::CONNABORTED)) => {
            let remedy = if ours { "corfs umount" } else { "umount" };
            Err(Refusal::mount(format!(
                "mountpoint {path}: {}: dead mount, its daemon is gone; type: {remedy} {}",
                said(error),
                quoted(target.path()),
            )))
        }
        _ if ours => Err(Refusal::mount(format!(
            "mountpoint {path}: already mounted; first type: corfs umount {}",
            quoted(target.path()),
        ))),
        Err(error) => Err(Refusal::mount(format!(
            "mountpoint {path}: {}",
            said(error)
        ))),
        Ok(()) => Ok(()),
    }
}

/// Asks the file system that is at `place` now; attributes that the kernel still trusts would
/// make a dead mount look alive.
fn ask(place: &Place) -> Result<(), Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(place, "", flags, StatxFlags::BASIC_STATS).map(drop)
}

/// Refuses a source inside its mountpoint (the mount would hide it) and the reverse (the mirror
/// would meet itself, and wait for itself).
///
/// Compared by identity as well as by name: a bind mount has another name, and a mount made at
/// one of them may appear at the other.
fn refuse_overlap(source: &Path, target: &Path) -> Result<(), Refusal> {
    let (within_source, within_target) = (inside(target, source), inside(source, target));
    let what = match (within_source, within_target) {
        (true, true) => "are the same directory",
        (true, false) => "do not go together: the mountpoint lies inside the source",
        (false, true) => "do not go together: the source lies inside the mountpoint",
        (false, false) => return Ok(()),
    };
    Err(Refusal::mount(format!(
        "source {} and mountpoint {} {what}; choose a mountpoint elsewhere",
        shown(source),
        shown(target),
    )))
}

/// Whether one directory lies in the other, or is it.
pub(super) fn inside(inner: &Path, outer: &Path) -> bool {
    let id = identity(outer);
    inner.starts_with(outer)
        || (id.is_some() && inner.ancestors().any(|above| identity(above) == id))
}

/// Device and inode; `None` where they cannot be had (another user's mount, a dead one).
fn identity(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Refuses a mountpoint with something in it. One that cannot be listed is left to mount(2).
fn refuse_full(target: &Path) -> Result<(), Refusal> {
    match fs::read_dir(target).map(|mut entries| entries.next()) {
        Ok(Some(_)) => Err(Refusal::mount(format!(
            "mountpoint {}: not empty; the mount would hide what is in it (-o nonempty allows it)",
            shown(target),
        ))),
        _ => Ok(()),
    }
}

fn open_device() -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| {
        let remedy = match error {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                "load the kernel's module: modprobe fuse (a container needs --device /dev/fuse)"
            }
            Errno::ACCESS => "let users open it, as root: chmod 666 /dev/fuse",
            _ => "a container needs --device /dev/fuse and the right to mount",
        };
        Refusal::mount(format!("open /dev/fuse: {}; {remedy}", said(error)))
    })
}

/// A path that can be pasted into a shell.
fn quoted(path: &Path) -> String {
    let text = shown(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_for_the_shell_is_quoted_when_it_must_be() {
        assert_eq!(quoted(Path::new("/mnt/a_b-1.x")), "/mnt/a_b-1.x");
        assert_eq!(quoted(Path::new("/mnt/a b")), "'/mnt/a b'");
        assert_eq!(quoted(Path::new("/it's")), "'/it'\\''s'");
    }

    #[test]
    fn nested_and_equal_directories_are_refused_and_siblings_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (a, b) = (root.join("a"), root.join("ab"));
        fs::create_dir_all(a.join("in")).unwrap();
        fs::create_dir(&b).unwrap();
        let words = |s: &Path, t: &Path| refuse_overlap(s, t).unwrap_err().words;
        assert!(words(&a, &a).contains("same directory"));
        assert!(words(&a, &a.join("in")).contains("mountpoint lies inside the source"));
        assert!(words(&a.join("in"), &a).contains("source lies inside the mountpoint"));
        refuse_overlap(&a, &b).unwrap();
        refuse_overlap(&b, &a).unwrap();
    }
}
