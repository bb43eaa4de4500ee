//! The contract of HMM, row by row.
//!
//! Each row is one duty that the kernel's memory management lays upon a driver that
//! mirrors address spaces and moves pages into device memory, and a small program that
//! would notice if the duty were not done. Rows run in processes of their own, so that
//! one that hangs, crashes or is killed tells of itself only.
//!
//! This program knows the device by its library alone, and of the driver only what any
//! program can see: values, places, counters, and what the kernel itself reports.

mod area;
mod bound;
mod child;
mod gup;
mod kernel;
mod machine;
mod model;
mod peers;
mod row;
mod rows;
mod runner;
mod sys;
mod trace;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::row::Outcome;

/// Hold the accelerator and its driver against the contract of HMM.
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
    /// Do everything at random on a few pages, against a model that knows each byte
    Model(model::Arguments),
    /// Try cases on a node of the kernel's own tests of HMM, whose driver may be another
    Peers(peers::Arguments),
    /// Run one row in this process; its verdict is the last line
    #[command(hide = true)]
    Row {
        /// Its name
        name: String,
    },
    /// Do nothing: what a row executes in its place
    #[command(hide = true)]
    Nothing,
}

fn main() -> ExitCode {
    let good = match Arguments::parse().command {
        Command::List { markdown } => {
            print!(
                "{}",
                if markdown {
                    row::markdown()
                } else {
                    row::list()
                }
            );
            true
        }
        Command::Run { rows, json, limit } => {
            match runner::run(&rows, json, Duration::from_secs(limit)) {
                Ok(good) => good,
                Err(error) => {
                    eprintln!("hmm-contract: {error:#}");
                    false
                }
            }
        }
        Command::Model(arguments) => match model::run(&arguments) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("hmm-contract: {error:#}");
                false
            }
        },
        Command::Peers(arguments) => match peers::run(&arguments) {
            Ok(good) => good,
            Err(error) => {
                eprintln!("hmm-contract: {error:#}");
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

/// Tells the runner, which is the parent of this process.
fn report(outcome: Outcome) -> ExitCode {
    println!("{}", serde_json::json!(outcome));
    ExitCode::SUCCESS
}
