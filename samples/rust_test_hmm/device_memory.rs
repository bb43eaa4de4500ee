// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: frames for which CPUs have no address. Ordinary kernel memory holds the
//! contents of each frame.

use crate::{
    mirror::Mirror,
    mm::{
        address_at, for_each_process,
        frames::FreeFrames,
        hmm::{Committed, HmmRequest},
        hpage_range,
        memremap::{
            CpuFault, DevPagemap, DevPagemapOps, MemoryId, MemoryType, UnusedFrames, VmFaultError,
        },
        migrate::{Collected, LockedFolio, MigratePfns, MigrateStats, Slot, SoleFolio, Source},
        page_range, pages_of, Contents, LockedVma, HPAGE_PMD_NR,
    },
    quirks::{skip::may_move, split_fault, zap_moving::collect_whole_for_fault},
};
use core::ops::Range;
use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLockIrq,
    },
    time::{delay::fsleep, Delta},
};

/// The number of huge pages that fit into a device: 512 MiB.
const BLOCKS: usize = 256;
const FRAMES: usize = BLOCKS * HPAGE_PMD_NR;

/// The number of attempts, a millisecond apart, to move all pages to system memory. After that, the
/// contents of the remaining pages are lost.
const ROUNDS: usize = 1000;

/// The contents of frames, and the frames that are free.
struct State {
    frames: FreeFrames,
    contents: KVVec<Option<KBox<Contents>>>,
}

/// The frames of a device.
pub(crate) struct DeviceMemory {
    id: MemoryId,
    state: Pin<KBox<SpinLockIrq<State>>>,
    /// The next allocation for a migration fails.
    fails: Atomic<bool>,
}

impl DeviceMemory {
    fn fails(&self) -> bool {
        self.fails.xchg(false, Relaxed)
    }

    /// Calls `visit` with the contents of a frame.
    fn with<R>(&self, frame: usize, visit: impl FnOnce(&mut Contents) -> R) -> Result<R> {
        let mut state = self.state.lock();
        let contents = state.contents.get_mut(frame);
        let contents = contents.and_then(Option::as_mut).ok_or(EIO)?;
        Ok(visit(contents))
    }

    /// Copies the contents of a collected slot to frames.
    fn copy_in(&self, frames: &UnusedFrames, collected: &Collected<'_>, slot: Slot) -> Result {
        for page in 0..slot.pages() {
            let mut contents = KBox::<Contents>::zeroed(GFP_KERNEL)?;
            collected.read(slot, page, &mut contents)?;
            let frame = (frames.first() as usize).saturating_add(page);
            let mut state = self.state.lock();
            *state.contents.get_mut(frame).ok_or(EINVAL)? = Some(contents);
        }
        Ok(())
    }

    /// Allocates system memory and copies the contents of frames to it.
    fn copy_out(
        &self,
        first: usize,
        order: u32,
        near: Option<(LockedVma<'_>, usize)>,
    ) -> Option<LockedFolio> {
        let mut folio = LockedFolio::system(order, near)?;
        for page in 0..pages_of(order) {
            let copy = |contents: &mut Contents| folio.write(page, contents);
            self.with(first.saturating_add(page), copy).ok()?.ok()?;
        }
        Some(folio).filter(|_| !self.fails())
    }
}

impl DevPagemapOps for DeviceMemory {
    fn id(&self) -> MemoryId {
        self.id
    }

    fn folio_free(&self, frames: UnusedFrames) {
        let first = frames.first() as usize;
        let run = first..first.saturating_add(pages_of(frames.order()));
        let mut state = self.state.lock();
        let contents = state.contents.get_mut(run).into_iter().flatten();
        contents.for_each(|contents| *contents = None);
        state.frames.free(frames);
    }

    fn migrate_to_ram(&self, pagemap: &Device, fault: CpuFault<'_>) -> Result<(), VmFaultError> {
        let no_memory = |_| VmFaultError::Oom;
        if split_fault::is_within_folio(&fault) {
            return split_fault::split(&fault, pagemap).map_err(no_memory);
        }
        let pfns = MigratePfns::new(HPAGE_PMD_NR).map_err(no_memory)?;
        let is_large = fault.is_large();
        let around = if is_large { hpage_range } else { page_range };
        let range = around(fault.address());
        let (near, sole) = (Some((fault.vma(), range.start)), fault.sole());
        let collected = if is_large {
            collect_whole_for_fault(&fault, pagemap, range, None, pfns)
        } else {
            fault.collect(pagemap, range, None, pfns)
        };
        let collected = collected.map_err(|_| VmFaultError::Sigbus)?;
        // If nothing moves, another thread is using the page, and the CPU faults again.
        match Self::to_system(pagemap, collected, near, sole.as_ref()).no_memory {
            0 => Ok(()),
            _ => Err(VmFaultError::Oom),
        }
    }
}

/// A device. It has nothing but its memory.
pub(crate) type Device = DevPagemap<DeviceMemory>;

/// Makes a device.
pub(crate) fn new() -> Result<Arc<Device>> {
    let (id, frames) = FreeFrames::of_new_memory(BLOCKS)?;
    let mut contents = KVVec::with_capacity(FRAMES, GFP_KERNEL)?;
    for _ in 0..FRAMES {
        contents.push(None, GFP_KERNEL)?;
    }
    let state = new_spinlock_irq!(State { frames, contents }, "DeviceMemory::state");
    let memory = DeviceMemory {
        id,
        state: KBox::pin_init(state, GFP_KERNEL)?,
        fails: Atomic::new(false),
    };
    let device = Device::new(
        FRAMES as u64,
        MemoryType::DevicePrivate,
        c"rust_test_hmm",
        memory,
    )?;
    Arc::pin_init(device, GFP_KERNEL)
}

/// Functions for a device. They are not methods of [`Device`], because its type is not the sample's
/// own.
impl DeviceMemory {
    /// Sets whether the next allocation for a migration fails.
    pub(crate) fn fail(device: &Device, fails: bool) {
        device.memory().fails.store(fails, Relaxed);
    }

