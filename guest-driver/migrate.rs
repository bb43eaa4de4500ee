// SPDX-License-Identifier: GPL-2.0

//! Pages on the move: to device memory, back on request, back because a CPU touched
//! them, and back because the device goes.
//!
//! Each move collects pages of a range, lends new memory to those for which there is
//! some, has the device copy all of them by one request, and commits those that were
//! copied. What becomes of mappings on the device is not settled here: the collection
//! invalidates them as any other change does, and faults bring them back.
//!
//! Knows nothing of who asks for a move.

use crate::{
    command::Copy,
    device::{Core, Device},
    mm::{
        migrate::{large_range, Collected, Committed, LockedFolio, Scratch, Slot, Source},
        pagemap::{CpuFault, DeviceMemory, Lost, Pagemap, UnusedFrames},
        LockedMm, LockedVma, LARGE_ORDER, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE,
    },
    pages::Lent,
    queue::{Message, Reply},
    space::Space,
    wire::{command::Status, dma::DmaItem, dma::Kind},
};
use core::ops::Range;
use kernel::{
    mm::MmWithUser,
    pr_err_once,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
    time::{delay::fsleep, Delta},
};

/// Small pages around a touched one that come back with it: the next touch is likely to
/// be near, and a round trip costs as much as copying many pages.
const TOUCH_WINDOW: usize = 64 * PAGE_SIZE;

/// The memory of a device, as the page map sees it.
pub(crate) struct Store {
    core: Arc<Core>,
}

impl Store {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

impl DeviceMemory for Store {
    fn freed(&self, frames: UnusedFrames) {
        self.core.give_back(frames);
    }

    fn migrate_to_ram(&self, pagemap: &Pagemap<Self>, fault: CpuFault<'_>) -> Result<(), Lost> {
        touched(&self.core, pagemap, &fault)
    }
}

/// What became of the pages of a move.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Pages that could have been moved.
    offered: u64,
    /// Pages that have been moved.
    pub(crate) moved: u64,
    /// Large pages among these, once each.
    large: u64,
    /// Pages for which there was no memory at the destination.
    pub(crate) no_memory: u64,
    /// Pages of areas of a kind that cannot be moved.
    pub(crate) unmovable: u64,
}

/// Lets an allocation of memory for a page on the move fail, for tests.
pub(crate) struct Injection(Atomic<bool>);

impl Injection {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Lets the next allocation fail, or not.
    pub(crate) fn arm(&self, armed: bool) {
        self.0.store(armed, Relaxed);
    }

    /// Whether this allocation is to fail.
    fn strikes(&self) -> bool {
        // Nearly always there is nothing to be done.
        self.0.load(Relaxed) && self.0.xchg(false, Relaxed)
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.large += other.large;
        self.no_memory += other.no_memory;
        self.offered += other.offered;
        self.unmovable += other.unmovable;
    }
}

/// Where pages move on request.
#[derive(Clone, Copy)]
enum Way {
    Out,
    Home,
}

/// Moves the private anonymous pages of `range` to device memory, and places pages of
/// zeros there where there are none yet.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the move itself; `EIO` or `ENODEV` if the device is
/// given up.
pub(crate) fn to_device(device: &Device, mm: &MmWithUser, range: Range<usize>) -> Result<Tally> {
    let tally = move_range(device, mm, range, Way::Out)?;
    let counters = &device.core.counters;
    counters.pages_to_device.add(tally.moved);
    counters.large_to_device.add(tally.large);
    counters.pages_refused.add(tally.offered - tally.moved);
    Ok(tally)
}

/// Moves the pages of `range` that are in device memory back.
///
/// # Errors
///
/// As for [`to_device`].
pub(crate) fn to_system(device: &Device, mm: &MmWithUser, range: Range<usize>) -> Result<Tally> {
    let tally = move_range(device, mm, range, Way::Home)?;
    let counters = &device.core.counters;
    counters.pages_to_system.add(tally.moved);
    counters.large_to_system.add(tally.large);
    Ok(tally)
}

fn move_range(device: &Device, mm: &MmWithUser, range: Range<usize>, way: Way) -> Result<Tally> {
    let core = &device.core;
    for_each_step(core, mm, range, |vma, step, scratch| {
        let start = step.start;
        let mut collected = match way {
            Way::Out => {
                if core.frames.is_short((step.len() >> PAGE_SHIFT) as u64) {
                    core.discard_stale()?;
                }
                device.pagemap.collect_to_device(vma, step, scratch)?
            }
            Way::Home => device.pagemap.collect_to_system(vma, step, scratch)?,
        };
        let mut tally = Tally::default();
        for_each_slot(&mut collected, |collected, slot| {
            tally.offered += 1 << slot.order;
            let filled = match way {
                Way::Out => fill_device(device, collected, slot)?,
                Way::Home => fill_system(core, collected, slot, Some((vma, start)))?,
            };
            if !filled {
                tally.no_memory += 1 << slot.order;
            }
            Ok(())
        })?;
        copy_or_stay(core, &device.pagemap, &mut collected)?;
        tally.add(count(&collected.commit()));
        Ok(tally)
    })
}

