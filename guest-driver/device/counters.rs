// SPDX-License-Identifier: GPL-2.0

//! The driver's counters.
//!
//! Each counter is exact, but they are not read atomically as a whole.

use kernel::{
    sync::atomic::{Atomic, Relaxed},
    time::{Instant, Monotonic},
};

/// A number that only grows.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Adds one.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Adds `more`.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// Measures time, in nanoseconds, until the returned value is dropped.
    pub(crate) fn time(&self) -> Timing<'_> {
        Timing {
            counter: self,
            begun: Instant::now(),
        }
    }

    /// The current value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A time measurement for a counter.
pub(crate) struct Timing<'a> {
    counter: &'a Counter,
    begun: Instant<Monotonic>,
}

impl Timing<'_> {
    /// The time until now, which is added to the counter.
    pub(crate) fn stop(self) -> u64 {
        let elapsed = self.elapsed();
        self.counter.add(elapsed);
        core::mem::forget(self);
        elapsed
    }

    fn elapsed(&self) -> u64 {
        // The monotonic clock never goes back.
        self.begun.elapsed().as_nanos().unsigned_abs()
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.counter.add(self.elapsed());
    }
}

macro_rules! counters {
    ($($name:ident,)+) => {
        /// The counters, named as in [`DriverStatistics`](crate::uapi::DriverStatistics).
        #[allow(missing_docs)]
        pub(crate) struct Counters { $( pub(crate) $name: Counter, )+ }

        impl Counters {
            pub(crate) const fn new() -> Self {
                Self { $( $name: Counter::new(), )+ }
            }
        }
    };
}

counters! {
    faults,
    fault_batches,
    fault_pages,
    fault_retries,
    faults_terminated,
    invalidations,
    invalidations_sent,
    pages_to_device,
    huge_to_device,
    pages_to_system,
    cpu_fault_pages,
    pages_evicted,
    huge_to_system,
    pages_refused,
    pages_lost,
    resets,
    collect_nanoseconds,
    allocate_nanoseconds,
    copy_nanoseconds,
    commit_nanoseconds,
    finalise_nanoseconds,
    invalidate_nanoseconds,
    changes_hurried,
}
