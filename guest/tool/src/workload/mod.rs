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
use hmm_cli::{figure, size};
use hmm_tool::argument::WrongArgument;
use hmm_tool::cli::Choice;
use hmm_tool::memory::available;
use hmm_tool::runner::{self, Options, Workload};

use crate::args::Run;

/// A workload, and how much of the guest's memory it needs, in bytes, for a size: roughly, and never
/// more than it does.
struct Entry {
    workload: Workload,
    needs: fn(u128) -> u128,
}

macro_rules! workloads {
    ($( $name:literal, $size:expr, $unit:literal, $needs:expr, $run:path; )+) => {
        /// All workloads, in the order in which `all` runs them.
        const WORKLOADS: &[Entry] = &[ $( Entry {
            workload: Workload {
                name: $name,
                default_size: $size,
                unit: $unit,
                run: $run,
            },
            needs: $needs,
        }, )+ ];
    };
}

workloads! {
    "list", 200_000, "nodes", |nodes| 16 * nodes, pointers::list;
    "tree", 200_000, "nodes", |nodes| 24 * nodes, pointers::tree;
    // Three matrices of numbers of 4 bytes.
    "gemm", 512, "rows", |rows| rows.saturating_mul(rows).saturating_mul(12), matrix::gemm;
    "axpy", 16 << 20, "floats", |floats| 12 * floats, arrays::axpy;
    "dot", 16 << 20, "floats", |floats| 8 * floats, arrays::dot;
    "sort", 4 << 20, "integers", |integers| 24 * integers, arrays::sort;
    // Its size is that of the file.
    "histogram", 0, "bytes", |_| 0, arrays::histogram;
    "bfs", 1_000_000, "edges", |edges| 12 * edges, graph::bfs;
    "migrate", 256 << 20, "bytes", |bytes| bytes, migration::migrate;
    "oversubscribe", 0, "bytes", |bytes| bytes, migration::oversubscribe;
}

/// Runs what was asked for. Returns whether every answer was right.
///
/// # Errors
///
/// When the device cannot be opened. [`WrongArgument`] when a size suits neither the guest nor the
/// device.
pub(crate) fn run(device: &Path, run: &Run, json: bool) -> Result<bool> {
    let chosen = WORKLOADS
        .iter()
        .filter(|entry| run.workload.includes(entry.workload.name));
    if let Some(size) = run.size {
        let available = available()?;
        for entry in chosen.clone() {
            fits(entry, size, available)?;
        }
    }
    let options = Options {
        size: run.size,
        seed: run.seed,
        file: run.file.clone(),
    };
    runner::run(chosen.map(|entry| &entry.workload), device, &options, json)
}

/// Checks that the guest has the memory for a size.
fn fits(entry: &Entry, size: usize, available: u64) -> Result<(), WrongArgument> {
    let needed = (entry.needs)(size as u128);
    if needed <= available.into() {
        return Ok(());
    }
    Err(WrongArgument(format!(
        "{} --size {}: it needs {} of memory, and the guest has {} available",
        entry.workload.name,
        size::write(size as u64),
        figure::bytes(u64::try_from(needed).unwrap_or(u64::MAX)),
        figure::bytes(available)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    #[test]
    fn every_choice_is_a_workload_and_every_workload_a_choice() {
        let names: Vec<_> = WORKLOADS.iter().map(|entry| entry.workload.name).collect();
        assert_eq!(args::Choice::difference(&names), None);
    }

    #[test]
    fn a_size_that_the_guest_has_no_memory_for_is_a_wrong_argument() {
        let entry = |name| {
            WORKLOADS
                .iter()
                .find(|entry| entry.workload.name == name)
                .unwrap()
        };
        assert!(fits(entry("gemm"), 1024, 12 << 20).is_ok());
        let error = fits(entry("gemm"), 1025, 12 << 20).unwrap_err().to_string();
        assert!(
            error.contains("gemm --size 1025") && error.contains("12 MiB"),
            "{error}"
        );
        for entry in WORKLOADS {
            let default = entry.workload.default_size;
            assert!(
                fits(entry, default, 2 << 30).is_ok(),
                "the default size fits"
            );
            // No size makes the check itself overflow.
            let _ = fits(entry, usize::MAX, u64::MAX);
        }
    }
}
