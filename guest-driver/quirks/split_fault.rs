// SPDX-License-Identifier: GPL-2.0

//! Splits huge pages in device memory when a CPU accesses them.
//!
//! Findings: "The first page of a huge device page is moved without its lock" and "A huge device
//! page on which a CPU faults cannot be split". When the former is fixed, delete [`is_within_folio`]
//! and [`split`]. When the latter is fixed, `split_large` need not drop a reference, and becomes an
//! ordinary collection.

use crate::{
    mm::{
        hpage_range,
        memremap::{CpuFault, DevPagemap, DevPagemapOps},
        migrate::MigratePfns,
        mmu_notifier::MirrorOps,
        page_range,
    },
    quirks::zap_moving::{HasBlockedZaps, ZapGuard},
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
/// dropped meanwhile. While `guard` holds off changes, the address space has an entry of the folio,
/// whose reference keeps it.
///
/// # Errors
///
/// `EINVAL` if `guard` covers another range or address space, `ENOMEM` if there is no memory.
pub(crate) fn split_large<T: DevPagemapOps, M: MirrorOps>(
    fault: &CpuFault<'_>,
    pagemap: &DevPagemap<T>,
    guard: &ZapGuard<'_, M>,
) -> Result<bool>
where
    M::State: HasBlockedZaps,
{
    let pfns = MigratePfns::new(1)?;
    let whole = hpage_range(fault.address());
    let Some(_firm) = guard.make_firm(fault.vma().address_space(), &whole)? else {
        return Ok(false);
    };
    let page = fault.page();
    // SAFETY: By the invariants of `CpuFault` the page is valid and the reference is the fault's,
    // which is not used before the call returns. The folio is not freed: its entry in this address
    // space has a reference of its own, which stays. A thread that wants to unmap it waits as long
    // as `_firm` exists, and a thread that wants to split or move the folio has to lock it.
    unsafe { bindings::virtio_hmm_put_page(page) };
    let taken = fault.collect(pagemap, page_range(whole.start), None, pfns);
    // SAFETY: The page is valid: either its entry is where it was, or it has been taken away,
    // and what was taken holds a reference.
    unsafe { bindings::virtio_hmm_get_page(page) };
    drop(taken);
    Ok(fault.order() == 0)
}
