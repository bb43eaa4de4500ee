// SPDX-License-Identifier: GPL-2.0

//! Failures on demand, for tests.
//!
//! Does not know what fails.

use kernel::sync::atomic::{Atomic, Relaxed};

/// Makes the allocation of memory for a migration fail, for tests.
pub(crate) struct Injection(Atomic<bool>);

impl Injection {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Sets whether the next allocation fails.
    pub(crate) fn arm(&self, armed: bool) {
        self.0.store(armed, Relaxed);
    }

    /// Whether this allocation is to fail.
    pub(crate) fn should_fail(&self) -> bool {
        // The flag is almost never set.
        self.0.load(Relaxed) && self.0.xchg(false, Relaxed)
    }
}
