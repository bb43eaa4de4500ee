// SPDX-License-Identifier: GPL-2.0

//! Migration: replace the memory behind pages of processes.
//!
//! A [`MigrateVma`] says what to migrate. From then on a migration is a value that each step
//! consumes. [`Collected`] (`migrate_vma_setup()`) holds pages that have been taken away from their
//! processes: no process uses them, and a thread that accesses one waits. The caller gives new
//! memory to some of them ([`Collected::fill`]) and copies their contents. [`Collected::commit`]
//! (`migrate_vma_pages()`) installs the new memory, and [`Committed`] reports for which pages this
//! was possible. When it is dropped (`migrate_vma_finalize()`), the processes get their pages back.
//! Dropping a `Collected` restores everything as it was.
//!
//! Does not know whose device memory it is ([`super::memremap`]), nor how contents are copied.
//!
//! # Locking
//!
//! A migration of addresses borrows the [`LockedVma`], so the mmap lock is held until it is over.
//! Collected pages are locked. Between collecting and dropping, the caller must not fault on memory
//! of the process, nor wait for a thread that does.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

mod folio;
mod lost;
mod pfns;

pub(crate) use self::{
    folio::{LockedFolio, SoleFolio},
    lost::LostFolio,
    pfns::{MigratePfns, Slot, Source},
};

use self::pfns::{entry_order, MIGRATE, PFN_SHIFT, VALID};
use super::{pages_in, pages_of, Contents, LockedVma, PgmapOwner, SelfInvalidate, HPAGE_PMD_ORDER};
use crate::sys as bindings;
use core::{
    ops::{AddAssign, Range},
    ptr::NonNull,
};
use kernel::{error::to_result, prelude::*};

/// Which pages to collect: an `enum migrate_vma_direction`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrateVmaSelect {
    /// `MIGRATE_VMA_SELECT_SYSTEM`: those in system memory, and empty entries.
    System,
    /// `MIGRATE_VMA_SELECT_DEVICE_PRIVATE`: those in private device memory of the owner.
    DevicePrivate,
    /// `MIGRATE_VMA_SELECT_DEVICE_COHERENT`: those in coherent device memory of the owner.
    DeviceCoherent,
}

/// What becomes of huge pages that are collected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compound {
    /// They are collected as one: `MIGRATE_VMA_SELECT_COMPOUND`.
    Keep,
    /// They are split first.
    Split,
}

/// Ends a migration that handles a fault: calls `finish`, which gives the pages back to their
/// processes, and does what is necessary before and after.
///
/// # Safety
///
/// `page` must be that of the fault. The fault handler must hold it, with its folio locked, until
/// long after this. The page must be under migration.
pub(crate) type FinalizeHook = unsafe fn(page: NonNull<bindings::page>, finish: &mut dyn FnMut());

/// What became of pages that were to move.
#[derive(Clone, Copy, Default)]
pub(crate) struct MigrateStats {
    /// How many pages have moved.
    pub(crate) moved: u64,
    /// For how many there was no memory; each may be a huge page.
    pub(crate) no_memory: u64,
}

impl AddAssign for MigrateStats {
    fn add_assign(&mut self, other: Self) {
        self.moved = self.moved.saturating_add(other.moved);
        self.no_memory = self.no_memory.saturating_add(other.no_memory);
    }
}

/// What to take away from a process: a `struct migrate_vma` before it is set up.
pub(super) struct MigrateVma<'a> {
    vma: LockedVma<'a>,
    addresses: Range<usize>,
    select: MigrateVmaSelect,
    compound: Compound,
    pgmap_owner: PgmapOwner,
    fault_page: Option<NonNull<bindings::page>>,
    finalize: Option<FinalizeHook>,
    invalidation: Option<&'a dyn SelfInvalidate>,
}

