//! How far the kernel reads ahead on a mount.
//!
//! It begins with 128 KiB for every file system without a device of its own, and takes no more from
//! the handshake of FUSE than it has by then (fs/fuse/inode.c, process_init_reply). Only sysfs
//! raises it, for root. Requests stay at 1 MiB at most; several of them are under way then.

use super::mount::Site;

/// Unless it is said otherwise, in bytes: as much as one request may ask for.
const USUAL: usize = 1 << 20;

/// Where the kernel keeps the readahead of this mount (Documentation/ABI/testing/sysfs-class-bdi).
pub(super) fn folder(site: &Site) -> String {
    let (major, minor) = site.device;
    format!("/sys/class/bdi/{major}:{minor}")
}

/// What is to be set, in bytes.
pub(super) fn asked(size: Option<usize>) -> usize {
    size.unwrap_or(USUAL)
}

/// Sets it, after the handshake. What was not asked for is no loss where it can't be had.
pub(super) fn set(site: &Site, wanted: Option<usize>) {
    let file = format!("{}/read_ahead_kb", folder(site));
    let size = asked(wanted);
    match std::fs::write(&file, (size >> 10).to_string()) {
        Ok(()) => log::debug!("readahead: {size} bytes"),
        Err(error) if wanted.is_some() => {
            log::warn!("readahead={size}: can't be set ({file}: {error}); it needs root");
        }
        Err(error) => log::debug!("readahead stays as it is: {file}: {error}"),
    }
}
