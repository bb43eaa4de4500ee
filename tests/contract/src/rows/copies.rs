//! Copies that fail, in both directions: a page that could not be copied stays where it is or is
//! lost, and no other page is affected.
//!
//! Copies fail only on devices that are told to fail, which [`machine`](crate::machine) knows.
//! Without them these rows cannot run.

use std::cell::RefCell;
use std::fs;
use std::sync::atomic::Ordering;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Device, Place, Reason};

use crate::area::{Area, LARGE_PAGES, PAGE};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel;
use crate::machine::{faulty, Fault};
use crate::rounds::rounds;
use crate::row::{Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Copies that fail",
    rows: &[
        Row {
            name: "a-page-that-cannot-go-stays",
            duty: "a page whose copy to the device fails stays in system memory, intact and in \
                   use, its neighbours move, and the frame that it was to get is free again",
            source:
                "hmm.rst: Migration, steps 3 to 5 (a page whose MIGRATE_PFN_MIGRATE is cleared \
                     is restored); mm/migrate_device.c: migrate_vma_finalize",
            run: a_page_that_cannot_go_stays,
        },
        Row {
            name: "a-huge-page-that-cannot-go-stays",
            duty: "the same of a huge page, which stays as one",
            source: "mm/migrate_device.c: remove_migration_pte, remove_migration_pmd",
            run: a_huge_page_that_cannot_go_stays,
        },
        Row {
            name: "a-page-that-cannot-come-is-asked-again",
            duty: "of pages that are asked to come back, those whose copy fails stay on the \
                   device, intact, and come later",
            source: "mm/migrate_device.c: migrate_vma_finalize (restores the device-private entry)",
            run: a_page_that_cannot_come_is_asked_again,
        },
        Row {
            name: "a-huge-page-that-cannot-come-is-asked-again",
            duty: "the same of a huge page",
            source: "mm/migrate_device.c: remove_migration_pmd (device-private)",
            run: a_huge_page_that_cannot_come_is_asked_again,
        },
        Row {
            name: "a-touch-that-cannot-be-served",
            duty: "a CPU that touches a page whose copy fails gets SIGBUS, system calls EFAULT, \
                   and no process reads anything else there; the neighbours come back, and the \
                   page can be had when copies succeed",
            source: "mm/memory.c: do_swap_page (VM_FAULT_SIGBUS from migrate_to_ram)",
            run: a_touch_that_cannot_be_served,
        },
        Row {
            name: "a-huge-touch-that-cannot-be-served",
            duty: "the same of a huge page",
            source: "mm/huge_memory.c: do_huge_pmd_device_private",
            run: a_huge_touch_that_cannot_be_served,
        },
        Row {
            name: "a-sharer-ends-while-a-huge-touch-fails",
            duty: "a huge page on the device that is shared since a fork survives that one of \
                   both ends while the other one accesses it, also if the copy fails",
            source: "mm/huge_memory.c: zap_huge_pmd_folio; mm/migrate_device.c: \
                     remove_migration_pmd",
            run: a_sharer_ends_while_a_huge_touch_fails,
        },
        Row {
            name: "a-page-lost-at-close-is-poison",
            duty: "of pages that have to leave the device when its last file is closed, those \
                   whose copy fails are poison for their owner, whose other pages are intact; no \
                   frame stays in use",
            source: "mm/memory.c: handle_pte_marker; include/linux/memremap.h: migrate_to_ram",
            run: a_page_lost_at_close_is_poison,
        },
        Row {
            name: "a-huge-page-lost-at-close-is-poison",
            duty: "the same of huge pages, all of them, and of none of the pages beside them",
            source: "mm/huge_memory.c: zap_huge_pmd (splits the entry of a huge page)",
            run: a_huge_page_lost_at_close_is_poison,
        },
        Row {
            name: "a-lost-page-is-lost-to-all-its-owners",
            duty:
                "a page that parent and child share since a fork is poison for both, what either \
                   has written since is not, and a process that has no part in it notices nothing",
            source:
                "mm/memory.c: copy_nonpresent_pte (the same frame for both); zap_nonpresent_ptes",
            run: a_lost_page_is_lost_to_all_its_owners,
        },
        Row {
            name: "a-lost-page-is-never-read",
            duty:
                "while pages whose contents are lost are taken away from their process, it reads \
                   nothing there but what it has written: each access is a SIGBUS",
            source: "mm/memory.c: handle_pte_marker (PTE_MARKER_POISONED)",
            run: a_lost_page_is_never_read,
        },
        Row {
            name: "a-process-that-ends-needs-no-copy",
            duty: "a process that ends with pages on a device that gives nothing back loses none: \
                   its frames are free without a copy",
            source: "mm/memory.c: zap_nonpresent_ptes; dev_pagemap_ops.folio_free",
            run: a_process_that_ends_needs_no_copy,
        },
    ],
};

