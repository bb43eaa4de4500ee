// SPDX-License-Identifier: GPL-2.0

//! Moves pages part by part: while the device copies one part, the previous one is given back to
//! its process, and the next one is collected and given memory.
//!
//! Does not know where pages move.

use crate::{
    device::{
        core::Core,
        pool::{MoveBuffer, DEPTH},
        Device,
    },
    migrate::{
        allocate::Filled,
        journey::{Journey, Leg},
        transfer::{each_moved, Plain, Tally, Transfer},
    },
    mm::{
        address_at, hpage_range,
        migrate::{Collected, MigratePfns, Slot},
        pages_in, LockedMm, HPAGE_PMD_ORDER, HPAGE_PMD_SIZE,
    },
    process,
};
use core::ops::Range;
use kernel::{current, mm::MmWithUser, prelude::*};

/// When to end before everything has been moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Never.
    Done,
    /// When the caller has a signal to handle, or is being killed.
    Signal,
    /// When the caller is being killed.
    Killed,
}

impl Until {
    /// Takes the mmap lock of a process.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is being killed; `EAGAIN` if a move that nothing ends finds the lock held
    /// for long.
    pub(crate) fn lock(self, mm: &MmWithUser) -> Result<LockedMm<'_>> {
        match self {
            Self::Done => LockedMm::soon(mm),
            Self::Signal | Self::Killed => LockedMm::killable(mm),
        }
    }

    /// Whether to end now.
    pub(crate) fn is_over(self) -> bool {
        match self {
            Self::Done => false,
            Self::Signal => current!().signal_pending(),
            Self::Killed => process::is_being_killed(),
        }
    }
}

/// Moves parts of a range one after the other.
///
/// `'m` is how long the mmap lock is held.
pub(crate) struct Pipeline<'a, 'm> {
    device: &'a Device,
    until: Until,
    journey: Journey,
    under_way: [Option<Part<'a, 'm>>; DEPTH],
    moved: Moved,
}

/// A part that the device is copying.
struct Part<'a, 'm> {
    start: usize,
    transfer: Transfer<'a, 'm, Plain>,
    tally: Tally,
    leg: Leg,
    /// Regions of huge pages that got new memory, and of those that did not.
    large: u64,
    lacking: u64,
}

/// The result of all parts. [`region_bit`] gives the bit of a region of 2 MiB.
#[derive(Default)]
pub(crate) struct Moved {
    pub(crate) tally: Tally,
    /// Regions of which at least one page has moved.
    pub(crate) moved: u64,
    /// Regions that consist of a huge page for which there was no memory.
    pub(crate) lacking: u64,
    /// Regions of huge pages that got new memory, in parts where at least one page was not copied
    /// or not committed.
    pub(crate) failed: u64,
    /// Where the move ended, if it ended before all parts.
    pub(crate) ended: Option<usize>,
}

