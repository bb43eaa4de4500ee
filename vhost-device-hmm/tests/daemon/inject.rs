//! Makes a running program make a system call, as a guest would that has taken it over.

use std::ffi::c_void;

use nix::libc::user_regs_struct;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

/// The length of the instruction for a system call.
const INSTRUCTION: u64 = 2;

/// Below the stack, where the program's code has nothing.
const BELOW: u64 = 4096;

/// What became of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What it returned.
    Returned(i64),
    /// The thread got a signal instead, which is now on its way.
    Signal(Signal),
}

/// An argument of a system call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    Number(u64),
    /// The address of these bytes, at most some hundred.
    Bytes(&'a [u8]),
}

/// Has a thread, which waits in a system call, make another one. Afterwards it waits as before.
pub(crate) fn call(thread: Pid, number: i64, arguments: &[Argument<'_>]) -> Outcome {
    // After another call it may not wait yet.
    while !waits(thread) {
        std::thread::yield_now();
    }
    ptrace::attach(thread).unwrap();
    assert_eq!(stop(thread), Signal::SIGSTOP);
    let before = ptrace::getregs(thread).unwrap();
    assert!(before.orig_rax < 1000, "the thread is in no system call");
    let mut place = before.rsp - BELOW;
    let values: Vec<_> = arguments
        .iter()
        .map(|argument| match argument {
            Argument::Number(number) => *number,
            Argument::Bytes(bytes) => {
                place -= (bytes.len() as u64).next_multiple_of(8);
                write(thread, place, bytes);
                place
            }
        })
        .collect();
    let value = |index: usize| values.get(index).copied().unwrap_or(0);
    let registers = user_regs_struct {
        rip: before.rip - INSTRUCTION,
        rax: u64::try_from(number).unwrap(),
        // The call that it waits in is not repeated now.
        orig_rax: u64::MAX,
        rdi: value(0),
        rsi: value(1),
        rdx: value(2),
        r10: value(3),
        r8: value(4),
        r9: value(5),
        ..before
    };
    ptrace::setregs(thread, registers).unwrap();
    // To the start of the call, and to its end.
    for _ in 0..2 {
        ptrace::syscall(thread, None).unwrap();
        assert_eq!(stop(thread), Signal::SIGTRAP);
    }
    if is_pending(thread, Signal::SIGSYS) {
        ptrace::detach(thread, None).unwrap();
        return Outcome::Signal(Signal::SIGSYS);
    }
    let after = ptrace::getregs(thread).unwrap();
    // The first call is made once more.
    let again = user_regs_struct {
        rip: before.rip - INSTRUCTION,
        rax: before.orig_rax,
        orig_rax: u64::MAX,
        ..before
    };
    ptrace::setregs(thread, again).unwrap();
    ptrace::detach(thread, None).unwrap();
    Outcome::Returned(after.rax.cast_signed())
}

/// Whether a thread sleeps in a system call.
fn waits(thread: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
    status.contains("\nState:\tS")
}

/// Whether a signal is on its way to a thread.
fn is_pending(thread: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
    let pending = status
        .lines()
        .find_map(|line| line.strip_prefix("SigPnd:\t"));
    let pending = u64::from_str_radix(pending.unwrap(), 16).unwrap();
    pending >> (signal as i32 - 1) & 1 == 1
}

/// Waits until a thread stops by a signal.
fn stop(thread: Pid) -> Signal {
    match waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap() {
        WaitStatus::Stopped(_, signal) => signal,
        other => panic!("{other:?}"),
    }
}

fn write(thread: Pid, place: u64, bytes: &[u8]) {
    for (address, chunk) in (place..).step_by(8).zip(bytes.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let address = usize::try_from(address).unwrap() as *mut c_void;
        ptrace::write(thread, address, i64::from_ne_bytes(word)).unwrap();
    }
}
