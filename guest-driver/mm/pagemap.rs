// SPDX-License-Identifier: GPL-2.0

//! Device memory that has `struct page`s.
//!
//! A [`Pagemap`] gives each frame of such memory a page, so that processes can have
//! their pages there. It turns frames that nobody uses into folios, and tells its
//! [`DeviceMemory`] when one is free again. The memory is of one of two kinds: private,
//! without an address that a CPU could use, so that a CPU that touches a page there
//! faults; or coherent, in which CPUs use pages as they are.
//!
//! C header: `include/linux/memremap.h`.

use super::{
    interval::{Mirror, Still},
    migrate::{page_range, Collected, LockedFolio, Scratch, Select, Size},
    LockedVma, Owner, LARGE_ORDER, LARGE_SIZE, PAGE_SHIFT,
};
use crate::sys as bindings;
use core::{ffi::c_int, marker::PhantomData, mem::offset_of, ops::Range, pin::Pin, ptr::NonNull};
use kernel::{
    error::to_result, mm::virt::VmaRef, new_mutex, prelude::*, sync::Mutex, types::Opaque,
};

/// Frames of device memory that are not in use: 2 to the power of `order` of them, from
/// `first` on, which is a multiple of their number.
///
/// # Invariants
///
/// There is no other such value and no folio with any of these frames.
pub(crate) struct UnusedFrames {
    first: u64,
    order: u32,
}

impl UnusedFrames {
    /// # Safety
    ///
    /// The frames must not be in use, and be accounted for as in use from now on until
    /// the value is dropped, or until [`DeviceMemory::freed`] is called for them.
    pub(crate) unsafe fn new(first: u64, order: u32) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self { first, order }
    }

    /// The first frame.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// log2 of their number.
    pub(crate) fn order(&self) -> u32 {
        self.order
    }
}

/// Why a CPU cannot have a page back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Its contents cannot be had.
    Contents,
    /// There is no memory for it.
    NoMemory,
}

/// Whether CPUs have addresses for device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They have none.
    Private,
    /// They have these, from the physical address `start` on.
    Coherent { start: u64 },
}

/// Who manages the frames of a page map.
pub(crate) trait DeviceMemory: Send + Sync + Sized + 'static {
    /// Called when the folio that was made of these frames, or of a larger run around
    /// them, is no longer used. May be called in atomic context.
    fn freed(&self, frames: UnusedFrames);

    /// Called when a CPU touches a page in private device memory; must bring it back.
    fn migrate_to_ram(&self, pagemap: &Pagemap<Self>, fault: CpuFault<'_>) -> Result<(), Lost>;
}

/// The pages of device memory.
///
/// # Invariants
///
/// - `raw` is mapped, with `region` as its only range, as long as there is a `region`.
/// - `first_pfn` is the first page frame number of that range.
#[pin_data(PinnedDrop)]
pub(crate) struct Pagemap<T: DeviceMemory> {
    memory: T,
    frames: u64,
    kind: Kind,
    first_pfn: usize,
    #[pin]
    region: Mutex<Option<Region>>,
    #[pin]
    raw: Opaque<bindings::dev_pagemap>,
}

// SAFETY: A page map may be unmapped by any thread.
unsafe impl<T: DeviceMemory> Send for Pagemap<T> {}
// SAFETY: Nothing in it changes, but for what the kernel does under its own locks.
unsafe impl<T: DeviceMemory> Sync for Pagemap<T> {}

/// Physical addresses that nobody else uses.
struct Region(NonNull<bindings::resource>);

// SAFETY: A region may be released by any thread.
unsafe impl Send for Region {}

