//! As much of everything as the device allows, and a little more.

use std::time::Duration;

use anyhow::{ensure, Result};
use virtio_hmm_spec::wire::command::{map_flags, Request, Status};
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::operation::Checksum;
use virtio_hmm_spec::wire::{rights, PAGE_BYTES};

use super::requests::Ground;
use crate::request::{bare, cancel, flags, item, list, mapping, range};
use crate::session::{Faults, Session};

/// The most entries that are sent at once, because one chain here has room for no more.
const MOST_ENTRIES: u32 = 16 << 10;

/// After this many requests it is accepted that the device still has memory for tables.
const MOST_MAPS: u64 = 256;

/// Lists with no, one, all and more entries than allowed, and lists with a wrong count.
pub(super) fn lists_of_every_length(
    session: &mut Session,
    random: &mut fastrand::Rng,
) -> Result<()> {
    session.done(&bare(Request::SpaceCreate, 0))?;
    let most = session.device.config.max_entries.get().min(MOST_ENTRIES);
    for count in [0, 1, most - 1, most, most + 1] {
        let entries: Vec<_> = (0..count)
            .map(|page| range(u64::from(page) * PAGE_BYTES, 1))
            .collect();
        let mut request = list(Request::Unmap, 0, &entries);
        session.control(&request)?;
        lie_about_count(random, &mut request);
        session.control(&request)?;
    }
    let most = session.device.config.max_items.get().min(MOST_ENTRIES / 2);
    for count in [0, 1, most - 1, most, most + 1] {
        let items: Vec<_> = (0..count).map(|_| item(Kind::Clear, 1, 0, 0)).collect();
        let mut request = list(Request::Copy, 0, &items);
        session.dma(&request)?;
        lie_about_count(random, &mut request);
        session.dma(&request)?;
    }
    let pages = session.device.config.max_copy_pages.get();
    for pages in [pages, pages.saturating_add(1), u32::MAX] {
        session.dma(&list(Request::Copy, 0, &[item(Kind::Discard, pages, 0, 0)]))?;
    }
    Ok(())
}

fn lie_about_count(random: &mut fastrand::Rng, request: &mut [u8]) {
    let count = if random.bool() {
        random.u32(..)
    } else {
        u32::MAX
    };
    request[8..12].copy_from_slice(&count.to_le_bytes());
}

/// As many spaces as may exist, with something in each, and one more.
pub(super) fn every_space(session: &mut Session, _: &mut fastrand::Rng) -> Result<()> {
    let most = session.device.config.max_spaces.get();
    let flags = map_flags::DEVICE | flags(rights::READ);
    for space in 0..most {
        session.done(&bare(Request::SpaceCreate, space))?;
        let entry = mapping(u64::from(space) << 40, 0, 1, 0, flags);
        session.done(&list(Request::Map, space, &[entry]))?;
    }
    session.control(&bare(Request::SpaceCreate, most))?;
    session.control(&bare(Request::SpaceCreate, most - 1))?;
    ensure!(session.statistics()?.spaces.get() == u64::from(most));
    for space in (0..most).step_by(2) {
        session.done(&bare(Request::SpaceDestroy, space))?;
    }
    Ok(())
}

/// As many parked jobs as the queue holds.
pub(super) fn every_job(session: &mut Session, _: &mut fastrand::Rng) -> Result<()> {
    Ground::lay(session)?;
    let nowhere = Checksum {
        source: 0x10_0000,
        bytes: 1,
    };
    let mut jobs = Vec::new();
    while let Ok(job) = session.submit(Ground::SPACE, nowhere) {
        jobs.push(job);
    }
    ensure!(!jobs.is_empty(), "not one job fits into the queue");
    // The device is full of parked jobs and must do everything else as before.
    session.statistics()?;
    session.done(&bare(Request::SpaceDestroy, Ground::SPACE))?;
    for job in jobs {
        let reply = session.finish(job, Faults::Ignore, Duration::from_secs(10))?;
        let ended = [Status::Cancelled, Status::NoSpace, Status::Limit].map(Status::raw);
        ensure!(
            ended.contains(&reply.status.get()),
            "a job survived its space: {reply:?}"
        );
    }
    Ok(())
}

/// Mappings so far apart that each needs page tables of its own, until the device has no memory for
/// them.
pub(super) fn every_page_table(session: &mut Session, random: &mut fastrand::Rng) -> Result<()> {
    session.done(&bare(Request::SpaceCreate, 0))?;
    let most = session.device.config.max_entries.get().min(1024);
    let stride = 1u64 << 30;
    let offset = random.u64(..512) * PAGE_BYTES;
    let flags = map_flags::DEVICE | flags(rights::READ);
    for request in 0..MOST_MAPS {
        let entries: Vec<_> = (0..u64::from(most))
            .map(|entry| (request * u64::from(most) + entry) * stride)
            .filter(|address| *address < 1 << 56)
            .map(|address| mapping(address + offset, 0, 1, 0, flags))
            .collect();
        if entries.is_empty() || !session.map_while_there_is_memory(0, &entries)? {
            break;
        }
    }
    session.done(&cancel(1))?;
    session.done(&list(Request::Protect, 0, &[range(0, 1 << 45)]))?;
    session.done(&list(Request::Unmap, 0, &[range(0, 1 << 45)]))?;
    let statistics = session.statistics()?;
    ensure!(
        statistics.mapped_pages.get() == 0,
        "still mapped: {statistics:?}"
    );
    let entry = mapping(0, 0, 1, 0, flags);
    session.done(&list(Request::Map, 0, &[entry]))?;
    Ok(())
}
