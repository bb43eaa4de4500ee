//! Dirty pages: what the device has written is not thrown away.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Place};

use crate::area::{Area, PAGE, ZERO};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel::{self, Disk, Group, Swap};
use crate::row::{Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Dirty pages",
    rows: &[
        Row {
            name: "a-write-after-madv-free-stays",
            duty: "what the device writes after MADV_FREE survives reclaim, as a CPU's write \
                   would",
            source:
                "mm/madvise.c: madvise_free_pte_range (clears dirty, keeps write); mm/vmscan.c: \
                     lazyfree folios",
            run: a_write_after_madv_free_stays,
        },
        Row {
            name: "madv-free-on-the-device",
            duty: "pages on the device that are freed lazily hold the old contents or zeros, and \
                   what is written to them later stays",
            source: "mm/madvise.c: madvise_free_huge_pmd, madvise_free_pte_range",
            run: madv_free_on_the_device,
        },
        Row {
            name: "a-write-to-a-file-is-written-back",
            duty: "device writes to a shared file mapping reach the disk, each time it is \
                   synchronised",
            source: "mm/memory.c: do_shared_fault, page_mkwrite; mm/rmap.c: folio_mkclean (the \
                     mapping is write protected again)",
            run: a_write_to_a_file_is_written_back,
        },
        Row {
            name: "a-write-to-a-file-outlives-the-process",
            duty: "so do those of a process that is killed before anything is synchronised",
            source: "mm/rmap.c: folio_remove_rmap_ptes; pages are dirty at teardown",
            run: a_write_to_a_file_outlives_the_process,
        },
        Row {
            name: "what-was-written-is-swapped-out",
            duty: "pages that the device has written are swapped out with what it wrote, and its \
                   next access brings them in",
            source: "mm/rmap.c: try_to_unmap_one (dirty bit); mm/vmscan.c: pageout",
            run: what_was_written_is_swapped_out,
        },
        Row {
            name: "swapped-out-pages-are-not-lost-by-moving",
            duty: "asking to move pages that are swapped out loses nothing",
            source: "mm/migrate_device.c: migrate_vma_collect_pmd (skips swap entries)",
            run: swapped_out_pages_are_not_lost_by_moving,
        },
        Row {
            name: "pressure-swaps-what-came-back",
            duty: "under pressure of a memory limit, pages of the device and of the guest that \
                   the device writes all the time keep what was written last",
            source: "mm/vmscan.c: shrink_folio_list; mm/rmap.c: try_to_unmap_one (notifiers)",
            run: pressure_swaps_what_came_back,
        },
    ],
};

const SWAP: u64 = 64 << 20;

/// Makes the kernel reclaim pages, if it believes that it may.
fn reclaim(area: &Area, pages: std::ops::Range<usize>) -> Result<()> {
    area.advise(pages, libc::MADV_PAGEOUT)
}

fn a_write_after_madv_free_stays() -> Result<()> {
    // Reclaim discards lazily freed pages with or without swap space. With swap space it can also
    // write out pages that it must not discard.
    let _swap = Swap::new(SWAP)?;
    let bound = Bound::new()?;
    for moved_back in [false, true] {
        let area = Area::small(64)?;
        area.write(area.all(), 1);
        if moved_back {
            bound.move_to_device(&area, area.all())?;
            bound.write(&area, area.all(), 1)?;
            bound.move_to_system(&area, area.all())?;
        }
        // The device has them mapped for writing already: the advice must end that.
        bound.write(&area, area.all(), 2)?;
        area.advise(area.all(), libc::MADV_FREE)?;
        bound.write(&area, 0..32, 3)?;
        area.write(32..40, 3);
        reclaim(&area, area.all())?;
        bound.expect(&area, 0..40, 3)?;
        area.expect(0..40, 3)?;
        for page in 40..64 {
            let found = area.read_word(page, 0);
            let old = area.word(page, 2);
            ensure!(found == 0 || found == old, "page {page} holds {found:#x}");
        }
    }
    Ok(())
}

fn madv_free_on_the_device() -> Result<()> {
    let _swap = Swap::new(SWAP)?;
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        area.advise(area.all(), libc::MADV_FREE)?;
        bound.write(&area, 0..16, 2)?;
        area.write(16..32, 2);
        bound.move_to_system(&area, 0..32)?;
        reclaim(&area, area.all())?;
        bound.expect(&area, 0..32, 2)?;
        area.expect(0..32, 2)?;
        for page in 32..area.pages() {
            let found = area.read_word(page, 0);
            let old = area.word(page, 1);
            ensure!(found == 0 || found == old, "page {page} holds {found:#x}");
        }
    }
    Ok(())
}

const PAGES: usize = 32;

fn mapped_file(path: &std::path::Path) -> Result<Area> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context("opening a file")?;
    file.set_len((PAGES * PAGE) as u64)?;
    let of_file = Some((file.as_fd(), 0));
    Area::map(PAGES * PAGE, sys::READ_WRITE, libc::MAP_SHARED, of_file)
}

/// Checks that the file holds a tag on its disk, not only in memory.
fn expect_on_disk(path: &std::path::Path, tag: crate::area::Tag) -> Result<()> {
    kernel::drop_caches()?;
    let found = fs::read(path).context("reading the file")?;
    let wanted: Vec<u8> = crate::area::words(tag, 0..PAGES)
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    ensure!(found.len() == wanted.len(), "it is as long as it was");
    if let Some(at) = (0..found.len()).find(|&at| found[at] != wanted[at]) {
        bail!("the disk has something else at byte {at} than tag {tag}");
    }
    Ok(())
}

