//! Two devices: each mirrors the process, and leaves the other one's pages alone.

use std::collections::{BTreeSet, VecDeque};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Device, Place, Reason, Status};

use crate::area::{Area, PAGE, ZERO};
use crate::bound::{add, ended, fill, Bound};
use crate::child::Child;
use crate::kernel;
use crate::row::{Chapter, Row};
use crate::sys;
use crate::trace::{Call, Trace};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Two devices",
    rows: &[
        Row {
            name: "two-devices-pull-at-the-same-pages",
            duty: "while many threads move the same small pages to two devices, without a pause, \
                   jobs of both that write there end well, and few changes of mappings go by for \
                   each of them",
            source: "mm/memory.c: do_swap_page (a fault of one device takes the page from the \
                     other); mm/migrate_device.c: migrate_vma_collect; mm/mmu_notifier.c: \
                     mn_itree_inv_end (the sequence moves on only when no change goes on)",
            run: two_devices_pull_at_the_same_pages,
        },
        Row {
            name: "two-devices-see-the-same",
            duty: "what one device or the CPU writes, the other device reads; mprotect and munmap \
                   hold for both when they return",
            source: "mm/mmu_notifier.c: mn_itree_invalidate (all intervals, then all waits)",
            run: two_devices_see_the_same,
        },
        Row {
            name: "all-devices-have-forgotten",
            duty: "when munmap returns, none of all the devices that have the pages mapped has \
                   them so any more, and none that was writing there in that moment writes on",
            source: "mm/mmu_notifier.c: mn_itree_invalidate, mn_itree_finish_pass (starts all, \
                     then waits for each)",
            run: all_devices_have_forgotten,
        },
        Row {
            name: "all-are-asked-before-any-is-waited-for",
            duty:
                "a change of mappings asks all devices that have the pages to forget them before \
                   it waits for the first of them, and waits for each",
            source: "include/linux/mmu_notifier.h: invalidate_start, invalidate_finish; \
                     mm/mmu_notifier.c: mn_itree_invalidate, mn_itree_finish_pass",
            run: all_are_asked_before_any_is_waited_for,
        },
        Row {
            name: "two-devices-count-together",
            duty: "atomics of two devices and of CPUs on one word add up",
            source: "mm/rmap.c: make_device_exclusive (owner); MMU_NOTIFY_EXCLUSIVE",
            run: two_devices_count_together,
        },
        Row {
            name: "a-page-on-the-other-device",
            duty:
                "a device that needs a page of another device's memory finds it in system memory \
                   with what it held",
            source: "mm/hmm.c: hmm_vma_handle_pte (device-private of another owner is faulted in)",
            run: a_page_on_the_other_device,
        },
        Row {
            name: "the-owner-moves-its-pages-only",
            duty: "a request to one device moves no page that is on another one",
            source: "include/linux/migrate.h: pgmap_owner",
            run: the_owner_moves_its_pages_only,
        },
        Row {
            name: "fork-between-two-devices",
            duty: "parent and child, each on a device of its own, write pages that were on the \
                   first one: neither sees the other's",
            source: "mm/memory.c: copy_nonpresent_pte; mm/hmm.c",
            run: fork_between_two_devices,
        },
        Row {
            name: "a-storm-on-two-devices",
            duty: "mappings that change all the time stop neither of two devices that write them, \
                   and what they write is right",
            source: "include/linux/mmu_notifier.h: invalidate_start, invalidate_finish",
            run: a_storm_on_two_devices,
        },
    ],
};

fn two_devices_see_the_same() -> Result<()> {
    let (one, two) = Bound::two()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        let pages = 0..32;
        for tag in 1..6 {
            one.write(&area, pages.clone(), 10 + tag)?;
            two.expect(&area, pages.clone(), 10 + tag)?;
            two.write(&area, pages.clone(), 20 + tag)?;
            one.expect(&area, pages.clone(), 20 + tag)?;
            area.write(pages.clone(), 30 + tag);
            one.expect(&area, pages.clone(), 30 + tag)?;
            two.expect(&area, pages.clone(), 30 + tag)?;
        }
        area.protect(0..8, sys::READ)?;
        one.refuse_write(&area, 3, Reason::Denied)?;
        two.refuse_write(&area, 3, Reason::Denied)?;
        area.unmap(8..16)?;
        one.refuse_read(&area, 9, Reason::Unmapped)?;
        two.refuse_read(&area, 9, Reason::Unmapped)?;
        area.renew(8..16)?;
        one.expect(&area, 8..16, ZERO)?;
        two.expect(&area, 8..16, ZERO)?;
        two.expect(&area, 16..32, 35)?;
    }
    Ok(())
}

