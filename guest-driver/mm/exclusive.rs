// SPDX-License-Identifier: GPL-2.0

//! Exclusive access: taking a page away from the CPUs for a device.
//!
//! The kernel replaces the page's entry in the process's page table. A CPU that accesses the page
//! then waits until the mirror has forgotten it. The types enforce the protocol, as in
//! [`super::hmm`]. An [`Exclusive`] is a page whose entry was replaced, maybe some time ago.
//! [`Exclusive::commit`] locks the mirrored state and checks that nothing has changed since. The
//! page's folio stays locked until the [`Committed`] is dropped, so that CPUs cannot take the page
//! back before the device has had it. The mmap lock is held just as long: a fork that met such an
//! entry with its folio locked would fail as if out of memory (`copy_pte_range()`).
//!
//! Getting exclusive access is itself a change of the address space, so the sequence of the
//! notifier cannot tell whether there was another one. [`super::exclusive_seq`] does that.
//!
//! Does not know what is mirrored.
//!
//! # Locking
//!
//! Lock order: `ExclusiveLock::making`, the mmap lock for reading, the lock of the page's folio,
//! `MmuIntervalNotifier::state`.
//!
//! C header: [`include/linux/rmap.h`](srctree/include/linux/rmap.h)
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     mm::{
//!         mmu_notifier::{MirrorOps, MmuIntervalNotifier},
//!         MmWithUser,
//!     },
//!     prelude::*,
//! };
//!
//! /// Maps a page on the device, so that it alone has it. `map` records and sends the mapping.
//! fn map_exclusive<T: MirrorOps>(
//!     notifier: &MmuIntervalNotifier<T>,
//!     mm: &MmWithUser,
//!     address: usize,
//!     map: impl FnOnce(&mut T::State, usize) -> Result,
//! ) -> Result {
//!     // `EBUSY`: the address space is changing, or has changed.
//!     let exclusive = notifier.make_exclusive(mm, address)?;
//!     let mut committed = exclusive.commit().ok_or(EBUSY)?;
//!     committed.mark_dirty();
//!     let pfn = committed.pfn();
//!     map(committed.state(), pfn)
//! }
//! ```

use super::{
    mmu_notifier::{MirrorOps, MmuIntervalNotifier, StateGuard},
    Contents, LockedMm,
};
use crate::sys as bindings;
use core::ptr::NonNull;
use kernel::{current, error::from_err_ptr, mm::MmWithUser, prelude::*};

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
pub(crate) struct Exclusive<'a, T: MirrorOps> {
    notifier: &'a MmuIntervalNotifier<T>,
    changes: usize,
    // Drop order: the folio is unlocked before the mmap lock lets a process fork.
    held: Held,
    locked: LockedMm<'a>,
}

/// A page to which the device has exclusive access as long as this exists.
pub(crate) struct Committed<'a, T: MirrorOps> {
    // Drop order: CPUs can take the page back only when the mirror's lock is free, and the folio is
    // unlocked before the mmap lock lets a process fork.
    state: StateGuard<'a, T>,
    held: Held,
    _locked: LockedMm<'a>,
}

impl<T: MirrorOps> MmuIntervalNotifier<T> {
    /// Gives the device exclusive access to the page at an address. The page is made present and
    /// writable if necessary; a page in device memory is first moved to system memory.
    ///
    /// Takes the mmap lock, and keeps it for reading.
    ///
    /// # Errors
    ///
    /// - `EINVAL` if `mm` is not the one that the notifier covers.
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
        let _making = self.exclusive_lock().lock();
        // Discard what an earlier failed attempt has left.
        self.lock().exclusive_seq().take_at_exclusive();
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
        let changes = self.lock().exclusive_seq().take_at_exclusive();
        Ok(Exclusive {
            notifier: self,
            changes: changes.ok_or(EBUSY)?,
            held,
            locked,
        })
    }

    /// Calls `visit` with the page. The device has exclusive access to the page until `visit`
    /// returns; `visit` must not sleep. Repeats [`Self::make_exclusive`] until nothing has changed
    /// in between.
    ///
    /// # Errors
    ///
    /// - `EINTR` if a signal arrived.
    /// - As [`Self::make_exclusive`], except `EBUSY`.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn with_exclusive<R>(
        &self,
        mm: &MmWithUser,
        address: usize,
        visit: impl FnOnce(&mut Committed<'_, T>) -> R,
    ) -> Result<R> {
        loop {
            match self.make_exclusive(mm, address).map(Exclusive::commit) {
                Ok(Some(mut committed)) => return Ok(visit(&mut committed)),
                Err(error) if error != EBUSY => return Err(error),
                _ if current!().signal_pending() => return Err(EINTR),
                _ => {}
            }
        }
    }
}

impl<'a, T: MirrorOps> Exclusive<'a, T> {
    /// Locks the mirrored state, if nothing has changed since.
    pub(crate) fn commit(self) -> Option<Committed<'a, T>> {
        let mut state = self.notifier.lock();
        // A change in progress that has not been counted needs this lock first. It will then find
        // the page mirrored.
        if state.exclusive_seq().changes() != self.changes {
            return None;
        }
        Some(Committed {
            state,
            held: self.held,
            _locked: self.locked,
        })
    }
}

impl<T: MirrorOps> Committed<'_, T> {
    /// The page's frame number.
    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: By the invariants of `Held` the page is valid.
        unsafe { bindings::virtio_hmm_page_to_pfn(self.held.page.as_ptr()) }
    }

    /// Copies the contents of the page.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the kernel has no address for it.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn read(&self, into: &mut Contents) -> Result {
        // SAFETY: By the invariants of `Held` the page is valid. `into` has room for a page.
        let done = unsafe { bindings::virtio_hmm_read_page(self.pfn(), into.as_mut_ptr().cast()) };
        done.then_some(()).ok_or(EOPNOTSUPP)
    }

    /// Marks the page dirty: writes by the device do not set the dirty bit of its page table entry.
    pub(crate) fn mark_dirty(&self) {
        // SAFETY: By the invariants of `Held` the page's folio is referenced and locked.
        unsafe { bindings::virtio_hmm_mark_dirty(self.pfn()) };
    }

    /// The mirrored state.
    pub(crate) fn state(&mut self) -> &mut T::State {
        &mut self.state
    }
}
