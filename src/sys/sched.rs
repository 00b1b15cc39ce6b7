//! Where a thread runs, and before whom: sched(7).

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::{OrFail, Result, handle::last_error};

/// Whether a thread like the calling one may be SCHED_IDLE for a while: tried with one of its own.
pub fn may_return() -> bool {
    let tried = || {
        // SAFETY: takes a number, touches no memory of ours.
        let normal = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_OTHER;
        normal && give_way().is_ok() && take_turns().is_ok()
    };
    std::thread::Builder::new()
        .spawn(tried)
        .is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// The calling thread runs when nobody else wants to: SCHED_IDLE. Whoever wakes on its processor runs at once,
/// and the kernel takes that processor for a free one.
///
/// # Errors
/// Those of sched_setscheduler(2).
pub fn give_way() -> Result<()> {
    set_policy(libc::SCHED_IDLE)
}

/// The calling thread runs in turn with all others: SCHED_OTHER, with the nice value that it had.
///
/// # Errors
/// EPERM where there is no coming back from SCHED_IDLE: it takes CAP_SYS_NICE, or an RLIMIT_NICE that
/// allows that nice value (kernel/sched/syscalls.c, user_check_sched_setscheduler).
pub fn take_turns() -> Result<()> {
    set_policy(libc::SCHED_OTHER)
}

fn set_policy(policy: libc::c_int) -> Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // 0: the calling thread. The sandbox refuses every other.
    // SAFETY: reads one structure, which lives until the call returns.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const priority) } {
        0 => Ok(()),
        _ => Err(last_error("sched_setscheduler")),
    }
}

/// The two processors on which the calling thread may run; none where there are more or fewer.
///
/// # Errors
/// Those of sched_getaffinity(2).
fn pair() -> Result<Option<(CpuSet, [usize; 2])>> {
    let allowed = sched_getaffinity(None).or_fail("sched_getaffinity")?;
    let mut each = (0..CpuSet::MAX_CPU).filter(|&one| allowed.is_set(one));
    Ok(match (each.next(), each.next(), each.next()) {
        (Some(one), Some(other), None) => Some((allowed, [one, other])),
        _ => None,
    })
}

/// Whether the calling thread may run on two processors, and no more.
pub fn has_two_processors() -> bool {
    pair().is_ok_and(|pair| pair.is_some())
}

/// Moves the calling thread to the other one of its two processors. It may be moved away again at any
/// time. Nothing where it has more, or one.
///
/// # Errors
/// Those of sched_setaffinity(2).
pub fn change_sides() -> Result<()> {
    let Some((allowed, [one, other])) = pair()? else {
        return Ok(());
    };
    let mut there = CpuSet::new();
    there.set(if sched_getcpu() == one { other } else { one });
    sched_setaffinity(None, &there).or_fail("sched_setaffinity")?;
    sched_setaffinity(None, &allowed).or_fail("sched_setaffinity")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: takes a number, touches no memory of ours.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_gives_way_and_comes_back_where_that_is_possible() {
        if !may_return() {
            return crate::sys::testing::skip("needs CAP_SYS_NICE");
        }
        let thread = std::thread::spawn(|| {
            give_way().unwrap();
            let then = policy();
            take_turns().unwrap();
            (then, policy())
        });
        let order = (libc::SCHED_IDLE, libc::SCHED_OTHER);
        assert_eq!(thread.join().unwrap(), order);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }

    #[test]
    fn a_thread_changes_sides_and_stays_free_to_leave() {
        let allowed = sched_getaffinity(None).unwrap();
        assert_eq!(has_two_processors(), allowed.count() == 2);
        change_sides().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
        // With one there is nowhere to go.
        let alone = std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(sched_getcpu());
            sched_setaffinity(None, &only).unwrap();
            change_sides().unwrap();
            (
                has_two_processors(),
                sched_getaffinity(None).unwrap().count(),
            )
        });
        assert_eq!(alone.join().unwrap(), (false, 1));
    }
}
