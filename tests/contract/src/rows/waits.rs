//! Waiting for jobs: how a waiter learns that a job has ended, and what signals do to a wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Job, Progress, Status};
use rustix::event::{epoll, eventfd, EventfdFlags, PollFlags, Timespec};
use rustix::io::Errno;

use crate::area::Area;
use crate::bound::{add, begun, cancelled, ended, endless, fill, Bound};
use crate::calls::{any, ready, wait};
use crate::kernel::{patience, until};
use crate::row::{Chapter, Row};
use crate::sys::{self, Signals};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Waits",
    rows: &[
        Row {
            name: "a-file-is-readable-when-a-job-has-ended",
            duty: "a poll tells of each end, to a thread that sleeps and to one that comes later, \
                   until the result has been fetched, and of nothing else",
            source: "spec/uapi.md: Readiness; fs/select.c: do_poll",
            run: a_file_is_readable_when_a_job_has_ended,
        },
        Row {
            name: "a-file-is-closed-while-it-is-polled",
            duty: "a file that a thread polls lives until the poll ends, with its jobs, and not \
                   longer; an epoll set forgets it at once",
            source: "fs/select.c: do_poll (holds the file); fs/eventpoll.c: eventpoll_release",
            run: a_file_is_closed_while_it_is_polled,
        },
        Row {
            name: "an-eventfd-counts-ends",
            duty: "an eventfd that was handed in with jobs counts each end once, however the job \
                   ends: also with its file, and after the descriptor was closed",
            source: "spec/uapi.md: Submit; fs/eventfd.c: eventfd_signal_mask",
            run: an_eventfd_counts_ends,
        },
        Row {
            name: "any-of-several-jobs",
            duty: "a wait for any of several jobs returns one that has ended, the first one named \
                   or the oldest, in time, and says whose result it is",
            source: "spec/uapi.md: WaitAny",
            run: any_of_several_jobs,
        },
        Row {
            name: "a-wait-for-any-job-learns-of-all",
            duty:
                "a thread that sleeps for any job of a file wakes for a job that came later, and \
                   does not wait for what others have fetched",
            source: "spec/uapi.md: WaitAny",
            run: a_wait_for_any_job_learns_of_all,
        },
        Row {
            name: "a-wait-goes-on-after-a-signal",
            duty: "a signal whose handler restarts calls ends no wait and moves no deadline; one \
                   whose handler does not ends it with EINTR, and the job can be waited for still",
            source: "spec/uapi.md: Signals; kernel/signal.c (ERESTARTSYS)",
            run: a_wait_goes_on_after_a_signal,
        },
    ],
};

fn a_file_is_readable_when_a_job_has_ended() -> Result<()> {
    let unbound = hmm::Device::open("/dev/hmm0")?;
    let state = ready(&unbound, Duration::ZERO)?;
    ensure!(state.is_empty(), "a file that is not bound: {state:?}");
    let bound = Bound::new()?;
    let look = || ready(bound.space(), Duration::ZERO);
    let area = Area::small(3)?;
    let jobs = (0..3)
        .map(|page| endless(&bound, &area, page))
        .collect::<Result<Vec<_>>>()?;
    let state = look()?;
    ensure!(state.is_empty(), "all of them run: {state:?}");
    let [one, two, three] = <[_; 3]>::try_from(jobs).map_err(|_| anyhow::anyhow!("three jobs"))?;
    thread::scope(|scope| -> Result<()> {
        // A thread that sleeps must be woken.
        let sleeper = scope.spawn(|| ready(bound.space(), patience()));
        one.cancel()?;
        let state = sleeper.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(state == PollFlags::IN, "woken by an end: {state:?}");
        Ok(())
    })?;
    ensure!(
        look()? == PollFlags::IN,
        "a thread that comes later is told too"
    );
    two.cancel()?;
    cancelled(ended(two)?)?;
    ensure!(look()? == PollFlags::IN, "of the one that is left");
    cancelled(ended(one)?)?;
    let state = look()?;
    ensure!(state.is_empty(), "all has been fetched: {state:?}");
    // The same by epoll, which reports only the events that it was asked for.
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let key = epoll::EventData::new_u64(9);
    epoll::add(&set, bound.space(), key, epoll::EventFlags::IN)?;
    three.cancel()?;
    let event = epoll_wait(&set, patience())?.context("epoll tells of the end")?;
    ensure!(event == epoll::EventFlags::IN, "{event:?}");
    cancelled(ended(three)?)?;
    let event = epoll_wait(&set, Duration::ZERO)?;
    ensure!(event.is_none(), "and of nothing else: {event:?}");
    let state = ready(&unbound, Duration::ZERO)?;
    ensure!(state.is_empty(), "nor is another file told: {state:?}");
    Ok(())
}

