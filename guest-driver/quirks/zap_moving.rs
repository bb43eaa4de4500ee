// SPDX-License-Identifier: GPL-2.0

//! Huge pages that a process unmaps while they are being migrated.
//!
//! Finding: "A huge device page that is unmapped while it migrates loses a reference too many".
//! While a huge page moves, zaps are blocked in a part of the address space: a thread that would
//! unmap it waits. When that is fixed, delete this file with everything that holds a
//! [`BlockedZaps`], `MirrorOps::blocked_by` in `mm/mmu_notifier.rs`, `FinalizeHook` in
//! `mm/migrate.rs`, and `virtio_hmm_has_large_entry`, `virtio_hmm_take_extra_refs` and
//! `virtio_hmm_settle_extra_refs` in `quirks.c`.

use crate::{
    mm::{
        memremap::{CpuFault, DevPagemap, DevPagemapOps},
        migrate::{Collected, MigratePfns},
        mmu_notifier::{MirrorOps, MmuIntervalNotifier, MmuNotifierEvent, MmuNotifierRange},
        LockedVma, SelfInvalidate, Thread,
    },
    sys as bindings,
    wait::Event,
};
use core::{ops::Range, ptr::NonNull};
use kernel::{prelude::*, sync::Arc};

/// In how many parts of an address space zaps can be blocked at the same time.
const BLOCKS: usize = 8;

/// A thread blocks zaps in a part of an address space.
struct Block {
    /// The thread that does so, which must not wait for itself.
    thread: Thread,
    range: Range<usize>,
    /// Set when the thread is done.
    over: Arc<Event>,
}

impl Block {
    /// The part of a range in which zaps are blocked.
    fn part(&self, range: &Range<usize>) -> Range<usize> {
        self.range.start.max(range.start)..self.range.end.min(range.end)
    }

    /// Whether another thread's change would zap something in that part.
    fn is_affected(&self, change: &MmuNotifierRange<'_>) -> bool {
        let part = self.part(change.addresses());
        self.thread != Thread::current() && !part.is_empty() && takes_away(change, &part)
    }
}

/// The parts of an address space in which zaps are blocked. They do not overlap.
pub(crate) struct BlockedZaps {
    blocks: [Option<Block>; BLOCKS],
}

impl BlockedZaps {
    /// No zaps are blocked.
    pub(crate) const fn new() -> Self {
        Self {
            blocks: [const { None }; BLOCKS],
        }
    }

    /// The event that a change must wait for, because another thread blocks zaps that the change
    /// would make. No other thread begins to block zaps while the change is in progress.
    pub(crate) fn blocker(&self, change: &MmuNotifierRange<'_>) -> Option<Arc<Event>> {
        let mut blocks = self.blocks.iter().flatten();
        let block = blocks.find(|block| block.is_affected(change));
        block.map(|block| block.over.clone())
    }
}

/// Mirrored state that records blocked zaps.
pub(crate) trait HasBlockedZaps {
    /// The parts in which they are blocked.
    fn blocked_zaps(&mut self) -> &mut BlockedZaps;
}

/// Whether a change may take away from the process, in a part of its range, huge pages that are in
/// device memory or being migrated.
///
/// `MMU_NOTIFY_CLEAR` also comes from reclaim, from NUMA balancing, from splits, from another
/// process that shares the page, and from this driver. Those callers hold locks that the thread
/// which blocks zaps needs, so they must not wait for it. They need not wait either: they
/// only clear present pages, and a huge page in device memory is only split or moved by a thread
/// that blocks its zaps. One caller is left, which reaps the memory of a process that is being killed
/// (`zap_vma_for_reaping`): it takes away whatever is there, and tries again if it may not.
fn takes_away(change: &MmuNotifierRange<'_>, part: &Range<usize>) -> bool {
    let may = match change.event() {
        MmuNotifierEvent::Unmap => true,
        // `MADV_DONTNEED` and the like, and a reaper.
        MmuNotifierEvent::Clear => change.is_by_process() || !change.is_blockable(),
        MmuNotifierEvent::OwnExclusive
        | MmuNotifierEvent::OwnMigrate
        | MmuNotifierEvent::Release
        | MmuNotifierEvent::SoftDirty
        | MmuNotifierEvent::Other => false,
    };
    // SAFETY: By the invariants of `MmuNotifierRange` the address space exists, and the changing
    // thread holds its mmap lock or the lock of a reverse map for the range, of which this is a
    // part. The kernel frees page tables of VMAs only after it has removed them from their reverse
    // maps, which takes those locks, and under the mmap lock.
    may && unsafe { bindings::virtio_hmm_has_large_entry(change.mm(), part.start, part.end) }
}

/// While this exists, a change waits before it takes huge pages under migration away from this
/// part of the address space; see [`block_zaps`].
pub(crate) struct ZapGuard<'a, T: MirrorOps>
where
    T::State: HasBlockedZaps,
{
    notifier: &'a MmuIntervalNotifier<T>,
    index: usize,
}

impl<T: MirrorOps> ZapGuard<'_, T>
where
    T::State: HasBlockedZaps,
{
    /// Whether zaps are blocked in all of a range.
    fn covers(&self, range: &Range<usize>) -> bool {
        let mut state = self.notifier.lock();
        let block = state.blocked_zaps().blocks.get(self.index);
        block
            .and_then(Option::as_ref)
            .is_some_and(|block| block.range.start <= range.start && range.end <= block.range.end)
    }
}

