// SPDX-License-Identifier: GPL-2.0

//! Fault-around: how many pages move to system memory together with one that a CPU accesses,
//! learned from earlier CPU faults.
//!
//! The more of the pages around the faulting ones had to move, the more pages the next fault takes.
//! A page that is accessed only now and then moves alone, so that the device keeps the pages around
//! it.
//!
//! Does not know how pages move.

use crate::{
    device::{command::Fetch, pool::BufferPool},
    wire::command::MAX_FETCH_PAGES,
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    time::{Instant, Monotonic},
};

/// The maximum number of pages per CPU fault, the faulting one included: as many as one [`Fetch`]
/// supports. From there on, the cost of a fault is hardly more than that of its pages.
const MOST: u32 = MAX_FETCH_PAGES as u32;

/// The factor by which the number of pages grows and shrinks.
const STEP: u32 = 8;

/// How long the history lasts without a CPU fault, in milliseconds.
const PAUSE: i64 = 10;

/// The CPU faults on small pages of one process.
#[pin_data]
pub(crate) struct FaultAround {
    /// How many pages the next fault moves.
    pages: Atomic<u32>,
    /// When the last fault moved pages, in milliseconds since `begun`.
    last: Atomic<i64>,
    begun: Instant<Monotonic>,
    #[pin]
    pub(crate) buffers: BufferPool<Fetch>,
}

impl FaultAround {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages: Atomic::new(1),
            last: Atomic::new(0),
            begun: Instant::now(),
            // Threads that fault at the same time allocate buffers.
            buffers <- BufferPool::new(1, MOST as usize),
        })
    }

    fn now(&self) -> i64 {
        self.begun.elapsed().as_millis()
    }

    /// The number of pages for this fault: a power of two.
    pub(crate) fn pages(&self) -> u32 {
        if self.now().saturating_sub(self.last.load(Relaxed)) > PAUSE {
            self.pages.store(1, Relaxed);
        }
        self.pages.load(Relaxed)
    }

    /// `moved` of the `pages` requested were on the device.
    pub(crate) fn learn(&self, pages: u32, moved: u32) {
        // Faults of several threads may overwrite each other's value here. Either value will do.
        let next = if moved.saturating_mul(2) >= pages {
            pages.saturating_mul(STEP).min(MOST)
        } else {
            (pages / STEP).max(1)
        };
        self.pages.store(next, Relaxed);
        self.last.store(self.now(), Relaxed);
    }
}
