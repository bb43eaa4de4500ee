//! What the device's parts cost, each against plain code that does the same.
//!
//! `cargo bench -p vhost-device-hmm --bench device` prints a table, with `-- --json` one
//! JSON object for each line (see `docs/benchmarks.md`). Requests and jobs go in where
//! the queues hand them in, but for those of `queues`; there is no guest and no driver here. Nothing
//! is asserted but that every request and job that is measured ended well.

mod dma;
mod engines;
mod idle;
mod jobs;
mod machine;
mod queues;
mod scale;
mod tables;
mod translation;

use std::process::ExitCode;

use hmm_bench::{Bench, Format};

/// Rounds of everything.
const REPETITIONS: usize = 9;

fn main() -> ExitCode {
    // Cargo adds arguments of its own.
    let json = std::env::args().any(|argument| argument == "--json");
    let mut bench = Bench::new(if json { Format::Json } else { Format::Text }, REPETITIONS);
    // First, while the allocator has nothing left over that tables could go to.
    scale::measure(&mut bench);
    dma::measure(&mut bench);
    tables::measure(&mut bench);
    translation::measure(&mut bench);
    jobs::measure(&mut bench);
    engines::measure(&mut bench);
    queues::measure(&mut bench);
    idle::measure(&mut bench);
    if bench.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
