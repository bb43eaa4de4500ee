//! Migration: pages move, and their contents do not change.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Place, Progress, Reason};

use crate::area::{Area, LARGE_PAGES, PAGE, ZERO};
use crate::bound::{add, Bound};
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys;

/// Longer than the driver relates one CPU fault to the next (fault-around).
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Migration",
    rows: &[
        Row {
            name: "there-and-back",
            duty: "pages go to the device and come back by request or CPU fault, holding what the \
                   CPU or the device wrote last",
            source: "hmm.rst: Migration to and from device memory, steps 1 to 7",
            run: there_and_back,
        },
        Row {
            name: "huge-there-and-back",
            duty: "a huge page moves as one, in both directions, and keeps its contents",
            source: "mm/migrate_device.c: migrate_vma_collect_huge_pmd, MIGRATE_PFN_COMPOUND",
            run: huge_there_and_back,
        },
        Row {
            name: "a-moved-page-is-counted-as-before",
            duty: "rss does not change when pages move, and the page table shows no present page",
            source: "hmm.rst: Memory cgroup (memcg) and rss accounting",
            run: a_moved_page_is_counted_as_before,
        },
        Row {
            name: "holes-arrive-cleared",
            duty: "where nothing is, pages of zeros are made on the device if that is asked for, \
                   whatever its frames held before",
            source: "mm/migrate_device.c: migrate_vma_collect_hole; hmm.rst, step 3",
            run: holes_arrive_cleared,
        },
        Row {
            name: "the-zero-page-arrives-cleared",
            duty: "pages that were only read are zeros on the device, and the page of zeros that \
                   all processes share stays where it is",
            source: "mm/migrate_device.c: migrate_vma_collect_pmd (is_zero_pfn)",
            run: the_zero_page_arrives_cleared,
        },
        Row {
            name: "the-huge-zero-page-arrives-cleared",
            duty: "the same of the huge page of zeros",
            source: "mm/migrate_device.c: migrate_vma_collect_huge_pmd (is_huge_zero_pmd)",
            run: the_huge_zero_page_arrives_cleared,
        },
        Row {
            name: "a-pinned-page-stays",
            duty: "a page that another process holds stays in system memory, its neighbours move, \
                   and it moves too when it is let go",
            source: "mm/migrate_device.c: migrate_device_unmap (folio refcount)",
            run: a_pinned_page_stays,
        },
        Row {
            name: "a-mixed-range-moves-in-part",
            duty: "holes, pages of zeros, read-only, pinned, forbidden and unmapped pages in one \
                   range: each does what it would alone",
            source: "hmm.rst: Migration, step 3: each page may be skipped",
            run: a_mixed_range_moves_in_part,
        },
        Row {
            name: "a-full-device-refuses-the-rest",
            duty:
                "what the device has no memory for stays in system memory and is counted, and is \
                   used from there",
            source: "hmm.rst: Migration, step 3: clearing a page's bit",
            run: a_full_device_refuses_the_rest,
        },
        Row {
            name: "a-touch-takes-one-request",
            duty: "a page on the device that a CPU touches is taken away from the device, which \
                   has written it, and copied back by one request",
            source: "hmm.rst: Migration, steps 1 to 7; drivers take their own mappings back",
            run: a_touch_takes_one_request,
        },
        Row {
            name: "a-touch-of-a-huge-page-takes-one-request",
            duty: "a huge page on the device that a CPU touches is taken away from the device, \
                   which has written it, and copied back by one request",
            source: "hmm.rst: Migration, steps 1 to 7; drivers take their own mappings back",
            run: a_touch_of_a_huge_page_takes_one_request,
        },
        Row {
            name: "a-touch-misses-no-write",
            duty: "what a job adds to a word goes on counting, whatever CPU accesses the page and \
                   however often it goes back to the device meanwhile",
            source: "mm/memory.c: do_swap_page; include/linux/mmu_notifier.h: MMU_NOTIFY_MIGRATE",
            run: a_touch_misses_no_write,
        },
        Row {
            name: "many-threads-touch-one-page",
            duty: "a page on the device that several CPUs touch at once comes back once, and no \
                   write is lost",
            source: "mm/memory.c: do_swap_page (migrate_to_ram with the page locked)",
            run: many_threads_touch_one_page,
        },
        Row {
            name: "many-threads-touch-one-huge-page",
            duty: "the same of a huge page, whose fault the kernel retries without sleeping",
            source: "mm/huge_memory.c: do_huge_pmd_device_private",
            run: many_threads_touch_one_huge_page,
        },
        Row {
            name: "a-huge-page-loses-a-part",
            duty: "munmap of a part of a huge page on the device leaves the rest as it was",
            source: "mm/huge_memory.c: __split_huge_pmd_locked; dev_pagemap_ops.folio_split",
            run: a_huge_page_loses_a_part,
        },
        Row {
            name: "a-huge-page-has-a-part-discarded",
            duty: "the same of MADV_DONTNEED, where zeros are left",
            source: "mm/madvise.c: madvise_dontneed_single_vma",
            run: a_huge_page_has_a_part_discarded,
        },
        Row {
            name: "a-huge-page-is-protected-in-part",
            duty: "mprotect of a part of a huge page on the device forbids writing there only",
            source: "mm/huge_memory.c: change_huge_pmd; mm/mprotect.c",
            run: a_huge_page_is_protected_in_part,
        },
        Row {
            name: "a-huge-page-is-moved-as-a-whole",
            duty: "mremap of a huge page on the device to another aligned place",
            source: "mm/huge_memory.c: move_huge_pmd",
            run: a_huge_page_is_moved_as_a_whole,
        },
        Row {
            name: "a-huge-page-is-moved-in-part",
            duty: "mremap of a part of a huge page on the device, and to an odd place",
            source: "mm/mremap.c: move_page_tables (split_huge_pmd)",
            run: a_huge_page_is_moved_in_part,
        },
        Row {
            name: "a-huge-page-leaves-its-mapping",
            duty: "mremap with MREMAP_DONTUNMAP takes the pages along and leaves zeros",
            source: "mm/mremap.c: MREMAP_DONTUNMAP",
            run: a_huge_page_leaves_its_mapping,
        },
        Row {
            name: "a-closed-file-moves-pages-back",
            duty: "pages stay intact when the file that moved them is closed",
            source: "mm/memory.c: do_swap_page; include/linux/memremap.h: migrate_to_ram",
            run: a_closed_file_moves_pages_back,
        },
        Row {
            name: "locked-memory-moves-and-stays-locked",
            duty: "mlocked pages move, come back, and are still locked",
            source: "mm/mlock.c; mm/rmap.c: try_to_migrate",
            run: locked_memory_moves_and_stays_locked,
        },
        Row {
            name: "a-stack-moves-under-its-thread",
            duty: "even the stack of the calling thread may move: the next instruction brings \
                   it back",
            source: "mm/memory.c: do_swap_page",
            run: a_stack_moves_under_its_thread,
        },
        Row {
            name: "file-pages-stay",
            duty:
                "pages of files and of shared memory are not moved, and nothing is lost by asking",
            source: "mm/migrate_device.c: migrate_vma_collect_pmd (anonymous memory only here)",
            run: file_pages_stay,
        },
    ],
};

