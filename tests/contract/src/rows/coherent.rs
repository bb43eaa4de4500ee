//! Coherent device memory (`MEMORY_DEVICE_COHERENT`): CPUs reach it, so its pages move only on
//! request.
//!
//! The rows need such a device and another one with private memory.

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Place, Reason};

use crate::area::{Area, PAGE, ZERO};
use crate::bound::{add, ended, Bound};
use crate::child::Child;
use crate::gup::{For, Pin};
use crate::kernel;
use crate::machine;
use crate::row::{Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Coherent memory",
    rows: &[
        Row {
            name: "coherent-there-and-back",
            duty: "pages move into coherent memory, are present in the page table there, are \
                   counted as before, stay when a CPU touches them and come back when asked",
            source: "include/linux/memremap.h: MEMORY_DEVICE_COHERENT; include/linux/migrate.h: \
                     MIGRATE_VMA_SELECT_DEVICE_COHERENT",
            run: coherent_there_and_back,
        },
        Row {
            name: "coherent-huge-there-and-back",
            duty: "a huge page gets there and back too, in pieces if need be, and holds what it \
                   held",
            source: "mm/migrate_device.c: migrate_vma_collect_pmd (splits)",
            run: coherent_huge_there_and_back,
        },
        Row {
            name: "coherent-holes-are-cleared",
            duty: "where nothing was, pages of zeros are made in coherent memory, whatever its \
                   frames held before",
            source: "mm/migrate_device.c: migrate_vma_insert_page (is_device_coherent_page)",
            run: coherent_holes_are_cleared,
        },
        Row {
            name: "coherent-is-used-in-place",
            duty: "CPUs and device add to one word in coherent memory at a time: no addition is \
                   lost, and the page stays where it is",
            source: "include/linux/memremap.h: MEMORY_DEVICE_COHERENT (coherent with CPU accesses)",
            run: coherent_is_used_in_place,
        },
        Row {
            name: "coherent-belongs-to-its-owner",
            duty: "another device uses pages in coherent memory where they are and moves none of \
                   them, and the owner moves none that is in the other one's",
            source: "include/linux/migrate.h: pgmap_owner; mm/migrate_device.c: \
                     migrate_vma_collect_pmd",
            run: coherent_belongs_to_its_owner,
        },
        Row {
            name: "coherent-and-the-kernels-access",
            duty:
                "system calls, other processes and pipes use pages in coherent memory where they \
                   are",
            source: "mm/gup.c: follow_page_pte (pte_present)",
            run: coherent_and_the_kernels_access,
        },
        Row {
            name: "coherent-pinned-for-long-comes-back",
            duty: "pages in coherent memory that are pinned for long are moved back before, and \
                   stay until they are let go",
            source: "mm/gup.c: migrate_longterm_unpinnable_folios (migrate_device_coherent_folio)",
            run: coherent_pinned_for_long_comes_back,
        },
        Row {
            name: "coherent-follows-mprotect",
            duty: "coherent memory that may only be read is written by neither side, and moves \
                   there and back so",
            source: "mm/mprotect.c: change_pte_range; mm/migrate_device.c: remove_migration_pte",
            run: coherent_follows_mprotect,
        },
        Row {
            name: "coherent-fork-cpu",
            duty: "pages in coherent memory that are shared since a fork: the CPU of either side \
                   writes, then its device, and neither sees the other's",
            source: "mm/memory.c: copy_present_ptes, do_wp_page (wp_page_copy)",
            run: || fork(true),
        },
        Row {
            name: "coherent-fork-device",
            duty: "the same where the device of either side writes first",
            source: "mm/memory.c: do_wp_page; include/linux/hmm.h: HMM_PFN_WRITE",
            run: || fork(false),
        },
        Row {
            name: "coherent-unmapped-is-free",
            duty: "munmap and MADV_DONTNEED free frames of coherent memory at once; what comes to \
                   the same addresses is zero for both sides",
            source: "mm/memory.c: zap_present_ptes; mm/memremap.c: free_zone_device_folio",
            run: coherent_unmapped_is_free,
        },
        Row {
            name: "coherent-exit",
            duty: "a process that ends, by itself or killed in the middle of jobs and moves, \
                   leaves no frame of coherent memory in use",
            source: "mm/mmap.c: exit_mmap; mm/memremap.c: free_zone_device_folio",
            run: coherent_exit,
        },
        Row {
            name: "coherent-outlives-its-file",
            duty: "pages in coherent memory come back, intact, when the device's last file is \
                   closed",
            source: "mm/migrate_device.c: migrate_device_range",
            run: coherent_outlives_its_file,
        },
    ],
};

const PAGES: usize = 32;

fn bound() -> Result<Bound> {
    Bound::number(machine::coherent()?)
}

