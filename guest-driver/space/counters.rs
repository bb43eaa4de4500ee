// SPDX-License-Identifier: GPL-2.0

//! What has happened to one space.
//!
//! Does not know what the events are.

use crate::device::counters::Counter;

/// The counters of a space, named as in [`SpaceCounters`](crate::uapi::SpaceCounters).
pub(crate) struct Events {
    pub(crate) jobs: Counter,
    pub(crate) faults: Counter,
    pub(crate) fault_pages: Counter,
    pub(crate) invalidations: Counter,
    pub(crate) invalidations_sent: Counter,
    pub(crate) pages_to_device: Counter,
    pub(crate) pages_to_system: Counter,
    pub(crate) cpu_fault_pages: Counter,
}

impl Events {
    /// Nothing has happened yet.
    pub(crate) const fn new() -> Self {
        Self {
            jobs: Counter::new(),
            faults: Counter::new(),
            fault_pages: Counter::new(),
            invalidations: Counter::new(),
            invalidations_sent: Counter::new(),
            pages_to_device: Counter::new(),
            pages_to_system: Counter::new(),
            cpu_fault_pages: Counter::new(),
        }
    }
}
