//! Doing something as somebody else, on one thread, and being oneself again afterwards.
//!
//! The kernel keeps credentials per thread. glibc's wrappers change every thread of the process
//! (`setgroups(2)`, "C library/kernel differences"), so the calls here go to the kernel directly
//! or through rustix, which does the same.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use rustix::process::{Gid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
};

use super::{Errno, Fail, OrFail, Result};

#[cfg(not(any(target_arch = "arm", target_arch = "x86")))]
use libc::{SYS_setfsgid as SYS_SETFSGID, SYS_setfsuid as SYS_SETFSUID};
#[cfg(any(target_arch = "arm", target_arch = "x86"))]
use libc::{SYS_setfsgid32 as SYS_SETFSGID, SYS_setfsuid32 as SYS_SETFSUID};

/// With these a process' groups decide nothing about files, so they need no switching.
const GROUPS_ARE_MOOT: u64 = CapabilitySet::CHOWN.bits()
    | CapabilitySet::DAC_OVERRIDE.bits()
    | CapabilitySet::DAC_READ_SEARCH.bits()
    | CapabilitySet::FOWNER.bits()
    | CapabilitySet::FSETID.bits();

/// What it takes to become another user and to come back.
const MAY_SWITCH: u64 = CapabilitySet::SETUID.bits() | CapabilitySet::SETGID.bits();

thread_local! {
    /// This thread has somebody else's identity at the moment.
    static SWITCHED: Cell<bool> = const { Cell::new(false) };
}

/// Who somebody is to a file system: what decides over access, and owns what is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user id, as the initial user namespace of this process numbers it.
    pub uid: u32,
    /// The group id that new files get.
    pub gid: u32,
    /// The supplementary groups, in the order in which the kernel gives them.
    pub groups: Vec<u32>,
    /// The effective capabilities, one bit each (`capabilities(7)`).
    pub effective: u64,
}

impl Credentials {
    /// The one who sent a request: `uid` and `gid` from its header, supplementary groups and
    /// effective capabilities of the thread `pid` from `/proc`.
    ///
    /// When `pid` is 0 (a caller in another pid namespace) or gone, it has no supplementary
    /// groups and no capabilities. A caller in another user namespace has no capabilities
    /// either: its `/proc/PID/status` shows those it has *there*, which anyone can give himself.
    /// Nor has one whose ids there are not those of the request: a thread that acts for another
    /// (the kernel's NFS server, io_uring with a personality) lends him nothing of its own.
    pub fn of_request(uid: u32, gid: u32, pid: u32) -> Self {
        let (groups, effective) = of_thread(pid, uid, gid).unwrap_or_default();
        Self {
            uid,
            gid,
            groups,
            effective,
        }
    }

    /// The calling thread itself, by its effective ids.
    pub fn of_self() -> Self {
        let groups = getgroups().unwrap_or_default();
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            effective: capabilities(None).map_or(0, |sets| sets.effective.bits()),
        }
    }

    /// True when acting as these credentials needs no switch: a process without privileges acts
    /// only for its own user (and then with its own groups, whatever `gid` says); a privileged
    /// one acts as itself for a caller who has the same ids and no less capabilities.
    pub fn is_self(&self) -> bool {
        self.is(ours())
    }

    fn is(&self, ours: &Self) -> bool {
        if self.uid != ours.uid {
            return false;
        }
        if !ours.may_switch() {
            return true;
        }
        let groups_agree =
            self.groups == ours.groups || ours.effective & GROUPS_ARE_MOOT == GROUPS_ARE_MOOT;
        self.gid == ours.gid && self.effective & ours.effective == ours.effective && groups_agree
    }

    fn may_switch(&self) -> bool {
        self.effective & MAY_SWITCH == MAY_SWITCH
    }

    /// Runs `f` on this thread with this uid, gid, these groups and no more capabilities than
    /// both sides have; then restores the thread's own, also when `f` panics.
    ///
    /// A process without privileges runs `f` as itself for its own user, also when the caller's
    /// `gid` differs from the process': it can't do better, and grants nothing it was not given.
    ///
    /// Not to be nested: within `f` a second `run_as` fails with EBUSY.
    ///
    /// # Errors
    /// EPERM when this process may not become that caller (never done as ourselves instead), or
    /// what the system calls said. If the thread cannot get its own identity back, the process
    /// aborts: a thread that serves others must not go on as a stranger.
    pub fn run_as<R>(&self, f: impl FnOnce() -> R) -> Result<R> {
        if SWITCHED.get() {
            return Err(Fail::new(Errno::BUSY, "run_as").because("already acting for another"));
        }
        if self.is_self() {
            return Ok(f());
        }
        if !ours().may_switch() {
            return Err(Fail::new(Errno::PERM, "run_as")
                .because(format!("not privileged to act as uid {}", self.uid)));
        }
        let switched = Switched::to(self)?;
        let answer = f();
        drop(switched);
        Ok(answer)
    }
}