/// The next event of a set with one file.
fn epoll_wait(set: impl AsFd, within: Duration) -> Result<Option<epoll::EventFlags>> {
    let mut events = Vec::with_capacity(1);
    let timeout = Timespec::try_from(within).context("a timeout")?;
    let spare = rustix::buffer::spare_capacity(&mut events);
    epoll::wait(set, spare, Some(&timeout)).context("epoll_wait")?;
    Ok(events.first().map(|event| event.flags))
}

fn a_file_is_closed_while_it_is_polled() -> Result<()> {
    let area = Area::small(2)?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    {
        let bound = Bound::new()?;
        let key = epoll::EventData::new_u64(9);
        epoll::add(&set, bound.space(), key, epoll::EventFlags::IN)?;
        // Closing the file ends the job, and its end is not reported any more.
        std::mem::forget(endless(&bound, &area, 0)?);
    }
    let event = epoll_wait(&set, Duration::ZERO)?;
    ensure!(event.is_none(), "the file is forgotten: {event:?}");
    let last = area.read_word(0, 0);

    let bound = Bound::new()?;
    let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let operation = hmm::Operation::from(add(&area, 1, 0, 1, 1 << 60));
    // SAFETY: as in `Bound::start`.
    std::mem::forget(unsafe { bound.space().submit_notifying(operation, end.as_fd()) }?);
    begun(&area, 1)?;
    let counter = || area.counter(1, 0).load(Ordering::Relaxed);
    // A duplicate would keep the file open; the number alone does not.
    let number = bound.space().as_fd().as_raw_fd();
    thread::scope(|scope| -> Result<()> {
        let poller = sys::Poller::start(scope, number);
        until("the thread polls", || Ok(poller.sleeps()?))?;
        drop(bound);
        let at_close = counter();
        until("the job goes on with the poll", || Ok(counter() > at_close))?;
        ensure!(count(&end)? == 0, "it has no end yet");
        let answer = poller.wake_and_join()??;
        ensure!(
            answer == sys::NOT_OPEN,
            "woken, the thread learns that its descriptor is gone: {answer:#x}"
        );
        Ok(())
    })?;
    // The file was released before the thread's call returned, or soon after.
    ensure!(
        ready(&end, patience())? == PollFlags::IN,
        "the job ends with the file"
    );
    ensure!(area.read_word(0, 0) == last, "nor is the first one alive");
    Ok(())
}

/// The count of an eventfd since it was last read.
fn count(file: impl AsFd) -> Result<u64> {
    let mut bytes = [0; 8];
    match rustix::io::read(file, &mut bytes) {
        Ok(8) => Ok(u64::from_ne_bytes(bytes)),
        Ok(length) => bail!("{length} bytes of a counter"),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error).context("reading an eventfd"),
    }
}

