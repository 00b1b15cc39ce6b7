//! The process itself: splitting in two, its descriptors, its limits.

use super::{Errno, Fail, OrFail, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The most descriptors that are asked for, however many the system would give.
const DESCRIPTORS: u64 = 1 << 20;

/// Which of the two processes returned from [`fork`].
#[derive(Debug)]
pub enum Side {
    /// The one that called, with the other's number.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Splits this process in two.
///
/// # Errors
/// `EBUSY` when the process has more than one thread (the child would have only one of them, and
/// every lock that another held, forever), else what fork(2) says.
pub fn fork() -> Result<Side> {
    has_one_thread("fork")?;
    // SAFETY: there is one thread (counted above), so the child's copy of memory is whole: no
    // lock is held by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).or_fail("fork"),
        0 => Ok(Side::Child),
        raw => Pid::from_raw(raw)
            .map(Side::Parent)
            .ok_or(Fail::new(Errno::INVAL, "fork")),
    }
}

/// Makes sure that nothing else runs in this process.
///
/// # Errors
/// `EBUSY` when it has more than one thread; those of reading `/proc/self/task`.
pub fn has_one_thread(operation: &'static str) -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").or_fail(operation)?;
    if threads.count() != 1 {
        return Err(Fail::new(Errno::BUSY, operation).because("the process has threads"));
    }
    Ok(())
}

/// Lets this process be killed (SIGKILL) when `parent`, which has just made it, dies.
///
/// To be called by a thread that lives as long as the process and never takes another identity:
/// the kernel keeps it for a thread, and forgets it with a change of credentials (prctl(2)).
///
/// # Errors
/// `ESRCH` when the parent has died already.
pub fn die_with(parent: Pid) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).or_fail("prctl")?;
    // It may have died before the call: then this is somebody else's child by now.
    if rustix::process::getppid() != Some(parent) {
        return Err(Fail::new(Errno::SRCH, "die with the parent"));
    }
    Ok(())
}

/// Raises the limit of open descriptors as far as it goes, and returns what is in force.
///
/// The soft limit goes up to the hard one; a process with `CAP_SYS_RESOURCE` first raises the
/// hard one to `fs.nr_open` or 1,048,576, whichever is less. Calling it again changes nothing.
pub fn raise_descriptor_limit() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(u64::MAX);
    let wanted = hard.max(DESCRIPTORS.min(descriptors_of_system()));
    for limit in [wanted, hard] {
        let raised = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Gives up what would let this process write beyond quotas and into reserved blocks: the files
/// that it writes are other people's, and so are their limits (`fs/quota/dquot.c`,
/// `ignore_hardlimit`). Raise limits before. Threads that are there already keep theirs.
///
/// # Errors
/// Those of capget(2) and capset(2).
pub fn keep_to_quotas() -> Result<()> {
    let mut sets = capabilities(None).or_fail("capget")?;
    if sets.effective.contains(CapabilitySet::SYS_RESOURCE) {
        sets.effective -= CapabilitySet::SYS_RESOURCE;
        set_capabilities(None, sets).or_fail("capset")?;
    }
    Ok(())
}

/// Whether this thread has CAP_SYS_ADMIN, in its own user namespace; false when that can't be told.
pub fn may_administer() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// `fs.nr_open`: more than this no process may have. 0 when it cannot be read.
fn descriptors_of_system() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || receive.recv());
        let refused = fork();
        drop(send);
        other.join().unwrap().unwrap_err();
        assert_eq!(refused.unwrap_err().errno, Errno::BUSY);
    }

    #[test]
    fn the_soft_descriptor_limit_reaches_the_hard_one() {
        let limit = raise_descriptor_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(Some(limit), now.current);
        assert_eq!(now.current, now.maximum);
        assert_eq!(raise_descriptor_limit(), limit);
    }
}
