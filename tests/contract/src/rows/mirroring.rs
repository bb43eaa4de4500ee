//! Mirroring: the device sees what the process sees, and may do what the process may do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{ensure, Result};
use hmm::spec::wire::operation::{Compare, Fill};
use hmm::{Place, Reason, Status};

use crate::area::{Area, LARGE_PAGES, PAGE, ZERO};
use crate::bound::{ended, Bound};
use crate::kernel;
use crate::row::{Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Mirroring",
    rows: &[
        Row {
            name: "snapshot-faults-nothing-in",
            duty: "asking where pages are brings none of them in",
            source: "mm/hmm.c: hmm_vma_walk_hole; hmm.rst, Address space mirroring",
            run: snapshot_faults_nothing_in,
        },
        Row {
            name: "untouched-memory-reads-as-zero",
            duty: "the device reads zeros where nothing has been written, and its writes there \
                   reach that page only, never the page of zeros that all processes share",
            source: "mm/hmm.c: pte_to_hmm_pfn_flags (HMM_PFN_WRITE)",
            run: untouched_memory_reads_as_zero,
        },
        Row {
            name: "read-only-is-read-only",
            duty: "the device reads memory that may only be read, its writes there are refused \
                   and change nothing, and both follow mprotect",
            source: "hmm.rst: HMM_PFN_WRITE; mm/hmm.c: hmm_vma_fault",
            run: read_only_is_read_only,
        },
        Row {
            name: "forbidden-and-missing-are-told-apart",
            duty: "memory without any right and addresses without any mapping are refused, each \
                   with its reason, at the exact page",
            source: "mm/hmm.c: hmm_vma_walk_test, hmm_vma_walk_hole",
            run: forbidden_and_missing_are_told_apart,
        },
        Row {
            name: "rights-end-at-an-areas-end",
            duty:
                "a job that runs from a writable area into one that is not ends at that very page \
                   and has not changed a byte of it",
            source: "mm/hmm.c: hmm_range_fault walks areas one by one",
            run: rights_end_at_an_areas_end,
        },
        Row {
            name: "one-page-is-asked-for",
            duty: "a write to one page brings in that page, for writing, and no neighbour",
            source: "include/linux/hmm.h: default_flags, pfn_flags_mask",
            run: one_page_is_asked_for,
        },
        Row {
            name: "huge-pages-are-large-leaves",
            duty: "a huge page that fills its range is mapped as one leaf",
            source: "include/linux/hmm.h: hmm_pfn_to_map_order",
            run: huge_pages_are_large_leaves,
        },
        Row {
            name: "unmapped-is-forgotten-at-once",
            duty: "when munmap returns, the device does not use the page any more, and what comes \
                   to the same address later is found anew",
            source: "include/linux/mmu_notifier.h: invalidate_range_start",
            run: unmapped_is_forgotten_at_once,
        },
        Row {
            name: "discarded-is-forgotten-at-once",
            duty: "after MADV_DONTNEED the device reads zeros, not what was there",
            source: "mm/madvise.c: madvise_dontneed_single_vma",
            run: discarded_is_forgotten_at_once,
        },
        Row {
            name: "moved-mappings-are-followed",
            duty: "after mremap the contents are found at the new address and nothing at the old",
            source: "mm/mremap.c: move_page_tables",
            run: moved_mappings_are_followed,
        },
        Row {
            name: "a-running-job-meets-munmap",
            duty: "a job that runs while its memory is unmapped ends with a fault, in time",
            source: "hmm.rst: the retry loop of a driver's page fault",
            run: a_running_job_meets_munmap,
        },
        Row {
            name: "a-storm-of-changes-ends",
            duty: "faults that collide with endless changes of mappings are tried again, within a \
                   bound: each job ends, well or as Busy, and right",
            source: "mm/hmm.c: hmm_range_fault_unlocked_timeout; hmm.rst: mmu_interval_read_retry",
            run: a_storm_of_changes_ends,
        },
    ],
};

fn snapshot_faults_nothing_in() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(10..20, 1);
    bound.expect_place(&area, 0..10, Place::None)?;
    bound.expect_place(&area, 10..20, Place::System)?;
    bound.expect_place(&area, 20..64, Place::None)?;
    ensure!(bound.mapped(&area, area.all())? == 0, "nor onto the device");
    for (page, entry) in kernel::entries(&area)?.iter().enumerate() {
        let there = entry.is_present();
        ensure!(there == (10..20).contains(&page), "page {page}: {entry:?}");
    }
    Ok(())
}