/// Pages of a memory file, mapped twice.
fn twice(pages: usize) -> Result<[Area; 2]> {
    let file = rustix::fs::memfd_create("twice", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, (pages * PAGE) as u64)?;
    let view = || {
        let of_it = Some((file.as_fd(), 0));
        Area::map(pages * PAGE, sys::READ_WRITE, libc::MAP_SHARED, of_it)
    };
    Ok([view()?, view()?])
}

/// All devices of the machine; the row needs at least two.
fn every_device() -> Result<Vec<Bound>> {
    let (one, two) = Bound::two()?;
    let mut all = vec![one, two];
    for number in 2..Device::list().len() {
        all.push(Bound::number(number)?);
    }
    Ok(all)
}

fn all_devices_have_forgotten() -> Result<()> {
    const PAGES: usize = 64;
    let all = every_device()?;
    let mapped = |bound: &Bound| -> Result<u64> { Ok(bound.counters()?.device.mapped_pages.get()) };
    for round in 0..8 {
        let [area, other] = twice(PAGES)?;
        area.write(area.all(), 1);
        for bound in &all {
            bound.expect(&area, area.all(), 1)?;
        }
        // Each job adds to its own word of the same page, without end.
        other.write(3..4, ZERO);
        let jobs = all
            .iter()
            .enumerate()
            .map(|(word, bound)| bound.start(add(&area, 3, word, 1, 1 << 40)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .map(ManuallyDrop::new)
            .collect::<Vec<_>>();
        let values = || -> Vec<u64> {
            let words = 0..all.len();
            words.map(|word| other.read_word(3, word)).collect()
        };
        kernel::until("all are at it", || {
            Ok(values().iter().all(|&value| value > 0))
        })?;
        for bound in &all {
            let count = bound.mapped(&area, area.all())?;
            ensure!(count == PAGES, "{count} pages are mapped");
        }
        let before = all.iter().map(mapped).collect::<Result<Vec<_>>>()?;
        if round % 2 == 0 {
            area.unmap(area.all())?;
        } else {
            area.protect(area.all(), sys::NO_ACCESS)?;
        }
        let last = values();
        for (bound, before) in all.iter().zip(before) {
            let after = mapped(bound)?;
            ensure!(
                after + PAGES as u64 <= before,
                "{before} pages were mapped on a device, and {after} are"
            );
        }
        // A job that still ran would write while its device does something else.
        for (word, bound) in all.iter().enumerate() {
            bound
                .run(add(&other, 4, word, 1, 1))?
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        }
        ensure!(values() == last, "one writes on: {last:?}, {:?}", values());
        for job in jobs {
            match ended(ManuallyDrop::into_inner(job))? {
                Err(failure) if failure.status == Status::Fault => {}
                other => bail!("a job without memory ended so: {other:?}"),
            }
        }
        ensure!(values() == last, "and at the end: {last:?}, {:?}", values());
    }
    Ok(())
}

fn all_are_asked_before_any_is_waited_for() -> Result<()> {
    let all = every_device()?;
    // The driver polls for an answer before it sleeps for it, as long as no other task is to run.
    let trace = Trace::new(&[
        ("asked", "virtqueue_kick_prepare"),
        ("looked", "virtio_hmm_need_resched"),
        ("slept", "wait_for_completion_timeout"),
    ])?;
    let mut waits = 0;
    let changes: [fn(&Area) -> Result<()>; 3] = [
        |area| area.unmap(area.all()),
        |area| area.protect(area.all(), sys::NO_ACCESS),
        |area| area.advise(area.all(), libc::MADV_DONTNEED),
    ];
    for (count, change) in changes.into_iter().cycle().take(120).enumerate() {
        // A fast device may have answered before the driver looks.
        if count >= 12 && waits > 0 {
            break;
        }
        let area = Area::small(32)?;
        area.write(area.all(), 1);
        for bound in &all {
            bound.expect(&area, area.all(), 1)?;
        }
        let calls = trace.during(|| change(&area))?;
        is_in_two_passes(&calls, all.len())
            .with_context(|| format!("{} devices: {calls:x?}", all.len()))?;
        waits += calls.len() - all.len();
    }
    ensure!(waits > 0, "none was ever waited for");
    Ok(())
}

/// Checks that all devices are asked, each once, before any is waited for. A device that has
/// answered by then need not be waited for.
fn is_in_two_passes(calls: &[Call], devices: usize) -> Result<()> {
    let (first, second) = calls.split_at_checked(devices).context("too few calls")?;
    ensure!(
        first.iter().all(|call| call.name == "asked"),
        "one was waited for before all had been asked"
    );
    ensure!(
        second.iter().all(|call| call.name != "asked"),
        "one was asked twice"
    );
    let different: BTreeSet<u64> = first.iter().map(|call| call.argument).collect();
    ensure!(different.len() == devices, "one was asked twice");
    Ok(())
}

fn two_devices_count_together() -> Result<()> {
    const ADDITIONS: u64 = 500;
    let (one, two) = Bound::two()?;
    let area = Area::small(1)?;
    area.write(0..1, ZERO);
    let counter = area.counter(0, 5);
    let jobs = [&one, &two, &one, &two]
        .into_iter()
        .map(|bound| bound.start(add(&area, 0, 5, 1, ADDITIONS)))
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..ADDITIONS {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    for job in jobs {
        if let Err(failure) = ended(job)? {
            bail!("{failure}");
        }
    }
    let found = counter.load(Ordering::Relaxed);
    ensure!(found == 5 * ADDITIONS, "{found} of {}", 5 * ADDITIONS);
    Ok(())
}

fn a_page_on_the_other_device() -> Result<()> {
    let (one, two) = Bound::two()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 1);
        for tag in 2..6 {
            one.move_to_device(&area, area.all())?;
            let states = two.states(&area, area.all())?;
            let reachable = |place| matches!(place, Place::System | Place::Device);
            ensure!(
                !states.iter().any(|state| reachable(state.place())),
                "they are out of the second one's reach"
            );
            one.expect_place(&area, area.all(), Place::Device)?;
            two.expect(&area, 0..8, tag - 1)?;
            two.write(&area, 8..16, tag)?;
            one.expect(&area, 8..16, tag)?;
            one.expect(&area, 0..8, tag - 1)?;
            area.expect(16..area.pages(), tag - 1)?;
            area.write(area.all(), tag);
        }
    }
    Ok(())
}

fn the_owner_moves_its_pages_only() -> Result<()> {
    let (one, two) = Bound::two()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 1);
        one.move_to_device(&area, area.all())?;
        for destination in [Destination::System, Destination::Device] {
            let moved = two.migrate(&area, area.all(), destination)?;
            ensure!(moved.moved == 0, "{destination:?}: {moved:?}");
            one.expect_place(&area, area.all(), Place::Device)?;
        }
        one.expect(&area, area.all(), 1)?;
        one.move_to_system(&area, area.all())?;
        two.move_to_device(&area, area.all())?;
        two.expect(&area, area.all(), 1)?;
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn fork_between_two_devices() -> Result<()> {
    let (one, two) = Bound::two()?;
    for area in [Area::small(32)?, Area::large(1)?] {
        area.write(area.all(), 1);
        one.move_to_device(&area, area.all())?;
        let mut child = Child::fork(|turns| {
            let (one, two) = Bound::two()?;
            turns.wait()?;
            two.expect(&area, 0..8, 1)?;
            two.write(&area, 0..8, 2)?;
            one.expect(&area, 8..16, 1)?;
            turns.pass_and_wait()?;
            area.expect(0..8, 2)?;
            area.expect(8..32, 1)
        })?;
        one.write(&area, 0..4, 3)?;
        two.write(&area, 8..12, 3)?;
        child.pass_and_wait()?;
        one.expect(&area, 0..4, 3)?;
        two.expect(&area, 4..8, 1)?;
        child.pass_and_end()?;
        area.expect(0..4, 3)?;
        area.expect(4..8, 1)?;
        area.expect(8..12, 3)?;
        area.expect(12..area.pages(), 1)?;
    }
    Ok(())
}

fn a_storm_on_two_devices() -> Result<()> {
    let (one, two) = Bound::two()?;
    let area = Area::small(32)?;
    area.write(area.all(), 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let storm = scope.spawn(|| -> Result<()> {
            let mut system = true;
            while !stop.load(Ordering::Relaxed) {
                area.protect(0..32, sys::READ)?;
                area.protect(0..32, sys::READ_WRITE)?;
                let to = if system {
                    Destination::Device
                } else {
                    Destination::System
                };
                one.migrate(&area, 0..32, to)?;
                system = !system;
            }
            Ok(())
        });
        let work = || -> Result<()> {
            for tag in 2..12 {
                for (bound, pages) in [(&one, 0..16), (&two, 16..32)] {
                    for page in pages.clone() {
                        // A write is refused while the page is read-only.
                        while bound.try_write(&area, page, tag)?.is_err() {}
                    }
                    bound.expect(&area, pages, tag)?;
                }
                area.expect(0..32, tag)?;
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::Relaxed);
        match storm.join() {
            Ok(storm) => storm.and(result),
            Err(_) => bail!("the storm broke down"),
        }
    })
}

/// Runs jobs on a device, several at a time, until `stop`. Counts each job that has ended.
fn keep_at_it(bound: &Bound, area: &Area, ended_jobs: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    const JOBS: usize = 64;
    let mut jobs = VecDeque::new();
    for page in area.all().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        jobs.push_back(bound.start(fill(area, page, 2))?);
        if jobs.len() < JOBS {
            continue;
        }
        let Some(job) = jobs.pop_front() else { break };
        if let Err(failure) = ended(job)? {
            bail!("{failure}");
        }
        ended_jobs.fetch_add(1, Ordering::Relaxed);
    }
    for job in jobs {
        if let Err(failure) = ended(job)? {
            bail!("at the end: {failure}");
        }
    }
    Ok(())
}

