//! Copies that fail, in both directions: what could not be copied is left where it is or
//! given up, alone.
//!
//! On ordinary devices no copy fails. These rows need devices that are told to fail, which
//! [`machine`](crate::machine) knows, and cannot run elsewhere.

use std::cell::RefCell;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Device, Place, Reason};

use crate::area::{Area, LARGE_PAGES, PAGE};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel;
use crate::machine::{faulty, Fault};
use crate::row::{Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Copies that fail",
    rows: &[
        Row {
            name: "a-page-that-cannot-go-stays",
            duty: "a page whose copy to the device fails stays at home, intact and in use, its \
                   neighbours move, and the frame that it was to get is free again",
            source:
                "hmm.rst: Migration, steps 3 to 5 (a page whose MIGRATE_PFN_MIGRATE is cleared \
                     is restored); mm/migrate_device.c: migrate_vma_finalize",
            run: a_page_that_cannot_go_stays,
        },
        Row {
            name: "a-large-page-that-cannot-go-stays",
            duty: "the same of a large page, which stays as one",
            source: "mm/migrate_device.c: remove_migration_pte, remove_migration_pmd",
            run: a_large_page_that_cannot_go_stays,
        },
        Row {
            name: "a-page-that-cannot-come-is-asked-again",
            duty: "of pages that are asked to come home, those whose copy fails stay on the \
                   device, intact, and come later",
            source: "mm/migrate_device.c: migrate_vma_finalize (restores the device-private entry)",
            run: a_page_that_cannot_come_is_asked_again,
        },
        Row {
            name: "a-large-page-that-cannot-come-is-asked-again",
            duty: "the same of a large page",
            source: "mm/migrate_device.c: remove_migration_pmd (device-private)",
            run: a_large_page_that_cannot_come_is_asked_again,
        },
        Row {
            name: "a-touch-that-cannot-be-served",
            duty: "a CPU that touches a page whose copy fails gets SIGBUS, system calls EFAULT, \
                   and nobody reads anything else there; the neighbours come home, and the page \
                   can be had when copies succeed",
            source: "mm/memory.c: do_swap_page (VM_FAULT_SIGBUS from migrate_to_ram)",
            run: a_touch_that_cannot_be_served,
        },
        Row {
            name: "a-large-touch-that-cannot-be-served",
            duty: "the same of a large page",
            source: "mm/huge_memory.c: do_huge_pmd_device_private",
            run: a_large_touch_that_cannot_be_served,
        },
        Row {
            name: "a-sharer-ends-while-a-large-touch-fails",
            duty: "a large page on the device that is shared since a fork survives that one of \
                   both ends while the other one touches it, also if the copy fails",
            source: "mm/huge_memory.c: zap_huge_pmd_folio; mm/migrate_device.c: \
                     remove_migration_pmd",
            run: a_sharer_ends_while_a_large_touch_fails,
        },
        Row {
            name: "a-page-lost-at-close-is-poison",
            duty: "of pages that have to leave the device when its last file is closed, those \
                   whose copy fails are poison for their owner, whose other pages are intact; no \
                   frame stays in use",
            source: "mm/memory-failure.c: hwpoison_user_mappings; include/linux/memremap.h: \
                     migrate_to_ram",
            run: a_page_lost_at_close_is_poison,
        },
        Row {
            name: "a-large-page-lost-at-close-is-poison",
            duty: "the same of large pages, all of them, and of none of the pages beside them",
            source: "mm/memory-failure.c: try_to_split_thp_page",
            run: a_large_page_lost_at_close_is_poison,
        },
        Row {
            name: "a-lost-page-is-lost-to-all-its-owners",
            duty:
                "a page that parent and child share since a fork is poison for both, what either \
                   has written since is not, and whoever has no part in it notices nothing",
            source: "mm/memory-failure.c: collect_procs_anon, unmap_poisoned_folio",
            run: a_lost_page_is_lost_to_all_its_owners,
        },
        Row {
            name: "who-ends-needs-no-copy",
            duty: "a process that ends with pages on a device that gives nothing back loses none: \
                   its frames are free without a copy",
            source: "mm/memory.c: zap_nonpresent_ptes; dev_pagemap_ops.folio_free",
            run: who_ends_needs_no_copy,
        },
    ],
};

