// SPDX-License-Identifier: GPL-2.0

//! Migration: exchanging the memory behind pages of processes.
//!
//! A migration is a value that each step consumes. [`Collected`] holds pages that have
//! been taken away from their processes: nobody uses them, and whoever touches one
//! waits. The caller lends new memory to some of them ([`Collected::fill`]) and copies
//! their contents. [`Collected::commit`] exchanges the memory; [`Committed`] tells of
//! which pages this was possible. When it is dropped the processes have their pages
//! back. A `Collected` that is dropped gives everything back as it was.
//!
//! C header: `include/linux/migrate.h`.

use super::{LockedVma, Owner, LARGE_ORDER, LARGE_PAGES, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE};
use crate::sys as bindings;
use core::{marker::PhantomData, ops::Range, ptr::NonNull};
use kernel::{error::to_result, prelude::*};

const VALID: usize = bindings::MIGRATE_PFN_VALID as usize;
const MIGRATE: usize = bindings::MIGRATE_PFN_MIGRATE as usize;
const COMPOUND: usize = bindings::MIGRATE_PFN_COMPOUND as usize;
const PFN_SHIFT: u32 = bindings::MIGRATE_PFN_SHIFT;

/// A folio that only we know of.
///
/// # Invariants
///
/// `page` is the first page of a folio of this order, which is locked by us and of which
/// we own a reference.
pub(crate) struct LockedFolio {
    page: NonNull<bindings::page>,
    order: u32,
}

// SAFETY: A folio may be unlocked by another thread than the one that locked it.
unsafe impl Send for LockedFolio {}

impl LockedFolio {
    /// A new folio of ordinary memory, near to what `vma` prefers for `address`.
    ///
    /// Without an area there is no smaller substitute for a large folio, so more is
    /// done to get one.
    pub(crate) fn system(order: u32, near: Option<(LockedVma<'_>, usize)>) -> Option<Self> {
        let (vma, address) = near.map_or((core::ptr::null_mut(), 0), |(vma, address)| {
            (vma.vma().as_ptr(), address)
        });
        // SAFETY: The area is valid and its mmap lock held, or it is null.
        let page =
            unsafe { bindings::virtio_hmm_alloc_locked(order, near.is_none(), vma, address) };
        // INVARIANT: The folio is new and locked.
        NonNull::new(page).map(|page| Self { page, order })
    }

    /// # Safety
    ///
    /// The caller must own the lock of the folio of this order that begins with `page`,
    /// and a reference to it. Both go over to the value.
    pub(super) unsafe fn from_raw(page: NonNull<bindings::page>, order: u32) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self { page, order }
    }

    /// The number of its first frame.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: By the invariants the page is valid.
        unsafe { bindings::virtio_hmm_page_to_pfn(self.page.as_ptr()) }
    }

    /// log2 of its pages.
    pub(crate) fn order(&self) -> u32 {
        self.order
    }

    /// Fills it with ones. It must be ordinary memory.
    pub(crate) fn efface(&mut self) {
        // SAFETY: By the invariants the folio has this many pages and nobody uses it.
        unsafe { bindings::virtio_hmm_efface_folio(self.page.as_ptr(), self.order) };
    }

    fn into_entry(self) -> usize {
        let entry = self.pfn() << PFN_SHIFT | VALID | if self.order > 0 { COMPOUND } else { 0 };
        // Lock and reference go with the entry.
        core::mem::forget(self);
        entry
    }
}

impl Drop for LockedFolio {
    fn drop(&mut self) {
        // SAFETY: By the invariants the lock and a reference are ours.
        unsafe { bindings::virtio_hmm_unlock_and_put(self.page.as_ptr()) };
    }
}

/// Memory for one migration at a time, to be used again and again.
pub(crate) struct Scratch {
    src: KVVec<usize>,
    dst: KVVec<usize>,
}

impl Scratch {
    /// Memory for a migration of `pages` pages.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            src: KVVec::from_elem(0, pages, GFP_KERNEL)?,
            dst: KVVec::from_elem(0, pages, GFP_KERNEL)?,
        })
    }

    /// How many pages it suffices for.
    pub(crate) fn pages(&self) -> usize {
        self.src.len()
    }
}