/// The identity of the process, read once by a thread that is nobody else.
fn ours() -> &'static Credentials {
    static OURS: OnceLock<Credentials> = OnceLock::new();
    OURS.get_or_init(Credentials::of_self)
}

/// The identity that a thread had, and gets back when this is dropped. A guard, because a panic
/// in between must not leave the thread with a stranger's identity either.
struct Switched {
    groups: Vec<Gid>,
    fsuid: u32,
    fsgid: u32,
    sets: CapabilitySets,
}

impl Switched {
    fn to(other: &Credentials) -> Result<Self> {
        let before = Self {
            groups: getgroups().or_fail("getgroups")?,
            fsuid: fsuid(),
            fsgid: fsgid(),
            sets: capabilities(None).or_fail("capget")?,
        };
        SWITCHED.set(true);
        before.become_other(other).map(|()| before)
        // When a step failed, `before` is dropped here and undoes the steps before it.
    }

    /// Groups and gid first: without its uid the thread may no longer change them.
    fn become_other(&self, other: &Credentials) -> Result<()> {
        let groups: Vec<Gid> = other.groups.iter().map(|&g| Gid::from_raw(g)).collect();
        set_thread_groups(&groups).or_fail("setgroups")?;
        set_fsgid(other.gid)?;
        set_fsuid(other.uid)?;
        // A changed fsuid made the kernel drop or raise the file capabilities (`capabilities(7)`,
        // "Effect of user ID changes"); here they become exactly what both sides have.
        let effective = self.sets.effective & CapabilitySet::from_bits_retain(other.effective);
        set_capabilities(
            None,
            CapabilitySets {
                effective,
                ..self.sets
            },
        )
        .or_fail("capset")
    }

    /// Capabilities first, they permit the rest, and last, for the fsuid's change drops some.
    fn restore(&self) -> Result<()> {
        set_capabilities(None, self.sets).or_fail("capset")?;
        set_fsuid(self.fsuid)?;
        set_fsgid(self.fsgid)?;
        set_thread_groups(&self.groups).or_fail("setgroups")?;
        set_capabilities(None, self.sets).or_fail("capset")
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        if let Err(fail) = self.restore() {
            log::error!("cannot return to the daemon's own identity, giving up: {fail}");
            std::process::abort();
        }
        SWITCHED.set(false);
    }
}

/// Runs `f`, which changes files that are open already, as the file system user `uid`: open as they
/// are, it decides nothing but what room a file system leaves to whom (ext4's reserved blocks are
/// root's, fs/ext4/balloc.c, ext4_has_free_clusters) and whose bits a write takes away. All else of
/// the thread's identity stays; if it can't get its uid back, the process aborts.
///
/// # Errors
/// EPERM when this process may not become that user.
pub fn with_fsuid<R>(uid: u32, f: impl FnOnce() -> R) -> Result<R> {
    struct Back(u32);
    impl Drop for Back {
        fn drop(&mut self) {
            if let Err(fail) = set_fsuid(self.0) {
                log::error!("cannot return to the daemon's own identity, giving up: {fail}");
                std::process::abort();
            }
        }
    }
    let back = Back(fsuid());
    set_fsuid(uid)?;
    let answer = f();
    drop(back);
    Ok(answer)
}

/// Sets the thread's file system uid, and makes sure that it took: the call itself tells no error.
fn set_fsuid(uid: u32) -> Result<()> {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::syscall(SYS_SETFSUID, uid) };
    if uid == u32::MAX || fsuid() != uid {
        return Err(Fail::new(Errno::PERM, "setfsuid").because(format!("uid {uid}")));
    }
    Ok(())
}

/// As [`set_fsuid`], for the group.
fn set_fsgid(gid: u32) -> Result<()> {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::syscall(SYS_SETFSGID, gid) };
    if gid == u32::MAX || fsgid() != gid {
        return Err(Fail::new(Errno::PERM, "setfsgid").because(format!("gid {gid}")));
    }
    Ok(())
}

/// -1 is no user, so this changes nothing and answers the present one (`setfsuid(2)`).
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ids are 32 bits"
)]
fn fsuid() -> u32 {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::syscall(SYS_SETFSUID, u32::MAX) as u32 }
}

/// The user as whom this thread makes files now.
pub fn acting_uid() -> u32 {
    fsuid()
}

