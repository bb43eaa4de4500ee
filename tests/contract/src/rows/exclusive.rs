//! Exclusive access: atomic operations of the device and of the CPU are atomic to each other,
//! wherever the page is, and end when the process asks for that.

use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use hmm::spec::wire::operation::AtomicCompareExchange;
use hmm::{Destination, Element, Job, Reason};

use crate::area::{Area, ZERO};
use crate::bound::{add, ended, Bound};
use crate::child::Child;
use crate::kernel;
use crate::row::{Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Exclusive access",
    rows: &[
        Row {
            name: "atomics-add-up",
            duty: "CPU threads and device jobs count on one word of a page in system memory: no \
                   addition is lost",
            source: "hmm.rst: Exclusive access memory; mm/rmap.c: make_device_exclusive",
            run: || add_up(&Area::small(1)?, Moves::Never),
        },
        Row {
            name: "atomics-add-up-in-a-huge-page",
            duty: "the same in a huge page",
            source: "mm/rmap.c: make_device_exclusive (splits large mappings)",
            run: || add_up(&Area::large(1)?, Moves::Never),
        },
        Row {
            name: "atomics-add-up-while-the-page-moves",
            duty: "the same while the page goes to the device and comes back",
            source: "mm/migrate_device.c; mm/memory.c: remove_device_exclusive_entry",
            run: || add_up(&Area::small(1)?, Moves::Always),
        },
        Row {
            name: "atomics-add-up-in-shared-memory",
            duty: "the same in memory that two processes share, where pages cannot be exclusive",
            source: "mm/rmap.c: make_device_exclusive (anonymous memory only)",
            run: atomics_add_up_in_shared_memory,
        },
        Row {
            name: "compare-exchange-is-one-step",
            duty: "a lock taken by compare-and-exchange from both sides is held by one at a time",
            source: "hmm.rst: Exclusive access memory",
            run: compare_exchange_is_one_step,
        },
        Row {
            name: "a-cpu-access-ends-exclusive-access",
            duty:
                "while a device adds without end, a CPU reads values that only grow, and its own \
                   additions are there at the end",
            source: "mm/memory.c: remove_device_exclusive_entry (MMU_NOTIFY_EXCLUSIVE)",
            run: a_cpu_access_ends_exclusive_access,
        },
        Row {
            name: "mprotect-ends-exclusive-access",
            duty: "when mprotect returns, a device that was adding adds no more, and is told so",
            source: "mm/mprotect.c: change_pte_range (device-exclusive entries)",
            run: mprotect_ends_exclusive_access,
        },
        Row {
            name: "munmap-ends-exclusive-access",
            duty: "after munmap, and with new memory at the same address, nothing is added there",
            source: "mm/memory.c: zap_nonpresent_ptes (device-exclusive entries)",
            run: munmap_ends_exclusive_access,
        },
        Row {
            name: "fork-ends-exclusive-access",
            duty: "a child has the value of the moment of the fork, and a device that goes on \
                   adding adds to its parent's page only",
            source: "mm/memory.c: copy_nonpresent_pte, try_restore_exclusive_pte",
            run: fork_ends_exclusive_access,
        },
        Row {
            name: "forks-succeed-beside-exclusive-access",
            duty: "a process can fork at any moment while a device takes one of its pages for \
                   itself, again and again",
            source: "mm/memory.c: copy_pte_range (EBUSY)",
            run: forks_succeed_beside_exclusive_access,
        },
        Row {
            name: "an-exclusive-page-is-not-taken-again",
            duty: "jobs that count on one word at the same time fault once each at most, and once \
                   more for what was under way: the page is taken from the CPUs for all of them",
            source: "mm/rmap.c: make_device_exclusive (gives a page back that is exclusive)",
            run: an_exclusive_page_is_not_taken_again,
        },
        Row {
            name: "atomics-on-read-only-memory-are-refused",
            duty: "an atomic operation needs the right to write",
            source: "mm/rmap.c: make_device_exclusive (FOLL_WRITE)",
            run: atomics_on_read_only_memory_are_refused,
        },
    ],
};

const THREADS: u64 = 3;
const JOBS: u64 = 4;
const ADDITIONS: u64 = 2000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moves {
    Never,
    Always,
}