fn round_trips(area: &Area, large: bool) -> Result<()> {
    let bound = Bound::new()?;
    let all = area.all();
    area.write(all.clone(), 1);
    for round in 1..5 {
        bound.move_to_device(area, all.clone())?;
        let states = bound.states(area, all.clone())?;
        ensure!(
            states.iter().all(|state| state.is_large() == large),
            "they are as large as they were"
        );
        bound.expect(area, all.clone(), 2 * round - 1)?;
        let sample = 3..20;
        bound.write(area, sample.clone(), 2 * round)?;
        bound.expect_place(area, all.clone(), Place::Device)?;
        if round % 2 == 0 {
            bound.move_to_system(area, all.clone())?;
        }
        area.expect(sample, 2 * round)?;
        area.expect(20..all.end, 2 * round - 1)?;
        bound.expect_place(area, all.clone(), Place::System)?;
        area.write(all.clone(), 2 * round + 1);
    }
    Ok(())
}

fn there_and_back() -> Result<()> {
    round_trips(&Area::small(96)?, false)
}

fn huge_there_and_back() -> Result<()> {
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    let bound = Bound::new()?;
    let before = bound.counters()?.driver;
    round_trips(&area, true)?;
    let after = bound.counters()?.driver;
    let (there, back) = (
        after.huge_to_device - before.huge_to_device,
        after.huge_to_system - before.huge_to_system,
    );
    ensure!(
        there == 8 && back == 8,
        "{there} huge pages went, {back} came"
    );
    Ok(())
}

