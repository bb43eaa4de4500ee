// SPDX-License-Identifier: GPL-2.0

//! Collects pages for a migration: those in a device's memory, by address or by frame, and those
//! that are to move there.
//!
//! Does not know what their new memory is.
//!
//! # Locking
//!
//! The holder of a [`LockedVma`] holds the mmap lock for reading. Collecting by frame takes no lock
//! that the caller could hold.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use super::{CpuFault, DevPagemap, DevPagemapOps};
use crate::mm::{
    migrate::{Collected, Compound, FinalizeHook, MigratePfns, MigrateVma, MigrateVmaSelect},
    LockedVma, SelfInvalidate, HPAGE_PMD_NR,
};
use core::ops::Range;
use kernel::prelude::*;

impl<T: DevPagemapOps> DevPagemap<T> {
    /// Takes pages of this device memory away from the process at `range`. Huge pages are split
    /// first.
    ///
    /// # Errors
    ///
    /// As [`Self::collect_to_device`].
    pub(crate) fn collect_to_system<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>> {
        self.collect_sized(vma, range, Compound::Split, pfns)
    }

    /// The same, but huge pages stay whole.
    ///
    /// # Safety
    ///
    /// No process may lose a huge page of the range while it is being migrated: the kernel (7.3)
    /// would drop a reference that it does not have.
    ///
    /// # Errors
    ///
    /// As [`Self::collect_to_device`].
    pub(crate) unsafe fn collect_whole_to_system<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>> {
        self.collect_sized(vma, range, Compound::Keep, pfns)
    }

    fn collect_sized<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        compound: Compound,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>> {
        let select = if self.is_coherent() {
            MigrateVmaSelect::DeviceCoherent
        } else {
            MigrateVmaSelect::DevicePrivate
        };
        MigrateVma::new(vma, range, (select, compound), self.owner()).setup(pfns)
    }

    /// Takes pages of system memory away from the process at `range`, and empty entries with no
    /// page yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range does not lie in `vma`, if the VMA cannot be migrated (hugetlb,
    /// special mappings, DAX), or if the arrays are too small.
    pub(crate) fn collect_to_device<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        compound: Compound,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>> {
        let what = (MigrateVmaSelect::System, compound);
        MigrateVma::new(vma, range, what, self.owner()).setup(pfns)
    }

    /// Takes the pages in `count` frames from `first` on away from all processes that have them.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are no such frames, if they do not begin and end at a huge page boundary,
    /// or if the arrays are too small; `ENODEV` if the pages have been removed.
    pub(crate) fn collect_frames<'a>(
        &self,
        first: u64,
        count: usize,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>> {
        let end = first.checked_add(count as u64).ok_or(EINVAL)?;
        // The kernel counts a huge page as a whole even if the range has only a part of it.
        let is_border = |frame: u64| frame % HPAGE_PMD_NR as u64 == 0 || frame == self.frames();
        if end > self.frames() || !is_border(first) || !is_border(end) {
            return Err(EINVAL);
        }
        // Collected frames are in use, so the page map stays mapped after `_live` is gone.
        let _live = self.try_get().ok_or(ENODEV)?;
        let pfn = self.pfn(first);
        // SAFETY: These are frames of a page map that is mapped as long as `_live` exists.
        unsafe { Collected::of_frames(pfn, count, pfns) }
    }
}

impl<'f> CpuFault<'f> {
    /// Takes pages of this device memory away from the process at `range`, which must contain the
    /// address. Huge pages are split first. With an `invalidation`, the notifier does not
    /// invalidate the mirror.
    ///
    /// # Errors
    ///
    /// As [`DevPagemap::collect_to_system`].
    pub(crate) fn collect<'a, T: DevPagemapOps>(
        &self,
        pagemap: &DevPagemap<T>,
        range: Range<usize>,
        invalidation: Option<&'a dyn SelfInvalidate>,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>>
    where
        'f: 'a,
    {
        self.collect_sized(pagemap, range, (Compound::Split, None), invalidation, pfns)
    }

    /// The same, but huge pages stay whole, and `finalize` is called when the migration ends.
    ///
    /// # Safety
    ///
    /// No process may lose a huge page of the range while it is being migrated, unless `finalize`
    /// compensates for that: the kernel (7.3) drops a reference that it does not have.
    ///
    /// # Errors
    ///
    /// As [`DevPagemap::collect_to_system`].
    pub(crate) unsafe fn collect_whole<'a, T: DevPagemapOps>(
        &self,
        pagemap: &DevPagemap<T>,
        range: Range<usize>,
        finalize: FinalizeHook,
        invalidation: Option<&'a dyn SelfInvalidate>,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>>
    where
        'f: 'a,
    {
        self.collect_sized(
            pagemap,
            range,
            (Compound::Keep, Some(finalize)),
            invalidation,
            pfns,
        )
    }

    fn collect_sized<'a, T: DevPagemapOps>(
        &self,
        pagemap: &DevPagemap<T>,
        range: Range<usize>,
        (compound, finalize): (Compound, Option<FinalizeHook>),
        invalidation: Option<&'a dyn SelfInvalidate>,
        pfns: MigratePfns,
    ) -> Result<Collected<'a>>
    where
        'f: 'a,
    {
        let what = (MigrateVmaSelect::DevicePrivate, compound);
        let request = MigrateVma::new(self.vma(), range, what, pagemap.owner());
        // SAFETY: By the invariants the page is that of the fault, whose handler holds it, with its
        // folio locked, for `'f`. The migration ends within that time.
        let request = unsafe { request.for_fault(self.raw_page(), finalize) };
        request.with_invalidation(invalidation).setup(pfns)
    }
}
