//! Memory that CPU and device use where it is, at the same time.
//!
//! It needs a device whose memory the CPU can address; who has moved the memory there, and
//! what is done with it afterwards, is `migration`'s.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use hmm::{page_size, work, PageRange, Place};

use super::migration::{at, sum};
use super::Trial;
use crate::memory::{first_difference, write_pattern, Mapping};

/// How often each side adds to the counter that they share.
const ADDITIONS: u64 = 20_000;

/// Notes a mistake unless every page is still on the device.
fn check_in_place(trial: &mut Trial<'_>, after: &str, range: PageRange) -> Result<()> {
    let states = trial.space.residency(range)?;
    let what = format!("pages on the device after {after}");
    trial.check_equal(&what, at(Place::Device, &states), range.pages());
    Ok(())
}

/// Reads and writes, by turns and at once, memory that holds the pattern and lies on the
/// device; it holds the pattern afterwards.
pub(super) fn share(trial: &mut Trial<'_>, memory: &mut Mapping, seed: u64) -> Result<()> {
    let range = memory.pages();
    let numbers = memory.numbers::<u64>();
    trial.check_equal("first difference", first_difference(seed, numbers), None);
    check_in_place(trial, "the CPU's loads", range)?;

    // The device finds what the CPU has stored, one number in each page.
    let step = page_size() / size_of::<u64>();
    let numbers = memory.numbers_mut::<u64>();
    let mut expected = sum(seed, numbers.len());
    for index in (0..numbers.len()).step_by(step) {
        expected = expected.wrapping_add(1);
        numbers[index] = numbers[index].wrapping_add(1);
    }
    let total = trial.on_device(work::sum(memory.numbers::<u64>()))?;
    trial.check_equal("sum of what the CPU has stored", total, expected);
    check_in_place(trial, "the CPU's stores", range)?;

    // The CPU finds what the device has stored.
    let word = trial.random.u64(..);
    trial.on_device(work::fill(memory.numbers_mut::<u64>(), word))?;
    let mut numbers = memory.numbers::<u64>().iter();
    let different = numbers.position(|&number| number != word);
    trial.check_equal("first place that the device did not fill", different, None);

    // Both at once: neither loses what the other one adds.
    let counters = memory.numbers_mut::<AtomicU64>();
    for counter in counters.iter().take(1) {
        let before = counter.load(Ordering::Relaxed);
        trial.space.scope(|scope| -> Result<()> {
            let adding = scope.submit(work::atomic_add(counter, 1, ADDITIONS))?;
            for _ in 0..ADDITIONS {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            adding.wait()?;
            Ok(())
        })?;
        let added = counter.load(Ordering::Relaxed).wrapping_sub(before);
        trial.check_equal("additions by both", added, 2 * ADDITIONS);
    }
    check_in_place(trial, "both of them at once", range)?;

    write_pattern(seed, memory.numbers_mut());
    Ok(())
}
