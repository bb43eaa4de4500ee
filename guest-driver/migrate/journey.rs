// SPDX-License-Identifier: GPL-2.0

//! Moves as a trace shows them: why pages move, and how long each stage takes.
//!
//! Knows neither how pages move nor how they are found.

use crate::{
    device::core::Core,
    trace,
    uapi::{trace::Cause, Destination},
};
use core::ops::Range;

/// Why pages move, and where to.
#[derive(Clone, Copy)]
pub(crate) struct Journey {
    /// The number of their space, if they are of one.
    pub(crate) space: Option<u32>,
    pub(crate) destination: Destination,
    pub(crate) cause: Cause,
}

/// A range of pages on such a journey, and the time that each stage has taken, in nanoseconds.
pub(crate) struct Leg {
    journey: Journey,
    range: Range<usize>,
    pub(crate) collect: u64,
    pub(crate) allocate: u64,
    /// What the driver waited for the device; not how long the device copied.
    pub(crate) copy: u64,
    pub(crate) commit: u64,
    pub(crate) finalise: u64,
}

impl Journey {
    /// Begins a leg with the pages of a range; it is empty if the pages are not found by address.
    pub(crate) fn leg(self, range: Range<usize>) -> Leg {
        Leg {
            journey: self,
            range,
            collect: 0,
            allocate: 0,
            copy: 0,
            commit: 0,
            finalise: 0,
        }
    }
}

impl Leg {
    /// Traces the leg, on which so many pages have moved, `huge` of them as huge pages, each of which
    /// is counted once there.
    pub(crate) fn end(self, core: &Core, pages: u64, huge: u64) {
        trace::migrate(|| trace::Migrate {
            device: core.node(),
            // The numbers of spaces are small.
            space: self.journey.space.map_or(-1, |space| space as i32),
            start: self.range.start as u64,
            end: self.range.end as u64,
            pages,
            huge,
            to_device: (self.journey.destination == Destination::Device).into(),
            cause: self.journey.cause.raw(),
            collect: self.collect,
            allocate: self.allocate,
            copy: self.copy,
            commit: self.commit,
            finalise: self.finalise,
            used: core.frames.used(),
        });
    }
}
