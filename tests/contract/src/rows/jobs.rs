//! Jobs that are ended early.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hmm::Status;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::area::{Area, PAGE, ZERO};
use crate::bound::{add, cancelled, ended, endless, fill, Bound};
use crate::calls::{any, cancel, ready};
use crate::child::Child;
use crate::kernel::until;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::Userfault;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Jobs",
    rows: &[
        Row {
            name: "a-cancelled-job-ends",
            duty: "a job that would never end is cancelled, as often as one likes; it writes \
                   nothing after its end was fetched, and no other job ends with it",
            source: "spec/uapi.md: Cancel",
            run: a_cancelled_job_ends,
        },
        Row {
            name: "a-parked-job-can-be-cancelled",
            duty: "a job that waits for a page which never comes is cancelled all the same, and \
                   the page can be had later; other jobs of the process get theirs meanwhile",
            source: "spec/uapi.md: Cancel; mm/userfaultfd.c: handle_userfault",
            run: a_parked_job_can_be_cancelled,
        },
        Row {
            name: "cancelled-jobs-leave-room-for-faults",
            duty: "while a job waits for a page which never comes, more jobs than there can be at \
                   a time are cancelled when the driver has their faults: the device is not given \
                   up, and the next job gets its page",
            source: "spec/virtio-hmm.md: Answer, Cancel; mm/userfaultfd.c: handle_userfault",
            run: cancelled_jobs_leave_room_for_faults,
        },
        Row {
            name: "cancelled-before-it-begins",
            duty: "a job that is cancelled in the moment in which it is handed in ends too, \
                   whichever of both the device sees first",
            source: "spec/virtio-hmm.md: Cancel",
            run: cancelled_before_it_begins,
        },
        Row {
            name: "cancelled-as-it-ends",
            duty: "a job that is cancelled about when it ends has one end, with the whole result \
                   or as Cancelled",
            source: "spec/uapi.md: Cancel",
            run: cancelled_as_it_ends,
        },
        Row {
            name: "a-process-cancels-no-jobs-of-others",
            duty: "a fence means nothing to another file of the same process, and a forked child \
                   may not use it",
            source: "spec/uapi.md: Cancel, Bind",
            run: a_process_cancels_no_jobs_of_others,
        },
    ],
};

fn a_cancelled_job_ends() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(2)?;
    let (job, other) = (endless(&bound, &area, 0)?, endless(&bound, &area, 1)?);
    let fence = job.fence();
    job.cancel()?;
    job.cancel()?;
    cancelled(ended(job)?)?;
    let last = area.read_word(0, 0);
    let gone = cancel(&bound, fence);
    ensure!(gone == Err(Errno::NOENT), "it was fetched: {gone:?}");
    // The other job must go on after that.
    let before = area.counter(1, 0).load(Ordering::Relaxed);
    until("the other job goes on", || {
        Ok(area.counter(1, 0).load(Ordering::Relaxed) > before)
    })?;
    ensure!(area.read_word(0, 0) == last, "it wrote after its end");
    other.cancel()?;
    // It may have ended by now, and cancelling it is no error.
    until("the second one ends", || {
        let state = ready(bound.space(), Duration::ZERO)?;
        Ok(state.contains(PollFlags::IN))
    })?;
    other.cancel()?;
    cancelled(ended(other)?)
}

fn a_parked_job_can_be_cancelled() -> Result<()> {
    let bound = Bound::new()?;
    let (area, source) = (Area::small(4)?, Area::small(4)?);
    source.write(source.all(), 5);
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    handler.register_missing(area.address(0), 4 * PAGE)?;
    let job = bound.start(fill(&area, 2, 7))?;
    let address = handler.next_fault().context("waiting for the fault")?;
    ensure!(address == area.address(2), "the job wants its page");
    let other = Area::small(2)?;
    bound.write(&other, 0..1, 3)?;
    job.cancel()?;
    // The fault was never served.
    cancelled(ended(job)?)?;
    bound.write(&other, 1..2, 3)?;
    other.expect(other.all(), 3)?;
    for page in 0..4 {
        handler.copy(area.address(page), source.address(page), PAGE)?;
    }
    area.expect(area.all(), 5)?;
    bound.expect(&area, area.all(), 5)?;
    bound.write(&area, 2..3, 6)?;
    area.expect(2..3, 6)
}

