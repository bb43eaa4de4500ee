// SPDX-License-Identifier: GPL-2.0

//! Range faults: making pages of a process present, and learning where they are.
//!
//! The protocol is in the types. A [`Snapshot`] is what the kernel has found, which
//! may be out of date by now; nothing can be read of it. [`Snapshot::commit`] locks the
//! mirrored state and checks that nothing has changed; as long as the [`Committed`]
//! exists nothing will, since a change must take that lock first. Only it gives away
//! its [`HmmPage`]s.
//!
//! C header: `include/linux/hmm.h`.

use super::{
    interval::{Interval, Mirror, StateGuard},
    LockedVma, Owner, PAGE_SHIFT,
};
use crate::sys as bindings;
use core::{marker::PhantomData, ops::Range};
use kernel::{error::to_result, mm::MmWithUser, prelude::*, time::msecs_to_jiffies};

/// What is asked of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// That they can be read.
    Read,
    /// That they can be written.
    Write,
}

/// Room for what is found about pages.
pub(crate) struct Pages(KVec<usize>);

impl Pages {
    /// Empty room for the pages of a range.
    fn of(&mut self, range: &Range<usize>) -> Result<&mut [usize]> {
        let pages = self.0.get_mut(..range.len() >> PAGE_SHIFT).ok_or(EINVAL)?;
        // Some flags would be passed on from one range fault to the next.
        pages.fill(0);
        Ok(pages)
    }
}

impl Pages {
    /// Room for `count` pages.
    pub(crate) fn new(count: usize) -> Result<Self> {
        Ok(Self(KVec::from_elem(0, count, GFP_KERNEL)?))
    }
}

/// What the kernel has found about a range, maybe some time ago.
pub(crate) struct Snapshot<'a, T: Mirror> {
    interval: &'a Interval<T>,
    seq: usize,
    pages: &'a [usize],
}

/// The range has changed since it was looked at.
pub(crate) struct Changed;

/// What is true of a range now, and stays true as long as this exists.
pub(crate) struct Committed<'a, T: Mirror> {
    state: StateGuard<'a, T>,
    pages: &'a [usize],
}

/// What was found at some moment.
pub(crate) struct Found<'a>(&'a [usize]);

impl Found<'_> {
    /// The page with this index within the range.
    pub(crate) fn page(&self, index: usize) -> Option<HmmPage<'_>> {
        page(self.0, index)
    }
}

fn page(pages: &[usize], index: usize) -> Option<HmmPage<'_>> {
    pages.get(index).map(|&raw| HmmPage {
        raw,
        _committed: PhantomData,
    })
}

/// What is true of one page.
#[derive(Clone, Copy)]
pub(crate) struct HmmPage<'c> {
    raw: usize,
    _committed: PhantomData<&'c ()>,
}

impl<T: Mirror> Interval<T> {
    /// Makes all pages of `range` present, as `want` says. Pages of device memory whose owner
    /// is `owner` stay where they are, and such as they are.
    ///
    /// The kernel does so page table by page table: if one page of a range lacks, it makes
    /// those behind it present as well. Hence the range should be no longer than what is
    /// wanted.
    ///
    /// Takes the mmap lock. `patience`, in milliseconds, bounds how long changes by
    /// others are waited for.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the interval covers, or if there is not
    ///   enough room.
    /// - `EFAULT` or `EPERM` if a page cannot be accessed as wanted.
    /// - `EHWPOISON` if a page is poisoned, `ENOMEM` if there is no memory for it.
    /// - `EBUSY` if changes went on for longer than `patience`.
    /// - `EINTR` if the caller is being killed.
    pub(crate) fn fault(
        &self,
        mm: &MmWithUser,
        range: Range<usize>,
        owner: Owner,
        patience: u32,
        pages: &mut Pages,
        want: Want,
    ) -> Result {
        let request = match want {
            Want::Read => REQUEST_FAULT,
            Want::Write => REQUEST_FAULT | REQUEST_WRITE,
        };
        self.range_fault(mm, range, owner, patience, pages, request)?;
        Ok(())
    }