/// How often something is tried until a copy fails, of which every fifth does.
const ROUNDS: usize = 60;

/// Pages of a row: no multiple of five, so that it is another page's turn each time.
const PAGES: usize = 37;

/// Pages that no two neighbours of lie in neighbouring frames of the guest: the driver has
/// the device copy such as one item, which fails as a whole.
fn apart(pages: usize) -> Result<Area> {
    let area = Area::small(pages)?;
    for first in [0, 1] {
        for page in (first..pages).step_by(2) {
            area.write(page..page + 1, 1);
        }
    }
    Ok(area)
}

/// Moves pages to the device so that no two neighbours lie in neighbouring frames there.
fn move_apart(bound: &Bound, area: &Area) -> Result<()> {
    for first in [0, 1] {
        for page in (first..area.pages()).step_by(2) {
            bound.move_there(area, page..page + 1)?;
        }
    }
    Ok(())
}

fn driver(number: usize) -> Result<hmm::DriverStatistics> {
    let device = Device::open(format!("/dev/hmm{number}"))?;
    Ok(device.counters()?.driver)
}

/// Which pages are in this place.
fn in_place(bound: &Bound, area: &Area, place: Place) -> Result<Vec<usize>> {
    let states = bound.states(area, area.all())?;
    let pages = area.all().filter(|page| states[*page].place() == place);
    Ok(pages.collect())
}

/// Reads a page by the kernel's hand: whether it could be, and was right.
fn can_be_read(area: &Area, page: usize, tag: u8) -> Result<bool> {
    let mut bytes = [0; PAGE];
    // By a call that brings the page in once: others touch it again when that fails, and some
    // later copy may go well.
    let this = i32::try_from(std::process::id())?;
    match sys::read_process(this, area.address(page), &mut bytes) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Ok(false),
        other => ensure!(
            other.context("process_vm_readv(2)")? == PAGE,
            "a part of page {page}"
        ),
    }
    for word in bytes.chunks_exact(8) {
        let found = u64::from_ne_bytes(word.try_into()?);
        ensure!(
            found == area.word(page, tag),
            "page {page} holds {found:#x} instead of what was written or nothing"
        );
    }
    Ok(true)
}

