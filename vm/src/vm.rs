//! A machine with its devices, from start to finish.
//!
//! It puts a machine together from the artifacts, and takes it apart again with every check that
//! must hold at the end. The details are left to the parts.

mod builder;
mod mounts;
mod origin;
mod problems;
mod slot;

use std::time::Duration;

use anyhow::{bail, Context, Result};
use hmm_cli::remark;
use tempfile::TempDir;

pub use self::builder::Builder;
pub use self::mounts::{SHARED, USERLAND};
use self::problems::Problems;
use self::slot::Slot;
use crate::artifacts::Artifacts;
use crate::control::Control;
use crate::daemon::Daemon;
use crate::guest::{self, Command, Guest, Output, Record, Running};
use crate::initramfs::DRIVER;
use crate::klog::{judge_console, Complaint};
use crate::logs::{tail, Logs};
use crate::pace::{self, Pace};
use crate::qemu::Qemu;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// The least memory of a guest, in bytes: with less the kernel does not reach its first process, and
/// says nothing.
pub const LEAST_MEMORY: u64 = 128 * MIB;

/// The environment variable that names the kernel of machines that choose none.
pub const KERNEL_VARIABLE: &str = "VIRTIO_HMM_KERNEL";

/// The name of our driver among the guest's modules.
pub const DRIVER_NAME: &str = "virtio_hmm";

/// Where the guest's kernel reports leaks, if it looks for them.
const LEAKS: &str = "/sys/kernel/debug/kmemleak";

/// The kernel does not report younger objects as leaks (`MSECS_MIN_AGE` in `mm/kmemleak.c` is 5 s).
const LEAK_AGE: Duration = Duration::from_secs(6);

/// The kernel of machines that choose none: the one that [`KERNEL_VARIABLE`] names, else the stock
/// kernel.
#[must_use]
pub fn default_kernel() -> String {
    std::env::var(KERNEL_VARIABLE).unwrap_or_else(|_| "stock".to_owned())
}

/// What [`Vm::judge`] has seen of the kernel log.
#[derive(Debug)]
#[must_use = "what comes after it is for `finish_after`"]
pub struct Judged {
    complaints: usize,
}

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    // The order of the fields is the order of drops: the guest's connection ends, QEMU is killed,
    // then the daemons, then their directory is removed and the next machine may start.
    guest: Guest,
    qemu: Qemu,
    daemons: Vec<Daemon>,
    driver: bool,
    leak_check: bool,
    logs: Logs,
    pace: Pace,
    finished: bool,
    _directory: TempDir,
    _slot: Slot,
}

impl Vm {
    /// A machine with 2 processors, 1 GiB of memory and one accelerator of 256 MiB, unless the
    /// caller changes these.
    #[must_use]
    pub fn builder(artifacts: &Artifacts) -> Builder<'_> {
        Builder::new(artifacts)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn run(&self, command: impl Into<Command>) -> guest::Result<Output> {
        self.guest.run(command)
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// As [`Guest::spawn`].
    pub fn spawn(&self, command: impl Into<Command>) -> guest::Result<Running<'_>> {
        self.guest.spawn(command)
    }

    /// The kernel log up to now.
    ///
    /// # Errors
    ///
    /// As [`Guest::kernel_log`].
    pub fn kernel_log(&self) -> guest::Result<Vec<Record>> {
        self.guest.kernel_log()
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// QEMU.
    #[must_use]
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// The daemon of a device.
    ///
    /// # Panics
    ///
    /// When there is no such device.
    #[must_use]
    pub fn daemon(&self, device: usize) -> &Daemon {
        &self.daemons[device]
    }

    /// Controls a device: holds, rules, counters.
    ///
    /// # Panics
    ///
    /// When there is no such device.
    #[must_use]
    pub fn device(&self, device: usize) -> &Control {
        self.daemons[device].control()
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// How slow this machine is.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Loads the driver, on a machine that was started without it.
    ///
    /// # Errors
    ///
    /// As [`Guest::load_module`].
    pub fn load_driver(&mut self, parameters: &str) -> guest::Result<()> {
        self.guest.load_module(DRIVER, parameters, pace::DRIVER)?;
        self.driver = true;
        Ok(())
    }

    /// Unloads the driver.
    ///
    /// # Errors
    ///
    /// As [`Guest::unload_module`].
    pub fn unload_driver(&mut self) -> guest::Result<()> {
        self.guest.unload_module(DRIVER_NAME, pace::DRIVER)?;
        self.driver = false;
        Ok(())
    }

    /// Unloads the driver, switches off, stops the daemons and checks that there was no complaint
    /// since the start.
    ///
    /// # Errors
    ///
    /// Everything that was wrong, and where the logs are.
    pub fn finish(mut self) -> Result<()> {
        let mut problems = Problems::default();
        if self.driver {
            problems.note(self.unload_driver());
        }
        self.end(problems)
    }

    /// Switches off with the driver loaded, and checks like [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn switch_off(self) -> Result<()> {
        self.end(Problems::default())
    }

    /// Ends the machine at once without any check: its faults are known, or of no interest.
    pub fn abandon(mut self) {
        self.finished = true;
    }

    /// Checks like [`finish`](Self::finish) what has happened up to now. The machine runs on, for
    /// what is not ours to judge.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn judge(&self) -> Result<Judged> {
        let mut problems = Problems::default();
        self.judge_kernel(&mut problems);
        self.judge_daemons(&mut problems);
        problems.report(&self.logs)?;
        Ok(Judged {
            complaints: self.guest.known_complaints().len(),
        })
    }

