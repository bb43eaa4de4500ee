// SPDX-License-Identifier: GPL-2.0

//! KUnit tests. They need no device. One of them uses device memory, the contents of which are in
//! ordinary kernel memory.

use super::{
    address_at,
    frames::FreeFrames,
    hmm::{HmmPfns, HmmRange, HmmRequest},
    hpage_range,
    memremap::{
        CpuFault, DevPagemap, DevPagemapOps, MemoryId, MemoryType, UnusedFrames, VmFaultError,
    },
    migrate::{Compound, LockedFolio, MigratePfns},
    mmu_notifier::{MirrorOps, MmuIntervalNotifier},
    page_range, pages_in, pages_of, parts,
    turn::Turns,
    Contents, LockedMm, PgmapOwner, HPAGE_PMD_NR, HPAGE_PMD_ORDER, HPAGE_PMD_SIZE,
};
use crate::sys as bindings;
use core::ops::Range;
use kernel::{
    current,
    error::to_result,
    mm::MmWithUser,
    new_spinlock_irq,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        SpinLockIrq,
    },
    task::Kuid,
    time::Delta,
    uaccess::{UserPtr, UserSlice},
};

/// How long the kernel may wait for changes. Nothing else changes.
const TIMEOUT: Delta = Delta::from_millis(1000);

/// `PROT_READ | PROT_WRITE` of `include/uapi/asm-generic/mman-common.h`.
const READ_AND_WRITE: usize = 0x1 | 0x2;

/// `MAP_PRIVATE | MAP_ANONYMOUS` of the same header.
const PRIVATE_ANONYMOUS: usize = 0x02 | 0x20;

/// What the mirror in a test has mirrored.
type Mirrored = Option<Range<usize>>;

/// A mirror that is invalidated at once.
struct TestMirror(PgmapOwner);

impl MirrorOps for TestMirror {
    type State = Mirrored;
    type Resources = ();
    type Pending = ();

    fn owner(&self) -> PgmapOwner {
        self.0
    }

    fn alloc_resources(&self) -> Result {
        Ok(())
    }

    fn affected_range(&self, state: &Mirrored, range: &Range<usize>) -> Option<Range<usize>> {
        let mirrored = state.as_ref()?;
        let part = mirrored.start.max(range.start)..mirrored.end.min(range.end);
        (!part.is_empty()).then_some(part)
    }

    fn invalidate_start(&self, _resources: (), _range: &Range<usize>) {}

    fn invalidate_wait(&self, _pending: ()) -> Option<()> {
        Some(())
    }

    fn resources_lost(&self) {}

    fn invalidated(&self, state: &mut Mirrored, _range: &Range<usize>) {
        *state = None;
    }
}

/// Device memory with one frame in use.
struct TestMemory {
    id: MemoryId,
    /// The contents of that frame.
    contents: Pin<KBox<SpinLockIrq<KBox<Contents>>>>,
    freed: Atomic<usize>,
}

impl DevPagemapOps for TestMemory {
    fn id(&self) -> MemoryId {
        self.id
    }

    fn folio_free(&self, frames: UnusedFrames) {
        self.freed.fetch_add(pages_of(frames.order()), Relaxed);
    }

    fn migrate_to_ram(
        &self,
        pagemap: &DevPagemap<Self>,
        fault: CpuFault<'_>,
    ) -> Result<(), VmFaultError> {
        let no_memory = |_| VmFaultError::Oom;
        let pfns = MigratePfns::new(1).map_err(no_memory)?;
        let collected = fault
            .collect(pagemap, page_range(fault.address()), None, pfns)
            .map_err(|_| VmFaultError::Sigbus)?;
        let stats = collected.migrate(|collected, slot| {
            let mut folio = LockedFolio::system(slot.order, None).ok_or(ENOMEM)?;
            folio.write(0, &self.contents.lock())?;
            collected.fill(slot, folio).map(|()| true)
        });
        match stats.moved {
            1 => Ok(()),
            _ => Err(VmFaultError::Oom),
        }
    }
}

/// Gives the test an address space with `pages` new pages. Returns the address of the first one.
fn map(pages: usize) -> Result<usize> {
    // SAFETY: May be called by any KUnit test.
    to_result(unsafe { bindings::kunit_attach_mm() })?;
    // SAFETY: May be called by any thread.
    let test = unsafe { bindings::kunit_get_current_test() };
    // SAFETY: This is a KUnit test, which now has an address space. Its end unmaps the memory.
    let address = unsafe {
        bindings::kunit_vm_mmap(
            test,
            core::ptr::null_mut(),
            0,
            pages.saturating_mul(PAGE_SIZE),
            READ_AND_WRITE,
            PRIVATE_ANONYMOUS,
            0,
        )
    };
    match address {
        0 => Err(ENOMEM),
        address => Ok(address),
    }
}

/// Unmaps pages.
fn unmap(range: &Range<usize>) -> Result {
    // SAFETY: The test has an address space, and no reference into it.
    to_result(unsafe { bindings::vm_munmap(range.start, range.len()) })
}