impl Moved {
    /// Adds the result of a later attempt at the same pages.
    pub(crate) fn add(&mut self, other: Self) {
        self.tally.add(other.tally);
        self.moved |= other.moved;
        self.lacking |= other.lacking;
        self.failed |= other.failed;
        self.ended = match (self.ended, other.ended) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// The bit for the region of 2 MiB around an address, unique among 64 consecutive regions.
pub(crate) fn region_bit(address: usize) -> u64 {
    1 << (address / HPAGE_PMD_SIZE % u64::BITS as usize)
}

impl<'a, 'm> Pipeline<'a, 'm> {
    /// Moves parts on this journey until all are done, or until `until` says so.
    pub(crate) fn new(device: &'a Device, until: Until, journey: Journey) -> Self {
        Self {
            device,
            until,
            journey,
            under_way: [const { None }; DEPTH],
            moved: Moved::default(),
        }
    }

    /// Moves what `collect` collects of a range, part by part, to memory from `fill`. `fill` gets
    /// the address of the part and returns whether there was memory. Moves at least one part even
    /// if `until` says to end.
    ///
    /// # Errors
    ///
    /// What `collect` and `fill` return; `ENOMEM` if there is no memory for the migration itself.
    pub(crate) fn push(
        &mut self,
        range: Range<usize>,
        mut collect: impl FnMut(Range<usize>, MigratePfns) -> Result<Collected<'m>>,
        mut fill: impl FnMut(&mut Collected<'m>, Slot, usize) -> Result<Filled>,
    ) -> Result {
        let core: &'a Core = &self.device.core;
        let most = address_at(0, core.limits.max_move);
        let mut start = range.start;
        while start < range.end && self.moved.ended.is_none() {
            // Do not cut huge pages.
            let cut = hpage_range(start).start.saturating_add(most);
            let end = range.end.min(cut);
            let part = self.begin(start..end, &mut collect, &mut fill)?;
            // The first entry is the earliest part.
            if let Some(earlier) = self.under_way[0].take() {
                self.end(earlier)?;
            }
            self.under_way.rotate_left(1);
            self.under_way[DEPTH - 1] = Some(part);
            start = end;
            if self.until.is_over() {
                self.moved.ended = Some(end);
            }
        }
        Ok(())
    }

    /// Waits until all parts have moved.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that.
    pub(crate) fn finish(mut self) -> Result<Moved> {
        for index in 0..DEPTH {
            if let Some(part) = self.under_way[index].take() {
                self.end(part)?;
            }
        }
        Ok(self.moved)
    }

    fn begin(
        &self,
        range: Range<usize>,
        collect: &mut impl FnMut(Range<usize>, MigratePfns) -> Result<Collected<'m>>,
        fill: &mut impl FnMut(&mut Collected<'m>, Slot, usize) -> Result<Filled>,
    ) -> Result<Part<'a, 'm>> {
        let core: &'a Core = &self.device.core;
        let start = range.start;
        let pages = pages_in(&range);
        let MoveBuffer { pfns, list } = core.buffers.take(0, pages)?;
        let mut leg = self.journey.leg(range.clone());
        let collecting = core.counters.collect_nanoseconds.time();
        let collected = collect(range, pfns)?;
        leg.collect = collecting.stop();
        let mut tally = Tally::default();
        let (mut large, mut lacking) = (0, 0);
        let allocating = core.counters.allocate_nanoseconds.time();
        let transfer = Transfer::begin(
            core,
            &Plain,
            &self.device.pagemap,
            collected,
            list,
            |collected, slot| {
                let pages = slot.pages() as u64;
                let region = if slot.order == HPAGE_PMD_ORDER {
                    region_bit(address_at(start, slot.index))
                } else {
                    0
                };
                let filled = fill(collected, slot, start)?;
                match filled {
                    Filled::Allocated => large |= region,
                    Filled::Lacking => {
                        tally.no_memory = tally.no_memory.saturating_add(pages);
                        lacking |= region;
                    }
                    Filled::Unwanted => return Ok(false),
                }
                tally.offered = tally.offered.saturating_add(pages);
                Ok(matches!(filled, Filled::Allocated))
            },
        )?;
        leg.allocate = allocating.stop();
        Ok(Part {
            start,
            transfer,
            tally,
            leg,
            large,
            lacking,
        })
    }

    /// Waits until a part has been copied and gives it back to its process. Pages that could not be
    /// copied stay where they were.
    fn end(&mut self, part: Part<'a, 'm>) -> Result {
        let Core {
            counters, buffers, ..
        } = &*self.device.core;
        let Part {
            start,
            transfer,
            mut tally,
            mut leg,
            large,
            lacking,
        } = part;
        let copying = counters.copy_nanoseconds.time();
        let (collected, list) = transfer.end_or_stay()?;
        leg.copy = copying.stop();
        let committing = counters.commit_nanoseconds.time();
        let committed = collected.commit();
        leg.commit = committing.stop();
        let mut moved = 0;
        each_moved(&committed, |index, order| {
            tally.count(order);
            moved |= region_bit(address_at(start, index));
        });
        self.moved.moved |= moved;
        self.moved.lacking |= lacking;
        if tally.moved < tally.offered.saturating_sub(tally.no_memory) {
            self.moved.failed |= large;
        }
        self.moved.tally.add(tally);
        let finalising = counters.finalise_nanoseconds.time();
        let pfns = committed.finish();
        buffers.put(pfns, list);
        leg.finalise = finalising.stop();
        leg.end(&self.device.core, tally.moved, tally.large);
        Ok(())
    }
}