    /// Switches off and stops the daemons. Complaints of the kernel since it was judged are no
    /// error: they are returned, and so is the failure of a guest that does not even switch off.
    ///
    /// # Errors
    ///
    /// When a daemon complained or failed.
    pub fn finish_after(mut self, judged: Judged) -> Result<Vec<String>> {
        self.finished = true;
        // What the kernel complained of before it was gone is known without this.
        let _ = self.guest.complaints();
        let complaints = self.guest.known_complaints().into_iter();
        let mut said: Vec<String> = complaints
            .skip(judged.complaints)
            .map(|complaint| complaint.line)
            .collect();
        if let Err(error) = self.power_off() {
            said.push(format!("{error:#}"));
        }
        let mut problems = Problems::default();
        self.stop_daemons(&mut problems);
        problems.report(&self.logs)?;
        Ok(said)
    }

    fn end(mut self, mut problems: Problems) -> Result<()> {
        self.finished = true;
        self.judge_kernel(&mut problems);
        problems.note(self.power_off());
        problems.kernel(self.console_complaints());
        self.stop_daemons(&mut problems);
        problems.report(&self.logs)
    }

    fn judge_kernel(&self, problems: &mut Problems) {
        match self.look_for_leaks() {
            Ok(leaks) => problems.lines("leak", leaks),
            Err(error) => problems.note::<()>(Err(error)),
        }
        match self.guest.complaints() {
            Ok(complaints) => problems.kernel(complaints),
            Err(error) => {
                problems.note::<()>(Err(error));
                problems.kernel(self.guest.known_complaints());
            }
        }
    }

    fn stop_daemons(&self, problems: &mut Problems) {
        for (device, daemon) in self.daemons.iter().enumerate() {
            problems.note(daemon.stop().with_context(|| format!("device {device}")));
        }
        self.judge_daemons(problems);
    }

    fn judge_daemons(&self, problems: &mut Problems) {
        for (device, daemon) in self.daemons.iter().enumerate() {
            match daemon.complaints() {
                Ok(lines) => problems.lines(&format!("daemon {device}"), lines),
                Err(error) => problems.note::<()>(Err(error)),
            }
        }
    }

    fn power_off(&self) -> Result<()> {
        // A guest that is already gone has been noted.
        if self.guest.power_off().is_err() && self.qemu.ended().is_none() {
            self.qemu.kill();
            return Ok(());
        }
        let limit = self.pace.scale(pace::POWER_OFF);
        match self.qemu.wait(limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!(
                "QEMU failed: {status}; it printed\n{}",
                tail(&self.logs.qemu())
            ),
            None => bail!("the guest did not switch off within {limit:?}"),
        }
    }

    /// Lets the kernel look for leaks, if it was built and told to. The kernel logs what it finds;
    /// it is also returned.
    fn look_for_leaks(&self) -> Result<Vec<String>> {
        if !self.leak_check {
            return Ok(Vec::new());
        }
        match self.guest.read_file(LEAKS) {
            Err(guest::Error::Refused { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let age = Command::new("sleep").argument(LEAK_AGE.as_secs().to_string());
        self.run(age)?.succeeded()?;
        // Memory that changed since a scan is taken to be in use until the next scan.
        for _ in 0..2 {
            self.guest.write_file(LEAKS, "scan")?;
        }
        let report = self.guest.read_file(LEAKS)?;
        Ok(String::from_utf8_lossy(&report)
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Complaints that only the console has, because the agent had no time left to send them.
    fn console_complaints(&self) -> Vec<Complaint> {
        let console = std::fs::read(self.logs.console()).unwrap_or_default();
        judge_console(
            &String::from_utf8_lossy(&console),
            hmm_agent::protocol::LOG_MARK,
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.finished {
            let ended = self.qemu.ended();
            let ended = ended.map(|status| format!(" (QEMU has ended with {status})"));
            remark!(
                "a machine was not finished{}; its logs: {}",
                ended.unwrap_or_default(),
                self.logs.directory().display()
            );
        }
    }
}
