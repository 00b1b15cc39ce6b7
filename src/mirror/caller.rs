//! Whose credentials an operation runs under.

use super::Mirror;
use crate::sys::creds::Credentials;
use crate::sys::{Errno, Fail, Result, umask};

/// Who asked, as the request's header says.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user.
    pub uid: u32,
    /// File system group.
    pub gid: u32,
    /// Thread that asked; 0 in another pid namespace.
    pub pid: u32,
    /// Its file creation mask, where the operation creates something.
    pub umask: u32,
}

impl Mirror {
    /// Runs `f`, which creates something, as the caller: the new file belongs to it, and the
    /// kernel judges by its groups and its mask.
    ///
    /// # Errors
    /// EPERM when this process may not act for that caller; those of `f`.
    pub(super) fn create_as<R>(&self, caller: &Caller, f: impl FnOnce() -> Result<R>) -> Result<R> {
        umask::set(caller.umask)?;
        self.act_as(caller, f)
    }

    /// Runs `f` as the caller.
    ///
    /// # Errors
    /// EPERM when this process may not act for that caller; those of `f`.
    pub(super) fn act_as<R>(&self, caller: &Caller, f: impl FnOnce() -> Result<R>) -> Result<R> {
        if !self.privileged {
            // Refused rather than done as ourselves: the file would belong to the wrong user.
            if caller.uid != rustix::process::geteuid().as_raw() {
                return Err(Fail::new(Errno::PERM, "act for another user"));
            }
            return f();
        }
        if caller.uid == 0 && caller.gid == 0 {
            return f();
        }
        Credentials::of_request(caller.uid, caller.gid, caller.pid).run_as(f)?
    }
}
