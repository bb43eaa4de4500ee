// SPDX-License-Identifier: GPL-2.0

//! Folios of device memory whose contents are lost.
//!
//! Does not know why they are lost, nor how their processes learn of it.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::sys as bindings;

/// A folio whose contents are lost, in device memory.
///
/// # Invariants
///
/// When this was made, these were the first frame of a folio and the number of its pages. We own a
/// reference to it, so none of its frames is freed and reused.
#[repr(transparent)]
pub(crate) struct LostFolio([usize; 2]);

// SAFETY: Any thread may drop a reference to a folio.
unsafe impl Send for LostFolio {}

impl LostFolio {
    /// Takes a reference to a folio of `count` pages.
    ///
    /// # Safety
    ///
    /// `first` must be the first frame of such a folio, to which a reference is held during the
    /// call.
    pub(super) unsafe fn new(first: usize, count: usize) -> Self {
        // INVARIANT: The caller promises that this is a folio; the reference is taken below.
        let lost = Self([first, count]);
        // SAFETY: The caller promises that the folio is valid and referenced.
        unsafe { bindings::virtio_hmm_get_page(lost.page()) };
        lost
    }

    /// Its first frame.
    pub(crate) fn first(&self) -> usize {
        self.0[0]
    }

    /// The number of its pages.
    pub(crate) fn pages(&self) -> u64 {
        self.0[1] as u64
    }

    fn page(&self) -> *mut bindings::page {
        // SAFETY: By the invariants the frame is that of a folio, so it has a page.
        unsafe { bindings::virtio_hmm_pfn_to_page(self.first()) }
    }
}

impl Drop for LostFolio {
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours.
        unsafe { bindings::virtio_hmm_put_page(self.page()) };
    }
}
