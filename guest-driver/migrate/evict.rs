// SPDX-License-Identifier: GPL-2.0

//! Moves pages of all processes out of device memory, because no process is left to use them there
//! or because the device goes away.
//!
//! Does not know which of these is the reason.

use crate::{
    device::{pool::MoveBuffer, Device},
    late,
    migrate::{
        allocate::{fill_system, Filled},
        chunks::for_each_chunk,
        journey::Journey,
        pipeline::{Pipeline, Until},
        to_system::push_to_system,
        transfer::{count, is_lost, Plain, Tally, Transfer},
    },
    mm::{
        for_each_process,
        memremap::Sought,
        migrate::{Collected, LostFolio, Slot},
        HPAGE_PMD_NR,
    },
    uapi::{late::LatePoint, trace::Cause, Destination},
};
use kernel::{
    page::PAGE_SIZE,
    pr_err_once,
    prelude::*,
    time::{delay::fsleep, Delta},
};

/// Moves all pages of all processes to system memory in small pages. That includes huge pages for
/// which there is no huge page of system memory. When no file is bound to a process any more, only
/// its page tables tell where its pages are.
///
/// Zaps need not be blocked, because huge pages are split before they move.
pub(crate) fn evict_from_processes(device: &Device, cause: Cause) {
    let all = 0..usize::MAX & !(PAGE_SIZE - 1);
    for_each_process(|mm| {
        let (all, here) = (all.clone(), Some(Sought::Here));
        let moved = for_each_chunk(device, mm, all, here, Until::Done, |vma, chunk| {
            let mut pipeline = Pipeline::new(device, Until::Done, journey(cause));
            push_to_system(&mut pipeline, device, vma, chunk, None)?;
            pipeline.finish()
        });
        match moved {
            Ok(moved) => device.core.counters.pages_evicted.add(moved.tally.moved),
            Err(error) => pr_debug!("pages of a process are not evicted: {:?}\n", error),
        }
    });
}

/// The journey of pages of any process.
fn journey(cause: Cause) -> Journey {
    Journey {
        space: None,
        destination: Destination::System,
        cause,
    }
}

/// Takes all pages away from all processes; their contents are lost.
pub(crate) fn poison_all(device: &Device) {
    let mut poisoned = 0_u64;
    for_each_process(|mm| poisoned = poisoned.saturating_add(device.pagemap.poison(mm)));
    if poisoned > 0 {
        pr_err!(
            "{} pages that could not move to system memory are lost\n",
            poisoned
        );
        device.core.counters.pages_lost.add(poisoned);
    }
}

/// Stops [`evict_all`] after `most` rounds that moved nothing.
pub(crate) fn rounds(most: u32) -> impl FnMut(u64) -> bool {
    let mut left = most;
    move |moved| {
        if moved == 0 {
            left = left.saturating_sub(1);
        }
        left == 0
    }
}

/// Moves all pages out of device memory, regardless of their process. Returns when there are none
/// left, or when `stop` says so. `stop` is called after each round with the number of pages moved.
pub(crate) fn evict_all(device: &Device, cause: Cause, stop: &mut dyn FnMut(u64) -> bool) {
    let core = &device.core;
    while core.frames.used() > 0 {
        let moved = match evict_once(device, cause) {
            Ok(tally) => {
                core.counters.pages_evicted.add(tally.moved);
                core.counters.huge_to_system.add(tally.large);
                tally.moved
            }
            Err(error) => {
                pr_err_once!("pages in device memory cannot be evicted: {:?}\n", error);
                0
            }
        };
        if stop(moved) {
            return;
        }
        // Other users of these pages will release them soon.
        fsleep(Delta::from_millis(1));
    }
}

/// Walks once over all of device memory.
fn evict_once(device: &Device, cause: Cause) -> Result<Tally> {
    let core = &device.core;
    let most = core.limits.max_move;
    let mut lost = KVVec::new();
    let mut sum = Tally::default();
    let mut next = 0;
    // Whole blocks: a huge page must not be cut. Skip huge pages whose process is not bound: its
    // unmaps cannot be held off. When the device goes away, they must move anyway.
    let whole = core.frames.is_closed();
    while let Some(first) = core.frames.next_in_use(next) {
        let block = HPAGE_PMD_NR as u64;
        if !whole && device.pagemap.is_large(first) {
            next = first.saturating_add(block);
            continue;
        }
        let pages = if whole { most as u64 } else { block };
        let frames = core.frames.total().saturating_sub(first).min(pages);
        let MoveBuffer { pfns, list } = core.buffers.take(0, most)?;
        let pagemap = &device.pagemap;
        let collected = pagemap.collect_frames(first, frames as usize, pfns)?;
        let fill = |collected: &mut Collected<'_>, slot| {
            // Unless the device goes away, the page stays: its owner finds out that the contents
            // are lost when it accesses the page.
            if is_lost(core, pagemap, slot) {
                if whole {
                    note(&mut lost, collected, slot);
                }
                return Ok(false);
            }
            let filled = fill_system(core, collected, slot, None)?;
            Ok(matches!(filled, Filled::Allocated))
        };
        let transfer = Transfer::begin(core, &Plain, pagemap, collected, list, fill)?;
        let (collected, list) = transfer.end(|collected, slot| {
            note(&mut lost, collected, slot);
            Ok(())
        })?;
        let committed = collected.commit();
        let mut tally = Tally::default();
        count(&committed, &mut tally);
        sum.add(tally);
        let pfns = committed.finish();
        core.buffers.put(pfns, list);
        journey(cause).leg(0..0).end(core, tally.moved, tally.large);
        next = first.saturating_add(frames);
    }
    // The memory must be freed in any case. Pages that the device does not return are lost. Their
    // entries are replaced by markers at once. If the pages were moved first, their owners could
    // read the new memory, which has other contents, before the markers are there.
    sum.moved = sum.moved.saturating_add(poison_lost(device, &lost));
    Ok(sum)
}

/// Notes a slot whose contents are lost. If there is no memory for that, it stays where it is and
/// is tried again.
fn note(lost: &mut KVVec<LostFolio>, collected: &mut Collected<'_>, slot: Slot) {
    if let Some(folio) = collected.lost(slot) {
        let index = lost.partition_point(|other| other.first() < folio.first());
        if lost.reserve(1, GFP_KERNEL).is_ok() {
            // There is room for it.
            let _ = lost.insert_within_capacity(index, folio);
        }
    }
}

/// Takes these folios away from all processes. Returns the number of pages, each counted for each
/// process that had it.
fn poison_lost(device: &Device, lost: &[LostFolio]) -> u64 {
    let mut poisoned = 0_u64;
    if !lost.is_empty() {
        late::at(LatePoint::Lost);
        let pagemap = &device.pagemap;
        for_each_process(|mm| poisoned = poisoned.saturating_add(pagemap.poison_lost(mm, lost)));
        if poisoned > 0 {
            let pages = lost
                .iter()
                .map(LostFolio::pages)
                .fold(0, u64::saturating_add);
            device.core.counters.pages_lost.add(pages);
        }
    }
    poisoned
}
