// SPDX-License-Identifier: GPL-2.0

//! Eventfds of programs, which the kernel crate does not support yet.
//!
//! Does not know what they signal.
//!
//! C header: `include/linux/eventfd.h`.

use crate::sys as bindings;
use core::ptr::NonNull;
use kernel::{error::from_err_ptr, prelude::*};

/// An eventfd, which may outlive its descriptors.
///
/// # Invariants
///
/// The context is valid, and one reference to it belongs to this value.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: A context may be signalled and released by any thread.
unsafe impl Send for EventFd {}
// SAFETY: A context does its own locking.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The eventfd behind a descriptor of the calling process.
    ///
    /// # Errors
    ///
    /// `EBADF` if the descriptor is not open, `EINVAL` if it is not an eventfd.
    pub(crate) fn of_descriptor(descriptor: i32) -> Result<Self> {
        // SAFETY: The function takes any number.
        let context = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(descriptor) })?;
        // INVARIANT: The function has returned a reference.
        NonNull::new(context).map(Self).ok_or(EBADF)
    }

    /// Adds one to its counter and wakes the waiters. May be called in interrupt context.
    pub(crate) fn add_one(&self) {
        // SAFETY: By the invariants the context is valid.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    /// May be called in interrupt context.
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours to drop.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}
