// SPDX-License-Identifier: GPL-2.0

//! Moves pages of a process to device memory.
//!
//! Does not know what requests that.

use crate::{
    migrate::{
        allocate::{FrameAllocator, Holes},
        chunks::{for_each_chunk, runs, whole_regions, Progress},
        journey::Journey,
        pipeline::{region_bit, Pipeline, Until},
        transfer::Tally,
    },
    mm::{memremap::Sought, migrate::Compound, pages_in, HPAGE_PMD_NR},
    quirks::zap_moving::block_zaps,
    space::Space,
    uapi::{trace::Cause, Destination},
};
use core::ops::Range;
use kernel::{mm::MmWithUser, prelude::*};

/// Moves the private anonymous pages of `range` of a space's process, whose address space is `mm`,
/// to device memory. `holes` says whether pages are also created there for empty entries. Ends
/// early when the device has no memory left, or when `until` says so.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the migration itself; `EIO` or `ENODEV` if the device is
/// given up.
pub(crate) fn to_device(
    space: &Space,
    mm: &MmWithUser,
    range: Range<usize>,
    holes: Holes,
    until: Until,
    cause: Cause,
) -> Result<Progress> {
    let device = &*space.device;
    let core = &device.core;
    let journey = Journey {
        space: Some(space.id()),
        destination: Destination::Device,
        cause,
    };
    let sought = match holes {
        Holes::Stay => Some(Sought::Elsewhere),
        Holes::AreFilled => None,
    };
    let progress = for_each_chunk(device, mm, range, sought, until, |vma, chunk| {
        if core.frames.is_short(pages_in(&chunk) as u64) {
            core.discard_stale()?;
        }
        let moves_large = device.pagemap.takes_large() && !whole_regions(&chunk).is_empty();
        let _guard = moves_large
            .then(|| block_zaps(&space.notifier, chunk.clone()))
            .transpose()?;
        let out = |size, regions: u64| {
            let mut pipeline = Pipeline::new(device, until, journey);
            let mut allocator = FrameAllocator::new(device, space.holder(), holes);
            runs(
                &chunk,
                |address| regions & region_bit(address) != 0,
                |run| {
                    pipeline.push(
                        run,
                        |part, pfns| device.pagemap.collect_to_device(vma, part, size, pfns),
                        |collected, slot, _| allocator.fill(collected, slot),
                    )
                },
            )?;
            pipeline.finish()
        };
        const ALL: u64 = u64::MAX;
        if !device.pagemap.takes_large() {
            return out(Compound::Split, ALL);
        }
        let mut whole = out(Compound::Keep, ALL)?;
        let lacking = whole.lacking;
        if lacking != 0 && core.frames.used() < core.frames.total() {
            // Without a block of frames for a huge page there may still be single frames. Nothing
            // in these regions has moved, so no page is counted twice.
            let again = u64::from(lacking.count_ones()).saturating_mul(HPAGE_PMD_NR as u64);
            let tally = &mut whole.tally;
            tally.offered = tally.offered.saturating_sub(again);
            tally.no_memory = tally.no_memory.saturating_sub(again);
            whole.add(out(Compound::Split, lacking)?);
        }
        Ok(whole)
    })?;
    let Tally {
        offered,
        moved,
        large,
        ..
    } = progress.tally;
    let counters = &core.counters;
    counters.pages_to_device.add(moved);
    space.events().pages_to_device.add(moved);
    counters.huge_to_device.add(large);
    counters.pages_refused.add(offered.saturating_sub(moved));
    Ok(progress)
}
