//! Checks that the device still does everything right.
//!
//! A driver that keeps the rules does a little of everything and checks every byte.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use virtio_hmm_spec::wire::command::{map_flags, query_flags, QueryResult, Request, Status};
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::operation::{Element, Fill, Sum};
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES, PAGE_BYTES, PAGE_SHIFT};
use zerocopy::little_endian::U64;
use zerocopy::FromBytes;

use crate::device::DATA;
use crate::memory::{HUGE, PAGE};
use crate::request::{flags, item, list, mapping, range};
use crate::session::{Faults, Session};

const SPACE: u32 = 0;
const PAGES: u32 = 16;
const BYTES: usize = PAGES as usize * PAGE;

/// The pages are mapped across the border between two page tables, so that both are used.
const SMALL: u64 = 0x7f12_3460_0000 - 4 * PAGE_BYTES;
const LARGE: u64 = 0x5555_5560_0000;
const ON_DEVICE: u64 = 0x1000;

const SOURCE: usize = DATA;
const BACK: usize = DATA + 2 * BYTES;

const READ_WRITE: u16 = flags(rights::READ | rights::WRITE);

/// How long a small job may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Restarts the device and has it do a little of everything.
///
/// # Errors
///
/// The first thing that is wrong.
pub(crate) fn check(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.restart().context("starting the device anew")?;
    let at_first = nothing_is_left(session).context("after Init")?;
    copies_there_and_back(session, random).context("copying to the device and back")?;
    session.done(&list::<u8>(Request::SpaceCreate, SPACE, &[]))?;
    small_pages(session, random).context("small pages of the guest's memory")?;
    huge_page(session, random).context("a huge page")?;
    device_pages(session, random).context("pages of device memory")?;
    session.done(&list::<u8>(Request::SpaceDestroy, SPACE, &[]))?;
    let at_last = nothing_is_left(session).context("after everything was given back")?;
    ensure!(
        at_last == at_first,
        "tables of nothing took {at_first} bytes and now take {at_last}"
    );
    Ok(())
}

/// Checks that nothing exists that was not created since the last `Init`. Returns the memory that
/// page tables use even so.
fn nothing_is_left(session: &mut Session) -> Result<u64> {
    let statistics = session.statistics()?;
    ensure!(
        statistics.spaces.get() == 0
            && statistics.jobs.get() == 0
            && statistics.parked_jobs.get() == 0
            && statistics.mapped_pages.get() == 0
            && statistics.large_leaves.get() == 0,
        "something is left: {statistics:?}"
    );
    ensure!(
        statistics.freed_frame_uses.get() == 0,
        "the device has used a frame that is free: {statistics:?}"
    );
    Ok(statistics.table_bytes.get())
}

fn copies_there_and_back(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let bytes = noise(random, BYTES);
    session.device.arena.write(SOURCE, &bytes)?;
    session.device.arena.offer(BACK..BACK + BYTES);
    let source = frame(session, SOURCE);
    let back = frame(session, BACK);
    let there = [item(Kind::ToDevice, PAGES, source, 0)];
    let pages = u64::from(PAGES);
    let system = [
        item(Kind::OnDevice, PAGES, 0, pages),
        item(Kind::ToSystem, PAGES, pages, back),
        item(Kind::Discard, PAGES, 0, pages),
    ];
    for items in [&there[..], &system[..]] {
        let statuses = session.dma(&list(Request::Copy, 0, items))?;
        ensure!(
            statuses.iter().all(|status| *status == Status::Ok),
            "{statuses:?}"
        );
    }
    ensure!(
        session.device.arena.read(BACK, BYTES)? == bytes,
        "other bytes came back"
    );
    Ok(())
}

fn small_pages(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.device.arena.offer(SOURCE..SOURCE + BYTES);
    let source = frame(session, SOURCE);
    let entry = mapping(SMALL, source, PAGES, 0, READ_WRITE);
    session.done(&list(Request::Map, SPACE, &[entry]))?;
    for (page, found) in query(session, SMALL, PAGES.into())?.iter().enumerate() {
        ensure!(
            found.frame.get() == source + page as u64
                && found.order.get() == 0
                && found.flags.get() & !(query_flags::ACCESSED | query_flags::DIRTY)
                    == u32::from(READ_WRITE) | query_flags::PRESENT,
            "page {page} is mapped as {found:?}"
        );
    }
    let pattern = random.u64(..);
    let fill = Fill {
        destination: SMALL,
        bytes: BYTES as u64,
        pattern,
    };
    run(session, fill)?;
    ensure!(
        session.device.arena.read(SOURCE, BYTES)? == pattern.to_le_bytes().repeat(BYTES / 8),
        "the memory was filled with something else"
    );
    let [sum, ..] = run(session, sum(SMALL, BYTES))?;
    let right = pattern.wrapping_mul(BYTES as u64 / 8);
    ensure!(sum == right, "the sum is {sum:#x} and not {right:#x}");

    session.done(&list(
        Request::Protect,
        SPACE,
        &[range(SMALL, PAGES.into())],
    ))?;
    faults(session, fill.into(), SMALL, rights::WRITE).context("after Protect")?;
    session.done(&list(Request::Unmap, SPACE, &[range(SMALL, PAGES.into())]))?;
    for found in query(session, SMALL, PAGES.into())? {
        ensure!(found.flags.get() == 0, "still mapped as {found:?}");
    }
    faults(session, self::sum(SMALL, BYTES).into(), SMALL, rights::READ).context("after Unmap")
}

