//! seccomp: the calls that a file server never makes answer EPERM (seccomp(2)).
//!
//! A list of what is refused, not of what is allowed: what an allocator, a C library or a source's
//! file system may need tomorrow is nobody's to foresee, and a file server with the right of every
//! file is not made harmless by a list. What it must never do is to leave its place: run programs,
//! mount, load code into the kernel, look into other processes, talk to the network.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use crate::sys::{Errno, Fail, Result};

/// Refused whatever their arguments are.
const REFUSED: &[libc::c_long] = &[
    // Programs, and processes of its own: they would be further threads of attack, not of work.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Mounts, roots, namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_syslog,
    libc::SYS_personality,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The turns and the memory of others.
    libc::SYS_setpriority,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_vhangup,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // Groups that watch whole file systems are made before the sandbox.
    libc::SYS_fanotify_init,
    // The network: datagrams to syslog go through a socket made before.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Those that only this processor has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// open_tree_attr(2), Linux 6.15: the same number on every processor.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// The bit of a call's number that makes it one of the x32 ABI (arch/x86/include/uapi/asm/unistd.h):
/// a second set of numbers for the same calls, which a list by number would not meet.
const X32_BIT: u32 = 0x4000_0000;

/// Namespaces that clone(2) can make.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
];

/// Filters the calls of this thread, and of those it will start.
///
/// # Errors
/// EINVAL where the kernel has no seccomp filters; ENOSYS on a processor for which there is no
/// list.
pub(super) fn restrict() -> Result<()> {
    let refusing = refusing()?;
    let absent = absent();
    for program in [&refusing, &absent] {
        seccompiler::apply_filter(program).map_err(|error| match error {
            seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error) => {
                Fail::new(Errno::from_io_error(&error).unwrap_or(Errno::IO), "seccomp")
            }
            other => Fail::new(Errno::INVAL, "seccomp").because(other.to_string()),
        })?;
    }
    Ok(())
}

/// The filter that answers EPERM; a call by another processor's numbers ends the process.
fn refusing() -> Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| Fail::new(Errno::NOSYS, "seccomp").because("not for this processor"))?;
    let wrong = |error: seccompiler::BackendError| {
        Fail::new(Errno::INVAL, "seccomp").because(error.to_string())
    };
    let errno = Errno::PERM.raw_os_error().unsigned_abs();
    SeccompFilter::new(
        rules().map_err(wrong)?,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch,
    )
    .and_then(TryInto::try_into)
    .map_err(wrong)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> std::result::Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|&call| (call, Vec::new()))
        .collect();
    let first = |operator, value: libc::c_int| {
        let value = u64::from(value.cast_unsigned());
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    // A thread's own umask is all that is ever unshared (`sys::umask`).
    let unshare = first(SeccompCmpOp::Ne, libc::CLONE_FS)?;
    rules.insert(libc::SYS_unshare, vec![unshare]);
    // Threads, not processes, and in no namespace of their own.
    let has = |flag: libc::c_int| SeccompCmpOp::MaskedEq(u64::from(flag.cast_unsigned()));
    let mut clone = vec![first(has(libc::CLONE_THREAD), 0)?];
    for namespace in NAMESPACES {
        clone.push(first(has(namespace), namespace)?);
    }
    rules.insert(libc::SYS_clone, clone);
    // Turns and processors of the thread that calls alone, and no place before all others.
    let of_others = || first(SeccompCmpOp::Ne, 0);
    let sooner = |policy: libc::c_int| {
        let policy = u64::from(policy.cast_unsigned());
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, policy)
    };
    let sooner = vec![sooner(libc::SCHED_OTHER)?, sooner(libc::SCHED_IDLE)?];
    let policy = vec![of_others()?, SeccompRule::new(sooner)?];
    rules.insert(libc::SYS_sched_setscheduler, policy);
    rules.insert(libc::SYS_sched_setaffinity, vec![of_others()?]);
    let whose = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    // IOPRIO_WHO_PROCESS (linux/ioprio.h): neither groups nor users.
    let of_many = first(SeccompCmpOp::Ne, 1)?;
    rules.insert(
        libc::SYS_ioprio_set,
        vec![of_many, SeccompRule::new(vec![whose])?],
    );
    // Unix sockets alone.
    let socket = first(SeccompCmpOp::Ne, libc::AF_UNIX)?;
    rules.insert(libc::SYS_socket, vec![socket]);
    Ok(rules)
}

/// The filter that answers ENOSYS: to clone3(2), whose flags lie in memory that no filter sees (C
/// libraries then take clone(2)), and to every call of the x32 ABI.
fn absent() -> BpfProgram {
    let step = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let (load, compare) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_K,
    );
    let enosys = libc::SECCOMP_RET_ERRNO | Errno::NOSYS.raw_os_error().unsigned_abs();
    let answer = libc::BPF_RET | libc::BPF_K;
    vec![
        // The number is the first field of struct seccomp_data.
        step(load, 0, 0, 0),
        step(compare | libc::BPF_JEQ, 1, 0, libc::SYS_clone3 as u32),
        step(compare | libc::BPF_JGE, 0, 1, X32_BIT),
        step(answer, 0, 0, enosys),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
