//! Requests that are well-formed but for a few fields.
//!
//! The model knows the answer to each of them, so every answer is checked.

use std::time::Duration;

use anyhow::Result;
use virtio_hmm_spec::wire::command::{
    map_flags, AnswerEntry, CancelEntry, FetchEntry, InitEntry, Request, RequestHeader,
};
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::job::{JobDescriptor, JobRequest, MAX_ARGUMENTS};
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES, PAGE_BYTES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::pick;
use crate::device::{DATA, DATA_PAGES};
use crate::health::frame;
use crate::memory::HUGE;
use crate::request::{bare, fetch, flags, init, item, list, mapping, range};
use crate::session::{Faults, Session};

const REQUESTS: usize = 64;
const JOBS: usize = 24;

/// How long an absurd job may run before it is cancelled.
const PATIENCE: Duration = Duration::from_millis(100);

const READ_WRITE: u16 = flags(rights::READ | rights::WRITE);

/// Control requests of every operation with fields that make no sense.
pub(super) fn mutated_control_requests(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    session.done(&bare(Request::SpaceCreate, 0))?;
    for _ in 0..REQUESTS {
        let request = control_request(session, random);
        let request = mutate_header(random, request);
        session.control(&request)?;
    }
    Ok(())
}

/// Copy lists whose items make no sense.
pub(super) fn mutated_copies(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.device.arena.offer(DATA..DATA + HUGE);
    clear_device_memory(session)?;
    for _ in 0..REQUESTS {
        let mut items = Vec::new();
        for _ in 0..random.usize(1..8) {
            let item = any_item(session, random);
            items.push(item);
            // Discarded memory must not be read until it is written again.
            if item.kind.get() == Kind::Discard.raw() {
                let (pages, frame) = (item.pages.get(), item.destination.get());
                items.push(self::item(Kind::Clear, pages, 0, frame));
            }
        }
        let request = mutate_header(random, list(Request::Copy, 0, &items));
        session.dma(&request)?;
    }
    Ok(())
}

/// Fetches of pages whose entries make no sense.
pub(super) fn mutated_fetches(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    for _ in 0..REQUESTS {
        let count = random.usize(1..8);
        let entries: Vec<_> = (0..count).map(|_| any_fetch(session, random)).collect();
        let space = pick(random, &[Ground::SPACE, Ground::SPACE, 0, u32::MAX]);
        let request = mutate_header(random, list(Request::Fetch, space, &entries));
        if random.bool() {
            session.dma(&request)?;
        } else {
            session.control(&request)?;
        }
    }
    Ok(())
}

/// Jobs of every operation with absurd arguments.
pub(super) fn mutated_jobs(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    for _ in 0..JOBS {
        let request = any_job(session, random);
        let job = session.submit_bytes(&request)?;
        let reason = pick(
            random,
            &[Reason::Unmapped, Reason::Denied, Reason::Shutdown],
        );
        session.finish(job, Faults::Terminate(reason), PATIENCE)?;
    }
    Ok(())
}

/// Everything but `Init`, after a reset.
///
/// It is undefined whether the device has noticed the reset, and so what it answers.
pub(super) fn requests_after_a_reset(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    session.device.restart()?;
    session.forget();
    for _ in 0..REQUESTS {
        let request = control_request(session, random);
        if !request.starts_with(&Request::Init.raw().to_le_bytes()) {
            session.anything(&request)?;
        }
    }
    session.done(&init())?;
    Ok(())
}

/// The mappings that jobs of an attack find: memory that they may spoil.
pub(super) struct Ground;

impl Ground {
    /// The space of these mappings.
    pub(super) const SPACE: u32 = 1;
    /// Guest memory, to read and write, [`Self::PAGES`] pages.
    pub(super) const SYSTEM: u64 = 0x7000_0000_0000;
    /// The same memory, to read.
    pub(super) const READ_ONLY: u64 = 0x7000_1000_0000;
    /// Device memory, for everything.
    pub(super) const DEVICE: u64 = 0x7000_2000_0000;
    /// The number of pages of each.
    pub(super) const PAGES: u32 = 64;

