//! Long-term pins: pages that are pinned without a limit in time, as by RDMA, stay in system
//! memory.

use std::ops::Range;

use anyhow::{ensure, Result};
use hmm::{Destination, Place};

use crate::area::{Area, Tag, LARGE_PAGES};
use crate::bound::Bound;
use crate::child::Child;
use crate::gup::{For, Pin};
use crate::row::{Chapter, Row};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Pins",
    rows: &[
        Row {
            name: "pinned-for-long-comes-back",
            duty:
                "pages on the device that are pinned for long come back before, stay there until \
                 they are let go, whatever asks for them, and are the pages that CPU and device \
                 use",
            source: "mm/gup.c: follow_page_pte (faults device-private entries in), \
                     check_and_migrate_movable_pages",
            run: pinned_for_long_comes_back,
        },
        Row {
            name: "pinned-for-long-in-part",
            duty: "of a huge page on the device of which a few pages are pinned for long, these \
                   stay in system memory, and none of it is lost",
            source: "mm/gup.c: follow_pmd_mask; mm/migrate_device.c: migrate_vma_collect_huge_pmd \
                     (folio refcount)",
            run: pinned_for_long_in_part,
        },
        Row {
            name: "pinned-for-reading-after-fork",
            duty:
                "a page on the device that is shared since a fork and pinned for reading becomes \
                   its process's own: what that writes later is what is pinned, and the child has \
                   the old contents",
            source: "mm/gup.c: gup_must_unshare (FAULT_FLAG_UNSHARE); mm/memory.c: do_wp_page",
            run: pinned_for_reading_after_fork,
        },
        Row {
            name: "pinned-and-forked",
            duty: "pages that came from the device and are pinned are copied for a child at fork: \
                   what parent, device and child write then, the pin sees of the parent only",
            source: "mm/memory.c: copy_present_page (folio_maybe_dma_pinned)",
            run: pinned_and_forked,
        },
        Row {
            name: "pinned-outlives-its-mapping",
            duty: "pages that came from the device and are pinned hold what they held after \
                   munmap, and what comes to their addresses is not theirs",
            source: "mm/memory.c: zap_present_ptes; mm/gup.c: unpin_user_pages",
            run: pinned_outlives_its_mapping,
        },
    ],
};

/// Checks that the pinned pages have the contents that these pages of an area have with a tag.
fn expect_pinned(pin: &Pin, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
    let contents = pin.contents()?;
    for (index, page) in pages.enumerate() {
        let (found, wanted) = (contents.read_word(index, 7), area.word(page, tag));
        ensure!(
            found == wanted,
            "what is pinned for page {page} holds {found:#x} instead of {wanted:#x} (tag {tag})"
        );
    }
    Ok(())
}

/// Checks that they are in system memory, and stay there when they are asked to move.
fn expect_held(bound: &Bound, area: &Area, pages: Range<usize>) -> Result<()> {
    bound.expect_place(area, pages.clone(), Place::System)?;
    let moved = bound.migrate(area, pages.clone(), Destination::Device)?;
    ensure!(moved.moved == 0, "what is pinned has moved: {moved:?}");
    bound.expect_place(area, pages, Place::System)
}

fn pinned_for_long_comes_back() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        for purpose in [For::Writing, For::FastWriting] {
            area.write(area.all(), 9);
            bound.move_to_device(&area, area.all())?;
            bound.write(&area, area.all(), 1)?;
            let pin = Pin::new(&area, area.all(), purpose)?;
            expect_pinned(&pin, &area, area.all(), 1)?;
            expect_held(&bound, &area, area.all())?;
            bound.write(&area, 0..16, 2)?;
            area.write(16..32, 3);
            bound.expect(&area, 16..32, 3)?;
            expect_pinned(&pin, &area, 0..16, 2)?;
            let contents = pin.contents()?;
            for page in 16..area.pages() {
                let tag = if page < 32 { 3 } else { 1 };
                let found = contents.read_word(page, 7);
                ensure!(found == area.word(page, tag), "page {page}: {found:#x}");
            }
            expect_held(&bound, &area, area.all())?;
            drop(pin);
            bound.move_to_device(&area, area.all())?;
            bound.expect(&area, 0..16, 2)?;
            bound.expect(&area, 16..32, 3)?;
            bound.expect(&area, 32..area.pages(), 1)?;
        }
    }
    Ok(())
}

fn pinned_for_long_in_part() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    let pinned = 100..104;
    let pin = Pin::new(&area, pinned.clone(), For::Writing)?;
    expect_held(&bound, &area, pinned.clone())?;
    bound.expect_place(&area, LARGE_PAGES..2 * LARGE_PAGES, Place::Device)?;
    // The other pages may move.
    bound.migrate(&area, area.all(), Destination::Device)?;
    expect_held(&bound, &area, pinned.clone())?;
    bound.write(&area, 96..108, 2)?;
    expect_pinned(&pin, &area, pinned, 2)?;
    bound.expect(&area, 0..96, 1)?;
    bound.expect(&area, 108..area.pages(), 1)?;
    drop(pin);
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, 96..108, 2)?;
    area.expect(0..96, 1)?;
    area.expect(96..108, 2)?;
    area.expect(108..area.pages(), 1)
}

fn pinned_for_reading_after_fork() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let mut child = Child::fork(|turns| {
            turns.pass_and_wait()?;
            area.expect(area.all(), 1)
        })?;
        child.wait()?;
        bound.expect_place(&area, area.all(), Place::Device)?;
        let pin = Pin::new(&area, 0..16, For::Reading)?;
        expect_pinned(&pin, &area, 0..16, 1)?;
        bound.write(&area, 0..8, 2)?;
        area.write(8..16, 2);
        expect_pinned(&pin, &area, 0..16, 2)?;
        expect_held(&bound, &area, 0..16)?;
        child.pass_and_end()?;
        area.expect(0..16, 2)?;
        area.expect(16..area.pages(), 1)?;
    }
    Ok(())
}

fn pinned_and_forked() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let pin = Pin::new(&area, 0..16, For::Writing)?;
        let mut child = Child::fork(|turns| {
            area.expect(area.all(), 1)?;
            area.write(0..4, 5);
            let bound = Bound::new()?;
            bound.write(&area, 4..8, 5)?;
            turns.pass_and_wait()?;
            area.expect(0..8, 5)?;
            area.expect(8..area.pages(), 1)
        })?;
        child.wait()?;
        expect_pinned(&pin, &area, 0..16, 1)?;
        bound.write(&area, 0..12, 2)?;
        area.write(12..16, 2);
        expect_pinned(&pin, &area, 0..16, 2)?;
        child.pass_and_end()?;
        expect_held(&bound, &area, 0..16)?;
        area.expect(0..16, 2)?;
    }
    Ok(())
}

fn pinned_outlives_its_mapping() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 9);
        bound.move_to_device(&area, area.all())?;
        bound.write(&area, area.all(), 1)?;
        let pin = Pin::new(&area, 8..16, For::Writing)?;
        area.renew(area.all())?;
        let used = bound.counters()?.driver.used_frames;
        ensure!(used == 0, "{used} frames are in use still");
        bound.write(&area, 8..12, 2)?;
        area.write(12..16, 2);
        expect_pinned(&pin, &area, 8..16, 1)?;
        bound.move_to_device(&area, 8..16)?;
        drop(pin);
        bound.expect(&area, 8..16, 2)?;
    }
    Ok(())
}
