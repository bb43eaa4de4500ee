//! Shares: no user can take a device away from others.

use anyhow::{ensure, Context, Result};
use hmm::{Destination, Device, Job};

use crate::area::{Area, PAGE};
use crate::bound::{add, ended, Bound};
use crate::child::Child;
use crate::row::{Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Shares",
    rows: &[
        Row {
            name: "one-space-however-often-it-is-bound",
            duty: "a process that binds to a device many times has one space there, and a change \
                   of its mappings is told to the device once",
            source: "spec/uapi.md: Bind; include/linux/mmu_notifier.h: every interval is asked",
            run: one_space_however_often_it_is_bound,
        },
        Row {
            name: "closing-one-of-several-files",
            duty:
                "ends the jobs of that file, and nothing else: jobs of others go on, pages stay, \
                   and the space ends with the last one",
            source: "spec/uapi.md: Bind",
            run: closing_one_of_several_files,
        },
        Row {
            name: "a-fork-binds-anew",
            duty:
                "a child that inherits a file is not bound by it, and has a space of its own when \
                   it binds",
            source: "kernel/fork.c: dup_mm; spec/uapi.md: Bind",
            run: a_fork_binds_anew,
        },
        Row {
            name: "one-user-cannot-take-all-spaces",
            duty: "when one user has bound as many processes as it may, others still can",
            source: "spec/uapi.md: Shares",
            run: one_user_cannot_take_all_spaces,
        },
        Row {
            name: "one-user-cannot-take-all-jobs",
            duty: "when one user has as many endless jobs as it may, the job of another one is \
                   taken and ends; so is that of another process of the same user",
            source: "spec/uapi.md: Shares",
            run: one_user_cannot_take_all_jobs,
        },
        Row {
            name: "one-user-cannot-take-all-memory",
            duty: "when one user has as much device memory as it may, others still get some, in \
                   small and in huge pages",
            source: "spec/uapi.md: Shares",
            run: one_user_cannot_take_all_memory,
        },
    ],
};

/// Users without privileges.
const ONE: u32 = 2001;
const OTHER: u32 = 2002;

/// The first device, bound as a user.
///
/// The node need not be open to all: the process opens it before it becomes that user's.
fn bound_as(user: u32) -> Result<Bound> {
    let device = Device::open("/dev/hmm0")?;
    sys::become_user(user).context("becoming another user")?;
    Bound::to(device)
}

fn spaces(bound: &Bound) -> Result<u64> {
    Ok(bound.counters()?.driver.spaces)
}

fn one_space_however_often_it_is_bound() -> Result<()> {
    const TIMES: usize = 100;
    let first = Bound::new()?;
    let before = spaces(&first)?;
    let mut bound = Vec::new();
    for _ in 1..TIMES {
        bound.push(Bound::new()?);
    }
    ensure!(spaces(&first)? == before, "still one space");
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    for each in bound.iter().chain([&first]) {
        each.expect(&area, area.all(), 1)?;
    }
    let told = |change: &dyn Fn() -> Result<()>| -> Result<u64> {
        let before = first.counters()?.driver.invalidations_sent;
        change()?;
        Ok(first.counters()?.driver.invalidations_sent - before)
    };
    let times = told(&|| area.protect(area.all(), sys::READ))?;
    ensure!(
        times == 1,
        "the device was told {times} times of one change"
    );
    drop(bound);
    ensure!(spaces(&first)? == before, "one of them is enough");
    first.expect(&area, area.all(), 1)
}

/// A job that is still running when this returns.
fn endless<'a>(bound: &'a Bound, area: &Area, page: usize) -> Result<Job<'a>> {
    bound.start(add(area, page, 0, 1, 1 << 40))
}

