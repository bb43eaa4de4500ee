//! Runs a command while a device moves, reads and writes the memory of all its processes.
//!
//! The processes are bound from outside and know nothing of it. This file decides whose turn it is;
//! it does not know what is done to a process.

mod acts;
mod command;
mod family;
mod maps;
pub(crate) mod pace;
mod tally;
mod target;
mod verdict;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hmm::Device;
use hmm_cli::remark;

use acts::Acts;
use command::Command;
use family::{Family, Program};
use pace::Pace;
use tally::Tally;
use target::Target;

/// The exit status if a device has read something else than the CPU. Those that follow are what
/// env(1), timeout(1) and others use.
const DIFFERENT: u8 = 120;

/// If this program itself has failed.
const FAILED: u8 = 125;

/// If the command cannot be run, and if it is not there.
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How often to look for new processes. A process that lives for less is missed.
const LOOK: Duration = Duration::from_millis(10);

/// What to run, and how.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) device: &'a Path,
    pub(crate) seed: u64,
    pub(crate) pace: Duration,
    pub(crate) json: bool,
    pub(crate) command: &'a [OsString],
}

/// Runs a command to its end; returns its exit status, or one of ours.
pub(crate) fn run(plan: &Plan<'_>) -> ExitCode {
    let failed = |status, error: &dyn std::fmt::Display| {
        remark!("hmm chaos: {error}");
        ExitCode::from(status)
    };
    let command = match Command::start(plan.command) {
        Ok(command) => command,
        Err(error) => {
            let program = plan.command.first().map(|program| program.display());
            let program = program.map_or(String::new(), |program| program.to_string());
            let status = if error.kind() == io::ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_RUN
            };
            return failed(status, &format_args!("{program}: {error}"));
        }
    };
    match Chaos::new(plan).and_then(|chaos| chaos.run(command)) {
        Ok(tally) => {
            if plan.json {
                let line = serde_json::to_string(&tally);
                remark!("{}", line.unwrap_or_default());
            } else {
                remark!("{tally}");
            }
            ExitCode::from(if tally.differences > 0 {
                DIFFERENT
            } else {
                tally.status
            })
        }
        Err(error) => failed(FAILED, &format_args!("{error:#}")),
    }
}

/// A run.
struct Chaos<'a> {
    device: &'a Path,
    /// As long as a file is open, the driver does not move everything back.
    _open: Device,
    pace: Pace,
    looks: Pace,
    acts: Acts,
    family: Family,
    targets: BTreeMap<i32, Target>,
    /// Processes that cannot be bound while they execute this program.
    refused: BTreeMap<i32, Program>,
    tally: Tally,
}

impl<'a> Chaos<'a> {
    fn new(plan: &Plan<'a>) -> Result<Self> {
        let now = Instant::now();
        let me = i32::try_from(std::process::id())?;
        Ok(Self {
            device: plan.device,
            _open: Device::open(plan.device)?,
            pace: Pace::new(plan.pace, now),
            looks: Pace::new(LOOK, now),
            acts: Acts::new(plan.seed),
            family: Family::new(me),
            targets: BTreeMap::new(),
            refused: BTreeMap::new(),
            tally: Tally {
                seed: plan.seed,
                ..Tally::default()
            },
        })
    }

    /// Runs a command that was started and has not begun.
    fn run(mut self, mut command: Command) -> Result<Tally> {
        let begun = Instant::now();
        self.family.look();
        let program = *(self.family.members().get(&command.pid()))
            .context("the command is not among the processes in /proc")?;
        let first = Target::bind(self.device, command.pid(), program)
            .with_context(|| format!("binding {} to the command", self.device.display()))?;
        self.tally.processes += 1;
        self.targets.insert(command.pid(), first);
        command.begin().context("letting the command run")?;
        let mut broken = None;
        let status = loop {
            let now = Instant::now();
            let left = self.pace.left(now).min(self.looks.left(now));
            if let Some(status) = command.wait(left).context("waiting for the command")? {
                break status;
            }
            if broken.is_some() {
                continue;
            }
            let now = Instant::now();
            if self.looks.left(now).is_zero() {
                self.look();
                self.looks.done(now, Instant::now());
            }
            let now = Instant::now();
            if self.pace.left(now).is_zero() {
                broken = self.act().err();
                self.pace.done(now, Instant::now());
            }
        };
        for (_, target) in std::mem::take(&mut self.targets) {
            self.leave(&target);
        }
        self.tally.end(begun.elapsed(), status);
        match broken {
            Some(error) => Err(error).context(format!(
                "the command ended with status {status}, but the device did not last as long"
            )),
            None => Ok(self.tally),
        }
    }

    /// Binds new processes, and those that execute a new program.
    fn look(&mut self) {
        self.family.look();
        let members = self.family.members();
        let ended: Vec<i32> = (self.targets.iter())
            .filter(|(pid, target)| !members.get(pid).is_some_and(|now| target.is_of(*now)))
            .map(|(&pid, _)| pid)
            .collect();
        for pid in ended {
            if let Some(target) = self.targets.remove(&pid) {
                self.leave(&target);
            }
        }
        let members = self.family.members();
        self.refused
            .retain(|pid, program| members.get(pid) == Some(program));
        for (&pid, &program) in members {
            if self.targets.contains_key(&pid) || self.refused.contains_key(&pid) {
                continue;
            }
            match Target::bind(self.device, pid, program) {
                Ok(target) => {
                    self.tally.processes += 1;
                    self.targets.insert(pid, target);
                }
                Err(error) if is_too_late(&error) => {}
                Err(error) => {
                    self.tally.unbound += 1;
                    self.refused.insert(pid, program);
                    if self.tally.unbound == 1 {
                        remark!("hmm chaos: process {pid} is left alone: {error:#}");
                    }
                }
            }
        }
    }

    /// Does one thing to one process.
    fn act(&mut self) -> hmm::Result<()> {
        let all: Vec<i32> = self.targets.keys().copied().collect();
        let target = (self.acts.choose(&all)).and_then(|pid| self.targets.get(pid));
        match target {
            Some(target) => self.acts.act(target, &mut self.tally),
            None => Ok(()),
        }
    }

    /// Counts what has happened to a process that is about to be let go.
    fn leave(&mut self, target: &Target) {
        // A device that is gone has no counters.
        if let Ok(counters) = target.counters() {
            self.tally.add(&counters);
        }
    }
}

/// Whether a process could not be bound because it has just ended, or executes another program.
fn is_too_late(error: &anyhow::Error) -> bool {
    let too_late = [libc::ESRCH, libc::ENOENT];
    let of_device = error
        .downcast_ref::<hmm::Error>()
        .and_then(hmm::Error::errno);
    let of_system = || error.downcast_ref::<io::Error>()?.raw_os_error();
    let of_calls = || Some(error.downcast_ref::<rustix::io::Errno>()?.raw_os_error());
    let errno = of_device.or_else(of_system).or_else(of_calls);
    errno.is_some_and(|errno| too_late.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_just_ended_is_not_refused() {
        let gone = io::Error::from_raw_os_error(libc::ESRCH);
        assert!(is_too_late(&gone.into()));
        assert!(is_too_late(&rustix::io::Errno::SRCH.into()));
        assert!(!is_too_late(
            &io::Error::from_raw_os_error(libc::EACCES).into()
        ));
        let missing = Device::open("/no/such/device").unwrap_err();
        assert!(is_too_late(&missing.into()), "or the node has gone");
    }
}