fn a_write_to_a_file_is_written_back() -> Result<()> {
    let disk = Disk::new(16 << 20)?;
    let path = disk.file("written");
    let bound = Bound::new()?;
    for tag in 1..5 {
        let area = mapped_file(&path)?;
        bound.write(&area, area.all(), 10 * tag)?;
        sys::synchronise(area.address(0), PAGES * PAGE).context("msync")?;
        // The area stays mapped, and a second write must also reach the disk.
        bound.write(&area, area.all(), tag)?;
        sys::synchronise(area.address(0), PAGES * PAGE).context("msync")?;
        bound.expect(&area, area.all(), tag)?;
        drop(area);
        expect_on_disk(&path, tag)?;
    }
    Ok(())
}

fn a_write_to_a_file_outlives_the_process() -> Result<()> {
    let disk = Disk::new(16 << 20)?;
    let path = disk.file("left");
    for tag in 1..4 {
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            let area = mapped_file(&path)?;
            bound.expect(&area, 0..1, if tag == 1 { ZERO } else { tag - 1 })?;
            bound.write(&area, area.all(), tag)?;
            turns.pass_and_wait()
        })?;
        child.wait()?;
        child.kill()?;
        kernel::run("sync", &[])?;
        expect_on_disk(&path, tag)?;
    }
    Ok(())
}

/// How many pages of an area are swapped out; none of them may be on a device.
fn swapped_out(area: &Area) -> Result<usize> {
    let entries = kernel::entries(area)?;
    Ok(entries.iter().filter(|entry| entry.is_swap()).count())
}

/// Swaps pages out, except for a few that are in use at that moment.
fn swap_out(area: &Area) -> Result<()> {
    let most = area.pages() * 3 / 4;
    kernel::until("swapping out", || {
        reclaim(area, area.all())?;
        Ok(swapped_out(area)? >= most)
    })
}

fn what_was_written_is_swapped_out() -> Result<()> {
    let _swap = Swap::new(SWAP)?;
    let bound = Bound::new()?;
    for area in [Area::small(128)?, Area::large(1)?] {
        for tag in 1..3 {
            bound.write(&area, 0..128, tag)?;
            swap_out(&area)?;
            if tag % 2 == 0 {
                area.expect(0..128, tag)?;
            }
            bound.expect(&area, 0..128, tag)?;
            area.expect(0..128, tag)?;
            // A page that was swapped out once and only read since may be dropped. A write of the
            // device must prevent that.
            swap_out(&area)?;
            bound.expect(&area, 0..64, tag)?;
            bound.write(&area, 32..64, 10 + tag)?;
            swap_out(&area)?;
            bound.expect(&area, 32..64, 10 + tag)?;
            area.expect(0..32, tag)?;
            area.expect(32..64, 10 + tag)?;
            area.expect(64..128, tag)?;
        }
    }
    Ok(())
}

fn swapped_out_pages_are_not_lost_by_moving() -> Result<()> {
    let _swap = Swap::new(SWAP)?;
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    swap_out(&area)?;
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    ensure!(moved.moved + moved.skipped == 64, "{moved:?}");
    bound.expect(&area, area.all(), 1)?;
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    // The kernel cannot swap out pages of the device.
    reclaim(&area, area.all())?;
    bound.expect_place(&area, area.all(), Place::Device)?;
    area.expect(area.all(), 1)
}

fn pressure_swaps_what_came_back() -> Result<()> {
    const STEP: usize = 64;
    let _swap = Swap::new(SWAP)?;
    let group = Group::new()?;
    Child::fork(|_| {
        group.join()?;
        let bound = Bound::new()?;
        let (there, here) = (Area::small(4 * STEP)?, Area::small(12 * STEP)?);
        there.write(there.all(), 1);
        bound.move_to_device(&there, there.all())?;
        // Room for half of what is used in system memory.
        let now = group.number("memory.current")?;
        group.set("memory.max", &(now + (6 * STEP * PAGE) as u64).to_string())?;
        for tag in 1..4 {
            for first in (0..here.pages()).step_by(STEP) {
                bound.write(&here, first..first + 16, tag)?;
                here.write(first + 16..first + STEP, tag);
                let first = first % there.pages();
                bound.write(&there, first..first + 8, tag)?;
            }
            for first in (0..here.pages()).step_by(STEP) {
                bound.expect(&here, first..first + STEP, tag)?;
            }
            for first in (0..there.pages()).step_by(STEP) {
                bound.expect(&there, first..first + 8, tag)?;
                bound.expect(&there, first + 8..first + STEP, 1)?;
            }
        }
        ensure!(swapped_out(&here)? > 0, "the limit made pages go to swap");
        here.expect(here.all(), 3)?;
        for first in (0..there.pages()).step_by(STEP) {
            there.expect(first..first + 8, 3)?;
            there.expect(first + 8..first + STEP, 1)?;
        }
        Ok(())
    })?
    .end()?;
    let kills = group.counter("memory.events", "oom_kill")?;
    ensure!(kills == 0, "no process had to be killed");
    Ok(())
}
