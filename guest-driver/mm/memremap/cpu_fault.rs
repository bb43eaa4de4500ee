// SPDX-License-Identifier: GPL-2.0

//! CPU faults on pages in private device memory.
//!
//! Does not know where such a page moves to, nor what else moves with it.
//!
//! # Locking
//!
//! The kernel holds the mmap lock for reading and the lock of the page's folio while a [`CpuFault`]
//! exists.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h), `struct vm_fault`

use crate::{
    mm::{migrate::SoleFolio, LockedVma, HPAGE_PMD_ORDER},
    sys as bindings,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::mm::virt::VmaRef;

/// Why a page cannot be moved to system memory for a CPU: a `vm_fault_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmFaultError {
    /// `VM_FAULT_SIGBUS`: its contents are lost.
    Sigbus,
    /// `VM_FAULT_OOM`: there is no memory for it.
    Oom,
}

/// A CPU has accessed a page in private device memory.
///
/// # Invariants
///
/// During `'f` the mmap lock is held for reading, and `page`, which is the page in
/// device memory, is referenced and its folio locked.
pub(crate) struct CpuFault<'f> {
    vmf: *mut bindings::vm_fault,
    page: NonNull<bindings::page>,
    _call: PhantomData<&'f ()>,
}

impl<'f> CpuFault<'f> {
    /// # Safety
    ///
    /// During `'f` the mmap lock must be held for reading. `vmf` must be a fault on `page`, a page
    /// in device memory that is referenced and whose folio is locked.
    pub(super) unsafe fn from_raw(
        vmf: *mut bindings::vm_fault,
        page: NonNull<bindings::page>,
    ) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self {
            vmf,
            page,
            _call: PhantomData,
        }
    }

    /// The VMA of the faulting address.
    pub(crate) fn vma(&self) -> LockedVma<'f> {
        // SAFETY: By the invariants the fault and its VMA are valid for `'f`, and the
        // mmap lock is held.
        let vma = unsafe { VmaRef::from_raw(bindings::virtio_hmm_fault_vma(self.vmf)) };
        // SAFETY: By the invariants the mmap lock is held for `'f`.
        unsafe { LockedVma::new(vma) }
    }

    /// The faulting address.
    pub(crate) fn address(&self) -> usize {
        // SAFETY: By the invariants the fault is valid.
        unsafe { bindings::virtio_hmm_fault_address(self.vmf) }
    }

    /// The page in device memory that the CPU has accessed, which is not null.
    pub(super) fn raw_page(&self) -> NonNull<bindings::page> {
        self.page
    }

    /// The page in device memory that the CPU has accessed.
    pub(crate) fn page(&self) -> *mut bindings::page {
        self.page.as_ptr()
    }

    /// The frame number of that page.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: By the invariants the page is valid.
        unsafe { bindings::virtio_hmm_page_to_pfn(self.page.as_ptr()) }
    }

    /// The frame number of the first page of its folio.
    pub(crate) fn first_pfn(&self) -> usize {
        // SAFETY: By the invariants the page is valid, and locked, so that its folio is
        // not split meanwhile.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // SAFETY: The folio is that of the page, which is referenced.
        unsafe { bindings::virtio_hmm_folio_pfn(folio) }
    }

    /// log2 of the pages of its folio.
    pub(crate) fn order(&self) -> u32 {
        // SAFETY: By the invariants the page is valid, and locked, so that its folio is
        // not split meanwhile.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // SAFETY: The folio is that of the page, which is referenced.
        unsafe { bindings::virtio_hmm_folio_order(folio) }
    }

    /// Whether its folio is mapped there as a huge page.
    pub(crate) fn is_large(&self) -> bool {
        // SAFETY: By the invariants the fault is valid.
        let by_page = unsafe { bindings::virtio_hmm_fault_by_page(self.vmf) };
        !by_page && self.order() == HPAGE_PMD_ORDER
    }

    /// The proof that no other address space maps its folio, if that is so.
    pub(crate) fn sole(&self) -> Option<SoleFolio<'f>> {
        // SAFETY: By the invariants the page is valid, and its folio locked, so that it is not
        // split meanwhile.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // SAFETY: The folio is that of the page, which is referenced.
        let is_sole = unsafe { bindings::virtio_hmm_folio_mapcount(folio) == 1 };
        // SAFETY: If this address space still has the entry that the CPU has accessed, it is the
        // only one. Only a fork could add another one. A fork needs the mmap lock for writing,
        // which is held for reading during `'f`. Without an entry here the folio is not collected.
        is_sole.then(|| unsafe { SoleFolio::new(self.first_pfn()) })
    }
}