// {drv-job-names}
fn closing_one_of_several_files() -> Result<()> {
    let kept = Bound::new()?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    kept.move_to_device(&area, 0..8)?;
    let mine = endless(&kept, &area, 9)?;
    let others = Bound::new()?;
    let before = kept.counters()?;
    let jobs = (0..8)
        .map(|_| endless(&others, &area, 12))
        .collect::<Result<Vec<_>>>()?;
    // As a program does that stops using the device without waiting.
    std::mem::forget(jobs);
    let begun = || area.read_word(12, 0);
    let start = begun();
    crate::kernel::until("jobs begin", || Ok(begun() != start))?;
    drop(others);
    let ended_since =
        |before: u64| -> Result<u64> { Ok(kept.counters()?.device.jobs_ended.get() - before) };
    let ended_before = before.device.jobs_ended.get();
    crate::kernel::until("the jobs of a closed file end", || {
        Ok(ended_since(ended_before)? >= 8)
    })?;
    let end = begun();
    kept.expect(&area, 2..8, 1)?;
    ensure!(begun() == end, "no job counts any more");
    ensure!(spaces(&kept)? == before.driver.spaces, "the space is there");
    kept.expect_place(&area, 2..8, hmm::Place::Device)?;
    // The other job goes on.
    let count = area.read_word(9, 0);
    crate::kernel::until(
        "the other job goes on",
        || Ok(area.read_word(9, 0) != count),
    )?;
    std::mem::forget(mine);
    drop(kept);
    let observer = Device::open("/dev/hmm0")?;
    ensure!(observer.counters()?.driver.spaces == before.driver.spaces - 1);
    Ok(())
}

fn a_fork_binds_anew() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(4)?;
    area.write(area.all(), 1);
    let before = spaces(&bound)?;
    let mut child = Child::fork(|turns| {
        let refused = bound.migrate(&area, area.all(), Destination::Device);
        ensure!(refused.is_err(), "the parent's file is not the child's");
        let own = Bound::new()?;
        own.write(&area, 1..2, 2)?;
        own.expect(&area, 1..2, 2)?;
        turns.pass_and_wait()
    })?;
    child.wait()?;
    ensure!(
        spaces(&bound)? == before + 1,
        "parent and child have one each"
    );
    bound.expect(&area, area.all(), 1)?;
    child.pass_and_end()?;
    ensure!(spaces(&bound)? == before, "the child's is gone");
    bound.expect(&area, area.all(), 1)
}

/// Processes of a user that each take something, in turns, until one gets no more. All live until
/// the end.
struct Crowd {
    children: Vec<Child>,
}

impl Crowd {
    /// As many processes as can bind, up to `limit`.
    fn of(user: u32, limit: usize) -> Result<Self> {
        let mut children = Vec::new();
        while children.len() < limit {
            let mut child = Child::fork(|turns| {
                let bound = match bound_as(user) {
                    Err(error) if is(&error, libc::ENOSPC) => return Ok(()),
                    other => other?,
                };
                turns.pass_and_wait()?;
                drop(bound);
                Ok(())
            })?;
            if child.wait().is_err() {
                break;
            }
            children.push(child);
        }
        Ok(Self { children })
    }

    fn leave(self) -> Result<()> {
        for child in self.children {
            child.pass_and_end()?;
        }
        Ok(())
    }
}

fn is(error: &anyhow::Error, errno: i32) -> bool {
    let error = error.downcast_ref::<hmm::Error>();
    error.and_then(hmm::Error::errno) == Some(errno)
}

fn one_user_cannot_take_all_spaces() -> Result<()> {
    let all = Device::open("/dev/hmm0")?.info()?.max_spaces as usize;
    let crowd = Crowd::of(ONE, all)?;
    let taken = crowd.children.len();
    ensure!(
        taken >= all / 2,
        "alone, it may have more than {taken} of {all}"
    );
    ensure!(taken < all, "it has all {all}");
    // This user gets no more, but other users do.
    let more = Crowd::of(ONE, 1)?;
    ensure!(more.children.is_empty(), "one more");
    more.leave()?;
    let others = Crowd::of(OTHER, 8)?;
    let found = others.children.len();
    ensure!(found == 8, "another user found {found} spaces");
    others.leave()?;
    crowd.leave()?;
    let again = Crowd::of(ONE, 8)?;
    ensure!(
        again.children.len() == 8,
        "when they are gone, there is room"
    );
    again.leave()
}