/// Which pages are to be collected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Select {
    /// Those in ordinary memory, and those that are not there yet.
    System,
    /// Those in private device memory of the owner.
    Private,
    /// Those in coherent device memory of the owner.
    Coherent,
}

/// Whether large pages of a range are collected as such.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// A large page stays whole.
    Whole,
    /// Large pages are split first.
    Small,
}

/// What there is to move at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing yet: the page is all zeros.
    Hole,
    /// A folio that begins with this frame number.
    Folio(usize),
}

/// A page, or a large page, that has been taken away from its processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Its place within the range, in pages.
    pub(crate) index: usize,
    /// What there is.
    pub(crate) source: Source,
    /// log2 of its pages.
    pub(crate) order: u32,
}

/// log2 of the pages that an entry of one of the arrays stands for.
fn entry_order(entry: usize) -> u32 {
    if entry & COMPOUND == 0 {
        0
    } else {
        LARGE_ORDER
    }
}

/// Pages whose contents are lost.
///
/// # Invariants
///
/// `page` is the first page of what was a folio of this order when this was made, and we own
/// a reference to it, so that it does not become somebody else's.
pub(crate) struct LostPages {
    page: NonNull<bindings::page>,
    order: u32,
}

// SAFETY: A reference to a page may be given back by any thread.
unsafe impl Send for LostPages {}

impl LostPages {
    /// How many.
    pub(crate) fn pages(&self) -> u64 {
        1 << self.order
    }

    /// Takes the pages away from all processes that have them, which get a SIGBUS when
    /// they touch them, as after a failure of the memory itself.
    pub(crate) fn poison(self) {
        // SAFETY: By the invariants the page is valid.
        let pfn = unsafe { bindings::virtio_hmm_page_to_pfn(self.page.as_ptr()) };
        for page in 0..1 << self.order {
            // The reference goes over to the kernel with the first page. It splits a large
            // page there, for which it must be the only reference, so that there can be none
            // for the others.
            //
            // SAFETY: The function takes any frame number and may sleep, as we may; by the
            // invariants the reference to the first page is ours.
            unsafe { bindings::virtio_hmm_poison(pfn + page, page == 0) };
        }
        core::mem::forget(self);
    }
}

impl Drop for LostPages {
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours.
        unsafe { bindings::virtio_hmm_put_page(self.page.as_ptr()) };
    }
}

enum Origin<'a> {
    /// A range of addresses.
    Addresses(bindings::migrate_vma, PhantomData<&'a ()>),
    /// A range of frames.
    Frames,
}

/// Pages that have been taken away from their processes.
///
/// # Invariants
///
/// `src` and `dst`, up to `pages`, are what the kernel has made of them, but for entries
/// of `dst` that `fill` has set: these stand for a locked folio with a reference.
pub(crate) struct Collected<'a> {
    origin: Origin<'a>,
    scratch: Scratch,
    pages: usize,
}

impl<'a> Collected<'a> {
    /// Takes the pages of `range` away from the process.
    ///
    /// `owner` identifies the device memory. `fault` is the page of a fault that is being
    /// handled, whose folio the kernel has locked.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range does not lie in `vma`, if the area cannot be migrated
    /// (hugetlb, special mappings, DAX), or if there is not enough room.
    pub(super) fn addresses(
        vma: LockedVma<'a>,
        range: Range<usize>,
        (select, size): (Select, Size),
        owner: Owner,
        fault: Option<NonNull<bindings::page>>,
        mut scratch: Scratch,
    ) -> Result<Self> {
        let pages = range.len() >> PAGE_SHIFT;
        if pages > scratch.pages() {
            return Err(EINVAL);
        }
        let select = match select {
            Select::System => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_SYSTEM,
            Select::Private => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
            Select::Coherent => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_DEVICE_COHERENT,
        };
        let compound = match size {
            Size::Whole => bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND,
            Size::Small => 0,
        };
        let mut args = bindings::migrate_vma {
            vma: vma.vma().as_ptr(),
            dst: scratch.dst.as_mut_ptr(),
            src: scratch.src.as_mut_ptr(),
            cpages: 0,
            npages: 0,
            start: range.start,
            end: range.end,
            pgmap_owner: owner.as_ptr(),
            flags: (select | compound) as usize,
            fault_page: fault.map_or(core::ptr::null_mut(), NonNull::as_ptr),
        };
        // SAFETY:
        // - By the invariants of `LockedVma` the area is valid and its mmap lock held.
        // - Both arrays have room for the range.
        // - The caller names a fault page that is locked; the kernel checks it.
        to_result(unsafe { bindings::migrate_vma_setup(&mut args) })?;
        // The kernel may have stopped early.
        let pages = args.npages.min(pages);
        // INVARIANT: The kernel has just filled the arrays; `dst` is all zeros.
        Ok(Self {
            origin: Origin::Addresses(args, PhantomData),
            scratch,
            pages,
        })
    }