fn a_page_that_cannot_go_stays() -> Result<()> {
    let number = faulty(Fault::ToDevice)?;
    let bound = Bound::number(number)?;
    let area = apart(PAGES)?;
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    let stayed = in_place(&bound, &area, Place::System)?;
    ensure!(
        !stayed.is_empty() && stayed.len() < PAGES,
        "some stay and others do not: {stayed:?}, {moved:?}"
    );
    ensure!(
        moved.moved == (PAGES - stayed.len()) as u64,
        "what is said is so: {moved:?}, but {stayed:?} stayed"
    );
    let used = bound.counters()?.driver.used_frames;
    ensure!(
        used == moved.moved,
        "{used} frames are in use for {} pages",
        moved.moved
    );
    let entries = kernel::entries(&area)?;
    for page in area.all() {
        let present = entries[page].is_present();
        ensure!(present == stayed.contains(&page), "page {page}: {present}");
    }
    bound.expect(&area, area.all(), 1)?;
    for &page in &stayed {
        area.expect(page..page + 1, 1)?;
        bound.write(&area, page..page + 1, 2)?;
        area.expect(page..page + 1, 2)?;
        area.write(page..page + 1, 1);
    }
    bound.move_there(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    bound.move_home(&area, area.all())?;
    area.expect(area.all(), 1)
}

fn a_large_page_that_cannot_go_stays() -> Result<()> {
    let bound = Bound::number(faulty(Fault::ToDevice)?)?;
    let area = Area::large(3)?;
    area.write(area.all(), 1);
    for _ in 0..ROUNDS {
        bound.migrate(&area, area.all(), Destination::Device)?;
        let stayed = in_place(&bound, &area, Place::System)?;
        let states = bound.states(&area, area.all())?;
        if let Some(&first) = stayed.first() {
            ensure!(
                stayed.len() % LARGE_PAGES == 0,
                "a part of a large page: {}",
                stayed.len()
            );
            ensure!(
                stayed.iter().all(|&page| states[page].is_large()),
                "it is large still"
            );
            area.expect(first..first + LARGE_PAGES, 1)?;
            bound.expect(&area, first..first + 64, 1)?;
            bound.move_there(&area, area.all())?;
            bound.expect(&area, area.all(), 1)?;
            return area.expect(area.all(), 1);
        }
        bound.move_home(&area, area.all())?;
    }
    bail!("no copy failed")
}

/// Asks pages to come home until some did not.
fn some_cannot_come(bound: &Bound, area: &Area, number: usize) -> Result<Vec<usize>> {
    let lost = driver(number)?.pages_lost;
    for _ in 0..ROUNDS {
        move_apart_or_whole(bound, area)?;
        let moved = bound.migrate(area, area.all(), Destination::System)?;
        let stayed = in_place(bound, area, Place::Device)?;
        ensure!(
            moved.moved == (area.pages() - stayed.len()) as u64,
            "{moved:?}, but {} stayed",
            stayed.len()
        );
        if !stayed.is_empty() {
            let used = bound.counters()?.driver.used_frames;
            ensure!(
                used == stayed.len() as u64,
                "{used} frames for {} pages",
                stayed.len()
            );
            ensure!(driver(number)?.pages_lost == lost, "none is lost");
            return Ok(stayed);
        }
    }
    bail!("no copy failed")
}

fn move_apart_or_whole(bound: &Bound, area: &Area) -> Result<()> {
    if area.pages() < LARGE_PAGES {
        move_apart(bound, area)
    } else {
        bound.move_there(area, area.all())
    }
}

fn a_page_that_cannot_come_is_asked_again() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let area = apart(PAGES)?;
    let stayed = some_cannot_come(&bound, &area, number)?;
    ensure!(stayed.len() < PAGES, "their neighbours have come");
    let entries = kernel::entries(&area)?;
    for page in area.all() {
        let away = entries[page].is_swap();
        ensure!(
            away == stayed.contains(&page),
            "page {page} is away: {away}"
        );
    }
    bound.expect(&area, area.all(), 1)?;
    for &page in &stayed {
        bound.write(&area, page..page + 1, 2)?;
    }
    bound.move_home(&area, area.all())?;
    for page in area.all() {
        let tag = if stayed.contains(&page) { 2 } else { 1 };
        area.expect(page..page + 1, tag)?;
    }
    Ok(())
}

fn a_large_page_that_cannot_come_is_asked_again() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    let stayed = some_cannot_come(&bound, &area, number)?;
    let states = bound.states(&area, area.all())?;
    ensure!(
        stayed.len() % LARGE_PAGES == 0 && stayed.iter().all(|&page| states[page].is_large()),
        "they are large still"
    );
    bound.expect(&area, area.all(), 1)?;
    bound.move_home(&area, area.all())?;
    area.expect(area.all(), 1)
}

/// A child whose CPU reads a page, and which ends well if it is as it was.
fn toucher(area: &Area, page: usize) -> Result<Child> {
    Child::fork(|_| {
        sys::die_of(libc::SIGBUS);
        match area.expect(page..page + 1, 1) {
            Ok(()) => Ok(()),
            // What it says does not reach who asks only how it ended.
            Err(_) => sys::leave(1),
        }
    })
}