    /// Creates the space and maps everything.
    pub(super) fn lay(session: &mut Session) -> Result<()> {
        session.device.arena.offer(DATA..DATA + HUGE);
        session.done(&bare(Request::SpaceCreate, Self::SPACE))?;
        let start = frame(session, DATA);
        let all = flags(rights::ALL);
        let read = flags(rights::READ);
        let device = map_flags::DEVICE | all;
        let entries = [
            mapping(Self::SYSTEM, start, Self::PAGES, 0, all),
            mapping(Self::READ_ONLY, start, Self::PAGES, 0, read),
            mapping(Self::DEVICE, 0, Self::PAGES, 0, device),
        ];
        clear_device_memory(session)?;
        session.done(&list(Request::Map, Self::SPACE, &entries))?;
        Ok(())
    }
}

/// Writes to every frame once, as a driver must before it reads one.
fn clear_device_memory(session: &mut Session) -> Result<()> {
    let frames = session.device.config.device_memory.get() / PAGE_BYTES;
    let most = session.device.config.max_copy_pages.get();
    let mut frame = 0;
    while frame < frames {
        let pages = most.min(u32::try_from(frames - frame).unwrap_or(most));
        session.dma(&list(
            Request::Copy,
            0,
            &[item(Kind::Clear, pages, 0, frame)],
        ))?;
        frame += u64::from(pages);
    }
    Ok(())
}

fn control_request(session: &Session, random: &mut fastrand::Rng) -> Vec<u8> {
    let space = pick(
        random,
        &[
            0,
            0,
            0,
            1,
            2,
            session.device.config.max_spaces.get(),
            u32::MAX,
        ],
    );
    let entries = random.usize(1..6);
    let ranges = |random: &mut fastrand::Rng, most: usize| -> Vec<_> {
        (0..random.usize(1..=most))
            .map(|_| range(any_address(random), any_page_count(random)))
            .collect()
    };
    match random.u8(0..12) {
        0 => {
            let entry = InitEntry {
                version: U32::new(pick(random, &[0, 1, 2, u32::MAX])),
                reserved: U32::new(pick(random, &[0, 0, 1])),
            };
            list(Request::Init, 0, &[entry])
        }
        1 => bare(Request::SpaceCreate, space),
        2 => bare(Request::SpaceDestroy, space),
        3..=5 => {
            let entries: Vec<_> = (0..entries)
                .map(|_| {
                    mapping(
                        any_address(random),
                        any_frame(session, random),
                        pick(random, &[0, 1, 2, 3, 512, 513, 1024, u32::MAX]),
                        pick(random, &[0, 0, 9, 9, 1, 8, 10, u16::MAX]),
                        any_flags(random),
                    )
                })
                .collect();
            list(Request::Map, space, &entries)
        }
        6 => list(Request::Unmap, space, &ranges(random, 5)),
        7 => list(Request::Protect, space, &ranges(random, 5)),
        8 => list(Request::Query, space, &ranges(random, 1)),
        9 => {
            let entries: Vec<_> = (0..entries)
                .map(|_| AnswerEntry {
                    fault: U64::new(pick(random, &[0, 1, 2, u64::MAX])),
                    action: U32::new(pick(random, &[1, 1, 2, 2, 0, 3, u32::MAX])),
                    reason: U32::new(pick(random, &[0, 0, 1, 7, 8, u32::MAX])),
                })
                .collect();
            list(Request::Answer, 0, &entries)
        }
        10 => {
            let entries: Vec<_> = (0..entries)
                .map(|_| CancelEntry {
                    job: U64::new(any_number(random)),
                })
                .collect();
            list(Request::Cancel, 0, &entries)
        }
        _ => bare(Request::Statistics, 0),
    }
}

/// Half of the time, makes a field of the header wrong.
fn mutate_header(random: &mut fastrand::Rng, mut request: Vec<u8>) -> Vec<u8> {
    if let Ok((header, _)) = RequestHeader::mut_from_prefix(&mut request) {
        match random.u8(0..16) {
            0 => header.operation = U16::new(random.u16(..)),
            1 => header.operation = U16::new(random.u16(..20)),
            2 => header.flags = U16::new(random.u16(..)),
            3 => header.space = U32::new(random.u32(..)),
            4 => header.count = U32::new(pick(random, &[0, 1, 2, 0x8000_0000, u32::MAX])),
            5 => header.reserved = U32::new(random.u32(..)),
            6 => request.truncate(random.usize(..request.len())),
            7 => request.extend((0..random.usize(1..64)).map(|_| 0)),
            _ => {}
        }
    }
    request
}

