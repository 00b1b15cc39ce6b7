//! Work that is done when nobody else has any.

use super::{Errno, Result, handle::last_error};

/// `ioprio_set(2)`: no wrapper, no header.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// Puts the calling thread, and those it will start, behind all others: SCHED_IDLE for the
/// processor (`sched(7)`), the idle class for disks whose scheduler knows classes (bfq,
/// mq-deadline). There is no way back that every thread may go.
///
/// # Errors
/// What the system calls said. A kernel without block devices (ENOSYS) has no disks to give way on.
pub fn idle() -> Result<()> {
    super::sched::give_way()?;
    // 0: the calling thread. The sandbox refuses every other.
    let this = 0;
    let class = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: takes numbers, touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, this, class) } {
        0 => Ok(()),
        _ => match last_error("ioprio_set") {
            fail if fail.errno == Errno::NOSYS => Ok(()),
            fail => Err(fail),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_what_it_starts_are_idle_and_others_are_not() {
        let policy = || {
            // SAFETY: takes a number, touches no memory of ours.
            unsafe { libc::sched_getscheduler(0) }
        };
        let ioprio = || {
            // SAFETY: takes numbers, touches no memory of ours.
            let value = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
            value >> IOPRIO_CLASS_SHIFT
        };
        let inner = std::thread::spawn(move || {
            idle().unwrap();
            let started = std::thread::spawn(move || (policy(), ioprio()));
            [(policy(), ioprio()), started.join().unwrap()]
        });
        for seen in inner.join().unwrap() {
            assert_eq!(seen, (libc::SCHED_IDLE, i64::from(IOPRIO_CLASS_IDLE)));
        }
        assert_ne!(policy(), libc::SCHED_IDLE);
    }
}
