//! Attacks that do several things at the same time.
//!
//! Jobs run and wait while the memory that they use is unmapped, and that memory is watched
//! afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use virtio_hmm_spec::wire::command::{Request, RequestHeader, Status};
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::operation::{AtomicAdd, Checksum, Element, Fill, Operation, Sum};
use virtio_hmm_spec::wire::{rights, Queue, PAGE_BYTES};

use super::pick;
use super::requests::{large_leaf, Ground};
use crate::device::{Part, ANSWER_DEADLINE, DATA, QUEUES};
use crate::health::frame;
use crate::memory::{HUGE, PAGE};
use crate::request::{
    bare, cancel, flags, init, item, list, mapping, range, reply_room, retry, terminate, Reply,
};
use crate::session::{Faults, Job, Session};

/// Where nothing is ever mapped.
const NOWHERE: u64 = 0x10_0000;

/// Where attacks map a large leaf of their own.
const LARGE: u64 = 0x6000_0000_0000;

/// How long memory is watched that must not change.
///
/// There is no event to wait for: the check hopes that nothing happens.
const WATCH: Duration = Duration::from_millis(10);

/// The counter that an endless job increments.
const COUNTER: usize = DATA + 8 * PAGE;
const COUNTER_ADDRESS: u64 = Ground::SYSTEM + 8 * PAGE_BYTES;

/// A job that never ends by itself; others that share its memory can see it run.
fn endless() -> AtomicAdd {
    AtomicAdd {
        address: COUNTER_ADDRESS,
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    }
}

fn parked() -> Operation {
    let source = NOWHERE;
    Checksum { source, bytes: 64 }.into()
}

/// Mappings are replaced, restricted and removed while jobs use them.
pub(super) fn invalidation_under_jobs(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    Ground::lay(session)?;
    let mut jobs = vec![session.submit(Ground::SPACE, endless())?];
    started(session)?;
    for _ in 0..8 {
        session.done(&large_leaf(session, LARGE))?;
        let bytes = HUGE as u64 / 2;
        let operation: Operation = match random.u8(0..2) {
            0 => Sum {
                source: LARGE,
                count: bytes / 8,
                element: Element::U64,
            }
            .into(),
            _ => Fill {
                destination: LARGE + bytes,
                bytes,
                pattern: random.u64(..),
            }
            .into(),
        };
        jobs.push(session.submit(Ground::SPACE, operation)?);
        let some = range(LARGE + random.u64(..512) * PAGE_BYTES, random.u64(1..512));
        let request = pick(random, &[Request::Unmap, Request::Protect]);
        session.done(&list(request, Ground::SPACE, &[some]))?;
    }
    let kind = pick(random, &[Request::Unmap, Request::Protect]);
    session.done(&list(
        kind,
        Ground::SPACE,
        &[range(Ground::SYSTEM, Ground::PAGES.into())],
    ))?;
    stands_still(session).with_context(|| format!("after {kind:?} was answered"))?;
    session.done(&bare(Request::SpaceDestroy, Ground::SPACE))?;
    all_end(session, jobs)
}

/// The space is destroyed while jobs wait for pages in it.
pub(super) fn destruction_under_faults(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    Ground::lay(session)?;
    let mut jobs = vec![session.submit(Ground::SPACE, endless())?];
    for _ in 0..random.usize(1..32) {
        jobs.push(session.submit(Ground::SPACE, parked())?);
    }
    started(session)?;
    session.serve_faults(Faults::Ignore)?;
    let last = if random.bool() {
        bare(Request::SpaceDestroy, Ground::SPACE)
    } else {
        init()
    };
    session.done(&last)?;
    stands_still(session).context("after its space was gone")?;
    all_end(session, jobs)
}

