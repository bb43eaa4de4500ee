// SPDX-License-Identifier: GPL-2.0

//! Moves a page in device memory back when a CPU accesses it, and some pages around it.
//!
//! A thread waits for the move. A small page is therefore unmapped from the device and copied by
//! one request. The number of pages that move with it is learned (see `fault_around`).
//!
//! Does not know why pages are on the device.

use crate::{
    device::{
        command::{fetch_entry, Fetch, LongFetch, SpaceDestroy},
        core::Core,
        pool::{BufferPool, MoveBuffer},
        queue::{Command, Link, Message, Sent},
        CpuFaults, Store,
    },
    late,
    migrate::{
        allocate::{fill_system, Filled},
        journey::Journey,
        transfer::{count, Carrier, Plain, Tally, Transfer},
    },
    mm::{
        address_at, hpage_range,
        memremap::{CpuFault, DevPagemap, VmFaultError},
        migrate::{Collected, Compound, LockedFolio, Slot, SoleFolio, Source},
        self_invalidate::SelfInvalidation,
        LockedVma, SelfInvalidate,
    },
    quirks::{
        split_fault,
        zap_moving::{block_zaps, collect_whole_for_fault},
    },
    space::{mirror::SpaceMirror, Elsewhere, Space, Spaces},
    uapi::{late::LatePoint, trace::Cause, Destination},
    wire::{
        command::FetchEntry,
        dma::{DmaItem, ItemResult},
    },
};
use core::{cell::Cell, marker::PhantomData, ops::Range};
use kernel::{page::PAGE_SHIFT, prelude::*, sync::Arc};

/// Fault-around for a process that is not bound, such as a forked child; it has no history.
const UNBOUND: u32 = 16;

/// Moves pages back from a device when CPUs access them.
pub(crate) struct CpuFaultHandler {
    spaces: Arc<Spaces>,
}

impl CpuFaultHandler {
    /// For the processes with these spaces, and for all others.
    pub(crate) fn new(spaces: Arc<Spaces>) -> Self {
        Self { spaces }
    }
}

impl CpuFaults for CpuFaultHandler {
    fn migrate_to_ram(
        &self,
        core: &Core,
        pagemap: &DevPagemap<Store>,
        fault: CpuFault<'_>,
    ) -> Result<(), VmFaultError> {
        handle(core, &self.spaces, pagemap, &fault)
    }
}

/// Copies pages to system memory; the same request `R` unmaps them from the device.
struct ToSystem<'a, R> {
    space: &'a Space,
    /// The addresses of what is collected.
    range: Range<usize>,
    /// `None` if the notifier makes the device unmap the pages when they are collected.
    invalidation: Option<SelfInvalidation<'a, SpaceMirror>>,
    /// The request, if it uses another queue than the other requests about the space.
    elsewhere: Cell<Option<Elsewhere<'a>>>,
    _request: PhantomData<R>,
}

impl<'a, R> ToSystem<'a, R> {
    /// For pages of a range of a space that are about to be collected.
    fn new(space: &'a Space, range: Range<usize>) -> Self {
        Self {
            space,
            range,
            invalidation: space.notifier.self_invalidate(),
            elsewhere: Cell::new(None),
            _request: PhantomData,
        }
    }

    fn invalidation(&self) -> Option<&dyn SelfInvalidate> {
        let invalidation = self.invalidation.as_ref();
        invalidation.map(|invalidation| invalidation as &dyn SelfInvalidate)
    }

    fn addresses(&self, indices: &Range<usize>) -> Range<usize> {
        let start = self.range.start;
        address_at(start, indices.start)..address_at(start, indices.end)
    }
}

