//! What a migration costs, when it ends, and what it reports.
//!
//! Costs are measured by the driver's counters: a walk of a part of a process takes at least one
//! notifier callback, a copy takes one request.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure, Result};
use hmm::spec::uapi::{DriverStatistics, Migrate};
use hmm::{Destination, Place};

use crate::area::{Area, LARGE_PAGES, PAGE, ZERO};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Costs and ends of moves",
    rows: &[
        Row {
            name: "holes-stay-holes",
            duty: "a move takes what is there: where nothing is, or only the page of zeros that \
                   all share, nothing is made",
            source: "mm/migrate_device.c: migrate_vma_collect_hole (the driver may leave them)",
            run: holes_stay_holes,
        },
        Row {
            name: "untouched-memory-costs-nothing",
            duty: "to move three pages in 64 TiB of untouched memory takes a few searches, there \
                   and back",
            source: "mm/migrate_device.c: migrate_vma_collect (walks what it is told to)",
            run: untouched_memory_costs_nothing,
        },
        Row {
            name: "a-full-device-ends-a-move",
            duty: "once the device is full, what is left of a range is not even asked",
            source: "hmm.rst: Migration, step 3: clearing a page's bit",
            run: a_full_device_ends_a_move,
        },
        Row {
            name: "a-signal-ends-a-move-with-what-was-done",
            duty: "a signal ends a move early, which says how far it came; called again from \
                   there it comes to its end",
            source: "include/linux/sched/signal.h: signal_pending",
            run: a_signal_ends_a_move_with_what_was_done,
        },
        Row {
            name: "a-killed-process-moves-no-more",
            duty: "a process that is killed in a move leaves it after the copies under way, in \
                   both directions",
            source: "include/linux/sched/signal.h: fatal_signal_pending",
            run: a_killed_process_moves_no_more,
        },
        Row {
            name: "a-page-that-moves-twice-counts-once",
            duty:
                "a page that comes back in a move, is sent back by another thread and comes once \
                   more counts once: no more pages have moved than were asked for",
            source: "mm/migrate_device.c: migrate_vma_setup (each call sees the pages anew)",
            run: a_page_that_moves_twice_counts_once,
        },
    ],
};

fn driver(bound: &Bound) -> Result<DriverStatistics> {
    Ok(bound.counters()?.driver)
}

/// How many pages the device has memory for.
fn frames(bound: &Bound) -> Result<usize> {
    Ok(usize::try_from(driver(bound)?.total_frames)?)
}

fn needs_memory(bytes: usize) -> Result<()> {
    if kernel::meminfo("MemAvailable")? < bytes as u64 {
        return Err(cannot_run(format!("the guest has less than {bytes} bytes")));
    }
    Ok(())
}

fn holes_stay_holes() -> Result<()> {
    let bound = Bound::new()?;
    let (area, empty) = (Area::small(64)?, Area::large(1)?);
    area.write(0..8, 1);
    area.expect(8..16, ZERO)?;
    let before = driver(&bound)?;
    bound.move_to_device(&area, 0..8)?;
    for area in [&area, &empty] {
        let moved = bound.migrate(area, area.all(), Destination::Device)?;
        ensure!(
            moved.moved == 0 && moved.no_memory == 0 && moved.skipped == area.pages() as u64,
            "nothing else is there: {moved:?}"
        );
    }
    let after = driver(&bound)?;
    ensure!(after.used_frames - before.used_frames == 8);
    ensure!(
        after.pages_refused == before.pages_refused,
        "nothing was refused"
    );
    bound.expect_place(&area, 0..8, Place::Device)?;
    bound.expect_place(&area, 8..16, Place::System)?;
    bound.expect_place(&area, 16..64, Place::None)?;
    bound.expect_place(&empty, empty.all(), Place::None)?;
    bound.expect(&area, 0..8, 1)?;
    bound.expect(&area, 8..64, ZERO)?;
    area.expect(0..8, 1)?;
    area.expect(8..64, ZERO)
}

fn untouched_memory_costs_nothing() -> Result<()> {
    const GIB: usize = 1 << 30;
    const LOOKS: u64 = 64;
    let bound = Bound::new()?;
    for bytes in [64 * GIB, 64 * 1024 * GIB] {
        let area = Area::unreserved(bytes)?;
        let pages = area.pages();
        let used = [0, pages / 2 + 5, pages - 1];
        for page in used {
            area.write(page..page + 1, 1);
        }
        for destination in [Destination::Device, Destination::System] {
            let (mut moved, mut calls) = (0, 0);
            let before = driver(&bound)?.invalidations;
            while moved < used.len() as u64 && calls < 8 {
                moved += bound.migrate(&area, area.all(), destination)?.moved;
                calls += 1;
            }
            ensure!(moved == 3, "{moved} pages moved to {destination:?}");
            let looks = driver(&bound)?.invalidations - before;
            ensure!(
                looks <= LOOKS * calls,
                "{calls} calls for {} GiB took {looks} looks",
                bytes / GIB
            );
            for page in used {
                let place = match destination {
                    Destination::Device => Place::Device,
                    Destination::System => Place::System,
                };
                bound.expect_place(&area, page..page + 1, place)?;
                bound.expect(&area, page..page + 1, 1)?;
            }
        }
        for page in used {
            area.expect(page..page + 1, 1)?;
        }
    }
    Ok(())
}

fn a_full_device_ends_a_move() -> Result<()> {
    let bound = Bound::new()?;
    let total = frames(&bound)?;
    needs_memory(4 * total * PAGE)?;
    let area = Area::large(3 * total / LARGE_PAGES)?;
    area.write(area.all(), 1);
    let before = driver(&bound)?;
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    let after = driver(&bound)?;
    ensure!(
        moved.moved > 0 && moved.no_memory > 0,
        "some found memory, some did not: {moved:?}"
    );
    let refused = after.pages_refused - before.pages_refused;
    let rest = (area.pages() - total) as u64;
    ensure!(
        refused <= rest / 4 && moved.no_memory <= rest / 4,
        "of {rest} pages that do not fit {refused} were asked: {moved:?}"
    );
    area.expect(area.all(), 1)
}