impl<'a> MigrateVma<'a> {
    /// The pages at `addresses` of a VMA. `pgmap_owner` identifies the device memory. The notifier
    /// invalidates mirrors.
    pub(super) fn new(
        vma: LockedVma<'a>,
        addresses: Range<usize>,
        (select, compound): (MigrateVmaSelect, Compound),
        pgmap_owner: PgmapOwner,
    ) -> Self {
        Self {
            vma,
            addresses,
            select,
            compound,
            pgmap_owner,
            fault_page: None,
            finalize: None,
            invalidation: None,
        }
    }

    /// The migration handles a CPU fault on `page`. `finalize` ends it, if giving the pages back is
    /// not enough.
    ///
    /// # Safety
    ///
    /// The handler of that fault must hold `page`, with its folio locked, until the migration is
    /// over.
    pub(super) unsafe fn for_fault(
        self,
        page: NonNull<bindings::page>,
        finalize: Option<FinalizeHook>,
    ) -> Self {
        Self {
            fault_page: Some(page),
            finalize,
            ..self
        }
    }

    /// With an `invalidation`, the caller invalidates its mirror by itself.
    pub(super) fn with_invalidation(self, invalidation: Option<&'a dyn SelfInvalidate>) -> Self {
        Self {
            invalidation,
            ..self
        }
    }

    /// Takes the pages away from the process.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the addresses do not lie in the VMA, if it cannot be migrated (hugetlb, special
    /// mappings, DAX), or if the arrays are too small.
    pub(super) fn setup(self, mut pfns: MigratePfns) -> Result<Collected<'a>> {
        let pages = pages_in(&self.addresses);
        if pages > pfns.pages() {
            return Err(EINVAL);
        }
        let select = match self.select {
            MigrateVmaSelect::System => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM,
            MigrateVmaSelect::DevicePrivate => {
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE
            }
            MigrateVmaSelect::DeviceCoherent => {
                bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_COHERENT
            }
        };
        let compound = match self.compound {
            Compound::Keep => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND,
            Compound::Split => 0,
        };
        let fault_page = self.fault_page.map(NonNull::as_ptr);
        let mut args = bindings::migrate_vma {
            vma: self.vma.vma().as_ptr(),
            dst: pfns.dst.as_mut_ptr(),
            src: pfns.src.as_mut_ptr(),
            cpages: 0,
            npages: 0,
            start: self.addresses.start,
            end: self.addresses.end,
            pgmap_owner: self.pgmap_owner.as_ptr(),
            flags: (select | compound) as usize,
            fault_page: fault_page.unwrap_or(core::ptr::null_mut()),
        };
        if let Some(invalidation) = self.invalidation {
            invalidation.collecting(&self.addresses);
        }
        // SAFETY:
        // - By the invariants of `LockedVma` the VMA is valid and its mmap lock held.
        // - Both arrays are large enough for the range.
        // - The folio of the fault page, if there is one, is locked; the kernel checks that.
        let result = to_result(unsafe { bindings::migrate_vma_setup(&mut args) });
        if let Some(invalidation) = self.invalidation {
            invalidation.collected();
        }
        result?;
        // The kernel may have stopped early.
        let pages = args.npages.min(pages);
        // INVARIANT: The kernel has just filled the arrays; `dst` is all zeros.
        Ok(Collected {
            origin: Origin::Addresses {
                args,
                finalize: self.finalize,
                invalidation: self.invalidation,
            },
            pfns,
            pages,
        })
    }
}

enum Origin<'a> {
    /// A range of addresses.
    Addresses {
        args: bindings::migrate_vma,
        finalize: Option<FinalizeHook>,
        invalidation: Option<&'a dyn SelfInvalidate>,
    },
    /// A range of frames.
    Frames,
}

/// Pages that have been taken away from their processes.
///
/// # Invariants
///
/// `src` and `dst`, up to `pages`, are as the kernel has filled them, except entries of `dst` that
/// `fill` has set: each of these stands for a locked folio with a reference.
pub(crate) struct Collected<'a> {
    origin: Origin<'a>,
    pfns: MigratePfns,
    pages: usize,
}

