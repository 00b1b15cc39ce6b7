//! Whose credentials an operation runs under.

use std::os::fd::OwnedFd;

use rustix::fs::Gid;
use rustix::thread::CapabilitySet;

use super::Mirror;
use super::ids::{IdMap, STRANGER};
use crate::sys::creds::Credentials;
use crate::sys::{Errno, Fail, OrFail, Result, umask};

/// What lets be done in the source what the kernel has judged at the mount.
const JUDGED: u64 = CapabilitySet::DAC_OVERRIDE.bits()
    | CapabilitySet::DAC_READ_SEARCH.bits()
    | CapabilitySet::FOWNER.bits();

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

impl Caller {
    fn credentials(&self) -> Credentials {
        Credentials::of_request(self.uid, self.gid, self.pid)
    }
}

impl Mirror {
    /// Runs `f`, which creates something, as the caller: the new file belongs to it, and the
    /// kernel judges by its groups and its mask.
    ///
    /// # Errors
    /// EPERM when this process may not act for that caller; EOVERFLOW when it is nobody in the
    /// source; those of `f`.
    pub(super) fn create_as<R>(&self, caller: &Caller, f: impl FnOnce() -> Result<R>) -> Result<R> {
        umask::set(caller.umask)?;
        self.make_as(caller, f)
    }

    /// As [`Mirror::create_as`], for what has no mask.
    pub(super) fn make_as<R>(&self, caller: &Caller, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let ids = self.options.ids.as_ref();
        if self.privileged && ids.is_none() && caller.uid == 0 && caller.gid == 0 {
            // Whatever root lacks, the kernel has judged: what is made would be the same.
            return f();
        }
        self.run_as(caller, f, |asking| {
            let Some(ids) = ids else { return Ok(asking) };
            let maker = in_source(ids, asking)?;
            Ok(if ids.forces() { judged(maker) } else { maker })
        })
    }

    /// Refuses who is nobody in the source: he gives nothing a name, as on the kernel's own mapped
    /// mounts (fs/namei.c, may_create).
    ///
    /// # Errors
    /// EOVERFLOW.
    pub(super) fn check_known(&self, caller: &Caller) -> Result<()> {
        match &self.options.ids {
            Some(ids) if self.privileged => known(ids, caller.uid, caller.gid).map(drop),
            _ => Ok(()),
        }
    }

    /// The group that must be given to what this process, which may not become the caller, makes
    /// for it in `dir`: the caller's, where it differs from ours (sg(1), newgrp(1)).
    ///
    /// # Errors
    /// EPERM when we are not in that group.
    pub(super) fn group_to_give(&self, caller: &Caller, dir: &OwnedFd) -> Result<Option<Gid>> {
        if self.privileged || caller.gid == rustix::process::getegid().as_raw() {
            return Ok(None);
        }
        let handed_on = rustix::fs::fstat(dir).or_fail("fstat")?.st_mode & libc::S_ISGID != 0;
        if handed_on {
            return Ok(None);
        }
        let group = Gid::from_raw(caller.gid);
        if !rustix::process::getgroups()
            .or_fail("getgroups")?
            .contains(&group)
        {
            return Err(Fail::new(Errno::PERM, "act for another group"));
        }
        Ok(Some(group))
    }

    /// Runs `f`, which the kernel has judged at the mount, as the caller: what follows from not
    /// having a group or CAP_FSETID follows here.
    ///
    /// # Errors
    /// EPERM when this process may not act for that caller; those of `f`.
    pub(super) fn act_as<R>(&self, caller: &Caller, f: impl FnOnce() -> Result<R>) -> Result<R> {
        self.run_as(caller, f, |asking| Ok(judged(self.someone(asking))))
    }

    /// Who a file is opened for, where that is not this process itself: what is written then is
    /// that user's writing (see [`crate::sys::creds::with_fsuid`]).
    pub(super) fn writer(&self, caller: &Caller) -> Option<u32> {
        let ids = self.options.ids.as_ref();
        let uid = ids.map_or(Some(caller.uid), |ids| ids.users.source(caller.uid));
        let uid = uid.unwrap_or(STRANGER);
        (self.privileged && uid != 0).then_some(uid)
    }