/// How often an action is tried until a copy fails; every fifth copy does.
const ROUNDS: usize = 60;

/// Pages of a row: no multiple of five, so that each round fails on another page.
const PAGES: usize = 37;

/// Pages whose neighbours do not lie in neighbouring frames of the guest. The driver has the device
/// copy neighbouring frames as one item, which fails as a whole.
fn apart(pages: usize) -> Result<Area> {
    let area = Area::small(pages)?;
    for first in [0, 1] {
        for page in (first..pages).step_by(2) {
            area.write(page..page + 1, 1);
        }
    }
    Ok(area)
}

/// Moves pages to the device so that no two neighbouring pages get neighbouring frames there.
fn move_apart(bound: &Bound, area: &Area) -> Result<()> {
    for first in [0, 1] {
        for page in (first..area.pages()).step_by(2) {
            bound.move_to_device(area, page..page + 1)?;
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

/// Reads a page by the kernel. Returns whether it could be read; its contents must be right.
pub(super) fn can_be_read(area: &Area, page: usize, tag: u8) -> Result<bool> {
    let mut bytes = [0; PAGE];
    // By a call that faults the page in once. Other accesses fault again when that fails, and a
    // later copy may succeed.
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
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    bound.move_to_system(&area, area.all())?;
    area.expect(area.all(), 1)
}

fn a_huge_page_that_cannot_go_stays() -> Result<()> {
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
                "a part of a huge page: {}",
                stayed.len()
            );
            ensure!(
                stayed.iter().all(|&page| states[page].is_large()),
                "it is large still"
            );
            area.expect(first..first + LARGE_PAGES, 1)?;
            bound.expect(&area, first..first + 64, 1)?;
            bound.move_to_device(&area, area.all())?;
            bound.expect(&area, area.all(), 1)?;
            return area.expect(area.all(), 1);
        }
        bound.move_to_system(&area, area.all())?;
    }
    bail!("no copy failed")
}

/// Asks pages to move to system memory until some cannot.
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
        bound.move_to_device(area, area.all())
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
    bound.move_to_system(&area, area.all())?;
    for page in area.all() {
        let tag = if stayed.contains(&page) { 2 } else { 1 };
        area.expect(page..page + 1, tag)?;
    }
    Ok(())
}

fn a_huge_page_that_cannot_come_is_asked_again() -> Result<()> {
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
    bound.move_to_system(&area, area.all())?;
    area.expect(area.all(), 1)
}

/// A child whose CPU reads a page, and which exits with success if the contents are right.
fn toucher(area: &Area, page: usize) -> Result<Child> {
    Child::fork(|_| {
        sys::die_of(libc::SIGBUS);
        match area.expect(page..page + 1, 1) {
            Ok(()) => Ok(()),
            // The caller checks only how the child ended, not its message.
            Err(_) => sys::leave(1),
        }
    })
}

