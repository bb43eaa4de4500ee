//! Memory on one device that the other devices work on.

use anyhow::Result;
use hmm::spec::wire::config::capability;
use hmm::{page_size, work, Destination, Device, PageRange, Place, Space};
use hmm_tool::memory::{first_difference, write_pattern, Mapping};
use hmm_tool::places::{at, sum};
use hmm_tool::runner::WorkloadCtx;

/// The other devices, bound to this process.
fn others(ctx: &WorkloadCtx<'_>) -> Result<Vec<Space>> {
    let paths = Device::list().into_iter().filter(|path| path != ctx.path);
    paths.map(|path| Ok(Device::open(path)?.bind()?)).collect()
}

fn check_place(
    ctx: &mut WorkloadCtx<'_>,
    what: &str,
    range: PageRange,
    place: Place,
) -> Result<()> {
    let states = ctx.space.residency(range)?;
    ctx.check_equal(what, at(place, &states), range.pages());
    Ok(())
}

/// Each of the other devices reads and writes memory on this one. Its pages return to system memory
/// for that, unless CPUs, and so other devices, reach them where they are.
pub(crate) fn run(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let coherent = ctx.space.device().info()?.capabilities & capability::COHERENT != 0;
    let others = others(ctx)?;
    ctx.report.note = format!("with {} others", others.len());
    for other in &others {
        let seed = ctx.random.u64(..);
        let mut memory = Mapping::anonymous(ctx.size().next_multiple_of(page_size()))?;
        write_pattern(seed, memory.numbers_mut());
        let range = memory.pages();
        let moved = ctx.move_all(range, Destination::Device)?;
        ctx.check_equal("pages moved here", moved.moved, range.pages() as u64);

        let total = other.run(work::sum(memory.numbers::<u64>()))?.value;
        let expected = sum(seed, memory.numbers::<u64>().len());
        ctx.check_equal("sum on another device", total, expected);
        let place = if coherent {
            Place::Device
        } else {
            Place::System
        };
        check_place(
            ctx,
            "pages in place after another device read",
            range,
            place,
        )?;
        let seen = other.residency(range)?;
        let system = at(Place::System, &seen);
        ctx.check_equal("pages that the other one sees", system, range.pages());

        // The CPU and this device must see what the other one stores.
        let word = ctx.random.u64(..);
        other.run(work::fill(memory.numbers_mut::<u64>(), word))?;
        let total = ctx.on_device(work::sum(memory.numbers::<u64>()))?;
        let count = memory.numbers::<u64>().len() as u64;
        let expected = word.wrapping_mul(count);
        ctx.check_equal("sum of what another device stored", total, expected);
        check_place(
            ctx,
            "pages in place after another device wrote",
            range,
            place,
        )?;

        // Moves from one device to the other through system memory.
        write_pattern(seed, memory.numbers_mut());
        let back = ctx.move_all(range, Destination::System)?;
        ctx.check_equal("pages that found no system memory", back.no_memory, 0);
        check_place(ctx, "pages in system memory", range, Place::System)?;
        let moved = other.migrate(range, Destination::Device)?;
        ctx.check_equal(
            "pages accounted for",
            moved.moved + moved.skipped,
            range.pages() as u64,
        );
        let total = ctx.on_device(work::sum(memory.numbers::<u64>()))?;
        let expected = sum(seed, memory.numbers::<u64>().len());
        ctx.check_equal("sum of what lies there", total, expected);
        let numbers = memory.numbers::<u64>();
        ctx.check_equal("first difference", first_difference(seed, numbers), None);
    }
    Ok(())
}
