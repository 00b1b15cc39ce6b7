//! What this process, or its children, have used so far.

use std::time::Duration;

/// Counts since the process began (getrusage(2)); of all its threads, those that have ended too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time in user space.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Page faults that needed no I/O.
    pub minor_faults: u64,
    /// Page faults that did.
    pub major_faults: u64,
    /// Context switches because it waited.
    pub voluntary_switches: u64,
    /// Context switches because another was to run.
    pub involuntary_switches: u64,
}

/// Of this process.
pub fn own() -> Usage {
    of(libc::RUSAGE_SELF)
}

/// Of the children that have ended and been waited for, with theirs.
pub fn children() -> Usage {
    of(libc::RUSAGE_CHILDREN)
}

fn of(who: libc::c_int) -> Usage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage, which the kernel fills; zeroed it is valid already,
    // and getrusage fails for a wrong `who` only.
    let usage = unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        minor_faults: usage.ru_minflt.unsigned_abs(),
        major_faults: usage.ru_majflt.unsigned_abs(),
        voluntary_switches: usage.ru_nvcsw.unsigned_abs(),
        involuntary_switches: usage.ru_nivcsw.unsigned_abs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_memory_is_a_fault() {
        let before = own();
        let block = std::hint::black_box(vec![1u8; 8 << 20]);
        let after = own();
        assert!(after.minor_faults > before.minor_faults, "{after:?}");
        drop(block);
    }

    #[test]
    fn a_child_counts_when_it_was_waited_for() {
        let before = children();
        let ended = std::process::Command::new("true").status().unwrap();
        assert!(ended.success());
        assert!(children().minor_faults > before.minor_faults);
    }
}