/// As [`fsuid`], for the group.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ids are 32 bits"
)]
fn fsgid() -> u32 {
    // SAFETY: takes a number, touches no memory of ours.
    unsafe { libc::syscall(SYS_SETFSGID, u32::MAX) as u32 }
}

/// Supplementary groups and effective capabilities of a thread, as far as they count for us when
/// it asks as that user and group.
fn of_thread(pid: u32, uid: u32, gid: u32) -> Option<(Vec<u32>, u64)> {
    if pid == 0 {
        return None;
    }
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    if file_system_id(&status, "Uid") != Some(uid) || file_system_id(&status, "Gid") != Some(gid) {
        return None;
    }
    let (groups, effective) = parse_status(&status)?;
    // Who has none there has none here: the question is worth its price only for the others.
    let counts = effective != 0 && lives_in_our_namespace(pid);
    Some((groups, if counts { effective } else { 0 }))
}

/// Who tells whether a thread is in this process' user namespace.
type Witness = Box<dyn Fn(u32) -> bool + Send + Sync>;

static WITNESS: OnceLock<Witness> = OnceLock::new();

/// Lets `witness` tell which threads are in this process' user namespace, for a process that can't
/// see it itself: Landlock hides the namespaces of all that is outside the sandbox, as they can be
/// seen by those only who may trace a process (ptrace(2), "Ptrace access mode checking").
///
/// The first one counts.
pub fn set_namespace_witness(witness: impl Fn(u32) -> bool + Send + Sync + 'static) {
    let _ = WITNESS.set(Box::new(witness));
}

fn lives_in_our_namespace(pid: u32) -> bool {
    match WITNESS.get() {
        Some(witness) => witness(pid),
        None => shares_user_namespace(pid),
    }
}

/// Whether the thread `pid` is in the user namespace of this process, as far as this process may
/// see it; what it can't see is not.
pub fn shares_user_namespace(pid: u32) -> bool {
    user_namespace(&pid.to_string())
        .zip(user_namespace("self"))
        .is_some_and(|(theirs, own)| theirs == own)
}