    /// Looks where the pages of `range` are, without touching any. Pages of device memory
    /// whose owner is another one than `owner` are not told.
    ///
    /// Takes the mmap lock. `patience`, in milliseconds, bounds how long changes by
    /// others are waited for.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the interval covers, or if there is not
    ///   enough room.
    /// - `EFAULT` if the process was killed for its memory, and pages have been taken out of it.
    /// - `EBUSY` if changes went on for longer than `patience`.
    /// - `EINTR` if the caller is being killed.
    pub(crate) fn snapshot<'a>(
        &'a self,
        mm: &MmWithUser,
        range: Range<usize>,
        owner: Owner,
        patience: u32,
        pages: &'a mut Pages,
    ) -> Result<Snapshot<'a, T>> {
        let (seq, pages) = self.range_fault(mm, range, owner, patience, pages, 0)?;
        Ok(Snapshot {
            interval: self,
            seq,
            pages,
        })
    }

    /// Looks where the pages of `range` are, which lies in `vma`, at the moment. As long as the
    /// mmap lock is held, they may move or be taken away from the process, but no other process
    /// comes to share them.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if the area is not of the address space that the interval covers, or if there
    ///   is not enough room.
    /// - `EBUSY` if pages are on the move.
    pub(crate) fn look<'a>(
        &self,
        vma: LockedVma<'_>,
        range: Range<usize>,
        owner: Owner,
        pages: &'a mut Pages,
    ) -> Result<Found<'a>> {
        if vma.clip(&range) != range || !self.is_for(vma.address_space()) {
            return Err(EINVAL);
        }
        let pages = pages.of(&range)?;
        let mut raw = self.request(&range, owner, pages, 0);
        // SAFETY: The notifier is inserted.
        raw.notifier_seq = unsafe { bindings::mmu_interval_read_begin(self.as_raw()) };
        // SAFETY:
        // - The notifier is inserted and covers every address.
        // - It is that of the area's address space, whose mmap lock is held by the invariants
        //   of `LockedVma`.
        // - `hmm_pfns` has an element for each page of the range.
        to_result(unsafe { bindings::hmm_range_fault(&mut raw) })?;
        Ok(Found(pages))
    }

    /// A request to look at a range, without a sequence. `pages` has an element for each page.
    fn request(
        &self,
        range: &Range<usize>,
        owner: Owner,
        pages: &mut [usize],
        flags: usize,
    ) -> bindings::hmm_range {
        bindings::hmm_range {
            notifier: self.as_raw(),
            notifier_seq: 0,
            start: range.start,
            end: range.end,
            hmm_pfns: pages.as_mut_ptr(),
            default_flags: flags,
            pfn_flags_mask: 0,
            dev_private_owner: owner.as_ptr(),
        }
    }

    /// The sequence, and what has been found.
    fn range_fault<'p>(
        &self,
        mm: &MmWithUser,
        range: Range<usize>,
        owner: Owner,
        patience: u32,
        pages: &'p mut Pages,
        request: usize,
    ) -> Result<(usize, &'p [usize])> {
        if !self.covers(mm) {
            return Err(EINVAL);
        }
        let pages = pages.of(&range)?;
        let mut raw = self.request(&range, owner, pages, request);
        // SAFETY:
        // - The notifier is inserted and covers every address.
        // - `mm` is its address space and has users; we do not hold its lock.
        // - `hmm_pfns` has an element for each page of the range.
        to_result(unsafe {
            bindings::hmm_range_fault_unlocked_timeout(&mut raw, msecs_to_jiffies(patience))
        })?;
        Ok((raw.notifier_seq, pages))
    }
}

impl<'a, T: Mirror> Snapshot<'a, T> {
    /// Locks the mirrored state, if nothing has changed since.
    pub(crate) fn commit(self) -> Result<Committed<'a, T>, Changed> {
        let state = self.interval.lock();
        if self.interval.has_changed(&state, self.seq) {
            return Err(Changed);
        }
        Ok(Committed {
            state,
            pages: self.pages,
        })
    }
}

impl<'a, T: Mirror> Committed<'a, T> {
    /// The page with this index within the range.
    pub(crate) fn page(&self, index: usize) -> Option<HmmPage<'_>> {
        page(self.pages, index)
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The mirrored state.
    pub(crate) fn state(&mut self) -> &mut T::State {
        &mut self.state
    }
}

const REQUEST_FAULT: usize = bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT;
const REQUEST_WRITE: usize = bindings::hmm_pfn_flags_HMM_PFN_REQ_WRITE;
const VALID: usize = bindings::hmm_pfn_flags_HMM_PFN_VALID;
const WRITE: usize = bindings::hmm_pfn_flags_HMM_PFN_WRITE;
const ERROR: usize = bindings::hmm_pfn_flags_HMM_PFN_ERROR;
const FLAGS: usize = bindings::hmm_pfn_flags_HMM_PFN_FLAGS;
const ORDER_SHIFT: u32 = bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT as u32;
const ORDER_MASK: usize = 0x1f;

impl HmmPage<'_> {
    /// The page's frame number, if it is there and can be read.
    pub(crate) fn pfn(self) -> Option<usize> {
        (self.raw & VALID != 0).then_some(self.raw & !FLAGS)
    }

    /// Whether the process may write to it as it is.
    pub(crate) fn is_writable(self) -> bool {
        self.raw & (VALID | WRITE) == VALID | WRITE
    }

    /// Whether it is the page of zeros that all processes share.
    pub(crate) fn is_zero(self) -> bool {
        // SAFETY: The function takes any frame number.
        let is_zero = |pfn| unsafe { bindings::virtio_hmm_is_zero_page(pfn) };
        self.pfn().is_some_and(is_zero)
    }

    /// Whether it is in device memory that CPUs can address.
    pub(crate) fn is_coherent_device_memory(self) -> bool {
        // SAFETY: While this value exists the page stays mapped in the process (see
        // `mark_dirty`), so that its frame has a `struct page`.
        let is_coherent = |pfn| unsafe { bindings::virtio_hmm_is_coherent_page(pfn) };
        self.pfn().is_some_and(is_coherent)
    }

    /// Whether there is something that can never be mirrored.
    pub(crate) fn is_error(self) -> bool {
        self.raw & ERROR != 0
    }

    /// log2 of the pages that the process's page table maps together with this one, in
    /// one entry.
    pub(crate) fn order(self) -> u32 {
        // Five bits always fit.
        ((self.raw >> ORDER_SHIFT) & ORDER_MASK) as u32
    }

    /// Takes note that the page is written to by other means than the process's page
    /// table.
    pub(crate) fn mark_dirty(self) {
        if let Some(pfn) = self.pfn() {
            // SAFETY: The page is mapped in the process: to unmap it the lock would be
            // needed that the `Committed` holds. So it has a `struct page`, and its
            // folio is neither freed nor truncated meanwhile.
            unsafe { bindings::virtio_hmm_mark_dirty(pfn) };
        }
    }
}