impl Region {
    fn new(kind: Kind, bytes: u64, name: &'static CStr) -> Result<Self> {
        match kind {
            Kind::Private => {
                // SAFETY: The name is a string that lives for ever.
                let raw = unsafe {
                    bindings::virtio_hmm_request_free_region(bytes.try_into()?, name.as_char_ptr())
                };
                let raw = kernel::error::from_err_ptr(raw)?;
                NonNull::new(raw).map(Self).ok_or(ENOMEM)
            }
            Kind::Coherent { start } => {
                // The kernel makes pages for no smaller or unaligned pieces.
                if start % LARGE_SIZE as u64 != 0 || start.checked_add(bytes).is_none() {
                    return Err(EINVAL);
                }
                // SAFETY: As above.
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

impl<T: DeviceMemory> Pagemap<T> {
    const OPS: &'static bindings::dev_pagemap_ops = &bindings::dev_pagemap_ops {
        folio_free: Some(Self::folio_free),
        migrate_to_ram: Some(Self::migrate_to_ram),
        // Without an answer of ours the kernel would take each page for one of DAX.
        memory_failure: Some(Self::memory_failure),
        // Nothing is kept for each page, so there is nothing to split.
        folio_split: None,
    };

    /// Makes pages for `frames` frames, which must not be zero.
    ///
    /// # Errors
    ///
    /// - `EBUSY` if somebody else uses the addresses of coherent memory, `EINVAL` if the
    ///   kernel cannot have pages there.
    /// - `ENOMEM` if there is no memory for the pages.
    pub(crate) fn new(
        frames: u64,
        kind: Kind,
        name: &'static CStr,
        memory: T,
    ) -> Result<impl PinInit<Self, Error>> {
        let bytes = frames.checked_mul(1 << PAGE_SHIFT).ok_or(EINVAL)?;
        let region = Region::new(kind, bytes, name)?;
        let resource = region.0;
        let coherent = kind != Kind::Private;
        // INVARIANT: `raw` is mapped below, or initialisation fails.
        Ok(try_pin_init!(Self {
            memory,
            frames,
            kind,
            first_pfn: region.first_pfn(),
            region <- new_mutex!(Some(region), "Pagemap::region"),
            raw <- Opaque::try_ffi_init(move |slot: *mut bindings::dev_pagemap| {
                // SAFETY: `slot` is valid for writes, and all zeros is an empty page map.
                unsafe { slot.write_bytes(0, 1) };
                // SAFETY: `slot` was just initialised.
                unsafe { (*slot).ops = Self::OPS };
                // SAFETY: `slot` is part of a pinned `Pagemap`, which stays until `drop`
                // unmaps it; its other fields are initialised. The region is ours. The
                // owner is an address that nobody else can have.
                to_result(unsafe {
                    bindings::virtio_hmm_memremap(slot, resource.as_ptr(), coherent, slot.cast())
                })
            }),
        }))
    }

    /// Takes the pages away, for ever. Waits until none of them is in use.
    pub(crate) fn unmap(&self) {
        let mut region = self.region.lock();
        if region.is_some() {
            // SAFETY: By the invariants it is mapped as long as there is a region.
            unsafe { bindings::memunmap_pages(self.raw.get()) };
        }
        // INVARIANT: It is not mapped any more.
        *region = None;
    }

    /// Keeps the pages from being taken away, if they have not been.
    pub(crate) fn live(&self) -> Option<Live<'_, T>> {
        // SAFETY: The function takes any page frame number.
        let found = unsafe { bindings::get_dev_pagemap(self.first_pfn) };
        if found == self.raw.get() {
            // INVARIANT: The page map is mapped, and the reference is ours.
            return Some(Live { pagemap: self });
        }
        if !found.is_null() {
            // By now these are somebody else's addresses.
            //
            // SAFETY: The reference is ours.
            unsafe { bindings::virtio_hmm_put_pagemap(found) };
        }
        None
    }

    /// Whether CPUs have addresses for this device memory.
    pub(crate) fn is_coherent(&self) -> bool {
        self.kind != Kind::Private
    }

    /// Whether large pages may be put into this device memory.
    ///
    /// Not into coherent memory. The kernel (7.3) would map one there, but it cannot part with
    /// it: `migrate_vma_setup` passes over a large page that is present unless ordinary memory
    /// is selected, pinning for a long time migrates pages of order zero only, and a split,
    /// which any `munmap` of a part of it leads to sooner or later, puts the tail pages on
    /// the LRU lists and leaves them without their page map.
    pub(crate) fn takes_large(&self) -> bool {
        !self.is_coherent()
    }

    /// What tells this device memory from that of others.
    pub(crate) fn owner(&self) -> Owner {
        Owner::new(self.raw.get().cast())
    }

    /// The frame behind a page frame number, if it is one of this device memory.
    pub(crate) fn frame(&self, pfn: usize) -> Option<u64> {
        let frame = pfn.checked_sub(self.first_pfn)? as u64;
        (frame < self.frames).then_some(frame)
    }

    /// Whether a frame is the first one of a large page now.
    pub(crate) fn is_large(&self, frame: u64) -> bool {
        let Some(_live) = self.live().filter(|_| frame < self.frames) else {
            return false;
        };
        let pfn = self.first_pfn + frame as usize;
        // SAFETY: The page map is mapped as long as `_live` exists, so that each frame in it
        // has a page.
        unsafe { bindings::virtio_hmm_is_large(pfn) }
    }

    /// Takes pages of this device memory away from the process at `range`.
    ///
    /// Large pages may only be taken as such if nobody takes them away from any process
    /// meanwhile, for which see [`Interval::keep_still`](super::interval::Interval::keep_still).
    ///
    /// # Errors
    ///
    /// As [`Self::collect_to_device`].
    pub(crate) fn collect_to_system<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        size: Size,
        scratch: Scratch,
    ) -> Result<Collected<'a>> {
        let select = match self.kind {
            Kind::Private => Select::Private,
            Kind::Coherent { .. } => Select::Coherent,
        };
        Collected::addresses(vma, range, (select, size), self.owner(), None, scratch)
    }