fn any_item(session: &Session, random: &mut fastrand::Rng) -> DmaItem {
    let pages = pick(random, &[0, 1, 1, 2, 16, 64, 512, 513, u32::MAX]);
    let system = any_frame(session, random);
    let device = any_device_frame(session, random);
    let (kind, source, destination) = match random.u8(0..7) {
        0 => (Kind::ToDevice, system, device),
        1 | 2 => {
            // Only to our own memory or to none: the rest is our kernel's.
            let at = random.u32(..512);
            let ours = frame(session, DATA) + u64::from(at);
            let pages = pages.min(512 - at);
            if random.bool() {
                return item(Kind::ToSystem, pages, device, ours);
            }
            (Kind::ToSystem, device, no_memory(random))
        }
        3 => (Kind::OnDevice, device, any_device_frame(session, random)),
        4 => (Kind::Clear, pick(random, &[0, 0, 0, 1]), device),
        _ => (Kind::Discard, pick(random, &[0, 0, 0, 1]), device),
    };
    let mut item = item(kind, pages, source, destination);
    if random.u8(..) < 16 {
        item.kind = U32::new(pick(random, &[0, 6, 7, u32::MAX]));
    }
    item
}

fn any_fetch(session: &Session, random: &mut fastrand::Rng) -> FetchEntry {
    // Only to our own memory or to none: the rest is our kernel's.
    let at = random.u32(..512);
    let pages = pick(random, &[0, 1, 1, 1, 2, 16, 64, 65, u32::MAX]);
    let (destination, pages) = match random.bool() {
        true => (frame(session, DATA) + u64::from(at), pages.min(512 - at)),
        false => (no_memory(random), pages),
    };
    let device = any_device_frame(session, random);
    let mut entry = fetch(any_address(random), device, destination, pages);
    if random.u8(..) < 16 {
        entry.reserved = U32::new(random.u32(..));
    }
    entry
}

fn any_job(session: &mut Session, random: &mut fastrand::Rng) -> Vec<u8> {
    let operation = pick(random, Operation::DESCRIPTIONS);
    let mut arguments = [U64::ZERO; MAX_ARGUMENTS];
    for (slot, (name, kind)) in arguments.iter_mut().zip(operation.arguments) {
        slot.set(match *kind {
            "Element" => pick(random, &[1, 2, 3, 4, 5, 1, 2, 2, 4, 0, 6, u64::MAX]),
            "f32" => u64::from(random.u32(..)),
            "f64" => random.u64(..),
            _ if name.ends_with("offset") => pick(random, &[0, 8, 16, 1, u64::MAX - 7]),
            _ if is_amount(name) => any_amount(random),
            _ => any_job_address(random),
        });
    }
    let mut request = JobRequest {
        job: U64::new(session.fresh_name()),
        space: U32::new(Ground::SPACE),
        reserved: U32::ZERO,
        descriptor: JobDescriptor {
            operation: U32::new(operation.code),
            reserved: U32::ZERO,
            arguments,
        },
    };
    match random.u8(0..40) {
        0 => request.space = U32::new(random.u32(..)),
        1 => request.reserved = U32::new(1),
        2 => request.descriptor.reserved = U32::new(random.u32(..)),
        3 => request.descriptor.operation = U32::new(random.u32(..)),
        4 => request.descriptor.arguments[MAX_ARGUMENTS - 1] = U64::new(random.u64(..)),
        _ => {}
    }
    let mut bytes = request.as_bytes().to_vec();
    match random.u8(0..40) {
        0 => bytes.truncate(random.usize(..bytes.len())),
        1 => bytes.push(0),
        _ => {}
    }
    bytes
}

fn is_amount(name: &str) -> bool {
    const AMOUNTS: [&str; 9] = [
        "bytes", "limit", "repeat", "m", "n", "k", "start", "key", "operand",
    ];
    name.ends_with("count") || name.ends_with("stride") || AMOUNTS.contains(&name)
}