    /// Takes the pages that are in `pages` frames from `first` on away from whatever
    /// processes they belong to.
    ///
    /// # Safety
    ///
    /// The frames must be device memory of a page map that is alive.
    pub(super) unsafe fn frames(first: usize, pages: usize, mut scratch: Scratch) -> Result<Self> {
        if pages > scratch.pages() {
            return Err(EINVAL);
        }
        for dst in scratch.dst.iter_mut().take(pages) {
            *dst = 0;
        }
        // SAFETY: `src` has room, and the caller promises that the frames can be migrated.
        to_result(unsafe {
            bindings::migrate_device_range(scratch.src.as_mut_ptr(), first, pages)
        })?;
        // INVARIANT: The kernel has just filled `src`; `dst` is all zeros.
        Ok(Self {
            origin: Origin::Frames,
            scratch,
            pages,
        })
    }

    /// How many pages the range has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// What can be moved at a place. The pages of a large page are one slot, at its
    /// first place.
    pub(crate) fn slot(&self, index: usize) -> Option<Slot> {
        let src = *self.scratch.src.get(..self.pages)?.get(index)?;
        if src & MIGRATE == 0 {
            return None;
        }
        let order = entry_order(src);
        let source = if src & VALID == 0 {
            Source::Hole
        } else {
            // SAFETY: The kernel has locked the page for us.
            if unsafe { !bindings::virtio_hmm_may_move(src >> PFN_SHIFT) } {
                return None;
            }
            Source::Folio(src >> PFN_SHIFT)
        };
        (index + (1 << order) <= self.pages).then_some(Slot {
            index,
            source,
            order,
        })
    }

    /// The first slot at or behind a place.
    pub(crate) fn next_slot(&self, index: usize) -> Option<Slot> {
        (index..self.pages).find_map(|index| self.slot(index))
    }

    /// Whether a slot must be filled by one folio of its own size. Without addresses the
    /// kernel cannot split a large page.
    pub(crate) fn is_indivisible(&self) -> bool {
        matches!(self.origin, Origin::Frames)
    }

    /// Whether new memory has been lent to the page at a place.
    pub(crate) fn is_filled(&self, index: usize) -> bool {
        self.scratch.dst.get(index).is_some_and(|&dst| dst != 0)
    }

    /// The new memory that has been lent to the page at a place and maybe to those that
    /// follow: its first frame and log2 of its pages.
    pub(crate) fn new_memory(&self, index: usize) -> Option<(usize, u32)> {
        let dst = *self.scratch.dst.get(index).filter(|dst| **dst != 0)?;
        Some((dst >> PFN_SHIFT, entry_order(dst)))
    }

    /// Fills the new memory of a slot, which must be one folio of ordinary memory, with
    /// ones, and tells which it is.
    ///
    /// Not with zeros: when the kernel splits a large page, it replaces pages of zeros by
    /// the page of zeros that all share, and they would be no more there to be poisoned.
    pub(crate) fn efface_new(&mut self, slot: Slot) -> Option<LostPages> {
        let mut folio = self.take(slot.index)?;
        folio.efface();
        // SAFETY: By the invariants the folio is valid and referenced.
        unsafe { bindings::virtio_hmm_get_page(folio.page.as_ptr()) };
        // INVARIANT: The reference was just taken.
        let lost = LostPages {
            page: folio.page,
            order: folio.order(),
        };
        self.put(slot.index, folio).ok()?;
        Some(lost)
    }

