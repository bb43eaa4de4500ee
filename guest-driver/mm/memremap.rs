// SPDX-License-Identifier: GPL-2.0

//! Device memory that has `struct page`s.
//!
//! A [`DevPagemap`] gives each frame of such memory a page, so that processes can have their pages
//! there. It turns unused frames into folios, and tells its [`DevPagemapOps`] when one is free
//! again. The memory is of one of two kinds. Private memory has no address that a CPU could use, so
//! a CPU that accesses a page there faults. Coherent memory is used by CPUs like any other.
//!
//! Does not know whose memory it is, nor how pages are collected ([`collect`]).
//!
//! # Locking
//!
//! `DevPagemap::region` is held while the pages are removed, which waits until none of them is in
//! use. The kernel calls [`DevPagemapOps::folio_free`] in any context, and
//! [`DevPagemapOps::migrate_to_ram`] as [`CpuFault`] says.
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

mod collect;
mod cpu_fault;
mod unused;

pub(crate) use self::{
    cpu_fault::{CpuFault, VmFaultError},
    unused::{MemoryId, UnusedFrames},
};

use super::{
    migrate::{LockedFolio, LostFolio},
    pages_of, LockedVma, PgmapOwner, HPAGE_PMD_SIZE,
};
use crate::sys as bindings;
use core::{
    ffi::c_int,
    marker::PhantomData,
    ops::Range,
    pin::Pin,
    ptr::{null, NonNull},
};
use kernel::{
    container_of, error::to_result, mm::MmWithUser, new_mutex, page::PAGE_SHIFT, prelude::*,
    sync::Mutex, types::Opaque,
};

/// Whether CPUs can address device memory: an `enum memory_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// `MEMORY_DEVICE_PRIVATE`: they cannot.
    DevicePrivate,
    /// `MEMORY_DEVICE_COHERENT`: they can, from the physical address `start` on.
    DeviceCoherent {
        /// The physical address of its first frame.
        start: u64,
    },
}

/// Which pages of a process to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Those in this device memory.
    Here,
    /// Those present elsewhere, except the zero page that all processes share.
    Elsewhere,
}

/// What was found in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The first matching page is at this address.
    Page(usize),
    /// There is none below this address. The search has not looked beyond it.
    Nothing(usize),
}

/// Manages the frames of a page map: a `struct dev_pagemap_ops`.
pub(crate) trait DevPagemapOps: Send + Sync + Sized + 'static {
    /// The identifier of the memory. Called once.
    fn id(&self) -> MemoryId;

    /// Called before [`Self::folio_free`] when a folio has lost its last reference. Returns whether
    /// the folio has got a new reference meanwhile: then the folio is not free.
    fn revive(&self, _folio: &FreedFolio<'_>) -> bool {
        false
    }

    /// Called when the folio that was made of these frames, or of a larger block around them, is no
    /// longer used. May be called in atomic context.
    fn folio_free(&self, frames: UnusedFrames);

    /// Called when a CPU accesses a page in private device memory; must move it back to system
    /// memory.
    fn migrate_to_ram(
        &self,
        pagemap: &DevPagemap<Self>,
        fault: CpuFault<'_>,
    ) -> Result<(), VmFaultError>;
}

/// A folio of device memory that has lost its last reference.
///
/// # Invariants
///
/// The folio is valid and has no reference. No one else uses it during `'f`, and the kernel does
/// not use it afterwards.
pub(crate) struct FreedFolio<'f>(*mut bindings::folio, PhantomData<&'f ()>);

impl FreedFolio<'_> {
    /// The folio, valid during `'f`.
    pub(crate) fn as_raw(&self) -> *mut bindings::folio {
        self.0
    }
}

/// The pages of device memory.
///
/// # Invariants
///
/// - `raw` is mapped, with `region` as its only range, as long as there is a `region`.
/// - `first_pfn` is the first page frame number of that range.
#[pin_data(PinnedDrop)]
pub(crate) struct DevPagemap<T: DevPagemapOps> {
    memory: T,
    /// The identifier that `memory` has returned, with which frames are freed.
    id: MemoryId,
    frames: u64,
    memory_type: MemoryType,
    first_pfn: usize,
    #[pin]
    region: Mutex<Option<Region>>,
    #[pin]
    raw: Opaque<bindings::dev_pagemap>,
}

// SAFETY: A page map may be unmapped by any thread.
unsafe impl<T: DevPagemapOps> Send for DevPagemap<T> {}
// SAFETY: Nothing in it changes, except under the kernel's own locks.
unsafe impl<T: DevPagemapOps> Sync for DevPagemap<T> {}

