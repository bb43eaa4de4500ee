//! Races between two actions. Races between all of them are the model's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Barrier;
use std::thread;

use anyhow::{bail, ensure, Result};
use hmm::{Destination, Reason};
use rustix::fs::{fallocate, ftruncate, memfd_create, FallocateFlags, MemfdFlags};

use crate::area::{Area, LARGE_PAGES, PAGE, ZERO};
use crate::bound::{ended, fill, Bound};
use crate::child::Child;
use crate::kernel;
use crate::rounds::rounds;
use crate::row::{cannot_run, Chapter, Row};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Races",
    rows: &[
        Row {
            name: "a-storm-of-discards-lets-faults-through",
            duty:
                "while many threads of a process discard its memory without a pause, its jobs that \
                   write there all end well, each in a region of its own",
            source:
                "mm/mmu_notifier.c: mn_itree_inv_end (the sequence moves on only when no change \
                     goes on); mm/madvise.c: MADV_DONTNEED",
            run: a_storm_of_discards_lets_faults_through,
        },
        Row {
            name: "holes-that-other-processes-punch-let-faults-through",
            duty: "while many other processes punch holes into files that a process maps and \
                   accesses, its jobs that write elsewhere all end well",
            source: "mm/memory.c: unmap_mapping_range (changes the address space of each process \
                     that maps the file); mm/mmu_notifier.c: mn_itree_inv_end",
            run: holes_that_other_processes_punch_let_faults_through,
        },
        Row {
            name: "holes-that-strangers-punch-end-faults-in-time",
            duty: "the same of processes of another user: a job ends, be it that the process is \
                   said to be busy, and the next one after them is undisturbed",
            source: "mm/mmu_notifier.c: mmu_interval_read_begin (waits until no change goes on); \
                     wire.rs: Reason::Busy",
            run: holes_that_strangers_punch_end_faults_in_time,
        },
        Row {
            name: "moves-race-with-device-writes",
            duty: "a device that writes pages which move there and back all the time loses no \
                   write: what the driver ignores because it moves the page itself, it ignores \
                   after the sequence was set",
            source: "include/linux/mmu_notifier.h: mmu_interval_set_seq; MMU_NOTIFY_MIGRATE and \
                     range->owner",
            run: moves_race_with_device_writes,
        },
        Row {
            name: "moves-race-with-touches",
            duty: "the same of CPUs that write, whose touches bring pages back in the middle of a \
                   move",
            source: "mm/memory.c: do_swap_page; mm/migrate_device.c: migrate_vma_unmap",
            run: moves_race_with_touches,
        },
        Row {
            name: "huge-moves-race-with-touches",
            duty: "the same of huge pages: no CPU spins for ever in a fault",
            source: "mm/huge_memory.c: do_huge_pmd_device_private (returns without sleeping)",
            run: huge_moves_race_with_touches,
        },
        Row {
            name: "moves-race-with-munmap",
            duty:
                "pages that are unmapped while they move are gone, and new memory in their place \
                   is zero",
            source:
                "mm/migrate_device.c: migrate_vma_insert_page; mm/memory.c: zap_nonpresent_ptes",
            run: moves_race_with_munmap,
        },
        Row {
            name: "threads-share-a-file",
            duty: "threads that use one open file at a time, each with pages of its own side by \
                   side, are right",
            source: "mm/hmm.c: hmm_range_fault under one interval notifier",
            run: threads_share_a_file,
        },
        Row {
            name: "forks-race-with-moves",
            duty: "children that are forked while pages move have what there was",
            source: "mm/memory.c: copy_nonpresent_pte (migration entries)",
            run: forks_race_with_moves,
        },
        Row {
            name: "huge-moves-both-ways-race-with-forks",
            duty: "one thread moves huge pages there, another one moves them back, and a third \
                   one forks: no thread waits with locks held for a thread that wants them",
            source: "mm/rmap.c: try_to_migrate_one (MMU_NOTIFY_CLEAR below the lock of a reverse \
                     map), anon_vma_fork",
            run: huge_moves_both_ways_race_with_forks,
        },
        Row {
            name: "processes-fight-for-frames",
            duty: "three processes with more pages than the device has frames all find their own",
            source: "hmm.rst: Migration; dev_pagemap_ops.folio_free",
            run: processes_fight_for_frames,
        },
    ],
};

/// Moves pages to the device and back as long as `work` takes.
fn while_moving(bound: &Bound, area: &Area, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    let begun = Barrier::new(2);
    let (moved, result) = thread::scope(|scope| {
        let mover = scope.spawn(|| -> Result<u64> {
            let first = bound.migrate(area, area.all(), Destination::Device);
            begun.wait();
            let mut moved = first?.moved;
            while !stop.load(Ordering::Relaxed) {
                for to in [Destination::Device, Destination::System] {
                    moved += bound.migrate(area, area.all(), to)?.moved;
                }
            }
            Ok(moved)
        });
        begun.wait();
        let result = work();
        stop.store(true, Ordering::Relaxed);
        (mover.join(), result)
    });
    result?;
    match moved {
        Ok(moved) => ensure!(moved? > 0, "nothing moved meanwhile"),
        Err(_) => bail!("the mover broke down"),
    }
    Ok(())
}

