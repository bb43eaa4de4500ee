//! The costs of the device's parts, each against plain code that does the same.
//!
//! `cargo bench -p vhost-device-hmm --bench device` prints a table, with `-- --json` one JSON
//! object per line (see `docs/benchmarks.md`). Except in `queues`, requests and jobs enter where
//! the queues pass them on; there is no guest and no driver here. It is asserted only that every
//! measured request and job ended well.

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

/// Rounds of each measurement.
const REPETITIONS: usize = 9;

fn main() -> ExitCode {
    let is_given = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let format = if is_given("--json") {
        Format::Json
    } else {
        Format::Text
    };
    // As a test, which Cargo runs without `--bench`, one round shows that all can be measured.
    let repetitions = if is_given("--bench") { REPETITIONS } else { 1 };
    let mut bench = Bench::new(format, repetitions);
    // First, before the allocator has free memory left over that tables could use.
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
