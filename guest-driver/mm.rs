// SPDX-License-Identifier: GPL-2.0

//! Safe use of the kernel's heterogeneous memory management.
//!
//! Named and written so that it could live in the kernel crate. Knows neither the
//! device nor its driver: who mirrors an address space, and whose memory it is, are
//! type parameters.

pub(crate) mod exclusive;
pub(crate) mod hmm;
pub(crate) mod interval;
pub(crate) mod migrate;
pub(crate) mod pagemap;

use crate::sys;
use core::{ffi::c_void, ops::Range};
use kernel::mm::{
    virt::{flags, VmaRef},
    MmWithUser, MmapReadGuard,
};

/// log2 of the size of a page.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// The size of a page.
pub(crate) const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// log2 of the pages of a large page (one that a page middle directory maps).
pub(crate) const LARGE_ORDER: u32 = 9;
/// The pages of a large page.
pub(crate) const LARGE_PAGES: usize = 1 << LARGE_ORDER;
/// The size of a large page.
pub(crate) const LARGE_SIZE: usize = PAGE_SIZE << LARGE_ORDER;

/// What tells one device, with its memory, from another: an address that is only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(usize);

impl Owner {
    /// The owner that this address stands for.
    pub(crate) fn new(address: *const c_void) -> Self {
        Self(address as usize)
    }

    fn as_ptr(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// A process's address space whose mmap lock is held for reading.
pub(crate) struct LockedMm<'m> {
    mm: &'m MmWithUser,
    _guard: MmapReadGuard<'m>,
}

impl<'m> LockedMm<'m> {
    /// Takes the lock.
    pub(crate) fn new(mm: &'m MmWithUser) -> Self {
        Self {
            mm,
            _guard: mm.mmap_read_lock(),
        }
    }

    /// The first area that ends above `address`.
    pub(crate) fn find(&self, address: usize) -> Option<LockedVma<'_>> {
        // SAFETY: The address space is valid and its lock is held.
        let vma = unsafe { sys::find_vma(self.mm.as_raw(), address) };
        if vma.is_null() {
            return None;
        }
        // SAFETY: The area is valid as long as the lock is held, for which `self` is
        // borrowed.
        let vma = unsafe { VmaRef::from_raw(vma) };
        // INVARIANT: As above.
        Some(LockedVma(vma))
    }

    /// The area that contains `address`.
    pub(crate) fn lookup(&self, address: usize) -> Option<LockedVma<'_>> {
        self.find(address)
            .filter(|found| found.vma().start() <= address)
    }
}

/// A memory area of a process whose mmap lock is held for reading.
///
/// A `&VmaRef` alone is no proof of that: it may also be had under RCU.
///
/// # Invariants
///
/// The mmap lock is held for as long as `'g`.
#[derive(Clone, Copy)]
pub(crate) struct LockedVma<'g>(&'g VmaRef);

impl<'g> LockedVma<'g> {
    /// The area itself.
    pub(crate) fn vma(self) -> &'g VmaRef {
        self.0
    }

    /// The address space that it belongs to, to be compared.
    pub(crate) fn address_space(self) -> *const sys::mm_struct {
        // SAFETY: By the invariants the area is valid, and its lock held, so that this does
        // not change.
        unsafe { (*self.0.as_ptr()).vm_mm }
    }

    /// Whether the process may read it.
    pub(crate) fn is_readable(self) -> bool {
        self.0.flags() & flags::READ != 0
    }

    /// The part of the area that lies in `range`.
    pub(crate) fn clip(self, range: &Range<usize>) -> Range<usize> {
        range.start.max(self.0.start())..range.end.min(self.0.end())
    }
}