impl<R> Carrier for ToSystem<'_, R>
where
    R: Command<Entry = FetchEntry, Output = ItemResult>,
{
    type Request = R;

    fn entry(&self, indices: &Range<usize>, item: DmaItem) -> FetchEntry {
        fetch_entry(self.addresses(indices).start, &item)
    }

    fn send(
        &self,
        link: &Link,
        message: Message<R>,
        indices: &[Range<usize>],
    ) -> Result<Option<Sent<R>>> {
        // The pages have been taken away from the process, so no fault maps them again.
        match self.space.come_behind_maps::<R>(&self.range) {
            Ok(()) => {}
            Err(error) if error == ENOMEM => return Err(error),
            Err(_) => return Ok(None),
        }
        let Ok(slot) = link.reserve_slot::<R>() else {
            return Ok(None);
        };
        late::at(LatePoint::Lock);
        let mut mapped = self.space.notifier.lock();
        if mapped.is_ended() {
            // The device may use the pages until it reports that the space is ended. When the CPU
            // accesses them again, there is no space any more and the pages can move.
            return Err(EAGAIN);
        }
        if R::QUEUE != SpaceDestroy::QUEUE {
            self.elsewhere.set(self.space.send_elsewhere(&mut mapped));
        }
        // Forget the mappings now, not when the copy is done: what is mapped there meanwhile must
        // be kept in the record. Until then `invalidation` states that the device may have the
        // pages.
        for indices in indices {
            mapped.forget(&self.addresses(indices));
        }
        if let Some(invalidation) = &self.invalidation {
            invalidation.begin(&mut mapped, self.range.clone());
        }
        let sent = link.post(slot, message);
        drop(mapped);
        link.kick::<R>();
        Ok(Some(sent))
    }
}

/// Moves the page back that a CPU has accessed.
fn handle(
    core: &Core,
    spaces: &Spaces,
    pagemap: &DevPagemap<Store>,
    fault: &CpuFault<'_>,
) -> Result<(), VmFaultError> {
    if split_fault::is_within_folio(fault) {
        return split_fault::split(fault, pagemap).map_err(|_| VmFaultError::Oom);
    }
    let space = spaces.of(fault.vma().address_space());
    if fault.is_large() {
        handle_huge(core, pagemap, fault, space.as_deref())
    } else {
        handle_small(core, pagemap, fault, space.as_deref())
    }
}

fn handle_small(
    core: &Core,
    pagemap: &DevPagemap<Store>,
    fault: &CpuFault<'_>,
    space: Option<&Space>,
) -> Result<(), VmFaultError> {
    let pages = space.map_or(UNBOUND, |space| space.fault_around.pages());
    // Always a power of two.
    let bytes = address_at(0, pages as usize);
    let start = fault.address() & !bytes.wrapping_sub(1);
    let visit = Visit {
        core,
        pagemap,
        fault,
        range: fault.vma().clip(&(start..start.saturating_add(bytes))),
        size: Compound::Split,
        sole: None,
        journey: journey(space),
    };
    let Some(space) = space else {
        return visit.fetch(&Plain, None, &core.buffers, 0).map(drop);
    };
    let fault_around = &space.fault_around;
    let carrier = ToSystem::<Fetch>::new(space, visit.range.clone());
    let fetched = visit.fetch(
        &carrier,
        carrier.invalidation(),
        &fault_around.buffers,
        space.id(),
    )?;
    space.events().cpu_fault_pages.add(fetched);
    fault_around.learn(pages, fetched as u32);
    Ok(())
}

fn handle_huge(
    core: &Core,
    pagemap: &DevPagemap<Store>,
    fault: &CpuFault<'_>,
    space: Option<&Space>,
) -> Result<(), VmFaultError> {
    let range = hpage_range(fault.address());
    let sole = fault.sole();
    // A page that other processes have as well is split before it moves: a sharer that unmaps it
    // while it moves as a huge page corrupts its counts (`quirks::zap_moving`).
    if sole.is_none() {
        let split = split_fault::split_large(fault, pagemap, || late::at(LatePoint::Split));
        if split.map_err(|_| VmFaultError::Oom)? {
            return Ok(());
        }
    }
    let _guard = space
        .map(|space| block_zaps(&space.notifier, range.clone()))
        .transpose()
        .map_err(|_| VmFaultError::Oom)?;
    let visit = Visit {
        core,
        pagemap,
        fault,
        range,
        size: Compound::Keep,
        sole,
        journey: journey(space),
    };
    let Some(space) = space else {
        return visit.fetch(&Plain, None, &core.buffers, 0).map(drop);
    };
    let carrier = ToSystem::<LongFetch>::new(space, visit.range.clone());
    let fetched = visit.fetch(
        &carrier,
        carrier.invalidation(),
        &core.fault_buffers,
        space.id(),
    )?;
    space.events().cpu_fault_pages.add(fetched);
    Ok(())
}

/// The journey of pages of a space, or of a process that has none.
fn journey(space: Option<&Space>) -> Journey {
    Journey {
        space: space.map(Space::id),
        destination: Destination::System,
        cause: Cause::CpuFault,
    }
}

