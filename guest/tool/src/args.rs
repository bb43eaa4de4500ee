//! The command line.
//!
//! What is asked for, checked; nothing is done here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run work on a virtio-hmm accelerator and look at it.
///
/// Pointers of this process are used by the device as they are.
#[derive(Debug, Parser)]
#[command(name = "hmm", version)]
pub(crate) struct Arguments {
    /// The device.
    #[arg(long, global = true, default_value = "/dev/hmm0", value_name = "PATH")]
    pub(crate) device: PathBuf,
    /// Print JSON, one object for each line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the device is and how large.
    Info,
    /// Run a workload on the device and check its answers with the CPU.
    ///
    /// Prints a line for each workload: its size, whether every answer was right, the
    /// device's faults, the pages moved each way and the time on device and CPU.
    Run(Run),
    /// Move memory to the device and back and measure how fast that is.
    Migrate(Migrate),
    /// Measure jobs, faults and migrations, each in turns with what the CPU does.
    Bench(Bench),
    /// Show where the memory of a process is that is bound to the device.
    Residency {
        /// The process.
        pid: i32,
    },
    /// Show the counters of driver and device.
    Stats {
        /// Show every so many seconds what has changed, until interrupted.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
              value_parser = clap::value_parser!(u64).range(1..))]
        watch: Option<u64>,
    },
    /// One of the processes that the `processes` workload starts.
    #[command(hide = true)]
    Worker(Worker),
}

/// Which workload, and how large.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The workload.
    #[arg(value_enum)]
    pub(crate) workload: Choice,
    /// How large, with K, M or G for powers of 1024: nodes (list, tree), rows (gemm),
    /// elements (axpy, dot, sort), edges (bfs), bytes (migrate, oversubscribe, peers), processes
    /// (processes) or rounds (churn). Each workload has its own default.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<usize>,
    /// The seed of all input, order and timing that is chosen at random. It is printed,
    /// so that a run can be repeated.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The file whose bytes the histogram counts: by default the kernel's image, or this
    /// program if there is none.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

/// How much to move.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// How many bytes, with K, M or G for powers of 1024.
    #[arg(default_value = "64M", value_parser = parse_size)]
    pub(crate) size: usize,
}

/// What to measure, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// Rounds of everything.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) repetitions: usize,
    /// The most memory to move at once, with K, M or G for powers of 1024. The guest
    /// needs three times as much.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub(crate) largest: usize,
    /// The most memory to have mapped on the device at once; less if the guest has not
    /// enough.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) mapped: usize,
    /// Measure this part only; may be given several times.
    #[arg(long, value_name = "PART", value_enum)]
    pub(crate) only: Vec<Measured>,
    /// Another device, to measure what changes of memory cost that both have mapped.
    #[arg(long, value_name = "PATH")]
    pub(crate) second: Option<PathBuf>,
    /// Measure only what can be measured of a node for the kernel's own tests, whosever
    /// driver it belongs to.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["second", "mapped", "largest"])]
    pub(crate) dmirror: Option<PathBuf>,
}

impl Bench {
    /// Whether this part is to be measured.
    pub(crate) fn has(&self, part: Measured) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// A part of what `hmm bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measured {
    /// Jobs: what it takes to hand one in.
    Jobs,
    /// Pages that the device has not mapped yet.
    Faults,
    /// Pages that move on request.
    Migration,
    /// Pages that a CPU touches on the device.
    Touch,
    /// Changes of what is mapped on the device.
    Changes,
    /// What the driver takes itself.
    Memory,
}

/// What a process of the `processes` workload does.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Worker {
    /// Its part.
    #[arg(value_enum)]
    pub(crate) part: Part,
    /// The seed of its input.
    #[arg(long)]
    pub(crate) seed: u64,
}

/// The part that a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Work, check and end well.
    Peer,
    /// Run a job that does not end, until killed.
    Victim,
}

/// A workload, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Every workload, one after the other.
    All,
    /// Walk a linked list whose nodes lie in shuffled order.
    List,
    /// Search and sum up a binary tree.
    Tree,
    /// Multiply two matrices.
    Gemm,
    /// Add a multiple of a vector to another one.
    Axpy,
    /// Multiply two vectors.
    Dot,
    /// Sort integers.
    Sort,
    /// Count the bytes of a mapped file.
    Histogram,
    /// Search a graph, breadth first.
    Bfs,
    /// Move memory to the device, work on it there, and read it back.
    Migrate,
    /// Work on more memory than the device has.
    Oversubscribe,
    /// Let the other devices work on memory that lies on this one.
    Peers,
    /// Several processes and threads at once, one of which is killed.
    Processes,
    /// Change mappings while jobs use them.
    Churn,
    /// Hand the driver everything that it must refuse.
    BadInput,
}

/// A number with an optional suffix K, M or G.
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| "not a number such as 64M".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("it must be at least one".into()),
        Some(size) => Ok(size),
        None => Err("too large".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_have_suffixes_and_are_never_zero() {
        assert_eq!(parse_size("7"), Ok(7));
        assert_eq!(parse_size("2k"), Ok(2048));
        assert_eq!(parse_size("3G"), Ok(3 << 30));
        for wrong in ["", "K", "0", "-1", "1T", "99999999999G"] {
            assert!(parse_size(wrong).is_err(), "{wrong} was taken for a size");
        }
    }
}
