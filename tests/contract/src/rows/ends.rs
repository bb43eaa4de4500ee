//! The end of processes, threads and programs that have pages and jobs on the device.
//!
//! The runner checks after each row that nothing is left on the device.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use hmm::Device;

use crate::area::{Area, LARGE_PAGES};
use crate::bound::{add, Bound};
use crate::child::Child;
use crate::row::{Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Ends",
    rows: &[
        Row {
            name: "exit-with-pages-on-the-device",
            duty: "a process that ends with small and huge pages on the device leaves no frame \
                   in use",
            source: "mm/mmap.c: exit_mmap; dev_pagemap_ops.folio_free",
            run: exit_with_pages_on_the_device,
        },
        Row {
            name: "killed-in-the-middle-of-jobs",
            duty: "a process that is killed while engines write its memory, in system memory and \
                   on the device, is gone at once",
            source: "include/linux/mmu_notifier.h: release; hmm.rst: MMU_NOTIFY_RELEASE",
            run: killed_in_the_middle_of_jobs,
        },
        Row {
            name: "killed-in-the-middle-of-a-move",
            duty: "a process that is killed while its pages move leaves nothing behind",
            source: "mm/migrate_device.c: migrate_vma_finalize",
            run: killed_in_the_middle_of_a_move,
        },
        Row {
            name: "killed-in-the-middle-of-a-fork",
            duty: "parent and child that are killed while both write shared pages on the device",
            source: "mm/memory.c: copy_page_range; exit_mmap",
            run: killed_in_the_middle_of_a_fork,
        },
        Row {
            name: "exec-replaces-everything",
            duty: "exec with pages and jobs on the device: the new program starts with none of \
                   them, and no job writes its memory",
            source: "fs/exec.c: exec_mmap; exit_mmap of the old address space",
            run: exec_replaces_everything,
        },
        Row {
            name: "a-file-that-is-handed-on",
            duty: "an open file in another process cannot be used there, and does not keep the \
                   dead one's memory",
            source: "include/linux/sched/mm.h: mmgrab, mmget_not_zero",
            run: a_file_that_is_handed_on,
        },
        Row {
            name: "many-short-lives",
            duty: "processes that come, use the device and go, leave nothing that adds up",
            source: "mm/mmu_notifier.c: mmu_interval_notifier_remove",
            run: many_short_lives,
        },
    ],
};

/// Small and huge pages on the device.
fn pages(bound: &Bound) -> Result<(Area, Area)> {
    let (small, large) = (Area::small(256)?, Area::large(2)?);
    for area in [&small, &large] {
        area.write(area.all(), 1);
        bound.move_to_device(area, area.all())?;
    }
    Ok((small, large))
}

/// Frames in use on the first device, by any process.
fn used_frames() -> Result<u64> {
    Ok(Device::open("/dev/hmm0")?.counters()?.driver.used_frames)
}

fn exit_with_pages_on_the_device() -> Result<()> {
    let mut child = Child::fork(|turns| {
        let bound = Bound::new()?;
        let areas = pages(&bound)?;
        turns.pass_and_wait()?;
        std::mem::forget((bound, areas));
        Ok(())
    })?;
    child.wait()?;
    let used = used_frames()?;
    ensure!(
        used >= 256 + 2 * LARGE_PAGES as u64,
        "{used} frames are in use"
    );
    child.pass_and_end()
}

fn killed_in_the_middle_of_jobs() -> Result<()> {
    for _ in 0..4 {
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            let (small, large) = pages(&bound)?;
            let system = Area::small(16)?;
            system.write(system.all(), 0);
            let jobs = [(&small, 5), (&large, 700), (&system, 3), (&system, 4)]
                .map(|(area, page)| bound.start(add(area, page, 0, 1, 1 << 40)));
            turns.pass_and_wait()?;
            std::mem::forget(jobs);
            Ok(())
        })?;
        child.wait()?;
        child.kill()?;
    }
    Ok(())
}