fn a_moved_page_is_counted_as_before() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(512)?, Area::large(1)?] {
        area.write(area.all(), 1);
        // Reads once before, because the reading itself faults pages in.
        let (_, _) = (kernel::status("RssAnon")?, kernel::entries(&area)?);
        let before = kernel::status("RssAnon")?;
        bound.move_to_device(&area, area.all())?;
        let after = kernel::status("RssAnon")?;
        let slack = 32 * PAGE as u64;
        ensure!(
            before.abs_diff(after) <= slack,
            "anonymous rss was {before} and is {after} with 2 MiB on the device"
        );
        for (page, entry) in kernel::entries(&area)?.iter().enumerate() {
            ensure!(
                entry.is_swap() && !entry.is_present(),
                "page {page} on the device shows as {entry:?}"
            );
        }
        area.expect(area.all(), 1)?;
        let system = kernel::status("RssAnon")?;
        ensure!(
            before.abs_diff(system) <= slack,
            "it was {before} and is {system}"
        );
        bound.move_to_device(&area, area.all())?;
        area.unmap(area.all())?;
        let gone = kernel::status("RssAnon")?;
        ensure!(
            (before - area.pages() as u64 * PAGE as u64).abs_diff(gone) <= slack,
            "2 MiB are unmapped, of {before} there are {gone} left"
        );
    }
    Ok(())
}

/// Leaves frames of device memory behind that have old contents.
fn soil_frames(bound: &Bound, pages: usize) -> Result<()> {
    let dirty = Area::small(pages)?;
    dirty.write(dirty.all(), 0xdd);
    bound.move_to_device(&dirty, dirty.all())
}

// {drv-no-stale-frames}
fn holes_arrive_cleared() -> Result<()> {
    let bound = Bound::new()?;
    soil_frames(&bound, 1024)?;
    let large = Area::large(1)?;
    for area in [Area::small(512)?, large] {
        bound.populate(&area, area.all())?;
        bound.expect(&area, area.all(), ZERO)?;
        bound.write(&area, 5..6, 1)?;
        area.expect(0..5, ZERO)?;
        area.expect(5..6, 1)?;
        area.expect(6..area.pages(), ZERO)?;
    }
    Ok(())
}

fn the_zero_page_arrives_cleared() -> Result<()> {
    let bound = Bound::new()?;
    soil_frames(&bound, 256)?;
    let (area, other) = (Area::small(64)?, Area::small(64)?);
    area.expect(area.all(), ZERO)?;
    other.expect(other.all(), ZERO)?;
    let zeros = kernel::entries(&other)?;
    bound.populate(&area, area.all())?;
    bound.expect(&area, area.all(), ZERO)?;
    bound.write(&area, area.all(), 1)?;
    ensure!(kernel::entries(&other)? == zeros, "it stays where it was");
    other.expect(other.all(), ZERO)?;
    area.expect(area.all(), 1)
}

fn the_huge_zero_page_arrives_cleared() -> Result<()> {
    let enabled = "/sys/kernel/mm/transparent_hugepage/use_zero_page";
    let _setting = kernel::Setting::change(enabled, "1")?;
    let bound = Bound::new()?;
    soil_frames(&bound, 1024)?;
    let (area, other) = (Area::large(1)?, Area::large(1)?);
    area.expect(0..1, ZERO)?;
    other.expect(0..1, ZERO)?;
    let zeros = kernel::entries(&other)?;
    ensure!(
        kernel::entries(&area)?
            .iter()
            .all(|entry| entry.is_present()),
        "one read made all of the huge page present"
    );
    bound.populate(&area, area.all())?;
    bound.expect(&area, area.all(), ZERO)?;
    bound.write(&area, 100..130, 1)?;
    ensure!(kernel::entries(&other)? == zeros, "it stays where it was");
    other.expect(other.all(), ZERO)?;
    area.expect(0..100, ZERO)?;
    area.expect(100..130, 1)?;
    area.expect(130..LARGE_PAGES, ZERO)
}

