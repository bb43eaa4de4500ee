//! Chains that break the rules of virtqueues (virtio 1.3, 2.7.4 and 2.7.5).
//!
//! After each of them comes a chain on the same queue that keeps the rules: it must be answered
//! whatever became of the first.

use anyhow::{ensure, Context, Result};
use virtio_hmm_spec::wire::command::{Request, Status};
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::operation::Checksum;
use virtio_hmm_spec::wire::Queue;

use super::pick;
use super::requests::Ground;
use crate::device::{Part, ANSWER_DEADLINE};
use crate::request::{bare, item, job, list, reply_room, Reply};
use crate::ring::{flags, Descriptor, SIZE};
use crate::session::{Faults, Session};

const CHAINS: usize = 32;

/// Queues that take requests.
const QUEUES: [Queue; 3] = [Queue::Control, Queue::Dma, Queue::Submit];

/// The memory that every device-writable descriptor of a broken chain really has.
const ROOM: usize = 16 << 10;

/// Addresses where no guest has memory, and where addresses end.
const NOWHERE: [u64; 6] = [
    0xfee0_0000,
    1 << 44,
    1 << 52,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Loops, indices out of range, odd lengths and directions, addresses of nothing.
pub(super) fn broken_chains(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..CHAINS {
        let queue = pick(
            random,
            &[Queue::Control, Queue::Dma, Queue::Submit, Queue::Fault],
        );
        let request = session.device.buffer(&a_request(queue))?;
        let length = u32::try_from(a_request(queue).len())?;
        let room = session.device.room(ROOM)?;
        let readable = Descriptor {
            address: session.device.arena.physical(request),
            length,
            flags: 0,
            next: 0,
        };
        let writable = Descriptor {
            address: session.device.arena.physical(room),
            length: u32::try_from(ROOM)?,
            flags: flags::WRITE,
            next: 0,
        };
        let mut chain = [readable, writable, writable];
        let which = random.u8(0..14);
        let linked = mutate_chain(random, which, &mut chain);
        let ticket = session
            .device
            .send_chain(queue, chain.len(), room..room + ROOM, |free| {
                for (position, descriptor) in chain.iter_mut().enumerate() {
                    if descriptor.flags & flags::NEXT != 0
                        && linked.is_none_or(|odd| odd.0 != position)
                    {
                        descriptor.next = free[(position + 1) % free.len()];
                    }
                }
                if let Some((position, odd)) = linked {
                    chain[position].next = match odd {
                        Link::To(target) => free[target],
                        Link::Raw(index) => index,
                    };
                }
                free.iter().copied().zip(chain).collect()
            })
            .with_context(|| format!("chain {which}"))?;
        returned(session, queue, ticket).with_context(|| format!("chain of kind {which}"))?;
        still_serves(session, queue).with_context(|| format!("after a chain of kind {which}"))?;
    }
    Ok(())
}

/// The target of a descriptor's link if it is not the next one.
#[derive(Clone, Copy)]
enum Link {
    /// A descriptor of the same chain.
    To(usize),
    /// Any number.
    Raw(u16),
}

/// Breaks a chain of a request and room for a reply. Returns the link that differs from the usual.
fn mutate_chain(
    random: &mut fastrand::Rng,
    which: u8,
    chain: &mut [Descriptor; 3],
) -> Option<(usize, Link)> {
    chain[0].flags |= flags::NEXT;
    match which {
        0 => return Some((0, Link::To(0))),
        1 => {
            chain[1].flags |= flags::NEXT;
            return Some((1, Link::To(pick(random, &[0, 1]))));
        }
        2 => return Some((0, Link::Raw(pick(random, &[SIZE, SIZE + 1, u16::MAX])))),
        3 => {
            chain[1].flags |= flags::NEXT;
            return Some((1, Link::Raw(pick(random, &[SIZE, 0x8000, u16::MAX]))));
        }
        4 => chain[0].length = 0,
        5 => chain[1].length = 0,
        6 => {
            // Room before the request.
            let [request, room, _] = *chain;
            chain[0] = Descriptor {
                flags: room.flags | flags::NEXT,
                ..room
            };
            chain[1] = Descriptor {
                flags: 0,
                ..request
            };
        }
        7 => chain[0].flags = 0,
        8 => chain[0] = chain[1],
        9 => chain[0].address = pick(random, &NOWHERE),
        10 => chain[1].address = pick(random, &NOWHERE),
        11 => chain[0].length = pick(random, &[u32::MAX, 1 << 31, 1 << 30]),
        12 => chain[1].length = pick(random, &[u32::MAX, 1 << 31]),
        _ => chain[0].flags |= random.u16(..) & !(flags::INDIRECT | flags::WRITE | 7),
    }
    None
}

/// Tables that are too long, nested, misplaced, or hold broken chains.
pub(super) fn broken_indirect_tables(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    for _ in 0..CHAINS {
        let queue = pick(random, &QUEUES);
        let request = session.device.buffer(&a_request(queue))?;
        let length = u32::try_from(a_request(queue).len())?;
        let room = session.device.room(ROOM)?;
        let mut table = vec![
            Descriptor {
                address: session.device.arena.physical(request),
                length,
                flags: flags::NEXT,
                next: 1,
            },
            Descriptor {
                address: session.device.arena.physical(room),
                length: u32::try_from(ROOM)?,
                flags: flags::WRITE,
                next: 0,
            },
        ];
        let mut head_flags = flags::INDIRECT;
        let which = random.u8(0..11);
        match which {
            0 => table[0].flags |= flags::INDIRECT,
            1 => table[1].next = pick(random, &[2, 256, u16::MAX]),
            2 => table[0].next = pick(random, &[0, 2, u16::MAX]),
            3 => head_flags |= flags::NEXT,
            4 => head_flags |= flags::WRITE,
            5 => {
                // As many as an index can distinguish, each linked to the next.
                let step = table[1];
                table = (0..u16::MAX)
                    .map(|index| Descriptor {
                        flags: step.flags | flags::NEXT,
                        next: index + 1,
                        ..step
                    })
                    .collect();
            }
            _ => {}
        }
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.bytes()).collect();
        let at = session.device.buffer(&bytes)?;
        let mut head = Descriptor {
            address: session.device.arena.physical(at),
            length: u32::try_from(bytes.len())?,
            flags: head_flags,
            next: 0,
        };
        match which {
            6 => head.length = pick(random, &[0, 1, 15, 17, 31]),
            7 => head.length = pick(random, &[u32::MAX, !15, 1 << 20]),
            8 => head.address += random.u64(1..16),
            9 => head.address = pick(random, &NOWHERE),
            _ => {}
        }
        let ticket = session
            .device
            .send_chain(queue, 1, room..room + ROOM, |free| vec![(free[0], head)])?;
        returned(session, queue, ticket).with_context(|| format!("table of kind {which}"))?;
        still_serves(session, queue).with_context(|| format!("after a table of kind {which}"))?;
    }
    Ok(())
}

