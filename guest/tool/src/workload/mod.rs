//! Workloads: real input, made here, processed by the device, checked by the CPU.
//!
//! This file has the list of workloads; each has a file of its own.

mod arrays;
mod file;
mod graph;
mod in_place;
mod matrix;
mod migration;
mod pointers;

use std::path::Path;

use anyhow::Result;
use hmm_tool::cli::Choice;
use hmm_tool::runner::{self, Options, Workload};

use crate::args::Run;

macro_rules! workloads {
    ($( $name:literal, $size:expr, $unit:literal, $run:path; )+) => {
        /// All workloads, in the order in which `all` runs them.
        const WORKLOADS: &[Workload] = &[ $( Workload {
            name: $name,
            default_size: $size,
            unit: $unit,
            run: $run,
        }, )+ ];
    };
}

workloads! {
    "list", 200_000, "nodes", pointers::list;
    "tree", 200_000, "nodes", pointers::tree;
    "gemm", 512, "rows", matrix::gemm;
    "axpy", 16 << 20, "floats", arrays::axpy;
    "dot", 16 << 20, "floats", arrays::dot;
    "sort", 4 << 20, "integers", arrays::sort;
    "histogram", 0, "bytes", arrays::histogram;
    "bfs", 1_000_000, "edges", graph::bfs;
    "migrate", 256 << 20, "bytes", migration::migrate;
    "oversubscribe", 0, "bytes", migration::oversubscribe;
}

/// Runs what was asked for. Returns whether every answer was right.
///
/// # Errors
///
/// When the device cannot be opened.
pub(crate) fn run(device: &Path, run: &Run, json: bool) -> Result<bool> {
    let chosen = WORKLOADS
        .iter()
        .filter(|workload| run.workload.includes(workload.name));
    let options = Options {
        size: run.size,
        seed: run.seed,
        file: run.file.clone(),
    };
    runner::run(chosen, device, &options, json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    #[test]
    fn every_choice_is_a_workload_and_every_workload_a_choice() {
        let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        assert_eq!(args::Choice::difference(&names), None);
    }
}
