//! Writes a message from a signal handler, before the process is killed.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

/// A second descriptor for the message, beside standard error.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// Messages are from now on also written to a log. The descriptor must stay open.
pub fn also_to(log: RawFd) {
    LOG.store(log, Ordering::Relaxed);
}

/// Writes a message. It may be called in a signal handler, and does not wait for a reader.
pub(crate) fn say(words: &[u8]) {
    for descriptor in [libc::STDERR_FILENO, LOG.load(Ordering::Relaxed)] {
        if descriptor < 0 {
            continue;
        }
        // SAFETY: both stay open until the process ends. If one was closed from outside, the calls
        // fail.
        let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let mut events = [PollFd::new(file, PollFlags::POLLOUT)];
        // The reader may have stopped reading.
        if poll(&mut events, PollTimeout::ZERO) == Ok(1) {
            // If this write fails, the message is lost.
            let _ = nix::unistd::write(file, words);
        }
    }
}
