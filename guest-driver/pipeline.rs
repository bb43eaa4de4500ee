// SPDX-License-Identifier: GPL-2.0

//! Pages on the move, part by part: while the device copies one part, the one before is given
//! back to its process, and the next one is taken away and lent memory.
//!
//! Knows nothing of where pages move.

use crate::{
    device::{Core, Device},
    migrate::Tally,
    mm::migrate::{large_range, Collected, Committed, Scratch, Slot},
    mm::{LARGE_ORDER, LARGE_SIZE, PAGE_SHIFT},
    transfer::{Memory, Plain, Transfer},
};
use core::ops::Range;
use kernel::prelude::*;

/// How many parts the device is given while one is collected: enough that it has something to do
/// while it is noticed that it has done with the first one.
pub(crate) const DEPTH: usize = 2;

/// Moves parts of a range one after the other.
///
/// `'m` is how long the mmap lock is held.
pub(crate) struct Pipeline<'a, 'm> {
    device: &'a Device,
    under_way: [Option<Part<'a, 'm>>; DEPTH],
    moved: Moved,
}

/// A part that the device copies.
struct Part<'a, 'm> {
    transfer: Transfer<'a, 'm, Plain>,
    tally: Tally,
    large: u64,
}

/// What became of all parts.
#[derive(Default)]
pub(crate) struct Moved {
    pub(crate) tally: Tally,
    /// The large pages, by [`region_bit`], of parts of which something was not copied or not
    /// committed.
    pub(crate) failed: u64,
}

/// The bit that stands for the region of 2 MiB around an address, among 64 that follow each
/// other.
pub(crate) fn region_bit(address: usize) -> u64 {
    1 << (address / LARGE_SIZE % u64::BITS as usize)
}

impl<'a, 'm> Pipeline<'a, 'm> {
    pub(crate) fn new(device: &'a Device) -> Self {
        Self {
            device,
            under_way: [const { None }; DEPTH],
            moved: Moved::default(),
        }
    }

    /// Moves what `collect` collects of a range, part by part, to memory that `fill` lends.
    /// `fill` is told the address of the part and says whether there was any memory.
    ///
    /// # Errors
    ///
    /// What `collect` and `fill` return; `ENOMEM` if there is no memory for the move itself.
    pub(crate) fn push(
        &mut self,
        range: Range<usize>,
        mut collect: impl FnMut(Range<usize>, Scratch) -> Result<Collected<'m>>,
        mut fill: impl FnMut(&mut Collected<'m>, Slot, usize) -> Result<bool>,
    ) -> Result {
        let core: &'a Core = &self.device.core;
        let most = core.limits.max_move << PAGE_SHIFT;
        let mut start = range.start;
        while start < range.end {
            // Large pages are not cut.
            let cut = large_range(start).start.saturating_add(most);
            let end = range.end.min(cut);
            let part = self.begin(start..end, &mut collect, &mut fill)?;
            // The first place is that of the earliest one.
            if let Some(earlier) = self.under_way[0].take() {
                self.end(earlier)?;
            }
            self.under_way.rotate_left(1);
            self.under_way[DEPTH - 1] = Some(part);
            start = end;
        }
        Ok(())
    }

    /// Waits until all parts have moved.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that.
    pub(crate) fn finish(mut self) -> Result<Moved> {
        for place in 0..DEPTH {
            if let Some(part) = self.under_way[place].take() {
                self.end(part)?;
            }
        }
        Ok(self.moved)
    }

    fn begin(
        &self,
        range: Range<usize>,
        collect: &mut impl FnMut(Range<usize>, Scratch) -> Result<Collected<'m>>,
        fill: &mut impl FnMut(&mut Collected<'m>, Slot, usize) -> Result<bool>,
    ) -> Result<Part<'a, 'm>> {
        let core: &'a Core = &self.device.core;
        let start = range.start;
        let pages = range.len() >> PAGE_SHIFT;
        let Memory { scratch, list } = core.spares.take(0, pages)?;
        let collecting = core.counters.collect_nanoseconds.time();
        let collected = collect(range, scratch)?;
        drop(collecting);
        let (mut tally, mut large) = (Tally::default(), 0);
        let _lending = core.counters.lend_nanoseconds.time();
        let transfer = Transfer::begin(
            core,
            &Plain,
            &self.device.pagemap,
            collected,
            list,
            |collected, slot| {
                let pages = 1 << slot.order;
                tally.offered += pages;
                let filled = fill(collected, slot, start)?;
                if !filled {
                    tally.no_memory += pages;
                } else if slot.order == LARGE_ORDER {
                    large |= region_bit(start + (slot.index << PAGE_SHIFT));
                }
                Ok(filled)
            },
        )?;
        Ok(Part {
            transfer,
            tally,
            large,
        })
    }

    /// Waits until a part has been copied and gives it back to its process. What could not be
    /// copied stays where it was.
    fn end(&mut self, part: Part<'a, 'm>) -> Result {
        let Core {
            counters, spares, ..
        } = &*self.device.core;
        let Part {
            transfer,
            mut tally,
            large,
        } = part;
        let copying = counters.copy_nanoseconds.time();
        let (collected, list) = transfer.end_or_stay()?;
        drop(copying);
        let committing = counters.commit_nanoseconds.time();
        let committed = collected.commit();
        drop(committing);
        count(&committed, &mut tally);
        if tally.moved < tally.offered - tally.no_memory {
            self.moved.failed |= large;
        }
        self.moved.tally.add(tally);
        let _finalising = counters.finalise_nanoseconds.time();
        let scratch = committed.finish();
        spares.keep(scratch, list);
        Ok(())
    }
}

/// Counts what has been moved.
pub(crate) fn count(committed: &Committed<'_>, tally: &mut Tally) {
    for index in 0..committed.pages() {
        if let Some(order) = committed.moved_order(index) {
            tally.moved += 1 << order;
            tally.large += u64::from(order > 0);
        }
    }
}