/// Pins pages by putting them into a pipe; emptying it unpins them.
fn pin(area: &Area, pages: std::ops::Range<usize>) -> Result<File> {
    let (read, write) = sys::pipe()?;
    let bytes = pages.len() * PAGE;
    let put = sys::splice_pages(write.as_fd(), area.address(pages.start), bytes)
        .map_err(|error| cannot_run(format!("pages cannot be put into a pipe: {error}")))?;
    ensure!(put == bytes, "the pipe took {put} bytes of {bytes}");
    Ok(read.into())
}

fn a_pinned_page_stays() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(32)?;
    area.write(area.all(), 1);
    let mut pipe = pin(&area, 10..12)?;
    for _ in 0..3 {
        bound.migrate(&area, area.all(), Destination::Device)?;
    }
    bound.expect_place(&area, 0..10, Place::Device)?;
    bound.expect_place(&area, 10..12, Place::System)?;
    bound.expect_place(&area, 12..32, Place::Device)?;
    bound.expect(&area, area.all(), 1)?;
    let mut bytes = vec![0; 2 * PAGE];
    pipe.read_exact(&mut bytes).context("emptying the pipe")?;
    ensure!(
        bytes[..8] == area.word(10, 1).to_ne_bytes(),
        "the process that holds a page reads what it held"
    );
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    area.expect(area.all(), 1)
}

fn a_mixed_range_moves_in_part() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(0..8, 1); // Ordinary pages; 8..16 are holes.
    area.expect(16..24, ZERO)?; // The zero page.
    area.write(24..56, 1);
    area.protect(24..32, sys::READ)?;
    let _pipe = pin(&area, 32..40)?;
    area.protect(40..48, sys::NO_ACCESS)?;
    area.unmap(48..50)?;
    let populate = || bound.space().populate(area.range(area.all()));
    let moved = populate()?;
    ensure!(
        moved.moved + moved.skipped == 64,
        "each is counted once: {moved:?}"
    );
    for _ in 0..3 {
        populate()?;
    }
    bound.expect_place(&area, 0..32, Place::Device)?;
    bound.expect_place(&area, 32..40, Place::System)?;
    bound.expect_place(&area, 48..50, Place::None)?;
    bound.expect_place(&area, 50..64, Place::Device)?;
    bound.expect(&area, 0..8, 1)?;
    bound.expect(&area, 8..24, ZERO)?;
    bound.expect(&area, 24..40, 1)?;
    bound.refuse_write(&area, 25, Reason::Denied)?;
    bound.refuse_read(&area, 41, Reason::Denied)?;
    bound.refuse_read(&area, 49, Reason::Unmapped)?;
    bound.expect(&area, 50..56, 1)?;
    bound.expect(&area, 56..64, ZERO)?;
    area.protect(40..48, sys::READ_WRITE)?;
    bound.expect(&area, 40..48, 1)?;
    bound.move_to_system(&area, 0..8)?;
    area.expect(0..8, 1)?;
    area.expect(8..24, ZERO)?;
    area.expect(24..48, 1)?;
    area.expect(50..56, 1)?;
    area.expect(56..64, ZERO)
}

fn a_full_device_refuses_the_rest() -> Result<()> {
    let bound = Bound::new()?;
    let total = usize::try_from(bound.counters()?.driver.total_frames)?;
    if kernel::meminfo("MemAvailable")? < (total * PAGE) as u64 * 2 {
        return Err(cannot_run(
            "the guest has not twice the device's memory free",
        ));
    }
    let more = total + 4 * LARGE_PAGES;
    let area = Area::large(more / LARGE_PAGES)?;
    area.write(area.all(), 1);
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    let counters = bound.counters()?.driver;
    ensure!(moved.no_memory > 0, "some found no memory: {moved:?}");
    ensure!(moved.moved + moved.skipped == more as u64, "{moved:?}");
    ensure!(
        counters.used_frames <= counters.total_frames && moved.moved <= total as u64,
        "no frame is allocated twice"
    );
    for first in [0, total - LARGE_PAGES, total, more - LARGE_PAGES] {
        bound.expect(&area, first..first + LARGE_PAGES, 1)?;
    }
    area.expect(area.all(), 1)
}

