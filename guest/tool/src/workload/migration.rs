//! Memory that moves to the device and back, and more of it than fits.

use anyhow::{ensure, Result};
use hmm::spec::wire::config::capability;
use hmm::{page_size, work, Destination, Migration, PageRange, PageState, Place};

use super::{in_place, Trial};
use crate::memory::{available, first_difference, pattern, write_pattern, Mapping};

/// How often pages are asked to move that could not at first: the kernel may be holding
/// one for a moment.
const ATTEMPTS: usize = 3;

/// Moves all pages that can be moved: all attempts together.
pub(super) fn move_all(
    trial: &mut Trial<'_>,
    range: PageRange,
    to: Destination,
) -> Result<Migration> {
    let mut all = Migration::default();
    let pages = range.pages() as u64;
    for _ in 0..ATTEMPTS {
        let moved = trial.space.migrate(range, to)?;
        trial.check_equal("pages accounted for", moved.moved + moved.skipped, pages);
        all = Migration {
            moved: all.moved + moved.moved,
            ..moved
        };
        if all.moved == pages || moved.no_memory > 0 {
            break;
        }
    }
    Ok(all)
}

/// How many of the pages are at a place.
pub(super) fn at(place: Place, states: &[PageState]) -> usize {
    states.iter().filter(|state| state.place() == place).count()
}

/// The sum of the numbers of a pattern.
pub(super) fn sum(seed: u64, count: usize) -> u64 {
    (0..count).fold(0, |sum: u64, index| sum.wrapping_add(pattern(seed, index)))
}

/// All of it moved there, worked on there, and read back by the CPU.
pub(super) fn migrate(trial: &mut Trial<'_>) -> Result<()> {
    let bytes = trial.size().next_multiple_of(page_size());
    let seed = trial.random.u64(..);
    let mut memory = Mapping::anonymous(bytes)?;
    write_pattern(seed, memory.numbers_mut());
    let range = memory.pages();

    let moved = move_all(trial, range, Destination::Device)?;
    trial.check_equal(
        "pages moved to the device",
        moved.moved,
        range.pages() as u64,
    );
    let there = trial.space.residency(range)?;
    trial.check_equal(
        "pages on the device",
        at(Place::Device, &there),
        range.pages(),
    );

    let (total, usage) = trial.observed(work::sum(memory.numbers::<u64>()))?;
    trial.check_equal("sum on the device", total, sum(seed, bytes / 8));
    trial.check_equal("bytes of the guest's memory used", usage.system_bytes, 0);
    trial.check_equal(
        "bytes of device memory used",
        usage.device_bytes,
        bytes as u64,
    );
    let still = trial.space.residency(range)?;
    trial.check_equal(
        "pages on the device afterwards",
        at(Place::Device, &still),
        range.pages(),
    );

    if trial.space.device().info()?.capabilities & capability::COHERENT != 0 {
        in_place::share(trial, &mut memory, seed)?;
        let moved = move_all(trial, range, Destination::System)?;
        trial.check_equal("pages moved home", moved.moved, range.pages() as u64);
    }
    // Where the CPU cannot use them there, nothing but this reading brings them home.
    let numbers = memory.numbers::<u64>();
    trial.check_equal("first difference", first_difference(seed, numbers), None);
    let home = trial.space.residency(range)?;
    trial.check_equal("pages home again", at(Place::System, &home), range.pages());
    let total = trial.on_cpu(|| numbers.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n)));
    trial.check_equal("sum on the CPU", total, sum(seed, bytes / 8));
    Ok(())
}

/// A quarter more than the device has, so that some of it must stay at home.
pub(super) fn oversubscribe(trial: &mut Trial<'_>) -> Result<()> {
    let capacity = trial.space.device().info()?.device_memory;
    if trial.size() == 0 {
        trial.report.size = usize::try_from(capacity + capacity / 4)?;
    }
    let bytes = trial.size().next_multiple_of(page_size());
    trial.report.size = bytes;
    ensure!(
        bytes as u64 > capacity,
        "{} MiB are not more than the {} MiB of the device",
        bytes >> 20,
        capacity >> 20
    );
    let available = available()?;
    ensure!(
        (bytes as u64) < available,
        "this needs {} MiB, but the guest has only {} MiB available: give it more, or the \
         device less",
        bytes >> 20,
        available >> 20
    );

    let seed = trial.random.u64(..);
    let mut memory = Mapping::anonymous(bytes)?;
    write_pattern(seed, memory.numbers_mut());
    let range = memory.pages();
    let moved = move_all(trial, range, Destination::Device)?;
    trial.check(moved.moved > 0, || {
        "not one page was moved to the device".into()
    });
    trial.check(moved.no_memory > 0, || {
        "no page was left behind for want of memory".into()
    });
    let states = trial.space.residency(range)?;
    let (out, home) = (at(Place::Device, &states), at(Place::System, &states));
    trial.check_equal("pages that are somewhere", out + home, range.pages());
    let fits = usize::try_from(capacity)? / page_size();
    trial.check(out <= fits, || {
        format!("{out} pages on a device that has {fits}")
    });

    let (total, usage) = trial.observed(work::sum(memory.numbers::<u64>()))?;
    let expected = trial.on_cpu(|| sum(seed, bytes / 8));
    trial.check_equal("sum of it all", total, expected);
    let used = usage.system_bytes + usage.device_bytes;
    trial.check_equal("bytes used", used, bytes as u64);
    trial.check(usage.device_bytes > 0, || {
        "no byte of it was on the device".into()
    });

    // Written over as a whole, wherever each page is.
    let word = trial.random.u64(..);
    trial.on_device(work::fill(memory.numbers_mut::<u64>(), word))?;
    let different = memory
        .numbers::<u64>()
        .iter()
        .position(|&number| number != word);
    trial.check_equal("first place not overwritten", different, None);
    trial.report.note = format!("{out} pages fitted on the device, {home} stayed at home");
    Ok(())
}