/// Takes huge pages in device memory away from the process at `range`, without splitting them.
///
/// # Errors
///
/// `EINVAL` if zaps of the range are not blocked; otherwise as [`DevPagemap::collect_to_system`].
pub(crate) fn collect_whole<'a, D: DevPagemapOps, T: MirrorOps>(
    pagemap: &DevPagemap<D>,
    vma: LockedVma<'a>,
    range: Range<usize>,
    guard: &ZapGuard<'_, T>,
    pfns: MigratePfns,
) -> Result<Collected<'a>>
where
    T::State: HasBlockedZaps,
{
    if !guard.notifier.is_for(vma.address_space()) || !guard.covers(&range) {
        return Err(EINVAL);
    }
    // SAFETY: Zaps of the range are blocked until the migration is over, so the process does not
    // lose a huge page. No other process has it: the caller has checked that with the mmap lock
    // held.
    unsafe { pagemap.collect_whole_to_system(vma, range, pfns) }
}

/// Takes huge pages in device memory away from the process for a CPU fault, without splitting
/// them.
///
/// # Errors
///
/// As [`CpuFault::collect`].
pub(crate) fn collect_whole_for_fault<'a, D: DevPagemapOps>(
    fault: &CpuFault<'a>,
    pagemap: &DevPagemap<D>,
    range: Range<usize>,
    invalidation: Option<&'a dyn SelfInvalidate>,
    pfns: MigratePfns,
) -> Result<Collected<'a>> {
    // SAFETY: `finalize_with_extra_refs` compensates for a process that loses the page meanwhile.
    unsafe { fault.collect_whole(pagemap, range, finalize_with_extra_refs, invalidation, pfns) }
}

impl<T: MirrorOps> Drop for ZapGuard<'_, T>
where
    T::State: HasBlockedZaps,
{
    fn drop(&mut self) {
        let mut state = self.notifier.lock();
        let block = state
            .blocked_zaps()
            .blocks
            .get_mut(self.index)
            .and_then(Option::take);
        drop(state);
        if let Some(block) = block {
            block.over.set();
        }
    }
}

/// Makes changes wait that would take huge pages in device memory, or on their way to or from it,
/// away from a part of the address space. Changes by the caller itself do not wait. Returns when
/// all changes in progress are over. One caller at a time for each part.
///
/// Needed while huge pages in device memory are being migrated. When the kernel (7.3) unmaps
/// memory and finds such a migration entry, it mistakes it for the entry of a present page and
/// drops a reference that the entry does not have (`zap_huge_pmd_folio`): the folio would be freed
/// during the migration. Also needed while huge pages move to the device: a change that began
/// before such a page was there would not wait for a thread that then moves the page again.
///
/// The waiting thread may hold locks that the caller will take, so the wait has a timeout.
///
/// # Errors
///
/// `ENOMEM` if there is no memory for that.
pub(crate) fn block_zaps<T: MirrorOps>(
    notifier: &MmuIntervalNotifier<T>,
    range: Range<usize>,
) -> Result<ZapGuard<'_, T>>
where
    T::State: HasBlockedZaps,
{
    let over = Arc::pin_init(Event::new(), GFP_KERNEL)?;
    loop {
        let seq = notifier.read_begin();
        let mut guard = notifier.lock();
        let blocks = &guard.blocked_zaps().blocks;
        let free = blocks.iter().position(Option::is_none);
        let mut others = blocks.iter().flatten();
        let other = match free {
            Some(_) => others.find(|block| !block.part(&range).is_empty()),
            None => others.next(),
        };
        if let Some(other) = other.map(|other| other.over.clone()) {
            drop(guard);
            other.wait();
        } else if let (Some(index), false) = (free, notifier.read_retry(&guard, seq)) {
            if let Some(block) = guard.blocked_zaps().blocks.get_mut(index) {
                *block = Some(Block {
                    thread: Thread::current(),
                    range,
                    over,
                });
            }
            return Ok(ZapGuard { notifier, index });
        }
    }
}

/// Ends a migration of a huge page for a CPU fault while holding extra references; see
/// [`ExtraRefs`].
///
/// # Safety
///
/// As for [`FinalizeHook`](crate::mm::migrate::FinalizeHook).
unsafe fn finalize_with_extra_refs(page: NonNull<bindings::page>, finish: &mut dyn FnMut()) {
    // SAFETY: The caller promises that the fault handler holds the page, with its folio locked,
    // until long after this, and that the page is under migration.
    let extra_refs = unsafe { ExtraRefs::new(page) };
    finish();
    drop(extra_refs);
}

/// Compensates for references to a huge page that the kernel (7.3) drops by mistake: if another
/// process unmaps the page while it is being migrated, the kernel mistakes the migration entry for
/// the entry of a present page; see [`block_zaps`].
///
/// References lost before this exists are restored at once, those lost later when it is dropped.
/// Until then the page has references to spare. A page that has moved has no entries, so the
/// deficit in its counts is what was lost. A page that stays gets entries back meanwhile, and these
/// hide as many losses in these microseconds.
///
/// # Invariants
///
/// The fault handler holds `page`, with its folio locked; the spare references are ours.
struct ExtraRefs {
    page: NonNull<bindings::page>,
}

impl ExtraRefs {
    /// # Safety
    ///
    /// The handler of a fault must hold the page, with its folio locked, until this is dropped. The
    /// page must be under migration.
    unsafe fn new(page: NonNull<bindings::page>) -> Self {
        // SAFETY: The caller promises that the page is held and locked.
        unsafe { bindings::virtio_hmm_take_extra_refs(page.as_ptr()) };
        // INVARIANT: The caller promises the former, and the call above has taken the references.
        Self { page }
    }
}

impl Drop for ExtraRefs {
    fn drop(&mut self) {
        // SAFETY: By the invariants the page is held and locked, and the references are ours.
        unsafe { bindings::virtio_hmm_settle_extra_refs(self.page.as_ptr()) };
    }
}
