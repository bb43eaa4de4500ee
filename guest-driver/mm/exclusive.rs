// SPDX-License-Identifier: GPL-2.0

//! Exclusive access: taking a page away from the CPUs for a device.
//!
//! The kernel replaces the page's entry in the process's page table, so that a CPU that
//! touches the page waits until the mirror has forgotten it. The protocol is in the types,
//! as in [`super::hmm`]: an [`Exclusive`] is a page whose entry has been replaced, maybe
//! some time ago; [`Exclusive::commit`] locks the mirrored state and checks that nothing
//! has changed since. The page's folio stays locked until the [`Committed`] is dropped,
//! which keeps CPUs from taking the page back before the device has had it. So does the mmap
//! lock: a fork that came upon such an entry with its folio locked would fail for it, as if
//! there were no memory (`copy_pte_range()`).
//!
//! Getting exclusive access is itself a change of the address space, of which the kernel
//! tells the mirror. Its sequence is set like that of any other change. So the sequence
//! cannot say whether there was another one; the interval counts those. On the way the
//! kernel may also have to copy the page, or to take it back from the device. So what counts
//! is which other changes there are from that moment on.
//!
//! C header: `include/linux/rmap.h`.

use super::{
    interval::{Interval, Mirror, StateGuard},
    LockedMm,
};
use crate::sys as bindings;
use core::ptr::NonNull;
use kernel::{error::from_err_ptr, mm::MmWithUser, prelude::*};

/// A folio that is locked, and referenced, by us.
///
/// # Invariants
///
/// The lock of the folio of `page` and a reference to it are ours.
struct Held {
    page: NonNull<bindings::page>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: By the invariants the lock and a reference are ours.
        unsafe { bindings::virtio_hmm_unlock_and_put(self.page.as_ptr()) };
    }
}

/// A page to which the device has been given exclusive access, maybe some time ago.
pub(crate) struct Exclusive<'a, T: Mirror> {
    interval: &'a Interval<T>,
    changes: usize,
    // In this order when dropped: nobody may fork as long as the folio is locked.
    held: Held,
    locked: LockedMm<'a>,
}

/// A page to which the device has exclusive access as long as this exists.
pub(crate) struct Committed<'a, T: Mirror> {
    // In this order when dropped: CPUs can take the page back when the mirror can follow, and
    // nobody may fork as long as the folio is locked.
    state: StateGuard<'a, T>,
    held: Held,
    _locked: LockedMm<'a>,
}

impl<T: Mirror> Interval<T> {
    /// Gives the device exclusive access to the page at an address, which is made present
    /// and writable if need be. A page in device memory is brought home first.
    ///
    /// Takes the mmap lock, and keeps it for reading.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the interval covers.
    /// - `EFAULT` if the process may not write to the page, `EHWPOISON` if it is poisoned,
    ///   `ENOMEM` if there is no memory for it.
    /// - `EOPNOTSUPP` if it is not an anonymous page.
    /// - `EINTR` if the caller is being killed.
    /// - `EBUSY` if the address space is changing.
    pub(crate) fn make_exclusive<'a>(
        &'a self,
        mm: &'a MmWithUser,
        address: usize,
    ) -> Result<Exclusive<'a, T>> {
        if !self.covers(mm) {
            return Err(EINVAL);
        }
        self.wait_for_changes();
        let _taking = self.taking.lock();
        // What is left of an earlier failure does not count.
        self.lock().take_at_exclusive();
        let mut folio = core::ptr::null_mut();
        let locked = LockedMm::new(mm);
        // SAFETY: The address space is valid and its mmap lock held. `folio` is valid for
        // writes.
        let page = unsafe {
            bindings::make_device_exclusive(mm.as_raw(), address, self.owner().as_ptr(), &mut folio)
        };
        let page = NonNull::new(from_err_ptr(page)?).ok_or(EFAULT)?;
        // INVARIANT: The kernel has locked and referenced the page's folio for us.
        let held = Held { page };
        let changes = self.lock().take_at_exclusive().ok_or(EBUSY)?;
        Ok(Exclusive {
            interval: self,
            changes,
            held,
            locked,
        })
    }
}

impl<'a, T: Mirror> Exclusive<'a, T> {
    /// Locks the mirrored state, if nothing has changed since.
    pub(crate) fn commit(self) -> Option<Committed<'a, T>> {
        let state = self.interval.lock();
        // A change that is under way and has not been counted needs this lock first, and
        // will find the page mirrored.
        if state.changes() != self.changes {
            return None;
        }
        Some(Committed {
            state,
            held: self.held,
            _locked: self.locked,
        })
    }
}

impl<T: Mirror> Committed<'_, T> {
    /// The page's frame number.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: By the invariants of `Held` the page is valid.
        unsafe { bindings::virtio_hmm_page_to_pfn(self.held.page.as_ptr()) }
    }

    /// Takes note that the page is written to: its entry in the page table does not.
    pub(crate) fn mark_dirty(&self) {
        // SAFETY: By the invariants of `Held` the page's folio is referenced and locked.
        unsafe { bindings::virtio_hmm_mark_dirty(self.pfn()) };
    }

    /// The mirrored state.
    pub(crate) fn state(&mut self) -> &mut T::State {
        &mut self.state
    }
}
