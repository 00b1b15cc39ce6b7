//! The capabilities that a mirror acting for its callers needs, and none beside them.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::sys::{Fail, OrFail, Result};

/// What stays, as far as it was there:
///
/// - `CHOWN`, `FOWNER`, `FSETID`: chown, chmod, times, setgid bits for those whom the kernel has
///   let through at the mount (`default_permissions`).
/// - `DAC_OVERRIDE`, `DAC_READ_SEARCH`: any file of the source; finding inodes by handle.
/// - `SETUID`, `SETGID`: creating as the caller.
/// - `MKNOD`: devices, for callers that may make them.
/// - `LINUX_IMMUTABLE`: `chattr +i` and `+a`, for callers that may.
/// - `SETFCAP`: `security.capability`; `SYS_ADMIN`: `trusted.*` and the other `security.*`
///   attributes, and FUSE passthrough. What else `SYS_ADMIN` is good for, seccomp refuses.
/// - `SYS_NICE`: an event loop that gave way to its client takes turns again. Seccomp leaves that of
///   it, for the thread that calls.
pub const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_NICE);

/// Drops every other one from all five sets.
///
/// The bounding set is emptied of them only by who may (`CAP_SETPCAP`); for others
/// `no_new_privs` keeps a program from gaining any.
pub(super) fn drop_others() -> Result<()> {
    let before = capabilities(None).or_fail("capget")?;
    if before.effective.contains(CapabilitySet::SETPCAP) {
        bound()?;
    }
    // EINVAL: a kernel without ambient capabilities (before 4.3).
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(Fail::new(errno, "prctl PR_CAP_AMBIENT")),
    }
    let kept = before.permitted & KEPT;
    let after = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, after).or_fail("capset")
}

/// By number, as the kernel may have capabilities that no library has a name for.
fn bound() -> Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // EINVAL: the kernel has no capability of this number.
        if KEPT.contains(one) || capability_is_in_bounding_set(one) != Ok(true) {
            continue;
        }
        remove_capability_from_bounding_set(one).or_fail("prctl PR_CAPBSET_DROP")?;
    }
    Ok(())
}