fn killed_in_the_middle_of_a_move() -> Result<()> {
    for round in 0..8_u64 {
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            let (small, large) = pages(&bound)?;
            turns.pass()?;
            loop {
                for area in [&small, &large] {
                    bound.migrate(area, area.all(), hmm::Destination::System)?;
                    bound.migrate(area, area.all(), hmm::Destination::Device)?;
                }
            }
        })?;
        child.wait()?;
        // A different moment each time.
        std::thread::sleep(std::time::Duration::from_micros(700 * round));
        child.kill()?;
    }
    Ok(())
}

fn killed_in_the_middle_of_a_fork() -> Result<()> {
    for _ in 0..4 {
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            let (small, large) = pages(&bound)?;
            let mut other = Child::fork(|turns| {
                let bound = Bound::new()?;
                let job = bound.start(add(&small, 5, 0, 1, 1 << 40))?;
                turns.pass_and_wait()?;
                std::mem::forget(job);
                bail!("it was to be killed")
            })?;
            let job = bound.start(add(&large, 5, 0, 1, 1 << 40))?;
            other.wait()?;
            sys::signal(other.id(), libc::SIGKILL)?;
            let end = other.status()?;
            ensure!(end == End::Signalled(libc::SIGKILL), "{end:?}");
            turns.pass_and_wait()?;
            std::mem::forget(job);
            Ok(())
        })?;
        child.wait()?;
        child.kill()?;
    }
    Ok(())
}

fn exec_replaces_everything() -> Result<()> {
    for _ in 0..3 {
        let child = Child::fork(|_| {
            let bound = Bound::new()?;
            let (small, large) = pages(&bound)?;
            let jobs = [(&small, 5), (&large, 700)]
                .map(|(area, page)| bound.start(add(area, page, 0, 1, 1 << 40)));
            // Only returns if it fails.
            let error = Command::new("/proc/self/exe").arg("nothing").exec();
            std::mem::forget(jobs);
            Err(error).context("exec")
        })?;
        let end = child.status()?;
        ensure!(end == End::Exited(0), "the new program ran: {end:?}");
    }
    Ok(())
}

fn a_file_that_is_handed_on() -> Result<()> {
    // The child gets the file descriptor of its parent's binding.
    let mut last = None;
    let mut middle = Child::fork(|turns| {
        let bound = Bound::new()?;
        let (small, _large) = pages(&bound)?;
        let mut other = Child::fork(|turns| {
            let refused = bound.migrate(&small, 0..1, hmm::Destination::System);
            ensure!(refused.is_err(), "it is bound to another process");
            turns.pass_and_wait()?;
            // The parent, which was bound, is dead by now; the file still exists.
            let refused = bound.try_read(&small, 0);
            ensure!(refused.is_err(), "and it is so still");
            small.expect(small.all(), 1)
        })?;
        other.wait()?;
        turns.pass_and_wait()?;
        other.pass()?;
        std::mem::forget((other, bound));
        Ok(())
    })?;
    middle.wait()?;
    last.replace(middle.pass_and_end());
    // The rest ends with the row; its runner waits for that.
    match last {
        Some(result) => result,
        None => bail!("there was no end"),
    }
}

fn many_short_lives() -> Result<()> {
    let slab = || -> Result<u64> { crate::kernel::meminfo("SUnreclaim") };
    // The first life makes what is allocated once, so that it is not counted.
    one_short_life()?;
    let before = slab()?;
    for _ in 0..30 {
        one_short_life()?;
    }
    let after = slab()?;
    ensure!(
        after < before + (4 << 20),
        "the kernel's own memory went from {before} to {after}"
    );
    File::open("/dev/hmm0").context("the device is there still")?;
    Ok(())
}

fn one_short_life() -> Result<()> {
    Child::fork(|_| {
        let bound = Bound::new()?;
        let area = Area::small(32)?;
        area.write(area.all(), 1);
        bound.move_to_device(&area, 0..16)?;
        bound.write(&area, 8..24, 2)?;
        std::mem::forget(bound);
        Ok(())
    })?
    .end()
}
