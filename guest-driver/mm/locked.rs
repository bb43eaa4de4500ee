// SPDX-License-Identifier: GPL-2.0

//! Proofs that the mmap lock of an address space is held.
//!
//! Does not know what is done with it held.
//!
//! C headers: [`include/linux/mmap_lock.h`](srctree/include/linux/mmap_lock.h),
//! [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::sys;
use core::ops::Range;
use kernel::{
    error::to_result,
    mm::{
        virt::{flags, VmaRef},
        MmWithUser,
    },
    prelude::*,
    time::{delay::fsleep, Delta},
    types::NotThreadSafe,
};

/// How often [`LockedMm::soon`] tries, and how long it pauses in between. There is no event to wait for.
const SOON: u32 = 1000;
const PAUSE: Delta = Delta::from_millis(1);

/// A process's address space whose mmap lock is held for reading.
///
/// # Invariants
///
/// The lock is held by the thread that has made the value.
pub(crate) struct LockedMm<'m> {
    mm: &'m MmWithUser,
    _not_send: NotThreadSafe,
}

impl<'m> LockedMm<'m> {
    /// Takes the lock. A program can hold it for long: this is for threads that cannot be killed.
    pub(crate) fn new(mm: &'m MmWithUser) -> Self {
        // The lock is released by `drop`.
        core::mem::forget(mm.mmap_read_lock());
        // INVARIANT: It is held now.
        Self {
            mm,
            _not_send: NotThreadSafe,
        }
    }

    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is being killed.
    pub(crate) fn killable(mm: &'m MmWithUser) -> Result<Self> {
        // SAFETY: The address space is valid.
        to_result(unsafe { sys::virtio_hmm_mmap_read_lock_killable(mm.as_raw()) })?;
        // INVARIANT: It is held now.
        Ok(Self {
            mm,
            _not_send: NotThreadSafe,
        })
    }

    /// Takes the lock if it becomes free within a second. For threads that cannot be killed, such as
    /// one that is exiting: the kernel itself may hold the lock for ever.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it does not become free.
    pub(crate) fn soon(mm: &'m MmWithUser) -> Result<Self> {
        for _ in 0..SOON {
            if let Some(guard) = mm.mmap_read_trylock() {
                // The lock is released by `drop`.
                core::mem::forget(guard);
                // INVARIANT: It is held now.
                return Ok(Self {
                    mm,
                    _not_send: NotThreadSafe,
                });
            }
            fsleep(PAUSE);
        }
        Err(EAGAIN)
    }

    /// The first VMA that ends above `address`.
    pub(crate) fn find(&self, address: usize) -> Option<LockedVma<'_>> {
        // SAFETY: The address space is valid and its lock is held.
        let vma = unsafe { sys::find_vma(self.mm.as_raw(), address) };
        if vma.is_null() {
            return None;
        }
        // SAFETY: The VMA is valid as long as the lock is held, and `self`, which holds it, is
        // borrowed that long.
        let vma = unsafe { VmaRef::from_raw(vma) };
        // INVARIANT: The mmap lock is held as long as `self` is borrowed.
        Some(LockedVma(vma))
    }

    /// The VMA that contains `address`.
    pub(crate) fn lookup(&self, address: usize) -> Option<LockedVma<'_>> {
        self.find(address)
            .filter(|found| found.vma().start() <= address)
    }
}

impl Drop for LockedMm<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariants this thread holds the lock.
        unsafe { sys::mmap_read_unlock(self.mm.as_raw()) };
    }
}

/// A process's address space whose mmap lock is held for writing.
///
/// # Invariants
///
/// The lock is held by the thread that has made the value.
pub(super) struct ChangingMm<'m> {
    mm: &'m MmWithUser,
    _not_send: NotThreadSafe,
}

impl<'m> ChangingMm<'m> {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is being killed.
    pub(super) fn killable(mm: &'m MmWithUser) -> Result<Self> {
        // SAFETY: The address space is valid.
        to_result(unsafe { sys::virtio_hmm_mmap_write_lock_killable(mm.as_raw()) })?;
        // INVARIANT: It is held now.
        Ok(Self {
            mm,
            _not_send: NotThreadSafe,
        })
    }

    /// The address space.
    pub(super) fn as_raw(&self) -> *mut sys::mm_struct {
        self.mm.as_raw()
    }
}

impl Drop for ChangingMm<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariants this thread holds the lock.
        unsafe { sys::virtio_hmm_mmap_write_unlock(self.mm.as_raw()) };
    }
}

/// A VMA of a process whose mmap lock is held for reading.
///
/// A `&VmaRef` alone is no proof of that: it may also have been found under RCU.
///
/// # Invariants
///
/// The mmap lock is held for as long as `'g`.
#[derive(Clone, Copy)]
pub(crate) struct LockedVma<'g>(&'g VmaRef);

impl<'g> LockedVma<'g> {
    /// # Safety
    ///
    /// The mmap lock must be held for as long as `'g`.
    pub(super) unsafe fn new(vma: &'g VmaRef) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self(vma)
    }

    /// The VMA itself.
    pub(crate) fn vma(self) -> &'g VmaRef {
        self.0
    }

    /// The address space that it belongs to, for comparison only.
    pub(crate) fn address_space(self) -> *const sys::mm_struct {
        // SAFETY: By the invariants the VMA is valid, and its lock held, so that this does
        // not change.
        unsafe { (*self.0.as_ptr()).vm_mm }
    }

    /// Whether the kind of the VMA allows its pages to be migrated.
    pub(crate) fn is_migratable(self) -> bool {
        // SAFETY: By the invariants the VMA is valid.
        unsafe { sys::virtio_hmm_is_migratable(self.0.as_ptr()) }
    }

    /// Whether the process may read it.
    pub(crate) fn is_readable(self) -> bool {
        self.0.flags() & flags::READ != 0
    }

    /// Whether no other process can access it, nor a plain store of its own: secret memory, and
    /// shadow stacks.
    pub(crate) fn is_private_to_cpus(self) -> bool {
        // SAFETY: By the invariants the VMA is valid and its lock held.
        unsafe { sys::virtio_hmm_is_private_to_cpus(self.0.as_ptr()) }
    }

    /// Whether userfaultfd(2) may be tracking writes to the VMA.
    pub(crate) fn is_write_tracked(self) -> bool {
        // SAFETY: By the invariants the VMA is valid and its lock held.
        unsafe { sys::virtio_hmm_is_write_tracked(self.0.as_ptr()) }
    }

    /// The part of the VMA that lies in `range`.
    pub(crate) fn clip(self, range: &Range<usize>) -> Range<usize> {
        range.start.max(self.0.start())..range.end.min(self.0.end())
    }
}
