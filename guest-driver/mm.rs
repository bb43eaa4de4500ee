// SPDX-License-Identifier: GPL-2.0

//! Safe use of the kernel's heterogeneous memory management (HMM).
//!
//! HMM lets a device with page tables of its own use the addresses of a process. The device
//! *mirrors* the address space: what the process can reach at an address, the device reaches at the
//! same address. Memory of the device can take part: it has `struct page`s, and pages of processes
//! move there and back.
//!
//! Named and written so that it could live in the kernel crate, which the examples call it by.
//! Knows neither the device nor its driver: the mirror of an address space and the owner of device
//! memory are type parameters. See Documentation/mm/hmm.rst for what the kernel asks of a driver.
//!
//! # Components
//!
//! Mirroring:
//!
//! - [`mmu_notifier`]: a [`MmuIntervalNotifier`] learns of each change of an address space before
//!   the kernel makes it, and delays the change until the mirror is invalidated. It owns the lock
//!   of the mirrored state.
//! - [`hmm`]: a [`HmmRange`] makes pages present, and finds out where they are. The result cannot
//!   be read before it has been checked with that lock held.
//! - [`exclusive`]: takes a page away from the CPUs, so that a device can replace a value in it
//!   atomically. `exclusive_seq` tells whether the device still has it.
//! - [`turn`]: makes threads pause that change an address space all the time, so that a mirror gets
//!   to look at it.
//!
//! Device memory:
//!
//! - [`memremap`]: a [`DevPagemap`] gives frames of device memory their pages, turns unused frames
//!   into folios, and hands out [`CpuFault`]s.
//! - [`migrate`]: a migration as a value, from [`Collected`] to its end. It is undone if it is
//!   dropped before it has been committed.
//! - [`self_invalidate`]: a driver that migrates pages of its own device may invalidate its mirror
//!   by itself, together with the copy.
//! - [`frames`]: lists of unused frames, for a driver that needs nothing better.
//!
//! A driver provides:
//!
//! - [`MirrorOps`]: what is mirrored, and how the device is told to forget it;
//! - [`DevPagemapOps`]: what becomes of a frame that is free, and how a page moves to system memory
//!   when a CPU accesses it;
//! - a handler for faults of the device, and a policy for where pages are.
//!
//! # Locking
//!
//! In the order in which they are taken:
//!
//! 1. `ExclusiveLock::making`, while a page is made exclusive.
//! 2. The mmap lock. [`LockedMm`] holds it for reading, and a [`LockedVma`] proves that it is held.
//!    [`HmmRange::fault`] and [`HmmRange::snapshot`] take it by themselves; a migration needs it
//!    until its end. Then the locks of folios: pages that are collected are locked.
//! 3. `MmuIntervalNotifier::reserve`, then `MmuIntervalNotifier::state` or
//!    `MmuIntervalNotifier::spares`. `state` is the lock that Documentation/mm/hmm.rst calls
//!    `driver->update`; a [`StateGuard`] holds it.
//!
//! A change of the address space takes the locks under 3 while the kernel may be reclaiming memory.
//! So no memory is allocated with them held, and an invalidation uses resources that were allocated
//! when the process was bound. Nothing waits for the device with `state` held. A request to map
//! pages is sent with `state` held, so that the request to forget them comes behind it.
//!
//! # The life of a device fault
//!
//! The handler has the kernel make the pages present ([`HmmRange::fault`]), asks where they are
//! ([`HmmRange::snapshot`]) and locks the mirrored state ([`Snapshot::commit`]). If the address
//! space has changed meanwhile, or is changing, it starts again. Otherwise the pages stay where
//! they are as long as the lock is held, and the handler tells the device.
//!
//! A driver bounds the number of attempts, holds a
//! [turn](mmu_notifier::MmuIntervalNotifier::want_turn) while it makes them, and does not grant
//! more than [`HmmPfn::is_writable`] allows.
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     mm::{
//!         hmm::{HmmPfns, HmmRange, HmmRequest},
//!         mmu_notifier::{MirrorOps, MmuIntervalNotifier},
//!         MmWithUser, PgmapOwner,
//!     },
//!     prelude::*,
//!     time::Delta,
//! };
//!
//! /// Maps pages on the device. `map` records and sends one mapping, and does not wait for a reply.
//! fn handle_device_fault<T: MirrorOps>(
//!     notifier: &MmuIntervalNotifier<T>,
//!     mm: &MmWithUser,
//!     addresses: Range<usize>,
//!     owner: PgmapOwner,
//!     pfns: &mut HmmPfns,
//!     mut map: impl FnMut(&mut T::State, usize, usize, bool) -> Result,
//! ) -> Result {
//!     let timeout = Delta::from_millis(100);
//!     let range = HmmRange::new(notifier, addresses, owner);
//!     let _turn = notifier.want_turn();
//!     for _ in 0..64 {
//!         range.fault(mm, timeout, pfns, HmmRequest::Read)?;
//!         let snapshot = range.snapshot(mm, timeout, pfns)?;
//!         let Ok(mut committed) = snapshot.commit() else {
//!             continue;
//!         };
//!         for index in 0..committed.len() {
//!             let page = committed.page(index).ok_or(EINVAL)?;
//!             let (pfn, is_writable) = (page.pfn().ok_or(EFAULT)?, page.is_writable());
//!             map(committed.state(), index, pfn, is_writable)?;
//!         }
//!         return Ok(());
//!     }
//!     Err(EBUSY)
//! }
//! ```
//!
//! # The life of a migration to the device
//!
//! The driver collects pages ([`DevPagemap::collect_to_device`]). The kernel isolates them, and
//! replaces their entries in page tables, so that a thread that accesses one waits. The notifier
//! has invalidated the mirror by then. The driver takes unused frames, makes a folio of them
//! ([`DevPagemapRef::folio`]), copies the contents, and gives the folio to the slot
//! ([`Collected::fill`]). Committing installs what was given; a slot that was given nothing stays
//! where it is. When the migration ends, the waiting threads continue. Those on CPUs fault on pages
//! that have moved.
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     mm::{
//!         memremap::{DevPagemap, DevPagemapOps, UnusedFrames},
//!         migrate::{Collected, Compound, MigratePfns, Slot},
//!         pages_in, LockedMm, MmWithUser,
//!     },
//!     prelude::*,
//! };
//!
//! /// Moves pages to device memory, as far as possible, and says how many. `copy` waits for the
//! /// device.
//! fn migrate_to_device<T: DevPagemapOps>(
//!     pagemap: &DevPagemap<T>,
//!     mm: &MmWithUser,
//!     addresses: &Range<usize>,
//!     mut alloc: impl FnMut(u32) -> Option<UnusedFrames>,
//!     mut copy: impl FnMut(&Collected<'_>, Slot, &UnusedFrames) -> Result,
//! ) -> Result<u64> {
//!     let alive = pagemap.try_get().ok_or(ENODEV)?;
//!     let locked = LockedMm::new(mm);
//!     let vma = locked.lookup(addresses.start).ok_or(EFAULT)?;
//!     let addresses = vma.clip(addresses);
//!     let pfns = MigratePfns::new(pages_in(&addresses))?;
//!     let collected = pagemap.collect_to_device(vma, addresses, Compound::Split, pfns)?;
//!     let stats = collected.migrate(|collected, slot| {
//!         let Some(frames) = alloc(slot.order) else {
//!             return Ok(false);
//!         };
//!         if let Err(error) = copy(collected, slot, &frames) {
//!             pagemap.memory().folio_free(frames);
//!             return Err(error);
//!         }
//!         match alive.folio(frames) {
//!             Ok(folio) => collected.fill(slot, folio).map(|()| true),
//!             Err(frames) => {
//!                 pagemap.memory().folio_free(frames);
//!                 Ok(false)
//!             }
//!         }
//!     });
//!     Ok(stats.moved)
//! }
//! ```
//!
//! # The life of a CPU fault
//!
//! A CPU accesses a page in private device memory. The kernel locks its folio and calls
//! [`DevPagemapOps::migrate_to_ram`]. The driver collects the page, and more around it if it likes
//! ([`CpuFault::collect`]), and moves it as above, in the other direction. The frames come back by
//! [`DevPagemapOps::folio_free`] when the migration ends. If the page could not be collected,
//! another thread is handling it: the driver returns, and the CPU faults again.
//!
//! ```
//! use kernel::{
//!     mm::{
//!         memremap::{CpuFault, DevPagemap, DevPagemapOps, VmFaultError},
//!         migrate::{LockedFolio, MigratePfns, Source},
//!         page_range,
//!     },
//!     prelude::*,
//! };
//!
//! /// Moves a page that is not part of a huge one. `copy` waits for the device.
//! fn migrate_to_ram<T: DevPagemapOps>(
//!     pagemap: &DevPagemap<T>,
//!     fault: &CpuFault<'_>,
//!     mut copy: impl FnMut(u64, &mut LockedFolio) -> Result,
//! ) -> Result<(), VmFaultError> {
//!     let page = page_range(fault.address());
//!     let near = Some((fault.vma(), page.start));
//!     let pfns = MigratePfns::new(1).map_err(|_| VmFaultError::Oom)?;
//!     let collected = fault.collect(pagemap, page, None, pfns);
//!     let collected = collected.map_err(|_| VmFaultError::Sigbus)?;
//!     let mut copied = Ok(());
//!     let stats = collected.migrate(|collected, slot| {
//!         let Source::Folio(pfn) = slot.source else {
//!             return Err(EINVAL);
//!         };
//!         let frame = pagemap.frame(pfn).ok_or(EINVAL)?;
//!         let Some(mut folio) = LockedFolio::system(slot.order, near) else {
//!             return Ok(false);
//!         };
//!         copied = copy(frame, &mut folio);
//!         copied?;
//!         collected.fill(slot, folio).map(|()| true)
//!     });
//!     match (copied, stats.no_memory) {
//!         (Ok(()), 0) => Ok(()),
//!         (Ok(()), _) => Err(VmFaultError::Oom),
//!         (Err(_), _) => Err(VmFaultError::Sigbus),
//!     }
//! }
//! ```
//!
//! # The life of an invalidation
//!
//! The kernel is about to change a part of the address space: `munmap()`, `mprotect()`, `fork()`,
//! reclaim, a migration. It calls the notifiers of the process. Each locks the mirrored state, sets
//! its sequence, so that what was found before cannot be committed any more, and asks its mirror
//! which part of the range is mirrored ([`MirrorOps::affected_range`]). If there is one, the mirror
//! starts to invalidate it ([`MirrorOps::invalidate_start`]). When all notifiers have been called,
//! the kernel calls each again, and the mirror waits ([`MirrorOps::invalidate_wait`]). The change
//! proceeds when the device has confirmed that it no longer uses the old translations.
//!
//! ```
//! use core::ops::Range;
//! use kernel::{
//!     mm::{
//!         mmu_notifier::{MirrorOps, MmuIntervalNotifier},
//!         MmWithUser, PgmapOwner,
//!     },
//!     prelude::*,
//! };
//!
//! /// The MMU of a device.
//! trait Mmu: Send + Sync + 'static {
//!     /// A request to forget a range, with all memory that it needs.
//!     type Request: Send + Unpin;
//!
//!     fn request(&self) -> Result<Self::Request>;
//!     fn send(&self, request: Self::Request, range: &Range<usize>) -> Self::Request;
//!     fn wait(&self, request: Self::Request) -> Result<Self::Request>;
//!     fn reset(&self);
//! }
//!
//! /// Mirrors an address space in an MMU.
//! struct Mirror<M: Mmu> {
//!     mmu: M,
//!     owner: PgmapOwner,
//! }
//!
//! /// What the MMU has mappings for.
//! struct Mapped(Range<usize>);
//!
//! impl<M: Mmu> MirrorOps for Mirror<M> {
//!     type State = Mapped;
//!     type Resources = M::Request;
//!     type Pending = M::Request;
//!
//!     fn owner(&self) -> PgmapOwner {
//!         self.owner
//!     }
//!
//!     fn alloc_resources(&self) -> Result<M::Request> {
//!         self.mmu.request()
//!     }
//!
//!     fn affected_range(&self, mapped: &Mapped, range: &Range<usize>) -> Option<Range<usize>> {
//!         // All of it is one mapping of the device.
//!         let is_affected = mapped.0.start < range.end && range.start < mapped.0.end;
//!         is_affected.then(|| mapped.0.clone())
//!     }
//!
//!     fn invalidate_start(&self, request: M::Request, range: &Range<usize>) -> M::Request {
//!         self.mmu.send(request, range)
//!     }
//!
//!     fn invalidate_wait(&self, request: M::Request) -> Option<M::Request> {
//!         self.mmu.wait(request).ok()
//!     }
//!
//!     fn resources_lost(&self) {
//!         self.mmu.reset();
//!     }
//!
//!     fn invalidated(&self, mapped: &mut Mapped, _range: &Range<usize>) {
//!         mapped.0 = 0..0;
//!     }
//! }
//!
//! /// Begins to mirror an address space.
//! fn bind<M: Mmu>(
//!     mm: &MmWithUser,
//!     mmu: M,
//!     owner: PgmapOwner,
//! ) -> Result<Pin<KBox<MmuIntervalNotifier<Mirror<M>>>>> {
//!     let notifier = MmuIntervalNotifier::new(mm, Mirror { mmu, owner }, Mapped(0..0))?;
//!     KBox::pin_init(notifier, GFP_KERNEL)
//! }
//! ```
//!
//! [`Collected`]: migrate::Collected
//! [`Collected::fill`]: migrate::Collected::fill
//! [`CpuFault`]: memremap::CpuFault
//! [`CpuFault::collect`]: memremap::CpuFault::collect
//! [`DevPagemap`]: memremap::DevPagemap
//! [`DevPagemap::collect_to_device`]: memremap::DevPagemap::collect_to_device
//! [`DevPagemapOps`]: memremap::DevPagemapOps
//! [`DevPagemapOps::folio_free`]: memremap::DevPagemapOps::folio_free
//! [`DevPagemapOps::migrate_to_ram`]: memremap::DevPagemapOps::migrate_to_ram
//! [`DevPagemapRef::folio`]: memremap::DevPagemapRef::folio
//! [`HmmPfn::is_writable`]: hmm::HmmPfn::is_writable
//! [`HmmRange`]: hmm::HmmRange
//! [`HmmRange::fault`]: hmm::HmmRange::fault
//! [`HmmRange::snapshot`]: hmm::HmmRange::snapshot
//! [`MirrorOps`]: mmu_notifier::MirrorOps
//! [`MirrorOps::affected_range`]: mmu_notifier::MirrorOps::affected_range
//! [`MirrorOps::invalidate_start`]: mmu_notifier::MirrorOps::invalidate_start
//! [`MirrorOps::invalidate_wait`]: mmu_notifier::MirrorOps::invalidate_wait
//! [`MmuIntervalNotifier`]: mmu_notifier::MmuIntervalNotifier
//! [`Snapshot::commit`]: hmm::Snapshot::commit
//! [`StateGuard`]: mmu_notifier::StateGuard

pub(crate) mod exclusive;
mod exclusive_seq;
pub(crate) mod frames;
pub(crate) mod hmm;
mod locked;
pub(crate) mod memremap;
pub(crate) mod migrate;
pub(crate) mod mmu_notifier;
pub(crate) mod self_invalidate;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
pub(crate) mod turn;

pub(crate) use self::locked::{LockedMm, LockedVma};

use crate::sys;
use core::{ffi::c_void, ops::Range, ptr::NonNull};
use kernel::{
    current,
    mm::{Mm, MmWithUser, MmWithUserAsync},
    page::{PAGE_SHIFT, PAGE_SIZE},
    sync::aref::ARef,
    task::Task,
};

/// log2 of the number of pages of a huge page: one that an entry of a page middle directory maps.
///
/// C header: [`include/linux/huge_mm.h`](srctree/include/linux/huge_mm.h)
pub(crate) const HPAGE_PMD_ORDER: u32 = sys::HPAGE_PMD_ORDER;
/// The number of pages of such a huge page.
pub(crate) const HPAGE_PMD_NR: usize = sys::HPAGE_PMD_NR as usize;
/// The size of such a huge page.
pub(crate) const HPAGE_PMD_SIZE: usize = sys::HPAGE_PMD_SIZE as usize;

/// The contents of a page.
#[allow(dead_code)] // The sample alone needs it.
pub(crate) type Contents = [u8; PAGE_SIZE];

/// How many pages a range of addresses has.
///
/// # Examples
///
/// ```
/// use kernel::{
///     mm::{pages_in, HPAGE_PMD_NR, HPAGE_PMD_SIZE},
///     page::PAGE_SIZE,
/// };
///
/// assert_eq!(pages_in(&(0..PAGE_SIZE)), 1);
/// assert_eq!(pages_in(&(PAGE_SIZE..PAGE_SIZE)), 0);
/// assert_eq!(pages_in(&(0..HPAGE_PMD_SIZE)), HPAGE_PMD_NR);
/// ```
pub(crate) fn pages_in(range: &Range<usize>) -> usize {
    range.len() >> PAGE_SHIFT
}

/// A range in parts, none of which has pages of two huge pages.
///
/// # Examples
///
/// ```
/// use kernel::{
///     mm::{parts, HPAGE_PMD_SIZE},
///     page::PAGE_SIZE,
/// };
///
/// let range = HPAGE_PMD_SIZE - PAGE_SIZE..2 * HPAGE_PMD_SIZE + PAGE_SIZE;
/// let mut parts = parts(&range);
/// assert_eq!(parts.next(), Some(range.start..HPAGE_PMD_SIZE));
/// assert_eq!(parts.next(), Some(HPAGE_PMD_SIZE..2 * HPAGE_PMD_SIZE));
/// assert_eq!(parts.next(), Some(2 * HPAGE_PMD_SIZE..range.end));
/// assert_eq!(parts.next(), None);
/// ```
#[allow(dead_code)] // The sample alone needs it.
pub(crate) fn parts(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start: mut at, end } = *range;
    core::iter::from_fn(move || {
        let part = at..end.min((at | (HPAGE_PMD_SIZE - 1)).saturating_add(1));
        at = part.end;
        (!part.is_empty()).then_some(part)
    })
}

/// How many pages a folio of this order has; `usize::MAX` if no folio can be that large.
///
/// # Examples
///
/// ```
/// use kernel::mm::{pages_of, HPAGE_PMD_NR, HPAGE_PMD_ORDER};
///
/// assert_eq!(pages_of(0), 1);
/// assert_eq!(pages_of(HPAGE_PMD_ORDER), HPAGE_PMD_NR);
/// assert_eq!(pages_of(u32::MAX), usize::MAX);
/// ```
pub(crate) fn pages_of(order: u32) -> usize {
    1_usize.checked_shl(order).unwrap_or(usize::MAX)
}

/// The address of the page with this index from `start`; saturates at the last address.
///
/// # Examples
///
/// ```
/// use kernel::{mm::address_at, page::PAGE_SIZE};
///
/// assert_eq!(address_at(PAGE_SIZE, 2), 3 * PAGE_SIZE);
/// assert_eq!(address_at(PAGE_SIZE, usize::MAX), usize::MAX);
/// ```
pub(crate) fn address_at(start: usize, index: usize) -> usize {
    start.saturating_add(index.saturating_mul(PAGE_SIZE))
}

/// The addresses of the huge page around an address.
///
/// # Examples
///
/// ```
/// use kernel::mm::{hpage_range, HPAGE_PMD_SIZE};
///
/// assert_eq!(hpage_range(HPAGE_PMD_SIZE + 1), HPAGE_PMD_SIZE..2 * HPAGE_PMD_SIZE);
/// assert_eq!(hpage_range(usize::MAX).end, usize::MAX);
/// ```
pub(crate) fn hpage_range(address: usize) -> Range<usize> {
    let start = address & !(HPAGE_PMD_SIZE - 1);
    start..start.saturating_add(HPAGE_PMD_SIZE)
}

/// The addresses of the page around an address.
///
/// # Examples
///
/// ```
/// use kernel::{mm::page_range, page::PAGE_SIZE};
///
/// assert_eq!(page_range(PAGE_SIZE + 1), PAGE_SIZE..2 * PAGE_SIZE);
/// ```
pub(crate) fn page_range(address: usize) -> Range<usize> {
    let start = address & !(PAGE_SIZE - 1);
    start..start.saturating_add(PAGE_SIZE)
}

/// A driver that itself tells its mirror what a migration takes away from the process, so that the
/// notifier need not; see [`self_invalidate`].
pub(crate) trait SelfInvalidate {
    /// The calling thread is about to take pages of this range away from the process.
    fn collecting(&self, range: &Range<usize>);

    /// The calling thread has taken them away, as far as possible.
    fn collected(&self);

    /// Whether pages of this range may be given new memory. They may if the mirror has been told
    /// that they move, or was invalidated by the notifier when they were taken away.
    fn may_move(&self, range: &Range<usize>) -> bool;
}

/// A thread, for comparison only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread(*const Task);

// SAFETY: The pointer is only compared.
unsafe impl Send for Thread {}

impl Thread {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        let caller = current!();
        let task: &Task = caller;
        Self(task)
    }
}

