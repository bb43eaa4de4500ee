//! `hmm bench`: what jobs, faults and migrations cost, each against the CPU.
//!
//! Every reference is taken in the same guest, in turns with what it is compared with.
//! Nothing is asserted but that what is measured did happen: pages that were to move
//! have moved, and large pages were large.

mod buffer;
mod dmirror;
mod faults;
mod footprint;
mod invalidation;
mod jobs;
mod migration;
mod touch;
mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use hmm::{Destination, Device, PageRange, Space};
use hmm_bench::{Bench, Format};

use crate::args::{self, Measured};
use crate::memory::available;
use buffer::LARGE;

/// Measures everything: whether nothing is missing.
pub(crate) fn measure(path: &Path, options: &args::Bench, json: bool) -> Result<bool> {
    let format = if json { Format::Json } else { Format::Text };
    let mut bench = Bench::new(format, options.repetitions);
    if let Some(node) = &options.dmirror {
        dmirror::measure(&mut bench, node)?;
        return Ok(bench.is_complete());
    }
    let space = Device::open(path)?.bind()?;
    let mapped = mapped(options.mapped)?;
    if options.has(Measured::Jobs) {
        jobs::measure(&mut bench, &space)?;
    }
    if options.has(Measured::Faults) {
        faults::measure(&mut bench, &space);
    }
    if options.has(Measured::Migration) {
        migration::measure(&mut bench, &space, options.largest)?;
    }
    if options.has(Measured::Touch) {
        touch::measure(&mut bench, &space);
    }
    if options.has(Measured::Changes) {
        invalidation::measure(&mut bench, &space, mapped);
        if let Some(path) = &options.second {
            // Not before, because changes then concern it, too.
            let second = Device::open(path)?.bind()?;
            invalidation::measure_two(&mut bench, (&space, &second), mapped);
        }
    }
    if options.has(Measured::Memory) {
        footprint::measure(&mut bench, &space, mapped);
    }
    Ok(bench.is_complete())
}

/// How much memory is mapped at once: less than was asked for, and whole large pages, if the
/// guest has not enough.
fn mapped(wanted: usize) -> Result<usize> {
    // What the system itself needs while this is in use.
    let available = usize::try_from(available()?)? / 4 * 3;
    let mapped = wanted.min(available) / LARGE * LARGE;
    ensure!(mapped > 0, "the guest has no memory to spare");
    Ok(mapped)
}

/// How long something takes that may fail.
fn timed<T, E>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<Duration, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// Calls after which a page that has not moved will not.
const TRIES: u64 = 4;

/// Moves all pages of a range: how long it took. A page that somebody used at the moment
/// stays where it is, so what is left is asked for again, as any program would.
fn move_all(space: &Space, range: PageRange, destination: Destination) -> Result<Duration> {
    let pages = range.pages() as u64;
    let (mut moved, mut tries) = (0, 0);
    let start = Instant::now();
    while moved < pages && tries < TRIES {
        moved += space.migrate(range, destination)?.moved;
        tries += 1;
    }
    let time = start.elapsed();
    ensure!(
        moved == pages,
        "of {pages} pages {moved} moved to {destination:?} in {tries} calls"
    );
    Ok(time)
}
