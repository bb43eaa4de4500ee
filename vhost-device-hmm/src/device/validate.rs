//! Entries of requests → their meaning, or the status that says what is wrong.

use virtio_hmm_spec::wire::command::{map_flags, MapEntry, RangeEntry, Status};
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES};
use zerocopy::little_endian::U32;

use super::memory::{DeviceMemory, SystemMemory};
use super::mmu::{Leaf, PageRange, Place, Run};
use super::request::{first_refusal, Refusal};

/// The run that a map entry describes.
///
/// # Errors
///
/// The first status of the ladder that applies.
pub(super) fn run(
    entry: &MapEntry,
    device: &DeviceMemory,
    system: &SystemMemory,
) -> Result<Run, Status> {
    let (frame, pages) = (entry.frame.get(), u64::from(entry.pages.get()));
    let flags = entry.flags.get();
    let large = u32::from(entry.order.get()) == LARGE_ORDER;
    let leaf_pages = if large { LARGE_PAGES } else { 1 };
    let range = PageRange::new(entry.address.get(), pages)?;
    if range.start() % leaf_pages != 0 || pages % leaf_pages != 0 {
        return Err(Status::BadAddress);
    }
    let (place, known) = match flags & map_flags::DEVICE {
        0 => (Place::System, system.contains(frame, pages)),
        _ => (Place::Device, device.contains(frame, pages)),
    };
    // {dev-map-frames}
    if !known || frame % leaf_pages != 0 {
        return Err(Status::BadFrame);
    }
    let wanted = u32::from(flags) & rights::ALL;
    let defined = flags & !map_flags::ALL == 0 && (large || entry.order.get() == 0);
    if wanted == 0 || !defined {
        return Err(Status::BadRights);
    }
    Ok(Run {
        range,
        leaf: Leaf::new(place, frame, wanted),
        large,
    })
}

/// The pages that a range entry describes.
///
/// # Errors
///
/// [`Status::Malformed`] or [`Status::BadAddress`].
pub(super) fn range(entry: &RangeEntry) -> Result<PageRange, Status> {
    PageRange::new(entry.address.get(), entry.pages.get())
}

/// The pages that range entries describe, if all entries are valid.
pub(super) fn ranges(entries: impl Iterator<Item = RangeEntry>) -> Result<Vec<PageRange>, Refusal> {
    let mut ranges = Vec::with_capacity(entries.size_hint().0);
    first_refusal(entries.map(|entry| range(&entry).map(|range| ranges.push(range))))?;
    Ok(ranges)
}

/// Checks that a list has at most `most` pages in total.
pub(super) fn within(most: u64, pages: impl Iterator<Item = U32>) -> Result<(), Status> {
    // At most 2^12 times 2^32 pages: the sum fits.
    let sum: u64 = pages.map(|pages| u64::from(pages.get())).sum();
    (sum <= most).then_some(()).ok_or(Status::Limit)
}
