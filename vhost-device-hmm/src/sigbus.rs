//! A last message when mapped memory is missing.
//!
//! SIGBUS kills a process that uses a page of a truncated file, or a page for which the host has no
//! memory. The guest's memory and device memory are files, so this can happen here. It cannot be
//! repaired, but the daemon can say what has happened. The process ends all the same, with a core
//! dump if these are enabled.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc::{c_int, c_void, siginfo_t};
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};

use crate::last_words;

/// The most pieces of a guest's memory.
const PIECES: usize = 32;

/// A piece of memory in this process's address space; unused if its end is zero.
struct Piece {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Piece {
    const fn nowhere() -> Self {
        Self {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }

    fn set(&self, start: usize, bytes: usize) {
        self.start.store(start, Ordering::Relaxed);
        self.end
            .store(start.saturating_add(bytes), Ordering::Relaxed);
    }

    fn contains(&self, address: usize) -> bool {
        let (start, end) = (&self.start, &self.end);
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&address)
    }
}

static GUEST: [Piece; PIECES] = [const { Piece::nowhere() }; PIECES];
static DEVICE: Piece = Piece::nowhere();

/// Sets where the guest's memory is now: the start of each piece, and its bytes.
pub fn guest_memory_is_at(pieces: impl Iterator<Item = (usize, usize)>) {
    let none = std::iter::repeat((0, 0));
    for (piece, (start, bytes)) in GUEST.iter().zip(pieces.chain(none)) {
        piece.set(start, bytes);
    }
}

/// Sets where device memory is now.
pub fn device_memory_is_at(start: usize, bytes: usize) {
    DEVICE.set(start, bytes);
}

/// From now on, reports what has happened before the process is killed.
///
/// # Errors
///
/// The system's error.
pub fn report() -> io::Result<()> {
    let handler = SigHandler::SigAction(speak);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESETHAND;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: `speak` only reads atomics and calls `poll` and `write`, which may be called in a
    // signal handler.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

/// The handler. After it returns, the access is repeated and kills the process: the handler is
/// reset.
extern "C" fn speak(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the handler was installed with SA_SIGINFO, so the kernel passes a valid pointer,
    // which stays valid until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS there is an address.
    let address = unsafe { info.si_addr() } as usize;
    let words: &[u8] = if DEVICE.contains(address) {
        b"vhost-device-hmm: killed by SIGBUS: the host has no memory left for device memory; \
          with --prealloc it is taken at the start\n"
    } else if GUEST.iter().any(|piece| piece.contains(address)) {
        b"vhost-device-hmm: killed by SIGBUS: memory of the guest is not there; its file was \
          cut off, or the host has no memory left for it\n"
    } else {
        b"vhost-device-hmm: killed by SIGBUS: memory that is mapped is not there\n"
    };
    last_words::say(words);
}
