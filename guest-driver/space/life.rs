// SPDX-License-Identifier: GPL-2.0

//! Whether any process still has the address space of a space, and notification when none has.
//!
//! Does not know what a space is.

use crate::poll::Waiters;
use kernel::sync::{
    atomic::{Acquire, Atomic, Release},
    Arc,
};

/// The end of an address space.
pub(crate) struct Life {
    is_over: Atomic<bool>,
    /// Woken at the end.
    waiters: Arc<Waiters>,
}

impl Life {
    /// A process has it.
    pub(crate) fn new(waiters: Arc<Waiters>) -> Self {
        Self {
            is_over: Atomic::new(false),
            waiters,
        }
    }

    /// No process has it any more. Does not sleep.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Release);
        self.waiters.wake();
    }

    /// Whether no process has it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }
}
