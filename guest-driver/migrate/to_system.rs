// SPDX-License-Identifier: GPL-2.0

//! Moves pages of a process back to system memory.
//!
//! Does not know what requests that.

use crate::{
    device::Device,
    migrate::{
        allocate::fill_system,
        chunks::{for_each_chunk, runs, whole_regions, Progress, CHUNK_BYTES},
        journey::Journey,
        pipeline::{region_bit, Moved, Pipeline, Until},
    },
    mm::{
        hmm::{HmmPfns, HmmRange, LockedSnapshot},
        memremap::Sought,
        observed, pages_in, LockedVma, HPAGE_PMD_ORDER,
    },
    quirks::zap_moving::{block_zaps, collect_whole, ZapGuard},
    space::{mirror::SpaceMirror, Space},
    uapi::{trace::Cause, Destination},
};
use core::ops::Range;
use kernel::{
    mm::MmWithUser,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
};

/// Moves the pages of `range` of a space's process, whose address space is `mm`, from device memory
/// to system memory, as far as that is possible at the moment. Ends early when `until` says so.
///
/// # Errors
///
/// As for [`to_device`](super::to_device::to_device).
pub(crate) fn to_system(
    space: &Space,
    mm: &MmWithUser,
    range: Range<usize>,
    until: Until,
    cause: Cause,
) -> Result<Progress> {
    move_range(space, mm, range, Failed::Stays, until, cause)
}

/// What to do with a huge page that the device could not copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// Leave it as it is.
    Stays,
    /// Split it and try its pages one by one.
    IsSplit,
}

fn move_range(
    space: &Space,
    mm: &MmWithUser,
    range: Range<usize>,
    failed: Failed,
    until: Until,
    cause: Cause,
) -> Result<Progress> {
    let device = &*space.device;
    let core = &device.core;
    let journey = Journey {
        space: Some(space.id()),
        destination: Destination::System,
        cause,
    };
    let takes_large = device.pagemap.takes_large();
    let most = if takes_large {
        pages_in(&range).min(CHUNK_BYTES >> PAGE_SHIFT)
    } else {
        0
    };
    let mut pfns = HmmPfns::new(most)?;
    let sought = Some(Sought::Here);
    let progress = for_each_chunk(device, mm, range, sought, until, |vma, chunk| {
        let found = takes_large.then(|| HugePages::find(space, vma, &chunk, &mut pfns));
        // Held until the end: collecting splits huge pages, and the split must not wait for a
        // thread that blocks zaps there.
        let guard = takes_large
            .then(|| block_zaps(&space.notifier, chunk.clone()))
            .transpose()?;
        let mut moved = match (&guard, found.flatten()) {
            (Some(guard), Some(found)) => {
                found.move_to_system(guard, device, vma, (until, journey))?
            }
            _ => Moved::default(),
        };
        // Do not retry what has moved: by now it may be on the device again.
        let mut settled = moved.moved;
        if failed == Failed::Stays {
            settled |= moved.failed;
        }
        // The rest is split when it is collected, except what was not reached in time.
        let left = chunk.start..moved.ended.unwrap_or(chunk.end);
        let mut pipeline = Pipeline::new(device, until, journey);
        runs(
            &left,
            |address| settled & region_bit(address) == 0,
            |run| push_to_system(&mut pipeline, device, vma, run, None),
        )?;
        moved.add(pipeline.finish()?);
        Ok(moved)
    })?;
    let counters = &core.counters;
    counters.pages_to_system.add(progress.tally.moved);
    space.events().pages_to_system.add(progress.tally.moved);
    counters.huge_to_system.add(progress.tally.large);
    Ok(progress)
}

/// Moves pages of a range of `vma` from device memory to system memory: huge pages whole where
/// zaps are blocked, otherwise in small pages.
pub(crate) fn push_to_system<'m>(
    pipeline: &mut Pipeline<'_, 'm>,
    device: &Device,
    vma: LockedVma<'m>,
    range: Range<usize>,
    guard: Option<&ZapGuard<'_, SpaceMirror>>,
) -> Result {
    let pagemap = &device.pagemap;
    pipeline.push(
        range,
        |part, pfns| match guard {
            Some(guard) => collect_whole(pagemap, vma, part, guard, pfns),
            None => pagemap.collect_to_system(vma, part, pfns),
        },
        |collected, slot, start| fill_system(&device.core, collected, slot, Some((vma, start))),
    )
}

/// Huge pages in device memory that no other process has.
struct HugePages<'a> {
    range: Range<usize>,
    found: LockedSnapshot<'a>,
}

impl<'a> HugePages<'a> {
    /// Finds the huge pages in a range of `vma`. `None` if they cannot be determined: all of them
    /// can move in small pages.
    ///
    /// The caller must not block zaps: this function waits for changes, and a change of the range
    /// would wait for the caller.
    fn find(
        space: &Space,
        vma: LockedVma<'a>,
        range: &Range<usize>,
        pfns: &'a mut HmmPfns,
    ) -> Option<Self> {
        let device = &*space.device;
        let range = whole_regions(range);
        if range.is_empty() || device.core.frames.used() == 0 {
            return None;
        }
        let owner = device.pagemap.owner();
        let wanted = HmmRange::new(&space.notifier, range.clone(), owner);
        let found = wanted.snapshot_locked(vma, pfns).ok()?;
        Some(Self { range, found })
    }

    /// Moves the huge pages without splitting them, while zaps are blocked. Also returns which of
    /// them could not be copied.
    fn move_to_system(
        self,
        guard: &ZapGuard<'_, SpaceMirror>,
        device: &Device,
        vma: LockedVma<'_>,
        (until, journey): (Until, Journey),
    ) -> Result<Moved> {
        let Self { range, found } = self;
        let is_whole = |address: usize| {
            let page = found.pfn(address.saturating_sub(range.start) >> PAGE_SHIFT);
            page.is_some_and(|page| {
                // A huge page that is shared after a fork would not be writable.
                let is_ours = |pfn| device.pagemap.frame(pfn).is_some();
                page.is_writable()
                    && page.order() >= HPAGE_PMD_ORDER
                    && page.pfn().is_some_and(is_ours)
            })
        };
        let mut pipeline = Pipeline::new(device, until, journey);
        runs(&range, is_whole, |run| {
            push_to_system(&mut pipeline, device, vma, run, Some(guard))
        })?;
        let mut moved = pipeline.finish()?;
        // Pages that found no memory are retried as small pages.
        moved.tally.no_memory = 0;
        Ok(moved)
    }
}

/// Moves all pages of the process of a space to system memory, as far as that is possible at the
/// moment. A huge page for which there is no huge page of system memory moves in small pages.
pub(crate) fn all_to_system(space: &Space, cause: Cause) {
    let Some(mm) = observed(space.mm()) else {
        return;
    };
    let all = 0..usize::MAX & !(PAGE_SIZE - 1);
    if let Err(error) = move_range(space, &mm, all, Failed::IsSplit, Until::Done, cause) {
        // `evict_all` follows, and works without the process.
        pr_debug!("pages not moved to system memory: {:?}\n", error);
    }
}
