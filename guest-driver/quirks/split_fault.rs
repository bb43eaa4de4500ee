// SPDX-License-Identifier: GPL-2.0

//! Splits huge pages in device memory when a CPU accesses them.
//!
//! Findings: "The first page of a huge device page is moved without its lock" and "A huge device
//! page on which a CPU faults cannot be split". When the former is fixed, delete [`is_within_folio`]
//! and [`split`]. When the latter is fixed, `split_large` need not drop a reference, and becomes an
//! ordinary collection; delete [`revive`], `DevPagemapOps::revive` with its `FreedFolio`, and what
//! `quirks.c` has for this.

use crate::{
    mm::{
        hpage_range,
        memremap::{CpuFault, DevPagemap, DevPagemapOps, FreedFolio},
        migrate::MigratePfns,
        page_range,
    },
    sys as bindings,
};
use kernel::prelude::*;

/// Whether the fault is on another page of a folio than its first one. Such a page must not be
/// collected before [`split`].
///
/// The kernel (7.3) splits such a folio when it collects the page. From then on it mistakes the
/// first page for the one that is locked for this fault, and would move the first page without its
/// lock, while another thread may move it as well.
pub(crate) fn is_within_folio(fault: &CpuFault<'_>) -> bool {
    fault.pfn() != fault.first_pfn()
}

/// Splits the faulting folio, if [`is_within_folio`]. Nothing is moved: the CPU faults again, now
/// on a small page.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for that.
pub(crate) fn split<T: DevPagemapOps>(fault: &CpuFault<'_>, pagemap: &DevPagemap<T>) -> Result {
    let pfns = MigratePfns::new(1)?;
    // Nothing is collected: only after the split would the kernel know that it has locked this
    // page for us.
    let range = page_range(fault.address());
    fault.collect(pagemap, range, None, pfns).map(drop)
}

/// Splits the faulting folio, if [`CpuFault::is_large`], for all processes that have it; returns
/// whether that was possible. Nothing is moved then: the CPU faults again, now on a small page.
///
/// To split a folio, the kernel (7.3) requires exactly one reference besides those of its entries,
/// but it takes one itself in addition to that of the fault. Hence the reference of the fault is
/// dropped during the split. If all processes lose the page in that time, the fault gets the folio
/// back ([`revive`]), which is freed when the fault is over. `meanwhile` is called before the
/// split, while the fault has no reference.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for that.
pub(crate) fn split_large<T: DevPagemapOps>(
    fault: &CpuFault<'_>,
    pagemap: &DevPagemap<T>,
    meanwhile: impl FnOnce(),
) -> Result<bool> {
    let pfns = MigratePfns::new(1)?;
    let first = page_range(hpage_range(fault.address()).start);
    let page = fault.page();
    // SAFETY: By the invariants of `CpuFault` the page is valid and its folio locked, and the
    // reference is the fault's. Until it is taken again below, only the kernel uses the page, as
    // that of a fault: a folio that is freed meanwhile is revived, because it is locked.
    unsafe { bindings::virtio_hmm_put_fault_ref(page) };
    meanwhile();
    let taken = fault.collect(pagemap, first, None, pfns);
    // SAFETY: The reference was dropped above, and the folio is still locked.
    let is_freed = unsafe { bindings::virtio_hmm_get_fault_ref(page) };
    drop(taken);
    Ok(is_freed || fault.order() == 0)
}

/// If a CPU fault has dropped its reference to a folio and no other reference is left, gives the
/// folio back to the fault. Returns whether there is such a fault.
pub(crate) fn revive(folio: &FreedFolio<'_>) -> bool {
    // SAFETY: By the invariants of `FreedFolio` the folio is valid and has no reference.
    unsafe { bindings::virtio_hmm_revive_for_fault(folio.as_raw()) }
}
