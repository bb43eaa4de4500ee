// SPDX-License-Identifier: GPL-2.0

//! Spans of time: what Linux 7.3 can do with them, too.

pub use kernel::time::*;

/// A method that [`Delta`] has in Linux 7.3.
pub trait MillisCeil {
    /// The smallest number of milliseconds that is not less.
    #[allow(clippy::wrong_self_convention)] // The type is `Copy`, as Clippy sees in Linux 7.3.
    fn as_millis_ceil(self) -> i64;
}

impl MillisCeil for Delta {
    #[inline]
    fn as_millis_ceil(self) -> i64 {
        let nanos = self.as_nanos();
        let whole = nanos / NSEC_PER_MSEC;
        // The division rounds towards zero, which is up for a negative span.
        if nanos > 0 && nanos % NSEC_PER_MSEC != 0 {
            whole.saturating_add(1)
        } else {
            whole
        }
    }
}