impl<'a> Collected<'a> {
    /// Takes the pages in `pages` frames from `first` on away from all processes that have them.
    ///
    /// # Safety
    ///
    /// The frames must be device memory of a page map that is alive.
    pub(super) unsafe fn of_frames(
        first: usize,
        pages: usize,
        mut pfns: MigratePfns,
    ) -> Result<Self> {
        if pages > pfns.pages() {
            return Err(EINVAL);
        }
        for dst in pfns.dst.iter_mut().take(pages) {
            *dst = 0;
        }
        // SAFETY: `src` is large enough, and the caller promises that the frames can be migrated.
        to_result(unsafe { bindings::migrate_device_range(pfns.src.as_mut_ptr(), first, pages) })?;
        // INVARIANT: The kernel has just filled `src`; `dst` is all zeros.
        Ok(Self {
            origin: Origin::Frames,
            pfns,
            pages,
        })
    }

    /// How many pages the range has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// What can be moved at an index. The pages of a huge page are one slot, at its first index.
    pub(crate) fn slot(&self, index: usize) -> Option<Slot> {
        let src = *self.pfns.src.get(..self.pages)?.get(index)?;
        if src & MIGRATE == 0 {
            return None;
        }
        let order = entry_order(src);
        let source = if src & VALID == 0 {
            Source::Hole
        } else {
            Source::Folio(src >> PFN_SHIFT)
        };
        let slot = Slot {
            index,
            source,
            order,
        };
        (slot.indices().end <= self.pages).then_some(slot)
    }

