// SPDX-License-Identifier: GPL-2.0

//! How long to poll for a reply before sleeping.
//!
//! An interrupt and a wake-up cost more than most replies take, and more than anything else where a
//! hypervisor delivers them. But polling in vain takes CPU time away from others, maybe from the
//! device itself. So the window adapts to how long recent replies took, like that of `halt_poll_ns`
//! in KVM (`Documentation/virt/kvm/halt-polling.rst`): it grows when a somewhat longer one would
//! have been enough, and shrinks when the longest would not. If processors are scarce, a polling
//! thread is preempted, by the guest's scheduler or, unseen, by the host's. Then no thread polls
//! for a while.
//!
//! Does not know rings.

use core::cell::Cell;
use kernel::{
    processor::cpu_relax,
    sync::atomic::{Atomic, Relaxed},
    time::{Delta, Instant, Monotonic},
};

/// The smallest open window, in microseconds: about the reply time of a device that already polls
/// its ring.
const LEAST: u32 = 16;

/// The largest window, in microseconds: about the time in which a device copies a huge page. An
/// interrupt and a wake-up add little to anything that takes longer.
const MOST: u32 = 600;

/// If more microseconds than this pass between two polls, the thread was preempted: one poll takes
/// far less, and an interrupt takes less as well.
const STOPPED: i64 = 150;

/// The number of waits without polling after that.
const REST: u32 = 16;

/// How long to poll, for one kind of reply.
pub(super) struct Window {
    microseconds: Atomic<u32>,
    /// The number of waits still to go without polling.
    rest: Atomic<u32>,
}

impl Window {
    /// A slightly open window.
    pub(super) const fn new() -> Self {
        Self {
            microseconds: Atomic::new(LEAST),
            rest: Atomic::new(0),
        }
    }

    /// Begins to wait.
    pub(super) fn begin(&self) -> Wait<'_> {
        let rest = self.rest.load(Relaxed);
        let limit = if rest > 0 {
            // If another thread decrements it as well, there is one more such wait.
            self.rest.store(rest - 1, Relaxed);
            0
        } else {
            self.microseconds.load(Relaxed)
        };
        let begun = Instant::now();
        Wait {
            window: self,
            begun,
            limit: Delta::from_micros(limit.into()),
            looked: Cell::new(begun),
        }
    }

    /// A reply took this many microseconds.
    fn learn(&self, took: u32) {
        let now = self.microseconds.load(Relaxed);
        let next = match took {
            _ if took <= now => return,
            _ if took > MOST => now / 2,
            _ => now.saturating_mul(2).clamp(LEAST, MOST),
        };
        // If another thread stores its value meanwhile, either one will do.
        self.microseconds.store(next, Relaxed);
    }
}

/// A wait for a reply; dropped when the reply has arrived.
pub(super) struct Wait<'a> {
    window: &'a Window,
    begun: Instant<Monotonic>,
    limit: Delta,
    looked: Cell<Instant<Monotonic>>,
}

impl Wait<'_> {
    /// Whether to poll once more, after a moment.
    pub(super) fn goes_on(&self) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        cpu_relax();
        let now = Instant::now();
        if (now - self.looked.replace(now)).as_micros_ceil() > STOPPED {
            self.window.rest.store(REST, Relaxed);
            return false;
        }
        now - self.begun < self.limit
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let took = self.begun.elapsed().as_micros_ceil();
        self.window.learn(u32::try_from(took).unwrap_or(u32::MAX));
    }
}