fn an_eventfd_counts_ends() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(8)?;
    let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let notifying = |operation: hmm::Operation, file: BorrowedFd<'_>| {
        // SAFETY: as in `Bound::start`.
        unsafe { bound.space().submit_notifying(operation, file) }
    };
    let (some, one) = (new()?, new()?);
    let jobs = (0..7)
        .map(|page| notifying(fill(&area, page, 3).into(), some.as_fd()))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let slow = notifying(add(&area, 7, 0, 1, 1 << 60).into(), one.as_fd())?;
    begun(&area, 7)?;
    let mut seen = 0;
    while seen < 7 {
        let state = ready(&some, patience())?;
        ensure!(state == PollFlags::IN, "{seen} of 7 ends: {state:?}");
        seen += count(&some)?;
    }
    for job in jobs {
        // The result is there already, so the wait returns at once.
        match job.wait_timeout(Duration::ZERO)? {
            Progress::Ended(_) => {}
            Progress::Running(job) => bail!("{job:?} had been said to have ended"),
        }
    }
    ensure!(count(&some)? == 0, "each end counts once");
    ensure!(count(&one)? == 0, "and a job that runs has none");
    slow.cancel()?;
    ensure!(
        ready(&one, patience())? == PollFlags::IN,
        "a cancelled job ends"
    );
    cancelled(ended(slow)?)?;
    ensure!(count(&one)? == 1, "once");

    // One descriptor is closed before its job ends; the other job ends when the file is closed.
    let early = new()?;
    let late = new()?;
    std::mem::forget(notifying(
        add(&area, 6, 0, 1, 1 << 60).into(),
        early.as_fd(),
    )?);
    drop(early);
    std::mem::forget(notifying(
        add(&area, 5, 0, 1, 1 << 60).into(),
        late.as_fd(),
    )?);
    begun(&area, 5)?;
    ensure!(count(&late)? == 0, "it runs");
    drop(bound);
    ensure!(
        ready(&late, patience())? == PollFlags::IN,
        "the file's jobs end"
    );
    ensure!(count(&late)? == 1, "once");
    Ok(())
}

fn any_of_several_jobs() -> Result<()> {
    let bound = Bound::new()?;
    let space = bound.space();
    let area = Area::small(4)?;
    let none = any(&bound, &[], -1);
    ensure!(none == Err(Errno::NOENT), "there are no jobs: {none:?}");
    let mut jobs: Vec<Job<'_>> = Vec::new();
    ensure!(space.wait_any(&mut jobs)?.is_none(), "nor in a list");
    let ends = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    for page in 0..3 {
        let operation = hmm::Operation::from(add(&area, page, 0, 1, 1 << 60));
        // SAFETY: as in `Bound::start`.
        jobs.push(unsafe { space.submit_notifying(operation, ends.as_fd()) }?);
        begun(&area, page)?;
    }
    let fences: Vec<_> = jobs.iter().map(Job::fence).collect();
    let in_time = space.wait_any_timeout(&mut jobs, Duration::from_millis(30))?;
    ensure!(in_time.is_none() && jobs.len() == 3, "all of them run");
    for looks in [any(&bound, &fences, 0), any(&bound, &[], 0)] {
        ensure!(looks == Err(Errno::TIME), "and to look says so: {looks:?}");
    }
    // The last job of the list ends first.
    jobs.push(bound.start(fill(&area, 3, 2))?);
    let short = jobs[3].fence();
    let first = space.wait_any(&mut jobs)?.context("one has ended")?;
    ensure!(first.fence == short && first.result.is_ok(), "{first:?}");
    ensure!(jobs.len() == 3, "it was taken out of the list");
    area.expect(3..4, 2)?;
    // Of two jobs that have ended, a wait returns the one that is named first; a wait for all
    // returns the oldest.
    for page in [1, 2] {
        jobs[page].cancel()?;
    }
    // The device ends the jobs before the driver knows, so wait until the driver has reported both.
    let mut ended = 0;
    while ended < 2 {
        let state = ready(&ends, patience())?;
        ensure!(state == PollFlags::IN, "{ended} of 2 ends: {state:?}");
        ended += count(&ends)?;
    }
    let gone = any(&bound, &[fences[2], short], 0);
    ensure!(gone == Err(Errno::NOENT), "one was fetched: {gone:?}");
    let named = any(&bound, &[fences[0], fences[2], fences[1]], -1);
    let wanted = Ok((fences[2], Some(Status::Cancelled)));
    ensure!(named == wanted, "the first one named: {named:?}");
    let oldest = any(&bound, &[], -1);
    let wanted = Ok((fences[1], Some(Status::Cancelled)));
    ensure!(oldest == wanted, "the oldest one: {oldest:?}");
    let again = any(&bound, &[fences[1]], -1);
    ensure!(again == Err(Errno::NOENT), "it was fetched: {again:?}");
    jobs.truncate(1);
    let left = space.wait_any_timeout(&mut jobs, Duration::ZERO)?;
    ensure!(left.is_none(), "the other one runs");
    jobs[0].cancel()?;
    let last = space.wait_any(&mut jobs)?.context("it ends too")?;
    ensure!(last.fence == fences[0] && jobs.is_empty(), "{last:?}");
    Ok(())
}