    /// Lends new memory to a slot.
    pub(crate) fn fill(&mut self, slot: Slot, folio: LockedFolio) -> Result {
        if folio.order() != slot.order {
            return Err(EINVAL);
        }
        self.put(slot.index, folio)
    }

    /// Lends new memory to a large slot, page by page; `next` is called with the index of
    /// each page within the slot.
    ///
    /// Only for a page that no other process has. The kernel (7.3) splits it when the memory is
    /// exchanged, with its entry in this process's page table only. Another process would be
    /// given the first small page where its entry says that there is a large one, and the page
    /// behind would be spoilt (`migrate_vma_split_unmapped_folio`). Others are collected as
    /// small pages from the start.
    ///
    /// Does nothing and returns `false` if `next` fails for one of them: the kernel
    /// splits a large page as a whole.
    pub(crate) fn fill_split(
        &mut self,
        slot: Slot,
        mut next: impl FnMut(usize) -> Option<LockedFolio>,
    ) -> Result<bool> {
        if slot.order != LARGE_ORDER || self.is_indivisible() {
            return Err(EINVAL);
        }
        for page in 0..LARGE_PAGES {
            let Some(folio) = next(page) else {
                for page in 0..page {
                    self.empty(slot.index + page);
                }
                return Ok(false);
            };
            if folio.order() != 0 {
                return Err(EINVAL);
            }
            self.put(slot.index + page, folio)?;
        }
        Ok(true)
    }

    fn put(&mut self, index: usize, folio: LockedFolio) -> Result {
        let dst = self.scratch.dst.get_mut(..self.pages).ok_or(EINVAL)?;
        let entry = dst.get_mut(index).ok_or(EINVAL)?;
        if *entry != 0 {
            return Err(EEXIST);
        }
        // INVARIANT: Lock and reference of the folio go over to the entry.
        *entry = folio.into_entry();
        Ok(())
    }

    /// Takes the new memory of a page back; it stays where it is.
    pub(crate) fn empty(&mut self, index: usize) {
        drop(self.take(index));
    }

    /// Takes the new memory of a slot back, all of it.
    pub(crate) fn empty_slot(&mut self, slot: Slot) {
        for page in 0..1 << slot.order {
            self.empty(slot.index + page);
        }
    }

    fn take(&mut self, index: usize) -> Option<LockedFolio> {
        let entry = self
            .scratch
            .dst
            .get_mut(index)
            .filter(|entry| **entry != 0)?;
        let order = entry_order(*entry);
        // SAFETY: By the invariants the entry stands for a folio, so its frame has a page.
        let page = unsafe { bindings::virtio_hmm_pfn_to_page(*entry >> PFN_SHIFT) };
        // INVARIANT: The entry stands for nothing any more.
        *entry = 0;
        // SAFETY: By the invariants the entry stood for a locked folio with a reference.
        NonNull::new(page).map(|page| unsafe { LockedFolio::from_raw(page, order) })
    }

    /// Exchanges the memory. The contents must have been copied.
    pub(crate) fn commit(self) -> Committed<'a> {
        // `Committed` does what is left to do instead.
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so that the field is read only once.
        let origin = unsafe { core::ptr::read(&this.origin) };
        // SAFETY: As above.
        let scratch = unsafe { core::ptr::read(&this.scratch) };
        let mut committed = Committed {
            origin,
            scratch,
            pages: this.pages,
        };
        match &mut committed.origin {
            // SAFETY: The arguments are those that `migrate_vma_setup` has completed, and
            // by the invariants the arrays are as it wants them.
            Origin::Addresses(args, _) => unsafe { bindings::migrate_vma_pages(args) },
            // SAFETY: By the invariants the arrays are as the kernel wants them.
            Origin::Frames => unsafe {
                bindings::migrate_device_pages(
                    committed.scratch.src.as_mut_ptr(),
                    committed.scratch.dst.as_mut_ptr(),
                    committed.pages,
                )
            },
        }
        committed
    }
}

impl Drop for Collected<'_> {
    fn drop(&mut self) {
        // The kernel would take a `dst` that is left for a success.
        for index in 0..self.pages {
            self.empty(index);
        }
        finalize(&mut self.origin, &mut self.scratch, self.pages);
    }
}

