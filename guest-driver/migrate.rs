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
        hmm::Pages,
        migrate::{large_range, Collected, Committed, LockedFolio, Scratch, Size, Slot, Source},
        pagemap::{CpuFault, DeviceMemory, Lost, Pagemap, UnusedFrames},
        LockedMm, LockedVma, LARGE_ORDER, LARGE_PAGES, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE,
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

/// Moves the private anonymous pages of `range` to device memory, and places pages of
/// zeros there where there are none yet.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the move itself; `EIO` or `ENODEV` if the device is
/// given up.
pub(crate) fn to_device(device: &Device, mm: &MmWithUser, range: Range<usize>) -> Result<Tally> {
    let core = &device.core;
    let tally = for_each_step(core, mm, range, |vma, step, scratch| {
        if core.frames.is_short((step.len() >> PAGE_SHIFT) as u64) {
            core.discard_stale()?;
        }
        let mut out = |step, size| {
            let collecting = core.counters.collect_nanoseconds.time();
            let collected = device.pagemap.collect_to_device(vma, step, size, scratch)?;
            drop(collecting);
            exchange(device, collected, |collected, slot| {
                fill_device(device, collected, slot)
            })
        };
        if !device.pagemap.takes_large() {
            return out(step, Size::Small);
        }
        let whole = out(step.clone(), Size::Whole)?;
        if whole.no_memory == 0 || core.frames.used() == core.frames.total() {
            return Ok(whole);
        }
        // Where there is no block of frames for a large page, there may be single ones.
        let small = out(step, Size::Small)?;
        Ok(Tally {
            offered: whole.moved + small.offered,
            moved: whole.moved + small.moved,
            large: whole.large,
            ..small
        })
    })?;
    let counters = &core.counters;
    counters.pages_to_device.add(tally.moved);
    counters.large_to_device.add(tally.large);
    counters
        .pages_refused
        .add(tally.offered.saturating_sub(tally.moved));
    Ok(tally)
}

/// Moves the pages of `range` of a space's process, whose memory is `mm`, back if they are in
/// device memory, as far as that is possible at the moment.
///
/// # Errors
///
/// As for [`to_device`].
pub(crate) fn to_system(space: &Space, mm: &MmWithUser, range: Range<usize>) -> Result<Tally> {
    home(space, mm, range, Failed::Stays)
}

/// What becomes of a large page that the device could not copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// It stays as it is.
    Stays,
    /// It is split, and its pages are tried one by one.
    IsSplit,
}

fn home(space: &Space, mm: &MmWithUser, range: Range<usize>, failed: Failed) -> Result<Tally> {
    let device = &*space.device;
    let core = &device.core;
    let most = range.len().min(core.limits.max_move << PAGE_SHIFT) >> PAGE_SHIFT;
    let takes_large = device.pagemap.takes_large();
    let mut pages = Pages::new(if takes_large { most } else { 0 })?;
    let tally = for_each_step(core, mm, range, |vma, step, scratch| {
        let (mut tally, mut stay) = whole_home(space, vma, step.clone(), scratch, &mut pages)?;
        if failed == Failed::IsSplit {
            stay = 0;
        }
        // What is left is split as it is collected.
        let mut start = step.start;
        while start < step.end {
            let mut end = start;
            while end < step.end && stay & region_bit(&step, end) == 0 {
                end = step.end.min(large_range(end).end);
            }
            if start < end {
                let range = start..end;
                let collecting = core.counters.collect_nanoseconds.time();
                let small = device
                    .pagemap
                    .collect_to_system(vma, range, Size::Small, scratch)?;
                drop(collecting);
                tally.add(exchange(device, small, |collected, slot| {
                    fill_system(core, collected, slot, Some((vma, start)))
                })?);
            }
            // At the end, or at a large page that stays.
            start = large_range(end).end;
        }
        Ok(tally)
    })?;
    let counters = &core.counters;
    counters.pages_to_system.add(tally.moved);
    counters.large_to_system.add(tally.large);
    Ok(tally)
}

/// The bit that stands for the large page around an address of a step.
fn region_bit(step: &Range<usize>, address: usize) -> u64 {
    1 << ((address / LARGE_SIZE - step.start / LARGE_SIZE) % u64::BITS as usize)
}