    /// Takes pages of ordinary memory away from the process at `range`, and places where
    /// there is no page yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range does not lie in `vma`, if the area cannot be migrated
    /// (hugetlb, special mappings, DAX), or if there is not enough room.
    pub(crate) fn collect_to_device<'a>(
        &self,
        vma: LockedVma<'a>,
        range: Range<usize>,
        size: Size,
        scratch: Scratch,
    ) -> Result<Collected<'a>> {
        let what = (Select::System, size);
        Collected::addresses(vma, range, what, self.owner(), None, scratch)
    }

    /// Takes the pages in `count` frames from `first` on away from whatever processes
    /// they belong to.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are no such frames or if there is not enough room; `ENODEV` if the
    /// pages have been taken away.
    pub(crate) fn collect_frames<'a>(
        &self,
        first: u64,
        count: usize,
        scratch: Scratch,
    ) -> Result<Collected<'a>> {
        let end = first.checked_add(count as u64).ok_or(EINVAL)?;
        if end > self.frames {
            return Err(EINVAL);
        }
        // Frames that are collected are in use, which keeps the page map mapped further on.
        let _live = self.live().ok_or(ENODEV)?;
        let pfn = self.first_pfn + first as usize;
        // SAFETY: These are frames of a page map that is mapped as long as `_live` exists.
        unsafe { Collected::frames(pfn, count, scratch) }
    }

    /// # Safety
    ///
    /// `raw` must be the page map of a `Pagemap<T>`, which must live for `'a`.
    unsafe fn from_raw<'a>(raw: *mut bindings::dev_pagemap) -> &'a Self {
        // SAFETY: The caller promises that this is the field of a `Pagemap`. `Opaque` is
        // transparent.
        unsafe { &*raw.byte_sub(offset_of!(Self, raw)).cast::<Self>() }
    }

    extern "C" fn folio_free(folio: *mut bindings::folio) {
        // SAFETY: The kernel calls with a folio of device memory that has these
        // operations, which holds its page map mapped.
        let this = unsafe { Self::from_raw(bindings::virtio_hmm_folio_pagemap(folio)) };
        // SAFETY: The folio is valid.
        let pfn = unsafe { bindings::virtio_hmm_folio_pfn(folio) };
        // SAFETY: As above.
        let order = unsafe { bindings::virtio_hmm_folio_order(folio) };
        if let Some(first) = this.frame(pfn) {
            // INVARIANT: The last reference to the folio is gone, and it was made of
            // frames that nobody else uses.
            this.memory.freed(UnusedFrames { first, order });
        }
    }

    /// The kernel was told that frames of the device have failed. Only the device itself
    /// could know that; what it cannot give back is dealt with when it is asked for.
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
        // INVARIANT: The kernel holds the mmap lock and the lock of the page's folio
        // during this call, and `fault` does not outlive it.
        let fault = CpuFault {
            vmf,
            page,
            _call: PhantomData,
        };
        match this.memory.migrate_to_ram(this, fault) {
            Ok(()) => 0,
            Err(Lost::Contents) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
            Err(Lost::NoMemory) => bindings::vm_fault_reason_VM_FAULT_OOM,
        }
    }
}