/// Touches pages until it cannot be served, once by system call and once by a child's CPU.
fn touch_until_refused(bound: &Bound, area: &Area, number: usize) -> Result<()> {
    let lost = driver(number)?.pages_lost;
    let (mut by_call, mut by_touch, mut served) = (0, 0, 0);
    let other = Area::small(1)?;
    other.write(other.all(), 1);
    let mut rng = fastrand::Rng::with_seed(5);
    for round in 0..4 * ROUNDS {
        // Every so many copies fail: without some others in between, it might always be the call,
        // or always the touch.
        for _ in 0..rng.usize(..5) {
            let _ = bound.migrate(&other, other.all(), Destination::Device)?;
            let _ = bound.migrate(&other, other.all(), Destination::System)?;
        }
        move_apart_or_whole(bound, area)?;
        let page = round * 7 % area.pages();
        let refused = if round % 2 == 0 {
            let refused = !can_be_read(area, page, 1)?;
            by_call += usize::from(refused);
            refused
        } else {
            let child = toucher(area, page)?;
            let refused = match child.status()? {
                End::Exited(0) => false,
                End::Signalled(libc::SIGBUS) => true,
                end => bail!("the child that touches page {page}: {end:?}"),
            };
            by_touch += usize::from(refused);
            refused
        };
        served += usize::from(!refused);
        if refused {
            bound.expect_place(area, page..page + 1, Place::Device)?;
            bound.expect(area, page..page + 1, 1)?;
        }
        ensure!(driver(number)?.pages_lost == lost, "none is lost for good");
        if by_call > 0 && by_touch > 0 && served > 0 {
            bound.move_home(area, area.all())?;
            return area.expect(area.all(), 1);
        }
    }
    bail!("refused: {by_call} by call and {by_touch} by touch, served: {served}")
}

fn a_touch_that_cannot_be_served() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    touch_until_refused(&bound, &apart(PAGES)?, number)
}

fn a_large_touch_that_cannot_be_served() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let area = Area::large(1)?;
    area.write(area.all(), 1);
    touch_until_refused(&bound, &area, number)
}

fn a_sharer_ends_while_a_large_touch_fails() -> Result<()> {
    const ROUNDS: u32 = 160;
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let mut refused = 0;
    for round in 0..ROUNDS {
        let area = Area::large(1)?;
        area.write(area.all(), 1);
        bound.move_there(&area, area.all())?;
        let mut child = Child::fork(|turns| turns.wait())?;
        child.pass()?;
        // So that the end falls into the touch now and then, wherever it takes longest.
        for _ in 0..round % 32 * 500 {
            std::hint::spin_loop();
        }
        refused += u32::from(!can_be_read(&area, 0, 1)?);
        child.end()?;
        for page in area.all() {
            while !can_be_read(&area, page, 1)? {
                refused += 1;
            }
        }
    }
    ensure!(refused > 0, "no touch failed");
    let used = driver(number)?.used_frames;
    ensure!(used == 0, "{used} frames are in use");
    Ok(())
}

/// After the last file was closed: which pages of the area are lost. The others must hold
/// what they held, and the device nothing.
fn lost_at_close(area: &Area, number: usize, before: u64) -> Result<Vec<usize>> {
    let after = driver(number)?;
    ensure!(
        after.used_frames == 0,
        "{} frames are in use",
        after.used_frames
    );
    let mut lost = Vec::new();
    for page in area.all() {
        if !can_be_read(area, page, 1)? {
            lost.push(page);
        }
    }
    ensure!(
        after.pages_lost - before == lost.len() as u64,
        "{} are said to be lost, but {lost:?} are",
        after.pages_lost - before
    );
    Ok(lost)
}

/// A lost page is poison for CPU and device alike, and its address good for new memory.
fn is_poison(area: &Area, page: usize, bound: &Bound) -> Result<()> {
    let end = toucher(area, page)?.status()?;
    ensure!(end == End::Signalled(libc::SIGBUS), "page {page}: {end:?}");
    bound.refuse_read(area, page, Reason::Denied)?;
    bound.refuse_write(area, page, Reason::Denied)?;
    area.renew(page..page + 1)?;
    bound.write(area, page..page + 1, 2)?;
    area.expect(page..page + 1, 2)
}

