//! The contract of HMM, row by row.
//!
//! Each row is one duty of a driver that mirrors address spaces and moves pages into device memory,
//! as the kernel's memory management demands it, and a small program that would notice if the duty
//! were not done. Rows run in processes of their own, so that a row that hangs, crashes or is
//! killed fails alone.
//!
//! This program knows the device by its library alone. Of the driver it knows only what any program
//! can see: values, places, counters, and the kernel's own reports.

mod area;
mod bound;
mod calls;
mod child;
mod gup;
mod kernel;
mod machine;
mod model;
mod peers;
mod rounds;
mod row;
mod rows;
mod runner;
mod sys;
mod trace;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use hmm_cli::{output, remark, say};

use crate::row::Outcome;

/// Check the accelerator and its driver against the contract of HMM.
///
/// It must run as root in a guest with at least one device. The exit status is 0 only
/// if no row was broken; rows that cannot run on this kernel or machine are named with the
/// reason. HMM_CONTRACT_DEVICES names devices whose copies fail on purpose, for the rows that
/// need such: to-device=2,to-system=3,nothing-back=4. HMM_CONTRACT_ALL_MEMORY, if it is set,
/// says that all memory of the machine may be used up.
#[derive(Debug, Parser)]
#[command(name = "hmm-contract", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the rows: name, duty, source
    List {
        /// As the tables of the documentation
        #[arg(long)]
        markdown: bool,
    },
    /// Run rows, each in a process of its own
    Run {
        /// Names of rows, beginnings of names, or `all`
        #[arg(required = true)]
        rows: Vec<String>,
        /// Print each verdict as a line of JSON
        #[arg(long)]
        json: bool,
        /// Seconds that a row may take
        #[arg(long, default_value_t = 60)]
        limit: u64,
    },
    /// Run a program as a row is run. Its verdict is the last line; it is broken if it fails, does
    /// not end, or leaves something on a device
    Watch {
        /// Seconds that it may take
        #[arg(long, default_value_t = 60)]
        limit: u64,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Do everything at random on a few pages, against a model that knows each byte
    Model(model::Arguments),
    /// Try cases on a node of the kernel's own tests of HMM, of our driver or another one
    Peers(peers::Arguments),
    /// Run one row in this process; its verdict is the last line
    #[command(hide = true)]
    Row {
        /// Its name
        name: String,
    },
    /// Do nothing: a row executes this in its place
    #[command(hide = true)]
    Nothing,
}

fn main() -> ExitCode {
    let good = match Arguments::parse().command {
        Command::List { markdown } => {
            let list = if markdown {
                row::markdown()
            } else {
                row::list()
            };
            output::text(&list);
            true
        }
        Command::Run { rows, json, limit } => {
            match runner::run(&rows, json, Duration::from_secs(limit)) {
                Ok(good) => good,
                Err(error) => {
                    remark!("hmm-contract: {error:#}");
                    false
                }
            }
        }
        Command::Watch { limit, program } => {
            match runner::watch(&program, Duration::from_secs(limit)) {
                Ok(good) => good,
                Err(error) => {
                    remark!("hmm-contract: {error:#}");
                    false
                }
            }
        }
        Command::Model(arguments) => match model::run(&arguments) {
            Ok(()) => true,
            Err(error) => {
                remark!("hmm-contract: {error:#}");
                false
            }
        },
        Command::Peers(arguments) => match peers::run(&arguments) {
            Ok(good) => good,
            Err(error) => {
                remark!("hmm-contract: {error:#}");
                false
            }
        },
        Command::Row { name } => return row::run_here(&name).map_or(ExitCode::FAILURE, report),
        Command::Nothing => true,
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Reports to the runner, which is the parent of this process.
fn report(outcome: Outcome) -> ExitCode {
    say!("{}", serde_json::json!(outcome));
    ExitCode::SUCCESS
}