/// An area that fills three quarters of the device. A row that uses it also moves all of it back to
/// system memory at once.
fn much(bound: &Bound) -> Result<Area> {
    let pages = frames(bound)? / 4 * 3;
    needs_memory(2 * pages * PAGE)?;
    let area = Area::large(pages / LARGE_PAGES)?;
    area.write(area.all(), 1);
    Ok(area)
}

/// A call that moves an area from a page on.
fn migrate(area: &Area, page: usize, destination: Destination) -> Migrate {
    call(area.address(page), area.pages() - page, destination)
}

fn call(address: usize, pages: usize, destination: Destination) -> Migrate {
    Migrate {
        address: address as u64,
        bytes: (pages * PAGE) as u64,
        destination: destination.raw(),
        flags: 0,
        moved: 0,
        skipped: 0,
        no_memory: 0,
        reached: 0,
    }
}

fn a_signal_ends_a_move_with_what_was_done() -> Result<()> {
    let bound = Bound::new()?;
    let area = much(&bound)?;
    let end = area.address(area.pages()) as u64;
    for destination in [Destination::Device, Destination::System].repeat(3) {
        let (mut early, mut moved, mut page) = (0, 0, 0);
        let signals = sys::Signals::every(Duration::from_micros(500), false)?;
        while page < area.pages() {
            let mut call = migrate(&area, page, destination);
            sys::migrate(bound.space().device().as_fd(), &mut call)?;
            let (from, reached) = (call.address, call.reached);
            ensure!(
                from < reached && reached <= end,
                "it gets somewhere: {call:?}"
            );
            ensure!(
                call.moved + call.skipped == (area.pages() - page) as u64
                    && call.moved <= (reached - from) / PAGE as u64,
                "pages are counted where it came: {call:?}"
            );
            early += u64::from(reached < end);
            moved += call.moved;
            page += usize::try_from(reached - from)? / PAGE;
        }
        let count = signals.count();
        drop(signals);
        ensure!(early > 0, "of {count} signals none ended a call");
        ensure!(
            moved >= area.pages() as u64 / 2,
            "{moved} pages moved to {destination:?}"
        );
        bound.expect(&area, 0..LARGE_PAGES, 1)?;
    }
    area.expect(area.all(), 1)
}

fn a_killed_process_moves_no_more() -> Result<()> {
    /// The most bytes that are copied after the kill: the lists of copies under way and one that
    /// was about to start, of at most 4 MiB each. Requests are no measure, because frames of dead
    /// processes are discarded.
    const UNDER_WAY: u64 = 4 * (4 << 20);
    let copied = |bound: &Bound| {
        let device = bound.counters()?.device;
        Ok::<_, anyhow::Error>(device.bytes_to_device.get() + device.bytes_to_system.get())
    };
    let bound = Bound::new()?;
    for round in 0..8 {
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            let area = much(&bound)?;
            turns.pass()?;
            loop {
                for destination in [Destination::Device, Destination::System] {
                    bound.migrate(&area, area.all(), destination)?;
                }
            }
        })?;
        child.wait()?;
        // A different moment each time.
        let begun = driver(&bound)?.dma_requests;
        kernel::until("copies", || {
            Ok(driver(&bound)?.dma_requests >= begun + 3 * round)
        })?;
        sys::signal(child.id(), libc::SIGKILL)?;
        let before = copied(&bound)?;
        let end = child.status()?;
        let bytes = copied(&bound)? - before;
        ensure!(end == End::Signalled(libc::SIGKILL), "{end:?}");
        ensure!(
            bytes <= UNDER_WAY,
            "{bytes} bytes copied after it was killed"
        );
    }
    Ok(())
}

fn a_page_that_moves_twice_counts_once() -> Result<()> {
    const ROUNDS: usize = 8;
    /// Enough that the first one is in system memory while the last ones are on their way.
    const COUNT: usize = 8;
    const PART: usize = 64;
    let bound = Bound::new()?;
    let device = bound.space().device().as_fd();
    // The address that the other thread sends back to the device as soon as it is in system memory;
    // zero for none.
    let target = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<u64> {
            let mut moved = 0;
            while !over.load(Ordering::Relaxed) {
                let address = target.load(Ordering::Relaxed);
                if address == 0 {
                    std::hint::spin_loop();
                    continue;
                }
                let mut call = call(address, PART, Destination::Device);
                sys::migrate(device, &mut call)?;
                moved += call.moved;
            }
            Ok(moved)
        });
        let mut areas = Vec::new();
        let result = (0..ROUNDS).try_for_each(|round| {
            let area = Area::large(COUNT)?;
            area.write(area.all(), 1);
            bound.move_to_device(&area, area.all())?;
            target.store(area.address(0), Ordering::Relaxed);
            let mut call = migrate(&area, 0, Destination::System);
            let done = sys::migrate(device, &mut call);
            target.store(0, Ordering::Relaxed);
            done?;
            let asked = area.pages() as u64;
            ensure!(
                call.moved <= asked && call.moved + call.skipped == asked,
                "of {asked} pages, in round {round}: {call:?}"
            );
            area.expect(area.all(), 1)?;
            // The other thread may still use the address, so it must not be reused.
            areas.push(area);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let moved = other
            .join()
            .map_err(|_| anyhow!("the other thread ended"))??;
        result?;
        ensure!(moved > 0, "nothing was sent back");
        Ok(())
    })
}