fn any_amount(random: &mut fastrand::Rng) -> u64 {
    const MAPPED: u64 = Ground::PAGES as u64 * PAGE_BYTES;
    let large = [
        MAPPED,
        MAPPED + 1,
        1 << 32,
        1 << 60,
        1 << 61,
        1 << 63,
        u64::MAX,
    ];
    if random.bool() {
        random.u64(..4096)
    } else {
        pick(random, &large)
    }
}

fn any_job_address(random: &mut fastrand::Rng) -> u64 {
    const MAPPED: u64 = Ground::PAGES as u64 * PAGE_BYTES;
    let base = pick(random, &[Ground::SYSTEM, Ground::DEVICE, Ground::READ_ONLY]);
    match random.u8(0..8) {
        0 => pick(
            random,
            &[
                0,
                1,
                1 << 57,
                1 << 63,
                u64::MAX,
                u64::MAX - 7,
                u64::MAX - 4095,
            ],
        ),
        1 => base + MAPPED - random.u64(..16),
        2 => base.wrapping_sub(random.u64(..16)),
        3 => base + random.u64(..MAPPED),
        _ => base + random.u64(..MAPPED / 8) * 8,
    }
}

fn any_address(random: &mut fastrand::Rng) -> u64 {
    let top = 1u64 << 57;
    let chosen = [
        0,
        PAGE_BYTES,
        LARGE_PAGES * PAGE_BYTES,
        0x7fff_ffff_f000,
        top - PAGE_BYTES,
        top - LARGE_PAGES * PAGE_BYTES,
        top,
        1 << 63,
        u64::MAX,
        u64::MAX - 4095,
        1,
        4095,
    ];
    if random.u8(..) < 32 {
        random.u64(..)
    } else {
        pick(random, &chosen)
    }
}

fn any_page_count(random: &mut fastrand::Rng) -> u64 {
    let chosen = [
        0,
        1,
        1,
        2,
        511,
        512,
        513,
        1 << 33,
        1 << 45,
        (1 << 45) + 1,
        1 << 52,
        u64::MAX,
    ];
    pick(random, &chosen)
}

fn any_number(random: &mut fastrand::Rng) -> u64 {
    pick(random, &[0, 1, u64::MAX, 1 << 63])
}

fn any_flags(random: &mut fastrand::Rng) -> u16 {
    let device = map_flags::DEVICE;
    let chosen = [
        READ_WRITE,
        READ_WRITE | device,
        1 | device,
        7,
        device,
        0,
        8,
        0x200,
        u16::MAX,
    ];
    pick(random, &chosen)
}

fn any_frame(session: &Session, random: &mut fastrand::Rng) -> u64 {
    let ours = frame(session, DATA + random.usize(..DATA_PAGES) * HUGE);
    match random.u8(0..4) {
        0 => ours,
        1 => ours + random.u64(..600),
        2 => any_device_frame(session, random),
        _ => no_memory(random),
    }
}

/// A frame that is surely not in the guest's memory.
fn no_memory(random: &mut fastrand::Rng) -> u64 {
    pick(
        random,
        &[
            1 << 32,
            1 << 40,
            1 << 52,
            u64::MAX >> 12,
            u64::MAX - 1,
            u64::MAX,
        ],
    )
}

fn any_device_frame(session: &Session, random: &mut fastrand::Rng) -> u64 {
    let frames = session.device.config.device_memory.get() / PAGE_BYTES;
    let chosen = [
        0,
        512,
        frames - 512,
        frames - 1,
        frames,
        frames + 1,
        1 << 52,
        u64::MAX,
    ];
    if random.bool() {
        random.u64(..frames)
    } else {
        pick(random, &chosen)
    }
}

/// Valid large leaves, for attacks that need one.
pub(super) fn large_leaf(session: &Session, address: u64) -> Vec<u8> {
    let order = u16::try_from(LARGE_ORDER).unwrap_or(0);
    let pages = u32::try_from(LARGE_PAGES).unwrap_or(0);
    let start = frame(session, DATA);
    let entry = mapping(address, start, pages, order, READ_WRITE | 4);
    list(Request::Map, Ground::SPACE, &[entry])
}