/// Moves large pages of `range` back that no other process has, so that they stay large. Tells
/// also, by [`region_bit`], which of them could not be copied.
fn whole_home(
    space: &Space,
    vma: LockedVma<'_>,
    range: Range<usize>,
    scratch: &mut Scratch,
    pages: &mut Pages,
) -> Result<(Tally, u64)> {
    let device = &*space.device;
    let core = &device.core;
    let step = range.clone();
    let mut stay = 0;
    let range = range.start.next_multiple_of(LARGE_SIZE)..range.end & !(LARGE_SIZE - 1);
    let mut tally = Tally::default();
    if range.is_empty() || !device.pagemap.takes_large() || core.frames.used() == 0 {
        return Ok((tally, stay));
    }
    let still = space.interval.keep_still()?;
    let owner = device.pagemap.owner();
    let found = match space
        .interval
        .look(&still, vma, range.clone(), owner, pages)
    {
        Ok(found) => found,
        // All of them can come in pieces.
        Err(_) => return Ok((tally, stay)),
    };
    let is_whole = |address: usize| {
        let page = found.page((address - range.start) >> PAGE_SHIFT);
        page.is_some_and(|page| {
            // Since a fork it could not be written.
            let is_ours = |pfn| device.pagemap.frame(pfn).is_some();
            page.is_writable() && page.order() >= LARGE_ORDER && page.pfn().is_some_and(is_ours)
        })
    };
    let mut start = range.start;
    while start < range.end {
        let mut end = start;
        while end < range.end && is_whole(end) {
            end += LARGE_SIZE;
        }
        if start < end {
            let collecting = core.counters.collect_nanoseconds.time();
            let collected =
                device
                    .pagemap
                    .collect_to_system(vma, start..end, Size::Whole, scratch)?;
            drop(collecting);
            let mut filled = 0;
            let one = exchange(device, collected, |collected, slot| {
                let is_filled = fill_system(core, collected, slot, Some((vma, start)))?;
                if is_filled && slot.order == LARGE_ORDER {
                    filled |= region_bit(&step, start + (slot.index << PAGE_SHIFT));
                }
                Ok(is_filled)
            })?;
            if one.moved < one.offered - one.no_memory {
                stay |= filled;
            }
            tally.add(one);
        }
        start = end.max(start + LARGE_SIZE);
    }
    // What lacked memory gets another chance, in pieces.
    tally.no_memory = 0;
    Ok((tally, stay))
}

