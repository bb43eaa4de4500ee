// SPDX-License-Identifier: GPL-2.0

//! Range faults: make pages of a process present, and find out where they are.
//!
//! A [`HmmRange`] says what to look at. The types enforce the protocol of Documentation/mm/hmm.rst.
//! A [`Snapshot`] is what the kernel has found. It may be out of date, so nothing can be read from
//! it. [`Snapshot::commit`] locks the mirrored state and checks that nothing has changed
//! (`mmu_interval_read_retry()`). Nothing changes as long as the [`Committed`] exists, because a
//! change must take that lock first. Only the [`Committed`] gives access to its [`HmmPage`]s.
//!
//! Does not know what is mirrored, nor what the caller does with the pages.
//!
//! # Locking
//!
//! [`HmmRange::fault`] and [`HmmRange::snapshot`] take the mmap lock for reading and release it, so
//! the caller holds neither it nor the lock of the mirrored state. A [`Committed`] holds the lock
//! of the mirrored state. [`HmmRange::snapshot_locked`] is called with the mmap lock held.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)

use super::{
    mmu_notifier::{MirrorOps, MmuIntervalNotifier, StateGuard},
    Contents, LockedVma, PgmapOwner,
};
use crate::{sys as bindings, wait::jiffies};
use core::{
    marker::PhantomData,
    ops::{Deref, Range},
};
use kernel::{error::to_result, mm::MmWithUser, page::PAGE_SHIFT, prelude::*, time::Delta};

/// How long a kernel thread waits for a page at a time; see [`HmmRange::fault`]. Also how long
/// [`HmmRange::with_snapshot`] waits for changes at a time.
const SLICE: Delta = Delta::from_millis(250);

/// The access that a range fault requests; more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HmmRequest {
    /// The pages can be read: `HMM_PFN_REQ_FAULT`.
    Read,
    /// The pages can be written: `HMM_PFN_REQ_FAULT` and `HMM_PFN_REQ_WRITE`.
    Write,
}

/// A buffer for what is found about pages: the array `hmm_range::hmm_pfns`.
pub(crate) struct HmmPfns(KVec<usize>);

impl HmmPfns {
    /// A buffer for `count` pages.
    pub(crate) fn new(count: usize) -> Result<Self> {
        Ok(Self(KVec::from_elem(0, count, GFP_KERNEL)?))
    }

    /// The cleared part of the buffer for the pages of a range.
    fn of(&mut self, range: &Range<usize>) -> Result<&mut [usize]> {
        let pfns = self.0.get_mut(..range.len() >> PAGE_SHIFT).ok_or(EINVAL)?;
        // Some flags would carry over from one range fault to the next.
        pfns.fill(0);
        Ok(pfns)
    }
}

/// A range of addresses to look at: a `struct hmm_range` before it has a sequence.
pub(crate) struct HmmRange<'a, T: MirrorOps> {
    notifier: &'a MmuIntervalNotifier<T>,
    addresses: Range<usize>,
    dev_private_owner: PgmapOwner,
}

/// What the kernel found about a range, maybe some time ago.
pub(crate) struct Snapshot<'a, T: MirrorOps> {
    notifier: &'a MmuIntervalNotifier<T>,
    seq: usize,
    pfns: &'a [usize],
}

/// The range has changed since the kernel looked at it.
pub(crate) struct Changed;

/// A snapshot of a range that is valid as long as this exists.
pub(crate) struct Committed<'a, T: MirrorOps> {
    notifier: &'a MmuIntervalNotifier<T>,
    state: StateGuard<'a, T>,
    pfns: &'a [usize],
}

/// What was found with the mmap lock held. The lock is still held during `'m`. Pages may have moved
/// since then, or have been unmapped from the process.
pub(crate) struct LockedSnapshot<'m> {
    pfns: &'m [usize],
    _locked: PhantomData<LockedVma<'m>>,
}

impl LockedSnapshot<'_> {
    /// What was found of the page with this index within the range.
    pub(crate) fn pfn(&self, index: usize) -> Option<HmmPfn> {
        self.pfns.get(index).map(|&raw| HmmPfn(raw))
    }
}

/// What a process's page table said about a page: an element of `hmm_range::hmm_pfns`. It may be
/// out of date: the frame may belong to another page by now, or be free.
#[derive(Clone, Copy)]
pub(crate) struct HmmPfn(usize);

