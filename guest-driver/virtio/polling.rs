// SPDX-License-Identifier: GPL-2.0

//! How long to look for an answer before it is slept for.
//!
//! An interrupt and a wake-up cost more than most answers take, and more than anything else
//! where a hypervisor delivers them. But who looks for nothing takes time away from others,
//! maybe from the very device. So the window follows what answers took lately, as that of
//! `halt_poll_ns` does in KVM (`Documentation/virt/kvm/halt-polling.rst`): it opens where a
//! somewhat longer one would have been enough, and closes where the longest would not. Where
//! processors are too few, so that whoever looks is stopped for somebody else, by the guest's
//! scheduler or unseen by the host's, nobody looks for a while.
//!
//! Knows nothing of rings.

use core::cell::Cell;
use kernel::{
    processor::cpu_relax,
    sync::atomic::{Atomic, Relaxed},
    time::{Delta, Instant, Monotonic},
};

/// What a window opens to, in microseconds: about what a device takes that looks at its ring
/// already.
const LEAST: u32 = 16;

/// How far, in microseconds: about what a device takes to copy a large page. Whatever takes
/// longer is not made much longer by an interrupt and a wake-up.
const MOST: u32 = 600;

/// Who looks again only after so many microseconds was stopped in between: one look takes far
/// less, and an interrupt takes less, too.
const STOPPED: i64 = 150;

/// How many waits then go without looking.
const REST: u32 = 16;

/// How long is worth looking, for one kind of answers.
pub(super) struct Window {
    microseconds: Atomic<u32>,
    /// Waits that are to come without looking.
    rest: Atomic<u32>,
}

impl Window {
    /// One that is open a little.
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
            // If another one counts down as well, there is one wait more.
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

    /// An answer took so many microseconds.
    fn learn(&self, took: u32) {
        let now = self.microseconds.load(Relaxed);
        let next = match took {
            _ if took <= now => return,
            _ if took > MOST => now / 2,
            _ => (now * 2).clamp(LEAST, MOST),
        };
        // Whoever else learns something meanwhile: one of both is as good.
        self.microseconds.store(next, Relaxed);
    }
}

/// A wait for an answer; when it is dropped, the answer is there.
pub(super) struct Wait<'a> {
    window: &'a Window,
    begun: Instant<Monotonic>,
    limit: Delta,
    looked: Cell<Instant<Monotonic>>,
}

impl Wait<'_> {
    /// Whether to look once more, after a moment.
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
