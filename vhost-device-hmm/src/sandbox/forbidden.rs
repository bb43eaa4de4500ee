//! A last message when a system call is forbidden.
//!
//! The kernel does not make the call, and sends SIGSYS instead. The handler says which call it was
//! and makes another forbidden one. SIGSYS is blocked meanwhile, so the kernel then ends the
//! process, whatever the handler is.

use std::io::Write;

use nix::libc::{self, c_int, c_uint, c_void, siginfo_t};
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use syscalls::Sysno;

use crate::last_words;

/// What the kernel tells about a forbidden call, as in `struct siginfo` of 64-bit Linux.
#[repr(C)]
struct Forbidden {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: *mut c_void,
    call: c_int,
    machine: c_uint,
}

/// The code of a SIGSYS that a filter has sent.
const SYS_SECCOMP: c_int = 1;

/// The status of a process that does not end by the signal.
const STATUS: c_int = 128 + libc::SIGSYS;

/// From now on, reports a forbidden call before the process ends.
pub(super) fn report() -> nix::Result<()> {
    let handler = SigHandler::SigAction(speak);
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: `speak` only reads what it is given, formats numbers into memory of its own, and
    // makes system calls, all of which may be done in a signal handler.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

extern "C" fn speak(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the handler was installed with SA_SIGINFO, so the kernel passes a valid pointer to
    // what it defines as `Forbidden` for this signal, which stays valid until the handler returns.
    let forbidden = unsafe { &*info.cast::<Forbidden>() };
    if forbidden.code != SYS_SECCOMP {
        // From another process, which may as well have sent SIGKILL.
        end();
    }
    let name = usize::try_from(forbidden.call)
        .ok()
        .and_then(Sysno::new)
        .map_or("unknown", |call| call.name());
    let mut text = [0; 256];
    let mut rest = &mut text[..];
    // There is room for the longest name.
    let _ = writeln!(
        rest,
        "vhost-device-hmm: killed by SIGSYS: the system call {name} ({}) is forbidden in the \
         sandbox; please report this as a bug, --sandbox off runs without",
        forbidden.call
    );
    let left = rest.len();
    last_words::say(text.get(..text.len() - left).unwrap_or_default());
    end();
}

/// Ends the process by SIGSYS.
fn end() -> ! {
    // SAFETY: the call has no arguments, and would change nothing if it were allowed.
    unsafe { libc::syscall(libc::SYS_getppid) };
    // SAFETY: the call ends the process.
    unsafe { libc::_exit(STATUS) }
}