fn cancelled_jobs_leave_room_for_faults() -> Result<()> {
    const JOBS: u32 = 64;
    let bound = Bound::new()?;
    let (area, source) = (Area::small(1)?, Area::small(1)?);
    source.write(source.all(), 5);
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    handler.register_missing(area.address(0), PAGE)?;
    let held_up = bound.start(fill(&area, 0, 7))?;
    handler.next_fault().context("waiting for the fault")?;
    let before = bound.space().device().info()?;
    // None is unmapped before the end. A late answer to the fault of a job that was cancelled would
    // map a page of the next area at the same addresses, whose job then would not fault.
    let mut areas = Vec::new();
    for round in 0..=2 * before.max_jobs / JOBS {
        areas.push(Area::small(JOBS as usize)?);
        let others = &areas[areas.len() - 1];
        let faults = bound.counters()?.driver.faults;
        let jobs = others.all().map(|page| bound.start(fill(others, page, 6)));
        let jobs = jobs.collect::<Result<Vec<_>>>()?;
        until("the driver has the faults", || {
            Ok(bound.counters()?.driver.faults >= faults + u64::from(JOBS))
        })?;
        for job in &jobs {
            job.cancel()?;
        }
        for job in jobs {
            // A job whose fault was handled in time has written its page.
            if let Err(failure) = ended(job).with_context(|| format!("in round {round}"))? {
                cancelled(Err(failure))?;
            }
        }
    }
    let last = Area::small(1)?;
    bound.write(&last, 0..1, 7)?;
    last.expect(last.all(), 7)?;
    handler.copy(area.address(0), source.address(0), PAGE)?;
    let end = ended(held_up)?;
    ensure!(end.is_ok(), "the job that was held up has failed: {end:?}");
    area.expect(area.all(), 7)?;
    let resets = bound.space().device().info()?.resets;
    ensure!(resets == before.resets, "the device has been given up");
    Ok(())
}

fn cancelled_before_it_begins() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(8)?;
    area.write(area.all(), ZERO);
    for round in 0..100 {
        let jobs = (0..8)
            .map(|page| {
                let job = bound.start(add(&area, page, 0, 1, 1 << 60))?;
                job.cancel()?;
                Ok(job)
            })
            .collect::<Result<Vec<_>>>()?;
        for job in jobs {
            let end = ended(job).with_context(|| format!("in round {round}"))?;
            cancelled(end)?;
        }
    }
    let last: Vec<_> = (0..8).map(|page| area.read_word(page, 0)).collect();
    bound.expect(&area, 0..0, 1)?;
    let now: Vec<_> = (0..8).map(|page| area.read_word(page, 0)).collect();
    ensure!(last == now, "they wrote after their ends");
    Ok(())
}

fn cancelled_as_it_ends() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(1)?;
    area.write(area.all(), 1);
    bound.write(&area, 0..1, 1)?;
    let (mut whole, mut cut) = (0, 0);
    for round in 0..400_u64 {
        let before = area.read_word(0, 0);
        // From no work up to more than fits into the time of the call.
        let repeat = round * 8;
        let job = bound.start(add(&area, 0, 0, 1, repeat))?;
        job.cancel()?;
        let fence = job.fence();
        let end = ended(job)?;
        let added = area.read_word(0, 0).wrapping_sub(before);
        match end {
            Ok(_) => {
                whole += 1;
                ensure!(added == repeat, "{added} of {repeat} in a job that ended");
            }
            Err(failure) => {
                cut += 1;
                ensure!(failure.status == Status::Cancelled, "{failure}");
                ensure!(added <= repeat, "{added} of {repeat}");
            }
        }
        let again = cancel(&bound, fence);
        ensure!(again == Err(Errno::NOENT), "one end only: {again:?}");
    }
    ensure!(whole + cut == 400, "each has ended");
    Ok(())
}

fn a_process_cancels_no_jobs_of_others() -> Result<()> {
    let (bound, other) = (Bound::new()?, Bound::new()?);
    let area = Area::small(1)?;
    let job = endless(&bound, &area, 0)?;
    let fence = job.fence();
    let answer = cancel(&other, fence);
    ensure!(answer == Err(Errno::NOENT), "another file: {answer:?}");
    let answer = any(&other, &[fence], 0);
    ensure!(answer == Err(Errno::NOENT), "and to wait: {answer:?}");
    Child::fork(|_| {
        let answer = cancel(&bound, fence);
        ensure!(answer == Err(Errno::PERM), "a child: {answer:?}");
        let answer = any(&bound, &[], 0);
        ensure!(answer == Err(Errno::PERM), "and to wait: {answer:?}");
        Ok(())
    })?
    .end()?;
    let before = area.counter(0, 0).load(Ordering::Relaxed);
    until("the job goes on", || {
        Ok(area.counter(0, 0).load(Ordering::Relaxed) > before)
    })?;
    job.cancel()?;
    cancelled(ended(job)?)
}