/// A page that a CPU has accessed, and the range that is to move with it.
struct Visit<'v, 'f> {
    core: &'v Core,
    pagemap: &'v DevPagemap<Store>,
    fault: &'v CpuFault<'f>,
    range: Range<usize>,
    size: Compound,
    /// The proof that no other process has the huge page, which may then move in small pages; see
    /// [`Collected::fill_split`].
    sole: Option<SoleFolio<'f>>,
    journey: Journey,
}

impl Visit<'_, '_> {
    /// Moves back the page and everything else of the range that is in device memory, by requests
    /// for a space; `space` is zero for none. Returns the number of pages.
    fn fetch<C: Carrier>(
        &self,
        carrier: &C,
        invalidation: Option<&dyn SelfInvalidate>,
        buffers: &BufferPool<C::Request>,
        space: u32,
    ) -> Result<u64, VmFaultError> {
        let Self {
            core,
            pagemap,
            fault,
            size,
            ref sole,
            ..
        } = *self;
        let start = self.range.start;
        let buffer = buffers.take(space, self.range.len() >> PAGE_SHIFT);
        let MoveBuffer { pfns, list } = buffer.map_err(|_| VmFaultError::Oom)?;
        let range = self.range.clone();
        let mut leg = self.journey.leg(range.clone());
        let collecting = core.counters.collect_nanoseconds.time();
        let collected = match size {
            Compound::Keep => collect_whole_for_fault(fault, pagemap, range, invalidation, pfns),
            Compound::Split => fault.collect(pagemap, range, invalidation, pfns),
        };
        let collected = collected.map_err(|_| VmFaultError::Sigbus)?;
        leg.collect = collecting.stop();

        let index = fault.address().saturating_sub(start) >> PAGE_SHIFT;
        let is_faulting = |slot: Slot| slot.indices().contains(&index);
        let mut wanted = None;
        let allocating = core.counters.allocate_nanoseconds.time();
        let near = (fault.vma(), start);
        let begun = Transfer::begin(
            core,
            carrier,
            pagemap,
            collected,
            list,
            |collected, slot| {
                let filled = fill_for_fault(core, collected, slot, near, sole.as_ref())?;
                if is_faulting(slot) && slot.source != Source::Hole {
                    wanted = filled.then_some(slot);
                    if !filled {
                        return Err(ENOMEM);
                    }
                }
                Ok(filled)
            },
        );
        let transfer = match begun {
            Ok(transfer) => transfer,
            // The CPU will access it again.
            Err(error) if error == EAGAIN => return Ok(0),
            Err(_) => return Err(VmFaultError::Oom),
        };
        leg.allocate = allocating.stop();
        let copying = core.counters.copy_nanoseconds.time();
        let (collected, list) = transfer.end_or_stay().map_err(|_| VmFaultError::Sigbus)?;
        leg.copy = copying.stop();
        if wanted.is_some_and(|slot| !collected.is_filled(slot.index)) {
            return Err(VmFaultError::Sigbus);
        }
        // If the page could not be collected or committed, another thread is handling it at the
        // moment: the CPU will access it again.
        let committing = core.counters.commit_nanoseconds.time();
        let committed = collected.commit();
        leg.commit = committing.stop();
        let mut tally = Tally::default();
        count(&committed, &mut tally);
        let finalising = core.counters.finalise_nanoseconds.time();
        let pfns = committed.finish();
        leg.finalise = finalising.stop();
        core.counters.cpu_fault_pages.add(tally.moved);
        core.counters.huge_to_system.add(tally.large);
        buffers.put(pfns, list);
        leg.end(core, tally.moved, tally.large);
        Ok(tally.moved)
    }
}

/// Gives system memory to a slot of pages that a CPU waits for: as one folio or, if only one
/// process has the pages, in small pages.
fn fill_for_fault(
    core: &Core,
    collected: &mut Collected<'_>,
    slot: Slot,
    (vma, start): (LockedVma<'_>, usize),
    sole: Option<&SoleFolio<'_>>,
) -> Result<bool> {
    let mut whole = |near| {
        let filled = fill_system(core, collected, slot, near)?;
        Ok(!matches!(filled, Filled::Lacking))
    };
    if whole(Some((vma, start)))? {
        return Ok(true);
    }
    if slot.order == 0 {
        return Ok(false);
    }
    let Some(sole) = sole else {
        return whole(None);
    };
    let first = address_at(start, slot.index);
    collected.fill_split(slot, sole, |page| {
        LockedFolio::system(0, Some((vma, address_at(first, page))))
    })
}