fn many_threads_touch(area: &Area, bound: &Bound, rounds: u64) -> Result<()> {
    const THREADS: usize = 8;
    let page = area.pages() / 2;
    area.write(area.all(), 1);
    for index in 0..THREADS {
        area.write_word(page, index, 0);
    }
    for round in 0..rounds {
        bound.move_to_device(area, area.all())?;
        let barrier = Barrier::new(THREADS);
        let right = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|index| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        let before = area.read_word(page, index);
                        area.write_word(page, index, before + 1);
                        before == round && area.read_word(page, 100) == area.word(page, 1)
                    })
                })
                .collect();
            threads
                .into_iter()
                .all(|thread| thread.join().unwrap_or(false))
        });
        ensure!(right, "a thread read something else in round {round}");
        for index in 0..THREADS {
            let found = area.read_word(page, index);
            ensure!(
                found == round + 1,
                "thread {index} wrote {}, there is {found}",
                round + 1
            );
        }
    }
    area.expect(0..page, 1)?;
    area.expect(page + 1..area.pages(), 1)
}

fn a_touch_takes_one_request() -> Result<()> {
    let (area, bound) = (Area::small(64)?, Bound::new()?);
    for page in [5, 6, 40] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        bound.write(&area, area.all(), 2)?;
        ensure!(bound.mapped(&area, area.all())? == area.pages());
        // After a pause the driver moves the faulting page alone.
        thread::sleep(PAUSE);
        let before = bound.counters()?.driver.control_requests;
        let word = area.read_word(page, 7);
        // One request reads the counters themselves.
        let requests = bound.counters()?.driver.control_requests - before - 1;
        ensure!(requests == 1, "the touch took {requests} requests");
        ensure!(word == area.word(page, 2), "the device's write is lost");
        bound.expect_place(&area, page..page + 1, Place::System)?;
        ensure!(bound.mapped(&area, page..page + 1)? == 0);
        bound.expect_place(&area, page + 1..area.pages(), Place::Device)?;
        ensure!(bound.mapped(&area, area.all())? == area.pages() - 1);
        bound.expect(&area, area.all(), 2)?;
        area.expect(area.all(), 2)?;
    }
    Ok(())
}

fn a_touch_of_a_huge_page_takes_one_request() -> Result<()> {
    let bound = Bound::new()?;
    for page in [0, 300] {
        let area = large_on_device(&bound)?;
        bound.write(&area, area.all(), 2)?;
        ensure!(bound.mapped(&area, area.all())? == area.pages());
        let before = bound.counters()?.driver;
        let word = area.read_word(page, 7);
        let after = bound.counters()?.driver;
        // One request reads the counters themselves.
        let control = after.control_requests - before.control_requests - 1;
        let dma = after.dma_requests - before.dma_requests;
        // A device that checks is also told which frames are free now.
        ensure!(
            control == 0 && (1..=2).contains(&dma),
            "the touch took {control} and {dma} requests"
        );
        ensure!(word == area.word(page, 2), "the device's write is lost");
        ensure!(bound.mapped(&area, area.all())? == 0);
        area.expect(area.all(), 2)?;
        ensure!(bound.counters()?.driver.huge_to_system - before.huge_to_system == 1);
    }
    Ok(())
}

fn a_touch_misses_no_write() -> Result<()> {
    const TIMES: u64 = 20_000_000;
    let (area, bound) = (Area::small(8)?, Bound::new()?);
    area.write(area.all(), 1);
    area.write_word(3, 9, 0);
    bound.move_to_device(&area, area.all())?;
    let mut job = bound.start(add(&area, 3, 9, 1, TIMES))?;
    let (mut last, mut touches) = (0, 0);
    loop {
        let now = area.read_word(3, 9);
        ensure!(now >= last, "{now} after {last}");
        last = now;
        touches += 1;
        bound.migrate(&area, area.all(), Destination::Device)?;
        job = match job.wait_timeout(Duration::ZERO)? {
            Progress::Running(job) => job,
            Progress::Ended(_) => break,
        };
    }
    ensure!(touches > 10, "it ended after {touches} touches");
    let sum = area.read_word(3, 9);
    ensure!(sum == TIMES, "{sum} instead of {TIMES}");
    area.expect(0..3, 1)?;
    area.expect(4..8, 1)
}