fn present(area: &Area) -> Result<usize> {
    let entries = kernel::entries(area)?;
    Ok(entries.iter().filter(|entry| entry.is_present()).count())
}

fn coherent_there_and_back() -> Result<()> {
    let bound = bound()?;
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    bound.expect(&area, 0..4, 1)?;
    let system: Vec<u64> = frames(&area)?;
    // The first read allocates memory itself, which must not count as a difference.
    kernel::status("RssAnon")?;
    let before = kernel::status("RssAnon")?;
    bound.move_to_device(&area, area.all())?;
    let touched = bound.counters()?.driver.cpu_fault_pages;
    ensure!(present(&area)? == PAGES, "they are present");
    let there = frames(&area)?;
    ensure!(
        !there.iter().any(|frame| system.contains(frame)),
        "they are in other frames"
    );
    ensure!(
        bound.counters()?.driver.used_frames == PAGES as u64,
        "of the device"
    );
    // Not exactly: faults on the program's own code map sixteen pages at a time.
    let after = kernel::status("RssAnon")?;
    ensure!(
        before.abs_diff(after) < (PAGES * PAGE / 2) as u64,
        "anonymous rss was {before} and is {after}"
    );
    area.expect(area.all(), 1)?;
    area.write(0..8, 2);
    bound.expect(&area, 0..8, 2)?;
    bound.write(&area, 8..16, 3)?;
    area.expect(8..16, 3)?;
    bound.expect_place(&area, area.all(), Place::Device)?;
    ensure!(frames(&area)? == there, "they have stayed");
    ensure!(
        bound.counters()?.driver.cpu_fault_pages == touched,
        "no touch moved any"
    );
    bound.move_to_system(&area, area.all())?;
    ensure!(bound.counters()?.driver.used_frames == 0, "all are back");
    area.expect(0..8, 2)?;
    area.expect(8..16, 3)?;
    bound.expect(&area, 16..PAGES, 1)
}

fn frames(area: &Area) -> Result<Vec<u64>> {
    let entries = kernel::entries(area)?;
    Ok(entries.iter().map(|entry| entry.frame()).collect())
}

fn coherent_huge_there_and_back() -> Result<()> {
    let bound = bound()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    for tag in 2..4 {
        bound.move_to_device(&area, area.all())?;
        area.expect(area.all(), tag - 1)?;
        bound.write(&area, area.all(), tag)?;
        bound.expect_place(&area, area.all(), Place::Device)?;
        bound.move_to_system(&area, area.all())?;
        area.expect(area.all(), tag)?;
    }
    Ok(())
}

fn coherent_holes_are_cleared() -> Result<()> {
    let bound = bound()?;
    for area in [Area::small(PAGES)?, Area::large(1)?] {
        // Fills the frames with other contents before.
        area.write(area.all(), 9);
        bound.move_to_device(&area, area.all())?;
        area.advise(area.all(), libc::MADV_DONTNEED)?;
        // This read maps one of the pages to the shared zero page.
        area.expect(3..4, ZERO)?;
        bound.populate(&area, area.all())?;
        area.expect(area.all(), ZERO)?;
        bound.expect(&area, area.all(), ZERO)?;
        area.write(0..4, 1);
        bound.write(&area, 4..8, 1)?;
        area.expect(0..8, 1)?;
        area.expect(8..area.pages(), ZERO)?;
    }
    Ok(())
}