/// Requests and replies in many small descriptors: unusual, but right.
pub(super) fn chains_cut_into_bytes(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    for _ in 0..CHAINS {
        let request = bare(Request::Statistics, 0);
        let room = reply_room(&request);
        let mut parts: Vec<_> = request.chunks(1).map(Part::Read).collect();
        // The last piece takes the rest.
        let pieces = random.usize(1..200);
        parts.extend((1..pieces).map(|_| Part::Write(1)));
        parts.push(Part::Write(room - (pieces - 1)));
        let reply = Reply::parse(&session.device.exchange(Queue::Control, &parts)?)?;
        ensure!(
            reply.status == Status::Ok,
            "answered with {:?}",
            reply.status
        );
    }
    Ok(())
}

/// Requests without room for an answer.
pub(super) fn replies_without_room(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    Ground::lay(session)?;
    for _ in 0..CHAINS {
        let queue = pick(random, &QUEUES);
        let request = a_request(queue);
        let least = if queue == Queue::Submit { 80 } else { 8 };
        let room = random.usize(..least);
        let mut parts = vec![Part::Read(&request)];
        if room > 0 {
            parts.push(Part::Write(room));
        }
        let answer = session.device.exchange(queue, &parts)?;
        ensure!(
            answer.is_empty(),
            "an answer of {} bytes in {room}",
            answer.len()
        );
        session.tally.unanswered += 1;
        still_serves(session, queue)?;
    }
    for room in 8..reply_room(&bare(Request::Statistics, 0)) {
        session.control_into(&bare(Request::Statistics, 0), room)?;
    }
    Ok(())
}

/// A harmless request that the queue answers.
fn a_request(queue: Queue) -> Vec<u8> {
    match queue {
        Queue::Control | Queue::Fault => bare(Request::Statistics, 0),
        Queue::Dma => list(Request::Copy, 0, &[item(Kind::Clear, 1, 0, 0)]),
        Queue::Submit => job(
            u64::MAX,
            u32::MAX,
            Checksum {
                source: 0,
                bytes: 0,
            },
        ),
    }
}

/// Checks that the chain comes back, with or without an answer. The device may keep a buffer of the
/// fault queue until there is a fault.
fn returned(session: &mut Session, queue: Queue, ticket: crate::device::Ticket) -> Result<()> {
    if queue == Queue::Fault {
        return Ok(());
    }
    let answer = session
        .device
        .wait_for(ticket, ANSWER_DEADLINE)?
        .context("the chain did not come back")?;
    if answer.is_empty() {
        session.tally.unanswered += 1;
    }
    Ok(())
}

fn still_serves(session: &mut Session, queue: Queue) -> Result<()> {
    match queue {
        Queue::Control | Queue::Fault => session.statistics().map(drop),
        Queue::Dma => session.dma(&a_request(queue)).map(drop),
        Queue::Submit => {
            let job = session.submit_bytes(&a_request(queue))?;
            session
                .finish(job, Faults::Ignore, ANSWER_DEADLINE)
                .map(drop)
        }
    }
}