/// CPUs and jobs add at the same time; the sum must be exact.
fn add_up(area: &Area, moves: Moves) -> Result<()> {
    let bound = Bound::new()?;
    area.write(0..1, ZERO);
    let counter = area.counter(0, 7);
    for round in 1..=3 {
        let jobs = (0..JOBS)
            .map(|_| bound.start(add(area, 0, 7, 1, ADDITIONS)))
            .collect::<Result<Vec<_>>>()?;
        thread::scope(|scope| -> Result<()> {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ADDITIONS {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            if moves == Moves::Always {
                for destination in [Destination::Device, Destination::System].repeat(10) {
                    let _ = bound.migrate(area, 0..1, destination)?;
                }
            }
            jobs.into_iter().try_for_each(well)
        })?;
        let wanted = round * (THREADS + JOBS) * ADDITIONS;
        let found = counter.load(Ordering::Relaxed);
        ensure!(found == wanted, "{found} instead of {wanted}");
    }
    // The words beside it must stay zero.
    for index in (0..16).filter(|index| *index != 7) {
        ensure!(area.read_word(0, index) == 0, "word {index} has changed");
    }
    Ok(())
}

fn well(job: Job<'_>) -> Result<()> {
    match ended(job)? {
        Ok(_) => Ok(()),
        Err(failure) => bail!("a job could not do its atomics: {failure}"),
    }
}

fn an_exclusive_page_is_not_taken_again() -> Result<()> {
    const MANY: u64 = 32;
    /// Enough that an engine takes turns with all jobs before the first one ends.
    const EACH: u64 = 100_000;
    let (area, bound) = (Area::small(1)?, Bound::new()?);
    area.write(0..1, ZERO);
    let before = bound.counters()?.driver.faults;
    let jobs = (0..MANY)
        .map(|_| bound.start(add(&area, 0, 7, 1, EACH)))
        .collect::<Result<Vec<_>>>()?;
    jobs.into_iter().try_for_each(well)?;
    let faults = bound.counters()?.driver.faults - before;
    ensure!(faults <= 2 * MANY, "{MANY} jobs took {faults} faults");
    let found = area.counter(0, 7).load(Ordering::Relaxed);
    ensure!(found == MANY * EACH, "{found} additions");
    Ok(())
}

fn atomics_add_up_in_shared_memory() -> Result<()> {
    let area = Area::shared(1)?;
    let work = |area: &Area| -> Result<()> {
        let bound = Bound::new()?;
        let job = bound.start(add(area, 0, 7, 1, ADDITIONS))?;
        for _ in 0..ADDITIONS {
            area.counter(0, 7).fetch_add(1, Ordering::Relaxed);
        }
        well(job)
    };
    let child = Child::fork(|turns| {
        turns.wait()?;
        work(&area)
    })?;
    let mut child = child;
    child.pass()?;
    work(&area)?;
    child.end()?;
    let found = area.counter(0, 7).load(Ordering::Relaxed);
    ensure!(found == 4 * ADDITIONS, "{found} of {}", 4 * ADDITIONS);
    Ok(())
}

fn compare_exchange_is_one_step() -> Result<()> {
    const FREE: u64 = 0;
    const OF_CPU: u64 = 1;
    const OF_DEVICE: u64 = 2;
    let (area, bound) = (Area::small(1)?, Bound::new()?);
    area.write(0..1, ZERO);
    let (lock, counter) = (area.counter(0, 0), area.counter(0, 64));
    let exchange = |expected, operand| AtomicCompareExchange {
        address: area.address(0) as u64,
        element: Element::U64,
        expected,
        operand,
    };
    let rounds = 50;
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            for _ in 0..rounds {
                while lock
                    .compare_exchange(FREE, OF_CPU, Ordering::Acquire, Ordering::Relaxed)
                    .is_err()
                {
                    thread::yield_now();
                }
                // The load and the store together are not atomic; only the lock makes them so.
                let before = counter.load(Ordering::Relaxed);
                thread::yield_now();
                counter.store(before + 1, Ordering::Relaxed);
                lock.store(FREE, Ordering::Release);
            }
        });
        let mut done = 0;
        while done < rounds {
            let taken = match bound.run(exchange(FREE, OF_DEVICE))? {
                Ok([_, replaced, ..]) => replaced == 1,
                Err(failure) => bail!("{failure}"),
            };
            if !taken {
                continue;
            }
            let before = counter.load(Ordering::Relaxed);
            thread::yield_now();
            counter.store(before + 1, Ordering::Relaxed);
            match bound.run(exchange(OF_DEVICE, FREE))? {
                Ok([previous, replaced, ..]) => {
                    ensure!(
                        replaced == 1,
                        "the thread that holds the lock found {previous} in it"
                    );
                }
                Err(failure) => bail!("{failure}"),
            }
            done += 1;
        }
        Ok(())
    })?;
    let found = counter.load(Ordering::Relaxed);
    ensure!(found == 2 * rounds, "{found} of {}", 2 * rounds);
    Ok(())
}

/// A job whose additions take much longer than any row. Dropping it would wait for it, and a row
/// that fails could not say why.
fn without_end<'a>(bound: &'a Bound, area: &Area) -> Result<ManuallyDrop<Job<'a>>> {
    bound
        .start(add(area, 0, 0, 1, 1 << 40))
        .map(ManuallyDrop::new)
}

