//! Order: requests that go to the device through several queues, without waiting for each other, do
//! no harm, however late the device or the driver handles any of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hmm::spec::wire::operation::{Compare, Sum};
use hmm::{Device, Element};

use crate::area::{Area, Tag, LARGE, LARGE_PAGES, PAGE};
use crate::bound::{ended, Bound};
use crate::child::{Child, Turns};
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::{self, Userfault};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Order",
    rows: &[
        Row {
            name: "a-huge-page-that-a-cpu-touches-is-not-mapped-late",
            duty: "a huge page that the driver maps ahead, and that a CPU touches while a page \
                   behind it does not come, is gone from the device for good: nothing gets at the \
                   process that has its frames next",
            source: "spec/virtio-hmm.md: Order between queues; hmm.rst: Migration, steps 1 to 7",
            run: a_huge_page_that_a_cpu_touches_is_not_mapped_late,
        },
        Row {
            name: "huge-pages-that-cpus-touch-are-not-mapped-late",
            duty: "the same of all huge pages that are mapped ahead, while nothing is held up",
            source: "spec/virtio-hmm.md: Order between queues",
            run: huge_pages_that_cpus_touch_are_not_mapped_late,
        },
        Row {
            name: "a-file-is-closed-while-huge-pages-are-touched",
            duty: "a huge page on the device that a CPU touches while the file of its process is \
                   closed comes back with what the device wrote",
            source: "mm/huge_memory.c: do_huge_pmd_device_private; spec/virtio-hmm.md: Order \
                     between queues",
            run: a_file_is_closed_while_huge_pages_are_touched,
        },
        Row {
            name: "many-processes-fault-at-once",
            duty:
                "as many processes as can be bound fault at once, and each is answered: a worker \
                   that waits for places in a queue holds none that the others wait for",
            source: "spec/virtio-hmm.md: Fault queue; Order between queues",
            run: many_processes_fault_at_once,
        },
        Row {
            name: "a-job-walks-over-very-many-small-areas",
            duty: "a job over a huge page and hundreds, or thousands, of areas of a page each \
                   goes to its end, and the device is there for others afterwards",
            source: "mm/mmap.c: vm.max_map_count; spec/virtio-hmm.md: Order between queues",
            run: a_job_walks_over_very_many_small_areas,
        },
    ],
};

/// How many huge pages a job announces that it will use.
const REGIONS: usize = 6;

fn region(number: usize) -> std::ops::Range<usize> {
    number * LARGE_PAGES..(number + 1) * LARGE_PAGES
}

/// Another process. At each turn its memory moves to the device, and at the next turn its contents
/// must be unchanged. It ends after `times` rounds.
fn other_process(tag: Tag, times: usize) -> Result<Child> {
    let mut child = Child::fork(|turns: &mut Turns| {
        let bound = Bound::new()?;
        let area = Area::large(REGIONS)?;
        for _ in 0..times {
            area.write(area.all(), tag);
            turns.pass_and_wait()?;
            bound.move_to_device(&area, area.all())?;
            turns.pass_and_wait()?;
            bound.expect(&area, area.all(), tag)?;
            area.expect(area.all(), tag)?;
        }
        Ok(())
    })?;
    child.wait()?;
    Ok(child)
}

/// A job that announces all of an area and ends at its first byte.
fn want_all(bound: &Bound, area: &Area, other: &Area) -> Result<()> {
    let values = bound.run(Compare {
        left: area.address(0) as u64,
        right: other.address(0) as u64,
        bytes: (area.pages() * PAGE) as u64,
    })?;
    let values = values.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    ensure!(values[0] < 8, "they differ at byte {}", values[0]);
    Ok(())
}

/// As much memory as a job compares at a time. It differs from all other memory, and is mapped.
fn different(bound: &Bound) -> Result<Area> {
    let other = Area::small(64)?;
    other.write(other.all(), 9);
    bound.expect(&other, other.all(), 9)?;
    Ok(other)
}

fn expect_large(bound: &Bound, area: &Area, pages: std::ops::Range<usize>) -> Result<()> {
    let states = bound.states(area, pages)?;
    ensure!(
        states.iter().all(|state| state.is_large()),
        "it is a huge page on the device"
    );
    Ok(())
}

fn a_huge_page_that_a_cpu_touches_is_not_mapped_late() -> Result<()> {
    const TOUCHED: usize = 3;
    const HELD_UP: usize = 4;
    let mut other = other_process(2, 1)?;
    let bound = Bound::new()?;
    let different = different(&bound)?;
    let source = Area::large(1)?;
    source.write(source.all(), 5);

    let area = Area::large(REGIONS)?;
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    for number in (0..REGIONS).filter(|number| *number != HELD_UP) {
        area.write(region(number), 1);
        bound.move_to_device(&area, region(number))?;
        expect_large(&bound, &area, region(number))?;
    }
    let held_up = area.address(HELD_UP * LARGE_PAGES);
    handler.register_missing(held_up, LARGE)?;

    // The driver maps ahead until it comes to the page that is held up.
    want_all(&bound, &area, &different)?;
    handler.next_fault().context("waiting for the driver")?;
    // The page mapped just before that is touched, and its frames go to another process.
    area.expect(region(TOUCHED), 1)?;
    other.pass_and_wait()?;
    handler.copy(held_up, source.address(0), LARGE)?;

    bound.expect(&area, region(TOUCHED), 1)?;
    bound.write(&area, region(TOUCHED), 3)?;
    area.expect(region(TOUCHED), 3)?;
    other.pass_and_end()
}