fn a_page_lost_at_close_is_poison() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let before = driver(number)?.pages_lost;
    let bound = Bound::number(number)?;
    let (area, home) = (apart(PAGES)?, Area::small(16)?);
    home.write(home.all(), 1);
    bound.expect(&home, home.all(), 1)?;
    move_apart(&bound, &area)?;
    drop(bound);
    let lost = lost_at_close(&area, number, before)?;
    ensure!(
        !lost.is_empty() && lost.len() < PAGES,
        "some are lost, not all: {lost:?}"
    );
    home.expect(home.all(), 1)?;
    let again = Bound::new()?;
    for page in area.all().filter(|page| !lost.contains(page)) {
        again.expect(&area, page..page + 1, 1)?;
    }
    lost.iter()
        .try_for_each(|&page| is_poison(&area, page, &again))
}

fn a_large_page_lost_at_close_is_poison() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    let before = driver(number)?.pages_lost;
    let bound = Bound::number(number)?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    // The second one is beside what is lost.
    bound.move_there(&area, 0..LARGE_PAGES)?;
    let small = apart(8)?;
    bound.move_there(&small, 0..4)?;
    let (page, there) = (100, Place::Device);
    ensure!(!can_be_read(&area, page, 1)?, "it cannot come");
    bound.expect_place(&area, 0..LARGE_PAGES, there)?;
    drop(bound);
    let lost = lost_at_close(&area, number, before + 4)?;
    ensure!(
        lost == (0..LARGE_PAGES).collect::<Vec<_>>(),
        "{} pages of the large one are lost",
        lost.len()
    );
    for page in small.all() {
        let readable = can_be_read(&small, page, 1)?;
        ensure!(readable == (page >= 4), "small page {page}: {readable}");
    }
    let again = Bound::new()?;
    again.expect(&area, LARGE_PAGES..2 * LARGE_PAGES, 1)?;
    for page in [0, 1, 100, LARGE_PAGES - 1] {
        is_poison(&area, page, &again)?;
    }
    is_poison(&small, 3, &again)
}

fn a_lost_page_is_lost_to_all_its_owners() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    let before = driver(number)?.pages_lost;
    let (area, private) = (apart(8)?, apart(8)?);
    let mut stranger = Child::fork(|turns| {
        // It has the pages from before they went: its own.
        area.write(area.all(), 5);
        private.write(private.all(), 5);
        turns.pass_and_wait()?;
        area.expect(area.all(), 5)?;
        private.expect(private.all(), 5)
    })?;
    stranger.wait()?;
    area.write(area.all(), 1);
    private.write(private.all(), 1);
    let bound = RefCell::new(Some(Bound::number(number)?));
    if let Some(bound) = &*bound.borrow() {
        bound.move_there(&area, area.all())?;
    }
    let mut child = Child::fork(|turns| {
        // It has inherited the file, which is not to stay open.
        drop(bound.take());
        private.write(private.all(), 3);
        turns.pass_and_wait()?;
        for page in area.all() {
            ensure!(!can_be_read(&area, page, 1)?, "page {page} is lost");
        }
        // It was the only one who has them since then.
        private.expect(private.all(), 3)?;
        area.renew(area.all())?;
        area.write(area.all(), 4);
        area.expect(area.all(), 4)
    })?;
    child.wait()?;
    drop(bound.take());
    let lost = lost_at_close(&area, number, before)?;
    ensure!(lost.len() == area.pages(), "all of them: {lost:?}");
    child.pass_and_end()?;
    private.expect(private.all(), 1)?;
    stranger.pass_and_end()
}

fn who_ends_needs_no_copy() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    let before = driver(number)?;
    let mut child = Child::fork(|turns| {
        let bound = Bound::number(number)?;
        let (small, large) = (apart(PAGES)?, Area::large(2)?);
        large.write(large.all(), 1);
        bound.move_there(&small, small.all())?;
        bound.move_there(&large, large.all())?;
        small.unmap(0..8)?;
        large.unmap(0..LARGE_PAGES)?;
        turns.pass_and_wait()
    })?;
    child.wait()?;
    ensure!(
        driver(number)?.used_frames == (PAGES - 8 + LARGE_PAGES) as u64,
        "what was unmapped is free"
    );
    child.pass_and_end()?;
    let after = driver(number)?;
    ensure!(after.used_frames == 0, "{} frames", after.used_frames);
    ensure!(after.pages_lost == before.pages_lost, "none is lost");
    Ok(())
}
