//! `hmm bench`: the cost of jobs, faults and migrations, each compared with the CPU.
//!
//! Every reference is measured in the same guest, in turns with what it is compared with. The only
//! assertions are that the measured actions did happen: pages that were to move have moved, and
//! huge pages were large. This file chooses the parts; each has a file of its own.

mod cpu_faults;
mod faults;
mod footprint;
mod invalidation;
mod jobs;
mod migration;
mod timing;
mod traffic;

use std::path::Path;

use anyhow::{ensure, Result};
use hmm::Device;
use hmm_tool::buffer::LARGE;
use hmm_tool::memory::available;

use crate::args::{self, Measured};

/// Measures everything. Returns whether the measurements are complete.
pub(crate) fn measure(path: &Path, options: &args::Bench, json: bool) -> Result<bool> {
    let mut bench = options.rounds.bench(json);
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
        cpu_faults::measure(&mut bench, &space);
    }
    if options.has(Measured::Changes) {
        invalidation::measure(&mut bench, &space, mapped);
        if let Some(path) = &options.second {
            // Bound only now, because changes of memory concern it from then on.
            let second = Device::open(path)?.bind()?;
            invalidation::measure_two(&mut bench, (&space, &second), mapped);
        }
    }
    if options.has(Measured::Memory) {
        footprint::measure(&mut bench, &space, mapped);
    }
    Ok(bench.is_complete())
}

/// How much memory is mapped at once: less than was asked for, in whole huge pages, if the guest
/// has too little.
fn mapped(wanted: usize) -> Result<usize> {
    // The rest is for the system itself while this memory is in use.
    let available = usize::try_from(available()?)? / 4 * 3;
    let mapped = wanted.min(available) / LARGE * LARGE;
    ensure!(mapped > 0, "the guest has no memory to spare");
    Ok(mapped)
}
