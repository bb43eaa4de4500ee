//! The command line.
//!
//! It checks what is asked for, and does nothing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hmm_cli::size;
use hmm_tool::cli::{self, Common, Rounds};

/// The tests' uses of a virtio-hmm accelerator.
#[derive(Debug, Parser)]
#[command(name = "hmm-workloads", version)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a workload on the device and check its answers with the CPU.
    ///
    /// Prints what `hmm run` prints.
    Run(Run),
    /// Play the part of one process.
    Worker(Worker),
    /// Measure what can be measured of a node for the kernel's own tests, of any driver.
    Bench(Bench),
}

/// Which workload, and how large.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The workload.
    #[arg(value_enum)]
    pub(crate) workload: Choice,
    /// How large, such as 1000 or 64M, where K, M, G and T are powers of 1024: bytes (peers),
    /// processes (processes) or rounds (churn). Each workload has its own default.
    #[arg(long, value_name = "SIZE", value_parser = size::parse::<usize>)]
    pub(crate) size: Option<usize>,
    /// The seed of all input, order and timing that is chosen at random. It is printed,
    /// so that a run can be repeated.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

/// What to measure, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// The node.
    #[arg(value_name = "NODE")]
    pub(crate) node: PathBuf,
    #[command(flatten)]
    pub(crate) rounds: Rounds,
}

/// What a process does that a test or a workload starts.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Worker {
    /// Its part.
    #[arg(value_enum)]
    pub(crate) part: Part,
    /// The seed of its input.
    #[arg(long)]
    pub(crate) seed: u64,
    /// How much memory a sleeper has on the device, and elsewhere.
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = size::parse::<usize>)]
    pub(crate) memory: usize,
}

/// The part that a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Work, check and end well.
    Peer,
    /// Run a job that does not end, until killed.
    Victim,
    /// Work until the device fails; then look what is lost, and work on.
    Survivor,
    /// Run a job until the system sleeps; then work on.
    Sleeper,
    /// Change memory until the system sleeps, several times; then work on.
    Changer,
    /// Run a job on a page that never comes.
    Waiter,
    /// Make a call whose argument lies in a page that never comes.
    Caller,
    /// Close the device, but leave pages there.
    Leaver,
    /// Poll the file and wait for a job until the device fails or goes; then print the results.
    Poller,
    /// Run a job that faults again and again, and touch pages on the device; then print how the job
    /// ended.
    Faulter,
    /// Kill a process while its huge pages move, have the kernel reap its memory, and print what
    /// came of it.
    Reaper,
}

/// A workload, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Every workload, one after the other.
    All,
    /// Let the other devices work on memory that lies on this one.
    Peers,
    /// Several processes and threads at once, one of which is killed.
    Processes,
    /// Change mappings while jobs use them.
    Churn,
    /// Bind other processes, which know nothing of it.
    Outside,
    /// Hand the driver everything that it must refuse.
    BadInput,
}

impl cli::Choice for Choice {
    const ALL: Self = Self::All;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