/// Pages whose memory has been exchanged, as far as possible.
pub(crate) struct Committed<'a> {
    origin: Origin<'a>,
    scratch: Scratch,
    pages: usize,
}

impl Committed<'_> {
    /// Gives the pages back to their processes, and the memory for the next migration to the
    /// caller.
    pub(crate) fn finish(self) -> Scratch {
        // This does what `drop` would do.
        let mut this = core::mem::ManuallyDrop::new(self);
        let Self {
            origin,
            scratch,
            pages,
        } = &mut *this;
        finalize(origin, scratch, *pages);
        // SAFETY: `this` is not dropped, so that the field is read only once; nothing else of
        // it owns anything.
        unsafe { core::ptr::read(scratch) }
    }

    /// How many pages the range has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// log2 of the pages that have got new memory together at a place; `None` if none
    /// has, or if they begin elsewhere.
    pub(crate) fn moved_order(&self, index: usize) -> Option<u32> {
        let src = self.scratch.src.get(..self.pages)?.get(index)?;
        let dst = self.scratch.dst.get(index)?;
        (src & MIGRATE != 0 && dst & VALID != 0).then_some(entry_order(*dst))
    }
}

impl Drop for Committed<'_> {
    fn drop(&mut self) {
        finalize(&mut self.origin, &mut self.scratch, self.pages);
    }
}

/// Gives the pages back to their processes.
fn finalize(origin: &mut Origin<'_>, scratch: &mut Scratch, pages: usize) {
    match origin {
        Origin::Addresses(args, _) => {
            let compound = bindings::migrate_vma_direction_MIGRATE_VMA_SELECT_COMPOUND as usize;
            let is_large = args.flags & compound != 0;
            let touched = NonNull::new(args.fault_page).filter(|_| is_large);
            // SAFETY: The page is that of a fault, which holds it, and its folio locked, until
            // long after this.
            let braced = touched.map(|page| unsafe { Braced::new(page) });
            // SAFETY: The arguments are those that `migrate_vma_setup` has completed; this is
            // called once, by the drop of the last value of the migration.
            unsafe { bindings::migrate_vma_finalize(args) };
            drop(braced);
        }
        // SAFETY: The arrays are those of `migrate_device_range`; called once, as above.
        Origin::Frames => unsafe {
            bindings::migrate_device_finalize(
                scratch.src.as_mut_ptr(),
                scratch.dst.as_mut_ptr(),
                pages,
            )
        },
    }
}

/// Makes good for references of a large page that the kernel (7.3) has given back for nothing:
/// if another process loses its entry of the page while that is on the move, it is taken for one
/// of a page that is there; see [`super::interval::Interval::keep_still`].
///
/// What was lost before is made good for at once. What is lost until this is dropped is then: a
/// page that has moved has no entries, so that what its counts lack is what was lost, and until
/// then it has references to spare. A page that stays gets entries back meanwhile, which hide as
/// many that were lost in these microseconds.
///
/// # Invariants
///
/// `page` is held, and its folio locked, by the handler of a fault; the spare references are ours.
struct Braced {
    page: NonNull<bindings::page>,
}

impl Braced {
    /// # Safety
    ///
    /// The page must be one that the handler of a fault holds, with its folio locked, until
    /// this is dropped. It must be on the move.
    unsafe fn new(page: NonNull<bindings::page>) -> Self {
        // SAFETY: The caller promises that the page is held and locked.
        unsafe { bindings::virtio_hmm_brace(page.as_ptr()) };
        // INVARIANT: The caller promises the one, and the call above has taken the other.
        Self { page }
    }
}

impl Drop for Braced {
    fn drop(&mut self) {
        // SAFETY: By the invariants the page is held and locked, and the references are ours.
        unsafe { bindings::virtio_hmm_unbrace(self.page.as_ptr()) };
    }
}

/// The large page around an address.
pub(crate) fn large_range(address: usize) -> Range<usize> {
    let start = address & !(LARGE_SIZE - 1);
    start..start + LARGE_SIZE
}

/// The page around an address.
pub(crate) fn page_range(address: usize) -> Range<usize> {
    let start = address & !(PAGE_SIZE - 1);
    start..start + PAGE_SIZE
}