/// Faults stay unanswered; everything else goes on, and the jobs can be cancelled.
pub(super) fn unanswered_faults(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    let jobs: Vec<_> = (0..random.usize(8..48))
        .map(|_| session.submit(Ground::SPACE, parked()))
        .collect::<Result<_>>()?;
    others_go_on(session)?;
    for job in jobs {
        let reply = session.finish(job, Faults::Ignore, Duration::ZERO)?;
        ensure!(reply.status.get() == Status::Cancelled.raw(), "{reply:?}");
    }
    Ok(())
}

/// There is no buffer for a fault; everything else goes on.
pub(super) fn no_fault_buffers(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.device.restart()?;
    session.forget();
    session.done(&init())?;
    Ground::lay(session)?;
    let jobs: Vec<_> = (0..random.usize(1..48))
        .map(|_| session.submit(Ground::SPACE, parked()))
        .collect::<Result<_>>()?;
    others_go_on(session)?;
    // The faults have waited; they are reported once there is a buffer.
    session.offer_fault_buffer()?;
    for job in jobs {
        let faults = Faults::Terminate(Reason::NoMemory);
        let reply = session.finish(job, faults, ANSWER_DEADLINE)?;
        ensure!(reply.status.get() == Status::Fault.raw(), "{reply:?}");
    }
    Ok(())
}

/// Answers to faults that never happened.
pub(super) fn unknown_faults(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    let job = session.submit(Ground::SPACE, parked())?;
    for _ in 0..32 {
        let fault = random.u64(1 << 32..);
        let entry = if random.bool() {
            retry(fault)
        } else {
            terminate(fault, Reason::Gone)
        };
        session.done(&list(Request::Answer, 0, &[entry]))?;
    }
    let late = session.statistics()?.answers_late.get();
    ensure!(late == 32, "{late} late answers were counted");
    let reply = session.finish(job, Faults::Terminate(Reason::Busy), ANSWER_DEADLINE)?;
    ensure!(reply.reason.get() == Reason::Busy.raw(), "{reply:?}");
    Ok(())
}

/// The same fault is answered with `Retry` for ever, and nothing is mapped.
pub(super) fn endless_retries(session: &mut Session, _: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    let job = session.submit(Ground::SPACE, parked())?;
    let reply = session.finish(job, Faults::Retry, ANSWER_DEADLINE)?;
    ensure!(
        reply.status.get() == Status::Storm.raw() && reply.address.get() == NOWHERE,
        "{reply:?}"
    );
    Ok(())
}

/// Another CPU changes the bytes of a request while the device looks at it.
pub(super) fn bytes_changed_after_the_kick(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    Ground::lay(session)?;
    let start = frame(session, DATA);
    let read = flags(rights::READ);
    for _ in 0..16 {
        let (queue, request) = match random.u8(0..4) {
            0 => {
                let entries = [mapping(0x1000, start, 4, 0, read); 3];
                (Queue::Control, list(Request::Map, Ground::SPACE, &entries))
            }
            1 => {
                let entries = [range(Ground::READ_ONLY, 8); 4];
                (
                    Queue::Control,
                    list(Request::Unmap, Ground::SPACE, &entries),
                )
            }
            2 => {
                let entries = [range(Ground::SYSTEM, 8)];
                (
                    Queue::Control,
                    list(Request::Query, Ground::SPACE, &entries),
                )
            }
            _ => {
                let items = [item(Kind::Clear, 1, 0, 0); 4];
                (Queue::Dma, list(Request::Copy, 0, &items))
            }
        };
        flip_while_it_is_read(session, random, queue, &request)?;
    }
    Ok(())
}