fn moves_race_with_device_writes() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    while_moving(&bound, &area, || {
        for round in 0..25 {
            let tag = 2 + round % 100;
            bound.write(&area, area.all(), tag)?;
            if round % 2 == 0 {
                bound.expect(&area, area.all(), tag)?;
            } else {
                area.expect(area.all(), tag)?;
            }
        }
        Ok(())
    })
}

fn touches(area: &Area, rounds: u8) -> Result<()> {
    let bound = Bound::new()?;
    area.write(area.all(), 1);
    while_moving(&bound, area, || {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    scope.spawn(move || -> Result<()> {
                        // Neighbouring pages belong to other threads.
                        let pages = (thread..area.pages()).step_by(4).take(8);
                        for tag in 2..2 + rounds {
                            for page in pages.clone() {
                                area.write(page..page + 1, tag);
                                area.expect(page..page + 1, tag)?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(_) => bail!("a thread broke down"),
                })
        })
    })
}

fn moves_race_with_touches() -> Result<()> {
    touches(&Area::small(32)?, 30)
}

fn huge_moves_race_with_touches() -> Result<()> {
    touches(&Area::large(1)?, 30)
}

fn moves_race_with_munmap() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    while_moving(&bound, &area, || {
        for round in 0..60 {
            let first = (round * 7) % 48;
            area.write(first..first + 16, 2);
            area.unmap(first..first + 16)?;
            bound.refuse_read(&area, first + 3, Reason::Unmapped)?;
            area.renew(first..first + 16)?;
            if round % 2 == 0 {
                area.expect(first..first + 16, ZERO)?;
            } else {
                bound.expect(&area, first..first + 16, ZERO)?;
            }
        }
        Ok(())
    })
}