fn coherent_is_used_in_place() -> Result<()> {
    const ADDITIONS: u64 = 2000;
    let bound = bound()?;
    let area = Area::small(1)?;
    area.write(0..1, ZERO);
    bound.move_to_device(&area, 0..1)?;
    let before = frames(&area)?;
    let counter = area.counter(0, 5);
    let jobs = [
        bound.start(add(&area, 0, 5, 1, ADDITIONS))?,
        bound.start(add(&area, 0, 5, 1, ADDITIONS))?,
    ];
    for _ in 0..ADDITIONS {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    for job in jobs {
        if let Err(failure) = ended(job)? {
            bail!("{failure}");
        }
    }
    let found = counter.load(Ordering::Relaxed);
    ensure!(found == 3 * ADDITIONS, "{found} of {}", 3 * ADDITIONS);
    ensure!(frames(&area)? == before, "the page has stayed");
    bound.expect_place(&area, 0..1, Place::Device)
}

fn coherent_belongs_to_its_owner() -> Result<()> {
    let (bound, private) = (bound()?, Bound::new()?);
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    for destination in [Destination::Device, Destination::System] {
        let moved = private.migrate(&area, area.all(), destination)?;
        ensure!(moved.moved == 0, "{destination:?}: {moved:?}");
    }
    private.expect(&area, area.all(), 1)?;
    private.write(&area, 0..8, 2)?;
    bound.expect(&area, 0..8, 2)?;
    area.expect(0..8, 2)?;
    bound.expect_place(&area, area.all(), Place::Device)?;
    area.protect(0..4, sys::READ)?;
    private.refuse_write(&area, 1, Reason::Denied)?;
    area.protect(0..4, sys::READ_WRITE)?;
    // And the other way round.
    bound.move_to_system(&area, area.all())?;
    private.move_to_device(&area, area.all())?;
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    ensure!(moved.moved == 0, "{moved:?}");
    private.expect_place(&area, area.all(), Place::Device)?;
    bound.expect(&area, 0..8, 2)?;
    area.expect(8..PAGES, 1)
}

fn coherent_and_the_kernels_access() -> Result<()> {
    let bound = bound()?;
    let area = Area::small(PAGES)?;
    let me = i32::try_from(std::process::id()).context("a process id")?;
    // Forked before the pages exist, so that child and parent share none.
    let child = Child::fork(|turns| {
        turns.wait()?;
        let mut bytes = vec![0; PAGE];
        let count = sys::read_process(me, area.address(2), &mut bytes)?;
        ensure!(
            count == PAGE && bytes[..8] == area.word(2, 1).to_ne_bytes(),
            "a child reads its parent's page"
        );
        let count = sys::write_process(me, area.address(3), &bytes)?;
        ensure!(count == PAGE, "and writes another");
        Ok(())
    })?;
    area.write(area.all(), 9);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, area.all(), 1)?;
    let before = frames(&area)?;
    let (read, write) = sys::pipe()?;
    let count = sys::write_from(write.as_fd(), area.address(0), PAGE).context("write(2)")?;
    ensure!(count == PAGE, "a page is written");
    // SAFETY: the page lies in the area.
    let count = unsafe { sys::read_into(read.as_fd(), area.address(1), PAGE) };
    ensure!(count.context("read(2)")? == PAGE, "a page is read");
    ensure!(area.read_word(1, 9) == area.word(0, 1), "the right one");
    child.pass_and_end()?;
    ensure!(area.read_word(3, 9) == area.word(2, 1), "as is seen");
    let count = sys::splice_pages(write.as_fd(), area.address(4), PAGE).context("vmsplice")?;
    ensure!(count == PAGE, "a page is spliced");
    bound.write(&area, 4..5, 2)?;
    // SAFETY: the page lies in the area.
    let count = unsafe { sys::read_into(read.as_fd(), area.address(5), PAGE) };
    ensure!(count.context("read(2)")? == PAGE, "and read");
    ensure!(area.read_word(5, 9) == area.word(4, 2), "it was that page");
    ensure!(frames(&area)? == before, "all have stayed");
    bound.expect_place(&area, area.all(), Place::Device)?;
    bound.expect(&area, 6..PAGES, 1)
}

fn coherent_pinned_for_long_comes_back() -> Result<()> {
    let bound = bound()?;
    for (area, purpose) in [
        (Area::small(PAGES)?, For::Writing),
        (Area::small(PAGES)?, For::Reading),
        (Area::small(PAGES)?, For::FastWriting),
        (Area::large(1)?, For::Writing),
    ] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let pin = Pin::new(&area, 0..16, purpose)?;
        for _ in 0..2 {
            bound.expect_place(&area, 0..16, Place::System)?;
            let moved = bound.migrate(&area, 0..16, Destination::Device)?;
            ensure!(moved.moved == 0, "what is pinned has moved: {moved:?}");
        }
        bound.expect_place(&area, 16..area.pages(), Place::Device)?;
        bound.write(&area, 0..8, 2)?;
        area.write(8..16, 2);
        let contents = pin.contents()?;
        for page in 0..16 {
            let found = contents.read_word(page, 3);
            ensure!(found == area.word(page, 2), "page {page} holds {found:#x}");
        }
        drop(pin);
        bound.move_to_device(&area, area.all())?;
        area.expect(0..16, 2)?;
        bound.expect(&area, 16..area.pages(), 1)?;
    }
    Ok(())
}

fn coherent_follows_mprotect() -> Result<()> {
    let bound = bound()?;
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, 0..8, 1)?;
    area.protect(area.all(), sys::READ)?;
    bound.refuse_write(&area, 3, Reason::Denied)?;
    bound.expect(&area, area.all(), 1)?;
    bound.move_to_system(&area, 0..16)?;
    bound.move_to_device(&area, 0..16)?;
    bound.refuse_write(&area, 3, Reason::Denied)?;
    let end = Child::fork(|_| {
        area.write_word(3, 0, 1);
        Ok(())
    })?
    .status()?;
    ensure!(end == sys::End::Signalled(libc::SIGSEGV), "{end:?}");
    area.protect(area.all(), sys::NO_ACCESS)?;
    bound.refuse_read(&area, 3, Reason::Denied)?;
    area.protect(area.all(), sys::READ_WRITE)?;
    bound.write(&area, 0..4, 2)?;
    area.expect(0..4, 2)?;
    area.expect(4..PAGES, 1)
}