fn flip_while_it_is_read(
    session: &mut Session,
    random: &mut fastrand::Rng,
    queue: Queue,
    request: &[u8],
) -> Result<()> {
    let room = reply_room(request).next_power_of_two().max(1 << 14);
    let ticket = session
        .device
        .queue(queue, &[Part::Read(request), Part::Write(room)])?;
    let at = session
        .device
        .request_of(ticket)
        .context("it was just queued")?;
    // The thread writes to memory that the device may only read, so the arena must not check it.
    session.device.arena.offer(at.clone());
    let memory = session.device.arena.unwatched();
    // The operation stays as it is: another one might write to memory that is not ours.
    let header = size_of::<RequestHeader>();
    let place = at.start
        + match queue {
            Queue::Dma => random.usize(header + 4..header + 8),
            _ => random.usize(2..header + 8),
        };
    let bytes = [random.u8(..), request[place - at.start]];
    let done = AtomicBool::new(false);
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for byte in bytes {
                    if memory.write(place, &[byte]).is_err() {
                        return;
                    }
                }
            }
        });
        let answer = session
            .device
            .kick(queue)
            .and_then(|()| session.device.wait(ticket));
        done.store(true, Ordering::Relaxed);
        answer
    })?;
    // It is unknown which of the two bytes the device saw; the answer must be one of the ladder.
    Reply::parse(&answer)?;
    Ok(())
}

/// The device is reset while jobs run, jobs wait and copies are under way.
pub(super) fn reset_under_load(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    session.submit(Ground::SPACE, endless())?;
    for _ in 0..random.usize(1..16) {
        session.submit(Ground::SPACE, parked())?;
    }
    started(session)?;
    let pages = session.device.config.max_copy_pages.get().min(256);
    let start = frame(session, DATA);
    let items = [
        item(Kind::ToDevice, pages, start, 1024),
        item(Kind::ToSystem, pages, 1024, start),
    ];
    for _ in 0..random.usize(1..16) {
        let request = list(Request::Copy, 0, &items[..random.usize(1..=2)]);
        let parts = [Part::Read(&request), Part::Write(reply_room(&request))];
        session.device.send(Queue::Dma, &parts)?;
    }
    session.device.transport.reset()?;
    stands_still(session).context("after the device was reset")?;
    session.restart()?;
    stands_still(session).context("after the device was initialised again")
}

/// Notifications without end, for queues with and without anything in them.
pub(super) fn kick_storm(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    for round in 0..512 {
        session.device.kick(pick(random, &QUEUES))?;
        if round % 32 == 0 {
            session.statistics()?;
        }
    }
    Ok(())
}

/// Waits until the endless job has begun.
fn started(session: &mut Session) -> Result<()> {
    let before = counter(session)?;
    let deadline = std::time::Instant::now() + ANSWER_DEADLINE;
    while counter(session)? == before {
        ensure!(
            std::time::Instant::now() < deadline,
            "the job does not begin"
        );
        session.serve_faults(Faults::Ignore)?;
        thread::yield_now();
    }
    Ok(())
}

/// Checks that the memory of the endless job does not change any more.
fn stands_still(session: &Session) -> Result<()> {
    let before = counter(session)?;
    thread::sleep(WATCH);
    let after = counter(session)?;
    ensure!(
        before == after,
        "memory was written that had been taken back"
    );
    Ok(())
}

fn counter(session: &Session) -> Result<Vec<u8>> {
    session.device.arena.read(COUNTER, 8)
}

/// Checks that a job that needs no page, and requests, do not wait for jobs that do.
fn others_go_on(session: &mut Session) -> Result<()> {
    let sum = Sum {
        source: Ground::SYSTEM,
        count: 512,
        element: Element::U32,
    };
    let job = session.submit(Ground::SPACE, sum)?;
    let reply = session.finish(job, Faults::Ignore, ANSWER_DEADLINE)?;
    ensure!(reply.status.get() == Status::Ok.raw(), "{reply:?}");
    session.done(&list(
        Request::Unmap,
        Ground::SPACE,
        &[range(Ground::READ_ONLY, 4)],
    ))?;
    session.done(&cancel(u64::MAX))?;
    session.dma(&list(Request::Copy, 0, &[item(Kind::Clear, 1, 0, 0)]))?;
    Ok(())
}

fn all_end(session: &mut Session, jobs: Vec<Job>) -> Result<()> {
    for job in jobs {
        session.finish(job, Faults::Terminate(Reason::Gone), ANSWER_DEADLINE)?;
    }
    Ok(())
}