/// Physical addresses that are reserved for us.
struct Region(NonNull<bindings::resource>);

// SAFETY: A region may be released by any thread.
unsafe impl Send for Region {}

impl Region {
    fn new(memory_type: MemoryType, bytes: u64, name: &'static CStr) -> Result<Self> {
        match memory_type {
            MemoryType::DevicePrivate => {
                // SAFETY: The name is a string that lives for ever.
                let raw = unsafe {
                    bindings::virtio_hmm_request_free_region(bytes.try_into()?, name.as_char_ptr())
                };
                let raw = kernel::error::from_err_ptr(raw)?;
                NonNull::new(raw).map(Self).ok_or(ENOMEM)
            }
            MemoryType::DeviceCoherent { start } => {
                // The kernel makes no pages for smaller or unaligned ranges.
                if start % HPAGE_PMD_SIZE as u64 != 0 || start.checked_add(bytes).is_none() {
                    return Err(EINVAL);
                }
                // SAFETY: The name is a string that lives for ever.
                let raw = unsafe {
                    bindings::virtio_hmm_request_region(start, bytes, name.as_char_ptr())
                };
                NonNull::new(raw).map(Self).ok_or(EBUSY)
            }
        }
    }

    fn first_pfn(&self) -> usize {
        // SAFETY: The region is ours, so it stays.
        let start = unsafe { (*self.0.as_ptr()).start };
        (start >> PAGE_SHIFT) as usize
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: The region is ours.
        unsafe { bindings::virtio_hmm_release_region(self.0.as_ptr()) };
    }
}

