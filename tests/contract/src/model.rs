//! Everything at random: many processes and threads on a few pages, on all devices.
//!
//! Each process has a world (see [`world`]) of its own: pages, a model of what each
//! word of them may be, and threads that do to them whatever a program may do. What one
//! step is and how it is judged is in `world`; here is how many there are, for how long,
//! and which seed it was.

mod world;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::child::Child;

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the random numbers begin: each thread takes the same steps again, though
    /// how they meet those of others is the machine's choice; by default the time
    #[arg(long)]
    seed: Option<u64>,

    /// For how long
    #[arg(long, default_value_t = 20)]
    seconds: u64,

    /// Processes at a time, not counting those that these fork
    #[arg(long, default_value_t = 2)]
    processes: u64,

    /// Threads of each that write and read
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,

    /// Pages of each
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pages: u16,
}

/// Runs it. The first line says the seed, the last one how much was done.
///
/// # Errors
///
/// What was wrong, with the seed, in which process and at which step of which thread.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => now().context("the clock")?.subsec_nanos().into(),
    };
    println!("seed {seed}");
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let children = (0..arguments.processes)
        .map(|process| {
            let size = world::Size {
                threads: arguments.threads.into(),
                pages: arguments.pages.into(),
            };
            // Apart from each other, and from those of the next seed.
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(process);
            Child::fork(|_| {
                // Every other process uses large pages as far as it can.
                let tally = world::run(seed, size, process % 2 == 1, deadline)?;
                println!("process {process}: {tally}");
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let results: Vec<_> = children.into_iter().map(Child::end).collect();
    for (process, result) in results.into_iter().enumerate() {
        result.with_context(|| format!("seed {seed}, process {process}"))?;
    }
    Ok(())
}
