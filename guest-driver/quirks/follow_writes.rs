// SPDX-License-Identifier: GPL-2.0

//! Makes writes of the device visible to write tracking (soft-dirty, userfaultfd).
//!
//! Finding: "Write tracking misses writes to device pages". When it is fixed, delete this file,
//! `MirrorOps::unblocked` in `mm/mmu_notifier.rs`, the use of [`is_tracked`] in `fault/map.rs`, and
//! `virtio_hmm_protect_private` and `virtio_hmm_is_tracked_entry` in `quirks.c`.

use crate::{
    mm::{
        hmm::Committed,
        mmu_notifier::{MirrorOps, MmuNotifierEvent, MmuNotifierRange},
    },
    sys as bindings,
};

/// Write-protects the entries of small pages in private device memory if the change requires it.
pub(crate) fn protect(change: &MmuNotifierRange<'_>) {
    if change.event() == MmuNotifierEvent::SoftDirty {
        let range = change.addresses();
        // SAFETY: By the invariants of `MmuNotifierRange` the address space exists. The only caller
        // that begins such a change holds its mmap lock for writing.
        unsafe { bindings::virtio_hmm_protect_private(change.mm(), range.start, range.end) };
    }
}

/// Whether userfaultfd(2) is to learn of the next write to a small page in private device memory
/// although its entry is writable. `address` must lie in the committed range, in a VMA that is
/// [`LockedVma::is_write_tracked`](crate::mm::LockedVma).
pub(crate) fn is_tracked<T: MirrorOps>(committed: &Committed<'_, T>, address: usize) -> bool {
    // SAFETY: `Committed::mm` is an address space that exists, and page tables of the range stay as
    // long as `committed` does.
    unsafe { bindings::virtio_hmm_is_tracked_entry(committed.mm(), address) }
}
