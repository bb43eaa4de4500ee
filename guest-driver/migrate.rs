// SPDX-License-Identifier: GPL-2.0

//! Pages on the move: to device memory, back on request, and back because the device goes.
//! For those that a CPU touches see `touch`.
//!
//! Each move collects pages of a range, lends new memory to those for which there is
//! some, has the device copy them (see `transfer`), and commits those that were
//! copied. What becomes of mappings on the device is not settled here: the collection
//! invalidates them as any other change does, and faults bring them back.
//!
//! Knows nothing of who asks for a move.

use crate::{
    device::{Core, Device},
    mm::{
        hmm::{Found, Pages},
        interval::Still,
        migrate::{large_range, Collected, LockedFolio, Size, Slot, Source},
        pagemap::Live,
        LockedMm, LockedVma, LARGE_ORDER, LARGE_PAGES, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE,
    },
    pages::{Few, Lent},
    pipeline::{count, region_bit, Moved, Pipeline},
    space::{Mapper, Space},
    touch::Store,
    transfer::{Memory, Plain, Transfer},
};
use core::ops::Range;
use kernel::{
    mm::MmWithUser,
    pr_err_once,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    time::{delay::fsleep, Delta},
};

/// How much is moved with the mmap lock held: as long as that takes, other threads of the
/// process cannot change its mappings. A multiple of a large page, and at most 64 of them, see
/// [`region_bit`].
const STRETCH: usize = 16 * LARGE_SIZE;

/// What became of the pages of a move.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Pages that could have been moved.
    pub(crate) offered: u64,
    /// Pages that have been moved.
    pub(crate) moved: u64,
    /// Large pages among these, once each.
    pub(crate) large: u64,
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
    pub(crate) fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.large += other.large;
        self.no_memory += other.no_memory;
        self.offered += other.offered;
        self.unmovable += other.unmovable;
    }
}

/// Moves the private anonymous pages of `range` of a space's process, whose memory is `mm`, to
/// device memory, and places pages of zeros there where there are none yet.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the move itself; `EIO` or `ENODEV` if the device is
/// given up.
pub(crate) fn to_device(space: &Space, mm: &MmWithUser, range: Range<usize>) -> Result<Tally> {
    let device = &*space.device;
    let core = &device.core;
    let tally = for_each_stretch(mm, range, |vma, stretch| {
        if core.frames.is_short((stretch.len() >> PAGE_SHIFT) as u64) {
            core.discard_stale()?;
        }
        let moves_large = device.pagemap.takes_large() && !whole_regions(&stretch).is_empty();
        let _still = moves_large
            .then(|| space.interval.keep_still(stretch.clone()))
            .transpose()?;
        let out = |size| {
            let mut pipeline = Pipeline::new(device);
            let mut lender = Lender::new(device);
            pipeline.push(
                stretch.clone(),
                |part, scratch| device.pagemap.collect_to_device(vma, part, size, scratch),
                |collected, slot, _| lender.fill(collected, slot),
            )?;
            pipeline.finish().map(|moved| moved.tally)
        };
        if !device.pagemap.takes_large() {
            return out(Size::Small);
        }
        let whole = out(Size::Whole)?;
        if whole.no_memory == 0 || core.frames.used() == core.frames.total() {
            return Ok(whole);
        }
        // Where there is no block of frames for a large page, there may be single ones.
        let small = out(Size::Small)?;
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
    let takes_large = device.pagemap.takes_large();
    let most = if takes_large {
        range.len().min(STRETCH) >> PAGE_SHIFT
    } else {
        0
    };
    let mut pages = Pages::new(most)?;
    let tally = for_each_stretch(mm, range, |vma, stretch| {
        let found = takes_large.then(|| Whole::look(space, vma, &stretch, &mut pages));
        // Until all has moved: who splits a page must not wait for who keeps it still.
        let still = takes_large
            .then(|| space.interval.keep_still(stretch.clone()))
            .transpose()?;
        let Moved {
            mut tally,
            failed: mut stay,
        } = match (&still, found.flatten()) {
            (Some(still), Some(found)) => found.move_home(still, device, vma)?,
            _ => Moved::default(),
        };
        if failed == Failed::IsSplit {
            stay = 0;
        }
        // What is left is split as it is collected.
        let mut pipeline = Pipeline::new(device);
        runs(
            &stretch,
            |address| stay & region_bit(address) == 0,
            |run| push_home(&mut pipeline, device, vma, run, Size::Small),
        )?;
        tally.add(pipeline.finish()?.tally);
        Ok(tally)
    })?;
    let counters = &core.counters;
    counters.pages_to_system.add(tally.moved);
    counters.large_to_system.add(tally.large);
    Ok(tally)
}

/// Moves what is in device memory of a range of `vma` back.
fn push_home<'m>(
    pipeline: &mut Pipeline<'_, 'm>,
    device: &Device,
    vma: LockedVma<'m>,
    range: Range<usize>,
    size: Size,
) -> Result {
    pipeline.push(
        range,
        |part, scratch| device.pagemap.collect_to_system(vma, part, size, scratch),
        |collected, slot, start| fill_system(&device.core, collected, slot, Some((vma, start))),
    )
}

/// Calls `visit` for the longest parts of a range whose regions of 2 MiB all are such as `is_so`
/// says by their addresses.
fn runs(
    range: &Range<usize>,
    is_so: impl Fn(usize) -> bool,
    mut visit: impl FnMut(Range<usize>) -> Result,
) -> Result {
    let mut start = range.start;
    while start < range.end {
        let mut end = start;
        while end < range.end && is_so(end) {
            end = range.end.min(large_range(end).end);
        }
        if start < end {
            visit(start..end)?;
        }
        // At the end, or in a region that is not so.
        start = large_range(end).end;
    }
    Ok(())
}

/// Large pages in device memory that no other process has.
struct Whole<'a> {
    range: Range<usize>,
    found: Found<'a>,
}

