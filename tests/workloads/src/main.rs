//! The tests' uses of an accelerator: workloads that no user needs, the processes that tests kill,
//! suspend or fail, and measurements of nodes for the kernel's own tests.
//!
//! It uses the device through the `hmm` library, and by raw calls that the library would not make.
//! Its exit status is zero only when everything that was asked for was done and every answer was
//! right.

mod arena;
mod args;
mod bad_input;
mod churn;
mod dmirror;
mod endless;
mod outside;
mod peers;
mod processes;
mod reaper;
mod survivors;
mod sys;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use args::{Arguments, Command, Run};
use clap::Parser;
use hmm_tool::cli::{exit_code, Choice, Common};
use hmm_tool::runner::{self, Options, Workload};

/// All workloads, in the order in which `all` runs them.
const WORKLOADS: &[Workload] = &[
    Workload {
        name: "peers",
        default_size: 16 << 20,
        unit: "bytes",
        run: peers::run,
    },
    Workload {
        name: "processes",
        default_size: 3,
        unit: "processes",
        run: processes::run,
    },
    Workload {
        name: "churn",
        default_size: 60,
        unit: "rounds",
        run: churn::run,
    },
    Workload {
        name: "outside",
        default_size: 5,
        unit: "cases",
        run: outside::run,
    },
    Workload {
        name: "bad-input",
        default_size: 0,
        unit: "cases",
        run: bad_input::run,
    },
];

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    let Common { device, json } = common;
    let outcome = match command {
        Command::Run(options) => run(&device, &options, json),
        Command::Worker(worker) => processes::work(&device, worker),
        Command::Bench(options) => bench(&options, json),
    };
    exit_code("hmm-workloads", outcome)
}

/// Runs what was asked for. Returns whether every answer was right.
fn run(device: &Path, run: &Run, json: bool) -> Result<bool> {
    let chosen = WORKLOADS
        .iter()
        .filter(|workload| run.workload.includes(workload.name));
    let options = Options {
        size: run.size,
        seed: run.seed,
        file: None,
    };
    runner::run(chosen, device, &options, json)
}

/// Measures a node. Returns whether the measurements are complete.
fn bench(options: &args::Bench, json: bool) -> Result<bool> {
    let mut bench = options.rounds.bench(json);
    dmirror::measure(&mut bench, &options.node)?;
    Ok(bench.is_complete())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_a_workload_and_every_workload_a_choice() {
        let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        assert_eq!(args::Choice::difference(&names), None);
    }
}