fn huge_page(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let at = DATA + HUGE;
    let bytes = noise(random, HUGE);
    session.device.arena.write(at, &bytes)?;
    let start = frame(session, at);
    let order = u16::try_from(LARGE_ORDER)?;
    let entry = mapping(
        LARGE,
        start,
        u32::try_from(LARGE_PAGES)?,
        order,
        flags(rights::READ),
    );
    session.done(&list(Request::Map, SPACE, &[entry]))?;
    let [found, ..] = query(session, LARGE + 5 * PAGE_BYTES, 1)?[..] else {
        anyhow::bail!("one result for one page");
    };
    ensure!(
        found.frame.get() == start + 5 && found.order.get() == LARGE_ORDER,
        "mapped as {found:?}"
    );
    let [sum, ..] = run(session, self::sum(LARGE, HUGE))?;
    let right = wrapping_sum(&bytes);
    ensure!(sum == right, "the sum is {sum:#x} and not {right:#x}");
    session.done(&list(Request::Unmap, SPACE, &[range(LARGE, LARGE_PAGES)]))?;
    Ok(())
}

fn device_pages(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    let bytes = noise(random, BYTES);
    session.device.arena.write(SOURCE, &bytes)?;
    let source = frame(session, SOURCE);
    let items = [item(Kind::ToDevice, PAGES, source, 0)];
    session.dma(&list(Request::Copy, 0, &items))?;
    let entry = mapping(ON_DEVICE, 0, PAGES, 0, READ_WRITE | map_flags::DEVICE);
    session.done(&list(Request::Map, SPACE, &[entry]))?;
    let [sum, ..] = run(session, self::sum(ON_DEVICE, BYTES))?;
    let right = wrapping_sum(&bytes);
    ensure!(sum == right, "the sum is {sum:#x} and not {right:#x}");
    Ok(())
}

/// Checks that a job faults at this address, and ends when it is told that there is no page.
fn faults(
    session: &mut Session,
    operation: virtio_hmm_spec::wire::operation::Operation,
    address: u64,
    access: u32,
) -> Result<()> {
    let job = session.submit(SPACE, operation)?;
    let reply = session.finish(job, Faults::Terminate(Reason::Unmapped), PATIENCE)?;
    ensure!(
        reply.status.get() == Status::Fault.raw()
            && reply.reason.get() == Reason::Unmapped.raw()
            && reply.address.get() == address
            && reply.access.get() & access != 0
            && reply.faults.get() == 1,
        "ended with {reply:?}"
    );
    Ok(())
}

fn run(
    session: &mut Session,
    operation: impl Into<virtio_hmm_spec::wire::operation::Operation>,
) -> Result<[u64; 4]> {
    let job = session.submit(SPACE, operation)?;
    let reply = session.finish(job, Faults::Ignore, PATIENCE)?;
    ensure!(
        reply.status.get() == Status::Ok.raw() && reply.faults.get() == 0,
        "ended with {reply:?}"
    );
    Ok(reply.values.map(|value| value.get()))
}

fn query(session: &mut Session, address: u64, pages: u64) -> Result<Vec<QueryResult>> {
    session
        .done(&list(Request::Query, SPACE, &[range(address, pages)]))?
        .results()
}

fn sum(source: u64, bytes: usize) -> Sum {
    Sum {
        source,
        count: bytes as u64 / 8,
        element: Element::U64,
    }
}

fn wrapping_sum(bytes: &[u8]) -> u64 {
    let elements = <[U64]>::ref_from_bytes(bytes).unwrap_or(&[]);
    elements
        .iter()
        .fold(0, |sum, element| sum.wrapping_add(element.get()))
}

/// The frame of an offset of the arena.
pub(crate) fn frame(session: &Session, at: usize) -> u64 {
    session.device.arena.physical(at) >> PAGE_SHIFT
}

fn noise(random: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    random.fill(&mut noise);
    noise
}
