//! What the serving process may still touch, once the mount stands.

use super::Served;
use super::readahead;
use super::refusal::{Refusal, shown};
use super::settings::Settings;
use crate::cache::Store;
use crate::mirror::Passthrough;
use crate::sys::sandbox::{self, Access, Allowed, InForce};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Shuts this process in, and logs what is not in force. To be called while it has one thread:
/// those that it starts are inside then. What can't be opened inside stands in `served`.
///
/// What is missing, in the kernel or in this system, never keeps a mount from being made.
pub(super) fn enter(settings: &Settings, served: &Served) -> Result<InForce, Refusal> {
    let allowed = allowed(settings, served).map_err(|error| {
        Refusal::system(format!(
            "sandbox of {}: {error}",
            shown(served.source.path())
        ))
    })?;
    let in_force = sandbox::enter(allowed)
        .map_err(|fail| Refusal::system(format!("sandbox: {fail}; sandbox=off does without")))?;
    if in_force.missing.is_empty() {
        log::debug!("sandbox: {in_force}");
    } else {
        let missing = in_force.missing.join(", ");
        log::warn!("sandbox: {in_force}; not in force: {missing}");
    }
    Ok(in_force)
}

/// The source, with all that is mounted in it; procfs, for callers' rights and signals and for our
/// own descriptors; the device, for the event loops' clones of it; the mount's own readahead.
///
/// Not among them, as it is open already: the log.
fn allowed(settings: &Settings, served: &Served) -> std::io::Result<Vec<Allowed>> {
    let source = rustix::io::fcntl_dupfd_cloexec(served.source.as_fd(), 0)?;
    let mut allowed = vec![Allowed {
        beneath: source,
        access: match settings.options.passthrough {
            Passthrough::Never | Passthrough::Cached => Access::Mirror,
            Passthrough::Always => Access::Passthrough,
        },
    }];
    if settings.options.offline
        && let Some(store) = &served.store
    {
        allowed.extend(around(settings, store));
    }
    if let Some(store) = &served.store {
        allowed.push(Allowed {
            beneath: rustix::io::fcntl_dupfd_cloexec(store.root(), 0)?,
            access: match settings.options.passthrough {
                // Programs of the source run from there then.
                Passthrough::Cached => Access::Passthrough,
                _ => Access::Mirror,
            },
        });
    }
    let readahead = readahead::folder(&served.site);
    for (path, access) in [
        (Path::new("/proc"), Access::Read),
        (Path::new("/dev/fuse"), Access::Device),
        (Path::new(&readahead), Access::Write),
    ] {
        match name(path) {
            Ok(beneath) => allowed.push(Allowed { beneath, access }),
            // A container may lack it; then nothing in there can be opened anyway.
            Err(error) => log::debug!("sandbox: {}: {error}", path.display()),
        }
    }
    Ok(allowed)
}

/// The folder in which the source's file system is mounted, so that it is found again when it was
/// mounted anew: a rule for what is below the old mount's root says nothing of the new one, and one
/// for the mountpoint itself is not looked at, as something is mounted over it (security/landlock/fs.c,
/// is_access_to_paths_allowed). The root of all is never among them: that would be no sandbox.
fn around(settings: &Settings, store: &Store) -> Option<Allowed> {
    let key = &store.options().source;
    // Escaped bytes, where there are any, are those of a strange name: it has no such folder then.
    let mountpoint = key.about_line("mountpoint").map(Path::new);
    let mountpoint = match mountpoint.filter(|at| at.parent().is_some()) {
        Some(mountpoint) => mountpoint,
        // A folder of the root file system: it may be made anew where it was.
        None if settings.absent => &key.path,
        None => return None,
    };
    let parent = mountpoint.parent()?;
    if parent.parent().is_none() {
        log::info!(
            "sandbox: {} lies in the root directory: when it is mounted anew, corfs must be started \
             anew, or run with sandbox=off",
            shown(mountpoint)
        );
        return None;
    }
    let there = parent.ancestors().find(|path| path.is_dir())?;
    there.parent()?;
    Some(Allowed {
        beneath: name(there).ok()?,
        access: match settings.options.passthrough {
            Passthrough::Always => Access::Passthrough,
            _ => Access::Mirror,
        },
    })
}

fn name(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
