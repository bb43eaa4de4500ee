//! Tracking of written pages: it includes what the device writes.

use std::ops::Range;

use anyhow::{ensure, Result};
use hmm::Place;

use crate::area::Area;
use crate::bound::{add, Bound};
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::{self, Userfault};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Followed writes",
    rows: &[
        Row {
            name: "soft-dirty-sees-device-writes",
            duty: "pages that the device writes after soft-dirty bits were cleared are \
                   soft-dirty, wherever they were at that moment, and no other small pages are",
            source: "fs/proc/task_mmu.c: clear_soft_dirty (leaves entries of device memory the \
                     right to write); Documentation/admin-guide/mm/soft-dirty.rst",
            run: soft_dirty_sees_device_writes,
        },
        Row {
            name: "soft-dirty-sees-writes-of-what-came-back",
            duty: "so are pages that come back after the bits were cleared because a CPU reads \
                   them, and that a CPU writes then",
            source: "mm/migrate.c: remove_migration_pte (the right to write comes back with the \
                     page)",
            run: soft_dirty_sees_writes_of_what_came_back,
        },
        Row {
            name: "soft-dirty-sees-atomic-operations",
            duty: "so are pages to which the device had exclusive access at that moment, when it \
                   replaces values there again",
            source: "mm/memory.c: restore_exclusive_pte",
            run: soft_dirty_sees_atomic_operations,
        },
        Row {
            name: "page-map-scans-see-device-writes",
            duty: "PAGEMAP_SCAN with asynchronous write protection finds the pages that the \
                   device writes, wherever they were when they were protected, and no others",
            source: "fs/proc/task_mmu.c: make_uffd_wp_pte (leaves entries of device memory the \
                     right to write); Documentation/admin-guide/mm/pagemap.rst",
            run: page_map_scans_see_device_writes,
        },
    ],
};

const PAGES: usize = 64;
const WRITTEN: Range<usize> = 16..40;

/// Starts tracking the writes of this process.
fn clear_soft_dirty() -> Result<()> {
    kernel::write("/proc/self/clear_refs", "4")
}

fn soft_dirty(area: &Area) -> Result<Vec<usize>> {
    let entries = kernel::entries(area)?;
    let dirty = entries.iter().enumerate();
    Ok(dirty
        .filter(|(_, entry)| entry.is_soft_dirty())
        .map(|(page, _)| page)
        .collect())
}

/// Stops the row if the kernel does not track writes.
fn needs_soft_dirty() -> Result<()> {
    let area = Area::small(2)?;
    area.write(area.all(), 1);
    clear_soft_dirty()?;
    area.write(1..2, 2);
    if soft_dirty(&area)? == [1] {
        Ok(())
    } else {
        Err(cannot_run("the kernel has no soft-dirty bits"))
    }
}

/// The state of an area before its writes are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// In system memory, and mapped on the device for writing.
    System,
    /// On the device, and mapped there for writing.
    Device,
    /// On the device, and not used there yet.
    Unused,
}

fn area_in(bound: &Bound, before: Before) -> Result<Area> {
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    if before != Before::System {
        bound.move_to_device(&area, area.all())?;
    }
    if before != Before::Unused {
        bound.write(&area, area.all(), 1)?;
    }
    Ok(area)
}

fn contents(area: &Area, written: Range<usize>) -> Result<()> {
    area.expect(0..written.start, 1)?;
    area.expect(written.clone(), 2)?;
    area.expect(written.end..area.pages(), 1)
}