/// Waits until the counter moves: the device has begun.
fn begun(read: impl Fn() -> u64) -> Result<()> {
    kernel::until("the device's first addition", || Ok(read() > 0))
}

fn a_cpu_access_ends_exclusive_access() -> Result<()> {
    let (area, bound) = (Area::small(1)?, Bound::new()?);
    area.write(0..1, ZERO);
    let counter = area.counter(0, 0);
    let job = without_end(&bound, &area)?;
    begun(|| counter.load(Ordering::Relaxed))?;
    let high = 1 << 44;
    let mut last = 0;
    for round in 0..100 {
        let before = counter.fetch_add(high, Ordering::Relaxed);
        ensure!(
            before / high == round,
            "{round} additions of ours, {before:#x} is there"
        );
        ensure!(
            before % high >= last % high,
            "it went from {last:#x} to {before:#x}"
        );
        last = before;
    }
    area.protect(0..1, sys::READ)?;
    stopped(job, Reason::Denied)?;
    ensure!(area.read_word(0, 0) / high == 100, "none of ours is lost");
    Ok(())
}

/// Checks that the job has ended with a fault of this kind.
fn stopped(job: ManuallyDrop<Job<'_>>, reason: Reason) -> Result<()> {
    match ended(ManuallyDrop::into_inner(job))? {
        Ok(_) => bail!("a job without an end has ended well"),
        Err(failure) if failure.reason == Some(reason) => Ok(()),
        Err(failure) => bail!("it was to end as {reason:?}: {failure}"),
    }
}

fn mprotect_ends_exclusive_access() -> Result<()> {
    let bound = Bound::new()?;
    for _ in 0..10 {
        let area = Area::small(1)?;
        area.write(0..1, ZERO);
        let job = without_end(&bound, &area)?;
        begun(|| area.read_word(0, 0))?;
        area.protect(0..1, sys::READ)?;
        let then = area.read_word(0, 0);
        stopped(job, Reason::Denied)?;
        let now = area.read_word(0, 0);
        ensure!(then == now, "{then} when mprotect returned, then {now}");
        ensure!(then > 0, "it had been adding");
    }
    Ok(())
}

fn munmap_ends_exclusive_access() -> Result<()> {
    let bound = Bound::new()?;
    for _ in 0..10 {
        let area = Area::small(1)?;
        area.write(0..1, ZERO);
        let job = without_end(&bound, &area)?;
        begun(|| area.read_word(0, 0))?;
        area.unmap(0..1)?;
        stopped(job, Reason::Unmapped)?;
        area.renew(0..1)?;
        area.expect(0..1, ZERO)?;
    }
    Ok(())
}

fn fork_ends_exclusive_access() -> Result<()> {
    let bound = Bound::new()?;
    for _ in 0..5 {
        let area = Area::small(1)?;
        area.write(0..1, ZERO);
        let job = without_end(&bound, &area)?;
        begun(|| area.read_word(0, 0))?;
        let mut child = Child::fork(|turns| {
            let then = area.read_word(0, 0);
            turns.pass_and_wait()?;
            let now = area.read_word(0, 0);
            ensure!(then == now, "the child read {then} and later {now}");
            Ok(())
        })?;
        child.wait()?;
        let then = area.read_word(0, 0);
        kernel::until("the device goes on", || Ok(area.read_word(0, 0) > then))?;
        child.pass_and_end()?;
        area.protect(0..1, sys::READ)?;
        stopped(job, Reason::Denied)?;
    }
    Ok(())
}

fn forks_succeed_beside_exclusive_access() -> Result<()> {
    let (area, bound) = (Area::small(1)?, Bound::new()?);
    area.write(0..1, ZERO);
    let job = without_end(&bound, &area)?;
    begun(|| area.read_word(0, 0))?;
    for round in 0..50 {
        Child::fork(|_| Ok(()))
            .and_then(Child::end)
            .with_context(|| format!("the child of round {round}"))?;
    }
    area.protect(0..1, sys::READ)?;
    stopped(job, Reason::Denied)
}

fn atomics_on_read_only_memory_are_refused() -> Result<()> {
    let (area, bound) = (Area::small(2)?, Bound::new()?);
    area.write(area.all(), ZERO);
    area.protect(0..1, sys::READ)?;
    let one = |page| {
        bound
            .start(add(&area, page, 0, 1, 1))
            .map(ManuallyDrop::new)
    };
    stopped(one(0)?, Reason::Denied)?;
    well(bound.start(add(&area, 1, 0, 1, 1))?)?;
    area.unmap(1..2)?;
    stopped(one(1)?, Reason::Unmapped)?;
    area.expect(0..1, ZERO)
}