/// Tells one device and its memory from another: a `pgmap_owner`, an address that is only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PgmapOwner(usize);

impl PgmapOwner {
    /// The owner that this address stands for.
    pub(crate) fn new(address: *const c_void) -> Self {
        Self(address as usize)
    }

    fn as_ptr(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// A reference to an address space that keeps the process's memory, unless no process has it any
/// more. If it turns out to be the last reference, another thread frees the memory: that may wait for
/// ever, as for asynchronous I/O on a file system whose server does not answer (`exit_aio`).
pub(crate) fn observed(mm: &Mm) -> Option<ARef<MmWithUserAsync>> {
    mm.mmget_not_zero().map(MmWithUser::into_mmput_async)
}

/// Whether any process still has the address space. References held by observers do not count.
pub(crate) fn has_process(mm: &MmWithUser) -> bool {
    // SAFETY: The address space is valid.
    unsafe { sys::virtio_hmm_has_process(mm.as_raw()) }
}

/// Calls `visit` with the address space of each process that has one. May miss processes that begin
/// or end meanwhile, and those listed after one that ends.
pub(crate) fn for_each_process(mut visit: impl FnMut(&MmWithUser)) {
    let mut number = 0_u32;
    let mut raw = core::ptr::null_mut();
    // SAFETY: `raw` is valid for writes.
    while unsafe { sys::virtio_hmm_process_mm(number, &mut raw) } {
        if let Some(raw) = NonNull::new(raw) {
            // SAFETY: The reference that the function has taken is ours.
            let mm: ARef<MmWithUserAsync> = unsafe { ARef::from_raw(raw.cast()) };
            visit(&mm);
        }
        number = number.saturating_add(1);
    }
}
