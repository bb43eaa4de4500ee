// SPDX-License-Identifier: GPL-2.0

//! Ranges of a process in chunks that are moved one by one.
//!
//! Does not know where pages move.

use crate::{
    device::Device,
    migrate::{
        pipeline::{Moved, Until},
        transfer::Tally,
    },
    mm::{
        has_process, hpage_range,
        memremap::{Found, Sought},
        pages_in, LockedVma, HPAGE_PMD_SIZE,
    },
};
use core::ops::Range;
use kernel::{mm::MmWithUser, prelude::*};

/// How much is moved with the mmap lock held: meanwhile other threads of the process cannot change
/// its mappings. A multiple of a huge page, and at most 64 of them, see
/// [`region_bit`](super::pipeline::region_bit).
pub(crate) const CHUNK_BYTES: usize = 16 * HPAGE_PMD_SIZE;

/// How much of a range has been moved.
pub(crate) struct Progress {
    pub(crate) tally: Tally,
    /// Where the move ended: at the end of the range, unless it ended early.
    pub(crate) reached: usize,
}

/// Visits the VMAs of `range` in chunks of bounded size: with `sought`, only the parts that have
/// such pages, otherwise all. Skips VMAs that cannot be migrated. Ends early when a chunk finds no
/// memory, or when `until` says so, but not before the first chunk.
///
/// The mmap lock is dropped after each chunk, and periodically where nothing is found.
pub(crate) fn for_each_chunk(
    device: &Device,
    mm: &MmWithUser,
    range: Range<usize>,
    sought: Option<Sought>,
    until: Until,
    mut visit: impl FnMut(LockedVma<'_>, Range<usize>) -> Result<Moved>,
) -> Result<Progress> {
    let mut tally = Tally::default();
    let mut reached = range.start;
    while reached < range.end {
        let locked = until.lock(mm)?;
        let area = locked.find(reached).map(|vma| {
            let area = vma.clip(&(reached..range.end));
            (vma, area)
        });
        let Some((vma, area)) = area.filter(|(_, area)| !area.is_empty()) else {
            reached = range.end;
            break;
        };
        if !vma.is_migratable() {
            tally.unmovable = tally.unmovable.saturating_add(pages_in(&area) as u64);
            reached = area.end;
        } else {
            let (chunk, end) = next_chunk(device, vma, &area, sought);
            reached = end;
            if let Some(chunk) = chunk {
                let pages = pages_in(&chunk) as u64;
                match visit(vma, chunk) {
                    Ok(moved) => {
                        tally.add(moved.tally);
                        reached = moved.ended.unwrap_or(end);
                        if sought != Some(Sought::Here) && is_full(device, &moved.tally) {
                            // There would be no memory for the rest either.
                            reached = range.end;
                        }
                    }
                    Err(error) if error == EINVAL => {
                        tally.unmovable = tally.unmovable.saturating_add(pages);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        drop(locked);
        // Another process may have bound this one, which may end meanwhile: its memory should then
        // be freed, and not moved.
        if until.is_over() || !has_process(mm) {
            break;
        }
    }
    Ok(Progress { tally, reached })
}

/// Whether a chunk has used up the memory of the device.
fn is_full(device: &Device, tally: &Tally) -> bool {
    tally.no_memory > 0 && !device.core.frames.is_short(1)
}

/// The next part of a VMA to visit, if there is one, and where the search ended.
fn next_chunk(
    device: &Device,
    vma: LockedVma<'_>,
    area: &Range<usize>,
    sought: Option<Sought>,
) -> (Option<Range<usize>>, usize) {
    let limit = |start| {
        // Do not cut huge pages.
        let cut = hpage_range(start).start.saturating_add(CHUNK_BYTES);
        area.end.min(cut)
    };
    let Some(sought) = sought else {
        let end = limit(area.start);
        return (Some(area.start..end), end);
    };
    let find = |range: Range<usize>| device.pagemap.find(vma, &range, sought);
    let first = match find(area.clone()) {
        Found::Page(address) => address,
        Found::Nothing(end) => return (None, end),
    };
    let start = hpage_range(first).start.max(area.start);
    let limit = limit(start);
    let mut end = hpage_range(first).end.min(limit);
    // Extend the chunk while each region of 2 MiB has a page that is sought.
    while end < limit {
        let next = end..hpage_range(end).end.min(limit);
        if let Found::Nothing(_) = find(next.clone()) {
            break;
        }
        end = next.end;
    }
    (Some(start..end), end)
}

/// Calls `visit` for the longest parts of a range for which `is_so` is true at each region of 2
/// MiB.
pub(crate) fn runs(
    range: &Range<usize>,
    is_so: impl Fn(usize) -> bool,
    mut visit: impl FnMut(Range<usize>) -> Result,
) -> Result {
    let mut start = range.start;
    while start < range.end {
        let mut end = start;
        while end < range.end && is_so(end) {
            end = range.end.min(hpage_range(end).end);
        }
        if start < end {
            visit(start..end)?;
        }
        // At the end, or in a region for which `is_so` is false.
        start = hpage_range(end).end;
    }
    Ok(())
}

/// The part of a range that consists of whole regions of 2 MiB.
pub(crate) fn whole_regions(range: &Range<usize>) -> Range<usize> {
    let start = range.start.checked_next_multiple_of(HPAGE_PMD_SIZE);
    start.unwrap_or(range.end)..range.end & !(HPAGE_PMD_SIZE - 1)
}