#[pinned_drop]
impl<T: DeviceMemory> PinnedDrop for Pagemap<T> {
    fn drop(self: Pin<&mut Self>) {
        self.unmap();
    }
}

/// Keeps a page map mapped.
///
/// # Invariants
///
/// It owns a reference to the page map, which is mapped as long as there is one.
pub(crate) struct Live<'a, T: DeviceMemory> {
    pagemap: &'a Pagemap<T>,
}

impl<T: DeviceMemory> Live<'_, T> {
    /// Makes a folio of frames. They come back by [`DeviceMemory::freed`].
    ///
    /// # Errors
    ///
    /// Returns the frames if they are none of this device memory, or if it does not take large
    /// pages and they are one.
    pub(crate) fn folio(&self, frames: UnusedFrames) -> Result<LockedFolio, UnusedFrames> {
        let end = frames.first.checked_add(1 << frames.order);
        let pagemap = self.pagemap;
        if end.is_none_or(|end| end > pagemap.frames)
            || (frames.order > 0 && !pagemap.takes_large())
        {
            return Err(frames);
        }
        let pfn = pagemap.first_pfn + frames.first as usize;
        // SAFETY: By the invariants the page map is mapped, so that each frame in it has a page.
        let page = unsafe { bindings::virtio_hmm_pfn_to_page(pfn) };
        // SAFETY: By the invariants of `UnusedFrames` there is no folio with any of these
        // pages, so that their reference counts are zero. They are pages of this map.
        unsafe { bindings::virtio_hmm_init_device_folio(page, pagemap.raw.get(), frames.order) };
        // SAFETY: The kernel has just made the page a folio's, so it is not null.
        let page = unsafe { NonNull::new_unchecked(page) };
        // SAFETY: The kernel has just locked the new folio and given us its reference.
        Ok(unsafe { LockedFolio::from_raw(page, frames.order) })
    }
}

impl<T: DeviceMemory> Drop for Live<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours.
        unsafe { bindings::virtio_hmm_put_pagemap(self.pagemap.raw.get()) };
    }
}

/// A CPU has touched a page in private device memory.
///
/// # Invariants
///
/// During `'f` the mmap lock is held for reading, and `page`, which is the page in
/// device memory, is referenced and its folio locked.
pub(crate) struct CpuFault<'f> {
    vmf: *mut bindings::vm_fault,
    page: NonNull<bindings::page>,
    _call: PhantomData<&'f ()>,
}

