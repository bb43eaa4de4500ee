//! Memory on one device that the other devices work on.

use anyhow::Result;
use hmm::spec::wire::config::capability;
use hmm::{page_size, work, Destination, Device, PageRange, Place, Space};

use super::migration::{at, move_all, sum};
use super::Trial;
use crate::memory::{first_difference, write_pattern, Mapping};

/// The other devices, bound to this process.
fn others(trial: &Trial<'_>) -> Result<Vec<Space>> {
    let paths = Device::list().into_iter().filter(|path| path != trial.path);
    paths.map(|path| Ok(Device::open(path)?.bind()?)).collect()
}

fn check_place(trial: &mut Trial<'_>, what: &str, range: PageRange, place: Place) -> Result<()> {
    let states = trial.space.residency(range)?;
    trial.check_equal(what, at(place, &states), range.pages());
    Ok(())
}

/// Each of the other devices reads and writes what lies on this one. It comes home for that,
/// unless CPUs, and so other devices, reach it where it is.
pub(super) fn run(trial: &mut Trial<'_>) -> Result<()> {
    let coherent = trial.space.device().info()?.capabilities & capability::COHERENT != 0;
    let others = others(trial)?;
    trial.report.note = format!("with {} others", others.len());
    for other in &others {
        let seed = trial.random.u64(..);
        let mut memory = Mapping::anonymous(trial.size().next_multiple_of(page_size()))?;
        write_pattern(seed, memory.numbers_mut());
        let range = memory.pages();
        let moved = move_all(trial, range, Destination::Device)?;
        trial.check_equal("pages moved here", moved.moved, range.pages() as u64);

        let total = other.run(work::sum(memory.numbers::<u64>()))?.value;
        let expected = sum(seed, memory.numbers::<u64>().len());
        trial.check_equal("sum on another device", total, expected);
        let place = if coherent {
            Place::Device
        } else {
            Place::System
        };
        check_place(
            trial,
            "pages in place after another device read",
            range,
            place,
        )?;
        let seen = other.residency(range)?;
        let system = at(Place::System, &seen);
        trial.check_equal("pages that the other one sees", system, range.pages());

        // What the other one stores is seen here, and by the CPU.
        let word = trial.random.u64(..);
        other.run(work::fill(memory.numbers_mut::<u64>(), word))?;
        let total = trial.on_device(work::sum(memory.numbers::<u64>()))?;
        let count = memory.numbers::<u64>().len() as u64;
        let expected = word.wrapping_mul(count);
        trial.check_equal("sum of what another device stored", total, expected);
        check_place(
            trial,
            "pages in place after another device wrote",
            range,
            place,
        )?;

        // From one device to the other, by way of home.
        write_pattern(seed, memory.numbers_mut());
        let home = move_all(trial, range, Destination::System)?;
        trial.check_equal("pages that found no memory at home", home.no_memory, 0);
        check_place(trial, "pages at home", range, Place::System)?;
        let there = other.migrate(range, Destination::Device)?;
        trial.check_equal(
            "pages accounted for",
            there.moved + there.skipped,
            range.pages() as u64,
        );
        let total = trial.on_device(work::sum(memory.numbers::<u64>()))?;
        let expected = sum(seed, memory.numbers::<u64>().len());
        trial.check_equal("sum of what lies there", total, expected);
        let numbers = memory.numbers::<u64>();
        trial.check_equal("first difference", first_difference(seed, numbers), None);
    }
    Ok(())
}
