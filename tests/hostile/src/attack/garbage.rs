//! Bytes that are no request.

use anyhow::{ensure, Context, Result};
use virtio_hmm_spec::wire::command::{FetchEntry, Request, RequestHeader};
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::fault::{Reason, MIN_BUFFER};
use virtio_hmm_spec::wire::operation::Checksum;
use virtio_hmm_spec::wire::{rights, Queue};
use zerocopy::FromBytes;

use super::pick;
use super::requests::Ground;
use crate::device::{Part, ANSWER_DEADLINE, DATA};
use crate::health::frame;
use crate::machine::Place;
use crate::request::{bare, fetch, flags, init, item, job, list, mapping, range};
use crate::session::{Faults, Session};

const REQUESTS: usize = 64;

/// Random bytes on each queue that takes requests.
pub(super) fn random_bytes(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.done(&bare(Request::SpaceCreate, 0))?;
    for _ in 0..REQUESTS {
        let any = random.usize(..4096);
        let length = pick(random, &[0, 1, 15, 16, 17, 24, 136, any]);
        let mut request = vec![0; length];
        random.fill(&mut request);
        if random.bool() && length > 2 {
            // Random numbers seldom name an operation.
            request[0] = random.u8(..18);
            request[1] = 0;
        }
        send(session, random, &request)?;
    }
    Ok(())
}

/// Requests with a few bits flipped anywhere.
pub(super) fn flipped_bits(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    let start = frame(session, DATA);
    let read = flags(rights::READ);
    for _ in 0..REQUESTS {
        let name = session.fresh_name();
        let checksum = Checksum {
            source: Ground::SYSTEM,
            bytes: 100,
        };
        let mut request = match random.u8(0..9) {
            0 => init(),
            1 => bare(Request::SpaceCreate, 3),
            2 => list(Request::Map, 1, &[mapping(0x1000, start, 4, 0, read)]),
            3 => list(Request::Unmap, 1, &[range(0x1000, 4)]),
            4 => list(Request::Query, 1, &[range(Ground::SYSTEM, 4)]),
            5 => list(Request::Copy, 0, &[item(Kind::ToSystem, 1, 0, start)]),
            6 => list(Request::Copy, 0, &[item(Kind::ToDevice, 1, start, 0)]),
            7 => list(Request::Fetch, 1, &[fetch(0x1000, 0, start, 1)]),
            _ => job(name, Ground::SPACE, checksum),
        };
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..request.len());
            request[at] ^= 1 << random.u8(..8);
        }
        if spares_our_kernel(session, &request) {
            send(session, random, &request)?;
        }
    }
    Ok(())
}

/// Buffers on the fault queue without room for a fault, and chains that are no buffers.
pub(super) fn garbage_on_the_fault_queue(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    Ground::lay(session)?;
    let mut useless = Vec::new();
    for _ in 0..random.usize(1..16) {
        let mut bytes = vec![0; random.usize(1..200)];
        random.fill(&mut bytes);
        let small = random.usize(1..MIN_BUFFER);
        let parts = match random.u8(0..3) {
            0 => vec![Part::Read(&bytes)],
            1 => vec![Part::Write(small)],
            _ => vec![Part::Read(&bytes), Part::Write(small)],
        };
        useless.push(session.device.send(Queue::Fault, &parts)?);
        session.offer_fault_buffer()?;
    }
    // Raises a fault for every buffer, useful or not.
    let nowhere = Checksum {
        source: 0x10_0000,
        bytes: 1,
    };
    for _ in 0..useless.len() * 2 + 8 {
        let job = session.submit(Ground::SPACE, nowhere)?;
        let reply = session.finish(job, Faults::Terminate(Reason::Denied), ANSWER_DEADLINE)?;
        ensure!(reply.faults.get() == 1, "no fault was reported: {reply:?}");
    }
    for ticket in useless {
        let answer = session
            .device
            .wait(ticket)
            .context("a buffer without room")?;
        ensure!(
            answer.is_empty(),
            "a record where there was no room for one"
        );
        session.tally.unanswered += 1;
    }
    Ok(())
}

fn send(session: &mut Session, random: &mut fastrand::Rng, request: &[u8]) -> Result<()> {
    match random.u8(0..3) {
        0 => session.control(request).map(drop),
        1 => session.dma(request).map(drop),
        _ => {
            let job = session.submit_bytes(request)?;
            let faults = Faults::Terminate(Reason::Unmapped);
            session.finish(job, faults, ANSWER_DEADLINE).map(drop)
        }
    }
}

/// Whether the device, if it does exactly what is asked, writes only to our memory. A guest that
/// overwrites its own kernel tells nothing about the device.
fn spares_our_kernel(session: &mut Session, request: &[u8]) -> bool {
    let Ok((header, entries)) = RequestHeader::ref_from_prefix(request) else {
        return true;
    };
    let mut ours = |first: u64, pages: u32| {
        let pages = u64::from(pages);
        session.model().machine().frames(first, pages) == Place::Outside
            || session.device.arena.owns(first, pages)
    };
    match Request::from_raw(header.operation.get()) {
        Some(Request::Copy) => {
            let items = <[DmaItem]>::ref_from_prefix(entries);
            items
                .map_or(&[][..], |(items, _)| items)
                .iter()
                .all(|item| {
                    Kind::from_raw(item.kind.get()) != Some(Kind::ToSystem)
                        || ours(item.destination.get(), item.pages.get())
                })
        }
        Some(Request::Fetch) => {
            let entries = <[FetchEntry]>::ref_from_prefix(entries);
            entries
                .map_or(&[][..], |(entries, _)| entries)
                .iter()
                .all(|entry| ours(entry.destination.get(), entry.pages.get()))
        }
        _ => true,
    }
}
