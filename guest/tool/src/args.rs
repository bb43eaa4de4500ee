//! The command line.
//!
//! It checks what is asked for, and does nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hmm_cli::size;
use hmm_replay::judge::Player;
use hmm_replay::link::{self, Link};
use hmm_tool::cli::{self, Common, Rounds};

use crate::chaos::pace;

/// Run work on a virtio-hmm accelerator and look at it.
///
/// Pointers of this process are used by the device as they are.
#[derive(Debug, Parser)]
#[command(name = "hmm", version)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
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
    /// device's faults, the pages moved each way and the time on device and CPU. The exit status is
    /// 0 if every answer was right, 1 if not, and 2 if a size does not suit the device.
    Run(Run),
    /// Move memory to the device and back and measure how fast that is.
    Migrate(Migrate),
    /// Measure jobs, faults and migrations, each in turns with the same work of the CPU.
    Bench(Bench),
    /// Run a command while the device moves, reads and writes the memory of all its processes.
    ///
    /// The command need not know of the device. Its pages move to the device and back at random, jobs
    /// read them and add zero in place, and they are made exclusive, huge, or paged out. What the
    /// device reads is compared with what the CPU reads. One line with the result goes to standard
    /// error. The exit status is the command's (128 and the signal's number if one has ended it), or
    /// 120 if the device has read something else than the CPU, 125 if this program failed, 126 if the
    /// command cannot be run, and 127 if it is not there.
    Chaos(Chaos),
    /// Show what policies of memory would have cost on a recorded run.
    ///
    /// Reads a page trace, lets each policy decide what moves on a device with too little memory,
    /// and prints how many bytes cross the link, beside the bound: the fewest with which any policy
    /// could have served this run. Needs no device.
    Replay(Replay),
    /// Trace what the driver does while a command runs.
    ///
    /// Faults, moves, changes of memory and jobs of all devices, with their times, to a file; what they
    /// add up to goes to standard error. Needs root. The exit status is the command's (128 and the
    /// signal's number if one has ended it), 127 if it is not there and 126 if it cannot be run.
    Trace(Trace),
    /// Put the driver's events and the devices' records on one clock, in a file for Perfetto.
    ///
    /// The driver's events come from `hmm trace -o FILE`, and a device's records from `vhost-device-hmm
    /// --trace FILE` on the host. Needs no device. Perfetto (ui.perfetto.dev) opens it.
    Timeline(Timeline),
    /// Show where the memory of a process is. The process must be bound to the device.
    Residency {
        /// The process.
        pid: i32,
    },
    /// Show the counters of driver and device.
    ///
    /// They count since the device was bound to its driver. With --json the numbers are plain:
    /// bytes, nanoseconds, pages of 4 KiB.
    Stats(Stats),
}

/// Which workload, and how large.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The workload.
    #[arg(value_enum)]
    pub(crate) workload: Choice,
    /// How large, such as 100000 or 64M, where K, M, G and T are powers of 1024: nodes (list, tree),
    /// rows (gemm), elements (axpy, dot, sort), edges (bfs) or bytes (migrate, oversubscribe). Each
    /// workload has its own default.
    #[arg(long, value_name = "SIZE", value_parser = size::parse::<usize>)]
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

/// What to run, and how often to act.
#[derive(Debug, Args)]
pub(crate) struct Chaos {
    /// The seed of all choices. It is printed. What a run does also depends on when the processes do
    /// what.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The time from one act to the next, such as 500us, 5ms or 1s; one pace for all processes
    /// together. An act that takes longer is followed by as much time for the processes.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = pace::parse)]
    pub(crate) pace: Duration,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Once, or again and again.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Stats {
    /// Show what changes, and how much of it in a second, once in this many seconds. Ctrl-C ends
    /// it. The requests that reading the counters costs are left out.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) watch: Option<u64>,
    /// Show the counters that are zero, too.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) all: bool,
    /// End after showing changes so many times.
    #[arg(long, value_name = "N", requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) times: Option<u64>,
}

/// What to trace.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Where to write it: for Perfetto (ui.perfetto.dev) if the name ends with .pftrace,
    /// otherwise the kernel's own lines, for `hmm timeline`.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Trace only these: fault, resolve, migrate, change, invalidate, submit, complete.
    /// [default: all of them]
    #[arg(long, value_name = "EVENT", value_delimiter = ',')]
    pub(crate) events: Vec<String>,
    /// The kernel's buffer for each processor. If events come faster than they are read, some are lost;
    /// their number is told.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = size::parse::<u64>)]
    pub(crate) buffer: u64,
    /// Do not print what it adds up to.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Which files to put together.
#[derive(Debug, Args)]
pub(crate) struct Timeline {
    /// The driver's events, as `hmm trace -o FILE` writes them.
    #[arg(value_name = "EVENTS")]
    pub(crate) events: PathBuf,
    /// A device's records, as `vhost-device-hmm --trace FILE` writes them: first those of /dev/hmm0,
    /// then those of /dev/hmm1, and so on.
    #[arg(long = "device-trace", value_name = "FILE")]
    pub(crate) devices: Vec<PathBuf>,
    /// Where to write the timeline.
    #[arg(short, long, value_name = "FILE", default_value = "run.pftrace")]
    pub(crate) output: PathBuf,
}

/// What to replay, and on which device.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The trace; standard input if it is "-".
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// A policy: never, first-touch, clock, belady, heat or adaptive; may be given several times.
    /// [default: all of them]
    #[arg(long, value_name = "POLICY", value_parser = Player::named)]
    pub(crate) policy: Vec<Player>,
    /// The device's memory, such as 64M; may be given several times. [default: what the run uses,
    /// divided by 1.25, 1.5, 2 and 4]
    #[arg(long, value_name = "SIZE", value_parser = size::parse::<u64>)]
    pub(crate) capacity: Vec<u64>,
    /// Show how long a link is in use, of so many bytes in a second and perhaps a latency for each
    /// transfer, such as 16G or 16G,1us.
    #[arg(long, value_name = "LINK", value_parser = link::parse)]
    pub(crate) link: Option<Link>,
    /// What moves as a whole: a power of two from 4K to 2M.
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = granule)]
    pub(crate) granule: u64,
    /// Leave out the bound. It takes time for each use of a granule and each granule of the device:
    /// seconds for most runs, minutes for long ones.
    #[arg(long)]
    pub(crate) no_bound: bool,
    /// Print comma-separated values.
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Draw what each policy costs on each device, as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

