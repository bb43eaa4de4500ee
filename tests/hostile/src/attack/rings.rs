//! Rings and registers that hold nonsense.
//!
//! For a driver that does this, only two things are promised until the next reset: nothing outside
//! of the offered memory is written, and the reset works.

use std::time::{Duration, Instant};

use anyhow::Result;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_hmm_spec::wire::command::Request;
use virtio_hmm_spec::wire::Queue;

use super::pick;
use crate::device::{Device, DATA, QUEUES};
use crate::memory::Arena;
use crate::request::bare;
use crate::ring::{flags, Descriptor, SIZE, STRIDE};
use crate::session::Session;
use crate::transport::QueueAddresses;

/// How long the device gets to do what it should not.
///
/// There is no event to wait for: the check hopes that nothing happens.
const SETTLE: Duration = Duration::from_millis(20);

/// Jumping indices of the available ring.
pub(super) fn jumping_indices(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let queue = pick(random, &QUEUES);
    describe_all(&mut session.device, queue)?;
    let by = [
        SIZE,
        SIZE + 1,
        0x7fff,
        0x8000,
        0xff00,
        u16::MAX,
        random.u16(..),
    ];
    let (arena, ring) = session.device.parts(queue);
    ring.advance(arena, pick(random, &by))?;
    kick_and_settle(session, queue)
}

/// Entries of the available ring that name no descriptor.
pub(super) fn impossible_heads(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let queue = pick(random, &QUEUES);
    describe_all(&mut session.device, queue)?;
    for _ in 0..random.usize(1..8) {
        let head = pick(random, &[SIZE, SIZE + 1, 0x7fff, u16::MAX, 0]);
        let (arena, ring) = session.device.parts(queue);
        ring.make_available(arena, head)?;
    }
    kick_and_settle(session, queue)
}

/// The same chain again and again, while the device still has it.
pub(super) fn heads_used_twice(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let queue = pick(random, &QUEUES);
    describe_all(&mut session.device, queue)?;
    let head = random.u16(..SIZE);
    for _ in 0..random.u16(2..SIZE) {
        let (arena, ring) = session.device.parts(queue);
        ring.make_available(arena, head)?;
    }
    kick_and_settle(session, queue)
}

/// Chains whose buffers are the rings themselves.
pub(super) fn buffers_inside_the_rings(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let queue = pick(random, &QUEUES);
    // The device may write to all three parts of the ring.
    let base = usize::from(queue.raw()) * STRIDE;
    session.device.arena.offer(base..base + STRIDE);
    let start = session.device.arena.physical(base);
    let length = u32::try_from(STRIDE)?;
    let request = session.device.buffer(&bare(Request::Statistics, 0))?;
    let request = Descriptor {
        address: session.device.arena.physical(request),
        length: 16,
        flags: flags::NEXT,
        next: 1,
    };
    let skip = pick(random, &[0, 0x4000, 0x8000, 8, 0x8002]);
    let room = Descriptor {
        address: start + skip,
        length: length - u32::try_from(skip)?,
        flags: flags::WRITE,
        next: 0,
    };
    let (arena, ring) = session.device.parts(queue);
    ring.describe(arena, 0, request)?;
    ring.describe(arena, 1, room)?;
    for _ in 0..random.u16(1..SIZE) {
        ring.make_available(arena, 0)?;
    }
    kick_and_settle(session, queue)
}

/// Queues whose parts overlap with each other and with those of other queues, and hold anything.
///
/// Addresses outside of the guest's memory, or not aligned, are not tried: with them QEMU itself
/// stops the machine.
pub(super) fn entangled_queues(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    start_with(&mut session.device, |arena, _| {
        let mut any = || arena.physical(DATA + random.usize(..0x1000) * 16);
        QueueAddresses {
            size: SIZE,
            descriptors: any(),
            available: any(),
            used: any(),
        }
    })
}

/// Queues with one descriptor, with none, and with a number that is no power of two.
pub(super) fn odd_queue_sizes(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    start_with(&mut session.device, |arena, index| {
        let base = DATA + index * STRIDE;
        QueueAddresses {
            size: pick(random, &[1, 2, 3, 100, 255, 256, 0]),
            descriptors: arena.physical(base),
            available: arena.physical(base + 0x4000),
            used: arena.physical(base + 0x8000),
        }
    })
}

/// Writes to fields that the driver may only read.
pub(super) fn writes_to_the_configuration(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    use zerocopy::{FromZeros, IntoBytes};
    let before = session.device.config;
    for _ in 0..16 {
        let at = random.usize(..size_of_val(&before));
        session.device.transport.write_config(at, random.u8(..))?;
    }
    let mut after = virtio_hmm_spec::wire::config::Config::new_zeroed();
    session.device.transport.read_config(after.as_mut_bytes())?;
    anyhow::ensure!(before == after, "the configuration has become {after:?}");
    Ok(())
}

/// Fills the descriptor table with chains, each a request and room.
fn describe_all(device: &mut Device, queue: Queue) -> Result<()> {
    let request = device.buffer(&bare(Request::Statistics, 0))?;
    let room = device.room(4096)?;
    let readable = device.arena.physical(request);
    let writable = device.arena.physical(room);
    for index in 0..SIZE {
        let descriptor = if index % 2 == 0 {
            Descriptor {
                address: readable,
                length: 16,
                flags: flags::NEXT,
                next: index + 1,
            }
        } else {
            Descriptor {
                address: writable,
                length: 4096,
                flags: flags::WRITE,
                next: 0,
            }
        };
        let (arena, ring) = device.parts(queue);
        ring.describe(arena, index, descriptor)?;
    }
    Ok(())
}

/// Resets the device and starts it with queues at these places, by their indices.
fn start_with(
    device: &mut Device,
    mut place: impl FnMut(&Arena, usize) -> QueueAddresses,
) -> Result<()> {
    device.transport.reset()?;
    device.arena.verify()?;
    device.negotiate()?;
    device.arena.offer(DATA..device.arena.len());
    for (index, queue) in QUEUES.into_iter().enumerate() {
        let at = place(&device.arena, index);
        device.transport.enable_queue(queue.raw(), at)?;
    }
    device.say(VIRTIO_CONFIG_S_DRIVER_OK)?;
    for queue in QUEUES {
        device.kick(queue)?;
    }
    settle();
    Ok(())
}

fn kick_and_settle(session: &Session, queue: Queue) -> Result<()> {
    session.device.kick(queue)?;
    settle();
    session.device.kick(queue)
}

fn settle() {
    let end = Instant::now() + SETTLE;
    while let Some(rest) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(rest);
    }
}