/// Both sides of a fork write pages that were in coherent memory at the fork.
fn fork(cpu_first: bool) -> Result<()> {
    let parents = bound()?;
    let write = |bound: &Bound, area: &Area, tag| -> Result<()> {
        if cpu_first {
            area.write(0..4, tag);
            bound.write(area, 4..8, tag)
        } else {
            bound.write(area, 0..4, tag)?;
            area.write(4..8, tag);
            Ok(())
        }
    };
    for parent_first in [true, false] {
        let area = Area::small(PAGES)?;
        area.write(area.all(), 1);
        parents.move_to_device(&area, area.all())?;
        let mut child = Child::fork(|turns| {
            let bound = bound()?;
            turns.wait()?;
            bound.expect(&area, 0..8, 1)?;
            write(&bound, &area, 2)?;
            area.expect(0..8, 2)?;
            turns.pass_and_wait()?;
            bound.expect(&area, 0..8, 2)?;
            area.expect(0..8, 2)?;
            area.expect(8..PAGES, 1)
        })?;
        if parent_first {
            write(&parents, &area, 3)?;
            child.pass_and_wait()?;
        } else {
            child.pass_and_wait()?;
            parents.expect(&area, 0..8, 1)?;
            write(&parents, &area, 3)?;
        }
        area.expect(0..8, 3)?;
        parents.expect(&area, 0..8, 3)?;
        child.pass_and_end()?;
        area.expect(0..8, 3)?;
        parents.expect(&area, 8..PAGES, 1)?;
        parents.move_to_device(&area, area.all())?;
        parents.move_to_system(&area, area.all())?;
        area.expect(0..8, 3)?;
        area.expect(8..PAGES, 1)?;
    }
    Ok(())
}

fn coherent_unmapped_is_free() -> Result<()> {
    let bound = bound()?;
    let used = || -> Result<u64> { Ok(bound.counters()?.driver.used_frames) };
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, area.all(), 2)?;
    area.unmap(0..8)?;
    ensure!(used()? == PAGES as u64 - 8, "{} frames are in use", used()?);
    bound.refuse_read(&area, 3, Reason::Unmapped)?;
    area.renew(0..8)?;
    area.advise(8..16, libc::MADV_DONTNEED)?;
    ensure!(used()? == PAGES as u64 - 16, "{} frames", used()?);
    bound.expect(&area, 0..16, ZERO)?;
    area.expect(0..16, ZERO)?;
    bound.expect_place(&area, 16..PAGES, Place::Device)?;
    let place = Area::small(8)?;
    let moved = area.remap(16..24, &place, 0)?;
    bound.expect(&moved, 0..8, 2)?;
    moved.expect(0..8, 2)?;
    bound.refuse_read(&area, 17, Reason::Unmapped)?;
    bound.expect_place(&moved, 0..8, Place::Device)
}

fn coherent_exit() -> Result<()> {
    let leaves = Child::fork(|_| {
        let bound = bound()?;
        let (small, large) = (Area::small(PAGES)?, Area::large(1)?);
        for area in [&small, &large] {
            area.write(area.all(), 1);
            bound.move_to_device(area, area.all())?;
        }
        Ok(())
    })?;
    leaves.end()?;
    for round in 0..6_u64 {
        let mut child = Child::fork(|turns| {
            let bound = bound()?;
            let area = Area::small(PAGES)?;
            area.write(area.all(), 1);
            bound.move_to_device(&area, area.all())?;
            // It never ends, so dropping it must not wait for it.
            let _job = ManuallyDrop::new(bound.start(add(&area, 3, 0, 1, 1 << 40))?);
            turns.pass()?;
            loop {
                bound.migrate(&area, 8..PAGES, Destination::System)?;
                bound.migrate(&area, 8..PAGES, Destination::Device)?;
            }
        })?;
        child.wait()?;
        std::thread::sleep(Duration::from_millis(round));
        child.kill()?;
    }
    Ok(())
}

fn coherent_outlives_its_file() -> Result<()> {
    let bound = bound()?;
    let area = Area::small(PAGES)?;
    area.write(area.all(), 9);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, area.all(), 1)?;
    let there = frames(&area)?;
    drop(bound);
    let after = frames(&area)?;
    ensure!(
        !after.iter().any(|frame| there.contains(frame)),
        "they are in system memory"
    );
    area.expect(area.all(), 1)
}