impl<'f> CpuFault<'f> {
    /// The area that was touched.
    pub(crate) fn vma(&self) -> LockedVma<'f> {
        // SAFETY: By the invariants the fault and its area are valid for `'f`, and the
        // mmap lock is held.
        let vma = unsafe { VmaRef::from_raw(bindings::virtio_hmm_fault_vma(self.vmf)) };
        // INVARIANT: The mmap lock is held for `'f`.
        LockedVma(vma)
    }

    /// The address that was touched.
    pub(crate) fn address(&self) -> usize {
        // SAFETY: By the invariants the fault is valid.
        unsafe { bindings::virtio_hmm_fault_address(self.vmf) }
    }

    /// The frame number of the page that the fault holds.
    pub(super) fn pfn(&self) -> usize {
        // SAFETY: By the invariants the page is valid.
        unsafe { bindings::virtio_hmm_page_to_pfn(self.page.as_ptr()) }
    }

    /// log2 of the pages of the folio that was touched.
    fn order(&self) -> u32 {
        // SAFETY: By the invariants the page is valid, and locked, so that its folio is
        // not split meanwhile.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // SAFETY: As above.
        unsafe { bindings::virtio_hmm_folio_order(folio) }
    }

    /// Whether the folio that was touched is mapped there as a large page.
    pub(crate) fn is_large(&self) -> bool {
        // SAFETY: By the invariants the fault is valid.
        let by_page = unsafe { bindings::virtio_hmm_fault_by_page(self.vmf) };
        !by_page && self.order() == LARGE_ORDER
    }

    /// Whether no other address space has the folio that was touched; stays so until the call
    /// returns.
    pub(crate) fn is_exclusive(&self) -> bool {
        // SAFETY: As in `order`.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // Only a fork could change that, for which it takes the mmap lock.
        //
        // SAFETY: As above.
        unsafe { bindings::virtio_hmm_folio_mapcount(folio) == 1 }
    }

    /// Whether another page of a folio was touched than its first one, so that it cannot be
    /// collected before [`Self::split`].
    ///
    /// The kernel (7.3) splits such a folio when it collects the page, and from then on takes
    /// the first page for the one that is locked for this fault. That one would be moved
    /// without being locked, while others move it too.
    pub(crate) fn is_within_folio(&self) -> bool {
        // SAFETY: As in `order`.
        let folio = unsafe { bindings::virtio_hmm_page_folio(self.page.as_ptr()) };
        // SAFETY: As above.
        let first = unsafe { bindings::virtio_hmm_folio_pfn(folio) };
        self.pfn() != first
    }

    /// Splits the folio that was touched, if [`Self::is_within_folio`]. Nothing is moved: the
    /// page will be touched again, and be a small one.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that.
    pub(crate) fn split<T: DeviceMemory>(&self, pagemap: &Pagemap<T>) -> Result {
        let scratch = Scratch::new(1)?;
        // Of the one page it would only be known after the split that it is locked for us.
        let range = page_range(self.address());
        self.take(pagemap, range, Size::Small, scratch).map(drop)
    }

    /// Splits the folio that was touched, if [`Self::is_large`], for all processes that have it;
    /// says whether that was possible. Nothing is moved then: the page will be touched again, and
    /// be a small one.
    ///
    /// When the kernel (7.3) splits it, there must be one reference beside those of entries, but it
    /// takes one itself in addition to that of the fault. Hence that one is given back meanwhile.
    /// As long as the address space is kept `still`, it has an entry of the folio, whose
    /// reference keeps it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is another address space that is kept still, `ENOMEM` if there is no memory.
    pub(crate) fn split_large<T: DeviceMemory, M: Mirror>(
        &self,
        pagemap: &Pagemap<T>,
        still: &Still<'_, M>,
    ) -> Result<bool> {
        if !still.is_of(self.vma().address_space()) {
            return Err(EINVAL);
        }
        let scratch = Scratch::new(1)?;
        let page = self.page.as_ptr();
        // SAFETY: By the invariants the page is valid and the reference is the fault's, which
        // does nothing with it before the call returns. The folio does not become free: its entry
        // in this address space has a reference of its own. Nobody takes that one away: the address
        // space is kept still, and who splits or moves the folio would have to lock it.
        unsafe { bindings::virtio_hmm_put_page(page) };
        let range = page_range(self.address() & !(LARGE_SIZE - 1));
        let taken = self.take(pagemap, range, Size::Small, scratch);
        // SAFETY: The page is valid: either its entry is where it was, or it has been taken away,
        // and what was taken holds a reference.
        unsafe { bindings::virtio_hmm_get_page(page) };
        drop(taken);
        Ok(self.order() == 0)
    }

    /// Takes pages of this device memory away from the process at `range`, which must
    /// contain the address.
    ///
    /// # Errors
    ///
    /// As [`Pagemap::collect_to_system`], and `EINVAL` if [`Self::is_within_folio`].
    pub(crate) fn collect<'a, T: DeviceMemory>(
        &self,
        pagemap: &Pagemap<T>,
        range: Range<usize>,
        size: Size,
        scratch: Scratch,
    ) -> Result<Collected<'a>>
    where
        'f: 'a,
    {
        if self.is_within_folio() {
            return Err(EINVAL);
        }
        self.take(pagemap, range, size, scratch)
    }

    fn take<'a, T: DeviceMemory>(
        &self,
        pagemap: &Pagemap<T>,
        range: Range<usize>,
        size: Size,
        scratch: Scratch,
    ) -> Result<Collected<'a>>
    where
        'f: 'a,
    {
        Collected::addresses(
            self.vma(),
            range,
            (Select::Private, size),
            pagemap.owner(),
            Some(self.page),
            scratch,
        )
    }
}