fn many_threads_touch_one_page() -> Result<()> {
    many_threads_touch(&Area::small(4)?, &Bound::new()?, 20)
}

fn many_threads_touch_one_huge_page() -> Result<()> {
    let (area, bound) = (Area::large(1)?, Bound::new()?);
    many_threads_touch(&area, &bound, 8)?;
    let large = bound.counters()?.driver.huge_to_device;
    ensure!(large >= 8, "only {large} were large");
    Ok(())
}

/// A huge page on the device that holds tag 1.
fn large_on_device(bound: &Bound) -> Result<Area> {
    let area = Area::large(1)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    let states = bound.states(&area, area.all())?;
    if !states.iter().all(|state| state.is_large()) {
        bail!("it did not move as one");
    }
    Ok(area)
}

fn a_huge_page_loses_a_part() -> Result<()> {
    let bound = Bound::new()?;
    for (lost, kept) in [(0..256, 256..512), (256..512, 0..256), (100..101, 101..512)] {
        let area = large_on_device(&bound)?;
        area.unmap(lost.clone())?;
        bound.refuse_read(&area, lost.start, Reason::Unmapped)?;
        bound.expect_place(&area, kept.clone(), Place::Device)?;
        bound.expect(&area, kept.clone(), 1)?;
        bound.write(&area, kept.start + 3..kept.start + 5, 2)?;
        area.expect(kept.start..kept.start + 3, 1)?;
        area.expect(kept.start + 3..kept.start + 5, 2)?;
        area.expect(kept.start + 5..kept.end, 1)?;
    }
    Ok(())
}

fn a_huge_page_has_a_part_discarded() -> Result<()> {
    let bound = Bound::new()?;
    let area = large_on_device(&bound)?;
    area.advise(50..300, libc::MADV_DONTNEED)?;
    bound.expect_place(&area, 0..50, Place::Device)?;
    bound.expect_place(&area, 50..300, Place::None)?;
    bound.expect_place(&area, 300..512, Place::Device)?;
    bound.expect(&area, 50..300, ZERO)?;
    bound.expect(&area, 0..50, 1)?;
    area.expect(300..512, 1)?;
    area.expect(0..50, 1)?;
    area.expect(50..300, ZERO)
}

fn a_huge_page_is_protected_in_part() -> Result<()> {
    let bound = Bound::new()?;
    let area = large_on_device(&bound)?;
    area.protect(100..200, sys::READ)?;
    bound.expect_place(&area, area.all(), Place::Device)?;
    bound.refuse_write(&area, 100, Reason::Denied)?;
    bound.refuse_write(&area, 199, Reason::Denied)?;
    bound.expect(&area, area.all(), 1)?;
    bound.write(&area, 99..100, 2)?;
    bound.write(&area, 200..201, 2)?;
    area.protect(100..200, sys::READ_WRITE)?;
    bound.write(&area, 100..101, 2)?;
    area.expect(0..99, 1)?;
    area.expect(99..101, 2)?;
    area.expect(101..200, 1)?;
    area.expect(200..201, 2)?;
    area.expect(201..512, 1)
}

fn a_huge_page_is_moved_as_a_whole() -> Result<()> {
    let bound = Bound::new()?;
    let area = large_on_device(&bound)?;
    let place = Area::large(1)?;
    let moved = area.remap(area.all(), &place, 0)?;
    bound.refuse_read(&area, 0, Reason::Unmapped)?;
    bound.expect_place(&moved, moved.all(), Place::Device)?;
    bound.expect(&moved, moved.all(), 1)?;
    bound.write(&moved, 10..20, 2)?;
    moved.expect(0..10, 1)?;
    moved.expect(10..20, 2)?;
    moved.expect(20..512, 1)
}

fn a_huge_page_is_moved_in_part() -> Result<()> {
    let bound = Bound::new()?;
    for at in [0, 7, 512] {
        let area = large_on_device(&bound)?;
        let place = Area::large(2)?;
        let moved = area.remap(128..384, &place, at)?;
        bound.refuse_read(&area, 128, Reason::Unmapped)?;
        bound.expect_place(&moved, moved.all(), Place::Device)?;
        bound.expect(&moved, moved.all(), 1)?;
        bound.expect(&area, 0..128, 1)?;
        moved.expect(moved.all(), 1)?;
        area.expect(384..512, 1)?;
        area.expect(0..128, 1)?;
    }
    Ok(())
}