impl<T: DevPagemapOps> DevPagemap<T> {
    const OPS: &'static bindings::dev_pagemap_ops = &bindings::dev_pagemap_ops {
        folio_free: Some(Self::folio_free),
        migrate_to_ram: Some(Self::migrate_to_ram),
        // Without a handler the kernel would treat each page as a DAX page.
        memory_failure: Some(Self::memory_failure),
        // No state is kept for each page, so there is none to split.
        folio_split: None,
    };

    /// Makes pages for `frames` frames, which must not be zero.
    ///
    /// # Errors
    ///
    /// - `EBUSY` if the addresses of coherent memory are already in use, `EINVAL` if the kernel
    ///   cannot have pages there.
    /// - `ENOMEM` if there is no memory for the pages.
    pub(crate) fn new(
        frames: u64,
        memory_type: MemoryType,
        name: &'static CStr,
        memory: T,
    ) -> Result<impl PinInit<Self, Error>> {
        let bytes = frames.checked_mul(1 << PAGE_SHIFT).ok_or(EINVAL)?;
        let region = Region::new(memory_type, bytes, name)?;
        let resource = region.0;
        let coherent = memory_type != MemoryType::DevicePrivate;
        // INVARIANT: `raw` is mapped below, or initialisation fails.
        Ok(try_pin_init!(Self {
            id: memory.id(),
            memory,
            frames,
            memory_type,
            first_pfn: region.first_pfn(),
            region <- new_mutex!(Some(region), "DevPagemap::region"),
            raw <- Opaque::try_ffi_init(move |slot: *mut bindings::dev_pagemap| {
                // SAFETY: `slot` is valid for writes, and all zeros is an empty page map.
                unsafe { slot.write_bytes(0, 1) };
                // SAFETY: `slot` was just initialised.
                unsafe { (*slot).ops = Self::OPS };
                // SAFETY: `slot` is part of a pinned `DevPagemap`, which stays until `drop` unmaps
                // it; its other fields are initialised. The region is ours. The owner is an address
                // that is unique to this page map.
                to_result(unsafe {
                    bindings::virtio_hmm_memremap(slot, resource.as_ptr(), coherent, slot.cast())
                })
            }),
        }))
    }

    /// What manages its frames.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn memory(&self) -> &T {
        &self.memory
    }

    /// Removes the pages for good. Waits until none of them is in use.
    pub(crate) fn unmap(&self) {
        let mut region = self.region.lock();
        if region.is_some() {
            // SAFETY: By the invariants it is mapped as long as there is a region.
            unsafe { bindings::memunmap_pages(self.raw.get()) };
        }
        // INVARIANT: It is not mapped any more.
        *region = None;
    }

    /// Keeps the pages from being removed, unless they already have been.
    pub(crate) fn try_get(&self) -> Option<DevPagemapRef<'_, T>> {
        // SAFETY: The function takes any page frame number.
        let found = unsafe { bindings::get_dev_pagemap(self.first_pfn) };
        if found == self.raw.get() {
            // INVARIANT: The page map is mapped, and the reference is ours.
            return Some(DevPagemapRef { pagemap: self });
        }
        if !found.is_null() {
            // By now another page map uses these addresses.
            //
            // SAFETY: The reference is ours.
            unsafe { bindings::virtio_hmm_put_pagemap(found) };
        }
        None
    }

    /// How many frames it has.
    fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether CPUs can address this device memory.
    pub(crate) fn is_coherent(&self) -> bool {
        self.memory_type != MemoryType::DevicePrivate
    }

    /// Whether this device memory takes huge pages.
    ///
    /// Coherent memory does not. The kernel (7.3) would map a huge page there, but could not move
    /// it away again. `migrate_vma_setup` skips a huge page that is present unless system memory
    /// is selected. Long-term pinning migrates pages of order zero only. And a split, which a
    /// `munmap` of a part of the page leads to sooner or later, puts the tail pages on the LRU
    /// lists and leaves them without their page map.
    pub(crate) fn takes_large(&self) -> bool {
        !self.is_coherent()
    }

    /// Identifies this device memory as the owner of its pages.
    pub(crate) fn owner(&self) -> PgmapOwner {
        PgmapOwner::new(self.raw.get().cast())
    }

    /// The frame behind a page frame number, if it is one of this device memory.
    pub(crate) fn frame(&self, pfn: usize) -> Option<u64> {
        let frame = pfn.checked_sub(self.first_pfn)? as u64;
        (frame < self.frames).then_some(frame)
    }

    /// The page frame number of a frame of this device memory.
    fn pfn(&self, frame: u64) -> usize {
        self.first_pfn.saturating_add(frame as usize)
    }

    /// Whether a frame is the first one of a huge page now.
    pub(crate) fn is_large(&self, frame: u64) -> bool {
        let Some(_live) = self.try_get().filter(|_| frame < self.frames) else {
            return false;
        };
        let pfn = self.pfn(frame);
        // SAFETY: The page map is mapped as long as `_live` exists, so that each frame in it
        // has a page.
        unsafe { bindings::virtio_hmm_is_large(pfn) }
    }

    /// Finds the first page that is `sought` in the part of `range` that lies in `vma`. The cost
    /// depends on what is mapped: where a page table of the process is missing, its whole span is
    /// skipped at once.
    ///
    /// Pages may come and go meanwhile. A page that is being migrated is not found.
    pub(crate) fn find(&self, vma: LockedVma<'_>, range: &Range<usize>, sought: Sought) -> Found {
        let range = vma.clip(range);
        let mut at = range.start;
        let inside = sought == Sought::Here;
        // SAFETY: By the invariants of `LockedVma` the VMA is valid and the mmap lock of its
        // address space held.
        let found = unsafe {
            bindings::virtio_hmm_find_page(
                vma.address_space().cast_mut(),
                &mut at,
                range.end,
                self.first_pfn,
                self.frames as usize,
                inside,
            )
        };
        if found {
            Found::Page(at)
        } else {
            Found::Nothing(at)
        }
    }

    /// Takes all pages of this device memory away from a process, and their contents are lost: a
    /// thread that accesses one gets a SIGBUS. Allocates no memory. Returns the number of pages.
    pub(crate) fn poison(&self, mm: &MmWithUser) -> u64 {
        // SAFETY: The address space is valid, and none of its locks is held.
        let count = unsafe {
            bindings::virtio_hmm_poison_frames(
                mm.as_raw(),
                self.first_pfn,
                self.frames as usize,
                null(),
                0,
            )
        };
        count as u64
    }

    /// The same for these folios only, which must be sorted by their frames.
    pub(crate) fn poison_lost(&self, mm: &MmWithUser, lost: &[LostFolio]) -> u64 {
        // SAFETY: The address space is valid, and none of its locks is held. A `LostFolio` is
        // a frame and a number of pages, and the list has as many as is said.
        let count = unsafe {
            bindings::virtio_hmm_poison_frames(
                mm.as_raw(),
                self.first_pfn,
                self.frames as usize,
                lost.as_ptr().cast(),
                lost.len(),
            )
        };
        count as u64
    }

    /// # Safety
    ///
    /// `raw` must be the page map of a `DevPagemap<T>`, which must live for `'a`.
    unsafe fn from_raw<'a>(raw: *mut bindings::dev_pagemap) -> &'a Self {
        // SAFETY: The caller promises that this is the field of a `DevPagemap` that lives for `'a`.
        unsafe { &*container_of!(Opaque::cast_from(raw), Self, raw) }
    }

    extern "C" fn folio_free(folio: *mut bindings::folio) {
        // SAFETY: The kernel calls with a folio of device memory that has these
        // operations, which holds its page map mapped.
        let this = unsafe { Self::from_raw(bindings::virtio_hmm_folio_pagemap(folio)) };
        // INVARIANT: The kernel calls when the last reference is gone, and does not use the folio
        // after the call.
        if this.memory.revive(&FreedFolio(folio, PhantomData)) {
            return;
        }
        // SAFETY: The folio is valid.
        let pfn = unsafe { bindings::virtio_hmm_folio_pfn(folio) };
        // SAFETY: The folio is valid.
        let order = unsafe { bindings::virtio_hmm_folio_order(folio) };
        if let Some(first) = this.frame(pfn) {
            // SAFETY: The last reference to the folio is gone, and it was made of frames that
            // nothing else uses. They are accounted for as in use until the call below.
            let frames = unsafe { UnusedFrames::new(this.id, first, order) };
            this.memory.folio_free(frames);
        }
    }

    /// The kernel was told that frames of the device have failed. Only the device itself could know
    /// that. Contents that it cannot return are handled when they are requested.
    extern "C" fn memory_failure(
        _pagemap: *mut bindings::dev_pagemap,
        _first: usize,
        _frames: usize,
        _flags: c_int,
    ) -> c_int {
        ENXIO.to_errno()
    }

    extern "C" fn migrate_to_ram(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The kernel calls with a fault on a page of device memory.
        let page = unsafe { bindings::virtio_hmm_fault_page(vmf) };
        // SAFETY: The page has these operations and is referenced, which holds its page
        // map mapped.
        let this = unsafe { Self::from_raw(bindings::virtio_hmm_page_pagemap(page)) };
        let Some(page) = NonNull::new(page) else {
            return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
        };
        // SAFETY: The kernel holds the mmap lock, a reference to the page and the lock of its folio
        // during this call, and `fault` does not outlive it.
        let fault = unsafe { CpuFault::from_raw(vmf, page) };
        match this.memory.migrate_to_ram(this, fault) {
            Ok(()) => 0,
            Err(VmFaultError::Sigbus) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
            Err(VmFaultError::Oom) => bindings::vm_fault_reason_VM_FAULT_OOM,
        }
    }
}