/// Moves the pages of `range` back if they are in device memory, as far as that is
/// possible at the moment.
///
/// # Errors
///
/// As for [`to_device`].
pub(crate) fn bring_home(device: &Device, mm: &MmWithUser, range: Range<usize>) -> Result {
    to_system(device, mm, range)?;
    Ok(())
}

/// Brings back all pages of the process of a space, as far as that is possible at the
/// moment. Where there is no large page for a large page, it comes back in pieces.
pub(crate) fn send_home(device: &Device, space: &Space) {
    let Some(mm) = space.mm().mmget_not_zero() else {
        return;
    };
    if let Err(error) = to_system(device, &mm, 0..usize::MAX & !(PAGE_SIZE - 1)) {
        // `evict_all` follows, and has other means.
        pr_debug!("pages not sent home: {:?}\n", error);
    }
}

/// Brings back the page that a CPU has touched.
fn touched(core: &Core, pagemap: &Pagemap<Store>, fault: &CpuFault<'_>) -> Result<(), Lost> {
    if fault.is_within_folio() {
        return fault.split(pagemap).map_err(|_| Lost::NoMemory);
    }
    let vma = fault.vma();
    let address = fault.address() & !(PAGE_SIZE - 1);
    let large = large_range(address);
    let range = if fault.order() == LARGE_ORDER && vma.clip(&large) == large {
        large
    } else {
        let start = address & !(TOUCH_WINDOW - 1);
        vma.clip(&(start..start + TOUCH_WINDOW))
    };
    let mut scratch = Scratch::new(range.len() >> PAGE_SHIFT).map_err(|_| Lost::NoMemory)?;
    let start = range.start;
    let Ok(mut collected) = fault.collect(pagemap, range, &mut scratch) else {
        return Err(Lost::Contents);
    };

    let index = (address - start) >> PAGE_SHIFT;
    let is_touched = |slot: Slot| (slot.index..slot.index + (1 << slot.order)).contains(&index);
    let mut wanted = None;
    let mut lacking = false;
    for_each_slot(&mut collected, |collected, slot| {
        let filled = fill_system(core, collected, slot, Some((vma, start)))?;
        if is_touched(slot) && slot.source != Source::Hole {
            wanted = Some(slot);
            lacking = !filled;
        }
        Ok(())
    })
    .map_err(|_| Lost::NoMemory)?;
    if lacking {
        return Err(Lost::NoMemory);
    }
    copy_or_stay(core, pagemap, &mut collected).map_err(|_| Lost::Contents)?;
    if wanted.is_some_and(|slot| !collected.is_filled(slot.index)) {
        return Err(Lost::Contents);
    }
    // If the page could not be collected or committed, somebody else has to do with it at
    // the moment: it will be touched again.
    let tally = count(&collected.commit());
    core.counters.pages_touched.add(tally.moved);
    core.counters.large_to_system.add(tally.large);
    Ok(())
}

/// Brings all pages back that are in device memory, whosever they are. Returns when there
/// are none left; or, as long as more can be lent, when `stop` says so or when a round
/// brought nothing.
pub(crate) fn evict_all(device: &Device, stop: &dyn Fn() -> bool) {
    let core = &device.core;
    while core.frames.used() > 0 {
        let moved = match evict_once(device) {
            Ok(tally) => {
                core.counters.pages_evicted.add(tally.moved);
                core.counters.large_to_system.add(tally.large);
                tally.moved
            }
            Err(error) => {
                pr_err_once!("pages in device memory cannot be evicted: {:?}\n", error);
                0
            }
        };
        if !core.frames.is_closed() && (moved == 0 || stop()) {
            return;
        }
        // Pages that somebody else is about to use are let go soon.
        fsleep(Delta::from_millis(1));
    }
}

