// SPDX-License-Identifier: GPL-2.0

//! The part of a process's memory that a device mirrors. The device has no page table: it reads
//! that of the process for each access. What is recorded here tells which accesses need no fault.

use crate::mm::{
    hmm::HmmRequest,
    mmu_notifier::{MirrorOps, MmuIntervalNotifier},
    PgmapOwner,
};
use core::ops::Range;
use kernel::prelude::*;

/// The mirrored range, one at a time, and the access that the device has to it.
pub(crate) struct Mirrored {
    range: Range<usize>,
    to: HmmRequest,
    /// Pages to which the device has exclusive access, until a CPU or another device accesses one.
    exclusive: Range<usize>,
}

/// Extends a range by the part that follows it. If the part does not follow it, replaces the range
/// by the part. Returns whether the part follows the range.
fn add(range: &mut Range<usize>, part: &Range<usize>) -> bool {
    let continues = range.end == part.start;
    let start = if continues { range.start } else { part.start };
    *range = start..part.end;
    continues
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Mirrored {
    pub(crate) const NOTHING: Self = Self {
        range: 0..0,
        to: HmmRequest::Read,
        exclusive: 0..0,
    };

    /// Whether the device is known to have this access to all of a range.
    pub(crate) fn allows(&self, range: &Range<usize>, want: HmmRequest) -> bool {
        self.range.start <= range.start && range.end <= self.range.end && self.to >= want
    }

    /// Records that the device has this access to a part of the memory.
    pub(crate) fn allow(&mut self, part: &Range<usize>, to: HmmRequest) {
        let continues = add(&mut self.range, part);
        self.to = if continues { self.to.min(to) } else { to };
    }

    /// Records that the device has exclusive access to a page.
    pub(crate) fn exclude_others(&mut self, page: &Range<usize>) {
        add(&mut self.exclusive, page);
    }

    /// Whether the device has exclusive access to any page of a range.
    pub(crate) fn has_exclusive(&self, range: &Range<usize>) -> bool {
        overlap(&self.exclusive, range)
    }
}

/// A mirror that is invalidated at once.
pub(crate) struct Mirror(pub(crate) PgmapOwner);

pub(crate) type Notifier = MmuIntervalNotifier<Mirror>;

impl MirrorOps for Mirror {
    type State = Mirrored;
    type Resources = ();
    type Pending = ();

    fn owner(&self) -> PgmapOwner {
        self.0
    }

    fn alloc_resources(&self) -> Result {
        Ok(())
    }

    fn affected_range(&self, state: &Mirrored, range: &Range<usize>) -> Option<Range<usize>> {
        let is_affected = overlap(&state.range, range) || overlap(&state.exclusive, range);
        is_affected.then(|| range.clone())
    }

    fn invalidate_start(&self, _resources: (), _range: &Range<usize>) {}

    fn invalidate_wait(&self, _pending: ()) -> Option<()> {
        Some(())
    }

    fn resources_lost(&self) {}

    fn invalidated(&self, state: &mut Mirrored, range: &Range<usize>) {
        for known in [&mut state.range, &mut state.exclusive] {
            if overlap(known, range) {
                *known = 0..0;
            }
        }
    }
}