/// Device and inode of a process' user namespace: equal when it is the same (`namespaces(7)`).
fn user_namespace(process: &str) -> Option<(u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{process}/ns/user")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// The last of the four ids (real, effective, saved, file system) on a line of
/// `/proc/PID/status`.
fn file_system_id(status: &[u8], name: &str) -> Option<u32> {
    let ids = super::watch::field(status, name)?;
    ids.split_ascii_whitespace().nth(3)?.parse().ok()
}

fn parse_status(status: &[u8]) -> Option<(Vec<u32>, u64)> {
    let groups = super::watch::field(status, "Groups")?
        .split_ascii_whitespace()
        .map(|group| group.parse().ok())
        .collect::<Option<Vec<u32>>>()?;
    let effective = u64::from_str_radix(super::watch::field(status, "CapEff")?, 16).ok()?;
    Some((groups, effective))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::process::{Command, Stdio};

    use super::*;

    const STRANGER: u32 = 54_321;

    fn stranger() -> Credentials {
        Credentials {
            uid: STRANGER,
            gid: STRANGER + 1,
            groups: vec![],
            effective: 0,
        }
    }

    /// Switching needs privileges; without them there is nothing to observe.
    fn privileged() -> bool {
        let can = ours().may_switch();
        if !can {
            crate::sys::testing::skip("needs CAP_SETUID and CAP_SETGID");
        }
        can
    }

    /// A folder that everybody may write into.
    fn open_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        folder
    }

    #[test]
    fn a_file_made_as_another_belongs_to_that_other() {
        if !privileged() {
            return;
        }
        let folder = open_folder();
        let path = folder.path().join("made");
        stranger().run_as(|| File::create(&path)).unwrap().unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (STRANGER, STRANGER + 1));
    }

    #[test]
    fn rights_are_those_of_the_other_and_then_our_own_again() {
        if !privileged() {
            return;
        }
        let folder = open_folder();
        let path = folder.path().join("secret");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let before = (Credentials::of_self(), fsuid(), fsgid());

        let refused = stranger().run_as(|| File::open(&path)).unwrap();
        assert_eq!(
            refused.unwrap_err().raw_os_error(),
            Some(Errno::ACCESS.raw_os_error())
        );

        assert_eq!((Credentials::of_self(), fsuid(), fsgid()), before);
        File::open(&path).unwrap();
    }

    #[test]
    fn a_supplementary_group_opens_what_it_may() {
        if !privileged() {
            return;
        }
        let folder = open_folder();
        let path = folder.path().join("shared");
        fs::write(&path, "x").unwrap();
        chown(&path, Some(0), Some(777)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();

        assert!(stranger().run_as(|| File::open(&path)).unwrap().is_err());
        let member = Credentials {
            groups: vec![776, 777],
            ..stranger()
        };
        assert!(member.run_as(|| File::open(&path)).unwrap().is_ok());
    }

    #[test]
    fn capabilities_are_what_both_sides_have() {
        if !privileged() {
            return;
        }
        let folder = open_folder();
        let path = folder.path().join("theirs");
        fs::write(&path, "x").unwrap();
        chown(&path, Some(1), Some(1)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();

        let bare_root = Credentials {
            effective: 0,
            ..Credentials::of_self()
        };
        assert!(bare_root.run_as(|| File::open(&path)).unwrap().is_err());
        let override_only = Credentials {
            effective: CapabilitySet::DAC_OVERRIDE.bits(),
            ..stranger()
        };
        assert!(override_only.run_as(|| File::open(&path)).unwrap().is_ok());
        let seen = override_only.run_as(Credentials::of_self).unwrap();
        assert_eq!(seen.effective, CapabilitySet::DAC_OVERRIDE.bits());
    }

    #[test]
    fn other_threads_keep_their_identity() {
        if !privileged() {
            return;
        }
        let (other_fsuid, own_fsuid) = stranger()
            .run_as(|| {
                // A new thread inherits; only one that was there before tells the truth, so the
                // main thread's status is asked.
                let status = fs::read("/proc/self/status").unwrap();
                let uids = super::super::watch::field(&status, "Uid")
                    .unwrap()
                    .to_owned();
                (uids.split_whitespace().nth(3).unwrap().to_owned(), fsuid())
            })
            .unwrap();
        assert_eq!(own_fsuid, STRANGER);
        assert_eq!(other_fsuid, ours().uid.to_string());
    }

    #[test]
    fn a_panic_restores_the_identity() {
        if !privileged() {
            return;
        }
        let before = (Credentials::of_self(), fsuid(), fsgid());
        let panicked = std::panic::catch_unwind(|| stranger().run_as(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!((Credentials::of_self(), fsuid(), fsgid()), before);
        stranger().run_as(|| ()).unwrap();
    }

    #[test]
    fn nesting_is_refused() {
        if !privileged() {
            return;
        }
        let inner = stranger()
            .run_as(|| Credentials::of_self().run_as(|| ()))
            .unwrap();
        assert_eq!(inner.unwrap_err().errno, Errno::BUSY);
    }

    #[test]
    fn nobody_is_no_user() {
        if !privileged() {
            return;
        }
        let nobody = Credentials {
            uid: u32::MAX,
            ..stranger()
        };
        assert_eq!(nobody.run_as(|| ()).unwrap_err().errno, Errno::PERM);
        assert_eq!(fsuid(), ours().uid);
    }

    #[test]
    fn the_unprivileged_act_for_themselves_only() {
        let ordinary = stranger();
        let other_group = Credentials {
            gid: 7,
            ..ordinary.clone()
        };
        let other_user = Credentials {
            uid: 7,
            ..ordinary.clone()
        };
        assert!(other_group.is(&ordinary));
        assert!(!other_user.is(&ordinary) && !ordinary.may_switch());
    }

    #[test]
    fn a_request_is_read_from_proc() {
        let me = Credentials::of_self();
        let read = Credentials::of_request(me.uid, me.gid, std::process::id());
        assert_eq!(read, me);
        assert!(read.is_self());
        let unknown = Credentials::of_request(me.uid, me.gid, 0);
        assert_eq!((unknown.groups.len(), unknown.effective), (0, 0));
    }

    #[test]
    fn who_acts_for_another_lends_him_nothing() {
        let me = Credentials::of_self();
        for (uid, gid) in [(STRANGER, me.gid), (me.uid, STRANGER), (STRANGER, STRANGER)] {
            let seen = Credentials::of_request(uid, gid, std::process::id());
            assert_eq!((seen.uid, seen.gid), (uid, gid));
            assert_eq!((seen.groups, seen.effective), (vec![], 0));
        }
    }

    #[test]
    fn capabilities_of_another_user_namespace_do_not_count() {
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c"])
            .arg("grep CapEff /proc/self/status && exec sleep 60")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let me = Credentials::of_self();
        let seen = Credentials::of_request(me.uid, me.gid, child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        if line.is_empty() {
            crate::sys::testing::skip("user namespaces are not permitted here");
            return;
        }
        let shown = u64::from_str_radix(line.trim_start_matches("CapEff:").trim(), 16).unwrap();
        assert_ne!(shown, 0, "it believes to have capabilities");
        assert_eq!(seen.effective, 0);
    }
}