fn two_devices_pull_at_the_same_pages() -> Result<()> {
    const PAGES: usize = 8;
    // With fewer threads there are moments in which none of them moves anything.
    const THREADS: usize = 8;
    /// How many jobs of each device must end.
    const ENOUGH: u64 = 64;
    /// How many invalidations may happen for each of these: for its faults, one by each thread, and
    /// more for pages that migrate away again before the job has written there.
    const CHANGES: u64 = 100;
    let (one, two) = Bound::two()?;
    let devices = [&one, &two];
    let area = Area::small(PAGES)?;
    area.write(area.all(), 1);
    let (stop, pulled) = (AtomicBool::new(false), AtomicU64::new(0));
    let counts = [const { AtomicU64::new(0) }; 2];
    let changes = || -> Result<u64> { Ok(one.counters()?.driver.invalidations) };
    let before = changes()?;
    thread::scope(|scope| {
        let (area, stop, pulled) = (&area, &stop, &pulled);
        for bound in devices {
            for _ in 0..THREADS {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let moved = bound.migrate(area, area.all(), Destination::Device);
                        pulled.fetch_add(moved.map_or(0, |moved| moved.moved), Ordering::Relaxed);
                    }
                });
            }
        }
        let work = devices
            .into_iter()
            .zip(&counts)
            .map(|(bound, count)| scope.spawn(move || keep_at_it(bound, area, count, stop)))
            .collect::<Vec<_>>();
        let result = kernel::until("jobs of both devices end", || {
            let numbers = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            let fewest = numbers.into_iter().min().unwrap_or(0);
            let changes = changes()? - before;
            ensure!(
                changes < CHANGES * ENOUGH,
                "{changes} changes, and so many jobs of the devices: {numbers:?}"
            );
            Ok(fewest >= ENOUGH || work.iter().any(|work| work.is_finished()))
        });
        stop.store(true, Ordering::Relaxed);
        for work in work {
            match work.join() {
                Ok(end) => end?,
                Err(_) => bail!("a thread broke down"),
            }
        }
        result
    })?;
    let pulled = pulled.load(Ordering::Relaxed);
    ensure!(pulled > 0, "nothing was moved meanwhile");
    area.expect(area.all(), 2)
}