    /// Copies the contents of one of the pages of a slot. A hole is all zeros.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if there is no such slot, or if it has no such page.
    /// - `EOPNOTSUPP` if the kernel has no address for it.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn read(&self, slot: Slot, page: usize, into: &mut Contents) -> Result {
        if self.slot(slot.index) != Some(slot) || page >= slot.pages() {
            return Err(EINVAL);
        }
        let Source::Folio(first) = slot.source else {
            into.fill(0);
            return Ok(());
        };
        let pfn = first.saturating_add(page);
        // SAFETY: By the invariants the kernel has collected the folio, which has this page, and
        // holds a reference to it. `into` has room for a page.
        let done = unsafe { bindings::virtio_hmm_read_page(pfn, into.as_mut_ptr().cast()) };
        done.then_some(()).ok_or(EOPNOTSUPP)
    }

    /// The first slot at or after an index.
    pub(crate) fn next_slot(&self, index: usize) -> Option<Slot> {
        (index..self.pages).find_map(|index| self.slot(index))
    }

    /// Whether a slot must be filled with one folio of its own size: the kernel needs addresses to
    /// split a huge page.
    pub(crate) fn is_indivisible(&self) -> bool {
        matches!(self.origin, Origin::Frames)
    }

    /// Whether the page at an index has been given new memory.
    pub(crate) fn is_filled(&self, index: usize) -> bool {
        self.pfns.dst.get(index).is_some_and(|&dst| dst != 0)
    }

    /// The new memory of the page at an index, which may also serve the pages after it: its first
    /// frame and log2 of its pages.
    pub(crate) fn new_memory(&self, index: usize) -> Option<(usize, u32)> {
        let dst = *self.pfns.dst.get(index).filter(|dst| **dst != 0)?;
        Some((dst >> PFN_SHIFT, entry_order(dst)))
    }

    /// The folio of a slot, as one whose contents are lost. It stays where it is. `None` if there
    /// is none.
    pub(crate) fn lost(&mut self, slot: Slot) -> Option<LostFolio> {
        self.empty_slot(slot);
        let Source::Folio(first) = slot.source else {
            return None;
        };
        // SAFETY: The kernel has collected the folio, which begins with this frame, and holds a
        // reference to it.
        Some(unsafe { LostFolio::new(first, slot.pages()) })
    }

    /// Gives new memory to a slot.
    pub(crate) fn fill(&mut self, slot: Slot, folio: LockedFolio) -> Result {
        if folio.order() != slot.order {
            return Err(EINVAL);
        }
        self.put(slot.index, folio)
    }

    /// Gives new memory to a large slot, page by page; `next` is called with the index of each page
    /// within the slot.
    ///
    /// Only for a page that no other process has. The kernel (7.3) splits it when it installs the
    /// memory, with its entry in this process's page table only. Another process would get the
    /// first small page where its entry says that there is a large one, and the page behind would
    /// be corrupted (`migrate_vma_split_unmapped_folio`). Shared huge pages are collected as small
    /// pages from the start.
    ///
    /// Does nothing and returns `false` if `next` fails for one of the pages: the kernel splits a
    /// huge page as a whole.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `sole` is not the proof for the slot's folio, or if `next` returns huge pages;
    /// `EEXIST` if a part of it has new memory already.
    pub(crate) fn fill_split(
        &mut self,
        slot: Slot,
        sole: &SoleFolio<'_>,
        mut next: impl FnMut(usize) -> Option<LockedFolio>,
    ) -> Result<bool> {
        if slot.order != HPAGE_PMD_ORDER
            || self.slot(slot.index) != Some(slot)
            || slot.source != Source::Folio(sole.pfn)
            || self.is_indivisible()
        {
            return Err(EINVAL);
        }
        for index in slot.indices() {
            let Some(folio) = next(index.saturating_sub(slot.index)) else {
                (slot.index..index).for_each(|index| self.empty(index));
                return Ok(false);
            };
            if folio.order() != 0 {
                return Err(EINVAL);
            }
            self.put(index, folio)?;
        }
        Ok(true)
    }

    fn put(&mut self, index: usize, folio: LockedFolio) -> Result {
        let dst = self.pfns.dst.get_mut(..self.pages).ok_or(EINVAL)?;
        let entry = dst.get_mut(index).ok_or(EINVAL)?;
        if *entry != 0 {
            return Err(EEXIST);
        }
        // INVARIANT: Lock and reference of the folio pass to the entry.
        *entry = folio.into_entry();
        Ok(())
    }

    /// Releases the new memory of a page, which then stays where it is.
    pub(crate) fn empty(&mut self, index: usize) {
        drop(self.take(index));
    }

    /// Releases all new memory of a slot.
    pub(crate) fn empty_slot(&mut self, slot: Slot) {
        slot.indices().for_each(|index| self.empty(index));
    }

    fn take(&mut self, index: usize) -> Option<LockedFolio> {
        let entry = self.pfns.dst.get_mut(index).filter(|entry| **entry != 0)?;
        let order = entry_order(*entry);
        // SAFETY: By the invariants the entry stands for a folio, so its frame has a page.
        let page = unsafe { bindings::virtio_hmm_pfn_to_page(*entry >> PFN_SHIFT) };
        // INVARIANT: The entry stands for nothing any more.
        *entry = 0;
        // SAFETY: By the invariants the entry stood for a locked folio with a reference.
        NonNull::new(page).map(|page| unsafe { LockedFolio::from_raw(page, order) })
    }

    /// Moves all that can be moved: `alloc_and_copy` gives new memory to a slot and copies what is
    /// in there; it says whether there was any. Slots for which it fails stay where they are.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn migrate(
        mut self,
        mut alloc_and_copy: impl FnMut(&mut Self, Slot) -> Result<bool>,
    ) -> MigrateStats {
        let mut stats = MigrateStats::default();
        let mut next = 0;
        while let Some(slot) = self.next_slot(next) {
            next = slot.indices().end;
            match alloc_and_copy(&mut self, slot) {
                Ok(true) => {}
                Ok(false) => stats.no_memory = stats.no_memory.saturating_add(1),
                Err(_) => self.empty_slot(slot),
            }
        }
        let committed = self.commit();
        let orders = (0..committed.pages()).filter_map(|index| committed.moved_order(index));
        for order in orders {
            stats.moved = stats.moved.saturating_add(pages_of(order) as u64);
        }
        stats
    }

    /// Installs the new memory. The contents must have been copied. Nothing moves if there is an
    /// `invalidation` that has not begun.
    pub(crate) fn commit(mut self) -> Committed<'a> {
        if !self.may_move() {
            self.empty_all();
        }
        // From here on `Committed` does the rest, instead of `drop`.
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so that the field is read only once.
        let origin = unsafe { core::ptr::read(&this.origin) };
        // SAFETY: `this` is not dropped, so this field is also read only once.
        let pfns = unsafe { core::ptr::read(&this.pfns) };
        let mut committed = Committed {
            origin,
            pfns,
            pages: this.pages,
        };
        match &mut committed.origin {
            // SAFETY: The arguments are those that `migrate_vma_setup` has completed, and
            // by the invariants the arrays are as it wants them.
            Origin::Addresses { args, .. } => unsafe { bindings::migrate_vma_pages(args) },
            // SAFETY: By the invariants the arrays are as the kernel wants them.
            Origin::Frames => unsafe {
                bindings::migrate_device_pages(
                    committed.pfns.src.as_mut_ptr(),
                    committed.pfns.dst.as_mut_ptr(),
                    committed.pages,
                )
            },
        }
        committed
    }
}