/// Calls `carry_out` with a mirror of the test's address space.
fn mirrored<R>(
    owner: PgmapOwner,
    carry_out: impl FnOnce(&MmWithUser, &MmuIntervalNotifier<TestMirror>) -> Result<R>,
) -> Result<R> {
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let notifier = MmuIntervalNotifier::new(mm, TestMirror(owner), None)?;
    let notifier = KBox::pin_init(notifier, GFP_KERNEL)?;
    carry_out(mm, &notifier)
}

fn write(address: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(address), bytes.len())
        .writer()
        .write_slice(bytes)
}

fn read(address: usize, bytes: &mut [u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(address), bytes.len())
        .reader()
        .read_slice(bytes)
}

#[kunit_tests(rust_mm_hmm)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_of_pages_ends_at_the_last_address() {
        assert_eq!(pages_in(&(PAGE_SIZE..3 * PAGE_SIZE)), 2);
        assert_eq!(pages_of(0), 1);
        assert_eq!(pages_of(HPAGE_PMD_ORDER), HPAGE_PMD_NR);
        assert_eq!(pages_of(usize::BITS), usize::MAX);
        assert_eq!(address_at(PAGE_SIZE, 2), 3 * PAGE_SIZE);
        assert_eq!(address_at(PAGE_SIZE, usize::MAX), usize::MAX);
        assert_eq!(page_range(PAGE_SIZE + 1), PAGE_SIZE..2 * PAGE_SIZE);
        assert_eq!(
            hpage_range(HPAGE_PMD_SIZE + 1),
            HPAGE_PMD_SIZE..2 * HPAGE_PMD_SIZE
        );
        assert_eq!(hpage_range(usize::MAX).end, usize::MAX);
    }

    #[test]
    fn parts_of_a_range_end_at_huge_pages() {
        let range = HPAGE_PMD_SIZE - PAGE_SIZE..2 * HPAGE_PMD_SIZE + PAGE_SIZE;
        let mut parts = parts(&range);
        assert_eq!(parts.next(), Some(range.start..HPAGE_PMD_SIZE));
        assert_eq!(parts.next(), Some(HPAGE_PMD_SIZE..2 * HPAGE_PMD_SIZE));
        assert_eq!(parts.next(), Some(2 * HPAGE_PMD_SIZE..range.end));
        assert_eq!(parts.next(), None);
    }

    #[test]
    fn frames_are_allocated_once_until_they_are_freed() -> Result {
        let (id, mut frames) = FreeFrames::of_new_memory(2)?;
        let (other, _) = FreeFrames::of_new_memory(1)?;
        assert!(id != other);
        let large = frames.alloc(HPAGE_PMD_ORDER).ok_or(EINVAL)?;
        let small = frames.alloc(0).ok_or(EINVAL)?;
        assert_eq!((large.order(), small.order()), (HPAGE_PMD_ORDER, 0));
        assert!(large.first() / 512 != small.first() / 512);
        // The second large run has been split for the single frame.
        assert!(frames.alloc(HPAGE_PMD_ORDER).is_none());
        for _ in 1..HPAGE_PMD_NR {
            assert!(frames
                .alloc(0)
                .is_some_and(|frame| frame.first() != small.first()));
        }
        assert!(frames.alloc(0).is_none());
        frames.free(large);
        assert!(frames.alloc(HPAGE_PMD_ORDER).is_some());
        Ok(())
    }

    #[test]
    fn a_turn_is_late_only_while_it_is_wanted() -> Result {
        let turns = Turns::new(Kuid::current_euid())?;
        assert!(!turns.is_starved(Delta::from_nanos(-1)));
        let look = turns.look();
        assert!(look.is_some());
        assert!(turns.is_starved(Delta::from_nanos(-1)));
        assert!(!turns.is_starved(Delta::from_nanos(i64::MAX)));
        drop(look);
        assert!(!turns.is_starved(Delta::from_nanos(-1)));
        let turns = [const { () }; 8].map(|()| turns.want());
        assert!(turns.iter().all(Option::is_some));
        Ok(())
    }

    #[test]
    fn a_mirror_is_invalidated_where_memory_is_unmapped() -> Result {
        let start = map(4)?;
        let range = start..address_at(start, 4);
        let owner = PgmapOwner::new(core::ptr::null());
        mirrored(owner, |mm, notifier| {
            let mut pages = HmmPfns::new(4)?;
            let hmm = HmmRange::new(notifier, range.clone(), owner);
            hmm.fault(mm, TIMEOUT, &mut pages, HmmRequest::Write)?;
            let snapshot = hmm.snapshot(mm, TIMEOUT, &mut pages)?;
            let mut committed = snapshot.commit().map_err(|_| EBUSY)?;
            for index in 0..4 {
                let page = committed.page(index).ok_or(EINVAL)?;
                assert!(page.pfn().is_some() && page.is_writable());
            }
            assert!(committed.page(4).is_none());
            *committed.state() = Some(range.clone());
            drop(committed);

            unmap(&(range.start..address_at(start, 1)))?;
            assert!(notifier.lock().is_none());
            Ok(())
        })
    }

    #[test]
    fn what_was_found_before_a_change_cannot_be_used() -> Result {
        let start = map(2)?;
        let range = start..address_at(start, 2);
        write(start, &[1])?;
        let owner = PgmapOwner::new(core::ptr::null());
        mirrored(owner, |mm, notifier| {
            let mut pages = HmmPfns::new(2)?;
            let hmm = HmmRange::new(notifier, range.clone(), owner);
            let snapshot = hmm.snapshot(mm, TIMEOUT, &mut pages)?;
            unmap(&(address_at(start, 1)..range.end))?;
            assert!(snapshot.commit().is_err());

            let snapshot = hmm.snapshot(mm, TIMEOUT, &mut pages)?;
            let committed = snapshot.commit().map_err(|_| EBUSY)?;
            assert!(committed.page(0).is_some_and(|page| page.pfn().is_some()));
            assert!(committed.page(1).is_some_and(|page| page.pfn().is_none()));
            Ok(())
        })
    }

    #[test]
    fn a_page_in_exclusive_use_comes_back_when_a_cpu_wants_it() -> Result {
        let start = map(1)?;
        write(start, &[7])?;
        let page = page_range(start);
        let owner = PgmapOwner::new(core::ptr::from_ref(&start).cast());
        mirrored(owner, |mm, notifier| {
            let mut contents = KBox::<Contents>::zeroed(GFP_KERNEL)?;
            notifier.with_exclusive(mm, start, |committed| {
                *committed.state() = Some(page.clone());
                committed.read(&mut contents)
            })??;
            assert_eq!(contents[0], 7);
            assert!(notifier.lock().is_some());

            let mut byte = [0];
            read(start, &mut byte)?;
            assert_eq!(byte[0], 7);
            assert!(notifier.lock().is_none());
            Ok(())
        })
    }

    #[test]
    fn a_page_moves_to_device_memory_and_back() -> Result {
        let start = map(1)?;
        write(start, &[1, 2, 3])?;
        let contents = new_spinlock_irq!(KBox::<Contents>::zeroed(GFP_KERNEL)?, "TestMemory");
        let (id, mut frames) = FreeFrames::of_new_memory(1)?;
        let memory = TestMemory {
            id,
            contents: KBox::pin_init(contents, GFP_KERNEL)?,
            freed: Atomic::new(0),
        };
        let pagemap = DevPagemap::new(
            HPAGE_PMD_NR as u64,
            MemoryType::DevicePrivate,
            c"rust_mm_hmm",
            memory,
        )?;
        let pagemap = KBox::pin_init(pagemap, GFP_KERNEL)?;
        let memory = pagemap.memory();
        let owner = pagemap.owner();
        let is_there =
            |mm: &MmWithUser, notifier: &MmuIntervalNotifier<TestMirror>| -> Result<bool> {
                let mut pages = HmmPfns::new(1)?;
                let hmm = HmmRange::new(notifier, page_range(start), owner);
                let snapshot = hmm.snapshot(mm, TIMEOUT, &mut pages)?;
                let committed = snapshot.commit().map_err(|_| EBUSY)?;
                let pfn = committed.page(0).and_then(|page| page.pfn());
                Ok(pfn.is_some_and(|pfn| pagemap.frame(pfn).is_some()))
            };
        mirrored(owner, |mm, notifier| {
            assert!(!is_there(mm, notifier)?);
            let locked = LockedMm::new(mm);
            let vma = locked.lookup(start).ok_or(EFAULT)?;
            assert!(vma.is_migratable() && vma.is_readable());
            let collected = pagemap.collect_to_device(
                vma,
                page_range(start),
                Compound::Split,
                MigratePfns::new(1)?,
            )?;
            let stats = collected.migrate(|collected, slot| {
                let mut room = KBox::<Contents>::zeroed(GFP_KERNEL)?;
                collected.read(slot, 0, &mut room)?;
                **memory.contents.lock() = *room;
                let run = frames.alloc(slot.order).ok_or(ENOMEM)?;
                let live = pagemap.try_get().ok_or(ENODEV)?;
                let folio = live.folio(run).map_err(|_| EINVAL)?;
                collected.fill(slot, folio).map(|()| true)
            });
            drop(locked);
            assert_eq!((stats.moved, stats.no_memory), (1, 0));
            assert!(is_there(mm, notifier)?);
            assert_eq!(memory.freed.load(Relaxed), 0);

            let mut bytes = [0; 3];
            read(start, &mut bytes)?;
            assert_eq!(bytes, [1, 2, 3]);
            assert!(!is_there(mm, notifier)?);
            assert_eq!(memory.freed.load(Relaxed), 1);
            Ok(())
        })
    }
}
