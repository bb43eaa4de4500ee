// SPDX-License-Identifier: GPL-2.0

//! Folios that only their owner here uses: new memory for pages that move.
//!
//! Does not know which pages move.
//!
//! C headers: [`include/linux/gfp.h`](srctree/include/linux/gfp.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::pfns::{COMPOUND, PFN_SHIFT, VALID};
use crate::{
    mm::{pages_of, Contents, LockedVma},
    sys as bindings,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::prelude::*;

/// A folio that only we use.
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
    /// A new folio of system memory, on the node that `vma` prefers for `address`.
    ///
    /// Without a VMA, smaller folios cannot replace a large one, so the kernel tries harder to
    /// allocate it.
    pub(crate) fn system(order: u32, near: Option<(LockedVma<'_>, usize)>) -> Option<Self> {
        let (vma, address) = near.map_or((core::ptr::null_mut(), 0), |(vma, address)| {
            (vma.vma().as_ptr(), address)
        });
        // SAFETY: The VMA is valid and its mmap lock held, or it is null.
        let page =
            unsafe { bindings::virtio_hmm_alloc_locked(order, near.is_none(), vma, address) };
        // INVARIANT: The folio is new and locked.
        NonNull::new(page).map(|page| Self { page, order })
    }

    /// # Safety
    ///
    /// The caller must own the lock of the folio of this order that begins with `page`, and a
    /// reference to it. Both pass to the value.
    pub(in super::super) unsafe fn from_raw(page: NonNull<bindings::page>, order: u32) -> Self {
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

    /// Writes to one of its pages.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if it has no such page.
    /// - `EOPNOTSUPP` if the kernel has no address for it.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn write(&mut self, page: usize, from: &Contents) -> Result {
        if page >= pages_of(self.order) {
            return Err(EINVAL);
        }
        let pfn = self.pfn().saturating_add(page);
        // SAFETY: By the invariants the folio has this page and nothing else uses it. `from` is a
        // page.
        let done = unsafe { bindings::virtio_hmm_write_page(pfn, from.as_ptr().cast()) };
        done.then_some(()).ok_or(EOPNOTSUPP)
    }

    /// Its entry in `migrate_vma::dst`, which takes over lock and reference.
    pub(super) fn into_entry(self) -> usize {
        let entry = self.pfn() << PFN_SHIFT | VALID | if self.order > 0 { COMPOUND } else { 0 };
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

/// The proof that no address space but that of a fault maps a folio.
///
/// # Invariants
///
/// During `'f`, as long as the address space of the fault has entries of the folio whose first frame
/// is `pfn`, no other address space has any.
pub(crate) struct SoleFolio<'f> {
    pub(super) pfn: usize,
    _while: PhantomData<&'f ()>,
}

impl SoleFolio<'_> {
    /// # Safety
    ///
    /// As long as the value exists, no other address space may have, or get, entries of the folio
    /// whose first frame is `pfn`, unless that of the fault has none.
    pub(in super::super) unsafe fn new(pfn: usize) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self {
            pfn,
            _while: PhantomData,
        }
    }
}
