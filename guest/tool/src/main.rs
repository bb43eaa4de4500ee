//! The `hmm` command: runs work on a virtio-hmm accelerator and looks at it.
//!
//! It uses the device through the `hmm` library as any program would. Its exit status
//! is zero only when everything that was asked for was done and every answer was right.

mod args;
mod bench;
mod chaos;
mod cpu;
mod info;
mod migrate;
mod replay;
mod residency;
mod stats;
mod timeline;
mod trace;
mod workload;

use std::process::ExitCode;

use args::{Arguments, Command};
use clap::Parser;
use hmm_tool::cli::{exit_code, Common};

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    let Common { device, json } = common;
    let outcome = match command {
        Command::Info => info::show(&device, json).map(|()| true),
        Command::Run(run) => workload::run(&device, &run, json),
        Command::Migrate(migrate) => migrate::measure(&device, migrate.size, json),
        Command::Bench(options) => bench::measure(&device, &options, json),
        Command::Chaos(options) => {
            return chaos::run(&chaos::Plan {
                device: &device,
                seed: options.seed.unwrap_or_else(|| fastrand::u64(..)),
                pace: options.pace,
                json,
                command: &options.command,
            })
        }
        Command::Replay(options) => replay::show(&options, json).map(|()| true),
        Command::Residency { pid } => residency::show(&device, pid, json).map(|()| true),
        Command::Trace(options) => {
            let traced = trace::run(&trace::Plan {
                file: options.output.as_deref(),
                events: &options.events,
                buffer: options.buffer,
                quiet: options.quiet,
                json,
                command: &options.command,
            });
            match traced {
                Ok(status) => return ExitCode::from(status),
                Err(error) => Err(error),
            }
        }
        Command::Timeline(options) => timeline::make(&options, json).map(|()| true),
        Command::Stats(stats) => stats::show(&device, &stats, json).map(|()| true),
    };
    exit_code("hmm", outcome)
}