    /// Reads or writes the pages of a part; with `is_here`, only those in device memory. Stops at
    /// the first page that cannot be accessed in this way, and returns its index.
    pub(crate) fn access(
        device: &Device,
        pages: &mut Committed<'_, Mirror>,
        part: &Range<usize>,
        want: HmmRequest,
        is_here: bool,
        data: &mut [Contents],
    ) -> Result<Option<usize>> {
        let mut to = HmmRequest::Write;
        for (index, data) in data.iter_mut().enumerate() {
            let page = pages.page(index).ok_or(EINVAL)?;
            to = if page.is_writable() {
                to
            } else {
                HmmRequest::Read
            };
            let Some(pfn) = page.pfn().filter(|_| want <= to) else {
                return Ok(Some(index));
            };
            match (device.frame(pfn).map(|frame| frame as usize), want) {
                (None, _) if is_here => return Ok(Some(index)),
                (None, HmmRequest::Read) => page.read(data)?,
                (None, HmmRequest::Write) => page.write(data)?,
                (Some(frame), HmmRequest::Read) => {
                    device.memory().with(frame, |page| *data = *page)?
                }
                (Some(frame), HmmRequest::Write) => {
                    page.mark_dirty();
                    device.memory().with(frame, |page| *page = *data)?;
                }
            }
        }
        pages.state().allow(part, to);
        Ok(None)
    }

    /// Moves collected pages to the device.
    pub(crate) fn to_device(device: &Device, collected: Collected<'_>) -> Result<MigrateStats> {
        let (live, memory) = (device.try_get().ok_or(ENODEV)?, device.memory());
        Ok(collected.migrate(|collected, slot| {
            if !may_move(collected, slot.index) {
                return Err(EBUSY);
            }
            let Some(frames) = memory.state.lock().frames.alloc(slot.order) else {
                return Ok(false);
            };
            let filled = memory.copy_in(&frames, collected, slot).is_ok() && !memory.fails();
            let folio = if filled {
                live.folio(frames)
            } else {
                Err(frames)
            };
            match folio {
                Ok(folio) => collected.fill(slot, folio).map(|()| true),
                Err(frames) => {
                    memory.folio_free(frames);
                    Ok(false)
                }
            }
        }))
    }

    /// Moves collected pages to system memory, on the node that the VMA prefers for an address. A
    /// huge page moves in small ones if there is no huge page for it and only one process has it.
    pub(crate) fn to_system(
        device: &Device,
        collected: Collected<'_>,
        near: Option<(LockedVma<'_>, usize)>,
        sole: Option<&SoleFolio<'_>>,
    ) -> MigrateStats {
        collected.migrate(|collected, slot| {
            let Source::Folio(pfn) = slot.source else {
                return Err(EINVAL);
            };
            if !may_move(collected, slot.index) {
                return Err(EBUSY);
            }
            let first = device.frame(pfn).ok_or(EINVAL)? as usize;
            let copy_out = |page: usize, order, near: Option<(LockedVma<'_>, usize)>| {
                let index = slot.index.saturating_add(page);
                let near = near.map(|(vma, start)| (vma, address_at(start, index)));
                device
                    .memory()
                    .copy_out(first.saturating_add(page), order, near)
            };
            let mut folio = copy_out(0, slot.order, near);
            if let (None, Some(sole), 1..) = (&folio, sole, slot.order) {
                return collected.fill_split(slot, sole, |page| copy_out(page, 0, near));
            }
            // Without a VMA, the kernel tries harder to allocate memory.
            folio = folio.or_else(|| copy_out(0, slot.order, None));
            let filled = folio.map(|folio| collected.fill(slot, folio));
            filled.transpose().map(|filled| filled.is_some())
        })
    }

    /// Moves the pages of all processes to system memory; huge pages only if the device is being
    /// removed, because a process could unmap one while it moves (`zap_moving`). Returns the number
    /// of pages moved.
    pub(crate) fn evict(device: &Device, is_removed: bool) -> u64 {
        let mut moved = 0_u64;
        for first in (0..FRAMES).step_by(HPAGE_PMD_NR) {
            if is_removed || !device.is_large(first as u64) {
                let pfns = MigratePfns::new(HPAGE_PMD_NR);
                let collect = |pfns| device.collect_frames(first as u64, HPAGE_PMD_NR, pfns);
                if let Ok(collected) = pfns.and_then(collect) {
                    moved =
                        moved.saturating_add(Self::to_system(device, collected, None, None).moved);
                }
            }
        }
        moved
    }

    /// Takes the memory away from all processes. The contents of pages that cannot move to system
    /// memory are lost.
    pub(crate) fn remove(device: &Device) {
        let memory = device.memory();
        let is_used = || memory.state.lock().contents.iter().any(Option::is_some);
        for _ in (0..ROUNDS).take_while(|_| is_used()) {
            Self::evict(device, true);
            // Another thread that is about to use a page drops its reference soon.
            fsleep(Delta::from_millis(1));
        }
        if is_used() {
            for_each_process(|mm| {
                device.poison(mm);
            });
        }
    }
}
