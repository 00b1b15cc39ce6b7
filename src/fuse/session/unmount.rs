//! Unmounting: our own mount at the end of a session, and `corfs umount`.

use super::fusermount;
use super::mount::{Site, is_privileged};
use super::mountinfo::Mount;
use super::parting::Server;
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether to wait for the users of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A mount in use stays.
    Plain,
    /// The name goes at once, the mount when its last user has gone.
    Lazy,
    /// The connection is aborted: who waits for an answer gets an error at once, and so does
    /// every later request of who has something open. The name goes too.
    Force,
}

/// Why a mount stayed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Somebody uses it.
    Busy,
    /// Another reason, in words.
    Because(String),
}

/// Unmounts what is on top at `path`, by umount2(2) where we may, else by `fusermount3`.
pub(super) fn unmount(path: &Path, manner: Manner) -> Result<(), Kept> {
    if manner != Manner::Force {
        return ask(path, manner);
    }
    // The daemon of an aborted connection may take its mount away before we do.
    let before = Site::of(path);
    ask(path, manner).or_else(|kept| match before {
        Some(site) if !site.stands() => Ok(()),
        _ => Err(kept),
    })
}

fn ask(path: &Path, manner: Manner) -> Result<(), Kept> {
    if is_privileged() {
        let lazy = match manner {
            Manner::Plain => UnmountFlags::empty(),
            Manner::Lazy => UnmountFlags::DETACH,
            // The kernel aborts before it detaches (fs/namespace.c, do_umount).
            Manner::Force => UnmountFlags::FORCE | UnmountFlags::DETACH,
        };
        match rustix::mount::unmount(path, lazy | UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) => return Err(Kept::Busy),
            // A capability of a user namespace that does not own this mount namespace.
            Err(Errno::PERM) => {}
            Err(error) => return Err(Kept::Because(said(error))),
        }
    }
    if manner != Manner::Force {
        return by_helper(path, manner == Manner::Lazy);
    }
    match abort(path) {
        Ok(()) => by_helper(path, true),
        // A dead mount has nothing to abort, and is not busy unless it is used.
        Err(words) => by_helper(path, false).map_err(|_| Kept::Because(words)),
    }
}

/// Unmounts by `fusermount3`.
fn by_helper(path: &Path, lazy: bool) -> Result<(), Kept> {
    fusermount::unmount(path, lazy).map_err(|words| {
        if words.contains("resource busy") {
            Kept::Busy
        } else {
            Kept::Because(words)
        }
    })
}

/// Aborts the connection of our mount at `path`, as its owner may (`fuse.rst`, "Aborting a
/// filesystem connection").
fn abort(path: &Path) -> Result<(), String> {
    let Some(site) = Site::of(path) else {
        return Err("no corfs mount is there".to_owned());
    };
    let file = abort_file(site.device);
    std::fs::write(&file, "1").map_err(|error| {
        format!(
            "abort by {}: {}; as root: corfs umount --force, or mount -t fusectl none {CONNECTIONS}",
            shown(&file),
            said(error)
        )
    })
}

/// Where the kernel shows its FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What aborts the connection of the mount that has this device number.
fn abort_file((major, minor): (u32, u32)) -> PathBuf {
    Path::new(CONNECTIONS).join(format!("{}/abort", (major << 20) | minor))
}

/// Ends our own mount, and no other: plainly, or lazily when it is in use.
///
/// Returns when the name is gone; the loops end when the last user has gone.
pub(super) fn end(site: &Site) {
    let path = shown(&site.path);
    // Another file system may be mounted over ours, or ours be gone and another there: neither
    // is ours to unmount (fuser's own way would unmount it).
    if !site.stands() {
        log::warn!(
            "unmount {path}: our mount is not on top there (covered, moved, or unmounted lazily); left alone, waiting for its end"
        );
        return;
    }
    match unmount(&site.path, Manner::Plain) {
        Ok(()) => log::info!("unmounted {path}"),
        Err(Kept::Busy) => match unmount(&site.path, Manner::Lazy) {
            Ok(()) => {
                log::warn!(
                    "{path}: busy; unmounted lazily, waiting for the last user (to cut it off: \
                     echo 1 > {})",
                    shown(abort_file(site.device))
                );
            }
            Err(kept) => log::error!("unmount {path}: {}", words(kept)),
        },
        Err(kept) => log::error!("unmount {path}: {}", words(kept)),
    }
}

/// How long somebody who ends the connection before he unmounts (`umount -f -l`) has for the second.
const BETWEEN: Duration = Duration::from_millis(20);
const LOOKS: usize = 25;

/// Takes away what is left of our own mount after its loops have ended.
///
/// Returns whether there was anything left.
pub(super) fn sweep(site: &Site) -> bool {
    let left = (0..LOOKS).all(|look| {
        if look > 0 {
            std::thread::sleep(BETWEEN);
        }
        site.stands()
    });
    if left && let Err(kept) = unmount(&site.path, Manner::Lazy) {
        log::error!("unmount {}: {}", shown(&site.path), words(kept));
    }
    left
}

/// `corfs umount`: unmounts the corfs mount at `path`, a dead one too.
pub fn command(path: &Path, manner: Manner) -> Result<(), Refusal> {
    let name = shown(path);
    let place = Place::of_directory(path).map_err(|error| {
        let remedy = match Errno::from_io_error(&error) {
            Some(Errno::NOTCONN | Errno::CONNABORTED) => {
                "; it lies in a mount whose daemon is dead: unmount that"
            }
            _ => "",
        };
        Refusal::mount(format!("umount {name}: {}{remedy}", said(error)))
    })?;
    let on_top = place
        .mount_on_top()
        .map_err(|error: io::Error| Refusal::system(format!("umount {name}: {}", said(error))))?;
    match on_top {
        None => {
            let around = place.mount().ok().filter(Mount::is_corfs);
            let remedy = around.map_or(String::new(), |mount| {
                format!("; it lies in the mount on {}", shown(&mount.mountpoint))
            });
            Err(Refusal::mount(format!(
                "umount {name}: not mounted; nothing is mounted there{remedy}"
            )))
        }
        Some(mount) if !mount.is_corfs() => Err(Refusal::mount(format!(
            "umount {name}: not a corfs mount but {}; use umount",
            mount.kind.display()
        ))),
        Some(mount) => {
            // The descriptor would keep it busy.
            drop(place);
            // Who unmounts lazily or by force waits for nobody.
            let plain = manner == Manner::Plain;
            let server = plain.then(|| Server::of(&mount.mountpoint)).flatten();
            unmount(&mount.mountpoint, manner)
                .map_err(|kept| Refusal::mount(format!("umount {name}: {}", words(kept))))?;
            if let Some(server) = server {
                server.wait();
            }
            Ok(())
        }
    }
}

fn words(kept: Kept) -> String {
    match kept {
        Kept::Busy => "busy; close what uses it (fuser -vm tells who), or give --lazy to unmount \
                       it when the last user has gone, or --force to cut them off"
            .to_owned(),
        Kept::Because(words) => words,
    }
}