fn untouched_memory_reads_as_zero() -> Result<()> {
    let bound = Bound::new()?;
    let (one, other) = (Area::small(16)?, Area::small(16)?);
    bound.expect(&one, one.all(), ZERO)?;
    bound.expect(&other, other.all(), ZERO)?;
    // For the kernel both are the zero page now.
    one.expect(0..8, ZERO)?;
    bound.write(&one, 4..12, 3)?;
    bound.expect(&one, 4..12, 3)?;
    one.expect(4..12, 3)?;
    for area in [&one, &other] {
        let rest = if area.address(0) == one.address(0) {
            0..4
        } else {
            0..16
        };
        bound.expect(area, rest.clone(), ZERO)?;
        area.expect(rest, ZERO)?;
    }
    // The CPU's writes to a page that the device has only read must reach the device, too.
    other.write(2..3, 4);
    bound.expect(&other, 2..3, 4)?;
    bound.expect(&other, 3..16, ZERO)
}

// {drv-real-rights}
fn read_only_is_read_only() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(8)?;
    area.write(area.all(), 1);
    bound.write(&area, 0..8, 2)?;
    area.protect(area.all(), sys::READ)?;
    for page in 0..8 {
        bound.refuse_write(&area, page, Reason::Denied)?;
    }
    bound.expect(&area, area.all(), 2)?;
    area.expect(area.all(), 2)?;
    // The device has them mapped for reading, which must not hinder it now.
    area.protect(area.all(), sys::READ_WRITE)?;
    bound.write(&area, area.all(), 3)?;
    area.expect(area.all(), 3)?;
    area.protect(2..4, sys::READ)?;
    bound.write(&area, 0..2, 4)?;
    bound.refuse_write(&area, 2, Reason::Denied)?;
    bound.refuse_write(&area, 3, Reason::Denied)?;
    bound.write(&area, 4..8, 4)?;
    area.expect(0..2, 4)?;
    area.expect(2..4, 3)?;
    area.expect(4..8, 4)
}

fn forbidden_and_missing_are_told_apart() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(8)?;
    area.write(area.all(), 1);
    bound.expect(&area, area.all(), 1)?;
    area.protect(2..3, sys::NO_ACCESS)?;
    area.unmap(5..6)?;
    for _ in 0..2 {
        bound.refuse_read(&area, 2, Reason::Denied)?;
        bound.refuse_write(&area, 2, Reason::Denied)?;
        bound.refuse_read(&area, 5, Reason::Unmapped)?;
        bound.refuse_write(&area, 5, Reason::Unmapped)?;
    }
    for page in [0, 1, 3, 4, 6, 7] {
        bound.expect(&area, page..page + 1, 1)?;
    }
    Ok(())
}

fn rights_end_at_an_areas_end() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(8)?;
    area.write(area.all(), 1);
    area.protect(4..8, sys::READ)?;
    let fill = Fill {
        destination: area.address(2) as u64,
        bytes: 4 * PAGE as u64,
        pattern: area.word(2, 9),
    };
    let failure = match bound.run(fill)? {
        Ok(_) => anyhow::bail!("it wrote where only reading is allowed"),
        Err(failure) => failure,
    };
    ensure!(
        failure.reason == Some(Reason::Denied) && failure.address == area.address(4) as u64,
        "{failure}"
    );
    for page in 2..4 {
        let found = area.read_word(page, 511);
        let right = [area.word(2, 9), area.word(page, 1)].contains(&found);
        ensure!(right, "page {page} holds {found:#x}");
    }
    area.expect(0..2, 1)?;
    area.expect(4..8, 1)
}

fn one_page_is_asked_for() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    bound.write(&area, 30..31, 1)?;
    for (page, entry) in kernel::entries(&area)?.iter().enumerate() {
        ensure!(entry.is_present() == (page == 30), "page {page}: {entry:?}");
    }
    ensure!(bound.mapped(&area, area.all())? == 1, "one page is mapped");
    area.expect(30..31, 1)?;
    area.expect(0..30, ZERO)
}

fn huge_pages_are_large_leaves() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    ensure!(
        bound
            .states(&area, area.all())?
            .iter()
            .all(|state| state.is_large()),
        "the kernel gave huge pages"
    );
    let before = bound.counters()?.device.large_leaves.get();
    bound.write(&area, 0..1, 2)?;
    bound.expect(&area, LARGE_PAGES..LARGE_PAGES + 1, 1)?;
    let leaves = bound.counters()?.device.large_leaves.get() - before;
    ensure!(leaves == 2, "{leaves} large leaves for two huge pages");
    area.expect(0..1, 2)?;
    area.expect(1..area.pages(), 1)
}