#[pinned_drop]
impl<T: DevPagemapOps> PinnedDrop for DevPagemap<T> {
    fn drop(self: Pin<&mut Self>) {
        self.unmap();
    }
}

/// Keeps a page map mapped: a reference from `get_dev_pagemap()`.
///
/// # Invariants
///
/// It owns a reference to the page map, which is mapped as long as there is one.
pub(crate) struct DevPagemapRef<'a, T: DevPagemapOps> {
    pagemap: &'a DevPagemap<T>,
}

impl<T: DevPagemapOps> DevPagemapRef<'_, T> {
    /// Makes a folio of frames. They are returned by [`DevPagemapOps::folio_free`].
    ///
    /// # Errors
    ///
    /// Returns the frames if they do not belong to this device memory, or if they form a huge page
    /// and this device memory does not take huge pages.
    pub(crate) fn folio(&self, frames: UnusedFrames) -> Result<LockedFolio, UnusedFrames> {
        let end = frames.first().checked_add(pages_of(frames.order()) as u64);
        let pagemap = self.pagemap;
        if frames.memory() != pagemap.id
            || end.is_none_or(|end| end > pagemap.frames)
            || (frames.order() > 0 && !pagemap.takes_large())
        {
            return Err(frames);
        }
        let pfn = pagemap.pfn(frames.first());
        // SAFETY: By the invariants the page map is mapped, so that each frame in it has a page.
        let page = unsafe { bindings::virtio_hmm_pfn_to_page(pfn) };
        // SAFETY: By the invariants of `UnusedFrames` there is no folio with any of these
        // pages, so that their reference counts are zero. They are pages of this map.
        unsafe { bindings::virtio_hmm_init_device_folio(page, pagemap.raw.get(), frames.order()) };
        // SAFETY: The kernel has just made the page a folio's, so it is not null.
        let page = unsafe { NonNull::new_unchecked(page) };
        // SAFETY: The kernel has just locked the new folio and given us its reference.
        Ok(unsafe { LockedFolio::from_raw(page, frames.order()) })
    }
}

impl<T: DevPagemapOps> Drop for DevPagemapRef<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours.
        unsafe { bindings::virtio_hmm_put_pagemap(self.pagemap.raw.get()) };
    }
}