fn soft_dirty_sees_device_writes() -> Result<()> {
    needs_soft_dirty()?;
    let bound = Bound::new()?;
    for before in [Before::System, Before::Device, Before::Unused] {
        let area = area_in(&bound, before)?;
        // Twice: a second write must be found again, also after the pages moved to the device
        // again.
        for _ in 0..2 {
            clear_soft_dirty()?;
            ensure!(soft_dirty(&area)?.is_empty(), "{before:?}: cleared");
            bound.expect(&area, 0..8, 1)?;
            ensure!(
                soft_dirty(&area)?.is_empty(),
                "{before:?}: what is read is not written"
            );
            bound.write(&area, WRITTEN, 2)?;
            let found = soft_dirty(&area)?;
            ensure!(
                found == WRITTEN.collect::<Vec<_>>(),
                "{before:?}: found were {found:?}"
            );
            if before != Before::System {
                bound.expect_place(&area, 0..WRITTEN.start, Place::Device)?;
                bound.move_to_device(&area, area.all())?;
                let kept = soft_dirty(&area)?;
                ensure!(kept == found, "{before:?}: {kept:?} after the way there");
            }
        }
        contents(&area, WRITTEN)?;
    }
    // For a huge page no write may be missed; extra pages are allowed.
    let area = Area::large(1)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, 0..1, 1)?;
    clear_soft_dirty()?;
    bound.write(&area, WRITTEN, 2)?;
    let found = soft_dirty(&area)?;
    ensure!(
        WRITTEN.clone().all(|page| found.contains(&page)),
        "of a huge page, {found:?}"
    );
    contents(&area, WRITTEN)
}

fn soft_dirty_sees_writes_of_what_came_back() -> Result<()> {
    needs_soft_dirty()?;
    let bound = Bound::new()?;
    let area = area_in(&bound, Before::Device)?;
    clear_soft_dirty()?;
    area.expect(area.all(), 1)?;
    bound.expect_place(&area, area.all(), Place::System)?;
    ensure!(soft_dirty(&area)?.is_empty(), "what is read is not written");
    area.write(WRITTEN, 2);
    let found = soft_dirty(&area)?;
    ensure!(found == WRITTEN.collect::<Vec<_>>(), "found were {found:?}");
    contents(&area, WRITTEN)
}

fn soft_dirty_sees_atomic_operations() -> Result<()> {
    needs_soft_dirty()?;
    let bound = Bound::new()?;
    for moved in [false, true] {
        let area = Area::small(4)?;
        area.write(area.all(), 1);
        if moved {
            bound.move_to_device(&area, area.all())?;
        }
        let value = area.word(1, 1);
        let increment = || -> Result<()> {
            let job = bound.run(add(&area, 1, 0, 1, 1))?;
            ensure!(job.is_ok(), "moved {moved}: {job:?}");
            Ok(())
        };
        increment()?;
        clear_soft_dirty()?;
        ensure!(soft_dirty(&area)?.is_empty(), "moved {moved}: cleared");
        increment()?;
        ensure!(soft_dirty(&area)? == [1], "moved {moved}: one is written");
        let found = area.read_word(1, 0);
        ensure!(found == value.wrapping_add(2), "moved {moved}: {found:#x}");
    }
    Ok(())
}

fn page_map_scans_see_device_writes() -> Result<()> {
    // Its check of page tables finds what the source of this row says.
    if kernel::has_function("__page_table_check_ptes_set")? {
        return Err(cannot_run("the kernel warns of its own mistake here"));
    }
    let bound = Bound::new()?;
    let handler = Userfault::asynchronous()
        .map_err(|error| cannot_run(format!("no asynchronous write protection: {error}")))?;
    for before in [Before::System, Before::Device, Before::Unused] {
        let area = area_in(&bound, before)?;
        let (address, bytes) = (area.address(0), PAGES * crate::area::PAGE);
        handler.register_write_protection(address, bytes)?;
        // Twice, as above.
        for _ in 0..2 {
            let all = sys::written_pages(address, bytes, true)?;
            ensure!(!all.is_empty(), "{before:?}: not followed before");
            let none = sys::written_pages(address, bytes, false)?;
            ensure!(none.is_empty(), "{before:?}: {none:?} once protected");
            bound.expect(&area, 0..8, 1)?;
            bound.write(&area, WRITTEN, 2)?;
            let found = sys::written_pages(address, bytes, false)?;
            ensure!(
                found == WRITTEN.collect::<Vec<_>>(),
                "{before:?}: found were {found:?}"
            );
            if before != Before::System {
                bound.expect_place(&area, 0..WRITTEN.start, Place::Device)?;
                bound.move_to_device(&area, area.all())?;
                let kept = sys::written_pages(address, bytes, false)?;
                ensure!(kept == found, "{before:?}: {kept:?} after the way there");
            }
        }
        contents(&area, WRITTEN)?;
    }
    Ok(())
}