    /// Runs `f`, which nobody has judged, by the rights that the caller has in the source.
    ///
    /// # Errors
    /// EPERM when this process may not act for that caller; those of `f`.
    pub(super) fn act_by_own_rights<R>(
        &self,
        caller: &Caller,
        f: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.run_as(caller, f, |asking| Ok(self.someone(asking)))
    }

    /// Who a caller is in the source; who is nobody there becomes one who owns nothing.
    fn someone(&self, asking: Credentials) -> Credentials {
        let Some(ids) = &self.options.ids else {
            return asking;
        };
        let uid = ids.users.source(asking.uid).unwrap_or(STRANGER);
        let gid = ids.groups.source(asking.gid).unwrap_or(STRANGER);
        with_ids(ids, asking, uid, gid)
    }

    fn run_as<R>(
        &self,
        caller: &Caller,
        f: impl FnOnce() -> Result<R>,
        who: impl FnOnce(Credentials) -> Result<Credentials>,
    ) -> Result<R> {
        if !self.privileged {
            // Refused rather than done as ourselves: the file would belong to the wrong user.
            if caller.uid != rustix::process::geteuid().as_raw() {
                return Err(Fail::new(Errno::PERM, "act for another user"));
            }
            return f();
        }
        who(caller.credentials())?.run_as(f)?
    }

    /// The credentials under which copies are made for one who opens a control file: nobody has
    /// judged them at the mount.
    ///
    /// # Errors
    /// EOVERFLOW when the caller is nobody in the source. EPERM when everything is shown with one
    /// user or group and the caller is neither that user nor one whom no mode stops: by the
    /// source's rights he might get what the mount denies him, and the reverse.
    pub fn opener(&self, caller: &Caller) -> Result<Credentials> {
        let asking = caller.credentials();
        let ids = match &self.options.ids {
            Some(ids) if self.privileged => ids,
            _ => return Ok(asking),
        };
        let opener = in_source(ids, asking)?;
        let unstoppable = opener.effective & JUDGED == JUDGED;
        if !ids.forces() || unstoppable {
            return Ok(opener);
        }
        if ids.users.all() == Some(caller.uid) {
            // To the owner of everything no mode is an obstacle: he may change it.
            return Ok(judged(opener));
        }
        Err(Fail::new(Errno::PERM, "open a control file")
            .because("all is shown with one owner, and the source knows others"))
    }

    /// Whether the kernel judges by owners that the source does not have, and this process has to
    /// go by its judgement.
    pub(super) fn forces(&self) -> bool {
        self.privileged && self.options.ids.as_ref().is_some_and(IdMap::forces)
    }
}

/// Who somebody on the mount is in the source; groups that are nobody's there count for nothing.
fn in_source(ids: &IdMap, asking: Credentials) -> Result<Credentials> {
    let (uid, gid) = known(ids, asking.uid, asking.gid)?;
    Ok(with_ids(ids, asking, uid, gid))
}

/// User and group in the source.
fn known(ids: &IdMap, uid: u32, gid: u32) -> Result<(u32, u32)> {
    let nobody = || {
        // As on the kernel's own mapped mounts (mount_setattr(2)).
        let words = format!("{uid}:{gid} is nobody in the source");
        Fail::new(Errno::OVERFLOW, "act for a caller").because(words)
    };
    let source = ids.users.source(uid).zip(ids.groups.source(gid));
    source.ok_or_else(nobody)
}

fn with_ids(ids: &IdMap, asking: Credentials, uid: u32, gid: u32) -> Credentials {
    let groups = asking.groups.iter();
    Credentials {
        uid,
        gid,
        groups: groups.filter_map(|&g| ids.groups.source(g)).collect(),
        effective: asking.effective,
    }
}

/// With the right to do what the kernel has judged already.
fn judged(mut credentials: Credentials) -> Credentials {
    credentials.effective |= JUDGED;
    credentials
}