/// The valid entry of one page, which stays mapped in its process during `'c`.
///
/// # Invariants
///
/// If the entry has a frame number, that frame has a `struct page`, and during `'c` its folio is
/// neither freed nor truncated: unmapping it from the process takes the lock that a [`Committed`]
/// holds.
#[derive(Clone, Copy)]
pub(crate) struct HmmPage<'c> {
    entry: HmmPfn,
    _committed: PhantomData<&'c ()>,
}

impl Deref for HmmPage<'_> {
    type Target = HmmPfn;

    fn deref(&self) -> &HmmPfn {
        &self.entry
    }
}

impl<'a, T: MirrorOps> HmmRange<'a, T> {
    /// The pages at `addresses` of the address space that `notifier` covers. Pages of private
    /// device memory whose owner is `dev_private_owner` are found where they are; others are
    /// migrated to system memory by a fault, and are not found by a snapshot.
    pub(crate) fn new(
        notifier: &'a MmuIntervalNotifier<T>,
        addresses: Range<usize>,
        dev_private_owner: PgmapOwner,
    ) -> Self {
        Self {
            notifier,
            addresses,
            dev_private_owner,
        }
    }

    /// Makes all pages of the range present with the access that is requested.
    ///
    /// The kernel works page table by page table: if one page of a range is missing, it makes those
    /// behind it present as well. Hence the range should not be longer than needed.
    ///
    /// Takes the mmap lock. `timeout` bounds the wait for changes by other threads.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the notifier covers, or if the buffer is too small.
    /// - `EFAULT` or `EPERM` if a page cannot be accessed as requested.
    /// - `EHWPOISON` if a page is poisoned, `ENOMEM` if there is no memory for it.
    /// - `EBUSY` if changes went on for longer than `timeout`.
    /// - `EINTR` if the caller is being killed. A kernel thread also gets it after waiting for a
    ///   while: the page may come from a slow disk, or from a program that never provides it. The
    ///   caller is to check whether the page is still needed, and may then try again.
    pub(crate) fn fault(
        &self,
        mm: &MmWithUser,
        timeout: Delta,
        pfns: &mut HmmPfns,
        request: HmmRequest,
    ) -> Result {
        let flags = match request {
            HmmRequest::Read => REQ_FAULT,
            HmmRequest::Write => REQ_FAULT | REQ_WRITE,
        };
        self.range_fault(mm, timeout, pfns, flags)?;
        Ok(())
    }

