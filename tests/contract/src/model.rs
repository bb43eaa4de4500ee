//! Random steps: many processes and threads on a few pages, on all devices.
//!
//! Each process has its own world (see [`world`]): pages, a model of the possible values of each of
//! their words, and threads that do to them whatever a program may do. `world` has the steps and
//! judges them. This module decides how many there are, for how long, and with which seed.

mod world;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hmm::Device;
use hmm_cli::say;

use crate::child::Child;

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Seed of the random numbers; by default the time. Each thread takes the same steps again, but
    /// how these meet the steps of other threads is up to the machine
    #[arg(long)]
    seed: Option<u64>,

    /// For how long
    #[arg(long, default_value_t = 20)]
    seconds: u64,

    /// Processes at a time, not counting those that these fork
    #[arg(long, default_value_t = 2)]
    processes: u64,

    /// Threads of each process that write and read
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,

    /// Let each process but the first belong to a user of its own; the devices' nodes are opened to
    /// these users
    #[arg(long)]
    users: bool,

    /// Pages of each process
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u16).range(16..=4096))]
    pages: u16,
}

/// Runs the model. The first line has the seed, the last one how much was done.
///
/// # Errors
///
/// The first mistake, with the seed, the process, the thread and the step.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => now().context("the clock")?.subsec_nanos().into(),
    };
    say!("seed {seed}");
    if arguments.users {
        for path in Device::list() {
            std::fs::set_permissions(&path, Permissions::from_mode(0o666))
                .with_context(|| format!("opening {} to all", path.display()))?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let children = (0..arguments.processes)
        .map(|process| {
            let size = world::Size {
                threads: arguments.threads.into(),
                pages: arguments.pages.into(),
            };
            // Distinct from the seeds of other processes, and of runs with the next seed.
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(process);
            Child::fork(|_| {
                if let Some(user) = u32::try_from(process).ok().filter(|_| arguments.users) {
                    become_user(user)?;
                }
                // Every other process uses huge pages as far as it can.
                let tally = world::run(seed, size, process % 2 == 1, deadline)?;
                say!("process {process}: {tally}");
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

/// The first user that processes may belong to.
const USER: u32 = 1000;

/// Makes the calling process belong to the user with this number; the first process stays root's.
fn become_user(number: u32) -> Result<()> {
    if number > 0 {
        crate::sys::set_user(USER + number).context("becoming another user")?;
    }
    Ok(())
}
