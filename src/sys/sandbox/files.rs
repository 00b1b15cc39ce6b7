//! Landlock: which files may be opened, made, removed (landlock(7)).
//!
//! What it does not restrict: descriptors that are open already, stat, attributes (mode, owner,
//! times, xattr) of what an `O_PATH` descriptor names. Sockets with a path, such as syslog's, are
//! left as they are too.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Access, Allowed};
use crate::sys::{Errno, Fail, OrFail, Result};

/// The newest rules that were tried (Linux 6.15).
const NEWEST: ABI = ABI::V7;

/// Restricts this thread, and those it will start: files, TCP, signals to others, abstract sockets.
///
/// In words, what an older kernel leaves out.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where there is no Landlock, and where it is too old to let files be
/// renamed from one directory to another (before Linux 5.19); E2BIG in 16 sandboxes already.
pub(super) fn restrict(allowed: Vec<Allowed>) -> Result<Option<String>> {
    let status = enforce(allowed).map_err(refused)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(None),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(Some(format!(
            "landlock wholly (the kernel has its version {effective_abi} of {NEWEST})"
        ))),
        _ => Err(Fail::new(Errno::NOSYS, "landlock")),
    }
}

fn enforce(
    allowed: Vec<Allowed>,
) -> std::result::Result<landlock::RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        // Without this right to be given, no file can leave its directory.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for Allowed { beneath, access } in allowed {
        rules = rules.add_rule(PathBeneath::new(beneath, rights(access)))?;
    }
    rules.restrict_self()
}

fn rights(access: Access) -> BitFlags<AccessFs> {
    match access {
        // The mirror runs no program and opens no device.
        Access::Mirror => AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::IoctlDev),
        Access::Passthrough => AccessFs::from_all(NEWEST) & !AccessFs::IoctlDev,
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Access::Write => {
            AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::Truncate
        }
        Access::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
    }
}

fn refused(error: RulesetError) -> Fail {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            let failed: Result<()> = Err(io::Error::from(io.kind())).or_fail("landlock");
            let errno = Errno::from_io_error(io);
            return errno.map_or_else(
                || failed.err().unwrap_or(Fail::new(Errno::IO, "landlock")),
                |errno| Fail::new(errno, "landlock"),
            );
        }
        source = cause.source();
    }
    Fail::new(Errno::OPNOTSUPP, "landlock").because(error.to_string())
}