/// The size of a granule.
fn granule(text: &str) -> Result<u64, String> {
    let granule = size::parse(text)?;
    if u64::is_power_of_two(granule) && (4 << 10..=2 << 20).contains(&granule) {
        Ok(granule)
    } else {
        Err("a granule is a power of two from 4K to 2M".to_owned())
    }
}

/// How much to move.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// How many bytes, such as 64M or 1.5G; K, M, G and T are powers of 1024.
    #[arg(value_name = "SIZE", default_value = "64M", value_parser = size::parse::<usize>)]
    pub(crate) size: usize,
}

/// What to measure, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    #[command(flatten)]
    pub(crate) rounds: Rounds,
    /// The most memory to move at once. The guest needs three times as much.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse::<usize>)]
    pub(crate) largest: usize,
    /// The most memory to have mapped on the device at once; less if the guest has not
    /// enough.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse::<usize>)]
    pub(crate) mapped: usize,
    /// Measure this part only; may be given several times.
    #[arg(long, value_name = "PART", value_enum)]
    pub(crate) only: Vec<Measured>,
    /// Another device, to measure changes of memory that both have mapped.
    #[arg(long, value_name = "PATH")]
    pub(crate) second: Option<PathBuf>,
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
    /// Jobs: the cost of submitting one.
    Jobs,
    /// Pages that the device has not mapped yet.
    Faults,
    /// Pages that move on request.
    Migration,
    /// Pages on the device that a CPU touches.
    Touch,
    /// Changes of memory that the device has mapped.
    Changes,
    /// The driver's own memory.
    Memory,
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
}

impl cli::Choice for Choice {
    const ALL: Self = Self::All;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_times_needs_a_watch() {
        assert!(Arguments::try_parse_from(["hmm", "stats", "--times", "3"]).is_err());
        assert!(Arguments::try_parse_from(["hmm", "stats", "--watch", "--times", "3"]).is_ok());
    }

    #[test]
    fn a_policy_a_granule_and_a_link_are_checked() {
        let parse = |option: &str, value: &str| {
            Arguments::try_parse_from(["hmm", "replay", "run.trace", option, value]).map(drop)
        };
        for (option, good, bad) in [
            ("--policy", "heat", "luck"),
            ("--granule", "2M", "4M"),
            ("--granule", "4K", "12K"),
            ("--link", "16G,1us", "16G,soon"),
            ("--capacity", "64M", "0"),
        ] {
            assert!(parse(option, good).is_ok(), "{option} {good}");
            assert!(parse(option, bad).is_err(), "{option} {bad}");
        }
        let error = parse("--policy", "luck").unwrap_err().to_string();
        assert!(error.contains("first-touch"), "{error}");
    }

    #[test]
    fn every_command_that_a_page_shows_is_understood() {
        let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let shown = hmm_book::commands::shown(&checkout, "hmm").unwrap();
        assert!(shown.len() > 15, "{}", shown.len());
        let parse = |words: &[String]| {
            let words = std::iter::once("hmm").chain(words.iter().map(String::as_str));
            Arguments::try_parse_from(words).map(drop)
        };
        let told = hmm_book::commands::misunderstood(&shown, |_| None, parse);
        assert!(told.is_empty(), "{}", told.join("\n"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