fn a_wait_for_any_job_learns_of_all() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(2)?;
    let slow = endless(&bound, &area, 0)?;
    thread::scope(|scope| -> Result<()> {
        let (bound, area) = (&bound, &area);
        let waiter = scope.spawn(move || any(bound, &[], -1));
        // The waiter may not sleep yet; its answer is the same.
        let late = bound.start(fill(area, 1, 4))?;
        let fence = late.fence();
        // The other thread fetches it.
        std::mem::forget(late);
        let answer = waiter.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        let wanted = Ok((fence, Some(Status::Ok)));
        ensure!(answer == wanted, "the job that came later: {answer:?}");
        Ok(())
    })?;
    // Two threads wait for the same job: one gets its end, the other one learns that it is gone.
    thread::scope(|scope| -> Result<()> {
        let (bound, fence) = (&bound, [slow.fence()]);
        let waiters = [(); 2].map(|()| scope.spawn(move || any(bound, &fence, -1)));
        slow.cancel()?;
        let mut answers = Vec::new();
        for waiter in waiters {
            answers.push(waiter.join().map_err(|_| anyhow::anyhow!("a panic"))?);
        }
        answers.sort_by_key(std::result::Result::is_err);
        let wanted = [Ok((fence[0], Some(Status::Cancelled))), Err(Errno::NOENT)];
        ensure!(answers == wanted, "{answers:?}");
        Ok(())
    })?;
    drop(slow);
    Ok(())
}

fn a_wait_goes_on_after_a_signal() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(2)?;
    let job = endless(&bound, &area, 0)?;
    let fence = job.fence();
    let soon = || -> Result<i64> { Ok(sys::monotonic()? + 300_000_000) };

    // More than one signal arrives during a wait. If each of them moved the deadline, none of these
    // waits would end.
    let signals = Signals::every(Duration::from_millis(10), true)?;
    let answer = wait(&bound, fence, soon()?);
    ensure!(answer == Err(Errno::TIME), "a wait for one: {answer:?}");
    let first = signals.count();
    ensure!(first > 1, "there were {first} signals");
    let answer = any(&bound, &[fence], soon()?);
    ensure!(answer == Err(Errno::TIME), "a wait for any: {answer:?}");
    let second = signals.count() - first;
    ensure!(second > 1, "there were {second} signals more");
    // Nor do signals delay the end of a job.
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let enough = signals.count() + 3;
        let (signals, is_over, job) = (&signals, &is_over, &job);
        let other = scope.spawn(move || -> Result<()> {
            until("signals come", || Ok(signals.count() >= enough))?;
            is_over.store(true, Ordering::Relaxed);
            Ok(job.cancel()?)
        });
        let answer = wait(&bound, fence, -1);
        ensure!(
            answer == Ok(Some(Status::Cancelled)) && is_over.load(Ordering::Relaxed),
            "it waited until the end: {answer:?}"
        );
        other.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;
    drop(job);
    drop(signals);

    let job = endless(&bound, &area, 1)?;
    let fence = job.fence();
    let signals = Signals::every(Duration::from_millis(10), false)?;
    for _ in 0..3 {
        let answer = wait(&bound, fence, -1);
        ensure!(answer == Err(Errno::INTR), "a wait for one: {answer:?}");
        let answer = any(&bound, &[], -1);
        ensure!(answer == Err(Errno::INTR), "a wait for any: {answer:?}");
    }
    drop(signals);
    job.cancel()?;
    cancelled(ended(job)?)
}