impl<'a> Whole<'a> {
    /// Looks which there are in a range of `vma`. `None` if that cannot be said: all of them can
    /// come home in pieces.
    ///
    /// Not while the range is kept still: changes that wait for that would be waited for here.
    fn look(
        space: &Space,
        vma: LockedVma<'_>,
        range: &Range<usize>,
        pages: &'a mut Pages,
    ) -> Option<Self> {
        let device = &*space.device;
        let range = whole_regions(range);
        if range.is_empty() || device.core.frames.used() == 0 {
            return None;
        }
        let owner = device.pagemap.owner();
        let found = space.interval.look(vma, range.clone(), owner, pages).ok()?;
        Some(Self { range, found })
    }

    /// Moves them, so that they stay large, while the range is kept still. Tells also which of them
    /// could not be copied.
    fn move_home(
        self,
        _still: &Still<'_, Mapper>,
        device: &Device,
        vma: LockedVma<'_>,
    ) -> Result<Moved> {
        let Self { range, found } = self;
        let is_whole = |address: usize| {
            let page = found.page((address - range.start) >> PAGE_SHIFT);
            page.is_some_and(|page| {
                // Since a fork it could not be written.
                let is_ours = |pfn| device.pagemap.frame(pfn).is_some();
                page.is_writable() && page.order() >= LARGE_ORDER && page.pfn().is_some_and(is_ours)
            })
        };
        let mut pipeline = Pipeline::new(device);
        runs(&range, is_whole, |run| {
            push_home(&mut pipeline, device, vma, run, Size::Whole)
        })?;
        let mut moved = pipeline.finish()?;
        // What lacked memory gets another chance, in pieces.
        moved.tally.no_memory = 0;
        Ok(moved)
    }
}

/// The regions of 2 MiB that lie in a range as a whole.
fn whole_regions(range: &Range<usize>) -> Range<usize> {
    range.start.next_multiple_of(LARGE_SIZE)..range.end & !(LARGE_SIZE - 1)
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
    let most = core.limits.max_move;
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
        let pages = if whole { most as u64 } else { block };
        let frames = (core.frames.total() - first).min(pages);
        let Memory { scratch, list } = core.spares.take(0, most)?;
        let pagemap = &device.pagemap;
        let collected = pagemap.collect_frames(first, frames as usize, scratch)?;
        let fill = |collected: &mut Collected<'_>, slot| fill_system(core, collected, slot, None);
        let transfer = Transfer::begin(core, &Plain, pagemap, collected, list, fill)?;
        // The memory must become free in any case. What the device does not give back is
        // lost to its owners, who are told when they touch it.
        let (collected, list) = transfer.end(|collected, slot| {
            if let Some(page) = collected.efface_new(slot) {
                lost.push(page, GFP_KERNEL)?;
            }
            Ok(())
        })?;
        let committed = collected.commit();
        count(&committed, &mut sum);
        let scratch = committed.finish();
        core.spares.keep(scratch, list);
        for page in lost.drain_all() {
            core.counters.pages_lost.add(page.pages());
            page.poison();
        }
        next = first + frames;
    }
    Ok(sum)
}

/// Goes over the memory areas of `range` in stretches that are not too large; areas that
/// cannot be migrated are passed over.
fn for_each_stretch(
    mm: &MmWithUser,
    range: Range<usize>,
    mut visit: impl FnMut(LockedVma<'_>, Range<usize>) -> Result<Tally>,
) -> Result<Tally> {
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
        // Large pages are not cut.
        let cut = large_range(area.start).start.saturating_add(STRETCH);
        let stretch = area.start..area.end.min(cut);
        at = stretch.end;
        match visit(vma, stretch.clone()) {
            Ok(tally) => sum.add(tally),
            Err(error) if error == EINVAL => sum.unmovable += (stretch.len() >> PAGE_SHIFT) as u64,
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

/// Lends device memory to what has been collected, of single frames a few at a time: where pages
/// are small, to ask for each of them takes longer than to copy it.
struct Lender<'a> {
    device: &'a Device,
    /// None if the pages of device memory have been taken away.
    live: Option<Live<'a, Store>>,
    few: Option<Few<'a>>,
}

impl<'a> Lender<'a> {
    fn new(device: &'a Device) -> Self {
        Self {
            device,
            live: device.pagemap.live(),
            few: None,
        }
    }

    /// Lends frames to a slot; says whether there were any.
    fn fill(&mut self, collected: &mut Collected<'_>, slot: Slot) -> Result<bool> {
        let core = &self.device.core;
        let lent = match slot.order {
            _ if core.injection.strikes() => None,
            0 => self.one(collected.pages() - slot.index),
            _ => core.frames.lend_block(),
        };
        let folio = lent.and_then(|lent| {
            let live = self.live.as_ref()?;
            match live.folio(lent.keep()?) {
                Ok(folio) => Some(folio),
                Err(frames) => {
                    // Frames beyond the page map, which has been made for all of them.
                    core.give_back(frames);
                    None
                }
            }
        });
        fill(collected, slot, folio)
    }

    /// A frame; more are not kept than for so many pages, this one included.
    fn one(&mut self, pages: usize) -> Option<Lent<'a>> {
        if let Some(lent) = self.few.as_mut().and_then(Few::next) {
            return Some(lent);
        }
        self.few = self.device.core.frames.lend_few(pages);
        self.few.as_mut()?.next()
    }
}

impl Drop for Lender<'_> {
    fn drop(&mut self) {
        // What is left of them comes back.
        if self.few.take().is_some() {
            self.device.core.discard_if_due();
        }
    }
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
pub(crate) fn fill_system(
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
