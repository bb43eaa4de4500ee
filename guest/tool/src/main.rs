//! The `hmm` command: runs work on a virtio-hmm accelerator and looks at it.
//!
//! It uses the device through the `hmm` library as any program would. Its exit status
//! is zero only when everything that was asked for was done and every answer was right.

mod arena;
mod args;
mod bench;
mod cpu;
mod info;
mod memory;
mod migrate;
mod report;
mod residency;
mod stats;
mod sys;
mod workload;

use std::process::ExitCode;

use args::{Arguments, Command};
use clap::Parser;

fn main() -> ExitCode {
    let Arguments {
        device,
        json,
        command,
    } = Arguments::parse();
    let outcome = match command {
        Command::Info => info::show(&device, json).map(|()| true),
        Command::Run(run) => workload::run(&device, &run, json),
        Command::Migrate(migrate) => migrate::measure(&device, migrate.size, json),
        Command::Bench(options) => bench::measure(&device, &options, json),
        Command::Residency { pid } => residency::show(&device, pid, json).map(|()| true),
        Command::Stats { watch } => stats::show(&device, watch, json).map(|()| true),
        Command::Worker(worker) => workload::processes::work(&device, worker),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
