// SPDX-License-Identifier: GPL-2.0

//! How long to look for an answer before it is slept for.
//!
//! An interrupt and a wake-up cost more than most answers take, and more than anything else
//! where a hypervisor delivers them. But who looks for nothing takes time away from others,
//! maybe from the very device. So the window follows what answers took lately, as that of
//! `halt_poll_ns` does in KVM (`Documentation/virt/kvm/halt-polling.rst`): it opens where a
//! somewhat longer one would have been enough, and closes where the longest would not.
//!
//! Knows nothing of rings.

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

/// How long is worth looking, for one kind of answers.
pub(super) struct Window(Atomic<u32>);

impl Window {
    /// One that is open a little.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(LEAST))
    }

    /// Begins to wait.
    pub(super) fn begin(&self) -> Wait<'_> {
        Wait {
            window: self,
            begun: Instant::now(),
            limit: Delta::from_micros(self.0.load(Relaxed).into()),
        }
    }

    /// An answer took so many microseconds.
    fn learn(&self, took: u32) {
        let now = self.0.load(Relaxed);
        let next = match took {
            _ if took <= now => return,
            _ if took > MOST => now / 2,
            _ => (now * 2).clamp(LEAST, MOST),
        };
        // Whoever else learns something meanwhile: one of both is as good.
        self.0.store(next, Relaxed);
    }
}

/// A wait for an answer; when it is dropped, the answer is there.
pub(super) struct Wait<'a> {
    window: &'a Window,
    begun: Instant<Monotonic>,
    limit: Delta,
}

impl Wait<'_> {
    /// Whether to look once more, after a moment.
    pub(super) fn goes_on(&self) -> bool {
        cpu_relax();
        self.begun.elapsed() < self.limit
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let took = self.begun.elapsed().as_micros_ceil();
        self.window.learn(u32::try_from(took).unwrap_or(u32::MAX));
    }
}