/// Starts endless jobs until no more are taken. Returns how many were taken.
fn fill_with_jobs(bound: &Bound, area: &Area, most: usize) -> Result<usize> {
    let mut count = 0;
    while count < most {
        match endless(bound, area, 0) {
            Ok(job) => {
                count += 1;
                std::mem::forget(job);
            }
            Err(error) if is(&error, libc::EAGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn one_user_cannot_take_all_jobs() -> Result<()> {
    let all = Device::open("/dev/hmm0")?.info()?.max_jobs as usize;
    let area = Area::small(2)?;
    area.write(area.all(), 1);
    let hog = |least: usize| {
        let area = &area;
        Child::fork(move |turns| {
            let bound = bound_as(ONE)?;
            let count = fill_with_jobs(&bound, area, all)?;
            ensure!(count >= least, "only {count} of {all} jobs were taken");
            ensure!(count < all, "all {all} jobs were taken");
            turns.pass_and_wait()?;
            // The jobs end with the file.
            std::mem::forget(bound);
            Ok(())
        })
    };
    let mut first = hog(all / 2)?;
    first.wait()?;
    // Another process of the same user shares that user's limit.
    let mut second = hog(1)?;
    second.wait()?;
    // The user has taken its limit; other users still get jobs, which end well.
    Child::fork(|_| {
        let bound = bound_as(OTHER)?;
        for _ in 0..4 {
            let job = bound.start(add(&area, 1, 0, 1, 10))?;
            ensure!(ended(job)?.is_ok(), "the job of another user ends well");
        }
        let found = area.read_word(1, 0);
        let wanted = area.word(1, 1).wrapping_add(40);
        ensure!(found == wanted, "{found:#x} instead of {wanted:#x}");
        let jobs = (0..4)
            .map(|_| endless(&bound, &area, 0))
            .collect::<Result<Vec<_>>>()?;
        std::mem::forget(jobs);
        std::mem::forget(bound);
        Ok(())
    })?
    .end()?;
    first.pass_and_end()?;
    second.pass_and_end()
}

fn one_user_cannot_take_all_memory() -> Result<()> {
    let device = Device::open("/dev/hmm0")?;
    let all = usize::try_from(device.info()?.free_memory)? / PAGE;
    for large in [false, true] {
        let area = |pages: usize| -> Result<Area> {
            let area = if large {
                Area::large(pages.div_ceil(crate::area::LARGE_PAGES))?
            } else {
                Area::small(pages)?
            };
            area.write(area.all(), 1);
            Ok(area)
        };
        let mut hog = Child::fork(|turns| {
            let bound = bound_as(ONE)?;
            let area = area(all)?;
            let mut moved = 0;
            for _ in 0..3 {
                // Some pages may be in use for a moment.
                moved += bound.migrate(&area, area.all(), Destination::Device)?.moved;
            }
            let moved = usize::try_from(moved)?;
            ensure!(moved >= all / 2, "it got {moved} of {all} frames, alone");
            ensure!(moved < all, "it got all {all} frames");
            turns.pass_and_wait()?;
            bound.expect(&area, 0..area.pages().min(2048), 1)
        })?;
        hog.wait()?;
        Child::fork(|_| {
            let bound = bound_as(OTHER)?;
            // An eighth: the remaining quarter, less what no user may hold alone.
            let area = area(all / 8)?;
            bound.move_to_device(&area, area.all())?;
            bound.write(&area, 0..1, 1)?;
            area.expect(area.all(), 1)
        })?
        .end()?;
        hog.pass_and_end()?;
    }
    let used = device.counters()?.driver.used_frames;
    ensure!(used == 0, "{used} frames are left");
    Ok(())
}