    /// Finds out where the pages of the range are, without faulting any in.
    ///
    /// Takes the mmap lock. `timeout` bounds the wait for changes by other threads.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the notifier covers, or if the buffer is too small.
    /// - `EFAULT` if the OOM killer has killed the process and its pages have been reaped.
    /// - `EBUSY` if changes went on for longer than `timeout`.
    /// - `EINTR` if the caller is being killed.
    pub(crate) fn snapshot<'p>(
        &self,
        mm: &MmWithUser,
        timeout: Delta,
        pfns: &'p mut HmmPfns,
    ) -> Result<Snapshot<'p, T>>
    where
        'a: 'p,
    {
        let (seq, pfns) = self.range_fault(mm, timeout, pfns, 0)?;
        Ok(Snapshot {
            notifier: self.notifier,
            seq,
            pfns,
        })
    }

    /// Calls `visit` with a snapshot of the range, which is valid until `visit` returns; `visit`
    /// must not sleep. Repeats [`Self::snapshot`] until nothing has changed in between.
    ///
    /// # Errors
    ///
    /// - `EINTR` if a signal arrived.
    /// - As [`Self::snapshot`], except `EBUSY`.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn with_snapshot<R>(
        &self,
        mm: &MmWithUser,
        pfns: &mut HmmPfns,
        visit: impl FnOnce(&mut Committed<'_, T>) -> R,
    ) -> Result<R> {
        let _turn = self.notifier.want_turn();
        loop {
            match self.snapshot(mm, SLICE, pfns) {
                Ok(snapshot) => {
                    if let Ok(mut committed) = snapshot.commit() {
                        return Ok(visit(&mut committed));
                    }
                }
                Err(error) if error == EBUSY => {}
                Err(error) => return Err(error),
            }
            if current!().signal_pending() {
                return Err(EINTR);
            }
        }
    }

    /// Finds out where the pages of the range, which lies in `vma`, are at the moment. The result
    /// is valid as long as the mmap lock is held. Meanwhile pages may move or be unmapped from the
    /// process, but no other process comes to share them.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if the VMA does not belong to the address space that the notifier covers, or if
    ///   the buffer is too small.
    /// - `EBUSY` if pages are being migrated.
    pub(crate) fn snapshot_locked<'m>(
        &self,
        vma: LockedVma<'m>,
        pfns: &'m mut HmmPfns,
    ) -> Result<LockedSnapshot<'m>> {
        let is_within = vma.clip(&self.addresses) == self.addresses;
        if !is_within || !self.notifier.is_for(vma.address_space()) {
            return Err(EINVAL);
        }
        let pfns = pfns.of(&self.addresses)?;
        let mut raw = self.to_raw(pfns, 0);
        raw.notifier_seq = self.notifier.read_begin();
        // SAFETY:
        // - The notifier is inserted and covers every address.
        // - It is that of the VMA's address space, whose mmap lock is held by the invariants
        //   of `LockedVma`.
        // - `hmm_pfns` has an element for each page of the range.
        to_result(unsafe { bindings::hmm_range_fault(&mut raw) })?;
        Ok(LockedSnapshot {
            pfns,
            _locked: PhantomData,
        })
    }

    /// The C structure, without a sequence. `pfns` has an element for each page.
    fn to_raw(&self, pfns: &mut [usize], default_flags: usize) -> bindings::hmm_range {
        bindings::hmm_range {
            notifier: self.notifier.as_raw(),
            notifier_seq: 0,
            start: self.addresses.start,
            end: self.addresses.end,
            hmm_pfns: pfns.as_mut_ptr(),
            default_flags,
            pfn_flags_mask: 0,
            dev_private_owner: self.dev_private_owner.as_ptr(),
        }
    }

    /// Returns the sequence, and what was found.
    fn range_fault<'p>(
        &self,
        mm: &MmWithUser,
        timeout: Delta,
        pfns: &'p mut HmmPfns,
        flags: usize,
    ) -> Result<(usize, &'p [usize])> {
        if !self.notifier.covers(mm) {
            return Err(EINVAL);
        }
        let pfns = pfns.of(&self.addresses)?;
        let mut raw = self.to_raw(pfns, flags);
        // A thread of a program may also wait for a page, as long as that takes; a worker waits for
        // one `SLICE`.
        let waits_for_pages = flags != 0 && current!().mm().is_some();
        let _look = (!waits_for_pages).then(|| self.notifier.looking());
        // SAFETY:
        // - The notifier is inserted and covers every address.
        // - `mm` is its address space and has users; we do not hold its lock.
        // - `hmm_pfns` has an element for each page of the range.
        to_result(unsafe {
            let timeout = jiffies(timeout);
            if flags == 0 {
                // A snapshot waits for no page.
                bindings::hmm_range_fault_unlocked_timeout(&mut raw, timeout)
            } else {
                bindings::virtio_hmm_range_fault(&mut raw, timeout, jiffies(SLICE))
            }
        })?;
        Ok((raw.notifier_seq, pfns))
    }
}

impl<'a, T: MirrorOps> Snapshot<'a, T> {
    /// Locks the mirrored state, if nothing has changed since.
    pub(crate) fn commit(self) -> Result<Committed<'a, T>, Changed> {
        let state = self.notifier.lock();
        if self.notifier.read_retry(&state, self.seq) {
            return Err(Changed);
        }
        Ok(Committed {
            notifier: self.notifier,
            state,
            pfns: self.pfns,
        })
    }
}

impl<'a, T: MirrorOps> Committed<'a, T> {
    /// The page with this index within the range.
    pub(crate) fn page(&self, index: usize) -> Option<HmmPage<'_>> {
        // INVARIANT: Nothing has changed since the kernel found this, and nothing will as long as
        // `self` holds the lock.
        self.pfns.get(index).map(|&raw| HmmPage {
            entry: HmmPfn(raw),
            _committed: PhantomData,
        })
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.pfns.len()
    }

    /// Whether the address space has changed since the notifier had this sequence
    /// ([`MmuIntervalNotifier::read_begin`]), and so what else was learnt since then.
    #[allow(dead_code)] // The sample does not need it.
    pub(crate) fn has_changed_since(&self, seq: usize) -> bool {
        self.notifier.read_retry(&self.state, seq)
    }

    /// The mirrored state.
    pub(crate) fn state(&mut self) -> &mut T::State {
        &mut self.state
    }

    /// The address space. Page tables of the range stay as long as this value exists. Before the
    /// kernel removes its VMAs, or the entries for their tables, it notifies of a change, and that
    /// needs the lock that this value holds.
    pub(crate) fn mm(&self) -> *mut bindings::mm_struct {
        // SAFETY: By its invariants the notifier is inserted; its `mm` does not change.
        unsafe { (*self.notifier.as_raw()).mm }
    }
}

