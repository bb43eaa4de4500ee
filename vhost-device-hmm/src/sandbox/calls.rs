//! The system calls that the daemon needs. All others are forbidden.
//!
//! The list is that of what the daemon, the Rust library and the C library do after the start. Some
//! calls are not needed but tried: they fail, and the caller does without. A call with arguments that
//! reach further than the daemon does is forbidden, too.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    apply_filter_all_threads, BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen,
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// The calls of a list, each with the rules one of which must hold. A call without rules is meant
/// with any arguments.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls with any arguments that the daemon and its helper make: of memory, and of the end of a
/// thread and of the process.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_recvmsg,
    // After a stop of the process.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
];

/// Calls with any arguments that only the daemon makes.
const DAEMON: &[i64] = &[
    libc::SYS_accept4,
    // The clock, where the kernel has no page for it.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_memfd_create,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    // Each thread's start.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    // The allocator counts processors.
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The same for calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// Calls that fail, with the error. The allocator looks at a file of `/proc`, libraries look for
/// more; and the C library starts threads by `clone` if there is no `clone3`, whose arguments
/// cannot be checked.
const REFUSED: &[(i64, i32)] = &[
    (libc::SYS_openat, libc::EACCES),
    (libc::SYS_clone3, libc::ENOSYS),
];
#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[(i64, i32)] = &[(libc::SYS_open, libc::EACCES)];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[(i64, i32)] = &[];

/// Calls with any arguments that only the helper makes: connections, and the removal of files.
const HELPER: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getsockname,
    libc::SYS_listen,
    libc::SYS_newfstatat,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_statx,
    libc::SYS_unlinkat,
];
#[cfg(target_arch = "x86_64")]
const HELPER_OLD: &[i64] = &[libc::SYS_lstat, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const HELPER_OLD: &[i64] = &[];

/// Limits the process to what the daemon needs. Another call ends the process by SIGSYS if
/// `enforced`, otherwise it is logged by the kernel.
pub(super) fn limit_daemon(enforced: bool) -> Result<(), Error> {
    // The strictest filter counts.
    for (errno, calls) in refused() {
        let calls = calls.into_iter().map(|call| (call, Vec::new())).collect();
        let (refused, others) = (SeccompAction::Errno(errno), SeccompAction::Allow);
        install(calls, others, refused)?;
    }
    // The handler reports the call and then ends the process.
    let others = if enforced {
        SeccompAction::Trap
    } else {
        SeccompAction::Log
    };
    install(daemon_calls()?, others, SeccompAction::Allow)
}

/// Limits the process to what the helper needs. Another call ends it.
pub(super) fn limit_helper() -> Result<(), Error> {
    let calls = [COMMON, HELPER, HELPER_OLD].concat();
    let mut calls = any_arguments(&calls);
    memory(&mut calls)?;
    let family = int(0, SeccompCmpOp::Eq, u64::from(libc::AF_UNIX.unsigned_abs()))?;
    calls.insert(libc::SYS_socket, vec![SeccompRule::new(vec![family])?]);
    let (others, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    install(calls, others, allowed)
}

fn refused() -> BTreeMap<u32, Vec<i64>> {
    let mut refused = BTreeMap::<_, Vec<_>>::new();
    for (call, errno) in REFUSED.iter().chain(REFUSED_OLD) {
        refused.entry(errno.unsigned_abs()).or_default().push(*call);
    }
    refused
}

fn daemon_calls() -> Result<Calls, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};

    let mut calls = any_arguments(&[COMMON, DAEMON, OLD].concat());
    calls.extend(any_arguments(
        &refused().into_values().flatten().collect::<Vec<_>>(),
    ));
    memory(&mut calls)?;
    let mut allow = |call, conditions: Vec<SeccompCondition>| {
        calls
            .entry(call)
            .or_default()
            .push(SeccompRule::new(conditions)?);
        Ok::<_, BackendError>(())
    };
    // Threads of this process.
    let thread = bits(libc::CLONE_THREAD | libc::CLONE_VM);
    allow(libc::SYS_clone, vec![long(0, MaskedEq(thread), thread)?])?;
    // Signals to this process: it aborts.
    let own = u64::from(std::process::id());
    allow(libc::SYS_tgkill, vec![int(0, Eq, own)?])?;
    // Before the process is killed by a signal, but not for the one of forbidden calls.
    allow(
        libc::SYS_rt_sigaction,
        vec![int(0, Ne, bits(libc::SIGSYS))?],
    )?;
    // The names of threads, and of the allocator's memory.
    for option in [libc::PR_SET_NAME, libc::PR_SET_VMA] {
        allow(libc::SYS_prctl, vec![int(0, Eq, bits(option))?])?;
    }
    // To the peer, not to an address.
    allow(libc::SYS_sendto, vec![long(4, Eq, 0)?])?;
    for option in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
        let level = int(1, Eq, bits(libc::SOL_SOCKET))?;
        let option = int(2, Eq, bits(option))?;
        allow(libc::SYS_setsockopt, vec![level, option])?;
    }
    // What kind of socket it is.
    allow(
        libc::SYS_getsockopt,
        vec![int(1, Eq, bits(libc::SOL_SOCKET))?],
    )?;
    // Blocking or not.
    allow(libc::SYS_ioctl, vec![int(1, Eq, libc::FIONBIO)?])?;
    // Of a descriptor, not of a path.
    let itself = bits(libc::AT_EMPTY_PATH);
    allow(libc::SYS_statx, vec![int(2, MaskedEq(itself), itself)?])?;
    allow(
        libc::SYS_newfstatat,
        vec![int(3, MaskedEq(itself), itself)?],
    )?;
    Ok(calls)
}

/// Adds memory that cannot be executed.
fn memory(calls: &mut Calls) -> Result<(), BackendError> {
    let execute = SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let no_code = long(2, execute.clone(), 0)?;
        calls.insert(call, vec![SeccompRule::new(vec![no_code])?]);
    }
    Ok(())
}

fn any_arguments(calls: &[i64]) -> Calls {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// A condition on an argument of 32 bits.
fn int(
    argument: u8,
    operation: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)
}

/// A condition on an argument of 64 bits.
fn long(
    argument: u8,
    operation: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value)
}

/// Flags or a number of the C library's, none of which is negative.
fn bits(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

fn install(calls: Calls, others: SeccompAction, these: SeccompAction) -> Result<(), Error> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram = SeccompFilter::new(calls, others, these, machine)?.try_into()?;
    apply_filter_all_threads(&filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_allowed_with_any_arguments_or_with_some() {
        let calls = daemon_calls().unwrap();
        for call in [COMMON, DAEMON, OLD].concat() {
            assert!(calls[&call].is_empty(), "call {call} is also in a rule");
        }
        for call in [libc::SYS_clone, libc::SYS_mmap, libc::SYS_sendto] {
            assert!(!calls[&call].is_empty(), "call {call} has no rule");
        }
    }

    #[test]
    fn what_a_guest_would_want_is_not_on_the_list() {
        let calls = daemon_calls().unwrap();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setuid,
            libc::SYS_unlinkat,
            libc::SYS_openat2,
        ] {
            assert!(!calls.contains_key(&call), "call {call}");
        }
        // These are on it, and fail.
        assert!(refused()[&libc::EACCES.unsigned_abs()].contains(&libc::SYS_openat));
        assert!(calls.len() < 64, "{} calls", calls.len());
    }
}
