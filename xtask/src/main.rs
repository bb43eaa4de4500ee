//! `cargo xtask`: everything that is done to the project rather than by it.
//!
//! This file chooses the command and is the only exit. It knows nothing of
//! how anything is prepared, built or run.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod bench;
mod boot_modules;
mod cache;
mod cargo;
mod clean;
mod demo;
mod driver;
mod host;
mod kernel;
mod kernel_tests;
mod kvm;
mod prepare;
mod progress;
mod report;
mod suite;
mod toolbox;
mod vm;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Setup(args) => prepare::setup(&args),
        Command::Build(args) => prepare::build(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Vm(args) => vm::vm(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Check => suite::check(),
        Command::Test(args) => suite::test(&args),
        Command::Clean(args) => clean::clean(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