const REQ_FAULT: usize = bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT;
const REQ_WRITE: usize = bindings::hmm_pfn_flags_HMM_PFN_REQ_WRITE;
const VALID: usize = bindings::hmm_pfn_flags_HMM_PFN_VALID;
const WRITE: usize = bindings::hmm_pfn_flags_HMM_PFN_WRITE;
const ERROR: usize = bindings::hmm_pfn_flags_HMM_PFN_ERROR;
const FLAGS: usize = bindings::hmm_pfn_flags_HMM_PFN_FLAGS;
const ORDER_SHIFT: u32 = bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT as u32;
const ORDER_MASK: usize = 0x1f;

impl HmmPfn {
    /// The page's frame number, if it is present and can be read.
    pub(crate) fn pfn(self) -> Option<usize> {
        (self.0 & VALID != 0).then_some(self.0 & !FLAGS)
    }

    /// Whether the process may write to it without a fault.
    pub(crate) fn is_writable(self) -> bool {
        self.0 & (VALID | WRITE) == VALID | WRITE
    }

    /// Whether it is the page of zeros that all processes share.
    pub(crate) fn is_zero(self) -> bool {
        // SAFETY: The function takes any frame number.
        let is_zero = |pfn| unsafe { bindings::virtio_hmm_is_zero_page(pfn) };
        self.pfn().is_some_and(is_zero)
    }

    /// Whether the kernel found something that can never be mirrored.
    pub(crate) fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }

    /// log2 of the pages that the process's page table maps with the same entry as this one.
    pub(crate) fn order(self) -> u32 {
        // Five bits always fit.
        ((self.0 >> ORDER_SHIFT) & ORDER_MASK) as u32
    }
}

impl HmmPage<'_> {
    /// Whether it is in device memory that CPUs can address.
    pub(crate) fn is_device_coherent(self) -> bool {
        // SAFETY: By the invariants the frame has a `struct page`.
        let is_coherent = |pfn| unsafe { bindings::virtio_hmm_is_coherent_page(pfn) };
        self.pfn().is_some_and(is_coherent)
    }

    /// Copies the contents of the page. The process may write to the page meanwhile.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no page that could be read.
    /// - `EOPNOTSUPP` if the kernel has no address for it.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn read(self, into: &mut Contents) -> Result {
        let pfn = self.pfn().ok_or(ENOENT)?;
        // SAFETY: By the invariants the frame has a `struct page`, whose folio is not freed
        // meanwhile. `into` has room for a page.
        let done = unsafe { bindings::virtio_hmm_read_page(pfn, into.as_mut_ptr().cast()) };
        done.then_some(()).ok_or(EOPNOTSUPP)
    }

    /// Writes to the page and marks it dirty.
    ///
    /// # Errors
    ///
    /// - `EPERM` if there is no page that the process may write to as it is.
    /// - `EOPNOTSUPP` if the kernel has no address for it.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn write(self, from: &Contents) -> Result {
        let pfn = self.pfn().filter(|_| self.is_writable()).ok_or(EPERM)?;
        // Before the write: the kernel may discard what is written to a clean page.
        self.mark_dirty();
        // SAFETY: By the invariants the frame has a `struct page`, whose folio is not freed
        // meanwhile; the process may write to it. `from` is a page.
        let done = unsafe { bindings::virtio_hmm_write_page(pfn, from.as_ptr().cast()) };
        done.then_some(()).ok_or(EOPNOTSUPP)
    }

    /// Marks the page dirty: it is written by other means than the process's page table.
    pub(crate) fn mark_dirty(self) {
        if let Some(pfn) = self.pfn() {
            // SAFETY: By the invariants the frame has a `struct page`, and its folio is neither
            // freed nor truncated meanwhile.
            unsafe { bindings::virtio_hmm_mark_dirty(pfn) };
        }
    }
}
