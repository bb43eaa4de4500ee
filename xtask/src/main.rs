//! `cargo xtask`: everything that is done to the project rather than by it.
//!
//! This file chooses the command and is the only exit. It knows nothing of
//! how anything is prepared, built or run.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod boot_modules;
mod cache;
mod cargo;
mod driver;
mod host;
mod kernel;
mod kvm;
mod prepare;
mod progress;
mod report;
mod suite;
mod toolbox;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Setup(setup) => prepare::setup(&setup),
        Command::Build(build) => prepare::build(&build),
        Command::Check => suite::check(),
        Command::Test(test) => suite::test(&test),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
