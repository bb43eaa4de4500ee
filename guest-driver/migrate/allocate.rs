// SPDX-License-Identifier: GPL-2.0

//! New memory for pages that move, at either end.
//!
//! Knows neither why pages move nor how their contents are copied.

use crate::{
    device::{
        core::Core,
        frames::{AllocatedFrames, FrameBatch},
        shares::Holder,
        Device, Store,
    },
    mm::{
        address_at,
        memremap::DevPagemapRef,
        migrate::{Collected, LockedFolio, Slot, Source},
        LockedVma,
    },
};
use kernel::prelude::*;

/// Whether there was memory at the destination for a slot.
pub(crate) enum Filled {
    /// The slot has been given memory.
    Allocated,
    /// There is none.
    Lacking,
    /// The slot is to stay as it is.
    Unwanted,
}

/// What to do with addresses of a process that have no page yet, or only the zero page that all
/// processes share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holes {
    /// Leave them alone; where whole page tables are missing, do not even look at them.
    Stay,
    /// Create pages of zeros there.
    AreFilled,
}

/// Gives device memory to what has been collected. Takes single frames in batches: allocating small
/// pages one by one takes longer than copying them.
pub(crate) struct FrameAllocator<'a> {
    device: &'a Device,
    /// The user and process that the frames are accounted to.
    holder: Holder,
    holes: Holes,
    /// None if the pages of device memory have been removed.
    live: Option<DevPagemapRef<'a, Store>>,
    batch: Option<FrameBatch<'a>>,
}

impl<'a> FrameAllocator<'a> {
    pub(crate) fn new(device: &'a Device, holder: Holder, holes: Holes) -> Self {
        Self {
            device,
            holder,
            holes,
            live: device.pagemap.try_get(),
            batch: None,
        }
    }

    /// Gives frames to a slot.
    pub(crate) fn fill(&mut self, collected: &mut Collected<'_>, slot: Slot) -> Result<Filled> {
        if slot.source == Source::Hole && self.holes == Holes::Stay {
            return Ok(Filled::Unwanted);
        }
        let core = &self.device.core;
        let allocated = match slot.order {
            _ if core.injection.should_fail() => None,
            0 => self.one(collected.pages().saturating_sub(slot.index)),
            _ => core.frames.alloc_block(self.holder),
        };
        let folio = allocated.and_then(|allocated| {
            let live = self.live.as_ref()?;
            match live.folio(allocated.keep()?) {
                Ok(folio) => Some(folio),
                Err(frames) => {
                    // Frames beyond the page map. It was made for all frames, so this does not
                    // happen.
                    core.free_frames(frames);
                    None
                }
            }
        });
        fill(collected, slot, folio)
    }

    /// Allocates a frame. A batch has at most `pages` frames, this one included.
    fn one(&mut self, pages: usize) -> Option<AllocatedFrames<'a>> {
        if let Some(allocated) = self.batch.as_mut().and_then(FrameBatch::next) {
            return Some(allocated);
        }
        self.batch = self.device.core.frames.alloc_batch(pages, self.holder);
        self.batch.as_mut()?.next()
    }
}

impl Drop for FrameAllocator<'_> {
    fn drop(&mut self) {
        // Dropping the batch frees its remaining frames.
        if self.batch.take().is_some() {
            self.device.core.discard_if_due();
        }
    }
}

/// Gives a folio to a slot if there is one.
fn fill(collected: &mut Collected<'_>, slot: Slot, folio: Option<LockedFolio>) -> Result<Filled> {
    match folio {
        Some(folio) => collected.fill(slot, folio).map(|()| Filled::Allocated),
        None => Ok(Filled::Lacking),
    }
}

/// Gives system memory to a slot. `near` is the VMA that the pages were collected from and the
/// address of the first one.
pub(crate) fn fill_system(
    core: &Core,
    collected: &mut Collected<'_>,
    slot: Slot,
    near: Option<(LockedVma<'_>, usize)>,
) -> Result<Filled> {
    if slot.source == Source::Hole {
        return Ok(Filled::Unwanted);
    }
    if core.injection.should_fail() {
        return Ok(Filled::Lacking);
    }
    let near = near.map(|(vma, start)| (vma, address_at(start, slot.index)));
    fill(collected, slot, LockedFolio::system(slot.order, near))
}