/// Lends new memory to what has been collected, by `fill`, which says whether there was any;
/// copies it, and commits what has been copied.
fn exchange(
    device: &Device,
    mut collected: Collected<'_>,
    mut fill: impl FnMut(&mut Collected<'_>, Slot) -> Result<bool>,
) -> Result<Tally> {
    let counters = &device.core.counters;
    let mut tally = Tally::default();
    let lending = counters.lend_nanoseconds.time();
    for_each_slot(&mut collected, |collected, slot| {
        tally.offered += 1 << slot.order;
        if !fill(collected, slot)? {
            tally.no_memory += 1 << slot.order;
        }
        Ok(())
    })?;
    drop(lending);
    copy_or_stay(&device.core, &device.pagemap, &mut collected)?;
    let committing = counters.commit_nanoseconds.time();
    let committed = collected.commit();
    drop(committing);
    tally.add(count(&committed));
    let _finalising = counters.finalise_nanoseconds.time();
    drop(committed);
    Ok(tally)
}

/// Brings back all pages of the process of a space, as far as that is possible at the
/// moment. Where there is no large page for a large page, it comes back in pieces.
pub(crate) fn send_home(space: &Space) {
    let Some(mm) = space.mm().mmget_not_zero() else {
        return;
    };
    let all = 0..usize::MAX & !(PAGE_SIZE - 1);
    if let Err(error) = home(space, &mm, all, Failed::IsSplit) {
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
    if !fault.is_large() {
        let start = address & !(TOUCH_WINDOW - 1);
        let around = vma.clip(&(start..start + TOUCH_WINDOW));
        return fetch(core, pagemap, fault, around, Fetch::Small);
    }
    // Of a page that another process has, too, only that one's notifier could keep it still, if
    // it has any. But it is held by who touches it: see `Committed::keep_taken`.
    let space = core.spaces.of(vma.address_space());
    let exclusive = fault.is_exclusive();
    let keeper = space.as_ref().filter(|_| exclusive);
    let _still = keeper
        .map(|space| space.interval.keep_still())
        .transpose()
        .map_err(|_| Lost::NoMemory)?;
    let how = Fetch::Whole { exclusive };
    fetch(core, pagemap, fault, large_range(address), how)
}

/// How pages are fetched that a CPU has touched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetch {
    Small,
    /// A large page, which no other process has if it is `exclusive`.
    Whole {
        exclusive: bool,
    },
}

/// Brings back the page that a CPU has touched, and what else is in device memory of `range`.
fn fetch(
    core: &Core,
    pagemap: &Pagemap<Store>,
    fault: &CpuFault<'_>,
    range: Range<usize>,
    how: Fetch,
) -> Result<(), Lost> {
    let vma = fault.vma();
    let start = range.start;
    let mut scratch = Scratch::new(range.len() >> PAGE_SHIFT).map_err(|_| Lost::NoMemory)?;
    let (size, exclusive) = match how {
        Fetch::Small => (Size::Small, false),
        Fetch::Whole { exclusive } => (Size::Whole, exclusive),
    };
    let collecting = core.counters.collect_nanoseconds.time();
    let Ok(mut collected) = fault.collect(pagemap, range, size, &mut scratch) else {
        return Err(Lost::Contents);
    };
    drop(collecting);

    let index = (fault.address() - start) >> PAGE_SHIFT;
    let is_touched = |slot: Slot| (slot.index..slot.index + (1 << slot.order)).contains(&index);
    let mut wanted = None;
    let mut lacking = false;
    let lending = core.counters.lend_nanoseconds.time();
    for_each_slot(&mut collected, |collected, slot| {
        let filled = fill_touched(core, collected, slot, (vma, start), exclusive)?;
        if is_touched(slot) && slot.source != Source::Hole {
            wanted = Some(slot);
            lacking = !filled;
        }
        Ok(())
    })
    .map_err(|_| Lost::NoMemory)?;
    drop(lending);
    if lacking {
        return Err(Lost::NoMemory);
    }
    copy_or_stay(core, pagemap, &mut collected).map_err(|_| Lost::Contents)?;
    if wanted.is_some_and(|slot| !collected.is_filled(slot.index)) {
        return Err(Lost::Contents);
    }
    // If the page could not be collected or committed, somebody else has to do with it at
    // the moment: it will be touched again.
    let committing = core.counters.commit_nanoseconds.time();
    let committed = collected.commit();
    drop(committing);
    if size == Size::Whole {
        committed.keep_taken(fault);
    }
    let tally = count(&committed);
    let finalising = core.counters.finalise_nanoseconds.time();
    drop(committed);
    drop(finalising);
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
    // Whole blocks: a large page must not be cut. Where one belongs to nobody who could keep it
    // still while it moves, it can do no harm, unless the device goes.
    let whole = core.frames.is_closed();
    while let Some(first) = core.frames.next_in_use(next) {
        let block = LARGE_PAGES as u64;
        if !whole && device.pagemap.is_large(first) {
            next = first + block;
            continue;
        }
        let most = if whole { scratch.pages() as u64 } else { block };
        let frames = (core.frames.total() - first).min(most);
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
            if let Some(page) = collected.efface_new(slot) {
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
    let lent = match slot.order {
        _ if core.injection.strikes() => None,
        0 => frames.lend_one(),
        _ => frames.lend_block(),
    };
    fill(collected, slot, lent.and_then(folio))
}

/// Lends a folio to a slot if there is one; says whether there is.
fn fill(collected: &mut Collected<'_>, slot: Slot, folio: Option<LockedFolio>) -> Result<bool> {
    match folio {
        Some(folio) => collected.fill(slot, folio).map(|()| true),
        None => Ok(false),
    }
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
    if core.injection.strikes() {
        return Ok(false);
    }
    let near = near.map(|(vma, start)| (vma, start + (slot.index << PAGE_SHIFT)));
    fill(collected, slot, LockedFolio::system(slot.order, near))
}

/// The same for a page that a CPU waits for, which must come, as a whole or in pieces. In
/// pieces only if it is `exclusive`; see [`Collected::fill_split`].
fn fill_touched(
    core: &Core,
    collected: &mut Collected<'_>,
    slot: Slot,
    (vma, start): (LockedVma<'_>, usize),
    exclusive: bool,
) -> Result<bool> {
    if fill_system(core, collected, slot, Some((vma, start)))? {
        return Ok(true);
    }
    if slot.order == 0 {
        return Ok(false);
    }
    if !exclusive {
        return fill_system(core, collected, slot, None);
    }
    let first = start + (slot.index << PAGE_SHIFT);
    collected.fill_split(slot, |page| {
        LockedFolio::system(0, Some((vma, first + (page << PAGE_SHIFT))))
    })
}

/// Copies what has been lent memory; what cannot be copied stays where it is.
fn copy_or_stay(core: &Core, pagemap: &Pagemap<Store>, collected: &mut Collected<'_>) -> Result {
    let _copying = core.counters.copy_nanoseconds.time();
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