fn a_huge_page_leaves_its_mapping() -> Result<()> {
    let bound = Bound::new()?;
    for part in [0..512, 64..192] {
        let area = large_on_device(&bound)?;
        let place = Area::large(1)?;
        let moved = area.remap_with(part.clone(), &place, 0, libc::MREMAP_DONTUNMAP)?;
        bound.expect(&area, part.clone(), ZERO)?;
        bound.expect(&moved, moved.all(), 1)?;
        area.expect(part.clone(), ZERO)?;
        area.expect(0..part.start, 1)?;
        area.expect(part.end..512, 1)?;
        moved.expect(moved.all(), 1)?;
    }
    Ok(())
}

fn a_closed_file_moves_pages_back() -> Result<()> {
    let (small, large) = (Area::small(64)?, Area::large(1)?);
    for area in [&small, &large] {
        area.write(area.all(), 1);
        let bound = Bound::new()?;
        bound.move_to_device(area, area.all())?;
        bound.write(area, 4..8, 2)?;
    }
    // They may or may not be in system memory by now; their contents must be right.
    let again = Bound::new()?;
    for area in [&small, &large] {
        again.expect(area, 0..4, 1)?;
        area.expect(0..4, 1)?;
        area.expect(4..8, 2)?;
        area.expect(8..area.pages(), 1)?;
    }
    Ok(())
}

fn locked_memory_moves_and_stays_locked() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(32)?;
    area.write(area.all(), 1);
    sys::lock(area.address(0), 32 * PAGE).context("mlock")?;
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, 0..16, 2)?;
    ensure!(
        kernel::smaps(&area, "VmFlags")?.contains(" lo"),
        "the mapping is locked"
    );
    area.expect(0..16, 2)?;
    area.expect(16..32, 1)?;
    let locked = kernel::smaps(&area, "Locked")?;
    ensure!(
        locked == "128 kB",
        "of 128 kB in system memory are locked: {locked}"
    );
    let error = area.try_advise(0..1, libc::MADV_DONTNEED);
    ensure!(error.is_err(), "locked memory cannot be discarded");
    Ok(())
}

fn a_stack_moves_under_its_thread() -> Result<()> {
    let bound = Bound::new()?;
    for round in 0..10_u64 {
        let here = [round; 512];
        let address = here.as_ptr().addr();
        let around = hmm::PageRange::around(address.saturating_sub(4 * PAGE)..address + PAGE);
        bound.space().migrate(around, Destination::Device)?;
        ensure!(
            std::hint::black_box(&here)
                .iter()
                .all(|word| *word == round),
            "what lies on the stack is as it was"
        );
    }
    Ok(())
}

fn file_pages_stay() -> Result<()> {
    let bound = Bound::new()?;
    let file = tempfile()?;
    file.set_len(32 * PAGE as u64)?;
    let of_file = Some((file.as_fd(), 0));
    let shared = Area::shared(32)?;
    let mapped = Area::map(32 * PAGE, sys::READ_WRITE, libc::MAP_SHARED, of_file)?;
    let private = Area::map(32 * PAGE, sys::READ_WRITE, libc::MAP_PRIVATE, of_file)?;
    for area in [&shared, &mapped] {
        area.write(area.all(), 1);
    }
    for area in [&shared, &mapped, &private] {
        private.expect(private.all(), 1)?;
        let moved = bound.migrate(area, area.all(), Destination::Device)?;
        ensure!(moved.moved == 0, "{moved:?}");
        bound.expect_place(area, area.all(), Place::System)?;
        bound.expect(area, area.all(), 1)?;
        area.expect(area.all(), 1)?;
    }
    // Pages that were copied on a write are anonymous memory and move.
    private.write(0..8, 2);
    bound.move_to_device(&private, 0..8)?;
    bound.write(&private, 4..8, 3)?;
    private.expect(0..4, 2)?;
    private.expect(4..8, 3)?;
    private.expect(8..32, 1)?;
    mapped.expect(mapped.all(), 1)
}

/// A file without a name, in memory.
fn tempfile() -> Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("contract", flags)?.into())
}
