//! `-o remount`: the flags of a mount that stands, changed by mount(8).

use super::mount::flags;
use super::place::Place;
use super::refusal::{Refusal, said, shown};
use super::settings::Settings;
use rustix::io::Errno;
use std::path::Path;

/// Gives the corfs mount at the mountpoint the flags of `settings` (`ro`, `suid`, `dev`, `noexec`,
/// `sync`, `dirsync`, `noatime`). All else stays as it was mounted: mount(8) hands every word of
/// the mount back, so the others can't be told from wishes.
///
/// # Errors
/// No corfs mount there; one that was mounted `ro` and is to be `rw`, for its daemon stays
/// read-only; what mount(2) says (EBUSY: files are open for writing).
pub fn command(settings: &Settings) -> Result<(), Refusal> {
    let name = shown(&settings.mountpoint);
    let refused = |words: String| Refusal::mount(format!("remount {name}: {words}"));
    let place = Place::of_directory(&settings.mountpoint).map_err(|error| refused(said(error)))?;
    let mount = place
        .mount_on_top()
        .map_err(|error| refused(said(error)))?
        .filter(super::mountinfo::Mount::is_corfs)
        .ok_or_else(|| refused("no corfs mount is there".to_owned()))?;
    if !settings.options.read_only && daemon_is_read_only(place.path()) {
        return Err(refused(
            "it was mounted read-only and so stays; unmount it and mount it anew".to_owned(),
        ));
    }
    rustix::mount::mount_remount(&mount.mountpoint, flags(settings), c"").map_err(|error| {
        let remedy = match error {
            Errno::BUSY => "; files are open for writing (fuser -vm tells by whom)",
            Errno::PERM => "; only root may change the flags of a mount",
            _ => "",
        };
        refused(format!("{}{remedy}", said(error)))
    })
}

/// Whether the daemon itself was told `ro`, whatever the mount's flags are now. A mount without
/// control files does not say; there the daemon's own EROFS does.
fn daemon_is_read_only(root: &Path) -> bool {
    std::fs::read_to_string(root.join(".corfs/config"))
        .is_ok_and(|text| text.lines().any(|line| line == "ro=true"))
}
