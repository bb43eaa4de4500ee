//! Races of two things at a time. For everything at a time there is the model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};
use hmm::{Destination, Reason};

use crate::area::{Area, LARGE_PAGES, ZERO};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Races",
    rows: &[
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
            duty: "the same of CPUs that write, whose touches bring pages home in the middle of a \
                   move",
            source: "mm/memory.c: do_swap_page; mm/migrate_device.c: migrate_vma_unmap",
            run: moves_race_with_touches,
        },
        Row {
            name: "large-moves-race-with-touches",
            duty: "the same of large pages: no CPU spins for ever in a fault",
            source: "mm/huge_memory.c: do_huge_pmd_device_private (returns without sleeping)",
            run: large_moves_race_with_touches,
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
            name: "large-moves-both-ways-race-with-forks",
            duty: "one thread moves large pages there, another one moves them back, and a third \
                   one forks: nobody waits with locks held for somebody who wants them",
            source: "mm/rmap.c: try_to_migrate_one (MMU_NOTIFY_CLEAR below the lock of a reverse \
                     map), anon_vma_fork",
            run: large_moves_both_ways_race_with_forks,
        },
        Row {
            name: "processes-fight-for-frames",
            duty: "three processes with more pages than the device has frames all find their own",
            source: "hmm.rst: Migration; dev_pagemap_ops.folio_free",
            run: processes_fight_for_frames,
        },
    ],
};

/// Moves pages there and back as long as `work` takes.
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
                        // Neighbours belong to other threads.
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

fn large_moves_race_with_touches() -> Result<()> {
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

fn large_moves_both_ways_race_with_forks() -> Result<()> {
    /// How long all of it goes on, and what no step may take: who waits for each other gives up
    /// only after five seconds.
    const ROUNDS: usize = 30;
    const LONGEST: Duration = Duration::from_secs(3);
    let bound = Bound::new()?;
    let area = Area::large(6)?;
    area.write(area.all(), 1);
    let stop = AtomicBool::new(false);
    let in_time = |what: &str, step: &dyn Fn() -> Result<()>| -> Result<()> {
        let begun = Instant::now();
        step()?;
        let took = begun.elapsed();
        ensure!(took < LONGEST, "{what} took {took:?}");
        Ok(())
    };
    let mover = |to: Destination| {
        while !stop.load(Ordering::Relaxed) {
            in_time("a move", &|| bound.migrate(&area, area.all(), to).map(drop))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let movers = [Destination::Device, Destination::System]
            .map(|to| scope.spawn(move || -> Result<()> { mover(to) }));
        let forked = (0..ROUNDS).try_for_each(|_| {
            in_time("a fork", &|| {
                Child::fork(|_| area.expect(area.all(), 1))?.end()
            })
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