fn threads_share_a_file() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|thread| {
                let (bound, area) = (&bound, &area);
                scope.spawn(move || -> Result<()> {
                    for tag in 1..8 {
                        for page in (thread..area.pages()).step_by(6) {
                            let page = page..page + 1;
                            bound.write(area, page.clone(), tag)?;
                            let to = [Destination::Device, Destination::System][page.start % 2];
                            bound.migrate(area, page.clone(), to)?;
                            if tag % 2 == 0 {
                                area.expect(page, tag)?;
                            } else {
                                bound.expect(area, page, tag)?;
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread broke down"),
            })
    })?;
    area.expect(area.all(), 7)
}

fn forks_race_with_moves() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        while_moving(&bound, &area, || {
            for _ in 0..8 {
                Child::fork(|_| {
                    let bound = Bound::new()?;
                    bound.expect(&area, 0..32, 1)?;
                    bound.write(&area, 8..12, 2)?;
                    area.expect(0..8, 1)?;
                    area.expect(8..12, 2)?;
                    area.expect(12..area.pages(), 1)
                })?
                .end()?;
            }
            Ok(())
        })?;
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn huge_moves_both_ways_race_with_forks() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(6)?;
    area.write(area.all(), 1);
    // A change waits while a migration moves the pages that it unmaps. If the migration in turn
    // needs the change's locks, the driver lets the change go on, and counts that.
    let hurried = || -> Result<u64> { Ok(bound.counters()?.driver.changes_hurried) };
    let before = hurried()?;
    let stop = AtomicBool::new(false);
    let mover = |to: Destination| {
        while !stop.load(Ordering::Relaxed) {
            bound.migrate(&area, area.all(), to)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let movers = [Destination::Device, Destination::System]
            .map(|to| scope.spawn(move || -> Result<()> { mover(to) }));
        let forked = rounds(30).try_for_each(|round| {
            Child::fork(|_| area.expect(area.all(), 1))?.end()?;
            let count = hurried()? - before;
            ensure!(
                count == 0,
                "{count} changes were let through although pages moved, at fork {round}"
            );
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        for mover in movers {
            match mover.join() {
                Ok(result) => result?,
                Err(_) => bail!("a mover broke down"),
            }
        }
        forked
    })?;
    bound.expect(&area, area.all(), 1)?;
    area.expect(area.all(), 1)
}

fn processes_fight_for_frames() -> Result<()> {
    let total = usize::try_from(Bound::new()?.counters()?.driver.total_frames)?;
    let each = (total / 2).next_multiple_of(LARGE_PAGES);
    let needed = 3 * (each * crate::area::PAGE) as u64;
    if kernel::meminfo("MemAvailable")? < 2 * needed {
        return Err(cannot_run(
            "the guest has not enough memory for three halves of the device",
        ));
    }
    let children = (0..3)
        .map(|number| {
            Child::fork(|_| {
                let bound = Bound::new()?;
                let area = if number == 0 {
                    Area::small(each)?
                } else {
                    Area::large(each / LARGE_PAGES)?
                };
                for tag in 1..3 {
                    area.write(area.all(), 10 * number + tag);
                    bound.migrate(&area, area.all(), Destination::Device)?;
                    for first in area.all().step_by(LARGE_PAGES) {
                        bound.expect(&area, first..first + 64, 10 * number + tag)?;
                    }
                    area.expect(area.all(), 10 * number + tag)?;
                }
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    children.into_iter().try_for_each(Child::end)
}

fn holes_that_other_processes_punch_let_faults_through() -> Result<()> {
    // Without turns for the driver, some job waits until the processes happen to pause all at once,
    // which may take a minute.
    let bound = Bound::new()?;
    while_others_punch_holes(None, || {
        for job in 0..8 {
            let area = Area::small(16)?;
            if let Err(failure) = ended(bound.start(fill(&area, 3, 2))?)? {
                bail!("job {job}: {failure}");
            }
            area.expect(3..4, 2)?;
        }
        Ok(())
    })
}

fn holes_that_strangers_punch_end_faults_in_time() -> Result<()> {
    const STRANGER: u32 = 2001;
    let bound = Bound::new()?;
    let area = Area::small(16)?;
    while_others_punch_holes(Some(STRANGER), || {
        match ended(bound.start(fill(&area, 0, 2))?)? {
            Ok(_) => area.expect(0..1, 2)?,
            Err(failure) => ensure!(failure.reason == Some(Reason::Busy), "{failure}"),
        }
        Ok(())
    })?;
    bound.write(&area, 4..8, 3)?;
    area.expect(4..8, 3)
}

/// Runs `body` while many processes, of this user if one is given, punch holes into files that this
/// process maps and touches all the time.
fn while_others_punch_holes(user: Option<u32>, body: impl FnOnce() -> Result<()>) -> Result<()> {
    const FILES: usize = 48;
    const PAGES: usize = 64;
    const STOP: usize = 0;
    const HOLES: usize = 1;
    let bytes = PAGES * PAGE;
    let told = Area::shared(1)?;
    let (stop, holes) = (told.counter(0, STOP), told.counter(0, HOLES));
    let mut files = Vec::new();
    for _ in 0..FILES {
        let file = memfd_create("holes", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes as u64)?;
        files.push(file);
    }
    let mut others = Vec::new();
    for file in &files {
        others.push(Child::fork(|turns| {
            if let Some(user) = user {
                crate::sys::become_user(user)?;
            }
            turns.pass_and_wait()?;
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            while stop.load(Ordering::Relaxed) == 0 {
                fallocate(file, hole, 0, bytes as u64)?;
                holes.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?);
    }
    let map = |file: &OwnedFd| {
        let place = Some((file.as_fd(), 0));
        Area::map(bytes, crate::sys::READ_WRITE, libc::MAP_SHARED, place)
    };
    let areas = files.iter().map(map).collect::<Result<Vec<_>>>()?;
    for other in &mut others {
        other.wait()?;
        other.pass()?;
    }
    thread::scope(|scope| {
        // So that the holes have pages to remove.
        for _ in 0..2 {
            scope.spawn(|| {
                while stop.load(Ordering::Relaxed) == 0 {
                    areas.iter().for_each(|area| area.write(area.all(), 1));
                }
            });
        }
        let result = (|| {
            let before = holes.load(Ordering::Relaxed);
            body()?;
            let during = holes.load(Ordering::Relaxed) - before;
            ensure!(during > 0, "no holes were punched meanwhile");
            Ok(())
        })();
        stop.store(1, Ordering::Relaxed);
        result
    })?;
    others.into_iter().try_for_each(Child::end)
}

fn a_storm_of_discards_lets_faults_through() -> Result<()> {
    // Without turns for the driver, a fault waits until the threads happen to pause all at once,
    // which takes seconds each time.
    const THREADS: usize = 64;
    const JOBS: usize = 32;
    let bound = Bound::new()?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let area = Area::map(
        JOBS * LARGE_PAGES * PAGE,
        crate::sys::READ_WRITE,
        flags,
        None,
    )?;
    area.advise(area.all(), libc::MADV_NOHUGEPAGE)?;
    let pages = || area.all().step_by(LARGE_PAGES);
    let stop = AtomicBool::new(false);
    let discards = AtomicU64::new(0);
    let all = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                all.wait();
                while !stop.load(Ordering::Relaxed) {
                    if area.advise(area.all(), libc::MADV_DONTNEED).is_ok() {
                        discards.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        all.wait();
        let result = (|| {
            let before = discards.load(Ordering::Relaxed);
            let jobs = pages()
                .map(|page| bound.start(fill(&area, page, 2)))
                .collect::<Result<Vec<_>>>()?;
            for (page, job) in jobs.into_iter().enumerate() {
                if let Err(failure) = ended(job)? {
                    bail!("the job of page {page}: {failure}");
                }
            }
            let during = discards.load(Ordering::Relaxed) - before;
            ensure!(during > 0, "nothing was discarded meanwhile");
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    // A page that was written may have been discarded since; then all of it is zero.
    for page in pages() {
        let found = area.read_word(page, 0);
        ensure!(
            found == 0 || found == area.word(page, 2),
            "page {page} holds {found:#x}"
        );
    }
    bound.write(&area, 0..4, 3)?;
    area.expect(0..4, 3)
}