fn unmapped_is_forgotten_at_once() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(16)?;
    for round in 1..20 {
        bound.write(&area, area.all(), round)?;
        ensure!(bound.mapped(&area, area.all())? == 16, "all are mapped");
        area.unmap(4..8)?;
        bound.refuse_read(&area, 4, Reason::Unmapped)?;
        bound.expect(&area, 0..4, round)?;
        area.renew(4..8)?;
        bound.expect(&area, 4..8, ZERO)?;
        bound.expect(&area, 8..16, round)?;
    }
    Ok(())
}

fn discarded_is_forgotten_at_once() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(16)?, Area::large(1)?] {
        let pages = 0..16;
        for round in 1..10 {
            bound.write(&area, pages.clone(), round)?;
            area.advise(4..8, libc::MADV_DONTNEED)?;
            bound.expect(&area, 0..4, round)?;
            bound.expect(&area, 4..8, ZERO)?;
            bound.expect(&area, 8..16, round)?;
            area.expect(4..8, ZERO)?;
        }
    }
    Ok(())
}

fn moved_mappings_are_followed() -> Result<()> {
    let bound = Bound::new()?;
    let (area, place) = (Area::small(16)?, Area::small(16)?);
    bound.write(&area, area.all(), 1)?;
    bound.write(&place, place.all(), 2)?;
    let moved = area.remap(4..12, &place, 2)?;
    bound.expect(&moved, 0..8, 1)?;
    bound.refuse_read(&area, 4, Reason::Unmapped)?;
    bound.expect(&area, 0..4, 1)?;
    bound.expect(&place, 0..2, 2)?;
    bound.expect(&place, 10..16, 2)?;
    bound.write(&moved, 0..8, 3)?;
    moved.expect(0..8, 3)
}

/// A job that reads an area over and over, much longer than a row lasts.
fn endless(area: &Area) -> Compare {
    // Each page is compared with itself, so the job does not end early.
    Compare {
        left: area.address(0) as u64,
        right: area.address(0) as u64,
        bytes: (area.pages() * PAGE) as u64,
    }
}

fn a_running_job_meets_munmap() -> Result<()> {
    /// If something is late, all jobs of a round may end before they meet the munmap.
    const ROUNDS: usize = 8;
    const MOST_ROUNDS: usize = 80;
    let bound = Bound::new()?;
    let mut faults = 0;
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && faults > 0 {
            break;
        }
        let area = Area::large(8)?;
        area.write(0..area.pages(), 1);
        let jobs = (0..8)
            .map(|_| bound.start(endless(&area)))
            .collect::<Result<Vec<_>>>()?;
        let half = area.pages() / 2;
        area.unmap(half..area.pages())?;
        for job in jobs {
            match ended(job)? {
                Ok(_) => {}
                Err(failure) => {
                    ensure!(failure.reason == Some(Reason::Unmapped), "{failure}");
                    let at = failure.address;
                    ensure!(at >= area.address(half) as u64, "{failure}");
                    faults += 1;
                }
            }
        }
        bound.refuse_read(&area, half, Reason::Unmapped)?;
    }
    ensure!(faults > 0, "no job met it");
    Ok(())
}

fn a_storm_of_changes_ends() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    let stop = AtomicBool::new(false);
    let mut busy = 0;
    thread::scope(|scope| {
        let storms: Vec<_> = (0..2)
            .map(|number| {
                let (area, stop) = (&area, &stop);
                scope.spawn(move || -> Result<()> {
                    let page = number * 32;
                    while !stop.load(Ordering::Relaxed) {
                        area.protect(page..page + 32, sys::READ)?;
                        area.protect(page..page + 32, sys::READ_WRITE)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let result = (|| {
            for _ in 0..100 {
                let job = bound.start(endless(&area))?;
                match ended(job)? {
                    Ok([offset, ..]) => {
                        ensure!(offset == (64 * PAGE) as u64, "it read something else");
                    }
                    Err(failure) => {
                        let storm =
                            failure.status == Status::Storm || failure.reason == Some(Reason::Busy);
                        ensure!(storm, "{failure}");
                        busy += 1;
                    }
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for storm in storms {
            match storm.join() {
                Ok(ended) => ended?,
                Err(_) => anyhow::bail!("a storm broke down"),
            }
        }
        result
    })?;
    ensure!(busy < 100, "no job got through");
    bound.expect(&area, area.all(), 1)
}
