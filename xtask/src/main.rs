//! `cargo xtask`: all tasks for the project.
//!
//! This file chooses the command and is the only exit. It does not know how anything is prepared,
//! built or run.

use std::process::ExitCode;

mod args;
mod bench;
mod layers;
mod patches;
mod run;
mod setup;

use args::{Args, Command};
use hmm_cli::remark;
use run::{book, demo, explore, suite, vm};
use setup::{clean, needs, prepare};

fn main() -> ExitCode {
    let result = match Args::read().command {
        Command::Setup(args) => prepare::setup(&args),
        Command::Build(args) => prepare::build(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Vm(args) => vm::vm(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Check => suite::check(),
        Command::Lint(args) => suite::lint(&args),
        Command::Doc => prepare::document(),
        Command::Headers => prepare::headers(),
        Command::Libhmm(args) => prepare::libhmm(&args),
        Command::Test(args) => suite::test(&args),
        Command::Explore(args) => explore::run(&args),
        Command::Patches(args) => patches::patches(&args),
        Command::Book(args) => book::book(&args),
        Command::Kconfig(args) => Ok(needs::print(&args)),
        Command::Toolbox(args) => prepare::toolbox(&args),
        Command::Clean(args) => clean::clean(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            remark!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