fn huge_pages_that_cpus_touch_are_not_mapped_late() -> Result<()> {
    const TIMES: u8 = 4;
    let mut other = other_process(2, TIMES.into())?;
    let bound = Bound::new()?;
    let different = different(&bound)?;
    for time in 0..TIMES {
        let (tag, last) = (10 + time, REGIONS - 1);
        let area = Area::large(REGIONS)?;
        area.write(area.all(), tag);
        bound.move_to_device(&area, area.all())?;
        expect_large(&bound, &area, area.all())?;
        want_all(&bound, &area, &different)?;
        // The pages that were mapped last, if they were, are touched first.
        for number in (1..REGIONS).rev() {
            let page = number * LARGE_PAGES;
            ensure!(area.read_word(page, 5) == area.word(page, tag));
        }
        other.pass_and_wait()?;
        bound.expect(&area, area.all(), tag)?;
        bound.write(&area, region(last), tag + 10)?;
        area.expect(region(last), tag + 10)?;
        other.pass()?;
        if time + 1 < TIMES {
            other.wait()?;
        }
    }
    other.end()
}

fn a_file_is_closed_while_huge_pages_are_touched() -> Result<()> {
    const ROUNDS: usize = 12;
    // While this file is open, closing another one is not the last close, which would move pages to
    // system memory.
    let _open = Device::open("/dev/hmm0")?;
    let area = Area::large(1)?;
    for round in 0..ROUNDS {
        area.write(area.all(), 1);
        let bound = Bound::new()?;
        bound.move_to_device(&area, area.all())?;
        bound.write(&area, 100..101, 2)?;
        let begins = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let toucher = scope.spawn(|| {
                begins.store(true, Ordering::Release);
                area.read_word(100, 5)
            });
            while !begins.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // A different moment each time.
            thread::sleep(Duration::from_micros(100 * round as u64));
            drop(bound);
            let found = toucher.join().ok().context("the thread broke down")?;
            ensure!(found == area.word(100, 2), "{found:#x} in round {round}");
            Ok(())
        })?;
        area.expect(0..100, 1)?;
        area.expect(101..LARGE_PAGES, 1)?;
    }
    Ok(())
}

// {drv-answer-every-fault}
fn many_processes_fault_at_once() -> Result<()> {
    const PAGES: usize = 24;
    /// Regions that a job announces; the driver maps all but the first one ahead.
    const AHEAD: usize = 3;
    let limits = Device::open("/dev/hmm0")?.info()?;
    let count = limits.max_spaces.min(limits.max_jobs) as usize;
    let body = |turns: &mut Turns| -> Result<()> {
        let (area, ahead) = (Area::small(PAGES)?, Area::large(AHEAD)?);
        let bound = Bound::new()?;
        for region in 0..AHEAD {
            ahead.read_word(region * LARGE_PAGES, 0);
        }
        turns.pass_and_wait()?;
        let job = bound.start(Sum {
            source: ahead.address(0) as u64,
            count: (ahead.pages() * PAGE / 8) as u64,
            element: Element::U64,
        })?;
        let values = ended(job)?.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        ensure!(values[0] == 0, "nothing was written there: {}", values[0]);
        for page in 0..PAGES {
            // Each read faults on a page that was never touched.
            bound.expect(&area, page..page + 1, crate::area::ZERO)?;
        }
        Ok(())
    };
    let mut children = (0..count)
        .map(|_| {
            let mut child = Child::fork(body)?;
            child.wait()?;
            Ok(child)
        })
        .collect::<Result<Vec<_>>>()?;
    for child in &mut children {
        child.pass()?;
    }
    children.into_iter().try_for_each(Child::end)?;
    // The device must still be there.
    Bound::new().map(drop)
}

fn a_job_walks_over_very_many_small_areas() -> Result<()> {
    for areas in [700, 4_000] {
        let bound = Bound::new()?;
        let area = Area::small(LARGE_PAGES + areas)?;
        area.write(area.all(), 1);
        for page in (LARGE_PAGES..area.pages()).step_by(2) {
            area.protect(page..page + 1, sys::READ)?;
        }
        let job = bound.start(Sum {
            source: area.address(0) as u64,
            count: (area.pages() * PAGE / 8) as u64,
            element: Element::U64,
        })?;
        let values = ended(job)?.map_err(|failure| anyhow::anyhow!("{areas} areas: {failure}"))?;
        let words = (PAGE / 8) as u64;
        let sum = area.all().fold(0_u64, |sum, page| {
            sum.wrapping_add(area.word(page, 1).wrapping_mul(words))
        });
        ensure!(values[0] == sum, "the sum over {areas} areas");
    }
    Ok(())
}