/// Goes once over all of device memory.
fn evict_once(device: &Device) -> Result<Tally> {
    let core = &device.core;
    let mut scratch = Scratch::new(core.limits.max_move)?;
    let mut lost = KVec::new();
    let mut sum = Tally::default();
    let mut next = 0;
    // Whole blocks: a large page must not be cut.
    while let Some(first) = core.frames.next_in_use(next) {
        let frames = (core.frames.total() - first).min(scratch.pages() as u64);
        let mut collected = device
            .pagemap
            .collect_frames(first, frames as usize, &mut scratch)?;
        for_each_slot(&mut collected, |collected, slot| {
            fill_system(core, collected, slot, None)?;
            Ok(())
        })?;
        // The memory must become free in any case. What the device does not give back is
        // lost to its owners, who are told when they touch it.
        copy(core, &device.pagemap, &mut collected, |collected, slot| {
            if let Some(page) = collected.clear_new(slot) {
                lost.push(page, GFP_KERNEL)?;
            }
            Ok(())
        })?;
        let committed = collected.commit();
        sum.add(count(&committed));
        drop(committed);
        for page in lost.drain_all() {
            core.counters.pages_lost.add(page.pages());
            page.poison();
        }
        next = first + frames;
    }
    Ok(sum)
}

/// Goes over the memory areas of `range` in steps that are not too large; areas that
/// cannot be migrated are passed over.
fn for_each_step(
    core: &Core,
    mm: &MmWithUser,
    range: Range<usize>,
    mut step: impl FnMut(LockedVma<'_>, Range<usize>, &mut Scratch) -> Result<Tally>,
) -> Result<Tally> {
    let most = core.limits.max_move << PAGE_SHIFT;
    let mut scratch = Scratch::new(range.len().min(most) >> PAGE_SHIFT)?;
    let mut sum = Tally::default();
    let mut at = range.start;
    while at < range.end {
        let locked = LockedMm::new(mm);
        let Some(vma) = locked.find(at) else {
            break;
        };
        let area = vma.clip(&(at..range.end));
        if area.is_empty() {
            break;
        }
        // Large pages are not cut, if the area allows.
        let cut = (area.start + most) & !(LARGE_SIZE - 1);
        let end = area.end.min(if cut > area.start {
            cut
        } else {
            area.start + most
        });
        match step(vma, area.start..end, &mut scratch) {
            Ok(tally) => sum.add(tally),
            Err(error) if error == EINVAL => {
                sum.unmovable += ((end - area.start) >> PAGE_SHIFT) as u64
            }
            Err(error) => return Err(error),
        }
        at = end;
    }
    Ok(sum)
}

/// Calls `visit` for all that can be moved.
fn for_each_slot(
    collected: &mut Collected<'_>,
    mut visit: impl FnMut(&mut Collected<'_>, Slot) -> Result,
) -> Result {
    let mut index = 0;
    while index < collected.pages() {
        index += match collected.slot(index) {
            Some(slot) => {
                visit(collected, slot)?;
                1 << slot.order
            }
            None => 1,
        };
    }
    Ok(())
}

/// Lends frames of device memory to a slot; says whether there were any.
fn fill_device(device: &Device, collected: &mut Collected<'_>, slot: Slot) -> Result<bool> {
    let core = &device.core;
    let frames = &core.frames;
    let folio = |lent: Lent<'_>| match device.pagemap.folio(lent.keep()?) {
        Ok(folio) => Some(folio),
        Err(frames) => {
            // Frames beyond the page map, which has been made for all of them.
            core.give_back(frames);
            None
        }
    };
    let whole = match slot.order {
        _ if core.injection.strikes() => None,
        0 => frames.lend_one(),
        _ if device.pagemap.takes_large() => frames.lend_block(),
        _ => None,
    };
    if let Some(folio) = whole.and_then(folio) {
        collected.fill(slot, folio)?;
        return Ok(true);
    }
    if slot.order == 0 {
        return Ok(false);
    }
    collected.fill_split(slot, |_| frames.lend_one().and_then(folio))
}

/// Lends ordinary memory to a slot; says whether there was any. `near` is the area that
/// the pages were collected from and the address of the first one.
fn fill_system(
    core: &Core,
    collected: &mut Collected<'_>,
    slot: Slot,
    near: Option<(LockedVma<'_>, usize)>,
) -> Result<bool> {
    if slot.source == Source::Hole {
        return Ok(true);
    }
    let near = near.map(|(vma, start)| (vma, start + (slot.index << PAGE_SHIFT)));
    let whole = if core.injection.strikes() {
        None
    } else {
        LockedFolio::system(slot.order, near)
    };
    if let Some(folio) = whole {
        collected.fill(slot, folio)?;
        return Ok(true);
    }
    if slot.order == 0 || collected.is_indivisible() {
        return Ok(false);
    }
    collected.fill_split(slot, |page| {
        LockedFolio::system(
            0,
            near.map(|(vma, start)| (vma, start + (page << PAGE_SHIFT))),
        )
    })
}

/// Copies what has been lent memory; what cannot be copied stays where it is.
fn copy_or_stay(core: &Core, pagemap: &Pagemap<Store>, collected: &mut Collected<'_>) -> Result {
    copy(core, pagemap, collected, |collected, slot| {
        collected.empty_slot(slot);
        Ok(())
    })
}

/// Has the device copy, or clear, whatever has been lent memory; by one request, in which
/// neighbours are one item. Calls `failed` for each slot that it did not copy.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the request, or what `failed` returns.
fn copy(
    core: &Core,
    pagemap: &Pagemap<Store>,
    collected: &mut Collected<'_>,
    mut failed: impl FnMut(&mut Collected<'_>, Slot) -> Result,
) -> Result {
    let mut list = List::new(collected.pages())?;
    for_each_slot(collected, |collected, slot| {
        let mut page = 0;
        while page < 1 << slot.order {
            let index = slot.index + page;
            page += match collected.new_memory(index) {
                Some((pfn, order)) => {
                    let source = match slot.source {
                        Source::Hole => Source::Hole,
                        Source::Folio(first) => Source::Folio(first + index - slot.index),
                    };
                    list.add(index, item(pagemap, source, pfn, 1 << order))?;
                    1 << order
                }
                None => 1,
            };
        }
        Ok(())
    })?;
    let List {
        message, covered, ..
    } = list.finish()?;
    if covered.is_empty() {
        return Ok(());
    }
    let reply = core.link.send(message).ok();
    for (number, covered) in covered.iter().enumerate() {
        if is_done(reply.as_ref(), number) {
            continue;
        }
        for_each_slot(collected, |collected, slot| {
            let end = slot.index + (1 << slot.order);
            let concerned = slot.index < covered.end && covered.start < end;
            if concerned && collected.is_filled(slot.index) {
                failed(collected, slot)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn is_done(reply: Option<&Reply<Copy>>, number: usize) -> bool {
    let result = reply.and_then(|reply| reply.output(number));
    result.is_some_and(|result| result.status.get() == Status::Ok.raw())
}

/// How the contents of `pages` pages get from the source to the frame `pfn`.
fn item(pagemap: &Pagemap<Store>, source: Source, pfn: usize, pages: u32) -> DmaItem {
    match (source, pagemap.frame(pfn)) {
        (Source::Hole, Some(frame)) => Copy::clear(frame, pages),
        (Source::Folio(from), Some(frame)) => Copy::to_device(from as u64, frame, pages),
        (Source::Folio(from), None) => {
            // Only pages of this device memory are collected to be moved back; a frame
            // that is none would be refused.
            let from = pagemap.frame(from).unwrap_or(u64::MAX);
            Copy::to_system(from, pfn as u64, pages)
        }
        // Holes are only filled with device memory.
        (Source::Hole, None) => Copy::to_system(u64::MAX, pfn as u64, pages),
    }
}

/// A list of items to copy that is being written.
struct List {
    message: Message<Copy>,
    /// Which pages each item of the message covers.
    covered: KVVec<Range<usize>>,
    /// The last item, which the next one may continue.
    last: Option<(Range<usize>, DmaItem)>,
}

impl List {
    fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            message: Message::new(0, pages, pages)?,
            covered: KVVec::with_capacity(pages, GFP_KERNEL)?,
            last: None,
        })
    }

    /// Adds an item for the pages from `index` on.
    fn add(&mut self, index: usize, item: DmaItem) -> Result {
        let pages = item.pages.get();
        if let Some((covered, last)) = &mut self.last {
            let moved = u64::from(last.pages.get());
            let reads = last.kind.get() != Kind::Clear.raw();
            let source = last.source.get() + if reads { moved } else { 0 };
            if covered.end == index
                && last.kind == item.kind
                && source == item.source.get()
                && last.destination.get() + moved == item.destination.get()
            {
                covered.end += pages as usize;
                last.pages = (last.pages.get() + pages).into();
                return Ok(());
            }
        }
        self.flush()?;
        self.last = Some((index..index + pages as usize, item));
        Ok(())
    }

    fn flush(&mut self) -> Result {
        if let Some((covered, item)) = self.last.take() {
            self.message.push(&item)?;
            self.covered.push(covered, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// The list with all items in the message.
    fn finish(mut self) -> Result<Self> {
        self.flush()?;
        Ok(self)
    }
}

/// Counts what has been moved.
fn count(committed: &Committed<'_>) -> Tally {
    let mut tally = Tally::default();
    for index in 0..committed.pages() {
        if let Some(order) = committed.moved_order(index) {
            tally.moved += 1 << order;
            tally.large += u64::from(order > 0);
        }
    }
    tally
}