/// Faults pages in until one cannot be served, once by a system call and once by a child's CPU.
fn touch_until_refused(bound: &Bound, area: &Area, number: usize) -> Result<()> {
    let lost = driver(number)?.pages_lost;
    let (mut by_call, mut by_touch, mut served) = (0, 0, 0);
    let other = Area::small(1)?;
    other.write(other.all(), 1);
    let mut rng = fastrand::Rng::with_seed(5);
    for round in 0..4 * ROUNDS {
        // A fixed share of the copies fails: without a random number of others in between, the
        // failure might always hit the call, or always the child's fault.
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
            bound.move_to_system(area, area.all())?;
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

fn a_huge_touch_that_cannot_be_served() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let area = Area::large(1)?;
    area.write(area.all(), 1);
    touch_until_refused(&bound, &area, number)
}

fn a_sharer_ends_while_a_huge_touch_fails() -> Result<()> {
    let number = faulty(Fault::ToSystem)?;
    let bound = Bound::number(number)?;
    let mut refused = 0;
    for round in rounds(96) {
        let area = Area::large(1)?;
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let mut child = Child::fork(|turns| turns.wait())?;
        child.pass()?;
        // So that the child's end now and then meets the CPU fault, whichever part of it takes
        // longest.
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

/// The pages of the area that are lost after the last file was closed. The others must keep their
/// contents, and the device must have none.
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

/// Checks that a lost page is poison for CPU and device alike, and that its address works again
/// with new memory.
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
    let (area, system) = (apart(PAGES)?, Area::small(16)?);
    system.write(system.all(), 1);
    bound.expect(&system, system.all(), 1)?;
    move_apart(&bound, &area)?;
    drop(bound);
    let lost = lost_at_close(&area, number, before)?;
    ensure!(
        !lost.is_empty() && lost.len() < PAGES,
        "some are lost, not all: {lost:?}"
    );
    system.expect(system.all(), 1)?;
    let again = Bound::new()?;
    for page in area.all().filter(|page| !lost.contains(page)) {
        again.expect(&area, page..page + 1, 1)?;
    }
    lost.iter()
        .try_for_each(|&page| is_poison(&area, page, &again))
}

fn a_huge_page_lost_at_close_is_poison() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    let before = driver(number)?.pages_lost;
    let bound = Bound::number(number)?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    // The second huge page lies beside the lost pages.
    bound.move_to_device(&area, 0..LARGE_PAGES)?;
    let small = apart(8)?;
    bound.move_to_device(&small, 0..4)?;
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
        // The write gives the child its own pages, from before the others moved.
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
        bound.move_to_device(&area, area.all())?;
    }
    let mut child = Child::fork(|turns| {
        // The child has inherited the file, which would keep it open.
        drop(bound.take());
        private.write(private.all(), 3);
        turns.pass_and_wait()?;
        for page in area.all() {
            ensure!(!can_be_read(&area, page, 1)?, "page {page} is lost");
        }
        // Since the parent's file was closed, the child alone has these pages.
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

/// The driver's directory in sysfs.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_hmm";

/// The device's name on its bus. The bus lists devices in the order of their numbers.
fn bus_name(number: usize) -> Result<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DRIVER)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(place) = name.strip_prefix("virtio") {
            found.push((place.parse::<usize>()?, name));
        }
    }
    found.sort_unstable();
    let found = found.into_iter().nth(number);
    Ok(found.context("the driver has no such device")?.1)
}

fn a_lost_page_is_never_read() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    // Gives the process time to read. If other lateness rules are in force, they decide.
    let _late = kernel::Late::by("delay=500ms@lost")?;
    let name = bus_name(number)?;
    let told = Area::shared(1)?;
    let mut owner = Child::fork(|turns| {
        let (small, large) = (apart(64)?, Area::large(1)?);
        small.write(small.all(), 1);
        large.write(large.all(), 1);
        let bound = Bound::number(number)?;
        bound.move_to_device(&small, small.all())?;
        bound.move_to_device(&large, large.all())?;
        turns.pass()?;
        let gone = told.counter(0, 0);
        loop {
            let is_last = gone.load(Ordering::Acquire) != 0;
            for area in [&small, &large] {
                for page in area.all() {
                    let readable = can_be_read(area, page, 1)?;
                    ensure!(
                        !readable,
                        "page {page} has come from a device that gives nothing"
                    );
                }
            }
            if is_last {
                return Ok(());
            }
        }
    })?;
    owner.wait()?;
    let unbound = kernel::write(format!("{DRIVER}/unbind"), &name);
    told.counter(0, 0).store(1, Ordering::Release);
    kernel::write(format!("{DRIVER}/bind"), &name)?;
    unbound?;
    owner.end()?;
    let used = driver(number)?.used_frames;
    ensure!(used == 0, "{used} frames are in use");
    Ok(())
}

fn a_process_that_ends_needs_no_copy() -> Result<()> {
    let number = faulty(Fault::NothingBack)?;
    let before = driver(number)?;
    let mut child = Child::fork(|turns| {
        let bound = Bound::number(number)?;
        let (small, large) = (apart(PAGES)?, Area::large(2)?);
        large.write(large.all(), 1);
        bound.move_to_device(&small, small.all())?;
        bound.move_to_device(&large, large.all())?;
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
