//! Memory that CPU and device use in place, at the same time.
//!
//! It needs a device whose memory the CPU can address. `migration` moves the memory there, and uses
//! it afterwards.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use hmm::{page_size, work, PageRange, Place};
use hmm_tool::memory::{first_difference, write_pattern, Mapping};
use hmm_tool::places::{at, sum};
use hmm_tool::runner::WorkloadCtx;

/// How often each side adds to the counter that they share.
const ADDITIONS: u64 = 20_000;

/// Notes a mistake unless every page is still on the device.
fn check_in_place(ctx: &mut WorkloadCtx<'_>, after: &str, range: PageRange) -> Result<()> {
    let states = ctx.space.residency(range)?;
    let what = format!("pages on the device after {after}");
    ctx.check_equal(&what, at(Place::Device, &states), range.pages());
    Ok(())
}

/// Reads and writes memory on the device, by turns and at the same time. The memory holds the
/// pattern before and after.
pub(super) fn share(ctx: &mut WorkloadCtx<'_>, memory: &mut Mapping, seed: u64) -> Result<()> {
    let range = memory.pages();
    let numbers = memory.numbers::<u64>();
    ctx.check_equal("first difference", first_difference(seed, numbers), None);
    check_in_place(ctx, "the CPU's loads", range)?;

    // The device must see what the CPU has stored, one number in each page.
    let step = page_size() / size_of::<u64>();
    let numbers = memory.numbers_mut::<u64>();
    let mut expected = sum(seed, numbers.len());
    for index in (0..numbers.len()).step_by(step) {
        expected = expected.wrapping_add(1);
        numbers[index] = numbers[index].wrapping_add(1);
    }
    let total = ctx.on_device(work::sum(memory.numbers::<u64>()))?;
    ctx.check_equal("sum of what the CPU has stored", total, expected);
    check_in_place(ctx, "the CPU's stores", range)?;

    // The CPU must see what the device has stored.
    let word = ctx.random.u64(..);
    ctx.on_device(work::fill(memory.numbers_mut::<u64>(), word))?;
    let mut numbers = memory.numbers::<u64>().iter();
    let different = numbers.position(|&number| number != word);
    ctx.check_equal("first place that the device did not fill", different, None);

    // Both at once: no addition of either side may be lost.
    let counters = memory.numbers_mut::<AtomicU64>();
    for counter in counters.iter().take(1) {
        let before = counter.load(Ordering::Relaxed);
        ctx.space.scope(|scope| -> Result<()> {
            let adding = scope.submit(work::atomic_add(counter, 1, ADDITIONS))?;
            for _ in 0..ADDITIONS {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            adding.wait()?;
            Ok(())
        })?;
        let added = counter.load(Ordering::Relaxed).wrapping_sub(before);
        ctx.check_equal("additions by both", added, 2 * ADDITIONS);
    }
    check_in_place(ctx, "both of them at once", range)?;

    write_pattern(seed, memory.numbers_mut());
    Ok(())
}
