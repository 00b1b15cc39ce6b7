//! What the serving process may still touch, once the mount stands.

use super::Served;
use super::readahead;
use super::refusal::{Refusal, shown};
use super::settings::Settings;
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

fn name(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