impl Collected<'_> {
    fn may_move(&self) -> bool {
        match &self.origin {
            Origin::Addresses {
                args, invalidation, ..
            } => invalidation
                .is_none_or(|invalidation| invalidation.may_move(&(args.start..args.end))),
            Origin::Frames => true,
        }
    }

    fn empty_all(&mut self) {
        for index in 0..self.pages {
            self.empty(index);
        }
    }
}

impl Drop for Collected<'_> {
    fn drop(&mut self) {
        // The kernel would treat a remaining `dst` as a success.
        self.empty_all();
        finalize(&mut self.origin, &mut self.pfns, self.pages);
    }
}

/// Pages whose memory has been replaced, as far as possible.
pub(crate) struct Committed<'a> {
    origin: Origin<'a>,
    pfns: MigratePfns,
    pages: usize,
}

impl Committed<'_> {
    /// Gives the pages back to their processes, and returns the arrays for the next
    /// migration.
    pub(crate) fn finish(self) -> MigratePfns {
        // This does what `drop` would do.
        let mut this = core::mem::ManuallyDrop::new(self);
        let Self {
            origin,
            pfns,
            pages,
        } = &mut *this;
        finalize(origin, pfns, *pages);
        // SAFETY: `this` is not dropped, so that the field is read only once; nothing else of
        // it owns anything.
        unsafe { core::ptr::read(pfns) }
    }

    /// How many pages the range has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// log2 of the pages that one new folio has replaced at an index; `None` if none was replaced,
    /// or if the folio begins at another index.
    pub(crate) fn moved_order(&self, index: usize) -> Option<u32> {
        let src = self.pfns.src.get(..self.pages)?.get(index)?;
        let dst = self.pfns.dst.get(index)?;
        (src & MIGRATE != 0 && dst & VALID != 0).then_some(entry_order(*dst))
    }
}

impl Drop for Committed<'_> {
    fn drop(&mut self) {
        finalize(&mut self.origin, &mut self.pfns, self.pages);
    }
}

/// Gives the pages back to their processes.
fn finalize(origin: &mut Origin<'_>, pfns: &mut MigratePfns, pages: usize) {
    match origin {
        Origin::Addresses {
            args,
            finalize: hook,
            ..
        } => {
            let page = NonNull::new(args.fault_page);
            let mut args = Some(args);
            let mut finish = || {
                if let Some(args) = args.take() {
                    // SAFETY: The arguments are those that `migrate_vma_setup` has completed; this
                    // is called once, by the drop of the last value of the migration.
                    unsafe { bindings::migrate_vma_finalize(args) };
                }
            };
            if let Some((page, hook)) = page.zip(*hook) {
                // SAFETY: The page is that of a fault, whose handler holds it, with its folio
                // locked, until long after this. It is under migration until the migration ends,
                // which happens here.
                unsafe { hook(page, &mut finish) };
            }
            // Unless the hook has done so.
            finish();
        }
        // SAFETY: The arrays are those of `migrate_device_range`; this is called once, by the drop
        // of the last value of the migration.
        Origin::Frames => unsafe {
            bindings::migrate_device_finalize(pfns.src.as_mut_ptr(), pfns.dst.as_mut_ptr(), pages)
        },
    }
}
