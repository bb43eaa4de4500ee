//! Memory that moves to the device and back, and more memory than the device has.

use anyhow::{ensure, Result};
use hmm::spec::wire::config::capability;
use hmm::{page_size, work, Destination, Place};
use hmm_cli::{figure, size};
use hmm_tool::argument::{must_fit, WrongArgument};
use hmm_tool::memory::{available, first_difference, write_pattern, Mapping};
use hmm_tool::places::{at, sum};
use hmm_tool::runner::WorkloadCtx;

use super::in_place;

/// Moves all memory to the device, works on it there, and reads it back by the CPU.
pub(super) fn migrate(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let bytes = ctx.size().next_multiple_of(page_size());
    let info = ctx.space.device().info()?;
    must_fit("migrate --size", bytes, &info)?;
    let seed = ctx.random.u64(..);
    let mut memory = Mapping::anonymous(bytes)?;
    write_pattern(seed, memory.numbers_mut());
    let range = memory.pages();

    let moved = ctx.move_all(range, Destination::Device)?;
    ctx.check_equal(
        "pages moved to the device",
        moved.moved,
        range.pages() as u64,
    );
    let there = ctx.space.residency(range)?;
    ctx.check_equal(
        "pages on the device",
        at(Place::Device, &there),
        range.pages(),
    );

    let (total, usage) = ctx.observed(work::sum(memory.numbers::<u64>()))?;
    ctx.check_equal("sum on the device", total, sum(seed, bytes / 8));
    ctx.check_equal("bytes of the guest's memory used", usage.system_bytes, 0);
    ctx.check_equal(
        "bytes of device memory used",
        usage.device_bytes,
        bytes as u64,
    );
    let still = ctx.space.residency(range)?;
    ctx.check_equal(
        "pages on the device afterwards",
        at(Place::Device, &still),
        range.pages(),
    );

    if info.capabilities & capability::COHERENT != 0 {
        in_place::share(ctx, &mut memory, seed)?;
        let moved = ctx.move_all(range, Destination::System)?;
        ctx.check_equal(
            "pages moved to system memory",
            moved.moved,
            range.pages() as u64,
        );
    }
    // If the CPU cannot use the pages there, only this read moves them to system memory.
    let numbers = memory.numbers::<u64>();
    ctx.check_equal("first difference", first_difference(seed, numbers), None);
    let back = ctx.space.residency(range)?;
    ctx.check_equal(
        "pages in system memory again",
        at(Place::System, &back),
        range.pages(),
    );
    let total = ctx.on_cpu(|| numbers.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n)));
    ctx.check_equal("sum on the CPU", total, sum(seed, bytes / 8));
    Ok(())
}

/// A quarter more memory than the device has, so that some of it must stay in system memory.
pub(super) fn oversubscribe(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let capacity = ctx.space.device().info()?.device_memory;
    if ctx.size() == 0 {
        ctx.report.size = usize::try_from(capacity + capacity / 4)?;
    }
    let bytes = ctx.size().next_multiple_of(page_size());
    ctx.report.size = bytes;
    if bytes as u64 <= capacity {
        let text = format!(
            "oversubscribe --size {}: it must be more than the device has, which is {}",
            size::write(bytes as u64),
            size::write(capacity)
        );
        return Err(WrongArgument(text).into());
    }
    let available = available()?;
    ensure!(
        (bytes as u64) < available,
        "this needs {}, but the guest has only {} available: give it more, or the device less",
        figure::bytes(bytes as u64),
        figure::bytes(available)
    );

    let seed = ctx.random.u64(..);
    let mut memory = Mapping::anonymous(bytes)?;
    write_pattern(seed, memory.numbers_mut());
    let range = memory.pages();
    let moved = ctx.move_all(range, Destination::Device)?;
    ctx.check(moved.moved > 0, || {
        "not one page was moved to the device".into()
    });
    ctx.check(moved.no_memory > 0, || {
        "no page was left behind for want of memory".into()
    });
    let states = ctx.space.residency(range)?;
    let (on_device, in_system) = (at(Place::Device, &states), at(Place::System, &states));
    ctx.check_equal(
        "pages that are somewhere",
        on_device + in_system,
        range.pages(),
    );
    let fits = usize::try_from(capacity)? / page_size();
    ctx.check(on_device <= fits, || {
        format!("{on_device} pages on a device that has {fits}")
    });

    let (total, usage) = ctx.observed(work::sum(memory.numbers::<u64>()))?;
    let expected = ctx.on_cpu(|| sum(seed, bytes / 8));
    ctx.check_equal("sum of it all", total, expected);
    let used = usage.system_bytes + usage.device_bytes;
    ctx.check_equal("bytes used", used, bytes as u64);
    ctx.check(usage.device_bytes > 0, || {
        "no byte of it was on the device".into()
    });

    // All of it is overwritten, wherever each page is.
    let word = ctx.random.u64(..);
    ctx.on_device(work::fill(memory.numbers_mut::<u64>(), word))?;
    let different = memory
        .numbers::<u64>()
        .iter()
        .position(|&number| number != word);
    ctx.check_equal("first place not overwritten", different, None);
    ctx.report.note =
        format!("{on_device} pages fitted on the device, {in_system} stayed in system memory");
    Ok(())
}
